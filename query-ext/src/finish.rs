//! What Postgres computes above a whole-query scan: averages from sums and counts, variances from squares besides, and expressions that cannot be sent
//! although their operands can.
//!
//! Invariant: a finished expression has the type and, for every row, the value that Postgres would have computed,
//! because Postgres's own functions compute it from values that are equal.

use std::ffi::CStr;

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use crate::deparse::{Deparser, NotSent, Typed};
use crate::lake_plan::Sql;
use crate::tree;

/// `numeric / numeric`.
const NUMERIC_DIV: u32 = 1727;
/// `round(numeric, integer)`.
const NUMERIC_ROUND: u32 = 1707;
/// `bigint → numeric`.
const INT8_NUMERIC: u32 = 1781;

/// A column that DuckDB delivers.
pub(crate) struct Column {
    /// Its SQL, of the exact type.
    pub(crate) sql: Sql,
    /// Its Postgres type.
    pub(crate) oid: pg_sys::Oid,
    /// Type modifier.
    pub(crate) typmod: i32,
    /// Collation.
    pub(crate) collation: pg_sys::Oid,
}

/// Splits expressions between DuckDB and Postgres.
pub(crate) struct Finisher<'a> {
    /// Where what is sent goes.
    pub(crate) deparser: &'a mut Deparser,
    /// The columns so far.
    pub(crate) columns: Vec<Column>,
    failure: Option<NotSent>,
}

impl<'a> Finisher<'a> {
    pub(crate) fn new(deparser: &'a mut Deparser) -> Self {
        Self { deparser, columns: Vec::new(), failure: None }
    }

    /// Sends the whole expression; its variable in the scan, and its number from 1.
    ///
    /// # Safety
    /// `node` is a prepared expression of the deparser's scope.
    pub(crate) unsafe fn send(&mut self, node: *mut pg_sys::Node) -> Result<(*mut pg_sys::Node, usize), NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let mark = self.deparser.mark();
            match self.deparser.column(node) {
                Ok((sql, oid)) => {
                    let (typmod, collation) = (pg_sys::exprTypmod(node), pg_sys::exprCollation(node));
                    let oid = expected(node, oid)?;
                    Ok(self.add(sql, oid, typmod, collation))
                }
                Err(reason) => {
                    self.deparser.reset(mark);
                    Err(reason)
                }
            }
        }
    }

    fn add(&mut self, sql: Sql, oid: pg_sys::Oid, typmod: i32, collation: pg_sys::Oid) -> (*mut pg_sys::Node, usize) {
        // The same expression twice is one column; values have numbers of their own and never match.
        let number = match self.columns.iter().position(|column| column.sql == sql && column.oid == oid) {
            Some(index) => index + 1,
            None => {
                self.columns.push(Column { sql, oid, typmod, collation });
                self.columns.len()
            }
        };
        let attno = i16::try_from(number).unwrap_or(i16::MAX);
        // SAFETY: makeVar allocates a node.
        let var = unsafe { pg_sys::makeVar(pg_sys::INDEX_VAR, attno, oid, typmod, collation, 0) };
        (var.cast(), number)
    }

    /// The expression over the scan's columns.
    ///
    /// # Safety
    /// As [`Self::send`].
    pub(crate) unsafe fn finish(&mut self, node: *mut pg_sys::Node) -> Result<*mut pg_sys::Node, NotSent> {
        // SAFETY: per the contract.
        let finished = unsafe { self.map(node) };
        self.failure.take().map_or(Ok(finished), Err)
    }

    unsafe fn map(&mut self, node: *mut pg_sys::Node) -> *mut pg_sys::Node {
        if node.is_null() || self.failure.is_some() {
            return node;
        }
        // SAFETY: the caller passes an expression; casts are to the struct of the tag.
        unsafe {
            if !reads(node) {
                return tree::copy(node);
            }
            if tree::tag(node) != NodeTag::T_List
                && let Ok((var, _)) = self.send(node)
            {
                return var;
            }
            if tree::tag(node) != NodeTag::T_List
                && let Some(rounded) = self.rounded(node)
            {
                return rounded;
            }
            match tree::tag(node) {
                NodeTag::T_Aggref | NodeTag::T_WindowFunc => match self.average(node).or_else(|_| self.spread(node)) {
                    Ok(finished) => finished,
                    Err(reason) => self.fail(node, reason),
                },
                NodeTag::T_Var | NodeTag::T_SubLink | NodeTag::T_GroupingFunc => {
                    let reason = self.deparser.expression(node).err();
                    self.fail(node, reason.unwrap_or_else(|| NotSent("a part that cannot be sent".into())))
                }
                _ => tree::map_children(node, &mut |child| self.map(child)),
            }
        }
    }

    fn fail(&mut self, node: *mut pg_sys::Node, reason: NotSent) -> *mut pg_sys::Node {
        self.failure.get_or_insert(reason);
        node
    }

    /// A numeric whose scale DuckDB tells beside its value: `round` to that many digits changes nothing but what is shown.
    unsafe fn rounded(&mut self, node: *mut pg_sys::Node) -> Option<*mut pg_sys::Node> {
        // SAFETY: the caller passes an expression.
        unsafe {
            let mark = self.deparser.mark();
            let typed = self.deparser.expression(node).ok();
            let Some((typed, scales)) = typed.and_then(|typed| typed.scales.clone().map(|scales| (typed, scales)))
            else {
                self.deparser.reset(mark);
                return None;
            };
            let value = self.add(typed.exact().ok()?, pg_sys::NUMERICOID, -1, pg_sys::Oid::INVALID).0;
            let scales = Sql::from("CAST(") + scales + " AS INTEGER)";
            let scale = self.add(scales, pg_sys::INT4OID, -1, pg_sys::Oid::INVALID).0;
            Some(call(NUMERIC_ROUND, &[value, scale]))
        }
    }

    /// `avg(x)` as `sum(x) / count(x)`, which is how Postgres's own final function divides.
    unsafe fn average(&mut self, aggregate: *mut pg_sys::Node) -> Result<*mut pg_sys::Node, NotSent> {
        // SAFETY: the caller passes an Aggref or a WindowFunc.
        unsafe {
            let mark = self.deparser.mark();
            let average = match self.deparser.average(aggregate) {
                Ok(average) => average,
                Err(reason) => {
                    self.deparser.reset(mark);
                    return Err(reason);
                }
            };
            let (sum, count) = (self.part(average.sum)?, self.part(average.count)?);
            Ok(call(NUMERIC_DIV, &[sum, call(INT8_NUMERIC, &[count])]))
        }
    }

    /// A variance or deviation from a count, a sum and a sum of squares, as the final functions have it.
    unsafe fn spread(&mut self, aggregate: *mut pg_sys::Node) -> Result<*mut pg_sys::Node, NotSent> {
        // SAFETY: the caller passes an Aggref or a WindowFunc; the constant is a boolean.
        unsafe {
            let mark = self.deparser.mark();
            let spread = match self.deparser.spread(aggregate) {
                Ok(spread) => spread,
                Err(reason) => {
                    self.deparser.reset(mark);
                    return Err(reason);
                }
            };
            let (bigint, numeric) = (pg_sys::INT8OID, pg_sys::NUMERICOID);
            let variance_of = own_function(c"variance_of", &[bigint, numeric, numeric, pg_sys::BOOLOID])?;
            let deviation_of = own_function(c"deviation_of", &[numeric])?;
            let parts = [self.part(spread.count)?, self.part(spread.sum)?, self.part(spread.squares)?];
            let sample = pg_sys::makeBoolConst(spread.sample, false);
            let variance = call(variance_of, &[parts[0], parts[1], parts[2], sample]);
            Ok(if spread.root { call(deviation_of, &[variance]) } else { variance })
        }
    }

    /// A column, in exactly its type.
    fn part(&mut self, typed: Typed) -> Result<*mut pg_sys::Node, NotSent> {
        let oid = typed.oid;
        Ok(self.add(typed.exact()?, oid, -1, pg_sys::Oid::INVALID).0)
    }
}

