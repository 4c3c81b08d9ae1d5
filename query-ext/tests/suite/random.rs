//! Random queries of what is on the list, the same on both sides: rows as text and in binary, types, and SQLSTATEs.

use std::fmt::Write as _;

use lake_allowlist::{AGGREGATES, Collation, Entry, FUNCTIONS, OPERATORS, Type};
use tokio_postgres::Client;
use tokio_postgres::types::{FromSql, Type as WireType};

use crate::harness::compare::{difference, sides, way};
use crate::harness::{add, set_up};

/// Queries of a run.
const QUERIES: u64 = 10_000;
/// One in so many is looked at with EXPLAIN.
const LOOKED_AT: u64 = 20;
/// One in so many is compared as text too.
const AS_TEXT: u64 = 10;
/// Of those, the share that DuckDB answers whole.
const WHOLE_PERCENT: u64 = 80;
/// How deep expressions are.
const DEPTH: u32 = 3;

/// What values are of.
const TYPES: [Type; 15] = [
    Type::Bool,
    Type::Int2,
    Type::Int4,
    Type::Int8,
    Type::Float8,
    Type::Numeric,
    Type::Text,
    Type::Bpchar,
    Type::Bytea,
    Type::Date,
    Type::Time,
    Type::Timestamp,
    Type::Timestamptz,
    Type::Uuid,
    Type::Jsonb,
];

/// Splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn percent(&mut self, share: u64) -> bool {
        self.next() % 100 < share
    }
}

fn columns(kind: Type) -> &'static [&'static str] {
    match kind {
        Type::Bool => &["b"],
        Type::Int2 => &["i2"],
        Type::Int4 => &["i4", "g", "id"],
        Type::Int8 => &["i8"],
        Type::Float4 => &["f4"],
        Type::Float8 => &["f8"],
        Type::Numeric => &["n", "n2"],
        Type::Text => &["t", "ct"],
        Type::Varchar => &["v"],
        Type::Bpchar => &["c"],
        Type::Bytea => &["by"],
        Type::Date => &["d"],
        Type::Time => &["tm"],
        Type::Timestamp => &["ts"],
        Type::Timestamptz => &["tz"],
        Type::Uuid => &["u"],
        Type::Json => &["js"],
        Type::Jsonb => &["jb"],
        Type::Enum => &["e"],
        Type::Interval => &[],
    }
}

fn constants(kind: Type) -> &'static [&'static str] {
    match kind {
        Type::Bool => &["true", "false", "NULL::boolean"],
        Type::Int2 => &["0::smallint", "3::smallint", "-1::smallint"],
        Type::Int4 => &["0", "1", "-7", "65536", "NULL::integer"],
        Type::Int8 => &["0::bigint", "10000000000", "-1::bigint"],
        Type::Float8 => {
            &["0.5::double precision", "'-0'::double precision", "1e10::double precision", "'NaN'::double precision"]
        }
        Type::Numeric => &["1.50", "0.00", "-3.25", "100.00"],
        Type::Text => &["'a'", "''", "'ab'", "'ä'", "NULL::text", "'http://www.example.com/a/b'"],
        Type::Bpchar => &["'ab'::char(6)", "''::char(6)"],
        Type::Bytea => &["'\\x00ff'::bytea", "''::bytea"],
        Type::Date => {
            &["date '2000-02-29'", "date '1969-12-31'", "date 'infinity'", "date '4713-01-01 BC'", "date '20000-02-29'"]
        }
        Type::Time => &["time '12:00'", "time '23:59:59.999999'"],
        Type::Timestamp => {
            &["timestamp '2000-02-29 12:00'", "timestamp '1970-01-01'", "timestamp '0044-03-15 01:02:03.000004 BC'"]
        }
        Type::Timestamptz => &[
            "timestamptz '2000-02-29 12:00+02'",
            "date_trunc('year', now())",
            "timestamptz '1970-01-01 00:00+00'",
            "timestamptz '10000-01-01 00:00+00'",
        ],
        Type::Uuid => &["'12345678-9abc-def0-1234-56789abcdef0'::uuid"],
        Type::Jsonb => &["'{\"a\": 1}'::jsonb", "'[1, \"a\"]'::jsonb"],
        _ => &[],
    }
}

