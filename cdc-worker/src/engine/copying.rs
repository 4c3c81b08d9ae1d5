//! The copies under way.
//!
//! Keeps I4. The order is what makes it exact: the loop begins to keep a table's streamed changes *before* the copy's
//! slot is made. So the changes kept include every transaction at or after the slot's consistent point, and those
//! before it, which the copy has, are dropped by their commit LSN, when the table catches up (`catching_up`).
//!
//! Until the copy is committed the slot stays at or before its beginning ([`Copying::holds`]): the changes kept here end
//! with the process, and a copy that goes on after a restart needs them again from the stream. The registry has what of
//! it is done. WAL that is held back for it is bounded (`copy.held_wal`); past that the copy would begin again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use iceberg_writer::{Catalog, LakeTable, Layout, Lsn};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::Result;
use crate::decode::message::{Commit, Relation};
use crate::decode::value::needs_text;
use crate::error::ErrorKind;
use crate::registry::RegisteredTable;
use crate::source::copy::progress::{Abandoned, Progress, takes_parts};
use crate::source::copy::{Base, Copied, CopyJob, News};
use crate::source::older::OlderTransactions;
use crate::source::publication;
use crate::source::relation::{self, SourceTable, Wanted};
use crate::spool::Spool;
use crate::table::PositionIndex;

use super::entry::{Entry, Table};
use super::session::Session;
use super::start::own_failure;
use super::waiting::keep;

/// Copies at a time. Each needs a slot and some connections of the source, and memory of ours.
const MOST_COPIES: usize = 2;

/// Rows copied so far, shared with the copying task.
pub(super) type CopiedRows = Arc<AtomicU64>;

/// A table under copy.
pub(super) struct Copying {
    pub(super) generation: u64,
    pub(super) source: SourceTable,
    pub(super) lake: LakeTable,
    pub(super) layout: Layout,
    pub(super) index: PositionIndex,
    /// What it begins the table's history with.
    pub(super) base: Option<Arc<Base>>,
    pub(super) rows: CopiedRows,
    /// What keeps it from beginning.
    pub(super) older: OlderTransactions,
    task: Task,
    /// The table's description in the stream when the copy began.
    pub(super) described: Option<Relation>,
    /// What the stream brought since, in order.
    pub(super) queue: Spool,
    /// The position that the slot may not pass, so that the copy can go on after a restart.
    pub(super) holds: Option<Lsn>,
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

/// What a copy's task has to say.
pub(super) struct CopyMessage {
    relation: u32,
    generation: u64,
    says: Says,
}

enum Says {
    News(News),
    Ended(Box<Result<Copied>>),
}

impl Copying {
    pub(super) fn abort(&self) {
        self.task.0.abort();
    }

    /// Keeps a message that concerns the table.
    pub(super) fn wait(&mut self, commit: Commit, raw: &Bytes) -> Result<()> {
        keep(&mut self.queue, commit, raw)
    }
}

/// Runs a copy, and lets the engine know what it says.
async fn run_copy(
    job: CopyJob,
    mut told: mpsc::Receiver<News>,
    engine: mpsc::Sender<CopyMessage>,
    relation: u32,
    generation: u64,
) {
    let message = |says| CopyMessage { relation, generation, says };
    let mut run = Box::pin(job.run());
    // The session may have ended; then nobody waits for this copy.
    let outcome = loop {
        tokio::select! {
            biased;
            Some(news) = told.recv() => drop(engine.send(message(Says::News(news))).await),
            outcome = &mut run => break outcome,
        }
    };
    while let Ok(news) = told.try_recv() {
        drop(engine.send(message(Says::News(news))).await);
    }
    drop(engine.send(message(Says::Ended(Box::new(outcome)))).await);
}

impl Session {
    /// Begins the copies that are wanted, as many as may run at a time. What the stream brings for the others is dropped:
    /// it will be in their copies.
    pub(super) async fn begin_copies(&mut self) -> Result<()> {
        // In the order of things a copy begins between two messages of the stream, for all tables.
        if !self.replays.are_done() {
            return Ok(());
        }
        let running = |table: &Table| matches!(table.entry, Entry::Copying(_));
        while self.tables.values().filter(|table| running(table)).count() < MOST_COPIES {
            let Some(table) = self.wanted.pop_front() else { break };
            self.begin_copy(table, None).await?;
        }
        Ok(())
    }

