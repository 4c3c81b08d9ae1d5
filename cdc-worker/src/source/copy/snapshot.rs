//! Transactions on several connections that read a table at a slot's consistent point.

use std::time::Duration;

use tokio_postgres::Client;

use crate::Result;
use crate::error::{COPY_ANEW, Error, ErrorKind};
use crate::table::history::Snapshot;
use crate::table::{RowIdentity, Seen};

use super::super::identifier::quote;
use super::super::partitions::{self, Links};
use super::super::relation::{self, SourceTable, Wanted};
use super::super::{connect, older, settings, shape, slot};
use super::CopyJob;
use super::progress::fingerprint;
use super::session::CopySession;
use super::share::{Extent, fitting_connections};

/// Times that a copy begins anew because the table was truncated meanwhile. The window is some ten milliseconds, so
/// even a table that is truncated ten times a second gets through.
const SNAPSHOT_ATTEMPTS: usize = 30;
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(50);

/// Open transactions with the same snapshot, each with a lock that keeps the table from being rewritten.
pub(super) struct Reading {
    /// Reads single rows.
    pub(super) reader: Client,
    /// Read the table.
    pub(super) sessions: Vec<CopySession>,
    /// Its position is the slot's consistent point.
    pub(super) snapshot: Snapshot,
    /// The heaps that may hold rows of the snapshot.
    pub(super) extents: Vec<Extent>,
    /// The table's columns.
    pub(super) seen: Seen,
    /// The partitions that they are.
    pub(super) partitions: Option<Links>,
    /// See [`fingerprint`].
    pub(super) shape: String,
}

/// What is locked, as the snapshot has it.
struct Locked {
    extents: Vec<Extent>,
    seen: Seen,
    partitions: Option<Links>,
    shape: String,
}

/// Begins to read.
///
/// TRUNCATE and the rewriting forms of ALTER TABLE do not keep to snapshots: a table that one of them replaced
/// between the slot's creation and our first lock looks empty to the slot's snapshot, though the stream still
/// brings the changes to its former rows. So: lock first, then compare the table's file in the snapshot's catalog
/// with its file now, and begin again with a new slot where they differ.
///
/// # Errors
/// [`ErrorKind::Table`] when the table changed, or cannot be read; [`ErrorKind::SourceUnreachable`].
pub(super) async fn begin(job: &CopyJob) -> Result<Reading> {
    let table = &job.table;
    for _ in 0..SNAPSHOT_ATTEMPTS {
        let wanted = format!("the copy of {}", table.shown());
        let exported = slot::export_snapshot(&job.source, table.relation);
        let exported = older::while_made(&job.source, &wanted, &job.older, exported).await?;
        let consistent_point = exported.consistent_point;
        let (first, taken_us) = import(job, &exported.name).await?;
        let Some(Locked { extents, seen, partitions, shape }) = lock(job, &first).await? else {
            tracing::info!(table = table.shown(), lsn = %consistent_point, "rewritten as its copy began; again");
            tokio::time::sleep(SNAPSHOT_PAUSE).await;
            continue;
        };
        let Some(session) = CopySession::open(job, &exported.name).await? else {
            // They go first: while they wait, everybody else waits behind them.
            tracing::info!(table = table.shown(), lsn = %consistent_point, "to be rewritten as its copy began; again");
            drop(first);
            tokio::time::sleep(SNAPSHOT_PAUSE).await;
            continue;
        };
        let mut sessions = vec![session];
        let blocks = extents.iter().map(|extent| extent.blocks).sum();
        // With a history each takes twice the memory.
        let most =
            if job.base.is_some() { job.source.copy_connections.div_ceil(2) } else { job.source.copy_connections };
        while sessions.len() < fitting_connections(blocks, most) {
            match CopySession::open(job, &exported.name).await {
                Ok(Some(session)) => sessions.push(session),
                Ok(None) => break,
                // The source has no connection to spare, perhaps: one is enough, the others are for speed.
                Err(error) => {
                    tracing::warn!(table = table.shown(), connections = sessions.len(), error = %error.report(), "copies over fewer connections");
                    break;
                }
            }
        }
        // The transactions hold the snapshot now; the slot may go, and with it its hold on WAL.
        drop(exported);
        let snapshot = Snapshot { at: consistent_point, taken_us };
        return Ok(Reading { reader: first, sessions, snapshot, extents, seen, partitions, shape });
    }
    Err(Error::new(ErrorKind::Table, "the table was truncated or rewritten each time its copy began")
        .with_hint(format!("when it is truncated less often, {COPY_ANEW}")))
}

/// A transaction with the snapshot, and when that was taken, for it begins a moment later.
async fn import(job: &CopyJob, snapshot: &str) -> Result<(Client, i64)> {
    let client = connect::sql(&job.source, "lake copy").await?;
    client.batch_execute(settings::ENCODING).await?;
    let import = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}'",
        snapshot.replace('\'', "''")
    );
    client.batch_execute(&import).await?;
    let now = client.query_one("SELECT (extract(epoch FROM now()) * 1000000)::int8", &[]).await?;
    Ok((client, now.get(0)))
}

