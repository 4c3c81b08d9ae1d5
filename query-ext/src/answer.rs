//! Who answers a LakeScan at execution: DuckDB, or the plan against the source.
//!
//! Invariant: rows come from one of the two, never both. Until the first row is out, a failure of DuckDB turns the
//! node to the plan against the source, if it has one; after it, a failure is an error. A query whose expressions can
//! fail on a value has its rows held back until DuckDB is done, so such a failure always comes before the first row.
//!
//! What is read is settled when the execution begins ([`prepare`]), as its snapshot is; DuckDB starts with the first row.

use std::rc::Rc;
use std::sync::Arc;

use lake_engine::{Delivery, ErrorKind, Rows};
use pgrx::prelude::*;

use crate::deparse::zone::session_is_utc;
use crate::error::Error;
use crate::fallback::{self, Reason};
use crate::lake_plan::LakePlan;
use crate::literal::{list, literal};
use crate::pin::{PinFailure, Pinned};
use crate::settings::{self, Freshness};
use crate::snapshot::Snapshot;
use crate::{convert, planner, tree};

/// What a run was, for EXPLAIN ANALYZE.
#[derive(Debug, Default, Clone)]
pub(crate) struct Report {
    /// Why the heap answered, if it did.
    pub(crate) heap: Option<String>,
    /// LSN of the answer.
    pub(crate) lsn: Option<u64>,
    /// Data files of the pin.
    pub(crate) files: u64,
    /// Files that have no row that counts, and are not in it.
    pub(crate) pruned: u64,
    /// Bytes of those of the pin.
    pub(crate) bytes: u64,
    /// Deleted rows of them.
    pub(crate) deleted: u64,
    /// Rows that no file has.
    pub(crate) fresh: u64,
    /// `lake.freshness` when it was pinned.
    pub(crate) freshness: &'static str,
    /// How long the worker took.
    pub(crate) wait_ms: u64,
}

/// Who answers.
pub(crate) enum Answer {
    /// Not begun.
    None,
    /// DuckDB.
    Lake(Box<Rows>),
    /// The plan against the source.
    Heap,
}

/// Converted rows of a chunk.
#[derive(Default)]
pub(crate) struct Batch {
    /// Values, a column after the other.
    pub(crate) values: Vec<pg_sys::Datum>,
    /// Which of them are NULL.
    pub(crate) nulls: Vec<bool>,
    /// Rows in it.
    pub(crate) rows: usize,
    /// The next one.
    pub(crate) next: usize,
    /// The last chunk was fetched.
    pub(crate) done: bool,
}

/// A LakeScan at execution.
pub(crate) struct Scan {
    /// What it does.
    pub(crate) plan: LakePlan,
    /// Expressions whose values go into the SQL.
    pub(crate) values: Vec<*mut pg_sys::ExprState>,
    /// The plan against the source, or null.
    pub(crate) heap_plan: *mut pg_sys::Plan,
    /// Its state, once it answers: until then it has opened no table and compiled no expression.
    pub(crate) heap: *mut pg_sys::PlanState,
    /// `EXEC_FLAG_…` of the execution.
    pub(crate) flags: i32,
    /// Where the rows of a chunk live.
    pub(crate) memory: pg_sys::MemoryContext,
    /// The snapshot of the execution.
    pub(crate) snapshot: Snapshot,
    /// Who answers. Declared, and so dropped, before the pin: it leases the files of the rows.
    pub(crate) answer: Answer,
    /// Converted rows.
    pub(crate) batch: Batch,
    /// The pin, once taken.
    pub(crate) pinned: Option<Rc<Pinned>>,
    /// For EXPLAIN.
    pub(crate) report: Report,
}

