//! Files kept in order beside the stream: small ones and those with many deleted rows rewritten.
//!
//! The loop chooses a table between two transactions, a task does the work (`rewriting`), and the loop takes what it made into the
//! next batch, or removes it when the table has gone another way meanwhile: was truncated, stopped, copied anew. One task
//! at a time, whatever there is to do: the stream comes first.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use iceberg_writer::{Catalog as _, LakeTable};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use crate::Result;
use crate::config::EngineConfig;
use crate::error::Error;
use crate::serve::metrics;
use crate::table::{Extent, Order, Output, Rewritten, Wanted};

use super::entry::{Entry, Streaming};
use super::rewriting::{RewrittenHistory, Workshop, rewrite, rewrite_history};
use super::session::Session;

/// A table whose rewrite failed is left alone for so long: what failed, a full disk say, is not mended by trying.
const REST_AFTER_FAILURE: Duration = Duration::from_mins(5);

/// What a task has to do.
enum Task {
    Data(Order),
    History { lake: LakeTable, full: Arc<BTreeSet<String>>, extent: Extent },
}

/// What came of it.
enum Made {
    Data(Order, Result<Rewritten>),
    History(Uuid, Result<Option<RewrittenHistory>>),
}

/// A task has ended.
pub(super) struct Done {
    relation: u32,
    begun: Instant,
    made: Made,
}

/// What is to be kept in order, and who is at it.
pub(super) struct Maintenance {
    running: Option<JoinHandle<()>>,
    done_in: mpsc::Sender<Done>,
    pub(super) done: mpsc::Receiver<Done>,
    /// Tables whose files have changed since they were looked at.
    to_look_at: BTreeSet<u32>,
    /// The one that was looked at last: its turn comes again after the others'.
    last: u32,
    resting: HashMap<u32, Instant>,
    /// When the oldest rewrite that waits for a commit was done.
    pub(super) waiting_since: Option<Instant>,
}

impl Default for Maintenance {
    fn default() -> Self {
        let (done_in, done) = mpsc::channel(1);
        let (to_look_at, resting) = (BTreeSet::new(), HashMap::new());
        Self { running: None, done_in, done, to_look_at, last: 0, resting, waiting_since: None }
    }
}

