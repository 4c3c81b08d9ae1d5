//! Partitioned tables that are mirrored as one: what happens to their partitions beside the stream.
//!
//! The stream does not tell of a partition that is attached with rows, detached, dropped or truncated. So the catalog is
//! compared with the partitions whose rows the mirror has: twice a second, before each commit, and when a change comes
//! from a partition that is not among them. Whatever cannot be proved to be in the stream as a whole makes the table
//! be copied anew, while the others stream on. The registry remembers the partitions, and hears of a new one before its
//! first row can be committed: so what happened while nobody looked shows at the next start.
//!
//! A partition that came and went between two looks leaves no trace in the catalog, but one in the stream, if rows of
//! it came: pgoutput describes the partition right behind its root, before the first change in it.

use std::collections::HashMap;
use std::time::Duration;

use iceberg_writer::Lsn;
use tokio::time::Instant;

use crate::Result;
use crate::source::partitions::{self, Links, Partition, Since};
use crate::source::relation;

use super::session::Session;

/// How long a transaction that the stream has brought may stay invisible to others: it waits for a synchronous
/// standby, say. After this the catalog is taken at its word.
const VISIBLE_AFTER: Duration = Duration::from_secs(1);
const VISIBLE_POLL: Duration = Duration::from_millis(50);

/// The partitioned tables of a session.
#[derive(Default)]
pub(super) struct Trees {
    /// The partitions whose rows a streaming table has, by root; as the registry has them.
    known: HashMap<u32, Links>,
    /// By root that is being copied, the partitions whose changes wait for the copy, and the newest of their commits.
    waiting: HashMap<u32, HashMap<u32, Lsn>>,
    /// The root that the newest message described.
    root: Option<u32>,
    /// The partition that was described right behind it.
    partition: Option<(u32, u32)>,
}

impl Trees {
    pub(super) fn know(&mut self, root: u32, links: Links) {
        self.known.insert(root, links);
    }

    pub(super) fn copying(&mut self, root: u32) {
        self.waiting.insert(root, HashMap::new());
    }

    pub(super) fn forget(&mut self, root: u32) {
        self.known.remove(&root);
        self.waiting.remove(&root);
    }

    /// Whether it matters in which order the stream describes it and others.
    pub(super) fn watches(&self, relation: u32) -> bool {
        self.known.contains_key(&relation) || self.waiting.contains_key(&relation)
    }

    /// The stream describes a relation.
    pub(super) fn described(&mut self, relation: u32) {
        if self.watches(relation) {
            self.root = Some(relation);
            self.partition = None;
        } else {
            self.partition = self.root.take().map(|root| (root, relation));
        }
    }

    /// The partition that a change is in, if it was described just now.
    pub(super) fn partition_of_change(&mut self, relation: u32) -> Option<u32> {
        self.root = None;
        self.partition.take().and_then(|(root, partition)| (root == relation).then_some(partition))
    }

    /// What was described just now was not described for a change of a row.
    pub(super) fn no_partition_changes(&mut self) {
        (self.root, self.partition) = (None, None);
    }
}

impl Session {
    /// A change comes from this partition, for the first time in a while.
    pub(super) async fn partition_changes(&mut self, root: u32, partition: u32, commit_lsn: Lsn) -> Result<()> {
        if let Some(waiting) = self.trees.waiting.get_mut(&root) {
            let newest = waiting.entry(partition).or_insert(commit_lsn);
            *newest = (*newest).max(commit_lsn);
            return Ok(());
        }
        let Some(streaming) = self.tables.get(&root).and_then(|table| table.entry.following()) else { return Ok(()) };
        let known = self.trees.known.get(&root).is_none_or(|links| links.contains(partition));
        if !known && commit_lsn >= streaming.replay_from {
            self.look_for(root, &[partition]).await?;
        }
        Ok(())
    }

    /// A copy of these partitions joins the stream. False: it cannot, and another one has begun.
    pub(super) async fn partitions_copied(&mut self, root: u32, copied: Links, at: Lsn) -> Result<bool> {
        let waiting = self.trees.waiting.remove(&root).unwrap_or_default();
        let changed: Vec<u32> = waiting.into_iter().filter(|(_, newest)| *newest >= at).map(|(oid, _)| oid).collect();
        self.trees.know(root, copied);
        self.look_for(root, &changed).await
    }

