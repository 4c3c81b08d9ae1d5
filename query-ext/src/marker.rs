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

/// Everything the query reads, sub-queries, CTEs and sub-links included.
///
/// # Safety
/// `query` is a query tree.
pub(crate) unsafe fn collect(query: *mut pg_sys::Query) -> Relations {
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn walk(node: *mut pg_sys::Node, context: *mut std::ffi::c_void) -> bool {
        // SAFETY: `context` is the Relations below; nodes are what the walkers hand out.
        unsafe {
            match tree::tag(node) {
                NodeTag::T_Invalid => false,
                NodeTag::T_Query => {
                    note(node.cast(), &mut *context.cast::<Relations>());
                    pg_sys::query_tree_walker(node.cast(), Some(walk), context, 0)
                }
                _ => pg_sys::expression_tree_walker(node, Some(walk), context),
            }
        }
    }
    unsafe fn note(query: *mut pg_sys::Query, relations: &mut Relations) {
        // SAFETY: the caller passes a query.
        unsafe {
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
        }
    }
    let mut relations = Relations::default();
    // SAFETY: per the contract.
    unsafe { walk(query.cast(), (&raw mut relations).cast()) };
    relations
}

/// The source table of a marker.
///
/// # Safety
/// `marker` is a foreign table of the server `lake`.
pub(crate) unsafe fn source_of(marker: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: per the contract; options are DefElems with string values.
    unsafe {
        let table = pg_sys::GetForeignTable(marker);
        for option in tree::items::<pg_sys::DefElem>((*table).options) {
            if CStr::from_ptr((*option).defname) == c"source_oid" {
                let text = CStr::from_ptr(pg_sys::defGetString(option)).to_string_lossy();
                if let Ok(oid) = text.parse::<u32>() {
                    let source = pg_sys::Oid::from(oid);
                    if pg_sys::get_rel_relkind(source) != 0 {
                        return source;
                    }
                    let name = name_of(marker);
                    Error::new(
                        pgrx::PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
                        format!("the source table of lake.{name} does not exist any more"),
                    )
                    .with_hint("drop it with lake.drop_relation")
                    .raise();
                }
            }
        }
        Error::state(format!("lake.{} has no source table", name_of(marker)))
            .with_hint("lake.<name> tables are made by lake.mirror, not by CREATE FOREIGN TABLE")
            .raise()
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
        let (rte, columns) = (marker.rte, marker.permissions().columns);
        let mut bit = -1;
        loop {
            bit = pg_sys::bms_next_member(columns, bit);
            if bit < 0 {
                return;
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
            let (here, there) = (column((*rte).relid), column(source));
            if here != there {
                let name = tree::taken(pg_sys::get_attname((*rte).relid, attnum, true)).unwrap_or_default();
                Error::state(format!("column \"{name}\" of the source of lake.{} has changed", name_of((*rte).relid)))
                    .with_hint("the lake follows in a moment: run the query again; if that does not help, SELECT lake.resync(…)")
                    .raise();
            }
        }
    }
}
