//! The pin: what the worker gave this statement to read, for all of its tables at one LSN.
//!
//! Invariant: all scans of one snapshot share one pin, so they read one state of the source. The worker keeps the files
//! for as long as the connection is open, and the connection is open as long as this lives.

use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lake_engine::{Engine, PinnedScan, ScanColumn, ScanFile, ScanTable};
use lake_protocol::{Alternatives, Client, ClientError, Pin};
use pgrx::prelude::*;

use crate::backend::cancelled;
use crate::companion;
use crate::error::{Error, sqlstate};
use crate::lake_plan::PlanTable;
use crate::literal::stored_type;
use crate::settings::{self, Freshness};
use crate::snapshot::{self, Snapshot};

/// Bytes of a WAL page, and of the headers of a page and of a segment's first page.
const PAGE: u64 = 8192;
const PAGE_HEADER: u64 = 24;
const SEGMENT_HEADER: u64 = 40;

/// A pin in use.
pub(crate) struct Pinned {
    pin: Pin,
    scans: HashMap<u32, Arc<PinnedScan>>,
    /// The engine that has the scans.
    pub(crate) engine: Rc<Engine>,
    /// Data files.
    pub(crate) files: u64,
    /// Files that have no row that counts, and are left out.
    pub(crate) pruned: u64,
    /// Bytes of the files.
    pub(crate) bytes: u64,
    /// Deleted rows of them.
    pub(crate) deleted: u64,
    /// Rows that no file has.
    pub(crate) fresh: u64,
    /// How long the worker took.
    pub(crate) waited: Duration,
    /// The lease.
    _client: Client,
}

/// Why there is no pin.
pub(crate) enum PinFailure {
    /// The worker is down, late or refuses: an error, never another answer.
    Refused(Error),
    /// DuckDB cannot use what the worker sent: the heap may answer.
    Unusable(lake_engine::Error),
}

impl Pinned {
    /// The pin of a snapshot, taken by the first who reads by it. `wanted`, when the one scan of a statement says which rows count:
    /// the pin is its own then, of those.
    ///
    /// # Errors
    /// See [`PinFailure`].
    pub(crate) fn of(snapshot: &Snapshot, sources: &[u32], wanted: Vec<Alternatives>) -> Result<Rc<Self>, PinFailure> {
        let wanted = if snapshot.is_shared() { Vec::new() } else { wanted };
        let is_all = wanted.iter().all(Vec::is_empty);
        if is_all && let Some(pin) = snapshot::pin_of(snapshot, sources) {
            return Ok(pin);
        }
        let (client, pin, sections, waited) =
            ask(sources, wanted, target(), settings::freshness_timeout()).map_err(PinFailure::Refused)?;
        let mut tables = HashMap::new();
        let (mut files, mut pruned, mut bytes, mut deleted, mut fresh) = (0, 0, 0, 0, 0);
        for (table, section) in pin.tables.iter().zip(&sections) {
            let list =
                table.files.iter().map(|file| ScanFile { path: local_path(&file.path), rows: file.rows }).collect();
            let decoded = ScanTable::decode(list, &section.deleted, &section.fresh).map_err(PinFailure::Unusable)?;
            files += table.files.len() as u64;
            pruned += table.pruned;
            bytes += table.files.iter().map(|file| file.bytes).sum::<u64>();
            deleted += decoded.deleted_rows();
            fresh += decoded.fresh_rows();
            tables.insert(table.relation, decoded);
        }
        let paths: Vec<String> =
            pin.tables.iter().flat_map(|table| table.files.iter().map(|file| local_path(&file.path))).collect();
        let engine = crate::backend::engine(paths.iter().map(String::as_str)).map_err(PinFailure::Unusable)?;
        let scans = tables.into_iter().map(|(relation, table)| (relation, Arc::new(engine.admit(table)))).collect();
        let pinned =
            Rc::new(Self { pin, scans, engine, files, pruned, bytes, deleted, fresh, waited, _client: client });
        if is_all {
            snapshot::keep(snapshot, &pinned);
        }
        Ok(pinned)
    }

    /// Whether it has these tables.
    pub(crate) fn has(&self, sources: &[u32]) -> bool {
        sources.iter().all(|source| self.scans.contains_key(source))
    }

    /// The LSN of the answer.
    pub(crate) fn lsn(&self) -> u64 {
        self.pin.lsn
    }

