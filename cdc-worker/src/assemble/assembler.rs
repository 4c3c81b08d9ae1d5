//! The state of the transactions that are being sent.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use iceberg_writer::Lsn;

use crate::Result;
use crate::decode::message::{self, Commit, Message, Streamed};
use crate::error::{Error, ErrorKind};

/// What a message of the stream comes to.
#[derive(Debug, PartialEq)]
pub(crate) enum Assembled<'a> {
    /// A transaction begins; its changes follow.
    Begin(Commit),
    /// A change of the transaction that has begun.
    Change(Message),
    /// The transaction that has begun is complete.
    End(Lsn),
    /// A piece of a transaction that still runs, to be kept.
    Keep {
        xid: u32,
        piece: Streamed<'a>,
    },
    /// What was kept of a transaction, less its `aborted` subtransactions, is a transaction that has committed.
    Replay {
        xid: u32,
        commit: Commit,
        end: Lsn,
        aborted: BTreeSet<u32>,
    },
    /// What was kept of a transaction is void.
    Forget {
        xid: u32,
    },
    Nothing,
}

/// Which transactions are being sent.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    /// A transaction that is sent whole has begun.
    whole: bool,
    /// The streamed transaction of which a block is open.
    block: Option<u32>,
    /// Streamed transactions that have neither committed nor aborted, and their subtransactions that have aborted.
    running: BTreeMap<u32, BTreeSet<u32>>,
}

impl Assembler {
    /// Takes the next message.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] when it makes no sense here.
    pub(crate) fn take<'a>(&mut self, raw: &'a Bytes) -> Result<Assembled<'a>> {
        if let Some(xid) = self.block {
            let Some(piece) = message::streamed(raw)? else {
                self.block = None;
                return Ok(Assembled::Nothing);
            };
            return Ok(Assembled::Keep { xid, piece });
        }
        match message::parse(raw)? {
            Message::Begin(commit) => {
                if std::mem::replace(&mut self.whole, true) {
                    return Err(disorder("a transaction within a transaction"));
                }
                Ok(Assembled::Begin(commit))
            }
            Message::Commit { end } => {
                if !std::mem::replace(&mut self.whole, false) {
                    return Err(disorder("the end of a transaction that has not begun"));
                }
                Ok(Assembled::End(end))
            }
            // The server sends blocks and whole transactions one after the other.
            Message::StreamStart { .. } | Message::StreamCommit { .. } | Message::StreamAbort { .. } if self.whole => {
                Err(disorder("a streamed transaction within another"))
            }
            Message::StreamStart { xid } => {
                self.block = Some(xid);
                self.running.entry(xid).or_default();
                Ok(Assembled::Nothing)
            }
            Message::StreamStop => Err(disorder("the end of a block that is not open")),
            Message::StreamCommit { xid, commit, end } => {
                let aborted = self.running.remove(&xid).ok_or_else(|| disorder("an unknown transaction's commit"))?;
                Ok(Assembled::Replay { xid, commit, end, aborted })
            }
            Message::StreamAbort { xid, subxid } if xid == subxid => {
                self.running.remove(&xid);
                Ok(Assembled::Forget { xid })
            }
            Message::StreamAbort { xid, subxid } => {
                if let Some(aborted) = self.running.get_mut(&xid) {
                    aborted.insert(subxid);
                }
                Ok(Assembled::Nothing)
            }
            // A logical message that is not transactional comes at any time.
            Message::Ignored => Ok(Assembled::Nothing),
            _ if !self.whole => Err(disorder("a change outside a transaction")),
            change => Ok(Assembled::Change(change)),
        }
    }

    /// No transaction has begun, nor is a block open: everything before a keepalive's position has been taken.
    pub(crate) fn is_between(&self) -> bool {
        !self.whole && self.block.is_none()
    }
}

