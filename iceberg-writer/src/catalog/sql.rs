//! The catalog in the source's own database: the layout of Iceberg's JDBC catalog, and the mirrors' rows beside it.
//!
//! [`SqlCatalog::commit`] goes round until it knows: plan, write, run the transaction. What a try that can't have happened
//! wrote is deleted; what a try that may have happened wrote never is.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{join_all, try_join_all};
use iceberg::spec::ManifestFile;
use tokio::time::Instant;
use tokio_postgres::Config;
use tracing::{info, warn};
use uuid::Uuid;

use super::connection::{Connection, quoted};
use super::foreign::foreign_files;
use super::transaction::{Ended, MirrorRow, Move, Statements};
use super::{Catalog, IsPinned, Remarked, Retention, Swept};
use crate::commit::{Batch, CommitReceipt, CommittedTable, Outcome, Planned, TableChange, plan};
use crate::deadline::{self, Backoff};
use crate::error::{Error, ErrorKind, Result, Retry};
use crate::live_files::LiveFile;
use crate::schema::TableSpec;
use crate::stamp::Stamp;
use crate::table::{Entry, LakeTable};
use crate::warehouse::Warehouse;

/// Iceberg's JDBC catalog in a Postgres schema, with the mirrors' positions.
pub struct SqlCatalog {
    connection: Connection,
    statements: Statements,
    name: String,
    pub(super) warehouse: Warehouse,
    retention: Retention,
    deadline: Duration,
    /// Attempts of which a COMMIT was not answered: nothing of theirs is ever deleted.
    unknown: Mutex<HashSet<Uuid>>,
    /// The manifests of snapshots, by the path of their list, for sweeping.
    pub(super) lists: Mutex<HashMap<String, Arc<[ManifestFile]>>>,
    /// Garbage that could not be removed yet.
    pub(super) deferred: Mutex<BTreeSet<String>>,
}

/// A table of the batch on its way into the catalog.
struct Step {
    change: TableChange,
    planned: Option<Planned>,
    foreign_files: Vec<LiveFile>,
}

/// What a round of a commit found.
enum Round {
    Done(Outcome),
    Again,
}

