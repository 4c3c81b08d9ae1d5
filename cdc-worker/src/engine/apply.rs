//! Changes to tables, in commit order.

use arrow_array::RecordBatch;
use bytes::Bytes;
use iceberg_writer::{Catalog as _, MirrorCatalog, Warehouse};

use crate::Result;
use crate::decode::message::{Commit, Message, Tuple};
use crate::error::{COPY_ANEW, Error, ErrorKind};
use crate::source::relation;
use crate::table::{OldValues, Position, Step};

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

/// What keeps a change from being applied at once. Nearly none meets one, so the way of the others has no `await` in it:
/// measured, moving the futures of the rare cases about took a seventh of the time of all.
#[derive(Debug)]
pub(super) enum Obstacle {
    /// An unchanged TOASTed value lies in this row of a data file.
    OldRow { relation: u32, commit: Commit, row: RowChange, position: Position },
    /// Its table was described since the last one: its columns may be others.
    Look { relation: u32, commit: Commit, row: RowChange },
    /// Its columns are these from here on.
    Columns { relation: u32, commit: Commit, told: String },
    /// It comes from a partition that was described just now.
    Partition { relation: u32, partition: u32, commit: Commit, row: RowChange },
    /// It cannot be applied, which is the table's own affair.
    Failed { relation: u32, error: Error },
}

/// What applying a change came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Applied {
    /// The table had this transaction already (I2).
    Before,
    Now,
    NeedsOldRow(Position),
    /// See [`Step::NeedsSourceRow`]. Of tables that catch up.
    NeedsSourceRow,
    /// [`Session::look_at`] has to come first.
    NeedsLook,
}

impl Session {
    /// Takes a change of this transaction; `raw` is its message. The obstacles are to be overcome before the next.
    pub(super) fn apply(&mut self, commit: Commit, raw: &Bytes, change: Message) -> Result<Vec<Obstacle>> {
        let obstacle = match change {
            Message::Relation(described) => {
                self.trees.described(described.oid);
                match self.tables.get_mut(&described.oid).map(|table| &mut table.entry) {
                    Some(Entry::Streaming(streaming)) => streaming.describe(described.clone()),
                    Some(Entry::Copying(copying)) => copying.wait(commit, raw)?,
                    Some(Entry::CatchingUp(catching_up)) => catching_up.wait(commit, raw)?,
                    Some(Entry::Errored { .. }) | None => {}
                }
                self.relations.insert(described.oid, described);
                None
            }
            Message::Insert { relation, new } => self.route(relation, commit, raw, RowChange::Insert(new))?,
            Message::Update { relation, old, new } => {
                self.route(relation, commit, raw, RowChange::Update { old, new })?
            }
            Message::Delete { relation, old } => self.route(relation, commit, raw, RowChange::Delete(old))?,
            Message::Truncate { relations } => {
                self.trees.no_partition_changes();
                let mut obstacles = Vec::new();
                for relation in relations {
                    obstacles.extend(self.route(relation, commit, raw, RowChange::Truncate)?);
                }
                return Ok(obstacles);
            }
            Message::Columns { secret, relation, told } => {
                let ours = self.ddl_secret.as_ref() == Some(&secret);
                // A table under copy is looked at when its rows come.
                let follows = matches!(self.tables.get(&relation).map(|table| &table.entry), Some(Entry::Streaming(_)));
                (ours && follows).then_some(Obstacle::Columns { relation, commit, told })
            }
            // The frames of transactions are the assembler's.
            _ => None,
        };
        Ok(obstacle.into_iter().collect())
    }

    fn route(&mut self, relation: u32, commit: Commit, raw: &Bytes, row: RowChange) -> Result<Option<Obstacle>> {
        if let Some(partition) = self.trees.partition_of_change(relation) {
            return Ok(Some(Obstacle::Partition { relation, partition, commit, row }));
        }
        match self.tables.get_mut(&relation).map(|table| &mut table.entry) {
            Some(Entry::Copying(copying)) => copying.wait(commit, raw)?,
            Some(Entry::CatchingUp(catching_up)) => catching_up.wait(commit, raw)?,
            Some(Entry::Streaming(streaming)) => {
                match streaming.apply(commit, &row, OldValues::Unknown, &self.catalog) {
                    Ok(Applied::Before) => {}
                    Ok(Applied::Now) => self.applied_to(relation, commit),
                    Ok(Applied::NeedsOldRow(position)) => {
                        return Ok(Some(Obstacle::OldRow { relation, commit, row, position }));
                    }
                    Ok(Applied::NeedsLook) => return Ok(Some(Obstacle::Look { relation, commit, row })),
                    Ok(Applied::NeedsSourceRow) => return Err(unasked()),
                    Err(error) if matches!(error.kind(), ErrorKind::Table | ErrorKind::Altered) => {
                        return Ok(Some(Obstacle::Failed { relation, error }));
                    }
                    Err(error) => return Err(error),
                }
            }
            // Published but not mirrored, or stopped.
            Some(Entry::Errored { .. }) | None => {}
        }
        Ok(None)
    }

    pub(super) fn applied_to(&mut self, relation: u32, commit: Commit) {
        self.changed.insert(relation);
        if self.oldest_pending.is_none() {
            self.oldest_pending = Some((tokio::time::Instant::now(), commit.time_us));
        }
    }

