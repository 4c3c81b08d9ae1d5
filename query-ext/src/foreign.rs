//! The foreign-data wrapper: a scan of one mirrored table, with its columns and those of its filters that can be sent.
//! Postgres does the rest of the query.

use pgrx::prelude::*;

use crate::deparse::Deparser;
use crate::error::Error;
use crate::lake_plan::{LakePlan, Output, PlanColumn, Sql};
use crate::literal::{base_type, decimal_of_typmod, duckdb_type, scan_type, stored_type};
use crate::{companion, marker, node, planner, tree};

/// Version-1 calling convention of [`query_fdw_handler_wrapper`].
#[unsafe(no_mangle)]
pub(crate) extern "C" fn pg_finfo_query_fdw_handler_wrapper() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// The handler of the foreign-data wrapper `lake`.
///
/// # Safety
/// Called by Postgres.
#[pg_guard]
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn query_fdw_handler_wrapper(_call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: a zeroed routine is one without optional callbacks.
    unsafe {
        let routine = tree::make::<pg_sys::FdwRoutine>(pg_sys::NodeTag::T_FdwRoutine);
        (*routine).GetForeignRelSize = Some(relation_size);
        (*routine).GetForeignPaths = Some(relation_paths);
        (*routine).GetForeignPlan = Some(no_foreign_plan);
        pg_sys::Datum::from(routine)
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_size(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    relation: pg_sys::Oid,
) {
    // SAFETY: called by the planner; the syscache tuple is released.
    unsafe {
        let source = marker::source_of(relation);
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID.cast_signed(), source.into());
        if !tuple.is_null() {
            let class = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
            (*rel).tuples = f64::from((*class).reltuples).max(1000.0);
            pg_sys::ReleaseSysCache(tuple);
        }
        pg_sys::set_baserel_size_estimates(root, rel);
    }
}

struct PathMethods(pg_sys::CustomPathMethods);
// SAFETY: constant pointers to constant text and functions.
unsafe impl Sync for PathMethods {}

static PATH_METHODS: PathMethods = PathMethods(pg_sys::CustomPathMethods {
    CustomName: c"LakeScan".as_ptr(),
    PlanCustomPath: Some(plan_path),
    ReparameterizeCustomPathByChild: None,
});

#[pg_guard]
unsafe extern "C-unwind" fn relation_paths(
    _root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    relation: pg_sys::Oid,
) {
    // SAFETY: called by the planner; the path is zeroed and filled.
    unsafe {
        if planner::planning().is_none() {
            Error::state(format!("lake.{} can only be read by a planned query", marker::name_of(relation)))
                .with_hint("load lake_query by shared_preload_libraries, after other extensions with a planner")
                .raise();
        }
        let path = tree::make::<pg_sys::CustomPath>(pg_sys::NodeTag::T_CustomPath);
        (*path).path.pathtype = pg_sys::NodeTag::T_CustomScan;
        (*path).path.parent = rel;
        (*path).path.pathtarget = (*rel).reltarget;
        (*path).path.rows = (*rel).rows;
        (*path).path.startup_cost = 100.0;
        (*path).path.total_cost = 100.0 + (*rel).tuples * 0.001 + (*rel).rows * 0.01;
        (*path).methods = &raw const PATH_METHODS.0;
        pg_sys::add_path(rel, path.cast());
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn no_foreign_plan(
    _root: *mut pg_sys::PlannerInfo,
    _rel: *mut pg_sys::RelOptInfo,
    relation: pg_sys::Oid,
    _path: *mut pg_sys::ForeignPath,
    _targets: *mut pg_sys::List,
    _clauses: *mut pg_sys::List,
    _outer: *mut pg_sys::Plan,
) -> *mut pg_sys::ForeignScan {
    Error::state(format!("lake.{} has no foreign scan", marker::name_of(relation))).raise()
}

#[pg_guard]
unsafe extern "C-unwind" fn plan_path(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    _path: *mut pg_sys::CustomPath,
    targets: *mut pg_sys::List,
    clauses: *mut pg_sys::List,
    _plans: *mut pg_sys::List,
) -> *mut pg_sys::Plan {
    // SAFETY: called by the planner for a path of `relation_paths`.
    unsafe {
        let varno = i32::try_from((*rel).relid).unwrap_or(0);
        let rte = *(*root).simple_rte_array.add((*rel).relid as usize);
        let (mut deparser, from) = Deparser::over_table(varno, (*rte).relid);
        let mut sent = Vec::new();
        let mut local: *mut pg_sys::List = std::ptr::null_mut();
        let Some(planner::ByScans { sources, reason, mixed }) = planner::planning() else {
            Error::state("a scan of the lake outside of a statement").raise();
        };
        let mut not_pushed = vec![reason];
        for info in tree::items::<pg_sys::RestrictInfo>(clauses) {
            if (*info).pseudoconstant {
                continue;
            }
            let mark = deparser.mark();
            // A filter that can fail must fail as Postgres's does: it stays here, and so does one that may only see
            // rows that others let through.
            let clause = deparser.expression((*info).clause.cast()).and_then(|typed| {
                if deparser.throws || deparser.computes {
                    return crate::deparse::NotSent::because("a filter that can fail");
                }
                Ok(typed.sql)
            });
            match clause {
                Ok(sql) if (*info).security_level <= (*rel).baserestrict_min_security => sent.push(sql),
                outcome => {
                    deparser.reset(mark);
                    local = pg_sys::lappend(local, (*info).clause.cast());
                    not_pushed.extend(outcome.err().map(|reason| reason.0));
                }
            }
        }
        let columns = columns_needed(rel, local, (*rte).relid);
        let mut names = Vec::new();
        let mut outputs = Vec::new();
        for column in &columns {
            let (oid, typmod) = base_type(pg_sys::Oid::from(column.type_oid), column.typmod);
            // Of some types DuckDB has an equal for constants, and columns are text all the same.
            let equal = scan_type(oid, typmod).and_then(|_| duckdb_type(oid, decimal_of_typmod(typmod)));
            let kind = equal.or_else(|| stored_type(oid, typmod));
            let Some(kind) = kind.map(|kind| if column.as_text { "VARCHAR".to_owned() } else { kind }) else {
                continue;
            };
            names.push(Sql::from(format!("CAST(t1.c{0} AS {kind}) AS c{0}", column.attnum)));
            let place = usize::try_from(column.attnum - 1).unwrap_or(0);
            outputs.push(Output { place, type_oid: oid.to_u32(), typmod });
        }
        let names = if names.is_empty() { Sql::from("1 AS c0") } else { Sql::join(names, ", ") };
        let filter = if sent.is_empty() { Sql::default() } else { Sql::from(" WHERE ") + Sql::join(sent, " AND ") };
        let mut tables = deparser.tables;
        for column in columns {
            if !tables[0].columns.contains(&column) {
                tables[0].columns.push(column);
            }
        }
        let plan = LakePlan {
            sql: Sql::from("SELECT ") + names + " FROM " + from + filter,
            tables,
            sources,
            outputs,
            throws: false,
            utc: deparser.utc,
            heap_jit: 0,
            transparent: false,
            // The pin is for the scans beside it, too.
            alone: false,
            mixed,
            not_pushed,
        };
        let scan = tree::make::<pg_sys::CustomScan>(pg_sys::NodeTag::T_CustomScan);
        (*scan).scan.plan.targetlist = targets;
        (*scan).scan.plan.qual = local;
        (*scan).scan.scanrelid = (*rel).relid;
        (*scan).custom_exprs = tree::list_of(&deparser.values);
        (*scan).custom_private = plan.to_private();
        (*scan).methods = node::scan_methods();
        scan.cast()
    }
}

/// The columns that Postgres reads of a scan's rows.
unsafe fn columns_needed(
    rel: *mut pg_sys::RelOptInfo,
    local: *mut pg_sys::List,
    relation: pg_sys::Oid,
) -> Vec<PlanColumn> {
    // SAFETY: the caller passes a base relation and expressions over it.
    unsafe {
        let mut attributes = std::ptr::null_mut();
        pg_sys::pull_varattnos((*(*rel).reltarget).exprs.cast(), (*rel).relid, &raw mut attributes);
        pg_sys::pull_varattnos(local.cast(), (*rel).relid, &raw mut attributes);
        let offset = -pg_sys::FirstLowInvalidHeapAttributeNumber;
        let whole_row = pg_sys::bms_is_member(offset, attributes);
        (1..=(*rel).max_attr)
            .filter(|attnum| whole_row || pg_sys::bms_is_member(i32::from(*attnum) + offset, attributes))
            .filter_map(|attnum| {
                tree::taken(pg_sys::get_attname(relation, attnum, true))?;
                let (mut kind, mut typmod, mut collation) = (pg_sys::Oid::INVALID, -1, pg_sys::Oid::INVALID);
                pg_sys::get_atttypetypmodcoll(relation, attnum, &raw mut kind, &raw mut typmod, &raw mut collation);
                // A dropped column has no type.
                let as_text = companion::is_declared(relation, attnum, kind);
                stored_type(kind, typmod).map(|_| PlanColumn { attnum, type_oid: kind.to_u32(), typmod, as_text })
            })
            .collect()
    }
}