/// Fetches and converts the next chunk; no rows at the end.
///
/// # Errors
/// DuckDB's.
///
/// # Safety
/// Nobody refers to the rows of the chunk before.
pub(crate) unsafe fn fetch(scan: &mut Scan) -> Result<(), lake_engine::Error> {
    pgrx::check_for_interrupts!();
    let Answer::Lake(rows) = &mut scan.answer else { return Ok(()) };
    scan.batch.rows = 0;
    scan.batch.next = 0;
    if scan.batch.done {
        return Ok(());
    }
    let Some(chunk) = rows.next_chunk()? else {
        scan.batch.done = true;
        return Ok(());
    };
    let count = chunk.rows();
    let outputs = scan.plan.outputs.len();
    scan.batch.values.clear();
    scan.batch.values.resize(outputs * count, pg_sys::Datum::from(0));
    scan.batch.nulls.clear();
    scan.batch.nulls.resize(outputs * count, false);
    // SAFETY: the context is the scan's own; nobody refers to the rows of the chunk before.
    let before = unsafe {
        pg_sys::MemoryContextReset(scan.memory);
        pg_sys::MemoryContextSwitchTo(scan.memory)
    };
    for (index, output) in scan.plan.outputs.iter().enumerate() {
        let range = index * count..(index + 1) * count;
        let (values, nulls) = (&mut scan.batch.values[range.clone()], &mut scan.batch.nulls[range]);
        let oid = pg_sys::Oid::from(output.type_oid);
        // SAFETY: a column of a live chunk with `count` rows.
        let outcome =
            unsafe { convert::column(rows.kinds()[index], chunk.column(index), oid, output.typmod, values, nulls) };
        if let Err(mistake) = outcome {
            Error::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, mistake).raise();
        }
    }
    // SAFETY: back to where we were.
    unsafe { pg_sys::MemoryContextSwitchTo(before) };
    scan.batch.rows = count;
    Ok(())
}

/// Settles what is read: a pin of the lake, or the heap.
///
/// # Safety
/// `node` is the scan's own, and has begun.
pub(crate) unsafe fn prepare(scan: &mut Scan, node: *mut pg_sys::CustomScanState) {
    // SAFETY: the caller passes the scan's own node.
    unsafe {
        if let Some(reason) = reason_against(&scan.plan) {
            if scan.heap_plan.is_null() {
                Error::state(format!("this plan reads the lake, and {reason}"))
                    .with_hint("run DISCARD PLANS, or query the source table")
                    .raise();
            }
            to_heap(scan, node, reason);
        } else if let Err(failure) = pin(scan, node) {
            fall_back(scan, node, failure);
        }
    }
}

/// Gets the first rows.
///
/// # Safety
/// As [`prepare`], which was called before.
pub(crate) unsafe fn start(scan: &mut Scan, node: *mut pg_sys::CustomScanState) {
    // SAFETY: the caller passes the scan's own node.
    unsafe {
        if let Err(failure) = lake(scan, node) {
            fall_back(scan, node, failure);
        }
    }
}

/// Turns to the heap, where it can answer; raises else.
unsafe fn fall_back(scan: &mut Scan, node: *mut pg_sys::CustomScanState, failure: Failure) {
    // SAFETY: the caller passes the scan's own node.
    unsafe {
        match failure {
            Failure::Raise(error) => {
                pgrx::check_for_interrupts!();
                if !scan.plan.transparent || scan.heap_plan.is_null() {
                    error.raise();
                }
                fallback::count(Reason::Worker);
                to_heap(scan, node, error.message());
            }
            Failure::Plan(reason) => {
                if scan.heap_plan.is_null() {
                    Error::state("the lake cannot answer this query")
                        .with_detail(reason)
                        .with_hint("query the source table; lake.unmirror and lake.mirror make the mirror anew")
                        .raise();
                }
                fallback::count(Reason::Pin);
                to_heap(scan, node, &reason);
            }
            Failure::Engine(error) => {
                if error.kind() == ErrorKind::Cancelled || scan.heap_plan.is_null() {
                    failed(&error);
                }
                pgrx::debug1!("lake: the heap answers: {error}");
                fallback::count(match error.kind() {
                    ErrorKind::OutOfMemory => Reason::Memory,
                    ErrorKind::Open | ErrorKind::Store => Reason::Open,
                    ErrorKind::Pin => Reason::Pin,
                    ErrorKind::Query | ErrorKind::Cancelled => Reason::Query,
                });
                to_heap(scan, node, error.to_string().lines().next().unwrap_or("DuckDB failed"));
            }
        }
    }
}

