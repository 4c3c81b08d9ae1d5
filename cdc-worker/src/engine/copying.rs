//! Tables that come and go: the registry's wishes, the copies under way, and the moment when a copy joins the stream.
//!
//! Keeps I4. The order is what makes it exact: the loop begins to keep a table's streamed changes *before* the copy's
//! slot is made. So the changes kept include every transaction at or after the slot's consistent point, and those
//! before it, which the copy has, are dropped by their commit LSN. The table joins when the stream has passed the
//! consistent point, at a transaction's end, so that a commit never holds it at another LSN than its neighbours (I1).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iceberg_writer::{Catalog, LakeTable, Lsn};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::Result;
use crate::decode::message::Relation;
use crate::error::{COPY_ANEW, Error, ErrorKind};
use crate::registry::{RegisteredTable, TableState};
use crate::source::copy::{Copied, CopyJob};
use crate::source::partitions::Links;
use crate::source::publication;
use crate::source::relation::{self, SourceTable, Wanted};
use crate::table::{FileState, MirroredTable, PositionIndex};

use super::apply::RowChange;
use super::session::{CopiedRows, Entry, Session, Streaming, Table};

/// A table under copy.
pub(super) struct Copying {
    pub(super) generation: u64,
    pub(super) source: SourceTable,
    lake: LakeTable,
    index: PositionIndex,
    pub(super) rows: CopiedRows,
    task: Task,
    outcome: Option<Copied>,
    /// The table's description in the stream when the copy began.
    described: Option<Relation>,
    /// What the stream brought since, in order.
    pub(super) queue: Vec<Queued>,
    pub(super) backlog_bytes: usize,
}

/// A copy's task. It ends with its table's entry, so that no copy outlives its session.
struct Task(JoinHandle<()>);

