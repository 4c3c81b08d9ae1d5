//! What can go wrong in a session, before anybody says what it means.

use std::fmt;
use std::io;

use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::ErrorResponseBody;

use crate::error::{Error, ErrorKind};

/// A failure that does not know yet in which step it happened.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The connection broke, or carries nonsense.
    Io(io::Error),
    /// The server refused.
    Server(Refusal),
    /// It asks for a password, and there is none.
    NoPassword,
}

/// What a server says when it refuses.
#[derive(Debug, Default)]
pub(crate) struct Refusal {
    pub(crate) sqlstate: String,
    pub(crate) message: String,
    /// Its DETAIL and HINT, a line each.
    pub(crate) notes: String,
}

impl Refusal {
    fn read(body: &ErrorResponseBody) -> Self {
        let mut refusal = Self::default();
        let mut fields = body.fields();
        // A malformed field ends the list; what came before it is still worth saying.
        while let Ok(Some(field)) = fields.next() {
            let text = String::from_utf8_lossy(field.value_bytes());
            match field.type_() {
                b'C' => refusal.sqlstate = text.into_owned(),
                b'M' => refusal.message = text.into_owned(),
                b'D' => refusal.notes.push_str(&format!("\nDETAIL: {text}")),
                b'H' => refusal.notes.push_str(&format!("\nHINT: {text}")),
                _ => {}
            }
        }
        refusal
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.message, self.notes)
    }
}

impl std::error::Error for Refusal {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Failure {
    pub(crate) fn protocol(what: &str) -> Self {
        Self::Io(io::Error::new(io::ErrorKind::InvalidData, what))
    }

    pub(crate) fn server(body: &ErrorResponseBody) -> Self {
        Self::Server(Refusal::read(body))
    }

    /// The server's code, when it is the server that refuses.
    pub(crate) fn sqlstate(&self) -> &str {
        match self {
            Self::Server(refusal) => &refusal.sqlstate,
            Self::Io(_) | Self::NoPassword => "",
        }
    }

    /// The error of a step, as far as it is the same in every session.
    pub(crate) fn at(self, step: &str) -> Error {
        let refusal = match self {
            Self::Io(error) => return Error::new(ErrorKind::SourceUnreachable, step).with_source(error),
            Self::NoPassword => {
                return Error::new(ErrorKind::SourceUnfit, format!("{step}: the server asks for a password"))
                    .with_hint("set source.password_file, or LAKEMIRROR_SOURCE_PASSWORD");
            }
            Self::Server(refusal) => refusal,
        };
        let (kind, hint) = match refusal.sqlstate.as_str() {
            "3D000" => (ErrorKind::SourceUnfit, Some("check the database's name")),
            // Class 28: invalid authorization.
            code if code.starts_with("28") => {
                (ErrorKind::SourceUnfit, Some("check role, password, database and pg_hba.conf"))
            }
            _ => (ErrorKind::SourceUnreachable, None),
        };
        let error = Error::new(kind, format!("{step}: {}", refusal.message)).with_source(refusal);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}
