//! What can go wrong in the engine, sorted by what the caller can do about it.

use std::ffi::{CStr, c_char};

/// What kind of failure this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller's `cancelled` said so.
    Cancelled,
    /// The memory limit (or the temporary directory's) was reached.
    OutOfMemory,
    /// DuckDB refused or failed the query: a type overflowed, a file is gone, the SQL does not bind.
    Query,
    /// DuckDB could not be opened or configured.
    Open,
    /// The object store of the warehouse cannot be read.
    Store,
    /// What the read service sent cannot be used.
    Pin,
}

/// An engine failure.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    context: String,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into() }
    }

    /// An error out of DuckDB's own text, whose prefix names its class.
    pub(crate) fn of_duckdb(fallback: ErrorKind, text: *const c_char) -> Self {
        let text = text_of(text);
        let kind = if text.starts_with("INTERRUPT Error") {
            ErrorKind::Cancelled
        } else if text.starts_with("Out of Memory Error") {
            ErrorKind::OutOfMemory
        } else {
            fallback
        };
        Self { kind, context: text }
    }

    /// The directory to spill to could not be made.
    pub fn spill(cause: &std::io::Error) -> Self {
        Self::new(ErrorKind::Open, format!("could not make a directory for temporary files: {cause}"))
    }

    /// The object store cannot be read as it is set.
    pub fn store(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Store, context)
    }

    /// The class of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same query may succeed later without anybody's doing.
    pub fn retry(&self) -> bool {
        self.kind == ErrorKind::OutOfMemory
    }

    /// What to do about it, when there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self.kind {
            ErrorKind::OutOfMemory => {
                Some("Raise lake.memory_limit, or lake.temp_limit where lake.temp_directory has room.")
            }
            ErrorKind::Open => Some("Check lake.memory_limit, lake.threads and lake.temp_directory."),
            ErrorKind::Store => Some(
                "Queries of an object store need lake.warehouse = 's3://…', a key in lake.store_access_key_id and \
                 lake.store_secret_access_key_file, and the extension's whole installation.",
            ),
            ErrorKind::Cancelled | ErrorKind::Query | ErrorKind::Pin => None,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {}

/// Copies a C string that DuckDB owns.
pub(crate) fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return "DuckDB gave no reason".into();
    }
    // SAFETY: DuckDB hands out NUL-terminated strings that live as long as the object they came from.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
