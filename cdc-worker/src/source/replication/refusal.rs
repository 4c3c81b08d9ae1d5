//! What it means to the mirror that the server refuses a replication session something.

use crate::error::{Error, ErrorKind};

use super::super::wire::Failure;

/// The error of a step.
pub(super) fn refused(failure: Failure, step: &str) -> Error {
    let kind = match failure.sqlstate() {
        "42501" | "53400" | "53300" => ErrorKind::SourceUnfit,
        // object_in_use: another session reads the slot.
        "55006" => ErrorKind::AlreadyRunning,
        _ => return failure.at(step),
    };
    let hint = match failure.sqlstate() {
        "42501" => Some("the role needs REPLICATION: ALTER ROLE … REPLICATION"),
        "53400" => Some("drop a replication slot that is not in use, or raise max_replication_slots (needs a restart)"),
        "53300" => Some("raise max_wal_senders (needs a restart) or stop an unused replication client"),
        _ => None,
    };
    let error = failure.at(step).of_kind(kind);
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::wire::Refusal;
    use super::*;

    #[test]
    fn what_the_server_refuses_says_what_to_do() {
        let refused = |sqlstate: &str| {
            let refusal = Refusal { sqlstate: sqlstate.to_owned(), message: "no".to_owned(), notes: String::new() };
            refused(Failure::Server(refusal), "open a session")
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
