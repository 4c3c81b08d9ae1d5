//! The allowlist of aggregates. Sums of floats depend on the order of the rows and are never sent; averages are
//! finished in Postgres ([`crate::finish`]) from a sum and a count.

use pgrx::pg_sys;

use super::operator::built_in_function;
use super::{Deparser, NotSent, Typed, groups_exactly, orders_exactly, type_name};
use crate::lake_plan::Sql;
use crate::literal::{Decimal, duckdb_type};
use crate::tree;

/// The parts of an average.
pub(crate) struct Average {
    /// `sum(x)`, a numeric.
    pub(crate) sum: Typed,
    /// `count(x)`, a bigint.
    pub(crate) count: Typed,
}

/// An aggregate's argument, `DISTINCT ` or nothing, and its collation.
type Argument = (Typed, &'static str, pg_sys::Oid);

impl Deparser {
    /// An aggregate.
    ///
    /// # Safety
    /// `aggregate` is an Aggref of the innermost scope.
    pub(super) unsafe fn aggregate(&mut self, aggregate: *mut pg_sys::Aggref) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let (name, argument, tail) = self.parts(aggregate)?;
            let result = (*aggregate).aggtype;
            let Some((argument, prefix, collation)) = argument else {
                return Ok(Typed::new(Sql::from("count(*)") + tail, result, None));
            };
            let (oid, decimal) = (argument.oid, argument.decimal);
            let call = |function: &str, argument: Sql| {
                Sql::from(format!("{function}({prefix}")) + argument + ")" + tail.clone()
            };
            match name.as_str() {
                "count" => Ok(Typed::new(call("count", argument.sql), result, None)),
                "sum" => self.sum(argument, result, &call),
                "min" | "max" => {
                    // A minimum of equal values that look different could be either.
                    if !orders_exactly(oid, collation) || !groups_exactly(oid, collation) {
                        return NotSent::because(format!("{name} of {} in this collation", type_name(oid)));
                    }
                    Ok(Typed::new(call(&name, argument.sql), result, decimal))
                }
                "bool_and" | "every" => Ok(Typed::new(call("bool_and", argument.sql), result, None)),
                "bool_or" => Ok(Typed::new(call("bool_or", argument.sql), result, None)),
                _ => NotSent::because(format!("aggregate {name}")),
            }
        }
    }

    fn sum(&mut self, argument: Typed, result: pg_sys::Oid, call: &dyn Fn(&str, Sql) -> Sql) -> Result<Typed, NotSent> {
        let (oid, decimal) = (argument.oid, argument.decimal);
        let decimal: Decimal = match oid {
            // DuckDB sums integers in 128 bits.
            pg_sys::INT2OID | pg_sys::INT4OID => None,
            pg_sys::INT8OID => Some((38, 0)),
            pg_sys::NUMERICOID => decimal.map(|(_, scale)| (38, scale)),
            _ => return NotSent::because(format!("sum of {}", type_name(oid))),
        };
        self.throws = true;
        let kind = duckdb_type(result, decimal).unwrap_or_default();
        let sql = Sql::from("CAST(") + call("sum", argument.sql) + &format!(" AS {kind})");
        Ok(Typed::new(sql, result, decimal))
    }

    /// The parts of `avg` of integers or numerics.
    ///
    /// # Safety
    /// `aggregate` is an Aggref of the innermost scope.
    pub(crate) unsafe fn average(&mut self, aggregate: *mut pg_sys::Aggref) -> Result<Average, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let (name, argument, tail) = self.parts(aggregate)?;
            let Some((argument, prefix, _)) = argument.filter(|_| name == "avg") else {
                return NotSent::because(format!("aggregate {name}"));
            };
            let scale = match argument.oid {
                pg_sys::INT2OID | pg_sys::INT4OID | pg_sys::INT8OID => 0,
                pg_sys::NUMERICOID => argument.decimal.map_or(0, |(_, scale)| scale),
                other => return NotSent::because(format!("avg of {}", type_name(other))),
            };
            self.throws = true;
            let call =
                |function: &str| Sql::from(format!("{function}({prefix}")) + argument.sql.clone() + ")" + tail.clone();
            let sum = Sql::from("CAST(") + call("sum") + &format!(" AS DECIMAL(38,{scale}))");
            Ok(Average {
                sum: Typed::new(sum, pg_sys::NUMERICOID, Some((38, scale))),
                count: Typed::new(call("count"), pg_sys::INT8OID, None),
            })
        }
    }

    /// Name, argument (with DISTINCT and its collation) and FILTER.
    unsafe fn parts(&mut self, aggregate: *mut pg_sys::Aggref) -> Result<(String, Option<Argument>, Sql), NotSent> {
        // SAFETY: the caller passes an Aggref, whose args are TargetEntries.
        unsafe {
            let aggregate = &*aggregate;
            let name = built_in_function(aggregate.aggfnoid)?;
            if aggregate.agglevelsup > 0
                || !aggregate.aggorder.is_null()
                || !aggregate.aggdirectargs.is_null()
                || aggregate.aggvariadic
                || aggregate.aggkind.cast_unsigned() != b'n'
            {
                return NotSent::because(format!("aggregate {name} with ORDER BY or of an outer query"));
            }
            let tail = if aggregate.aggfilter.is_null() {
                Sql::default()
            } else {
                Sql::from(" FILTER (WHERE ") + self.expression(aggregate.aggfilter.cast())?.sql + ")"
            };
            let args = tree::items::<pg_sys::TargetEntry>(aggregate.args);
            let argument = match args.as_slice() {
                [] => None,
                [only] => {
                    let node = (**only).expr.cast();
                    let collation = pg_sys::exprCollation(node);
                    let argument = self.expression(node)?;
                    let distinct = !aggregate.aggdistinct.is_null();
                    if distinct && !groups_exactly(argument.oid, collation) {
                        return NotSent::because(format!("DISTINCT of {}", type_name(argument.oid)));
                    }
                    Some((argument, if distinct { "DISTINCT " } else { "" }, collation))
                }
                _ => return NotSent::because(format!("aggregate {name}")),
            };
            if argument.is_none() && name != "count" {
                return NotSent::because(format!("aggregate {name}"));
            }
            Ok((name, argument, tail))
        }
    }
}