/// A query under construction.
struct Writer {
    random: Random,
    /// Names of the tables that expressions may look at.
    tables: Vec<&'static str>,
    /// A filter is being written.
    filters: bool,
}

impl Writer {
    fn expression(&mut self, kind: Type, depth: u32) -> String {
        let leaf = depth == 0 || self.random.percent(25);
        if leaf {
            let table = self.random.one(&self.tables);
            return match constants(kind) {
                constants if !constants.is_empty() && self.random.percent(25) => self.random.one(constants).to_owned(),
                _ => format!("{table}.{}", self.random.one(columns(kind))),
            };
        }
        if kind == Type::Bool && self.random.percent(70) {
            return self.condition(depth);
        }
        if self.random.percent(15) {
            let (condition, one, other) =
                (self.condition(depth - 1), self.expression(kind, depth - 1), self.expression(kind, depth - 1));
            return match self.random.below(3) {
                0 => format!("CASE WHEN {condition} THEN {one} ELSE {other} END"),
                1 => format!("coalesce({one}, {other})"),
                _ => format!("nullif({one}, {other})"),
            };
        }
        // Which of several conditions is looked at first is open in Postgres, and so is whether one that fails is.
        let fails = self.random.percent(10) && !self.filters;
        let fits = |entry: &&Entry| {
            entry.result == kind
                && (fails || !entry.fails)
                && entry.args.iter().all(|of| TYPES.contains(of) || *of == Type::Interval)
        };
        let operators: Vec<&Entry> = OPERATORS.iter().filter(fits).collect();
        let functions: Vec<&Entry> = FUNCTIONS.iter().filter(fits).collect();
        if operators.is_empty() && functions.is_empty() {
            return self.expression(kind, 0);
        }
        let at = self.random.below(operators.len() + functions.len());
        let (entry, is_operator) =
            if at < operators.len() { (operators[at], true) } else { (functions[at - operators.len()], false) };
        self.call(entry, is_operator, depth - 1)
    }

    fn call(&mut self, entry: &Entry, is_operator: bool, depth: u32) -> String {
        let mut args = Vec::new();
        for (at, kind) in entry.args.iter().enumerate() {
            let mut arg = if at == 0 && !entry.words.is_empty() {
                format!("'{}'", self.random.one(entry.words))
            } else if *kind == Type::Interval {
                format!("interval '{}'", self.random.one(&["1 mon", "-40 days", "05:00:00.5"]))
            } else {
                self.expression(*kind, depth)
            };
            if *kind == Type::Text && entry.collation != Collation::Any {
                arg = format!("({arg} COLLATE \"C\")");
            }
            args.push(arg);
        }
        match (&args[..], is_operator) {
            ([one], true) => format!("({} {one})", entry.name),
            ([left, right], true) => format!("({left} {} {right})", entry.name),
            _ => format!("pg_catalog.\"{}\"({})", entry.name, args.join(", ")),
        }
    }

