//! The rows of a copy once more, as the beginning of the table's history: where its changes start from.
//!
//! They are of one snapshot ([`takes_parts`](super::progress::takes_parts)), so that the history has one base, at one
//! position. Nobody reads their files before the copy is committed, and with it they are.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use arrow_array::RecordBatch;
use iceberg_writer::{DataFileWriter, LakeTable, WrittenFile};

use crate::Result;
use crate::decode::message::Cell;
use crate::decode::row::RowBuilder;
use crate::table::history::{Marks, Operation, Snapshot};
use crate::table::{History, with_columns};

use super::CopyJob;

/// What the connections of a copy share of it.
pub(crate) struct Base {
    /// The history's table.
    lake: LakeTable,
    /// The next row's number. The first belongs to the `truncate` before them.
    next: AtomicI64,
    files: AtomicU32,
    closed: Mutex<Closed>,
}

/// What is complete.
#[derive(Default)]
struct Closed {
    files: Vec<WrittenFile>,
    /// The columns that have a companion in some of them, by field id.
    companions: BTreeSet<i32>,
}

impl Base {
    pub(crate) fn new(lake: LakeTable) -> Self {
        Self { lake, next: AtomicI64::new(2), files: AtomicU32::new(0), closed: Mutex::default() }
    }

    /// The history's table.
    pub(crate) fn lake(&self) -> &LakeTable {
        &self.lake
    }

    fn closed(&self) -> std::sync::MutexGuard<'_, Closed> {
        // A list stays one after a panic.
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The complete files of a copy that was called off.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.closed().files.iter().map(|file| file.path.clone()).collect()
    }

    /// The copy is done: the history goes on from here.
    ///
    /// # Errors
    /// As [`History::take_copied`].
    pub(crate) fn end(&self, snapshot: Snapshot, seen: &crate::table::Seen) -> Result<History> {
        let Closed { files, companions } = std::mem::take(&mut *self.closed());
        let mut history = History::new(self.lake.with_companions(companions));
        history.take_copied(files, snapshot, seen)?;
        Ok(history)
    }
}

/// The files that one connection fills with it.
pub(super) struct BaseRoll<'a> {
    job: &'a CopyJob,
    base: &'a Base,
    snapshot: Snapshot,
    builder: RowBuilder,
    writer: Option<DataFileWriter>,
    /// The table, with a companion for each column that has needed one here.
    lake: LakeTable,
    /// Files that lack a companion, to be closed; and rows before those in the builder, for the next one.
    outgrown: Vec<DataFileWriter>,
    waiting: Vec<RecordBatch>,
}

impl<'a> BaseRoll<'a> {
    pub(super) fn new(job: &'a CopyJob, base: &'a Base, snapshot: Snapshot) -> Result<Self> {
        let (lake, builder) = (base.lake.clone(), RowBuilder::new(base.lake.spec())?);
        Ok(Self { job, base, snapshot, builder, writer: None, lake, outgrown: Vec::new(), waiting: Vec::new() })
    }

    pub(super) fn append(&mut self, cells: &[Cell<'_>]) -> Result<()> {
        let number = self.base.next.fetch_add(1, Ordering::Relaxed);
        let marks = Marks::of_copy(Operation::Copy, self.snapshot, number);
        if self.builder.append(self.lake.spec(), &marks.behind(cells), None)? {
            self.lake = self.lake.with_companions(self.builder.companions(self.lake.spec()));
            self.waiting.push(self.builder.finish()?);
            self.builder = RowBuilder::new(self.lake.spec())?;
            self.outgrown.extend(self.writer.take());
        }
        Ok(())
    }

    pub(super) fn bytes(&self) -> usize {
        self.builder.bytes()
    }

    pub(super) async fn write_batch(&mut self) -> Result<()> {
        for outgrown in std::mem::take(&mut self.outgrown) {
            self.end(outgrown).await?;
        }
        if self.builder.rows() > 0 {
            self.waiting.push(self.builder.finish_batch()?);
        }
        if self.waiting.is_empty() {
            return Ok(());
        }
        let (job, lake) = (self.job, &self.lake);
        let writer = self.writer.get_or_insert_with(|| {
            let number = self.base.files.fetch_add(1, Ordering::Relaxed);
            DataFileWriter::create(&job.warehouse, lake, job.epoch, job.attempt, number)
        });
        for batch in std::mem::take(&mut self.waiting) {
            writer.write(&with_columns(&batch, &lake.spec().arrow_schema())?).await?;
        }
        if writer.bytes_written() >= job.file_bytes {
            self.close().await?;
        }
        Ok(())
    }

    pub(super) async fn close(&mut self) -> Result<()> {
        match self.writer.take() {
            Some(writer) => self.end(writer).await,
            None => Ok(()),
        }
    }

    async fn end(&mut self, writer: DataFileWriter) -> Result<()> {
        if let Some(file) = writer.close().await? {
            let mut closed = self.base.closed();
            closed.files.push(file);
            closed.companions.extend(self.lake.spec().companions());
        }
        Ok(())
    }
}
