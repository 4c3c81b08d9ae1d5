//! One value: from Postgres's binary format to what Iceberg holds, losslessly or not at all (I5).
//!
//! The binary formats are those of each type's `*_send` function (`src/backend/utils/adt`). The same bytes arrive from
//! `COPY … (FORMAT binary)` and from pgoutput with `binary 'true'`, so there is one decoder for both.

use std::fmt;

use iceberg_writer::PgType;

/// Days from 1970-01-01 (Iceberg) to 2000-01-01 (Postgres).
pub(super) const EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
pub(super) const EPOCH_MICROS: i64 = 946_684_800_000_000;
/// `24:00:00`, which Postgres has and Iceberg's `time` has not.
const DAY_MICROS: i64 = 86_400_000_000;
/// `jsonb_send` puts this version before the text.
const JSONB_VERSION: u8 = 1;

/// A value as Iceberg holds it, borrowed where it has no fixed width.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    Bool(bool),
    /// int2, int4, date (days since 1970).
    Int(i32),
    /// int8; time, timestamp and timestamptz in microseconds.
    Long(i64),
    Float(f32),
    Double(f64),
    /// The unscaled value.
    Decimal(i128),
    Text(&'a str),
    Bytes(&'a [u8]),
    Uuid([u8; 16]),
}

/// Why a value cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueError {
    /// Iceberg's type has no such value; the name of what it is.
    NotRepresentable(&'static str),
    /// Not the bytes that the type's send function makes.
    Malformed,
    /// Not UTF-8.
    Encoding,
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRepresentable(what) => write!(f, "holds {what}, which the Iceberg type has not"),
            Self::Malformed => f.write_str("arrived in an unexpected binary format"),
            Self::Encoding => f.write_str("is not valid UTF-8"),
        }
    }
}

impl std::error::Error for ValueError {}

fn fixed<const N: usize>(raw: &[u8]) -> Result<[u8; N], ValueError> {
    raw.try_into().map_err(|_| ValueError::Malformed)
}

/// Reads one value of `pg_type` from its binary format.
pub(crate) fn read(pg_type: PgType, raw: &[u8]) -> Result<Value<'_>, ValueError> {
    Ok(match pg_type {
        PgType::Bool => match raw {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            _ => return Err(ValueError::Malformed),
        },
        PgType::Int2 => Value::Int(i32::from(i16::from_be_bytes(fixed(raw)?))),
        PgType::Int4 => Value::Int(i32::from_be_bytes(fixed(raw)?)),
        PgType::Int8 => Value::Long(i64::from_be_bytes(fixed(raw)?)),
        PgType::Float4 => Value::Float(f32::from_be_bytes(fixed(raw)?)),
        PgType::Float8 => Value::Double(f64::from_be_bytes(fixed(raw)?)),
        PgType::Numeric { scale, .. } => Value::Decimal(numeric(raw, scale)?),
        PgType::Text | PgType::Varchar | PgType::Json => text(raw)?,
        PgType::Jsonb => match raw.split_first() {
            Some((&JSONB_VERSION, rest)) => text(rest)?,
            _ => return Err(ValueError::Malformed),
        },
        PgType::Bytea => Value::Bytes(raw),
        PgType::Uuid => Value::Uuid(fixed(raw)?),
        PgType::Date => date(i32::from_be_bytes(fixed(raw)?))?,
        PgType::Time => match i64::from_be_bytes(fixed(raw)?) {
            DAY_MICROS => return Err(ValueError::NotRepresentable("24:00:00")),
            micros => Value::Long(micros),
        },
        PgType::Timestamp | PgType::Timestamptz => timestamp(i64::from_be_bytes(fixed(raw)?))?,
    })
}

fn text(raw: &[u8]) -> Result<Value<'_>, ValueError> {
    std::str::from_utf8(raw).map(Value::Text).map_err(|_| ValueError::Encoding)
}

fn date(days: i32) -> Result<Value<'static>, ValueError> {
    if days == i32::MAX || days == i32::MIN {
        return Err(ValueError::NotRepresentable("an infinite date"));
    }
    let shifted = days.checked_add(EPOCH_DAYS).ok_or(ValueError::NotRepresentable("a date out of range"))?;
    Ok(Value::Int(shifted))
}

