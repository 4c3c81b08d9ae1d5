//! The initial copy of a table: binary COPY → Arrow → Parquet in one pass, no temporary file, over several connections.
//!
//! Keeps I4: the rows are those of the snapshot exported by a slot's creation, and the caller applies to them exactly
//! the streamed transactions whose commit record begins at or after that slot's consistent point. A transaction that
//! was committing while the slot was made is on one side of that point by definition, however late it becomes visible.
//! All connections import that one snapshot, and each block of each heap is read by one of them: so every row of the
//! snapshot is copied once, wherever a concurrent update moves it.
//!
//! Memory is some megabytes a connection, whatever the table's size.

mod files;
mod share;
mod snapshot;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use iceberg_writer::{LakeTable, Lsn, Warehouse, WrittenFile};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::Result;
use crate::config::SourceConfig;
use crate::error::{Error, ErrorKind};
use crate::table::{PositionIndex, Seen};

use super::older::OlderTransactions;
use super::partitions::Links;
use super::relation::SourceTable;
use share::Shares;
use snapshot::Reading;

/// A data file is closed at about this size: large enough for readers, small enough to rewrite later.
pub(crate) const FILE_BYTES: usize = 256 << 20;

/// All that a copy needs.
pub(crate) struct CopyJob {
    pub(crate) source: SourceConfig,
    pub(crate) table: SourceTable,
    pub(crate) warehouse: Arc<Warehouse>,
    pub(crate) lake: LakeTable,
    pub(crate) index: PositionIndex,
    pub(crate) epoch: i64,
    pub(crate) attempt: Uuid,
    /// Rows so far, for `lake.lag`.
    pub(crate) copied: Arc<AtomicU64>,
    /// What it waits for before there are any, for the same.
    pub(crate) older: OlderTransactions,
}

/// A finished copy.
pub(crate) struct Copied {
    pub(crate) consistent_point: Lsn,
    pub(crate) rows: u64,
    pub(crate) files: Vec<WrittenFile>,
    /// The catalog on its columns, as its snapshot has it.
    pub(crate) seen: Seen,
    /// The partitions that were copied, of a partitioned table.
    pub(crate) partitions: Option<Links>,
}

/// A file of a copy. Its number is its place among the table's files, by which the index knows it.
pub(crate) struct NumberedFile {
    pub(crate) number: u32,
    pub(crate) file: WrittenFile,
}

impl CopyJob {
    /// Runs the copy.
    ///
    /// # Errors
    /// [`ErrorKind::Table`] when a row cannot be taken; others as their parts.
    pub(crate) async fn run(self) -> Result<Copied> {
        let Reading { clients, consistent_point, extents, seen, partitions } = snapshot::begin(&self).await?;
        let connections = clients.len();
        tracing::info!(table = self.table.shown(), lsn = %consistent_point, connections, "copying");
        let job = Arc::new(self);
        let shares = Arc::new(Shares::new(extents, connections));
        let numbers = Arc::new(AtomicU32::new(0));
        // Dropped, it ends the tasks: when one of them fails, and when the copy is called off.
        let mut tasks = JoinSet::new();
        for client in &clients {
            let (job, client) = (Arc::clone(&job), Arc::clone(client));
            tasks.spawn(share::copy(job, client, Arc::clone(&shares), Arc::clone(&numbers)));
        }
        let mut files: Vec<NumberedFile> = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            let ended =
                ended.map_err(|error| Error::new(ErrorKind::Protocol, "a copying task broke").with_source(error))?;
            files.extend(ended?);
        }
        // The transactions, and with them the lock that keeps the table from being rewritten, end here.
        drop(clients);
        files.sort_unstable_by_key(|file| file.number);
        if files.iter().enumerate().any(|(place, file)| usize::try_from(file.number) != Ok(place)) {
            return Err(Error::new(ErrorKind::Index, "the files of a copy are not numbered one by one"));
        }
        let files: Vec<WrittenFile> = files.into_iter().map(|numbered| numbered.file).collect();
        Ok(Copied { consistent_point, rows: files.iter().map(|file| file.rows).sum(), files, seen, partitions })
    }
}
