//! From a table and its change to the table's next metadata, all of it durable before the catalog hears of it.
//!
//! Where the catalog's server writes metadata files itself, the plan is what it is to do, and on which condition, made from
//! the same next state.
//!
//! What is decided here depends on nothing but its arguments; names are unique to the snapshot, by the plan's own
//! [`Stamp`], so a plan that is given up can be deleted without looking at anyone else's.

use iceberg::spec::{
    MAIN_BRANCH, ManifestContentType, ManifestEntryRef, ManifestFile, Operation, Snapshot, SnapshotRef, Summary,
    TableMetadata,
};
use iceberg::{TableRequirement, TableUpdate};
use uuid::Uuid;

use super::manifests::{
    NewManifests, NewSnapshot, assign_numbers, assign_row_ids, next_manifests, write_manifest_list,
};
use super::{Batch, TableChange};
use crate::catalog::Retention;
use crate::data_file::size_of;
use crate::error::{Error, Result};
use crate::evolution::REMARK_PROPERTY;
use crate::format::Format;
use crate::stamp::Stamp;
use crate::table::{
    CHECKPOINT_PROPERTY, Checkpoint, Entry, LakeTable, SUMMARY_ATTEMPT, SUMMARY_EPOCH, SUMMARY_LSN, SUMMARY_MIRROR,
};
use crate::warehouse::Warehouse;

#[cfg_attr(not(test), expect(clippy::disallowed_types, reason = "what the library takes"))]
type Properties = std::collections::HashMap<String, String>;

/// Who writes a table's metadata file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetadataBy {
    /// We do: the catalog only keeps its place.
    Writer,
    /// The catalog's server.
    Server,
}

/// What the catalog is told.
#[derive(Debug)]
pub(crate) enum Commit {
    /// Where the metadata is.
    Location(String),
    /// What changes in the metadata, and on which condition.
    Updates(Updates),
}

impl Commit {
    pub(crate) fn location(&self) -> Option<&str> {
        match self {
            Self::Location(location) => Some(location),
            Self::Updates(_) => None,
        }
    }
}

/// A change of metadata that a server is asked for.
#[derive(Debug)]
pub(crate) struct Updates {
    pub(crate) requirements: Vec<TableRequirement>,
    pub(crate) updates: Vec<TableUpdate>,
    /// Names this request, however often it is sent.
    pub(crate) key: Uuid,
}

/// A table's next state: written, and unknown to the catalog.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) next: LakeTable,
    pub(crate) commit: Commit,
    /// The files made for this plan alone.
    pub(crate) files: Vec<String>,
    pub(crate) garbage: Garbage,
}

/// What a commit made superfluous, to be removed once nobody reads it.
#[derive(Debug, Clone)]
pub(crate) struct Garbage {
    pub(crate) table: LakeTable,
    pub(crate) expired: Vec<SnapshotRef>,
    pub(crate) metadata_files: Vec<String>,
    /// The metadata of the table that this one took the name of.
    pub(crate) replaced: Option<String>,
}

/// Writes manifests, manifest list and metadata of a table's next snapshot.
pub(crate) async fn plan(
    warehouse: &Warehouse,
    batch: &Batch,
    change: &TableChange,
    retention: &Retention,
    by: MetadataBy,
    stamp: Stamp,
) -> Result<Planned> {
    let base = &change.table;
    let metadata = base.metadata();
    check_locations(change)?;
    let snapshot = NewSnapshot {
        id: new_snapshot_id(metadata, stamp),
        sequence_number: metadata.next_sequence_number(),
        attempt: batch.attempt,
    };
    let mut manifests = next_manifests(warehouse, change, snapshot).await?;
    let numbers_rows = base.format() >= Format::V3;
    let rows = numbers_rows.then(|| assign_row_ids(&mut manifests.all, metadata.next_row_id()));
    let list = format!("{}/snap-{}-{}.avro", base.metadata_folder(), snapshot.id, batch.attempt);
    let mut files = manifests.written.clone();
    files.push(list.clone());
    let parent = metadata.current_snapshot_id();

    let checkpoint = checkpoint(batch);
    let now = stamp.now_millis.max(metadata.last_updated_ms());
    let added = Snapshot::builder()
        .with_snapshot_id(snapshot.id)
        .with_parent_snapshot_id(parent)
        .with_sequence_number(snapshot.sequence_number)
        .with_timestamp_ms(now)
        .with_manifest_list(list.clone())
        .with_summary(summary(&checkpoint, change, &manifests, metadata))
        .with_schema_id(base.next_schema()?.schema_id());
    let added = match rows {
        None => added.build(),
        Some(rows) => added.with_row_range(rows.first, rows.count).build(),
    };
    let retention = if change.expire { &Retention::NOTHING } else { retention };
    let Next { metadata: next, changes, expired, metadata_files } =
        next_metadata(base, added, &checkpoint, retention, now)?;
    let write_list = write_manifest_list(warehouse, &list, parent, snapshot, rows, &manifests.all);
    let (commit, metadata_files) = match by {
        MetadataBy::Writer => {
            let location = next_metadata_location(base, stamp);
            files.push(location.clone());
            futures_util::future::try_join(write_list, write_metadata(warehouse, &location, &next)).await?;
            (Commit::Location(location), metadata_files)
        }
        MetadataBy::Server => {
            write_list.await?;
            // Its metadata files are the server's to remove.
            (Commit::Updates(updates(base, &next, changes, stamp)), Vec::new())
        }
    };
    assign_numbers(&mut manifests.all, snapshot);
    // The server's own place for it is not known before it has answered.
    let location = commit.location().or(base.metadata_location()).unwrap_or_default().to_owned();
    let next = base.succeeded_by(next, location, manifests.all);
    let replaced = match base.entry() {
        Entry::Absent { replaces } => replaces.clone(),
        Entry::Current(_) => None,
    };
    let garbage = Garbage { table: next.clone(), expired, metadata_files, replaced };
    Ok(Planned { next, commit, files, garbage })
}

