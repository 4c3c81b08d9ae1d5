//! What a query took of the engine's memory: for EXPLAIN ANALYZE.
//!
//! DuckDB keeps that account for a connection when it is told to before the configuration is locked. So there is one such
//! connection, lent to a query that asks for an account; while it is lent, others are run without.

use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::rc::Rc;

use libduckdb_sys as ffi;

use crate::error::Error;
use crate::instance::Connection;

/// The most that a query held at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peak {
    /// Bytes of memory; what the engine keeps of files for later queries is among them.
    pub memory: u64,
    /// Bytes that were spilled.
    pub spilled: u64,
}

/// Where the connection is while nobody has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Accountant(Rc<RefCell<Option<Connection>>>);

impl Accountant {
    /// Makes a connection the one that keeps account.
    pub(crate) fn employ(&self, connection: Connection) -> Result<(), Error> {
        let metrics = r#"{"SYSTEM_PEAK_BUFFER_MEMORY": "true", "SYSTEM_PEAK_TEMP_DIR_SIZE": "true"}"#;
        connection.execute("SET enable_profiling = 'no_output'")?;
        connection.execute(&format!("SET custom_profiling_settings = '{metrics}'"))?;
        self.0.replace(Some(connection));
        Ok(())
    }

    /// The connection, when nobody has it.
    pub(crate) fn lend(&self) -> Option<Lent> {
        self.0.take().map(|connection| Lent { connection: Some(connection), home: Some(self.clone()) })
    }
}

/// A connection for one query.
#[derive(Debug)]
pub(crate) struct Lent {
    connection: Option<Connection>,
    home: Option<Accountant>,
}

impl From<Connection> for Lent {
    fn from(connection: Connection) -> Self {
        Self { connection: Some(connection), home: None }
    }
}

impl Lent {
    /// The handle.
    pub(crate) fn raw(&self) -> ffi::duckdb_connection {
        self.connection.as_ref().map_or(std::ptr::null_mut(), |connection| connection.raw)
    }

    /// The account of the query that has come to its end.
    pub(crate) fn peak(&self) -> Option<Peak> {
        self.home.as_ref()?;
        // SAFETY: the connection is open; the account belongs to it and is read before anything else runs on it.
        unsafe {
            let info = ffi::duckdb_get_profiling_info(self.raw());
            if info.is_null() {
                return None;
            }
            Some(Peak {
                memory: metric(info, c"SYSTEM_PEAK_BUFFER_MEMORY")?,
                spilled: metric(info, c"SYSTEM_PEAK_TEMP_DIR_SIZE")?,
            })
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(connection), Some(home)) = (self.connection.take(), &self.home) {
            home.0.replace(Some(connection));
        }
    }
}

/// # Safety
/// `info` is of an open connection.
unsafe fn metric(info: ffi::duckdb_profiling_info, name: &CStr) -> Option<u64> {
    // SAFETY: per the contract; the value and its text are ours to free.
    unsafe {
        let mut value = ffi::duckdb_profiling_info_get_value(info, name.as_ptr());
        if value.is_null() {
            return None;
        }
        let text = ffi::duckdb_get_varchar(value);
        let number = CString::from(CStr::from_ptr(text)).to_str().ok().and_then(|text| text.parse().ok());
        ffi::duckdb_free(text.cast());
        ffi::duckdb_destroy_value(&raw mut value);
        number
    }
}
