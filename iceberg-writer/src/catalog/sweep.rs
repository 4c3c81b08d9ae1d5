//! Removing what no retained snapshot names any more.
//!
//! A file is deleted only when it lies in its table's folder, an expired snapshot named it, and no retained snapshot does
//! (or when its writer said that no snapshot ever will). Everything that could not be looked at or removed is left for
//! later: too much is better than too little. And it is deleted some time after that (see [`super::grace`]).

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{self, StreamExt as _};
use iceberg::spec::{ManifestFile, SnapshotRef, TableMetadata};
use tracing::warn;

use super::mirror::{MirrorCatalog, lock};
use super::{IsPinned, Swept};
use crate::commit::{CommitReceipt, Garbage};
use crate::error::{Error, Result};
use crate::live_files::{load_entries, load_live_entries};
use crate::table::read_manifest_list;

/// Requests that are under way at once: an object store takes its time for each, and can do with some.
const DELETES_AT_ONCE: usize = 8;

/// What several commits made superfluous, a table at a time: seen from the newest of them, which retains the least. What it
/// costs to look at what is retained is paid once.
fn together(receipts: &[CommitReceipt]) -> Vec<Garbage> {
    let mut tables: Vec<Garbage> = Vec::new();
    for garbage in receipts.iter().flat_map(CommitReceipt::garbage) {
        let known =
            tables.iter_mut().find(|known| known.table.uuid() == garbage.table.uuid() && garbage.replaced.is_none());
        match known {
            None => tables.push(garbage.clone()),
            Some(known) => {
                known.table = garbage.table.clone();
                known.expired.extend(garbage.expired.iter().cloned());
                known.metadata_files.extend(garbage.metadata_files.iter().cloned());
            }
        }
    }
    tables
}

impl MirrorCatalog {
    pub(super) async fn sweep_garbage(&self, receipts: &[CommitReceipt], is_pinned: &IsPinned<'_>) -> Swept {
        for garbage in together(receipts) {
            match self.superfluous_files(&garbage).await {
                Ok(files) => lock(&self.superfluous).put_off(files, Instant::now(), self.retention.grace),
                Err(error) => {
                    warn!(table = garbage.table.full_name(), %error, "could not tell which files are superfluous");
                }
            }
        }
        let due = lock(&self.superfluous).take_due(Instant::now());
        self.remove(due, is_pinned).await
    }

    /// Deletes files, and puts off what is read or cannot be deleted.
    async fn remove(&self, files: BTreeSet<String>, is_pinned: &IsPinned<'_>) -> Swept {
        let mut swept = Swept::default();
        let (pinned, free): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| is_pinned(file));
        swept.pinned = pinned.len();
        let deletes = stream::iter(free).map(async |file| match self.warehouse.file_io().delete(&file).await {
            Ok(()) => None,
            Err(error) => {
                warn!(file, %error, "could not remove a superfluous file");
                Some(file)
            }
        });
        let mut failed = Vec::new();
        let mut deletes = std::pin::pin!(deletes.buffer_unordered(DELETES_AT_ONCE));
        while let Some(deleted) = deletes.next().await {
            match deleted {
                None => swept.deleted += 1,
                Some(file) => failed.push(file),
            }
        }
        swept.failed = failed.len();
        let mut superfluous = lock(&self.superfluous);
        superfluous.may_go(pinned.into_iter().chain(failed));
        swept.next = superfluous.next();
        swept
    }

    /// The files that a commit made superfluous.
    async fn superfluous_files(&self, garbage: &Garbage) -> Result<BTreeSet<String>> {
        let table = &garbage.table;
        let mut files = self.files_of_expired(garbage).await?;
        files.extend(garbage.metadata_files.iter().cloned());
        files.retain(|file| table.owns(file));
        if let Some(location) = &garbage.replaced {
            files.extend(self.files_of_replaced(location).await?);
        }
        // Nobody looks at them again.
        lock(&self.lists).retain(|list, _| !files.contains(list));
        Ok(files)
    }

    async fn files_of_expired(&self, garbage: &Garbage) -> Result<BTreeSet<String>> {
        let mut files = BTreeSet::new();
        if garbage.expired.is_empty() {
            return Ok(files);
        }
        let retained: Vec<SnapshotRef> = garbage.table.metadata().snapshots().cloned().collect();
        let mut retained_manifests = Vec::new();
        let mut retained_paths = HashSet::new();
        for snapshot in &retained {
            for manifest in self.manifests_of(snapshot).await?.iter() {
                if retained_paths.insert(manifest.manifest_path.clone()) {
                    retained_manifests.push(manifest.clone());
                }
            }
        }
        let mut dropped = Vec::new();
        for snapshot in &garbage.expired {
            files.insert(snapshot.manifest_list().to_owned());
            for manifest in self.manifests_of(snapshot).await?.iter() {
                if !retained_paths.contains(&manifest.manifest_path) && files.insert(manifest.manifest_path.clone()) {
                    dropped.push(manifest.clone());
                }
            }
        }
        if !dropped.is_empty() {
            let candidates = load_entries(&self.warehouse, &dropped).await?;
            let live = load_live_entries(&self.warehouse, &retained_manifests).await?;
            let live: HashSet<&str> = live.iter().map(|entry| entry.file_path()).collect();
            let dead = candidates.iter().map(|entry| entry.file_path()).filter(|path| !live.contains(path));
            files.extend(dead.map(str::to_owned));
        }
        Ok(files)
    }

    /// All files of a table that another one took the name of.
    async fn files_of_replaced(&self, location: &str) -> Result<BTreeSet<String>> {
        let metadata = TableMetadata::read_from(self.warehouse.file_io(), location).await;
        let metadata = metadata.map_err(|error| Error::iceberg(format!("read the metadata {location}"), error))?;
        let mut files = BTreeSet::from([location.to_owned()]);
        files.extend(metadata.metadata_log().iter().map(|log| log.metadata_file.clone()));
        let mut manifests: Vec<ManifestFile> = Vec::new();
        for snapshot in metadata.snapshots() {
            files.insert(snapshot.manifest_list().to_owned());
            for manifest in self.manifests_of(snapshot).await?.iter() {
                if files.insert(manifest.manifest_path.clone()) {
                    manifests.push(manifest.clone());
                }
            }
        }
        let entries = load_entries(&self.warehouse, &manifests).await?;
        files.extend(entries.iter().map(|entry| entry.file_path().to_owned()));
        let folder = format!("{}/", metadata.location());
        files.retain(|file| file.starts_with(&folder));
        Ok(files)
    }

    pub(super) async fn manifests_of(&self, snapshot: &SnapshotRef) -> Result<Arc<[ManifestFile]>> {
        if let Some(manifests) = lock(&self.lists).get(snapshot.manifest_list()) {
            return Ok(Arc::clone(manifests));
        }
        let manifests: Arc<[ManifestFile]> = read_manifest_list(&self.warehouse, snapshot).await?.into();
        lock(&self.lists).insert(snapshot.manifest_list().to_owned(), Arc::clone(&manifests));
        Ok(manifests)
    }
}
