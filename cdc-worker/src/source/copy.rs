//! The initial copy of a table: binary COPY → Arrow → Parquet in one pass, no temporary file.
//!
//! Keeps I4: the rows are those of the snapshot exported by a slot's creation, and the caller applies to them exactly
//! the streamed transactions whose commit record begins at or after that slot's consistent point. A transaction that
//! was committing while the slot was made is on one side of that point by definition, however late it becomes visible.
//! A TRUNCATE is the one change that a snapshot does not hide; [`CopyJob::begin`] sees to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, pin_mut};
use iceberg_writer::{DataFileWriter, LakeTable, Lsn, Warehouse, WrittenFile};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::Result;
use crate::config::SourceConfig;
use crate::decode::copy::CopyRows;
use crate::decode::row::{RowBuilder, key_of_cells};
use crate::error::{COPY_ANEW, Error, ErrorKind};
use crate::table::{Position, PositionIndex};

use super::connect;
use super::identifier::quote;
use super::relation::{self, SourceTable};
use super::slot;

/// Rows of a batch on their way to Parquet.
const BATCH_ROWS: usize = 16_384;
/// Bytes of a batch, for wide rows: the copy's memory is about this, plus one Parquet row group.
const BATCH_BYTES: usize = 16 << 20;
/// A data file is closed at about this size: large enough for readers, small enough to rewrite later.
pub(crate) const FILE_BYTES: usize = 256 << 20;
/// Longest silence of a running COPY. It may wait for a lock or for cold disks, hence the patience.
const COPY_SILENCE: Duration = Duration::from_secs(600);
/// Times that a copy begins anew because the table was truncated meanwhile. The window is some ten milliseconds, so
/// even a table that is truncated ten times a second gets through.
const SNAPSHOT_ATTEMPTS: usize = 30;
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(50);

/// All that a copy needs.
pub(crate) struct CopyJob {
    pub(crate) source: SourceConfig,
    pub(crate) table: SourceTable,
    pub(crate) warehouse: Arc<Warehouse>,
    pub(crate) lake: LakeTable,
    pub(crate) index: PositionIndex,
    pub(crate) epoch: i64,
    pub(crate) attempt: Uuid,
    /// Rows so far, for `lake.lag`.
    pub(crate) copied: Arc<AtomicU64>,
}

/// A finished copy.
pub(crate) struct Copied {
    pub(crate) consistent_point: Lsn,
    pub(crate) rows: u64,
    pub(crate) files: Vec<WrittenFile>,
}

impl CopyJob {
    /// Runs the copy.
    ///
    /// # Errors
    /// [`ErrorKind::Table`] when a row cannot be taken; others as their parts.
    pub(crate) async fn run(self) -> Result<Copied> {
        let (client, consistent_point) = self.begin().await?;
        tracing::info!(table = self.table.relation, lsn = %consistent_point, "copying");
        let columns = self.table.spec.columns.iter().map(|column| quote(&column.name)).collect::<Vec<_>>().join(", ");
        let command = format!(
            "COPY {}.{} ({columns}) TO STDOUT (FORMAT binary)",
            quote(&self.table.schema),
            quote(&self.table.name)
        );
        let stream = client.copy_out(&command).await.map_err(|error| copy_error(error, &self.table))?;
        pin_mut!(stream);
        let mut files = FileRoll::new(&self)?;
        let mut rows = CopyRows::default();
        loop {
            let next = tokio::time::timeout(COPY_SILENCE, stream.next()).await;
            let chunk = match next {
                Ok(Some(chunk)) => chunk?,
                Ok(None) => break,
                Err(elapsed) => {
                    return Err(Error::new(ErrorKind::SourceUnreachable, "the copy fell silent").with_source(elapsed));
                }
            };
            rows.each(&chunk, &mut Vec::new(), &mut |cells| files.append(cells))?;
            if files.is_full() {
                files.write_batch().await?;
            }
        }
        let (rows, files) = files.finish().await?;
        Ok(Copied { consistent_point, rows, files })
    }

