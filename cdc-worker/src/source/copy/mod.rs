//! The initial copy of a table: binary COPY → Arrow → Parquet in one pass, no temporary file, over several connections.
//!
//! Keeps I4: the rows are those of the snapshot exported by a slot's creation, and the caller applies to them exactly
//! the streamed transactions whose commit record begins at or after that slot's consistent point. A transaction that
//! was committing while the slot was made is on one side of that point by definition, however late it becomes visible.
//! All connections import that one snapshot, and each block of each heap is read by one of them: so every row of the
//! snapshot is copied once, wherever a concurrent update moves it.
//!
//! # Several snapshots
//! A snapshot keeps VACUUM from its work, and ends with the process. So a copy that takes long lets it go and takes a
//! new one for the blocks that are left; and one that was interrupted goes on in the same way ([`progress`]). Then the
//! blocks *D* are copied as of X1, and the others, *N*, as of X2. Why that is exact, given all streamed changes from X1 on:
//! a row that no transaction between X1 and X2 has touched is in the same block all the time, and copied once. Of one
//! that was touched, its state at X2 is either in *N*, and copied from there, or in *D* or gone, and the stream tells it.
//! So, by key: what was copied at X2 hides what was copied at X1 ([`reconcile`]); and a change that was committed before
//! X2 is applied unless the row was copied at X2, whether or not there is a row to change (`table::overlap`). Where such a
//! change leaves an unchanged TOASTed value out, and the row is not there, the value is read at X2 ([`KeyReader`]).
//!
//! Memory is some megabytes a connection, whatever the table's size.

mod base;
mod files;
mod key_reader;
pub(crate) mod progress;
mod reconcile;
mod session;
mod share;
mod snapshot;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use iceberg_writer::{LakeTable, Layout, Lsn, Warehouse};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use crate::Result;
use crate::config::{SourceConfig, Unrepresentable};
use crate::error::{Error, ErrorKind};
use crate::table::history::Snapshot;
use crate::table::{CopiedFile, PositionIndex, Seen};

use super::older::OlderTransactions;
use super::partitions::Links;
use super::relation::SourceTable;
pub(crate) use base::Base;
pub(crate) use key_reader::KeyReader;
use progress::{Part, Progress, takes_parts};
use share::Shares;
use snapshot::Reading;

/// All that a copy needs.
pub(crate) struct CopyJob {
    pub(crate) source: SourceConfig,
    pub(crate) table: SourceTable,
    pub(crate) warehouse: Arc<Warehouse>,
    pub(crate) lake: LakeTable,
    /// How it is to be laid out.
    pub(crate) layout: Layout,
    pub(crate) index: PositionIndex,
    /// Where its rows go once more, as the beginning of the table's history.
    pub(crate) base: Option<Arc<Base>>,
    pub(crate) epoch: i64,
    pub(crate) attempt: Uuid,
    /// A file is closed at about this size.
    pub(crate) file_bytes: usize,
    /// What becomes of values that Iceberg's types have not.
    pub(crate) unrepresentable: Unrepresentable,
    /// How long a snapshot is kept.
    pub(crate) snapshot_age: Duration,
    /// Rows so far, for `lake.lag`.
    pub(crate) copied: Arc<AtomicU64>,
    /// What it waits for before there are any, for the same.
    pub(crate) older: OlderTransactions,
    /// What an earlier process has done of it.
    pub(crate) progress: Progress,
    /// Who hears of what is done.
    pub(crate) news: mpsc::Sender<News>,
}

/// What is worth knowing before a copy is done.
#[derive(Debug)]
pub(crate) enum News {
    /// It began, from nothing: the stream's changes belong to it from here on. What it had done before is void.
    Begun { from: Lsn, void: Vec<String> },
    /// A part is done, of a table that looks like this.
    Done { part: Part, shape: String },
}

/// A finished copy.
pub(crate) struct Copied {
    /// The stream's changes belong to it from here on.
    pub(crate) from: Lsn,
    /// From here on they are exactly those that it lacks. Where it was made of one snapshot, that is [`Self::from`].
    pub(crate) exact_from: Lsn,
    /// The last snapshot.
    pub(crate) snapshot: Snapshot,
    pub(crate) rows: u64,
    pub(crate) files: Vec<CopiedFile>,
    /// The columns that have a companion in some file, by field id.
    pub(crate) companions: BTreeSet<i32>,
    /// The catalog on its columns, as its snapshot has it.
    pub(crate) seen: Seen,
    /// The partitions that were copied, of a partitioned table.
    pub(crate) partitions: Option<Links>,
    /// Reads rows of the last snapshot, where that may be needed.
    pub(crate) reader: Option<KeyReader>,
}