fn disorder(what: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("the replication stream has {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A session's work in a model of the server: subtransactions, and changes named by a number.
    #[derive(Debug, Clone)]
    enum Act {
        Write(usize),
        Savepoint(usize),
        RollbackTo(usize),
        Commit(usize),
        Abort(usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        let session = 0usize..3;
        prop_oneof![
            6 => session.clone().prop_map(Act::Write),
            2 => session.clone().prop_map(Act::Savepoint),
            2 => session.clone().prop_map(Act::RollbackTo),
            1 => session.clone().prop_map(Act::Commit),
            1 => session.prop_map(Act::Abort),
        ]
    }

    fn word(tag: u8, words: &[u32]) -> Bytes {
        let mut raw = vec![tag];
        words.iter().for_each(|word| raw.extend_from_slice(&word.to_be_bytes()));
        raw.into()
    }

    fn stream_commit(xid: u32, lsn: u64) -> Bytes {
        let mut raw = word(b'c', &[xid]).to_vec();
        raw.push(0);
        for long in [lsn, lsn + 1, 0] {
            raw.extend_from_slice(&long.to_be_bytes());
        }
        raw.into()
    }

    /// A transaction of the model: its numbers (the first is its own, the last is the one that writes), and its changes.
    #[derive(Default, Clone)]
    struct Running {
        xids: Vec<u32>,
        written: Vec<(u32, u32)>,
        sent: Vec<u32>,
    }

    proptest! {
        /// Whatever is interleaved, what is replayed is the transactions in the order of their commits, each with
        /// exactly the changes that were not rolled back.
        #[test]
        fn what_comes_out_is_what_was_committed(acts in proptest::collection::vec(act(), 0..120)) {
            let mut stream: Vec<Bytes> = Vec::new();
            let mut expected: Vec<(u64, Vec<u32>)> = Vec::new();
            let mut sessions: Vec<Running> = vec![Running::default(); 3];
            let (mut next_xid, mut next_change) = (100u32, 0u32);
            for act in acts {
                let (Act::Write(at) | Act::Savepoint(at) | Act::RollbackTo(at) | Act::Commit(at) | Act::Abort(at)) = act;
                let session = &mut sessions[at];
                if session.xids.is_empty() {
                    session.xids.push(next_xid);
                    next_xid += 1;
                }
                let top = session.xids[0];
                match act {
                    Act::Write(_) => {
                        let subxid = *session.xids.last().unwrap();
                        stream.push(word(b'S', &[top, u32::from(session.sent.is_empty())]));
                        // A TRUNCATE, whose one relation is the change's number.
                        let mut change = word(b'T', &[subxid, 1]).to_vec();
                        change.push(0);
                        change.extend_from_slice(&next_change.to_be_bytes());
                        stream.extend([change.into(), Bytes::from_static(b"E")]);
                        session.written.push((subxid, next_change));
                        session.sent.push(subxid);
                        next_change += 1;
                    }
                    Act::Savepoint(_) => {
                        session.xids.push(next_xid);
                        next_xid += 1;
                    }
                    Act::RollbackTo(_) if session.xids.len() > 1 => {
                        let gone = session.xids.pop().unwrap();
                        if session.sent.contains(&gone) {
                            stream.push(word(b'A', &[top, gone]));
                        }
                        session.written.retain(|(subxid, _)| *subxid != gone);
                    }
                    Act::RollbackTo(_) => {}
                    Act::Commit(_) => {
                        if !session.sent.is_empty() {
                            let lsn = u64::from(next_xid) * 1000 + stream.len() as u64;
                            stream.push(stream_commit(top, lsn));
                            expected.push((lsn, session.written.iter().map(|(_, change)| *change).collect()));
                        }
                        *session = Running::default();
                    }
                    Act::Abort(_) => {
                        if !session.sent.is_empty() {
                            stream.push(word(b'A', &[top, top]));
                        }
                        *session = Running::default();
                    }
                }
            }
            let mut assembler = Assembler::default();
            let mut kept: BTreeMap<u32, Vec<(u32, Bytes)>> = BTreeMap::new();
            let mut replayed: Vec<(u64, Vec<u32>)> = Vec::new();
            for raw in &stream {
                match assembler.take(raw).unwrap() {
                    Assembled::Keep { xid, piece } => {
                        let plain = [&[piece.tag], piece.rest].concat();
                        kept.entry(xid).or_default().push((piece.subxid, plain.into()));
                    }
                    Assembled::Replay { xid, commit, aborted, .. } => {
                        let pieces = kept.remove(&xid).unwrap_or_default();
                        let changes = pieces.iter().filter(|(subxid, _)| !aborted.contains(subxid)).map(|(_, plain)| {
                            let Message::Truncate { relations } = message::parse(plain).unwrap() else { panic!() };
                            relations[0]
                        });
                        replayed.push((commit.lsn.as_u64(), changes.collect()));
                    }
                    Assembled::Forget { xid } => drop(kept.remove(&xid)),
                    Assembled::Nothing => {}
                    other => panic!("{other:?}"),
                }
            }
            prop_assert!(assembler.is_between());
            prop_assert_eq!(replayed, expected);
        }
    }

    #[test]
    fn a_stream_out_of_order_is_an_error() {
        let begin = [&b"B"[..], &[0; 20]].concat();
        let commit = [&b"C"[..], &[0; 25]].concat();
        let truncate = word(b'T', &[0]);
        for (messages, fine) in [(vec![&begin, &commit], true), (vec![&commit], false), (vec![&begin, &begin], false)] {
            let mut assembler = Assembler::default();
            let mut all = messages.iter().map(|raw| assembler.take(&Bytes::copy_from_slice(raw)).is_ok());
            assert_eq!(all.all(|ok| ok), fine, "{messages:?}");
        }
        let mut assembler = Assembler::default();
        let mut whole = truncate.to_vec();
        whole.push(0);
        assert!(assembler.take(&whole.into()).is_err());
        assert!(assembler.take(&stream_commit(9, 1)).is_err());
        assert!(assembler.take(&Bytes::from_static(b"E")).is_err());
    }
}
