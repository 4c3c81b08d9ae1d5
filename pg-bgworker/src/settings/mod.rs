//! The settings `lake.*`, and what the engine of this database is told by them.

mod catalog;
mod files;
mod store;

use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::prelude::*;
use tokio_postgres::config::{Host, SslMode};

use crate::error::Error;
use crate::log::LogLevel;

pub(crate) use catalog::in_our_words;
use files::FileSettings;

static PRELOADED: AtomicBool = AtomicBool::new(false);

static WAREHOUSE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static CONNINFO: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static COMMIT_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static COMMIT_SIZE: GucSetting<i32> = GucSetting::<i32>::new(64 << 10);
static COPY_CONNECTIONS: GucSetting<i32> = GucSetting::<i32>::new(0);
static UNREPRESENTABLE: GucSetting<Unrepresentable> = GucSetting::<Unrepresentable>::new(Unrepresentable::companion);
static LOG_LEVEL: GucSetting<LogLevel> = GucSetting::<LogLevel>::new(LogLevel::info);

/// `lake.unrepresentable`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, pgrx::guc::PostgresGucEnum)]
#[allow(non_camel_case_types)]
enum Unrepresentable {
    /// Kept as text beside the column.
    companion,
    /// The table stops.
    stop,
}

/// Directory of everything of ours inside the data directory, which is every server process's working directory.
pub(crate) const DIRECTORY: &str = "lake";

/// Remembers that the postmaster has loaded this library: its child processes inherit the fact.
pub(crate) fn mark_preloaded() {
    PRELOADED.store(true, Ordering::Relaxed);
}

/// Whether the library is in `shared_preload_libraries`.
pub(crate) fn preloaded() -> bool {
    PRELOADED.load(Ordering::Relaxed)
}

/// How much the engine logs.
pub(crate) fn log_level() -> LogLevel {
    LOG_LEVEL.get()
}

/// Defines the settings.
pub(crate) fn define() {
    GucRegistry::define_string_guc(
        c"lake.warehouse",
        c"Where the Iceberg tables are kept, as a URL.",
        c"Empty: the directory lake/warehouse in the data directory.",
        &WAREHOUSE,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    store::define();
    catalog::define();
    files::define();
    GucRegistry::define_string_guc(
        c"lake.conninfo",
        c"How the engine connects to its own server; the database is always the engine's.",
        c"Empty: the first unix socket directory, as the bootstrap superuser.",
        &CONNINFO,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_int_guc(
        c"lake.commit_interval",
        c"Age of the oldest change at which a batch is committed to Iceberg.",
        c"",
        &COMMIT_INTERVAL,
        100,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"lake.commit_size",
        c"Memory held by uncommitted changes at which a batch is committed to Iceberg.",
        c"",
        &COMMIT_SIZE,
        1 << 10,
        1 << 22,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"lake.copy_connections",
        c"Connections over which a table is copied, at most.",
        c"0: one for each core, at most four.",
        &COPY_CONNECTIONS,
        0,
        64,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"lake.unrepresentable",
        c"What becomes of values that the Iceberg type of their column has not.",
        c"companion: they are kept as text in a column beside it. stop: their table stops.",
        &UNREPRESENTABLE,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"lake.log_level",
        c"How much the engine writes into the server log.",
        c"",
        &LOG_LEVEL,
        GucContext::Sighup,
        GucFlags::default(),
    );
}

/// What an engine is told; compared after a reload to see whether it has to start anew.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Name of the database.
    pub(crate) database: String,
    /// Where the engine connects to.
    pub(crate) server: Server,
    /// URL of the warehouse.
    pub(crate) warehouse: String,
    /// How its object store is reached.
    pub(crate) store: cdc_worker::StoreOptions,
    /// Which catalog the tables are in, not checked yet.
    pub(crate) catalog: cdc_worker::CatalogOptions,
    /// How the lake's files are made and kept.
    pub(crate) files: FileSettings,
    /// Age at which a batch is committed.
    pub(crate) commit_interval: Duration,
    /// Bytes at which a batch is committed.
    pub(crate) commit_bytes: u64,
    /// Connections over which a table is copied.
    pub(crate) copy_connections: usize,
    /// What becomes of values that Iceberg's types have not.
    pub(crate) unrepresentable: cdc_worker::Unrepresentable,
    /// Slot of this database's mirror.
    pub(crate) slot: String,
    /// The engine's position index.
    pub(crate) state_dir: PathBuf,
    /// The engine's read service.
    pub(crate) read_socket: PathBuf,
}

/// How the engine reaches its own server.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// Host name, or directory of a unix socket.
    pub(crate) host: String,
    /// Port.
    pub(crate) port: u16,
    /// Role.
    pub(crate) user: String,
    /// Its password, if the server asks for one.
    pub(crate) password: Option<String>,
    /// TCP without TLS was asked for.
    pub(crate) insecure: bool,
}

