//! From the end of a table's copy to the moment when it is where the others are.
//!
//! What the stream brought during the copy waits in a spool, and what it brings now is put behind it. The table takes a
//! burst at each turn of the loop, so that the others stream on however much there is. It joins them when nothing waits
//! and the stream has passed the copy's consistent point, at a transaction's end (I1).

use std::sync::Arc;

use arrow_array::RecordBatch;
use bytes::Bytes;
use iceberg_writer::{MirrorCatalog, Warehouse};

use crate::Result;
use crate::decode::message::{Commit, Message};
use crate::error::{COPY_ANEW, Error, ErrorKind};
use crate::source::copy::Copied;
use crate::source::partitions::Links;
use crate::table::{MirroredTable, OldValues};

use super::apply::{Applied, RowChange};
use super::columns::Columns;
use super::copying::Copying;
use super::entry::{CatchingUp, Entry, Streaming, Table};
use super::session::Session;
use super::waiting::{keep, kept};

/// Changes that a table which catches up takes at a time: more than the stream can bring it in a turn of the loop.
const CATCH_UP_BURST: usize = 8192;

/// What comes out of the queue.
enum Next {
    Change(Commit, RowChange),
    Other,
    Nothing,
}

impl CatchingUp {
    /// Keeps a message that concerns the table.
    pub(super) fn wait(&mut self, commit: Commit, raw: &Bytes) -> Result<()> {
        keep(&mut self.queue, commit, raw)
    }

    /// Applies a burst of what waits.
    ///
    /// What it gives is the transaction of the next change when that needs a look at the catalog first.
    async fn catch_up(
        &mut self,
        relation: u32,
        warehouse: &Warehouse,
        catalog: &MirrorCatalog,
    ) -> Result<Option<Commit>> {
        for _ in 0..CATCH_UP_BURST {
            let (commit, row) = match self.held.take() {
                Some(held) => held,
                None => match self.next(relation)? {
                    Next::Change(commit, row) => (commit, row),
                    Next::Other => continue,
                    Next::Nothing => break,
                },
            };
            if commit.lsn >= self.exact_from {
                self.reader = None;
            }
            match self.streaming.apply(commit, &row, OldValues::Unknown, catalog)? {
                Applied::Before | Applied::Now => {}
                Applied::NeedsLook => {
                    self.held = Some((commit, row));
                    return Ok(Some(commit));
                }
                Applied::NeedsOldRow(position) => {
                    let old_row = Box::pin(self.streaming.old_row(warehouse, position)).await?;
                    self.streaming.apply(commit, &row, OldValues::Of(&old_row), catalog)?;
                }
                Applied::NeedsSourceRow => {
                    let found = Box::pin(self.source_row(&row)).await?;
                    let values = found.as_ref().map_or(OldValues::Gone, OldValues::Of);
                    self.streaming.apply(commit, &row, values, catalog)?;
                }
            }
        }
        Ok(None)
    }

    fn next(&mut self, relation: u32) -> Result<Next> {
        let Some((commit, message)) = kept(&mut self.queue)? else { return Ok(Next::Nothing) };
        let row = match message {
            Message::Relation(described) => {
                self.streaming.describe(described);
                return Ok(Next::Other);
            }
            Message::Insert { new, .. } => RowChange::Insert(new),
            Message::Update { old, new, .. } => RowChange::Update { old, new },
            Message::Delete { old, .. } => RowChange::Delete(old),
            Message::Truncate { relations } if relations.contains(&relation) => RowChange::Truncate,
            _ => return Ok(Next::Other),
        };
        Ok(Next::Change(commit, row))
    }

    /// The row that an update has changed, as of [`Self::exact_from`].
    async fn source_row(&mut self, row: &RowChange) -> Result<Option<RecordBatch>> {
        let (Some(reader), RowChange::Update { old, new }) = (&mut self.reader, row) else {
            return Err(Error::new(
                ErrorKind::Table,
                "a row of the source is wanted, and there is no snapshot to read it in",
            )
            .with_hint(COPY_ANEW));
        };
        if !reader.spec().is_same_but_for_companions(&self.streaming.table.spec) {
            return Err(Error::new(ErrorKind::Altered, "its columns were others while it was copied"));
        }
        let mut cells = new.cells()?;
        let old_cells;
        if let Some(old) = old {
            old_cells = old.cells()?;
            MirroredTable::fill_in(&mut cells, &old_cells);
        }
        reader.row(&cells).await
    }
}