async fn write_metadata(warehouse: &Warehouse, location: &str, metadata: &TableMetadata) -> Result<()> {
    let json = serde_json::to_vec(metadata).map_err(|error| Error::format("write metadata").with_source(error))?;
    let write = async { warehouse.file_io().new_output(location)?.write(json.into()).await };
    write.await.map_err(|error| Error::iceberg(format!("write the metadata {location}"), error))
}

/// What a server does to come from a table's metadata to the next, if the table is as we know it.
fn updates(base: &LakeTable, next: &TableMetadata, changes: Vec<TableUpdate>, stamp: Stamp) -> Updates {
    let before = base.metadata();
    let schema_id = next.current_schema_id();
    let mut updates = Vec::new();
    if schema_id != before.current_schema_id() {
        let known = before.schema_by_id(schema_id).is_some();
        let added = || TableUpdate::AddSchema { schema: next.current_schema().as_ref().clone() };
        updates.extend((!known).then(added));
        updates.push(TableUpdate::SetCurrentSchema { schema_id: if known { schema_id } else { LAST_ADDED } });
    }
    updates.extend(changes);
    let requirements = vec![
        TableRequirement::UuidMatch { uuid: before.uuid() },
        TableRequirement::RefSnapshotIdMatch {
            r#ref: MAIN_BRANCH.to_owned(),
            snapshot_id: before.current_snapshot_id(),
        },
        TableRequirement::CurrentSchemaIdMatch { current_schema_id: before.current_schema_id() },
        // Files say by number which spec they are of.
        TableRequirement::DefaultSpecIdMatch { default_spec_id: before.default_partition_spec_id() },
        TableRequirement::LastAssignedPartitionIdMatch { last_assigned_partition_id: before.last_partition_id() },
    ];
    Updates { requirements, updates, key: stamp.unique }
}

/// Files of another table, or of the same name made anew, must not get into this one.
fn check_locations(change: &TableChange) -> Result<()> {
    let table = &change.table;
    let folders = [format!("{}/", table.location()), format!("{}/", table.metadata_folder())];
    match change.written().find(|file| !folders.iter().any(|folder| file.path.starts_with(folder))) {
        None => Ok(()),
        Some(file) => Err(Error::invalid(format!("{} was not written for {}", file.path, change.table.full_name()))),
    }
}

fn checkpoint(batch: &Batch) -> Checkpoint {
    Checkpoint { mirror: batch.mirror.clone(), lsn: batch.lsn.to_string(), epoch: batch.epoch, attempt: batch.attempt }
}

/// A positive number that no snapshot of the table has.
fn new_snapshot_id(metadata: &TableMetadata, stamp: Stamp) -> i64 {
    let (high, low) = stamp.unique.as_u64_pair();
    let mut id = (high ^ low).cast_signed() & i64::MAX;
    while id == 0 || metadata.snapshot_by_id(id).is_some() {
        id = id.wrapping_add(1) & i64::MAX;
    }
    id
}

/// The last schema that was added, to a server.
const LAST_ADDED: i32 = -1;

/// A table's next metadata, and how it comes about.
struct Next {
    metadata: TableMetadata,
    changes: Vec<TableUpdate>,
    expired: Vec<SnapshotRef>,
    metadata_files: Vec<String>,
}

