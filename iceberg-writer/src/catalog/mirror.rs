//! The catalog as a mirror needs it: tables in a catalog of some kind, and the mirror's row in the source database.
//!
//! What a try that can't have happened wrote is deleted; what a try that may have happened wrote never is.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{join_all, try_join_all};
use iceberg::spec::ManifestFile;
use tokio_postgres::Config;
use tracing::warn;
use uuid::Uuid;

use super::ancestry::Ancestry;
use super::connection::{Connection, quoted};
use super::foreign::{Foreign, Ours, foreign_commits};
use super::grace::Superfluous;
use super::hadoop::HadoopCatalog;
use super::jdbc::{JdbcCatalog, JdbcTables};
use super::redo::Recovered;
use super::rest::{RestCatalog, RestSettings};
use super::state::State;
use super::tables::{Found, TableCatalog};
use super::{Catalog, IsPinned, Remarked, Retention, Swept};
use crate::commit::{Batch, CommitReceipt, CommittedTable, Garbage, MetadataBy, Outcome, TableChange};
use crate::deadline;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::schema::TableSpec;
use crate::table::LakeTable;
use crate::warehouse::Warehouse;

/// Where the tables are.
pub(super) enum Tables {
    /// In the mirror's own database and schema.
    Beside(JdbcTables),
    /// Anywhere else.
    Apart(Box<dyn TableCatalog>),
}

/// A catalog of tables, with the mirrors' positions in the source database.
pub struct MirrorCatalog {
    pub(super) connection: Connection,
    pub(super) state: State,
    pub(super) tables: Tables,
    pub(super) warehouse: Warehouse,
    pub(super) retention: Retention,
    pub(super) deadline: Duration,
    /// Attempts that may have happened: nothing of theirs is ever deleted.
    pub(super) unknown: Mutex<HashSet<Uuid>>,
    /// The manifests of snapshots, by the path of their list, for sweeping.
    pub(super) lists: Mutex<HashMap<String, Arc<[ManifestFile]>>>,
    /// What is to be removed.
    pub(super) superfluous: Mutex<Superfluous>,
}

impl MirrorCatalog {
    fn with_tables(config: Config, schema: &str, tables: Tables, warehouse: Warehouse) -> Self {
        Self {
            connection: Connection::new(config),
            state: State::new(&quoted(schema)),
            tables,
            warehouse,
            retention: Retention::default(),
            deadline: deadline::COMMIT,
            unknown: Mutex::default(),
            lists: Mutex::default(),
            superfluous: Mutex::default(),
        }
    }

    /// The JDBC catalog `catalog_name` beside the mirrors' rows, in a schema of the database that `config` connects to. No
    /// connection is made yet.
    pub fn in_source(config: Config, schema: &str, catalog_name: &str, warehouse: Warehouse) -> Self {
        let tables = Tables::Beside(JdbcTables::new(schema, catalog_name));
        Self::with_tables(config, schema, tables, warehouse)
    }

    /// The JDBC catalog `catalog_name` in `other_schema` of the database that `other` connects to, and the mirrors' rows in
    /// `schema` of the one that `config` connects to.
    pub fn in_database(
        config: Config,
        schema: &str,
        other: Config,
        other_schema: &str,
        catalog_name: &str,
        warehouse: Warehouse,
    ) -> Self {
        let tables = JdbcCatalog::new(other, other_schema, catalog_name, warehouse.clone());
        Self::with_tables(config, schema, Tables::Apart(Box::new(tables)), warehouse)
    }

    /// A REST catalog, and the mirrors' rows in a schema of the database that `config` connects to.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`]: the address can't be used, or the warehouse is not opened as the settings say that its keys
    /// come.
    pub fn over_rest(config: Config, schema: &str, rest: RestSettings, warehouse: Warehouse) -> Result<Self> {
        if rest.vended_credentials != warehouse.is_vended() {
            return Err(Error::invalid(
                "the catalog is to vend the warehouse's keys, or is not, and it was opened otherwise",
            ));
        }
        let tables = Tables::Apart(Box::new(RestCatalog::new(rest, warehouse.vault())?));
        Ok(Self::with_tables(config, schema, tables, warehouse.guarded()))
    }

    /// No catalog but the warehouse's files, and the mirrors' rows in a schema of the database that `config` connects to.
    pub fn in_files(config: Config, schema: &str, warehouse: Warehouse) -> Self {
        let tables = Tables::Apart(Box::new(HadoopCatalog::new(warehouse.clone())));
        Self::with_tables(config, schema, tables, warehouse)
    }