impl Session {
    /// A copy is done.
    pub(super) async fn begin_catching_up(&mut self, relation: u32, copied: Copied) -> Result<()> {
        let Some(Table { schema, name, entry: Entry::Copying(copying) }) = self.tables.remove(&relation) else {
            return Ok(());
        };
        let Copying { source, lake, layout, index, described, queue, holds, base, .. } = *copying;
        let spec = source.spec.with_companions(copied.companions.iter().copied());
        let lake = lake.with_companions(copied.companions);
        let partitions = copied.partitions.as_ref().map(Links::to_text);
        let registry = self.config.registry(&self.control);
        registry.copied(relation, &source.projection.published_as, partitions.as_deref()).await?;
        let mut table = MirroredTable::new(relation, Arc::new(spec), source.identity, lake, Vec::new(), index);
        table.take_copied(copied.files, copied.from, copied.exact_from);
        table.remember(&copied.seen);
        let history = base.map(|base| base.end(copied.snapshot, &copied.seen)).transpose()?;
        let columns = Columns::new(source.projection.columns, Some(copied.seen), self.config.lake.unrepresentable);
        let mut streaming = Streaming::new(table, columns, copied.from);
        streaming.history = history.map(Box::new);
        streaming.layout = layout;
        streaming.described = described;
        streaming.unregistered_copy = Some((copied.exact_from, copied.rows));
        streaming.holds = holds;
        streaming.copied_rows = copied.rows;
        self.behind.push(relation);
        let (exact_from, reader) = (copied.exact_from, copied.reader);
        let entry = Entry::CatchingUp(Box::new(CatchingUp { streaming, queue, held: None, exact_from, reader }));
        self.tables.insert(relation, Table::new(schema, name, entry));
        if let Some(partitions) = copied.partitions {
            // Where they have changed meanwhile, another copy begins.
            self.partitions_copied(relation, partitions, copied.from).await?;
        }
        Ok(())
    }

    /// Lets the tables whose copy is done catch up, and those that have caught up join.
    pub(super) async fn catch_up(&mut self) -> Result<()> {
        for relation in self.behind.clone() {
            let Some(Entry::CatchingUp(catching_up)) = self.tables.get_mut(&relation).map(|table| &mut table.entry)
            else {
                self.behind.retain(|behind| *behind != relation);
                continue;
            };
            let done = catching_up.catch_up(relation, &self.warehouse, &self.catalog).await;
            self.changed.insert(relation);
            match self.or_stopped(relation, done).await? {
                Some(None) => self.join(relation),
                // The next turn goes on with it.
                Some(Some(commit)) => self.look_at(relation, commit).await?,
                None => {}
            }
        }
        Ok(())
    }

    /// Lets a table join the others, if it is where they are.
    fn join(&mut self, relation: u32) {
        // Behind a restart the stream may begin before the position that the others have.
        let between = self.is_settled() && self.followed >= self.applied;
        let here = self.tables.get(&relation).is_some_and(|table| match &table.entry {
            Entry::CatchingUp(catching_up) => {
                between
                    && catching_up.held.is_none()
                    && catching_up.queue.is_empty()
                    && catching_up.exact_from <= self.applied
            }
            Entry::Copying(_) | Entry::Streaming(_) | Entry::Errored { .. } => false,
        });
        if !here {
            return;
        }
        if let Some(Table { schema, name, entry: Entry::CatchingUp(catching_up) }) = self.tables.remove(&relation) {
            let mut streaming = catching_up.streaming;
            streaming.table.has_joined();
            self.maintenance.look_at(relation);
            let entry = Entry::Streaming(Box::new(streaming));
            self.tables.insert(relation, Table::new(schema, name, entry));
        }
    }
}
