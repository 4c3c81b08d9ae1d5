//! The engine's worker: one process a database, which runs the engine, restarts it when it fails, and clears up when
//! the extension is dropped.
//!
//! The engine is restarted inside the process, after a pause that grows to half a minute, so that an error that a
//! person has to remedy neither floods the log nor keeps the postmaster busy. The newest error is kept in
//! `lake_catalog.engine_error` until the engine has run well for a while: that is what `lake.errors` shows.

use std::time::{Duration, Instant};

use pgrx::prelude::*;

use crate::engine::Engine;
use crate::error::{Error, or_raise};
use crate::log;
use crate::process::{self, Claim, Wake};
use crate::registry::{self, Mirror};
use crate::settings::{self, Settings};

/// How often the worker looks at the engine.
const GLANCE: Duration = Duration::from_millis(250);
/// How often it looks whether the extension is still there.
const EXTENSION_CHECK: Duration = Duration::from_secs(1);
/// How often it looks for a first mirror.
const MIRROR_CHECK: Duration = Duration::from_millis(500);
/// The longest pause between two attempts.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// How long an engine must run before its predecessor's failure counts as overcome.
const HEALTHY: Duration = Duration::from_secs(30);

/// Why a worker stops watching over its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// SIGTERM.
    Terminated,
    /// The extension was dropped, or is another one by now.
    ExtensionGone,
}

/// The worker's process. The argument is the database's oid.
#[pg_guard]
#[unsafe(no_mangle)]
extern "C-unwind" fn lake_engine_main(argument: pg_sys::Datum) {
    process::accept_signals();
    let Some(database) = (unsafe {
        // SAFETY: the argument was made from an oid, by value.
        pg_sys::Oid::from_datum(argument, false)
    }) else {
        return;
    };
    if !database_exists(database) {
        return;
    }
    let flags = pg_sys::BGWORKER_BYPASS_ALLOWCONN;
    // SAFETY: the first thing a worker does. It ends the process with exit code 1 if the database can't be entered.
    unsafe { pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, flags) };
    process::show_activity(c"lake engine");
    if let Some(xid) = creating_transaction() {
        or_raise(process::transaction(|| {
            // SAFETY: inside a transaction; no relation is named because none is waited for.
            unsafe {
                let nowhere = std::ptr::null_mut();
                pg_sys::XactLockTableWait(xid, nowhere, nowhere.cast(), pg_sys::XLTW_Oper::XLTW_None);
            }
            Ok(())
        }));
    }
    match or_raise(process::claim_database()) {
        Claim::Ours => {}
        Claim::Taken => return,
        Claim::Terminated => process::exit_for_restart(),
    }
    log::set_level(settings::log_level());
    while let Some(extension) = or_raise(process::transaction(|| Ok(registry::extension("lake")))) {
        match watch_over(extension) {
            End::Terminated => process::exit_for_restart(),
            End::ExtensionGone => drop_slot(),
        }
    }
    // A slot left by an extension that was dropped while no engine ran.
    drop_slot();
}

/// Whether the database is still there. Asked before connecting to it, because a worker that can't connect ends with
/// exit code 1, and one whose database was dropped would be started again every second for ever.
fn database_exists(database: pg_sys::Oid) -> bool {
    let directory = u32::from(database).to_string();
    if std::path::Path::new("base").join(&directory).is_dir() {
        return true;
    }
    // Tablespaces: pg_tblspc/<oid>/PG_<version>_<catalog version>/<database>.
    let subdirectories = |path: &std::path::Path| {
        std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path())
    };
    subdirectories(std::path::Path::new("pg_tblspc"))
        .flat_map(|tablespace| subdirectories(&tablespace).collect::<Vec<_>>())
        .any(|version| version.join(&directory).is_dir())
}

/// The transaction of the `CREATE EXTENSION` that registered this worker.
fn creating_transaction() -> Option<pg_sys::TransactionId> {
    let xid: u32 = pgrx::bgworkers::BackgroundWorker::get_extra().parse().ok()?;
    Some(pg_sys::TransactionId::from(xid))
}

/// Runs engines for as long as this extension exists.
fn watch_over(extension: pg_sys::Oid) -> End {
    let mut failures = 0;
    loop {
        let failure = match await_mirror(extension) {
            Err(end) => return end,
            Ok(Mirror::Foreign { slot }) => Error::state("this database is a copy of a mirrored one")
                .with_detail(format!(
                    "Its mirror belongs to the slot \"{slot}\", not to \"{}\".",
                    settings::slot_name()
                ))
                .with_hint("DROP EXTENSION lake CASCADE, then CREATE EXTENSION lake and mirror the tables anew"),
            Ok(Mirror::Ours) => match run_engine(extension) {
                Outcome::End(end) => return end,
                Outcome::Reloaded => continue,
                Outcome::Failed { error, lasted } => {
                    if lasted >= HEALTHY {
                        failures = 0;
                    }
                    error
                }
            },
        };
        // A registry that is no longer there, or another one by now, makes an engine fail: no news to anybody.
        if gone(extension) {
            return End::ExtensionGone;
        }
        failures += 1;
        note_failure(failure, failures);
        if let Some(end) = rest(backoff(failures), extension) {
            return end;
        }
    }
}

