//! The work of a rewrite, beside the stream: old files are read, new ones written, at no more than so many bytes a second.
//!
//! Files of a sorted table are merged (`merging`), so that what comes of them is sorted too.
//!
//! It ends with files that no table has. They are read back before anybody hears of them: for the position index, and for
//! the proof that their rows can be read.

mod merging;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::{BooleanArray, RecordBatch};
use arrow_select::filter::filter_record_batch;
use futures_util::TryStreamExt as _;
use iceberg_writer::{
    Catalog as _, DataFileWriter, LakeTable, Lineage, MirrorCatalog, Partition, RowStream, Sorter, Warehouse,
    WrittenFile, scan_columns, scan_with_lineage,
};
use roaring::RoaringTreemap;
use tokio::time::Instant;
use uuid::Uuid;

use crate::Result;
use crate::error::{Error, ErrorKind};
use crate::stored_keys::each_stored_key;
use crate::table::{Candidate, Extent, IndexWriter, Order, Output, Position, Rewritten, RowIdentity, Wanted, choose};

/// What all rewrites of a mirror have in common.
#[derive(Clone)]
pub(super) struct Workshop {
    pub(super) catalog: Arc<MirrorCatalog>,
    pub(super) warehouse: Arc<Warehouse>,
    pub(super) epoch: i64,
    pub(super) wanted: Wanted,
    pub(super) bytes_per_second: u64,
}

/// Keeps the work within its bytes a second.
struct Pace {
    begun: Instant,
    bytes: u64,
    bytes_per_second: u64,
}

impl Pace {
    /// So much more has been done; goes on when it is time.
    async fn passed(&mut self, bytes: u64) {
        self.bytes += bytes;
        // Seconds of 2⁶⁴ bytes are far off.
        #[expect(clippy::cast_precision_loss, reason = "a pause need not be exact")]
        let due = Duration::from_secs_f64(self.bytes as f64 / self.bytes_per_second.max(1) as f64);
        tokio::time::sleep_until(self.begun + due).await;
    }
}

/// Files that are removed unless somebody claims them: the work may fail, or be called off, at any point.
struct Unclaimed {
    catalog: Arc<MirrorCatalog>,
    written: Vec<Output>,
}

impl Unclaimed {
    fn claim(mut self) -> Vec<Output> {
        std::mem::take(&mut self.written)
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        self.catalog.abandon(self.written.iter().map(|output| output.file.path.clone()).collect());
    }
}

/// Writes rows into files of the wanted size.
struct Rewriter<'a> {
    shop: &'a Workshop,
    lake: &'a LakeTable,
    /// Where the rows come from, if they are to say so wherever they are.
    lineage: Option<Lineage>,
    attempt: Uuid,
    partition: Option<Partition>,
    is_sorted: bool,
    most_outputs: u64,
    pace: Pace,
    open: Option<DataFileWriter>,
    done: Unclaimed,
}

impl<'a> Rewriter<'a> {
    fn new(shop: &'a Workshop, lake: &'a LakeTable, lineage: Option<Lineage>, most_outputs: u64) -> Self {
        let pace = Pace { begun: Instant::now(), bytes: 0, bytes_per_second: shop.bytes_per_second };
        let done = Unclaimed { catalog: Arc::clone(&shop.catalog), written: Vec::new() };
        let (partition, is_sorted, attempt) = (None, false, Uuid::now_v7());
        Self { shop, lake, lineage, attempt, partition, is_sorted, most_outputs, pace, open: None, done }
    }

    /// Takes the live rows of a file.
    async fn take(&mut self, path: &str, rows: u64, bytes: u64, deleted: &RoaringTreemap) -> Result<()> {
        if deleted.len() >= rows {
            return Ok(());
        }
        let mut batches = scan(self.shop, self.lake, self.lineage.as_ref(), path).await?;
        let mut first = 0u64;
        while let Some(batch) = batches.try_next().await? {
            let count = batch.num_rows() as u64;
            let live = live_rows(batch, first, deleted)?;
            first += count;
            self.write(&live).await?;
            self.pace.passed(bytes.saturating_mul(count) / rows.max(1)).await;
        }
        if first != rows {
            return Err(Error::new(ErrorKind::Lake, format!("{path} has {first} rows instead of {rows}")));
        }
        Ok(())
    }

