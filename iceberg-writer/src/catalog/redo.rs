//! The redo record: a batch on its way into tables that no transaction holds together with the mirror's row.
//!
//! # The protocol
//! 1. *Decide*: one UPDATE of the mirror's row, under the worker's epoch, from the expected position, and only where no
//!    other batch is on record, puts the batch there whole: what becomes of which table, and the files, which are durable
//!    by then. From here on the batch will be committed, by this worker or by one that comes after it.
//! 2. *Move* each table ([`super::apart`]): from the snapshot that the mirror left it at, and with the attempt's id in the
//!    table itself. Several go in one request where the catalog takes them.
//! 3. *Settle*: one UPDATE, under the epoch, moves the mirror's position and takes the record away.
//!
//! A worker that claims a mirror does 2 and 3 for the batch on record before anything else. Which tables have it already,
//! the tables say: each carries the id of the mirror's last attempt in a property, past other writers' commits.
//!
//! # Why a batch is in every table once, and none is skipped
//! *Not lost.* The slot is acknowledged by a receipt, and a receipt comes of 3. Before 1 nothing has happened, and WAL
//! brings the batch again; after 1 the record is there until every table has it.
//!
//! *Not twice.* There is one batch on record at a time, and no other can be decided before it is settled. Each of its moves
//! asserts the snapshot from which it was planned. Of several moves of one table that were ever sent for an attempt, by
//! whomever and however late they arrive, the first that happens changes the snapshot, and the rest are refused. Who is
//! refused looks at the table, and finds the attempt there.
//!
//! *A worker that lives on* (stopped for an hour, say, while another took over) is in one of three places. Before 1: the row
//! refuses it, by its epoch. Between 1 and 3: it can only repeat the moves of the attempt on record, which its successor has
//! made or makes too; when the successor has gone on, the table's checkpoint has a later epoch, and the worker stops. At 3:
//! the row refuses it. A request of its that arrives after all that asserts a snapshot that is not the table's any more. (An
//! operator who rolls a table back to that very snapshot while such a request is on its way would let it in. Its mirror
//! notices the roll-back at its next commit.)
//!
//! *Unknown* is an answer that did not come, or says that the server does not know (5xx). The same move is sent again, and
//! is made, or refused because it was made. Nothing of a batch that may be decided is ever deleted.
//!
//! # What cannot go on
//! A table of which another engine has rewritten files cannot take a batch that names them. Where it could only have been
//! moved together with all others, or is the only one, nothing that was ever sent can be granted any more, for it asserted
//! the snapshot before the rewrite: the batch is withdrawn, whoever sent it, and WAL brings its changes again. Where tables
//! move one by one, they are looked at before the batch is put on record. A rewrite in the moments between is met as follows.
//!
//! A table that someone else dropped, or took rows from, cannot take the batch. As long as no table has it and no answer is
//! outstanding, the batch is withdrawn from the record, and the caller tries without that table. Otherwise the others get the
//! batch and that table is *left out*: the row says so in the same UPDATE that moves the position, until the next batch is
//! decided. So whoever starts next knows that the table has to stop, although the position is past what it has (I6).

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ancestry::Ancestry;
use super::foreign::{Foreign, Ours, foreign_commits};
use super::mirror::{MirrorCatalog, Tables};
use super::tables::TableCatalog;
use crate::commit::{Batch, LeftOut, MetadataBy, Rewrite, TableChange};
use crate::data_file::WrittenFile;
use crate::error::{Error, Result, Retry};
use crate::format::Format;
use crate::layout::Layout;
use crate::lsn::Lsn;
use crate::schema::TableSpec;
use crate::table::{Checkpoint, Entry, LakeTable};

/// The form of the record; another one is not understood.
const VERSION: u32 = 2;

/// Where a mirror is when nothing is on its way any more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The position the lake is at.
    pub lsn: Option<Lsn>,
    /// Tables that the last batch did not reach, and that have to stop. They are named until the next batch.
    pub left_out: Vec<LeftOut>,
}

/// A batch, as the mirror's row keeps it.
#[derive(Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    /// The catalog whose tables are meant.
    catalog: String,
    attempt: Uuid,
    lsn: String,
    tables: Vec<RecordedChange>,
}

#[derive(Serialize, Deserialize)]
struct RecordedChange {
    spec: TableSpec,
    remark: Option<String>,
    /// The copy's identity.
    uuid: Uuid,
    /// The batch brings the table into the catalog.
    prepared: bool,
    /// In the place of another.
    replaces: bool,
    /// The snapshot that it is moved from.
    snapshot: Option<i64>,
    truncate: bool,
    /// Manifest entries, each as text.
    data: Vec<String>,
    #[serde(deserialize_with = "one_or_several")]
    deletes: Vec<String>,
    /// What a prepared table is to be of. Records of before there was a choice do not say.
    #[serde(default)]
    format: Format,
    /// How the batch lays the table out; `None`: as it was.
    #[serde(default)]
    layout: Option<Layout>,
    rewrite: RecordedRewrite,
    expire: bool,
}

