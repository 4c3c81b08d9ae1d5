//! Aggregates. Sums of floats depend on the order of the rows and are never sent; averages are finished in Postgres
//! ([`crate::finish`]) from a sum and a count, unless nobody sees how many digits they have.

use lake_allowlist::{AGGREGATES, Type};
use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::operator::{Found, built_in_function};
use super::{Deparser, NotSent, Typed, groups_exactly, orders_exactly, type_name};
use crate::lake_plan::Sql;
use crate::literal::{Decimal, literal};
use crate::tree;

/// The parts of an average.
pub(crate) struct Average {
    /// `sum(x)`, a numeric.
    pub(crate) sum: Typed,
    /// `count(x)`, a bigint.
    pub(crate) count: Typed,
}

/// The parts of a variance or deviation.
pub(crate) struct Spread {
    /// `count(x)`, a bigint.
    pub(crate) count: Typed,
    /// `sum(x)`, a numeric.
    pub(crate) sum: Typed,
    /// `sum(x * x)`, a numeric.
    pub(crate) squares: Typed,
    /// Of a sample, and not of all.
    pub(crate) sample: bool,
    /// The deviation, which is the root of the variance.
    pub(crate) root: bool,
}

/// An aggregate, or one over a window: what both have in common.
pub(super) struct Call {
    pub(super) name: String,
    /// Its arguments.
    pub(super) args: Vec<*mut pg_sys::Node>,
    pub(super) distinct: bool,
    /// ` ORDER BY …` within it.
    pub(super) order: Sql,
    /// ` FILTER (…)`, ` OVER (…)`.
    pub(super) tail: Sql,
    pub(super) result: pg_sys::Oid,
    pub(super) collation: pg_sys::Oid,
}

