use proptest::prelude::*;

use iceberg_writer::PgType;

use super::{Value, ValueError, read_binary as read, read_text, write_key_part};

/// `24:00`.
const DAY_MICROS: i64 = 86_400_000_000;

fn text(text: &str) -> Value<'_> {
    Value::Text(text.into())
}

fn exact(text: &str) -> Value<'_> {
    Value::Exact(text.into())
}

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
    assert!(matches!(read(decimal(10, 2), &numeric_bytes(&[5050], -1, 0, 3)), Err(ValueError::NotRepresentable(_))));
    assert_eq!(read(decimal(10, 2), &numeric_bytes(&[], 0, 0xC000, 0)), Ok(exact("NaN")));
    assert!(matches!(read(decimal(38, 0), &numeric_bytes(&[9], 20, 0, 0)), Err(ValueError::NotRepresentable(_))));
    assert_eq!(read(decimal(10, 2), &[0, 1, 0]), Err(ValueError::Malformed));
}

/// The value's printed form comes to the same, in either format.
#[test]
fn what_iceberg_has_not_is_kept_as_it_is_printed() {
    // The last microsecond that Postgres has.
    const LAST: i64 = 9_223_371_331_199_999_999;
    for (pg_type, raw, printed) in [
        (PgType::Date, &i32::MAX.to_be_bytes()[..], "infinity"),
        (PgType::Date, &i32::MIN.to_be_bytes(), "-infinity"),
        (PgType::Timestamp, &i64::MAX.to_be_bytes(), "infinity"),
        (PgType::Timestamptz, &i64::MIN.to_be_bytes(), "-infinity"),
        (PgType::Timestamp, &LAST.to_be_bytes(), "294276-12-31 23:59:59.999999"),
        (PgType::Timestamptz, &(LAST - 1_999_999).to_be_bytes(), "294276-12-31 23:59:58+00"),
        (PgType::Timestamptz, &(LAST - 99_999).to_be_bytes(), "294276-12-31 23:59:59.9+00"),
        (PgType::Time, &DAY_MICROS.to_be_bytes(), "24:00:00"),
        (PgType::Numeric { precision: 5, scale: 2 }, &numeric_bytes(&[], 0, 0xC000, 0), "NaN"),
    ] {
        assert_eq!(read(pg_type, raw), Ok(exact(printed)));
        assert_eq!(read_text(pg_type, printed.as_bytes()), Ok(exact(printed)));
    }
    // The last but one that 64 bits have, counted from 1970, and the one after it.
    let last = i64::MAX - 1 - 946_684_800_000_000;
    assert_eq!(read(PgType::Timestamp, &last.to_be_bytes()), Ok(Value::Long(i64::MAX - 1)));
    assert_eq!(read_text(PgType::Timestamp, b"294247-01-10 04:00:54.775806"), Ok(Value::Long(i64::MAX - 1)));
    let beyond = "294247-01-10 04:00:54.775807";
    assert_eq!(read(PgType::Timestamp, &(last + 1).to_be_bytes()), Ok(exact(beyond)));
    assert_eq!(read_text(PgType::Timestamp, beyond.as_bytes()), Ok(exact(beyond)));
}

#[test]
fn a_value_as_text_is_another_key_than_the_same_text() {
    let key = |value: &Value<'_>| {
        let mut key = Vec::new();
        write_key_part(value, &mut key);
        key
    };
    assert_ne!(key(&exact("NaN")), key(&text("NaN")));
    assert_ne!(key(&exact("infinity")), key(&exact("-infinity")));
}

