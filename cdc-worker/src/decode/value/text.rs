//! Values in the formats of Postgres's output functions, under `source::settings`.

use std::borrow::Cow;
use std::str::FromStr;

use iceberg_writer::PgType;
use uuid::Uuid;

use super::moment::{date_of_text, time_of_text, timestamp_of_text};
use super::{Value, ValueError, double, exact, float, numeric, string, utf8};

/// Reads one value.
pub(super) fn read(pg_type: PgType, raw: &[u8]) -> Result<Value<'_>, ValueError> {
    let text = utf8(raw)?;
    Ok(match pg_type {
        PgType::Bool => match text {
            "t" => Value::Bool(true),
            "f" => Value::Bool(false),
            _ => return Err(ValueError::Malformed),
        },
        PgType::Int2 => Value::Int(i32::from(parsed::<i16>(text)?)),
        PgType::Int4 => Value::Int(parsed(text)?),
        PgType::Int8 => Value::Long(parsed(text)?),
        PgType::Oid => Value::Long(i64::from(parsed::<u32>(text)?)),
        PgType::Xid8 => Value::Decimal(i128::from(parsed::<u64>(text)?)),
        PgType::Money => Value::Long(money(text)?),
        // Postgres prints the shortest digits that tell the value from its neighbours.
        PgType::Float4 => float(parsed(text)?),
        PgType::Float8 => double(parsed(text)?),
        PgType::Numeric { .. } if text == "NaN" => exact(text),
        PgType::Numeric { scale, .. } => Value::Decimal(numeric::unscaled_of_text(text, scale)?),
        PgType::Char => string(text.trim_end_matches(' ')),
        PgType::Bytea => {
            let digits = text.strip_prefix("\\x").ok_or(ValueError::Malformed)?;
            Value::Bytes(Cow::Owned(hex::decode(digits).map_err(|_| ValueError::Malformed)?))
        }
        PgType::Uuid => Value::Uuid(Uuid::try_parse(text).map_err(|_| ValueError::Malformed)?.into_bytes()),
        PgType::Date => date_of_text(text)?,
        PgType::Time => time_of_text(text)?,
        PgType::Timestamp => timestamp_of_text(text, false)?,
        PgType::Timestamptz => timestamp_of_text(text, true)?,
        PgType::NumericText
        | PgType::Text
        | PgType::Varchar
        | PgType::Byte
        | PgType::SameText
        | PgType::Enum
        | PgType::Json
        | PgType::Jsonb
        | PgType::TextForm => string(text),
    })
}

fn parsed<T: FromStr>(text: &str) -> Result<T, ValueError> {
    text.parse().map_err(|_| ValueError::Malformed)
}

/// `-$1,234.56`: what `lc_monetary` C makes of 64 bits.
fn money(text: &str) -> Result<i64, ValueError> {
    let (sign, amount) = text.strip_prefix('-').map_or(("", text), |amount| ("-", amount));
    let amount = amount.strip_prefix('$').ok_or(ValueError::Malformed)?;
    let (whole, cents) = amount.split_once('.').ok_or(ValueError::Malformed)?;
    if cents.len() != 2 {
        return Err(ValueError::Malformed);
    }
    parsed(&format!("{sign}{}{cents}", whole.replace(',', "")))
}
