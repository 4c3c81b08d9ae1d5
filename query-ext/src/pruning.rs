//! Values of Postgres as the worker compares them with the bounds of files.

use lake_protocol::Value;
use pgrx::prelude::*;

use crate::literal::{EPOCH_DAYS, EPOCH_MICROS, elements};
use crate::tree;

/// Conditions on a table, and values in one, that the worker is told: it compares each with the bounds of each file, between two
/// changes of the source.
pub(crate) const MOST_CONDITIONS: usize = 32;
const MOST_VALUES: usize = 100;
/// Files' bounds of texts are shorter than that.
const LONGEST_TEXT: usize = 1024;

/// Types that are compared with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Integer,
    Date,
    Timestamp,
    TimestampTz,
    Decimal,
    Text,
    Uuid,
}

/// The family of a type, if files can be left out by it.
pub(crate) fn family(oid: pg_sys::Oid) -> Option<Family> {
    Some(match oid {
        pg_sys::INT2OID | pg_sys::INT4OID | pg_sys::INT8OID => Family::Integer,
        pg_sys::DATEOID => Family::Date,
        pg_sys::TIMESTAMPOID => Family::Timestamp,
        pg_sys::TIMESTAMPTZOID => Family::TimestampTz,
        pg_sys::NUMERICOID => Family::Decimal,
        pg_sys::TEXTOID | pg_sys::VARCHAROID => Family::Text,
        pg_sys::UUIDOID => Family::Uuid,
        _ => return None,
    })
}

/// The values of a datum, or of the elements of an array, NULLs aside: of none a comparison is true. `None`: one of them is no
/// value of a file's (an infinite date, a number with more digits than the column's), or they are too many.
///
/// # Safety
/// `value` is a datum of type `oid`, unless it is NULL.
pub(crate) unsafe fn values(
    value: pg_sys::Datum,
    is_null: bool,
    oid: pg_sys::Oid,
    scale: Option<u8>,
) -> Option<Vec<Value>> {
    if is_null {
        return Some(Vec::new());
    }
    // SAFETY: per the contract.
    unsafe {
        let element = pg_sys::get_element_type(oid);
        if element == pg_sys::Oid::INVALID {
            return Some(vec![one(value, oid, scale)?]);
        }
        let mut known = elements(value, element);
        known.retain(|(_, is_null)| !is_null);
        if known.len() > MOST_VALUES {
            return None;
        }
        known.into_iter().map(|(value, _)| one(value, element, scale)).collect()
    }
}

unsafe fn one(value: pg_sys::Datum, oid: pg_sys::Oid, scale: Option<u8>) -> Option<Value> {
    let micros = |value: i64| {
        let is_finite = value != i64::MIN && value != i64::MAX;
        value.checked_add(EPOCH_MICROS).filter(|_| is_finite).map(Value::Integer)
    };
    // SAFETY: the caller's datum is of this type; each branch reads it so.
    unsafe {
        match oid {
            pg_sys::INT2OID => Some(Value::Integer(i64::from(i16::from_datum(value, false)?))),
            pg_sys::INT4OID => Some(Value::Integer(i64::from(i32::from_datum(value, false)?))),
            pg_sys::INT8OID => Some(Value::Integer(i64::from_datum(value, false)?)),
            pg_sys::DATEOID => {
                let days = i32::from_datum(value, false)?;
                let is_finite = days != i32::MIN && days != i32::MAX;
                is_finite.then(|| Value::Integer(i64::from(days) + i64::from(EPOCH_DAYS)))
            }
            pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID => micros(i64::from_datum(value, false)?),
            pg_sys::TEXTOID | pg_sys::VARCHAROID => {
                let text = tree::taken(pg_sys::text_to_cstring(value.cast_mut_ptr()))?;
                (text.len() <= LONGEST_TEXT).then_some(Value::Text(text))
            }
            pg_sys::UUIDOID => {
                let bytes = value.cast_mut_ptr::<[u8; 16]>().read_unaligned();
                Some(Value::Uuid(u128::from_be_bytes(bytes)))
            }
            pg_sys::NUMERICOID => {
                let text = pg_sys::OidOutputFunctionCall(pg_sys::F_NUMERIC_OUT.into(), value);
                decimal(&tree::taken(text)?, scale?)
            }
            _ => None,
        }
    }
}

/// A number as Postgres prints it, with so many digits behind the point.
fn decimal(text: &str, scale: u8) -> Option<Value> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fraction = fraction.trim_end_matches('0');
    let zeros = usize::from(scale).checked_sub(fraction.len())?;
    let unscaled = format!("{whole}{fraction}{}", "0".repeat(zeros)).parse().ok()?;
    Some(Value::Decimal { unscaled, scale })
}
