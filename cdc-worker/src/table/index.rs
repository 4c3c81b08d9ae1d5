//! The position index: key → (data file, row), on local disk.
//!
//! Exact, since it stores whole keys, not hashes. Of a table without a key it stores whole rows, under a hash and the
//! position: keys in the store are short, rows need not be, and equal rows need an entry each. A lookup compares the
//! row itself, so a collision of hashes costs a step and nothing else. The price is disk, about the size of the table.
//! Bounded in memory by the store's cache and write buffers. A cache in every other sense: the directory is emptied at
//! start and the index read back from the key columns of the data files, so no crash can leave it different from them,
//! and losing it loses nothing.

use std::hash::{DefaultHasher, Hasher as _};
use std::ops::Bound;
use std::path::Path;

use crate::Result;
use crate::error::{Error, ErrorKind};

/// Cache of blocks, shared by the tables of a mirror.
const CACHE_BYTES: u64 = 64 << 20;
/// Write buffer of one table.
const WRITE_BUFFER_BYTES: u64 = 16 << 20;
/// One to compact, and one that the store then keeps for sealing and flushing write buffers: alone, a thread in a long
/// compaction lets the write buffer grow without bound (measured: 2 GiB for 20 million keys in one go).
const WORKER_THREADS: usize = 2;

/// Where a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// Index into the table's list of files.
    pub(crate) file: u32,
    /// Row number in the file. Files are rolled long before 2³² rows.
    pub(crate) row: u32,
}

impl Position {
    pub(super) fn pack(self) -> [u8; 8] {
        ((u64::from(self.file) << 32) | u64::from(self.row)).to_be_bytes()
    }

    fn unpack(bytes: [u8; 8]) -> Self {
        let packed = u64::from_be_bytes(bytes);
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of the packed position")]
        Self { file: (packed >> 32) as u32, row: packed as u32 }
    }
}

/// The same for equal bytes within a process, which is as long as an index lives.
fn hash(identity: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(identity);
    hasher.finish()
}

/// The key of one of several rows that may be equal.
pub(super) fn equal_key(identity: &[u8], position: Position) -> [u8; 16] {
    hashed_key(hash(identity), position)
}

fn hashed_key(hash: u64, position: Position) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&hash.to_be_bytes());
    key[8..].copy_from_slice(&position.pack());
    key
}

/// The indexes of all tables of a mirror.
pub(crate) struct IndexStore {
    database: fjall::Database,
}

impl IndexStore {
    /// Opens an empty store below `directory`, removing what earlier sessions left there. Each session has a folder of
    /// its own, so that one whose last task is still ending cannot meet the next one's files.
    pub(crate) fn create(directory: &Path, epoch: i64) -> Result<Self> {
        let io = |error: std::io::Error| {
            Error::new(ErrorKind::Index, format!("prepare the state directory {}", directory.display()))
                .with_hint("the directory must be writable by the worker")
                .with_source(error)
        };
        if directory.exists() {
            std::fs::remove_dir_all(directory).map_err(io)?;
        }
        let directory = &directory.join(epoch.to_string());
        std::fs::create_dir_all(directory).map_err(io)?;
        let database = fjall::Database::builder(directory)
            .cache_size(CACHE_BYTES)
            // Nothing in here needs to survive a crash.
            .manual_journal_persist(true)
            .temporary(true)
            .worker_threads(WORKER_THREADS)
            .open()?;
        Ok(Self { database })
    }

    /// The index of one table; `generation` tells a table's index from that of an earlier mirror of it.
    pub(crate) fn table(&self, relation: u32, generation: u64) -> Result<PositionIndex> {
        let options = || {
            fjall::KeyspaceCreateOptions::default().manual_journal_persist(true).max_memtable_size(WRITE_BUFFER_BYTES)
        };
        let keyspace = self.database.keyspace(&format!("{relation}_{generation}"), options)?;
        Ok(PositionIndex { keyspace })
    }

    /// Forgets the index of a table that is no longer mirrored.
    pub(crate) fn drop_table(&self, index: PositionIndex) -> Result<()> {
        self.database.delete_keyspace(index.keyspace)?;
        Ok(())
    }
}

/// The index of one table. Clones share it.
#[derive(Clone)]
pub(crate) struct PositionIndex {
    keyspace: fjall::Keyspace,
}

impl PositionIndex {
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Position>> {
        let Some(value) = self.keyspace.get(key)? else { return Ok(None) };
        let Ok(bytes) = <[u8; 8]>::try_from(value.as_ref()) else {
            return Err(Error::new(ErrorKind::Index, "the position index holds a malformed entry"));
        };
        Ok(Some(Position::unpack(bytes)))
    }

