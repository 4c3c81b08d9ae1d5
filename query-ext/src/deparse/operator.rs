//! The allowlist of operators: by their built-in name and argument types.

use pgrx::pg_sys;

use super::expression::truth;
use super::{Deparser, NotSent, Typed, bytewise, deterministic, type_name};
use crate::lake_plan::Sql;
use crate::literal::Decimal;
use crate::tree;

/// Objects below this OID are Postgres's own, and their names mean what they say.
const FIRST_FOREIGN_OID: u32 = 10_000;

/// Digits of a DECIMAL that DuckDB keeps in 64 bits.
const INT64_DIGITS: u8 = 18;

/// Families of types that are compared with each other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Int,
    Float,
    Numeric,
    Text,
    Day,
    Zoned,
    Time,
    Uuid,
    Bytes,
    Bool,
}

/// The family of a type.
pub(super) fn family(oid: pg_sys::Oid) -> Option<Family> {
    Some(match oid {
        pg_sys::INT2OID | pg_sys::INT4OID | pg_sys::INT8OID => Family::Int,
        pg_sys::FLOAT4OID | pg_sys::FLOAT8OID => Family::Float,
        pg_sys::NUMERICOID => Family::Numeric,
        pg_sys::TEXTOID | pg_sys::VARCHAROID => Family::Text,
        pg_sys::DATEOID | pg_sys::TIMESTAMPOID => Family::Day,
        pg_sys::TIMESTAMPTZOID => Family::Zoned,
        pg_sys::TIMEOID => Family::Time,
        pg_sys::UUIDOID => Family::Uuid,
        pg_sys::BYTEAOID => Family::Bytes,
        pg_sys::BOOLOID => Family::Bool,
        _ => return None,
    })
}

/// The name of a built-in operator.
pub(super) fn built_in(opno: pg_sys::Oid) -> Result<String, NotSent> {
    // SAFETY: get_opname answers null for what does not exist.
    let name = unsafe { tree::taken(pg_sys::get_opname(opno)) }.unwrap_or_default();
    if opno.to_u32() >= FIRST_FOREIGN_OID {
        return NotSent::because(format!("operator {name}, which is not built in"));
    }
    Ok(name)
}

