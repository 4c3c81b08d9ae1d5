//! Comparisons that are no plain operator: IS DISTINCT FROM, NULLIF, IN, ANY and ALL.

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::expression::truth;
use super::number::{MOST_DIGITS, widest};
use super::operator::{built_in, comparable, comparable_types};
use super::{Deparser, NotSent, Typed, type_name};
use crate::lake_plan::Sql;
use crate::literal::{elements, list, literal};
use crate::tree;

impl Deparser {
    /// `IS DISTINCT FROM`.
    ///
    /// # Safety
    /// `expression` is a DistinctExpr of the innermost scope.
    pub(super) unsafe fn distinct(&mut self, expression: *mut pg_sys::OpExpr) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let [left, right] = tree::items::<pg_sys::Node>((*expression).args)[..] else {
                return NotSent::because("IS DISTINCT FROM");
            };
            built_in((*expression).opno)?;
            let (left, right) = (self.expression(left)?, self.expression(right)?);
            comparable("=", &left, &right, (*expression).inputcollid)?;
            Ok(truth(Sql::from("(") + left.sql + " IS DISTINCT FROM " + right.sql + ")"))
        }
    }

    /// `NULLIF`.
    ///
    /// # Safety
    /// `expression` is a NullIfExpr of the innermost scope.
    pub(super) unsafe fn null_if(&mut self, expression: *mut pg_sys::OpExpr) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let [left, right] = tree::items::<pg_sys::Node>((*expression).args)[..] else {
                return NotSent::because("NULLIF");
            };
            built_in((*expression).opno)?;
            let (left, right) = (self.expression(left)?, self.expression(right)?);
            comparable("=", &left, &right, (*expression).inputcollid)?;
            let sql = Sql::from("(CASE WHEN ") + left.sql.clone() + " = " + right.sql + " THEN NULL ELSE ";
            Ok(Typed { sql: sql + left.sql.clone() + " END)", ..left })
        }
    }

    /// `(a, b) < (c, d)`: the first pair that differs tells.
    ///
    /// # Safety
    /// `expression` is a RowCompareExpr of the innermost scope.
    pub(super) unsafe fn row_comparison(&mut self, expression: *mut pg_sys::RowCompareExpr) -> Result<Typed, NotSent> {
        // SAFETY: per the contract; the lists are of one length.
        unsafe {
            let row = &*expression;
            let (lefts, rights) = (tree::items::<pg_sys::Node>(row.largs), tree::items::<pg_sys::Node>(row.rargs));
            let (operators, collations) = (tree::oids(row.opnos), tree::oids(row.inputcollids));
            let mut cases = Vec::new();
            let mut equal = Vec::new();
            for (index, (left, right)) in lefts.into_iter().zip(rights).enumerate() {
                let name = built_in(operators[index])?;
                if !matches!(name.as_str(), "<" | "<=" | ">" | ">=") {
                    return NotSent::because(format!("operator {name} of rows"));
                }
                let (left, right) = (self.expression(left)?, self.expression(right)?);
                comparable(&name, &left, &right, collations[index])?;
                comparable("=", &left, &right, collations[index])?;
                // Only of the last pair may equal ones do.
                let strict = if index + 1 < operators.len() { name.trim_end_matches('=') } else { &name };
                let compared =
                    |word: &str| Sql::from("(") + left.sql.clone() + &format!(" {word} ") + right.sql.clone() + ")";
                let mut case: Vec<Sql> = equal.clone();
                case.push(compared(strict));
                cases.push(Sql::from("(") + Sql::join(case, " AND ") + ")");
                equal.push(compared("="));
            }
            Ok(truth(Sql::from("(") + Sql::join(cases, " OR ") + ")"))
        }
    }

    /// An operator with `ANY` or `ALL` of an array that is a constant or a parameter.
    ///
    /// # Safety
    /// `expression` is a ScalarArrayOpExpr of the innermost scope.
    pub(super) unsafe fn array_operator(
        &mut self,
        expression: *mut pg_sys::ScalarArrayOpExpr,
    ) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let [left, right] = tree::items::<pg_sys::Node>((*expression).args)[..] else {
                return NotSent::because("an array operator");
            };
            let (name, any, collation) =
                (built_in((*expression).opno)?, (*expression).useOr, (*expression).inputcollid);
            let element = pg_sys::get_element_type(pg_sys::exprType(right));
            if element == pg_sys::Oid::INVALID {
                return NotSent::because("something with ANY that is no array");
            }
            let constant = self.constant(right);
            if let Some((array, is_null)) = constant
                && !is_null
                && !matches!((name.as_str(), any), ("=", true) | ("<>", false))
            {
                return self.each(&name, any, left, &elements(array, element), element, collation);
            }
            let word = match (name.as_str(), any) {
                ("=", true) => " IN ",
                ("<>", false) => " NOT IN ",
                _ => return NotSent::because(format!("operator {name} with an array that is not a constant")),
            };
            let operand = self.expression(left)?;
            comparable_types("=", operand.oid, element, collation)?;
            if operand.oid == pg_sys::NUMERICOID {
                // Of all of them DuckDB makes one type, and rounds what that has no digits for.
                let mut most = operand.decimal;
                let Some((array, false)) = constant else {
                    return NotSent::because("numerics in an array that is not a constant");
                };
                for (value, is_null) in elements(array, element) {
                    let decimal = literal(value, is_null, element).and_then(|(_, decimal)| decimal);
                    most = widest(most, decimal);
                }
                if most.is_none_or(|(precision, _)| precision > MOST_DIGITS) {
                    return NotSent::because("an array of numerics that takes more than 38 digits");
                }
            }
            let elements = match constant {
                Some((array, is_null)) => list(array, is_null, element).map(Sql::from),
                None if tree::tag(right) == NodeTag::T_Param => Some(self.array_parameter(right.cast())?),
                None => return NotSent::because("an array that is not a constant"),
            };
            let Some(elements) = elements else {
                return NotSent::because(format!("an array of {}", type_name(element)));
            };
            Ok(truth(Sql::from("(") + operand.sql + word + elements + ")"))
        }
    }

    /// An operator with each element of an array.
    unsafe fn each(
        &mut self,
        name: &str,
        any: bool,
        left: *mut pg_sys::Node,
        elements: &[(pg_sys::Datum, bool)],
        element: pg_sys::Oid,
        collation: pg_sys::Oid,
    ) -> Result<Typed, NotSent> {
        let mut parts = Vec::new();
        for (value, is_null) in elements {
            // SAFETY: the caller passes elements of this type, and an expression.
            let part = unsafe {
                if matches!(name, "~~" | "!~~") {
                    let text = pg_sys::makeConst(element, -1, collation, -1, *value, *is_null, false);
                    self.like(name, left, text.cast(), collation)?.sql
                } else {
                    if !matches!(name, "=" | "<>" | "<" | "<=" | ">" | ">=") {
                        return NotSent::because(format!("operator {name} with an array"));
                    }
                    let operand = self.expression(left)?;
                    let Some((text, decimal)) = literal(*value, *is_null, element) else {
                        return NotSent::because(format!("an array of {}", type_name(element)));
                    };
                    comparable(name, &operand, &Typed::new(text.clone().into(), element, decimal), collation)?;
                    Sql::from("(") + operand.sql + &format!(" {name} {text})")
                }
            };
            parts.push(part);
        }
        let (word, none) = if any { (" OR ", "false") } else { (" AND ", "true") };
        Ok(truth(if parts.is_empty() { Sql::from(none) } else { Sql::from("(") + Sql::join(parts, word) + ")" }))
    }
}