    /// The first row of this identity after a position, in a table without a key.
    pub(crate) fn next_equal(&self, identity: &[u8], after: Option<Position>) -> Result<Option<Position>> {
        let hash = hash(identity);
        let from = match after {
            Some(after) => Bound::Excluded(hashed_key(hash, after).to_vec()),
            None => Bound::Included(hash.to_be_bytes().to_vec()),
        };
        let last = hashed_key(hash, Position { file: u32::MAX, row: u32::MAX }).to_vec();
        for entry in self.keyspace.range::<Vec<u8>, _>((from, Bound::Included(last))) {
            let (key, row) = entry.into_inner()?;
            if row.as_ref() != identity {
                continue;
            }
            let position = key.get(size_of::<u64>()..).and_then(|tail| <[u8; 8]>::try_from(tail).ok());
            let position =
                position.ok_or_else(|| Error::new(ErrorKind::Index, "the position index holds a malformed key"))?;
            return Ok(Some(Position::unpack(position)));
        }
        Ok(None)
    }

    /// Removes a row of a table without a key.
    pub(crate) fn remove_equal(&self, identity: &[u8], position: Position) -> Result<()> {
        self.keyspace.remove(equal_key(identity, position))?;
        Ok(())
    }

    /// Puts a key, or takes it out.
    pub(super) fn change(&self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        match value {
            Some(value) => self.keyspace.insert(key, value)?,
            None => self.keyspace.remove(key)?,
        }
        Ok(())
    }

    /// The same for many keys, which must ascend.
    pub(super) fn add_run<'a>(&self, entries: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> Result<()> {
        let mut run = self.keyspace.start_ingestion()?;
        for (key, value) in entries {
            match value {
                Some(value) => run.write(key, value)?,
                None => run.write_tombstone(key)?,
            }
        }
        run.finish()?;
        Ok(())
    }

    pub(crate) fn clear(&self) -> Result<()> {
        self.keyspace.clear()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::identity::RowIdentity;
    use super::super::index_writer::IndexWriter;
    use super::*;

    fn put(index: &PositionIndex, rows: &[(RowIdentity, &[u8], Position)]) {
        let mut writer = IndexWriter::new(index.clone());
        for (identity, bytes, position) in rows {
            writer.put(*identity, bytes, *position).unwrap();
        }
        writer.finish().unwrap();
    }

    #[test]
    fn equal_rows_are_found_one_by_one_and_others_under_their_hash_never() {
        let directory = tempfile::tempdir().unwrap();
        let store = IndexStore::create(&directory.path().join("index"), 1).unwrap();
        let index = store.table(1, 0).unwrap();
        let at = |row| Position { file: 1, row };
        let equal = RowIdentity::FullRow;
        put(&index, &[(equal, b"twin", at(8)), (equal, b"twin", at(3)), (equal, b"other", at(4))]);
        // As if it had the same hash.
        index.keyspace.insert(equal_key(b"twin", at(5)), b"stranger").unwrap();
        assert_eq!(index.next_equal(b"twin", None).unwrap(), Some(at(3)));
        assert_eq!(index.next_equal(b"twin", Some(at(3))).unwrap(), Some(at(8)));
        assert_eq!(index.next_equal(b"twin", Some(at(8))).unwrap(), None);
        index.remove_equal(b"twin", at(3)).unwrap();
        assert_eq!(index.next_equal(b"twin", None).unwrap(), Some(at(8)));
        assert_eq!(index.next_equal(b"stranger", None).unwrap(), None);
    }

    #[test]
    fn positions_come_back_and_a_new_store_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        let position = Position { file: u32::MAX, row: 7 };
        {
            let store = IndexStore::create(&path, 1).unwrap();
            let index = store.table(1, 0).unwrap();
            put(&index, &[(RowIdentity::Key, b"key", position)]);
            assert_eq!(index.get(b"key").unwrap(), Some(position));
            assert_eq!(store.table(1, 1).unwrap().get(b"key").unwrap(), None);
            index.change(b"key", None).unwrap();
            assert_eq!(index.get(b"key").unwrap(), None);
            put(&index, &[(RowIdentity::Key, b"key", position)]);
        }
        let store = IndexStore::create(&path, 2).unwrap();
        assert_eq!(store.table(1, 0).unwrap().get(b"key").unwrap(), None);
    }
}
