//! Entries on their way into the position index: gathered, sorted and written as a run.

use std::thread::JoinHandle;

use crate::Result;
use crate::error::{COPY_ANEW, Error, ErrorKind};

use super::super::identity::RowIdentity;
use super::entry::Entry;
use super::layer::LAYERED_ENTRIES;
use super::merge::{FAN_IN, LARGEST};
use super::{Position, PositionIndex};

/// Entries that are gathered, at most: 15 MiB, which hold those of a copy's share of rows of a hundred bytes.
pub(super) const BATCH_ENTRIES: usize = 640 << 10;
/// From so many on they become a run of their own.
pub(super) const RUN_ENTRIES: usize = 8 << 10;
/// Runs that are merged at once while a whole index is read back: together they are as large as a run gets, so that no entry is
/// written more than twice. A quarter of a megabyte is read of each at a time.
const WHOLE_FAN_IN: usize = LARGEST.div_ceil(BATCH_ENTRIES);

/// Puts keys into an index and takes keys out, each at most once. Nothing is sure to be there before [`Self::finish`].
#[must_use]
pub(crate) struct IndexWriter {
    index: PositionIndex,
    entries: Vec<Entry>,
    /// All of an index is read back: see [`Self::of_whole_table`].
    whole: bool,
    /// Where the batch before is sorted and written, if that is done beside the gathering. It gives the memory back. Of a
    /// writer that is given up it goes on until the batch is written, into an index that nobody asks any more.
    beside: Option<JoinHandle<Result<Vec<Entry>>>>,
}

impl IndexWriter {
    pub(crate) fn new(index: PositionIndex) -> Self {
        Self { index, entries: Vec::new(), whole: false, beside: None }
    }

    /// For all rows of a table, into an index that has none and is not asked before [`Self::finish`]: sorts, writes and merges in a
    /// thread of its own while more is gathered, and merges seldom.
    pub(crate) fn of_whole_table(index: PositionIndex) -> Self {
        Self { whole: true, ..Self::new(index) }
    }

    /// Adds a row under its identity.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub(crate) fn put(&mut self, identity: &[u8], position: Position) -> Result<()> {
        if self.index.table.identity == RowIdentity::AppendOnly {
            return Ok(());
        }
        let key = self.index.table.shared.secret.key(identity);
        self.push(Entry::at(key, position))
    }

    /// Takes a row of a table without a key out, which is not under this identity at this position any more.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub(crate) fn vacate(&mut self, identity: &[u8], position: Position) -> Result<()> {
        let key = self.index.table.shared.secret.key(identity);
        self.push(Entry::gone(key, Some(position)))
    }

    /// Takes a key out.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub(crate) fn remove(&mut self, key: &[u8]) -> Result<()> {
        let key = self.index.table.shared.secret.key(key);
        self.push(Entry::gone(key, None))
    }

    fn push(&mut self, entry: Entry) -> Result<()> {
        if self.entries.len() == self.entries.capacity() {
            // Doubled, but no further than it will be filled.
            let more = self.entries.len().clamp(1024, BATCH_ENTRIES - self.entries.len());
            self.entries.reserve_exact(more);
        }
        self.entries.push(entry);
        if self.entries.len() < BATCH_ENTRIES {
            Ok(())
        } else if self.whole {
            self.write_beside()
        } else {
            self.write()
        }
    }

    /// A stretch of keys ends: what has been gathered lies apart from what comes, perhaps, and becomes a run then.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub(crate) fn end_stretch(&mut self) -> Result<()> {
        if self.entries.len() >= LAYERED_ENTRIES { self.write() } else { Ok(()) }
    }

    /// Writes what has been gathered.
    ///
    /// # Errors
    /// [`ErrorKind::Index`]; [`ErrorKind::Table`] when two rows have the same key.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.wait()?;
        self.write()?;
        if self.whole { self.index.settle() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        enter(&self.index, &mut self.entries, FAN_IN)
    }

    fn write_beside(&mut self) -> Result<()> {
        let empty = self.wait()?;
        let mut entries = std::mem::replace(&mut self.entries, empty);
        let index = self.index.clone();
        let thread = std::thread::Builder::new().name("position index".to_owned()).spawn(move || {
            enter(&index, &mut entries, WHOLE_FAN_IN)?;
            Ok(entries)
        });
        let failed = |error| Error::new(ErrorKind::Index, "start a thread for the position index").with_source(error);
        self.beside = Some(thread.map_err(failed)?);
        Ok(())
    }

    /// Waits until the batch before is written. Gives its memory.
    fn wait(&mut self) -> Result<Vec<Entry>> {
        match self.beside.take().map(JoinHandle::join) {
            Some(Ok(written)) => written,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(Vec::new()),
        }
    }
}

/// Sorts a batch and enters it into the index.
fn enter(index: &PositionIndex, entries: &mut Vec<Entry>, fan_in: usize) -> Result<()> {
    let identity = index.table.identity;
    entries.sort_unstable_by(Entry::cmp_order);
    let same = |[a, b]: &[Entry; 2]| a.subject(identity) == b.subject(identity);
    if identity == RowIdentity::Key && entries.array_windows().any(same) {
        return Err(Error::new(ErrorKind::Table, "two rows have the same key")
            .with_hint(format!("the mirror and the source disagree: {COPY_ANEW}")));
    }
    if entries.len() < RUN_ENTRIES {
        index.remember(entries)?;
    } else {
        index.add_run(entries, fan_in)?;
    }
    entries.clear();
    Ok(())
}
