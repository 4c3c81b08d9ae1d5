//! A run: entries in ascending order in a file that never changes.
//!
//! A page is some hundreds of entries and a checksum ([`page`](super::page)). In memory there is where each page begins, a
//! seventh of a byte a row at most, so a lookup reads one page. The file has no name, so it goes with the run, and with the process.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Mutex;

use super::entry::{Entry, Key};
use super::filter::Filter;
use super::page::{Layout, PAGE_BYTES, Packer, Page};

/// Pages written, and read when a run is read through, at a time: a quarter of a megabyte, of each run that is merged.
const STRETCH_PAGES: usize = 64;
/// Largest run that has a filter: of a megabyte, then. The few larger ones are those that have most rows.
const FILTERED_ENTRIES: usize = 1 << 20;

/// Entries that ascend, on disk.
#[derive(Debug)]
pub(super) struct Run {
    file: File,
    entries: usize,
    /// Where each page begins, by [`Entry::order`].
    firsts: Vec<(Key, u64)>,
    last: Key,
    /// None in a large run, see [`FILTERED_ENTRIES`], and in one that will be merged before it is asked.
    filter: Option<Filter>,
    /// The page that was looked at last: changes of one statement often lie together.
    recent: Mutex<Option<(usize, Layout, Box<Page>)>>,
}

impl Run {
    /// Writes a run into the directory. The entries must ascend.
    ///
    /// `most` is how many there are, or a few more, of a run that is to have a filter unless it is large.
    pub(super) fn write(
        directory: &Path,
        most: Option<usize>,
        entries: impl Iterator<Item = io::Result<Entry>>,
    ) -> io::Result<Self> {
        let mut writer = Writer {
            filter: most.filter(|most| *most <= FILTERED_ENTRIES).map(Filter::new),
            file: tempfile::tempfile_in(directory)?,
            written: 0,
            stretch: Vec::with_capacity(STRETCH_PAGES * PAGE_BYTES),
            page: Packer::default(),
            firsts: Vec::new(),
            entries: 0,
            last: Key(0),
        };
        for entry in entries {
            writer.push(entry?)?;
        }
        writer.finish()
    }

    pub(super) fn len(&self) -> usize {
        self.entries
    }

    /// The least key, if there is any.
    pub(super) fn first_key(&self) -> Option<Key> {
        self.firsts.first().map(|(key, _)| *key)
    }

    /// No key of either is between those of the other.
    pub(super) fn lies_apart_from(&self, other: &Self) -> bool {
        let (Some(first), Some(other_first)) = (self.first_key(), other.first_key()) else { return true };
        self.last < other_first || other.last < first
    }

    /// The first entry of the key that is not before `least`, an entry of the same key.
    pub(super) fn first(&self, least: Entry) -> io::Result<Option<Entry>> {
        if self.firsts.first().is_none_or(|first| first.0 > least.key) || self.last < least.key {
            return Ok(None);
        }
        if self.filter.as_ref().is_some_and(|filter| !filter.may_have(least.key)) {
            return Ok(None);
        }
        // In the last page that begins at or before it, or at the beginning of the next one.
        let page = self.firsts.partition_point(|first| *first <= least.order()).saturating_sub(1);
        for page in page..(page + 2).min(self.firsts.len()) {
            if let Some(found) = self.first_at_or_past(page, least)? {
                return Ok((found.key == least.key).then_some(found));
            }
        }
        Ok(None)
    }

    /// The first entry of a page that is not before `least`.
    fn first_at_or_past(&self, page: usize, least: Entry) -> io::Result<Option<Entry>> {
        let mut recent = self.recent.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (layout, bytes) = match &mut *recent {
            Some((number, layout, bytes)) if *number == page => (*layout, &**bytes),
            other => {
                let (layout, bytes) = self.read_page(page)?;
                (layout, &*other.insert((page, layout, bytes)).2)
            }
        };
        let (mut low, mut high) = (0, layout.count());
        while low < high {
            let middle = usize::midpoint(low, high);
            if layout.entry(bytes, middle).cmp_order(&least).is_lt() { low = middle + 1 } else { high = middle }
        }
        Ok((low < layout.count()).then(|| layout.entry(bytes, low)))
    }

    fn read_page(&self, page: usize) -> io::Result<(Layout, Box<Page>)> {
        let mut bytes = Box::new([0; PAGE_BYTES]);
        self.file.read_exact_at(&mut bytes[..], (page * PAGE_BYTES) as u64)?;
        Ok((Layout::of(&bytes)?, bytes))
    }

    /// All entries, from the first to the last.
    pub(super) fn iter(&self) -> Iter<'_> {
        Iter { run: self, stretch: Vec::new(), behind: 0, page: 0, layout: Layout::EMPTY, next: 0 }
    }
}

struct Writer {
    filter: Option<Filter>,
    file: File,
    written: u64,
    /// Pages that are not written.
    stretch: Vec<u8>,
    /// What will be the next of them.
    page: Packer,
    firsts: Vec<(Key, u64)>,
    entries: usize,
    last: Key,
}

