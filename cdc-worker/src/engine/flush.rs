//! One batch: what all tables have pending, into files, into one commit at one LSN, and only then the slot.

use std::time::Duration;

use iceberg_writer::{
    Batch, Catalog, CommitReceipt, ErrorKind as LakeErrorKind, LakeTable, Lsn, Outcome, Rewrite, TableChange,
    write_deletes,
};
use tokio::time::Instant;
use uuid::Uuid;

use crate::Result;
use crate::error::{Error, ErrorKind};
use crate::table::WrittenRows;

use super::answer::Need;
use super::catalog;
use super::entry::Entry;
use super::session::Session;
use super::stage::write_rows;
use super::start::own_failure;

/// WAL of unmirrored tables after which an idle mirror moves its slot all the same, so that it holds no WAL back.
/// Far above the few hundred bytes of WAL that the move itself writes, lest it feed itself.
const IDLE_ADVANCE_BYTES: u64 = 1 << 20;
/// An idle mirror commits at most this often.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// The files of a batch that is not made.
fn paths_of(parts: &[(u32, Uuid, WrittenRows)]) -> Vec<String> {
    parts.iter().flat_map(|(_, _, written)| &written.files).map(|file| file.path.clone()).collect()
}

/// How often tables' folders are looked through for what nothing names. It is a listing of each, and finds little.
const STRAYS_INTERVAL: Duration = Duration::from_hours(1);

/// A position that may be told to the slot. Made of a receipt only: that is I3.
struct Acknowledgement(Lsn);

impl From<&CommitReceipt> for Acknowledgement {
    fn from(receipt: &CommitReceipt) -> Self {
        Self(receipt.lsn())
    }
}

impl Session {
    fn acknowledge(&self, acknowledgement: &Acknowledgement) {
        self.stream.acknowledge(self.held_at(acknowledgement.0));
    }

    /// What the slot may be told when it begins to be read again: the last commit, as far as no copy holds it.
    pub(super) fn acknowledged(&self) -> Lsn {
        self.held_at(self.committed)
    }

    fn held_at(&self, committed: Lsn) -> Lsn {
        self.tables.values().filter_map(|table| table.entry.holds()).fold(committed, Lsn::min)
    }

    pub(super) fn commit_is_due(&self) -> bool {
        let aged = self.oldest_pending.is_some_and(|(since, _)| since.elapsed() >= self.config.commit.interval);
        let copy_joined = self.streaming().any(|streaming| streaming.unregistered_copy.is_some());
        let wanted = self.waiters.iter().any(|waiter| match waiter.need {
            Need::Committed { lsn, .. } => lsn <= self.applied && lsn > self.committed,
            Need::Maintained { ref relations } => self.maintenance_waits_for_commit(relations),
            Need::Applied { .. } => false,
        });
        let idle_wal = self.applied.as_u64().saturating_sub(self.committed.as_u64());
        let idle = idle_wal >= IDLE_ADVANCE_BYTES && self.last_commit.elapsed() >= IDLE_INTERVAL;
        let rewritten =
            self.maintenance.waiting_since.is_some_and(|since| since.elapsed() >= self.config.commit.interval);
        aged || rewritten || copy_joined || wanted || idle && self.oldest_pending.is_none() || !self.failures.is_empty()
    }

    /// Commits what is applied. Called between transactions only.
    pub(super) async fn flush(&mut self) -> Result<()> {
        self.commit_due = false;
        self.look_at_partitions().await?;
        self.follow_catalog().await?;
        self.register_failures().await?;
        let begun = Instant::now();
        let (attempt, file_bytes) = (Uuid::now_v7(), self.config.lake.file_bytes);
        let mut changes = Vec::new();
        let mut parts = Vec::new();
        // In one order whenever the same tables have changed.
        let mut changed: Vec<u32> = self.changed.iter().copied().collect();
        changed.sort_unstable();
        for relation in changed {
            let Some(Entry::Streaming(streaming)) = self.tables.get_mut(&relation).map(|table| &mut table.entry) else {
                continue;
            };
            for (lake, pending) in streaming.pending()? {
                let (truncate, rewrite, expire) = (pending.truncate, pending.rewrite, pending.expire);
                let mut data = pending.staged;
                let written =
                    write_rows(&self.warehouse, &lake, self.epoch, attempt, file_bytes, &pending.batches).await;
                let written = match written {
                    Ok(written) => written,
                    // A row that fits in no partition: the table stops, and the next batch brings the others.
                    Err(error) if error.kind() == ErrorKind::Table => {
                        self.catalog.abandon(paths_of(&parts));
                        self.fail_table(relation, error);
                        return Ok(());
                    }
                    Err(error) => return Err(error),
                };
                data.extend(written.files.iter().cloned());
                let deletes = write_deletes(&self.warehouse, &lake, self.epoch, attempt, &pending.deletes).await?;
                parts.push((relation, lake.uuid(), written));
                changes.push(TableChange { table: lake, truncate, data, deletes, rewrite, expire });
            }
        }
        let tables = changes.len();
        let mut batch = Batch {
            mirror: self.config.mirror.clone(),
            epoch: self.epoch,
            attempt,
            expected: Some(self.committed),
            lsn: self.applied,
            tables: changes,
        };
        let outcome = match self.catalog.commit(&batch).await {
            Ok(outcome) => outcome,
            Err(error) => {
                let own = error.table().and_then(|(namespace, name)| self.relation_of(namespace, name));
                let own = own.filter(|_| error.kind() != LakeErrorKind::Rewritten);
                if own.is_some() {
                    // The others will bring their staged and rewritten files again.
                    for (change, (_, _, written)) in batch.tables.iter_mut().zip(parts) {
                        change.data = written.files;
                        change.rewrite = Rewrite::default();
                    }
                }
                // Of a batch whose fate is unknown nothing is deleted: the next session's claim finds out what became
                // of it, for its UPDATE waits for a commit that is still under way.
                let leases = self.leases.clone();
                self.catalog.discard(&batch, &|path: &str| leases.holds(path)).await;
                if error.kind() == LakeErrorKind::Rewritten {
                    // The session that follows reads where the rows are now, and WAL brings the batch again.
                    return Err(Error::new(ErrorKind::Protocol, format!("{error}; reading it anew")));
                }
                let Some(relation) = own else { return Err(error.into()) };
                // One table's own failure (I6): without it, the next batch brings the others.
                self.fail_table(relation, own_failure(&error));
                return Ok(());
            }
        };
        let receipt = self.receipt_of(outcome)?;
        self.took(&receipt, parts).await?;
        self.let_wal_go().await?;
        self.acknowledge(&Acknowledgement::from(&receipt));
        self.pulse.committed();
        if tables > 0 {
            tracing::debug!(lsn = %self.committed, attempt = %attempt, elapsed = ?begun.elapsed(), tables, "committed");
        }
        crate::serve::metrics::committed(begun.elapsed());
        self.sweeper.sweep(receipt);
        Ok(())
    }

