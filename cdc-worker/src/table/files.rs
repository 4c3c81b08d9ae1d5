//! A table's data files by number: what the position index calls them.
//!
//! A number is never used again, so that what the index says of a file that is gone cannot be taken for another's.

use std::collections::BTreeMap;
use std::sync::Arc;

use iceberg_writer::{LiveFile, Partition, WrittenFile};
use roaring::RoaringTreemap;

use crate::Result;
use crate::error::{Error, ErrorKind};

use super::pruning::{FilesBounds, Pruning, Range, ranges};
use super::tiers::Candidate;

/// The index has 31 bits for a file's number: seven years of ten files a second, in one session.
const MOST_NUMBERS: u32 = 1 << 31;

/// A live data file and its deleted rows, pending ones included.
#[derive(Debug, Clone)]
pub(crate) struct FileState {
    pub(crate) path: Arc<str>,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) deleted: Arc<RoaringTreemap>,
    /// It was closed because it had reached the size that files are to have.
    pub(crate) full: bool,
    pub(crate) partition: Partition,
    /// Its rows are in the table's order, if that has one.
    pub(crate) is_sorted: bool,
    /// Between which values its columns are.
    pub(crate) ranges: Arc<[Range]>,
}

impl FileState {
    pub(crate) fn new(file: LiveFile) -> Self {
        let LiveFile { path, rows, bytes, deleted, partition, is_sorted, bounds } = file;
        let (path, deleted, ranges) = (path.into(), Arc::new(deleted), ranges(&bounds));
        Self { path, rows, bytes, deleted, full: false, partition, is_sorted, ranges }
    }

    pub(crate) fn written(file: &WrittenFile) -> Self {
        Self {
            path: file.path.as_str().into(),
            rows: file.rows,
            bytes: file.bytes,
            deleted: Arc::default(),
            full: false,
            partition: file.partition.clone(),
            is_sorted: file.is_sorted(),
            ranges: ranges(&file.bounds()),
        }
    }
}

impl FileState {
    /// As [`choose`](super::tiers::choose) needs to know it.
    pub(super) fn candidate(&self) -> Candidate {
        Candidate { bytes: self.bytes, rows: self.rows, deleted: self.deleted.len(), full: self.full }
    }
}

/// Data files, in the order of their numbers.
#[derive(Debug, Clone, Default)]
pub(super) struct DataFiles {
    files: BTreeMap<u32, FileState>,
    next: u32,
    bounds: FilesBounds,
}

impl DataFiles {
    /// These files, numbered from 0.
    pub(super) fn new(files: Vec<FileState>) -> Self {
        let mut numbered = Self::default();
        for file in files {
            numbered.push(file);
        }
        numbered
    }

    /// Sets numbers aside, of which it gives the first.
    ///
    /// # Errors
    /// [`ErrorKind::Index`] when there are no more.
    pub(super) fn reserve(&mut self, count: u32) -> Result<u32> {
        let first = self.next;
        let next = first.checked_add(count).filter(|next| *next <= MOST_NUMBERS);
        self.next = next.ok_or_else(|| {
            Error::new(ErrorKind::Index, "a table has had too many files").with_hint("restart the worker")
        })?;
        Ok(first)
    }

    /// Adds a file under the next number, which is below the limit when [`Self::reserve`] is asked now and then.
    pub(super) fn push(&mut self, file: FileState) {
        self.bounds.push(self.next, &file);
        self.files.insert(self.next, file);
        self.next = self.next.saturating_add(1);
    }

    /// Adds a file under a number that was set aside for it.
    pub(super) fn insert(&mut self, number: u32, file: FileState) {
        self.bounds.forget();
        self.files.insert(number, file);
    }

    pub(super) fn remove(&mut self, number: u32) {
        self.bounds.forget();
        self.files.remove(&number);
    }

    pub(super) fn get(&self, number: u32) -> Option<&FileState> {
        self.files.get(&number)
    }

    /// To mark rows as deleted, or the like: what values a file has never changes.
    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut FileState> {
        self.files.get_mut(&number)
    }

    /// None is sorted: the table's order is another one now.
    pub(super) fn forget_order(&mut self) {
        self.files.values_mut().for_each(|file| file.is_sorted = false);
    }

    pub(super) fn clear(&mut self) {
        self.bounds.forget();
        self.files.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &FileState)> {
        self.files.iter().map(|(number, file)| (*number, file))
    }

    /// The numbers of those of the first `count` files that may have rows which count.
    pub(super) fn that_may_hold(&mut self, pruning: &Pruning<'_>, count: usize) -> Vec<u32> {
        let mut numbers = self.bounds.that_may_hold(&self.files, pruning);
        if count < self.files.len() {
            let behind = self.files.keys().nth(count).copied();
            numbers.retain(|number| behind.is_none_or(|behind| *number < behind));
        }
        numbers
    }
}
