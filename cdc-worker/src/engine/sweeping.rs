//! Files that nothing names any more are removed beside the stream.
//!
//! One task at a time does it, for all commits since it began the last time: where commits come faster than files can be
//! looked for, each time has more of them and costs hardly more, so nothing piles up behind the stream.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iceberg_writer::{Catalog as _, CommitReceipt, LakeTable, MirrorCatalog};

use crate::serve::Leases;

/// Removes files.
pub(super) struct Sweeper {
    catalog: Arc<MirrorCatalog>,
    leases: Leases,
    work: Arc<Mutex<Work>>,
}

/// What is to be done.
#[derive(Default)]
struct Work {
    /// Commits whose superfluous files are still there, in their order.
    receipts: Vec<CommitReceipt>,
    /// Tables whose folders are to be looked through, by a worker of this epoch.
    folders: Option<(Vec<LakeTable>, i64)>,
    /// Whether a task is at it.
    running: bool,
}

impl Sweeper {
    pub(super) fn new(catalog: Arc<MirrorCatalog>, leases: Leases) -> Self {
        Self { catalog, leases, work: Arc::default() }
    }

    /// Deletes what expired snapshots alone referred to.
    pub(super) fn sweep(&self, receipt: CommitReceipt) {
        self.add(|work| work.receipts.push(receipt));
    }

    /// Deletes what earlier epochs wrote and never committed.
    pub(super) fn look_for_strays(&self, tables: Vec<LakeTable>, epoch: i64) {
        self.add(|work| work.folders = Some((tables, epoch)));
    }

    fn add(&self, what: impl FnOnce(&mut Work)) {
        let mut work = lock(&self.work);
        what(&mut work);
        if !std::mem::replace(&mut work.running, true) {
            tokio::spawn(run(Arc::clone(&self.catalog), self.leases.clone(), Arc::clone(&self.work)));
        }
    }
}

fn lock(work: &Mutex<Work>) -> MutexGuard<'_, Work> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A task that panics leaves files behind, and lets the next one run.
struct Running {
    work: Arc<Mutex<Work>>,
    ended: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            lock(&self.work).running = false;
        }
    }
}

async fn run(catalog: Arc<MirrorCatalog>, leases: Leases, work: Arc<Mutex<Work>>) {
    let mut running = Running { work: Arc::clone(&work), ended: false };
    loop {
        let (receipts, folders) = {
            let mut work = lock(&work);
            let taken = (std::mem::take(&mut work.receipts), work.folders.take());
            if taken.0.is_empty() && taken.1.is_none() {
                // While nobody can add anything.
                work.running = false;
                running.ended = true;
                return;
            }
            taken
        };
        let is_pinned = |path: &str| leases.holds(path);
        catalog.sweep(&receipts, &is_pinned).await;
        let (tables, epoch) = folders.unwrap_or_default();
        for table in tables {
            if let Err(error) = catalog.sweep_strays(&table, epoch, &is_pinned).await {
                tracing::warn!(error = %error, "could not look for files that earlier workers left behind");
            }
        }
    }
}
