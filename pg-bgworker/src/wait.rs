//! `lake.wait(rel, timeout)`: returns when everything committed before the call is in Iceberg.

use std::time::{Duration, Instant};

use lake_protocol::{Client, ClientError, MirrorStatus, Refusal, RequestBody, Response};
use pgrx::datum::Interval;
use pgrx::prelude::*;

use crate::error::{Error, or_raise};
use crate::launcher::not_preloaded;
use crate::lock::Lock;
use crate::lsn;
use crate::mirror::required;
use crate::registry;
use crate::settings;

/// How long to wait before asking an engine again that has just started or not yet seen the table.
const PAUSE: Duration = Duration::from_millis(100);

/// How long an engine may be unreachable before the call asks whether there is one: it may be starting.
const START_PATIENCE: Duration = Duration::from_secs(3);

/// `lake.wait(rel, timeout)`; returns the committed LSN, as `pg_lsn`.
#[pg_extern]
fn lake_wait(relation: Option<pg_sys::Oid>, timeout: Option<Interval>) -> i64 {
    let waited = required(relation).and_then(|relation| wait(relation, timeout.map_or(Duration::MAX, duration)));
    or_raise(waited).cast_signed()
}

fn duration(interval: Interval) -> Duration {
    Duration::from_micros(u64::try_from(interval.as_micros().max(0)).unwrap_or(u64::MAX))
}

fn wait(relation: pg_sys::Oid, timeout: Duration) -> Result<u64, Error> {
    // SAFETY: a read of shared state.
    if unsafe { pg_sys::RecoveryInProgress() } {
        return Err(Error::state("lake.wait cannot be used on a standby").with_hint("run it on the primary"));
    }
    let table = registry::as_owner(|| registry::mirrored_table(relation))?
        .ok_or_else(|| Error::state("the table is not mirrored").with_hint("call lake.mirror on it first"))?;
    // SAFETY: a read of this transaction's state.
    let writes = unsafe { pg_sys::GetTopTransactionIdIfAny() } != pg_sys::TransactionId::from(0);
    if writes && table.state != "streaming" {
        return Err(Error::state(
            "lake.wait cannot be used in a transaction that has written, before the table is copied",
        )
        .with_detail("A copy begins when the transactions before it have ended; this one would wait for itself.")
        .with_hint("COMMIT, then call lake.wait"));
    }
    if !settings::preloaded() {
        return Err(not_preloaded());
    }
    let target = flush_wal();
    let begin = Instant::now();
    // A day is for ever, and small enough to be added to.
    let deadline = begin + timeout.min(Duration::from_hours(24));
    let mut last = String::from("the engine has not answered");
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match ask_flush(relation, target, left) {
            Ok(lsn) => {
                // A copy that was asked for a moment ago the engine may not have seen; the registry knows.
                if registry::now(|| registry::as_owner(|| registry::mirrored_table(relation)))?
                    .is_some_and(|table| table.state == "streaming")
                {
                    return Ok(lsn);
                }
                "the table is to be copied anew".clone_into(&mut last);
            }
            Err(ClientError::Refused(refusal)) => {
                // A table that has errored will not come; anything else (a table the engine has yet to see, a commit
                // that failed once) may.
                if let Some(table) = registry::now(|| registry::as_owner(|| registry::mirrored_table(relation)))?
                    && table.state == "errored"
                {
                    return Err(errored(&table, &refusal));
                }
                last = refusal.message;
            }
            Err(ClientError::Unreachable(error)) => {
                if begin.elapsed() >= START_PATIENCE || Instant::now() >= deadline {
                    check_engine(&error)?;
                }
                "the engine is starting".clone_into(&mut last);
            }
            Err(ClientError::Frame(_)) => "the engine closed the connection".clone_into(&mut last),
            Err(ClientError::TimedOut) => "the engine does not answer".clone_into(&mut last),
            Err(ClientError::Cancelled | ClientError::Unexpected) => {
                "the engine answered another question".clone_into(&mut last);
            }
        }
        if Instant::now() >= deadline {
            return Err(timed_out(relation, target, &last));
        }
        nap(PAUSE.min(left));
    }
}

