//! Files that nothing names any more are removed beside the stream.
//!
//! One task does it, for all commits since it looked the last time: where commits come faster than files can be looked for,
//! each look has more of them and costs hardly more, so nothing piles up behind the stream. Files have a time of grace,
//! for readers that have found them before; the task lives until the last is over, also when its session has ended.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use iceberg_writer::{Catalog as _, CommitReceipt, LakeTable, MirrorCatalog, Swept};
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::serve::Leases;

/// Commits that wait for the task: more than come while it looks once, and each has its tables' metadata, some 100 KB. What is
/// left out stays until the next worker looks for strays.
const QUEUE: usize = 256;

/// When files are tried again that somebody reads, or the store did not remove.
const AGAIN: Duration = Duration::from_secs(10);

/// Removes files.
pub(super) struct Sweeper {
    catalog: Arc<MirrorCatalog>,
    leases: Leases,
    work: Mutex<mpsc::Sender<Work>>,
}

enum Work {
    /// What this commit made superfluous.
    Commit(CommitReceipt),
    /// What writers of earlier epochs than this one left in the folders of these tables.
    Strays(Vec<LakeTable>, i64),
}

impl Sweeper {
    pub(super) fn new(catalog: Arc<MirrorCatalog>, leases: Leases) -> Self {
        let work = Mutex::new(spawn(&catalog, &leases));
        Self { catalog, leases, work }
    }

    /// Removes in time what a commit made superfluous.
    pub(super) fn sweep(&self, receipt: CommitReceipt) {
        self.add(Work::Commit(receipt));
    }

    /// Removes in time what earlier epochs wrote and never committed: a large transaction that was interrupted has its
    /// staged files there, each time anew. And what commits that were interrupted long ago have left.
    pub(super) fn look_for_strays(&self, tables: Vec<LakeTable>, epoch: i64) {
        self.add(Work::Strays(tables, epoch));
    }

    fn add(&self, work: Work) {
        let mut sender = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        match sender.try_send(work) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                tracing::warn!("files cannot be removed as fast as commits come; some stay until the next start");
            }
            // It panicked, and has left files behind. That is no reason to leave more.
            Err(TrySendError::Closed(work)) => {
                *sender = spawn(&self.catalog, &self.leases);
                let _ = sender.try_send(work);
            }
        }
    }
}

fn spawn(catalog: &Arc<MirrorCatalog>, leases: &Leases) -> mpsc::Sender<Work> {
    let (sender, work) = mpsc::channel(QUEUE);
    tokio::spawn(run(Arc::clone(catalog), leases.clone(), work));
    sender
}

async fn run(catalog: Arc<MirrorCatalog>, leases: Leases, mut work: mpsc::Receiver<Work>) {
    let (mut swept, mut more) = (Swept::default(), Vec::new());
    loop {
        let again = (!work.is_closed() && swept.pinned + swept.failed > 0).then(|| Instant::now() + AGAIN);
        match again.into_iter().chain(swept.next).min() {
            Some(due) if work.is_closed() && work.is_empty() => tokio::time::sleep_until(due.into()).await,
            // At its end, `more` is empty.
            Some(due) => _ = tokio::time::timeout_at(due.into(), work.recv_many(&mut more, QUEUE)).await,
            None if work.recv_many(&mut more, QUEUE).await == 0 => return,
            None => {}
        }
        let mut receipts = Vec::new();
        for work in more.drain(..) {
            match work {
                Work::Commit(receipt) => receipts.push(receipt),
                Work::Strays(tables, epoch) => look(&catalog, tables, epoch).await,
            }
        }
        swept = catalog.sweep(&receipts, &|path: &str| leases.holds(path)).await;
    }
}

async fn look(catalog: &MirrorCatalog, tables: Vec<LakeTable>, epoch: i64) {
    for table in tables {
        if let Err(error) = catalog.look_for_strays(&table, epoch).await {
            tracing::warn!(error = %error, "could not look for files that earlier workers left behind");
        }
    }
}
