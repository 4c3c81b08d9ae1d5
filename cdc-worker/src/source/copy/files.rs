//! Rows into files of bounded size, every row's position into the index.

use std::sync::atomic::{AtomicU32, Ordering};

use iceberg_writer::DataFileWriter;

use crate::Result;
use crate::decode::message::Cell;
use crate::decode::row::{RowBuilder, key_of_cells};
use crate::table::{IndexWriter, Position};

use super::CopyJob;
use super::base::BaseRoll;
use super::progress::{NumberedFile, Part};
use super::share::{Round, Share};

/// Rows of a batch on their way to Parquet.
const BATCH_ROWS: usize = 16_384;
/// Bytes of a batch, for wide rows: a connection's memory is about this, plus one Parquet row group.
const BATCH_BYTES: usize = 16 << 20;

/// The files that one connection of a copy fills.
pub(super) struct FileRoll<'a> {
    job: &'a CopyJob,
    /// Numbers of files that no connection has yet.
    numbers: &'a AtomicU32,
    builder: RowBuilder,
    index: IndexWriter,
    /// The same rows in the table's history, if it has one.
    history: Option<BaseRoll<'a>>,
    /// The columns of the row's identity.
    identity: Vec<usize>,
    key: Vec<u8>,
    current: Option<Current>,
    round: Round,
    /// Files that are complete, and shares whose rows are in them or in the current one, since the last part.
    closed: Vec<NumberedFile>,
    shares: Vec<Share>,
    parts: Vec<Part>,
}

/// The file that rows go into.
struct Current {
    number: u32,
    writer: DataFileWriter,
    /// Rows appended to it, those in the builder included.
    rows: u32,
}

impl<'a> FileRoll<'a> {
    pub(super) fn new(job: &'a CopyJob, numbers: &'a AtomicU32, round: Round) -> Result<Self> {
        let spec = &job.table.spec;
        let history = job.base.as_ref().map(|base| BaseRoll::new(job, base, round.snapshot)).transpose()?;
        Ok(Self {
            job,
            numbers,
            builder: RowBuilder::new(spec)?,
            index: IndexWriter::new(job.index.clone()),
            history,
            identity: job.table.identity.columns(spec),
            key: Vec::new(),
            current: None,
            round,
            closed: Vec::new(),
            shares: Vec::new(),
            parts: Vec::new(),
        })
    }

    pub(super) fn append(&mut self, cells: &[Cell<'_>]) -> Result<()> {
        let job = self.job;
        let spec = &job.table.spec;
        let current = match &mut self.current {
            Some(current) => current,
            None => {
                let number = self.numbers.fetch_add(1, Ordering::Relaxed);
                let writer = DataFileWriter::create(&job.warehouse, &job.lake, job.epoch, job.attempt, number);
                self.current.insert(Current { number, writer, rows: 0 })
            }
        };
        key_of_cells(spec, &self.identity, cells, &mut self.key)?;
        self.builder.append(spec, cells, None)?;
        if let Some(history) = &mut self.history {
            history.append(cells)?;
        }
        let position = Position { file: current.number, row: current.rows };
        self.index.put(&self.key, position)?;
        current.rows += 1;
        Ok(())
    }

    pub(super) fn is_full(&self) -> bool {
        let history = self.history.as_ref().map_or(0, BaseRoll::bytes);
        self.builder.rows() >= BATCH_ROWS || self.builder.bytes() + history >= BATCH_BYTES
    }

    pub(super) async fn write_batch(&mut self) -> Result<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        if self.builder.rows() > 0 {
            let batch = self.builder.finish_batch()?;
            current.writer.write(&batch).await?;
            self.job.copied.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
        }
        if let Some(history) = &mut self.history {
            history.write_batch().await?;
        }
        if current.writer.bytes_written() >= self.job.file_bytes {
            self.close().await?;
        }
        Ok(())
    }

    /// All rows of a share have been appended. Where that completes files, and no row of it is in an incomplete one, a
    /// part of the copy is done, which a restart need not do again.
    pub(super) async fn end_share(&mut self, share: Share) -> Result<()> {
        self.index.end_stretch()?;
        self.shares.push(share);
        let current = self.current.as_ref().map_or(0, |current| current.writer.bytes_written() + self.builder.bytes());
        // Not a small file for the sake of the part: a share that fills files leaves the last one half full, on average.
        if current >= self.job.file_bytes / 2 {
            self.write_batch().await?;
            self.close().await?;
        }
        if self.current.is_none() && !self.closed.is_empty() {
            self.end_part().await?;
        }
        Ok(())
    }

    async fn end_part(&mut self) -> Result<()> {
        let (files, shares) = (std::mem::take(&mut self.closed), std::mem::take(&mut self.shares));
        let part = Part { as_of: self.round.snapshot.at, files, shares };
        self.job.done(&part, &self.round.shape).await?;
        self.parts.push(part);
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        if let Some(Current { number, writer, .. }) = self.current.take()
            && let Some(file) = writer.close().await?
        {
            self.closed.push(NumberedFile { number, file });
        }
        Ok(())
    }

    pub(super) async fn finish(mut self) -> Result<Vec<Part>> {
        self.write_batch().await?;
        self.close().await?;
        if let Some(history) = &mut self.history {
            history.close().await?;
        }
        if !self.shares.is_empty() {
            self.end_part().await?;
        }
        self.index.finish()?;
        Ok(self.parts)
    }
}
