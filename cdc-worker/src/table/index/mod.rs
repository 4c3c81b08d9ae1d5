//! The position index: key → (data file, row), on local disk.
//!
//! Sorted runs of 24 bytes a row at most, the newest of which hides what older ones say ([`run`]), merged as they become many unless
//! their keys lie apart ([`merge`], [`layer`]), and in memory the few entries that are not worth a run yet. Of a table without a key the index holds each row under a hash of all of
//! it and its position, so that equal rows have an entry each. Bounded in memory: where each page begins, a seventh of
//! a byte a row at most, a filter of ten bits a row for runs that are not large, and [`RECENT_ENTRIES`] for all tables together.
//!
//! A cache in every sense: its files have no names, so that they are gone with the process. The index is read back from
//! the key columns of the data files at start, so no crash can leave it different from them, and losing it loses nothing.

mod entry;
mod filter;
mod layer;
mod merge;
mod moving;
mod page;
mod run;
mod writer;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Result;
use crate::error::{Error, ErrorKind};

use super::identity::RowIdentity;
use entry::{Entry, Key, Secret, failed};
use merge::Merge;
use run::Run;

pub(crate) use entry::Position;
pub(crate) use writer::IndexWriter;

/// Entries in memory, of all tables together: some 32 MiB.
const RECENT_ENTRIES: usize = 256 << 10;
/// Of one table. Merging them costs less than their share of lookups in many small runs would.
const RECENT_OF_A_TABLE: usize = 32 << 10;

/// The indexes of all tables of a mirror.
pub(crate) struct IndexStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    secret: Secret,
    /// Entries in memory.
    recent: AtomicUsize,
}

impl IndexStore {
    /// An empty store in the directory, where what earlier versions left is removed.
    pub(crate) fn create(directory: &Path) -> Result<Self> {
        let io = |error: std::io::Error| {
            Error::new(ErrorKind::Index, format!("prepare the state directory {}", directory.display()))
                .with_hint("the directory must be writable by the worker")
                .with_source(error)
        };
        if directory.exists() {
            std::fs::remove_dir_all(directory).map_err(io)?;
        }
        std::fs::create_dir_all(directory).map_err(io)?;
        let shared = Shared { directory: directory.to_owned(), secret: Secret::draw(), recent: AtomicUsize::new(0) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// An empty index for a table whose rows are told apart in this way.
    pub(crate) fn table(&self, identity: RowIdentity) -> PositionIndex {
        PositionIndex::empty(identity, &self.shared, None)
    }
}

/// The index of one table. Clones share it; with the last of them it is gone.
#[derive(Debug, Clone)]
pub(crate) struct PositionIndex {
    table: Arc<Table>,
}

#[derive(Debug)]
struct Table {
    identity: RowIdentity,
    shared: Arc<Shared>,
    content: Mutex<Content>,
}

#[derive(Debug)]
struct Content {
    /// From the oldest to the newest.
    runs: Vec<Arc<Run>>,
    /// Newer than all runs, by [`Entry::subject`].
    recent: BTreeMap<(Key, u64), Entry>,
    /// While rows are on the move: so many of the oldest runs are from before, and stay as they are. See [`moving`].
    floor: Option<usize>,
}

impl Drop for Table {
    fn drop(&mut self) {
        let content = self.content.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.shared.recent.fetch_sub(content.recent.len(), Ordering::Relaxed);
    }
}

impl PositionIndex {
    fn empty(identity: RowIdentity, shared: &Arc<Shared>, floor: Option<usize>) -> Self {
        let content = Mutex::new(Content { runs: Vec::new(), recent: BTreeMap::new(), floor });
        Self { table: Arc::new(Table { identity, shared: Arc::clone(shared), content }) }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.table.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the row with this key is.
    ///
    /// # Errors
    /// [`ErrorKind::Index`] when a file cannot be read, or is damaged.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Position>> {
        let key = self.table.shared.secret.key(key);
        let content = self.content();
        let least = Entry::gone(key, None);
        if let Some(entry) = content.recent.get(&least.subject(RowIdentity::Key)) {
            return Ok(entry.position());
        }
        for run in content.runs.iter().rev() {
            if let Some(entry) = run.first(least).map_err(failed)? {
                return Ok(entry.position());
            }
        }
        Ok(None)
    }

    /// The first row of this identity after a position, in a table without a key.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn next_equal(&self, identity: &[u8], after: Option<Position>) -> Result<Option<Position>> {
        let key = self.table.shared.secret.key(identity);
        let content = self.content();
        let mut least = after.map_or_else(|| Some(Entry::gone(key, None)), |after| Entry::behind(key, after));
        while let Some(from) = least {
            // Of what the sources say of the first such position, the newest counts.
            let mut first = content.recent.range(from.order()..).next().map(|(_, entry)| *entry);
            first = first.filter(|entry| entry.key == key);
            for run in content.runs.iter().rev() {
                if let Some(entry) = run.first(from).map_err(failed)?
                    && first.is_none_or(|first| entry.order() < first.order())
                {
                    first = Some(entry);
                }
            }
            let Some(first) = first else { return Ok(None) };
            if let Some(position) = first.position() {
                return Ok(Some(position));
            }
            least = Entry::behind(key, first.about());
        }
        Ok(None)
    }

    /// Removes a row of a table without a key.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn remove_equal(&self, identity: &[u8], position: Position) -> Result<()> {
        let key = self.table.shared.secret.key(identity);
        self.remember(&[Entry::gone(key, Some(position))])
    }