impl SqlCatalog {
    /// The catalog `catalog_name` in a schema of the database that `config` connects to. No connection is made yet.
    pub fn new(config: Config, schema: &str, catalog_name: &str, warehouse: Warehouse) -> Self {
        Self {
            connection: Connection::new(config),
            statements: Statements::new(&quoted(schema)),
            name: catalog_name.to_owned(),
            warehouse,
            retention: Retention::default(),
            deadline: deadline::COMMIT,
            unknown: Mutex::default(),
            lists: Mutex::default(),
            deferred: Mutex::default(),
        }
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

    pub(super) async fn metadata_location(&self, spec: &TableSpec) -> Result<Option<String>> {
        self.statements.metadata_location(&self.connection, &self.name, &spec.namespace, &spec.name).await
    }

    /// One try: plan what is not planned, then run the transaction.
    async fn round(&self, batch: &Batch, steps: &mut [Step], sent: &mut bool) -> Result<Round> {
        let plans = steps.iter().filter(|step| step.planned.is_none() && !step.change.is_empty());
        let plans = plans.map(|step| plan(&self.warehouse, batch, &step.change, &self.retention, Stamp::draw()));
        let mut plans = try_join_all(plans).await?.into_iter();
        for step in steps.iter_mut().filter(|step| step.planned.is_none() && !step.change.is_empty()) {
            step.planned = plans.next();
        }
        let planned = steps.iter().enumerate().filter_map(|(index, step)| Some((index, step, step.planned.as_ref()?)));
        let (indexes, moves): (Vec<usize>, Vec<Move<'_>>) = planned
            .map(|(index, step, planned)| {
                (index, Move { base: &step.change.table, metadata_location: &planned.metadata_location })
            })
            .unzip();
        match self.statements.commit(&self.connection, &self.name, batch, &moves).await? {
            Ended::Committed => Ok(Round::Done(Outcome::Committed(self.receipt(batch, steps)))),
            Ended::Lost(error) => {
                warn!(attempt = %batch.attempt, %error, "no answer to a commit, asking what became of it");
                *sent = true;
                lock(&self.unknown).insert(batch.attempt);
                Ok(Round::Again)
            }
            Ended::MirrorElsewhere(row) => self.mirror_elsewhere(batch, steps, *sent, row).await.map(Round::Done),
            Ended::TablesMoved(moved) => {
                // The mirror's row was ours to move, so no earlier try of this batch has happened.
                *sent = false;
                lock(&self.unknown).remove(&batch.attempt);
                for index in moved.into_iter().map(|index| indexes[index]) {
                    self.take_over(&mut steps[index]).await?;
                }
                Ok(Round::Again)
            }
        }
    }

    async fn mirror_elsewhere(
        &self,
        batch: &Batch,
        steps: &mut [Step],
        sent: bool,
        row: Option<MirrorRow>,
    ) -> Result<Outcome> {
        let Some(row) = row else { return Ok(Outcome::Refused { found: None }) };
        if row.attempt == Some(batch.attempt) {
            info!(attempt = %batch.attempt, "the commit had happened");
            lock(&self.unknown).remove(&batch.attempt);
            // Sent in this call: what is planned is what is committed. Otherwise the catalog knows.
            if sent {
                return Ok(Outcome::Committed(self.receipt(batch, steps)));
            }
            self.drop_plans(steps).await;
            return Ok(Outcome::Committed(self.adopt(batch).await?));
        }
        if row.epoch > batch.epoch {
            return Ok(Outcome::Fenced { epoch: row.epoch });
        }
        if row.epoch < batch.epoch {
            let context =
                format!("mirror {} is in epoch {}, and {} was never issued", batch.mirror, row.epoch, batch.epoch);
            return Err(Error::invalid(context));
        }
        Ok(Outcome::Refused { found: row.lsn })
    }

    /// Finds what moved a table, and plans on top of it when that is possible.
    async fn take_over(&self, step: &mut Step) -> Result<()> {
        if let Some(planned) = step.planned.take() {
            self.delete(&planned.files).await;
        }
        let base = &step.change.table;
        let location = self.metadata_location(base.spec()).await?;
        match (base.entry(), location) {
            (Entry::Absent { replaces: Some(_) }, location) => step.change.table = base.replacing(location),
            (Entry::Absent { replaces: None }, _) => {
                return Err(base.foreign_change("was made by someone else meanwhile"));
            }
            (Entry::Current(_), None) => return Err(base.foreign_change("was dropped by someone else")),
            (Entry::Current(_), Some(location)) => {
                let found = base.read_again(&self.warehouse, location).await?;
                let mut files = foreign_files(&self.warehouse, base, &found, &BTreeSet::new()).await?;
                info!(table = base.full_name(), files = files.len(), "took over someone else's commit");
                if !step.change.truncate {
                    step.foreign_files.append(&mut files);
                }
                step.change.table = found;
            }
        }
        Ok(())
    }

    fn receipt(&self, batch: &Batch, steps: &mut [Step]) -> CommitReceipt {
        let mut garbage = Vec::new();
        let mut tables = Vec::new();
        let mut lists = lock(&self.lists);
        for step in steps {
            let table = match step.planned.take() {
                None => step.change.table.clone(),
                Some(planned) => {
                    garbage.push(planned.garbage);
                    planned.next
                }
            };
            if let Some(snapshot) = table.metadata().current_snapshot() {
                lists.insert(snapshot.manifest_list().to_owned(), table.manifests().into());
            }
            tables.push(CommittedTable { table, foreign_files: std::mem::take(&mut step.foreign_files) });
        }
        CommitReceipt::new(batch.lsn, tables, garbage)
    }

    /// The receipt of a batch that an earlier call committed.
    async fn adopt(&self, batch: &Batch) -> Result<CommitReceipt> {
        let adopt = |change: &TableChange| {
            let change = change.clone();
            async move {
                let base = &change.table;
                let spec = base.spec().clone();
                let Some(location) = self.metadata_location(&spec).await? else {
                    return Err(base.foreign_change("was dropped by someone else"));
                };
                let table = LakeTable::read(&self.warehouse, spec, location).await?;
                if !change.is_empty() && table.checkpoint().is_none_or(|found| found.attempt != batch.attempt) {
                    return Err(base.foreign_change("lost the mirror's last commit"));
                }
                let written = change.written().map(|file| file.path.as_str());
                let mut replaced = change.rewrite.removed.clone();
                if change.rewrite.all_deletes {
                    replaced.extend(base.delete_paths(&self.warehouse).await?);
                }
                let ours: BTreeSet<&str> = written.chain(replaced.iter().map(String::as_str)).collect();
                let before = if change.truncate { base.without_files() } else { base.clone() };
                let foreign_files = foreign_files(&self.warehouse, &before, &table, &ours).await?;
                Ok::<_, Error>(CommittedTable { table, foreign_files })
            }
        };
        let tables = try_join_all(batch.tables.iter().map(adopt)).await?;
        Ok(CommitReceipt::new(batch.lsn, tables, Vec::new()))
    }

    /// Deletes files that no snapshot names. Best effort.
    async fn delete(&self, files: &[String]) {
        let results = join_all(files.iter().map(|file| self.warehouse.file_io().delete(file))).await;
        for (file, error) in files.iter().zip(results).filter_map(|(file, result)| Some((file, result.err()?))) {
            warn!(file, %error, "could not remove a file of a commit that did not happen");
        }
    }

    /// Removes what was written for tries that did not happen.
    async fn drop_plans(&self, steps: &mut [Step]) {
        for planned in steps.iter_mut().filter_map(|step| step.planned.take()) {
            self.delete(&planned.files).await;
        }
    }
}

/// A lock over plain data stays usable after a panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Catalog for SqlCatalog {
    async fn load(&self, spec: TableSpec) -> Result<Option<LakeTable>> {
        match self.metadata_location(&spec).await? {
            None => Ok(None),
            Some(location) => LakeTable::read(&self.warehouse, spec, location).await.map(Some),
        }
    }

    async fn load_remarked(&self, spec: TableSpec, by_remark: &Remarked<'_>) -> Result<Option<LakeTable>> {
        match self.metadata_location(&spec).await? {
            None => Ok(None),
            Some(location) => LakeTable::read_remarked(&self.warehouse, spec, by_remark, location).await.map(Some),
        }
    }

    async fn prepare(&self, spec: TableSpec) -> Result<LakeTable> {
        let replaces = self.metadata_location(&spec).await?;
        LakeTable::prepare(&self.warehouse, spec, None, replaces)
    }

    async fn prepare_again(&self, spec: TableSpec, uuid: Uuid) -> Result<LakeTable> {
        let replaces = self.metadata_location(&spec).await?;
        LakeTable::prepare(&self.warehouse, spec, Some(uuid), replaces)
    }

    async fn commit(&self, batch: &Batch) -> Result<Outcome> {
        let give_up_at = Instant::now() + self.deadline;
        let steps = batch.tables.iter().cloned();
        let mut steps: Vec<Step> =
            steps.map(|change| Step { change, planned: None, foreign_files: Vec::new() }).collect();
        let (mut sent, mut backoff) = (false, Backoff::new());
        loop {
            let error = match self.round(batch, &mut steps, &mut sent).await {
                Ok(Round::Done(outcome)) => {
                    if !matches!(outcome, Outcome::Committed(_)) {
                        if !sent {
                            self.drop_plans(&mut steps).await;
                        }
                        self.discard(batch, &|_| false).await;
                    }
                    return Ok(outcome);
                }
                Ok(Round::Again) => Error::new(ErrorKind::Unavailable, "the commit was overtaken again and again"),
                Err(error) => error,
            };
            if error.retry() == Retry::Never || Instant::now() >= give_up_at {
                if !sent {
                    self.drop_plans(&mut steps).await;
                }
                // Of an earlier call, it may be.
                if lock(&self.unknown).contains(&batch.attempt) {
                    let context = format!("whether the commit {} happened is not known", batch.attempt);
                    return Err(Error::new(ErrorKind::Unknown, context).with_source(error));
                }
                return Err(error);
            }
            backoff.wait().await;
        }
    }

    async fn drop_entry(&self, namespace: &str, name: &str) -> Result<()> {
        self.statements.drop_entry(&self.connection, &self.name, namespace, name).await
    }

    async fn sweep(&self, receipt: &CommitReceipt, is_pinned: &IsPinned<'_>) -> Swept {
        self.sweep_garbage(receipt, is_pinned).await
    }

    async fn discard(&self, batch: &Batch, is_pinned: &IsPinned<'_>) {
        if !lock(&self.unknown).contains(&batch.attempt) {
            let files = batch.tables.iter().flat_map(TableChange::written).map(|file| file.path.clone());
            let (read, files): (Vec<_>, Vec<_>) = files.partition(|file| is_pinned(file));
            self.delete(&files).await;
            self.abandon(read);
        }
    }

    fn abandon(&self, files: Vec<String>) {
        lock(&self.deferred).extend(files);
    }

    async fn sweep_strays(&self, table: &LakeTable, epoch: i64, is_pinned: &IsPinned<'_>) -> Result<Swept> {
        self.sweep_strays_of(table, epoch, is_pinned).await
    }

    async fn discard_prepared(&self, spec: &TableSpec, uuid: Uuid) -> Result<()> {
        self.remove_prepared(spec, uuid).await
    }
}