/// Locks the table against a rewrite. `None`: it was rewritten since the snapshot.
async fn lock(job: &CopyJob, client: &Client) -> Result<Option<Locked>> {
    let table = &job.table;
    // Also locks the partitions, however deep, and asks for no privilege on them.
    let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", full_name(table));
    client.batch_execute(&lock).await.map_err(|error| {
        let sqlstate = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
        denied(&sqlstate, error.into(), table)
    })?;
    let heaps = match &table.partitions {
        None => vec![(table.relation, full_name(table))],
        // A query goes by the snapshot on this connection, and by what is true now on another. What was a partition and is
        // none any more is not locked: it could be dropped while it is copied.
        Some(_) => {
            let now = connect::sql(&job.source, "lake copy").await?;
            let partitions = partitions::read(client, &[table.relation]).await?;
            if partitions != partitions::read(&now, &[table.relation]).await? {
                return Ok(None);
            }
            partitions.iter().filter(|part| part.is_leaf()).map(|leaf| (leaf.oid, leaf.full_name())).collect()
        }
    };
    let mut extents = Vec::with_capacity(heaps.len());
    let oids: Vec<u32> = heaps.iter().map(|(oid, _)| *oid).collect();
    // A query on pg_class goes by the snapshot; pg_relation_filenode and pg_relation_size by what is true now. All rows
    // of the snapshot are in the blocks that there are now: later ones hold later rows.
    let rows = client
        .query(
            "SELECT relfilenode = pg_relation_filenode(oid), \
                    pg_relation_size(oid) / current_setting('block_size')::int8, relfilenode \
             FROM unnest($1::oid[]) WITH ORDINALITY u (heap, place) LEFT JOIN pg_class ON oid = heap ORDER BY place",
            &[&oids],
        )
        .await?;
    let mut files = Vec::with_capacity(heaps.len());
    for (row, (heap, name)) in rows.iter().zip(heaps) {
        if row.get::<_, Option<bool>>(0) != Some(true) {
            return Ok(None);
        }
        let blocks = row.get::<_, Option<i64>>(1).and_then(|blocks| u64::try_from(blocks).ok()).unwrap_or(0);
        files.push((heap, row.get::<_, u32>(2)));
        extents.push(Extent { heap, name, blocks });
    }
    let wanted = Wanted {
        lake_name: Some((&table.spec.namespace, &table.spec.name)),
        publication: &job.source.publication,
        append_only: table.identity == RowIdentity::AppendOnly,
        history: table.history,
        streams: false,
    };
    let described = relation::describe(client, table.relation, wanted).await?;
    let same_kind = described.partitions.is_some() == table.partitions.is_some();
    if described.spec != table.spec || described.projection != table.projection || !same_kind {
        return Err(Error::new(ErrorKind::Altered, "the source table changed as its copy began"));
    }
    // COPY goes by the columns that there are now, whichever the snapshot has: they must be the same, by number.
    let only = described.projection.columns.as_deref();
    let in_snapshot = shape::read(client, table.relation, &job.source.publication, only).await?;
    let now =
        shape::read(&connect::sql(&job.source, "lake copy").await?, table.relation, &job.source.publication, only)
            .await?;
    let Some(columns) = in_snapshot.filter(|columns| now.is_some_and(|now| columns.same_columns(&now))) else {
        return Ok(None);
    };
    let partitions = described.partitions.as_deref().map(Links::of);
    let shape = fingerprint(table, &job.layout, partitions.as_ref(), &files);
    Ok(Some(Locked { extents, seen: columns.seen(), partitions, shape }))
}

pub(super) fn full_name(table: &SourceTable) -> String {
    format!("{}.{}", quote(&table.schema), quote(&table.name))
}

/// Says what a refusal of permission means, or of the locks that many partitions need.
pub(super) fn denied(sqlstate: &str, error: Error, table: &SourceTable) -> Error {
    if sqlstate == "53200" && table.partitions.is_some() {
        return Error::new(ErrorKind::Table, format!("no room for the locks on the partitions of {}", table.name))
            .with_hint(format!("raise max_locks_per_transaction (needs a restart), then {COPY_ANEW}"))
            .with_source(error);
    }
    // Renamed, moved or dropped since it was described, or one of its columns.
    if matches!(sqlstate, "42P01" | "42703" | "3F000") {
        return Error::new(ErrorKind::Altered, "the source table changed as its copy began").with_source(error);
    }
    if sqlstate != "42501" {
        return error;
    }
    Error::new(ErrorKind::Table, format!("no permission to copy {}.{}", table.schema, table.name))
        .with_hint("GRANT SELECT to the worker's role; with row-level security on the table it also needs BYPASSRLS")
        .with_source(error)
}
