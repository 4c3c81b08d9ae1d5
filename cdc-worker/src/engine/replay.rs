//! Large transactions that have committed, and are taken in while the others go on.
//!
//! A transaction of millions of rows takes a while. Meanwhile the tables that it does not touch follow the stream, and are
//! read at the newest position. Those that it touches are *behind*: what the stream brings for them waits, in order, until
//! the transaction is taken in. Nothing is committed to Iceberg before all tables are at one position again (I1); memory
//! does not grow for it, for rows leave it into files (`stage`).
//!
//! One transaction at a time: behind a second one that has committed meanwhile, the stream waits. So it does for one that
//! touches a partitioned table, of which the order of descriptions among all tables tells (`partitions`), and before a
//! TRUNCATE of tables that are behind together with others.

use std::collections::{BTreeSet, HashSet};

use bytes::{Buf as _, Bytes};
use iceberg_writer::Lsn;

use crate::Result;
use crate::decode::message::{self, Commit, Message};
use crate::error::{Error, ErrorKind};
use crate::spool::Spool;

use super::intake::BURST;
use super::session::Session;
use super::waiting::{keep, kept_raw};

/// Changes that have waited, taken in at a time: more than the stream can add in a turn of the loop.
const DEFERRED_BURST: usize = 4 * BURST;

/// A committed transaction whose changes come out of a spool.
pub(super) struct Replay {
    pub(super) pieces: Spool,
    /// Subtransactions that were rolled back.
    pub(super) aborted: BTreeSet<u32>,
    pub(super) commit: Commit,
    pub(super) end: Lsn,
    /// The tables that it describes or changes, in whichever subtransaction.
    pub(super) relations: HashSet<u32>,
}

/// What became of a change whose table may be behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deferred {
    /// It can be applied.
    No,
    Yes,
    /// It has to be taken again, when no table is behind.
    AllWait,
}

/// What is being taken in, and what waits for it.
pub(super) struct Replays {
    current: Option<Replay>,
    /// The whole stream waits for it.
    alone: bool,
    /// Another one, for which the stream waits.
    next: Option<Replay>,
    /// A change of tables that are behind and of others, for which the stream waits.
    torn: bool,
    /// Tables whose changes wait.
    behind: HashSet<u32>,
    /// These changes: position and time of their commit, and the message.
    deferred: Spool,
}

impl Replays {
    pub(super) fn new(deferred: Spool) -> Self {
        Self { current: None, alone: false, next: None, torn: false, behind: HashSet::new(), deferred }
    }

    /// Whether all tables are where the stream is.
    pub(super) fn are_done(&self) -> bool {
        self.current.is_none() && self.next.is_none() && self.deferred.is_empty()
    }

    /// Whether the stream may not be taken from.
    pub(super) fn hold_the_stream(&self) -> bool {
        self.next.is_some() || self.current.is_some() && self.alone || self.torn
    }

    /// Whether a table has not got everything that the others have.
    pub(super) fn is_behind(&self, relation: u32) -> bool {
        self.behind.contains(&relation)
    }

    /// Lets a change wait, if its table is behind; with the whole stream, if it is one step for tables of both kinds.
    pub(super) fn defer(&mut self, commit: Commit, raw: &Bytes, change: &Message) -> Result<Deferred> {
        if self.behind.is_empty() {
            return Ok(Deferred::No);
        }
        let waits = match change {
            Message::Relation(described) => self.behind.contains(&described.oid),
            Message::Insert { relation, .. }
            | Message::Update { relation, .. }
            | Message::Delete { relation, .. }
            | Message::Columns { relation, .. } => self.behind.contains(relation),
            Message::Truncate { relations } => {
                let behind = relations.iter().filter(|relation| self.behind.contains(relation)).count();
                if behind > 0 && behind < relations.len() {
                    self.torn = true;
                    return Ok(Deferred::AllWait);
                }
                behind > 0
            }
            _ => false,
        };
        if !waits {
            return Ok(Deferred::No);
        }
        keep(&mut self.deferred, commit, raw)?;
        Ok(Deferred::Yes)
    }
}

impl Session {
    /// A streamed transaction has committed.
    pub(super) fn begin_replay(&mut self, replay: Replay) {
        if !self.replays.are_done() {
            self.replays.next = Some(replay);
            return;
        }
        self.replays.alone = replay.relations.iter().any(|relation| self.trees.watches(*relation));
        if self.replays.alone {
            self.open = Some(replay.commit);
        } else {
            self.replays.behind.clone_from(&replay.relations);
            // For all other tables it is nothing.
            self.reached(replay.end);
        }
        self.replays.current = Some(replay);
    }

    /// Takes in a burst of what has been sent before.
    pub(super) async fn replay_some(&mut self) -> Result<()> {
        if self.replays.current.is_some() {
            self.replay_pieces().await
        } else if !self.replays.deferred.is_empty() {
            self.take_deferred().await
        } else {
            if let Some(next) = self.replays.next.take() {
                self.begin_replay(next);
            }
            Ok(())
        }
    }

    async fn replay_pieces(&mut self) -> Result<()> {
        for _ in 0..BURST {
            let Some(replay) = &mut self.replays.current else { break };
            let commit = replay.commit;
            let Some(mut piece) = replay.pieces.pop()? else {
                let end = replay.end;
                self.replays.current = None;
                if self.replays.alone {
                    self.end_transaction(end);
                }
                self.settle();
                break;
            };
            let subxid = piece.try_get_u32().map_err(damaged)?;
            // A table that was described in a subtransaction which was rolled back is described again behind it.
            if !replay.aborted.contains(&subxid) {
                let change = message::parse(&piece)?;
                for obstacle in self.apply(commit, &piece, change)? {
                    Box::pin(self.overcome(&piece, obstacle)).await?;
                }
            }
        }
        Ok(())
    }

    async fn take_deferred(&mut self) -> Result<()> {
        for _ in 0..DEFERRED_BURST {
            let Some((commit, raw)) = kept_raw(&mut self.replays.deferred)? else { break };
            let change = message::parse(&raw)?;
            for obstacle in self.apply(commit, &raw, change)? {
                Box::pin(self.overcome(&raw, obstacle)).await?;
            }
        }
        self.settle();
        Ok(())
    }

    /// Lets the tables that were behind join the others, if nothing waits for them any more.
    fn settle(&mut self) {
        if self.replays.current.is_none() && self.replays.deferred.is_empty() {
            self.replays.behind.clear();
            self.replays.torn = false;
        }
    }
}

fn damaged(error: bytes::TryGetError) -> Error {
    Error::new(ErrorKind::Io, "a piece of a transaction came back damaged").with_source(error)
}
