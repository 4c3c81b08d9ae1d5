//! A table of the lake as it was at one moment.
//!
//! A [`LakeTable`] never changes: a commit gives new ones. It holds all that the next commit needs (metadata and the
//! current manifest list), so that a commit reads nothing back as long as nobody else writes the table.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use iceberg::spec::{
    FormatVersion, MAIN_BRANCH, ManifestFile, ManifestList, SnapshotRef, TableMetadata, TableMetadataRef,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::catalog::Remarked;
use crate::error::{Error, ErrorKind, Result};
use crate::evolution::REMARK_PROPERTY;
use crate::lsn::Lsn;
use crate::schema::TableSpec;
use crate::stamp::Stamp;
use crate::warehouse::Warehouse;

/// Metadata files that stay after newer ones replaced them.
pub(crate) const METADATA_VERSIONS_KEPT: usize = 20;
/// The table property that carries the newest [`Checkpoint`] past the expiry of its snapshot.
pub(crate) const CHECKPOINT_PROPERTY: &str = "lake.checkpoint";
/// The snapshot summary's entries that say which commit of which mirror it is.
pub(crate) const SUMMARY_MIRROR: &str = "lake.mirror";
pub(crate) const SUMMARY_LSN: &str = "lake.lsn";
pub(crate) const SUMMARY_EPOCH: &str = "lake.epoch";
pub(crate) const SUMMARY_ATTEMPT: &str = "lake.attempt";

/// Which commit of which mirror a table's content is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) mirror: String,
    pub(crate) lsn: String,
    pub(crate) epoch: i64,
    pub(crate) attempt: Uuid,
}

/// A loaded or prepared table. Cheap to clone.
#[derive(Clone)]
pub struct LakeTable {
    inner: Arc<Inner>,
}

struct Inner {
    spec: TableSpec,
    /// What the next commit is to remember with it, if that is new.
    remark: Option<String>,
    metadata: TableMetadataRef,
    entry: Entry,
    manifests: Vec<ManifestFile>,
    pinned_snapshots: BTreeSet<i64>,
}

/// What the catalog holds for a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The table, by the location of its metadata.
    Current(String),
    /// Nothing yet: the first commit inserts it, or replaces the entry that another table of its name has.
    Absent { replaces: Option<String> },
}

impl std::fmt::Debug for LakeTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LakeTable")
            .field("table", &format_args!("{}", self.full_name()))
            .field("uuid", &self.uuid())
            .field("entry", &self.inner.entry)
            .field("lsn", &self.snapshot_lsn())
            .finish_non_exhaustive()
    }
}

impl LakeTable {
    pub(crate) fn from_parts(
        spec: TableSpec,
        metadata: TableMetadataRef,
        entry: Entry,
        manifests: Vec<ManifestFile>,
        pinned_snapshots: BTreeSet<i64>,
    ) -> Self {
        Self { inner: Arc::new(Inner { spec, remark: None, metadata, entry, manifests, pinned_snapshots }) }
    }

    /// The same table, described otherwise.
    pub(crate) fn with_spec(&self, spec: TableSpec, remark: Option<String>) -> Self {
        let Inner { metadata, entry, manifests, pinned_snapshots, .. } = &*self.inner;
        let (metadata, entry, manifests) = (Arc::clone(metadata), entry.clone(), manifests.clone());
        let pinned_snapshots = pinned_snapshots.clone();
        Self { inner: Arc::new(Inner { spec, remark, metadata, entry, manifests, pinned_snapshots }) }
    }

    /// The same table, with companions for these columns too, by field id: its files may have them.
    #[must_use]
    pub fn with_companions(&self, of: impl IntoIterator<Item = i32>) -> Self {
        self.with_spec(self.spec().clone().with_companions(of), self.inner.remark.clone())
    }

    /// The table after a commit of ours, which leaves branches and tags as they are.
    pub(crate) fn succeeded_by(&self, metadata: TableMetadata, location: String, manifests: Vec<ManifestFile>) -> Self {
        let pinned = self.inner.pinned_snapshots.clone();
        Self::from_parts(self.inner.spec.clone(), Arc::new(metadata), Entry::Current(location), manifests, pinned)
    }

    /// The same table after a truncation.
    pub(crate) fn without_files(&self) -> Self {
        let Inner { spec, metadata, entry, pinned_snapshots, .. } = &*self.inner;
        Self::from_parts(spec.clone(), Arc::clone(metadata), entry.clone(), Vec::new(), pinned_snapshots.clone())
            .with_spec(spec.clone(), self.inner.remark.clone())
    }

