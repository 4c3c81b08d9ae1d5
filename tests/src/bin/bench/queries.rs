//! `tpch`, `dirty`, `rows_out`, `first_query`: what queries of the lake take inside Postgres.
//!
//! `tpch`: the 22 queries at scale factor 1, on `lake.…` as it is by default, against DuckDB itself over the same Parquet files (the bar: 1.15
//! times), and the heap (ten times as fast). `dirty`: the same after a hundred commits that touched one row in twenty, against before (1.25
//! times); the files are kept in order meanwhile, as ever. `rows_out`: a million rows of five columns by COPY, against the heap (as
//! fast). `first_query`: the first query of a connection, against its second (60 ms more). `many_files`: a query of which ten files of ten thousand
//! have rows, against one of a table of ten files (1.5 times).

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt as _;
use lake_tests::{Postgres, Python, repository};
use serde_json::json;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::Size;
use crate::report::{Measure, median};
use crate::rig;

const TABLES: [&str; 8] = ["region", "nation", "supplier", "part", "partsupp", "customer", "orders", "lineitem"];
/// Connections whose first queries are timed.
const CONNECTIONS: usize = 20;
/// Rows that leave.
const ROWS: u64 = 1_000_000;
/// Commits that make the tables dirty, and the share of rows that they touch together.
const COMMITS: u64 = 100;
const TOUCHED: u64 = 20;
/// Data files of a table, and rows in each.
const FILES: u64 = 10_000;
const ROWS_OF_FILE: u64 = 100;
/// Seconds that a query of the heap is let run.
const PATIENCE_WITH_HEAP: f64 = 30.0;

/// A server with both extensions, set up as a small production one.
async fn server() -> Result<Postgres> {
    let postgres = Postgres::builder()
        .preload("lake, lake_query")
        .set("fsync", "on")
        .set("shared_buffers", "2GB")
        .set("work_mem", "64MB")
        .set("max_wal_size", "16GB")
        .set("lake.memory_limit", "4GB")
        .start()
        .await?;
    postgres.batch("CREATE EXTENSION lake; CREATE EXTENSION lake_query").await?;
    Ok(postgres)
}

async fn mirror(postgres: &Postgres, tables: &[&str]) -> Result<()> {
    for table in tables {
        postgres.batch(&format!("SELECT lake.mirror('{table}')")).await?;
    }
    for table in tables {
        let limit = rig::PATIENCE.as_secs();
        postgres.batch(&format!("SELECT lake.wait('{table}', '{limit} s')")).await?;
    }
    Ok(())
}

/// The queries, with the tables of a schema.
fn queries(schema: &str) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(repository().join("query-ext/tests/tpch/queries.sql"))?;
    let written = text.split("\n-- q").skip(1).filter_map(|part| part.split_once('\n'));
    let queries: Vec<String> = written.map(|(_, sql)| sql.trim().trim_end_matches(';').replace('@', schema)).collect();
    ensure!(queries.len() == 22, "{} queries", queries.len());
    Ok(queries)
}

/// Seconds of each query, the median of the runs.
async fn timed(client: &Client, queries: &[String], runs: usize) -> Result<Vec<f64>> {
    let mut seconds = Vec::new();
    for query in queries {
        let mut taken = Vec::new();
        for _ in 0..runs {
            let begun = Instant::now();
            client.simple_query(query).await.with_context(|| query.clone())?;
            taken.push(begun.elapsed().as_secs_f64());
        }
        seconds.push(median(taken));
    }
    Ok(seconds)
}

fn total(seconds: &[f64]) -> f64 {
    seconds.iter().sum()
}

async fn loaded(size: Size) -> Result<Postgres> {
    let postgres = server().await?;
    let schema = std::fs::read_to_string(repository().join("query-ext/tests/tpch/schema.sql"))?;
    postgres.batch(&schema.replace(":sf", &size.scale.to_string())).await?;
    postgres.batch("VACUUM ANALYZE").await?;
    mirror(&postgres, &TABLES).await?;
    Ok(postgres)
}

pub(crate) async fn tpch(size: Size) -> Result<Vec<Measure>> {
    let postgres = loaded(size).await?;
    let client = postgres.client().await?;
    let lake = timed(&client, &queries("lake.")?, size.runs).await?;
    let warehouse = postgres.data_dir().join("lake/warehouse/public");
    let tables: serde_json::Map<_, _> = TABLES
        .iter()
        .map(|table| ((*table).to_owned(), json!(format!("{}/{table}-*/data/*.parquet", warehouse.display()))))
        .collect();
    let request = json!({ "tables": tables, "queries": queries("")?, "runs": size.runs, "threads": 2 });
    let answer = Python::script("bench/duckdb_queries.py").ask(&request).await?;
    let duckdb: Vec<f64> = serde_json::from_value(answer["seconds"].clone())?;
    // Without indexes two of them take the heap hours: a query that is given up counts as long as it was let run.
    client.batch_execute(&format!("SET statement_timeout = '{PATIENCE_WITH_HEAP}s'")).await?;
    let mut heap = Vec::new();
    for query in queries("public.")? {
        let begun = Instant::now();
        let answered = client.simple_query(&query).await;
        let gave_up = answered.is_err_and(|error| error.code() == Some(&SqlState::QUERY_CANCELED));
        heap.push(if gave_up { PATIENCE_WITH_HEAP } else { begun.elapsed().as_secs_f64() });
    }
    for (at, ((lake, duckdb), heap)) in lake.iter().zip(&duckdb).zip(&heap).enumerate() {
        println!("q{}: lake {lake:.3} s, DuckDB {duckdb:.3} s, heap {heap:.3} s", at + 1);
    }
    let measure =
        |name, reference: &[f64], unit| Measure { name, ours: total(&lake), reference: Some(total(reference)), unit };
    Ok(vec![
        measure("tpch", &duckdb, "s, against DuckDB over the same files"),
        measure("tpch_heap", &heap, "s, against the heap"),
    ])
}

