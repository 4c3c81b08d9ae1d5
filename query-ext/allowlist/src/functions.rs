//! Functions, casts included: Postgres names most casts by their result.

use crate::entry::{Digits, Entry};
use crate::types::Type;
use Type::*;

/// Units of `date_trunc` that both sides cut alike. (It is within a CASE because DuckDB makes something else of a comparison with it, which
/// is true of NULL.)
const UNITS: &[&str] =
    &["microseconds", "milliseconds", "second", "minute", "hour", "day", "week", "month", "quarter", "year"];
/// Fields of `extract` that are whole numbers.
const FIELDS: &[&str] = &["minute", "hour", "day", "month", "quarter", "dow", "doy", "isodow", "week"];
/// Those that a date has.
const DAY_FIELDS: &[&str] = &["day", "month", "quarter", "dow", "doy", "isodow", "week"];
/// Those that grow with time: an infinite moment has an infinite one in Postgres, and none in DuckDB.
const GROWING: &[&str] = &["year", "isoyear"];
/// Names of the zone that DuckDB is in.
const ZONES: &[&str] = &["UTC", "utc", "Etc/UTC", "GMT"];

/// Functions, by what they are of.
pub const FUNCTIONS: &[Entry] = &[
    // Integers.
    Entry::new("int2", &[Int4], Int2, "lake_int2({1})").fails(),
    Entry::new("int2", &[Int8], Int2, "lake_int2({1})").fails(),
    Entry::new("int4", &[Int2], Int4, "CAST({1} AS INTEGER)"),
    Entry::new("int4", &[Int8], Int4, "lake_int4({1})").fails(),
    Entry::new("int8", &[Int2], Int8, "CAST({1} AS BIGINT)"),
    Entry::new("int8", &[Int4], Int8, "CAST({1} AS BIGINT)"),
    Entry::new("int4", &[Bool], Int4, "CAST({1} AS INTEGER)"),
    Entry::new("bool", &[Int4], Bool, "({1} <> 0)"),
    Entry::new("abs", &[Int2], Int2, "abs({1})").fails(),
    Entry::new("abs", &[Int4], Int4, "abs({1})").fails(),
    Entry::new("abs", &[Int8], Int8, "abs({1})").fails(),
    Entry::new("mod", &[Int2, Int2], Int2, "(CASE WHEN {2} = 0 AND {1} IS NOT NULL THEN error('division by zero') WHEN {2} = -1 THEN {1} & 0 ELSE {1} % {2} END)").fails(),
    Entry::new("mod", &[Int4, Int4], Int4, "(CASE WHEN {2} = 0 AND {1} IS NOT NULL THEN error('division by zero') WHEN {2} = -1 THEN {1} & 0 ELSE {1} % {2} END)").fails(),
    Entry::new("mod", &[Int8, Int8], Int8, "(CASE WHEN {2} = 0 AND {1} IS NOT NULL THEN error('division by zero') WHEN {2} = -1 THEN {1} & 0 ELSE {1} % {2} END)").fails(),
    // Floats.
    Entry::new("float8", &[Int2], Float8, "CAST({1} AS DOUBLE)"),
    Entry::new("float8", &[Int4], Float8, "CAST({1} AS DOUBLE)"),
    Entry::new("float8", &[Int8], Float8, "CAST({1} AS DOUBLE)"),
    Entry::new("float8", &[Float4], Float8, "CAST({1} AS DOUBLE)"),
    Entry::new("float8", &[Numeric], Float8, "CAST(CAST({1} AS VARCHAR) AS DOUBLE)"),
    Entry::new("float4", &[Int2], Float4, "CAST({1} AS FLOAT)"),
    Entry::new("float4", &[Int4], Float4, "CAST({1} AS FLOAT)"),
    Entry::new("float4", &[Int8], Float4, "CAST({1} AS FLOAT)"),
    Entry::new("int2", &[Float8], Int2, "CAST({1} AS SMALLINT)").fails(),
    Entry::new("int4", &[Float8], Int4, "CAST({1} AS INTEGER)").fails(),
    Entry::new("int8", &[Float8], Int8, "CAST({1} AS BIGINT)").fails(),
    Entry::new("int2", &[Float4], Int2, "CAST({1} AS SMALLINT)").fails(),
    Entry::new("int4", &[Float4], Int4, "CAST({1} AS INTEGER)").fails(),
    Entry::new("int8", &[Float4], Int8, "CAST({1} AS BIGINT)").fails(),
    Entry::new("abs", &[Float4], Float4, "abs({1})"),
    Entry::new("abs", &[Float8], Float8, "abs({1})"),
    Entry::new("ceil", &[Float8], Float8, "ceil({1})"),
    Entry::new("ceiling", &[Float8], Float8, "ceil({1})"),
    Entry::new("floor", &[Float8], Float8, "floor({1})"),
    Entry::new("trunc", &[Float8], Float8, "trunc({1})"),
    Entry::new("sqrt", &[Float8], Float8, "sqrt({1})").fails(),
    // Numerics.
    Entry::new("numeric", &[Int2], Numeric, "CAST({1} AS DECIMAL(5,0))").digits(Digits::Fixed(5, 0)),
    Entry::new("numeric", &[Int4], Numeric, "CAST({1} AS DECIMAL(10,0))").digits(Digits::Fixed(10, 0)),
    Entry::new("numeric", &[Int8], Numeric, "CAST({1} AS DECIMAL(19,0))").digits(Digits::Fixed(19, 0)),
    Entry::new("int2", &[Numeric], Int2, "CAST({1} AS SMALLINT)").fails(),
    Entry::new("int4", &[Numeric], Int4, "CAST({1} AS INTEGER)").fails(),
    Entry::new("int8", &[Numeric], Int8, "CAST({1} AS BIGINT)").fails(),
    Entry::new("abs", &[Numeric], Numeric, "abs({1})").digits(Digits::First).fails(),
    Entry::new("ceil", &[Numeric], Numeric, "ceil({1})").digits(Digits::Whole),
    Entry::new("ceiling", &[Numeric], Numeric, "ceil({1})").digits(Digits::Whole),
    Entry::new("floor", &[Numeric], Numeric, "floor({1})").digits(Digits::Whole),
    // Text.
    Entry::new("text", &[Bpchar], Text, "{1}"),
    Entry::new("text", &[Bool], Text, "CAST({1} AS VARCHAR)"),
    Entry::new("length", &[Text], Int4, "CAST(length({1}) AS INTEGER)"),
    Entry::new("char_length", &[Text], Int4, "CAST(length({1}) AS INTEGER)"),
    Entry::new("character_length", &[Text], Int4, "CAST(length({1}) AS INTEGER)"),
    Entry::new("length", &[Bpchar], Int4, "CAST(length({1}) AS INTEGER)"),
    Entry::new("octet_length", &[Text], Int4, "CAST(strlen({1}) AS INTEGER)"),
    Entry::new("bit_length", &[Text], Int4, "CAST(8 * strlen({1}) AS INTEGER)"),
    Entry::new("upper", &[Text], Text, "translate({1}, 'abcdefghijklmnopqrstuvwxyz', 'ABCDEFGHIJKLMNOPQRSTUVWXYZ')").bytes(),
    Entry::new("lower", &[Text], Text, "translate({1}, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ', 'abcdefghijklmnopqrstuvwxyz')").bytes(),
    Entry::new("substring", &[Text, Int4], Text, "substring({1}, CASE WHEN {2} < 1 THEN 1 ELSE {2} END)"),
    Entry::new("substr", &[Text, Int4], Text, "substring({1}, CASE WHEN {2} < 1 THEN 1 ELSE {2} END)"),
    Entry::new("substring", &[Text, Int4, Int4], Text, SUBSTRING).fails(),
    Entry::new("substr", &[Text, Int4, Int4], Text, SUBSTRING).fails(),
    Entry::new("left", &[Text, Int4], Text, "left({1}, {2})"),
    // The least integer has no opposite: what Postgres gives then is not the same in all of its versions.
    Entry::new("right", &[Text, Int4], Text, "(CASE WHEN {2} = -2147483648 THEN error('right by the least integer') ELSE right({1}, {2}) END)")
        .heap_if("{2} = -2147483648"),
    Entry::new("strpos", &[Text, Text], Int4, "CAST(strpos({1}, {2}) AS INTEGER)").deterministic(),
    Entry::new("position", &[Text, Text], Int4, "CAST(strpos({1}, {2}) AS INTEGER)").deterministic(),
    Entry::new("starts_with", &[Text, Text], Bool, "starts_with({1}, {2})").deterministic(),
    Entry::new("replace", &[Text, Text, Text], Text, "replace({1}, {2}, {3})").deterministic(),
    Entry::new("translate", &[Text, Text, Text], Text, "translate({1}, {2}, {3})"),
    Entry::new("split_part", &[Text, Text, Int4], Text, SPLIT_PART).deterministic().fails(),
    Entry::new("btrim", &[Text], Text, "trim({1}, ' ')"),
    Entry::new("ltrim", &[Text], Text, "ltrim({1}, ' ')"),
    Entry::new("rtrim", &[Text], Text, "rtrim({1}, ' ')"),
    Entry::new("btrim", &[Text, Text], Text, "trim({1}, {2})"),
    Entry::new("ltrim", &[Text, Text], Text, "ltrim({1}, {2})"),
    Entry::new("rtrim", &[Text, Text], Text, "rtrim({1}, {2})"),
    Entry::new("ascii", &[Text], Int4, "ascii({1})"),
    Entry::new("md5", &[Text], Text, "md5({1})"),
    // Bytes.
    Entry::new("length", &[Bytea], Int4, "CAST(octet_length({1}) AS INTEGER)"),
    Entry::new("octet_length", &[Bytea], Int4, "CAST(octet_length({1}) AS INTEGER)"),
    Entry::new("md5", &[Bytea], Text, "md5({1})"),
    // Dates and times.
    Entry::new("date", &[Timestamp], Date, "CAST({1} AS DATE)"),
    Entry::new("timestamp", &[Date], Timestamp, "CAST({1} AS TIMESTAMP)").fails(),
    Entry::new("time", &[Timestamp], Time, "(CASE WHEN isfinite({1}) THEN CAST({1} AS TIME) END)"),
    Entry::new("isfinite", &[Date], Bool, "isfinite({1})"),
    Entry::new("isfinite", &[Timestamp], Bool, "isfinite({1})"),
    Entry::new("date_trunc", &[Text, Timestamp], Timestamp, "(CASE WHEN {2} IS NOT NULL THEN date_trunc('{1}', {2}) END)").words(UNITS),
    Entry::new("extract", &[Text, Date], Numeric, "CAST(date_part('{1}', {2}) AS DECIMAL(10,0))").words(DAY_FIELDS).digits(Digits::Fixed(10, 0)),
    Entry::new("extract", &[Text, Timestamp], Numeric, "CAST(date_part('{1}', {2}) AS DECIMAL(10,0))").words(FIELDS).digits(Digits::Fixed(10, 0)),
    Entry::new("extract", &[Text, Date], Numeric, GROWING_SQL).words(GROWING).digits(Digits::Fixed(10, 0)).fails(),
    Entry::new("extract", &[Text, Timestamp], Numeric, GROWING_SQL).words(GROWING).digits(Digits::Fixed(10, 0)).fails(),
    Entry::new("extract", &[Text, Timestamp], Numeric, "CAST(multiply(CAST(date_part('microsecond', {2}) AS DECIMAL(10,0)), CAST(0.000001 AS DECIMAL(6,6))) AS DECIMAL(8,6))")
        .words(&["second"])
        .digits(Digits::Fixed(8, 6)),
    Entry::new("extract", &[Text, Timestamp], Numeric, "(CASE WHEN NOT isfinite({2}) THEN error('an infinite epoch') ELSE CAST(multiply(CAST(epoch_us({2}) AS DECIMAL(20,0)), CAST(0.000001 AS DECIMAL(6,6))) AS DECIMAL(20,6)) END)")
        .words(&["epoch"])
        .digits(Digits::Fixed(20, 6))
        .fails(),
    Entry::new("date_part", &[Text, Timestamp], Float8, "CAST(date_part('{1}', {2}) AS DOUBLE)").words(FIELDS),
    // Moments.
    Entry::new("date", &[Timestamptz], Date, "CAST(CAST({1} AS TIMESTAMP) AS DATE)").utc(),
    Entry::new("timestamp", &[Timestamptz], Timestamp, "CAST({1} AS TIMESTAMP)").utc(),
    Entry::new("timestamptz", &[Timestamp], Timestamptz, "CAST({1} AS TIMESTAMPTZ)").utc(),
    Entry::new("timestamptz", &[Date], Timestamptz, "CAST(CAST({1} AS TIMESTAMP) AS TIMESTAMPTZ)").utc().fails(),
    Entry::new("time", &[Timestamptz], Time, "(CASE WHEN isfinite({1}) THEN CAST(CAST({1} AS TIMESTAMP) AS TIME) END)").utc(),
    Entry::new("isfinite", &[Timestamptz], Bool, "isfinite({1})"),
    Entry::new("timezone", &[Text, Timestamptz], Timestamp, "CAST({2} AS TIMESTAMP)").words(ZONES),
    Entry::new("timezone", &[Text, Timestamp], Timestamptz, "CAST({2} AS TIMESTAMPTZ)").words(ZONES),
    Entry::new("date_trunc", &[Text, Timestamptz], Timestamptz, "(CASE WHEN {2} IS NOT NULL THEN CAST(date_trunc('{1}', CAST({2} AS TIMESTAMP)) AS TIMESTAMPTZ) END)").words(UNITS).utc(),
    Entry::new("extract", &[Text, Timestamptz], Numeric, "CAST(date_part('{1}', CAST({2} AS TIMESTAMP)) AS DECIMAL(10,0))").words(FIELDS).digits(Digits::Fixed(10, 0)).utc(),
    Entry::new("extract", &[Text, Timestamptz], Numeric, "(CASE WHEN NOT isfinite({2}) THEN error('an infinite year') ELSE CAST(lake_year(date_part('{1}', CAST({2} AS TIMESTAMP))) AS DECIMAL(10,0)) END)")
        .words(GROWING)
        .digits(Digits::Fixed(10, 0))
        .utc()
        .fails(),
    Entry::new("extract", &[Text, Timestamptz], Numeric, "CAST(multiply(CAST(date_part('microsecond', CAST({2} AS TIMESTAMP)) AS DECIMAL(10,0)), CAST(0.000001 AS DECIMAL(6,6))) AS DECIMAL(8,6))")
        .words(&["second"])
        .digits(Digits::Fixed(8, 6))
        .utc(),
    Entry::new("extract", &[Text, Timestamptz], Numeric, "(CASE WHEN NOT isfinite({2}) THEN error('an infinite epoch') ELSE CAST(multiply(CAST(epoch_us({2}) AS DECIMAL(20,0)), CAST(0.000001 AS DECIMAL(6,6))) AS DECIMAL(20,6)) END)")
        .words(&["epoch"])
        .digits(Digits::Fixed(20, 6))
        .fails(),
    Entry::new("date_part", &[Text, Timestamptz], Float8, "CAST(date_part('{1}', CAST({2} AS TIMESTAMP)) AS DOUBLE)").words(FIELDS).utc(),
    Entry::new("date_part", &[Text, Timestamp], Float8, "(CASE WHEN NOT isfinite({2}) THEN error('an infinite year') ELSE CAST(lake_year(date_part('{1}', {2})) AS DOUBLE) END)")
        .words(GROWING)
        .fails(),
];

/// A negative length is an error, and the end may be beyond an integer.
const SUBSTRING: &str = "(CASE WHEN {3} < 0 AND {1} IS NOT NULL AND {2} IS NOT NULL THEN error('negative substring length not allowed') ELSE substring({1}, CASE WHEN {2} < 1 THEN 1 ELSE {2} END, CASE WHEN CAST({2} AS BIGINT) + {3} < 1 THEN 0 ELSE CAST({2} AS BIGINT) + {3} - CASE WHEN {2} < 1 THEN 1 ELSE {2} END END) END)";
const SPLIT_PART: &str = "(CASE WHEN {3} = 0 AND {1} IS NOT NULL AND {2} IS NOT NULL THEN error('field position must not be zero') WHEN {2} = '' THEN (CASE WHEN {1} IS NULL OR {3} IS NULL THEN NULL WHEN {3} IN (1, -1) THEN {1} ELSE '' END) ELSE split_part({1}, {2}, {3}) END)";
/// Of an infinite moment it is infinite in Postgres, and nothing in DuckDB.
const GROWING_SQL: &str = "(CASE WHEN NOT isfinite({2}) THEN error('an infinite year') ELSE CAST(lake_year(date_part('{1}', {2})) AS DECIMAL(10,0)) END)";