    /// The scan of a table, and its SQL.
    ///
    /// # Errors
    /// When the pin lacks the table or a column, or has it with another type.
    pub(crate) fn scan(&self, table: &PlanTable) -> Result<(String, Arc<PinnedScan>), String> {
        let lacks = || format!("the worker's answer lacks {}", table.name);
        let pinned = self.pin.tables.iter().find(|pinned| pinned.relation == table.source).ok_or_else(lacks)?;
        let scan = self.scans.get(&table.source).ok_or_else(lacks)?;
        let (mut columns, mut companions, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for wanted in &table.columns {
            let found = pinned.columns.iter().find(|column| column.attnum == wanted.attnum);
            let Some(column) =
                found.filter(|column| column.type_oid == wanted.type_oid && column.typmod == wanted.typmod)
            else {
                return Err(format!(
                    "column {} of {} is not mirrored as it is now: SELECT lake.resync(…) brings the lake in line with the table",
                    wanted.attnum, table.name
                ));
            };
            let oid = pg_sys::Oid::from(wanted.type_oid);
            let duckdb_type = stored_type(oid, wanted.typmod)
                .ok_or_else(|| format!("column {} of {} has no type any more", wanted.attnum, table.name))?;
            // The plan knows columns by their attribute numbers, the files by their field ids.
            let merged = companion::merged(wanted, column.field_id, column.companion, &duckdb_type);
            names.push(format!("{merged} AS c{}", wanted.attnum));
            columns.push(ScanColumn { field_id: column.field_id, duckdb_type });
            let text = "VARCHAR".to_owned();
            companions.extend(column.companion.map(|field_id| ScanColumn { field_id, duckdb_type: text }));
        }
        let plain = columns.iter().zip(&names).all(|(column, name)| *name == format!("c{0} AS c{0}", column.field_id));
        columns.extend(companions);
        let inner = scan.sql(&columns).map_err(|error| error.to_string())?;
        if plain {
            return Ok((inner, Arc::clone(scan)));
        }
        Ok((format!("(SELECT {} FROM {inner})", names.join(", ")), Arc::clone(scan)))
    }
}

/// What a pin would hold, without waiting for it: for EXPLAIN.
///
/// # Errors
/// The worker is down or refuses.
pub(crate) fn peek(sources: &[u32], wanted: Vec<Alternatives>) -> Result<Pin, Error> {
    ask(sources, wanted, None, Duration::from_secs(1)).map(|(_, pin, _, _)| pin)
}

/// A data file's path as DuckDB opens it.
fn local_path(path: &str) -> String {
    path.strip_prefix("file://").unwrap_or(path).to_owned()
}

/// The position that the answer has to reach; `None` for what Iceberg has.
fn target() -> Option<u64> {
    // SAFETY: looks at WAL positions, and a flush up to one that was inserted.
    unsafe {
        match settings::freshness() {
            Freshness::committed => None,
            Freshness::session => {
                let position = pg_sys::XactLastCommitEnd;
                if position > 0 {
                    pg_sys::XLogFlush(position);
                }
                Some(position)
            }
            Freshness::strict => {
                let segment = u64::try_from(pg_sys::wal_segment_size).unwrap_or(16 << 20);
                let position = before_header(pg_sys::GetXLogInsertRecPtr(), segment);
                // Decoding sees flushed WAL only, and a commit that is visible here may not be flushed (synchronous_commit
                // off).
                pg_sys::XLogFlush(position);
                Some(position)
            }
        }
    }
}

/// Just behind a page's header nothing is written yet; the page boundary is the same position, and can be flushed to.
fn before_header(position: u64, segment: u64) -> u64 {
    if position % segment == SEGMENT_HEADER {
        position - SEGMENT_HEADER
    } else if position % PAGE == PAGE_HEADER {
        position - PAGE_HEADER
    } else {
        position
    }
}

type Answer = (Client, Pin, Vec<lake_protocol::Section>, Duration);

fn ask(sources: &[u32], wanted: Vec<Alternatives>, min_lsn: Option<u64>, timeout: Duration) -> Result<Answer, Error> {
    // SAFETY: a plain variable of the main thread.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    // The working directory of a backend is the data directory.
    let path = PathBuf::from(format!("lake/read.{database}.sock"));
    let begin = Instant::now();
    let outcome = Client::connect(&path).and_then(|mut client| {
        let (pin, sections) = client.pin(sources.to_vec(), wanted, min_lsn, timeout, &mut cancelled)?;
        Ok((client, pin, sections))
    });
    match outcome {
        Ok((client, pin, sections)) => Ok((client, pin, sections, begin.elapsed())),
        Err(error) => Err(error_of(error)),
    }
}

fn error_of(error: ClientError) -> Error {
    let down = || {
        Error::new(PgSqlErrorCode::ERRCODE_CANNOT_CONNECT_NOW, "the lake engine is not running")
            .with_hint("see lake.lag and the server log; until it runs, query the source table")
    };
    match error {
        ClientError::Unreachable(cause) => down().with_detail(cause.to_string()),
        ClientError::Frame(cause) => down().with_detail(cause.to_string()),
        ClientError::Unexpected => {
            Error::new(PgSqlErrorCode::ERRCODE_PROTOCOL_VIOLATION, "the lake engine gave an answer to another question")
        }
        ClientError::TimedOut => {
            Error::state("the lake did not become as new as lake.freshness asks within lake.freshness_timeout")
                .with_hint("see lake.lag; raise lake.freshness_timeout, or relax lake.freshness")
        }
        ClientError::Cancelled => {
            pgrx::check_for_interrupts!();
            Error::new(PgSqlErrorCode::ERRCODE_QUERY_CANCELED, "canceling statement due to user request")
        }
        ClientError::Refused(refusal) => {
            let mut error = Error::new(sqlstate(&refusal.sqlstate), refusal.message);
            if let Some(detail) = refusal.detail {
                error = error.with_detail(detail);
            }
            if let Some(hint) = refusal.hint {
                error = error.with_hint(hint);
            }
            error
        }
    }
}
