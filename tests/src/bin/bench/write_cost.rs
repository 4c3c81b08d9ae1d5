//! `write_cost`: what a mirror in S3 costs to keep, in what stores bill for: requests and bytes, a commit and a changed
//! megabyte.
//!
//! Kinds of requests are told apart, for the bar is for PUTs: four a table and commit beside the manifest list and the metadata, which all
//! changes of a table in a commit share. An insert's commit has to put a data file and a manifest beside them; an update's a file of
//! deleted positions and the manifest of that too, since Iceberg has no manifest of both. Both are measured, without
//! the maintenance and with it: what it rewrites goes along with commits, and is of many. All bytes that are sent are set against
//! those of the commits' data files, which are the Parquet of the changed rows.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use lake_tests::{Postgres, Python, Seaweed, Source, Worker};
use serde_json::json;

use crate::Size;
use crate::report::Measure;
use crate::rig;

const ROWS: u64 = 200_000;
/// Rows that each transaction changes; each is a commit of its own.
const CHANGED: u64 = 5000;
const TRANSACTIONS: u64 = 20;
/// PUTs of a table and commit beside the shared ones, at most.
const PUTS: f64 = 4.0;
/// Bytes sent for a byte of Parquet of the changed rows, at most.
const BYTES: f64 = 1.5;
/// The manifest list and the metadata.
const SHARED: f64 = 2.0;

pub(crate) async fn run(size: Size) -> Result<Vec<Measure>> {
    let bare = costs(size, false).await?;
    let costs = costs(size, true).await?;
    let updates = &costs.updates;
    let megabytes = costs.changed_megabytes;
    let measure = |name, ours, unit| Measure { name, ours, reference: None, unit };
    let puts = |name, spent: &Spent| Measure {
        reference: Some(PUTS),
        ..measure(name, spent.each("put") - SHARED, "requests/commit beside the shared ones")
    };
    let share = |name, spent: &Spent| Measure {
        reference: Some(BYTES),
        ..measure(name, spent.bytes / spent.data_bytes, "bytes sent for a byte of Parquet of the changed rows")
    };
    let each = |name, kind| measure(name, updates.each(kind), "requests/commit");
    let writes = updates.kind("put") + updates.kind("post") + updates.kind("list");
    Ok(vec![
        // One table is mirrored, so that a commit is of one table.
        puts("write_cost: puts, inserts", &bare.inserts),
        puts("write_cost: puts, updates", &bare.updates),
        puts("write_cost: puts, inserts and maintenance", &costs.inserts),
        puts("write_cost: puts, updates and maintenance", updates),
        each("write_cost: posts", "post"),
        each("write_cost: lists", "list"),
        each("write_cost: gets", "get"),
        each("write_cost: heads", "head"),
        each("write_cost: deletes", "delete"),
        share("write_cost: sent, inserts", &bare.inserts),
        share("write_cost: sent, updates", &bare.updates),
        measure("write_cost: sent", updates.bytes / updates.commits / 1e3, "kB/commit"),
        measure("write_cost: sent a changed MB", updates.bytes / 1e6 / megabytes, "MB"),
        measure("write_cost: puts, posts and lists a changed MB", writes / megabytes, "requests"),
    ])
}

/// What a mirror has cost.
struct Costs {
    updates: Spent,
    inserts: Spent,
    /// What either changed, as the heap counts it.
    changed_megabytes: f64,
}

