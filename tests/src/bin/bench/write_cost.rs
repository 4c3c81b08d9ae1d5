//! `write_cost`: what a mirror in S3 costs to keep, in what stores bill for: requests and bytes, a commit and a changed
//! megabyte.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use lake_tests::{Seaweed, Source, Worker};

use crate::Size;
use crate::report::Measure;
use crate::rig;

const ROWS: u64 = 200_000;
/// Rows that each transaction changes; each is a commit of its own.
const CHANGED: u64 = 5000;
const TRANSACTIONS: u64 = 20;

pub(crate) async fn run(size: Size) -> Result<Vec<Measure>> {
    let store = Seaweed::start().await?;
    let postgres = rig::server().await?;
    postgres.batch(rig::EVENTS).await?;
    let (rows, changed) = (size.of(ROWS), size.of(CHANGED));
    postgres.batch(&rig::fill(1, rows)).await?;
    Source::publish(&postgres, &["public.events"]).await?;
    let mut config = rig::worker(&postgres, "cost", &["public.events"])?.in_store(&store)?;
    config.interval = "50ms".to_owned();
    let mut worker = Worker::spawn(&config)?;
    rig::streaming(&postgres, &mut worker, 1).await?;
    let end = rig::wal_end(&postgres, rig::MARK_EVENTS).await?;
    rig::acknowledged(&postgres, &mut worker, &end).await?;
    let before = counters(&worker).await?;
    for turn in 0..TRANSACTIONS {
        let first = turn * changed % rows;
        postgres
            .batch(&format!("UPDATE events SET amount = amount + 1 WHERE id > {first} AND id <= {}", first + changed))
            .await?;
        let end = rig::wal_end(&postgres, rig::MARK_EVENTS).await?;
        rig::acknowledged(&postgres, &mut worker, &end).await?;
    }
    let after = counters(&worker).await?;
    let spent = |name: &str| after.get(name).unwrap_or(&0.0) - before.get(name).unwrap_or(&0.0);
    let commits = spent("lake_commits_total");
    ensure!(commits > 0.0, "no commit was counted");
    let row = "SELECT avg(pg_column_size(e))::float8 FROM (SELECT * FROM events LIMIT 1000) e";
    let row: f64 = postgres.value(row).await?.parse()?;
    #[expect(clippy::cast_precision_loss, reason = "row counts")]
    let megabytes = row * (TRANSACTIONS * changed) as f64 / 1e6;
    let kind = |kind: &str| spent(&format!("lake_store_requests_total{{kind=\"{kind}\"}}"));
    let writes = kind("put") + kind("post") + kind("list");
    let reads = kind("get") + kind("head");
    let measure = |name, ours, unit| Measure { name, ours, reference: None, unit };
    Ok(vec![
        measure("write_cost: puts, posts and lists", writes / commits, "requests/commit"),
        measure("write_cost: gets and heads", reads / commits, "requests/commit"),
        measure("write_cost: deletes", kind("delete") / commits, "requests/commit"),
        measure("write_cost: sent", spent("lake_store_sent_bytes_total") / commits / 1e3, "kB/commit"),
        measure("write_cost: sent a changed MB", spent("lake_store_sent_bytes_total") / 1e6 / megabytes, "MB"),
        measure("write_cost: puts, posts and lists a changed MB", writes / megabytes, "requests"),
    ])
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
