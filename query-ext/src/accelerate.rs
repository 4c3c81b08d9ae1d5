//! Queries on the sources' own names, answered from the lake when that pays.
//!
//! The query is planned as ever: that plan has the privileges, locks and invalidation, and its cost tells whether the lake is
//! worth it. Then a copy of the query, its tables swapped for their markers, is offered to DuckDB whole; the plan stays beside it, and
//! answers when the lake cannot: late, down or failing, before the first row. A query that does not go whole is the heap's.
//!
//! Invariant: what comes back is what the plan would have given. Policies, and filters of views that are barriers, are not
//! moved: such a query is the heap's.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use pgrx::prelude::*;

use crate::marker::{self, Marker, Relations};
use crate::planner::{Call, heap_reason, keep_valid, scroll};
use crate::settings::{self, Accelerate};
use crate::whole::Whole;
use crate::{tree, version};

thread_local! {
    /// Markers by their sources, as long as no foreign table has changed.
    static MARKERS: RefCell<Option<HashMap<u32, u32>>> = const { RefCell::new(None) };
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

/// Plans a query without markers; `None`: it is none of the lake's business.
///
/// # Safety
/// `query` is the query of a planner's call.
pub(crate) unsafe fn plan(query: *mut pg_sys::Query, call: &Call) -> Option<*mut pg_sys::PlannedStmt> {
    // SAFETY: per the contract; every planner run gets a copy, because it scribbles on its input.
    unsafe {
        let accelerate = settings::accelerate();
        // A cursor shows the rows of when it was declared, however late they are fetched.
        let is_cursor = call.options & pg_sys::CURSOR_OPT_FAST_PLAN.cast_signed() != 0;
        if accelerate == Accelerate::off || (*query).commandType != pg_sys::CmdType::CMD_SELECT || is_cursor {
            return None;
        }
        // Most statements that read other tables are told by their first look, without a copy.
        let is_other = |rte: *mut pg_sys::RangeTblEntry| {
            (*rte).rtekind == pg_sys::RTEKind::RTE_RELATION
                && (*rte).relkind.cast_unsigned() != pg_sys::RELKIND_VIEW
                && markers_by_source((*rte).relid.to_u32()).is_none()
        };
        if tree::items((*query).rtable).into_iter().any(is_other) {
            return None;
        }
        let swapped = tree::copy(query);
        let relations = swap(swapped)?;
        if let Some(reason) = heap_reason(&relations) {
            pgrx::debug1!("lake: the heap answers: {reason}");
            return None;
        }
        let heap = call.plan(tree::copy(query));
        if accelerate == Accelerate::on && (*(*heap).planTree).total_cost < settings::accelerate_cost() {
            return Some(heap);
        }
        let sources: Vec<u32> =
            relations.markers.iter().map(|marker| marker::source_of((*marker.rte).relid).to_u32()).collect();
        match Whole::split(swapped, &sources, call.params) {
            Ok(whole) => {
                let stmt = if whole.limits() {
                    let unlimited = tree::copy(query);
                    (*unlimited).limitCount = std::ptr::null_mut();
                    (*unlimited).limitOffset = std::ptr::null_mut();
                    call.plan(unlimited)
                } else {
                    heap
                };
                keep_valid(stmt, &relations, &sources);
                whole.transparent().install(stmt);
                scroll(stmt, call.options);
                Some(stmt)
            }
            Err(reason) => {
                pgrx::debug1!("lake: the heap answers: {}", reason.0);
                Some(heap)
            }
        }
    }
}

/// Swaps all tables of a query for their markers. `None`: one has none, or is read in a way that a mirror is not.
unsafe fn swap(query: *mut pg_sys::Query) -> Option<Relations> {
    // SAFETY: the caller passes a query tree of our own.
    unsafe {
        let mut relations = Relations { writes: (*query).hasModifyingCTE, ..Relations::default() };
        let mut fits = true;
        marker::each_query(query, &mut |query| {
            relations.writes |= !(*query).rowMarks.is_null();
            for rte in tree::items::<pg_sys::RangeTblEntry>((*query).rtable) {
                match (*rte).rtekind {
                    pg_sys::RTEKind::RTE_RELATION if (*rte).relkind.cast_unsigned() == pg_sys::RELKIND_VIEW => {}
                    pg_sys::RTEKind::RTE_RELATION => match mirror(query, rte) {
                        Some(marker) => relations.markers.push(marker),
                        None => fits = false,
                    },
                    pg_sys::RTEKind::RTE_SUBQUERY => fits &= !(*rte).security_barrier,
                    _ => {}
                }
            }
        });
        (fits && !relations.markers.is_empty()).then_some(relations)
    }
}

/// Makes a table's entry that of its marker.
unsafe fn mirror(query: *mut pg_sys::Query, rte: *mut pg_sys::RangeTblEntry) -> Option<Marker> {
    // SAFETY: the caller passes an entry of the query.
    unsafe {
        let plain = (*rte).relkind.cast_unsigned() == pg_sys::RELKIND_RELATION
            && (*rte).securityQuals.is_null()
            && !((*rte).inh && has_children((*rte).relid));
        let relation = markers_by_source((*rte).relid.to_u32()).filter(|_| plain)?;
        let marker = Marker { rte, query };
        let source = (*rte).relid;
        version::move_permissions(query, rte, pg_sys::Oid::from(relation));
        (*rte).relid = pg_sys::Oid::from(relation);
        (*rte).relkind = pg_sys::RELKIND_FOREIGN_TABLE.cast_signed();
        marker::changed_column(marker, source).is_none().then_some(marker)
    }
}

/// Whether tables inherit from this one: a mirror has its own rows only.
unsafe fn has_children(relation: pg_sys::Oid) -> bool {
    // SAFETY: a lookup in the catalog, which is released.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID.cast_signed(), relation.into());
        if tuple.is_null() {
            return true;
        }
        let had = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>()).relhassubclass;
        pg_sys::ReleaseSysCache(tuple);
        // Once it had one, it is said to have until somebody looks.
        had && version::has_children(relation)
    }
}

