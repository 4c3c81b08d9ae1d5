//! From the end of a table's copy to the moment when it is where the others are.
//!
//! What the stream brought during the copy waits in a spool, and what it brings now is put behind it. The table takes a
//! burst at each turn of the loop, so that the others stream on however much there is. It joins them when nothing waits
//! and the stream has passed the copy's consistent point, at a transaction's end (I1).

use std::sync::Arc;

use bytes::Bytes;
use iceberg_writer::{SqlCatalog, Warehouse};

use crate::Result;
use crate::decode::message::{Commit, Message};
use crate::source::copy::Copied;
use crate::source::partitions::Links;
use crate::table::{FileState, MirroredTable};

use super::apply::{Applied, RowChange};
use super::columns::Columns;
use super::copying::{Copying, keep, kept};
use super::entry::{CatchingUp, Entry, Streaming, Table};
use super::session::Session;

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
    async fn catch_up(&mut self, relation: u32, warehouse: &Warehouse, catalog: &SqlCatalog) -> Result<Option<Commit>> {
        for _ in 0..CATCH_UP_BURST {
            let (commit, row) = match self.held.take() {
                Some(held) => held,
                None => match self.next(relation)? {
                    Next::Change(commit, row) => (commit, row),
                    Next::Other => continue,
                    Next::Nothing => break,
                },
            };
            match self.streaming.apply(commit.lsn, &row, None, catalog)? {
                Applied::Before | Applied::Now => {}
                Applied::NeedsLook => {
                    self.held = Some((commit, row));
                    return Ok(Some(commit));
                }
                Applied::NeedsOldRow(position) => {
                    let old_row = Box::pin(self.streaming.old_row(warehouse, position)).await?;
                    self.streaming.apply(commit.lsn, &row, Some(&old_row), catalog)?;
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
}

impl Session {
    /// A copy is done.
    pub(super) async fn begin_catching_up(&mut self, relation: u32, copied: Copied) -> Result<()> {
        let Some(Table { schema, name, entry: Entry::Copying(copying) }) = self.tables.remove(&relation) else {
            return Ok(());
        };
        let Copying { source, lake, index, described, queue, .. } = *copying;
        let partitions = copied.partitions.as_ref().map(Links::to_text);
        let registry = self.config.registry(&self.control);
        registry.copied(relation, &source.projection.published_as, partitions.as_deref()).await?;
        let files = copied.files.iter().map(FileState::written).collect();
        let mut table = MirroredTable::new(relation, Arc::new(source.spec), source.identity, lake, files, index);
        table.take_copied(copied.files);
        table.remember(&copied.seen);
        let columns = Columns::new(source.projection.columns, Some(copied.seen));
        let mut streaming = Streaming::new(table, columns, copied.consistent_point);
        streaming.described = described;
        streaming.unregistered_copy = Some((copied.consistent_point, copied.rows));
        streaming.copied_rows = copied.rows;
        self.behind.push(relation);
        let entry = Entry::CatchingUp(Box::new(CatchingUp { streaming, queue, held: None }));
        self.tables.insert(relation, Table::new(schema, name, entry));
        if let Some(partitions) = copied.partitions {
            // Where they have changed meanwhile, another copy begins.
            self.partitions_copied(relation, partitions, copied.consistent_point).await?;
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
        let between = self.open.is_none();
        let here = self.tables.get(&relation).is_some_and(|table| match &table.entry {
            Entry::CatchingUp(catching_up) => {
                between
                    && catching_up.held.is_none()
                    && catching_up.queue.is_empty()
                    && catching_up.streaming.replay_from <= self.applied
            }
            Entry::Copying(_) | Entry::Streaming(_) | Entry::Errored { .. } => false,
        });
        if !here {
            return;
        }
        if let Some(Table { schema, name, entry: Entry::CatchingUp(catching_up) }) = self.tables.remove(&relation) {
            let entry = Entry::Streaming(Box::new(catching_up.streaming));
            self.tables.insert(relation, Table::new(schema, name, entry));
        }
    }
}
