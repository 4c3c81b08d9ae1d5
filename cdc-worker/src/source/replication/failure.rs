//! What can go wrong in a replication session, and what it means to the mirror.

use std::io;

use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::ErrorResponseBody;

use crate::error::{Error, ErrorKind};

/// A failure that does not know yet in which step it happened.
#[derive(Debug)]
pub(super) enum Failure {
    /// The connection broke, or carries nonsense.
    Io(io::Error),
    /// The server refused.
    Server { sqlstate: String, message: String },
    /// It asks for a password, and there is none.
    NoPassword,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Failure {
    pub(super) fn protocol(what: &str) -> Self {
        Self::Io(io::Error::new(io::ErrorKind::InvalidData, what))
    }

    pub(super) fn server(body: &ErrorResponseBody) -> Self {
        let (mut sqlstate, mut message) = (String::new(), String::new());
        let mut fields = body.fields();
        // A malformed field ends the list; what came before it is still worth saying.
        while let Ok(Some(field)) = fields.next() {
            let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => sqlstate = text(),
                b'M' => message = text(),
                _ => {}
            }
        }
        Self::Server { sqlstate, message }
    }

    /// The error of a step.
    pub(super) fn at(self, step: &str) -> Error {
        let (sqlstate, message) = match self {
            Self::Io(error) => return Error::new(ErrorKind::SourceUnreachable, step).with_source(error),
            Self::NoPassword => {
                return Error::new(ErrorKind::SourceUnfit, format!("{step}: the server asks for a password"))
                    .with_hint("set source.password_file, or LAKEMIRROR_SOURCE_PASSWORD");
            }
            Self::Server { sqlstate, message } => (sqlstate, message),
        };
        let (kind, hint) = match sqlstate.as_str() {
            // Class 28: invalid authorization.
            "3D000" => (ErrorKind::SourceUnfit, Some("check the database's name")),
            code if code.starts_with("28") => {
                (ErrorKind::SourceUnfit, Some("check role, password, database and pg_hba.conf"))
            }
            "42501" => (ErrorKind::SourceUnfit, Some("the role needs REPLICATION: ALTER ROLE … REPLICATION")),
            "53400" => (
                ErrorKind::SourceUnfit,
                Some("drop a replication slot that is not in use, or raise max_replication_slots (needs a restart)"),
            ),
            "53300" => (
                ErrorKind::SourceUnfit,
                Some("raise max_wal_senders (needs a restart) or stop an unused replication client"),
            ),
            // object_in_use: another session reads the slot.
            "55006" => (ErrorKind::AlreadyRunning, None),
            _ => (ErrorKind::SourceUnreachable, None),
        };
        let error = Error::new(kind, format!("{step}: {message}"));
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_refuses_says_what_to_do() {
        let refused = |sqlstate: &str| {
            Failure::Server { sqlstate: sqlstate.to_owned(), message: "no".to_owned() }.at("open a session")
        };
        for code in ["28P01", "28000", "3D000", "42501", "53400", "53300"] {
            let error = refused(code);
            assert_eq!(error.kind(), ErrorKind::SourceUnfit, "{code}");
            assert!(error.hint().is_some() && error.report().contains("open a session: no"), "{code}");
        }
        assert_eq!(refused("55006").kind(), ErrorKind::AlreadyRunning);
        // A server that shuts down (57P01) comes back.
        assert_eq!(refused("57P01").kind(), ErrorKind::SourceUnreachable);
    }
}