fn next_metadata(
    base: &LakeTable,
    snapshot: Snapshot,
    checkpoint: &Checkpoint,
    retention: &Retention,
    now: i64,
) -> Result<Next> {
    let expired = expired(base, retention, now);
    let ids: Vec<i64> = expired.iter().map(|snapshot| snapshot.snapshot_id()).collect();
    let checkpoint = serde_json::to_string(checkpoint)
        .map_err(|error| Error::format("write the checkpoint of a table").with_source(error))?;
    let mut properties = Properties::from([(CHECKPOINT_PROPERTY.to_owned(), checkpoint)]);
    properties.extend(base.identity_properties()?);
    properties.extend(base.remark().map(|remark| (REMARK_PROPERTY.to_owned(), remark.to_owned())));
    let metadata = base.next_metadata()?;
    let version = base.format().version();
    let builder = metadata.into_builder(base.metadata_location().map(str::to_owned));
    let builder = builder
        .upgrade_format_version(version)
        .map_err(|error| Error::iceberg(format!("plan the next state of {}", base.full_name()), error))?;
    let builder = base.lay_out(builder)?;
    let build = || {
        builder.set_branch_snapshot(snapshot, MAIN_BRANCH)?.remove_snapshots(&ids).set_properties(properties)?.build()
    };
    let built =
        build().map_err(|error| Error::iceberg(format!("plan the next state of {}", base.full_name()), error))?;
    let metadata_files = built.expired_metadata_logs.into_iter().map(|log| log.metadata_file).collect();
    Ok(Next { metadata: built.metadata, changes: built.changes, expired, metadata_files })
}

/// Snapshots that have been superseded for longer than the retention, or are too many. The oldest go first.
fn expired(base: &LakeTable, retention: &Retention, now: i64) -> Vec<SnapshotRef> {
    let mut snapshots: Vec<SnapshotRef> = base.metadata().snapshots().cloned().collect();
    snapshots.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.sequence_number()));
    let horizon = now.saturating_sub(i64::try_from(retention.age.as_millis()).unwrap_or(i64::MAX));
    // A snapshot is readable until it is superseded, so its age counts from its successor's birth.
    let superseded = std::iter::once(now).chain(snapshots.iter().map(|snapshot| snapshot.timestamp_ms()));
    let old = superseded
        .zip(&snapshots)
        .enumerate()
        // The snapshot being added is one of those that are kept.
        .filter(|(rank, (since, _))| *since < horizon || rank + 1 >= retention.snapshots.max(1))
        .map(|(_, (_, snapshot))| snapshot);
    old.filter(|snapshot| !base.pinned_snapshots().contains(&snapshot.snapshot_id())).cloned().collect()
}

/// `…/metadata/00007-<uuid>.metadata.json`, one up from the present number.
fn next_metadata_location(base: &LakeTable, stamp: Stamp) -> String {
    let version = base.metadata_location().map_or(0, |location| {
        let name = location.rsplit('/').next().unwrap_or_default();
        let digits: String = name.trim_start_matches('v').chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().map_or(base.metadata().last_sequence_number().unsigned_abs(), |version| version + 1)
    });
    format!("{}/metadata/{version:05}-{}.metadata.json", base.location(), stamp.unique)
}

fn summary(
    checkpoint: &Checkpoint,
    change: &TableChange,
    manifests: &NewManifests,
    previous: &TableMetadata,
) -> Summary {
    let removes = !change.deletes.is_empty() || !manifests.removed.is_empty();
    let operation = match (change.added_data().next().is_none(), removes) {
        _ if change.rewrite.alone => Operation::Replace,
        (_, false) => Operation::Append,
        (true, true) => Operation::Delete,
        (false, true) => Operation::Overwrite,
    };
    let mut entries = Properties::from([
        (SUMMARY_MIRROR.to_owned(), checkpoint.mirror.clone()),
        (SUMMARY_LSN.to_owned(), checkpoint.lsn.clone()),
        (SUMMARY_EPOCH.to_owned(), checkpoint.epoch.to_string()),
        (SUMMARY_ATTEMPT.to_owned(), checkpoint.attempt.to_string()),
    ]);
    let mut count = |name: &str, value: u64| {
        if value > 0 || name.starts_with("total-") {
            entries.insert(name.to_owned(), value.to_string());
        }
    };
    let base = &change.table;
    let is_data = |entry: &&ManifestEntryRef| entry.content_type() == iceberg::spec::DataContentType::Data;
    let (gone, undone): (Vec<_>, Vec<_>) = manifests.removed.iter().partition(is_data);
    let rows = |entries: &[&ManifestEntryRef]| entries.iter().map(|entry| entry.record_count()).sum::<u64>();
    let added_bytes = change.written().map(|file| file.bytes).sum::<u64>();
    let removed_bytes = manifests.removed.iter().map(|entry| size_of(entry.data_file())).sum::<u64>();
    count("added-data-files", change.added_data().count() as u64);
    count("added-records", change.added_data().map(|file| file.rows).sum());
    count("added-files-size", added_bytes);
    let kind = if base.format() >= Format::V3 { "dvs" } else { "position-delete-files" };
    count("added-delete-files", change.deletes.len() as u64);
    count(&format!("added-{kind}"), change.deletes.len() as u64);
    count("added-position-deletes", change.deletes.iter().map(|deletes| deletes.rows).sum());
    count("deleted-data-files", gone.len() as u64);
    count("deleted-records", rows(&gone));
    count("removed-delete-files", undone.len() as u64);
    count(&format!("removed-{kind}"), undone.len() as u64);
    count("removed-position-deletes", rows(&undone));
    count("removed-files-size", removed_bytes);
    let (files, records) = totals(&manifests.all, ManifestContentType::Data);
    count("total-data-files", files);
    count("total-records", records);
    let (files, records) = totals(&manifests.all, ManifestContentType::Deletes);
    count("total-delete-files", files);
    count("total-position-deletes", records);
    count("total-equality-deletes", 0);
    if let Some(before) = total_bytes(previous) {
        count("total-files-size", (before + added_bytes).saturating_sub(removed_bytes));
    }
    Summary { operation, additional_properties: entries }
}

