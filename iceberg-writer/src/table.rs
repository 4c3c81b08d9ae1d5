//! A table of the lake as it was at one moment.
//!
//! A [`LakeTable`] never changes: a commit gives new ones. It holds all that the next commit needs (metadata and the
//! current manifest list), so that a commit reads nothing back as long as nobody else writes the table.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use iceberg::spec::{
    FormatVersion, MAIN_BRANCH, ManifestFile, ManifestList, SnapshotRef, TableMetadata, TableMetadataRef, Transform,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::catalog::{Found, Remarked};
use crate::error::{Error, ErrorKind, Result};
use crate::evolution::REMARK_PROPERTY;
use crate::format::Format;
use crate::layout::Layout;
use crate::lsn::Lsn;
use crate::schema::TableSpec;
use crate::stamp::Stamp;
use crate::warehouse::{Warehouse, table_of_copy};

/// Metadata files that stay after newer ones replaced them.
pub(crate) const METADATA_VERSIONS_KEPT: usize = 20;
/// The table property that carries the newest [`Checkpoint`] past the expiry of its snapshot.
pub(crate) const CHECKPOINT_PROPERTY: &str = "lake.checkpoint";
/// The table property that says which copy of the source's table the Iceberg table holds, where that is not the table it
/// was made as.
const COPY_PROPERTY: &str = "lake.copy";
/// Where data files are put that other writers make, as Iceberg names it.
const DATA_FOLDER_PROPERTY: &str = "write.data.path";
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

impl Checkpoint {
    pub(crate) fn of(metadata: &TableMetadata) -> Option<Self> {
        serde_json::from_str(metadata.properties().get(CHECKPOINT_PROPERTY)?).ok()
    }
}

/// Which copy of the source's table an Iceberg table holds, and where that has its files.
///
/// An Iceberg table that the catalog makes or keeps under an identity and a place of its own (REST) may hold one copy after
/// the other; otherwise a copy is a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CopyOf {
    uuid: Uuid,
    folder: String,
}

impl CopyOf {
    fn of(metadata: &TableMetadata) -> Self {
        let named = metadata.properties().get(COPY_PROPERTY).and_then(|text| serde_json::from_str(text).ok());
        named.unwrap_or_else(|| Self { uuid: metadata.uuid(), folder: metadata.location().to_owned() })
    }
}