/// Runs a mirror of its own.
async fn costs(size: Size, maintenance: bool) -> Result<Costs> {
    let store = Seaweed::start().await?;
    let postgres = rig::server().await?;
    postgres.batch(rig::EVENTS).await?;
    let (rows, changed) = (size.of(ROWS), size.of(CHANGED));
    postgres.batch(&rig::fill(1, rows)).await?;
    Source::publish(&postgres, &["public.events"]).await?;
    let mut config = rig::worker(&postgres, "cost", &["public.events"])?.in_store(&store)?;
    config.interval = "50ms".to_owned();
    config.maintenance = format!("enabled = {maintenance}");
    let mut worker = Worker::spawn(&config)?;
    rig::streaming(&postgres, &mut worker, 1).await?;
    let end = rig::wal_end(&postgres, rig::MARK_EVENTS).await?;
    rig::acknowledged(&postgres, &mut worker, &end).await?;

    let updates = spent(&postgres, &store, &mut worker, |turn| {
        let first = turn * changed % rows;
        let update = format!("UPDATE events SET amount = amount + 1 WHERE id > {first} AND id <= {}", first + changed);
        (update, rig::MARK_EVENTS.to_owned())
    })
    .await?;
    let inserts = spent(&postgres, &store, &mut worker, |turn| {
        let first = rows + 1 + turn * (changed + 1);
        (rig::fill(first, first + changed - 1), rig::fill(first + changed, first + changed))
    })
    .await?;

    let row = "SELECT avg(pg_column_size(e))::float8 FROM (SELECT * FROM events LIMIT 1000) e";
    let row: f64 = postgres.value(row).await?.parse()?;
    #[expect(clippy::cast_precision_loss, reason = "row counts")]
    let changed_megabytes = row * (TRANSACTIONS * changed) as f64 / 1e6;
    Ok(Costs { updates, inserts, changed_megabytes })
}

/// What some transactions have cost.
struct Spent {
    commits: f64,
    bytes: f64,
    /// Of the data files that came; without maintenance none goes.
    data_bytes: f64,
    requests: HashMap<String, f64>,
}

impl Spent {
    /// Requests of a kind.
    fn kind(&self, kind: &str) -> f64 {
        self.requests.get(&format!("lake_store_requests_total{{kind=\"{kind}\"}}")).copied().unwrap_or(0.0)
    }

    /// Of them, a commit.
    fn each(&self, kind: &str) -> f64 {
        self.kind(kind) / self.commits
    }
}

/// Commits the transactions one after the other, each with the mark behind it, and says what they have cost.
async fn spent(
    postgres: &Postgres,
    store: &Seaweed,
    worker: &mut Worker,
    transaction: impl Fn(u64) -> (String, String),
) -> Result<Spent> {
    let before = counters(worker).await?;
    let data_before = data_bytes(postgres, store).await?;
    for turn in 0..TRANSACTIONS {
        let (statement, mark) = transaction(turn);
        postgres.batch(&statement).await?;
        let end = rig::wal_end(postgres, &mark).await?;
        rig::acknowledged(postgres, worker, &end).await?;
    }
    let mut requests = counters(worker).await?;
    for (name, count) in &mut requests {
        *count -= before.get(name).unwrap_or(&0.0);
    }
    let of = |name: &str| requests.get(name).copied().unwrap_or(0.0);
    let (commits, bytes) = (of("lake_commits_total"), of("lake_store_sent_bytes_total"));
    ensure!(commits > 0.0, "no commit was counted");
    let data_bytes = data_bytes(postgres, store).await? - data_before;
    Ok(Spent { commits, bytes, data_bytes, requests })
}

/// Bytes of the table's data files.
async fn data_bytes(postgres: &Postgres, store: &Seaweed) -> Result<f64> {
    let options = json!({
        "s3.endpoint": store.endpoint(),
        "s3.region": Seaweed::REGION,
        "s3.access-key-id": Seaweed::ADMIN.id,
        "s3.secret-access-key": Seaweed::ADMIN.secret,
    });
    let metadata = postgres.value("SELECT metadata_location FROM lake_catalog.iceberg_tables").await?;
    let request = json!({ "metadata": metadata, "store": options });
    let answer = Python::script("bench/data_bytes.py").ask(&request).await?;
    answer["bytes"].as_f64().context("bytes")
}

/// The worker's counters, by name and labels.
async fn counters(worker: &Worker) -> Result<HashMap<String, f64>> {
    let (status, page) = worker.admin("/metrics").await?;
    ensure!(status == 200, "/metrics: {status}");
    let lines = page.lines().filter(|line| line.starts_with("lake_"));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').context("a metric's value")?;
            Ok((name.to_owned(), value.parse().context("a number")?))
        })
        .collect()
}
