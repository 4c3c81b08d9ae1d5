//! Changes to tables, in commit order.

use iceberg_writer::{Catalog as _, Lsn};

use crate::Result;
use crate::decode::message::{Message, Relation, Tuple};
use crate::error::{Error, ErrorKind};
use crate::source::relation;
use crate::table::{Position, Step};

use super::copying::Queued;
use super::session::{Entry, Session};

/// A message that concerns tables.
pub(super) enum Change {
    Described(Relation),
    Row { relation: u32, row: RowChange },
    Truncate { relations: Vec<u32> },
}

/// What happened to one row, or to all of them.
#[derive(Debug)]
pub(super) enum RowChange {
    Insert(Tuple),
    Update { old: Option<Tuple>, new: Tuple },
    Delete(Tuple),
    Truncate,
}

impl RowChange {
    /// Bytes that it holds on to while it waits.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Insert(tuple) | Self::Delete(tuple) => tuple.bytes(),
            Self::Update { old, new } => new.bytes() + old.as_ref().map_or(0, Tuple::bytes),
            Self::Truncate => 0,
        }
    }
}

impl Change {
    pub(super) fn new(message: Message) -> Option<Self> {
        Some(match message {
            Message::Relation(relation) => Self::Described(relation),
            Message::Insert { relation, new } => Self::Row { relation, row: RowChange::Insert(new) },
            Message::Update { relation, old, new } => Self::Row { relation, row: RowChange::Update { old, new } },
            Message::Delete { relation, old } => Self::Row { relation, row: RowChange::Delete(old) },
            Message::Truncate { relations } => Self::Truncate { relations },
            Message::Ignored => return None,
        })
    }
}

impl Session {
    /// Takes a change of the open transaction.
    pub(super) async fn apply(&mut self, change: Change) -> Result<()> {
        let Some(open) = self.open else {
            return Err(Error::new(ErrorKind::Protocol, "a change arrived outside a transaction"));
        };
        match change {
            Change::Described(described) => {
                self.trees.described(described.oid);
                self.described(described);
                Ok(())
            }
            Change::Row { relation, row } => {
                if let Some(partition) = self.trees.partition_of_change(relation) {
                    self.partition_changes(relation, partition, open.commit_lsn).await?;
                }
                self.route(relation, open.commit_lsn, open.commit_time_us, row).await
            }
            Change::Truncate { relations } => {
                self.trees.no_partition_changes();
                for relation in relations {
                    self.route(relation, open.commit_lsn, open.commit_time_us, RowChange::Truncate).await?;
                }
                Ok(())
            }
        }
    }

    fn described(&mut self, described: Relation) {
        match self.tables.get_mut(&described.oid).map(|table| &mut table.entry) {
            Some(Entry::Streaming(streaming)) => streaming.checked = false,
            Some(Entry::Copying(copying)) => copying.queue.push(Queued::Described(described.clone())),
            Some(Entry::Errored { .. }) | None => {}
        }
        self.relations.insert(described.oid, described);
    }

    async fn route(&mut self, relation: u32, commit_lsn: Lsn, commit_time_us: i64, row: RowChange) -> Result<()> {
        match self.tables.get_mut(&relation).map(|table| &mut table.entry) {
            Some(Entry::Copying(copying)) => {
                copying.wait(commit_lsn, commit_time_us, row);
                Ok(())
            }
            Some(Entry::Streaming(_)) => self.apply_row(relation, commit_lsn, commit_time_us, row).await,
            // Published but not mirrored, or stopped.
            Some(Entry::Errored { .. }) | None => Ok(()),
        }
    }

    /// Applies a change to a streaming table. An error that is the table's own stops the table, not the session.
    pub(super) async fn apply_row(
        &mut self,
        relation: u32,
        commit_lsn: Lsn,
        commit_time_us: i64,
        row: RowChange,
    ) -> Result<()> {
        match self.try_row(relation, commit_lsn, &row).await {
            Ok(applied) => {
                if applied && self.oldest_pending.is_none() {
                    self.oldest_pending = Some((tokio::time::Instant::now(), commit_time_us));
                }
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Table => {
                if !self.partitions_explain(relation).await? {
                    self.fail_table(relation, error);
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// False: the table has this transaction already (I2).
    async fn try_row(&mut self, relation: u32, commit_lsn: Lsn, row: &RowChange) -> Result<bool> {
        let Some(Entry::Streaming(streaming)) = self.tables.get_mut(&relation).map(|table| &mut table.entry) else {
            return Ok(false);
        };
        if commit_lsn < streaming.replay_from {
            return Ok(false);
        }
        if !streaming.checked && !matches!(row, RowChange::Truncate) {
            let described = self.relations.get(&relation).ok_or_else(|| {
                Error::new(ErrorKind::Protocol, "a change arrived before the description of its table")
            })?;
            relation::matches(&streaming.table.spec, described)?;
            streaming.identified = relation::identifies(&streaming.table.spec, streaming.table.identity, described);
            streaming.checked = true;
        }
        if !streaming.identified && matches!(row, RowChange::Update { .. } | RowChange::Delete(_)) {
            return Err(relation::not_identified(streaming.table.identity));
        }
        let table = &mut streaming.table;
        match row {
            RowChange::Insert(new) => table.insert(new)?,
            RowChange::Delete(old) => table.delete(old)?,
            RowChange::Truncate => self.catalog.abandon(table.truncate()?),
            RowChange::Update { old, new } => match table.update(old.as_ref(), new, None)? {
                Step::Done => {}
                Step::NeedsOldRow(position) => {
                    let columns: Vec<usize> = (0..table.spec.columns.len()).collect();
                    let Position { file, row } = position;
                    let path = table.file_path(file).ok_or_else(|| {
                        Error::new(ErrorKind::Index, "the position index names a file that is not there")
                    })?;
                    let old_row =
                        iceberg_writer::read_rows(&self.warehouse, &table.lake, &path, &[u64::from(row)], &columns)
                            .await?;
                    if table.update(old.as_ref(), new, Some(&old_row))? != Step::Done {
                        return Err(Error::new(ErrorKind::Table, "an unchanged TOASTed value could not be read back"));
                    }
                }
            },
        }
        Ok(true)
    }
}