/// Records of before there were deletion vectors have one file of deletions, or none.
fn one_or_several<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Files {
        One(Option<String>),
        Several(Vec<String>),
    }
    Ok(match Files::deserialize(from)? {
        Files::One(file) => file.into_iter().collect(),
        Files::Several(files) => files,
    })
}

/// Files that take the place of others.
#[derive(Serialize, Deserialize)]
struct RecordedRewrite {
    removed: Vec<String>,
    data: Vec<String>,
    all_deletes: bool,
    alone: bool,
}

/// A table of a recorded batch, to be moved.
pub(super) struct Recorded {
    pub(super) change: TableChange,
    pub(super) standing: Standing,
}

/// Where a table of a recorded batch is.
pub(super) enum Standing {
    /// It has not got the batch.
    Before,
    /// It has.
    After,
    /// It can't get it: there is another one, or someone else changed it.
    Elsewhere(Error),
}

impl Record {
    /// A batch on its way into the tables of a catalog.
    pub(super) fn of(batch: &Batch, catalog: &str) -> Result<String> {
        let tables = batch.tables.iter().filter(|change| !change.is_empty());
        let record = Self {
            version: VERSION,
            catalog: catalog.to_owned(),
            attempt: batch.attempt,
            lsn: batch.lsn.to_string(),
            tables: tables.map(RecordedChange::of).collect::<Result<_>>()?,
        };
        serde_json::to_string(&record).map_err(|error| Error::format("record a batch").with_source(error))
    }

    fn read(text: &str, catalog: &str) -> Result<Self> {
        let record: Self = serde_json::from_str(text).map_err(|error| {
            Error::format("read the batch that is on record")
                .with_source(error)
                .with_hint("start the version of the worker that wrote it once more, and end it with SIGTERM")
        })?;
        if record.version != VERSION {
            let context = format!("the batch on record has version {}, not {VERSION}", record.version);
            return Err(Error::invalid(context)
                .with_hint("start the version of the worker that wrote it once more, and end it with SIGTERM"));
        }
        if record.catalog != catalog {
            let context =
                format!("a batch is on its way into the {}, and the catalog is now the {catalog}", record.catalog);
            return Err(Error::invalid(context)
                .with_hint("start the worker with the former [catalog] once more, and end it with SIGTERM"));
        }
        Ok(record)
    }
}

impl RecordedChange {
    fn of(change: &TableChange) -> Result<Self> {
        let table = &change.table;
        let Rewrite { removed, data, all_deletes, alone } = &change.rewrite;
        let (removed, data) = (removed.clone(), data.iter().map(WrittenFile::to_json).collect::<Result<_>>()?);
        Ok(Self {
            rewrite: RecordedRewrite { removed, data, all_deletes: *all_deletes, alone: *alone },
            expire: change.expire,
            spec: table.spec().clone(),
            remark: table.remark().map(str::to_owned),
            uuid: table.uuid(),
            prepared: table.metadata_location().is_none(),
            replaces: matches!(table.entry(), Entry::Absent { replaces: Some(_) }),
            snapshot: table.snapshot_id(),
            truncate: change.truncate,
            data: change.data.iter().map(WrittenFile::to_json).collect::<Result<_>>()?,
            deletes: change.deletes.iter().map(WrittenFile::to_json).collect::<Result<_>>()?,
            format: table.format(),
            layout: table.layout().filter(|_| !table.has_its_layout()).cloned(),
        })
    }

    /// The change again, of the table as it is now.
    async fn restore(
        self,
        catalog: &MirrorCatalog,
        tables: &dyn TableCatalog,
        mirror: &str,
        attempt: Uuid,
    ) -> Result<Recorded> {
        let (table, standing) = match self.find(catalog, tables, mirror, attempt).await {
            Ok(found) => found,
            Err(error) if error.table().is_some() => (self.prepare(catalog, None, None)?, Standing::Elsewhere(error)),
            Err(error) => return Err(error),
        };
        let table = table.with_spec(self.spec.clone(), self.remark.clone()).with_layout(self.layout.clone());
        let file = |json: &String| WrittenFile::from_json(&table, json);
        let mut change = TableChange {
            table: table.clone(),
            truncate: self.truncate,
            data: Vec::new(),
            deletes: Vec::new(),
            rewrite: Rewrite::default(),
            expire: self.expire,
        };
        if matches!(standing, Standing::Before) {
            change.data = self.data.iter().map(file).collect::<Result<_>>()?;
            change.deletes = self.deletes.iter().map(file).collect::<Result<_>>()?;
            let RecordedRewrite { removed, data, all_deletes, alone } = &self.rewrite;
            let (removed, data) = (removed.clone(), data.iter().map(file).collect::<Result<_>>()?);
            change.rewrite = Rewrite { removed, data, all_deletes: *all_deletes, alone: *alone };
        }
        Ok(Recorded { change, standing })
    }