unsafe fn to_heap(scan: &mut Scan, node: *mut pg_sys::CustomScanState, reason: &str) {
    scan.answer = Answer::Heap;
    scan.pinned = None;
    scan.report = Report { heap: Some(reason.to_owned()), ..Report::default() };
    // SAFETY: the caller passes the scan's own node; states live as long as the execution does. What the plan reads is locked, for it is in the
    // statement's range table.
    unsafe {
        let estate = (*node).ss.ps.state;
        let context = pg_sys::MemoryContextSwitchTo((*estate).es_query_cxt);
        if scan.heap.is_null() {
            let without = std::mem::replace(&mut (*estate).es_jit_flags, scan.plan.heap_jit);
            scan.heap = pg_sys::ExecInitNode(scan.heap_plan, estate, scan.flags);
            (*estate).es_jit_flags = without;
        }
        // Visible to EXPLAIN and to the executor's walkers from here on.
        (*node).custom_ps = tree::list_of(&[scan.heap]);
        pg_sys::MemoryContextSwitchTo(context);
    }
}

/// Why DuckDB gave no rows.
enum Failure {
    Raise(Error),
    Plan(String),
    Engine(lake_engine::Error),
}

/// The values that go into the SQL.
type Values = Vec<(pg_sys::Datum, bool, pg_sys::Oid)>;

/// Evaluates the values that go into the SQL.
unsafe fn values(scan: &Scan, node: *mut pg_sys::CustomScanState) -> Result<Values, Failure> {
    let one = |value: &*mut pg_sys::ExprState| {
        // SAFETY: the caller passes the scan's own node, whose begin has prepared the expressions.
        unsafe {
            let evaluate = (**value).evalfunc?;
            let mut is_null = false;
            let datum = evaluate(*value, (*node).ss.ps.ps_ExprContext, &raw mut is_null);
            Some((datum, is_null, pg_sys::exprType((**value).expr.cast::<pg_sys::Node>())))
        }
    };
    if scan.heap_plan.is_null() {
        return Ok(scan.values.iter().filter_map(one).collect());
    }
    // A query without rows never computes them: an error is the heap's to raise. What can be among them holds nothing that an error
    // would have to let go.
    // SAFETY: the context of the call, put back after an error.
    let context = unsafe { pg_sys::CurrentMemoryContext };
    let computed = std::panic::AssertUnwindSafe(|| Some(scan.values.iter().filter_map(one).collect()));
    let computed = pgrx::PgTryBuilder::new(computed)
        .catch_when(PgSqlErrorCode::ERRCODE_QUERY_CANCELED, |cancel| cancel.rethrow())
        .catch_others(|_| None)
        .execute();
    // SAFETY: as above.
    unsafe { pg_sys::MemoryContextSwitchTo(context) };
    computed.ok_or_else(|| Failure::Plan("a value cannot be computed".into()))
}

/// Takes the pin.
unsafe fn pin(scan: &mut Scan, node: *mut pg_sys::CustomScanState) -> Result<(), Failure> {
    // The values of scans that share their statement with others may be those of an outer row, which is not there yet.
    // SAFETY: the caller passes the scan's own node.
    let values = if scan.plan.alone { unsafe { values(scan, node)? } } else { Values::new() };
    let wanted = scan.plan.wanted(|place, scale| {
        let (datum, is_null, oid) = *values.get(place)?;
        // SAFETY: a value of that type.
        unsafe { crate::pruning::values(datum, is_null, oid, scale) }
    });
    let pinned = Pinned::of(&scan.snapshot, &scan.plan.sources, wanted).map_err(|failure| match failure {
        PinFailure::Refused(error) => Failure::Raise(error),
        PinFailure::Unusable(error) => Failure::Engine(error),
    })?;
    scan.pinned = Some(pinned);
    Ok(())
}

