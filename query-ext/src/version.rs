//! Where the versions of Postgres differ, as far as this extension touches it, and what pgrx does not know of them: a function for each
//! difference, and no `cfg` elsewhere.

use std::ffi::c_void;

use pgrx::pg_sys;

#[cfg(not(feature = "pg15"))]
use crate::tree;

/// As whom, and which columns of it, a query reads a relation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permissions {
    /// The role whose privileges count; invalid: the current one.
    pub(crate) user: pg_sys::Oid,
    /// The columns that are read, numbered as in `selectedCols`.
    pub(crate) columns: *mut pg_sys::Bitmapset,
}

/// What the query reads of a relation. They are in the range table's entry, and from 16 on beside the range table.
///
/// # Safety
/// `rte` is a relation's entry in the range table of `query`.
pub(crate) unsafe fn permissions(query: *mut pg_sys::Query, rte: *mut pg_sys::RangeTblEntry) -> Permissions {
    // SAFETY: per the contract; an entry without permissions has number 0.
    unsafe {
        #[cfg(feature = "pg15")]
        let (_, of) = (query, rte);
        #[cfg(not(feature = "pg15"))]
        let of = {
            if (*rte).perminfoindex == 0 {
                return Permissions { user: pg_sys::Oid::INVALID, columns: std::ptr::null_mut() };
            }
            pg_sys::getRTEPermissionInfo((*query).rteperminfos, rte)
        };
        Permissions { user: (*of).checkAsUser, columns: (*of).selectedCols }
    }
}

/// Makes the permissions that belong to an entry those for another relation. Called before the entry itself is changed.
///
/// # Safety
/// As [`permissions`].
pub(crate) unsafe fn move_permissions(
    query: *mut pg_sys::Query,
    rte: *mut pg_sys::RangeTblEntry,
    relation: pg_sys::Oid,
) {
    #[cfg(feature = "pg15")]
    let _ = (query, rte, relation);
    #[cfg(not(feature = "pg15"))]
    // SAFETY: per the contract.
    unsafe {
        if (*rte).perminfoindex != 0 {
            (*pg_sys::getRTEPermissionInfo((*query).rteperminfos, rte)).relid = relation;
        }
    }
}

/// Has the executor of one plan lock and check what it would for the entries of another plan that are of these relations.
///
/// # Safety
/// Both are plans of our own.
pub(crate) unsafe fn add_checks(plan: *mut pg_sys::PlannedStmt, of: *mut pg_sys::PlannedStmt, relations: &[u32]) {
    // SAFETY: per the contract; the lists are of entries, and copies of them are added.
    unsafe {
        for rte in crate::tree::items::<pg_sys::RangeTblEntry>((*of).rtable) {
            if (*rte).rtekind == pg_sys::RTEKind::RTE_RELATION && relations.contains(&(*rte).relid.to_u32()) {
                let copy = crate::tree::copy(rte);
                // What it names is in another list, and is added below.
                #[cfg(not(feature = "pg15"))]
                {
                    (*copy).perminfoindex = 0;
                }
                (*plan).rtable = pg_sys::lappend((*plan).rtable, copy.cast());
            }
        }
        #[cfg(not(feature = "pg15"))]
        for permissions in tree::items::<pg_sys::RTEPermissionInfo>((*of).permInfos) {
            if relations.contains(&(*permissions).relid.to_u32()) {
                (*plan).permInfos = pg_sys::lappend((*plan).permInfos, tree::copy(permissions).cast());
            }
        }
    }
}

/// An expression of a query without the variables that only stand for expressions: columns of joins, and from 18 on of
/// GROUP BY.
///
/// # Safety
/// `node` is an expression of `query`, or a list of them.
pub(crate) unsafe fn flattened(query: *mut pg_sys::Query, node: *mut pg_sys::Node) -> *mut pg_sys::Node {
    // SAFETY: per the contract; without a planner's state neither looks for one, as ruleutils.c relies on.
    unsafe {
        #[cfg(feature = "pg15")]
        return pg_sys::flatten_join_alias_vars(query, node);
        #[cfg(not(feature = "pg15"))]
        {
            let none = std::ptr::null_mut();
            #[cfg(feature = "pg18")]
            let node = if (*query).hasGroupRTE { pg_sys::flatten_group_exprs(none, query, node) } else { node };
            pg_sys::flatten_join_alias_vars(none, query, node)
        }
    }
}

