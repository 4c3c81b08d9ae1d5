//! The end-to-end suite: real servers, the real worker, foreign readers. One binary, so that it links once.

mod extension_accelerate;
mod extension_catalogs;
mod extension_columns;
mod extension_crash;
mod extension_files;
mod extension_history;
mod extension_layout;
mod extension_maintenance;
mod extension_mirror;
mod extension_pruning;
mod extension_refusals;
mod extension_regress;
mod extension_sqlsmith;
mod extension_stores;
mod extension_types;
mod harness;
mod mirror;
mod worker_catalogs;
mod worker_changes;
mod worker_companions;
mod worker_copy;
mod worker_crash;
mod worker_handoff;
mod worker_history;
mod worker_identity;
mod worker_isolation;
mod worker_java_catalog;
mod worker_kinds;
mod worker_layout;
mod worker_maintenance;
mod worker_partitions;
mod worker_prepared;
mod worker_progress;
mod worker_readers;
mod worker_refusals;
mod worker_resume;
mod worker_schema;
mod worker_soak;
mod worker_standby;
mod worker_stores;
mod worker_strays;
mod worker_stream;
mod worker_streamed;
mod worker_takeover;
mod worker_toast;
mod worker_truncate;
mod worker_types;
mod worker_vectors;
mod worker_vended;
mod worker_versions;

use std::time::Duration;

/// How long one whole test may take.
const TEST_LIMIT: Duration = Duration::from_secs(240);
/// Of the retained snapshots, all.
const ALL: usize = 1000;
/// How long the lake may take to catch up with a source that stands still.
const CATCH_UP: Duration = Duration::from_secs(60);
