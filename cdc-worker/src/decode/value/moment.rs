//! Dates and times: Postgres counts from 2000, Iceberg from 1970; and the ISO text of both.

use super::{Value, ValueError, exact};

/// Days from 1970-01-01 (Iceberg) to 2000-01-01 (Postgres).
pub(in crate::decode) const EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
pub(in crate::decode) const EPOCH_MICROS: i64 = 946_684_800_000_000;
/// `24:00:00`, which Postgres has and Iceberg's `time` has not.
pub(super) const DAY_MICROS: i64 = 86_400_000_000;

/// How Postgres prints the greatest and the least of a type.
const INFINITE: &str = "infinity";
const MINUS_INFINITE: &str = "-infinity";

/// A date as days since 2000.
pub(super) fn date(days: i32) -> Result<Value<'static>, ValueError> {
    match days {
        i32::MAX => return Ok(exact(INFINITE)),
        i32::MIN => return Ok(exact(MINUS_INFINITE)),
        _ => {}
    }
    let shifted = days.checked_add(EPOCH_DAYS).ok_or(ValueError::NotRepresentable("a date out of range"))?;
    Ok(Value::Int(shifted))
}

/// A timestamp as microseconds since 2000, with a zone, which is UTC, or without.
pub(super) fn timestamp(micros: i64, zoned: bool) -> Value<'static> {
    match micros {
        i64::MAX => exact(INFINITE),
        i64::MIN => exact(MINUS_INFINITE),
        _ => since_1970(micros).map_or_else(|| Value::Exact(print(micros, zoned).into()), Value::Long),
    }
}

/// Microseconds since 1970. Counted from there, the last thirty of Postgres's 294,276 years are more than 64 bits; and the
/// greatest number of all is what DuckDB takes for infinity.
pub(in crate::decode) fn since_1970(micros: i64) -> Option<i64> {
    micros.checked_add(EPOCH_MICROS).filter(|micros| *micros < i64::MAX)
}

/// What Postgres prints of a timestamp after 2000.
fn print(micros: i64, zoned: bool) -> String {
    let (year, month, day) = date_of_days(micros.div_euclid(DAY_MICROS) + i64::from(EPOCH_DAYS));
    let of_day = micros.rem_euclid(DAY_MICROS);
    let (seconds, fraction) = (of_day / 1_000_000, of_day % 1_000_000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let fraction = if fraction == 0 { String::new() } else { format!(".{fraction:06}") };
    let zone = if zoned { "+00" } else { "" };
    let fraction = fraction.trim_end_matches('0');
    format!("{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{seconds:02}{fraction}{zone}")
}

/// `2024-02-29`, `12345-01-01`, `0044-03-15 BC`.
pub(super) fn date_of_text(text: &str) -> Result<Value<'static>, ValueError> {
    if let Some(infinite) = infinite(text) {
        return Ok(infinite);
    }
    let (text, before_christ) = era(text);
    let days = days(text, before_christ)?;
    Ok(Value::Int(i32::try_from(days).map_err(|_| ValueError::NotRepresentable("a date out of range"))?))
}

/// `23:59:59.999999`.
pub(super) fn time_of_text(text: &str) -> Result<Value<'static>, ValueError> {
    match clock(text)? {
        DAY_MICROS => Ok(exact("24:00:00")),
        micros => Ok(Value::Long(micros)),
    }
}

/// `2024-02-29 12:00:00.5`, with ` BC` perhaps, and with `+00` when it has a zone: that of `source::settings` is UTC.
pub(super) fn timestamp_of_text(printed: &str, zoned: bool) -> Result<Value<'_>, ValueError> {
    if let Some(infinite) = infinite(printed) {
        return Ok(infinite);
    }
    let (text, before_christ) = era(printed);
    let text = if zoned { text.strip_suffix("+00").ok_or(ValueError::Malformed)? } else { text };
    let (day, time) = text.split_once(' ').ok_or(ValueError::Malformed)?;
    let micros = i128::from(days(day, before_christ)?) * i128::from(DAY_MICROS) + i128::from(clock(time)?);
    Ok(i64::try_from(micros).ok().filter(|micros| *micros < i64::MAX).map_or_else(|| exact(printed), Value::Long))
}

fn infinite(text: &str) -> Option<Value<'static>> {
    [INFINITE, MINUS_INFINITE].into_iter().find(|infinite| *infinite == text).map(exact)
}

fn era(text: &str) -> (&str, bool) {
    text.strip_suffix(" BC").map_or((text, false), |text| (text, true))
}

fn number(digits: &str) -> Result<i64, ValueError> {
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(ValueError::Malformed);
    }
    digits.parse().map_err(|_| ValueError::Malformed)
}

/// Days since 1970 of a day of the proleptic Gregorian calendar, whose year before 1 is 1 BC.
fn days(text: &str, before_christ: bool) -> Result<i64, ValueError> {
    let mut parts = text.splitn(3, '-');
    let mut part = || number(parts.next().unwrap_or(""));
    let (year, month, day) = (part()?, part()?, part()?);
    if year > 1_000_000_000 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return Err(ValueError::Malformed);
    }
    let year = if before_christ { 1 - year } else { year };
    // Years that begin in March end in the leap day, eras of 400 of them are equally long.
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Ok(era * 146_097 + day_of_era - 719_468)
}

/// Year, month and day, years after Christ, by days since 1970: the way back of [`days`].
fn date_of_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

/// Microseconds since midnight.
fn clock(text: &str) -> Result<i64, ValueError> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let mut parts = whole.splitn(3, ':');
    let mut part = || number(parts.next().unwrap_or(""));
    let (hours, minutes, seconds) = (part()?, part()?, part()?);
    let places = u32::try_from(fraction.len()).ok().filter(|places| *places <= 6).ok_or(ValueError::Malformed)?;
    if hours > 24 || minutes > 59 || seconds > 60 {
        return Err(ValueError::Malformed);
    }
    Ok(((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + number(fraction)? * 10_i64.pow(6 - places))
}