#[test]
fn what_is_no_value_is_refused() {
    assert_eq!(read(PgType::Text, &[0xff]), Err(ValueError::Encoding));
    assert_eq!(read(PgType::Date, &0i32.to_be_bytes()), Ok(Value::Int(10_957)));
    assert_eq!(read(PgType::Jsonb, b"\x01{}"), Ok(text("{}")));
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
                        PgType::Timestamp, PgType::Uuid, PgType::Text, PgType::NumericText, PgType::Money, PgType::Byte,
                        PgType::Date, PgType::Timestamptz, PgType::Bytea, PgType::Float8, PgType::Char] {
            let _ = (read(pg_type, &raw), read_text(pg_type, &raw));
        }
    }

    #[test]
    fn different_keys_have_different_bytes(a in ".{0,8}", b in ".{0,8}", c in ".{0,8}", d in ".{0,8}") {
        let key = |x: &str, y: &str| {
            let mut key = Vec::new();
            write_key_part(&text(x), &mut key);
            write_key_part(&text(y), &mut key);
            key
        };
        prop_assert_eq!(key(&a, &b) == key(&c, &d), (a, b) == (c, d));
    }
}

/// The text of each value is what Postgres 15 prints.
#[test]
fn text_and_binary_format_of_a_value_are_read_alike() {
    let same = |pg_type: PgType, binary: &[u8], printed: &str, value: Value<'_>| {
        assert_eq!(read(pg_type, binary), Ok(value.clone()), "{pg_type:?} binary, {printed}");
        assert_eq!(read_text(pg_type, printed.as_bytes()), Ok(value), "{pg_type:?} text {printed}");
    };
    same(PgType::Bool, &[1], "t", Value::Bool(true));
    same(PgType::Bool, &[0], "f", Value::Bool(false));
    same(PgType::Int2, &i16::MIN.to_be_bytes(), "-32768", Value::Int(-32768));
    same(PgType::Int8, &i64::MIN.to_be_bytes(), "-9223372036854775808", Value::Long(i64::MIN));
    same(PgType::Oid, &u32::MAX.to_be_bytes(), "4294967295", Value::Long(4_294_967_295));
    same(PgType::Xid8, &u64::MAX.to_be_bytes(), "18446744073709551615", Value::Decimal(18_446_744_073_709_551_615));
    same(PgType::Money, &i64::MIN.to_be_bytes(), "-$92,233,720,368,547,758.08", Value::Long(i64::MIN));
    same(PgType::Money, &5i64.to_be_bytes(), "$0.05", Value::Long(5));
    same(PgType::Date, &(-2_451_507i32).to_be_bytes(), "4713-01-01 BC", Value::Int(-2_440_550));
    same(PgType::Date, &2_145_031_948i32.to_be_bytes(), "5874897-12-31", Value::Int(2_145_042_905));
    same(PgType::Date, &(-730_120i32).to_be_bytes(), "0001-12-31 BC", Value::Int(-719_163));
    same(PgType::Time, &1i64.to_be_bytes(), "00:00:00.000001", Value::Long(1));
    same(PgType::Timestamp, &500_000i64.to_be_bytes(), "2000-01-01 00:00:00.5", Value::Long(946_684_800_500_000));
    same(PgType::Timestamptz, &0i64.to_be_bytes(), "2000-01-01 00:00:00+00", Value::Long(946_684_800_000_000));
    same(
        PgType::Timestamptz,
        &(-63_113_904_000_000_000i64).to_be_bytes(),
        "0001-01-01 00:00:00+00 BC",
        Value::Long(-62_167_219_200_000_000),
    );
    same(PgType::Bytea, &[0, 0xff], "\\x00ff", Value::Bytes(vec![0, 0xff].into()));
    same(PgType::Char, b"ab  ", "ab  ", text("ab"));
    same(PgType::SameText, b"ab  ", "ab  ", text("ab  "));
    same(PgType::Byte, &[0], "", text(""));
    same(PgType::Byte, b"x", "x", text("x"));
}

#[test]
fn all_nans_are_one() {
    for raw in [f64::NAN, -f64::NAN, f64::from_bits(0x7ff8_0000_0000_0001)] {
        let Ok(Value::Double(found)) = read(PgType::Float8, &raw.to_be_bytes()) else { panic!("{raw}") };
        let Ok(Value::Double(printed)) = read_text(PgType::Float8, b"NaN") else { panic!("NaN") };
        assert_eq!(found.to_bits(), printed.to_bits());
    }
}

