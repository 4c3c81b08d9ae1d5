//! The allowlist of functions: casts, dates, the length of text.

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::operator::built_in_function;
use super::{Deparser, NotSent, Typed, type_name};
use crate::lake_plan::Sql;
use crate::literal::{duckdb_type, literal};
use crate::tree;

/// Units of `date_trunc` that both sides cut alike.
const TRUNC_UNITS: [&str; 8] = ["second", "minute", "hour", "day", "week", "month", "quarter", "year"];
/// Fields of `extract` that are whole numbers on both sides.
const FIELDS: [&str; 9] = ["minute", "hour", "day", "month", "quarter", "year", "dow", "doy", "isodow"];

impl Deparser {
    /// A function call or cast.
    ///
    /// # Safety
    /// `call` is a FuncExpr of the innermost scope.
    pub(super) unsafe fn function(&mut self, call: *mut pg_sys::FuncExpr) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let name = built_in_function((*call).funcid)?;
            let args = tree::items::<pg_sys::Node>((*call).args);
            let result = (*call).funcresulttype;
            match (name.as_str(), args.as_slice()) {
                ("now" | "transaction_timestamp" | "statement_timestamp", []) => {
                    let sql = self.keep_value(tree::copy(call.cast::<pg_sys::Expr>()));
                    Ok(Typed::new(sql, result, None))
                }
                ("int2" | "int4" | "int8", [arg]) => {
                    let operand = self.integer(*arg, &name)?;
                    let kind = duckdb_type(result, None).unwrap_or_default();
                    self.throws |= narrows(operand.oid, result);
                    Ok(Typed::new(Sql::from("CAST(") + operand.sql + &format!(" AS {kind})"), result, None))
                }
                ("numeric", [arg]) => {
                    let operand = self.integer(*arg, &name)?;
                    let digits = match operand.oid {
                        pg_sys::INT2OID => 5,
                        pg_sys::INT4OID => 10,
                        _ => 19,
                    };
                    let sql = Sql::from("CAST(") + operand.sql + &format!(" AS DECIMAL({digits},0))");
                    Ok(Typed::new(sql, result, Some((digits, 0))))
                }
                ("date", [arg]) | ("timestamp", [arg]) => {
                    let operand = self.expression(*arg)?;
                    if !matches!(operand.oid, pg_sys::DATEOID | pg_sys::TIMESTAMPOID) {
                        return NotSent::because(format!("a cast of {} to {name}", type_name(operand.oid)));
                    }
                    let kind = duckdb_type(result, None).unwrap_or_default();
                    Ok(Typed::new(Sql::from("CAST(") + operand.sql + &format!(" AS {kind})"), result, None))
                }
                ("abs", [arg]) => {
                    let operand = self.expression(*arg)?;
                    if !matches!(operand.oid, pg_sys::INT2OID | pg_sys::INT4OID | pg_sys::INT8OID | pg_sys::NUMERICOID)
                    {
                        return NotSent::because(format!("abs of {}", type_name(operand.oid)));
                    }
                    self.throws = true;
                    let decimal = operand.decimal;
                    Ok(Typed::new(Sql::from("abs(") + operand.exact()? + ")", result, decimal))
                }
                ("length" | "char_length" | "character_length", [arg]) => {
                    let operand = self.expression(*arg)?;
                    if operand.oid != pg_sys::TEXTOID {
                        return NotSent::because(format!("{name} of {}", type_name(operand.oid)));
                    }
                    Ok(Typed::new(Sql::from("CAST(length(") + operand.sql + ") AS INTEGER)", result, None))
                }
                ("date_trunc", [unit, arg]) => {
                    let unit = constant_word(*unit, &TRUNC_UNITS)?;
                    let operand = self.expression(*arg)?;
                    if operand.oid != pg_sys::TIMESTAMPOID {
                        return NotSent::because(format!("date_trunc of {}", type_name(operand.oid)));
                    }
                    let sql = Sql::from(format!("date_trunc('{unit}', ")) + operand.sql + ")";
                    Ok(Typed::new(sql, result, None))
                }
                ("extract", [field, arg]) => {
                    let field = constant_word(*field, &FIELDS)?;
                    let operand = self.expression(*arg)?;
                    let of_date = operand.oid == pg_sys::DATEOID && field != "minute" && field != "hour";
                    if !of_date && operand.oid != pg_sys::TIMESTAMPOID {
                        return NotSent::because(format!("extract from {}", type_name(operand.oid)));
                    }
                    // An integer on DuckDB's side; a numeric without fraction on Postgres's.
                    let part = Sql::from(format!("CAST(date_part('{field}', ")) + operand.sql.clone();
                    let mut sql = part + ") AS DECIMAL(10,0))";
                    if field == "year" {
                        // Of an infinite moment all fields are NULL on both sides, but those that grow with time.
                        self.throws = true;
                        let infinite = Sql::from("(CASE WHEN NOT isfinite(") + operand.sql;
                        sql = infinite + ") THEN error('an infinite year') ELSE " + sql + " END)";
                    }
                    Ok(Typed::new(sql, result, Some((10, 0))))
                }
                _ => NotSent::because(format!("function {name}")),
            }
        }
    }

    unsafe fn integer(&mut self, arg: *mut pg_sys::Node, target: &str) -> Result<Typed, NotSent> {
        // SAFETY: the caller passes an expression.
        let operand = unsafe { self.expression(arg)? };
        if matches!(operand.oid, pg_sys::INT2OID | pg_sys::INT4OID | pg_sys::INT8OID) {
            Ok(operand)
        } else {
            NotSent::because(format!("a cast of {} to {target}", type_name(operand.oid)))
        }
    }
}

fn narrows(from: pg_sys::Oid, to: pg_sys::Oid) -> bool {
    let width = |oid| match oid {
        pg_sys::INT2OID => 2,
        pg_sys::INT4OID => 4,
        _ => 8,
    };
    width(from) > width(to)
}

/// A constant text that is one of these words.
unsafe fn constant_word(node: *mut pg_sys::Node, known: &[&'static str]) -> Result<&'static str, NotSent> {
    // SAFETY: the caller passes an expression; the cast is to the struct of the tag.
    unsafe {
        if tree::tag(node) == NodeTag::T_Const {
            let constant = &*node.cast::<pg_sys::Const>();
            if !constant.constisnull
                && constant.consttype == pg_sys::TEXTOID
                && let Some((text, _)) = literal(constant.constvalue, false, pg_sys::TEXTOID)
                && let Some(word) = known.iter().find(|word| text == format!("CAST('{word}' AS VARCHAR)"))
            {
                return Ok(word);
            }
        }
        NotSent::because("a unit of time that is not on the list")
    }
}
