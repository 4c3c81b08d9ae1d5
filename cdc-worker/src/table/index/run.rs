//! A run: entries in ascending order in a file that never changes.
//!
//! A page is 170 entries and a checksum. In memory there is where each page begins, a fifth of a byte a row, so a
//! lookup reads one page. The file has no name, so it goes with the run, and with the process.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Mutex;

use super::entry::{ENTRY_BYTES, Entry, Key};
use super::filter::Filter;

const PAGE_BYTES: usize = 4096;
/// Entries of a page; the last bytes hold its checksum.
pub(super) const PAGE_ENTRIES: usize = (PAGE_BYTES - CHECKSUM_BYTES) / ENTRY_BYTES;
const CHECKSUM_BYTES: usize = 4;
/// Pages written, and read when a run is read through, at a time.
const STRETCH_PAGES: usize = 256;
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
    /// None in a large run, see [`FILTERED_ENTRIES`].
    filter: Option<Filter>,
    /// The page that was looked at last: changes of one statement often lie together.
    recent: Mutex<Option<(usize, Box<Page>)>>,
}

type Page = [u8; PAGE_BYTES];

impl Run {
    /// Writes a run into the directory. The entries must ascend.
    ///
    /// `most` is how many there are, or a few more.
    pub(super) fn write(
        directory: &Path,
        most: usize,
        entries: impl Iterator<Item = io::Result<Entry>>,
    ) -> io::Result<Self> {
        let mut writer = Writer {
            filter: (most <= FILTERED_ENTRIES).then(|| Filter::new(most)),
            file: tempfile::tempfile_in(directory)?,
            written: 0,
            stretch: Vec::with_capacity(STRETCH_PAGES * PAGE_BYTES),
            in_page: 0,
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
        let bytes = match &mut *recent {
            Some((number, bytes)) if *number == page => &**bytes,
            other => &*other.insert((page, self.read_page(page)?)).1,
        };
        let count = (self.entries - page * PAGE_ENTRIES).min(PAGE_ENTRIES);
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = usize::midpoint(low, high);
            if entry_of(bytes, middle).cmp_order(&least).is_lt() { low = middle + 1 } else { high = middle }
        }
        Ok((low < count).then(|| entry_of(bytes, low)))
    }

    fn read_page(&self, page: usize) -> io::Result<Box<Page>> {
        let mut bytes = Box::new([0; PAGE_BYTES]);
        self.file.read_exact_at(&mut bytes[..], (page * PAGE_BYTES) as u64)?;
        check(&bytes[..])?;
        Ok(bytes)
    }

    /// All entries, from the first to the last.
    pub(super) fn iter(&self) -> Iter<'_> {
        Iter { run: self, stretch: Vec::new(), first_page: 0, next: 0 }
    }
}

fn entry_of(page: &[u8], at: usize) -> Entry {
    let mut bytes = [0; ENTRY_BYTES];
    bytes.copy_from_slice(&page[at * ENTRY_BYTES..(at + 1) * ENTRY_BYTES]);
    Entry::from_bytes(&bytes)
}

fn check(page: &[u8]) -> io::Result<()> {
    let (body, sum) = page.split_at(PAGE_BYTES - CHECKSUM_BYTES);
    if sum == crc32fast::hash(body).to_be_bytes() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a page of the position index has a wrong checksum"))
}

struct Writer {
    filter: Option<Filter>,
    file: File,
    written: u64,
    /// Pages that are not written, the last of them perhaps not full, with room for all of it.
    stretch: Vec<u8>,
    /// Entries of the last page, as long as it is not full.
    in_page: usize,
    firsts: Vec<(Key, u64)>,
    entries: usize,
    last: Key,
}

impl Writer {
    fn push(&mut self, entry: Entry) -> io::Result<()> {
        if self.in_page == 0 {
            self.firsts.push(entry.order());
            self.stretch.resize(self.stretch.len() + PAGE_BYTES, 0);
        }
        let page = self.stretch.len() - PAGE_BYTES;
        let at = page + self.in_page * ENTRY_BYTES;
        self.stretch[at..at + ENTRY_BYTES].copy_from_slice(&entry.to_bytes());
        self.in_page += 1;
        self.entries += 1;
        self.last = entry.key;
        if let Some(filter) = &mut self.filter {
            filter.add(entry.key);
        }
        if self.in_page == PAGE_ENTRIES {
            self.close_page();
            if self.stretch.len() >= STRETCH_PAGES * PAGE_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Signs the last page.
    fn close_page(&mut self) {
        let begin = self.stretch.len() - PAGE_BYTES;
        let (body, sum) = self.stretch[begin..].split_at_mut(PAGE_BYTES - CHECKSUM_BYTES);
        sum.copy_from_slice(&crc32fast::hash(body).to_be_bytes());
        self.in_page = 0;
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.stretch, self.written)?;
        self.written += self.stretch.len() as u64;
        self.stretch.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<Run> {
        if self.in_page > 0 {
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
    stretch: Vec<u8>,
    first_page: usize,
    next: usize,
}

impl Iter<'_> {
    fn read_stretch(&mut self, page: usize) -> io::Result<()> {
        let pages = (self.run.firsts.len() - page).min(STRETCH_PAGES);
        self.stretch.resize(pages * PAGE_BYTES, 0);
        self.run.file.read_exact_at(&mut self.stretch, (page * PAGE_BYTES) as u64)?;
        self.stretch.chunks_exact(PAGE_BYTES).try_for_each(check)?;
        self.first_page = page;
        Ok(())
    }
}

impl Iterator for Iter<'_> {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.run.entries {
            return None;
        }
        let (page, at) = (self.next / PAGE_ENTRIES, self.next % PAGE_ENTRIES);
        let read = self.stretch.len() / PAGE_BYTES;
        if page >= self.first_page + read
            && let Err(error) = self.read_stretch(page)
        {
            return Some(Err(error));
        }
        let begin = (page - self.first_page) * PAGE_BYTES;
        self.next += 1;
        Some(Ok(entry_of(&self.stretch[begin..begin + PAGE_BYTES], at)))
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
        Run::write(directory.path(), entries.len(), entries.iter().map(|entry| Ok(*entry))).unwrap()
    }

    #[test]
    fn what_was_written_is_found_and_read_through() {
        for count in [0, 1, PAGE_ENTRIES - 1, PAGE_ENTRIES, PAGE_ENTRIES + 1, PAGE_ENTRIES * (STRETCH_PAGES + 1) + 5] {
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
        let count = PAGE_ENTRIES * 3;
        let mut entries = vec![entry(1, 0)];
        entries.extend((0..count).map(|at| entry(2, at as u32)));
        entries.push(entry(3, 0));
        let run = run(&entries);
        for row in [0, 1, PAGE_ENTRIES as u32, count as u32 - 1] {
            let least = Entry::at(Key(2), Position { file: 0, row });
            assert_eq!(run.first(least).unwrap(), Some(entry(2, row)));
        }
        let past = Entry::at(Key(2), Position { file: 0, row: count as u32 });
        assert_eq!(run.first(past).unwrap(), None);
    }

    #[test]
    fn a_damaged_page_is_an_error() {
        let entries: Vec<Entry> = (0..300).map(|at| entry(at, 0)).collect();
        let run = run(&entries);
        run.file.write_all_at(&[0xFF], PAGE_BYTES as u64 + 50).unwrap();
        assert!(run.iter().any(|entry| entry.is_err()));
        let least = Entry::at(Key(200), Position { file: 0, row: 0 });
        assert!(run.first(least).is_err());
    }
}