/// How long the news may wait for an engine that is busy.
const NEWS_PATIENCE: Duration = Duration::from_secs(600);

impl CopyJob {
    /// Runs the copy.
    ///
    /// # Errors
    /// [`ErrorKind::Table`] when a row cannot be taken; others as their parts.
    pub(crate) async fn run(mut self) -> Result<Copied> {
        let mut progress = std::mem::take(&mut self.progress);
        let in_parts = takes_parts(&self.table);
        self.copied.store(progress.rows(), Ordering::Relaxed);
        reconcile::index(&self, &progress).await?;
        let job = Arc::new(self);
        let mut shares: Option<Shares> = None;
        loop {
            let until = in_parts.then(|| Instant::now() + job.snapshot_age);
            let Reading { reader, sessions, snapshot, extents, seen, partitions, shape } =
                snapshot::begin(&job).await?;
            let consistent_point = snapshot.at;
            if progress.shape.as_ref() != Some(&shape) {
                let void: Vec<String> = progress.files().map(|numbered| numbered.file.path.clone()).collect();
                if progress.shape.is_some() {
                    tracing::info!(table = job.table.shown(), "the table has changed: its copy begins again");
                    job.index.clear();
                    job.copied.store(0, Ordering::Relaxed);
                }
                (progress, shares) = (Progress { shape: Some(shape.clone()), parts: Vec::new() }, None);
                job.tell(News::Begun { from: consistent_point, void }).await?;
            }
            // Of one snapshot nothing will be missing.
            let reader = Some(reader).filter(|_| progress.from().is_some());
            let connections = sessions.len();
            tracing::info!(table = job.table.shown(), lsn = %consistent_point, connections, "copying");
            let todo = match shares {
                Some(shares) => shares.rest(until),
                None => Shares::new(extents, &progress.shares(), connections, until),
            };
            let todo = Arc::new(todo);
            let first = u32::try_from(progress.files().count()).unwrap_or(u32::MAX);
            let numbers = Arc::new(AtomicU32::new(first));
            // Dropped, it ends the tasks: when one of them fails, and when the copy is called off.
            let mut tasks = JoinSet::new();
            for session in sessions {
                let (job, todo) = (Arc::clone(&job), Arc::clone(&todo));
                let round = share::Round { snapshot, shape: shape.clone() };
                // With a session ends its transaction, and the lock that keeps the table from being rewritten.
                tasks.spawn(share::copy(job, session, todo, Arc::clone(&numbers), round));
            }
            while let Some(ended) = tasks.join_next().await {
                let ended = ended
                    .map_err(|error| Error::new(ErrorKind::Protocol, "a copying task broke").with_source(error))?;
                progress.parts.extend(ended?);
            }
            if todo.are_taken() {
                let from = progress.from().unwrap_or(consistent_point);
                let companions = progress.companions();
                let files = reconcile::files(&job, progress, consistent_point).await?;
                let rows = files.iter().map(|copied| copied.file.rows - copied.superseded.len()).sum();
                let reader = reader.map(|client| KeyReader::new(client, &job.table));
                let exact_from = consistent_point;
                return Ok(Copied { from, exact_from, snapshot, rows, files, companions, seen, partitions, reader });
            }
            tracing::info!(table = job.table.shown(), "the copy takes a new snapshot");
            shares = Arc::into_inner(todo);
        }
    }

    /// A part is done.
    async fn done(&self, part: &Part, shape: &str) -> Result<()> {
        if !takes_parts(&self.table) {
            return Ok(());
        }
        self.tell(News::Done { part: part.clone(), shape: shape.to_owned() }).await
    }

    async fn tell(&self, news: News) -> Result<()> {
        let told = tokio::time::timeout(NEWS_PATIENCE, self.news.send(news)).await;
        let error = match told {
            Ok(Ok(())) => return Ok(()),
            // The session has ended; so will this task, in a moment.
            Ok(Err(_)) => Error::new(ErrorKind::Protocol, "nobody waits for the copy"),
            Err(elapsed) => {
                Error::new(ErrorKind::Protocol, "the engine does not listen to the copy").with_source(elapsed)
            }
        };
        Err(error)
    }
}