impl Deparser {
    /// A binary or unary operator.
    ///
    /// # Safety
    /// `expression` is an OpExpr of the innermost scope.
    pub(super) unsafe fn operator(&mut self, expression: *mut pg_sys::OpExpr) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let name = built_in((*expression).opno)?;
            let operands = tree::items::<pg_sys::Node>((*expression).args);
            match operands.as_slice() {
                [only] => {
                    let operand = self.expression(*only)?;
                    self.unary(&name, operand)
                }
                [left, right] => {
                    if name == "~~" || name == "!~~" {
                        return self.like(&name, *left, *right, (*expression).inputcollid);
                    }
                    let (left, right) = (self.expression(*left)?, self.expression(*right)?);
                    if matches!(name.as_str(), "=" | "<>" | "<" | "<=" | ">" | ">=") {
                        comparable(&name, left.oid, right.oid, (*expression).inputcollid)?;
                        return Ok(truth(Sql::from("(") + left.sql + &format!(" {name} ") + right.sql + ")"));
                    }
                    self.arithmetic(&name, left, right, (*expression).opresulttype)
                }
                _ => NotSent::because(format!("operator {name}")),
            }
        }
    }

    fn unary(&mut self, name: &str, operand: Typed) -> Result<Typed, NotSent> {
        let (oid, decimal) = (operand.oid, operand.decimal);
        let known = matches!(family(oid), Some(Family::Int | Family::Numeric));
        let function = match name {
            "-" if known => "-",
            "@" if known => "abs",
            _ => return NotSent::because(format!("operator {name} on {}", type_name(oid))),
        };
        self.throws = true;
        // A smallint is an integer inside; as an operand it must overflow where a smallint does.
        let operand = operand.exact()?;
        Ok(Typed::new(Sql::from(format!("{function}(")) + operand + ")", oid, decimal))
    }

    fn arithmetic(&mut self, name: &str, left: Typed, right: Typed, result: pg_sys::Oid) -> Result<Typed, NotSent> {
        let refuse = || {
            let (left, right) = (type_name(left.oid), type_name(right.oid));
            NotSent::because(format!("operator {left} {name} {right}"))
        };
        match (family(left.oid), family(right.oid)) {
            (Some(Family::Int), Some(Family::Int)) if family(result) == Some(Family::Int) => {}
            (Some(Family::Numeric), Some(Family::Numeric)) => {
                return self.decimal_arithmetic(name, left, right);
            }
            (Some(Family::Day), Some(Family::Day))
                if name == "-" && left.oid == pg_sys::DATEOID && right.oid == pg_sys::DATEOID =>
            {
                // An error in Postgres when one is infinite, and NULL in DuckDB.
                self.throws = true;
                let sql =
                    Sql::from("(CASE WHEN NOT isfinite(") + left.sql.clone() + ") OR NOT isfinite(" + right.sql.clone();
                let sql = sql + ") THEN error('cannot subtract infinite dates') ELSE CAST(date_diff('day', ";
                let sql = sql + right.sql + ", " + left.sql + ") AS INTEGER) END)";
                return Ok(Typed::new(sql, result, None));
            }
            _ => return refuse(),
        }
        self.throws = true;
        // Functions by name, not operators: DuckDB's rewriter moves constants across +, - and *, and what overflowed
        // would not any more.
        let (left, right) = (left.exact()?, right.exact()?);
        let call = |function: &str| Sql::from(format!("{function}(")) + left.clone() + ", " + right.clone() + ")";
        let sql = match name {
            "+" => call("add"),
            "-" => call("subtract"),
            "*" => call("multiply"),
            // DuckDB answers NULL for a division by zero.
            "/" | "%" => {
                let operator = if name == "/" { " // " } else { " % " };
                Sql::from("(CASE WHEN ")
                    + right.clone()
                    + " = 0 THEN error('division by zero') ELSE "
                    + left.clone()
                    + operator
                    + right.clone()
                    + " END)"
            }
            _ => return NotSent::because(format!("operator {name} on integers")),
        };
        // DuckDB's result has the wider type of the two, as Postgres's has.
        Ok(Typed::new(sql, result, None))
    }

    /// `+`, `-` and `*` of numerics whose scale is known: exact on both sides, with the same scale, until DuckDB
    /// overflows.
    fn decimal_arithmetic(&mut self, name: &str, left: Typed, right: Typed) -> Result<Typed, NotSent> {
        let (Some((p1, s1)), Some((p2, s2))) = (left.decimal, right.decimal) else {
            return NotSent::because("a numeric without a scale");
        };
        let narrow = p1 <= INT64_DIGITS && p2 <= INT64_DIGITS;
        let (function, precision, scale) = match name {
            "+" | "-" => {
                let scale = s1.max(s2);
                let function = if name == "+" { "add" } else { "subtract" };
                (function, (p1 - s1).max(p2 - s2) + scale + 1, scale)
            }
            "*" => ("multiply", p1 + p2, s1 + s2),
            _ => return NotSent::because(format!("operator {name} on numerics")),
        };
        if scale > 38 {
            return NotSent::because("a numeric result of more than 38 digits");
        }
        // DuckDB stays within 64 bits when both operands are, and fails (so that the heap answers) on overflow.
        let limit = if narrow && scale < INT64_DIGITS { INT64_DIGITS } else { 38 };
        self.throws = true;
        let sql = Sql::from(format!("{function}(")) + left.exact()? + ", " + right.exact()? + ")";
        let decimal: Decimal = Some((precision.min(limit), scale));
        Ok(Typed::new(sql, pg_sys::NUMERICOID, decimal))
    }
}

/// Whether both sides compare these types alike.
pub(super) fn comparable(
    name: &str,
    left: pg_sys::Oid,
    right: pg_sys::Oid,
    collation: pg_sys::Oid,
) -> Result<(), NotSent> {
    let (Some(a), Some(b)) = (family(left), family(right)) else {
        return NotSent::because(format!("comparison of {} and {}", type_name(left), type_name(right)));
    };
    if a != b {
        return NotSent::because(format!("comparison of {} and {}", type_name(left), type_name(right)));
    }
    if a == Family::Text {
        let equality = name == "=" || name == "<>";
        if !(if equality { deterministic(collation) } else { bytewise(collation) }) {
            return NotSent::because("text in a linguistic collation");
        }
    }
    Ok(())
}

/// The name of a built-in function.
pub(super) fn built_in_function(function: pg_sys::Oid) -> Result<String, NotSent> {
    // SAFETY: get_func_name answers null for what does not exist.
    let name = unsafe { tree::taken(pg_sys::get_func_name(function)) }.unwrap_or_default();
    if function.to_u32() >= FIRST_FOREIGN_OID {
        return NotSent::because(format!("function {name}, which is not built in"));
    }
    Ok(name)
}
