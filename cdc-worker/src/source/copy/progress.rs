//! How far a copy is: the parts that are done, each of one snapshot.
//!
//! A part is some shares of the table and the complete files that hold all of their rows. The registry keeps it, so that
//! a copy goes on after a restart. That is worth something only while nothing has happened to the table that the stream
//! does not tell: [`fingerprint`] is what must be as it was.

use std::collections::BTreeSet;

use iceberg_writer::{LakeTable, Layout, Lsn, WrittenFile};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::Result;
use crate::error::{Error, ErrorKind};
use crate::table::RowIdentity;

use super::super::partitions::Links;
use super::super::relation::SourceTable;
use super::share::Share;

/// A file of a copy. Its number is its place among the table's files, by which the index knows it.
#[derive(Debug, Clone)]
pub(crate) struct NumberedFile {
    pub(crate) number: u32,
    pub(crate) file: WrittenFile,
}

/// Shares that are done, and their rows.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// The consistent point of the snapshot that the rows are of.
    pub(crate) as_of: Lsn,
    pub(crate) files: Vec<NumberedFile>,
    pub(crate) shares: Vec<Share>,
    /// Columns with a companion in these files or others, by field id.
    pub(crate) companions: BTreeSet<i32>,
}

/// What is done of a copy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    /// What must be as it was; `None` before the first snapshot.
    pub(crate) shape: Option<String>,
    /// From the oldest snapshot to the newest.
    pub(crate) parts: Vec<Part>,
}

/// A copy that a process has left behind.
#[derive(Debug, Clone)]
pub(crate) struct Abandoned {
    /// The Iceberg table that it fills.
    pub(crate) table_uuid: Uuid,
    pub(crate) shape: String,
    /// Each part's consistent point and what [`Part::to_json`] gave.
    pub(crate) parts: Vec<(Lsn, String)>,
}

#[derive(Serialize, Deserialize)]
struct PartJson {
    files: Vec<String>,
    shares: Vec<Share>,
    #[serde(default)]
    companions: BTreeSet<i32>,
}

impl Part {
    /// As the registry keeps it.
    ///
    /// # Errors
    /// [`ErrorKind::Lake`] when a file cannot be described.
    pub(crate) fn to_json(&self) -> Result<String> {
        let files = self.files.iter().map(|numbered| numbered.file.to_json()).collect::<Result<_, _>>()?;
        let (shares, companions) = (self.shares.clone(), self.companions.clone());
        serde_json::to_string(&PartJson { files, shares, companions }).map_err(damaged)
    }
}

impl Abandoned {
    /// Since when the stream's changes belong to it. `None`: no part of it is done.
    pub(crate) fn from(&self) -> Option<Lsn> {
        self.parts.iter().map(|(as_of, _)| *as_of).min()
    }

    /// The columns that have a companion in its files, by field id.
    ///
    /// # Errors
    /// As [`Self::progress`].
    pub(crate) fn companions(&self) -> Result<BTreeSet<i32>> {
        let mut companions = BTreeSet::new();
        for (_, json) in &self.parts {
            companions.extend(serde_json::from_str::<PartJson>(json).map_err(damaged)?.companions);
        }
        Ok(companions)
    }

    /// Takes the copy over. `lake` has the companions of its files.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] when what was kept is not to be understood.
    pub(crate) fn progress(&self, lake: &LakeTable) -> Result<Progress> {
        let (mut parts, mut number) = (Vec::with_capacity(self.parts.len()), 0);
        let mut kept = self.parts.clone();
        kept.sort_by_key(|(as_of, _)| *as_of);
        for (as_of, json) in kept {
            let PartJson { files, shares, companions } = serde_json::from_str(&json).map_err(damaged)?;
            let mut numbered = Vec::with_capacity(files.len());
            for file in files {
                numbered.push(NumberedFile { number, file: WrittenFile::from_json(lake, &file).map_err(damaged)? });
                number += 1;
            }
            parts.push(Part { as_of, files: numbered, shares, companions });
        }
        Ok(Progress { shape: Some(self.shape.clone()), parts })
    }
}

fn damaged(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Protocol, "what was kept of a copy is not to be understood").with_source(error)
}

impl Progress {
    /// Since when the stream's changes belong to the copy.
    pub(crate) fn from(&self) -> Option<Lsn> {
        self.parts.first().map(|part| part.as_of)
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &NumberedFile> {
        self.parts.iter().flat_map(|part| &part.files)
    }

    pub(super) fn companions(&self) -> BTreeSet<i32> {
        self.parts.iter().flat_map(|part| part.companions.iter().copied()).collect()
    }

    pub(super) fn shares(&self) -> Vec<Share> {
        self.parts.iter().flat_map(|part| part.shares.iter().cloned()).collect()
    }

    pub(crate) fn rows(&self) -> u64 {
        self.files().map(|numbered| numbered.file.rows).sum()
    }
}

/// Whether a copy of this table may be made of several snapshots. What then joins it with the stream is the key; and a
/// row that enters through a row filter comes without its unchanged values. A history begins at one position.
pub(crate) fn takes_parts(table: &SourceTable) -> bool {
    table.identity == RowIdentity::Key && table.projection.filter.is_none() && !table.history
}

/// What must be as it was when the first part was copied: columns, key, layout, what the publication sends, and the files of
/// the heaps, which TRUNCATE and the rewriting forms of ALTER TABLE replace.
pub(super) fn fingerprint(
    table: &SourceTable,
    layout: &Layout,
    partitions: Option<&Links>,
    heaps: &[(u32, u32)],
) -> String {
    let columns = table.spec.columns.iter();
    let columns: Vec<_> =
        columns.map(|column| json!([column.field_id, column.name, column.type_oid, column.typmod])).collect();
    json!({
        "columns": columns,
        "key": table.spec.key,
        "layout": layout,
        "published": table.projection.published_as,
        "partitions": partitions.map(Links::to_text),
        "heaps": heaps,
    })
    .to_string()
}
