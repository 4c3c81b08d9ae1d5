//! The workers' start: one launcher at server start, and one engine worker for each database.
//!
//! The launcher finds the databases in the shared catalog and registers a worker for each; the worker itself looks
//! whether its database has the extension, and leaves for good when it has not. So the launcher needs no database of its own and
//! holds nothing open while it waits. `CREATE EXTENSION` registers a worker the same way. A worker that is registered
//! twice (a launcher after a crash, when the postmaster has brought the workers back already) is harmless: see
//! [`crate::process::claim_database`].

use std::time::Duration;

use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::prelude::*;

use crate::error::{Error, or_raise};
use crate::process::{self, Wake};
use crate::settings;

/// How long the postmaster waits before it starts a failed worker again.
const RESTART: Duration = Duration::from_secs(1);

/// How long the launcher waits for a free worker slot before it looks again.
const SLOT_PAUSE: Duration = Duration::from_secs(1);

/// Registers the launcher; in the postmaster, while it loads the library.
pub(crate) fn register() {
    BackgroundWorkerBuilder::new("lake launcher")
        .set_library("lake")
        .set_function("lake_launcher_main")
        .enable_spi_access()
        // Not on a standby: it has no slot to read; after promotion this is the time, too.
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(RESTART))
        .load();
}

/// Registers the engine worker of a database. With `after` it waits for that transaction's end first.
fn register_engine(database: pg_sys::Oid, name: &str, after: Option<pg_sys::TransactionId>) -> Result<(), Error> {
    BackgroundWorkerBuilder::new(&format!("lake engine {name}"))
        .set_type("lake engine")
        .set_library("lake")
        .set_function("lake_engine_main")
        .enable_spi_access()
        .set_restart_time(Some(RESTART))
        .set_argument(database.into_datum())
        .set_extra(&after.map(|xid| u32::from(xid).to_string()).unwrap_or_default())
        .load_dynamic()
        .map(|_handle| ())
        .map_err(|_full| {
            Error::new(
                PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                format!("no background worker slot is free for the lake engine of database \"{name}\""),
            )
            .with_hint(
                "raise max_worker_processes (one for each database that has the extension lake) and restart the server",
            )
        })
}

/// The launcher's process.
#[pg_guard]
#[unsafe(no_mangle)]
extern "C-unwind" fn lake_launcher_main(_argument: pg_sys::Datum) {
    process::accept_signals();
    // SAFETY: the first thing a worker does; no database: the shared catalogs are all the launcher reads.
    unsafe { pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0) };
    let databases = or_raise(process::transaction(|| Ok(databases())));
    for (database, name) in databases {
        let mut told = false;
        while let Err(error) = register_engine(database, &name, None) {
            if !std::mem::replace(&mut told, true) {
                error.report(PgLogLevel::WARNING);
            }
            if process::pause(SLOT_PAUSE) == Wake::Terminate {
                process::exit_for_restart();
            }
        }
    }
    // Exit code 0: done, and not to be started again.
}

/// The databases that can have an engine.
fn databases() -> Vec<(pg_sys::Oid, String)> {
    let mut found = Vec::new();
    // SAFETY: a plain scan of a shared catalog inside a transaction; each tuple is read before the next is fetched.
    // Postgres's own autovacuum launcher reads it this way, for want of a database to run SQL in.
    unsafe {
        let lock = pg_sys::LOCKMODE::try_from(pg_sys::AccessShareLock).expect("a lock mode is a small number");
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, lock);
        let scan = pg_sys::table_beginscan_catalog(relation, 0, std::ptr::null_mut());
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let data = (*tuple).t_data;
            let row = &*data.cast::<u8>().add(usize::from((*data).t_hoff)).cast::<pg_sys::FormData_pg_database>();
            if row.datallowconn && !row.datistemplate {
                found.push((row.oid, pgrx::name_data_to_str(&row.datname).to_owned()));
            }
        }
        pg_sys::heap_endscan(scan);
        pg_sys::table_close(relation, lock);
    }
    found
}

/// `lake_catalog.start_engine()`: called by the extension's script.
#[pg_extern]
fn lake_start_engine() {
    // SAFETY: a plain flag of the main thread.
    if unsafe { pg_sys::IsBinaryUpgrade } {
        return;
    }
    if !settings::preloaded() {
        not_preloaded().report(PgLogLevel::WARNING);
        return;
    }
    // SAFETY: inside the transaction of CREATE EXTENSION, connected to a database.
    let (database, name, xid) = unsafe {
        let database = pg_sys::MyDatabaseId;
        let name = std::ffi::CStr::from_ptr(pg_sys::get_database_name(database));
        (database, name.to_string_lossy().into_owned(), pg_sys::GetTopTransactionId())
    };
    or_raise(register_engine(database, &name, Some(xid)));
}

/// What is wrong when the library was not preloaded.
pub(crate) fn not_preloaded() -> Error {
    Error::state("the lake engine cannot run in this server")
        .with_detail("The library \"lake\" is not in shared_preload_libraries.")
        .with_hint("set shared_preload_libraries = 'lake, lake_query' and restart the server")
}
