//! Heap and lake side by side: the same rows, types, order and errors, by the expected way.
#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "a test that cannot go on has failed")]

mod harness;

use harness::set_up;
use tokio_postgres::{Client, SimpleQueryMessage};

type Rows = Result<(Vec<String>, Vec<Vec<Option<String>>>), String>;

async fn run(client: &Client, sql: &str) -> Rows {
    let state = |error: &tokio_postgres::Error| {
        error.as_db_error().map_or_else(|| error.to_string(), |error| error.code().code().to_owned())
    };
    let statement = client.prepare(sql).await.map_err(|error| state(&error))?;
    let types = statement.columns().iter().map(|column| format!("{} {}", column.name(), column.type_())).collect();
    let messages = client.simple_query(sql).await.map_err(|error| state(&error))?;
    let rows = messages
        .into_iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|index| row.get(index).map(str::to_owned)).collect())
            }
            _ => None,
        })
        .collect();
    Ok((types, rows))
}

/// The lines that a query returns.
async fn plan(client: &Client, sql: &str) -> Option<String> {
    let mut plan = String::new();
    for message in client.simple_query(sql).await.ok()? {
        if let SimpleQueryMessage::Row(row) = message {
            plan.push_str(row.get(0).unwrap_or_default());
            plan.push('\n');
        }
    }
    Some(plan)
}

/// How a query was answered, as EXPLAIN shows it.
async fn way(client: &Client, sql: &str) -> Option<char> {
    let plan = plan(client, &format!("EXPLAIN (COSTS off) {sql}")).await?;
    Some(if plan.contains("(LakeScan) on") {
        'S'
    } else if plan.contains("(LakeScan)") {
        'W'
    } else {
        'H'
    })
}

#[tokio::test]
async fn lake_answers_as_the_heap() {
    let (server, worker, client) = set_up().await;
    let mut failures = Vec::new();
    let mut ways = std::collections::BTreeMap::new();
    for line in include_str!("harness/queries.txt").lines().filter(|line| !line.trim().is_empty()) {
        let (mark, query) = line.split_once(' ').unwrap();
        let ordered = mark.contains('!');
        let heap = query.replace('@', "public.").replace("public. ", "@ ");
        let lake = query.replace('@', "lake.").replace("lake. ", "@ ");
        let mut expected = run(&client, &heap).await;
        let mut found = run(&client, &lake).await;
        if !ordered {
            for (_, rows) in [&mut expected, &mut found].into_iter().flatten() {
                rows.sort();
            }
        }
        if expected != found {
            let show = |rows: &Rows| match rows {
                Ok((types, rows)) => format!("{types:?}, {} rows, {:?}", rows.len(), &rows[..rows.len().min(3)]),
                Err(state) => format!("error {state}"),
            };
            let first = match (&expected, &found) {
                (Ok((_, a)), Ok((_, b))) => a.iter().zip(b).find(|(a, b)| a != b).map(|pair| format!("{pair:?}")),
                _ => None,
            };
            failures.push(format!("{query}\n  heap: {}\n  lake: {}\n  {first:?}", show(&expected), show(&found)));
        }
        let answered = way(&client, &lake).await;
        if expected.is_ok() && answered != mark.chars().next() {
            let reason = run(&client, &format!("EXPLAIN (COSTS off) {lake}")).await;
            failures.push(format!("{query}\n  expected {mark}, was {answered:?} {reason:?}"));
        }
        if expected.is_ok() && answered != Some('H') && !mark.contains('~') {
            let ran = plan(&client, &format!("EXPLAIN (ANALYZE, COSTS off) {lake}")).await.unwrap_or_default();
            if ran.contains("Answered By") {
                failures.push(format!("{query}\n  fell back: {ran}"));
            }
        }
        *ways.entry(answered).or_insert(0) += 1;
    }
    eprintln!("ways: {ways:?}");
    let fallbacks = run(&client, "SELECT * FROM lake.stat_fallback").await;
    eprintln!("fallbacks: {fallbacks:?}");
    assert!(!server.crashed(), "{}", server.log());
    assert!(failures.is_empty(), "{} differ:\n{}", failures.len(), failures.join("\n"));
    assert!(worker.drained(), "a lease is still open");
    worker.close();
    assert_eq!(run(&client, "SELECT count(*) FROM lake.t1").await, Err("57P03".into()));
}
