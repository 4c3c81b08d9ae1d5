//! What is committed together, and what became of it.
//!
//! What a table's next state is, is decided here by values alone. What has to come from outside, the time and a unique
//! number, is a [`Stamp`](crate::stamp::Stamp) that the catalog draws; the clock and chance are out of reach. Manifests and metadata are
//! read and written by way of the [`Warehouse`](crate::Warehouse), which for a simulation would be one in memory (its
//! `FileIO` takes any storage). Equal arguments give equal tables, not equal bytes: the library writes a snapshot's summary
//! and a table's properties in a random order, and Avro marks its blocks by chance.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod manifests;
mod plan;

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::data_file::WrittenFile;
use crate::format::Format;
use crate::live_files::LiveFile;
use crate::lsn::Lsn;
use crate::table::LakeTable;

pub(crate) use plan::{Commit, Garbage, MetadataBy, Planned, Updates, plan};

/// One advance of a mirror: the changes of all its tables between two source positions.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The mirror that advances.
    pub mirror: String,
    /// The epoch its worker was given. A higher one in the catalog fences this worker off.
    pub epoch: i64,
    /// Names this batch. A batch is committed at most once, however often it is tried.
    pub attempt: Uuid,
    /// Where the mirror is believed to be.
    pub expected: Option<Lsn>,
    /// Where it will be.
    pub lsn: Lsn,
    /// The tables that change. Empty: nothing changed up to `lsn`.
    pub tables: Vec<TableChange>,
}

/// The change of one table.
#[derive(Debug, Clone)]
pub struct TableChange {
    /// The table, as the last receipt, [`Catalog::load`](crate::Catalog::load) or
    /// [`Catalog::prepare`](crate::Catalog::prepare) gave it.
    pub table: LakeTable,
    /// Drop all files the table has before adding `data`.
    pub truncate: bool,
    /// Files to add.
    pub data: Vec<WrittenFile>,
    /// Positions to delete, in older files and in those of `data`: what [`write_deletes`](crate::write_deletes) gave.
    pub deletes: Vec<WrittenFile>,
    /// Files that take the place of others, with the same rows.
    pub rewrite: Rewrite,
    /// Let all former snapshots expire, however young they are.
    pub expire: bool,
}

/// Files that take the place of others. No row comes or goes by it.
#[derive(Debug, Clone, Default)]
pub struct Rewrite {
    /// Data files that go, by their paths.
    pub removed: Vec<String>,
    /// Data files that have the live rows of those that go.
    pub data: Vec<WrittenFile>,
    /// All delete files go: the change's `deletes` has every deleted position of the files that stay. So it has to be
    /// when a file goes in which something was deleted, and the table has position delete files: positions in files that are
    /// gone would be counted by readers. (A deletion vector goes with its file.)
    pub all_deletes: bool,
    /// There is nothing else in the change: its `deletes` name rows that were deleted before.
    pub alone: bool,
}

impl Rewrite {
    fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.data.is_empty() && !self.all_deletes
    }
}

impl TableChange {
    /// Whether the table stays as it is: it exists with its columns and its layout, and nothing is added or removed.
    pub(crate) fn is_empty(&self) -> bool {
        let same_columns = self.table.has_its_schema().unwrap_or(false) && self.table.has_its_layout();
        let there = self.table.metadata_location().is_some();
        let nothing = self.data.is_empty() && self.deletes.is_empty() && self.rewrite.is_empty();
        there && same_columns && !self.truncate && nothing && !self.expire
    }

    /// Whether it can be made of whatever files the table consists of: it names none.
    pub(crate) fn names_no_files(&self) -> bool {
        self.truncate || self.deletes.is_empty() && self.rewrite.is_empty()
    }

    /// The files the caller wrote for it.
    pub(crate) fn written(&self) -> impl Iterator<Item = &WrittenFile> {
        self.added_data().chain(&self.deletes)
    }

    /// The data files whose deletion vectors it replaces or removes, if they have any.
    pub(crate) fn vectors_of(&self) -> BTreeSet<String> {
        if self.table.format() < Format::V3 {
            return BTreeSet::new();
        }
        let of = self.deletes.iter().filter_map(|vector| vector.entry.referenced_data_file());
        of.chain(self.rewrite.removed.iter().cloned()).collect()
    }

    pub(crate) fn added_data(&self) -> impl Iterator<Item = &WrittenFile> {
        self.data.iter().chain(&self.rewrite.data)
    }
}

/// What became of a batch.
#[derive(Debug)]
#[must_use]
pub enum Outcome {
    /// The lake is at the batch's position.
    Committed(CommitReceipt),
    /// The mirror is not where it was expected: someone else moved it, to `found`. The batch's files are removed.
    Refused {
        /// Where the mirror is.
        found: Option<Lsn>,
    },
    /// A worker with a higher epoch has taken the mirror over. The batch's files are removed.
    Fenced {
        /// The epoch of that worker.
        epoch: i64,
    },
}

/// Proof that the lake durably holds everything up to a position. Only a commit makes one.
pub struct CommitReceipt {
    lsn: Lsn,
    tables: Vec<CommittedTable>,
    left_out: Vec<LeftOut>,
    garbage: Vec<Garbage>,
}

/// A table that a batch could not reach, after it had reached others: someone else changed it beyond what can be taken
/// over. Its mirror has to stop, for the mirror's position is now past what the table has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The table's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
    /// What an operator can do about it.
    pub hint: Option<String>,
}

/// A table after a commit.
#[derive(Debug, Clone)]
pub struct CommittedTable {
    /// The table as it is now: what the next batch changes.
    pub table: LakeTable,
    /// Files that someone else added since the caller's last look at the table, and that are part of it now. The caller
    /// has not indexed their rows yet.
    pub foreign_files: Vec<LiveFile>,
    /// Someone else rewrote files of it since: what the caller knows of positions in the table is void.
    pub rewritten: bool,
}

impl CommitReceipt {
    pub(crate) fn new(lsn: Lsn, tables: Vec<CommittedTable>, garbage: Vec<Garbage>) -> Self {
        Self { lsn, tables, left_out: Vec::new(), garbage }
    }

    pub(crate) fn without(mut self, left_out: Vec<LeftOut>) -> Self {
        self.left_out = left_out;
        self
    }

    /// Tables of the batch that it could not reach. They are not among [`Self::tables`].
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// The position the lake is at.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The batch's tables as they are now, in the batch's order, but for those that are [left out](Self::left_out).
    pub fn tables(&self) -> &[CommittedTable] {
        &self.tables
    }

    /// What this commit made superfluous.
    pub(crate) fn garbage(&self) -> &[Garbage] {
        &self.garbage
    }
}

impl fmt::Debug for CommitReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitReceipt").field("lsn", &self.lsn).field("tables", &self.tables).finish_non_exhaustive()
    }
}