/// 1 s, 2 s, 4 s … half a minute.
fn backoff(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(5)).min(LONGEST_BACKOFF)
}

/// Waits until there is something to mirror.
fn await_mirror(extension: pg_sys::Oid) -> Result<Mirror, End> {
    loop {
        match process::transaction(registry::mirror_of_database) {
            Ok(Some(mirror)) => return Ok(mirror),
            Ok(None) => {}
            // The tables go before the extension does, as others see it; the check below tells.
            Err(error) => error.report(PgLogLevel::DEBUG1),
        }
        if let Some(end) = rest(MIRROR_CHECK, extension) {
            return Err(end);
        }
    }
}

/// Waits, and returns early when the worker has nothing left to do, or when the settings were read again.
fn rest(how_long: Duration, extension: pg_sys::Oid) -> Option<End> {
    let until = Instant::now() + how_long;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match process::pause(left.min(EXTENSION_CHECK)) {
            Wake::Terminate => return Some(End::Terminated),
            Wake::Reloaded => {
                log::set_level(settings::log_level());
                return None;
            }
            Wake::Tick => {}
        }
        if gone(extension) {
            return Some(End::ExtensionGone);
        }
        if Instant::now() >= until {
            return None;
        }
    }
}

/// Whether the extension was dropped since this worker began.
fn gone(extension: pg_sys::Oid) -> bool {
    match process::transaction(|| Ok(registry::extension("lake"))) {
        Ok(now) => now != Some(extension),
        Err(error) => {
            error.report(PgLogLevel::LOG);
            false
        }
    }
}

/// How a run of the engine ended.
enum Outcome {
    /// The worker has nothing left to do; the engine is stopped.
    End(End),
    /// The settings changed; the engine is stopped.
    Reloaded,
    /// The engine failed.
    Failed { error: Error, lasted: Duration },
}

/// Runs one engine until it fails or has to stop.
fn run_engine(extension: pg_sys::Oid) -> Outcome {
    let begin = Instant::now();
    let failed = |error| Outcome::Failed { error, lasted: begin.elapsed() };
    let settings = match process::transaction(Settings::read) {
        Ok(settings) => settings,
        Err(error) => return failed(error),
    };
    let mut engine = match Engine::start(&settings) {
        Ok(engine) => engine,
        Err(error) => return failed(error),
    };
    let mut checked = Instant::now();
    let mut proved = false;
    loop {
        match process::pause(GLANCE) {
            Wake::Terminate => {
                engine.stop();
                return Outcome::End(End::Terminated);
            }
            Wake::Reloaded => {
                log::set_level(settings::log_level());
                // A setting that can't be used is reported by the next start.
                if process::transaction(Settings::read).ok().as_ref() != Some(&settings) {
                    engine.stop();
                    return Outcome::Reloaded;
                }
            }
            Wake::Tick => {}
        }
        if let Some(error) = engine.failure() {
            engine.stop();
            return failed(error);
        }
        if checked.elapsed() >= EXTENSION_CHECK {
            checked = Instant::now();
            if gone(extension) {
                engine.stop();
                return Outcome::End(End::ExtensionGone);
            }
        }
        if !proved && begin.elapsed() >= HEALTHY {
            proved = true;
            if let Err(error) = process::transaction(registry::clear_engine_error) {
                error.report(PgLogLevel::LOG);
            }
        }
    }
}

/// Writes a failure where people look: into the server log and the registry.
fn note_failure(failure: Error, failures: u32) {
    let (message, hint) = (failure.report_line(), failure.hint().map(str::to_owned));
    let noted = process::transaction(|| registry::note_engine_error(&message, hint.as_deref(), failures));
    let mut line = Error::state(format!("lake engine failed ({failures} in a row): {message}"));
    if let Some(hint) = hint {
        line = line.with_hint(hint);
    }
    line.report(PgLogLevel::WARNING);
    if let Err(error) = noted {
        // Most likely the extension is being dropped: then there is no place for the error, and no reader.
        error.report(PgLogLevel::DEBUG1);
    }
}

/// Drops this database's slot: without an engine it would hold WAL back until the disk is full. Its walsender needs a
/// moment to notice that the engine has gone.
fn drop_slot() {
    let begin = Instant::now();
    loop {
        match process::transaction(registry::drop_slot) {
            Ok(true) => {
                let slot = settings::slot_name();
                Error::state(format!("lake dropped its replication slot \"{slot}\" with the extension"))
                    .report(PgLogLevel::LOG);
                return;
            }
            Ok(false) => return,
            Err(error) if begin.elapsed() >= SLOT_PATIENCE => {
                error.report(PgLogLevel::WARNING);
                process::exit_for_restart();
            }
            Err(_active) => {}
        }
        if process::pause(GLANCE) == Wake::Terminate {
            process::exit_for_restart();
        }
    }
}

/// How long a slot may stay active after its engine has stopped; then the worker starts anew and tries again.
const SLOT_PATIENCE: Duration = Duration::from_secs(10);
