//! The crate's one error: what Postgres reports, as a value. Its kind is the SQLSTATE.

use pgrx::pg_sys::panic::{CaughtError, ErrorReport, ErrorReportWithLevel};
use pgrx::prelude::*;

/// An error on its way to `ereport`.
#[derive(Debug)]
pub(crate) struct Error {
    kind: PgSqlErrorCode,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

impl Error {
    /// An error with a message in the house form: lower case, no full stop.
    pub(crate) fn new(kind: PgSqlErrorCode, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), detail: None, hint: None }
    }

    /// The state of something forbids what was asked: SQLSTATE 55000.
    pub(crate) fn state(message: impl Into<String>) -> Self {
        Self::new(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message)
    }

    /// What was asked is not supported: SQLSTATE 0A000.
    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, message)
    }

    /// More about this case.
    #[must_use]
    pub(crate) fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// What a person can do about it.
    #[must_use]
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What a person can do, if anything special.
    pub(crate) fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The message, with the detail behind it where there is one.
    pub(crate) fn report_line(&self) -> String {
        match &self.detail {
            Some(detail) => format!("{}: {detail}", self.message),
            None => self.message.clone(),
        }
    }

    /// Hands the error to Postgres at this level; returns for levels below ERROR only.
    #[track_caller]
    pub(crate) fn report(self, level: PgLogLevel) {
        let mut report = ErrorReport::new(self.kind, self.message, "lake");
        if let Some(detail) = self.detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = self.hint {
            report = report.set_hint(hint);
        }
        report.report(level);
    }

    /// Takes what a `PG_TRY` caught.
    pub(crate) fn from_caught(caught: &CaughtError) -> Self {
        let report: &ErrorReportWithLevel = match caught {
            CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
            CaughtError::RustPanic { ereport, .. } => ereport,
        };
        Self {
            kind: report.sql_error_code(),
            message: report.message().to_owned(),
            detail: report.detail().map(str::to_owned),
            hint: report.hint().map(str::to_owned),
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<pgrx::spi::Error> for Error {
    fn from(error: pgrx::spi::Error) -> Self {
        Self::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, format!("query the registry: {error}"))
    }
}

/// Returns the value of an SQL function, or raises its error.
#[track_caller]
pub(crate) fn or_raise<T>(outcome: Result<T, Error>) -> T {
    match outcome {
        Ok(value) => value,
        Err(error) => {
            error.report(PgLogLevel::ERROR);
            unreachable!("a report at ERROR does not return")
        }
    }
}
