//! Changes to tables, in commit order.

use bytes::Bytes;
use iceberg_writer::{Catalog as _, Lsn, SqlCatalog, Warehouse};

use crate::Result;
use crate::decode::message::{Commit, Message, Tuple};
use crate::error::{Error, ErrorKind};
use crate::source::relation;
use crate::table::{Position, Step};

use super::entry::{Entry, Streaming};
use super::session::Session;

/// What happened to one row, or to all of them.
#[derive(Debug)]
pub(super) enum RowChange {
    Insert(Tuple),
    Update { old: Option<Tuple>, new: Tuple },
    Delete(Tuple),
    Truncate,
}

/// Where the rows are that a change may have to look up, and whoever removes files that nobody needs any more.
pub(super) struct LakeSide<'a> {
    pub(super) warehouse: &'a Warehouse,
    pub(super) catalog: &'a SqlCatalog,
}

impl Session {
    /// Takes a change of the open transaction; `raw` is its message.
    pub(super) async fn apply(&mut self, raw: &Bytes, change: Message) -> Result<()> {
        let Some(commit) = self.open else {
            return Err(Error::new(ErrorKind::Protocol, "a change arrived outside a transaction"));
        };
        match change {
            Message::Relation(described) => {
                self.trees.described(described.oid);
                match self.tables.get_mut(&described.oid).map(|table| &mut table.entry) {
                    Some(Entry::Streaming(streaming)) => streaming.describe(described.clone()),
                    Some(Entry::Copying(copying)) => copying.wait(commit, raw)?,
                    Some(Entry::CatchingUp(catching_up)) => catching_up.wait(commit, raw)?,
                    Some(Entry::Errored { .. }) | None => {}
                }
                self.relations.insert(described.oid, described);
                Ok(())
            }
            Message::Insert { relation, new } => self.route(relation, commit, raw, RowChange::Insert(new)).await,
            Message::Update { relation, old, new } => {
                self.route(relation, commit, raw, RowChange::Update { old, new }).await
            }
            Message::Delete { relation, old } => self.route(relation, commit, raw, RowChange::Delete(old)).await,
            Message::Truncate { relations } => {
                self.trees.no_partition_changes();
                for relation in relations {
                    self.route(relation, commit, raw, RowChange::Truncate).await?;
                }
                Ok(())
            }
            // The frames of transactions are the assembler's.
            _ => Ok(()),
        }
    }

    async fn route(&mut self, relation: u32, commit: Commit, raw: &Bytes, row: RowChange) -> Result<()> {
        if let Some(partition) = self.trees.partition_of_change(relation) {
            self.partition_changes(relation, partition, commit.lsn).await?;
        }
        match self.tables.get_mut(&relation).map(|table| &mut table.entry) {
            Some(Entry::Copying(copying)) => copying.wait(commit, raw),
            Some(Entry::CatchingUp(catching_up)) => catching_up.wait(commit, raw),
            Some(Entry::Streaming(streaming)) => {
                let lake = LakeSide { warehouse: &self.warehouse, catalog: &self.catalog };
                let applied = streaming.apply(commit.lsn, &row, &lake).await;
                if self.or_stopped(relation, applied).await? == Some(true) && self.oldest_pending.is_none() {
                    self.oldest_pending = Some((tokio::time::Instant::now(), commit.time_us));
                }
                Ok(())
            }
            // Published but not mirrored, or stopped.
            Some(Entry::Errored { .. }) | None => Ok(()),
        }
    }

    /// An error that is the table's own stops the table, not the session (I6).
    pub(super) async fn or_stopped<T>(&mut self, relation: u32, done: Result<T>) -> Result<Option<T>> {
        match done {
            Ok(done) => Ok(Some(done)),
            Err(error) if error.kind() == ErrorKind::Table => {
                if !self.partitions_explain(relation).await? {
                    self.fail_table(relation, error);
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Streaming {
    /// Applies a change. False: the table has this transaction already (I2).
    ///
    /// # Errors
    /// [`ErrorKind::Table`] when the table cannot go on; others are everybody's.
    pub(super) async fn apply(&mut self, commit_lsn: Lsn, row: &RowChange, lake: &LakeSide<'_>) -> Result<bool> {
        if commit_lsn < self.replay_from {
            return Ok(false);
        }
        if !self.checked && !matches!(row, RowChange::Truncate) {
            let described = self.described.as_ref().ok_or_else(|| {
                Error::new(ErrorKind::Protocol, "a change arrived before the description of its table")
            })?;
            relation::matches(&self.table.spec, described)?;
            self.identified = relation::identifies(&self.table.spec, self.table.identity, described);
            self.table.doubt_keys(!relation::keeps_unique(&self.table.spec, described));
            self.checked = true;
        }
        if !self.identified && matches!(row, RowChange::Update { .. } | RowChange::Delete(_)) {
            return Err(relation::not_identified(self.table.identity));
        }
        let table = &mut self.table;
        match row {
            RowChange::Insert(new) => table.insert(new)?,
            RowChange::Delete(old) => table.delete(old)?,
            RowChange::Truncate => lake.catalog.abandon(table.truncate()?),
            RowChange::Update { old, new } => match table.update(old.as_ref(), new, None)? {
                Step::Done => {}
                Step::NeedsOldRow(position) => {
                    let columns: Vec<usize> = (0..table.spec.columns.len()).collect();
                    let Position { file, row } = position;
                    let path = table.file_path(file).ok_or_else(|| {
                        Error::new(ErrorKind::Index, "the position index names a file that is not there")
                    })?;
                    let rows = [u64::from(row)];
                    let old_row =
                        iceberg_writer::read_rows(lake.warehouse, &table.lake, &path, &rows, &columns).await?;
                    if table.update(old.as_ref(), new, Some(&old_row))? != Step::Done {
                        return Err(Error::new(ErrorKind::Table, "an unchanged TOASTed value could not be read back"));
                    }
                }
            },
        }
        Ok(true)
    }
}
