//! Where the lake's tables are registered, and where a batch becomes visible in all of them.
//!
//! Two things have to come to the same end: the tables, in a catalog that readers know, and the mirror's own row in the
//! source database, which says who may write and how far the lake is. Where the catalog is in that database too, one SQL
//! transaction moves all ([`beside`]). Otherwise the batch is put on record with the row first, and is finished from the
//! record, whoever has to ([`apart`], [`redo`]).

mod ancestry;
mod apart;
mod beside;
mod connection;
mod foreign;
mod grace;
mod hadoop;
mod jdbc;
mod mirror;
mod prepare;
mod redo;
mod rest;
mod state;
mod strays;
mod sweep;
mod tables;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use uuid::Uuid;

use crate::commit::{Batch, CommitReceipt, Outcome};
use crate::error::Result;
use crate::format::Format;
use crate::schema::TableSpec;
use crate::table::LakeTable;

pub(crate) use tables::Found;

pub use mirror::MirrorCatalog;
pub use redo::Recovered;
pub use rest::{RestAuth, RestSettings};

/// How long superseded snapshots stay readable. Expiry rides in each commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// A snapshot expires this long after it was superseded.
    pub age: Duration,
    /// No more than this many snapshots of a table are kept, the current one included.
    pub snapshots: usize,
    /// Files stay this long after the last snapshot that named them has expired, for those who have found it before.
    pub grace: Duration,
}

impl Retention {
    /// Only the current snapshot is kept.
    pub(crate) const NOTHING: Self = Self { age: Duration::ZERO, snapshots: 1, grace: Duration::ZERO };
}

impl Default for Retention {
    fn default() -> Self {
        Self { age: Duration::from_secs(600), snapshots: 100, grace: Duration::from_secs(300) }
    }
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Files removed.
    pub deleted: usize,
    /// Files that are still read; the next sweep looks at them again.
    pub pinned: usize,
    /// Files that could not be removed; the next sweep tries again.
    pub failed: usize,
    /// When the next files may go that may not yet.
    pub next: Option<Instant>,
}

/// Whether someone still reads the file of this path.
pub type IsPinned<'a> = dyn Fn(&str) -> bool + Send + Sync + 'a;

/// Makes a table's description of the remark that was left with it.
pub type Remarked<'a> = dyn Fn(&str) -> Option<TableSpec> + Send + Sync + 'a;

/// A catalog of Iceberg tables that also knows how far each mirror is.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// The table of this name, when the catalog has it. Its columns must be those of `spec`.
    async fn load(&self, spec: TableSpec) -> Result<Option<LakeTable>>;

    /// The same for a table whose columns may have changed since it was made: they must be those that `by_remark` makes of
    /// the remark which its last commit left, or those of `spec` where there is none.
    async fn load_remarked(&self, spec: TableSpec, by_remark: &Remarked<'_>) -> Result<Option<LakeTable>>;

    /// Makes sure that a table which was loaded has the rows that the mirror's last commit left in it: that nobody else has
    /// done anything to it but adding rows and rewriting files. An error that names the table says what was done.
    async fn check(&self, table: &LakeTable, mirror: &str) -> Result<()>;

    /// A new table. Nothing is written: it enters the catalog with its first [`Batch`], and replaces the table of the same
    /// name that is there now. Only where the catalog vends the keys of the store is a table made for it, without rows,
    /// where there is none, and a file made and deleted in its folder.
    async fn prepare(&self, spec: TableSpec, format: Format) -> Result<LakeTable>;

    /// A table that was prepared before, by a process that has ended, and for which files have been written.
    async fn prepare_again(&self, spec: TableSpec, format: Format, uuid: Uuid) -> Result<LakeTable>;

    /// Makes a batch visible in all its tables at once and moves the mirror to its position, or does nothing.
    ///
    /// A batch may be tried again as often as one likes: what is already committed is recognised by its attempt id. After
    /// an error of kind [`Unknown`](crate::ErrorKind::Unknown) the same batch *must* be tried again, before any other of
    /// its mirror. After any other error the batch is not committed, and the files of its tables are still there to be
    /// tried again or discarded.
    async fn commit(&self, batch: &Batch) -> Result<Outcome>;

    /// Finishes the batch that an earlier worker may have left on its way, under the epoch that this one was given; gives
    /// where the mirror is then. To be called after the mirror was claimed and before any table is loaded.
    async fn recover(&self, mirror: &str, epoch: i64) -> Result<Recovered>;

    /// Finds out what became of a batch after an error of kind [`Unknown`](crate::ErrorKind::Unknown), and commits it if it
    /// has turned out not to be.
    async fn resolve(&self, batch: &Batch) -> Result<Outcome> {
        self.commit(batch).await
    }

    /// Takes a table out of the catalog. Its files stay.
    async fn drop_entry(&self, namespace: &str, name: &str) -> Result<()>;

    /// Deletes the files whose time of grace is over (see [`Retention`]), and looks for those that commits made superfluous: of
    /// expired snapshots, of old metadata and of a replaced table. Receipts are to be swept in the order of their commits; several
    /// at once cost what one does. Files for which `is_pinned` holds are left for a later sweep.
    async fn sweep(&self, receipts: &[CommitReceipt], is_pinned: &IsPinned<'_>) -> Swept;

    /// Deletes the files of a batch that will never be tried again, but those that are still read, which the next sweep
    /// looks at. Does nothing to a batch whose fate is unknown.
    async fn discard(&self, batch: &Batch, is_pinned: &IsPinned<'_>);

    /// Leaves files to the next sweep that were written for no batch that will ever be tried.
    fn abandon(&self, files: Vec<String>);

    /// Looks for the files that writers of earlier epochs left in a table's folder: of crashed attempts, half-written
    /// ones, and those that no sweep came to. They go as what a commit made superfluous goes. Files that a retained snapshot names stay.
    /// To be called after the mirror was claimed under `epoch` and the table was loaded: then no commit of an earlier epoch
    /// can follow. Returns how many there are.
    async fn look_for_strays(&self, table: &LakeTable, epoch: i64) -> Result<usize>;

    /// Deletes the folder of a table that was prepared and never entered the catalog.
    async fn discard_prepared(&self, spec: &TableSpec, uuid: Uuid) -> Result<()>;
}
