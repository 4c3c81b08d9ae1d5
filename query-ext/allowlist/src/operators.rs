//! Operators that are no comparison.
//!
//! Sums, differences and products are written as functions by name: DuckDB's rewriter moves constants across its operators, and
//! what overflowed would not any more. A division by zero is NULL in DuckDB, and an infinite or vanishing result of finite floats is
//! no error there: the SQL makes them ones. So are dates and times beyond those that Postgres counts.

use crate::entry::{Digits, Entry};
use crate::types::Type;
use Type::*;

macro_rules! integers {
    ($($left:ident $right:ident $wide:ident),*) => {
        [$(
            Entry::new("+", &[$left, $right], $wide, "add({1}, {2})").fails(),
            Entry::new("-", &[$left, $right], $wide, "subtract({1}, {2})").fails(),
            Entry::new("*", &[$left, $right], $wide, "multiply({1}, {2})").fails(),
            Entry::new("/", &[$left, $right], $wide, "(CASE WHEN {2} = 0 AND {1} IS NOT NULL THEN error('division by zero') ELSE {1} // {2} END)").fails(),
        )*]
    };
}

macro_rules! floats {
    ($($left:ident $right:ident $wide:ident $kind:literal),*) => {
        [$(
            Entry::new("+", &[$left, $right], $wide, concat!("lake_float_add(CAST({1} AS ", $kind, "), CAST({2} AS ", $kind, "))")).fails(),
            Entry::new("-", &[$left, $right], $wide, concat!("lake_float_subtract(CAST({1} AS ", $kind, "), CAST({2} AS ", $kind, "))")).fails(),
            Entry::new("*", &[$left, $right], $wide, concat!("lake_float_multiply(CAST({1} AS ", $kind, "), CAST({2} AS ", $kind, "))")).fails(),
            Entry::new("/", &[$left, $right], $wide, concat!("lake_float_divide(CAST({1} AS ", $kind, "), CAST({2} AS ", $kind, "))")).fails(),
        )*]
    };
}

macro_rules! of_each {
    ($($kind:ident),*) => {
        [$(
            Entry::new("%", &[$kind, $kind], $kind, "(CASE WHEN {2} = 0 AND {1} IS NOT NULL THEN error('division by zero') WHEN {2} = -1 THEN {1} & 0 ELSE {1} % {2} END)").fails(),
            Entry::new("&", &[$kind, $kind], $kind, "({1} & {2})"),
            Entry::new("|", &[$kind, $kind], $kind, "({1} | {2})"),
            Entry::new("#", &[$kind, $kind], $kind, "xor({1}, {2})"),
            Entry::new("~", &[$kind], $kind, "(~{1})"),
            Entry::new("-", &[$kind], $kind, "-({1})").fails(),
            Entry::new("+", &[$kind], $kind, "{1}"),
            Entry::new("@", &[$kind], $kind, "abs({1})").fails(),
        )*]
    };
}