fn timestamp(micros: i64) -> Result<Value<'static>, ValueError> {
    if micros == i64::MAX || micros == i64::MIN {
        return Err(ValueError::NotRepresentable("an infinite timestamp"));
    }
    let shifted = micros.checked_add(EPOCH_MICROS).ok_or(ValueError::NotRepresentable("a timestamp out of range"))?;
    Ok(Value::Long(shifted))
}

/// `numeric_send`: number of base-10000 digits, weight of the first, sign, display scale, the digits.
fn numeric(raw: &[u8], scale: u8) -> Result<i128, ValueError> {
    let word = |at: usize| -> Result<u16, ValueError> {
        let pair = raw.get(at * 2..at * 2 + 2).ok_or(ValueError::Malformed)?;
        Ok(u16::from_be_bytes([pair[0], pair[1]]))
    };
    let digits = usize::from(word(0)?);
    let weight = i32::from(word(1)?.cast_signed());
    let negative = match word(2)? {
        0x0000 => false,
        0x4000 => true,
        0xC000 => return Err(ValueError::NotRepresentable("NaN")),
        0xD000 | 0xF000 => return Err(ValueError::NotRepresentable("an infinite numeric")),
        _ => return Err(ValueError::Malformed),
    };
    if raw.len() != 8 + digits * 2 {
        return Err(ValueError::Malformed);
    }
    let overflow = ValueError::NotRepresentable("a numeric wider than its column");
    let mut unscaled: i128 = 0;
    for index in 0..digits {
        let digit = i128::from(word(4 + index)?);
        // This digit counts 10000^place; in units of 10^-scale that is 10^(4*place + scale).
        let place = weight - i32::try_from(index).map_err(|_| ValueError::Malformed)?;
        let exponent = place * 4 + i32::from(scale);
        let part = if exponent >= 0 {
            let factor = 10i128.checked_pow(exponent.unsigned_abs()).ok_or(overflow);
            if digit == 0 { 0 } else { digit.checked_mul(factor?).ok_or(overflow)? }
        } else {
            // At most three decimals of the last digit lie beyond the scale, and they must be zero: nothing is rounded.
            let divisor = 10i128.checked_pow(exponent.unsigned_abs()).ok_or(overflow)?;
            if digit % divisor != 0 {
                return Err(overflow);
            }
            digit / divisor
        };
        unscaled = unscaled.checked_add(part).ok_or(overflow)?;
    }
    Ok(if negative { -unscaled } else { unscaled })
}

