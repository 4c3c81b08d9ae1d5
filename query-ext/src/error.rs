//! The crate's one error: what Postgres reports, as a value. Its kind is the SQLSTATE.

use pgrx::pg_sys::panic::ErrorReport;
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

    /// The primary message.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Raises it at ERROR.
    #[track_caller]
    pub(crate) fn raise(self) -> ! {
        let mut report = ErrorReport::new(self.kind, self.message, "lake_query");
        if let Some(detail) = self.detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = self.hint {
            report = report.set_hint(hint);
        }
        report.report(PgLogLevel::ERROR);
        unreachable!("a report at ERROR does not return")
    }
}

/// The SQLSTATE of five characters, as the read service names it.
pub(crate) fn sqlstate(code: &str) -> PgSqlErrorCode {
    let packed = code
        .bytes()
        .take(5)
        .enumerate()
        .fold(0i32, |packed, (index, byte)| packed | (i32::from(byte.wrapping_sub(b'0')) & 0x3f) << (6 * index));
    PgSqlErrorCode::from(packed as isize)
}