    /// The proof that a batch is committed; it may not be, for somebody else writes the mirror.
    fn receipt_of(&self, outcome: Outcome) -> Result<CommitReceipt> {
        match outcome {
            Outcome::Committed(receipt) => Ok(receipt),
            Outcome::Refused { found } => {
                let found = found.map_or_else(|| "nowhere".to_owned(), |lsn| lsn.to_string());
                let left = self.committed;
                let what = format!("the lake stands at {found}, not at {left} where this worker left it");
                Err(Error::new(ErrorKind::Protocol, what))
            }
            Outcome::Fenced { epoch } => {
                let what = format!("a newer worker (epoch {epoch}) has taken the mirror over");
                Err(Error::new(ErrorKind::Fenced, what).with_hint("this one stops; nothing is lost"))
            }
        }
    }

    fn relation_of(&self, namespace: &str, name: &str) -> Option<u32> {
        self.streaming().find(|streaming| streaming.is_named(namespace, name)).map(|streaming| streaming.table.relation)
    }

    /// Brings memory in line with what was committed.
    async fn took(&mut self, receipt: &CommitReceipt, parts: Vec<(u32, Uuid, WrittenRows)>) -> Result<()> {
        self.committed = receipt.lsn();
        self.last_commit = Instant::now();
        self.oldest_pending = None;
        self.maintenance.committed();
        let mut joined = Vec::new();
        let left_out = receipt.left_out().iter().filter_map(|left_out| {
            Some((self.relation_of(&left_out.namespace, &left_out.name)?, catalog::failure(left_out)))
        });
        let left_out: Vec<(u32, Error)> = left_out.collect();
        // What is left belongs to tables that catch up.
        let tables = &self.tables;
        self.changed
            .retain(|relation| tables.get(relation).is_some_and(|table| matches!(table.entry, Entry::CatchingUp(_))));
        for (relation, uuid, written) in parts {
            let Some(Entry::Streaming(streaming)) = self.tables.get_mut(&relation).map(|table| &mut table.entry) else {
                continue;
            };
            let Some(committed) = receipt.tables().iter().find(|committed| committed.table.uuid() == uuid) else {
                if left_out.iter().any(|(stops, _)| *stops == relation) {
                    continue;
                }
                return Err(Error::new(ErrorKind::Protocol, "a commit's receipt does not tell of a table"));
            };
            if committed.rewritten || !committed.foreign_files.is_empty() {
                // The session that follows reads the rows of those files into the index.
                return Err(Error::new(
                    ErrorKind::Protocol,
                    "another engine committed to a mirrored table; reading it anew",
                ));
            }
            streaming.committed(committed.table.clone(), &written)?;
            streaming.last_commit_us = Some(self.source_now_us);
            streaming.upkeep.expire = false;
            self.maintenance.look_at(relation);
            if let Some(copied) = streaming.unregistered_copy.take() {
                streaming.holds = None;
                joined.push((relation, copied));
            }
        }
        joined.retain(|(relation, _)| left_out.iter().all(|(stops, _)| stops != relation));
        for (relation, error) in left_out {
            self.leave_table(relation, error);
        }
        for (relation, copied) in joined {
            self.config.registry(&self.control).streaming(relation, Some(copied)).await?;
            tracing::info!(table = self.shown(relation), lsn = %self.committed, "streaming");
        }
        Ok(())
    }

    /// Looks for strays now and then.
    pub(super) fn look_for_strays_in_time(&mut self) {
        if self.looked_for_strays.elapsed() >= STRAYS_INTERVAL {
            self.look_for_strays();
        }
    }

    /// Looks for strays in the folders of all tables.
    pub(super) fn look_for_strays(&mut self) {
        self.looked_for_strays = Instant::now();
        let histories =
            self.streaming().filter_map(|streaming| streaming.history.as_ref()).map(|history| &history.lake);
        let mirrors = self.streaming().map(|streaming| &streaming.table.lake);
        let tables: Vec<LakeTable> = mirrors.chain(histories).cloned().collect();
        self.sweeper.look_for_strays(tables, self.epoch);
    }

    async fn register_failures(&mut self) -> Result<()> {
        let registry = self.config.registry(&self.control);
        for (relation, error) in &self.failures {
            registry.errored(*relation, error, self.applied).await?;
        }
        self.failures.clear();
        Ok(())
    }
}
