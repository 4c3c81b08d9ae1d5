//! Removing what writers left behind that no catalog ever heard of: the files of a batch that was never committed, because
//! its process was killed, its connection broke, or its copy was called off.
//!
//! A stray is told by its name: data and delete files begin with the epoch of their writer, and a mirror's epochs are
//! claimed one after the other. Other engines' files have other names and are never touched.

use std::collections::{BTreeSet, HashSet};

use iceberg::spec::SnapshotRef;
use tracing::info;
use uuid::Uuid;

use super::mirror::MirrorCatalog;
use super::{IsPinned, Swept};
use crate::error::{Error, Result};
use crate::live_files::load_entries;
use crate::schema::TableSpec;
use crate::table::LakeTable;

impl MirrorCatalog {
    pub(super) async fn sweep_strays_of(
        &self,
        table: &LakeTable,
        epoch: i64,
        is_pinned: &IsPinned<'_>,
    ) -> Result<Swept> {
        let folder = format!("{}/data", table.location());
        let names = self.warehouse.names_in(&folder).await?;
        let older = names.iter().filter(|name| writer_epoch(name).is_some_and(|writer| writer < epoch));
        let mut strays: BTreeSet<String> = older.map(|name| format!("{folder}/{name}")).collect();
        if strays.is_empty() {
            return Ok(Swept::default());
        }
        let snapshots: Vec<SnapshotRef> = table.metadata().snapshots().cloned().collect();
        let (mut manifests, mut known) = (Vec::new(), HashSet::new());
        for snapshot in &snapshots {
            for manifest in self.manifests_of(snapshot).await?.iter() {
                if known.insert(manifest.manifest_path.clone()) {
                    manifests.push(manifest.clone());
                }
            }
        }
        for entry in load_entries(&self.warehouse, &manifests).await? {
            strays.remove(entry.file_path());
        }
        let swept = self.remove(strays, is_pinned).await;
        if swept != Swept::default() {
            info!(table = table.full_name(), ?swept, "removed what earlier workers left behind");
        }
        Ok(swept)
    }

    pub(super) async fn remove_prepared(&self, spec: &TableSpec, uuid: Uuid) -> Result<()> {
        let location = self.warehouse.table_location(&spec.namespace, &spec.name, uuid);
        if self.is_entered(spec, uuid, &location).await? {
            return Ok(());
        }
        let removed = self.warehouse.file_io().delete_prefix(&location).await;
        removed.map_err(|error| Error::iceberg(format!("remove {location}"), error))
    }
}

/// The epoch of the writer of `<epoch>-<attempt>-….parquet`, or of the hidden file that was to become it.
fn writer_epoch(name: &str) -> Option<i64> {
    let (epoch, rest) = name.strip_prefix('.').unwrap_or(name).split_once('-')?;
    let (attempt, rest) = rest.split_at_checked(uuid::fmt::Hyphenated::LENGTH)?;
    let ours = rest.starts_with('-') && rest.contains(".parquet") && Uuid::try_parse(attempt).is_ok();
    epoch.parse().ok().filter(|_| ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_the_writer_gives_are_its_own() {
        let attempt = Uuid::now_v7();
        assert_eq!(writer_epoch(&format!("7-{attempt}-00000.parquet")), Some(7));
        assert_eq!(writer_epoch(&format!("12-{attempt}-deletes.parquet")), Some(12));
        assert_eq!(writer_epoch(&format!(".7-{attempt}-00000.parquet.0a0b.tmp")), Some(7));
        for foreign in [
            format!("{attempt}.parquet"),
            format!("00000-0-{attempt}.parquet"),
            format!("x-{attempt}-00000.parquet"),
            format!("7-{attempt}-00000.orc"),
            "7-0-1.parquet".to_owned(),
            "7".to_owned(),
            String::new(),
        ] {
            assert_eq!(writer_epoch(&foreign), None, "{foreign}");
        }
    }
}
