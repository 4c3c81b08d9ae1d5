//! Leases: files that a reader was told of are not deleted while its connection is open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// How many leases hold each file.
type Holds = HashMap<Box<str>, u64>;

/// The leases of all readers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leases {
    holds: Arc<Mutex<Holds>>,
}

/// One reader's hold on its files, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    paths: Vec<Box<str>>,
    holds: Arc<Mutex<Holds>>,
}

impl Leases {
    pub(crate) fn take<'a>(&self, paths: impl Iterator<Item = &'a str>) -> Lease {
        let paths: Vec<Box<str>> = paths.map(Into::into).collect();
        if let Ok(mut holds) = self.holds.lock() {
            for path in &paths {
                *holds.entry(path.clone()).or_default() += 1;
            }
        }
        Lease { paths, holds: Arc::clone(&self.holds) }
    }

    /// Whether any reader may still open the file. A poisoned lock holds everything: nothing is deleted by accident.
    pub(crate) fn holds(&self, path: &str) -> bool {
        self.holds.lock().map_or(true, |holds| holds.contains_key(path))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Ok(mut holds) = self.holds.lock() else { return };
        for path in &self.paths {
            if let Some(count) = holds.get_mut(path) {
                *count -= 1;
                if *count == 0 {
                    holds.remove(path);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_held_until_its_last_reader_leaves() {
        let leases = Leases::default();
        let first = leases.take(["a", "b"].into_iter());
        let second = leases.take(["a"].into_iter());
        drop(first);
        assert!(leases.holds("a"));
        assert!(!leases.holds("b"));
        drop(second);
        assert!(!leases.holds("a"));
    }
}
