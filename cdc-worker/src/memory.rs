//! How much memory a worker takes: a budget, and what of it each part gets (I9).
//!
//! The budget is by default half of what the worker's control group allows, so that a pod with a limit is not killed for
//! a large transaction. What is counted: the changes that wait for a commit, and the buffers of copies. What does not
//! depend on the load comes on top, some 60 MiB: the program, the stream's batches, the position index's newest entries.

use std::path::{Path, PathBuf};

/// More is not needed: what does not fit goes into files a little later or earlier.
const LARGEST_DEFAULT: u64 = 512 << 20;
/// Less does not hold a row group of a wide table.
const LEAST: u64 = 64 << 20;
/// What one connection of a copy takes: a batch of rows, a row group, entries of the index.
const COPY_CONNECTION: u64 = 32 << 20;
/// What it takes more where its files are sent to an object store: the parts on their way, and the one that fills up.
const UPLOAD: u64 = 16 << 20;

/// Bytes that a worker may take for what it is working on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryBudget(u64);

impl MemoryBudget {
    /// A budget; `None` when it is too small to work with.
    pub(crate) fn new(bytes: u64) -> Option<Self> {
        (bytes >= LEAST).then_some(Self(bytes))
    }

    /// The budget of a process that may take so much, as far as anybody has set a limit.
    pub(crate) fn within(limit: Option<u64>) -> Self {
        Self(limit.map_or(LARGEST_DEFAULT, |limit| (limit / 2).clamp(LEAST, LARGEST_DEFAULT)))
    }

    /// Of changes that wait for a commit. They are held twice while they are written.
    pub(crate) fn changes(self) -> u64 {
        self.0 / 8
    }

    /// Connections that a table may be copied over, into a local folder or to an object store.
    pub(crate) fn copy_connections(self, uploads: bool) -> usize {
        let connection = COPY_CONNECTION + if uploads { UPLOAD } else { 0 };
        // Two tables are copied at a time.
        usize::try_from(self.0 / 2 / connection / 2).unwrap_or(usize::MAX).max(1)
    }
}

/// The limit of the control group that this process is in, of either version, or of one that it is part of.
pub(crate) fn control_group_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    limits(&groups).filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok()).min()
}

/// The files that may hold a limit, by the content of `/proc/self/cgroup`. ("max", and the huge number of version 1 that
/// means the same, are no limits: the one is no number, the other is larger than any budget.)
fn limits(groups: &str) -> impl Iterator<Item = PathBuf> {
    groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        // In a container the group's name may be the host's, and the container's root is the group.
        let group = Path::new(group.trim_start_matches('/'));
        group.ancestors().map(|group| Path::new(root).join(group).join(file)).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_group_gets_a_small_budget() {
        let budget = |limit: u64| MemoryBudget::within(Some(limit)).0 >> 20;
        assert_eq!(budget(512 << 20), 256);
        assert_eq!(budget(64 << 30), 512);
        assert_eq!(budget(1 << 20), 64);
        assert_eq!(MemoryBudget::within(None).0, 512 << 20);
        assert_eq!(MemoryBudget::new(1 << 20), None);
    }

    #[test]
    fn the_parts_are_less_than_the_whole() {
        for mib in [64, 100, 128, 256, 512, 4096] {
            let budget = MemoryBudget::new(mib << 20).unwrap();
            for (uploads, connection) in [(false, COPY_CONNECTION), (true, COPY_CONNECTION + UPLOAD)] {
                let connections = budget.copy_connections(uploads) as u64;
                let parts = 2 * budget.changes() + 2 * connections * connection;
                // One connection is what a copy needs, also where it is more than its share.
                assert!(parts <= budget.0 || connections == 1, "{mib} MiB");
            }
        }
    }

    #[test]
    fn the_limit_is_looked_for_in_both_versions_and_upwards() {
        let found: Vec<String> =
            limits("5:cpu:/a\n4:memory:/pod/one\n0::/\n").map(|path| path.display().to_string()).collect();
        let expected = [
            "/sys/fs/cgroup/memory/pod/one/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/pod/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory.max",
        ];
        assert_eq!(found, expected);
    }
}
