//! The manifests of a new snapshot.
//!
//! A snapshot adds at most one data and one delete manifest. When the small ones of a kind have become too many they are
//! merged into the new one, so that the list, and the time of a commit, stay flat. Files keep the snapshot and the sequence
//! numbers they came with. Those that take others' places are new files as all are: with the number of this snapshot, they
//! are out of the reach of delete files from before, and within that of the ones that come with them.
//!
//! Deletion vectors are found by the data file that they are about, so each commit that brings or removes some has to look at
//! all there are. It leaves them in one manifest, for the next to look at.

use std::collections::BTreeSet;
use std::sync::Arc;

use iceberg::spec::{
    DataContentType, ManifestContentType, ManifestEntryRef, ManifestFile, ManifestListWriter, ManifestWriter,
    ManifestWriterBuilder, Schema,
};
use uuid::Uuid;

use super::TableChange;
use crate::data_file::WrittenFile;
use crate::deletion_vectors::is_vector;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::live_files::load_live_entries;
use crate::table::LakeTable;
use crate::warehouse::Warehouse;

/// Manifests of one kind that are merged once there are more.
const MERGE_MANIFESTS: usize = 20;
/// A manifest of this size is not merged again.
const LARGE_MANIFEST_BYTES: i64 = 8 << 20;
/// What a manifest and its list carry until the list is written.
const UNASSIGNED: i64 = -1;

/// Identity of the snapshot being made.
#[derive(Clone, Copy)]
pub(super) struct NewSnapshot {
    pub(super) id: i64,
    pub(super) sequence_number: i64,
    /// Of the batch: part of the names of files, by which those that are left behind are told.
    pub(super) attempt: Uuid,
}

/// A snapshot's manifests, and which files it removed.
pub(super) struct NewManifests {
    pub(super) all: Vec<ManifestFile>,
    /// The paths of those this snapshot made.
    pub(super) written: Vec<String>,
    pub(super) removed: Vec<ManifestEntryRef>,
}

/// Writes the manifests that a change needs and lists all of the table's.
pub(super) async fn next_manifests(
    warehouse: &Warehouse,
    change: &TableChange,
    snapshot: NewSnapshot,
) -> Result<NewManifests> {
    let base = &change.table;
    let live = |manifest: &&ManifestFile| manifest.has_added_files() || manifest.has_existing_files();
    let goes = |manifest: &ManifestFile| {
        change.truncate || change.rewrite.all_deletes && manifest.content == ManifestContentType::Deletes
    };
    let (gone, kept): (Vec<_>, Vec<_>) = base.manifests().iter().filter(live).cloned().partition(goes);
    let removed = load_live_entries(warehouse, &gone).await?;
    let of_kind = |kind: ManifestContentType| {
        let manifests = kept.iter().filter(|manifest| manifest.content == kind).cloned().collect::<Vec<_>>();
        let removed = removed.iter().filter(|entry| kind_of(entry) == kind).cloned().collect::<Vec<_>>();
        (manifests, removed)
    };
    let (data, removed_data) = of_kind(ManifestContentType::Data);
    let (deletes, removed_deletes) = of_kind(ManifestContentType::Deletes);
    let added_data: Vec<WrittenFile> = change.added_data().cloned().collect();
    let added_deletes: Vec<WrittenFile> = change.deletes.clone();
    // A truncation has removed them already.
    let replaced = if change.truncate { BTreeSet::new() } else { change.rewrite.removed.iter().cloned().collect() };
    let writer = Writer { warehouse, base, schema: base.next_schema()?, snapshot };
    let ((mut all, mut removed), (deletes, undone)) = futures_util::future::try_join(
        writer.write(ManifestContentType::Data, data, &added_data, removed_data, replaced),
        writer.write(ManifestContentType::Deletes, deletes, &added_deletes, removed_deletes, change.vectors_of()),
    )
    .await?;
    all.extend(deletes);
    removed.extend(undone);
    let is_new = |manifest: &&ManifestFile| manifest.added_snapshot_id == snapshot.id;
    let written = all.iter().filter(is_new).map(|manifest| manifest.manifest_path.clone()).collect();
    Ok(NewManifests { all, written, removed })
}

fn kind_of(entry: &ManifestEntryRef) -> ManifestContentType {
    match entry.content_type() {
        DataContentType::Data => ManifestContentType::Data,
        DataContentType::PositionDeletes | DataContentType::EqualityDeletes => ManifestContentType::Deletes,
    }
}

