//! Markers: the foreign tables `lake.<name>`, and the source tables behind them.

use std::ffi::CStr;

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use crate::error::Error;
use crate::tree;
use crate::version::{self, Permissions};

/// A marker in a query.
#[derive(Clone, Copy)]
pub(crate) struct Marker {
    /// Its range table entry.
    pub(crate) rte: *mut pg_sys::RangeTblEntry,
    /// The query, sub-query or CTE that has the entry.
    pub(crate) query: *mut pg_sys::Query,
}

impl Marker {
    /// As whom, and which columns of it, the query reads it.
    ///
    /// # Safety
    /// The query tree still exists.
    pub(crate) unsafe fn permissions(self) -> Permissions {
        // SAFETY: per the contract.
        unsafe { version::permissions(self.query, self.rte) }
    }
}

/// What a query reads.
#[derive(Default)]
pub(crate) struct Relations {
    /// Its markers.
    pub(crate) markers: Vec<Marker>,
    /// Whether it reads or writes any other table.
    pub(crate) others: bool,
    /// Whether a part of it modifies data or locks rows.
    pub(crate) writes: bool,
    /// A marker that is to be written.
    pub(crate) target: Option<pg_sys::Oid>,
}

/// Whether a range table entry is a marker. Ordinary tables are told by one comparison.
///
/// # Safety
/// `rte` is a range table entry.
pub(crate) unsafe fn is_marker(rte: *mut pg_sys::RangeTblEntry) -> bool {
    // SAFETY: per the contract; the lookups raise for what does not exist, which a parsed foreign table does.
    unsafe {
        if (*rte).rtekind != pg_sys::RTEKind::RTE_RELATION
            || (*rte).relkind.cast_unsigned() != pg_sys::RELKIND_FOREIGN_TABLE
        {
            return false;
        }
        let server = pg_sys::GetForeignServer(pg_sys::GetForeignServerIdByRelId((*rte).relid));
        let wrapper = pg_sys::GetForeignDataWrapper((*server).fdwid);
        CStr::from_ptr((*wrapper).fdwname) == c"lake"
    }
}

/// Whether any marker is in the query: the cheap look that every statement of the server pays.
///
/// # Safety
/// `query` is a query tree.
pub(crate) unsafe fn any_marker(query: *mut pg_sys::Query) -> bool {
    // SAFETY: per the contract.
    unsafe {
        for rte in tree_rtes((*query).rtable) {
            let found = match (*rte).rtekind {
                pg_sys::RTEKind::RTE_RELATION => is_marker(rte),
                pg_sys::RTEKind::RTE_SUBQUERY => any_marker((*rte).subquery),
                _ => false,
            };
            if found {
                return true;
            }
        }
        if !(*query).cteList.is_null() || (*query).hasSubLinks {
            return !collect(query).markers.is_empty();
        }
        false
    }
}

/// The entries without an allocation.
unsafe fn tree_rtes(list: *mut pg_sys::List) -> impl Iterator<Item = *mut pg_sys::RangeTblEntry> {
    // SAFETY: a range table is a list of pointers, or null.
    let length = if list.is_null() { 0 } else { usize::try_from(unsafe { (*list).length }).unwrap_or(0) };
    // SAFETY: as above.
    (0..length).map(move |index| unsafe { (*(*list).elements.add(index)).ptr_value.cast() })
}

/// Calls `f` for a query and for all queries in it: sub-queries, CTEs and sub-links.
///
/// # Safety
/// `query` is a query tree.
pub(crate) unsafe fn each_query(query: *mut pg_sys::Query, f: &mut dyn FnMut(*mut pg_sys::Query)) {
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn walk(node: *mut pg_sys::Node, context: *mut std::ffi::c_void) -> bool {
        // SAFETY: `context` is the pointer to the closure below; nodes are what the walkers hand out.
        unsafe {
            match tree::tag(node) {
                NodeTag::T_Invalid => false,
                NodeTag::T_Query => {
                    (*context.cast::<&mut dyn FnMut(*mut pg_sys::Query)>())(node.cast());
                    pg_sys::query_tree_walker(node.cast(), Some(walk), context, 0)
                }
                _ => pg_sys::expression_tree_walker(node, Some(walk), context),
            }
        }
    }
    let mut f = f;
    // SAFETY: per the contract; the closure lives during the walk.
    unsafe { walk(query.cast(), (&raw mut f).cast()) };
}

