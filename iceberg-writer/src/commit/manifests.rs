//! The manifests of a new snapshot.
//!
//! A snapshot adds at most one data and one delete manifest for each partition spec. When the small ones of a kind have become
//! too many they are merged into the new one, so that the list, and the time of a commit, stay flat. Files keep the snapshot and the sequence
//! numbers they came with. Those that take others' places are new files as all are: with the number of this snapshot, they
//! are out of the reach of delete files from before, and within that of the ones that come with them.
//!
//! Deletion vectors are found by the data file that they are about, so each commit that brings or removes some has to look at
//! all there are. It leaves them in one manifest, for the next to look at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use iceberg::spec::{
    DataContentType, ManifestContentType, ManifestEntryRef, ManifestFile, ManifestListWriter, ManifestWriter,
    ManifestWriterBuilder, PartitionSpec, Schema,
};
use uuid::Uuid;

use super::TableChange;
use crate::data_file::WrittenFile;
use crate::deletion_vectors::is_vector;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::live_files::{load_live_by_spec, load_live_entries};
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
    let mut removed = load_live_by_spec(warehouse, &gone).await?;
    let writer = Writer { warehouse, base, schema: base.next_schema()?, snapshot };
    // A truncation has removed them already.
    let replaced = if change.truncate { BTreeSet::new() } else { change.rewrite.removed.iter().cloned().collect() };
    let (mut kept, mut existing) = writer.take_out(kept, replaced, &mut removed).await?;
    if base.format() >= Format::V3 {
        let others;
        (kept, others) =
            writer.take_out_vectors(kept, &change.vectors_of(), !change.deletes.is_empty(), &mut removed).await?;
        existing.extend(others);
    }
    let mut groups: BTreeMap<Group, Contents> = BTreeMap::new();
    for manifest in kept {
        let group =
            Group { is_delete: manifest.content == ManifestContentType::Deletes, spec: manifest.partition_spec_id };
        groups.entry(group).or_default().kept.push(manifest);
    }
    for (file, is_delete) in
        change.added_data().map(|file| (file, false)).chain(change.deletes.iter().map(|file| (file, true)))
    {
        let group = Group { is_delete, spec: file.partition.spec_id() };
        groups.entry(group).or_default().added.push(file);
    }
    for (spec, entry) in removed.iter().cloned() {
        groups.entry(Group { is_delete: is_delete(&entry), spec }).or_default().removed.push(entry);
    }
    for (spec, entry) in existing.drain(..) {
        groups.entry(Group { is_delete: is_delete(&entry), spec }).or_default().existing.push(entry);
    }
    let written = groups.into_iter().map(|(group, contents)| writer.write(group, contents));
    let all: Vec<ManifestFile> = futures_util::future::try_join_all(written).await?.into_iter().flatten().collect();
    let is_new = |manifest: &&ManifestFile| manifest.added_snapshot_id == snapshot.id;
    let written = all.iter().filter(is_new).map(|manifest| manifest.manifest_path.clone()).collect();
    let removed = removed.into_iter().map(|(_, entry)| entry).collect();
    Ok(NewManifests { all, written, removed })
}

/// Manifests that may be merged: of one kind and one partition spec. Those of data come first in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    is_delete: bool,
    spec: i32,
}

/// What the manifests of a group are to have.
#[derive(Default)]
struct Contents<'a> {
    /// Manifests that may stay as they are.
    kept: Vec<ManifestFile>,
    /// Entries of manifests that may not.
    existing: Vec<ManifestEntryRef>,
    added: Vec<&'a WrittenFile>,
    removed: Vec<ManifestEntryRef>,
}

fn is_delete(entry: &ManifestEntryRef) -> bool {
    entry.content_type() != DataContentType::Data
}

struct Writer<'a> {
    warehouse: &'a Warehouse,
    base: &'a LakeTable,
    schema: Arc<Schema>,
    snapshot: NewSnapshot,
}

