//! The plan node LakeScan: what the executor calls.
//!
//! Invariant: what Postgres does not know of (rows of DuckDB, the worker's lease) is freed with the node's memory context,
//! so an error frees it as the end of the node does.

use pgrx::prelude::*;

use crate::answer::{self, Answer, Batch, Scan};
use crate::lake_plan::LakePlan;
use crate::snapshot::Snapshot;
use crate::tree;

struct ScanMethods(pg_sys::CustomScanMethods);
// SAFETY: constant pointers to constant text and functions.
unsafe impl Sync for ScanMethods {}
struct ExecMethods(pg_sys::CustomExecMethods);
// SAFETY: as above.
unsafe impl Sync for ExecMethods {}

static SCAN_METHODS: ScanMethods =
    ScanMethods(pg_sys::CustomScanMethods { CustomName: c"LakeScan".as_ptr(), CreateCustomScanState: Some(create) });

static EXEC_METHODS: ExecMethods = ExecMethods(pg_sys::CustomExecMethods {
    CustomName: c"LakeScan".as_ptr(),
    BeginCustomScan: Some(begin),
    ExecCustomScan: Some(execute),
    EndCustomScan: Some(end),
    ReScanCustomScan: Some(rescan),
    MarkPosCustomScan: None,
    RestrPosCustomScan: None,
    EstimateDSMCustomScan: None,
    InitializeDSMCustomScan: None,
    ReInitializeDSMCustomScan: None,
    InitializeWorkerCustomScan: None,
    ShutdownCustomScan: None,
    ExplainCustomScan: Some(explain),
});

/// Makes the node's methods known, for plans that are read back from text.
pub(crate) fn register() {
    // SAFETY: called once by the postmaster; the struct is static.
    unsafe { pg_sys::RegisterCustomScanMethods(scan_methods()) };
}

/// The methods of a LakeScan.
pub(crate) fn scan_methods() -> *const pg_sys::CustomScanMethods {
    &raw const SCAN_METHODS.0
}

/// The node's state; Postgres sees the part that it knows.
#[repr(C)]
struct LakeScanState {
    custom: pg_sys::CustomScanState,
    /// A `Box<Scan>`, freed at the end of the node or of its memory context.
    scan: *mut Scan,
}