/// Makes everything written so far durable, and returns where it ends. Transactions with `synchronous_commit = off` are
/// in it, too.
fn flush_wal() -> u64 {
    // SAFETY: any backend may ask for this; `end_of_wal` never names WAL that is not there.
    unsafe {
        let segment = u64::from(pg_sys::wal_segment_size.unsigned_abs());
        let end = lsn::end_of_wal(pg_sys::GetXLogInsertRecPtr(), segment);
        pg_sys::XLogFlush(end);
        end
    }
}

fn ask_flush(relation: pg_sys::Oid, min_lsn: u64, timeout: Duration) -> Result<u64, ClientError> {
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let request = RequestBody::Flush { relation: u32::from(relation), min_lsn, timeout_ms };
    match ask(request)? {
        Response::Flushed { lsn } => Ok(lsn),
        _ => Err(ClientError::Unexpected),
    }
}

/// Asks this database's engine. A cancel raises its error from within: only Rust frames are left by that.
pub(crate) fn ask(request: RequestBody) -> Result<Response, ClientError> {
    let mut client = Client::connect(&settings::read_socket())?;
    client.ask(request, &mut || {
        pgrx::check_for_interrupts!();
        false
    })
}

/// The engine's status, if it answers.
pub(crate) fn ask_status() -> Result<MirrorStatus, ClientError> {
    match ask(RequestBody::Status)? {
        Response::Status(status) => Ok(status),
        _ => Err(ClientError::Unexpected),
    }
}

/// Sleeps on the latch: a cancel or a terminate ends it at once.
fn nap(how_long: Duration) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    let timeout = i64::try_from(how_long.as_millis()).unwrap_or(i64::MAX);
    // SAFETY: this process's latch; main thread.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events.cast_signed(), timeout, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
}

fn errored(table: &registry::MirroredTable, refusal: &Refusal) -> Error {
    let why = table.error.clone().unwrap_or_else(|| refusal.message.clone());
    let hint = table.error_hint.clone().or_else(|| refusal.hint.clone());
    Error::state("the mirror of the table has stopped with an error").with_detail(why).with_hint(
        hint.unwrap_or_else(|| "see lake.errors; lake.unmirror and lake.mirror copy the table anew".to_owned()),
    )
}

/// Whether an engine that can't be reached is worth waiting for: one that is making its slot is, and that may take as
/// long as the oldest transaction of the database.
fn check_engine(unreachable: &std::io::Error) -> Result<(), Error> {
    let down = |detail: String, hint: Option<String>| {
        Error::new(PgSqlErrorCode::ERRCODE_CANNOT_CONNECT_NOW, "the lake engine of this database is not running")
            .with_detail(detail)
            .with_hint(match hint {
                Some(hint) => format!("{hint}; see also lake.errors"),
                None => "see lake.errors and the server log; the engine is started again by itself".to_owned(),
            })
    };
    let (error, alive) =
        registry::now(|| registry::as_owner(|| Ok::<_, Error>((registry::engine_error()?, Lock::Engine.is_held()?))))?;
    match error {
        Some((message, hint)) => Err(down(format!("It failed: {message}."), hint)),
        None if !alive => Err(down(format!("Its read service cannot be reached: {unreachable}."), None)),
        None => Ok(()),
    }
}

fn timed_out(relation: pg_sys::Oid, target: u64, last: &str) -> Error {
    let oid = u32::from(relation);
    let state = match ask_status() {
        Ok(status) => {
            let table = status.tables.iter().find(|table| table.relation == oid);
            let state = table.map_or("unknown to the engine", |table| table.state.as_str());
            format!(" The table is {state}; the lake is at {}.", lsn::display(status.committed_lsn))
        }
        Err(_) => String::new(),
    };
    Error::state("lake.wait timed out")
        .with_detail(format!("Waited for {}: {last}.{state}", lsn::display(target)))
        .with_hint("see lake.lag; wait longer with lake.wait(rel, timeout => '5 min')")
}
