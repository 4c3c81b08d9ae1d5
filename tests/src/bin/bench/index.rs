//! `index`: the position index of a table of 50 million rows: its bytes on disk, the memory of the process while keys from
//! all over it are looked up, and how fast it is read back from the key columns when it is lost.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lake_tests::{Source, Worker, eventually};

use crate::Size;
use crate::measure::{deleted_bytes, forget_peak, memory_mib};
use crate::report::{Measure, median};
use crate::rig;

const ROWS: u64 = 50_000_000;
/// Rows updated, one in so many, in transactions of a thousand.
const UPDATED: u64 = 100;
const TRANSACTION: u64 = 1000;

#[expect(clippy::cast_precision_loss, reason = "row counts")]
pub(crate) async fn run(size: Size) -> Result<Vec<Measure>> {
    let rows = size.of(ROWS);
    let postgres = rig::server().await?;
    // The keys are not in the order of the rows, so that neighbours in one are none in the other.
    postgres.batch("CREATE TABLE keys (id bigint PRIMARY KEY, v int NOT NULL)").await?;
    postgres
        .batch(&format!("INSERT INTO keys SELECT i * 7919 % 1000000007, 0 FROM generate_series(1, {rows}::bigint) i"))
        .await?;
    postgres.batch("VACUUM ANALYZE keys").await?;
    Source::publish(&postgres, &["public.keys"]).await?;
    let mut config = rig::worker(&postgres, "index", &["public.keys"])?;
    // The bar is for the whole process: what the batch has in memory is not to be what is measured.
    config.memory = Some("64MiB".to_owned());
    let mut worker = Worker::spawn(&config)?;
    rig::streaming(&postgres, &mut worker, 1).await?;
    let on_disk = deleted_bytes(worker.pid())? / rows as f64;

    forget_peak(worker.pid())?;
    let begun = Instant::now();
    let (updates, step) = ((rows / UPDATED / TRANSACTION).max(1), rows / TRANSACTION);
    postgres
        .batch(&format!(
            "DO $$ BEGIN FOR t IN 1..{updates} LOOP
                 UPDATE keys SET v = t WHERE id = ANY (ARRAY(SELECT (t + i * {step}::bigint) * 7919 % 1000000007 FROM generate_series(0, {}) i));
                 COMMIT;
             END LOOP; END $$",
            TRANSACTION - 1
        ))
        .await?;
    let end = rig::wal_end(&postgres, "UPDATE keys SET v = v WHERE id = 7919").await?;
    rig::acknowledged(&postgres, &mut worker, &end).await?;
    let updated = (updates * TRANSACTION) as f64 / begun.elapsed().as_secs_f64();
    let peak = memory_mib(worker.pid(), "VmHWM")?;

    let (mut rates, mut rebuilding) = (Vec::new(), Vec::new());
    for _ in 0..size.runs {
        worker.kill().await?;
        let begun = Instant::now();
        worker = Worker::spawn(&config)?;
        ready(&worker).await?;
        rates.push(rows as f64 / begun.elapsed().as_secs_f64());
        rebuilding.push(memory_mib(worker.pid(), "VmHWM")?);
    }
    Ok(vec![
        Measure { name: "index_bytes", ours: on_disk, reference: Some(24.0), unit: "bytes a row on disk" },
        Measure { name: "index_lookup_rss", ours: peak, reference: Some(128.0), unit: "MiB peak RSS" },
        Measure {
            name: "index_lookups",
            ours: updated,
            reference: None,
            unit: "random updates/s, Postgres's own included",
        },
        Measure {
            name: "index_rebuild",
            ours: median(rates),
            reference: Some(3e6),
            unit: "rows/s from start to ready",
        },
        Measure { name: "index_rebuild_rss", ours: median(rebuilding), reference: None, unit: "MiB peak RSS" },
    ])
}

/// Waits until the worker says that it follows the source.
async fn ready(worker: &Worker) -> Result<()> {
    let wait = eventually("the worker is ready", rig::PATIENCE, async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(worker.admin("/readyz").await.ok().filter(|(code, _)| *code == 200))
    });
    Box::pin(wait).await.map(drop).with_context(|| worker.output())
}
