//! Postgres values as DuckDB literals, always with their type; and the types' DuckDB names.

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::tree;

/// Days from 1970 to Postgres's 2000.
pub(crate) const EPOCH_DAYS: i32 = 10_957;
/// Microseconds from 1970 to Postgres's 2000.
pub(crate) const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Precision and scale of a numeric expression, where both are known for every value of it.
pub(crate) type Decimal = Option<(u8, u8)>;

/// Precision and scale in a numeric's type modifier.
pub(crate) fn decimal_of_typmod(typmod: i32) -> Decimal {
    let packed = typmod - i32::try_from(pg_sys::VARHDRSZ).unwrap_or(4);
    let (precision, scale) = ((packed >> 16) & 0xffff, packed & 0x7ff);
    if typmod < 0 || !(1..=38).contains(&precision) || scale > precision {
        return None;
    }
    Some((u8::try_from(precision).ok()?, u8::try_from(scale).ok()?))
}

/// The DuckDB type of a Postgres type; `None` when DuckDB has no equal.
pub(crate) fn duckdb_type(oid: pg_sys::Oid, decimal: Decimal) -> Option<String> {
    Some(
        match oid {
            pg_sys::BOOLOID => "BOOLEAN",
            pg_sys::INT2OID => "SMALLINT",
            pg_sys::INT4OID => "INTEGER",
            pg_sys::INT8OID => "BIGINT",
            pg_sys::FLOAT4OID => "FLOAT",
            pg_sys::FLOAT8OID => "DOUBLE",
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID | pg_sys::JSONOID | pg_sys::JSONBOID => "VARCHAR",
            pg_sys::BYTEAOID => "BLOB",
            pg_sys::DATEOID => "DATE",
            pg_sys::TIMEOID => "TIME",
            pg_sys::TIMESTAMPOID => "TIMESTAMP",
            pg_sys::TIMESTAMPTZOID => "TIMESTAMPTZ",
            pg_sys::UUIDOID => "UUID",
            pg_sys::INTERVALOID => "INTERVAL",
            pg_sys::NUMERICOID => {
                let (precision, scale) = decimal?;
                return Some(format!("DECIMAL({precision},{scale})"));
            }
            // Its label.
            // SAFETY: a lookup in the catalog, which answers for every OID.
            _ if unsafe { pg_sys::type_is_enum(oid) } => "VARCHAR",
            _ => return None,
        }
        .into(),
    )
}

/// The type that a domain is made from, and its modifier; any other type itself.
pub(crate) fn base_type(oid: pg_sys::Oid, typmod: i32) -> (pg_sys::Oid, i32) {
    let mut modifier = typmod;
    // SAFETY: a lookup in the catalog, which raises for a type that does not exist.
    let base = unsafe { pg_sys::getBaseTypeAndTypmod(oid, &raw mut modifier) };
    (base, modifier)
}

/// The type in which a scan delivers a column of a mirrored table: its DuckDB equal, or what the worker's `PgType` holds it
/// as. `None`: the column was dropped.
pub(crate) fn stored_type(oid: pg_sys::Oid, typmod: i32) -> Option<String> {
    if oid == pg_sys::Oid::INVALID {
        return None;
    }
    let (base, typmod) = base_type(oid, typmod);
    Some(scan_type(base, typmod).unwrap_or_else(|| {
        match base {
            pg_sys::OIDOID | pg_sys::XIDOID | pg_sys::CIDOID | pg_sys::MONEYOID => "BIGINT",
            pg_sys::XID8OID => "DECIMAL(20,0)",
            _ => "VARCHAR",
        }
        .into()
    }))
}

/// The type in which a scan delivers a column that expressions may use: a `smallint` is an int in Iceberg, and stays one until
/// it is an output. `None`: DuckDB has no equal of the type, and only Postgres can look at its values.
pub(crate) fn scan_type(oid: pg_sys::Oid, typmod: i32) -> Option<String> {
    match oid {
        pg_sys::INT2OID => Some("INTEGER".into()),
        // In the lake it is text.
        pg_sys::INTERVALOID => None,
        // Without a length it keeps its trailing blanks, and then equal values are not the same text.
        pg_sys::BPCHAROID if typmod < 0 => None,
        _ => duckdb_type(oid, decimal_of_typmod(typmod)),
    }
}

