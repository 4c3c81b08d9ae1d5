//! The deparser: Postgres query trees to DuckDB SQL, by an allowlist.
//!
//! Invariant: what it writes means to DuckDB what the tree means to Postgres, for every row: same values, same types,
//! same NULLs. It holds because each entry of `lake_allowlist` was compared on both sides, and so was each form of syntax that is
//! known here; everything else is [`NotSent`]. Where the two differ in *errors*, the entry is marked as throwing
//! and written so that DuckDB fails wherever Postgres might: a failure makes the heap answer.
//! Names are generated (`t1`, `c3`): case folding and keywords of the two systems never meet.

mod aggregate;
mod comparison;
mod condition;
mod cte;
mod expression;
mod function;
mod grouping;
mod json;
mod number;
mod operator;
mod parameter;
mod pattern;
pub(crate) mod query;
mod sub_query;
mod window;
pub(crate) mod zone;

use std::collections::HashMap;

use lake_allowlist::Type;
use pgrx::pg_sys;

use crate::lake_plan::{PlanColumn, PlanTable, Sql};
use crate::literal::{Decimal, duckdb_type};
use crate::marker;

/// Why something is not sent to DuckDB.
#[derive(Debug, Clone)]
pub(crate) struct NotSent(pub(crate) String);

impl NotSent {
    pub(crate) fn because<T>(reason: impl Into<String>) -> Result<T, Self> {
        Err(Self(reason.into()))
    }
}

/// A deparsed expression.
#[derive(Debug, Clone)]
pub(crate) struct Typed {
    /// DuckDB SQL, parenthesised where it matters.
    pub(crate) sql: Sql,
    /// Its Postgres type.
    pub(crate) oid: pg_sys::Oid,
    /// Precision and scale, known for every sendable numeric.
    pub(crate) decimal: Decimal,
    /// Whether it is a numeric of which only the value is known, and not how many zeros Postgres shows behind it.
    pub(crate) unshown: bool,
    /// How many digits behind the point Postgres would show of each value, where that is known row by row only.
    pub(crate) scales: Option<Sql>,
}

impl Typed {
    fn new(sql: Sql, oid: pg_sys::Oid, decimal: Decimal) -> Self {
        Self { sql, oid, decimal, unshown: false, scales: None }
    }

    /// The type on the list.
    fn kind(&self) -> Option<Type> {
        kind(self.oid)
    }

    /// The expression in exactly the DuckDB type of its Postgres type.
    pub(crate) fn exact(self) -> Result<Sql, NotSent> {
        let Some(kind) = duckdb_type(self.oid, self.decimal) else {
            return NotSent::because(format!("type {}", type_name(self.oid)));
        };
        Ok(Sql::from("CAST(") + self.sql + &format!(" AS {kind})"))
    }
}

/// A type on the list.
fn kind(oid: pg_sys::Oid) -> Option<Type> {
    // SAFETY: a lookup in the catalog, which answers for every OID.
    Type::of_oid(oid.to_u32()).or_else(|| unsafe { pg_sys::type_is_enum(oid) }.then_some(Type::Enum))
}

/// A type's name, for reasons.
pub(crate) fn type_name(oid: pg_sys::Oid) -> String {
    // SAFETY: format_type_be answers for every OID.
    unsafe { crate::tree::taken(pg_sys::format_type_be(oid)) }.unwrap_or_default()
}

/// What a range table entry is called in the SQL, and what its columns are.
#[derive(Debug, Clone)]
struct Source {
    alias: String,
    kind: SourceKind,
}

#[derive(Debug, Clone)]
enum SourceKind {
    /// A mirrored table.
    Table {
        /// The index into [`Deparser::tables`].
        table: usize,
        /// `lake.<name>`.
        marker: pg_sys::Oid,
    },
    /// A sub-query: its columns by number.
    Columns(Columns),
}

/// A column of a sub-query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Column {
    oid: pg_sys::Oid,
    decimal: Decimal,
    unshown: bool,
    /// It is NULL, for it cannot be sent: the index into [`Deparser::left_out`] of the reason why nobody may refer to it.
    left_out: Option<usize>,
}

type Columns = Vec<Column>;

/// A recursive CTE whose recursive part is being written.
struct Recursive {
    cte: *mut pg_sys::CommonTableExpr,
    alias: String,
    columns: Columns,
}

/// A CTE that is written once, before the query.
#[derive(Clone)]
struct Shared {
    cte: *mut pg_sys::CommonTableExpr,
    name: String,
    columns: Columns,
    sql: Sql,
}

/// A query level.
struct Scope {
    query: *mut pg_sys::Query,
    sources: HashMap<i32, Source>,
}

/// The state of a deparse.
pub(crate) struct Deparser {
    /// Tables read so far.
    pub(crate) tables: Vec<PlanTable>,
    /// Expressions to be evaluated by Postgres before the query runs.
    pub(crate) values: Vec<*mut pg_sys::Expr>,
    /// Whether anything written so far can fail on a value.
    pub(crate) throws: bool,
    /// Whether anything written so far is true in UTC only.
    pub(crate) utc: bool,
    /// Whether Postgres computes a value of it beforehand, which may fail, or be none that DuckDB has: then only the heap can answer.
    pub(crate) computes: bool,
    /// Why columns of sub-queries were left out.
    left_out: Vec<String>,
    scopes: Vec<Scope>,
    aliases: usize,
    /// Operands of the simple CASEs around.
    case_operands: Vec<Typed>,
    recursive: Vec<Recursive>,
    shared: Vec<Shared>,
    /// Values of parameters that the plan is made for.
    parameters: pg_sys::ParamListInfo,
}

