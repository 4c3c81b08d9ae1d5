//! Removing what writers left behind that no catalog ever heard of: the files of a batch that was never committed, because
//! its process was killed, its connection broke, or its copy was called off.
//!
//! A stray is told by its name: data and delete files begin with the epoch of their writer, and a mirror's epochs are
//! claimed one after the other. Manifests, their lists and metadata have the moment of their making in it: what is older than
//! [`ORPHAN_GRACE`] is in no commit that is still under way, and what the table's metadata does not know then, nothing ever will. Other
//! engines' files have other names and are never touched.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use iceberg::spec::SnapshotRef;
use tracing::info;
use uuid::Uuid;

use super::mirror::{MirrorCatalog, lock};
use crate::error::{Error, Result};
use crate::live_files::load_live_entries;
use crate::schema::TableSpec;
use crate::stamp::Stamp;
use crate::table::LakeTable;

/// No commit takes so long, ours or that of another engine whose files are named as ours are, with clocks that are apart
/// by minutes.
const ORPHAN_GRACE: Duration = Duration::from_hours(1);
const METADATA_SUFFIX: &str = ".metadata.json";

impl MirrorCatalog {
    /// Leaves strays to the sweep that follows their time of grace: what an earlier worker let expire just before it ended, somebody
    /// may read.
    pub(super) async fn put_off_strays(&self, table: &LakeTable, epoch: i64) -> Result<usize> {
        let folder = format!("{}/data", table.location());
        let names = self.warehouse.names_in(&folder).await?;
        let older = names.iter().filter(|name| writer_epoch(name).is_some_and(|writer| writer < epoch));
        let mut strays: BTreeSet<String> = older.map(|name| format!("{folder}/{name}")).collect();
        let folder = table.metadata_folder();
        let names = self.warehouse.names_in(&folder).await?;
        // Deletion vectors, where they have to be there.
        let vectors = names.iter().filter(|name| writer_epoch(name).is_some_and(|writer| writer < epoch));
        strays.extend(vectors.map(|name| format!("{folder}/{name}")));
        let horizon =
            Stamp::draw().now_millis.saturating_sub(i64::try_from(ORPHAN_GRACE.as_millis()).unwrap_or(i64::MAX));
        let old = names.iter().filter(|name| made_at(name).is_some_and(|made| made < horizon));
        // What a server writes itself is its own to remove, whatever it is called.
        let servers = self.is_written_by_server();
        let old = old.filter(|name| !servers || !name.ends_with(METADATA_SUFFIX));
        strays.extend(old.map(|name| format!("{folder}/{name}")));
        if strays.is_empty() {
            return Ok(0);
        }
        let metadata = table.metadata();
        strays.retain(|path| Some(path.as_str()) != table.metadata_location());
        metadata.metadata_log().iter().for_each(|log| _ = strays.remove(&log.metadata_file));
        let snapshots: Vec<SnapshotRef> = table.metadata().snapshots().cloned().collect();
        let (mut manifests, mut known) = (Vec::new(), HashSet::new());
        for snapshot in &snapshots {
            strays.remove(snapshot.manifest_list());
            for manifest in self.manifests_of(snapshot).await?.iter() {
                strays.remove(&manifest.manifest_path);
                if known.insert(manifest.manifest_path.clone()) {
                    manifests.push(manifest.clone());
                }
            }
        }
        for entry in load_live_entries(&self.warehouse, &manifests).await? {
            strays.remove(entry.file_path());
        }
        let mut superfluous = lock(&self.superfluous);
        // Those that an earlier look has found.
        strays.retain(|path| !superfluous.has(path));
        let files = strays.len();
        if files > 0 {
            info!(table = table.full_name(), files, "found what earlier workers left behind");
        }
        superfluous.put_off(strays, Instant::now(), self.retention.grace);
        Ok(files)
    }

    pub(super) async fn remove_prepared(&self, spec: &TableSpec, uuid: Uuid) -> Result<()> {
        // Of a table that the catalog has not got it vends no keys either.
        let there = match self.warehouse.is_vended() {
            true => match self.find(spec).await? {
                Some(found) => Some(found.metadata.location().to_owned()),
                None => return Ok(()),
            },
            false => None,
        };
        let location = self.warehouse.place(&spec.namespace, &spec.name, uuid, there.as_deref()).copy;
        if self.is_entered(spec, uuid, &location).await? {
            return Ok(());
        }
        let removed = self.warehouse.file_io().delete_prefix(&location).await;
        removed.map_err(|error| Error::iceberg(format!("remove {location}"), error))
    }
}