    /// Lets the slot pass the copies for which too much WAL would have to be kept. They go on, but not after a restart.
    pub(super) async fn let_wal_go(&mut self) -> Result<()> {
        let too_far = |holds: Lsn| self.received.as_u64().saturating_sub(holds.as_u64()) > self.held_wal;
        let holding = self.tables.iter().filter(|(_, table)| table.entry.holds().is_some_and(too_far));
        let holding: Vec<u32> = holding.map(|(relation, _)| *relation).collect();
        for relation in holding {
            self.config.registry(&self.control).forget_parts(relation).await?;
            if let Some(table) = self.tables.get_mut(&relation) {
                table.entry.release();
            }
            tracing::warn!(
                table = self.shown(relation),
                bytes = self.held_wal,
                "the copy holds no more WAL back: after a restart it would begin again"
            );
        }
        Ok(())
    }

    pub(super) fn forget(&mut self, relation: u32) {
        self.trees.forget(relation);
        if let Some(table) = self.tables.remove(&relation) {
            self.discard_entry(table.entry);
        }
        self.failures.retain(|(failed, _)| *failed != relation);
    }

    /// Removes what a table that does not go on has written and Iceberg has not got.
    pub(super) fn discard_entry(&self, entry: Entry) {
        match entry {
            Entry::Copying(copying) => {
                let Copying { lake, task, base, .. } = *copying;
                self.discard_copy(Some((task, base)), vec![lake], Vec::new());
            }
            Entry::CatchingUp(catching_up) => {
                let (table, history) = (catching_up.streaming.table, catching_up.streaming.history);
                let staged = history.as_ref().map_or_else(Vec::new, |history| history.staged_paths());
                let lakes = std::iter::once(table.lake).chain(history.map(|history| history.lake)).collect();
                self.discard_copy(None, lakes, staged);
            }
            Entry::Streaming(streaming) => self.catalog.abandon(streaming.staged_paths()),
            Entry::Errored { .. } => {}
        }
    }

    /// Removes the files of a copy that Iceberg has not got, when nobody writes them any more.
    /// A history that the catalog has stays, but for what the copy has `staged` in it.
    fn discard_copy(
        &self,
        task: Option<(Task, Option<Arc<Base>>)>,
        mut lakes: Vec<LakeTable>,
        mut staged: Vec<String>,
    ) {
        let catalog = Arc::clone(&self.catalog);
        tokio::spawn(async move {
            if let Some((task, base)) = task {
                task.cancel().await;
                staged.extend(base.iter().flat_map(|base| base.paths()));
                lakes.extend(base.map(|base| base.lake().clone()));
            }
            catalog.abandon(staged);
            for lake in lakes {
                if let Err(error) = catalog.discard_prepared(lake.spec(), lake.uuid()).await {
                    tracing::warn!(error = %error, "could not remove the files of a copy that was called off");
                }
            }
        });
    }

