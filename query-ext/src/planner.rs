//! The planner hook: who answers a query on `lake.<table>`.
//!
//! A query without a marker costs one look at its range table. One with markers is planned against the sources first;
//! that plan carries the privileges, the locks and the invalidation, and answers whatever the lake may not: statements
//! that write or lock, that read other tables too (two snapshots would not be one: only where lake.freshness allows older rows
//! anyway are the scans of the lake sent), transactions with a snapshot of their own or with writes of their own.

use std::cell::RefCell;
use std::ffi::c_char;

use pgrx::prelude::*;

use crate::deparse::NotSent;
use crate::error::Error;
use crate::marker::{self, Marker, Relations};
use crate::settings::{self, Freshness};
use crate::whole::Whole;
use crate::{tree, version};

/// UTF-8, as `pg_enc` numbers it.
const PG_UTF8: i32 = 6;

static mut PREVIOUS: pg_sys::planner_hook_type = None;

thread_local! {
    /// The statements being planned scan by scan, innermost last.
    static PLANNING: RefCell<Vec<ByScans>> = const { RefCell::new(Vec::new()) };
}

/// A statement that is planned scan by scan.
#[derive(Clone)]
pub(crate) struct ByScans {
    /// Its sources.
    pub(crate) sources: Vec<u32>,
    /// Why it does not go to DuckDB whole.
    pub(crate) reason: String,
    /// Whether it reads other tables too.
    pub(crate) mixed: bool,
}

/// The statement whose scans are being planned.
pub(crate) fn planning() -> Option<ByScans> {
    PLANNING.with_borrow(|stack| stack.last().cloned())
}

/// Puts the hook in place.
pub(crate) fn install() {
    // SAFETY: called once by the postmaster, which has one thread.
    unsafe {
        PREVIOUS = pg_sys::planner_hook;
        pg_sys::planner_hook = Some(plan);
    }
}

