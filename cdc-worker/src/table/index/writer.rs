//! Entries on their way into the position index: gathered, sorted and written as a run.

use crate::Result;
use crate::error::{COPY_ANEW, Error, ErrorKind};

use super::super::identity::RowIdentity;
use super::entry::Entry;
use super::layer::LAYERED_ENTRIES;
use super::{Position, PositionIndex};

/// Entries that are gathered, at most: 15 MiB, which hold those of a copy's share of rows of a hundred bytes.
const BATCH_ENTRIES: usize = 640 << 10;
/// From so many on they become a run of their own.
pub(super) const RUN_ENTRIES: usize = 8 << 10;

/// Puts keys into an index and takes keys out, each at most once. Nothing is sure to be there before [`Self::finish`].
#[must_use]
pub(crate) struct IndexWriter {
    index: PositionIndex,
    entries: Vec<Entry>,
}

impl IndexWriter {
    pub(crate) fn new(index: PositionIndex) -> Self {
        Self { index, entries: Vec::new() }
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
        if self.entries.len() >= BATCH_ENTRIES {
            self.write()?;
        }
        Ok(())
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
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        let identity = self.index.table.identity;
        self.entries.sort_unstable_by(Entry::cmp_order);
        let same = |[a, b]: &[Entry; 2]| a.subject(identity) == b.subject(identity);
        if identity == RowIdentity::Key && self.entries.array_windows().any(same) {
            return Err(Error::new(ErrorKind::Table, "two rows have the same key")
                .with_hint(format!("the mirror and the source disagree: {COPY_ANEW}")));
        }
        if self.entries.len() < RUN_ENTRIES {
            self.index.remember(&self.entries)?;
        } else {
            self.index.add_run(&self.entries)?;
        }
        self.entries.clear();
        Ok(())
    }
}