    /// Whether a table's failure is due to its partitions; then it is copied anew.
    pub(super) async fn partitions_explain(&mut self, relation: u32) -> Result<bool> {
        if !self.trees.known.contains_key(&relation) {
            return Ok(false);
        }
        let deadline = Instant::now() + VISIBLE_AFTER;
        loop {
            let now = partitions::read(&self.control, &[relation]).await?;
            if !self.compare(relation, &now).await? {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(VISIBLE_POLL).await;
        }
    }

    /// Looks at the partitions of all streaming tables.
    pub(super) async fn look_at_partitions(&mut self) -> Result<()> {
        let roots: Vec<u32> = self.trees.known.keys().copied().collect();
        if roots.is_empty() {
            return Ok(());
        }
        let (mut found, mut by_root) = (partitions::read(&self.control, &roots).await?, HashMap::new());
        for partition in found.drain(..) {
            by_root.entry(partition.root).or_insert_with(Vec::new).push(partition);
        }
        for root in roots {
            self.compare(root, by_root.get(&root).map_or(&[], Vec::as_slice)).await?;
        }
        Ok(())
    }

    /// Looks at a table's partitions, of which these must be some. False: the table is copied anew.
    async fn look_for(&mut self, root: u32, wanted: &[u32]) -> Result<bool> {
        let deadline = Instant::now() + VISIBLE_AFTER;
        loop {
            let now = partitions::read(&self.control, &[root]).await?;
            if !self.compare(root, &now).await? {
                return Ok(false);
            }
            let missing = wanted.iter().find(|oid| !now.iter().any(|partition| partition.oid == **oid));
            let Some(missing) = missing else { return Ok(true) };
            if Instant::now() >= deadline {
                let why = format!("the partition with oid {missing} has come and gone");
                self.copy_anew(root, &why).await?;
                return Ok(false);
            }
            tokio::time::sleep(VISIBLE_POLL).await;
        }
    }

    /// Takes note of new partitions. False: rows may have come or gone with a partition, and the table is copied anew.
    async fn compare(&mut self, root: u32, now: &[Partition]) -> Result<bool> {
        let (Some(known), Some(streaming)) =
            (self.trees.known.get(&root), self.tables.get(&root).and_then(|table| table.entry.following()))
        else {
            return Ok(true);
        };
        let key = relation::key_names(&streaming.table.spec);
        match partitions::since(&self.control, known, now, streaming.table.identity, &key).await? {
            Since::Nothing => Ok(true),
            Since::Grown(links) => {
                tracing::debug!(table = root, "partitions came, without rows");
                self.remember(root, links).await?;
                Ok(true)
            }
            Since::Changed(why) => {
                self.copy_anew(root, &why).await?;
                Ok(false)
            }
        }
    }

    async fn remember(&mut self, root: u32, links: Links) -> Result<()> {
        self.config.registry(&self.control).partitions(root, &links.to_text()).await?;
        self.trees.know(root, links);
        Ok(())
    }

    /// Begins another copy of a table, which says so.
    pub(super) async fn copy_anew(&mut self, root: u32, why: &str) -> Result<()> {
        tracing::info!(table = self.shown(root), "the table is copied anew: {why}");
        self.config.registry(&self.control).resync(root).await?;
        let registered = self.config.registry(&self.control).tables().await?;
        // Unmirrored in this very moment: the next look at the registry sees to it.
        let Some(registered) = registered.into_iter().find(|table| table.relation == root) else { return Ok(()) };
        self.forget(root);
        self.wanted.push_back(registered);
        self.begin_copies().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_known_by_what_is_described_right_behind_its_root() {
        let mut trees = Trees::default();
        trees.know(1, Links::default());
        trees.copying(2);
        for root in [1, 2] {
            trees.described(root);
            trees.described(10);
            assert_eq!(trees.partition_of_change(root), Some(10));
            assert_eq!(trees.partition_of_change(root), None, "it is not described again");
        }
        // A root that was described for a TRUNCATE, and the table that comes next.
        trees.described(1);
        trees.no_partition_changes();
        trees.described(10);
        assert_eq!(trees.partition_of_change(1), None);
        trees.described(1);
        trees.described(2);
        trees.described(10);
        assert_eq!(trees.partition_of_change(2), Some(10), "of the last root");
        trees.described(1);
        trees.described(10);
        assert_eq!(trees.partition_of_change(10), None, "the change is of another table");
        trees.forget(1);
        trees.described(1);
        trees.described(10);
        assert_eq!(trees.partition_of_change(1), None);
    }
}