/// Live files and their rows, by the manifests' own counts.
fn totals(manifests: &[ManifestFile], kind: ManifestContentType) -> (u64, u64) {
    manifests.iter().filter(|manifest| manifest.content == kind).fold((0, 0), |(files, rows), manifest| {
        let live = manifest.added_files_count.unwrap_or(0) + manifest.existing_files_count.unwrap_or(0);
        let records = manifest.added_rows_count.unwrap_or(0) + manifest.existing_rows_count.unwrap_or(0);
        (files + u64::from(live), rows + records)
    })
}

/// The size of all files as the last snapshot has it; unknown after a writer that does not say.
fn total_bytes(previous: &TableMetadata) -> Option<u64> {
    let Some(snapshot) = previous.current_snapshot() else { return Some(0) };
    snapshot.summary().additional_properties.get("total-files-size")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::commit::Rewrite;
    use crate::lsn::Lsn;
    use crate::pg_type::PgType;
    use crate::schema::{ColumnSpec, TableSpec};
    use crate::storage::StoreOptions;

    fn table(warehouse: &Warehouse) -> LakeTable {
        let column = ColumnSpec {
            name: "id".to_owned(),
            field_id: 1,
            pg_type: PgType::Int8,
            type_oid: 20,
            typmod: -1,
            required: true,
            companion: false,
        };
        let spec =
            TableSpec { namespace: "public".to_owned(), name: "t".to_owned(), columns: vec![column], key: vec![0] };
        LakeTable::prepare(warehouse, spec, Format::V2, None, None).unwrap()
    }

    fn batch(table: &LakeTable) -> Batch {
        let rewrite = Rewrite::default();
        let change = TableChange {
            table: table.clone(),
            truncate: true,
            data: Vec::new(),
            deletes: Vec::new(),
            rewrite,
            expire: false,
        };
        Batch {
            mirror: "lake".to_owned(),
            epoch: 1,
            attempt: Uuid::from_u128(7),
            expected: None,
            lsn: Lsn::from_u64(16),
            tables: vec![change],
        }
    }

    #[tokio::test]
    async fn a_plan_depends_on_its_arguments_alone() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let warehouse = Warehouse::open(&url, &StoreOptions::default()).await.unwrap();
        let batch = batch(&table(&warehouse));
        // Later than now: what is not the stamp's shows.
        let stamp = Stamp { now_millis: 99_000_000_000_000, unique: Uuid::from_u128(1 << 64 | 5) };
        let mut plans = Vec::new();
        for _ in 0..2 {
            let planned = plan(&warehouse, &batch, &batch.tables[0], &Retention::default(), MetadataBy::Writer, stamp)
                .await
                .unwrap();
            let snapshot = planned.next.metadata().current_snapshot().unwrap();
            assert_eq!((snapshot.snapshot_id(), snapshot.timestamp_ms()), (4, stamp.now_millis));
            plans.push((planned.files, planned.commit.location().map(str::to_owned), planned.next.metadata().clone()));
        }
        assert_eq!(plans[0], plans[1]);
        // The same number for another snapshot of the table gives another one.
        let next = plan(&warehouse, &batch, &batch.tables[0], &Retention::default(), MetadataBy::Writer, stamp)
            .await
            .unwrap()
            .next;
        let after = self::batch(&next);
        let planned =
            plan(&warehouse, &after, &after.tables[0], &Retention::default(), MetadataBy::Writer, stamp).await.unwrap();
        assert_eq!(planned.next.snapshot_id(), Some(5));
    }
}
