//! What a LakeScan does, as it travels inside a plan: SQL in pieces, the tables it reads, the columns it delivers.
//!
//! Plans are copied, cached and kept as node trees, so this goes into a `String` node as JSON. The text is never
//! substituted into: what is only known at execution (files, values) has a piece of its own.

use std::ffi::{CStr, CString};
use std::ops::Add;

use lake_protocol::{Alternatives, Comparison, Condition, Value};
use pgrx::pg_sys;
use serde::{Deserialize, Serialize};

/// A piece of SQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Piece {
    /// DuckDB SQL.
    Text(String),
    /// The scan of a table of [`LakePlan::tables`].
    Table(usize),
    /// The value of an expression of the plan node's `custom_exprs`, as a literal.
    Value(usize),
}

/// SQL under construction.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Sql(pub(crate) Vec<Piece>);

impl From<&str> for Sql {
    fn from(text: &str) -> Self {
        Self(vec![Piece::Text(text.to_owned())])
    }
}

impl From<String> for Sql {
    fn from(text: String) -> Self {
        Self(vec![Piece::Text(text)])
    }
}

impl Add<Sql> for Sql {
    type Output = Self;
    fn add(mut self, other: Self) -> Self {
        for piece in other.0 {
            match (self.0.last_mut(), piece) {
                (Some(Piece::Text(last)), Piece::Text(text)) => last.push_str(&text),
                (_, piece) => self.0.push(piece),
            }
        }
        self
    }
}

impl Add<&str> for Sql {
    type Output = Self;
    fn add(self, other: &str) -> Self {
        self + Self::from(other)
    }
}

impl Add<&String> for Sql {
    type Output = Self;
    fn add(self, other: &String) -> Self {
        self + other.as_str()
    }
}

impl Sql {
    /// The parts with a separator between them.
    pub(crate) fn join(parts: Vec<Self>, separator: &str) -> Self {
        let mut joined = Self::default();
        for (index, part) in parts.into_iter().enumerate() {
            joined = if index == 0 { part } else { joined + separator + part };
        }
        joined
    }

    /// The text, with tables and values written by the caller.
    pub(crate) fn render(
        &self,
        table: &mut dyn FnMut(usize) -> String,
        value: &mut dyn FnMut(usize) -> String,
    ) -> String {
        self.0
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Table(index) => table(*index),
                Piece::Value(index) => value(*index),
            })
            .collect()
    }
}

/// A table that the SQL reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlanTable {
    /// OID of the source.
    pub(crate) source: u32,
    /// Name to show.
    pub(crate) name: String,
    /// The columns it reads.
    pub(crate) columns: Vec<PlanColumn>,
    /// What is true of each row that counts; none: of nothing is it known.
    pub(crate) conditions: Vec<PlanCondition>,
}

/// A comparison of a column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlanCondition {
    /// Attribute number.
    pub(crate) attnum: i16,
    /// How it compares.
    pub(crate) comparison: Comparison,
    /// Digits behind the point of a numeric column.
    pub(crate) scale: Option<u8>,
    /// With what.
    pub(crate) known: Known,
}

/// What a column is compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Known {
    /// Any of these.
    Values(Vec<Value>),
    /// The value of an expression of the plan node's `custom_exprs`, or any element of it.
    Place(usize),
}

/// A column that the SQL reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlanColumn {
    /// Attribute number.
    pub(crate) attnum: i16,
    /// Type at planning.
    pub(crate) type_oid: u32,
    /// Type modifier at planning.
    pub(crate) typmod: i32,
    /// Delivered as text, because it has values that DuckDB's type has not.
    pub(crate) as_text: bool,
}

/// A column that DuckDB delivers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Output {
    /// Index in the scan's row, from 0.
    pub(crate) place: usize,
    /// Its Postgres type; of a domain the type that it is made from.
    pub(crate) type_oid: u32,
    /// Its type modifier, where the conversion needs it.
    pub(crate) typmod: i32,
}

/// Everything a LakeScan needs to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LakePlan {
    /// The DuckDB SQL.
    pub(crate) sql: Sql,
    /// Tables it reads; a table that is read twice is here twice.
    pub(crate) tables: Vec<PlanTable>,
    /// Sources of the whole statement, pinned together.
    pub(crate) sources: Vec<u32>,
    /// Columns delivered, in DuckDB's order.
    pub(crate) outputs: Vec<Output>,
    /// Whether an expression in it can fail on a value, so that rows are given out after the last one only.
    pub(crate) throws: bool,
    /// How the plan against the source would be compiled (`PGJIT_…`). Above the scan there is little to compile, and the planner has decided
    /// by the cost of that plan.
    pub(crate) heap_jit: i32,
    /// Whether the session's time zone has to be UTC.
    pub(crate) utc: bool,
    /// Whether the query named the sources: then the heap answers whenever the lake cannot.
    pub(crate) transparent: bool,
    /// It is all that the statement reads of the lake, so that its pin may leave files out.
    pub(crate) alone: bool,
    /// Whether the statement reads tables beside the lake, which are as of another moment.
    pub(crate) mixed: bool,
    /// Why not more of the query went to DuckDB: the whole of it, its filters, its order.
    pub(crate) not_pushed: Vec<String>,
}

impl LakePlan {
    /// Which rows count of each of the sources, for the worker; nothing, where the pin is for other scans as well. `value` gives the
    /// values in a place.
    pub(crate) fn wanted(&self, value: impl Fn(usize, Option<u8>) -> Option<Vec<Value>>) -> Vec<Alternatives> {
        if !self.alone {
            return Vec::new();
        }
        let condition = |condition: &PlanCondition| {
            let PlanCondition { attnum, comparison, scale, known } = condition;
            let values = match known {
                Known::Values(values) => values.clone(),
                Known::Place(place) => value(*place, *scale)?,
            };
            Some(Condition { attnum: *attnum, comparison: *comparison, values })
        };
        // A table that is read twice counts by either.
        let of_table = |table: &PlanTable| table.conditions.iter().filter_map(condition).collect();
        let of_source =
            |source: &u32| self.tables.iter().filter(|table| table.source == *source).map(of_table).collect();
        self.sources.iter().map(of_source).collect()
    }

    /// The plan as the `custom_private` of a node.
    ///
    /// # Safety
    /// Called on the main thread, in the memory context of the plan.
    pub(crate) unsafe fn to_private(&self) -> *mut pg_sys::List {
        let json = serde_json::to_string(self).expect("plain data always serializes");
        let json = CString::new(json).expect("JSON escapes NUL");
        // SAFETY: pstrdup copies into the current context, where the node and the list go as well.
        unsafe {
            let string = pg_sys::makeString(pg_sys::pstrdup(json.as_ptr()));
            crate::tree::list_of(&[string])
        }
    }

    /// Reads what [`Self::to_private`] wrote.
    ///
    /// # Safety
    /// `private` is the `custom_private` of a LakeScan.
    pub(crate) unsafe fn from_private(private: *mut pg_sys::List) -> Self {
        // SAFETY: per the contract the list holds one String node.
        let json = unsafe {
            let string = crate::tree::items::<pg_sys::String>(private)[0];
            CStr::from_ptr((*string).sval)
        };
        serde_json::from_slice(json.to_bytes()).expect("written by to_private")
    }
}