unsafe fn lake(scan: &mut Scan, node: *mut pg_sys::CustomScanState) -> Result<(), Failure> {
    // SAFETY: the caller passes the scan's own node.
    unsafe {
        let literal_of = |(datum, is_null, oid)| {
            let element = pg_sys::get_element_type(oid);
            let text = if element == pg_sys::Oid::INVALID {
                literal(datum, is_null, oid).map(|(text, _)| text)
            } else {
                list(datum, is_null, element)
            };
            text.ok_or_else(|| Failure::Plan("a parameter's value does not exist in DuckDB".into()))
        };
        let literals: Vec<String> = values(scan, node)?.into_iter().map(literal_of).collect::<Result<_, _>>()?;
        let Some(pinned) = scan.pinned.as_ref().map(Rc::clone) else {
            return Err(Failure::Plan("the scan has no pin".into()));
        };
        let mut tables = Vec::new();
        let mut scans = Vec::new();
        for table in &scan.plan.tables {
            let (sql, pinned_scan) = pinned.scan(table).map_err(Failure::Plan)?;
            tables.push(sql);
            scans.push(Arc::clone(&pinned_scan));
        }
        let sql = scan.plan.sql.render(&mut |index| tables[index].clone(), &mut |index| literals[index].clone());
        let delivery = if scan.plan.throws { Delivery::Complete } else { Delivery::Streaming };
        let rows = if (*node).ss.ps.instrument.is_null() {
            pinned.engine.query(&sql, delivery, scans)
        } else {
            pinned.engine.observe(&sql, delivery, scans)
        }
        .map_err(Failure::Engine)?;
        if rows.kinds().len() != scan.plan.outputs.len().max(1) {
            return Err(Failure::Plan("DuckDB delivered another number of columns".into()));
        }
        scan.report = Report {
            heap: None,
            lsn: Some(pinned.lsn()),
            files: pinned.files,
            pruned: pinned.pruned,
            bytes: pinned.bytes,
            deleted: pinned.deleted,
            fresh: pinned.fresh,
            freshness: scan.snapshot.freshness().word(),
            wait_ms: u64::try_from(pinned.waited.as_millis()).unwrap_or(u64::MAX),
        };
        scan.answer = Answer::Lake(Box::new(rows));
        scan.batch = Batch::default();
        fetch(scan).map_err(Failure::Engine)
    }
}

/// Why the lake may not be read now, if so. The plan may be older than the transaction, and than the settings.
fn reason_against(plan: &LakePlan) -> Option<&'static str> {
    if planner::uses_xact_snapshot() {
        return Some("the transaction has a snapshot of its own");
    }
    if planner::has_xid() && plan.sources.iter().any(|source| written(pg_sys::Oid::from(*source))) {
        return Some("the transaction has written to the table");
    }
    if plan.utc && !session_is_utc() {
        return Some("its dates are UTC's, and the session's time zone is another now");
    }
    if plan.mixed && settings::freshness() == Freshness::strict {
        return Some("other tables beside it, and lake.freshness is strict");
    }
    None
}

/// Whether this transaction has written to a table. A statement gets a transaction id for other reasons too (CREATE
/// TABLE AS does), so the statistics of the transaction tell; without them, any writing transaction counts.
fn written(table: pg_sys::Oid) -> bool {
    // SAFETY: the entry, if there is one, is this backend's own.
    unsafe {
        if !pg_sys::pgstat_track_counts {
            return true;
        }
        let entry = crate::version::pending_statistics(table);
        !entry.is_null() && !(*entry).trans.is_null()
    }
}

/// Raises what DuckDB failed with.
pub(crate) fn failed(error: &lake_engine::Error) -> ! {
    pgrx::check_for_interrupts!();
    let (kind, message) = match error.kind() {
        ErrorKind::Cancelled => (PgSqlErrorCode::ERRCODE_QUERY_CANCELED, "canceling statement due to user request"),
        ErrorKind::OutOfMemory => (PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY, "the lake's DuckDB is out of memory"),
        _ => (PgSqlErrorCode::ERRCODE_FDW_ERROR, "the lake's DuckDB failed"),
    };
    let raised = Error::new(kind, message).with_detail(error.to_string());
    match error.hint() {
        Some(hint) => raised.with_hint(hint),
        None => raised.with_hint("query the source table"),
    }
    .raise()
}
