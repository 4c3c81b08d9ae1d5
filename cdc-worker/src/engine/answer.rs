//! Answers to the read service: pins, waits, and the state of things.

use std::time::Duration;

use iceberg_writer::Lsn;
use lake_protocol::{Alternatives, LagRow, MirrorStatus, Refusal, RequestBody};
use tokio::time::Instant;

use crate::Result;
use crate::serve::{Ask, PinReply, Reply};
use crate::table::TablePin;

use super::entry::Entry;
use super::session::Session;

/// `object_not_in_prerequisite_state`.
const SQLSTATE_STATE: &str = "55000";
/// Questions that may wait at a time.
const MOST_WAITERS: usize = 1024;

/// A question whose time has not come.
pub(super) struct Waiter {
    ask: Ask,
    pub(super) need: Need,
    deadline: Instant,
    timeout: Duration,
}

pub(super) enum Need {
    /// Everything before it is applied.
    Applied { lsn: Lsn, relations: Vec<u32>, wanted: Vec<Alternatives> },
    /// Everything before it is in Iceberg, the table among it.
    Committed { lsn: Lsn, relation: u32 },
    /// The files of these tables are in order, and committed so.
    Maintained { relations: Vec<u32> },
}

fn refusal(message: impl Into<String>, detail: Option<String>, hint: impl Into<String>) -> Refusal {
    Refusal { sqlstate: SQLSTATE_STATE.to_owned(), message: message.into(), detail, hint: Some(hint.into()) }
}

/// What is wanted of each table; where nothing is said, all.
fn of_each<'a>(relations: &'a [u32], wanted: &'a [Alternatives]) -> impl Iterator<Item = (&'a u32, &'a Alternatives)> {
    const ALL: &Alternatives = &Alternatives::new();
    relations.iter().zip(wanted.iter().chain(std::iter::repeat(ALL)))
}

impl Session {
    /// Takes a question: answers it, or lets it wait.
    pub(super) fn asked(&mut self, ask: Ask) -> Result<()> {
        let (need, timeout_ms) = match ask.body.clone() {
            RequestBody::Status => {
                let status = self.status();
                ask.answer(Reply::Status(status));
                return Ok(());
            }
            RequestBody::Pin { relations, wanted, min_lsn: None, .. } => {
                let reply = self.pin_committed(&relations, &wanted)?;
                ask.answer(reply);
                return Ok(());
            }
            RequestBody::Pin { relations, wanted, min_lsn: Some(lsn), timeout_ms } => {
                if let Some(refused) = relations.iter().find_map(|relation| self.unreadable(*relation)) {
                    ask.answer(Reply::Refused(refused));
                    return Ok(());
                }
                (Need::Applied { lsn: Lsn::from_u64(lsn), relations, wanted }, timeout_ms)
            }
            RequestBody::Flush { relation, min_lsn, timeout_ms } => {
                (Need::Committed { lsn: Lsn::from_u64(min_lsn), relation }, timeout_ms)
            }
            RequestBody::Maintain { relations, compact, expire, timeout_ms } => {
                if let Some(refused) = relations.iter().find_map(|relation| self.unreadable(*relation)) {
                    ask.answer(Reply::Refused(refused));
                    return Ok(());
                }
                (Need::Maintained { relations: self.maintain_all(relations, compact, expire) }, timeout_ms)
            }
        };
        if self.waiters.len() >= MOST_WAITERS {
            ask.answer(Reply::Refused(refusal("too many queries wait for the lake", None, "try again")));
            return Ok(());
        }
        let timeout = Duration::from_millis(timeout_ms);
        // A time-out beyond the clock's range is none.
        let deadline = Instant::now().checked_add(timeout).unwrap_or_else(|| Instant::now() + Duration::from_hours(24));
        self.waiters.push(Waiter { ask, need, deadline, timeout });
        if self.open.is_none() { self.answer_waiters() } else { Ok(()) }
    }

    /// Whether there is a question whose position has been reached.
    pub(super) fn somebody_can_be_answered(&self) -> bool {
        self.waiters.iter().any(|waiter| match waiter.need {
            Need::Applied { lsn, ref relations, .. } => self.have(relations, lsn),
            Need::Committed { lsn, .. } => lsn <= self.committed,
            Need::Maintained { .. } => false,
        })
    }

    /// Whether these tables have everything before a position.
    fn have(&self, relations: &[u32], lsn: Lsn) -> bool {
        lsn <= self.applied && !relations.iter().any(|relation| self.replays.is_behind(*relation))
    }

