//! DuckDB's columns as Postgres datums, a column of a chunk at a time.

use lake_engine::{ColumnKind, Vector};
use pgrx::prelude::*;

use crate::input::Input;
use crate::literal::{EPOCH_DAYS, EPOCH_MICROS};
use crate::numeric::{numeric, numerics};
use crate::room::Room;

/// Converts the rows of a column, into the current memory context.
///
/// # Errors
/// When DuckDB's column does not hold what the Postgres type needs; that is a mistake of ours.
///
/// # Safety
/// `vector` is a column of a live chunk with `values.len()` rows, of this kind.
pub(crate) unsafe fn column(
    kind: ColumnKind,
    vector: Vector,
    oid: pg_sys::Oid,
    typmod: i32,
    values: &mut [pg_sys::Datum],
    nulls: &mut [bool],
) -> Result<(), String> {
    macro_rules! each {
        ($native:ty, $convert:expr) => {{
            let convert = &mut $convert;
            for row in 0..values.len() {
                // SAFETY: the row is within the chunk, and read as its kind's type.
                unsafe {
                    nulls[row] = vector.is_null(row);
                    if !nulls[row] {
                        values[row] = convert(vector.value::<$native>(row));
                    }
                }
            }
        }};
    }
    macro_rules! each_text {
        ($convert:expr) => {{
            let convert = &mut $convert;
            for row in 0..values.len() {
                // SAFETY: as above; the bytes live as long as the chunk.
                unsafe {
                    nulls[row] = vector.is_null(row);
                    if !nulls[row] {
                        values[row] = convert(vector.bytes(row));
                    }
                }
            }
        }};
    }
    match (kind, oid) {
        (ColumnKind::Bool, pg_sys::BOOLOID) => each!(u8, |value: u8| pg_sys::Datum::from(value != 0)),
        (ColumnKind::Int16, pg_sys::INT2OID) => each!(i16, pg_sys::Datum::from),
        (ColumnKind::Int32, pg_sys::INT4OID) => each!(i32, pg_sys::Datum::from),
        (ColumnKind::Int64, pg_sys::INT8OID) => each!(i64, pg_sys::Datum::from),
        (ColumnKind::Float, pg_sys::FLOAT4OID) => {
            each!(f32, |value: f32| pg_sys::Datum::from(value.to_bits() as usize));
        }
        (ColumnKind::Double, pg_sys::FLOAT8OID) => {
            each!(f64, |value: f64| pg_sys::Datum::from(value.to_bits().cast_signed()));
        }
        (ColumnKind::Date, pg_sys::DATEOID) => each!(i32, |days| pg_sys::Datum::from(date(days))),
        (ColumnKind::Time, pg_sys::TIMEOID) => each!(i64, pg_sys::Datum::from),
        (ColumnKind::Timestamp, pg_sys::TIMESTAMPOID) | (ColumnKind::TimestampTz, pg_sys::TIMESTAMPTZOID) => {
            each!(i64, |micros| pg_sys::Datum::from(timestamp(micros)));
        }
        (ColumnKind::Uuid, pg_sys::UUIDOID) => each!(i128, |value: i128| {
            let bytes = (value ^ i128::MIN).to_be_bytes();
            // SAFETY: 16 fresh bytes.
            unsafe {
                let uuid = pg_sys::palloc(16).cast::<u8>();
                uuid.copy_from_nonoverlapping(bytes.as_ptr(), 16);
                pg_sys::Datum::from(uuid)
            }
        }),
        (ColumnKind::Decimal { scale, bytes }, pg_sys::NUMERICOID) => {
            let mut room = numerics(values.len());
            match bytes {
                2 => each!(i16, |value: i16| numeric(&mut room, i128::from(value), scale)),
                4 => each!(i32, |value: i32| numeric(&mut room, i128::from(value), scale)),
                8 => each!(i64, |value: i64| numeric(&mut room, i128::from(value), scale)),
                _ => each!(i128, |value| numeric(&mut room, value, scale)),
            }
        }
        (ColumnKind::Huge, pg_sys::NUMERICOID) => {
            let mut room = numerics(values.len());
            each!(i128, |value| numeric(&mut room, value, 0));
        }
        (ColumnKind::Int64, pg_sys::OIDOID | pg_sys::XIDOID | pg_sys::CIDOID) => {
            // 32 bits without a sign, when they were written.
            each!(i64, |value: i64| pg_sys::Datum::from(u32::try_from(value).unwrap_or_default()));
        }
        (ColumnKind::Int64, pg_sys::MONEYOID) => each!(i64, pg_sys::Datum::from),
        (ColumnKind::Decimal { scale: 0, bytes: 16 }, pg_sys::XID8OID) => {
            each!(i128, |value: i128| pg_sys::Datum::from(u64::try_from(value).unwrap_or_default()));
        }
        (ColumnKind::Text, pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::JSONOID | pg_sys::XMLOID)
        | (ColumnKind::Blob, pg_sys::BYTEAOID) => {
            // SAFETY: a column of strings, in a live chunk of so many rows.
            if let Some(mut room) = unsafe { Room::of_strings(vector, values.len()) } {
                each_text!(|bytes: &[u8]| room.varlena(&[bytes]));
            } else {
                each_text!(varlena);
            }
        }
        (ColumnKind::Text, pg_sys::JSONBOID) => each_text!(jsonb),
        (ColumnKind::Text, pg_sys::BPCHAROID) if typmod >= 4 => {
            // SAFETY: on the main thread, as everything here.
            each_text!(|text: &[u8]| unsafe { padded(text, typmod) });
        }
        (ColumnKind::Text, oid) => {
            // SAFETY: the type of a column; it is looked up and used within one chunk's context.
            let mut input = unsafe { Input::of(oid, typmod) };
            // SAFETY: on the main thread, as everything here.
            each_text!(|text: &[u8]| unsafe { input.read(text) });
            // SAFETY: begun above.
            unsafe { input.end() };
        }
        (kind, oid) => return Err(format!("DuckDB delivered {kind:?} for type {}", crate::deparse::type_name(oid))),
    }
    Ok(())
}

