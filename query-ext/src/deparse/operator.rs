//! Operators: by their built-in name and the types of their operands.

use lake_allowlist::{Collation, Digits, Entry, OPERATORS, Piece, Type, find};
use pgrx::pg_sys;

use super::expression::truth;
use super::number::compares;
use super::{Deparser, NotSent, Typed, bytewise, deterministic, kind, type_name};
use crate::lake_plan::Sql;
use crate::literal::Decimal;
use crate::tree;

/// Objects below this OID are Postgres's own, and their names mean what they say.
const FIRST_FOREIGN_OID: u32 = 10_000;

/// The name of a built-in operator.
pub(super) fn built_in(opno: pg_sys::Oid) -> Result<String, NotSent> {
    // SAFETY: get_opname answers null for what does not exist.
    let name = unsafe { tree::taken(pg_sys::get_opname(opno)) }.unwrap_or_default();
    if opno.to_u32() >= FIRST_FOREIGN_OID {
        return NotSent::because(format!("operator {name}, which is not built in"));
    }
    Ok(name)
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

/// What was found in a query that may be on the list.
pub(super) struct Found {
    pub(super) operands: Vec<Typed>,
    pub(super) collation: pg_sys::Oid,
    pub(super) result: pg_sys::Oid,
    pub(super) distinct: bool,
    pub(super) tail: Sql,
}

impl Default for Found {
    fn default() -> Self {
        let none = pg_sys::Oid::INVALID;
        Self { operands: Vec::new(), collation: none, result: none, distinct: false, tail: Sql::default() }
    }
}

/// What stands within and behind the call of an aggregate.
#[derive(Default)]
pub(super) struct Around {
    pub(super) distinct: bool,
    pub(super) tail: Sql,
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
            let nodes = tree::items::<pg_sys::Node>((*expression).args);
            let collation = (*expression).inputcollid;
            if let [left, right] = nodes[..] {
                if matches!(name.as_str(), "~~" | "!~~") {
                    return self.like(&name, left, right, collation);
                }
                if matches!(name.as_str(), "~" | "!~" | "~*" | "!~*") && pg_sys::exprType(left) == pg_sys::TEXTOID {
                    return self.matches(&name, left, right, collation);
                }
                if matches!(name.as_str(), "#>" | "#>>" | "?|" | "?&") {
                    return self.json_steps(&name, left, right, (*expression).opresulttype);
                }
            }
            let operands = nodes.iter().map(|node| self.expression(*node)).collect::<Result<Vec<_>, NotSent>>()?;
            if let [left, right] = &operands[..] {
                if matches!(name.as_str(), "=" | "<>" | "<" | "<=" | ">" | ">=") {
                    let (left, right) = (left.clone(), right.clone());
                    let (of_left, of_right) = (left.kind(), right.kind());
                    let (left, right) = (self.as_moment(left, of_right)?, self.as_moment(right, of_left)?);
                    return compared(&name, &left, &right, collation);
                }
                if (left.kind(), right.kind()) == (Some(Type::Numeric), Some(Type::Numeric)) {
                    return self.decimal_arithmetic(&name, left.clone(), right.clone());
                }
            }
            let found = Found { operands, collation, result: (*expression).opresulttype, ..Found::default() };
            self.entry(OPERATORS, &name, found)
        }
    }

    /// What the list has for these operands.
    pub(super) fn entry(&mut self, list: &'static [Entry], name: &str, found: Found) -> Result<Typed, NotSent> {
        let types: Vec<String> = found.operands.iter().map(|typed| type_name(typed.oid)).collect();
        let what = format!("{name} of {}", types.join(", "));
        let kinds: Option<Vec<Type>> = found.operands.iter().map(Typed::kind).collect();
        let fits = |entry: &&Entry| entry.words.is_empty() && allows(entry.collation, found.collation);
        let Some(entry) = kinds.and_then(|kinds| find(list, name, &kinds).find(fits)) else {
            return NotSent::because(what);
        };
        if found.operands.iter().any(|operand| operand.unshown) {
            return NotSent::because(format!("{name} of a quotient"));
        }
        if entry.utc {
            self.in_utc(&what)?;
        }
        let first = found.operands.first().and_then(|first| first.decimal);
        let arguments: Vec<Sql> = found.operands.into_iter().map(Typed::exact).collect::<Result<_, NotSent>>()?;
        let around = Around { distinct: found.distinct, tail: found.tail };
        Ok(self.fill(entry, &arguments, first, &around, found.result))
    }

    /// An entry with its arguments, whose first is a numeric of these digits, in place.
    pub(super) fn fill(
        &mut self,
        entry: &Entry,
        arguments: &[Sql],
        first: Decimal,
        around: &Around,
        result: pg_sys::Oid,
    ) -> Typed {
        let sql = entry.pieces().fold(Sql::default(), |sql, piece| match piece {
            Piece::Text(text) => sql + text,
            Piece::Argument(index) => sql + arguments.get(index).cloned().unwrap_or_default(),
            Piece::Distinct => sql + if around.distinct { "DISTINCT " } else { "" },
            Piece::Tail => sql + around.tail.clone(),
        });
        self.throws |= entry.fails;
        let decimal = match entry.digits {
            Digits::None => None,
            Digits::Fixed(precision, scale) => Some((precision, scale)),
            Digits::First => first,
            Digits::Whole => first.map(|(precision, scale)| ((precision - scale + 1).min(38), 0)),
        };
        Typed::new(sql, result, decimal)
    }
}

/// Whether a collation is as an entry wants it. What is not collated has none.
pub(super) fn allows(wanted: Collation, collation: pg_sys::Oid) -> bool {
    match wanted {
        Collation::Any => true,
        Collation::Deterministic => deterministic(collation),
        Collation::Bytes => bytewise(collation),
    }
}

fn compared(name: &str, left: &Typed, right: &Typed, collation: pg_sys::Oid) -> Result<Typed, NotSent> {
    comparable(name, left, right, collation)?;
    Ok(truth(Sql::from("(") + left.sql.clone() + &format!(" {name} ") + right.sql.clone() + ")"))
}

/// Whether both sides compare these alike.
pub(super) fn comparable(name: &str, left: &Typed, right: &Typed, collation: pg_sys::Oid) -> Result<(), NotSent> {
    comparable_types(name, left.oid, right.oid, collation)?;
    if !compares(left.decimal, right.decimal) {
        return NotSent::because("a comparison of numerics that takes more than 38 digits");
    }
    Ok(())
}

/// Whether both sides compare these types alike, but for the digits of numerics.
pub(super) fn comparable_types(
    name: &str,
    left: pg_sys::Oid,
    right: pg_sys::Oid,
    collation: pg_sys::Oid,
) -> Result<(), NotSent> {
    let refuse = || NotSent::because(format!("comparison of {} and {}", type_name(left), type_name(right)));
    let (Some(a), Some(b)) = (kind(left), kind(right)) else { return refuse() };
    let equality = name == "=" || name == "<>";
    if a == Type::Enum && left == right && equality {
        return Ok(());
    }
    if !lake_allowlist::comparable(a, b) {
        return refuse();
    }
    if a.is_collated() && !(if equality { deterministic(collation) } else { bytewise(collation) }) {
        return NotSent::because("text in a linguistic collation");
    }
    Ok(())
}
