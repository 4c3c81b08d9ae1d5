//! Which data files a table consists of, and which of their rows are deleted.

use std::collections::HashMap;

use futures_util::future::try_join_all;
use iceberg::spec::{DataContentType, ManifestContentType, ManifestEntryRef, ManifestFile};
use roaring::RoaringTreemap;

use crate::deletion_vectors::{is_vector, read_vectors};
use crate::error::{Error, Result};
use crate::lineage::number_rows;
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
        for entry in load_live_entries(warehouse, self.manifests()).await? {
            match entry.content_type() {
                DataContentType::Data => data.push(entry),
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
        data.sort_by(|a, b| (a.sequence_number(), a.file_path()).cmp(&(b.sequence_number(), b.file_path())));
        let live = data.iter().map(|entry| LiveFile {
            path: entry.file_path().to_owned(),
            rows: entry.record_count(),
            bytes: entry.file_size_in_bytes(),
            deleted: deleted.remove(entry.file_path()).unwrap_or_default(),
        });
        Ok(live.collect())
    }
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