/// The grouping sets of a query, ROLLUP and CUBE written out: numbers of its targets. `None`: too many.
///
/// # Safety
/// `query` has grouping sets.
pub(crate) unsafe fn grouping_sets(query: *mut pg_sys::Query, most: i32) -> Option<Vec<Vec<i32>>> {
    unsafe extern "C-unwind" {
        fn expand_grouping_sets(sets: *mut pg_sys::List, distinct: bool, limit: i32) -> *mut pg_sys::List;
    }
    // SAFETY: an exported function of the server, whose errors the guard turns into panics; it gives a list of lists of numbers,
    // or none past the limit.
    unsafe {
        let (sets, distinct) = ((*query).groupingSets, (*query).groupDistinct);
        let sets = pg_sys::ffi::pg_guard_ffi_boundary(|| expand_grouping_sets(sets, distinct, most));
        let numbers = |set| crate::tree::integers(set);
        (!sets.is_null()).then(|| crate::tree::items::<pg_sys::List>(sets).into_iter().map(numbers).collect())
    }
}

/// Whether tables inherit from this one now.
///
/// # Safety
/// On the main thread, in a transaction.
pub(crate) unsafe fn has_children(relation: pg_sys::Oid) -> bool {
    unsafe extern "C-unwind" {
        fn find_inheritance_children(parent: pg_sys::Oid, lock: i32) -> *mut pg_sys::List;
    }
    // SAFETY: an exported function of the server, whose errors the guard turns into panics; without a lock it only looks.
    unsafe { !pg_sys::ffi::pg_guard_ffi_boundary(|| find_inheritance_children(relation, 0)).is_null() }
}

type Mutator = unsafe extern "C-unwind" fn(*mut pg_sys::Node, *mut c_void) -> *mut pg_sys::Node;

/// `expression_tree_mutator`.
///
/// # Safety
/// As for Postgres's own.
pub(crate) unsafe fn mutated(node: *mut pg_sys::Node, with: Mutator, context: *mut c_void) -> *mut pg_sys::Node {
    #[cfg(feature = "pg15")]
    // SAFETY: the header declares the callback without a prototype; Postgres calls it with these two arguments.
    let with = unsafe { std::mem::transmute::<Mutator, unsafe extern "C-unwind" fn() -> *mut pg_sys::Node>(with) };
    // SAFETY: per the contract.
    unsafe { pg_sys::expression_tree_mutator(node, Some(with), context) }
}

/// Whether a collation that exists compares bytes.
///
/// # Safety
/// On the main thread, in a transaction.
pub(crate) unsafe fn collates_bytes(collation: pg_sys::Oid) -> bool {
    #[cfg(not(feature = "pg18"))]
    {
        unsafe extern "C-unwind" {
            fn lc_collate_is_c(collation: pg_sys::Oid) -> bool;
        }
        // SAFETY: an exported function of the server, whose errors the guard turns into panics.
        unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| lc_collate_is_c(collation)) }
    }
    #[cfg(feature = "pg18")]
    {
        /// The beginning of `pg_locale_struct` (utils/pg_locale.h).
        #[repr(C)]
        struct Locale {
            provider: std::ffi::c_char,
            deterministic: bool,
            collate_is_c: bool,
        }
        unsafe extern "C-unwind" {
            fn pg_newlocale_from_collation(collation: pg_sys::Oid) -> *const Locale;
        }
        // SAFETY: as above; what it returns lives as long as the backend.
        unsafe { (*pg_sys::ffi::pg_guard_ffi_boundary(|| pg_newlocale_from_collation(collation))).collate_is_c }
    }
}

/// What this backend has counted of a table and not reported yet, with its changes of the running transaction; null: nothing.
///
/// # Safety
/// On the main thread.
pub(crate) unsafe fn pending_statistics(table: pg_sys::Oid) -> *mut pg_sys::PgStat_TableStatus {
    #[cfg(feature = "pg15")]
    // SAFETY: per the contract.
    unsafe {
        pg_sys::find_tabstat_entry(table)
    }
    // From 16 on that gives a copy, without the running transaction.
    #[cfg(not(feature = "pg15"))]
    {
        /// `PgStat_EntryRef` (utils/pgstat_internal.h).
        #[repr(C)]
        struct EntryRef {
            shared_entry: *mut c_void,
            shared_stats: *mut c_void,
            generation: u32,
            pending: *mut c_void,
        }
        #[cfg(feature = "pg18")]
        type ObjectId = u64;
        #[cfg(not(feature = "pg18"))]
        type ObjectId = u32;
        const RELATION: u32 = 2;
        unsafe extern "C-unwind" {
            fn pgstat_fetch_pending_entry(kind: u32, database: pg_sys::Oid, object: ObjectId) -> *const EntryRef;
        }
        // SAFETY: an exported function of the server, whose errors the guard turns into panics; what is pending of a relation
        // is a PgStat_TableStatus.
        unsafe {
            let database = pg_sys::MyDatabaseId;
            let object = ObjectId::from(table.to_u32());
            let entry = pg_sys::ffi::pg_guard_ffi_boundary(|| pgstat_fetch_pending_entry(RELATION, database, object));
            if entry.is_null() { std::ptr::null_mut() } else { (*entry).pending.cast() }
        }
    }
}