    /// Keeps a few entries in memory.
    fn remember(&self, entries: &[Entry]) -> Result<()> {
        let mut content = self.content();
        let before = content.recent.len();
        content.recent.extend(entries.iter().map(|entry| (entry.subject(self.table.identity), *entry)));
        let more = content.recent.len() - before;
        let all = self.table.shared.recent.fetch_add(more, Ordering::Relaxed) + more;
        if content.recent.len() >= RECENT_OF_A_TABLE || all >= RECENT_ENTRIES {
            self.write_recent(&mut content)?;
        }
        Ok(())
    }

    fn write_recent(&self, content: &mut Content) -> Result<()> {
        let recent = std::mem::take(&mut content.recent);
        self.table.shared.recent.fetch_sub(recent.len(), Ordering::Relaxed);
        let directory = &self.table.shared.directory;
        let run = Run::write(directory, Some(recent.len()), recent.into_values().map(Ok)).map_err(failed)?;
        content.runs.push(Arc::new(run));
        self.merge(content, merge::FAN_IN)
    }

    /// Adds many entries, which must ascend and be of different rows. Runs are merged when there are so many layers; when they
    /// are let be for longer than usual, the index is not asked meanwhile, and a filter would be for nothing.
    fn add_run(&self, entries: &[Entry], fan_in: usize) -> Result<()> {
        let directory = &self.table.shared.directory;
        let filtered = (fan_in == merge::FAN_IN).then_some(entries.len());
        let run = Run::write(directory, filtered, entries.iter().map(|entry| Ok(*entry))).map_err(failed)?;
        let mut content = self.content();
        // What is in memory is older than the run, and must not hide it.
        if !content.recent.is_empty() {
            self.write_recent(&mut content)?;
        }
        content.runs.push(Arc::new(run));
        self.merge(&mut content, fan_in)
    }

    fn merge(&self, content: &mut Content, fan_in: usize) -> Result<()> {
        while self.merge_newest(content, |sizes| merge::due(sizes, fan_in))? {}
        Ok(())
    }

    /// Merges all that is not too large for it, after many runs in a row that were let be.
    fn settle(&self) -> Result<()> {
        self.merge_newest(&mut self.content(), merge::mergeable).map(drop)
    }

    /// Merges as many of the newest layers as `count` says of their sizes. False: it says none.
    fn merge_newest(&self, content: &mut Content, count: impl Fn(&[usize]) -> usize) -> Result<bool> {
        let floor = content.floor.unwrap_or(0);
        let runs = &content.runs[floor..];
        let layers = layer::layers(runs);
        let size = |layer: &Range<usize>| runs[layer.clone()].iter().map(|run| run.len()).sum::<usize>();
        let sizes: Vec<usize> = layers.iter().map(size).collect();
        let due = layers.len() - count(&sizes);
        let Some(oldest) = layers.get(due).map(|layer| layer.start) else { return Ok(false) };
        let sources = layers[due..].iter().map(|layer| layer::ascending(&runs[layer.clone()])).collect();
        let merged = Merge::new(self.table.identity, oldest == 0 && content.floor.is_none(), sources);
        let most = sizes[due..].iter().sum();
        let merged = Run::write(&self.table.shared.directory, Some(most), merged).map_err(failed)?;
        content.runs.truncate(floor + oldest);
        content.runs.push(Arc::new(merged));
        Ok(true)
    }

    /// Forgets all rows.
    pub(crate) fn clear(&self) {
        let mut content = self.content();
        self.table.shared.recent.fetch_sub(content.recent.len(), Ordering::Relaxed);
        content.recent.clear();
        content.runs.clear();
        content.floor = None;
    }
}

#[cfg(test)]
mod tests;
