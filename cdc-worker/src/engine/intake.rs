//! Messages of the stream, and what waits in spools, a few at a time: so that questions, copies and time-outs get their
//! turn however much there is to do.

use std::collections::BTreeSet;

use bytes::{Buf as _, Bytes};
use iceberg_writer::Lsn;

use crate::Result;
use crate::assemble::Assembled;
use crate::decode::message;
use crate::error::{Error, ErrorKind};
use crate::source::replication::WalMessage;
use crate::spool::Spool;

use super::apply::Obstacle;
use super::entry::Entry;
use super::session::Session;

/// Messages of the stream, or of a transaction that is replayed, taken before anything else gets a turn.
const BURST: usize = 1024;

/// A committed transaction whose changes come out of a spool.
pub(super) struct Replay {
    pieces: Spool,
    aborted: BTreeSet<u32>,
    end: Lsn,
}

impl Session {
    /// Whether there is something to do without the stream.
    pub(super) fn has_work(&self) -> bool {
        let waits = |relation| match self.tables.get(relation).map(|table| &table.entry) {
            Some(Entry::CatchingUp(catching_up)) => !catching_up.queue.is_empty(),
            _ => false,
        };
        self.replay.is_some() || !self.unread.is_empty() || self.behind.iter().any(waits)
    }

    /// Takes a burst of what there is.
    pub(super) async fn advance(&mut self) -> Result<()> {
        if self.replay.is_some() {
            self.replay_some().await?;
        } else {
            self.take_some().await?;
        }
        self.change_format().await?;
        self.catch_up().await?;
        if self.open.is_none() {
            if self.commit_due || self.committable_bytes() >= self.config.commit.max_bytes {
                self.flush().await?;
            }
            self.answer_waiters()?;
        }
        self.make_room().await
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
                        self.applied = self.applied.max(end);
                    }
                }
            }
            // What comes behind a transaction that has to be replayed is behind it in commit order too. And who waits for
            // the end of a transaction must not miss it because the burst goes on into the next one.
            let awaited = self.commit_due || self.format.is_due() || self.somebody_can_be_answered();
            if self.replay.is_some() || self.open.is_none() && awaited {
                break;
            }
        }
        Ok(())
    }

    fn take(&mut self, raw: &Bytes) -> Result<Vec<Obstacle>> {
        match self.assembler.take(raw)? {
            Assembled::Begin(commit) => self.open = Some(commit),
            Assembled::Change(change) => return self.apply(raw, change),
            Assembled::End(end) => self.end_transaction(end),
            Assembled::Keep { xid, piece } => {
                let pieces = self.running.entry(xid).or_insert_with(|| self.spools.spool());
                pieces.push(&[&piece.subxid.to_be_bytes(), &[piece.tag], piece.rest])?;
            }
            Assembled::Replay { xid, commit, end, aborted } => {
                let pieces = self.running.remove(&xid).unwrap_or_else(|| self.spools.spool());
                tracing::debug!(xid, lsn = %commit.lsn, bytes = pieces.bytes(), "a streamed transaction has committed");
                self.open = Some(commit);
                self.replay = Some(Replay { pieces, aborted, end });
            }
            Assembled::Forget { xid } => drop(self.running.remove(&xid)),
            Assembled::Nothing => {}
        }
        Ok(Vec::new())
    }

    async fn replay_some(&mut self) -> Result<()> {
        for _ in 0..BURST {
            let Some(replay) = &mut self.replay else { break };
            let Some(mut piece) = replay.pieces.pop()? else {
                let end = replay.end;
                self.replay = None;
                self.end_transaction(end);
                break;
            };
            let subxid = piece.try_get_u32().map_err(|error| {
                Error::new(ErrorKind::Io, "a piece of a transaction came back damaged").with_source(error)
            })?;
            // A table that was described in a subtransaction which was rolled back is described again behind it.
            if !replay.aborted.contains(&subxid) {
                let change = message::parse(&piece)?;
                for obstacle in self.apply(&piece, change)? {
                    Box::pin(self.overcome(&piece, obstacle)).await?;
                }
            }
        }
        Ok(())
    }

    fn end_transaction(&mut self, end: Lsn) {
        if let Some(commit) = self.open.take() {
            self.source_now_us = self.source_now_us.max(commit.time_us);
        }
        self.received = self.received.max(end);
        self.applied = self.applied.max(end);
    }

    /// Bytes of changes that the next commit would bring to Iceberg.
    fn committable_bytes(&self) -> u64 {
        let changed = self.changed.iter().filter_map(|relation| self.tables.get(relation));
        let bytes = changed.map(|table| match &table.entry {
            Entry::Streaming(streaming) => streaming.table.pending_bytes() as u64,
            Entry::Copying(_) | Entry::CatchingUp(_) | Entry::Errored { .. } => 0,
        });
        bytes.sum()
    }
}