impl Writer {
    fn push(&mut self, entry: Entry) -> io::Result<()> {
        if !self.page.push(entry) {
            self.close_page();
            if self.stretch.len() >= STRETCH_PAGES * PAGE_BYTES {
                self.flush()?;
            }
            self.page.push(entry);
            self.firsts.push(entry.order());
        } else if self.firsts.is_empty() {
            self.firsts.push(entry.order());
        }
        self.entries += 1;
        self.last = entry.key;
        if let Some(filter) = &mut self.filter {
            filter.add(entry.key);
        }
        Ok(())
    }

    fn close_page(&mut self) {
        let mut page = [0; PAGE_BYTES];
        self.page.pack(&mut page);
        self.stretch.extend_from_slice(&page);
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.stretch, self.written)?;
        self.written += self.stretch.len() as u64;
        self.stretch.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<Run> {
        if !self.page.is_empty() {
            self.close_page();
        }
        self.flush()?;
        let Self { filter, file, firsts, entries, last, .. } = self;
        Ok(Run { file, entries, firsts, last, filter, recent: Mutex::new(None) })
    }
}

/// Reads a run through.
pub(super) struct Iter<'a> {
    run: &'a Run,
    /// The pages that have been read, and the number of the one behind them in the run.
    stretch: Vec<Page>,
    behind: usize,
    /// The page of the stretch whose turn it is, and the next entry of it.
    page: usize,
    layout: Layout,
    next: usize,
}

impl Iter<'_> {
    /// Goes to the next page. False: there is none.
    fn turn(&mut self) -> io::Result<bool> {
        self.page += 1;
        if self.page >= self.stretch.len() {
            let pages = (self.run.firsts.len() - self.behind).min(STRETCH_PAGES);
            if pages == 0 {
                return Ok(false);
            }
            self.stretch.resize(pages, [0; PAGE_BYTES]);
            self.run.file.read_exact_at(self.stretch.as_flattened_mut(), (self.behind * PAGE_BYTES) as u64)?;
            self.behind += pages;
            self.page = 0;
        }
        self.layout = Layout::of(&self.stretch[self.page])?;
        self.next = 0;
        Ok(true)
    }
}

impl Iterator for Iter<'_> {
    type Item = io::Result<Entry>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        while self.next == self.layout.count() {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        self.next += 1;
        Some(Ok(self.layout.entry(&self.stretch[self.page], self.next - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::Position;
    use super::*;

    fn entry(key: u128, row: u32) -> Entry {
        Entry::at(Key(key), Position { file: 0, row })
    }

    fn run(entries: &[Entry]) -> Run {
        let directory = tempfile::tempdir().unwrap();
        Run::write(directory.path(), Some(entries.len()), entries.iter().map(|entry| Ok(*entry))).unwrap()
    }

    #[test]
    fn what_was_written_is_found_and_read_through() {
        // Of these entries a page has as many as its bytes divided by their width, 5 or 6; and of some numbers in between.
        for count in [0, 1, 500, 676, 677, 678, 811, 812, 813, 814, 2000, 900 * STRETCH_PAGES + 5] {
            let entries: Vec<Entry> = (0..count).map(|at| entry(at as u128 * 2 + 1, at as u32)).collect();
            let run = run(&entries);
            assert_eq!(run.len(), count);
            assert_eq!(run.iter().collect::<io::Result<Vec<_>>>().unwrap(), entries);
            for at in (0..count).step_by(7).chain(count.checked_sub(1)) {
                let key = Key(at as u128 * 2 + 1);
                let least = Entry::at(key, Position { file: 0, row: 0 });
                assert_eq!(run.first(least).unwrap(), Some(entries[at]), "{at} of {count}");
                let absent = Key(at as u128 * 2 + 2);
                let least = Entry::at(absent, Position { file: 0, row: 0 });
                assert_eq!(run.first(least).unwrap(), None);
            }
        }
    }

    #[test]
    fn equal_keys_span_pages() {
        let count = PAGE_BYTES * 3;
        let mut entries = vec![entry(1, 0)];
        entries.extend((0..count).map(|at| entry(2, at as u32)));
        entries.push(entry(3, 0));
        let run = run(&entries);
        for row in [0, 1, PAGE_BYTES as u32, count as u32 - 1] {
            let least = Entry::at(Key(2), Position { file: 0, row });
            assert_eq!(run.first(least).unwrap(), Some(entry(2, row)));
        }
        let past = Entry::at(Key(2), Position { file: 0, row: count as u32 });
        assert_eq!(run.first(past).unwrap(), None);
    }

    #[test]
    fn a_damaged_page_is_an_error() {
        // Far enough from each other for two pages and more.
        let entries: Vec<Entry> = (0..2000).map(|at| entry(at * 0x0101_0101, 0)).collect();
        let run = run(&entries);
        run.file.write_all_at(&[0xFF], PAGE_BYTES as u64 + 50).unwrap();
        assert!(run.iter().any(|entry| entry.is_err()));
        let least = Entry::at(run.firsts[1].0, Position { file: 0, row: 0 });
        assert!(run.first(least).is_err());
    }
}
