//! Records that wait, first in first out: in memory up to a bound, then in a file (I9).
//!
//! What waits are pieces of transactions that still run at the source, and changes of tables whose copy is not done. Both
//! can be had from the slot again, so the file is nobody's property: it has no name from the beginning, and goes with the
//! process that made it, however that ends.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};

use crate::Result;
use crate::error::{Error, ErrorKind};

/// Bytes that wait in memory, in one spool, before they are written.
const TAIL_BYTES: usize = 1 << 20;
/// Bytes read at a time.
const HEAD_BYTES: usize = 1 << 20;
/// A record's length comes before it.
const LENGTH_BYTES: usize = 4;

/// Where spools may put their files.
#[derive(Debug, Clone)]
pub(crate) struct SpoolDirectory(Arc<Path>);

impl SpoolDirectory {
    /// Makes the directory.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&path).map_err(|error| failed(&path, error))?;
        Ok(Self(path.into()))
    }

    /// An empty spool.
    pub(crate) fn spool(&self) -> Spool {
        Spool { directory: self.clone(), head: Bytes::new(), file: None, read: 0, written: 0, tail: BytesMut::new() }
    }
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("keep what waits in {}", path.display()))
        .with_hint("large transactions, and changes during a copy, wait there: it needs space, and must be writable")
        .with_source(error)
}

/// A queue of records.
#[derive(Debug)]
pub(crate) struct Spool {
    directory: SpoolDirectory,
    /// Records that have been read and not taken. They are the oldest.
    head: Bytes,
    file: Option<File>,
    /// What lies between these two positions in the file comes next.
    read: u64,
    written: u64,
    /// The newest records.
    tail: BytesMut,
}

impl Spool {
    /// Adds a record that consists of these parts.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the file cannot be written.
    pub(crate) fn push(&mut self, parts: &[&[u8]]) -> Result<()> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let length = u32::try_from(length)
            .map_err(|error| Error::new(ErrorKind::Protocol, "a message of 4 GiB or more").with_source(error))?;
        self.tail.extend_from_slice(&length.to_be_bytes());
        parts.iter().for_each(|part| self.tail.extend_from_slice(part));
        if self.tail.len() >= TAIL_BYTES {
            self.write().map_err(|error| failed(&self.directory.0, error))?;
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(tempfile::tempfile_in(&self.directory.0)?),
        };
        file.write_all_at(&self.tail, self.written)?;
        self.written += self.tail.len() as u64;
        self.tail.clear();
        Ok(())
    }

    /// Takes the oldest record.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the file cannot be read.
    pub(crate) fn pop(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some((length, rest)) = self.head.split_first_chunk::<LENGTH_BYTES>() {
                let length = u32::from_be_bytes(*length) as usize;
                if rest.len() >= length {
                    self.head.advance(LENGTH_BYTES);
                    return Ok(Some(self.head.split_to(length)));
                }
            }
            if self.read == self.written {
                if self.tail.is_empty() {
                    return Ok(None);
                }
                // Only whole records are written, so nothing is cut in two here.
                self.head = self.tail.split().freeze();
                continue;
            }
            self.read_more().map_err(|error| failed(&self.directory.0, error))?;
        }
    }

    fn read_more(&mut self) -> io::Result<()> {
        let Some(file) = &self.file else { return Err(io::ErrorKind::NotFound.into()) };
        let left = usize::try_from(self.written - self.read).unwrap_or(usize::MAX);
        // A record that is longer than what is read at a time has to come whole.
        let wanted = match self.head.split_first_chunk::<LENGTH_BYTES>() {
            Some((length, rest)) => (u32::from_be_bytes(*length) as usize).saturating_sub(rest.len()),
            None => 0,
        };
        let more = wanted.max(HEAD_BYTES).min(left);
        let mut head = BytesMut::zeroed(self.head.len() + more);
        let (old, new) = head.split_at_mut(self.head.len());
        old.copy_from_slice(&self.head);
        file.read_exact_at(new, self.read)?;
        self.read += more as u64;
        self.head = head.freeze();
        if self.read == self.written {
            file.set_len(0)?;
            (self.read, self.written) = (0, 0);
        }
        Ok(())
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_empty() && self.read == self.written && self.tail.is_empty()
    }

    /// Bytes that wait, on disk and in memory.
    pub(crate) fn bytes(&self) -> u64 {
        (self.head.len() + self.tail.len()) as u64 + (self.written - self.read)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Sizes around the bounds, pushes and pops in any order.
        #[test]
        fn it_is_a_queue(acts in proptest::collection::vec(
            prop_oneof![
                4 => (0usize..3000).prop_map(Some),
                1 => prop_oneof![Just(TAIL_BYTES - 4), Just(TAIL_BYTES), Just(3 * HEAD_BYTES + 1), Just(HEAD_BYTES / 2)].prop_map(Some),
                3 => Just(None),
            ], 0..200)
        ) {
            let directory = tempfile::tempdir().unwrap();
            let mut spool = SpoolDirectory::create(directory.path().join("spool")).unwrap().spool();
            let mut model: VecDeque<Vec<u8>> = VecDeque::new();
            for (at, act) in acts.into_iter().enumerate() {
                match act {
                    Some(size) => {
                        let record: Vec<u8> = (0..size).map(|byte| (byte * 31 + at) as u8).collect();
                        let (a, b) = record.split_at(size / 3);
                        spool.push(&[a, b]).unwrap();
                        model.push_back(record);
                    }
                    None => prop_assert_eq!(spool.pop().unwrap().map(|record| record.to_vec()), model.pop_front()),
                }
                prop_assert_eq!(spool.is_empty(), model.is_empty());
                let bytes: usize = model.iter().map(|record| record.len() + LENGTH_BYTES).sum();
                prop_assert_eq!(spool.bytes(), bytes as u64);
            }
            while let Some(record) = model.pop_front() {
                prop_assert_eq!(spool.pop().unwrap().unwrap().to_vec(), record);
            }
            prop_assert!(spool.pop().unwrap().is_none());
            // The file never had a name.
            prop_assert_eq!(std::fs::read_dir(directory.path().join("spool")).unwrap().count(), 0);
        }
    }
}