/// A function of this extension's.
unsafe fn own_function(name: &CStr, types: &[pg_sys::Oid]) -> Result<u32, NotSent> {
    // By the catalog's key: a lookup as SQL does it would ask whether the user may look into the schema.
    // SAFETY: the tuple is looked at before it is released.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"lake_catalog".as_ptr(), true);
        let types = pg_sys::buildoidvector(types.as_ptr(), i32::try_from(types.len()).unwrap_or(0));
        let cache = pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP.cast_signed();
        let tuple = pg_sys::SearchSysCache3(cache, name.as_ptr().into(), types.into(), schema.into());
        if tuple.is_null() {
            return NotSent::because(format!("the extension lacks the function {}", name.to_string_lossy()));
        }
        let found = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_proc>()).oid.to_u32();
        pg_sys::ReleaseSysCache(tuple);
        Ok(found)
    }
}

/// A call of a function that gives a numeric.
unsafe fn call(function: u32, args: &[*mut pg_sys::Node]) -> *mut pg_sys::Node {
    // SAFETY: the caller passes expressions of the function's types.
    unsafe {
        pg_sys::makeFuncExpr(
            pg_sys::Oid::from(function),
            pg_sys::NUMERICOID,
            tree::list_of(args),
            pg_sys::Oid::INVALID,
            pg_sys::Oid::INVALID,
            pg_sys::CoercionForm::COERCE_EXPLICIT_CALL,
        )
        .cast()
    }
}

/// Whether an expression needs a row of the query.
unsafe fn reads(node: *mut pg_sys::Node) -> bool {
    // SAFETY: the caller passes an expression or a list of them.
    unsafe {
        tree::any(node, &mut |node| {
            matches!(
                tree::tag(node),
                NodeTag::T_Var
                    | NodeTag::T_Aggref
                    | NodeTag::T_SubLink
                    | NodeTag::T_WindowFunc
                    | NodeTag::T_GroupingFunc
            )
        })
    }
}

/// The type of the result must be Postgres's, not only a compatible one.
unsafe fn expected(node: *mut pg_sys::Node, oid: pg_sys::Oid) -> Result<pg_sys::Oid, NotSent> {
    // SAFETY: the caller passes an expression.
    let wanted = unsafe { pg_sys::exprType(node) };
    let textual = |oid| oid == pg_sys::TEXTOID || oid == pg_sys::VARCHAROID;
    if wanted == oid || (textual(wanted) && textual(oid)) {
        Ok(wanted)
    } else {
        NotSent::because(format!("a result of type {}", crate::deparse::type_name(wanted)))
    }
}