/// A loaded or prepared table. Cheap to clone.
#[derive(Clone)]
pub struct LakeTable {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    spec: TableSpec,
    /// How the next commit is to leave it laid out; `None`: as it is.
    layout: Option<Layout>,
    /// What the next commit is to remember with it, if that is new.
    remark: Option<String>,
    metadata: TableMetadataRef,
    copy: CopyOf,
    /// That of the copy: the metadata is brought to it by the next commit.
    format: Format,
    /// See [`Warehouse::is_guarded`].
    guarded: bool,
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
    fn from_parts(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// The same table, described otherwise.
    pub(crate) fn with_spec(&self, spec: TableSpec, remark: Option<String>) -> Self {
        Self::from_parts(Inner { spec, remark, ..(*self.inner).clone() })
    }

    pub(crate) fn with_metadata(&self, metadata: TableMetadata) -> Self {
        Self::from_parts(Inner { metadata: Arc::new(metadata), ..(*self.inner).clone() })
    }

    pub(crate) fn with_layout(&self, layout: Option<Layout>) -> Self {
        Self::from_parts(Inner { layout, ..(*self.inner).clone() })
    }

    /// The same table, with companions for these columns too, by field id: its files may have them.
    #[must_use]
    pub fn with_companions(&self, of: impl IntoIterator<Item = i32>) -> Self {
        self.with_spec(self.spec().clone().with_companions(of), self.inner.remark.clone())
    }

    /// The table after a commit of ours, which leaves branches and tags as they are.
    pub(crate) fn succeeded_by(&self, metadata: TableMetadata, location: String, manifests: Vec<ManifestFile>) -> Self {
        let (copy, entry) = (CopyOf::of(&metadata), Entry::Current(location));
        let metadata = Arc::new(metadata);
        Self::from_parts(Inner {
            layout: None,
            remark: None,
            metadata,
            copy,
            entry,
            manifests,
            ..(*self.inner).clone()
        })
    }

    /// The same table after a truncation.
    pub(crate) fn without_files(&self) -> Self {
        Self::from_parts(Inner { manifests: Vec::new(), ..(*self.inner).clone() })
    }

    /// The same prepared table, meant to replace another entry.
    pub(crate) fn replacing(&self, replaces: Option<String>) -> Self {
        let entry = Entry::Absent { replaces };
        Self::from_parts(Inner { entry, pinned_snapshots: BTreeSet::new(), ..(*self.inner).clone() })
    }

    /// A prepared table in the place of the one that the catalog has: the next commit puts this copy's schema and files
    /// where that one's are, and readers see one or the other.
    pub(crate) fn onto(&self, there: &Self) -> Result<Self> {
        let (ours, theirs) = (self.format(), there.format());
        if ours < theirs {
            let (ours, theirs) = (ours.number(), theirs.number());
            let context = format!("the lake's table {} is of format version {theirs}, not {ours}", self.full_name());
            return Err(Error::new(ErrorKind::ForeignChange, context)
                .with_table(&self.spec().namespace, &self.spec().name)
                .with_hint(format!(
                    "a table never goes back: let it be of version {theirs}, or drop it in the catalog"
                )));
        }
        let Inner { metadata, entry, manifests, pinned_snapshots, .. } = (*there.inner).clone();
        Ok(Self::from_parts(Inner { metadata, entry, manifests, pinned_snapshots, ..(*self.inner).clone() }))
    }

    /// What the next commit has to write into the table so that it is known for this copy.
    pub(crate) fn identity_properties(&self) -> Result<Vec<(String, String)>> {
        let Inner { metadata, copy, .. } = &*self.inner;
        if *copy == CopyOf::of(metadata) {
            return Ok(Vec::new());
        }
        let text = serde_json::to_string(copy)
            .map_err(|error| Error::format("name the copy that a table holds").with_source(error))?;
        let folder = format!("{}/data", copy.folder);
        Ok(vec![(COPY_PROPERTY.to_owned(), text), (DATA_FOLDER_PROPERTY.to_owned(), folder)])
    }

    /// The table as the catalog has it after a commit of ours, in which it took this as its next state.
    pub(crate) fn confirmed(&self, found: Found) -> Result<Self> {
        let pinned_snapshots = pinned_snapshots(&found.metadata)?;
        let (copy, entry) = (CopyOf::of(&found.metadata), Entry::Current(found.location));
        let metadata = Arc::new(found.metadata);
        Ok(Self::from_parts(Inner {
            layout: None,
            remark: None,
            metadata,
            copy,
            entry,
            pinned_snapshots,
            ..(*self.inner).clone()
        }))
    }

    /// The table as it was at an earlier snapshot, which it must still have.
    pub(crate) async fn at_snapshot(&self, warehouse: &Warehouse, id: Option<i64>) -> Result<Self> {
        let metadata = &self.inner.metadata;
        let manifests = match id {
            None => Vec::new(),
            Some(id) => {
                let snapshot = metadata.snapshot_by_id(id).ok_or_else(|| {
                    self.foreign_change("lost the snapshot that the mirror left to someone else's commit")
                })?;
                read_manifest_list(warehouse, snapshot).await?
            }
        };
        Ok(Self::from_parts(Inner { manifests, ..(*self.inner).clone() }))
    }

    /// A table of this format that no catalog knows yet; `uuid` is that of one which was prepared before and has files already,
    /// `replaces` the metadata of the one whose name it will take.
    pub fn prepare(
        warehouse: &Warehouse,
        spec: TableSpec,
        format: Format,
        uuid: Option<Uuid>,
        replaces: Option<String>,
    ) -> Result<Self> {
        Self::prepare_at(warehouse, spec, format, uuid, replaces, None)
    }

    /// The same of a table that the catalog has in the folder `there`, if that says where its copies lie
    /// ([`Warehouse::place`]).
    pub(crate) fn prepare_at(
        warehouse: &Warehouse,
        spec: TableSpec,
        format: Format,
        uuid: Option<Uuid>,
        replaces: Option<String>,
        there: Option<&str>,
    ) -> Result<Self> {
        let Stamp { unique, now_millis } = Stamp::draw();
        let uuid = uuid.unwrap_or(unique);
        let place = warehouse.place(&spec.namespace, &spec.name, uuid, there);
        let schema = spec.iceberg_schema()?;
        let describe = |error| Error::format(format!("prepare {}.{}", spec.namespace, spec.name)).with_source(error);
        // Spelled out, because the library's builder numbers the fields of a new table anew.
        let mut metadata = json!({
            "format-version": format.number(),
            "table-uuid": uuid,
            "location": place.table,
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
        });
        if format >= Format::V3 {
            metadata["next-row-id"] = 0.into();
        }
        let metadata: TableMetadata = serde_json::from_value(metadata).map_err(describe)?;
        Ok(Self::from_parts(Inner {
            spec,
            layout: None,
            remark: None,
            copy: CopyOf { uuid, folder: place.copy },
            metadata: Arc::new(metadata),
            format,
            guarded: warehouse.is_guarded(),
            entry: Entry::Absent { replaces },
            manifests: Vec::new(),
            pinned_snapshots: BTreeSet::new(),
        }))
    }

    /// The table that the catalog has, whose columns must be those of `spec`.
    pub(crate) async fn read(warehouse: &Warehouse, spec: TableSpec, found: Found) -> Result<Self> {
        Self::read_remarked(warehouse, spec, &|_| None, found).await
    }

    /// The same; but when the table has a remark of which `by_remark` makes a description, by that.
    pub(crate) async fn read_remarked(
        warehouse: &Warehouse,
        spec: TableSpec,
        by_remark: &Remarked<'_>,
        found: Found,
    ) -> Result<Self> {
        let table = Self::read_undescribed(warehouse, spec, found).await?;
        let described = table.metadata().properties().get(REMARK_PROPERTY).and_then(|remark| by_remark(remark));
        let table = described.map_or_else(|| table.clone(), |spec| table.with_spec(spec, None));
        table.spec().check_schema(table.metadata().current_schema())?;
        Ok(table)
    }

    /// The table as someone else's commit has left it, which was to change no column: `self` may be about to.
    pub(crate) async fn read_again(&self, warehouse: &Warehouse, found: Found) -> Result<Self> {
        let Inner { spec, layout, remark, metadata, .. } = &*self.inner;
        let found = Self::read_undescribed(warehouse, spec.clone(), found).await?;
        if found.metadata().current_schema().as_struct() != metadata.current_schema().as_struct() {
            spec.check_schema(found.metadata().current_schema())?;
        }
        Ok(found.with_spec(spec.clone(), remark.clone()).with_layout(layout.clone()))
    }

    /// The table that the catalog has, whatever its columns are.
    pub(crate) async fn read_undescribed(warehouse: &Warehouse, spec: TableSpec, found: Found) -> Result<Self> {
        let Found { location, metadata } = found;
        let name = format!("{}.{}", spec.namespace, spec.name);
        let unsupported = |what: &str| {
            Error::new(ErrorKind::ForeignChange, format!("the lake's table {name} {what}"))
                .with_table(&spec.namespace, &spec.name)
                .with_hint("undo the change, or copy the table again into a new Iceberg table")
        };
        let format = Format::of(&metadata).ok_or_else(|| unsupported("is not of format version 2 or 3"))?;
        let fields = metadata.partition_specs_iter().flat_map(|spec| spec.fields());
        if fields.into_iter().any(|field| field.transform == Transform::Unknown) {
            return Err(unsupported("is partitioned by a transform that is not known"));
        }
        let manifests = match metadata.current_snapshot() {
            Some(snapshot) => read_manifest_list(warehouse, snapshot).await?,
            None => Vec::new(),
        };
        Ok(Self::from_parts(Inner {
            spec,
            layout: None,
            remark: None,
            copy: CopyOf::of(&metadata),
            pinned_snapshots: pinned_snapshots(&metadata)?,
            metadata: Arc::new(metadata),
            format,
            guarded: warehouse.is_guarded(),
            entry: Entry::Current(location),
            manifests,
        }))
    }

    /// The folder of its files, as a URL.
    pub fn location(&self) -> &str {
        &self.inner.copy.folder
    }

    /// The folder of its metadata, as a URL: beside its data, unless that is in the folder of the table's copies.
    pub(crate) fn metadata_folder(&self) -> String {
        let folder = self.location();
        format!("{}/metadata", table_of_copy(folder, self.metadata().location()).unwrap_or(folder))
    }

    /// Which version of Iceberg's format it is of, after the next commit.
    pub fn format(&self) -> Format {
        self.inner.format
    }

    /// Where a Puffin file of the table is put. Readers go by what manifests say that it is, not by its name, and a store
    /// that a catalog guards takes names of some kinds only: SeaweedFS's table buckets take none that end in `.puffin`, and
    /// Puffin files only as what they mostly are, files of statistics beside the metadata.
    pub(crate) fn puffin_path(&self, name: &str) -> String {
        if self.inner.guarded {
            format!("{}/{name}.stats", self.metadata_folder())
        } else {
            format!("{}/data/{name}.puffin", self.location())
        }
    }

    /// Whether a file is this table's: of this copy, or of one whose place it took in the same Iceberg table.
    pub(crate) fn owns(&self, path: &str) -> bool {
        let Inner { metadata, copy, .. } = &*self.inner;
        let under = |folder: &str| path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
        if under(&copy.folder) || under(metadata.location()) {
            return true;
        }
        // The folders of a table's copies differ at the end.
        let stem = &copy.folder[..copy.folder.len() - copy.folder.rsplit('-').next().map_or(0, str::len)];
        let other = path.strip_prefix(stem).and_then(|rest| rest.split_once('/'));
        metadata.properties().contains_key(COPY_PROPERTY)
            && other.is_some_and(|(end, _)| !end.is_empty() && end.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }

    /// What the caller said the table is.
    pub fn spec(&self) -> &TableSpec {
        &self.inner.spec
    }

    /// The identity of the copy that it is: a table copied again under the same name has another.
    pub fn uuid(&self) -> Uuid {
        self.inner.copy.uuid
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
        Checkpoint::of(&self.inner.metadata)
    }

    /// What the next commit is to remember with the table.
    pub(crate) fn remark(&self) -> Option<&str> {
        self.inner.remark.as_deref()
    }

    /// How the next commit is to leave the table laid out; `None`: as it is.
    pub(crate) fn layout(&self) -> Option<&Layout> {
        self.inner.layout.as_ref()
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

    /// The error for a table whose files someone else rewrote, when a batch names positions in those that are gone.
    pub(crate) fn rewritten(&self) -> Error {
        Error::new(
            ErrorKind::Rewritten,
            format!("another engine rewrote files of the lake's table {}", self.full_name()),
        )
        .with_table(&self.inner.spec.namespace, &self.inner.spec.name)
        .with_hint("nothing is lost: the table is read anew, and its changes are made again")
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
    // Those of before the table became one of version 3 are as they were.
    let version = snapshot.first_row_id().map_or(FormatVersion::V2, |_| FormatVersion::V3);
    let read = async {
        let bytes = warehouse.file_io().new_input(path)?.read().await?;
        ManifestList::parse_with_version(&bytes, version)
    };
    let list = read.await.map_err(|error| Error::iceberg(format!("read the manifest list {path}"), error))?;
    Ok(list.consume_entries().into_iter().collect())
}