    /// The same prepared table, meant to replace another entry.
    pub(crate) fn replacing(&self, replaces: Option<String>) -> Self {
        let Inner { spec, metadata, manifests, .. } = &*self.inner;
        let entry = Entry::Absent { replaces };
        Self::from_parts(spec.clone(), Arc::clone(metadata), entry, manifests.clone(), BTreeSet::new())
            .with_spec(spec.clone(), self.inner.remark.clone())
    }

    /// A table that no catalog knows yet; `uuid` is that of one which was prepared before and has files already,
    /// `replaces` the metadata of the one whose name it will take.
    pub fn prepare(
        warehouse: &Warehouse,
        spec: TableSpec,
        uuid: Option<Uuid>,
        replaces: Option<String>,
    ) -> Result<Self> {
        let Stamp { unique, now_millis } = Stamp::draw();
        let uuid = uuid.unwrap_or(unique);
        let schema = spec.iceberg_schema()?;
        let describe = |error| Error::format(format!("prepare {}.{}", spec.namespace, spec.name)).with_source(error);
        // Spelled out, because the library's builder numbers the fields of a new table anew.
        let metadata: TableMetadata = serde_json::from_value(json!({
            "format-version": 2,
            "table-uuid": uuid,
            "location": warehouse.table_location(&spec.namespace, &spec.name, uuid),
            "last-sequence-number": 0,
            "last-updated-ms": now_millis,
            "last-column-id": schema.highest_field_id(),
            "schemas": [serde_json::to_value(&schema).map_err(describe)?],
            "current-schema-id": schema.schema_id(),
            "partition-specs": [{"spec-id": 0, "fields": []}],
            "default-spec-id": 0,
            "last-partition-id": 999,
            "sort-orders": [{"order-id": 0, "fields": []}],
            "default-sort-order-id": 0,
            "snapshots": [],
            "properties": {
                "write.metadata.previous-versions-max": METADATA_VERSIONS_KEPT.to_string(),
                "write.parquet.compression-codec": "zstd",
            },
        }))
        .map_err(describe)?;
        Ok(Self::from_parts(spec, Arc::new(metadata), Entry::Absent { replaces }, Vec::new(), BTreeSet::new()))
    }

    /// Reads a table that the catalog has at `metadata_location`, and whose columns must be those of `spec`.
    pub(crate) async fn read(warehouse: &Warehouse, spec: TableSpec, metadata_location: String) -> Result<Self> {
        Self::read_remarked(warehouse, spec, &|_| None, metadata_location).await
    }

    /// The same; but when the table has a remark of which `by_remark` makes a description, by that.
    pub(crate) async fn read_remarked(
        warehouse: &Warehouse,
        spec: TableSpec,
        by_remark: &Remarked<'_>,
        metadata_location: String,
    ) -> Result<Self> {
        let table = Self::read_undescribed(warehouse, spec, metadata_location).await?;
        let described = table.metadata().properties().get(REMARK_PROPERTY).and_then(|remark| by_remark(remark));
        let table = described.map_or_else(|| table.clone(), |spec| table.with_spec(spec, None));
        table.spec().check_schema(table.metadata().current_schema())?;
        Ok(table)
    }

    /// The table as someone else's commit has left it, which was to change no column: `self` may be about to.
    pub(crate) async fn read_again(&self, warehouse: &Warehouse, metadata_location: String) -> Result<Self> {
        let Inner { spec, remark, metadata, .. } = &*self.inner;
        let found = Self::read_undescribed(warehouse, spec.clone(), metadata_location).await?;
        if found.metadata().current_schema().as_struct() != metadata.current_schema().as_struct() {
            spec.check_schema(found.metadata().current_schema())?;
        }
        Ok(found.with_spec(spec.clone(), remark.clone()))
    }

    async fn read_undescribed(warehouse: &Warehouse, spec: TableSpec, metadata_location: String) -> Result<Self> {
        let name = format!("{}.{}", spec.namespace, spec.name);
        let metadata = TableMetadata::read_from(warehouse.file_io(), &metadata_location)
            .await
            .map_err(|error| Error::iceberg(format!("read the metadata of {name}, {metadata_location}"), error))?;
        let unsupported = |what: &str| {
            Error::new(ErrorKind::ForeignChange, format!("the lake's table {name} {what}"))
                .with_table(&spec.namespace, &spec.name)
                .with_hint("undo the change, or copy the table again into a new Iceberg table")
        };
        if metadata.format_version() != FormatVersion::V2 {
            return Err(unsupported("is not of format version 2"));
        }
        if !metadata.default_partition_spec().is_unpartitioned() {
            return Err(unsupported("is partitioned"));
        }
        let manifests = match metadata.current_snapshot() {
            Some(snapshot) => read_manifest_list(warehouse, snapshot).await?,
            None => Vec::new(),
        };
        let pinned = pinned_snapshots(&metadata)?;
        Ok(Self::from_parts(spec, Arc::new(metadata), Entry::Current(metadata_location), manifests, pinned))
    }

