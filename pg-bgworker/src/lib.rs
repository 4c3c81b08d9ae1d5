//! The Postgres extension `lake`: the SQL surface of a mirror, and the background workers that run its engine.
//!
//! Two kinds of process load this library. **Backends** call the SQL functions ([`mirror`], [`wait`], [`status`]): they
//! change the registry and the publication, and ask the engine over its unix socket; they never start a thread.
//! **Background workers** run the engine: one [`launcher`] at server start that finds the databases, and one
//! [`supervisor`] for each database that has the extension, which owns a tokio runtime with the `cdc_worker` library.
//!
//! Invariants:
//! - **At most one engine a database.** A supervisor works only while it holds a session lock that no SQL can take
//!   ([`process::claim_database`]); Postgres releases it with the process, however that ends.
//! - **Postgres is called from the main thread only.** The engine's threads get plain values and a channel; every
//!   signal is blocked on them, so a handler of Postgres never runs there.
//! - **A worker ends with exit code 0 or 1 only**: another code would make the postmaster restart the whole cluster.
//!   0 means "not needed here, do not start me again"; 1 means "start me again".
//! - **Nothing outlives the extension**: the publication depends on it in the catalog, and the supervisor drops the
//!   replication slot when it sees that the extension is gone.

use pgrx::prelude::*;

mod engine;
mod error;
mod launcher;
mod lock;
mod log;
mod lsn;
mod maintain;
mod mirror;
mod preflight;
mod process;
mod registry;
mod settings;
mod status;
mod supervisor;
mod wait;

pgrx::pg_module_magic!();

/// Called by Postgres when the library is loaded: by the postmaster when it is preloaded, by one backend otherwise.
#[pg_guard]
extern "C-unwind" fn _PG_init() {
    settings::define();
    // SAFETY: a plain flag of the main thread.
    if unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        settings::mark_preloaded();
        launcher::register();
    }
}
