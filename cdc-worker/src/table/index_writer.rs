//! Entries on their way into the position index: gathered, sorted and written as a run.
//!
//! A store of sorted runs takes a sorted run for a fifth of what the same entries cost one by one: no journal, no write
//! buffer, and of keys that ascend anyway no compaction either.

use crate::Result;
use crate::error::{COPY_ANEW, Error, ErrorKind};

use super::identity::RowIdentity;
use super::index::{Position, PositionIndex, equal_key};

/// Bytes that are gathered: some hundred thousand short keys.
const BATCH_BYTES: usize = 16 << 20;
/// From so many entries on they become a run of its own, which costs some fsyncs.
const RUN_ENTRIES: usize = 10_000;

/// Where an entry's bytes are.
#[derive(Debug, Clone, Copy)]
struct Slot {
    begin: u32,
    key: u16,
    /// `None`: the key is taken out.
    value: Option<u32>,
}

/// Puts keys into an index and takes keys out, each at most once. Nothing is sure to be there before [`Self::finish`].
#[must_use]
pub(crate) struct IndexWriter {
    index: PositionIndex,
    /// Keys and values, one after the other.
    arena: Vec<u8>,
    slots: Vec<Slot>,
}

impl IndexWriter {
    pub(crate) fn new(index: PositionIndex) -> Self {
        Self { index, arena: Vec::new(), slots: Vec::new() }
    }

    /// Adds a row under its identity.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub(crate) fn put(&mut self, identity: RowIdentity, bytes: &[u8], position: Position) -> Result<()> {
        match identity {
            RowIdentity::Key => self.push(bytes, Some(&position.pack())),
            RowIdentity::FullRow => self.push(&equal_key(bytes, position), Some(bytes)),
            RowIdentity::AppendOnly => Ok(()),
        }
    }

    /// Takes a key out.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub(crate) fn remove(&mut self, key: &[u8]) -> Result<()> {
        self.push(key, None)
    }

    fn push(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        let sizes = u32::try_from(self.arena.len()).ok().zip(u16::try_from(key.len()).ok());
        let value_size = value.map(|value| u32::try_from(value.len())).transpose();
        let (Some((begin, length)), Ok(value_size)) = (sizes, value_size) else {
            return Err(Error::new(ErrorKind::Index, "a row is too large for the position index"));
        };
        self.arena.extend_from_slice(key);
        self.arena.extend_from_slice(value.unwrap_or_default());
        self.slots.push(Slot { begin, key: length, value: value_size });
        if self.arena.len() + self.slots.len() * size_of::<Slot>() >= BATCH_BYTES {
            self.write()?;
        }
        Ok(())
    }

    /// Writes what has been gathered.
    ///
    /// # Errors
    /// [`ErrorKind::Index`]; [`ErrorKind::Table`] when two rows have the same key.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        let arena = self.arena.as_slice();
        self.slots.sort_unstable_by(|a, b| key_of(arena, *a).cmp(key_of(arena, *b)));
        // The store would panic on them, or take the last one.
        if self.slots.array_windows().any(|[a, b]| key_of(arena, *a) == key_of(arena, *b)) {
            return Err(Error::new(ErrorKind::Table, "two rows have the same key")
                .with_hint(format!("the mirror and the source disagree: {COPY_ANEW}")));
        }
        let entries = self.slots.iter().map(|slot| {
            let begin = slot.begin as usize + usize::from(slot.key);
            (key_of(arena, *slot), slot.value.map(|length| &arena[begin..begin + length as usize]))
        });
        if self.slots.len() < RUN_ENTRIES {
            for (key, value) in entries {
                self.index.change(key, value)?;
            }
        } else {
            self.index.add_run(entries)?;
        }
        self.arena.clear();
        self.slots.clear();
        Ok(())
    }
}

fn key_of(arena: &[u8], slot: Slot) -> &[u8] {
    let begin = slot.begin as usize;
    &arena[begin..begin + usize::from(slot.key)]
}

#[cfg(test)]
mod tests {
    use super::super::index::IndexStore;
    use super::*;

    #[test]
    fn large_and_small_batches_hide_what_was_written_before_them() {
        let directory = tempfile::tempdir().unwrap();
        let store = IndexStore::create(&directory.path().join("index"), 1).unwrap();
        let index = store.table(1, 0).unwrap();
        let many = u32::try_from(RUN_ENTRIES).unwrap();
        // Of every round the keys in a scattered order; a third is taken out again.
        for (round, count) in [(1, many), (2, 100), (3, many + 5), (4, 7), (5, many)] {
            let mut writer = IndexWriter::new(index.clone());
            for at in 0..count {
                let row = (at * 7919) % count;
                let key = row.to_be_bytes();
                if row % 3 == round % 3 {
                    writer.remove(&key).unwrap();
                } else {
                    writer.put(RowIdentity::Key, &key, Position { file: round, row }).unwrap();
                }
            }
            writer.finish().unwrap();
            for row in 0..count {
                let expected = (row % 3 != round % 3).then_some(Position { file: round, row });
                assert_eq!(index.get(&row.to_be_bytes()).unwrap(), expected, "row {row} after round {round}");
            }
        }
    }

    #[test]
    fn a_key_twice_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let store = IndexStore::create(&directory.path().join("index"), 1).unwrap();
        for entries in [2, RUN_ENTRIES] {
            let mut writer = IndexWriter::new(store.table(1, 0).unwrap());
            for row in 0..u32::try_from(entries).unwrap() {
                writer.put(RowIdentity::Key, &(row / 2).to_be_bytes(), Position { file: 0, row }).unwrap();
            }
            assert_eq!(writer.finish().unwrap_err().kind(), ErrorKind::Table);
        }
    }
}
