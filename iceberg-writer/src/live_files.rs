//! Which data files a table consists of, and which of their rows are deleted.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures_util::future::try_join_all;
use iceberg::spec::{DataContentType, ManifestContentType, ManifestEntryRef, ManifestFile};
use roaring::RoaringTreemap;

use crate::bounds::{ColumnBounds, bounds};
use crate::deletion_vectors::{is_vector, read_vectors};
use crate::error::{Error, Result};
use crate::lineage::number_rows;
use crate::partition::Partition;
use crate::position_deletes::read_position_deletes;
use crate::table::LakeTable;
use crate::warehouse::Warehouse;

/// A data file that is part of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveFile {
    /// Where it is, as manifests name it.
    pub path: String,
    /// Its rows, deleted ones included.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// The positions that are deleted.
    pub deleted: RoaringTreemap,
    /// The partition it is in.
    pub partition: Partition,
    /// Its rows are in the order that the table has with the next commit, if it has one.
    pub is_sorted: bool,
    /// Between which values its columns are.
    pub bounds: Arc<[ColumnBounds]>,
}

impl LiveFile {
    /// Its rows that are not deleted.
    pub fn live_rows(&self) -> u64 {
        // Who deletes a row that a file has not has deleted nothing.
        let deleted = self.rows.checked_sub(1).map_or(0, |last| self.deleted.rank(last));
        self.rows - deleted
    }
}

impl LakeTable {
    /// How many data files the table consists of.
    pub fn data_file_count(&self) -> u64 {
        self.count(ManifestContentType::Data)
    }

    /// How many delete files, or deletion vectors, belong to the table.
    pub fn delete_file_count(&self) -> u64 {
        self.count(ManifestContentType::Deletes)
    }

    fn count(&self, kind: ManifestContentType) -> u64 {
        let live = |manifest: &ManifestFile| {
            u64::from(manifest.added_files_count.unwrap_or(0) + manifest.existing_files_count.unwrap_or(0))
        };
        self.manifests().iter().filter(|manifest| manifest.content == kind).map(live).sum()
    }

    /// How many positions the table's delete files hold. They are more than its deleted rows when some are of files that
    /// the table has no more, which another engine's compaction leaves.
    pub fn deleted_position_count(&self) -> u64 {
        let live = |manifest: &ManifestFile| {
            manifest.added_rows_count.unwrap_or(0) + manifest.existing_rows_count.unwrap_or(0)
        };
        let of_deletes = |manifest: &&ManifestFile| manifest.content == ManifestContentType::Deletes;
        self.manifests().iter().filter(of_deletes).map(live).sum()
    }

    /// The paths of the table's delete files.
    pub(crate) async fn delete_paths(&self, warehouse: &Warehouse) -> Result<Vec<String>> {
        let of_deletes = |manifest: &&ManifestFile| manifest.content == ManifestContentType::Deletes;
        let manifests: Vec<ManifestFile> = self.manifests().iter().filter(of_deletes).cloned().collect();
        let entries = load_live_entries(warehouse, &manifests).await?;
        Ok(entries.iter().map(|entry| entry.file_path().to_owned()).collect())
    }

    /// Reads which data files the table consists of, oldest first, from its manifests and what they say is deleted.
    pub async fn live_files(&self, warehouse: &Warehouse) -> Result<Vec<LiveFile>> {
        let mut deleted = HashMap::new();
        let (mut data, mut vectors) = (Vec::new(), Vec::new());
        for (spec_id, entry) in load_live_by_spec(warehouse, self.manifests()).await? {
            match entry.content_type() {
                DataContentType::Data => data.push((spec_id, entry)),
                DataContentType::PositionDeletes if is_vector(entry.data_file()) => vectors.push(entry),
                DataContentType::PositionDeletes => {
                    read_position_deletes(warehouse, entry.file_path(), &mut deleted).await?;
                }
                DataContentType::EqualityDeletes => {
                    return Err(self.foreign_change("has equality deletes, which its mirror never writes"));
                }
            }
        }
        // Where a file has a vector, that has all that is deleted in it.
        let mut by_vector = HashMap::with_capacity(vectors.len());
        read_vectors(warehouse, &vectors, &mut by_vector).await?;
        deleted.extend(by_vector);
        data.sort_by(|(_, a), (_, b)| (a.sequence_number(), a.file_path()).cmp(&(b.sequence_number(), b.file_path())));
        let live = data.iter().map(|(spec_id, entry)| {
            let deleted = deleted.remove(entry.file_path()).unwrap_or_default();
            Ok(LiveFile { deleted, ..self.live_file(*spec_id, entry)? })
        });
        live.collect()
    }

    /// A file of a manifest of this spec, without what is deleted in it.
    pub(crate) fn live_file(&self, spec_id: i32, entry: &ManifestEntryRef) -> Result<LiveFile> {
        let fields = self.partition_fields(&*self.partition_spec(spec_id)?)?;
        let order = entry.data_file().sort_order_id().map_or(0, i64::from);
        let wanted = self.next_sort_order()?.order_id;
        Ok(LiveFile {
            path: entry.file_path().to_owned(),
            rows: entry.record_count(),
            bytes: entry.file_size_in_bytes(),
            deleted: RoaringTreemap::new(),
            partition: Partition::new(spec_id, fields, entry.data_file().partition().clone()),
            is_sorted: order != 0 && order == wanted,
            bounds: bounds(entry.data_file()),
        })
    }
}

/// The entries of some manifests that are part of the table, each with the number of its partition spec.
pub(crate) async fn load_live_by_spec(
    warehouse: &Warehouse,
    manifests: &[ManifestFile],
) -> Result<Vec<(i32, ManifestEntryRef)>> {
    let specs: BTreeSet<i32> = manifests.iter().map(|manifest| manifest.partition_spec_id).collect();
    let mut all = Vec::new();
    for spec_id in specs {
        let of_spec = manifests.iter().filter(|manifest| manifest.partition_spec_id == spec_id);
        let of_spec: Vec<ManifestFile> = of_spec.cloned().collect();
        let entries = load_live_entries(warehouse, &of_spec).await?;
        all.extend(entries.into_iter().map(|entry| (spec_id, entry)));
    }
    Ok(all)
}

/// All entries of some manifests, with what they inherit filled in.
pub(crate) async fn load_entries(warehouse: &Warehouse, manifests: &[ManifestFile]) -> Result<Vec<ManifestEntryRef>> {
    let load = |manifest: &ManifestFile| {
        let manifest = manifest.clone();
        async move {
            let loaded = manifest.load_manifest(warehouse.file_io()).await;
            let loaded =
                loaded.map_err(|error| Error::iceberg(format!("read manifest {}", manifest.manifest_path), error))?;
            number_rows(&manifest, loaded.into_parts().0)
        }
    };
    Ok(try_join_all(manifests.iter().map(load)).await?.into_iter().flatten().collect())
}

/// The entries of some manifests that are part of the table.
pub(crate) async fn load_live_entries(
    warehouse: &Warehouse,
    manifests: &[ManifestFile],
) -> Result<Vec<ManifestEntryRef>> {
    let mut entries = load_entries(warehouse, manifests).await?;
    entries.retain(|entry| entry.is_alive());
    Ok(entries)
}
