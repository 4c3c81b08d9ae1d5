//! What others have committed to a table since the mirror's last commit, as its snapshots tell, and whether that may have
//! changed a row.
//!
//! Another engine's compaction is a `replace`: by the specification it adds and removes files without changing the table's
//! rows. That is what its writer says of itself; what is proved of it here is
//!
//! - that there is nothing else between the mirror's last snapshot and the current one but `replace` and `append`, by an
//!   unbroken line of parents (through older metadata files, where snapshots have expired since),
//! - that the table has as many live rows as the mirror left, and those that were appended: rows of data files less the
//!   positions that are deleted in these very files. Positions in files that are gone, as Spark leaves them, count for nothing,
//! - that there are no equality deletes, of which nobody could tell without reading everything.
//!
//! Who takes the table over reads the key columns of all files anew, and refuses a key that two rows have; so a row that was
//! lost is not made up for by another that was doubled. What is left is a writer that says `replace` and puts another row, or
//! other values, in a row's place: to find that, all of the table would have to be read.

use std::collections::{HashMap, HashSet};

use iceberg::spec::{Operation, SnapshotRef, TableMetadata};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::table::{LakeTable, SUMMARY_ATTEMPT, SUMMARY_MIRROR};
use crate::warehouse::Warehouse;

/// The snapshots of others since the mirror's last one.
pub(super) struct Ancestry {
    ours: SnapshotRef,
    foreign: Vec<SnapshotRef>,
}

impl Ancestry {
    /// Goes from a table's current snapshot back to the last one of a mirror.
    pub(super) async fn of(warehouse: &Warehouse, table: &LakeTable, mirror: &str) -> Result<Self> {
        let mut known = Known::of(table.metadata());
        let mut foreign = Vec::new();
        let mut next = table.snapshot_id();
        while let Some(id) = next {
            let Some(snapshot) = known.find(warehouse, id).await? else {
                let what = "has lost the snapshots between the mirror's last one and the current one: what happened to it \
                            meanwhile can't be told any more";
                return Err(table.foreign_change(what).with_hint(
                    "let other engines' expire_snapshots keep them for longer than the mirror is down; copy the table again \
                     to repair it",
                ));
            };
            let summary = &snapshot.summary().additional_properties;
            if summary.get(SUMMARY_MIRROR).is_some_and(|by| by == mirror) {
                let attempt = summary.get(SUMMARY_ATTEMPT).map(String::as_str);
                let newer = table.checkpoint().filter(|checkpoint| checkpoint.mirror == mirror);
                if newer.is_some_and(|newer| attempt != Some(newer.attempt.to_string().as_str())) {
                    return Err(table.foreign_change("was set back to an earlier snapshot by someone else"));
                }
                return Ok(Self { ours: snapshot, foreign });
            }
            next = snapshot.parent_snapshot_id();
            foreign.push(snapshot);
        }
        Err(table.foreign_change("lost the mirror's last commit"))
    }

    /// Whether others have rewritten files.
    pub(super) fn has_rewrites(&self) -> bool {
        self.foreign.iter().any(|snapshot| snapshot.summary().operation == Operation::Replace)
    }

    /// Whether the mirror's last snapshot is this batch's: of what came before it, its planner has had the proof.
    pub(super) fn ends_at(&self, attempt: Uuid) -> bool {
        self.ours.summary().additional_properties.get(SUMMARY_ATTEMPT).is_some_and(|by| *by == attempt.to_string())
    }

    /// Makes sure that no row of the mirror's has come, gone or changed, as far as can be told without reading all of them.
    pub(super) async fn prove(&self, warehouse: &Warehouse, table: &LakeTable) -> Result<()> {
        let mut expected = Some(0);
        for snapshot in &self.foreign {
            let operation = &snapshot.summary().operation;
            match operation {
                Operation::Replace => {}
                Operation::Append => {
                    let added = count(snapshot, "added-records").unwrap_or(0);
                    expected = expected.map(|rows: u64| rows.saturating_add(added));
                }
                Operation::Overwrite | Operation::Delete => {
                    let what = format!("had rows changed by someone else's commit ({})", operation.as_str());
                    return Err(table.foreign_change(&what));
                }
            }
        }
        if self.foreign.is_empty() {
            return Ok(());
        }
        let left = count(&self.ours, "total-records").zip(count(&self.ours, "total-position-deletes"));
        let left = left.and_then(|(rows, deleted)| rows.checked_sub(deleted));
        let expected = left.zip(expected).map(|(left, added)| left.saturating_add(added));
        let live: u64 = table.live_files(warehouse).await?.iter().map(crate::LiveFile::live_rows).sum();
        if expected == Some(live) {
            return Ok(());
        }
        let expected = expected.map_or_else(|| "an unknown number".to_owned(), |rows| rows.to_string());
        Err(table.foreign_change(&format!("has {live} rows after someone else's rewrite of files, and had {expected}")))
    }
}

fn count(snapshot: &SnapshotRef, name: &str) -> Option<u64> {
    snapshot.summary().additional_properties.get(name)?.parse().ok()
}

/// A table's snapshots: those that it has, and those that older metadata files name.
struct Known {
    snapshots: HashMap<i64, SnapshotRef>,
    /// Metadata files that have not been read, the oldest first.
    older: Vec<String>,
}

impl Known {
    fn of(metadata: &TableMetadata) -> Self {
        let known = metadata.snapshots().map(|snapshot| (snapshot.snapshot_id(), SnapshotRef::clone(snapshot)));
        let snapshots = known.collect();
        let mut seen = HashSet::new();
        let older = metadata.metadata_log().iter().map(|log| log.metadata_file.clone());
        Self { snapshots, older: older.filter(|file| seen.insert(file.clone())).collect() }
    }

    async fn find(&mut self, warehouse: &Warehouse, id: i64) -> Result<Option<SnapshotRef>> {
        loop {
            if let Some(snapshot) = self.snapshots.get(&id) {
                return Ok(Some(SnapshotRef::clone(snapshot)));
            }
            let Some(file) = self.older.pop() else { return Ok(None) };
            match TableMetadata::read_from(warehouse.file_io(), &file).await {
                Ok(metadata) => {
                    for snapshot in metadata.snapshots() {
                        self.snapshots.entry(snapshot.snapshot_id()).or_insert_with(|| SnapshotRef::clone(snapshot));
                    }
                }
                Err(error) => {
                    let error = Error::iceberg(format!("read the metadata {file}"), error);
                    // One that is gone tells nothing; an older one may.
                    if error.kind() != ErrorKind::Format {
                        return Err(error);
                    }
                }
            }
        }
    }
}