/// The marker of a source.
unsafe fn markers_by_source(source: u32) -> Option<u32> {
    // SAFETY: the callback lives as long as the library, which is as long as the backend.
    unsafe {
        if !WATCHED.replace(true) {
            let cache = pg_sys::SysCacheIdentifier::FOREIGNTABLEREL.cast_signed();
            pg_sys::CacheRegisterSyscacheCallback(cache, Some(forget), pg_sys::Datum::from(0));
        }
        let known = MARKERS.with_borrow(|markers| markers.as_ref().map(|markers| markers.get(&source).copied()));
        known.unwrap_or_else(|| {
            let all = all_markers();
            let found = all.get(&source).copied();
            MARKERS.set(Some(all));
            found
        })
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn forget(_arg: pg_sys::Datum, _cache: i32, _hash: u32) {
    MARKERS.set(None);
}

/// All foreign tables of the server `lake`, by their sources.
unsafe fn all_markers() -> HashMap<u32, u32> {
    // SAFETY: a scan of a catalog, in a transaction; each tuple is looked at before the next one is fetched.
    unsafe {
        let mut markers = HashMap::new();
        let server = pg_sys::GetForeignServerByName(c"lake".as_ptr(), true);
        if server.is_null() {
            return markers;
        }
        let mode = pg_sys::AccessShareLock.cast_signed();
        let catalog = pg_sys::table_open(pg_sys::ForeignTableRelationId, mode);
        let none = pg_sys::Oid::INVALID;
        let scan = pg_sys::systable_beginscan(catalog, none, false, std::ptr::null_mut(), 0, std::ptr::null_mut());
        let mut relations = Vec::new();
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_foreign_table>();
            if form.ftserver == (*server).serverid {
                relations.push(form.ftrelid);
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(catalog, mode);
        for relation in relations {
            if let Some(source) = marker::recorded_source(relation) {
                markers.insert(source, relation.to_u32());
            }
        }
        markers
    }
}
