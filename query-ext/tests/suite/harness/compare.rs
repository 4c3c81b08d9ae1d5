//! The same query on both sides.

use tokio_postgres::{Client, SimpleQueryMessage};

/// Names and types of the columns, and the rows; or a SQLSTATE.
pub(crate) type Rows = Result<(Vec<String>, Vec<Vec<Option<String>>>), String>;

pub(crate) async fn run(client: &Client, sql: &str) -> Rows {
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
pub(crate) async fn plan(client: &Client, sql: &str) -> Option<String> {
    let mut plan = String::new();
    for message in client.simple_query(sql).await.ok()? {
        if let SimpleQueryMessage::Row(row) = message {
            plan.push_str(row.get(0).unwrap_or_default());
            plan.push('\n');
        }
    }
    Some(plan)
}

/// How a query was answered, as EXPLAIN shows it: the whole of it by DuckDB, its scans, or by the heap.
pub(crate) async fn way(client: &Client, sql: &str) -> Option<char> {
    let plan = plan(client, &format!("EXPLAIN (COSTS off) {sql}")).await?;
    Some(if plan.contains("(LakeScan) on") {
        'S'
    } else if plan.contains("(LakeScan)") {
        'W'
    } else {
        'H'
    })
}

/// A query of `@table`s as it is for the heap, and for the lake.
pub(crate) fn sides(query: &str) -> (String, String) {
    // `@` and `@>` are operators.
    let mut parts = query.split('@');
    let first = parts.next().unwrap_or_default();
    let of = |schema: &str| {
        parts.clone().fold(first.to_owned(), |sql, part| {
            let names = part.starts_with(|c: char| c.is_ascii_lowercase());
            sql + if names { schema } else { "" } + if names { "." } else { "@" } + part
        })
    };
    (of("public"), of("lake"))
}

/// What differs between heap and lake, if something does; the rows in any order unless they are `ordered`.
pub(crate) async fn difference(client: &Client, query: &str, ordered: bool) -> Option<String> {
    let (heap, lake) = sides(query);
    let (mut expected, mut found) = (run(client, &heap).await, run(client, &lake).await);
    if !ordered {
        for (_, rows) in [&mut expected, &mut found].into_iter().flatten() {
            rows.sort();
        }
    }
    if expected == found {
        return None;
    }
    let show = |rows: &Rows| match rows {
        Ok((types, rows)) => format!("{types:?}, {} rows, {:?}", rows.len(), &rows[..rows.len().min(3)]),
        Err(state) => format!("error {state}"),
    };
    let first = match (&expected, &found) {
        (Ok((_, a)), Ok((_, b))) => a.iter().zip(b).find(|(a, b)| a != b).map(|pair| format!("{pair:?}")),
        _ => None,
    };
    Some(format!("{query}\n  heap: {}\n  lake: {}\n  {first:?}", show(&expected), show(&found)))
}

/// Why DuckDB did not answer the whole of a query, if it did not.
pub(crate) async fn not_whole(client: &Client, query: &str) -> Option<String> {
    let (_, lake) = sides(query);
    let ran = plan(client, &format!("EXPLAIN (ANALYZE, COSTS off) {lake}")).await.unwrap_or_default();
    if way(client, &lake).await == Some('W') && !ran.contains("Answered By") {
        return None;
    }
    let why: Vec<&str> =
        ran.lines().filter(|line| line.contains("Answered By") || line.contains("Not Pushed")).collect();
    Some(format!("{query}\n  was not answered by DuckDB alone: {why:?}"))
}