/// A value as a literal, and its precision and scale when it is a numeric; `None` when DuckDB cannot have it.
///
/// # Safety
/// `value` is a datum of type `oid`.
pub(crate) unsafe fn literal(value: pg_sys::Datum, is_null: bool, oid: pg_sys::Oid) -> Option<(String, Decimal)> {
    if is_null {
        // A numeric NULL takes any scale; 0 is the one that never widens another.
        let decimal = (oid == pg_sys::NUMERICOID).then_some((1, 0));
        return Some((format!("CAST(NULL AS {})", duckdb_type(oid, decimal)?), decimal));
    }
    // SAFETY: per the contract, each branch reads the datum as its type.
    unsafe {
        let text = match oid {
            pg_sys::BOOLOID => return Some((if value.value() != 0 { "true" } else { "false" }.into(), None)),
            pg_sys::INT2OID => format!("CAST({} AS SMALLINT)", i16::from_datum(value, false)?),
            pg_sys::INT4OID => format!("CAST({} AS INTEGER)", i32::from_datum(value, false)?),
            pg_sys::INT8OID => format!("CAST('{}' AS BIGINT)", i64::from_datum(value, false)?),
            pg_sys::FLOAT4OID => float("FLOAT", f64::from(f32::from_datum(value, false)?)),
            pg_sys::FLOAT8OID => float("DOUBLE", f64::from_datum(value, false)?),
            pg_sys::TEXTOID | pg_sys::VARCHAROID => {
                let text = tree::taken(pg_sys::text_to_cstring(value.cast_mut_ptr()))?;
                format!("CAST('{}' AS VARCHAR)", text.replace('\'', "''"))
            }
            pg_sys::BPCHAROID => {
                let text = tree::taken(pg_sys::text_to_cstring(value.cast_mut_ptr()))?;
                format!("CAST('{}' AS VARCHAR)", text.trim_end_matches(' ').replace('\'', "''"))
            }
            pg_sys::INTERVALOID => {
                let interval = &*value.cast_mut_ptr::<pg_sys::Interval>();
                let (months, days, micros) = (interval.month, interval.day, interval.time);
                // What is infinite from 17 on.
                if months == i32::MAX || months == i32::MIN {
                    return None;
                }
                format!("(to_months({months}) + to_days({days}) + to_microseconds({micros}))")
            }
            pg_sys::BYTEAOID => {
                let bytes = Vec::<u8>::from_datum(value, false)?;
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("from_hex('{hex}')")
            }
            pg_sys::DATEOID => date(i32::from_datum(value, false)?)?,
            pg_sys::TIMEOID => {
                let micros = i64::from_datum(value, false)?;
                format!("CAST('{}' AS TIME)", clock(micros))
            }
            pg_sys::TIMESTAMPOID => moment("TIMESTAMP", "", i64::from_datum(value, false)?)?,
            pg_sys::TIMESTAMPTZOID => moment("TIMESTAMPTZ", "+00", i64::from_datum(value, false)?)?,
            pg_sys::UUIDOID => format!("CAST('{}' AS UUID)", output(value, oid)?),
            pg_sys::JSONOID | pg_sys::JSONBOID => {
                format!("CAST('{}' AS VARCHAR)", output(value, oid)?.replace('\'', "''"))
            }
            pg_sys::NUMERICOID => return numeric(&output(value, oid)?),
            _ if pg_sys::type_is_enum(oid) => format!("CAST('{}' AS VARCHAR)", output(value, oid)?.replace('\'', "''")),
            _ => return None,
        };
        Some((text, None))
    }
}

