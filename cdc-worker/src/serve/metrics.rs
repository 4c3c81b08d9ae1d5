//! Names of the metrics, in one place. Prometheus conventions: base units, `_total` for counters.

use std::time::Duration;

use iceberg_writer::StoreRequests;
use lake_protocol::MirrorStatus;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

const COMMITS: &str = "lake_commits_total";
const COMMIT_SECONDS: &str = "lake_commit_seconds";
const REWRITTEN_FILES: &str = "lake_rewritten_files_total";
const REWRITTEN_BYTES: &str = "lake_rewritten_bytes_total";
const RECEIVED: &str = "lake_received_lsn";
const APPLIED: &str = "lake_applied_lsn";
const COMMITTED: &str = "lake_committed_lsn";
const LAG_SECONDS: &str = "lake_lag_seconds";
const LAG_BYTES: &str = "lake_lag_bytes";
const PENDING_ROWS: &str = "lake_pending_rows";
const PENDING_BYTES: &str = "lake_pending_bytes";
const TABLES: &str = "lake_tables";
const STORE_REQUESTS: &str = "lake_store_requests_total";
const STORE_FAILURES: &str = "lake_store_failed_requests_total";
const STORE_SENT: &str = "lake_store_sent_bytes_total";
const STORE_RECEIVED: &str = "lake_store_received_bytes_total";

/// Says what each metric means, once a process.
pub(super) fn describe() {
    describe_counter!(COMMITS, "batches committed to Iceberg");
    describe_histogram!(COMMIT_SECONDS, Unit::Seconds, "time to write and commit one batch");
    describe_counter!(REWRITTEN_FILES, "data and delete files that others have taken the place of");
    describe_counter!(
        REWRITTEN_BYTES,
        Unit::Bytes,
        "size of data files that were rewritten, and of merged delete files"
    );
    describe_gauge!(RECEIVED, "end of the WAL received from the source");
    describe_gauge!(APPLIED, "position to which changes are readable through the read service");
    describe_gauge!(COMMITTED, "position to which Iceberg holds the source, and to which the slot is acknowledged");
    describe_gauge!(LAG_SECONDS, Unit::Seconds, "age of the oldest change that Iceberg has not got");
    describe_gauge!(LAG_BYTES, Unit::Bytes, "WAL received and not yet committed");
    describe_gauge!(PENDING_ROWS, "fresh rows not yet in Iceberg");
    describe_gauge!(PENDING_BYTES, Unit::Bytes, "memory of changes not yet in Iceberg");
    describe_gauge!(TABLES, "mirrored tables by state");
    describe_counter!(STORE_REQUESTS, "requests to the object store, by kind; each try is one");
    describe_counter!(STORE_FAILURES, "those that were not answered, or refused");
    describe_counter!(STORE_SENT, Unit::Bytes, "bytes sent to the object store");
    describe_counter!(STORE_RECEIVED, Unit::Bytes, "bytes received from the object store");
}

/// Counts a commit.
pub(crate) fn committed(elapsed: Duration) {
    counter!(COMMITS).increment(1);
    histogram!(COMMIT_SECONDS).record(elapsed.as_secs_f64());
}

/// Takes over what the writer has counted.
pub(super) fn observe_store() {
    let requests = StoreRequests::so_far();
    for (kind, count) in requests.by_kind {
        counter!(STORE_REQUESTS, "kind" => kind).absolute(count);
    }
    counter!(STORE_FAILURES).absolute(requests.failed);
    counter!(STORE_SENT).absolute(requests.bytes_sent);
    counter!(STORE_RECEIVED).absolute(requests.bytes_received);
}

/// Counts files that were rewritten.
pub(crate) fn rewritten(files: u64, bytes: u64) {
    counter!(REWRITTEN_FILES).increment(files);
    counter!(REWRITTEN_BYTES).increment(bytes);
}

/// Takes the gauges from a status.
#[expect(
    clippy::cast_precision_loss,
    reason = "gauges are doubles; an LSN is exact up to 2^53, eight petabytes of WAL"
)]
pub(super) fn observe(status: &MirrorStatus) {
    gauge!(RECEIVED).set(status.received_lsn as f64);
    gauge!(APPLIED).set(status.applied_lsn as f64);
    gauge!(COMMITTED).set(status.committed_lsn as f64);
    gauge!(LAG_SECONDS).set(status.lag_ms as f64 / 1000.0);
    gauge!(LAG_BYTES).set(status.received_lsn.saturating_sub(status.committed_lsn) as f64);
    gauge!(PENDING_ROWS).set(status.tables.iter().map(|table| table.pending_rows).sum::<u64>() as f64);
    gauge!(PENDING_BYTES).set(status.tables.iter().map(|table| table.pending_bytes).sum::<u64>() as f64);
    for state in ["requested", "copying", "streaming", "errored"] {
        let tables = status.tables.iter().filter(|table| table.state == state).count();
        gauge!(TABLES, "state" => state).set(tables as f64);
    }
}