    /// Sets how long superseded snapshots are kept.
    #[must_use]
    pub fn with_retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Sets how long one call of [`Catalog::commit`] tries.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Where the tables' files are.
    pub fn warehouse(&self) -> &Warehouse {
        &self.warehouse
    }

    /// Makes what a catalog elsewhere needs for itself, and sees that it answers. The one in the source database is made
    /// with the mirror's own tables.
    pub async fn ensure(&self) -> Result<()> {
        match &self.tables {
            Tables::Beside(_) => Ok(()),
            Tables::Apart(tables) => tables.ensure().await,
        }
    }

    /// Sees that a table can have this name in the catalog.
    pub fn check_name(&self, namespace: &str, name: &str) -> Result<()> {
        match &self.tables {
            Tables::Beside(_) => Ok(()),
            Tables::Apart(tables) => tables.check_name(namespace, name),
        }
    }

    pub(super) async fn metadata_location(&self, spec: &TableSpec) -> Result<Option<String>> {
        match &self.tables {
            Tables::Beside(tables) => tables.location(&self.connection, &spec.namespace, &spec.name).await,
            Tables::Apart(tables) => tables.location(&spec.namespace, &spec.name).await,
        }
    }

    pub(super) async fn find(&self, spec: &TableSpec) -> Result<Option<Found>> {
        if let Tables::Apart(tables) = &self.tables {
            return tables.load(&spec.namespace, &spec.name).await;
        }
        match self.metadata_location(spec).await? {
            None => Ok(None),
            Some(location) => Found::read(&self.warehouse, location).await.map(Some),
        }
    }

    /// Whether metadata files are a server's.
    pub(super) fn is_written_by_server(&self) -> bool {
        matches!(&self.tables, Tables::Apart(tables) if tables.metadata_by() == MetadataBy::Server)
    }

    /// Whether the catalog's table of this name is the copy that was prepared with this identity.
    pub(super) async fn is_entered(&self, spec: &TableSpec, uuid: Uuid, location: &str) -> Result<bool> {
        match &self.tables {
            Tables::Apart(tables) if tables.metadata_by() == MetadataBy::Server => {
                let Some(found) = tables.load(&spec.namespace, &spec.name).await? else { return Ok(false) };
                let table = LakeTable::read_undescribed(&self.warehouse, spec.clone(), found).await?;
                Ok(table.uuid() == uuid || table.metadata().location() == location)
            }
            _ => {
                let current = self.metadata_location(spec).await?;
                Ok(current.is_some_and(|current| current.starts_with(&format!("{location}/"))))
            }
        }
    }

    /// The receipt of tables as they are now, of which `garbage` became superfluous.
    pub(super) fn receipt(&self, batch: &Batch, tables: Vec<CommittedTable>, garbage: Vec<Garbage>) -> CommitReceipt {
        let mut lists = lock(&self.lists);
        for table in tables.iter().map(|committed| &committed.table) {
            if let Some(snapshot) = table.metadata().current_snapshot() {
                lists.insert(snapshot.manifest_list().to_owned(), table.manifests().into());
            }
        }
        CommitReceipt::new(batch.lsn, tables, garbage)
    }

    /// The receipt of a batch that an earlier call committed.
    pub(super) async fn adopt(&self, batch: &Batch) -> Result<CommitReceipt> {
        let adopt = |change: &TableChange| {
            let change = change.clone();
            async move {
                let base = &change.table;
                let Some(found) = self.find(base.spec()).await? else {
                    return Err(base.foreign_change("was dropped by someone else"));
                };
                let table = LakeTable::read(&self.warehouse, base.spec().clone(), found).await?;
                if !change.is_empty() && table.checkpoint().is_none_or(|found| found.attempt != batch.attempt) {
                    return Err(base.foreign_change("lost the mirror's last commit"));
                }
                let foreign = self.foreign_beside(&change, &table, batch).await?;
                Ok::<_, Error>(committed_table(table, foreign))
            }
        };
        let tables = try_join_all(batch.tables.iter().map(adopt)).await?;
        Ok(CommitReceipt::new(batch.lsn, tables, Vec::new()))
    }