    fn condition(&mut self, depth: u32) -> String {
        let depth = depth.saturating_sub(1);
        match self.random.below(10) {
            0 => format!("({} AND {})", self.condition(depth), self.condition(depth)),
            1 => format!("({} OR {})", self.condition(depth), self.condition(depth)),
            2 => format!("(NOT {})", self.expression(Type::Bool, depth)),
            3 => {
                let kind = self.random.one(&TYPES);
                format!("({} IS {}NULL)", self.expression(kind, depth), self.random.one(&["", "NOT "]))
            }
            4 => {
                let pattern = self.random.one(&["a%", "%ä%", "_", "%\\%%", "http%", "%"]);
                format!("({} LIKE '{pattern}')", self.expression(Type::Text, depth))
            }
            5 if self.random.percent(40) => {
                let (kind, other) = (self.random.one(&[Type::Int4, Type::Date, Type::Numeric]), Type::Timestamp);
                let of = self.random.one(&["<", "<=", ">", ">="]);
                let mut pair = || format!("({}, {})", self.expression(kind, depth), self.expression(other, 0));
                format!("({} {of} {})", pair(), pair())
            }
            5 => format!("({} IN (1, 0, -7, 65536))", self.expression(Type::Int4, depth)),
            6 if self.tables.len() == 1 => {
                let (kind, not) =
                    (self.random.one(&[Type::Int4, Type::Int2, Type::Date]), self.random.one(&["", "NOT "]));
                let outer = self.expression(kind, 0);
                let column = self.random.one(columns(kind));
                format!("({outer} {not}IN (SELECT s.{column} FROM @corpus s WHERE s.id > {}))", self.random.below(20))
            }
            7 if self.tables.len() == 1 => {
                let table = self.tables[0];
                format!("EXISTS (SELECT FROM @corpus s WHERE s.i4 = {table}.i2 AND s.id < {})", self.random.below(30))
            }
            _ => {
                let kind = self.random.one(&TYPES[..14]);
                let collated = matches!(kind, Type::Text | Type::Bpchar);
                let of = if collated { &["=", "<>"][..] } else { &["=", "<>", "<", "<=", ">", ">="][..] };
                let (left, right) = (self.expression(kind, depth), self.expression(kind, depth));
                format!("({left} {} {right})", self.random.one(of))
            }
        }
    }

    fn query(&mut self) -> (String, bool) {
        let two = self.random.percent(25);
        self.tables = if two { vec!["a", "b"] } else { vec!["a"] };
        let from = if two {
            let join = self.random.one(&["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]);
            let on = self.random.one(&["a.i4 = b.i2", "a.g = b.g AND a.b", "a.t = b.v", "a.id = b.id + 3"]);
            format!("@corpus a {join} @corpus b ON {on}")
        } else {
            "@corpus a".to_owned()
        };
        self.filters = true;
        let filter = if self.random.percent(60) { format!(" WHERE {}", self.condition(DEPTH)) } else { String::new() };
        self.filters = false;
        if self.random.percent(35) {
            return (self.grouped(&from, &filter), false);
        }
        let (mut outputs, mut floats) = (Vec::new(), false);
        for _ in 0..=self.random.below(3) {
            let kind = self.random.one(&TYPES);
            // Of equal floats that look different either may be shown.
            floats |= kind == Type::Float8;
            outputs.push(self.expression(kind, DEPTH));
        }
        if self.random.percent(15) {
            let call = self.random.one(&["row_number()", "rank()", "lag(a.t)", "count(a.f8)", "max(a.d)", "sum(a.i4)"]);
            outputs.push(format!("{call} OVER (PARTITION BY a.g ORDER BY a.id{})", if two { ", b.id" } else { "" }));
        }
        let list = outputs.join(", ");
        match self.random.below(5) {
            0 => {
                let order = if two { "a.id, b.id" } else { "a.id" };
                let limit = self.random.below(12);
                (format!("SELECT {list} FROM {from}{filter} ORDER BY {order} LIMIT {limit} OFFSET 2"), true)
            }
            1 if !floats => (format!("SELECT DISTINCT {list} FROM {from}{filter}"), false),
            _ => (format!("SELECT {list} FROM {from}{filter}"), false),
        }
    }

    fn grouped(&mut self, from: &str, filter: &str) -> String {
        let kinds = [Type::Bool, Type::Int4, Type::Text, Type::Date, Type::Numeric];
        let (kind, depth) = (self.random.one(&kinds), u32::from(self.random.percent(30)));
        let key = self.expression(kind, depth);
        let mut list = format!("{key} AS key");
        for _ in 0..=self.random.below(3) {
            let entry = &AGGREGATES[self.random.below(AGGREGATES.len())];
            let call = match entry.args {
                [kind] if TYPES.contains(kind) => {
                    let mut argument = self.expression(*kind, 1);
                    if entry.collation != Collation::Any {
                        argument = format!("{argument} COLLATE \"C\"");
                    }
                    let distinct = if self.random.percent(20) { "DISTINCT " } else { "" };
                    format!("{}({distinct}{argument})", entry.name)
                }
                _ => self
                    .random
                    .one(&[
                        "count(*)",
                        "count(a.t)",
                        "avg(a.i4)",
                        "sum(a.n)",
                        "avg(a.n2)",
                        "stddev(a.i2)",
                        "var_pop(a.id + a.g)",
                        "variance(a.n)",
                    ])
                    .to_owned(),
            };
            let filtered =
                if self.random.percent(20) { format!(" FILTER (WHERE {})", self.condition(1)) } else { String::new() };
            write!(list, ", {call}{filtered}").unwrap();
        }
        let having = if self.random.percent(20) { " HAVING count(*) > 1" } else { "" };
        format!("SELECT {list} FROM {from}{filter} GROUP BY {key}{having}")
    }
}

/// A value as it comes over the wire.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Raw(Option<Vec<u8>>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &WireType, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Some(raw.to_vec())))
    }

