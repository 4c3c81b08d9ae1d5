//! Exit codes, so that a supervisor can tell "try again" from "a person must act".

use crate::error::{Error, ErrorKind};

/// The process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCode {
    /// Done, or asked to stop.
    Done = 0,
    /// Failed in a way that has no code of its own.
    Failed = 1,
    /// Configuration or usage.
    Config = 2,
    /// The source is not fit.
    Unfit = 3,
    /// Another worker runs the mirror, or took it over.
    Fenced = 4,
    /// The source is unreachable.
    Source = 5,
    /// Catalog or warehouse is unreachable.
    Lake = 6,
}

impl ExitCode {
    /// The code for an error.
    pub fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Config => Self::Config,
            ErrorKind::SourceUnfit | ErrorKind::Slot | ErrorKind::Table => Self::Unfit,
            ErrorKind::AlreadyRunning | ErrorKind::Fenced => Self::Fenced,
            ErrorKind::SourceUnreachable => Self::Source,
            ErrorKind::Lake => Self::Lake,
            ErrorKind::Altered | ErrorKind::Index | ErrorKind::Protocol | ErrorKind::Io => Self::Failed,
        }
    }
}
