//! Sorted files, merged into sorted ones: a batch of each file is in memory, and the place of each row.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use arrow_array::RecordBatch;
use futures_util::TryStreamExt as _;
use iceberg_writer::{RowStream, Sorter, take_rows};
use roaring::RoaringTreemap;

use crate::Result;
use crate::error::{Error, ErrorKind};
use crate::table::Input;

use super::{Rewriter, live_rows, scan};

/// Rows that are copied at once, at most.
const CHUNK_ROWS: usize = 8192;

/// A file's live rows on their way.
struct Run<'a> {
    input: &'a Input,
    stream: RowStream,
    /// Rows read, deleted ones included.
    read: u64,
    batch: RecordBatch,
    keys: Vec<Box<[u8]>>,
    /// The next row in the batch.
    at: usize,
    /// Its number among all live rows, in the order of the files.
    number: usize,
}

impl Run<'_> {
    /// Reads on, past batches of which no row lives. Gives how many rows were read.
    async fn refill(&mut self, sorter: &Sorter) -> Result<u64> {
        let before = self.read;
        (self.at, self.keys) = (0, Vec::new());
        while self.keys.is_empty() {
            let Some(batch) = self.stream.try_next().await? else {
                if self.read != self.input.rows {
                    let (path, rows, read) = (&self.input.path, self.input.rows, self.read);
                    return Err(Error::new(ErrorKind::Lake, format!("{path} has {read} rows instead of {rows}")));
                }
                break;
            };
            let first = self.read;
            self.read += batch.num_rows() as u64;
            let deleted: &RoaringTreemap = &self.input.deleted;
            self.batch = live_rows(batch, first, deleted)?;
            self.keys = sorter.keys(&self.batch)?.iter().map(|key| key.as_ref().into()).collect();
        }
        Ok(self.read - before)
    }

    fn key(&mut self) -> Option<Box<[u8]>> {
        self.keys.get_mut(self.at).map(std::mem::take)
    }
}

/// Merges the live rows of sorted files. Of each, in the order of the files, gives its place among those that are written.
pub(super) async fn merge(rewriter: &mut Rewriter<'_>, sorter: &Sorter, inputs: &[Input]) -> Result<Vec<u32>> {
    let (mut runs, mut number) = (Vec::with_capacity(inputs.len()), 0);
    let mut heap = BinaryHeap::new();
    for input in inputs {
        let live = usize::try_from(input.live_rows()).unwrap_or(usize::MAX);
        let first = number;
        number += live;
        if live == 0 {
            continue;
        }
        let stream = scan(rewriter.shop, rewriter.lake, rewriter.lineage.as_ref(), &input.path).await?;
        let (batch, keys) = (RecordBatch::new_empty(rewriter.lake.spec().arrow_schema()), Vec::new());
        let mut run = Run { input, stream, read: 0, batch, keys, at: 0, number: first };
        run.refill(sorter).await?;
        heap.extend(run.key().map(|key| Reverse((key, runs.len()))));
        runs.push(run);
    }
    let mut places = vec![0; number];
    let mut rows: Vec<(usize, usize)> = Vec::with_capacity(CHUNK_ROWS);
    let mut place = 0;
    while let Some(Reverse((_, of))) = heap.pop() {
        let run = &mut runs[of];
        rows.push((of, run.at));
        let Some(slot) = places.get_mut(run.number) else {
            return Err(Error::new(ErrorKind::Index, "a file that is rewritten has rows too many"));
        };
        *slot = place;
        place += 1;
        run.at += 1;
        run.number += 1;
        let is_empty = run.at == run.keys.len();
        if is_empty || rows.len() == CHUNK_ROWS {
            for chunk in taken(&runs, &mut rows)? {
                rewriter.write(&chunk).await?;
            }
        }
        let run = &mut runs[of];
        if is_empty {
            let (read, bytes, all) = (run.refill(sorter).await?, run.input.bytes, run.input.rows.max(1));
            rewriter.pace.passed(bytes.saturating_mul(read) / all).await;
        }
        heap.extend(runs[of].key().map(|key| Reverse((key, of))));
    }
    Ok(places)
}

/// Takes rows out of the batches that are in memory.
fn taken(runs: &[Run<'_>], rows: &mut Vec<(usize, usize)>) -> Result<Vec<RecordBatch>> {
    let batches: Vec<RecordBatch> = runs.iter().map(|run| run.batch.clone()).collect();
    let taken = take_rows(&batches, rows).collect::<Result<_, _>>()?;
    rows.clear();
    Ok(taken)
}