struct Writer<'a> {
    warehouse: &'a Warehouse,
    base: &'a LakeTable,
    schema: Arc<Schema>,
    snapshot: NewSnapshot,
}

impl Writer<'_> {
    /// The manifests of one kind after the change, and the files that are removed: `kept`, merged when they are too many,
    /// without the files `replaced` (or the deletion vectors of these data files), and the new entries.
    async fn write(
        &self,
        kind: ManifestContentType,
        kept: Vec<ManifestFile>,
        added: &[WrittenFile],
        mut removed: Vec<ManifestEntryRef>,
        replaced: BTreeSet<String>,
    ) -> Result<(Vec<ManifestFile>, Vec<ManifestEntryRef>)> {
        let (kept, mut existing) = match (kind, self.base.format()) {
            (ManifestContentType::Deletes, Format::V3) => {
                self.take_out_vectors(kept, &replaced, !added.is_empty(), &mut removed).await?
            }
            _ => self.take_out(kept, replaced, &mut removed).await?,
        };
        let small = |manifest: &ManifestFile| manifest.manifest_length < LARGE_MANIFEST_BYTES;
        let (mut small, mut result): (Vec<_>, Vec<_>) = kept.into_iter().partition(small);
        if small.len() + usize::from(!added.is_empty()) <= MERGE_MANIFESTS {
            result.append(&mut small);
        }
        if added.is_empty() && removed.is_empty() && small.is_empty() {
            return Ok((result, removed));
        }
        existing.extend(load_live_entries(self.warehouse, &small).await?);
        let name = if kind == ManifestContentType::Data { "data" } else { "deletes" };
        let NewSnapshot { id, attempt, .. } = self.snapshot;
        let path = format!("{}/metadata/{id}-{attempt}-{name}.avro", self.base.location());
        let fail = |error| Error::iceberg(format!("write manifest {path}"), error);
        let mut manifest = self.open(kind, &path).map_err(fail)?;
        for file in added {
            manifest.add_file(file.entry.clone(), UNASSIGNED).map_err(fail)?;
        }
        for entry in &existing {
            let (added_in, sequence_number) = numbers(entry, &path)?;
            manifest
                .add_existing_file(entry.data_file().clone(), added_in, sequence_number, entry.file_sequence_number)
                .map_err(fail)?;
        }
        for entry in &removed {
            let (_, sequence_number) = numbers(entry, &path)?;
            manifest
                .add_delete_file(entry.data_file().clone(), sequence_number, entry.file_sequence_number)
                .map_err(fail)?;
        }
        result.push(manifest.write_manifest_file().await.map_err(fail)?);
        Ok((result, removed))
    }

    /// Takes files out of the manifests that have them. Gives the other manifests, and the other files of these.
    async fn take_out(
        &self,
        manifests: Vec<ManifestFile>,
        mut files: BTreeSet<String>,
        removed: &mut Vec<ManifestEntryRef>,
    ) -> Result<(Vec<ManifestFile>, Vec<ManifestEntryRef>)> {
        let (mut kept, mut existing) = (Vec::with_capacity(manifests.len()), Vec::new());
        // What is rewritten is mostly young, and the youngest manifests are the last.
        for manifest in manifests.into_iter().rev() {
            if files.is_empty() {
                kept.push(manifest);
                continue;
            }
            let entries = load_live_entries(self.warehouse, std::slice::from_ref(&manifest)).await?;
            let (gone, others): (Vec<_>, Vec<_>) =
                entries.into_iter().partition(|entry| files.remove(entry.file_path()));
            if gone.is_empty() {
                kept.push(manifest);
            } else {
                removed.extend(gone);
                existing.extend(others);
            }
        }
        kept.reverse();
        match files.first() {
            None => Ok((kept, existing)),
            Some(lost) => Err(self.base.foreign_change(&format!("has lost the file {lost}"))),
        }
    }

    /// Takes the deletion vectors of some data files out of the manifests that have them. Gives the manifests that stay, and
    /// what else is in the others: where there is a new manifest, it is to have all.
    async fn take_out_vectors(
        &self,
        manifests: Vec<ManifestFile>,
        of: &BTreeSet<String>,
        adds: bool,
        removed: &mut Vec<ManifestEntryRef>,
    ) -> Result<(Vec<ManifestFile>, Vec<ManifestEntryRef>)> {
        if of.is_empty() {
            return Ok((manifests, Vec::new()));
        }
        let load = manifests.iter().map(|manifest| load_live_entries(self.warehouse, std::slice::from_ref(manifest)));
        let entries = futures_util::future::try_join_all(load).await?;
        if let Some(other) = entries.iter().flatten().find(|entry| !is_vector(entry.data_file())) {
            // What such a file deletes of a data file could not be removed with that.
            let what = format!("has a position delete file of before it was of version 3, {}", other.file_path());
            return Err(self.base.foreign_change(&what));
        }
        let goes = |entry: &ManifestEntryRef| {
            entry.data_file().referenced_data_file().is_some_and(|data_file| of.contains(&data_file))
        };
        if !adds && !entries.iter().flatten().any(goes) {
            return Ok((manifests, Vec::new()));
        }
        let (mut kept, mut existing) = (Vec::new(), Vec::new());
        for (manifest, entries) in manifests.into_iter().zip(entries) {
            let (gone, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(goes);
            if gone.is_empty() && manifest.manifest_length >= LARGE_MANIFEST_BYTES {
                kept.push(manifest);
            } else {
                removed.extend(gone);
                existing.extend(others);
            }
        }
        Ok((kept, existing))
    }

    fn open(&self, kind: ManifestContentType, path: &str) -> iceberg::Result<ManifestWriter> {
        let metadata = self.base.metadata();
        let output = self.warehouse.file_io().new_output(path)?;
        let schema = Arc::clone(&self.schema);
        let spec = metadata.default_partition_spec().as_ref().clone();
        let builder = ManifestWriterBuilder::new(output, Some(self.snapshot.id), schema, spec);
        Ok(match (self.base.format(), kind) {
            (Format::V2, ManifestContentType::Data) => builder.build_v2_data(),
            (Format::V2, ManifestContentType::Deletes) => builder.build_v2_deletes(),
            (Format::V3, ManifestContentType::Data) => builder.build_v3_data(),
            (Format::V3, ManifestContentType::Deletes) => builder.build_v3_deletes(),
        })
    }
}

