//! A question to the engine, where its answer goes, and the answer.

use iceberg_writer::Lsn;
use lake_protocol::{MirrorStatus, Refusal, RequestBody};
use tokio::sync::oneshot;

use crate::error::Error;
use crate::table::TablePin;

use super::lease::Lease;

/// `cannot_connect_now`.
const SQLSTATE_DOWN: &str = "57P03";

/// A question and its way back.
pub(crate) struct Ask {
    pub(crate) body: RequestBody,
    pub(crate) reply: oneshot::Sender<Reply>,
}

impl Ask {
    /// Answers. The asker may have gone away meanwhile; then there is nobody to tell.
    pub(crate) fn answer(self, reply: Reply) {
        let _ = self.reply.send(reply);
    }

    /// Refuses while there is no session.
    pub(crate) fn refuse_down(self, error: &Error) {
        self.answer(Reply::Refused(Refusal {
            sqlstate: SQLSTATE_DOWN.to_owned(),
            message: "the lake engine is recovering".to_owned(),
            detail: Some(error.report()),
            hint: error.hint().map(str::to_owned).or_else(|| Some("it tries again by itself; see lake.lag".to_owned())),
        }));
    }
}

/// An answer, before it is put into bytes.
pub(crate) enum Reply {
    Pinned(PinReply),
    Flushed { lsn: u64 },
    Maintained,
    Status(MirrorStatus),
    Refused(Refusal),
}

/// Tables at one LSN, and the lease on their files.
pub(crate) struct PinReply {
    pub(crate) lsn: Lsn,
    pub(crate) committed: Lsn,
    pub(crate) tables: Vec<TablePin>,
    pub(crate) lease: Lease,
}
