//! A table's blocks (or those of its partitions), shared out among connections.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::Result;

use super::super::identifier::quote;
use super::files::FileRoll;
use super::session::CopySession;
use super::{CopyJob, NumberedFile};

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
    /// As in SQL.
    pub(super) name: String,
    pub(super) blocks: u64,
}

/// The blocks that nobody has taken yet.
#[derive(Debug)]
pub(super) struct Shares {
    extents: Vec<Extent>,
    shares: Vec<Share>,
    next: AtomicUsize,
}

/// Blocks of one heap.
#[derive(Debug)]
struct Share {
    extent: usize,
    blocks: Range<u64>,
}

impl Shares {
    pub(super) fn new(extents: Vec<Extent>, connections: usize) -> Self {
        let mut left: u64 = extents.iter().map(|extent| extent.blocks).sum();
        let mut shares = Vec::new();
        for (at, extent) in extents.iter().enumerate() {
            let mut begin = 0;
            while begin < extent.blocks {
                // Towards the end they become smaller: the last connection is not alone for long.
                let size = (left / (connections as u64 * SHARES_EACH).max(1)).clamp(LEAST_BLOCKS, SHARE_BLOCKS);
                let end = (begin + size).min(extent.blocks);
                left -= end - begin;
                shares.push(Share { extent: at, blocks: begin..end });
                begin = end;
            }
        }
        Self { extents, shares, next: AtomicUsize::new(0) }
    }

    /// The heap and the blocks of the next share, until all are taken.
    fn take(&self) -> Option<(&str, Range<u64>)> {
        let share = self.shares.get(self.next.fetch_add(1, Ordering::Relaxed))?;
        Some((self.extents.get(share.extent)?.name.as_str(), share.blocks.clone()))
    }
}

/// Copies shares until none is left.
pub(super) async fn copy(
    job: Arc<CopyJob>,
    mut session: CopySession,
    shares: Arc<Shares>,
    numbers: Arc<AtomicU32>,
) -> Result<Vec<NumberedFile>> {
    let columns = job.table.spec.columns.iter().map(|column| quote(&column.name)).collect::<Vec<_>>().join(", ");
    let filter = job.table.projection.filter.as_ref().map_or_else(String::new, |filter| format!(" AND ({filter})"));
    let mut files = FileRoll::new(&job, &numbers)?;
    while let Some((heap, blocks)) = shares.take() {
        let command = format!(
            "COPY (SELECT {columns} FROM ONLY {heap} WHERE ctid >= '({},0)' AND ctid < '({},0)'{filter}) TO STDOUT (FORMAT binary)",
            blocks.start, blocks.end
        );
        session.begin(&job, &command).await?;
        while session.more(&job, &mut |cells| files.append(cells)).await? {
            if files.is_full() {
                files.write_batch().await?;
            }
        }
        files.end_share()?;
    }
    files.finish().await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_block_is_in_one_share(blocks in proptest::collection::vec(0u64..60_000, 0..5), connections in 1usize..9) {
            let extents = blocks.iter().enumerate().map(|(at, &blocks)| Extent { name: at.to_string(), blocks });
            let shares = Shares::new(extents.collect(), connections);
            let mut seen = vec![0; blocks.len()];
            while let Some((heap, share)) = shares.take() {
                let next: &mut u64 = &mut seen[heap.parse::<usize>().unwrap()];
                prop_assert_eq!(share.start, *next);
                prop_assert!(share.end > share.start && share.end - share.start <= SHARE_BLOCKS);
                *next = share.end;
            }
            prop_assert_eq!(seen, blocks);
            prop_assert!(shares.take().is_none());
        }
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
