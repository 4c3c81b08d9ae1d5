//! Values in the formats of Postgres's send functions.

use std::borrow::Cow;

use iceberg_writer::PgType;

use super::moment::{DAY_MICROS, date, timestamp};
use super::{Value, ValueError, byte, double, exact, float, numeric, string, utf8};

/// `jsonb_send` puts this version before the text.
const JSONB_VERSION: u8 = 1;

fn fixed<const N: usize>(raw: &[u8]) -> Result<[u8; N], ValueError> {
    raw.try_into().map_err(|_| ValueError::Malformed)
}

/// Reads one value.
pub(super) fn read(pg_type: PgType, raw: &[u8]) -> Result<Value<'_>, ValueError> {
    Ok(match pg_type {
        PgType::Bool => match raw {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            _ => return Err(ValueError::Malformed),
        },
        PgType::Int2 => Value::Int(i32::from(i16::from_be_bytes(fixed(raw)?))),
        PgType::Int4 => Value::Int(i32::from_be_bytes(fixed(raw)?)),
        PgType::Int8 | PgType::Money => Value::Long(i64::from_be_bytes(fixed(raw)?)),
        PgType::Oid => Value::Long(i64::from(u32::from_be_bytes(fixed(raw)?))),
        PgType::Xid8 => Value::Decimal(i128::from(u64::from_be_bytes(fixed(raw)?))),
        PgType::Float4 => float(f32::from_be_bytes(fixed(raw)?)),
        PgType::Float8 => double(f64::from_be_bytes(fixed(raw)?)),
        PgType::Numeric { .. } if numeric::is_nan(raw) => exact("NaN"),
        PgType::Numeric { scale, .. } => Value::Decimal(numeric::unscaled(raw, scale)?),
        PgType::NumericText => Value::Text(Cow::Owned(numeric::print(raw)?)),
        PgType::Text | PgType::Varchar | PgType::Json | PgType::SameText | PgType::Enum => string(utf8(raw)?),
        PgType::Char => string(utf8(raw)?.trim_end_matches(' ')),
        PgType::Byte => match raw {
            [value] => byte(*value),
            _ => return Err(ValueError::Malformed),
        },
        PgType::Jsonb => match raw.split_first() {
            Some((&JSONB_VERSION, rest)) => string(utf8(rest)?),
            _ => return Err(ValueError::Malformed),
        },
        PgType::Bytea => Value::Bytes(Cow::Borrowed(raw)),
        PgType::Uuid => Value::Uuid(fixed(raw)?),
        PgType::Date => date(i32::from_be_bytes(fixed(raw)?))?,
        PgType::Time => match i64::from_be_bytes(fixed(raw)?) {
            DAY_MICROS => exact("24:00:00"),
            micros => Value::Long(micros),
        },
        PgType::Timestamp => timestamp(i64::from_be_bytes(fixed(raw)?), false),
        PgType::Timestamptz => timestamp(i64::from_be_bytes(fixed(raw)?), true),
        PgType::TextForm => return Err(ValueError::NotText),
    })
}