    async fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        let ordinal = u32::try_from(self.done.written.len()).unwrap_or(u32::MAX);
        let Workshop { warehouse, epoch, wanted, .. } = self.shop;
        let create = || {
            let writer = DataFileWriter::create(warehouse, self.lake, *epoch, self.attempt, ordinal);
            let writer = if self.lineage.is_some() { writer.with_lineage() } else { writer };
            self.partition.iter().fold(writer, DataFileWriter::in_partition).in_order(self.is_sorted)
        };
        let open = self.open.get_or_insert_with(create);
        open.write(rows).await?;
        let full = open.bytes_written() as u64 >= wanted.file_bytes;
        if full && u64::from(ordinal) + 1 < self.most_outputs {
            self.close(true).await?;
        }
        Ok(())
    }

    async fn close(&mut self, full: bool) -> Result<()> {
        if let Some(open) = self.open.take() {
            let closed = open.close().await?;
            self.done.written.extend(closed.map(|file| Output { file, full }));
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<Unclaimed> {
        self.close(false).await?;
        Ok(self.done)
    }
}

/// All rows of a file, as they are written again.
async fn scan(shop: &Workshop, lake: &LakeTable, lineage: Option<&Lineage>, path: &str) -> Result<RowStream> {
    Ok(match lineage {
        Some(lineage) => scan_with_lineage(&shop.warehouse, lake, path, lineage).await?,
        None => {
            let columns: Vec<usize> = (0..lake.spec().columns.len()).collect();
            scan_columns(&shop.warehouse, lake, path, &columns).await?
        }
    })
}

fn live_rows(batch: RecordBatch, first: u64, deleted: &RoaringTreemap) -> Result<RecordBatch> {
    let end = first + batch.num_rows() as u64;
    if deleted.range_cardinality(first..end) == 0 {
        return Ok(batch);
    }
    let mask: BooleanArray = (first..end).map(|row| Some(!deleted.contains(row))).collect();
    filter_record_batch(&batch, &mask)
        .map_err(|error| Error::new(ErrorKind::Lake, "filter live rows").with_source(error))
}

/// Rewrites files of a mirrored table, and indexes where the rows are then.
pub(super) async fn rewrite(shop: &Workshop, order: &Order) -> Result<Rewritten> {
    rewrite_rows(shop, order, order.lake.lineage(&shop.warehouse).await?).await
}

async fn rewrite_rows(shop: &Workshop, order: &Order, lineage: Option<Lineage>) -> Result<Rewritten> {
    let mut rewriter = Rewriter::new(shop, &order.lake, lineage, order.most_outputs);
    (rewriter.partition, rewriter.is_sorted) = (Some(order.partition.clone()), order.is_sorted);
    let mut places = None;
    match Sorter::new(&order.lake)?.filter(|_| order.is_sorted) {
        Some(sorter) => places = Some(merging::merge(&mut rewriter, &sorter, &order.inputs).await?),
        None => {
            for input in &*order.inputs {
                rewriter.take(&input.path, input.rows, input.bytes, &input.deleted).await?;
            }
        }
    }
    let outputs = rewriter.finish().await?;
    index(shop, order, &outputs.written, places.as_deref()).await?;
    Ok(Rewritten { outputs: outputs.claim(), places })
}

async fn index(shop: &Workshop, order: &Order, outputs: &[Output], places: Option<&[u32]>) -> Result<()> {
    if order.identity == RowIdentity::AppendOnly {
        return Ok(());
    }
    let mut writer = IndexWriter::new(order.moved.clone());
    let mut old: Box<dyn Iterator<Item = Position> + Send> = Box::new(order.old_positions());
    if let Some(places) = places {
        let mut moved = vec![Position { file: 0, row: 0 }; places.len()];
        for (position, place) in old.zip(places) {
            moved[*place as usize] = position;
        }
        old = Box::new(moved.into_iter());
    }
    for (output, number) in outputs.iter().zip(0..) {
        each_stored_key(&shop.warehouse, &order.lake, order.identity, &output.file.path, |row, key| {
            let old = old.next().ok_or_else(|| Error::new(ErrorKind::Index, "a rewritten file has rows too many"))?;
            if order.identity == RowIdentity::FullRow {
                writer.vacate(key, old)?;
            }
            writer.put(key, order.output(number, row))
        })
        .await?;
    }
    writer.finish()
}

/// What of a history is rewritten: the files that go, and those that come.
pub(super) struct RewrittenHistory {
    pub(super) removed: Vec<String>,
    pub(super) data: Vec<WrittenFile>,
    /// Those of them that were closed because they had the wanted size.
    pub(super) full: Vec<String>,
}

/// Rewrites files of a table of which no row is ever deleted, and whose files nobody keeps in memory.
pub(super) async fn rewrite_history(
    shop: &Workshop,
    lake: &LakeTable,
    full: &BTreeSet<String>,
    extent: Extent,
) -> Result<Option<RewrittenHistory>> {
    let files = lake.live_files(&shop.warehouse).await?;
    let candidates: Vec<Candidate> = files
        .iter()
        .map(|file| Candidate {
            bytes: file.bytes,
            rows: file.rows,
            deleted: file.deleted.len(),
            full: full.contains(&file.path),
        })
        .collect();
    let chosen = choose(&candidates, shop.wanted, extent);
    if chosen.is_empty() {
        return Ok(None);
    }
    let lineage = lake.lineage(&shop.warehouse).await?;
    let mut rewriter = Rewriter::new(shop, lake, lineage, u64::MAX);
    let mut removed = Vec::with_capacity(chosen.len());
    for file in chosen.into_iter().filter_map(|at| files.get(at)) {
        rewriter.take(&file.path, file.rows, file.bytes, &file.deleted).await?;
        removed.push(file.path.clone());
    }
    let written = rewriter.finish().await?.claim();
    let full = written.iter().filter(|output| output.full).map(|output| output.file.path.clone()).collect();
    let data = written.into_iter().map(|output| output.file).collect();
    Ok(Some(RewrittenHistory { removed, data, full }))
}

#[cfg(test)]
mod tests;