#[pg_guard]
unsafe extern "C-unwind" fn create(_scan: *mut pg_sys::CustomScan) -> *mut pg_sys::Node {
    // SAFETY: zeroes are a valid state.
    unsafe {
        let state = tree::make::<LakeScanState>(pg_sys::NodeTag::T_CustomScanState);
        (*state).custom.methods = &raw const EXEC_METHODS.0;
        state.cast()
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn begin(node: *mut pg_sys::CustomScanState, estate: *mut pg_sys::EState, flags: i32) {
    // SAFETY: called by the executor with a state of `create`; what is allocated lives in the query's context.
    unsafe {
        let state = node.cast::<LakeScanState>();
        let custom = (*node).ss.ps.plan.cast::<pg_sys::CustomScan>();
        let values = tree::items::<pg_sys::Expr>((*custom).custom_exprs)
            .into_iter()
            .map(|value| pg_sys::ExecInitExpr(value, node.cast()))
            .collect();
        let heap_plan = tree::items::<pg_sys::Plan>((*custom).custom_plans).first().copied();
        let scan = Box::new(Scan {
            plan: LakePlan::from_private((*custom).custom_private),
            values,
            heap_plan: heap_plan.unwrap_or(std::ptr::null_mut()),
            heap: std::ptr::null_mut(),
            flags,
            memory: pg_sys::AllocSetContextCreateInternal(
                (*estate).es_query_cxt,
                c"LakeScan rows".as_ptr(),
                0,
                8 << 10,
                8 << 20,
            ),
            snapshot: Snapshot::of(estate),
            answer: Answer::None,
            batch: Batch::default(),
            pinned: None,
            report: answer::Report::default(),
        });
        (*state).scan = Box::into_raw(scan);
        let callback =
            pg_sys::MemoryContextAllocZero((*estate).es_query_cxt, size_of::<pg_sys::MemoryContextCallback>())
                .cast::<pg_sys::MemoryContextCallback>();
        (*callback).func = Some(release);
        (*callback).arg = state.cast();
        pg_sys::MemoryContextRegisterResetCallback((*estate).es_query_cxt, callback);
        if flags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY.cast_signed() == 0 {
            // Now, as the snapshot was taken now: the rows of a cursor are fetched later.
            answer::prepare(&mut *(*state).scan, node);
        }
    }
}

/// Frees what Postgres does not know of, at an error as well as at the end.
#[pg_guard]
unsafe extern "C-unwind" fn release(state: *mut std::ffi::c_void) {
    // SAFETY: the state lives in the context whose reset calls this, and memory is freed after the callbacks.
    unsafe {
        let state = state.cast::<LakeScanState>();
        let scan = std::mem::replace(&mut (*state).scan, std::ptr::null_mut());
        if !scan.is_null() {
            drop(Box::from_raw(scan));
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn end(node: *mut pg_sys::CustomScanState) {
    // SAFETY: called by the executor with a begun state.
    unsafe {
        let state = node.cast::<LakeScanState>();
        if !(*state).scan.is_null() && !(*(*state).scan).heap.is_null() {
            pg_sys::ExecEndNode((*(*state).scan).heap);
        }
        release(state.cast());
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn rescan(node: *mut pg_sys::CustomScanState) {
    // SAFETY: called by the executor with a begun state.
    unsafe {
        let scan = &mut *(*node.cast::<LakeScanState>()).scan;
        pg_sys::ExecScanReScan(&raw mut (*node).ss);
        scan.batch = Batch::default();
        if matches!(scan.answer, Answer::Heap) {
            pg_sys::ExecReScan(scan.heap);
        } else {
            // The pin stays: a statement reads one state, however often it looks.
            scan.answer = Answer::None;
        }
    }
}

/// The next row. One that is converted already is handed out here, without the guard against panics that a call out of Rust
/// has: it costs as much as the row, and nothing here can panic.
unsafe extern "C-unwind" fn execute(node: *mut pg_sys::CustomScanState) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: called by the executor with a begun state; a batch has rows only while DuckDB answers.
    unsafe {
        let state = &mut (*node).ss;
        let scan = &mut *(*node.cast::<LakeScanState>()).scan;
        if scan.batch.next < scan.batch.rows && state.ps.qual.is_null() && state.ps.ps_ProjInfo.is_null() {
            // Nothing is done to the rows.
            clear(state.ss_ScanTupleSlot);
            place(scan, state.ss_ScanTupleSlot);
            return state.ss_ScanTupleSlot;
        }
        execute_guarded(node)
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn execute_guarded(node: *mut pg_sys::CustomScanState) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: called by the executor with a begun state.
    unsafe {
        let scan = &mut *(*node.cast::<LakeScanState>()).scan;
        if matches!(scan.answer, Answer::None) {
            answer::start(scan, node);
        }
        if matches!(scan.answer, Answer::Heap) {
            return heap_row(scan.heap, (*node).ss.ps.ps_ResultTupleSlot);
        }
        if (*node).ss.ps.qual.is_null() && (*node).ss.ps.ps_ProjInfo.is_null() {
            return row(&raw mut (*node).ss);
        }
        pg_sys::ExecScan(&raw mut (*node).ss, Some(next_row), Some(recheck))
    }
}

/// A row of the plan against the source, in the slot that the node's parent expects.
unsafe fn heap_row(heap: *mut pg_sys::PlanState, result: *mut pg_sys::TupleTableSlot) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: the caller passes an initialized plan state and a virtual slot of as many columns.
    unsafe {
        if !(*heap).chgParam.is_null() {
            pg_sys::ExecReScan(heap);
        }
        let Some(run) = (*heap).ExecProcNode else { return std::ptr::null_mut() };
        let slot = run(heap);
        clear(result);
        if slot.is_null() || u32::from((*slot).tts_flags) & pg_sys::TTS_FLAG_EMPTY != 0 {
            return std::ptr::null_mut();
        }
        let all = (*(*slot).tts_tupleDescriptor).natts;
        if i32::from((*slot).tts_nvalid) < all {
            pg_sys::slot_getsomeattrs_int(slot, all);
        }
        let columns = usize::try_from((*(*result).tts_tupleDescriptor).natts).unwrap_or(0);
        (*result).tts_values.copy_from_nonoverlapping((*slot).tts_values, columns);
        (*result).tts_isnull.copy_from_nonoverlapping((*slot).tts_isnull, columns);
        pg_sys::ExecStoreVirtualTuple(result)
    }
}

/// Empties a slot.
unsafe fn clear(slot: *mut pg_sys::TupleTableSlot) {
    // SAFETY: the caller passes a slot; every kind of slot can be cleared.
    unsafe {
        if let Some(clear) = (*(*slot).tts_ops).clear {
            clear(slot);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn recheck(_node: *mut pg_sys::ScanState, _slot: *mut pg_sys::TupleTableSlot) -> bool {
    true
}

#[pg_guard]
unsafe extern "C-unwind" fn next_row(node: *mut pg_sys::ScanState) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: called by ExecScan with the state of a node that DuckDB answers.
    unsafe { row(node) }
}

/// The next row, in the scan's slot.
unsafe fn row(node: *mut pg_sys::ScanState) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: the caller passes the state of a node that DuckDB answers; the slot has a place for each output.
    unsafe {
        let scan = &mut *(*node.cast::<LakeScanState>()).scan;
        let slot = (*node).ss_ScanTupleSlot;
        clear(slot);
        if scan.batch.next == scan.batch.rows {
            if let Err(error) = answer::fetch(scan) {
                answer::failed(&error);
            }
            if scan.batch.rows == 0 {
                return slot;
            }
        }
        place(scan, slot);
        slot
    }
}

/// Puts the next row of the batch into a slot that is empty.
///
/// # Safety
/// The batch has a row, and the slot is virtual with a place for each output.
unsafe fn place(scan: &mut Scan, slot: *mut pg_sys::TupleTableSlot) {
    let Batch { values, nulls, rows, next, .. } = &mut scan.batch;
    // SAFETY: a batch has `rows` values and as many flags for each output.
    unsafe {
        let all = (*(*slot).tts_tupleDescriptor).natts;
        if usize::try_from(all) != Ok(scan.plan.outputs.len()) {
            (*slot).tts_isnull.write_bytes(1, usize::try_from(all).unwrap_or(0));
        }
        let (mut value, mut null) = (values.as_ptr().add(*next), nulls.as_ptr().add(*next));
        for output in &scan.plan.outputs {
            *(*slot).tts_values.add(output.place) = *value;
            *(*slot).tts_isnull.add(output.place) = *null;
            (value, null) = (value.wrapping_add(*rows), null.wrapping_add(*rows));
        }
        *next += 1;
        // As ExecStoreVirtualTuple, without the cost of a call out of Rust for each row.
        #[expect(clippy::cast_possible_truncation, reason = "a flag of the lowest bits")]
        let empty = pg_sys::TTS_FLAG_EMPTY as u16;
        (*slot).tts_flags &= !empty;
        (*slot).tts_nvalid = i16::try_from(all).unwrap_or(i16::MAX);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn explain(
    node: *mut pg_sys::CustomScanState,
    _ancestors: *mut pg_sys::List,
    state: *mut pg_sys::ExplainState,
) {
    // SAFETY: called by EXPLAIN with a begun state.
    unsafe {
        let scan = &*(*node.cast::<LakeScanState>()).scan;
        let report = !matches!(scan.answer, Answer::None);
        let peak = if let Answer::Lake(rows) = &scan.answer { rows.peak() } else { None };
        crate::explain::write(&scan.plan, report.then_some(&scan.report), peak, state);
    }
}