/// Snapshot and data sequence number of an entry that was committed before.
fn numbers(entry: &ManifestEntryRef, path: &str) -> Result<(i64, i64)> {
    entry
        .snapshot_id()
        .zip(entry.sequence_number())
        .ok_or_else(|| Error::format(format!("entry {} for {path} has no sequence number", entry.file_path())))
}

/// Writes a snapshot's manifest list, and fills in the numbers that new manifests get by it.
pub(super) async fn write_manifest_list(
    warehouse: &Warehouse,
    path: &str,
    parent: Option<i64>,
    snapshot: NewSnapshot,
    rows: Option<RowRange>,
    manifests: &[ManifestFile],
) -> Result<()> {
    let write = async {
        let output = warehouse.file_io().new_output(path)?.writer().await?;
        let NewSnapshot { id, sequence_number, .. } = snapshot;
        let mut list = match rows {
            None => ManifestListWriter::v2(output, id, parent, sequence_number),
            Some(rows) => ManifestListWriter::v3(output, id, parent, sequence_number, Some(rows.first)),
        };
        list.add_manifests(manifests.iter().cloned())?;
        list.close().await
    };
    write.await.map_err(|error| Error::iceberg(format!("write the manifest list {path}"), error))
}

/// The numbers that a snapshot's new rows get.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowRange {
    pub(super) first: u64,
    pub(super) count: u64,
}

/// Lets the rows of data manifests that have no numbers yet be counted from `first` on, as the specification has it: all rows
/// of a manifest take some, also those that have theirs from before.
pub(super) fn assign_row_ids(manifests: &mut [ManifestFile], first: u64) -> RowRange {
    let mut next = first;
    for manifest in manifests.iter_mut().filter(|manifest| manifest.content == ManifestContentType::Data) {
        if manifest.first_row_id.is_none() {
            manifest.first_row_id = Some(next);
            next += manifest.existing_rows_count.unwrap_or(0) + manifest.added_rows_count.unwrap_or(0);
        }
    }
    RowRange { first, count: next - first }
}

/// The numbers the manifest list gives to new manifests, for those who go on with the list in memory.
pub(super) fn assign_numbers(manifests: &mut [ManifestFile], snapshot: NewSnapshot) {
    for manifest in manifests.iter_mut().filter(|manifest| manifest.added_snapshot_id == snapshot.id) {
        for number in [&mut manifest.sequence_number, &mut manifest.min_sequence_number] {
            if *number == UNASSIGNED {
                *number = snapshot.sequence_number;
            }
        }
    }
}
