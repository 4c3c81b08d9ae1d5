//! Rows into files of bounded size, each of one partition, and every row's position into the index.
//!
//! Memory does not grow with the number of partitions: a few files are open, and rows of the others wait until they are too
//! many. A table whose neighbouring rows are in a few partitions is copied into files of the wanted size; of one whose rows lie at
//! random in many there come smaller ones, which maintenance makes into larger ones.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use arrow_array::{RecordBatch, UInt32Array};
use arrow_select::take::take_record_batch;
use iceberg_writer::{DataFileWriter, Divider, LakeTable, Partition, Sorter, take_rows};

use crate::Result;
use crate::decode::message::Cell;
use crate::decode::row::{RowBuilder, key_of_cells};
use crate::error::{Error, ErrorKind};
use crate::table::{IndexWriter, Position, with_columns};

use super::CopyJob;
use super::base::BaseRoll;
use super::progress::{NumberedFile, Part};
use super::share::{Round, Share};

/// Rows of a batch on their way to Parquet.
const BATCH_ROWS: usize = 16_384;
/// Bytes of a batch, for wide rows: a connection's memory is about this, plus one Parquet row group.
const BATCH_BYTES: usize = 16 << 20;

/// Files that are being written at a time. Each has a row group in memory.
const OPEN_FILES: usize = 8;
/// Bytes of rows that wait for their files when those are more than may be open. Then the largest are written.
const WAITING_BYTES: usize = 64 << 20;

/// The files that one connection of a copy fills.
pub(super) struct FileRoll<'a> {
    job: &'a CopyJob,
    /// The table, with a companion for each column that has needed one here.
    lake: LakeTable,
    /// Numbers of files that no connection has yet.
    numbers: &'a AtomicU32,
    builder: RowBuilder,
    /// The identities of the rows in the builder.
    keys: RowKeys,
    index: IndexWriter,
    /// The same rows in the table's history, if it has one.
    history: Option<BaseRoll<'a>>,
    /// The columns of the row's identity.
    identity: Vec<usize>,
    key: Vec<u8>,
    divider: Divider,
    /// `None`: rows are in no order.
    sorter: Option<Sorter>,
    /// The files that rows go into, by the number of their partition.
    current: BTreeMap<u32, Current>,
    /// Files that are to be closed when what waits for them is written, for they lack a companion.
    outgrown: Vec<Current>,
    /// Counts the writes, to tell which file has had none for the longest time.
    writes: u64,
    round: Round,
    /// Files that are complete, and shares whose rows are in them or in the current ones, since the last part.
    closed: Vec<NumberedFile>,
    shares: Vec<Share>,
    parts: Vec<Part>,
}

/// The file that rows of a partition go into.
struct Current {
    number: u32,
    writer: DataFileWriter,
    /// Rows that are in it.
    rows: u32,
    /// Rows that are to be written to it, and their identities.
    waiting: Vec<RecordBatch>,
    keys: RowKeys,
    waiting_bytes: usize,
    /// When it was written to; 0: it was not.
    written: u64,
}

/// Keys of rows, one behind the other.
#[derive(Default)]
struct RowKeys {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl RowKeys {
    fn push(&mut self, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.ends.push(self.bytes.len());
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }

