//! A table's blocks, shared out among connections.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, pin_mut};
use tokio_postgres::Client;

use crate::Result;
use crate::decode::copy::CopyRows;
use crate::error::{Error, ErrorKind};

use super::super::identifier::quote;
use super::files::FileRoll;
use super::snapshot::{denied, full_name};
use super::{CopyJob, NumberedFile};

/// Most blocks of a share: at 8 KiB, 64 MiB. Small against a large table, so that all connections end together.
const SHARE_BLOCKS: u64 = 8192;
/// Fewest blocks of a share: a COPY command has its price.
const LEAST_BLOCKS: u64 = 512;
/// Shares a connection gets at least of a table that is large enough.
const SHARES_EACH: u64 = 4;
/// Longest silence of a running COPY. It may wait for cold disks, hence the patience.
const COPY_SILENCE: Duration = Duration::from_secs(600);

/// How many connections a table of so many blocks is worth.
pub(super) fn fitting_connections(blocks: u64, most: usize) -> usize {
    usize::try_from(blocks.div_ceil(LEAST_BLOCKS)).unwrap_or(usize::MAX).clamp(1, most.max(1))
}

/// The blocks that nobody has taken yet.
#[derive(Debug)]
pub(super) struct Shares {
    blocks: u64,
    size: u64,
    next: AtomicU64,
}

impl Shares {
    pub(super) fn new(blocks: u64, connections: usize) -> Self {
        let each = blocks / (connections as u64 * SHARES_EACH).max(1);
        Self { blocks, size: each.clamp(LEAST_BLOCKS, SHARE_BLOCKS), next: AtomicU64::new(0) }
    }

    /// The next share, until all are taken.
    fn take(&self) -> Option<Range<u64>> {
        let begin = self.next.fetch_add(self.size, Ordering::Relaxed);
        (begin < self.blocks).then(|| begin..(begin + self.size).min(self.blocks))
    }
}

/// Copies shares until none is left.
pub(super) async fn copy(
    job: Arc<CopyJob>,
    client: Arc<Client>,
    shares: Arc<Shares>,
    numbers: Arc<AtomicU32>,
) -> Result<Vec<NumberedFile>> {
    let columns = job.table.spec.columns.iter().map(|column| quote(&column.name)).collect::<Vec<_>>().join(", ");
    let mut files = FileRoll::new(&job, &numbers)?;
    while let Some(share) = shares.take() {
        let command = format!(
            "COPY (SELECT {columns} FROM ONLY {} WHERE ctid >= '({},0)' AND ctid < '({},0)') TO STDOUT (FORMAT binary)",
            full_name(&job.table),
            share.start,
            share.end
        );
        let stream = client.copy_out(&command).await.map_err(|error| denied(error, &job.table))?;
        pin_mut!(stream);
        let mut rows = CopyRows::default();
        loop {
            // A deadline costs more than a row that is there already.
            let next = match stream.next().now_or_never() {
                Some(next) => next,
                None => tokio::time::timeout(COPY_SILENCE, stream.next()).await.map_err(|elapsed| {
                    Error::new(ErrorKind::SourceUnreachable, "the copy fell silent").with_source(elapsed)
                })?,
            };
            let Some(chunk) = next else { break };
            rows.each(&chunk?, &mut |cells| files.append(cells))?;
            if files.is_full() {
                files.write_batch().await?;
            }
        }
    }
    files.finish().await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_block_is_in_one_share(blocks in 0u64..200_000, connections in 1usize..9) {
            let shares = Shares::new(blocks, connections);
            let mut next = 0;
            while let Some(share) = shares.take() {
                prop_assert_eq!(share.start, next);
                prop_assert!(share.end > share.start && share.end - share.start <= SHARE_BLOCKS);
                next = share.end;
            }
            prop_assert_eq!(next, blocks);
            prop_assert_eq!(shares.take(), None);
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