/// The socket of this database's read service, relative to the data directory: a socket's path is short by law, and a
/// data directory's need not be.
pub(crate) fn read_socket() -> PathBuf {
    PathBuf::from(format!("{DIRECTORY}/read.{}.sock", database_id()))
}

/// The replication slot of this database's mirror. The oid makes it unique in the cluster.
pub(crate) fn slot_name() -> String {
    format!("lake_{}", database_id())
}

fn database_id() -> u32 {
    // SAFETY: a plain variable of the main thread, set when the process connected to its database.
    u32::from(unsafe { pg_sys::MyDatabaseId })
}

impl Settings {
    /// Reads the settings; inside a transaction of a process that is connected to its database.
    pub(crate) fn read() -> Result<Self, Error> {
        // SAFETY: both return a copy or a static string that lives in this transaction.
        let (database, user, data_directory) = unsafe {
            (
                text(pg_sys::get_database_name(pg_sys::MyDatabaseId)),
                text(pg_sys::GetUserNameFromId(pg_sys::BOOTSTRAP_SUPERUSERID.into(), false)),
                text(pg_sys::DataDir),
            )
        };
        let warehouse = match string(&WAREHOUSE) {
            set if set.is_empty() => format!("file://{data_directory}/{DIRECTORY}/warehouse"),
            set => set,
        };
        Ok(Self {
            database,
            server: Server::read(&string(&CONNINFO), user)?,
            warehouse,
            store: store::options(),
            catalog: catalog::options(),
            files: files::read(),
            commit_interval: Duration::from_millis(COMMIT_INTERVAL.get().unsigned_abs().into()),
            commit_bytes: u64::from(COMMIT_SIZE.get().unsigned_abs()) << 10,
            copy_connections: match usize::try_from(COPY_CONNECTIONS.get()) {
                Ok(set @ 1..) => set,
                _ => cdc_worker::default_copy_connections(),
            },
            unrepresentable: match UNREPRESENTABLE.get() {
                Unrepresentable::companion => cdc_worker::Unrepresentable::Companion,
                Unrepresentable::stop => cdc_worker::Unrepresentable::Stop,
            },
            slot: slot_name(),
            state_dir: PathBuf::from(format!("{DIRECTORY}/state.{}", database_id())),
            read_socket: read_socket(),
        })
    }
}

impl Server {
    fn read(conninfo: &str, superuser: String) -> Result<Self, Error> {
        let invalid = |detail: String| {
            Error::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, "lake.conninfo cannot be used")
                .with_detail(detail)
                .with_hint("write it like host=/run/postgresql port=5432 user=postgres, or empty it")
        };
        let given: tokio_postgres::Config =
            conninfo.parse().map_err(|error: tokio_postgres::Error| invalid(crate::engine::chain(&error)))?;
        if given.get_dbname().is_some() {
            return Err(invalid("it names a database, but each engine connects to its own".to_owned()));
        }
        let host = match given.get_hosts() {
            [] => first_socket_directory()?,
            [Host::Unix(directory)] => directory.display().to_string(),
            [Host::Tcp(name)] => name.clone(),
            _ => return Err(invalid("it names several hosts".to_owned())),
        };
        let port = match given.get_ports().first() {
            Some(port) => *port,
            // SAFETY: a plain variable of the main thread.
            None => u16::try_from(unsafe { pg_sys::PostPortNumber }).expect("a port fits 16 bits"),
        };
        Ok(Self {
            host,
            port,
            user: given.get_user().map_or(superuser, str::to_owned),
            password: given.get_password().map(|password| String::from_utf8_lossy(password).into_owned()),
            insecure: given.get_ssl_mode() == SslMode::Disable,
        })
    }
}

/// The first of `unix_socket_directories`.
fn first_socket_directory() -> Result<String, Error> {
    // SAFETY: a setting's string, read on the main thread.
    let directories = unsafe { text(pg_sys::Unix_socket_directories) };
    let first = directories.split(',').next().unwrap_or_default().trim().trim_matches('"');
    if first.is_empty() {
        return Err(Error::state("the server has no unix socket for the lake engine")
            .with_hint("set unix_socket_directories, or lake.conninfo to a TCP address with sslmode=disable"));
    }
    if first.starts_with('/') {
        return Ok(first.to_owned());
    }
    // SAFETY: as above. A relative directory is relative to the data directory.
    Ok(format!("{}/{first}", unsafe { text(pg_sys::DataDir) }))
}

fn string(setting: &GucSetting<Option<CString>>) -> String {
    setting.get().map(|value| value.to_string_lossy().into_owned()).unwrap_or_default()
}

/// # Safety
/// Null, or a C string that lives during the call.
unsafe fn text(pointer: *const std::ffi::c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}
