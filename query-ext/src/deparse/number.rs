//! Numerics: precision and scale, and what is done with them.
//!
//! Postgres keeps a scale with each value, DuckDB with each type. So a numeric is sent when all values of an expression have one scale,
//! that of DuckDB's type; or, where nobody sees it, as a value whose scale does not matter (`unshown`).

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::{Deparser, NotSent, Typed};
use crate::lake_plan::{Piece, Sql};
use crate::literal::{Decimal, decimal_of_typmod};
use crate::tree;

/// Digits of a DECIMAL that DuckDB keeps in 64 bits.
const INT64_DIGITS: u8 = 18;
/// Digits of any DECIMAL.
pub(super) const MOST_DIGITS: u8 = 38;
/// What a quotient is delivered as.
const QUOTIENT: Decimal = Some((MOST_DIGITS, 20));

impl Deparser {
    /// `+`, `-`, `*`, `/` and `%` of numerics whose scale is known: exact on both sides, until DuckDB overflows.
    pub(super) fn decimal_arithmetic(&mut self, name: &str, left: Typed, right: Typed) -> Result<Typed, NotSent> {
        let (Some((p1, s1)), Some((p2, s2))) = (left.decimal, right.decimal) else {
            return NotSent::because("a numeric without a scale");
        };
        let unshown = left.unshown || right.unshown;
        let narrow = p1 <= INT64_DIGITS && p2 <= INT64_DIGITS;
        let (function, precision, scale) = match name {
            "+" | "-" => {
                let scale = s1.max(s2);
                let function = if name == "+" { "add" } else { "subtract" };
                (function, (p1 - s1).max(p2 - s2) + scale + 1, scale)
            }
            "*" => ("multiply", p1 + p2, s1 + s2),
            "/" => return self.quotient(left, right),
            _ => return NotSent::because(format!("operator {name} on numerics")),
        };
        if scale > MOST_DIGITS {
            return NotSent::because("a numeric result of more than 38 digits");
        }
        // DuckDB stays within 64 bits when both operands are, and fails (so that the heap answers) on overflow.
        let limit = if narrow && scale < INT64_DIGITS { INT64_DIGITS } else { MOST_DIGITS };
        self.throws = true;
        let sql = Sql::from(format!("{function}(")) + left.exact()? + ", " + right.exact()? + ")";
        let decimal = Some((precision.min(limit), scale));
        Ok(Typed { unshown, ..Typed::new(sql, pg_sys::NUMERICOID, decimal) })
    }

    /// The value of a quotient, rounded as Postgres rounds it. How many zeros it would show is told by the operands' sizes: that
    /// is not kept.
    pub(super) fn quotient(&mut self, left: Typed, right: Typed) -> Result<Typed, NotSent> {
        // How Postgres rounds depends on the scales that it knows for the operands.
        if left.unshown || right.unshown {
            return NotSent::because("a quotient of quotients");
        }
        self.throws = true;
        let sql = Sql::from("lake_divide(") + left.exact()? + ", " + right.exact()? + ")";
        Ok(Typed { unshown: true, ..Typed::new(sql, pg_sys::NUMERICOID, QUOTIENT) })
    }

    /// `numeric(p,s)` of a numeric, and `round` and `trunc` to a number of digits.
    ///
    /// # Safety
    /// The arguments are expressions of the innermost scope.
    pub(super) unsafe fn scaled(&mut self, name: &str, args: &[*mut pg_sys::Node]) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        let operand = unsafe { self.expression(args[0])? };
        let Some((precision, scale)) =
            operand.decimal.filter(|_| operand.oid == pg_sys::NUMERICOID && !operand.unshown)
        else {
            return NotSent::because(format!("{name} of a numeric without a scale"));
        };
        // SAFETY: as above.
        let given = args.get(1).map(|node| unsafe { constant_integer(*node) }).transpose()?;
        let decimal = match (name, given) {
            ("numeric", Some(typmod)) => decimal_of_typmod(typmod),
            (_, given) => {
                let digits = u8::try_from(given.unwrap_or(0)).ok().filter(|digits| *digits <= scale);
                digits.map(|digits| ((precision - scale + digits + 1).min(MOST_DIGITS), digits))
            }
        };
        let Some((to_precision, to_scale)) = decimal else {
            return NotSent::because(format!("{name} to this number of digits"));
        };
        self.throws = true;
        let value = operand.exact()?;
        let sql = match name {
            "numeric" => value,
            _ => Sql::from(format!("{name}(")) + value + &format!(", {to_scale})"),
        };
        let sql = Sql::from("CAST(") + sql + &format!(" AS DECIMAL({to_precision},{to_scale}))");
        Ok(Typed::new(sql, pg_sys::NUMERICOID, decimal))
    }
}