    /// As [`TableChange::names_no_files`].
    fn names_no_files(&self) -> bool {
        let RecordedRewrite { removed, data, all_deletes, .. } = &self.rewrite;
        let rewrites = !removed.is_empty() || !data.is_empty() || *all_deletes;
        self.truncate || self.deletes.is_empty() && !rewrites
    }

    /// The copy, as it was prepared; `there`: the folder of the table in the catalog.
    fn prepare(&self, catalog: &MirrorCatalog, replaces: Option<String>, there: Option<&str>) -> Result<LakeTable> {
        let (warehouse, spec) = (&catalog.warehouse, self.spec.clone());
        LakeTable::prepare_at(warehouse, spec, self.format, Some(self.uuid), replaces, there)
    }

    /// The table as the catalog has it, and what that means for the batch.
    async fn find(
        &self,
        catalog: &MirrorCatalog,
        tables: &dyn TableCatalog,
        mirror: &str,
        attempt: Uuid,
    ) -> Result<(LakeTable, Standing)> {
        let warehouse = &catalog.warehouse;
        let Some(found) = tables.load(&self.spec.namespace, &self.spec.name).await? else {
            let table = self.prepare(catalog, None, None)?;
            let dropped = || Standing::Elsewhere(table.foreign_change("was dropped by someone else"));
            // Where the keys come with the table, it was made before its copy was.
            let may_be_made = self.prepared && !warehouse.is_vended();
            let standing = if may_be_made { Standing::Before } else { dropped() };
            return Ok((table, standing));
        };
        let has_it = Checkpoint::of(&found.metadata).is_some_and(|checkpoint| checkpoint.attempt == attempt);
        if self.prepared && !has_it {
            let in_the_way = tables.metadata_by() == MetadataBy::Writer && !self.replaces;
            let there = found.metadata.location();
            let table = self.prepare(catalog, Some(found.location.clone()), Some(there))?;
            let made = || Standing::Elsewhere(table.foreign_change("was made by someone else meanwhile"));
            let standing = if in_the_way { made() } else { Standing::Before };
            return Ok((table, standing));
        }
        let table = LakeTable::read_undescribed(warehouse, self.spec.clone(), found).await?;
        if table.uuid() != self.uuid {
            return Err(table.foreign_change("was dropped and made again by someone else"));
        }
        if has_it {
            return Ok((table, Standing::After));
        }
        if table.snapshot_id() != self.snapshot {
            // Someone else's commit came in between. Its rows are read when the mirror goes on.
            let foreign = match table.at_snapshot(warehouse, self.snapshot).await {
                Ok(before) => foreign_commits(warehouse, &before, &table, &Ours::default(), (mirror, attempt)).await?,
                // It has expired since, or its files have. What came after it still tells.
                Err(error) if error.retry() == Retry::Never => {
                    Ancestry::of(warehouse, &table, mirror).await?.prove(warehouse, &table).await?;
                    Foreign::Rewritten
                }
                Err(error) => return Err(error),
            };
            if matches!(foreign, Foreign::Rewritten) && !self.names_no_files() {
                return Err(table.rewritten());
            }
        }
        Ok((table, Standing::Before))
    }
}

/// Tables that were left out, as the mirror's row keeps them.
pub(super) fn left_out_text(left_out: &[LeftOut]) -> Result<Option<String>> {
    if left_out.is_empty() {
        return Ok(None);
    }
    let text = serde_json::to_string(left_out);
    text.map(Some).map_err(|error| Error::format("record which tables were left out").with_source(error))
}

impl MirrorCatalog {
    pub(super) async fn recover_pending(&self, mirror: &str, epoch: i64) -> Result<Recovered> {
        let records = self.state.records(&self.connection, mirror).await?;
        if let Some(text) = &records.pending {
            let Tables::Apart(tables) = &self.tables else {
                return Err(Error::invalid("a batch is on its way into a catalog outside of the source database")
                    .with_hint("start the worker with the former [catalog] once more, and end it with SIGTERM"));
            };
            let record = Record::read(text, tables.identity())?;
            let lsn =
                record.lsn.parse().map_err(|error| Error::format("read the batch on record").with_source(error))?;
            let mut recorded = Vec::with_capacity(record.tables.len());
            for change in record.tables {
                recorded.push(change.restore(self, &**tables, mirror, record.attempt).await?);
            }
            tracing::info!(mirror, attempt = %record.attempt, %lsn, tables = recorded.len(), "finishing a commit");
            let changes = recorded.iter().map(|table| table.change.clone()).collect();
            let batch = Batch {
                mirror: mirror.to_owned(),
                epoch,
                attempt: record.attempt,
                expected: None,
                lsn,
                tables: changes,
            };
            self.finish(&**tables, &batch, recorded).await?;
        }
        let records = self.state.records(&self.connection, mirror).await?;
        let left_out = match &records.left_out {
            None => Vec::new(),
            Some(text) => serde_json::from_str(text)
                .map_err(|error| Error::format("read which tables were left out").with_source(error))?,
        };
        let row = self.state.row(&self.connection, mirror).await?;
        Ok(Recovered { lsn: row.and_then(|row| row.lsn), left_out })
    }
}