/// The epoch of the writer of `<epoch>-<attempt>-….parquet` and the like, or of the hidden file that was to become it.
fn writer_epoch(name: &str) -> Option<i64> {
    let (epoch, rest) = name.strip_prefix('.').unwrap_or(name).split_once('-')?;
    let (attempt, rest) = rest.split_at_checked(uuid::fmt::Hyphenated::LENGTH)?;
    let is_kind = [".parquet", ".puffin", ".stats"].iter().any(|kind| rest.contains(kind));
    let ours = rest.starts_with('-') && is_kind && Uuid::try_parse(attempt).is_ok();
    epoch.parse().ok().filter(|_| ours)
}

/// When a file of metadata was made, as Iceberg counts time: `<snapshot>-<attempt>-data.avro`, `…-deletes.avro`, the same with
/// the number of a partition spec (`…-data-1.avro`), `snap-<snapshot>-<attempt>.avro` or `<version>-<unique>.metadata.json`, of which the UUIDs begin with it.
fn made_at(name: &str) -> Option<i64> {
    let name = name.strip_prefix("snap-").unwrap_or(name);
    let (number, rest) = name.split_once('-')?;
    let (uuid, ending) = rest.split_at_checked(uuid::fmt::Hyphenated::LENGTH)?;
    let of_spec = ["-data", "-deletes"].into_iter().find_map(|kind| ending.strip_prefix(kind)?.strip_suffix(".avro"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let ours = of_spec.is_some_and(|spec| spec.is_empty() || spec.strip_prefix('-').is_some_and(is_number))
        || [".avro", METADATA_SUFFIX].contains(&ending);
    let uuid = Uuid::try_parse(uuid).ok().filter(|uuid| uuid.get_version_num() == 7)?;
    let (seconds, nanos) = uuid.get_timestamp()?.to_unix();
    let millis = i64::try_from(seconds).ok()?.checked_mul(1000)?.checked_add(i64::from(nanos / 1_000_000))?;
    (ours && is_number(number)).then_some(millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_says_when_it_was_made() {
        let uuid = Uuid::now_v7();
        let made = Stamp::draw().now_millis;
        for name in [
            format!("1-{uuid}-data.avro"),
            format!("1-{uuid}-deletes.avro"),
            format!("1-{uuid}-data-12.avro"),
            format!("1-{uuid}-deletes-1.avro"),
            format!("snap-77-{uuid}.avro"),
            format!("00007-{uuid}.metadata.json"),
        ] {
            assert!(made_at(&name).is_some_and(|at| (at - made).abs() < 60_000), "{name}");
        }
        for foreign in [
            format!("00007-{}.metadata.json", Uuid::from_u128(0x1234_4000_8000)),
            format!("{uuid}-m0.avro"),
            format!("1-{uuid}-data-.avro"),
            format!("1-{uuid}-data-x.avro"),
            format!("snap-77-1-{uuid}.avro"),
            format!("00007-{uuid}.metadata.json.gz"),
            format!("-{uuid}-data.avro"),
            "version-hint.text".to_owned(),
            "77-data.avro".to_owned(),
        ] {
            assert_eq!(made_at(&foreign), None, "{foreign}");
        }
    }

    #[test]
    fn only_names_that_the_writer_gives_are_its_own() {
        let attempt = Uuid::now_v7();
        assert_eq!(writer_epoch(&format!("7-{attempt}-00000.parquet")), Some(7));
        assert_eq!(writer_epoch(&format!("12-{attempt}-deletes.parquet")), Some(12));
        assert_eq!(writer_epoch(&format!("12-{attempt}-deletes.puffin")), Some(12));
        assert_eq!(writer_epoch(&format!("12-{attempt}-deletes.stats")), Some(12));
        assert_eq!(writer_epoch(&format!("12-{attempt}-00001-deletes.parquet")), Some(12));
        assert_eq!(writer_epoch(&format!(".7-{attempt}-00000.parquet.0a0b.tmp")), Some(7));
        for foreign in [
            format!("{attempt}.parquet"),
            format!("00000-0-{attempt}.parquet"),
            format!("x-{attempt}-00000.parquet"),
            format!("7-{attempt}-00000.orc"),
            format!("7-{attempt}-data.avro"),
            format!("00007-{attempt}.metadata.json"),
            "7-0-1.parquet".to_owned(),
            "7".to_owned(),
            String::new(),
        ] {
            assert_eq!(writer_epoch(&foreign), None, "{foreign}");
        }
    }
}
