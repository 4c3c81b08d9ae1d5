//! A process's own directory to spill to.
//!
//! It goes when the process does. One that is killed leaves it, full perhaps: the next process that makes one beside it
//! removes what nobody holds any more. Who holds one is told by a lock, not by a process id, which another container may
//! have too.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// What the names begin with.
const PREFIX: &str = "lake_query.";
/// Names tried before giving up: as many were left by processes of the same id.
const MOST_ATTEMPTS: u32 = 1000;

/// A directory that only this process's user can enter, until this is dropped. It was new: a name that somebody could guess
/// might have been made by somebody.
#[derive(Debug)]
pub struct SpillDirectory {
    parent: PathBuf,
    path: PathBuf,
    /// Locked as long as this lives.
    lock: File,
}

impl SpillDirectory {
    /// Makes one in a directory, which is made too where there is none, and removes those that were left there.
    ///
    /// # Errors
    /// [`ErrorKind::Open`](crate::ErrorKind::Open) when it cannot be made.
    pub fn create(parent: &Path) -> Result<Self, Error> {
        let create = || {
            std::fs::create_dir_all(parent)?;
            let made = make(parent.to_owned())?;
            // What is left takes room, and is in nobody's way.
            let _ = remove_left(&made);
            Ok(made)
        };
        create().map_err(|error| Error::spill(&error))
    }

    /// Where it was made.
    pub fn parent(&self) -> &Path {
        &self.parent
    }

    /// It itself.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SpillDirectory {
    fn drop(&mut self) {
        // Nobody is left to tell; the next one tries again.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn make(parent: PathBuf) -> io::Result<SpillDirectory> {
    for attempt in 0..MOST_ATTEMPTS {
        let path = parent.join(format!("{PREFIX}{}.{attempt}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            made => made?,
        }
        // Before it is locked, another backend may take it for one that was left; then it is another's, or gone.
        let Ok(lock) = File::open(&path) else { continue };
        if lock.try_lock().is_ok() && path.is_dir() {
            return Ok(SpillDirectory { parent, path, lock });
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is full of them", parent.display())))
}

/// Removes those beside it that no process of this user holds.
fn remove_left(own: &SpillDirectory) -> io::Result<()> {
    let user = own.lock.metadata()?.uid();
    for entry in std::fs::read_dir(&own.parent)?.flatten() {
        let path = entry.path();
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            // Of the entry itself, not of what a link leads to.
            && entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == user);
        if is_ours && path != own.path {
            remove_unheld(&path);
        }
    }
    Ok(())
}

fn remove_unheld(path: &Path) {
    // What cannot be removed now is tried again by the next.
    if let Ok(left) = File::open(path)
        && left.try_lock().is_ok()
    {
        let _ = std::fs::remove_dir_all(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_holds_is_removed_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let inside = |name: &str| parent.path().join(name);
        for name in ["lake_query.1.0", "lake_query.1.1", "another"] {
            std::fs::create_dir(inside(name)).unwrap();
            std::fs::write(inside(name).join("spilled"), b"rows").unwrap();
        }
        std::fs::write(inside("lake_query.file"), b"no directory").unwrap();
        std::os::unix::fs::symlink(inside("another"), inside("lake_query.link")).unwrap();
        let held = File::open(inside("lake_query.1.1")).unwrap();
        held.lock().unwrap();
        let own = SpillDirectory::create(parent.path()).unwrap();
        assert!(own.path().is_dir() && !inside("lake_query.1.0").exists());
        for name in ["lake_query.1.1/spilled", "another/spilled", "lake_query.file", "lake_query.link"] {
            assert!(inside(name).exists(), "{name}");
        }
        // Another one does not take this one for left, and neither is there twice.
        let other = SpillDirectory::create(parent.path()).unwrap();
        assert!(own.path().is_dir() && other.path() != own.path());
        let path = own.path().to_owned();
        drop(own);
        assert!(!path.exists());
    }
}
