//! What any background worker of ours does with Postgres: signals, transactions, pauses, and its end.
//!
//! SIGTERM goes to Postgres's own `die`: it only sets flags, and makes every wait inside Postgres (a lock, a
//! transaction's end) end the process with exit code 1. Between such calls [`pause`] sees the flag first, so that the
//! engine can be stopped in order.

use std::ffi::CStr;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use pgrx::pg_sys;
use pgrx::pg_sys::PgTryBuilder;

use crate::error::Error;
use crate::lock::Lock;

// The server's handlers themselves: pgrx's wrappers of them are not fit for a signal.
unsafe extern "C-unwind" {
    fn die(signal: std::ffi::c_int);
    fn SignalHandlerForConfigReload(signal: std::ffi::c_int);
}

/// Why a pause ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Time passed, or something unimportant happened.
    Tick,
    /// The configuration was read again.
    Reloaded,
    /// The process has to go.
    Terminate,
}

/// Installs the signal handlers and lets signals in. Postgres starts a worker with all of them blocked.
pub(crate) fn accept_signals() {
    // SAFETY: called once, from the main thread of a background worker, with handlers made for it.
    unsafe {
        handle(libc::SIGTERM, die);
        handle(libc::SIGHUP, SignalHandlerForConfigReload);
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// # Safety
/// The handler must be async-signal-safe.
unsafe fn handle(signal: std::ffi::c_int, handler: unsafe extern "C-unwind" fn(std::ffi::c_int)) {
    #[cfg(not(feature = "pg18"))]
    // SAFETY: as the caller promises.
    unsafe {
        pg_sys::pqsignal(signal, Some(handler));
    }
    #[cfg(feature = "pg18")]
    // SAFETY: as the caller promises.
    unsafe {
        pg_sys::pqsignal_be(signal, Some(handler));
    }
}

/// Waits on the process's latch, at most this long.
pub(crate) fn pause(at_most: Duration) -> Wake {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    let timeout = i64::try_from(at_most.as_millis()).unwrap_or(i64::MAX);
    if terminating() {
        return Wake::Terminate;
    }
    // SAFETY: the latch of this process; main thread.
    unsafe {
        let events = i32::try_from(events).expect("event bits are small");
        pg_sys::WaitLatch(pg_sys::MyLatch, events, timeout, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    if terminating() {
        return Wake::Terminate;
    }
    // Barriers (DROP DATABASE waits for them) and the like.
    pgrx::check_for_interrupts!();
    // SAFETY: a flag set by the signal handler; main thread.
    unsafe {
        if (&raw const pg_sys::ConfigReloadPending).read_volatile() != 0 {
            (&raw mut pg_sys::ConfigReloadPending).write_volatile(0);
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
            return Wake::Reloaded;
        }
    }
    Wake::Tick
}

/// Whether SIGTERM has come.
pub(crate) fn terminating() -> bool {
    // SAFETY: a flag set by the signal handler.
    unsafe { (&raw const pg_sys::ProcDiePending).read_volatile() != 0 }
}

/// Runs `body` in a transaction of its own: committed when it returns `Ok`, else rolled back, whatever it raised.
pub(crate) fn transaction<R>(body: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
    // SAFETY: main thread of a worker that is connected to a database and not inside a transaction.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    }
    let outcome = PgTryBuilder::new(AssertUnwindSafe(body))
        .catch_others(|caught| Err(Error::from_caught(&caught)))
        .catch_rust_panic(|caught| Err(Error::from_caught(&caught)))
        .execute();
    // SAFETY: ends what was begun above; after an error Postgres asks for exactly this call.
    unsafe {
        if outcome.is_ok() {
            pg_sys::PopActiveSnapshot();
            pg_sys::CommitTransactionCommand();
        } else {
            pg_sys::AbortCurrentTransaction();
        }
    }
    outcome
}

/// Claims this database for this process's engine. Another engine that is about to end gets some time to do so: the
/// new one may have been started by a `CREATE EXTENSION` right behind a `DROP EXTENSION`.
pub(crate) fn claim_database() -> Result<Claim, Error> {
    for _ in 0..CLAIM_ATTEMPTS {
        if transaction(|| Ok(Lock::Engine.try_for_session()))? {
            return Ok(Claim::Ours);
        }
        if pause(CLAIM_PAUSE) == Wake::Terminate {
            return Ok(Claim::Terminated);
        }
    }
    Ok(Claim::Taken)
}

const CLAIM_ATTEMPTS: u32 = 50;
const CLAIM_PAUSE: Duration = Duration::from_millis(200);

/// Whose the database's engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Ours, until this process ends.
    Ours,
    /// Another process's.
    Taken,
    /// Nobody's yet; SIGTERM came first.
    Terminated,
}

/// What the process does in the eyes of `pg_stat_activity`.
pub(crate) fn show_activity(text: &CStr) {
    // SAFETY: copies the text into this process's slot.
    unsafe {
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
        pg_sys::pgstat_report_appname(text.as_ptr());
    }
}

/// Ends the process so that the postmaster starts it again (unless it is shutting down).
pub(crate) fn exit_for_restart() -> ! {
    // SAFETY: the regular way out of a server process. The caller has stopped the engine's threads; nothing of Rust's
    // is left that a skipped destructor would have to release.
    #[cfg(not(feature = "pg18"))]
    unsafe {
        pg_sys::proc_exit(1)
    }
    // SAFETY: as above. The bindings of 18 do not tell that it never returns.
    #[cfg(feature = "pg18")]
    unsafe {
        pg_sys::proc_exit(1);
        unreachable!("proc_exit returned")
    }
}