impl Writer<'_> {
    /// The manifests of a group after the change: those that it has, merged when they are too many, and one with what is new.
    async fn write(&self, group: Group, contents: Contents<'_>) -> Result<Vec<ManifestFile>> {
        let Contents { kept, mut existing, added, removed } = contents;
        let small = |manifest: &ManifestFile| manifest.manifest_length < LARGE_MANIFEST_BYTES;
        let (mut small, mut result): (Vec<_>, Vec<_>) = kept.into_iter().partition(small);
        if small.len() + usize::from(!added.is_empty()) <= MERGE_MANIFESTS {
            result.append(&mut small);
        }
        if added.is_empty() && removed.is_empty() && existing.is_empty() && small.is_empty() {
            return Ok(result);
        }
        existing.extend(load_live_entries(self.warehouse, &small).await?);
        let kind = if group.is_delete { "deletes" } else { "data" };
        let name = if group.spec == 0 { kind.to_owned() } else { format!("{kind}-{}", group.spec) };
        let NewSnapshot { id, attempt, .. } = self.snapshot;
        let path = format!("{}/{id}-{attempt}-{name}.avro", self.base.metadata_folder());
        let fail = |error| Error::iceberg(format!("write manifest {path}"), error);
        let spec = self.base.partition_spec(group.spec)?;
        let mut manifest = self.open(group, &spec, &path).map_err(fail)?;
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
        Ok(result)
    }

    /// Takes files out of the manifests that have them. Gives the other manifests, and the other files of these.
    async fn take_out(
        &self,
        manifests: Vec<ManifestFile>,
        mut files: BTreeSet<String>,
        removed: &mut Vec<(i32, ManifestEntryRef)>,
    ) -> Result<(Vec<ManifestFile>, Vec<(i32, ManifestEntryRef)>)> {
        let (mut kept, mut existing) = (Vec::with_capacity(manifests.len()), Vec::new());
        // What is rewritten is mostly young, and the youngest manifests are the last.
        for manifest in manifests.into_iter().rev() {
            if files.is_empty() || manifest.content == ManifestContentType::Deletes {
                kept.push(manifest);
                continue;
            }
            let entries = load_live_entries(self.warehouse, std::slice::from_ref(&manifest)).await?;
            let (gone, others): (Vec<_>, Vec<_>) =
                entries.into_iter().partition(|entry| files.remove(entry.file_path()));
            if gone.is_empty() {
                kept.push(manifest);
            } else {
                let spec = manifest.partition_spec_id;
                removed.extend(gone.into_iter().map(|entry| (spec, entry)));
                existing.extend(others.into_iter().map(|entry| (spec, entry)));
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
        removed: &mut Vec<(i32, ManifestEntryRef)>,
    ) -> Result<(Vec<ManifestFile>, Vec<(i32, ManifestEntryRef)>)> {
        if of.is_empty() {
            return Ok((manifests, Vec::new()));
        }
        let (manifests, mut kept): (Vec<_>, Vec<_>) =
            manifests.into_iter().partition(|manifest| manifest.content == ManifestContentType::Deletes);
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
            kept.extend(manifests);
            return Ok((kept, Vec::new()));
        }
        let mut existing = Vec::new();
        for (manifest, entries) in manifests.into_iter().zip(entries) {
            let (gone, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(goes);
            if gone.is_empty() && manifest.manifest_length >= LARGE_MANIFEST_BYTES {
                kept.push(manifest);
            } else {
                let spec = manifest.partition_spec_id;
                removed.extend(gone.into_iter().map(|entry| (spec, entry)));
                existing.extend(others.into_iter().map(|entry| (spec, entry)));
            }
        }
        Ok((kept, existing))
    }

    fn open(&self, group: Group, spec: &PartitionSpec, path: &str) -> iceberg::Result<ManifestWriter> {
        let output = self.warehouse.file_io().new_output(path)?;
        let schema = Arc::clone(&self.schema);
        let builder = ManifestWriterBuilder::new(output, Some(self.snapshot.id), schema, spec.clone());
        Ok(match (self.base.format(), group.is_delete) {
            (Format::V2, false) => builder.build_v2_data(),
            (Format::V2, true) => builder.build_v2_deletes(),
            (Format::V3, false) => builder.build_v3_data(),
            (Format::V3, true) => builder.build_v3_deletes(),
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