impl Deparser {
    /// An aggregate.
    ///
    /// # Safety
    /// `aggregate` is an Aggref of the innermost scope.
    pub(super) unsafe fn aggregate(&mut self, aggregate: *mut pg_sys::Aggref) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let call = self.call(aggregate)?;
            self.aggregated(&call)
        }
    }

    /// An aggregate's value.
    ///
    /// # Safety
    /// The arguments are expressions of the innermost scope.
    pub(super) unsafe fn aggregated(&mut self, call: &Call) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let operands = self.operands(call)?;
            match (call.name.as_str(), &operands[..]) {
                ("count", [argument]) => {
                    Ok(Typed::new(wrapped("count", call, argument.sql.clone()), call.result, None))
                }
                ("avg", [argument]) => {
                    let Average { sum, count } = self.averaged(call, argument.clone())?;
                    let count = Typed::new(count.sql, pg_sys::NUMERICOID, Some((19, 0)));
                    self.quotient(sum, count)
                }
                ("sum", [argument]) if argument.kind() == Some(Type::Numeric) => {
                    let decimal: Decimal = argument.decimal.map(|(_, scale)| (38, scale));
                    let (sql, unshown) = (wrapped("sum", call, argument.sql.clone()), argument.unshown);
                    self.throws = true;
                    // A sum has the digits of the value that has most.
                    let scales = argument.scales.clone().filter(|_| !call.distinct).map(|scales| {
                        let of_values =
                            Sql::from("CASE WHEN ") + argument.sql.clone() + " IS NOT NULL THEN " + scales + " END";
                        wrapped("max", call, of_values)
                    });
                    Ok(Typed { unshown, scales, ..Typed::new(sql, call.result, decimal) })
                }
                ("min" | "max", [argument]) if argument.kind() == Some(Type::Numeric) => {
                    let sql = wrapped(&call.name, call, argument.sql.clone());
                    // Of equal values with other zeros behind them it may be either.
                    Ok(Typed { sql, scales: None, ..argument.clone() })
                }
                ("string_agg", [text, _]) if !call.distinct && !call.order.0.is_empty() => {
                    let delimiter = delimiter_of(call.args[1])?;
                    let inner = text.sql.clone() + &format!(", {delimiter}") + call.order.clone();
                    Ok(Typed::new(wrapped("string_agg", call, inner), call.result, None))
                }
                _ if !call.order.0.is_empty() => NotSent::because(format!("aggregate {} with ORDER BY", call.name)),
                _ => {
                    let (collation, result) = (call.collation, call.result);
                    let (distinct, tail) = (call.distinct, call.tail.clone());
                    self.entry(AGGREGATES, &call.name, Found { operands, collation, result, distinct, tail })
                }
            }
        }
    }

    /// The parts of `avg` of integers or numerics.
    ///
    /// # Safety
    /// `node` is an Aggref or a WindowFunc of the innermost scope.
    pub(crate) unsafe fn average(&mut self, node: *mut pg_sys::Node) -> Result<Average, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let call = if tree::tag(node) == NodeTag::T_WindowFunc {
                self.window_call(node.cast())?
            } else {
                self.call(node.cast())?
            };
            let operands = self.operands(&call)?;
            match &operands[..] {
                [argument] if call.name == "avg" => self.averaged(&call, argument.clone()),
                _ => NotSent::because(format!("aggregate {}", call.name)),
            }
        }
    }

    /// The parts of a variance or deviation of integers or numerics.
    ///
    /// # Safety
    /// As [`Self::average`].
    pub(crate) unsafe fn spread(&mut self, node: *mut pg_sys::Node) -> Result<Spread, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let call = if tree::tag(node) == NodeTag::T_WindowFunc {
                self.window_call(node.cast())?
            } else {
                self.call(node.cast())?
            };
            let refuse = || NotSent::because(format!("aggregate {}", call.name));
            let (sample, root) = match call.name.as_str() {
                "variance" | "var_samp" => (true, false),
                "var_pop" => (false, false),
                "stddev" | "stddev_samp" => (true, true),
                "stddev_pop" => (false, true),
                _ => return refuse(),
            };
            let operands = self.operands(&call)?;
            let [argument] = &operands[..] else { return refuse() };
            // Two values may have one square.
            if call.distinct {
                return NotSent::because(format!("aggregate {} with DISTINCT", call.name));
            }
            let (kind, scale) = match (argument.kind(), argument.decimal) {
                (Some(Type::Int2 | Type::Int4 | Type::Int8), _) => ("HUGEINT".to_owned(), 0),
                (Some(Type::Numeric), Some((precision, scale))) if !argument.unshown && 2 * precision <= 38 => {
                    // DuckDB multiplies shorter ones in 64 bits.
                    (format!("DECIMAL({},{scale})", precision.max(19)), scale)
                }
                _ => return NotSent::because(format!("{} of {}", call.name, type_name(argument.oid))),
            };
            let value = Sql::from("CAST(") + argument.sql.clone() + &format!(" AS {kind})");
            let square = Sql::from("multiply(") + value.clone() + ", " + value + ")";
            let squares =
                Sql::from("CAST(") + wrapped("sum", &call, square) + &format!(" AS DECIMAL(38,{}))", 2 * scale);
            let squares = Typed::new(squares, pg_sys::NUMERICOID, Some((38, 2 * scale)));
            let Average { sum, count } = self.averaged(&call, argument.clone())?;
            Ok(Spread { count, sum, squares, sample, root })
        }
    }

    fn averaged(&mut self, call: &Call, argument: Typed) -> Result<Average, NotSent> {
        let scale = match argument.kind() {
            Some(Type::Int2 | Type::Int4 | Type::Int8) => 0,
            Some(Type::Numeric) if !argument.unshown => argument.decimal.map_or(0, |(_, scale)| scale),
            _ => return NotSent::because(format!("avg of {}", type_name(argument.oid))),
        };
        self.throws = true;
        let sum =
            Sql::from("CAST(") + wrapped("sum", call, argument.sql.clone()) + &format!(" AS DECIMAL(38,{scale}))");
        Ok(Average {
            sum: Typed::new(sum, pg_sys::NUMERICOID, Some((38, scale))),
            count: Typed::new(wrapped("count", call, argument.sql), pg_sys::INT8OID, None),
        })
    }

    unsafe fn operands(&mut self, call: &Call) -> Result<Vec<Typed>, NotSent> {
        // SAFETY: the caller passes expressions of the innermost scope.
        let operands =
            call.args.iter().map(|node| unsafe { self.expression(*node) }).collect::<Result<Vec<_>, NotSent>>()?;
        if call.distinct
            && let Some((argument, node)) = operands.first().zip(call.args.first())
        {
            // SAFETY: as above.
            let collation = unsafe { pg_sys::exprCollation(*node) };
            if !groups_exactly(argument.oid, collation) {
                return NotSent::because(format!("DISTINCT of {}", type_name(argument.oid)));
            }
        }
        Ok(operands)
    }

    /// Name, arguments, DISTINCT, ORDER BY and FILTER.
    unsafe fn call(&mut self, aggregate: *mut pg_sys::Aggref) -> Result<Call, NotSent> {
        // SAFETY: the caller passes an Aggref, whose args are TargetEntries.
        unsafe {
            let of = &*aggregate;
            let name = built_in_function(of.aggfnoid)?;
            if of.agglevelsup > 0 || !of.aggdirectargs.is_null() || of.aggvariadic || of.aggkind.cast_unsigned() != b'n'
            {
                return NotSent::because(format!("aggregate {name} of an outer query, or of an ordered set"));
            }
            let mut keys = Vec::new();
            for clause in tree::items::<pg_sys::SortGroupClause>(of.aggorder) {
                let node = (*pg_sys::get_sortgroupclause_tle(clause, of.args)).expr.cast();
                keys.push(self.sort_key(clause, node)?);
            }
            let order = if keys.is_empty() { Sql::default() } else { Sql::from(" ORDER BY ") + Sql::join(keys, ", ") };
            let tail = self.filter(of.aggfilter)?;
            let args = tree::items::<pg_sys::TargetEntry>(of.args);
            let args = args.into_iter().filter(|entry| !(**entry).resjunk).map(|entry| (*entry).expr.cast()).collect();
            let distinct = !of.aggdistinct.is_null();
            Ok(Call { name, args, distinct, order, tail, result: of.aggtype, collation: of.inputcollid })
        }
    }

    /// ` FILTER (WHERE …)`.
    ///
    /// # Safety
    /// `filter` is null or a condition of the innermost scope.
    pub(super) unsafe fn filter(&mut self, filter: *mut pg_sys::Expr) -> Result<Sql, NotSent> {
        if filter.is_null() {
            return Ok(Sql::default());
        }
        // SAFETY: per the contract.
        Ok(Sql::from(" FILTER (WHERE ") + unsafe { self.expression(filter.cast())? }.sql + ")")
    }

    /// An expression to sort by, with its direction.
    ///
    /// # Safety
    /// `node` is the expression of the clause, in the innermost scope.
    pub(super) unsafe fn sort_key(
        &mut self,
        clause: *mut pg_sys::SortGroupClause,
        node: *mut pg_sys::Node,
    ) -> Result<Sql, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            if !orders_exactly(pg_sys::exprType(node), pg_sys::exprCollation(node)) {
                return NotSent::because("ORDER BY by a linguistic collation, or of a type that is not on the list");
            }
            Ok(sortable(self.expression(node)?) + super::query::direction(clause)?)
        }
    }
}

