//! One in-memory DuckDB, locked down.

use std::ffi::{CString, c_char};
use std::rc::Rc;
use std::sync::Arc;

use libduckdb_sys as ffi;

use crate::account::{Accountant, Lent};
use crate::error::{Error, ErrorKind, text_of};
use crate::rows::{Delivery, Rows};
use crate::scan::{PinnedScan, ScanTable};
use crate::slot::Slots;
use crate::store::ObjectStore;
use crate::watchdog::Watchdog;
use crate::{deleted, fresh, functions};

/// How an engine is opened; none of it can change afterwards.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Memory limit in megabytes.
    pub memory_mb: u32,
    /// Threads that a query may use, this one included. With more than one, a long result is fetched ahead by another.
    pub threads: u32,
    /// Where queries spill.
    pub temp_directory: String,
    /// How much they may spill, in megabytes.
    pub temp_mb: u32,
    /// The only directories whose files can be read.
    pub allowed_directories: Vec<String>,
    /// The object store that some of them are in.
    pub store: Option<ObjectStore>,
    /// Asked from the watchdog's thread while a query runs: is it to stop? Must not touch anything but flags.
    pub cancelled: fn() -> bool,
}

/// A DuckDB of this process.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    slots: Arc<Slots>,
    accountant: Accountant,
    // Declared before the database: the watchdog must be gone when the connections are.
    watchdog: Arc<Watchdog>,
    database: Rc<Database>,
}

/// The handle, closed when the last user is gone.
#[derive(Debug)]
pub(crate) struct Database {
    raw: ffi::duckdb_database,
}

impl Drop for Database {
    fn drop(&mut self) {
        // SAFETY: opened in Engine::open, closed only here.
        unsafe { ffi::duckdb_close(&raw mut self.raw) };
    }
}

/// A connection of its own for one query, because an open stream occupies its connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) raw: ffi::duckdb_connection,
    // Keeps the database open.
    _database: Rc<Database>,
}

impl Connection {
    fn open(database: &Rc<Database>) -> Result<Self, Error> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the database is open; `raw` receives the handle.
        if unsafe { ffi::duckdb_connect(database.raw, &raw mut raw) } != ffi::duckdb_state_DuckDBSuccess {
            return Err(Error::new(ErrorKind::Open, "could not connect to the embedded DuckDB"));
        }
        Ok(Self { raw, _database: Rc::clone(database) })
    }

    pub(crate) fn execute(&self, sql: &str) -> Result<(), Error> {
        let sql = CString::new(sql).map_err(|_| Error::new(ErrorKind::Open, "NUL in a setting"))?;
        // SAFETY: a zeroed duckdb_result is what duckdb_query fills; it is destroyed on every path.
        unsafe {
            let mut result: ffi::duckdb_result = std::mem::zeroed();
            let state = ffi::duckdb_query(self.raw, sql.as_ptr(), &raw mut result);
            let outcome = if state == ffi::duckdb_state_DuckDBSuccess {
                Ok(())
            } else {
                Err(Error::of_duckdb(ErrorKind::Open, ffi::duckdb_result_error(&raw mut result)))
            };
            ffi::duckdb_destroy_result(&raw mut result);
            outcome
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: connected in `open`, disconnected only here.
        unsafe { ffi::duckdb_disconnect(&raw mut self.raw) };
    }
}

impl Engine {
    /// Opens and locks a DuckDB. Its threads start here, with all signals blocked.
    ///
    /// # Errors
    /// [`ErrorKind::Open`].
    pub fn open(settings: Settings) -> Result<Self, Error> {
        let _blocked = SignalsBlocked::new();
        let database = Rc::new(Database { raw: open_database(&settings)? });
        let connection = Connection::open(&database)?;
        let slots = Arc::new(Slots::default());
        deleted::register(connection.raw, &slots)?;
        fresh::register(connection.raw, &slots)?;
        functions::register(connection.raw)?;
        for statement in functions::MACROS {
            connection.execute(statement)?;
        }
        let accountant = Accountant::default();
        accountant.employ(Connection::open(&database)?)?;
        if let Some(store) = &settings.store {
            store.admit(|statement| connection.execute(statement))?;
        }
        let directories: Vec<String> = settings.allowed_directories.iter().map(|path| quote(path)).collect();
        for statement in [
            "SET TimeZone = 'UTC'".into(),
            // As an option of the opening it would be shown, and not be kept to.
            format!("SET max_temp_directory_size = '{}MB'", settings.temp_mb),
            "SET parquet_metadata_cache = true".into(),
            // Data files never change once they are named.
            "SET validate_external_file_cache = 'NO_VALIDATION'".into(),
            "SET preserve_insertion_order = false".into(),
            "SET default_null_order = 'nulls_last'".into(),
            // It turns sum(x + c) into sum(x) + c * count(x), which does not overflow where Postgres does.
            "SET disabled_optimizers = 'sum_rewriter'".into(),
            format!("SET allowed_directories = [{}]", directories.join(", ")),
            "SET enable_external_access = false".into(),
            "SET lock_configuration = true".into(),
        ] {
            let statement: String = statement;
            connection.execute(&statement)?;
        }
        let watchdog = Watchdog::start(settings.cancelled)
            .map_err(|error| Error::new(ErrorKind::Open, format!("could not start the watchdog thread: {error}")))?;
        Ok(Self { settings, slots, accountant, watchdog: Arc::new(watchdog), database })
    }