unsafe fn next(
    query: *mut pg_sys::Query,
    text: *const c_char,
    options: i32,
    params: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: the arguments of the hook are passed on.
    unsafe {
        match PREVIOUS {
            Some(previous) => previous(query, text, options, params),
            None => pg_sys::standard_planner(query, text, options, params),
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn plan(
    query: *mut pg_sys::Query,
    text: *const c_char,
    options: i32,
    params: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: called by Postgres with a query to plan.
    unsafe {
        if !marker::any_marker(query) {
            // Within a statement that is planned scan by scan, another one is none of its business.
            let hidden = PLANNING.take();
            let guard = Restore(hidden);
            let accelerated = crate::accelerate::plan(query, &Call { text, options, params });
            let stmt = accelerated.unwrap_or_else(|| next(query, text, options, params));
            drop(guard);
            return stmt;
        }
        plan_markers(query, &Call { text, options, params })
    }
}

/// Puts the stack back, whatever happens.
struct Restore(Vec<ByScans>);

impl Drop for Restore {
    fn drop(&mut self) {
        PLANNING.set(std::mem::take(&mut self.0));
    }
}

/// The hook's other arguments.
pub(crate) struct Call {
    text: *const c_char,
    /// `CURSOR_OPT_…`.
    pub(crate) options: i32,
    /// Parameters that the plan is for.
    pub(crate) params: pg_sys::ParamListInfo,
}

impl Call {
    /// The plan of the next planner.
    ///
    /// # Safety
    /// `query` is a query tree of our own.
    pub(crate) unsafe fn plan(&self, query: *mut pg_sys::Query) -> *mut pg_sys::PlannedStmt {
        // SAFETY: the caller passes a query of our own.
        unsafe { next(query, self.text, self.options, self.params) }
    }
}

unsafe fn plan_markers(query: *mut pg_sys::Query, call: &Call) -> *mut pg_sys::PlannedStmt {
    // SAFETY: the caller passes the query to plan; every planner run gets a copy, because it scribbles on its input.
    unsafe {
        let relations = marker::collect(query);
        if let Some(target) = relations.target {
            Error::unsupported(format!("lake.{} is read-only", marker::name_of(target)))
                .with_hint("write to the source table; the mirror follows")
                .raise();
        }
        let mut sources: Vec<u32> = Vec::new();
        for marker in &relations.markers {
            let source = marker::source_of((*marker.rte).relid);
            pg_sys::LockRelationOid(source, (*marker.rte).rellockmode);
            marker::check_columns(*marker, source);
            crate::security::refuse_policies(*marker, source);
            if !sources.contains(&source.to_u32()) {
                sources.push(source.to_u32());
            }
        }
        let heap_query = tree::copy(query);
        swap(heap_query);
        let heap = call.plan(tree::copy(heap_query));
        keep_valid(heap, &relations, &sources);
        if let Some(reason) = heap_reason(&relations) {
            pgrx::debug1!("lake: the heap answers: {reason}");
            return heap;
        }
        let mixed = relations.others;
        let split = if mixed {
            NotSent::because("the statement reads other tables too")
        } else {
            Whole::split(tree::copy(query), &sources, call.params)
        };
        let reason = match split {
            Ok(whole) => {
                let stmt = if whole.limits() {
                    (*heap_query).limitCount = std::ptr::null_mut();
                    (*heap_query).limitOffset = std::ptr::null_mut();
                    let unlimited = call.plan(heap_query);
                    keep_valid(unlimited, &relations, &sources);
                    unlimited
                } else {
                    heap
                };
                whole.install(stmt);
                scroll(stmt, call.options);
                return stmt;
            }
            Err(reason) => reason.0,
        };
        pgrx::debug1!("lake: the scans alone are sent: {reason}");
        if uses_system_columns(&relations) {
            return heap;
        }
        let before = PLANNING.with_borrow(Vec::clone);
        PLANNING.with_borrow_mut(|stack| stack.push(ByScans { sources: sources.clone(), reason, mixed }));
        let guard = Restore(before);
        let scans = call.plan(query);
        drop(guard);
        // The executor checks privileges on the range table: the sources' entries of the heap's plan do it.
        version::add_checks(scans, heap, &sources);
        keep_valid(scans, &relations, &sources);
        scans
    }
}

/// Makes a marker's entries those of its source.
unsafe fn swap(query: *mut pg_sys::Query) {
    // SAFETY: the caller passes a query tree of our own.
    unsafe {
        for marker in marker::collect(query).markers {
            swap_entry(marker);
        }
    }
}

/// Makes one entry that of the marker's source.
///
/// # Safety
/// The marker is of a query tree of our own.
pub(crate) unsafe fn swap_entry(marker: Marker) {
    // SAFETY: per the contract.
    unsafe {
        let rte = marker.rte;
        let source = marker::source_of((*rte).relid);
        version::move_permissions(marker.query, rte, source);
        (*rte).relid = source;
        (*rte).relkind = pg_sys::get_rel_relkind(source);
        // A mirror of a table holds the rows of that table, not those of its children.
        (*rte).inh &= (*rte).relkind.cast_unsigned() == pg_sys::RELKIND_PARTITIONED_TABLE;
    }
}

/// What the plan depends on, besides what the planner noted.
///
/// # Safety
/// `stmt` is a plan of our own.
pub(crate) unsafe fn keep_valid(stmt: *mut pg_sys::PlannedStmt, relations: &Relations, sources: &[u32]) {
    // SAFETY: the caller passes a plan of our own and the query's markers.
    unsafe {
        for marker in &relations.markers {
            (*stmt).relationOids = pg_sys::lappend_oid((*stmt).relationOids, (*marker.rte).relid);
        }
        for source in sources {
            (*stmt).relationOids = pg_sys::lappend_oid((*stmt).relationOids, pg_sys::Oid::from(*source));
        }
        (*stmt).dependsOnRole = true;
    }
}

/// Why the heap has to answer, if it has to.
///
/// # Safety
/// On the main thread, in a transaction.
pub(crate) unsafe fn heap_reason(relations: &Relations) -> Option<&'static str> {
    // SAFETY: plain looks at the state of the transaction and the server.
    unsafe {
        [
            (!settings::pushdown(), "lake.pushdown is off"),
            (relations.writes, "the statement writes or locks rows"),
            (relations.others && settings::freshness() == Freshness::strict, "the statement reads other tables too"),
            (uses_xact_snapshot(), "the transaction has a snapshot of its own"),
            (has_xid(), "the transaction has written"),
            (pg_sys::RecoveryInProgress(), "the server is a standby"),
            (pg_sys::GetDatabaseEncoding() != PG_UTF8, "the database's encoding is not UTF-8"),
        ]
        .into_iter()
        .find_map(|(holds, reason)| holds.then_some(reason))
    }
}

/// Whether the transaction reads from one snapshot (REPEATABLE READ or SERIALIZABLE).
pub(crate) fn uses_xact_snapshot() -> bool {
    // SAFETY: a plain variable of the main thread.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ.cast_signed() }
}

/// Whether the transaction may have written.
pub(crate) fn has_xid() -> bool {
    // SAFETY: a plain look.
    unsafe { pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId }
}

unsafe fn uses_system_columns(relations: &Relations) -> bool {
    relations.markers.iter().any(|marker| {
        // SAFETY: entries of the query; members of a bitmap come in order, so the first tells.
        unsafe {
            let first = pg_sys::bms_next_member(marker.permissions().columns, -1);
            first >= 0 && first + pg_sys::FirstLowInvalidHeapAttributeNumber < 0
        }
    })
}

/// A scrollable cursor needs to go back: the rows are kept.
///
/// # Safety
/// `stmt` is a finished plan of our own.
pub(crate) unsafe fn scroll(stmt: *mut pg_sys::PlannedStmt, options: i32) {
    // SAFETY: the caller passes a finished plan.
    unsafe {
        if options & pg_sys::CURSOR_OPT_SCROLL.cast_signed() != 0 && !pg_sys::ExecSupportsBackwardScan((*stmt).planTree)
        {
            (*stmt).planTree = pg_sys::materialize_finished_plan((*stmt).planTree);
        }
    }
}
