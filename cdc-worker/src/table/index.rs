//! The position index: key → (data file, row), on local disk.
//!
//! Exact, since it stores whole keys, not hashes. Bounded in memory by the store's cache and write buffers. A cache
//! in every other sense: the directory is emptied at start and the index read back from the key columns of the data
//! files, so no crash can leave it different from them, and losing it loses nothing.

use std::path::Path;

use crate::Result;
use crate::error::{Error, ErrorKind};

/// Cache of blocks, shared by the tables of a mirror.
const CACHE_BYTES: u64 = 64 << 20;
/// Write buffer of one table.
const WRITE_BUFFER_BYTES: u64 = 16 << 20;

/// Where a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// Index into the table's list of files.
    pub(crate) file: u32,
    /// Row number in the file. Files are rolled long before 2³² rows.
    pub(crate) row: u32,
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
            .worker_threads(1)
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
        let packed = u64::from_be_bytes(bytes);
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of the packed position")]
        Ok(Some(Position { file: (packed >> 32) as u32, row: packed as u32 }))
    }

    pub(crate) fn put(&self, key: &[u8], position: Position) -> Result<()> {
        let packed = (u64::from(position.file) << 32) | u64::from(position.row);
        self.keyspace.insert(key, packed.to_be_bytes())?;
        Ok(())
    }

    pub(crate) fn remove(&self, key: &[u8]) -> Result<()> {
        self.keyspace.remove(key)?;
        Ok(())
    }

    pub(crate) fn clear(&self) -> Result<()> {
        self.keyspace.clear()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_come_back_and_a_new_store_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        let position = Position { file: u32::MAX, row: 7 };
        {
            let store = IndexStore::create(&path, 1).unwrap();
            let index = store.table(1, 0).unwrap();
            index.put(b"key", position).unwrap();
            assert_eq!(index.get(b"key").unwrap(), Some(position));
            assert_eq!(store.table(1, 1).unwrap().get(b"key").unwrap(), None);
            index.remove(b"key").unwrap();
            assert_eq!(index.get(b"key").unwrap(), None);
            index.put(b"key", position).unwrap();
        }
        let store = IndexStore::create(&path, 2).unwrap();
        assert_eq!(store.table(1, 0).unwrap().get(b"key").unwrap(), None);
    }
}
