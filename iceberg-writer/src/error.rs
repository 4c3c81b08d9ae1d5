//! The one error type of the crate.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::storage::carried_by;

/// What a function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting or an argument can't be used.
    Invalid,
    /// The warehouse can't be read or written now.
    Storage,
    /// The catalog's database can't be reached or did not answer in time.
    Unavailable,
    /// The catalog's database refused a statement.
    Catalog,
    /// A file of a table is missing, damaged or not understood.
    Format,
    /// The table in the lake has other columns than the caller's.
    SchemaMismatch,
    /// Someone else changed the table in a way that can't be taken over. [`Error::table`] names it.
    ForeignChange,
    /// Someone else rewrote files of the table, with the same rows: the positions that the caller holds are void. The batch is
    /// not committed; load the table again and make another. [`Error::table`] names it.
    Rewritten,
    /// A worker with a higher epoch has taken the mirror over.
    Fenced,
    /// Whether the commit happened is not known. Call [`Catalog::resolve`](crate::Catalog::resolve) with the same batch.
    Unknown,
}

/// When trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// At once.
    Now,
    /// After a pause.
    After(Duration),
    /// Not before someone has changed something.
    Never,
}

/// How long to wait before the same call is worth another try.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// An error with its kind, what was being done, the cause and what to do about it.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    context: String,
    hint: Option<String>,
    table: Option<(String, String)>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, context: context.into(), hint: None, table: None, source: None }))
    }

    pub(crate) fn invalid(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, context)
    }

    pub(crate) fn format(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Format, context)
    }

    /// Nothing tells whether a batch is committed.
    pub(crate) fn unknown(attempt: uuid::Uuid, source: Self) -> Self {
        let context = format!("whether the commit {attempt} happened is not known");
        let hint = source.hint().map(str::to_owned);
        let error = Self::new(ErrorKind::Unknown, context).with_source(source);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }

    /// A newer worker has the mirror.
    pub(crate) fn fenced(epoch: i64) -> Self {
        let context = format!("a newer worker (epoch {epoch}) has taken the mirror over");
        Self::new(ErrorKind::Fenced, context).with_hint("this one stops; nothing is lost")
    }

    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The same error, of the warehouse.
    pub(crate) fn of_storage(mut self) -> Self {
        self.0.kind = ErrorKind::Storage;
        self
    }

    pub(crate) fn with_table(mut self, namespace: &str, name: &str) -> Self {
        self.0.table = Some((namespace.to_owned(), name.to_owned()));
        self
    }

    /// An error of the Iceberg library. Our storage marks what may pass as retryable, and carries what an object store's
    /// answer means; the rest is about content.
    pub(crate) fn iceberg(context: impl Into<String>, source: iceberg::Error) -> Self {
        if let Some(failure) = carried_by(&source) {
            let error = Self::new(failure.kind(), context);
            let error = failure.hint().into_iter().fold(error, Self::with_hint);
            return error.with_source(source);
        }
        let kind = if source.retryable() { ErrorKind::Storage } else { ErrorKind::Format };
        Self::new(kind, context).with_source(source)
    }

    /// An error of a SQL statement or of the connection.
    pub(crate) fn sql(context: impl Into<String>, source: tokio_postgres::Error) -> Self {
        let kind = match source.code() {
            None => ErrorKind::Unavailable,
            // Connection exceptions, serialization failures and deadlocks, resources, operator intervention, lock wait.
            Some(code) if ["08", "40", "53", "57", "55"].contains(&&code.code()[..2]) => ErrorKind::Unavailable,
            Some(_) => ErrorKind::Catalog,
        };
        Self::new(kind, context).with_source(source)
    }

    /// What a caller acts on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self.0.kind {
            ErrorKind::Unknown => Retry::Now,
            ErrorKind::Storage | ErrorKind::Unavailable => Retry::After(RETRY_PAUSE),
            _ => Retry::Never,
        }
    }

    /// What an operator can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Namespace and name of the table it is about, where it is about one.
    pub fn table(&self) -> Option<(&str, &str)> {
        self.0.table.as_ref().map(|(namespace, name)| (namespace.as_str(), name.as_str()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.context)?;
        // The Iceberg library's and tokio-postgres' messages hold what matters in their own causes.
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("context", &self.0.context)
            .field("hint", &self.0.hint)
            .field("table", &self.0.table)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
