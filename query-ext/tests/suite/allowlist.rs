//! Each entry of the list, and each form, on both sides: over values from the edges of its types, answered by DuckDB alone.

use crate::harness::compare::{difference, not_whole, run, sides};
use crate::harness::{add, set_up};
use lake_allowlist::{AGGREGATES, Collation, Entry, FORMS, FUNCTIONS, OPERATORS, Type, WINDOWS};
use tokio_postgres::Client;

/// Constants of the type that columns of the lake cannot have.
const INTERVALS: [&str; 6] =
    ["8000 years", "1 mon", "-13 mons", "40 days -05:00", "1 year 2 mons 3 days 04:05:06.789", "0"];
/// Values of each failing entry for which DuckDB has to fail too.
const FAILING: usize = 3;

fn column(kind: Type, collation: Collation) -> &'static str {
    match kind {
        Type::Bool => "b",
        Type::Int2 => "i2",
        Type::Int4 => "i4",
        Type::Int8 => "i8",
        Type::Float4 => "f4",
        Type::Float8 => "f8",
        Type::Numeric => "n",
        Type::Text if collation == Collation::Bytes => "ct",
        Type::Text => "t",
        Type::Varchar => "v",
        Type::Bpchar => "c",
        Type::Bytea => "by",
        Type::Date => "d",
        Type::Time => "tm",
        Type::Timestamp => "ts",
        Type::Timestamptz => "tz",
        Type::Uuid => "u",
        Type::Json => "js",
        Type::Jsonb => "jb",
        Type::Enum => "e",
        Type::Interval => unreachable!("intervals are constants"),
    }
}

/// The expressions of an entry, and how many tables they are of.
fn expressions(entry: &Entry, operator: bool) -> (Vec<(String, String)>, usize) {
    let mut choices: Vec<Vec<String>> = Vec::new();
    let mut tables = 0;
    for (at, kind) in entry.args.iter().enumerate() {
        if at == 0 && !entry.words.is_empty() {
            choices.push(entry.words.iter().map(|word| format!("'{word}'")).collect());
        } else if *kind == Type::Interval {
            choices.push(INTERVALS.iter().map(|interval| format!("interval '{interval}'")).collect());
        } else {
            choices.push(vec![format!("{}.{}", ["a", "b", "c"][tables], column(*kind, entry.collation))]);
            tables += 1;
        }
    }
    let mut calls = vec![Vec::new()];
    for of in &choices {
        calls = calls
            .iter()
            .flat_map(|call| of.iter().map(|one| [&call[..], std::slice::from_ref(one)].concat()))
            .collect();
    }
    let written = calls.into_iter().map(|args: Vec<String>| {
        let heap = args
            .iter()
            .enumerate()
            .fold(entry.heap.to_owned(), |heap, (at, arg)| heap.replace(&format!("{{{}}}", at + 1), arg));
        let call = match (&args[..], operator) {
            ([one], true) => format!("({} {one})", entry.name),
            ([left, right], true) => format!("({left} {} {right})", entry.name),
            _ => format!("pg_catalog.\"{}\"({})", entry.name, args.join(", ")),
        };
        (call, heap)
    });
    (written.collect(), tables.max(1))
}

/// An expression over all values of its columns.
async fn prove(client: &Client, expression: &str, heap: &str, tables: usize, fails: bool) -> Vec<String> {
    let mut failures = Vec::new();
    let key = ["a.id * 10000 + 101", "a.id * 10000 + b.id * 100 + 1", "a.id * 10000 + b.id * 100 + c.id"][tables - 1];
    let from = ["@corpus a", "@corpus a, @corpus b", "@corpus a, @corpus b, @corpus c"][tables - 1];
    let text = expression.replace('\'', "''");
    let failing = run(client, &format!("SELECT public.failing('{text}', {tables})")).await.unwrap().1;
    let failing: Vec<String> = failing.into_iter().map(|row| row[0].clone().unwrap()).collect();
    if !failing.is_empty() && !fails {
        failures.push(format!("{expression} fails in Postgres, and is not marked so"));
    }
    let but =
        if failing.is_empty() { String::new() } else { format!(" WHERE {key} <> ALL ('{{{}}}')", failing.join(",")) };
    let mut query = format!("SELECT {key} AS key, {expression} AS value FROM {from}{but}");
    if !heap.is_empty() {
        failures.extend(difference(client, &query, false).await);
        let and = if but.is_empty() { "WHERE" } else { "AND" };
        query = format!("{query} {and} NOT coalesce({heap}, false)");
    }
    failures.extend(difference(client, &query, false).await);
    failures.extend(not_whole(client, &query).await);
    for failing in failing.iter().take(FAILING) {
        let query = format!("SELECT {expression} FROM {from} WHERE {key} = {failing}");
        failures.extend(difference(client, &query, false).await);
    }
    failures
}

#[tokio::test]
async fn what_is_on_the_list_is_equal_on_both_sides() {
    let (server, worker, client) = set_up().await;
    add(&server, &worker, &client, include_str!("harness/corpus.sql"), &["corpus"]).await;
    let mut failures = Vec::new();
    for (list, operator) in [(OPERATORS, true), (FUNCTIONS, false)] {
        for entry in list {
            let (expressions, tables) = expressions(entry, operator);
            for (expression, heap) in expressions {
                failures.extend(prove(&client, &expression, &heap, tables, entry.fails).await);
            }
        }
    }
    for entry in AGGREGATES.iter().filter(|entry| !entry.args.is_empty()) {
        let call = format!("{}({{}}{})", entry.name, column(entry.args[0], entry.collation));
        let (plain, distinct) = (call.replace("{}", ""), call.replace("{}", "DISTINCT "));
        for query in [
            format!("SELECT g, {plain}, {distinct}, {plain} FILTER (WHERE b) FROM @corpus GROUP BY g"),
            format!(
                "SELECT id, {plain} OVER (PARTITION BY g ORDER BY id), {plain} OVER (ORDER BY id DESC ROWS 3 PRECEDING) FROM @corpus"
            ),
            format!("SELECT {plain} FROM @corpus WHERE id < 0"),
        ] {
            failures.extend(difference(&client, &query, false).await);
            failures.extend(not_whole(&client, &query).await);
        }
    }
    for entry in WINDOWS {
        let argument = if entry.args.is_empty() { "" } else { "3" };
        let query = format!(
            "SELECT id, {}({argument}) OVER (PARTITION BY g ORDER BY i2 NULLS FIRST, id DESC) FROM @corpus",
            entry.name
        );
        failures.extend(difference(&client, &query, false).await);
        failures.extend(not_whole(&client, &query).await);
    }
    assert!(!server.crashed(), "{}", server.log());
    assert!(failures.is_empty(), "{} differ:\n{}", failures.len(), failures.join("\n"));
}

#[tokio::test]
async fn the_forms_are_equal_on_both_sides() {
    let (server, worker, client) = set_up().await;
    add(&server, &worker, &client, include_str!("harness/corpus.sql"), &["corpus"]).await;
    let mut failures = Vec::new();
    for query in FORMS.iter().flat_map(|form| form.proofs) {
        if let Err(state) = run(&client, &sides(query).0).await {
            failures.push(format!("{query}\n  fails: {state}"));
        }
        let order = query.rsplit(')').next().unwrap().contains("ORDER BY");
        failures.extend(difference(&client, query, order).await);
        failures.extend(not_whole(&client, query).await);
    }
    assert!(!server.crashed(), "{}", server.log());
    assert!(failures.is_empty(), "{} differ:\n{}", failures.len(), failures.join("\n"));
}