/// An array as what `IN` has behind it: its elements, or a query without rows.
///
/// # Safety
/// `array` is an array of `element`, unless it is NULL.
pub(crate) unsafe fn list(array: pg_sys::Datum, is_null: bool, element: pg_sys::Oid) -> Option<String> {
    let null = || Some(format!("CAST(NULL AS {})", duckdb_type(element, Some((1, 0)))?));
    if is_null {
        return Some(format!("({})", null()?));
    }
    // SAFETY: per the contract.
    let elements = unsafe { elements(array, element) };
    if elements.is_empty() {
        return Some(format!("(SELECT {} WHERE false)", null()?));
    }
    // SAFETY: elements of this type.
    let literals = elements.into_iter().map(|(value, is_null)| unsafe { Some(literal(value, is_null, element)?.0) });
    Some(format!("({})", literals.collect::<Option<Vec<_>>>()?.join(", ")))
}

/// The elements of an array.
///
/// # Safety
/// `array` is an array of `element`.
pub(crate) unsafe fn elements(array: pg_sys::Datum, element: pg_sys::Oid) -> Vec<(pg_sys::Datum, bool)> {
    let (mut length, mut by_value, mut align) = (0i16, false, 0);
    let (mut values, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
    // SAFETY: per the contract; the outputs are palloc'd with `count` entries.
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

/// The type's output text.
unsafe fn output(value: pg_sys::Datum, oid: pg_sys::Oid) -> Option<String> {
    let (mut function, mut varlena) = (pg_sys::Oid::INVALID, false);
    // SAFETY: the caller's datum is of this built-in type.
    unsafe {
        pg_sys::getTypeOutputInfo(oid, &raw mut function, &raw mut varlena);
        tree::taken(pg_sys::OidOutputFunctionCall(function, value))
    }
}

fn numeric(text: &str) -> Option<(String, Decimal)> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if !digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let scale = u8::try_from(fraction.len()).ok()?;
    let precision = u8::try_from(whole.trim_start_matches('0').len()).ok()?.checked_add(scale)?.max(1);
    (precision <= 38).then(|| (format!("CAST('{text}' AS DECIMAL({precision},{scale}))"), Some((precision, scale))))
}

fn float(kind: &str, value: f64) -> String {
    let text = if value.is_nan() {
        "nan".into()
    } else if value.is_infinite() {
        if value > 0.0 { "inf".into() } else { "-inf".into() }
    } else {
        // The shortest text that reads back as the same value.
        format!("{value:e}")
    };
    format!("CAST('{text}' AS {kind})")
}

fn date(days: i32) -> Option<String> {
    if days == i32::MAX || days == i32::MIN {
        let sign = if days < 0 { "-" } else { "" };
        return Some(format!("CAST('{sign}infinity' AS DATE)"));
    }
    let days = days.checked_add(EPOCH_DAYS)?;
    Some(match civil(i64::from(days)) {
        Some(date) => format!("CAST('{date}' AS DATE)"),
        // DuckDB computes it before the query.
        None => format!("(DATE '1970-01-01' + CAST({days} AS INTEGER))"),
    })
}

fn moment(kind: &str, zone: &str, micros: i64) -> Option<String> {
    if micros == i64::MAX || micros == i64::MIN {
        let sign = if micros < 0 { "-" } else { "" };
        return Some(format!("CAST('{sign}infinity' AS {kind})"));
    }
    let micros = micros.checked_add(EPOCH_MICROS)?;
    let (days, rest) = (micros.div_euclid(86_400_000_000), micros.rem_euclid(86_400_000_000));
    Some(match civil(days) {
        Some(date) => format!("CAST('{date} {}{zone}' AS {kind})", clock(rest)),
        // DuckDB's zone is UTC.
        None => format!("CAST(make_timestamp({micros}) AS {kind})"),
    })
}

fn clock(micros: i64) -> String {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction == 0 { text } else { format!("{text}.{fraction:06}") }
}

/// Days since 1970 as year-month-day, for the years that both sides write alike.
fn civil(days: i64) -> Option<String> {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (1..=9999).contains(&year).then(|| format!("{year:04}-{month:02}-{day:02}"))
}
