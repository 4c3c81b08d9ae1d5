//! A running query and its rows.

use std::ffi::CString;
use std::sync::Arc;
use std::time::Duration;

use libduckdb_sys as ffi;

use crate::account::{Lent, Peak};
use crate::ahead::{Ahead, Source};
use crate::chunk::{Chunk, ColumnKind};
use crate::error::{Error, ErrorKind};
use crate::scan::PinnedScan;
use crate::watchdog::Watchdog;

/// How long the main thread sleeps when DuckDB's other threads have all the work.
const IDLE: Duration = Duration::from_micros(200);

/// Chunks that are fetched by the caller's thread, before one is started that fetches the rest ahead: most results end before, and a
/// thread is not started for them.
const FETCHED_HERE: u32 = 4;

/// When rows are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// As soon as they are there; an error may still come after them.
    Streaming,
    /// After the last one is known: an error comes before the first row or not at all.
    Complete,
}

/// The rows of a query, a chunk at a time.
pub struct Rows {
    // Fields drop in order: what follows must outlive the thread, and then the result.
    pub(crate) ahead: Option<Ahead>,
    result: Fetching,
    kinds: Vec<ColumnKind>,
    prepared: Prepared,
    connection: Lent,
    watchdog: Arc<Watchdog>,
    _scans: Vec<Arc<PinnedScan>>,
}

/// The result and how far it is fetched; it destroys itself.
struct Fetching {
    source: Source,
    /// Chunks to be fetched by the caller's thread before another one does it; `None`: all of them.
    here: Option<u32>,
    ended: bool,
}

impl Drop for Fetching {
    fn drop(&mut self) {
        // SAFETY: made in `Rows::begin`, destroyed only here.
        unsafe { ffi::duckdb_destroy_result(&raw mut self.source.0) };
    }
}

/// A prepared statement that destroys itself.
struct Prepared(ffi::duckdb_prepared_statement);

impl Drop for Prepared {
    fn drop(&mut self) {
        // SAFETY: made by duckdb_prepare, destroyed only here; destroying null is allowed.
        unsafe { ffi::duckdb_destroy_prepare(&raw mut self.0) };
    }
}

/// A pending result that destroys itself.
struct Pending(ffi::duckdb_pending_result);

impl Drop for Pending {
    fn drop(&mut self) {
        // SAFETY: made by duckdb_pending_prepared*, destroyed only here.
        unsafe { ffi::duckdb_destroy_pending(&raw mut self.0) };
    }
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").field("kinds", &self.kinds).finish_non_exhaustive()
    }
}

impl Rows {
    pub(crate) fn begin(
        connection: Lent,
        watchdog: Arc<Watchdog>,
        cancelled: fn() -> bool,
        sql: &str,
        delivery: Delivery,
        threads: u32,
        scans: Vec<Arc<PinnedScan>>,
    ) -> Result<Self, Error> {
        let text = CString::new(sql).map_err(|_| Error::new(ErrorKind::Query, "NUL in the SQL text"))?;
        let call = watchdog.enter(connection.raw());
        let mut prepared = Prepared(std::ptr::null_mut());
        // SAFETY: the connection is open for the whole block; each handle is destroyed by its owner; error texts are
        // copied while their object lives.
        let result = unsafe {
            let state = ffi::duckdb_prepare(connection.raw(), text.as_ptr(), &raw mut prepared.0);
            if state != ffi::duckdb_state_DuckDBSuccess {
                return Err(Error::of_duckdb(ErrorKind::Query, ffi::duckdb_prepare_error(prepared.0)));
            }
            let mut pending = Pending(std::ptr::null_mut());
            let state = match delivery {
                Delivery::Streaming => ffi::duckdb_pending_prepared_streaming(prepared.0, &raw mut pending.0),
                Delivery::Complete => ffi::duckdb_pending_prepared(prepared.0, &raw mut pending.0),
            };
            if state != ffi::duckdb_state_DuckDBSuccess {
                return Err(Error::of_duckdb(ErrorKind::Query, ffi::duckdb_pending_error(pending.0)));
            }
            loop {
                let state = ffi::duckdb_pending_execute_task(pending.0);
                if state == ffi::duckdb_pending_state_DUCKDB_PENDING_RESULT_READY {
                    break;
                }
                if state == ffi::duckdb_pending_state_DUCKDB_PENDING_ERROR {
                    return Err(Error::of_duckdb(ErrorKind::Query, ffi::duckdb_pending_error(pending.0)));
                }
                if cancelled() {
                    ffi::duckdb_interrupt(connection.raw());
                    return Err(Error::new(ErrorKind::Cancelled, "cancelled"));
                }
                if state == ffi::duckdb_pending_state_DUCKDB_PENDING_NO_TASKS_AVAILABLE {
                    std::thread::sleep(IDLE);
                }
            }
            let mut result: ffi::duckdb_result = std::mem::zeroed();
            if ffi::duckdb_execute_pending(pending.0, &raw mut result) != ffi::duckdb_state_DuckDBSuccess {
                let error = Error::of_duckdb(ErrorKind::Query, ffi::duckdb_result_error(&raw mut result));
                ffi::duckdb_destroy_result(&raw mut result);
                return Err(error);
            }
            result
        };
        drop(call);
        let ahead = threads > 1 && delivery == Delivery::Streaming;
        let result = Fetching { source: Source(result), here: ahead.then_some(FETCHED_HERE), ended: false };
        let mut rows = Self { ahead: None, result, kinds: Vec::new(), prepared, connection, watchdog, _scans: scans };
        rows.kinds = ColumnKind::of_result(&mut rows.result.source.0)?;
        Ok(rows)
    }

    /// The columns' kinds.
    pub fn kinds(&self) -> &[ColumnKind] {
        &self.kinds
    }

    /// What the query took, when it has come to its end and was asked to tell ([`crate::Engine::observe`]).
    pub fn peak(&self) -> Option<Peak> {
        self.result.ended.then(|| self.connection.peak()).flatten()
    }

    /// The next rows; `None` after the last.
    ///
    /// # Errors
    /// [`ErrorKind::Query`], [`ErrorKind::OutOfMemory`] or [`ErrorKind::Cancelled`].
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, Error> {
        debug_assert!(!self.prepared.0.is_null(), "prepared before the result was made");
        if self.result.ended {
            return Ok(None);
        }
        if self.ahead.is_none() && self.result.here == Some(0) {
            let is_text = |kind: &ColumnKind| matches!(kind, ColumnKind::Text | ColumnKind::Blob);
            let texts = (0..self.kinds.len()).filter(|column| is_text(&self.kinds[*column])).collect();
            // SAFETY: the result and the connection outlive the thread; from here on only it fetches.
            let started = unsafe { Ahead::start(self.result.source, texts, self.connection.raw()) };
            // Without a thread they come as well.
            self.result.here = None;
            self.ahead = started.ok();
        }
        let wait = || self.watchdog.enter(self.connection.raw());
        let fetched = if let Some(ahead) = &self.ahead {
            ahead.next(wait)
        } else {
            let _call = wait();
            self.result.here = self.result.here.map(|left| left.saturating_sub(1));
            // SAFETY: the result is live, and no thread was started.
            unsafe { self.result.source.fetch() }
        };
        self.result.ended = matches!(fetched, Ok(None));
        if !matches!(fetched, Ok(Some(_))) {
            self.ahead = None;
        }
        fetched
    }
}
