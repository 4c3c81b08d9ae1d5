//! `compact`: how far the lake trails a steady stream while two gigabytes of small files are rewritten, against the same stream while
//! nothing is. The bar is one and a half times.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker, WorkerConfig};

use crate::Size;
use crate::report::{Measure, median};
use crate::rig;

/// About two gigabytes of data files.
const ROWS: u64 = 40_000_000;
/// So many files are to be rewritten, at least.
const FILES: u64 = 64;
/// Transactions of the stream that are timed.
const STREAMED: u64 = 200;
/// Rows of each of them.
const BATCH: u64 = 200;

pub(crate) async fn run(size: Size) -> Result<Vec<Measure>> {
    let rows = size.of(ROWS);
    let postgres = rig::server().await?;
    postgres.batch(rig::EVENTS).await?;
    Source::publish(&postgres, &["public.events"]).await?;
    let mut config = rig::worker(&postgres, "compact", &["public.events"])?;
    config.interval = "200ms".to_owned();
    config.maintenance = "enabled = false".to_owned();
    let mut worker = Worker::spawn(&config)?;
    rig::streaming(&postgres, &mut worker, 1).await?;
    // Each a commit, and so a file.
    let (step, mut next) = (rows / FILES, 1);
    for _ in 0..FILES {
        postgres.batch(&rig::fill(next, next + step - 1)).await?;
        next += step;
        let end = rig::wal_end(&postgres, rig::MARK_EVENTS).await?;
        rig::acknowledged(&postgres, &mut worker, &end).await?;
    }
    let quiet = lag(&postgres, &mut worker, &mut next).await?;
    let asked = Instant::now();
    let compacting = tokio::spawn(compact(config.clone()));
    let busy = lag(&postgres, &mut worker, &mut next).await?;
    let overlapped = !compacting.is_finished();
    compacting.await??;
    let took = asked.elapsed().as_secs_f64();
    println!("rewritten in {took:.1} s; the stream was {} meanwhile", if overlapped { "all" } else { "in part" });
    Oracle::new(&postgres).caught_up(&postgres, rig::PATIENCE).await?;
    Ok(vec![
        Measure { name: "compact_lag", ours: busy, reference: Some(quiet), unit: "ms to commit" },
        Measure { name: "compact_time", ours: took, reference: None, unit: "s" },
    ])
}

async fn compact(config: WorkerConfig) -> Result<()> {
    let output = config.call(&["maintain", "public.events"]).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The median time from a transaction's commit until the lake has it, in milliseconds.
async fn lag(postgres: &Postgres, worker: &mut Worker, next: &mut u64) -> Result<f64> {
    let client = postgres.client().await?;
    let mut times = Vec::new();
    for n in 0..STREAMED {
        let (first, last) = (*next, *next + BATCH - 1);
        *next = last + 1;
        let touched = 1 + n * 7919 % (first / 2);
        let changes = format!(
            "BEGIN; {}; UPDATE events SET amount = amount + 1 WHERE id BETWEEN {touched} AND {touched} + 50",
            rig::fill(first, last)
        );
        client.batch_execute(&changes).await?;
        // The commit comes behind it; and nothing that the lake follows is in between.
        let end: String = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
        client.batch_execute("COMMIT").await?;
        let begun = Instant::now();
        let reached = format!("SELECT lsn > '{end}' FROM lake_catalog.mirrors");
        while client.query_one(&reached, &[]).await?.get::<_, Option<bool>>(0) != Some(true) {
            ensure!(worker.runs()? && begun.elapsed() < rig::PATIENCE, "no commit comes:\n{}", worker.output());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(median(times))
}