    /// Answers those whose time has come. Called between transactions only: a pin never shows half of one (I1).
    pub(super) fn answer_waiters(&mut self) -> Result<()> {
        for waiter in std::mem::take(&mut self.waiters) {
            let reply = match &waiter.need {
                Need::Applied { lsn, relations, wanted } if self.have(relations, *lsn) => {
                    Some(self.pin(relations, wanted)?)
                }
                Need::Applied { .. } => None,
                Need::Committed { lsn, relation } => self.flushed(*lsn, *relation),
                Need::Maintained { relations } => self.in_order(relations),
            };
            match reply {
                Some(reply) => waiter.ask.answer(reply),
                None => self.waiters.push(waiter),
            }
        }
        Ok(())
    }

    /// Refuses those whose time is over.
    pub(super) fn expire_waiters(&mut self) {
        if self.waiters.is_empty() {
            return;
        }
        let now = Instant::now();
        for waiter in std::mem::take(&mut self.waiters) {
            if waiter.deadline > now {
                self.waiters.push(waiter);
                continue;
            }
            let (wanted, reached, what) = match &waiter.need {
                Need::Applied { lsn, .. } => (*lsn, self.applied, "applied"),
                Need::Committed { lsn, .. } => (*lsn, self.committed, "committed"),
                Need::Maintained { .. } => {
                    waiter.ask.answer(Reply::Refused(refusal(
                        "the files are not in order yet",
                        None,
                        "it goes on without you; allow more time, or raise maintenance.bandwidth",
                    )));
                    continue;
                }
            };
            let message =
                format!("the lake did not reach the wanted position within {} ms", waiter.timeout.as_millis());
            let mut detail = format!("{what} {reached}, wanted {wanted}");
            if let Need::Committed { relation, .. } = waiter.need
                && let Some(refused) = self.unreadable(relation)
            {
                detail = format!("{detail}; {}", refused.message);
            }
            waiter.ask.answer(Reply::Refused(refusal(
                message,
                Some(detail),
                "allow more time, or see lake.lag for what it waits for",
            )));
        }
    }

    /// Whether nothing is left to do for these tables' files, or cannot be done.
    fn in_order(&mut self, relations: &[u32]) -> Option<Reply> {
        for relation in relations {
            let Some(Entry::Streaming(streaming)) = self.tables.get_mut(relation).map(|table| &mut table.entry) else {
                return self.unreadable(*relation).map(Reply::Refused);
            };
            if let Some(failure) = streaming.upkeep.failure.take() {
                let message = "a table's files could not be put in order";
                return Some(Reply::Refused(refusal(message, Some(failure), "the worker's log says more; try again")));
            }
            if streaming.is_being_put_in_order() {
                return None;
            }
        }
        Some(Reply::Maintained)
    }

    fn flushed(&self, lsn: Lsn, relation: u32) -> Option<Reply> {
        match self.tables.get(&relation).map(|table| &table.entry) {
            Some(Entry::Streaming(streaming)) if streaming.is_committed() && lsn <= self.committed => {
                Some(Reply::Flushed { lsn: self.committed.as_u64() })
            }
            Some(Entry::Errored { .. }) => self.unreadable(relation).map(Reply::Refused),
            Some(Entry::Streaming(_) | Entry::Copying(_) | Entry::CatchingUp(_)) | None => None,
        }
    }

    /// Why a table cannot be read, if it can't.
    fn unreadable(&self, relation: u32) -> Option<Refusal> {
        match self.tables.get(&relation).map(|table| &table.entry) {
            Some(Entry::Streaming(_)) => None,
            Some(Entry::Copying(copying)) => {
                let (rows, expected) = Self::copy_progress(copying);
                let name = format!("{}.{}", copying.source.schema, copying.source.name);
                if let Some(older) = copying.older.shown() {
                    let message = format!("the copy of {name} has not begun");
                    return Some(refusal(
                        message,
                        Some(format!("it waits for {older}")),
                        "end them, then SELECT lake.wait(…)",
                    ));
                }
                Some(refusal(
                    format!("the copy of {name} is still under way"),
                    Some(format!("{rows} of about {expected} rows")),
                    "SELECT lake.wait(…) waits for it",
                ))
            }
            Some(Entry::CatchingUp(catching_up)) => Some(refusal(
                "the table was copied, and catches up with what has happened since",
                Some(format!("{} bytes of changes wait", catching_up.queue.bytes())),
                "SELECT lake.wait(…) waits for it",
            )),
            Some(Entry::Errored { reason, hint }) => Some(refusal(
                "the mirror of this table has stopped",
                Some(reason.clone()),
                hint.clone().unwrap_or_else(|| "see lake.errors".to_owned()),
            )),
            None => Some(refusal(
                "the table is not mirrored, or its mirror has just begun",
                Some(format!("source table with oid {relation}")),
                "SELECT lake.mirror(…), then lake.wait(…)",
            )),
        }
    }

