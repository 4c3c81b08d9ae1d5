//! Rows into files of bounded size, every row's position into the index.

use std::sync::atomic::{AtomicU32, Ordering};

use arrow_array::RecordBatch;
use iceberg_writer::{DataFileWriter, LakeTable};

use crate::Result;
use crate::decode::message::Cell;
use crate::decode::row::{RowBuilder, key_of_cells};
use crate::table::{IndexWriter, Position, with_columns};

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
    /// The table, with a companion for each column that has needed one here.
    lake: LakeTable,
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
    /// Files that are to be closed when what waits for them is written, for they lack a companion.
    outgrown: Vec<Current>,
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
    /// Rows before those in the builder that are to be written to it.
    waiting: Vec<RecordBatch>,
}

impl<'a> FileRoll<'a> {
    pub(super) fn new(job: &'a CopyJob, numbers: &'a AtomicU32, round: Round) -> Result<Self> {
        let spec = job.lake.spec();
        let history = job.base.as_ref().map(|base| BaseRoll::new(job, base, round.snapshot)).transpose()?;
        Ok(Self {
            job,
            lake: job.lake.clone(),
            numbers,
            builder: RowBuilder::new(spec)?,
            index: IndexWriter::new(job.index.clone()),
            history,
            identity: job.table.identity.columns(spec),
            key: Vec::new(),
            current: None,
            outgrown: Vec::new(),
            round,
            closed: Vec::new(),
            shares: Vec::new(),
            parts: Vec::new(),
        })
    }

    pub(super) fn append(&mut self, cells: &[Cell<'_>]) -> Result<()> {
        let spec = self.lake.spec();
        key_of_cells(spec, &self.identity, cells, &mut self.key)?;
        if self.builder.append(spec, cells, None)? {
            self.grow()?;
        }
        let current = match &mut self.current {
            Some(current) => current,
            None => {
                let number = self.numbers.fetch_add(1, Ordering::Relaxed);
                let current = Current::new(self.job, &self.lake, number);
                self.current.insert(current)
            }
        };
        if let Some(history) = &mut self.history {
            history.append(cells)?;
        }
        let position = Position { file: current.number, row: current.rows };
        self.index.put(&self.key, position)?;
        current.rows += 1;
        Ok(())
    }

    /// The row that was appended last needs a companion, which the current file has not. It goes into another, with it.
    fn grow(&mut self) -> Result<()> {
        let companions = self.builder.companions(self.lake.spec());
        let known: Vec<i32> = self.lake.spec().companions().collect();
        let new: Vec<i32> = companions.into_iter().filter(|of| !known.contains(of)).collect();
        self.job.unrepresentable.allow(self.lake.spec(), &new)?;
        let (grown, outgrown) = (self.lake.with_companions(new), self.lake.clone());
        let rows = self.builder.finish()?;
        self.builder = RowBuilder::new(grown.spec())?;
        let before = rows.num_rows() - 1;
        // A file that has no row yet is made with the companion; each number has a file.
        let number = match self.current.take() {
            Some(empty) if empty.rows == 0 => empty.number,
            Some(mut current) => {
                current.waiting.push(with_columns(&rows.slice(0, before), &outgrown.spec().arrow_schema())?);
                self.outgrown.push(current);
                self.numbers.fetch_add(1, Ordering::Relaxed)
            }
            None => self.numbers.fetch_add(1, Ordering::Relaxed),
        };
        let mut current = Current::new(self.job, &grown, number);
        current.waiting.push(rows.slice(before, 1));
        (self.current, self.lake) = (Some(current), grown);
        Ok(())
    }

    pub(super) fn is_full(&self) -> bool {
        let history = self.history.as_ref().map_or(0, BaseRoll::bytes);
        self.builder.rows() >= BATCH_ROWS || self.builder.bytes() + history >= BATCH_BYTES
    }

    pub(super) async fn write_batch(&mut self) -> Result<()> {
        for mut outgrown in std::mem::take(&mut self.outgrown) {
            outgrown.write_waiting(self.job).await?;
            self.close(outgrown).await?;
        }
        let Some(current) = &mut self.current else { return Ok(()) };
        if self.builder.rows() > 0 {
            current.waiting.push(self.builder.finish_batch()?);
        }
        current.write_waiting(self.job).await?;
        if let Some(history) = &mut self.history {
            history.write_batch().await?;
        }
        if current.writer.bytes_written() >= self.job.file_bytes {
            self.close_current().await?;
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
            self.close_current().await?;
        }
        if self.current.is_none() && !self.closed.is_empty() {
            self.end_part().await?;
        }
        Ok(())
    }

    async fn end_part(&mut self) -> Result<()> {
        let (files, shares) = (std::mem::take(&mut self.closed), std::mem::take(&mut self.shares));
        let companions = self.lake.spec().companions().collect();
        let part = Part { as_of: self.round.snapshot.at, files, shares, companions };
        self.job.done(&part, &self.round.shape).await?;
        self.parts.push(part);
        Ok(())
    }

    async fn close_current(&mut self) -> Result<()> {
        match self.current.take() {
            Some(current) => self.close(current).await,
            None => Ok(()),
        }
    }

    async fn close(&mut self, Current { number, writer, .. }: Current) -> Result<()> {
        if let Some(file) = writer.close().await? {
            self.closed.push(NumberedFile { number, file });
        }
        Ok(())
    }

    pub(super) async fn finish(mut self) -> Result<Vec<Part>> {
        self.write_batch().await?;
        self.close_current().await?;
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

impl Current {
    fn new(job: &CopyJob, lake: &LakeTable, number: u32) -> Self {
        let writer = DataFileWriter::create(&job.warehouse, lake, job.epoch, job.attempt, number);
        Self { number, writer, rows: 0, waiting: Vec::new() }
    }

    async fn write_waiting(&mut self, job: &CopyJob) -> Result<()> {
        for batch in std::mem::take(&mut self.waiting) {
            self.writer.write(&batch).await?;
            job.copied.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}
