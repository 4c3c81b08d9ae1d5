//! The rows of a copy once more, as the beginning of the table's history: where its changes start from.
//!
//! They are of one snapshot ([`takes_parts`](super::progress::takes_parts)), so that the history has one base, at one
//! position. Nobody reads their files before the copy is committed, and with it they are.

use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use iceberg_writer::{DataFileWriter, LakeTable, WrittenFile};

use crate::Result;
use crate::decode::message::Cell;
use crate::decode::row::RowBuilder;
use crate::table::History;
use crate::table::history::{Marks, Operation, Snapshot};

use super::CopyJob;

/// What the connections of a copy share of it.
pub(crate) struct Base {
    /// The history's table.
    lake: LakeTable,
    /// The next row's number. The first belongs to the `truncate` before them.
    next: AtomicI64,
    files: AtomicU32,
    closed: Mutex<Vec<WrittenFile>>,
}

impl Base {
    pub(crate) fn new(lake: LakeTable) -> Self {
        Self { lake, next: AtomicI64::new(2), files: AtomicU32::new(0), closed: Mutex::default() }
    }

    /// The history's table.
    pub(crate) fn lake(&self) -> &LakeTable {
        &self.lake
    }

    fn closed(&self) -> std::sync::MutexGuard<'_, Vec<WrittenFile>> {
        // A list stays one after a panic.
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The complete files of a copy that was called off.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.closed().iter().map(|file| file.path.clone()).collect()
    }

    /// The copy is done: the history goes on from here.
    ///
    /// # Errors
    /// As [`History::take_copied`].
    pub(crate) fn end(&self, snapshot: Snapshot, seen: &crate::table::Seen) -> Result<History> {
        let mut history = History::new(self.lake.clone());
        history.take_copied(std::mem::take(&mut *self.closed()), snapshot, seen)?;
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
}

impl<'a> BaseRoll<'a> {
    pub(super) fn new(job: &'a CopyJob, base: &'a Base, snapshot: Snapshot) -> Result<Self> {
        Ok(Self { job, base, snapshot, builder: RowBuilder::new(base.lake.spec())?, writer: None })
    }

    pub(super) fn append(&mut self, cells: &[Cell<'_>]) -> Result<()> {
        let number = self.base.next.fetch_add(1, Ordering::Relaxed);
        let marks = Marks::of_copy(Operation::Copy, self.snapshot, number);
        self.builder.append(self.base.lake.spec(), &marks.behind(cells), None)
    }

    pub(super) fn bytes(&self) -> usize {
        self.builder.bytes()
    }

    pub(super) async fn write_batch(&mut self) -> Result<()> {
        if self.builder.rows() == 0 {
            return Ok(());
        }
        let job = self.job;
        let writer = self.writer.get_or_insert_with(|| {
            let number = self.base.files.fetch_add(1, Ordering::Relaxed);
            DataFileWriter::create(&job.warehouse, &self.base.lake, job.epoch, job.attempt, number)
        });
        writer.write(&self.builder.finish_batch()?).await?;
        if writer.bytes_written() >= job.file_bytes {
            self.close().await?;
        }
        Ok(())
    }

    pub(super) async fn close(&mut self) -> Result<()> {
        if let Some(writer) = self.writer.take()
            && let Some(file) = writer.close().await?
        {
            self.base.closed().push(file);
        }
        Ok(())
    }
}
