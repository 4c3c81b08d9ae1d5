//! A table's blocks (or those of its partitions), shared out among connections.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use iceberg_writer::{ColumnSpec, PgType};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::Result;
use crate::table::history::Snapshot;

use super::super::identifier::quote;
use super::super::relation::SourceTable;
use super::CopyJob;
use super::files::FileRoll;
use super::progress::Part;
use super::session::CopySession;

/// Most blocks of a share: at 8 KiB, 64 MiB. Small against a large table, so that all connections end together.
const SHARE_BLOCKS: u64 = 8192;
/// Fewest blocks of a share: a COPY command has its price.
const LEAST_BLOCKS: u64 = 512;
/// Shares a connection gets at least of what is left of a table that is large enough.
const SHARES_EACH: u64 = 2;

/// How many connections a table of so many blocks is worth.
pub(super) fn fitting_connections(blocks: u64, most: usize) -> usize {
    usize::try_from(blocks.div_ceil(LEAST_BLOCKS)).unwrap_or(usize::MAX).clamp(1, most.max(1))
}

/// A heap to copy: the table, or a partition of it.
#[derive(Debug)]
pub(super) struct Extent {
    pub(super) heap: u32,
    /// As in SQL.
    pub(super) name: String,
    pub(super) blocks: u64,
}

/// Blocks of one heap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Share {
    pub(super) heap: u32,
    pub(super) blocks: Range<u64>,
}

/// One snapshot's turn.
pub(super) struct Round {
    pub(super) snapshot: Snapshot,
    /// What the table looks like in it.
    pub(super) shape: String,
}

/// The blocks that nobody has taken yet.
#[derive(Debug)]
pub(super) struct Shares {
    names: BTreeMap<u32, String>,
    shares: Vec<Share>,
    next: AtomicUsize,
    /// From then on only those who have had none yet get one.
    until: Option<Instant>,
}

impl Shares {
    /// The blocks of these heaps, less those that are done.
    pub(super) fn new(extents: Vec<Extent>, done: &[Share], connections: usize, until: Option<Instant>) -> Self {
        let mut left: u64 = extents.iter().map(|extent| extent.blocks).sum();
        let done_of = |heap: u32| done.iter().filter(move |share| share.heap == heap).map(|share| &share.blocks);
        for extent in &extents {
            let there = |blocks: &Range<u64>| blocks.end.min(extent.blocks).saturating_sub(blocks.start);
            left -= done_of(extent.heap).map(there).sum::<u64>();
        }
        let mut shares = Vec::new();
        for extent in &extents {
            let mut done: Vec<&Range<u64>> = done_of(extent.heap).collect();
            done.sort_unstable_by_key(|blocks| blocks.start);
            let mut begin = 0;
            let end = Range { start: extent.blocks, end: extent.blocks };
            for done in done.into_iter().chain([&end]) {
                let gap = done.start.min(extent.blocks);
                while begin < gap {
                    // Towards the end they become smaller: the last connection is not alone for long.
                    let size = (left / (connections as u64 * SHARES_EACH).max(1)).clamp(LEAST_BLOCKS, SHARE_BLOCKS);
                    let end = (begin + size).min(gap);
                    left -= end - begin;
                    shares.push(Share { heap: extent.heap, blocks: begin..end });
                    begin = end;
                }
                begin = begin.max(done.end);
            }
        }
        let names = extents.into_iter().map(|extent| (extent.heap, extent.name)).collect();
        Self { names, shares, next: AtomicUsize::new(0), until }
    }

    /// What is left of another snapshot's shares.
    pub(super) fn rest(&self, until: Option<Instant>) -> Self {
        let taken = self.next.load(Ordering::Relaxed).min(self.shares.len());
        let (names, shares) = (self.names.clone(), self.shares[taken..].to_vec());
        Self { names, shares, next: AtomicUsize::new(0), until }
    }

    /// Whether all are taken.
    pub(super) fn are_taken(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.shares.len()
    }

    /// The next share for somebody who has had so many, and its heap's name, until all are taken or the time is over.
    fn take(&self, had: usize) -> Option<(&str, Share)> {
        if had > 0 && self.until.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
        let share = self.shares.get(self.next.fetch_add(1, Ordering::Relaxed))?;
        Some((self.names.get(&share.heap)?.as_str(), share.clone()))
    }
}