    /// What it was opened with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes a pinned table in, so that SQL can read it.
    pub fn admit(&self, table: ScanTable) -> PinnedScan {
        table.admit(&self.slots)
    }

    /// Runs a query up to its first rows (or to its end, as `delivery` says).
    ///
    /// # Errors
    /// Of any kind but [`ErrorKind::Open`]; none after this for [`Delivery::Complete`].
    pub fn query(&self, sql: &str, delivery: Delivery, scans: Vec<Arc<PinnedScan>>) -> Result<Rows, Error> {
        // Signals stay as they are: the threads run already, and a cancel must reach this one.
        let connection = Connection::open(&self.database)?;
        self.begin(connection.into(), sql, delivery, scans)
    }

    /// As [`Self::query`], and [`Rows::peak`] tells afterwards what it took; unless another such query still runs.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub fn observe(&self, sql: &str, delivery: Delivery, scans: Vec<Arc<PinnedScan>>) -> Result<Rows, Error> {
        match self.accountant.lend() {
            Some(connection) => self.begin(connection, sql, delivery, scans),
            None => self.query(sql, delivery, scans),
        }
    }

    fn begin(
        &self,
        connection: Lent,
        sql: &str,
        delivery: Delivery,
        scans: Vec<Arc<PinnedScan>>,
    ) -> Result<Rows, Error> {
        let Settings { cancelled, threads, .. } = self.settings;
        Rows::begin(connection, Arc::clone(&self.watchdog), cancelled, sql, delivery, threads, scans)
    }
}

fn open_database(settings: &Settings) -> Result<ffi::duckdb_database, Error> {
    let options = [
        (c"memory_limit", format!("{}MB", settings.memory_mb)),
        (c"threads", settings.threads.max(1).to_string()),
        (c"temp_directory", settings.temp_directory.clone()),
        (c"autoinstall_known_extensions", "false".into()),
        (c"autoload_known_extensions", "false".into()),
        (c"allow_community_extensions", "false".into()),
    ];
    // SAFETY: the config is created, filled and destroyed here; the error text is copied before it is freed.
    unsafe {
        let mut config = std::ptr::null_mut();
        if ffi::duckdb_create_config(&raw mut config) != ffi::duckdb_state_DuckDBSuccess {
            return Err(Error::new(ErrorKind::Open, "out of memory for DuckDB's configuration"));
        }
        for (name, value) in &options {
            let text = CString::new(value.as_str()).map_err(|_| Error::new(ErrorKind::Open, "NUL in a setting"));
            let state = text.map(|text| ffi::duckdb_set_config(config, name.as_ptr(), text.as_ptr()));
            if !matches!(state, Ok(ffi::duckdb_state_DuckDBSuccess)) {
                ffi::duckdb_destroy_config(&raw mut config);
                let name = name.to_string_lossy();
                return Err(Error::new(ErrorKind::Open, format!("DuckDB refuses {name} = \"{value}\"")));
            }
        }
        let mut database = std::ptr::null_mut();
        let mut error: *mut c_char = std::ptr::null_mut();
        let state = ffi::duckdb_open_ext(c":memory:".as_ptr(), &raw mut database, config, &raw mut error);
        ffi::duckdb_destroy_config(&raw mut config);
        if state != ffi::duckdb_state_DuckDBSuccess {
            let text = text_of(error);
            ffi::duckdb_free(error.cast());
            return Err(Error::new(ErrorKind::Open, format!("could not open the embedded DuckDB: {text}")));
        }
        Ok(database)
    }
}

/// A DuckDB string literal.
pub(crate) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// All signals blocked on this thread, until dropped.
pub(crate) struct SignalsBlocked {
    before: libc::sigset_t,
}

impl SignalsBlocked {
    pub(crate) fn new() -> Self {
        // SAFETY: both sets are plain memory that the calls fill.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            Self { before }
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: restores the mask that `new` saved.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}
