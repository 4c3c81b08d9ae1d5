//! The commonest values, from the wire into their column without a stop in between.
//!
//! [`value::read_binary`](super::value::read_binary) says what a value is; this says nothing else, only sooner, and of whatever is unusual it says
//! nothing at all. A copy has tens of millions of values, and as many branches as they would take otherwise are a tenth of its
//! time.

use arrow_array::Array;
use arrow_array::builder::{
    Decimal128Builder, Float64Builder, Int32Builder, Int64Builder, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow_array::cast::AsArray as _;
use iceberg_writer::PgType;

use super::row::Column;
use super::value::{EPOCH_DAYS, since_1970};

/// Appends a value if that is all there is to do. False: nothing has been done.
#[inline]
pub(super) fn append(column: &mut Column, pg_type: PgType, raw: &[u8]) -> bool {
    match (pg_type, column) {
        (PgType::Int8, Column::Long(to)) => number(raw, i64::from_be_bytes, |value| to.append_value(value)),
        (PgType::Int4, Column::Int(to)) => number(raw, i32::from_be_bytes, |value| to.append_value(value)),
        (PgType::Int2, Column::Int(to)) => number(raw, i16::from_be_bytes, |value| to.append_value(i32::from(value))),
        (PgType::Float8, Column::Double(to)) => {
            let value = fixed(raw).map(f64::from_be_bytes).filter(|value| !value.is_nan());
            value.map(|value| to.append_value(value)).is_some()
        }
        (PgType::Float4, Column::Float(to)) => {
            let value = fixed(raw).map(f32::from_be_bytes).filter(|value| !value.is_nan());
            value.map(|value| to.append_value(value)).is_some()
        }
        (PgType::Text | PgType::Varchar, Column::Text(to)) => match std::str::from_utf8(raw) {
            Ok(text) => {
                to.append_value(text);
                true
            }
            Err(_) => false,
        },
        (PgType::Timestamp | PgType::Timestamptz, Column::Timestamp(to)) => {
            // The infinities are the greatest and the least.
            let Some(micros) = fixed(raw).map(i64::from_be_bytes).filter(|micros| *micros != i64::MIN) else {
                return false;
            };
            since_1970(micros).map(|micros| to.append_value(micros)).is_some()
        }
        (PgType::Date, Column::Date(to)) => {
            let Some(days) = fixed(raw).map(i32::from_be_bytes).filter(|days| *days != i32::MIN) else { return false };
            days.checked_add(EPOCH_DAYS).map(|days| to.append_value(days)).is_some()
        }
        (PgType::Numeric { scale, .. }, Column::Decimal(to)) => match decimal(raw, scale) {
            Some(value) => {
                to.append_value(value);
                true
            }
            None => false,
        },
        _ => false,
    }
}

/// Most bytes of text that room is made for ahead: one batch of wide rows does not tell that the next is one too.
const TEXT_ROOM: usize = 4 << 20;

/// Makes room in an empty column for as much as another batch has, of the commonest types.
pub(super) fn make_room(column: &mut Column, other: &dyn Array) {
    let rows = other.len();
    match column {
        Column::Long(to) => *to = Int64Builder::with_capacity(rows),
        Column::Int(to) => *to = Int32Builder::with_capacity(rows),
        Column::Double(to) => *to = Float64Builder::with_capacity(rows),
        Column::Text(to) => {
            let bytes = other.as_string::<i32>().value_data().len();
            *to = StringBuilder::with_capacity(rows, bytes.min(TEXT_ROOM));
        }
        Column::Timestamp(to) => {
            *to = TimestampMicrosecondBuilder::with_capacity(rows).with_data_type(other.data_type().clone());
        }
        Column::Decimal(to) => *to = Decimal128Builder::with_capacity(rows).with_data_type(other.data_type().clone()),
        _ => {}
    }
}

/// Appends the bytes that stand for a value in an identity, as
/// [`value::write_key_part`](super::value::write_key_part) has them. False: nothing has been done.
#[inline]
pub(super) fn append_key_part(pg_type: PgType, raw: &[u8], key: &mut Vec<u8>) -> bool {
    match pg_type {
        PgType::Int8 => {
            let Some([first, rest @ ..]) = fixed::<8>(raw) else { return false };
            let [b, c, d, e, f, g, h] = rest;
            key.extend_from_slice(&[0, 0, 0, 8, first ^ 0x80, b, c, d, e, f, g, h]);
            true
        }
        PgType::Int4 => {
            let Some([first, b, c, d]) = fixed::<4>(raw) else { return false };
            key.extend_from_slice(&[0, 0, 0, 4, first ^ 0x80, b, c, d]);
            true
        }
        PgType::Uuid if raw.len() == 16 => {
            key.extend_from_slice(&16u32.to_be_bytes());
            key.extend_from_slice(raw);
            true
        }
        _ => false,
    }
}

fn fixed<const N: usize>(raw: &[u8]) -> Option<[u8; N]> {
    raw.try_into().ok()
}

fn number<T, const N: usize>(raw: &[u8], read: fn([u8; N]) -> T, append: impl FnOnce(T)) -> bool {
    fixed(raw).map(|bytes| append(read(bytes))).is_some()
}

/// Powers of ten that take a digit of a numeric to its place.
const TENS: [i64; 19] = {
    let mut tens = [1; 19];
    let mut at = 1;
    while at < tens.len() {
        tens[at] = tens[at - 1] * 10;
        at += 1;
    }
    tens
};

/// A numeric of few digits, of which the first four bytes of eight are their number and the place of the first, the others
/// the sign and the scale for display.
fn decimal(raw: &[u8], scale: u8) -> Option<i128> {
    let (header, digits) = raw.split_first_chunk::<8>()?;
    let word = |at: usize| i16::from_be_bytes([header[at], header[at + 1]]);
    let (count, weight, sign) = (word(0), word(2), word(4));
    // Four digits of base 10,000 and their places fit into 64 bits, and so do their sums.
    if digits.len() != usize::try_from(count).ok()? * 2 || count > 4 {
        return None;
    }
    let mut unscaled: i64 = 0;
    let mut exponent = i32::from(weight) * 4 + i32::from(scale);
    for digit in digits.chunks_exact(2) {
        let digit = i64::from(u16::from_be_bytes([digit[0], digit[1]]));
        let part = if exponent >= 0 {
            // Below 10⁴ · 10¹³, unless the digit is none: the sum of four of them cannot overflow.
            let tens = TENS.get(usize::try_from(exponent).ok()?).filter(|_| exponent <= 13 && digit < 10_000)?;
            digit * tens
        } else {
            let tens = TENS.get(usize::try_from(-exponent).ok()?)?;
            if digit % tens != 0 {
                return None;
            }
            digit / tens
        };
        unscaled += part;
        exponent -= 4;
    }
    match sign {
        0 => Some(i128::from(unscaled)),
        0x4000 => Some(i128::from(-unscaled)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use arrow_schema::DataType;
    use proptest::prelude::*;

    use super::super::value;
    use super::*;

    /// Both ways into an identity.
    fn compare_keys(raw: &[u8]) -> Result<(), TestCaseError> {
        for pg_type in [PgType::Int8, PgType::Int4, PgType::Uuid, PgType::Text] {
            let (mut quick, mut slow) = (vec![7], vec![7]);
            if append_key_part(pg_type, raw, &mut quick) {
                value::write_key_part(&value::read_binary(pg_type, raw).unwrap(), &mut slow);
            }
            prop_assert_eq!(quick, slow);
        }
        Ok(())
    }

    const TYPES: [(PgType, DataType); 10] = [
        (PgType::Int8, DataType::Int64),
        (PgType::Int4, DataType::Int32),
        (PgType::Int2, DataType::Int32),
        (PgType::Float8, DataType::Float64),
        (PgType::Float4, DataType::Float32),
        (PgType::Text, DataType::Utf8),
        (PgType::Timestamp, DataType::Timestamp(arrow_schema::TimeUnit::Microsecond, None)),
        (PgType::Date, DataType::Date32),
        (PgType::Numeric { precision: 18, scale: 4 }, DataType::Decimal128(18, 4)),
        (PgType::Numeric { precision: 38, scale: 0 }, DataType::Decimal128(38, 0)),
    ];

    /// Both ways into a column, side by side: bytes that are a value to the quick one are the same value to the other.
    fn compare(raw: &[u8]) -> Result<usize, TestCaseError> {
        let mut taken = 0;
        for (pg_type, data_type) in TYPES {
            let mut quick = Column::new(&data_type).unwrap();
            if !append(&mut quick, pg_type, raw) {
                // Nothing was done.
                prop_assert_eq!(quick.finish().len(), 0);
                continue;
            }
            taken += 1;
            let mut slow = Column::new(&data_type).unwrap();
            let value = value::read_binary(pg_type, raw);
            prop_assert!(value.is_ok(), "{:?} took {:?}: {:?}", pg_type, raw, value);
            slow.append(value.ok()).unwrap();
            prop_assert_eq!(&quick.finish(), &slow.finish());
        }
        Ok(taken)
    }

    proptest! {
        #[test]
        fn whatever_it_takes_it_takes_for_what_it_is(raw in proptest::collection::vec(any::<u8>(), 0..18)) {
            compare(&raw)?;
            compare_keys(&raw)?;
        }

        /// Numerics as the server sends them, and some that it does not.
        #[test]
        fn numerics_are_what_they_are(
            digits in proptest::collection::vec(prop_oneof![0u16..10_000, 0u16..3, Just(5000), any::<u16>()], 0..6),
            weight in -6i16..10, sign in prop_oneof![Just(0u16), Just(0x4000), Just(0xC000), any::<u16>()],
        ) {
            let count = u16::try_from(digits.len()).unwrap();
            let header = [count, weight.cast_unsigned(), sign, 4];
            let raw: Vec<u8> = header.iter().chain(&digits).flat_map(|word| word.to_be_bytes()).collect();
            compare(&raw)?;
        }
    }

    #[test]
    fn common_values_are_taken_and_edges_are_left() {
        let amount: Vec<u8> = [2u16, 0, 0, 2, 1234, 5600].iter().flat_map(|word| word.to_be_bytes()).collect();
        assert_eq!(decimal(&amount, 4), Some(12_345_600));
        // Of eight bytes also a text, and a numeric without digits.
        assert_eq!(compare(&7i64.to_be_bytes()).unwrap(), 6);
        let mut key = Vec::new();
        assert!(append_key_part(PgType::Int8, &7i64.to_be_bytes(), &mut key) && key.len() == 12);
        // The infinities, and the first that is too far from 1970.
        for infinite in [i64::MIN, i64::MAX, i64::MAX - 946_684_800_000_000] {
            let mut column = Column::new(&TYPES[6].1).unwrap();
            assert!(!append(&mut column, PgType::Timestamp, &infinite.to_be_bytes()));
        }
        for infinite in [i32::MIN, i32::MAX] {
            assert!(!append(&mut Column::new(&DataType::Date32).unwrap(), PgType::Date, &infinite.to_be_bytes()));
        }
    }
}
