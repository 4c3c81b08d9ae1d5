//! Files that nothing names any more, until they may go.
//!
//! A reader plans from the metadata that it has found and opens the files afterwards, and no catalog knows of it (but
//! the leases of our own read service). So a file stays for a while after the commit that made it superfluous.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Superfluous files, each with the time from which on it may go.
#[derive(Debug, Default)]
pub(super) struct Superfluous {
    /// In the order of the commits, and so in that of the times.
    in_grace: VecDeque<(Instant, BTreeSet<String>)>,
    /// Nobody needs these, or nobody has read them for long enough; they wait for their reader or their store.
    due: BTreeSet<String>,
}

impl Superfluous {
    /// Puts files off for `grace` from `now`.
    pub(super) fn put_off(&mut self, files: BTreeSet<String>, now: Instant, grace: Duration) {
        if files.is_empty() {
            return;
        }
        if grace.is_zero() {
            self.due.extend(files);
        } else {
            self.in_grace.push_back((now + grace, files));
        }
    }

    /// Whether a file waits for its time.
    pub(super) fn has(&self, file: &str) -> bool {
        self.in_grace.iter().any(|(_, files)| files.contains(file))
    }

    /// Adds files that may go at once.
    pub(super) fn may_go(&mut self, files: impl IntoIterator<Item = String>) {
        self.due.extend(files);
    }

    /// Takes the files that may go now.
    pub(super) fn take_due(&mut self, now: Instant) -> BTreeSet<String> {
        let mut files = std::mem::take(&mut self.due);
        while let Some((_, more)) = self.in_grace.pop_front_if(|(due, _)| *due <= now) {
            files.extend(more);
        }
        files
    }

    /// When the next file may go that may not yet.
    pub(super) fn next(&self) -> Option<Instant> {
        self.in_grace.front().map(|(due, _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_file_goes_when_its_time_is_over_and_not_before() {
        let (begin, grace) = (Instant::now(), Duration::from_secs(60));
        let second = Duration::from_secs(1);
        let mut superfluous = Superfluous::default();
        superfluous.put_off(files(&["a"]), begin, grace);
        superfluous.put_off(files(&["b", "c"]), begin + second, grace);
        superfluous.may_go(files(&["d"]));
        assert_eq!(superfluous.take_due(begin), files(&["d"]));
        assert_eq!(superfluous.next(), Some(begin + grace));
        assert!(superfluous.has("c") && !superfluous.has("d"));
        assert_eq!(superfluous.take_due(begin + grace), files(&["a"]));
        superfluous.may_go(files(&["a"]));
        assert_eq!(superfluous.take_due(begin + grace + second), files(&["a", "b", "c"]));
        assert_eq!((superfluous.next(), superfluous.take_due(begin + 2 * grace)), (None, files(&[])));
        superfluous.put_off(files(&["e"]), begin, Duration::ZERO);
        assert_eq!(superfluous.take_due(begin), files(&["e"]));
    }
}