/// An expression to sort by. DuckDB takes columns that it sorts by out of the sorted keys again, where a negative zero is none: floats
/// get a key of their own.
pub(super) fn sortable(typed: Typed) -> Sql {
    match typed.kind() {
        Some(Type::Float4) => Sql::from("add(") + typed.sql + ", CAST(0 AS FLOAT))",
        Some(Type::Float8) => Sql::from("add(") + typed.sql + ", CAST(0 AS DOUBLE))",
        _ => typed.sql,
    }
}

/// A call with an argument, `DISTINCT` and what is behind it.
fn wrapped(function: &str, call: &Call, argument: Sql) -> Sql {
    let distinct = if call.distinct { "DISTINCT " } else { "" };
    Sql::from(format!("{function}({distinct}")) + argument + ")" + call.tail.clone()
}

/// A constant delimiter, as a literal.
unsafe fn delimiter_of(node: *mut pg_sys::Node) -> Result<String, NotSent> {
    // SAFETY: the caller passes an expression; the cast is to the struct of the tag.
    unsafe {
        if tree::tag(node) == NodeTag::T_Const {
            let constant = &*node.cast::<pg_sys::Const>();
            if constant.consttype == pg_sys::TEXTOID
                && !constant.constisnull
                && let Some((text, _)) = literal(constant.constvalue, false, pg_sys::TEXTOID)
            {
                return Ok(text);
            }
        }
        NotSent::because("string_agg with a delimiter that is not a constant")
    }
}
