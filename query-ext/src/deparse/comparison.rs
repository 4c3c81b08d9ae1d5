//! Comparisons that are no plain operator: LIKE, IS DISTINCT FROM, NULLIF, IN.

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::expression::truth;
use super::operator::{Family, built_in, comparable, family};
use super::{Deparser, NotSent, Typed, deterministic, type_name};
use crate::lake_plan::Sql;
use crate::literal::literal;
use crate::tree;

impl Deparser {
    /// `LIKE` with a constant pattern without escapes.
    ///
    /// # Safety
    /// The operands are expressions of the innermost scope.
    pub(super) unsafe fn like(
        &mut self,
        name: &str,
        left: *mut pg_sys::Node,
        right: *mut pg_sys::Node,
        collation: pg_sys::Oid,
    ) -> Result<Typed, NotSent> {
        // SAFETY: the caller passes the operands of a text operator.
        unsafe {
            let operand = self.expression(left)?;
            if family(operand.oid) != Some(Family::Text) || tree::tag(right) != NodeTag::T_Const {
                return NotSent::because("LIKE with a pattern that is not a constant");
            }
            let constant = &*right.cast::<pg_sys::Const>();
            if constant.constisnull || constant.consttype != pg_sys::TEXTOID || !deterministic(collation) {
                return NotSent::because("LIKE with this pattern or collation");
            }
            let Some((pattern, _)) = literal(constant.constvalue, false, pg_sys::TEXTOID) else {
                return NotSent::because("LIKE with this pattern");
            };
            if pattern.contains('\\') {
                return NotSent::because("LIKE with an escape");
            }
            let word = if name == "~~" { " LIKE " } else { " NOT LIKE " };
            Ok(truth(Sql::from("(") + operand.sql + word + &pattern + ")"))
        }
    }

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
            comparable("=", left.oid, right.oid, (*expression).inputcollid)?;
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
            comparable("=", left.oid, right.oid, (*expression).inputcollid)?;
            let (oid, decimal) = (left.oid, left.decimal);
            let sql = Sql::from("(CASE WHEN ") + left.sql.clone() + " = " + right.sql + " THEN NULL ELSE ";
            Ok(Typed::new(sql + left.sql + " END)", oid, decimal))
        }
    }

    /// `= ANY` and `<> ALL` of a constant array: IN and NOT IN.
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
            let word = match (built_in((*expression).opno)?.as_str(), (*expression).useOr) {
                ("=", true) => " IN (",
                ("<>", false) => " NOT IN (",
                (name, _) => return NotSent::because(format!("operator {name} with an array")),
            };
            if tree::tag(right) != NodeTag::T_Const {
                return NotSent::because("an array that is not a constant");
            }
            let array = &*right.cast::<pg_sys::Const>();
            let element = pg_sys::get_element_type(array.consttype);
            if array.constisnull || element == pg_sys::Oid::INVALID {
                return NotSent::because("a NULL array");
            }
            let operand = self.expression(left)?;
            comparable("=", operand.oid, element, (*expression).inputcollid)?;
            let mut elements = Vec::new();
            for (value, is_null) in elements_of(array.constvalue, element) {
                let Some((text, _)) = literal(value, is_null, element) else {
                    return NotSent::because(format!("an array of {}", type_name(element)));
                };
                elements.push(Sql::from(text));
            }
            if elements.is_empty() {
                return Ok(truth(Sql::from(if (*expression).useOr { "false" } else { "true" })));
            }
            Ok(truth(Sql::from("(") + operand.sql + word + Sql::join(elements, ", ") + "))"))
        }
    }
}

/// The elements of an array.
unsafe fn elements_of(array: pg_sys::Datum, element: pg_sys::Oid) -> Vec<(pg_sys::Datum, bool)> {
    let (mut length, mut by_value, mut align) = (0i16, false, 0);
    let (mut values, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
    // SAFETY: the caller passes an array of this element type; the outputs are palloc'd with `count` entries.
    unsafe {
        pg_sys::get_typlenbyvalalign(element, &raw mut length, &raw mut by_value, &raw mut align);
        let array = pg_sys::pg_detoast_datum(array.cast_mut_ptr()).cast();
        pg_sys::deconstruct_array(
            array,
            element,
            i32::from(length),
            by_value,
            align,
            &raw mut values,
            &raw mut nulls,
            &raw mut count,
        );
        (0..usize::try_from(count).unwrap_or(0)).map(|index| (*values.add(index), *nulls.add(index))).collect()
    }
}