/// Where a [`Deparser`] was.
pub(crate) struct Mark {
    tables: Vec<PlanTable>,
    values: usize,
    throws: bool,
    utc: bool,
    computes: bool,
    scopes: usize,
    cases: usize,
    recursive: usize,
    shared: usize,
}

impl Deparser {
    /// A deparser of a query whose plan is for these parameters, if they are not null.
    pub(crate) fn new(parameters: pg_sys::ParamListInfo) -> Self {
        Self {
            tables: Vec::new(),
            values: Vec::new(),
            throws: false,
            utc: false,
            computes: false,
            left_out: Vec::new(),
            scopes: Vec::new(),
            aliases: 0,
            case_operands: Vec::new(),
            recursive: Vec::new(),
            shared: Vec::new(),
            parameters,
        }
    }

    /// A deparser for expressions over one relation, number `varno` of its range table.
    pub(crate) fn over_table(varno: i32, relation: pg_sys::Oid) -> (Self, Sql) {
        let mut this = Self::new(std::ptr::null_mut());
        this.scopes.push(Scope { query: std::ptr::null_mut(), sources: HashMap::new() });
        let from = this.add_table(varno, relation);
        (this, from)
    }

    /// Remembers a state to go back to when an attempt fails.
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            tables: self.tables.clone(),
            values: self.values.len(),
            throws: self.throws,
            utc: self.utc,
            computes: self.computes,
            scopes: self.scopes.len(),
            cases: self.case_operands.len(),
            recursive: self.recursive.len(),
            shared: self.shared.len(),
        }
    }

    /// Goes back.
    pub(crate) fn reset(&mut self, mark: Mark) {
        self.tables = mark.tables;
        self.values.truncate(mark.values);
        self.throws = mark.throws;
        self.utc = mark.utc;
        self.computes = mark.computes;
        self.scopes.truncate(mark.scopes);
        self.case_operands.truncate(mark.cases);
        self.recursive.truncate(mark.recursive);
        self.shared.truncate(mark.shared);
    }

    fn alias(&mut self) -> String {
        self.aliases += 1;
        format!("t{}", self.aliases)
    }

    fn add_source(&mut self, varno: i32, kind: SourceKind) -> String {
        let alias = self.alias();
        let source = Source { alias: alias.clone(), kind };
        if let Some(scope) = self.scopes.last_mut() {
            scope.sources.insert(varno, source);
        }
        alias
    }

    /// A marker in FROM.
    fn add_table(&mut self, varno: i32, relation: pg_sys::Oid) -> Sql {
        let index = self.tables.len();
        // SAFETY: the caller found the relation to be a marker.
        let source = unsafe { marker::source_of(relation) }.to_u32();
        let name = format!("lake.{}", marker::name_of(relation));
        self.tables.push(PlanTable { source, name, columns: Vec::new(), conditions: Vec::new() });
        let alias = self.add_source(varno, SourceKind::Table { table: index, marker: relation });
        Sql(vec![crate::lake_plan::Piece::Table(index)]) + &format!(" AS {alias}")
    }

    /// Notes that a column of a table is read.
    fn read_column(&mut self, table: usize, column: PlanColumn) {
        let columns = &mut self.tables[table].columns;
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
}

/// Whether equality of the type is equality of what is shown, so that grouping picks no representative.
pub(crate) fn groups_exactly(oid: pg_sys::Oid, collation: pg_sys::Oid) -> bool {
    match oid {
        pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID => deterministic(collation),
        pg_sys::BOOLOID
        | pg_sys::INT2OID
        | pg_sys::INT4OID
        | pg_sys::INT8OID
        | pg_sys::NUMERICOID
        | pg_sys::BYTEAOID
        | pg_sys::DATEOID
        | pg_sys::TIMEOID
        | pg_sys::TIMESTAMPOID
        | pg_sys::TIMESTAMPTZOID
        | pg_sys::UUIDOID => true,
        // 0.0 and -0.0 are equal and look different.
        _ => kind(oid) == Some(Type::Enum),
    }
}

/// Whether both sides order the type alike.
pub(crate) fn orders_exactly(oid: pg_sys::Oid, collation: pg_sys::Oid) -> bool {
    match oid {
        pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID => bytewise(collation),
        pg_sys::FLOAT4OID | pg_sys::FLOAT8OID => true,
        _ if kind(oid) == Some(Type::Enum) => false,
        _ => groups_exactly(oid, collation),
    }
}

fn deterministic(collation: pg_sys::Oid) -> bool {
    // SAFETY: the collation exists; INVALID is told first.
    collation != pg_sys::Oid::INVALID && unsafe { pg_sys::get_collation_isdeterministic(collation) }
}

/// Whether a collation compares bytes: C or POSIX, the database's own included.
fn bytewise(collation: pg_sys::Oid) -> bool {
    // SAFETY: a deparser runs in the planner; INVALID is told first.
    collation != pg_sys::Oid::INVALID && unsafe { crate::version::collates_bytes(collation) }
}
