//! Which data files a table consists of, and which of their rows are deleted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use futures_util::future::try_join_all;
use iceberg::spec::{DataContentType, Datum, ManifestContentType, ManifestEntryRef, ManifestFile, PrimitiveLiteral};
use roaring::RoaringTreemap;
use uuid::Uuid;

use crate::data_file::WrittenFile;
use crate::error::{Error, Result};
use crate::position_deletes::{FILE_PATH, read_position_deletes, write_position_deletes};
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

/// A position delete file that is part of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteFile {
    /// Where it is, as manifests name it.
    pub path: String,
    /// Positions in it.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// All of its positions are in data files that the table has not any more.
    pub dangling: bool,
}

impl LakeTable {
    /// How many data files the table consists of.
    pub fn data_file_count(&self) -> u64 {
        self.count(ManifestContentType::Data)
    }

    /// How many delete files belong to the table.
    pub fn delete_file_count(&self) -> u64 {
        self.count(ManifestContentType::Deletes)
    }

    fn count(&self, kind: ManifestContentType) -> u64 {
        let live = |manifest: &ManifestFile| {
            u64::from(manifest.added_files_count.unwrap_or(0) + manifest.existing_files_count.unwrap_or(0))
        };
        self.manifests().iter().filter(|manifest| manifest.content == kind).map(live).sum()
    }

    /// Reads which delete files belong to the table, from its manifests. One that is about several data files, some of
    /// which are gone, is told to be dangling only where its bounds say so.
    ///
    /// # Errors
    /// As [`Self::live_files`].
    pub async fn delete_files(&self, warehouse: &Warehouse) -> Result<Vec<DeleteFile>> {
        let entries = load_live_entries(warehouse, self.manifests()).await?;
        let live = data_paths(&entries);
        let deletes = entries.iter().filter(|entry| entry.content_type() == DataContentType::PositionDeletes);
        let described = deletes.map(|entry| DeleteFile {
            path: entry.file_path().to_owned(),
            rows: entry.record_count(),
            bytes: entry.file_size_in_bytes(),
            dangling: {
                let file = entry.data_file();
                let only = file.referenced_data_file();
                let bound = |bounds: &HashMap<i32, Datum>| bounds.get(&FILE_PATH.1).and_then(text);
                let least = only.clone().or_else(|| bound(file.lower_bounds()));
                let most = only.or_else(|| bound(file.upper_bounds()));
                least.zip(most).is_some_and(|(least, most)| {
                    let range = (Bound::Included(least.as_str()), Bound::Included(most.as_str()));
                    least <= most && live.range::<str, _>(range).next().is_none()
                })
            },
        });
        Ok(described.collect())
    }

    /// Reads which data files the table consists of, oldest first, from its manifests and position delete files.
    pub async fn live_files(&self, warehouse: &Warehouse) -> Result<Vec<LiveFile>> {
        let mut deleted = HashMap::new();
        let mut data = Vec::new();
        for entry in load_live_entries(warehouse, self.manifests()).await? {
            match entry.content_type() {
                DataContentType::Data => data.push(entry),
                DataContentType::PositionDeletes => {
                    read_position_deletes(warehouse, entry.file_path(), &mut deleted).await?;
                }
                DataContentType::EqualityDeletes => {
                    return Err(self.foreign_change("has equality deletes, which its mirror never writes"));
                }
            }
        }
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

fn data_paths(entries: &[ManifestEntryRef]) -> BTreeSet<&str> {
    let data = entries.iter().filter(|entry| entry.content_type() == DataContentType::Data);
    data.map(|entry| entry.file_path()).collect()
}

fn text(datum: &Datum) -> Option<String> {
    match datum.literal() {
        PrimitiveLiteral::String(text) => Some(text.clone()),
        _ => None,
    }
}

/// Writes what some position delete files of a table delete as one file. Positions in data files that the table has not any
/// more are left out. `None`, and no file, when nothing is left.
///
/// # Errors
/// As [`write_position_deletes`].
pub async fn merge_position_deletes(
    warehouse: &Warehouse,
    table: &LakeTable,
    epoch: i64,
    attempt: Uuid,
    paths: &[String],
) -> Result<Option<WrittenFile>> {
    let entries = load_live_entries(warehouse, table.manifests()).await?;
    let live = data_paths(&entries);
    let mut deleted = HashMap::new();
    for path in paths {
        read_position_deletes(warehouse, path, &mut deleted).await?;
    }
    let deleted: BTreeMap<String, RoaringTreemap> =
        deleted.into_iter().filter(|(path, _)| live.contains(path.as_str())).collect();
    write_position_deletes(warehouse, table, epoch, attempt, &deleted).await
}

/// All entries of some manifests, with what they inherit filled in.
pub(crate) async fn load_entries(warehouse: &Warehouse, manifests: &[ManifestFile]) -> Result<Vec<ManifestEntryRef>> {
    let load = |manifest: &ManifestFile| {
        let manifest = manifest.clone();
        async move {
            let loaded = manifest.load_manifest(warehouse.file_io()).await;
            let loaded =
                loaded.map_err(|error| Error::iceberg(format!("read manifest {}", manifest.manifest_path), error))?;
            Ok::<_, Error>(loaded.into_parts().0)
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