/// Days since 2000. The infinities of DuckDB are a number and its negative, those of Postgres the greatest and the least.
fn date(days: i32) -> i32 {
    match days {
        i32::MAX => i32::MAX,
        MINUS_INFINITE_DATE => i32::MIN,
        _ => days - EPOCH_DAYS,
    }
}

/// Microseconds since 2000, likewise.
fn timestamp(micros: i64) -> i64 {
    match micros {
        i64::MAX => i64::MAX,
        MINUS_INFINITE_TIMESTAMP => i64::MIN,
        _ => micros - EPOCH_MICROS,
    }
}

const MINUS_INFINITE_DATE: i32 = -i32::MAX;
const MINUS_INFINITE_TIMESTAMP: i64 = -i64::MAX;

/// Text and bytea alike: a length and the bytes.
unsafe fn varlena(bytes: &[u8]) -> pg_sys::Datum {
    let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    // SAFETY: copies `length` bytes; palloc raises when that is more than a datum can be.
    pg_sys::Datum::from(unsafe { pg_sys::cstring_to_text_with_len(bytes.as_ptr().cast(), length) })
}

/// `character(n)`, with the blanks that the lake leaves out.
unsafe fn padded(bytes: &[u8], typmod: i32) -> pg_sys::Datum {
    let length = usize::try_from(typmod - 4).unwrap_or(0);
    // Bytes that begin a character.
    let letters = bytes.iter().filter(|byte| (**byte & 0xc0) != 0x80).count();
    let mut text = bytes.to_vec();
    text.resize(bytes.len() + length.saturating_sub(letters), b' ');
    // SAFETY: as for any text.
    unsafe { varlena(&text) }
}

unsafe fn jsonb(bytes: &[u8]) -> pg_sys::Datum {
    let mut text = bytes.to_vec();
    text.push(0);
    // SAFETY: jsonb_in reads a NUL-terminated string.
    unsafe {
        pg_sys::OidInputFunctionCall(
            pg_sys::Oid::from(pg_sys::F_JSONB_IN),
            text.as_mut_ptr().cast(),
            pg_sys::Oid::INVALID,
            -1,
        )
    }
}