    fn pin(&mut self, relations: &[u32], wanted: &[Alternatives]) -> Result<Reply> {
        if let Some(refused) = relations.iter().find_map(|relation| self.unreadable(*relation)) {
            return Ok(Reply::Refused(refused));
        }
        let mut tables = Vec::with_capacity(relations.len());
        for (relation, wanted) in of_each(relations, wanted) {
            if let Some(Entry::Streaming(streaming)) = self.tables.get_mut(relation).map(|table| &mut table.entry) {
                tables.push(streaming.table.pin(wanted)?);
            }
        }
        Ok(self.pinned(self.applied, tables))
    }

    fn pin_committed(&mut self, relations: &[u32], wanted: &[Alternatives]) -> Result<Reply> {
        let mut tables = Vec::with_capacity(relations.len());
        for (relation, wanted) in of_each(relations, wanted) {
            match self.tables.get_mut(relation).map(|table| &mut table.entry) {
                Some(Entry::Streaming(streaming)) if streaming.is_committed() => {
                    tables.push(streaming.table.pin_committed(wanted))
                }
                _ => {
                    let refused = self.unreadable(*relation).unwrap_or_else(|| {
                        refusal("the table is not in Iceberg yet", None, "SELECT lake.wait(…) waits for it")
                    });
                    return Ok(Reply::Refused(refused));
                }
            }
        }
        Ok(self.pinned(self.committed, tables))
    }

    fn pinned(&self, lsn: Lsn, tables: Vec<TablePin>) -> Reply {
        let lease = self.leases.take(tables.iter().flat_map(|table| table.files.iter().map(|file| &*file.path)));
        Reply::Pinned(PinReply { lsn, committed: self.committed, tables, lease })
    }

    fn status(&self) -> MirrorStatus {
        let named = |relation, schema: &str, name: &str| LagRow {
            relation,
            schema: schema.to_owned(),
            name: name.to_owned(),
            ..LagRow::default()
        };
        let known = self.tables.iter().map(|(relation, table)| {
            let mut row = named(*relation, &table.schema, &table.name);
            match &table.entry {
                Entry::Copying(copying) => {
                    (row.copied_rows, row.copy_estimate) = Self::copy_progress(copying);
                    row.pending_bytes = copying.queue.bytes();
                    row.waits_for = copying.older.shown();
                    "copying".clone_into(&mut row.state);
                }
                Entry::CatchingUp(catching_up) => {
                    row.copied_rows = catching_up.streaming.copied_rows;
                    row.copy_estimate = row.copied_rows;
                    row.pending_bytes = catching_up.queue.bytes() + catching_up.streaming.pending_bytes();
                    "copying".clone_into(&mut row.state);
                }
                Entry::Streaming(streaming) => {
                    row.pending_rows = streaming.table.pending_rows();
                    row.pending_bytes = streaming.pending_bytes();
                    row.copied_rows = streaming.copied_rows;
                    row.copy_estimate = streaming.copied_rows;
                    row.last_commit_us = streaming.last_commit_us;
                    if streaming.is_committed() { "streaming" } else { "copying" }.clone_into(&mut row.state);
                }
                Entry::Errored { reason, hint } => {
                    (row.error, row.hint) = (Some(reason.clone()), hint.clone());
                    "errored".clone_into(&mut row.state);
                }
            }
            row
        });
        let wanted = self
            .wanted
            .iter()
            .map(|table| LagRow { state: "requested".to_owned(), ..named(table.relation, &table.schema, &table.name) });
        let mut tables: Vec<LagRow> = known.chain(wanted).collect();
        tables.sort_unstable_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
        let lag_us = self.oldest_pending.map_or(0, |(_, commit_us)| self.source_now_us.saturating_sub(commit_us));
        MirrorStatus {
            mirror: self.config.mirror.clone(),
            pid: std::process::id(),
            epoch: self.epoch,
            received_lsn: self.received.as_u64(),
            applied_lsn: self.applied.as_u64(),
            committed_lsn: self.committed.as_u64(),
            lag_ms: u64::try_from(lag_us / 1000).unwrap_or(0),
            last_error: self.pulse.last_error(),
            tables,
        }
    }
}