    /// Deals with what kept a change from being applied.
    pub(super) async fn overcome(&mut self, raw: &Bytes, obstacle: Obstacle) -> Result<()> {
        let mut next = Some(obstacle);
        while let Some(obstacle) = next.take() {
            match obstacle {
                Obstacle::Partition { relation, partition, commit, row } => {
                    self.partition_changes(relation, partition, commit.lsn).await?;
                    next = self.route(relation, commit, raw, row)?;
                }
                Obstacle::Look { relation, commit, row } => {
                    self.look_at(relation, commit).await?;
                    next = self.route(relation, commit, raw, row)?;
                }
                Obstacle::Columns { relation, commit, told } => self.told_columns(relation, commit, &told).await?,
                Obstacle::OldRow { relation, commit, row, position } => {
                    let Some(Entry::Streaming(streaming)) =
                        self.tables.get_mut(&relation).map(|table| &mut table.entry)
                    else {
                        continue;
                    };
                    let old_row = streaming.old_row(&self.warehouse, position).await?;
                    let applied = streaming.apply(commit, &row, OldValues::Of(&old_row), &self.catalog);
                    if self.or_stopped(relation, applied).await?.is_some() {
                        self.applied_to(relation, commit);
                    }
                }
                Obstacle::Failed { relation, error } => {
                    self.or_stopped::<()>(relation, Err(error)).await?;
                }
            }
        }
        Ok(())
    }

    /// An error that is the table's own stops the table, not the session (I6).
    pub(super) async fn or_stopped<T>(&mut self, relation: u32, done: Result<T>) -> Result<Option<T>> {
        match done {
            Ok(done) => Ok(Some(done)),
            Err(error) if error.kind() == ErrorKind::Table => {
                if !self.partitions_explain(relation).await? && !self.key_explains(relation).await? {
                    self.fail_table(relation, error);
                }
                Ok(None)
            }
            Err(error) if error.kind() == ErrorKind::Altered => {
                self.copy_anew(relation, &error.report()).await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Something that the order of things rules out.
fn unasked() -> Error {
    Error::new(ErrorKind::Table, "a change came that its table cannot be waiting for").with_hint(COPY_ANEW)
}

impl Streaming {
    /// Applies a change. `values` are what an earlier [`Applied::NeedsOldRow`] asked for.
    ///
    /// # Errors
    /// [`ErrorKind::Table`] when the table cannot go on; others are everybody's.
    pub(super) fn apply(
        &mut self,
        commit: Commit,
        row: &RowChange,
        values: OldValues<'_>,
        catalog: &MirrorCatalog,
    ) -> Result<Applied> {
        let commit_lsn = commit.lsn;
        if commit_lsn < self.replay_from {
            return Ok(Applied::Before);
        }
        if !self.checked && !matches!(row, RowChange::Truncate) {
            return Ok(Applied::NeedsLook);
        }
        if !self.identified && matches!(row, RowChange::Update { .. } | RowChange::Delete(_)) {
            return Err(relation::not_identified(self.table.identity));
        }
        let (table, mut history) = (&mut self.table, self.history.as_deref_mut());
        if let Some(history) = &mut history {
            history.enter(commit);
        }
        let step = match (row, table.overlaps(commit_lsn)) {
            (RowChange::Insert(new), false) => table.insert(new, history).map(|()| Step::Done),
            (RowChange::Insert(new), true) => table.insert_overlapping(commit_lsn, new).map(|()| Step::Done),
            (RowChange::Delete(old), false) => table.delete(old, history).map(|()| Step::Done),
            (RowChange::Delete(old), true) => table.delete_overlapping(commit_lsn, old).map(|()| Step::Done),
            (RowChange::Update { old, new }, false) => table.update(old.as_ref(), new, values, history),
            (RowChange::Update { old, new }, true) => table.update_overlapping(commit_lsn, old.as_ref(), new, values),
            (RowChange::Truncate, false) => {
                catalog.abandon(table.truncate(history)?);
                Ok(Step::Done)
            }
            // It gives the table another file, which the copy would have noticed.
            (RowChange::Truncate, true) => Err(unasked()),
        };
        let step = step?;
        // The history may lack one that the table has: it was another table's before.
        let of_history = self.history.as_mut().is_some_and(|history| history.new_companions().is_some());
        let of = self.table.new_companions();
        if of.is_some() || of_history {
            self.add_companions(of.unwrap_or_default())?;
        }
        match step {
            Step::Done => Ok(Applied::Now),
            _ if !matches!(values, OldValues::Unknown) => {
                Err(Error::new(ErrorKind::Table, "an unchanged TOASTed value could not be read back"))
            }
            Step::NeedsOldRow(position) => Ok(Applied::NeedsOldRow(position)),
            Step::NeedsSourceRow => Ok(Applied::NeedsSourceRow),
        }
    }

    /// Reads a row of the table's files, all of its columns.
    ///
    /// # Errors
    /// [`ErrorKind::Lake`], [`ErrorKind::Index`].
    pub(super) async fn old_row(&self, warehouse: &Warehouse, position: Position) -> Result<RecordBatch> {
        let table = &self.table;
        let columns: Vec<usize> = (0..table.spec.columns.len()).collect();
        let path = table
            .file_path(position.file)
            .ok_or_else(|| Error::new(ErrorKind::Index, "the position index names a file that is not there"))?;
        Ok(iceberg_writer::read_rows(warehouse, &table.lake, &path, &[u64::from(position.row)], &columns).await?)
    }
}