pub(crate) async fn dirty(size: Size) -> Result<Vec<Measure>> {
    let postgres = loaded(size).await?;
    let client = postgres.client().await?;
    let queries = queries("lake.")?;
    let clean = timed(&client, &queries, size.runs).await?;
    for commit in 0..COMMITS {
        let step = COMMITS * TOUCHED;
        postgres
            .batch(&format!(
                "UPDATE lineitem SET l_comment = l_comment WHERE l_orderkey % {step} = {commit};
                 UPDATE orders SET o_clerk = o_clerk WHERE o_orderkey % {step} = {commit};
                 SELECT lake.wait('lineitem', '600 s'), lake.wait('orders', '600 s')"
            ))
            .await?;
    }
    let dirty = timed(&client, &queries, size.runs).await?;
    for (at, (dirty, clean)) in dirty.iter().zip(&clean).enumerate() {
        println!("q{}: dirty {dirty:.3} s, clean {clean:.3} s", at + 1);
    }
    Ok(vec![Measure { name: "dirty", ours: total(&dirty), reference: Some(total(&clean)), unit: "s, against clean" }])
}

pub(crate) async fn rows_out(size: Size) -> Result<Vec<Measure>> {
    let postgres = server().await?;
    let rows = size.of(ROWS);
    postgres.batch(rig::EVENTS).await?;
    postgres.batch(&rig::fill(1, rows)).await?;
    postgres.batch("VACUUM ANALYZE events").await?;
    mirror(&postgres, &["events"]).await?;
    let client = postgres.client().await?;
    let mut seconds = [Vec::new(), Vec::new()];
    for _ in 0..size.runs.max(3) {
        for (of, table) in seconds.iter_mut().zip(["lake.events", "public.events"]) {
            let begun = Instant::now();
            let copy = format!("COPY (SELECT id, account, kind, amount, at FROM {table}) TO STDOUT");
            let mut stream = std::pin::pin!(client.copy_out(&copy).await?);
            let mut bytes = 0;
            while let Some(part) = stream.try_next().await? {
                bytes += part.len();
            }
            ensure!(bytes > 0, "nothing came");
            of.push(begun.elapsed().as_secs_f64());
        }
    }
    let [lake, heap] = seconds.map(median);
    #[expect(clippy::cast_precision_loss, reason = "a row count")]
    let rate = |seconds: f64| rows as f64 / seconds;
    Ok(vec![Measure { name: "rows_out", ours: rate(lake), reference: Some(rate(heap)), unit: "rows/s by COPY" }])
}

pub(crate) async fn first_query(size: Size) -> Result<Vec<Measure>> {
    let postgres = server().await?;
    postgres.batch(rig::EVENTS).await?;
    postgres.batch(&rig::fill(1, size.of(100_000))).await?;
    mirror(&postgres, &["events"]).await?;
    let query = ["SELECT kind, count(*), sum(amount) FROM lake.events GROUP BY kind".to_owned()];
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let client = postgres.client().await?;
        // A connection's first query of any kind reads catalogs.
        client.simple_query("SELECT count(*) FROM pg_class").await?;
        first.extend(timed(&client, &query, 1).await?);
        second.extend(timed(&client, &query, 1).await?);
    }
    Ok(vec![Measure {
        name: "first_query",
        ours: median(first) * 1000.0,
        reference: Some(median(second) * 1000.0),
        unit: "ms, against the second",
    }])
}

pub(crate) async fn many_files(size: Size) -> Result<Vec<Measure>> {
    let postgres = server().await?;
    let files = size.of(FILES);
    let tables = [("few", 10), ("many", files)];
    for (table, files) in tables {
        postgres.batch(&rig::EVENTS.replace("events", table)).await?;
        postgres
            .batch(&rig::fill(0, files * ROWS_OF_FILE - 1).replace("INTO events", &format!("INTO {table}")))
            .await?;
        let limit = rig::PATIENCE.as_secs();
        let layout = format!("partition_by => 'truncate({ROWS_OF_FILE}, id)'");
        postgres.batch(&format!("SELECT lake.mirror('{table}', {layout})")).await?;
        postgres.batch(&format!("SELECT lake.wait('{table}', '{limit} s')")).await?;
    }
    let client = postgres.client().await?;
    let query = |table: &str, first: u64| {
        let last = first + 10 * ROWS_OF_FILE - 1;
        format!(
            "SELECT kind, count(*), sum(amount) FROM lake.{table} WHERE id BETWEEN {first} AND {last} GROUP BY kind"
        )
    };
    let queries = [query("few", 0), query("many", files / 2 * ROWS_OF_FILE)];
    for query in &queries {
        let plan = client.simple_query(&format!("EXPLAIN ANALYZE {query}")).await?;
        let mut lines = plan.iter().filter_map(|line| match line {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        ensure!(lines.any(|line| line.trim() == "Files: 10"), "{query} reads other than 10 files: {plan:?}");
    }
    let seconds = timed(&client, &queries, size.runs.max(20)).await?;
    Ok(vec![Measure {
        name: "many_files",
        ours: seconds[1] * 1000.0,
        reference: Some(seconds[0] * 1000.0),
        unit: "ms, against a table of ten files",
    }])
}