    /// Forgets the first so many.
    fn forget(&mut self, count: usize) {
        let start = count.checked_sub(1).map_or(0, |last| self.ends[last]);
        self.bytes.drain(..start);
        self.ends.drain(..count);
        self.ends.iter_mut().for_each(|end| *end -= start);
    }
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
            keys: RowKeys::default(),
            index: IndexWriter::new(job.index.clone()),
            history,
            identity: job.table.identity.columns(spec),
            key: Vec::new(),
            divider: Divider::new(&job.lake)?,
            sorter: Sorter::new(&job.lake)?,
            current: BTreeMap::new(),
            outgrown: Vec::new(),
            writes: 0,
            round,
            closed: Vec::new(),
            shares: Vec::new(),
            parts: Vec::new(),
        })
    }

    pub(super) fn append(&mut self, cells: &[Cell<'_>]) -> Result<()> {
        let spec = self.lake.spec();
        key_of_cells(spec, &self.identity, cells, &mut self.key)?;
        self.keys.push(&self.key);
        if self.builder.append(spec, cells, None)? {
            self.grow()?;
        }
        if let Some(history) = &mut self.history {
            history.append(cells)?;
        }
        Ok(())
    }

    /// The row that was appended last needs a companion, which the current files have not. It goes into others, with it.
    fn grow(&mut self) -> Result<()> {
        let companions = self.builder.companions(self.lake.spec());
        let known: Vec<i32> = self.lake.spec().companions().collect();
        let new: Vec<i32> = companions.into_iter().filter(|of| !known.contains(of)).collect();
        self.job.unrepresentable.allow(self.lake.spec(), &new)?;
        let rows = self.builder.finish()?;
        let before = rows.num_rows() - 1;
        let without = with_columns(&rows.slice(0, before), &self.lake.spec().arrow_schema())?;
        self.divide(&without)?;
        self.outgrown.extend(std::mem::take(&mut self.current).into_values());
        self.lake = self.lake.with_companions(new);
        self.builder = RowBuilder::new(self.lake.spec())?;
        self.divide(&rows.slice(before, 1))
    }

    /// Finds the files of rows, whose keys are the first of those that are kept.
    fn divide(&mut self, rows: &RecordBatch) -> Result<()> {
        let numbers = self.divider.divide(rows).map_err(Error::of_rows)?;
        let mut chosen: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for ((partition, key), row) in numbers.into_iter().zip(self.keys.iter()).zip(0..) {
            let current = self.current.entry(partition).or_insert_with(|| {
                let number = self.numbers.fetch_add(1, Ordering::Relaxed);
                Current::new(self.job, &self.lake, self.divider.partition(partition), number)
            });
            current.keys.push(key);
            chosen.entry(partition).or_default().push(row);
        }
        self.keys.forget(rows.num_rows());
        for (partition, chosen) in chosen {
            let Some(current) = self.current.get_mut(&partition) else { continue };
            let part = if chosen.len() == rows.num_rows() {
                rows.clone()
            } else {
                take_record_batch(rows, &UInt32Array::from(chosen))
                    .map_err(|error| Error::new(ErrorKind::Table, "divide rows").with_source(error))?
            };
            current.waiting_bytes += part.get_array_memory_size();
            current.waiting.push(part);
        }
        Ok(())
    }

    pub(super) fn is_full(&self) -> bool {
        let history = self.history.as_ref().map_or(0, BaseRoll::bytes);
        self.builder.rows() >= BATCH_ROWS || self.builder.bytes() + history >= BATCH_BYTES
    }

    pub(super) async fn write_batch(&mut self) -> Result<()> {
        if self.builder.rows() > 0 {
            let rows = self.builder.finish_batch()?;
            self.divide(&rows)?;
        }
        for mut outgrown in std::mem::take(&mut self.outgrown) {
            outgrown.write_waiting(self.job, &mut self.index, self.sorter.as_ref(), 0).await?;
            self.close(outgrown).await?;
        }
        // What is sorted is sorted in large pieces.
        let few = self.current.len() <= OPEN_FILES && self.sorter.is_none();
        let mut waiting: usize = self.current.values().map(|current| current.waiting_bytes).sum();
        let enough = if few { 0 } else { WAITING_BYTES };
        if waiting > enough {
            let mut largest: Vec<u32> = self.current.keys().copied().collect();
            largest.sort_by_key(|partition| Reverse(self.current[partition].waiting_bytes));
            for partition in largest {
                // Half of the room, so that it is not this one row after the other.
                if waiting <= enough / 2 {
                    break;
                }
                waiting -= self.write_to(partition).await?;
            }
        }
        if let Some(history) = &mut self.history {
            history.write_batch().await?;
        }
        Ok(())
    }

    /// Writes what waits for a partition's file, and closes files that are full, or too many. Gives the bytes written.
    async fn write_to(&mut self, partition: u32) -> Result<usize> {
        self.writes += 1;
        let Some(current) = self.current.get_mut(&partition) else { return Ok(0) };
        let bytes = current.waiting_bytes;
        current.write_waiting(self.job, &mut self.index, self.sorter.as_ref(), self.writes).await?;
        // A file is sorted as a whole.
        let full = self.sorter.is_some() || current.writer.bytes_written() >= self.job.file_bytes;
        if let Some(partition) = if full { Some(partition) } else { self.one_too_many() } {
            self.close_current(partition).await?;
        }
        Ok(bytes)
    }

    /// The partition whose open file has been written to least recently, when there are too many of them.
    fn one_too_many(&self) -> Option<u32> {
        let open: Vec<_> = self.current.iter().filter(|(_, current)| current.written > 0).collect();
        let idle = open.iter().min_by_key(|(_, current)| current.written);
        idle.filter(|_| open.len() > OPEN_FILES).map(|(partition, _)| **partition)
    }

    /// All rows of a share have been appended. Where that completes files, and no row of it is in an incomplete one, a
    /// part of the copy is done, which a restart need not do again.
    pub(super) async fn end_share(&mut self, share: Share) -> Result<()> {
        self.write_batch().await?;
        self.index.end_stretch()?;
        self.shares.push(share);
        let bytes = |current: &Current| current.writer.bytes_written() + current.waiting_bytes;
        let open: usize = self.current.values().map(bytes).sum();
        // Not small files for the sake of the part: a share that fills files leaves the last ones half full, on average.
        if open >= self.job.file_bytes / 2 * self.current.len().clamp(1, OPEN_FILES) {
            self.close_all().await?;
        }
        if self.current.is_empty() && !self.closed.is_empty() {
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

    async fn close_all(&mut self) -> Result<()> {
        for partition in self.current.keys().copied().collect::<Vec<_>>() {
            self.close_current(partition).await?;
        }
        Ok(())
    }

    async fn close_current(&mut self, partition: u32) -> Result<()> {
        let Some(mut current) = self.current.remove(&partition) else { return Ok(()) };
        current.write_waiting(self.job, &mut self.index, self.sorter.as_ref(), self.writes).await?;
        self.close(current).await
    }

    async fn close(&mut self, Current { number, writer, .. }: Current) -> Result<()> {
        if let Some(file) = writer.close().await? {
            self.closed.push(NumberedFile { number, file });
        }
        Ok(())
    }

    pub(super) async fn finish(mut self) -> Result<Vec<Part>> {
        self.write_batch().await?;
        self.close_all().await?;
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
    fn new(job: &CopyJob, lake: &LakeTable, partition: Option<&Partition>, number: u32) -> Self {
        let writer = DataFileWriter::create(&job.warehouse, lake, job.epoch, job.attempt, number);
        // In a table without an order that says nothing.
        let writer = partition.into_iter().fold(writer, DataFileWriter::in_partition).in_order(true);
        let (waiting, keys) = (Vec::new(), RowKeys::default());
        Self { number, writer, rows: 0, waiting, keys, waiting_bytes: 0, written: 0 }
    }

    /// Writes what waits, in order if there is one, and indexes it.
    async fn write_waiting(
        &mut self,
        job: &CopyJob,
        index: &mut IndexWriter,
        sorter: Option<&Sorter>,
        at: u64,
    ) -> Result<()> {
        let (waiting, keys) = (std::mem::take(&mut self.waiting), std::mem::take(&mut self.keys));
        let sorted = sorter.map(|sorter| sorter.sorted(&waiting)).transpose()?;
        let count = keys.ends.len();
        let mut places: Vec<u32> = (0..=u32::MAX).take(count).collect();
        if let Some(sorted) = &sorted {
            let starts: Vec<usize> =
                waiting.iter().scan(0, |next, batch| Some(std::mem::replace(next, *next + batch.num_rows()))).collect();
            for ((batch, row), place) in sorted.iter().zip(0..) {
                places[starts[*batch] + row] = place;
            }
        }
        for (key, place) in keys.iter().zip(places) {
            index.put(key, Position { file: self.number, row: self.rows + place })?;
        }
        match sorted {
            None => {
                for batch in &waiting {
                    self.writer.write(batch).await?;
                }
            }
            Some(sorted) => {
                for batch in take_rows(&waiting, &sorted) {
                    self.writer.write(&batch?).await?;
                }
            }
        }
        self.rows += u32::try_from(count).unwrap_or(u32::MAX);
        job.copied.fetch_add(count as u64, Ordering::Relaxed);
        (self.waiting_bytes, self.written) = (0, at);
        Ok(())
    }
}
