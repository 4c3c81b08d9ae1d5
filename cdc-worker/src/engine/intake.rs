//! Messages of the stream, and what waits in spools, a few at a time: so that questions, copies and time-outs get their
//! turn however much there is to do.

use std::collections::HashSet;

use bytes::Bytes;
use iceberg_writer::Lsn;

use crate::Result;
use crate::assemble::Assembled;
use crate::error::{Error, ErrorKind};
use crate::source::replication::WalMessage;
use crate::spool::Spool;

use super::apply::Obstacle;
use super::entry::Entry;
use super::replay::{Deferred, Replay};
use super::session::Session;

/// Messages of the stream, or of a transaction that is replayed, taken before anything else gets a turn.
pub(super) const BURST: usize = 1024;

/// What has come of a transaction that still runs.
pub(super) struct Running {
    /// Each record begins with the subtransaction's number.
    pieces: Spool,
    /// The tables that are in them.
    relations: HashSet<u32>,
}

impl Session {
    /// Whether there is something to do without the stream.
    pub(super) fn has_work(&self) -> bool {
        let waits = |relation| match self.tables.get(relation).map(|table| &table.entry) {
            Some(Entry::CatchingUp(catching_up)) => !catching_up.queue.is_empty(),
            _ => false,
        };
        !self.replays.are_done() || !self.unread.is_empty() || self.behind.iter().any(waits)
    }

    /// Takes a burst of what there is.
    pub(super) async fn advance(&mut self) -> Result<()> {
        if !self.replays.are_done() {
            self.replay_some().await?;
        }
        if !self.replays.hold_the_stream() {
            self.take_some().await?;
        }
        self.change_format().await?;
        self.catch_up().await?;
        if self.is_settled() && (self.commit_due || self.committable_bytes() >= self.config.commit.max_bytes) {
            self.flush().await?;
        }
        if self.open.is_none() {
            self.answer_waiters()?;
        }
        self.make_room().await
    }

    /// Whether all tables are at one position, between transactions.
    pub(super) fn is_settled(&self) -> bool {
        self.open.is_none() && self.replays.are_done()
    }

    async fn take_some(&mut self) -> Result<()> {
        for _ in 0..BURST {
            let Some(message) = self.unread.pop_front() else { break };
            match message {
                WalMessage::Data(raw) => {
                    for obstacle in self.take(&raw)? {
                        Box::pin(self.overcome(&raw, obstacle)).await?;
                    }
                }
                WalMessage::KeepAlive { end, clock_us } => {
                    self.source_now_us = clock_us;
                    self.received = self.received.max(end);
                    // Everything that committed before it has been sent, unless a transaction is just arriving.
                    if self.assembler.is_between() {
                        self.reached(end);
                    }
                }
            }
            // Who waits for the end of a transaction must not miss it because the burst goes on into the next one.
            let due =
                (self.commit_due || self.format.is_due()) && self.replays.are_done() || self.somebody_can_be_answered();
            if self.replays.hold_the_stream() || self.open.is_none() && due {
                break;
            }
        }
        Ok(())
    }

    fn take(&mut self, raw: &Bytes) -> Result<Vec<Obstacle>> {
        match self.assembler.take(raw)? {
            Assembled::Begin(commit) => self.open = Some(commit),
            Assembled::Change(change) => {
                let Some(commit) = self.open else {
                    return Err(Error::new(ErrorKind::Protocol, "a change arrived outside a transaction"));
                };
                match self.replays.defer(commit, raw, &change)? {
                    Deferred::No => return self.apply(commit, raw, change),
                    Deferred::Yes => {}
                    Deferred::AllWait => self.unread.push_front(WalMessage::Data(raw.clone())),
                }
            }
            Assembled::End(end) => self.end_transaction(end),
            Assembled::Keep { xid, piece } => {
                let running = self
                    .running
                    .entry(xid)
                    .or_insert_with(|| Running { pieces: self.spools.spool(), relations: HashSet::new() });
                running.relations.extend(piece.relations()?);
                running.pieces.push(&[&piece.subxid.to_be_bytes(), &[piece.tag], piece.rest])?;
            }
            Assembled::Replay { xid, commit, end, aborted } => {
                // Of an empty one nothing was kept.
                let Some(Running { pieces, relations }) = self.running.remove(&xid) else {
                    self.end_transaction(end);
                    return Ok(Vec::new());
                };
                tracing::debug!(xid, lsn = %commit.lsn, bytes = pieces.bytes(), "a streamed transaction has committed");
                self.begin_replay(Replay { pieces, aborted, commit, end, relations });
            }
            Assembled::Forget { xid } => drop(self.running.remove(&xid)),
            Assembled::Nothing => {}
        }
        Ok(Vec::new())
    }

    pub(super) fn end_transaction(&mut self, end: Lsn) {
        if let Some(commit) = self.open.take() {
            self.source_now_us = self.source_now_us.max(commit.time_us);
        }
        self.received = self.received.max(end);
        self.reached(end);
    }

    pub(super) fn reached(&mut self, end: Lsn) {
        self.followed = self.followed.max(end);
        self.applied = self.applied.max(end);
    }

    /// Bytes of changes that the next commit would bring to Iceberg.
    fn committable_bytes(&self) -> u64 {
        let changed = self.changed.iter().filter_map(|relation| self.tables.get(relation));
        let bytes = changed.map(|table| match &table.entry {
            Entry::Streaming(streaming) => streaming.pending_bytes(),
            Entry::Copying(_) | Entry::CatchingUp(_) | Entry::Errored { .. } => 0,
        });
        bytes.sum()
    }
}