const INTEGERS: [Entry; 36] = integers!(
    Int2 Int2 Int2, Int2 Int4 Int4, Int2 Int8 Int8,
    Int4 Int2 Int4, Int4 Int4 Int4, Int4 Int8 Int8,
    Int8 Int2 Int8, Int8 Int4 Int8, Int8 Int8 Int8
);
const OF_EACH: [Entry; 24] = of_each!(Int2, Int4, Int8);
const FLOATS: [Entry; 16] = floats!(
    Float4 Float4 Float4 "FLOAT", Float4 Float8 Float8 "DOUBLE",
    Float8 Float4 Float8 "DOUBLE", Float8 Float8 Float8 "DOUBLE"
);
const OTHERS: [Entry; 32] = [
    Entry::new("-", &[Float4], Float4, "-({1})"),
    Entry::new("-", &[Float8], Float8, "-({1})"),
    Entry::new("+", &[Float4], Float4, "{1}"),
    Entry::new("+", &[Float8], Float8, "{1}"),
    Entry::new("@", &[Float4], Float4, "abs({1})"),
    Entry::new("@", &[Float8], Float8, "abs({1})"),
    Entry::new("-", &[Numeric], Numeric, "-({1})").digits(Digits::First).fails(),
    Entry::new("+", &[Numeric], Numeric, "{1}").digits(Digits::First),
    Entry::new("@", &[Numeric], Numeric, "abs({1})").digits(Digits::First).fails(),
    Entry::new("||", &[Text, Text], Text, "({1} || {2})"),
    Entry::new("^@", &[Text, Text], Bool, "starts_with({1}, {2})").deterministic(),
    Entry::new("-", &[Date, Date], Int4, "(CASE WHEN NOT isfinite({1}) OR NOT isfinite({2}) THEN error('cannot subtract infinite dates') ELSE CAST(date_diff('day', {2}, {1}) AS INTEGER) END)").fails(),
    Entry::new("+", &[Date, Int4], Date, "lake_date({1}, {2}, {1} + {2})").fails(),
    Entry::new("+", &[Int4, Date], Date, "lake_date({2}, {1}, {2} + {1})").fails(),
    Entry::new("-", &[Date, Int4], Date, "lake_date({1}, {2}, {1} - {2})").fails(),
    Entry::new("+", &[Date, Interval], Timestamp, "lake_timestamp(CAST({1} AS TIMESTAMP), {2}, CAST({1} AS TIMESTAMP) + {2})").fails(),
    Entry::new("-", &[Date, Interval], Timestamp, "lake_timestamp(CAST({1} AS TIMESTAMP), {2}, CAST({1} AS TIMESTAMP) - {2})").fails(),
    Entry::new("+", &[Interval, Date], Timestamp, "lake_timestamp(CAST({2} AS TIMESTAMP), {1}, CAST({2} AS TIMESTAMP) + {1})").fails(),
    Entry::new("+", &[Timestamp, Interval], Timestamp, "lake_timestamp({1}, {2}, {1} + {2})").fails(),
    Entry::new("-", &[Timestamp, Interval], Timestamp, "lake_timestamp({1}, {2}, {1} - {2})").fails(),
    Entry::new("+", &[Interval, Timestamp], Timestamp, "lake_timestamp({2}, {1}, {2} + {1})").fails(),
    Entry::new("+", &[Timestamptz, Interval], Timestamptz, "CAST(lake_timestamp(CAST({1} AS TIMESTAMP), {2}, CAST({1} AS TIMESTAMP) + {2}) AS TIMESTAMPTZ)").utc().fails(),
    Entry::new("-", &[Timestamptz, Interval], Timestamptz, "CAST(lake_timestamp(CAST({1} AS TIMESTAMP), {2}, CAST({1} AS TIMESTAMP) - {2}) AS TIMESTAMPTZ)").utc().fails(),
    Entry::new("+", &[Interval, Timestamptz], Timestamptz, "CAST(lake_timestamp(CAST({2} AS TIMESTAMP), {1}, CAST({2} AS TIMESTAMP) + {1}) AS TIMESTAMPTZ)").utc().fails(),
    Entry::new("@>", &[Jsonb, Jsonb], Bool, "lake_json_contains({1}, {2})").fails(),
    Entry::new("<@", &[Jsonb, Jsonb], Bool, "lake_json_contains({2}, {1})").fails(),
    Entry::new("->", &[Jsonb, Text], Jsonb, "lake_json_field({1}, {2})"),
    Entry::new("->>", &[Jsonb, Text], Text, "lake_json_field_text({1}, {2})"),
    Entry::new("->", &[Jsonb, Int4], Jsonb, "lake_json_element({1}, {2})"),
    Entry::new("->>", &[Jsonb, Int4], Text, "lake_json_element_text({1}, {2})"),
    Entry::new("?", &[Jsonb, Text], Bool, "lake_json_exists({1}, {2})"),
    Entry::new("+", &[Time, Interval], Time, "({1} + {2})"),
];

const COUNT: usize = INTEGERS.len() + OF_EACH.len() + FLOATS.len() + OTHERS.len();
const ALL: [Entry; COUNT] = {
    let mut all = [OTHERS[0]; COUNT];
    let (mut at, parts) = (0, [&INTEGERS as &[Entry], &OF_EACH, &FLOATS, &OTHERS]);
    let mut part = 0;
    while part < parts.len() {
        let mut entry = 0;
        while entry < parts[part].len() {
            all[at] = parts[part][entry];
            (at, entry) = (at + 1, entry + 1);
        }
        part += 1;
    }
    all
};

/// Operators, unary ones with one argument.
pub const OPERATORS: &[Entry] = &ALL;
