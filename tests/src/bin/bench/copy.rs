//! `copy`: the first copy of a table into a committed Iceberg table, index built, against DuckDB's `postgres_scanner`
//! that writes one Parquet file of the same compression, with the same number of threads.

use std::time::Instant;

use anyhow::{Context, Result};
use lake_tests::{Python, Source, Worker};
use serde_json::json;

use crate::Size;
use crate::measure::{cpu_seconds, memory_mib};
use crate::report::{Measure, median};
use crate::rig;

const ROWS: u64 = 10_000_000;

#[expect(clippy::cast_precision_loss, reason = "row counts")]
pub(crate) async fn run(size: Size) -> Result<Vec<Measure>> {
    let rows = size.of(ROWS);
    let postgres = rig::server().await?;
    postgres.batch(rig::EVENTS).await?;
    postgres.batch(&rig::fill(1, rows)).await?;
    postgres.batch("VACUUM ANALYZE events").await?;
    postgres.batch("CHECKPOINT").await?;
    Source::publish(&postgres, &["public.events"]).await?;
    let (mut ours, mut theirs, mut cpu, mut peak) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in 0..size.runs {
        let output = postgres.scratch().directory(&format!("scanner-{run}"))?.join("events.parquet");
        let request = json!({
            "host": postgres.socket_dir(), "port": postgres.port(), "output": output,
            "threads": std::thread::available_parallelism().map_or(2, usize::from),
        });
        let answer = Python::script("bench/postgres_scanner.py").ask(&request).await?;
        theirs.push(rows as f64 / answer["seconds"].as_f64().context("seconds")?);
        std::fs::remove_file(output)?;

        let config = rig::worker(&postgres, &format!("copy-{run}"), &["public.events"])?;
        let begun = Instant::now();
        let mut worker = Worker::spawn(&config)?;
        rig::streaming(&postgres, &mut worker, 1).await?;
        ours.push(rows as f64 / begun.elapsed().as_secs_f64());
        cpu.push(cpu_seconds(worker.pid())? / (rows as f64 / 1e6));
        peak.push(memory_mib(worker.pid(), "VmHWM")?);
        worker.terminate().await?;
        config.call(&["teardown"]).await?;
        std::fs::remove_dir_all(&config.warehouse)?;
    }
    Ok(vec![
        Measure { name: "copy", ours: median(ours), reference: Some(median(theirs)), unit: "rows/s" },
        Measure { name: "copy_cpu", ours: median(cpu), reference: None, unit: "CPU-s per million rows" },
        Measure { name: "copy_peak_rss", ours: median(peak), reference: None, unit: "MiB" },
    ])
}