/// Everything the query reads, sub-queries, CTEs and sub-links included.
///
/// # Safety
/// `query` is a query tree.
pub(crate) unsafe fn collect(query: *mut pg_sys::Query) -> Relations {
    let mut relations = Relations::default();
    // SAFETY: per the contract.
    unsafe {
        each_query(query, &mut |query| {
            relations.writes |= (*query).commandType != pg_sys::CmdType::CMD_SELECT
                || !(*query).rowMarks.is_null()
                || (*query).hasModifyingCTE;
            if (*query).resultRelation > 0 {
                let target = tree::rte((*query).rtable, (*query).resultRelation);
                if is_marker(target) {
                    relations.target = Some((*target).relid);
                }
            }
            for rte in tree::items::<pg_sys::RangeTblEntry>((*query).rtable) {
                if is_marker(rte) {
                    relations.markers.push(Marker { rte, query });
                } else if (*rte).rtekind == pg_sys::RTEKind::RTE_RELATION
                    && (*rte).relkind.cast_unsigned() != pg_sys::RELKIND_VIEW
                {
                    relations.others = true;
                }
            }
        });
    }
    relations
}

/// The source table of a marker.
///
/// # Safety
/// `marker` is a foreign table of the server `lake`.
pub(crate) unsafe fn source_of(marker: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: per the contract.
    unsafe {
        let Some(source) = recorded_source(marker) else {
            Error::state(format!("lake.{} has no source table", name_of(marker)))
                .with_hint("lake.<name> tables are made by lake.mirror, not by CREATE FOREIGN TABLE")
                .raise();
        };
        let source = pg_sys::Oid::from(source);
        if pg_sys::get_rel_relkind(source) == 0 {
            Error::new(
                pgrx::PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
                format!("the source table of lake.{} does not exist any more", name_of(marker)),
            )
            .with_hint("drop it with lake.drop_relation")
            .raise();
        }
        source
    }
}

/// The source that a marker's options name.
///
/// # Safety
/// As [`source_of`].
pub(crate) unsafe fn recorded_source(marker: pg_sys::Oid) -> Option<u32> {
    // SAFETY: per the contract; options are DefElems with string values.
    unsafe {
        let options = tree::items::<pg_sys::DefElem>((*pg_sys::GetForeignTable(marker)).options);
        let option = options.into_iter().find(|option| CStr::from_ptr((**option).defname) == c"source_oid")?;
        CStr::from_ptr(pg_sys::defGetString(option)).to_string_lossy().parse().ok()
    }
}

/// A relation's name, for messages.
pub(crate) fn name_of(relation: pg_sys::Oid) -> String {
    // SAFETY: get_rel_name answers null for what does not exist.
    unsafe { tree::taken(pg_sys::get_rel_name(relation)) }.unwrap_or_else(|| relation.to_u32().to_string())
}

/// Refuses a marker whose selected columns are no longer what the source has.
///
/// # Safety
/// `source` is the marker's source.
pub(crate) unsafe fn check_columns(marker: Marker, source: pg_sys::Oid) {
    // SAFETY: per the contract.
    unsafe {
        if let Some(column) = changed_column(marker, source) {
            let name = name_of((*marker.rte).relid);
            Error::state(format!("column \"{column}\" of the source of lake.{name} has changed"))
                .with_hint(
                    "the lake follows in a moment: run the query again; if that does not help, SELECT lake.resync(…)",
                )
                .raise();
        }
    }
}

/// A selected column of a marker that is no longer what the source has.
///
/// # Safety
/// As [`check_columns`].
pub(crate) unsafe fn changed_column(marker: Marker, source: pg_sys::Oid) -> Option<String> {
    // SAFETY: per the contract.
    unsafe {
        let (rte, columns) = (marker.rte, marker.permissions().columns);
        let mut bit = -1;
        loop {
            bit = pg_sys::bms_next_member(columns, bit);
            if bit < 0 {
                return None;
            }
            let attnum = bit + pg_sys::FirstLowInvalidHeapAttributeNumber;
            if attnum <= 0 {
                continue;
            }
            let Ok(attnum) = i16::try_from(attnum) else { continue };
            let column = |relation| {
                let (mut kind, mut typmod, mut collation) = (pg_sys::Oid::INVALID, -1, pg_sys::Oid::INVALID);
                let name = tree::taken(pg_sys::get_attname(relation, attnum, true));
                if name.is_some() {
                    pg_sys::get_atttypetypmodcoll(relation, attnum, &raw mut kind, &raw mut typmod, &raw mut collation);
                }
                (name.is_some(), kind, typmod, collation)
            };
            if column((*rte).relid) != column(source) {
                return Some(tree::taken(pg_sys::get_attname((*rte).relid, attnum, true)).unwrap_or_default());
            }
        }
    }
}