    /// Begins a table's copy, or goes on with one that another process has left behind.
    pub(super) async fn begin_copy(&mut self, registered: RegisteredTable, abandoned: Option<Abandoned>) -> Result<()> {
        let relation = registered.relation;
        let (source, history) = match self.fit(&registered).await {
            Ok(fit) => fit,
            Err(error) if error.kind() == ErrorKind::Table => {
                let (schema, name) = (registered.schema, registered.name);
                self.tables.insert(relation, Table::errored(schema, name, String::new(), None));
                self.fail_table(relation, error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if let Some(note) = source.note() {
            tracing::info!("{note}");
        }
        if needs_text(&source.spec) && !self.ask_for_text().await? {
            // It is wanted at the next look, too.
            return Ok(());
        }
        let taken_over = match abandoned {
            Some(abandoned) => self.take_over(&source, &registered.layout, &abandoned).await?,
            None => None,
        };
        let (lake, progress) = match taken_over {
            Some(taken_over) => taken_over,
            None => {
                let lake = match self.catalog.prepare(source.spec.clone(), self.config.lake.format).await {
                    Ok(lake) => lake.laid_out(&registered.layout),
                    // Somebody else's table has the name.
                    Err(error) if error.table().is_some() => {
                        self.tables.insert(relation, Table::errored(source.schema, source.name, String::new(), None));
                        self.fail_table(relation, own_failure(&error));
                        return Ok(());
                    }
                    Err(error) => return Err(error.into()),
                };
                self.config.registry(&self.control).copying(relation, lake.uuid()).await?;
                (lake, Progress::default())
            }
        };
        let base = self.begin_history(&source, history, lake.uuid()).await?;
        let holds = takes_parts(&source).then(|| progress.from().unwrap_or(self.committed));
        self.generation += 1;
        let generation = self.generation;
        let index = self.store.table(source.identity);
        let rows = Arc::new(AtomicU64::new(0));
        self.pulse.copies.begin(format!("{}.{}", source.schema, source.name), source.estimate, &rows);
        let (news, told) = mpsc::channel(1);
        let job = CopyJob {
            source: self.config.source.clone(),
            table: source.clone(),
            warehouse: Arc::clone(&self.warehouse),
            lake: lake.clone(),
            layout: registered.layout.clone(),
            index: index.clone(),
            base: base.clone(),
            epoch: self.epoch,
            attempt: Uuid::now_v7(),
            file_bytes: self.config.lake.file_bytes,
            unrepresentable: self.config.lake.unrepresentable,
            snapshot_age: self.config.copy.snapshot_age,
            copied: Arc::clone(&rows),
            older: OlderTransactions::default(),
            progress,
            news,
        };
        let older = job.older.clone();
        let task = tokio::spawn(run_copy(job, told, self.copies_in.clone(), relation, generation));
        if source.partitions.is_some() {
            self.trees.copying(relation);
        }
        let (schema, name) = (source.schema.clone(), source.name.clone());
        let copying = Copying {
            generation,
            source,
            lake,
            layout: registered.layout,
            index,
            base,
            rows,
            older,
            task: Task(task),
            described: self.relations.get(&relation).cloned(),
            queue: self.spools.spool(),
            holds,
        };
        self.tables.insert(relation, Table::new(schema, name, Entry::Copying(Box::new(copying))));
        Ok(())
    }

    /// A table that can be copied, and its history as far as there is one.
    async fn fit(&self, registered: &RegisteredTable) -> Result<(SourceTable, Option<LakeTable>)> {
        let wanted = Wanted {
            lake_name: Some(registered.lake_name()),
            history: registered.history,
            ..Wanted::new(&self.config.source.publication, registered.append_only)
        };
        let source = relation::describe(&self.control, registered.relation, wanted).await?;
        publication::check(&self.control, registered.relation, &self.config).await?;
        let history = self.find_history(registered, &source).await?;
        Ok((source, history))
    }

    /// What an earlier process has done of a copy. `None`: nothing that would be of use.
    async fn take_over(
        &self,
        source: &SourceTable,
        layout: &Layout,
        abandoned: &Abandoned,
    ) -> Result<Option<(LakeTable, Progress)>> {
        // Its files are the same in any format.
        let format = self.config.lake.format;
        let lake =
            self.catalog.prepare_again(source.spec.clone(), format, abandoned.table_uuid).await?.laid_out(layout);
        let lake = abandoned.companions().map_or_else(|_| lake.clone(), |of| lake.with_companions(of));
        let shown = source.shown();
        match abandoned.progress(&lake) {
            Ok(progress) => {
                tracing::info!(table = shown, rows = progress.rows(), "the copy goes on");
                Ok(Some((lake, progress)))
            }
            Err(error) => {
                tracing::warn!(table = shown, error = %error.report(), "the copy begins again");
                self.catalog.discard_prepared(&source.spec, abandoned.table_uuid).await?;
                Ok(None)
            }
        }
    }

    /// A copy's task reports.
    pub(super) async fn copy_says(&mut self, message: CopyMessage) -> Result<()> {
        let CopyMessage { relation, generation, says } = message;
        let Some(Entry::Copying(copying)) = self.tables.get_mut(&relation).map(|table| &mut table.entry) else {
            return Ok(());
        };
        if copying.generation != generation {
            return Ok(());
        }
        let outcome = match says {
            Says::Ended(outcome) => *outcome,
            Says::News(News::Begun { from, void }) => {
                // If the slot has passed it already, because too much WAL would have been held, nothing brings it back.
                let stands = self.stream.acknowledged() <= from;
                copying.holds = (takes_parts(&copying.source) && stands).then_some(from);
                self.config.registry(&self.control).forget_parts(relation).await?;
                self.catalog.abandon(void);
                return Ok(());
            }
            Says::News(News::Done { part, shape }) => {
                // Of one that holds nothing back it would be of no use.
                if copying.holds.is_some() {
                    let registry = self.config.registry(&self.control);
                    registry.part_done(relation, copying.lake.uuid(), &shape, part.as_of, &part.to_json()?).await?;
                }
                return Ok(());
            }
        };
        match outcome {
            Ok(copied) => {
                tracing::info!(table = self.shown(relation), lsn = %copied.exact_from, rows = copied.rows, "copied");
                self.begin_catching_up(relation, copied).await
            }
            Err(error) if error.kind() == ErrorKind::Altered => self.copy_anew(relation, &error.report()).await,
            Err(error) if matches!(error.kind(), ErrorKind::Table | ErrorKind::SourceUnfit) => {
                self.fail_table(relation, error);
                Ok(())
            }
            // A connection broke or a disk failed: a new session starts the copy again, after a pause.
            Err(error) => Err(error),
        }
    }

    /// Rows copied so far and expected, for a table under copy.
    pub(super) fn copy_progress(copying: &Copying) -> (u64, u64) {
        (copying.rows.load(Ordering::Relaxed), copying.source.estimate)
    }
}