impl Task {
    /// Returns when the task has ended.
    async fn cancel(mut self) {
        self.0.abort();
        // Its outcome does not matter any more.
        let _ = (&mut self.0).await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Something that waits for the copy.
pub(super) enum Queued {
    Described(Relation),
    Row { commit_lsn: Lsn, commit_time_us: i64, row: RowChange },
}

/// A copy ended.
pub(super) struct CopyMessage {
    relation: u32,
    generation: u64,
    outcome: Result<Copied>,
}

/// What a queued change costs beside its tuples.
const QUEUED_OVERHEAD: usize = 96;

impl Copying {
    pub(super) fn abort(&self) {
        self.task.0.abort();
    }

    pub(super) fn wait(&mut self, commit_lsn: Lsn, commit_time_us: i64, row: RowChange) {
        if self.outcome.as_ref().is_some_and(|copied| commit_lsn < copied.consistent_point) {
            return;
        }
        self.backlog_bytes += row.bytes() + QUEUED_OVERHEAD;
        self.queue.push(Queued::Row { commit_lsn, commit_time_us, row });
    }
}

impl Session {
    /// Compares what is wanted with what is there.
    pub(super) async fn poll_registry(&mut self) -> Result<()> {
        let registered = self.config.registry(&self.control).tables().await?;
        let gone: Vec<u32> = self
            .tables
            .keys()
            .copied()
            .filter(|known| !registered.iter().any(|table| table.relation == *known))
            .collect();
        for relation in gone {
            tracing::info!(table = relation, "no longer mirrored");
            self.forget(relation)?;
        }
        for table in registered {
            let known = self.tables.contains_key(&table.relation);
            match table.state {
                // Unmirrored and mirrored again between two looks.
                TableState::Requested if known => {
                    self.forget(table.relation)?;
                    self.begin_copy(table).await?;
                }
                TableState::Requested | TableState::Copying if !known => self.begin_copy(table).await?,
                TableState::Streaming | TableState::Copying if table.dropped => {
                    self.source_gone(
                        table.relation,
                        "the source table was dropped; the lake keeps its last state",
                        "SELECT lake.unmirror(…) (without the extension: take it out of `tables`, then cdc-worker mirror)",
                    );
                }
                TableState::Streaming | TableState::Copying if !table.published => {
                    self.source_gone(
                        table.relation,
                        "the table left the publication: changes since then do not arrive",
                        &format!("ALTER PUBLICATION … ADD TABLE …, then {COPY_ANEW}"),
                    );
                }
                TableState::Streaming | TableState::Copying => self.check_scope(&table).await?,
                TableState::Requested | TableState::Errored => {}
            }
        }
        self.look_at_partitions().await
    }

    /// Stops a table that was fit when it was copied, and of which changes since then may be missing.
    async fn check_scope(&mut self, registered: &RegisteredTable) -> Result<()> {
        let Some(table) = self.tables.get(&registered.relation) else { return Ok(()) };
        if matches!(table.entry, Entry::Errored { .. }) {
            return Ok(());
        }
        let streams = matches!(table.entry, Entry::Streaming(_));
        let shown = format!("{}.{}", table.schema, table.name);
        let error = if registered.row_filtered && !publication::allows_parts(&self.config) {
            publication::row_filtered(&shown)
        } else if registered.has_heirs {
            relation::has_heirs(&shown)
        } else if registered.sent_as_root {
            publication::as_root(&shown)
        } else if registered.sent_as_partitions {
            publication::as_partitions(&shown)
        } else if streams && registered.copied_as.is_none() {
            // Copied before this was remembered.
            let registry = self.config.registry(&self.control);
            return registry
                .copied(registered.relation, &registered.published_as, registered.partitions.as_deref())
                .await;
        } else if streams && registered.copied_as.as_ref() != Some(&registered.published_as) {
            publication::otherwise(&shown)
        } else {
            return Ok(());
        };
        self.fail_table(registered.relation, error);
        Ok(())
    }

    fn source_gone(&mut self, relation: u32, how: &str, hint: &str) {
        let known = self.tables.get(&relation).map(|table| &table.entry);
        if matches!(known, Some(Entry::Errored { .. })) {
            return;
        }
        self.fail_table(relation, Error::new(ErrorKind::Table, how).with_hint(hint));
    }

    pub(super) fn forget(&mut self, relation: u32) -> Result<()> {
        self.trees.forget(relation);
        if let Some(table) = self.tables.remove(&relation) {
            match table.entry {
                Entry::Streaming(streaming) => {
                    self.catalog.abandon(streaming.table.staged_paths());
                    self.store.drop_table(streaming.table.into_index())?;
                }
                entry => self.discard_entry(entry),
            }
        }
        self.failures.retain(|(failed, _)| *failed != relation);
        Ok(())
    }

    /// Removes what a table that does not go on has written and Iceberg has not got.
    pub(super) fn discard_entry(&self, entry: Entry) {
        match entry {
            Entry::Copying(copying) => {
                let Copying { source, lake, task, .. } = *copying;
                let catalog = Arc::clone(&self.catalog);
                tokio::spawn(async move {
                    task.cancel().await;
                    if let Err(error) = catalog.discard_prepared(&source.spec, lake.uuid()).await {
                        tracing::warn!(error = %error, "could not remove the files of a copy that was called off");
                    }
                });
            }
            Entry::Streaming(streaming) => self.catalog.abandon(streaming.table.staged_paths()),
            Entry::Errored { .. } => {}
        }
    }

    pub(super) async fn begin_copy(&mut self, registered: RegisteredTable) -> Result<()> {
        let relation = registered.relation;
        let wanted = Wanted {
            lake_name: Some(&registered.lake_table),
            ..Wanted::new(&self.config.source.publication, registered.append_only)
        };
        let described = relation::describe(&self.control, relation, wanted).await;
        let checked = match described {
            Ok(source) => publication::check(&self.control, relation, &self.config).await.map(|()| source),
            Err(error) => Err(error),
        };
        let source = match checked {
            Ok(source) => source,
            Err(error) if error.kind() == ErrorKind::Table => {
                self.tables.insert(relation, Table::errored(String::new(), None));
                self.fail_table(relation, error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let lake = self.catalog.prepare(source.spec.clone()).await?;
        self.config.registry(&self.control).copying(relation, lake.uuid()).await?;
        self.generation += 1;
        let generation = self.generation;
        let index = self.store.table(relation, generation)?;
        let rows = Arc::new(AtomicU64::new(0));
        let job = CopyJob {
            source: self.config.source.clone(),
            table: source.clone(),
            warehouse: Arc::clone(&self.warehouse),
            lake: lake.clone(),
            index: index.clone(),
            epoch: self.epoch,
            attempt: Uuid::now_v7(),
            copied: Arc::clone(&rows),
        };
        let done = self.copies_in.clone();
        let task = tokio::spawn(async move {
            let outcome = job.run().await;
            // The session may have ended; then nobody waits for this copy.
            let _ = done.send(CopyMessage { relation, generation, outcome }).await;
        });
        if source.partitions.is_some() {
            self.trees.copying(relation);
        }
        let (schema, name) = (source.schema.clone(), source.name.clone());
        let copying = Copying {
            generation,
            source,
            lake,
            index,
            rows,
            task: Task(task),
            outcome: None,
            described: self.relations.get(&relation).cloned(),
            queue: Vec::new(),
            backlog_bytes: 0,
        };
        self.tables.insert(relation, Table::new(schema, name, Entry::Copying(Box::new(copying))));
        Ok(())
    }

    /// A copy's task reports.
    pub(super) fn copied(&mut self, message: CopyMessage) -> Result<()> {
        let CopyMessage { relation, generation, outcome } = message;
        let Some(Entry::Copying(copying)) = self.tables.get_mut(&relation).map(|table| &mut table.entry) else {
            return Ok(());
        };
        if copying.generation != generation {
            return Ok(());
        }
        match outcome {
            Ok(copied) => {
                tracing::info!(table = relation, lsn = %copied.consistent_point, rows = copied.rows, "copied");
                copying.outcome = Some(copied);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::Table | ErrorKind::SourceUnfit) => {
                self.fail_table(relation, error);
                Ok(())
            }
            // A connection broke or a disk failed: a new session starts the copy again, after a pause.
            Err(error) => Err(error),
        }
    }

    /// Lets finished copies join. Called between transactions only.
    pub(super) async fn adopt_copies(&mut self) -> Result<()> {
        let applied = self.applied;
        let ready: Vec<u32> = self
            .tables
            .iter()
            .filter_map(|(relation, table)| match &table.entry {
                Entry::Copying(copying) => copying
                    .outcome
                    .as_ref()
                    .is_some_and(|copied| copied.consistent_point <= applied)
                    .then_some(*relation),
                Entry::Streaming(_) | Entry::Errored { .. } => None,
            })
            .collect();
        for relation in ready {
            self.adopt(relation).await?;
        }
        Ok(())
    }

    async fn adopt(&mut self, relation: u32) -> Result<()> {
        let Some(Table { schema, name, entry: Entry::Copying(copying) }) = self.tables.remove(&relation) else {
            return Ok(());
        };
        let Copying { source, lake, index, outcome: Some(copied), described, queue, .. } = *copying else {
            return Ok(());
        };
        let partitions = copied.partitions.as_ref().map(Links::to_text);
        let registry = self.config.registry(&self.control);
        registry.copied(relation, &source.projection.published_as, partitions.as_deref()).await?;
        let files = copied.files.iter().map(FileState::written).collect();
        let mut table = MirroredTable::new(relation, Arc::new(source.spec), source.identity, lake, files, index)?;
        table.take_copied(copied.files);
        let mut streaming = Streaming::new(table, copied.consistent_point);
        streaming.unregistered_copy = Some((copied.consistent_point, copied.rows));
        streaming.copied_rows = copied.rows;
        self.tables.insert(relation, Table::new(schema, name, Entry::Streaming(Box::new(streaming))));
        if let Some(partitions) = copied.partitions
            && !self.partitions_copied(relation, partitions, copied.consistent_point).await?
        {
            return Ok(());
        }
        let newest = self.relations.get(&relation).cloned();
        if let Some(described) = described {
            self.relations.insert(relation, described);
        }
        for queued in queue {
            match queued {
                Queued::Described(described) => {
                    self.relations.insert(relation, described);
                    if let Some(Entry::Streaming(streaming)) =
                        self.tables.get_mut(&relation).map(|table| &mut table.entry)
                    {
                        streaming.checked = false;
                    }
                }
                Queued::Row { commit_lsn, commit_time_us, row } => {
                    self.apply_row(relation, commit_lsn, commit_time_us, row).await?;
                }
            }
        }
        if let Some(newest) = newest {
            self.relations.insert(relation, newest);
        }
        Ok(())
    }

    /// Rows copied so far and expected, for a table under copy.
    pub(super) fn copy_progress(copying: &Copying) -> (u64, u64) {
        (copying.rows.load(Ordering::Relaxed), copying.source.estimate)
    }
}