    /// A transaction that reads the table at a slot's consistent point, and that point.
    ///
    /// TRUNCATE and the rewriting forms of ALTER TABLE do not keep to snapshots: a table that one of them replaced
    /// between the slot's creation and our first lock looks empty to the slot's snapshot, though the stream still
    /// brings the changes to its former rows. So: lock first, then compare the table's file in the snapshot's catalog
    /// with its file now, and begin again with a new slot where they differ.
    async fn begin(&self) -> Result<(Client, Lsn)> {
        for _ in 0..SNAPSHOT_ATTEMPTS {
            let snapshot = slot::export_snapshot(&self.source, self.table.relation).await?;
            let consistent_point = snapshot.consistent_point;
            let client = connect::sql(&self.source, "lake copy").await?;
            let import = format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}'",
                snapshot.name.replace('\'', "''")
            );
            client.batch_execute(&import).await?;
            // The transaction holds the snapshot now; the slot may go, and with it its hold on WAL.
            drop(snapshot);
            if self.is_as_in_snapshot(&client).await? {
                return Ok((client, consistent_point));
            }
            tracing::info!(table = self.table.relation, lsn = %consistent_point, "rewritten as its copy began; again");
            tokio::time::sleep(SNAPSHOT_PAUSE).await;
        }
        Err(Error::new(ErrorKind::Table, "the table was truncated or rewritten each time its copy began")
            .with_hint(format!("when it is truncated less often, {COPY_ANEW}")))
    }

    /// Locks the table against a rewrite and says whether none happened since the snapshot.
    async fn is_as_in_snapshot(&self, client: &Client) -> Result<bool> {
        let table = &self.table;
        let lock = format!("LOCK TABLE {}.{} IN ACCESS SHARE MODE", quote(&table.schema), quote(&table.name));
        client.batch_execute(&lock).await.map_err(|error| copy_error(error, table))?;
        // A query on pg_class goes by the snapshot, pg_relation_filenode by what is true now.
        let row = client
            .query_one(
                "SELECT relfilenode = pg_relation_filenode(oid) FROM pg_class WHERE oid = $1",
                &[&table.relation],
            )
            .await?;
        if row.get::<_, Option<bool>>(0) != Some(true) {
            return Ok(false);
        }
        let described = relation::describe(client, table.relation, Some(&table.spec.name)).await?;
        if described.spec != table.spec {
            return Err(Error::new(ErrorKind::Table, "the source table changed as its copy began").with_hint(COPY_ANEW));
        }
        Ok(true)
    }
}

fn copy_error(error: tokio_postgres::Error, table: &SourceTable) -> Error {
    let denied = error.code().is_some_and(|code| code.code() == "42501");
    if !denied {
        return error.into();
    }
    Error::new(ErrorKind::Table, format!("no permission to copy {}.{}", table.schema, table.name))
        .with_hint("GRANT SELECT to the worker's role; with row-level security on the table it also needs BYPASSRLS")
        .with_source(error)
}

/// Rows into files of bounded size, every row's position into the index.
struct FileRoll<'a> {
    job: &'a CopyJob,
    builder: RowBuilder,
    /// The columns of the row's identity.
    identity: Vec<usize>,
    key: Vec<u8>,
    writer: Option<DataFileWriter>,
    /// Rows appended to the current file, those in the builder included.
    file_rows: u32,
    rows: u64,
    closed: Vec<WrittenFile>,
}

impl<'a> FileRoll<'a> {
    fn new(job: &'a CopyJob) -> Result<Self> {
        let builder = RowBuilder::new(&job.table.spec)?;
        let identity = job.table.identity.columns(&job.table.spec);
        Ok(Self { job, builder, identity, key: Vec::new(), writer: None, file_rows: 0, rows: 0, closed: Vec::new() })
    }

    fn append(&mut self, cells: &[crate::decode::message::Cell<'_>]) -> Result<()> {
        let spec = &self.job.table.spec;
        key_of_cells(spec, &self.identity, cells, &mut self.key)?;
        self.builder.append(spec, cells, None)?;
        let file = u32::try_from(self.closed.len()).unwrap_or(u32::MAX);
        self.job.index.put_row(self.job.table.identity, &self.key, Position { file, row: self.file_rows })?;
        self.file_rows += 1;
        self.rows += 1;
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.builder.rows() >= BATCH_ROWS || self.builder.bytes() >= BATCH_BYTES
    }

    async fn write_batch(&mut self) -> Result<()> {
        if self.builder.rows() == 0 {
            return Ok(());
        }
        let batch = self.builder.finish()?;
        if self.writer.is_none() {
            let ordinal = u32::try_from(self.closed.len()).unwrap_or(u32::MAX);
            let job = self.job;
            self.writer =
                Some(DataFileWriter::create(&job.warehouse, &job.lake, job.epoch, job.attempt, ordinal).await?);
        }
        if let Some(writer) = self.writer.as_mut() {
            writer.write(&batch).await?;
            if writer.bytes_written() >= FILE_BYTES {
                self.close().await?;
            }
        }
        self.job.copied.store(self.rows, Ordering::Relaxed);
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        if let Some(writer) = self.writer.take()
            && let Some(file) = writer.close().await?
        {
            self.closed.push(file);
        }
        self.file_rows = 0;
        Ok(())
    }

    async fn finish(mut self) -> Result<(u64, Vec<WrittenFile>)> {
        self.write_batch().await?;
        self.close().await?;
        self.job.copied.store(self.rows, Ordering::Relaxed);
        Ok((self.rows, self.closed))
    }
}