    /// The folder of its files, as a URL.
    pub fn location(&self) -> &str {
        self.inner.metadata.location()
    }

    /// What the caller said the table is.
    pub fn spec(&self) -> &TableSpec {
        &self.inner.spec
    }

    /// The table's identity: a table made again under the same name has another.
    pub fn uuid(&self) -> Uuid {
        self.inner.metadata.uuid()
    }

    /// Where its metadata is. `None`: prepared, and not in the catalog yet.
    pub fn metadata_location(&self) -> Option<&str> {
        match &self.inner.entry {
            Entry::Current(location) => Some(location),
            Entry::Absent { .. } => None,
        }
    }

    /// The current snapshot's id.
    pub fn snapshot_id(&self) -> Option<i64> {
        self.inner.metadata.current_snapshot_id()
    }

    /// How many snapshots are readable, the current one included.
    pub fn snapshot_count(&self) -> usize {
        self.inner.metadata.snapshots().count()
    }

    /// The position at which the mirror last changed this table.
    pub fn snapshot_lsn(&self) -> Option<Lsn> {
        self.checkpoint()?.lsn.parse().ok()
    }

    /// The mirror's last commit that changed this table. Each carries it in a property, so foreign snapshots and expiry
    /// don't hide it.
    pub(crate) fn checkpoint(&self) -> Option<Checkpoint> {
        serde_json::from_str(self.inner.metadata.properties().get(CHECKPOINT_PROPERTY)?).ok()
    }

    /// What the next commit is to remember with the table.
    pub(crate) fn remark(&self) -> Option<&str> {
        self.inner.remark.as_deref()
    }

    pub(crate) fn metadata(&self) -> &TableMetadata {
        &self.inner.metadata
    }

    pub(crate) fn entry(&self) -> &Entry {
        &self.inner.entry
    }

    pub(crate) fn manifests(&self) -> &[ManifestFile] {
        &self.inner.manifests
    }

    /// Snapshots that a branch or a tag other than `main` names: they never expire.
    pub(crate) fn pinned_snapshots(&self) -> &BTreeSet<i64> {
        &self.inner.pinned_snapshots
    }

    pub(crate) fn full_name(&self) -> String {
        format!("{}.{}", self.inner.spec.namespace, self.inner.spec.name)
    }

    /// The error for a table that someone else changed beyond what can be taken over.
    pub(crate) fn foreign_change(&self, what: &str) -> Error {
        Error::new(ErrorKind::ForeignChange, format!("the lake's table {} {what}", self.full_name()))
            .with_table(&self.inner.spec.namespace, &self.inner.spec.name)
            .with_hint("only the mirror may change or remove rows of its tables; copy the table again to repair it")
    }
}

/// The library does not show a table's references; its JSON does.
fn pinned_snapshots(metadata: &TableMetadata) -> Result<BTreeSet<i64>> {
    #[derive(Deserialize)]
    struct References {
        #[serde(default)]
        refs: HashMap<String, Reference>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Reference {
        snapshot_id: i64,
    }
    let read = || serde_json::from_value::<References>(serde_json::to_value(metadata)?);
    let references = read().map_err(|error| Error::format("read the references of a table").with_source(error))?;
    let others = references.refs.into_iter().filter(|(name, _)| name != MAIN_BRANCH);
    Ok(others.map(|(_, reference)| reference.snapshot_id).collect())
}

/// The manifests of a snapshot.
pub(crate) async fn read_manifest_list(warehouse: &Warehouse, snapshot: &SnapshotRef) -> Result<Vec<ManifestFile>> {
    let path = snapshot.manifest_list();
    let read = async {
        let bytes = warehouse.file_io().new_input(path)?.read().await?;
        ManifestList::parse_with_version(&bytes, FormatVersion::V2)
    };
    let list = read.await.map_err(|error| Error::iceberg(format!("read the manifest list {path}"), error))?;
    Ok(list.consume_entries().into_iter().collect())
}
