//! One value: from Postgres's binary or text format to what Iceberg holds, losslessly or not at all (I5).
//!
//! The binary formats are those of each type's `*_send` function (`src/backend/utils/adt`), the text formats those of its
//! output function under `source::settings`. The stream marks each value with its format. Whichever it is, the same value
//! becomes the same [`Value`], and so the same key: a row that was copied in one format is found by a change in the other.

mod binary;
mod moment;
mod numeric;
mod text;

use std::borrow::Cow;
use std::fmt;

use iceberg_writer::{PgType, TableSpec};

pub(super) use moment::{EPOCH_DAYS, since_1970};

/// A value as Iceberg holds it, borrowed where its bytes are those that arrived.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value<'a> {
    Bool(bool),
    /// int2, int4, date (days since 1970).
    Int(i32),
    /// int8, oid, money; time, timestamp and timestamptz in microseconds.
    Long(i64),
    Float(f32),
    Double(f64),
    /// The unscaled value.
    Decimal(i128),
    Text(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    Uuid([u8; 16]),
    /// What Iceberg's type has not, as Postgres prints it: `infinity`, `NaN`, `24:00:00`.
    Exact(Cow<'a, str>),
}

/// Why a value cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueError {
    /// Not a value of the column's type; the name of what it is.
    NotRepresentable(&'static str),
    /// Not the bytes that the type's send or output function makes.
    Malformed,
    /// Not UTF-8.
    Encoding,
    /// In the binary format of a type that is held in its text form.
    NotText,
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRepresentable(what) => write!(f, "holds {what}, which its type has not"),
            Self::Malformed => f.write_str("arrived in an unexpected format"),
            Self::Encoding => f.write_str("is not valid UTF-8"),
            Self::NotText => f.write_str("arrived in a binary format, though its text is what is kept"),
        }
    }
}

impl std::error::Error for ValueError {}

/// Reads one value of `pg_type` from its binary format.
pub(crate) fn read_binary(pg_type: PgType, raw: &[u8]) -> Result<Value<'_>, ValueError> {
    binary::read(pg_type, raw)
}

/// Reads one value of `pg_type` from its text format.
pub(crate) fn read_text(pg_type: PgType, raw: &[u8]) -> Result<Value<'_>, ValueError> {
    text::read(pg_type, raw)
}

/// Whether the stream has to send the table's values in their text format.
pub(crate) fn needs_text(spec: &TableSpec) -> bool {
    spec.columns.iter().any(|column| column.pg_type == PgType::TextForm)
}

fn utf8(raw: &[u8]) -> Result<&str, ValueError> {
    std::str::from_utf8(raw).map_err(|_| ValueError::Encoding)
}

fn string(text: &str) -> Value<'_> {
    Value::Text(Cow::Borrowed(text))
}

/// A value that Iceberg's type has not, as Postgres prints it.
fn exact(text: &str) -> Value<'_> {
    Value::Exact(Cow::Borrowed(text))
}

/// A `"char"`: the character, or `\ooo` for a byte that is none by itself, as Postgres prints it.
fn byte(byte: u8) -> Value<'static> {
    Value::Text(match byte {
        0 => Cow::Borrowed(""),
        1..=127 => Cow::Owned(char::from(byte).to_string()),
        128.. => Cow::Owned(format!("\\{byte:03o}")),
    })
}

/// All `NaN`s are one to Postgres, and its text has no other.
fn float(value: f32) -> Value<'static> {
    Value::Float(if value.is_nan() { f32::NAN } else { value })
}

fn double(value: f64) -> Value<'static> {
    Value::Double(if value.is_nan() { f64::NAN } else { value })
}

/// Set in the length of a key part that is exact text: what the column's own type has is never so long.
const EXACT_PART: u32 = 1 << 31;

/// Appends the canonical bytes of a key part: a length and the value's bits, so that no two keys share bytes.
///
/// Postgres's unique index may call values equal that differ here (`1.0` and `1.00`, `0` and `-0`, letters of `citext`). That
/// is as it should be: it sends the old key with every update that changes the key's bytes, equal or not, and these are the
/// bytes by which the row was entered.
pub(crate) fn write_key_part(value: &Value<'_>, key: &mut Vec<u8>) {
    fn part(bytes: &[u8], key: &mut Vec<u8>) {
        marked(bytes, 0, key);
    }
    fn marked(bytes: &[u8], mark: u32, key: &mut Vec<u8>) {
        // A key part is at most an index row, and a value at most 1 GB.
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        key.extend_from_slice(&(length | mark).to_be_bytes());
        key.extend_from_slice(bytes);
    }
    match value {
        Value::Bool(value) => part(&[u8::from(*value)], key),
        // Biased, so that ascending numbers are ascending bytes and neighbours in the index's blocks.
        Value::Int(value) => part(&(value.cast_unsigned() ^ 0x8000_0000).to_be_bytes(), key),
        Value::Long(value) => part(&(value.cast_unsigned() ^ 0x8000_0000_0000_0000).to_be_bytes(), key),
        Value::Float(value) => part(&value.to_bits().to_be_bytes(), key),
        Value::Double(value) => part(&value.to_bits().to_be_bytes(), key),
        Value::Decimal(value) => part(&value.to_be_bytes(), key),
        Value::Text(value) => part(value.as_bytes(), key),
        Value::Bytes(value) => part(value, key),
        Value::Uuid(value) => part(value, key),
        Value::Exact(text) => marked(text.as_bytes(), EXACT_PART, key),
    }
}

#[cfg(test)]
mod tests;
