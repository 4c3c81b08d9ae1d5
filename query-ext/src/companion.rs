//! Companions: text columns of the lake with the values that a column's type there has not, as Postgres prints them.
//!
//! DuckDB has the infinite dates and timestamps and `24:00`, and orders them as Postgres does: the scan puts them into the
//! column itself. It has no `NaN` in a decimal. That a `numeric` has some is declared by the option `companion` of the
//! column of `lake.<name>`, which the engine sets when it meets the first (`lake.follow_relation`): such a column is
//! delivered as text, and nothing computes with it but Postgres. A plan from before that fails at the value, and so does
//! one that meets a timestamp which DuckDB has not: then the heap answers, or there is an error; never another value.

use std::ffi::CStr;

use pgrx::pg_sys;

use crate::lake_plan::PlanColumn;
use crate::literal::base_type;
use crate::tree;

/// Whether a column of `lake.<name>` is declared to have values that DuckDB's type has not.
///
/// # Safety
/// `marker` is a foreign table that has the column.
pub(crate) unsafe fn is_declared(marker: pg_sys::Oid, attnum: i16, type_oid: pg_sys::Oid) -> bool {
    if base_type(type_oid, -1).0 != pg_sys::NUMERICOID {
        return false;
    }
    // SAFETY: per the contract; options are DefElems.
    unsafe {
        let options = pg_sys::GetForeignColumnOptions(marker, attnum);
        tree::items::<pg_sys::DefElem>(options)
            .into_iter()
            .any(|option| CStr::from_ptr((*option).defname) == c"companion")
    }
}

/// A column as the plan expects it, of a scan that has it and its companion, if there is one, by field id.
pub(crate) fn merged(wanted: &PlanColumn, field_id: i32, companion: Option<i32>, duckdb_type: &str) -> String {
    match (companion, wanted.as_text) {
        (None, false) => format!("c{field_id}"),
        (None, true) => format!("CAST(c{field_id} AS VARCHAR)"),
        (Some(companion), true) => format!("coalesce(c{companion}, CAST(c{field_id} AS VARCHAR))"),
        (Some(companion), false) if duckdb_type.starts_with("DECIMAL") => format!(
            "CASE WHEN c{companion} IS NULL THEN c{field_id} ELSE error('a numeric column has got a NaN: run the query again') END"
        ),
        (Some(companion), false) => {
            format!("CASE WHEN c{companion} IS NULL THEN c{field_id} ELSE CAST(c{companion} AS {duckdb_type}) END")
        }
    }
}