/// Appends the canonical bytes of a key part: a length and the value's bits, so that no two keys share bytes.
pub(crate) fn write_key_part(value: Value<'_>, key: &mut Vec<u8>) {
    fn part(bytes: &[u8], key: &mut Vec<u8>) {
        // A key part is at most an index row, far below 4 GiB.
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        key.extend_from_slice(&length.to_be_bytes());
        key.extend_from_slice(bytes);
    }
    match value {
        Value::Bool(value) => part(&[u8::from(value)], key),
        // Biased, so that ascending numbers are ascending bytes and neighbours in the index's blocks.
        Value::Int(value) => part(&(value.cast_unsigned() ^ 0x8000_0000).to_be_bytes(), key),
        Value::Long(value) => part(&(value.cast_unsigned() ^ 0x8000_0000_0000_0000).to_be_bytes(), key),
        Value::Float(value) => part(&value.to_bits().to_be_bytes(), key),
        Value::Double(value) => part(&value.to_bits().to_be_bytes(), key),
        Value::Decimal(value) => part(&value.to_be_bytes(), key),
        Value::Text(value) => part(value.as_bytes(), key),
        Value::Bytes(value) => part(value, key),
        Value::Uuid(value) => part(&value, key),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numeric_bytes(digits: &[u16], weight: i16, sign: u16, dscale: u16) -> Vec<u8> {
        let mut raw = Vec::new();
        for word in [u16::try_from(digits.len()).unwrap(), weight.cast_unsigned(), sign, dscale] {
            raw.extend_from_slice(&word.to_be_bytes());
        }
        for digit in digits {
            raw.extend_from_slice(&digit.to_be_bytes());
        }
        raw
    }

    #[test]
    fn numerics_are_exact_or_refused() {
        let decimal = |precision, scale| PgType::Numeric { precision, scale };
        assert_eq!(read(decimal(10, 2), &numeric_bytes(&[1, 2345, 6700], 1, 0, 2)), Ok(Value::Decimal(1_234_567)));
        assert_eq!(read(decimal(10, 2), &numeric_bytes(&[5000], -1, 0x4000, 2)), Ok(Value::Decimal(-50)));
        assert_eq!(read(decimal(10, 2), &numeric_bytes(&[], 0, 0, 0)), Ok(Value::Decimal(0)));
        assert!(matches!(
            read(decimal(10, 2), &numeric_bytes(&[5050], -1, 0, 3)),
            Err(ValueError::NotRepresentable(_))
        ));
        assert_eq!(read(decimal(10, 2), &numeric_bytes(&[], 0, 0xC000, 0)), Err(ValueError::NotRepresentable("NaN")));
        assert!(matches!(read(decimal(38, 0), &numeric_bytes(&[9], 20, 0, 0)), Err(ValueError::NotRepresentable(_))));
        assert_eq!(read(decimal(10, 2), &[0, 1, 0]), Err(ValueError::Malformed));
    }

    #[test]
    fn what_iceberg_has_not_is_refused() {
        assert!(read(PgType::Date, &i32::MAX.to_be_bytes()).is_err());
        assert!(read(PgType::Timestamp, &i64::MIN.to_be_bytes()).is_err());
        assert!(read(PgType::Timestamptz, &(i64::MAX - 1).to_be_bytes()).is_err());
        assert!(read(PgType::Time, &DAY_MICROS.to_be_bytes()).is_err());
        assert_eq!(read(PgType::Text, &[0xff]), Err(ValueError::Encoding));
        assert_eq!(read(PgType::Date, &0i32.to_be_bytes()), Ok(Value::Int(10_957)));
        assert_eq!(read(PgType::Jsonb, b"\x01{}"), Ok(Value::Text("{}")));
        assert_eq!(read(PgType::Jsonb, b"\x02{}"), Err(ValueError::Malformed));
    }

    proptest! {
        #[test]
        fn numerics_round_trip(unscaled in -(10i128.pow(37))..10i128.pow(37), scale in 0u8..20) {
            // Postgres aligns base-10000 digits to the decimal point.
            let shift = (4 - u32::from(scale) % 4) % 4;
            let mut rest = unscaled.unsigned_abs() * 10u128.pow(shift.min(1));
            prop_assume!(shift <= 1);
            let mut digits = Vec::new();
            while rest > 0 {
                digits.push(u16::try_from(rest % 10_000).unwrap());
                rest /= 10_000;
            }
            digits.reverse();
            let fraction = i16::from(scale.div_ceil(4));
            let weight = i16::try_from(digits.len()).unwrap() - fraction - 1;
            let sign = if unscaled < 0 { 0x4000 } else { 0 };
            let raw = numeric_bytes(&digits, weight, sign, u16::from(scale));
            prop_assert_eq!(read(PgType::Numeric { precision: 38, scale }, &raw), Ok(Value::Decimal(unscaled)));
        }

        #[test]
        fn any_bytes_are_a_value_or_an_error(raw in proptest::collection::vec(any::<u8>(), 0..40)) {
            for pg_type in [PgType::Bool, PgType::Int8, PgType::Numeric { precision: 38, scale: 4 }, PgType::Jsonb,
                            PgType::Timestamp, PgType::Uuid, PgType::Text] {
                let _ = read(pg_type, &raw);
            }
        }

        #[test]
        fn different_keys_have_different_bytes(a in ".{0,8}", b in ".{0,8}", c in ".{0,8}", d in ".{0,8}") {
            let key = |x: &str, y: &str| {
                let mut key = Vec::new();
                write_key_part(Value::Text(x), &mut key);
                write_key_part(Value::Text(y), &mut key);
                key
            };
            prop_assert_eq!(key(&a, &b) == key(&c, &d), (a, b) == (c, d));
        }
    }
}