    /// What someone else did to a table, which has a change of ours.
    pub(super) async fn foreign_beside(
        &self,
        change: &TableChange,
        table: &LakeTable,
        batch: &Batch,
    ) -> Result<Foreign> {
        let base = &change.table;
        let written = change.written().map(|file| file.path.as_str());
        let mut replaced = change.rewrite.removed.clone();
        if change.rewrite.all_deletes {
            replaced.extend(base.delete_paths(&self.warehouse).await?);
        }
        let files = written.chain(replaced.iter().map(String::as_str)).collect();
        let ours = Ours { files, vectors_of: change.vectors_of() };
        let before = if change.truncate { base.without_files() } else { base.clone() };
        foreign_commits(&self.warehouse, &before, table, &ours, (&batch.mirror, batch.attempt)).await
    }

    /// Deletes files that no snapshot names. Best effort.
    pub(super) async fn delete(&self, files: &[String]) {
        let results = join_all(files.iter().map(|file| self.warehouse.file_io().delete(file))).await;
        for (file, error) in files.iter().zip(results).filter_map(|(file, result)| Some((file, result.err()?))) {
            warn!(file, %error, "could not remove a file of a commit that did not happen");
        }
    }
}

fn committed_table(table: LakeTable, foreign: Foreign) -> CommittedTable {
    match foreign {
        Foreign::Added(foreign_files) => CommittedTable { table, foreign_files, rewritten: false },
        Foreign::Rewritten => CommittedTable { table, foreign_files: Vec::new(), rewritten: true },
    }
}

/// A lock over plain data stays usable after a panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Catalog for MirrorCatalog {
    async fn load(&self, spec: TableSpec) -> Result<Option<LakeTable>> {
        match self.find(&spec).await? {
            None => Ok(None),
            Some(found) => LakeTable::read(&self.warehouse, spec, found).await.map(Some),
        }
    }

    async fn load_remarked(&self, spec: TableSpec, by_remark: &Remarked<'_>) -> Result<Option<LakeTable>> {
        match self.find(&spec).await? {
            None => Ok(None),
            Some(found) => LakeTable::read_remarked(&self.warehouse, spec, by_remark, found).await.map(Some),
        }
    }

    async fn check(&self, table: &LakeTable, mirror: &str) -> Result<()> {
        Ancestry::of(&self.warehouse, table, mirror).await?.prove(&self.warehouse, table).await
    }

    async fn prepare(&self, spec: TableSpec, format: Format) -> Result<LakeTable> {
        self.prepare_as(spec, format, None).await
    }

    async fn prepare_again(&self, spec: TableSpec, format: Format, uuid: Uuid) -> Result<LakeTable> {
        self.prepare_as(spec, format, Some(uuid)).await
    }

    async fn commit(&self, batch: &Batch) -> Result<Outcome> {
        match &self.tables {
            Tables::Beside(tables) => self.commit_beside(tables, batch).await,
            Tables::Apart(tables) => self.commit_apart(&**tables, batch).await,
        }
    }

    async fn recover(&self, mirror: &str, epoch: i64) -> Result<Recovered> {
        self.recover_pending(mirror, epoch).await
    }

    async fn drop_entry(&self, namespace: &str, name: &str) -> Result<()> {
        match &self.tables {
            Tables::Beside(tables) => tables.drop_entry(&self.connection, namespace, name).await,
            Tables::Apart(tables) => tables.drop_entry(namespace, name).await,
        }
    }

    async fn sweep(&self, receipts: &[CommitReceipt], is_pinned: &IsPinned<'_>) -> Swept {
        self.sweep_garbage(receipts, is_pinned).await
    }

    async fn discard(&self, batch: &Batch, is_pinned: &IsPinned<'_>) {
        if !lock(&self.unknown).contains(&batch.attempt) {
            let files = batch.tables.iter().flat_map(TableChange::written).map(|file| file.path.clone());
            // Deletion vectors share one.
            let files = files.collect::<BTreeSet<_>>().into_iter();
            let (read, files): (Vec<_>, Vec<_>) = files.partition(|file| is_pinned(file));
            self.delete(&files).await;
            self.abandon(read);
        }
    }

    fn abandon(&self, files: Vec<String>) {
        lock(&self.superfluous).may_go(files);
    }

    async fn look_for_strays(&self, table: &LakeTable, epoch: i64) -> Result<usize> {
        self.put_off_strays(table, epoch).await
    }

    async fn discard_prepared(&self, spec: &TableSpec, uuid: Uuid) -> Result<()> {
        self.remove_prepared(spec, uuid).await
    }
}
