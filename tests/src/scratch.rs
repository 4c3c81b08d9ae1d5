//! Directories that go away: named after the process that made them, so that those of killed runs can be swept.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::account::Account;

/// Short, because a unix socket's path has 107 bytes.
const PARENT: &str = "/tmp";
const PREFIX: &str = "lk-";

/// A directory of the servers' account, removed on drop.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    /// A new, empty directory.
    pub fn new() -> Result<Self> {
        static SWEEP: Once = Once::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(sweep);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::at(&Path::new(PARENT).join(format!("{PREFIX}{}-{number}", std::process::id())), false)
    }

    /// A directory of this name, which must not exist; kept on drop when `keep` is set.
    pub fn at(path: &Path, keep: bool) -> Result<Self> {
        fs::create_dir(path).with_context(|| format!("create {}", path.display()))?;
        let scratch = Self { path: path.to_owned(), keep };
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        Account::current()?.own(path)?;
        Ok(scratch)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new directory inside, owned by the servers' account.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        Account::current()?.own(&path)?;
        Ok(path)
    }

    /// Leaves the directory where it is.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            remove(&self.path);
        }
    }
}

/// Removes a directory in which a dying process may still be creating files.
fn remove(path: &Path) {
    for _ in 0..20 {
        if fs::remove_dir_all(path).is_ok() || !path.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Removes the directories of processes that are gone.
fn sweep() {
    let Ok(entries) = fs::read_dir(PARENT) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let Some(pid) = rest.split('-').next().and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            remove(&entry.path());
        }
    }
}