/// A constant integer.
///
/// # Safety
/// `node` is an expression.
pub(super) unsafe fn constant_integer(node: *mut pg_sys::Node) -> Result<i32, NotSent> {
    // SAFETY: the cast is to the struct of the tag; a datum of an integer is its value.
    unsafe {
        let node = pg_sys::eval_const_expressions(std::ptr::null_mut(), node);
        if tree::tag(node) == NodeTag::T_Const {
            let constant = &*node.cast::<pg_sys::Const>();
            if !constant.constisnull && matches!(constant.consttype, pg_sys::INT4OID | pg_sys::INT8OID) {
                let value = constant.constvalue.value().cast_signed();
                // A datum of four bytes may have anything above them.
                #[expect(clippy::cast_possible_truncation, reason = "the lower half is the value")]
                let value = if constant.consttype == pg_sys::INT4OID { (value as i32).into() } else { value as i64 };
                if let Ok(value) = i32::try_from(value) {
                    return Ok(value);
                }
            }
        }
        NotSent::because("a number that is not a constant")
    }
}

/// Whether DuckDB compares decimals of these digits without rounding one to the other's scale.
pub(super) fn compares(left: Decimal, right: Decimal) -> bool {
    left.is_none() || right.is_none() || widest(left, right).is_some_and(|(precision, _)| precision <= MOST_DIGITS)
}

/// The digits that hold both, which may be more than there are. `None`: one is not known.
pub(super) fn widest(left: Decimal, right: Decimal) -> Decimal {
    let ((p1, s1), (p2, s2)) = (left?, right?);
    let scale = s1.max(s2);
    Some(((p1 - s1).max(p2 - s2) + scale, scale))
}

/// The precision that holds all of these; they must have one scale, because Postgres keeps each value's own.
pub(super) fn common_decimal(operands: &[Typed], oid: pg_sys::Oid) -> Result<Decimal, NotSent> {
    if oid != pg_sys::NUMERICOID {
        return Ok(None);
    }
    let mut common: Decimal = None;
    for operand in operands {
        // A constant NULL has no scale of its own.
        let is_null = matches!(operand.sql.0.as_slice(), [Piece::Text(text)] if text.starts_with("CAST(NULL AS"));
        common = match (common, operand.decimal) {
            (common, _) if is_null => common,
            (None, Some(decimal)) => Some(decimal),
            (Some((precision, scale)), Some((other, other_scale))) if scale == other_scale => {
                Some((precision.max(other), scale))
            }
            _ => return NotSent::because("numerics of different scales in one expression"),
        };
    }
    common.map_or_else(|| NotSent::because("a numeric without a scale"), |decimal| Ok(Some(decimal)))
}

/// A CASE of these branches, each with what is before its result. Numerics of different scales have one that holds all, and
/// then the scale of each row's value is known beside.
pub(super) fn branched(branches: Vec<(Sql, Typed)>, oid: pg_sys::Oid) -> Result<Typed, NotSent> {
    let written = |results: &mut dyn Iterator<Item = Sql>| {
        let parts =
            branches.iter().map(|(before, _)| before.clone()).zip(results).map(|(before, result)| before + result);
        Sql::from("(CASE") + parts.fold(Sql::default(), |sql, part| sql + part) + " END)"
    };
    let results: Vec<Typed> = branches.iter().map(|(_, result)| result.clone()).collect();
    let sql = written(&mut results.iter().map(|result| result.sql.clone()));
    let unshown = results.iter().any(|result| result.unshown);
    match common_decimal(&results, oid) {
        Ok(decimal) if results.iter().all(|result| result.scales.is_none()) => {
            Ok(Typed { unshown, ..Typed::new(sql, oid, decimal) })
        }
        outcome => {
            let known = |result: &Typed| result.decimal.filter(|_| !result.unshown || result.scales.is_some());
            let decimals: Option<Vec<(u8, u8)>> = results.iter().map(known).collect();
            let Some(decimals) = decimals else {
                return outcome.and_then(|_| NotSent::because("a quotient in one expression with other numerics"));
            };
            let whole = decimals.iter().map(|(precision, scale)| precision - scale).max().unwrap_or(0);
            let scale = decimals.iter().map(|(_, scale)| *scale).max().unwrap_or(0);
            if whole + scale > MOST_DIGITS {
                return NotSent::because("numerics of more than 38 digits in one expression");
            }
            let kind = format!(" AS DECIMAL({},{scale}))", whole + scale);
            let sql = written(&mut results.iter().map(|result| Sql::from("CAST(") + result.sql.clone() + &kind));
            let scales = written(
                &mut results
                    .iter()
                    .zip(&decimals)
                    .map(|(result, (_, scale))| result.scales.clone().unwrap_or_else(|| Sql::from(scale.to_string()))),
            );
            let decimal = Some((whole + scale, scale));
            Ok(Typed { unshown: true, scales: Some(scales), ..Typed::new(sql, oid, decimal) })
        }
    }
}
