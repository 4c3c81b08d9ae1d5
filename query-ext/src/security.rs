//! Row-level security of the sources.
//!
//! Invariant: a policy that applies to the user is part of the query, or the query fails. A marker whose source has
//! policies in force is swapped for the source right after analysis, so that the rewriter adds them and the heap
//! answers. One that comes out of a view is seen by the planner only, when the rewriter is done: it is refused.

use pgrx::prelude::*;

use crate::error::Error;
use crate::marker::{self, Marker};
use crate::planner::swap_entry;

/// `check_enable_rls` says that policies are in force.
const RLS_ENABLED: i32 = 2;

static mut PREVIOUS: pg_sys::post_parse_analyze_hook_type = None;

/// Puts the hook in place.
pub(crate) fn install() {
    // SAFETY: called once by the postmaster, which has one thread.
    unsafe {
        PREVIOUS = pg_sys::post_parse_analyze_hook;
        pg_sys::post_parse_analyze_hook = Some(analyzed);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn analyzed(
    state: *mut pg_sys::ParseState,
    query: *mut pg_sys::Query,
    jumble: *mut pg_sys::JumbleState,
) {
    // SAFETY: called by Postgres with an analyzed query.
    unsafe {
        if (*query).commandType != pg_sys::CmdType::CMD_UTILITY && marker::any_marker(query) {
            let relations = marker::collect(query);
            if relations.target.is_none() {
                for marker in relations.markers {
                    let source = marker::source_of((*marker.rte).relid);
                    if pg_sys::check_enable_rls(source, marker.permissions().user, false) == RLS_ENABLED {
                        pg_sys::LockRelationOid(source, (*marker.rte).rellockmode);
                        marker::check_columns(marker, source);
                        swap_entry(marker);
                    }
                }
            }
        }
        if let Some(previous) = PREVIOUS {
            previous(state, query, jumble);
        }
    }
}

/// Refuses a marker that reached the planner although its source has policies in force.
///
/// # Safety
/// `source` is the marker's source.
pub(crate) unsafe fn refuse_policies(marker: Marker, source: pg_sys::Oid) {
    // SAFETY: per the contract.
    if unsafe { pg_sys::check_enable_rls(source, marker.permissions().user, false) } == RLS_ENABLED {
        // SAFETY: per the contract.
        let name = marker::name_of(unsafe { (*marker.rte).relid });
        Error::unsupported(format!(
            "lake.{name} cannot be read through a view or function: its source has row-level security"
        ))
        .with_hint("let the view read the source table")
        .raise();
    }
}