/// Counted year by year.
#[test]
fn days_are_counted_through_leap_years_and_eras() {
    let leap = |year: i32| year % 4 == 0 && year % 100 != 0 || year % 400 == 0;
    let mut days = -2_440_588 - 37; // 4714-11-24 BC begins the Julian days; its year began 327 days before.
    days -= 327 - 37;
    for year in -4713..=12_000 {
        let shown = |month: u32, day: u32| {
            let (number, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
            let printed = format!("{number:04}-{month:02}-{day:02}{era}");
            match read_text(PgType::Date, printed.as_bytes()) {
                Ok(Value::Int(days)) => days,
                other => panic!("{printed}: {other:?}"),
            }
        };
        let february = if leap(year) { 29 } else { 28 };
        assert_eq!(shown(1, 1), days, "{year}");
        assert_eq!(shown(2, february), days + 30 + february.cast_signed(), "{year}");
        assert_eq!(shown(3, 1), days + 31 + february.cast_signed(), "{year}");
        days += if leap(year) { 366 } else { 365 };
        assert_eq!(shown(12, 31), days - 1, "{year}");
    }
}

#[test]
fn bytes_that_are_no_character_are_octal() {
    assert_eq!(read(PgType::Byte, &[0xe9]), Ok(text("\\351")));
    assert_eq!(read_text(PgType::Byte, b"\\351"), Ok(text("\\351")));
}

#[test]
fn what_is_no_value_is_refused_in_text_too() {
    let printed = b"Infinity";
    let refused = read_text(PgType::Numeric { precision: 5, scale: 2 }, printed);
    assert!(matches!(refused, Err(ValueError::NotRepresentable(_))));
    assert_eq!(read_text(PgType::Text, &[0xff]), Err(ValueError::Encoding));
    assert_eq!(read(PgType::TextForm, b"\0\0"), Err(ValueError::NotText));
}

#[test]
fn numerics_without_bounds_are_printed_as_postgres_prints_them() {
    for (digits, weight, sign, scale, printed) in [
        (&[][..], 0, 0, 0, "0"),
        (&[], 0, 0, 3, "0.000"),
        (&[1], 0, 0, 2, "1.00"),
        (&[1], 2, 0x4000, 0, "-100000000"),
        (&[12, 3400], 0, 0, 2, "12.34"),
        (&[1], -2, 0, 8, "0.00000001"),
        (&[1, 0, 5000], 1, 0, 1, "10000.5"),
        (&[], 0, 0xC000, 0, "NaN"),
        (&[], 0, 0xD000, 32, "Infinity"),
        (&[], 0, 0xF000, 32, "-Infinity"),
    ] {
        let raw = numeric_bytes(digits, weight, sign, scale);
        assert_eq!(read(PgType::NumericText, &raw), Ok(text(printed)));
        assert_eq!(read_text(PgType::NumericText, printed.as_bytes()), Ok(text(printed)));
    }
}

proptest! {
    #[test]
    fn printed_numbers_are_read_like_sent_ones(long: i64, float: f64, single: f32, unscaled in -(10i128.pow(37))..10i128.pow(37), scale in 0u8..38) {
        let alike = |pg_type, raw: &[u8], printed: &str| read(pg_type, raw) == read_text(pg_type, printed.as_bytes());
        prop_assert!(alike(PgType::Int8, &long.to_be_bytes(), &long.to_string()));
        // Postgres and Rust both print the shortest digits, in other forms.
        for printed in [float.to_string(), format!("{float:e}")] {
            if !float.is_nan() {
                prop_assert!(alike(PgType::Float8, &float.to_be_bytes(), &printed), "{}", printed);
            }
        }
        if !single.is_nan() {
            prop_assert!(alike(PgType::Float4, &single.to_be_bytes(), &format!("{single:e}")), "{}", single);
        }
        let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = usize::from(scale) + 1);
        let (whole, fraction) = digits.split_at(digits.len() - usize::from(scale));
        let (sign, point) = (if unscaled < 0 { "-" } else { "" }, if scale > 0 { "." } else { "" });
        let printed = format!("{sign}{whole}{point}{fraction}");
        prop_assert_eq!(read_text(PgType::Numeric { precision: 38, scale }, printed.as_bytes()), Ok(Value::Decimal(unscaled)));
    }
}
