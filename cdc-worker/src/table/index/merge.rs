//! Several runs into one: the newest word on each row stays.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::io;

use super::super::identity::RowIdentity;
use super::entry::{Entry, Key};
use super::run::{Iter, Run};

/// Layers of runs that are worth merging, when each is no larger than the newer ones together. More make lookups slow, fewer make
/// merges frequent.
pub(super) const FAN_IN: usize = 4;
/// A run of so many entries (384 MiB at most) is merged no more: that would take seconds, in which nothing else happens.
pub(super) const LARGEST: usize = 16 << 20;

/// How many of the newest layers should become one run now, by their sizes from the oldest to the newest, if there are
/// `fan_in` to be merged.
pub(super) fn due(sizes: &[usize], fan_in: usize) -> usize {
    let (mut count, mut together) = (0, 0);
    for size in sizes.iter().rev() {
        if *size >= LARGEST || count > 0 && *size > together {
            break;
        }
        count += 1;
        together += size;
    }
    if count >= fan_in { count } else { 0 }
}

/// How many of the newest layers may become one run: those that are not too large, if there is more than one.
pub(super) fn mergeable(sizes: &[usize]) -> usize {
    let count = sizes.iter().rev().take_while(|size| **size < LARGEST).count();
    if count > 1 { count } else { 0 }
}

/// Merges layers, given from the oldest to the newest, each of them as its runs in the order of their keys.
pub(super) struct Merge<'a> {
    identity: RowIdentity,
    /// Nothing older lies beneath: that a row is gone need not be remembered.
    whole: bool,
    sources: Vec<Source<'a>>,
    /// The next entry of each source.
    next: BinaryHeap<Ahead>,
    failed: Option<io::Error>,
}

/// A layer that is read through.
type Source<'a> = std::iter::FlatMap<std::vec::IntoIter<&'a Run>, Iter<'a>, fn(&'a Run) -> Iter<'a>>;

/// An entry that has been read.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    subject: (Key, u64),
    source: usize,
    entry: Entry,
}

/// The greatest is the one whose turn it is: the least subject, and of equal ones the newest.
impl Ord for Ahead {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        // Keys are compared first, and as numbers: a merge of many runs does little else.
        let (key, other_key) = (self.subject.0.0, other.subject.0.0);
        if key != other_key {
            return if key < other_key { Ordering::Greater } else { Ordering::Less };
        }
        other.subject.1.cmp(&self.subject.1).then(self.source.cmp(&other.source))
    }
}

impl PartialOrd for Ahead {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ahead {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ahead {}

impl<'a> Merge<'a> {
    pub(super) fn new(identity: RowIdentity, whole: bool, layers: Vec<Vec<&'a Run>>) -> Self {
        let read: fn(&'a Run) -> Iter<'a> = Run::iter;
        let sources: Vec<Source<'a>> = layers.into_iter().map(|runs| runs.into_iter().flat_map(read)).collect();
        let count = sources.len();
        let mut merge = Self { identity, whole, sources, next: BinaryHeap::new(), failed: None };
        for source in 0..count {
            match merge.sources[source].next() {
                Some(Ok(entry)) => merge.next.push(Ahead { subject: entry.subject(identity), source, entry }),
                Some(Err(error)) => merge.failed = Some(error),
                None => {}
            }
        }
        merge
    }

    /// Takes the entry whose turn it is. The next one of its source takes its place, and mostly is the next in turn: runs
    /// of a copy hardly overlap.
    fn take(&mut self) -> Option<Ahead> {
        let mut top = self.next.peek_mut()?;
        let taken = *top;
        match self.sources[taken.source].next() {
            Some(Ok(entry)) => *top = Ahead { subject: entry.subject(self.identity), source: taken.source, entry },
            Some(Err(error)) => self.failed = Some(error),
            None => drop(PeekMut::pop(top)),
        }
        Some(taken)
    }
}

impl Iterator for Merge<'_> {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(error) = self.failed.take() {
                return Some(Err(error));
            }
            let Ahead { subject, entry, .. } = self.take()?;
            // What older runs say of the same row is hidden.
            while self.failed.is_none() && self.next.peek().is_some_and(|older| older.subject == subject) {
                self.take();
            }
            if !self.whole || entry.position().is_some() {
                return Some(Ok(entry));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However runs come, there are few of them, and no entry is written again too often.
        #[test]
        fn runs_stay_few_and_are_merged_seldom(sizes in proptest::collection::vec(1usize..1000, 1..400)) {
            let total: usize = sizes.iter().sum();
            let (mut runs, mut written): (Vec<usize>, usize) = (Vec::new(), 0);
            for size in sizes {
                runs.push(size);
                loop {
                    let count = due(&runs, FAN_IN);
                    if count == 0 {
                        break;
                    }
                    let merged: usize = runs.drain(runs.len() - count..).sum();
                    written += merged;
                    runs.push(merged);
                }
                prop_assert!(runs.len() <= 30, "{runs:?}");
            }
            prop_assert!(written <= total * 12, "{written} of {total}");
        }
    }

    #[test]
    fn the_largest_runs_are_left_alone() {
        assert_eq!(due(&[LARGEST; 10], FAN_IN), 0);
        assert_eq!(due(&[LARGEST, 5, 5, 5, 5], FAN_IN), 4);
        assert_eq!(due(&[100, 5, 5, 5], FAN_IN), 0);
        assert_eq!(due(&[], FAN_IN), 0);
        assert_eq!(mergeable(&[5, LARGEST, 100, 3, 7]), 3);
        assert_eq!(mergeable(&[5, LARGEST, 100]), 0);
        assert_eq!(mergeable(&[LARGEST]), 0);
    }
}