impl Drop for Maintenance {
    fn drop(&mut self) {
        // What it has written is named by this epoch, and is found by the next.
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

impl Maintenance {
    /// The files of a table have changed.
    pub(super) fn look_at(&mut self, relation: u32) {
        self.to_look_at.insert(relation);
    }

    /// What was done is committed.
    pub(super) fn committed(&mut self) {
        self.waiting_since = None;
    }

    /// Takes the next table whose turn it is.
    fn next(&mut self) -> Option<u32> {
        let next =
            self.to_look_at.range(self.last.saturating_add(1)..).next().or_else(|| self.to_look_at.first()).copied()?;
        self.to_look_at.remove(&next);
        self.last = next;
        Some(next)
    }

    fn is_resting(&mut self, relation: u32) -> bool {
        let resting = self.resting.get(&relation).is_some_and(|until| *until > Instant::now());
        if !resting {
            self.resting.remove(&relation);
        }
        resting
    }

    fn failed(&mut self, relation: u32) {
        self.resting.insert(relation, Instant::now() + REST_AFTER_FAILURE);
    }
}

impl EngineConfig {
    fn wanted_files(&self) -> Wanted {
        Wanted { file_bytes: self.lake.file_bytes as u64, tier_files: self.maintenance.tier_files }
    }
}

impl Streaming {
    /// What there is to do for the table's files, if there is anything.
    fn task(&mut self, wanted: Wanted) -> Result<Option<Task>> {
        // Until it is committed, there is nothing to rewrite; and what is done should be committed first.
        if !self.is_committed() || self.has_rewritten() {
            return Ok(None);
        }
        let extent = if self.upkeep.all.is_some() { Extent::All } else { Extent::Due };
        if let Some(order) = self.table.begin_compaction(wanted, extent)? {
            return Ok(Some(Task::Data(order)));
        }
        if let Some(history) = self.history.as_ref() {
            let files = history.lake.data_file_count();
            let all = self.upkeep.all.is_some_and(|all| all.history);
            if self.upkeep.history_is_due(files, wanted.tier_files) || all {
                let (lake, full) = (history.lake.clone(), history.full_files());
                return Ok(Some(Task::History { lake, full, extent }));
            }
        }
        // Nothing is left, unless it cannot be now.
        if self.table.may_be_compacted() {
            self.upkeep.all = None;
        }
        Ok(None)
    }

    fn has_rewritten(&self) -> bool {
        self.table.has_rewritten() || self.history.as_ref().is_some_and(|history| history.has_rewritten())
    }

    /// Whether something that was asked for by hand is still to be done, or to be committed.
    pub(super) fn is_being_put_in_order(&self) -> bool {
        self.upkeep.is_asked_for() || self.upkeep.expire || self.has_rewritten()
    }
}

/// All that can be done is to be done: what has not been looked at for that.
#[derive(Debug, Clone, Copy)]
pub(super) struct All {
    history: bool,
}

/// What is to be done for a table's files, beside what is worth it at any time.
#[derive(Debug, Clone, Default)]
pub(super) struct Upkeep {
    /// Asked for by hand.
    all: Option<All>,
    /// Former snapshots are to expire when the files are in order.
    expire_then: bool,
    /// Former snapshots are to expire with the next commit.
    pub(super) expire: bool,
    /// Why what was asked for by hand could not be done.
    pub(super) failure: Option<String>,
    /// How many files its history had when somebody looked at them last and found nothing to do; 0: they are to be looked at.
    /// Which ones they are is in manifests, and reading those after each commit would cost more than it brings.
    history_files: u64,
}

impl Upkeep {
    fn is_asked_for(&self) -> bool {
        self.all.is_some() || self.expire_then
    }

    /// Whether the next commit lets snapshots expire, now that nothing else is left of what was asked for.
    fn expires_now(&mut self) -> bool {
        if self.all.is_none() {
            self.expire |= std::mem::take(&mut self.expire_then);
        }
        self.expire
    }

    fn found_nothing(&mut self) {
        if let Some(all) = &mut self.all {
            all.history = false;
        }
    }

    /// Files of its history have been rewritten, and as many may have come meanwhile: the number says nothing then.
    fn look_at_history_again(&mut self) {
        self.history_files = 0;
    }

    fn history_is_due(&mut self, count: u64, more: usize) -> bool {
        // Fewer than before: some were rewritten, and others came meanwhile.
        let due = count >= self.history_files + more as u64 || count < self.history_files;
        if due {
            self.history_files = count;
        }
        due
    }
}

impl Session {
    /// Begins to put a table's files in order, when nobody is at it and one is in need. Called between transactions.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Index`].
    pub(super) fn maintain(&mut self) -> Result<()> {
        let wanted = self.config.wanted_files();
        while self.maintenance.running.is_none() {
            let Some(relation) = self.maintenance.next() else { break };
            let resting = self.maintenance.is_resting(relation) || !self.config.maintenance.enabled;
            let Some(Entry::Streaming(streaming)) = self.tables.get_mut(&relation).map(|table| &mut table.entry) else {
                continue;
            };
            if resting && !streaming.upkeep.is_asked_for() {
                continue;
            }
            let Some(task) = streaming.task(wanted)? else {
                if streaming.upkeep.expires_now() {
                    self.changed.insert(relation);
                }
                continue;
            };
            self.maintenance.look_at(relation);
            self.begin_task(relation, task);
        }
        Ok(())
    }

    fn begin_task(&mut self, relation: u32, task: Task) {
        let shop = Workshop {
            catalog: Arc::clone(&self.catalog),
            warehouse: Arc::clone(&self.warehouse),
            epoch: self.epoch,
            wanted: self.config.wanted_files(),
            bytes_per_second: self.config.maintenance.bytes_per_second,
        };
        let (done, begun) = (self.maintenance.done_in.clone(), Instant::now());
        self.maintenance.running = Some(tokio::spawn(async move {
            let made = match task {
                Task::Data(order) => {
                    let made = rewrite(&shop, &order).await;
                    Made::Data(order, made)
                }
                Task::History { lake, full, extent } => {
                    Made::History(lake.uuid(), rewrite_history(&shop, &lake, &full, extent).await)
                }
            };
            // Nobody listens when the session has ended.
            let _ = done.send(Done { relation, begun, made }).await;
        }));
    }

    /// A task has ended: what it made waits for the next commit, or is removed.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Index`].
    pub(super) fn maintained(&mut self, done: Done) -> Result<()> {
        self.maintenance.running = None;
        let Done { relation, begun, made } = done;
        let shown = self.shown(relation);
        let streaming = match self.tables.get_mut(&relation).map(|table| &mut table.entry) {
            Some(Entry::Streaming(streaming)) => Some(&mut **streaming),
            _ => None,
        };
        let taken = match made {
            Made::Data(order, made) => take_data(streaming, &order, made)?,
            Made::History(uuid, made) => take_history(streaming, uuid, made),
        };
        match taken {
            Taken::Nothing => {
                if let Some(Entry::Streaming(streaming)) = self.tables.get_mut(&relation).map(|table| &mut table.entry)
                {
                    streaming.upkeep.found_nothing();
                }
            }
            Taken::Files { files, bytes } => {
                tracing::debug!(table = shown, files, bytes, elapsed = ?begun.elapsed(), "files are rewritten");
                metrics::rewritten(files, bytes);
                self.changed.insert(relation);
                self.maintenance.waiting_since.get_or_insert_with(Instant::now);
            }
            Taken::Unwanted(paths) => self.catalog.abandon(paths),
            Taken::Failed { error, paths } => {
                tracing::warn!(table = shown, error = %error.report(), "its files could not be rewritten; tried again later");
                self.catalog.abandon(paths);
                self.maintenance.failed(relation);
                if let Some(Entry::Streaming(streaming)) = self.tables.get_mut(&relation).map(|table| &mut table.entry)
                    && streaming.upkeep.all.take().is_some()
                {
                    streaming.upkeep.failure = Some(error.report());
                }
            }
        }
        Ok(())
    }
}

impl Session {
    /// Begins to do all that can be done for these tables' files, or for those of all tables that stream. Gives the tables.
    pub(super) fn maintain_all(&mut self, relations: Vec<u32>, compact: bool, expire: bool) -> Vec<u32> {
        let wanted = |relation: &u32| relations.is_empty() || relations.contains(relation);
        let mut found = Vec::new();
        for (relation, table) in self.tables.iter_mut().filter(|(relation, _)| wanted(relation)) {
            let Entry::Streaming(streaming) = &mut table.entry else { continue };
            let upkeep = &mut streaming.upkeep;
            upkeep.failure = None;
            if compact {
                upkeep.all = Some(All { history: true });
            }
            upkeep.expire_then |= expire;
            self.maintenance.resting.remove(relation);
            self.maintenance.look_at(*relation);
            found.push(*relation);
        }
        found
    }

    /// Whether only a commit is wanting for somebody who waits for these tables' files.
    pub(super) fn maintenance_waits_for_commit(&self, relations: &[u32]) -> bool {
        relations.iter().filter_map(|relation| self.tables.get(relation)).any(|table| match &table.entry {
            Entry::Streaming(streaming) => streaming.upkeep.expire || streaming.has_rewritten(),
            Entry::Copying(_) | Entry::CatchingUp(_) | Entry::Errored { .. } => false,
        })
    }
}

/// What became of what a task made.
enum Taken {
    /// There was nothing to do.
    Nothing,
    /// So many files, of so many bytes, will be replaced.
    Files {
        files: u64,
        bytes: u64,
    },
    /// Nobody waits for these files any more.
    Unwanted(Vec<String>),
    Failed {
        error: Error,
        paths: Vec<String>,
    },
}

fn paths_of(outputs: &[Output]) -> Vec<String> {
    outputs.iter().map(|output| output.file.path.clone()).collect()
}

fn take_data(streaming: Option<&mut Streaming>, order: &Order, made: Result<Rewritten>) -> Result<Taken> {
    let waiting = streaming.filter(|streaming| streaming.table.waits_for(order));
    let Some(streaming) = waiting else {
        return Ok(Taken::Unwanted(made.map_or_else(|_| Vec::new(), |made| paths_of(&made.outputs))));
    };
    let (paths, taken) = match made {
        Ok(made) => (paths_of(&made.outputs), streaming.table.compacted(order, made)),
        Err(error) => (Vec::new(), Err(error)),
    };
    match taken {
        Ok(_) => {
            let (files, bytes) = (order.inputs.len() as u64, order.inputs.iter().map(|input| input.bytes).sum());
            Ok(Taken::Files { files, bytes })
        }
        Err(error) => {
            streaming.table.give_up_compaction()?;
            Ok(Taken::Failed { error, paths })
        }
    }
}

fn take_history(mut streaming: Option<&mut Streaming>, uuid: Uuid, made: Result<Option<RewrittenHistory>>) -> Taken {
    let Some(made) = made.transpose() else { return Taken::Nothing };
    if let Some(streaming) = &mut streaming {
        streaming.upkeep.look_at_history_again();
    }
    let made = match made {
        Ok(made) => made,
        Err(error) => return Taken::Failed { error, paths: Vec::new() },
    };
    let history = streaming.and_then(|streaming| streaming.history.as_mut());
    let Some(history) = history.filter(|history| history.lake.uuid() == uuid) else {
        return Taken::Unwanted(made.data.into_iter().map(|file| file.path).collect());
    };
    let taken = Taken::Files { files: made.removed.len() as u64, bytes: made.data.iter().map(|file| file.bytes).sum() };
    history.take_rewritten(made.removed, made.data, made.full);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_of_which_files_come_as_fast_as_they_are_rewritten_is_looked_at_again() {
        let mut upkeep = Upkeep::default();
        assert!(upkeep.history_is_due(44, 2));
        // Nothing was to be done.
        assert!(!upkeep.history_is_due(45, 2));
        assert!(upkeep.history_is_due(46, 2));
        // 46 have become one, and 46 came.
        upkeep.look_at_history_again();
        assert!(upkeep.history_is_due(47, 2));
    }
}
