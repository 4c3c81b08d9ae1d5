//! The crate's one error: what kind, in which step, whether to try again, and what a person can do.

use std::fmt;
use std::time::Duration;

/// What went wrong, as far as somebody branches on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The configuration contradicts itself or names something impossible.
    Config,
    /// The source cannot be reached, or a connection to it broke.
    SourceUnreachable,
    /// The source is reachable but not fit: a setting, a right or an object is missing.
    SourceUnfit,
    /// The slot is gone, lost, or stands where it must not.
    Slot,
    /// Another worker runs this mirror.
    AlreadyRunning,
    /// A newer worker has taken the mirror over.
    Fenced,
    /// Catalog or warehouse failed.
    Lake,
    /// The position index on local disk failed.
    Index,
    /// The replication stream said something that it must not say.
    Protocol,
    /// One table cannot go on; the others can.
    Table,
    /// One table is not any more what its copy began with: another copy goes on.
    Altered,
    /// A local file, socket or address failed.
    Io,
}

/// When to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// After this long, with everything built anew.
    After(Duration),
    /// Not before a person has acted.
    Never,
}

/// First pause before a new attempt; callers double it.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// An error of the engine.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The way back for a table that has stopped, with the extension and without.
pub(crate) const COPY_ANEW: &str =
    "SELECT lake.resync(…) copies the table anew (without the extension: cdc-worker resync)";

impl Error {
    /// An error with a message in the house form: lower case, no full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, source: None }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What lies underneath.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same error, of another kind.
    pub(crate) fn of_kind(self, kind: ErrorKind) -> Self {
        Self { kind, ..self }
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What a person can do, if anything special.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// A table's own error, told to the person who has just named the table: there it is the source that is not fit.
    pub(crate) fn of_the_source(self) -> Self {
        match self.kind {
            ErrorKind::Table => self.of_kind(ErrorKind::SourceUnfit),
            _ => self,
        }
    }

    /// An error of the lake that is about rows of one table, which stops then, and not of the lake.
    pub(crate) fn of_rows(error: iceberg_writer::Error) -> Self {
        let is_own = error.table().is_some();
        let error = Self::from(error);
        if is_own { error.of_kind(ErrorKind::Table) } else { error }
    }

    /// Whether the engine may try again by itself.
    pub fn retry(&self) -> Retry {
        match self.kind {
            ErrorKind::SourceUnreachable | ErrorKind::Protocol | ErrorKind::Io | ErrorKind::Index => {
                Retry::After(RETRY_PAUSE)
            }
            ErrorKind::Lake => match self.source.as_ref().and_then(|s| s.downcast_ref::<iceberg_writer::Error>()) {
                Some(error) if error.retry() == iceberg_writer::Retry::Never => Retry::Never,
                _ => Retry::After(RETRY_PAUSE),
            },
            ErrorKind::Config
            | ErrorKind::SourceUnfit
            | ErrorKind::Slot
            | ErrorKind::AlreadyRunning
            | ErrorKind::Fenced
            | ErrorKind::Altered
            | ErrorKind::Table => Retry::Never,
        }
    }

    /// The message with everything underneath, on one line.
    pub fn report(&self) -> String {
        let mut line = self.message.clone();
        let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(self);
        while let Some(error) = cause {
            for text in error.to_string().lines() {
                // A server's error says how bad it is before it says what is wrong.
                let bare = text.split_once(": ").filter(|(word, _)| is_severity(word)).map_or(text, |(_, rest)| rest);
                let empty = text == "db error" && error.source().is_some();
                if !empty && !line.contains(bare) {
                    line.push_str(": ");
                    line.push_str(text);
                }
            }
            cause = error.source();
        }
        line
    }
}

fn is_severity(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase())
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<iceberg_writer::Error> for Error {
    fn from(error: iceberg_writer::Error) -> Self {
        let hint = error.hint().map(str::to_owned);
        let kind = match error.kind() {
            iceberg_writer::ErrorKind::Fenced => ErrorKind::Fenced,
            _ => ErrorKind::Lake,
        };
        Self { kind, message: error.to_string(), hint, source: Some(Box::new(error)) }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        let message = match error.as_db_error() {
            Some(db) => format!("the source answered: {}", db.message()),
            None => "talk to the source database".to_owned(),
        };
        let kind = match error.code() {
            Some(code) if code.code().starts_with("42") || code.code().starts_with("28") => ErrorKind::SourceUnfit,
            _ => ErrorKind::SourceUnreachable,
        };
        Self::new(kind, message).with_source(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_everything_once_on_one_line() {
        let server = "FATAL: no such role\nDETAIL: it was dropped: yesterday";
        let driver = Error::new(ErrorKind::SourceUnfit, "db error").with_source(server);
        let error = Error::new(ErrorKind::SourceUnfit, "connect to x: no such role").with_source(driver);
        assert_eq!(error.report(), "connect to x: no such role: DETAIL: it was dropped: yesterday");
        let error = Error::new(ErrorKind::Io, "open x").with_source("permission denied");
        assert_eq!(error.report(), "open x: permission denied");
    }
}