/// Copies shares until none is left.
pub(super) async fn copy(
    job: Arc<CopyJob>,
    mut session: CopySession,
    shares: Arc<Shares>,
    numbers: Arc<AtomicU32>,
    round: Round,
) -> Result<Vec<Part>> {
    let filter = job.table.projection.filter.as_ref().map_or_else(String::new, |filter| format!(" AND ({filter})"));
    let columns = columns(&job.table);
    let mut files = FileRoll::new(&job, &numbers, round)?;
    let mut had = 0;
    while let Some((heap, share)) = shares.take(had) {
        had += 1;
        let command = format!(
            "COPY (SELECT {columns} FROM ONLY {heap} WHERE ctid >= '({},0)' AND ctid < '({},0)'{filter}) TO STDOUT (FORMAT binary)",
            share.blocks.start, share.blocks.end
        );
        session.begin(&job, &command).await?;
        while session.more(&job, &mut |cells| files.append(cells)).await? {
            if files.is_full() {
                files.write_batch().await?;
            }
        }
        files.end_share(share).await?;
    }
    files.finish().await
}

/// What is selected of a row: all columns of the mirror, in its order.
pub(super) fn columns(table: &SourceTable) -> String {
    table.spec.columns.iter().map(selected).collect::<Vec<_>>().join(", ")
}

/// A column as COPY is to send it. `format` asks the type's output function, as pgoutput does; a cast to text may be another
/// function. It makes NULL empty, hence the CASE. (`IS NOT NULL` would be false of a composite with a field that is.)
fn selected(column: &ColumnSpec) -> String {
    let name = quote(&column.name);
    if column.pg_type == PgType::TextForm {
        return format!("CASE WHEN {name} IS DISTINCT FROM NULL THEN pg_catalog.format('%s', {name}) END");
    }
    name
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_block_that_is_not_done_is_in_one_share(
            blocks in proptest::collection::vec(0u64..60_000, 0..5),
            connections in 1usize..9,
            cuts in proptest::collection::vec((0u32..5, 0u64..12, 1u64..3), 0..8),
            rounds in 1usize..4,
        ) {
            // Ranges that are done never overlap; they may lie behind what is left of a heap.
            let mut done: Vec<Share> = Vec::new();
            for (heap, start, length) in cuts {
                let blocks = start * 7000..(start + length) * 7000;
                if !done.iter().any(|share| share.heap == heap && share.blocks.start < blocks.end && blocks.start < share.blocks.end) {
                    done.push(Share { heap, blocks });
                }
            }
            let extents = || blocks.iter().zip(0..).map(|(&blocks, heap)| Extent { heap, name: heap.to_string(), blocks });
            let mut shares = Shares::new(extents().collect(), &done, connections, None);
            let mut seen = done.clone();
            for round in 0..rounds {
                let most = if round + 1 == rounds { usize::MAX } else { 3 };
                for _ in 0..most {
                    let Some((name, share)) = shares.take(0) else { break };
                    prop_assert_eq!(name, share.heap.to_string());
                    prop_assert!(!share.blocks.is_empty() && share.blocks.end - share.blocks.start <= SHARE_BLOCKS);
                    prop_assert!(share.blocks.end <= blocks[share.heap as usize]);
                    seen.push(share);
                }
                prop_assert_eq!(shares.are_taken(), shares.rest(None).take(0).is_none());
                shares = shares.rest(None);
            }
            seen.sort_unstable_by_key(|share| (share.heap, share.blocks.start));
            for extent in extents() {
                let mut next = 0;
                for share in seen.iter().filter(|share| share.heap == extent.heap) {
                    prop_assert!(share.blocks.start == next || share.blocks.start > extent.blocks);
                    next = share.blocks.end;
                }
                prop_assert!(next >= extent.blocks);
            }
        }
    }

    #[test]
    fn when_the_time_is_over_only_who_has_had_no_share_gets_one() {
        let extent = Extent { heap: 1, name: "t".to_owned(), blocks: 100_000 };
        let shares = Shares::new(vec![extent], &[], 2, Some(Instant::now()));
        assert!(shares.take(0).is_some() && shares.take(1).is_none() && shares.take(0).is_some());
        assert!(!shares.are_taken());
    }

    #[test]
    fn a_small_table_is_not_worth_many_connections() {
        assert_eq!(fitting_connections(0, 4), 1);
        assert_eq!(fitting_connections(LEAST_BLOCKS, 4), 1);
        assert_eq!(fitting_connections(LEAST_BLOCKS + 1, 4), 2);
        assert_eq!(fitting_connections(1_000_000, 4), 4);
        assert_eq!(fitting_connections(1_000_000, 0), 1);
    }
}