    fn from_sql_null(_: &WireType) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(None))
    }

    fn accepts(_: &WireType) -> bool {
        true
    }
}

/// Types, and rows; or a SQLSTATE.
type InBinary = Result<(Vec<String>, Vec<Vec<Raw>>), String>;

async fn in_binary(client: &Client, sql: &str, ordered: bool) -> InBinary {
    let state =
        |error: tokio_postgres::Error| error.code().map_or_else(|| error.to_string(), |state| state.code().to_owned());
    let statement = client.prepare(sql).await.map_err(state)?;
    let types = statement.columns().iter().map(|column| column.type_().to_string()).collect();
    let rows = client.query(&statement, &[]).await.map_err(state)?;
    let value = |row: &tokio_postgres::Row, index: usize| -> Raw {
        // All NaN are one: of the bits that tell them apart DuckDB knows nothing.
        let is_nan = statement.columns()[index].type_() == &WireType::FLOAT8
            && row.get::<_, Option<f64>>(index).is_some_and(f64::is_nan);
        if is_nan { Raw(Some(b"NaN".to_vec())) } else { row.get(index) }
    };
    let mut rows: Vec<Vec<Raw>> =
        rows.iter().map(|row| (0..row.len()).map(|index| value(row, index)).collect()).collect();
    if !ordered {
        rows.sort();
    }
    Ok((types, rows))
}

#[tokio::test]
async fn random_queries_are_equal_on_both_sides() {
    let (server, worker, client) = set_up().await;
    add(&server, &worker, &client, include_str!("harness/corpus.sql"), &["corpus"]).await;
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut writer = Writer { random: Random(seed), tables: Vec::new(), filters: false };
    let (mut failures, mut errors, mut whole, mut looked_at) = (Vec::new(), 0, 0, 0);
    let queries = std::env::var("QUERIES").ok().and_then(|queries| queries.parse().ok()).unwrap_or(QUERIES);
    for number in 0..queries {
        let (query, ordered) = writer.query();
        let (heap, lake) = sides(&query);
        let (here, there) = (in_binary(&client, &heap, ordered).await, in_binary(&client, &lake, ordered).await);
        errors += u64::from(here.is_err());
        if here != there {
            let show =
                |rows: &InBinary| rows.as_ref().map_or_else(Clone::clone, |(_, rows)| format!("{} rows", rows.len()));
            failures.push(format!("{query}\n  heap: {}, lake: {}", show(&here), show(&there)));
        }
        if number % AS_TEXT == 0 {
            failures.extend(difference(&client, &query, ordered).await);
        }
        if number % LOOKED_AT == 0 && here.is_ok() {
            looked_at += 1;
            whole += u64::from(way(&client, &lake).await == Some('W'));
        }
    }
    eprintln!("seed {seed}: {errors} of {queries} are errors on both sides; {whole} of {looked_at} go whole");
    assert!(!server.crashed(), "{}", server.log());
    assert!(
        failures.is_empty(),
        "seed {seed}: {} differ:\n{}",
        failures.len(),
        failures[..failures.len().min(30)].join("\n")
    );
    assert!(whole * 100 >= looked_at * WHOLE_PERCENT, "only {whole} of {looked_at} go whole");
}
