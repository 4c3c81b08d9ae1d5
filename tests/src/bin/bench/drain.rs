//! `drain`: a backlog in the WAL, to committed and acknowledged, against `pg_recvlogical` that throws the same slot's
//! output away. Our time begins with the process: it includes the start and the reading back of the position index.

use std::time::Instant;

use anyhow::Result;
use lake_tests::{Source, Worker};

use crate::Size;
use crate::measure::{cpu_seconds, memory_mib};
use crate::report::{Measure, median};
use crate::rig;

const ROWS: u64 = 3_000_000;
const INSERTS: u64 = 1_000_000;
const UPDATES: u64 = 500_000;
const DELETES: u64 = 100_000;
/// Rows of one updating or deleting transaction.
const BATCH: u64 = 100;

#[expect(clippy::cast_precision_loss, reason = "row counts")]
pub(crate) async fn run(size: Size) -> Result<Vec<Measure>> {
    let rows = size.of(ROWS);
    let (inserts, updates, deletes) = (size.of(INSERTS), size.of(UPDATES) / BATCH, size.of(DELETES) / BATCH);
    let changes = (inserts + (updates + deletes) * BATCH) as f64;
    let postgres = rig::server().await?;
    postgres.batch(rig::EVENTS).await?;
    postgres.batch(&rig::fill(1, rows)).await?;
    postgres.batch("VACUUM ANALYZE events").await?;
    Source::publish(&postgres, &["public.events"]).await?;
    let config = rig::worker(&postgres, "drain", &["public.events"])?;
    let mut worker = Worker::spawn(&config)?;
    rig::streaming(&postgres, &mut worker, 1).await?;
    let (mut ours, mut theirs, mut cpu, mut peak) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in 0..size.runs as u64 {
        worker.terminate().await?;
        let slot = format!("reference_{run}");
        postgres.batch(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await?;
        let first = rows + 1 + run * inserts;
        postgres.batch(&rig::fill(first, first + inserts - 1)).await?;
        // Spread over the rows of the copy; each round deletes others.
        let (step, gone) = (rows / BATCH, run * deletes);
        let update = format!(
            "DO $$ BEGIN FOR b IN 0..{updates} - 1 LOOP
                 UPDATE events SET amount = amount + 1, kind = 'changed' WHERE id IN
                     (SELECT 1 + (b + k * {step}) % {rows} FROM generate_series(0, {BATCH} - 1) k); COMMIT;
             END LOOP; END $$"
        );
        let delete = format!(
            "DO $$ BEGIN FOR b IN {gone}..{gone} + {deletes} - 1 LOOP
                 DELETE FROM events WHERE id BETWEEN {rows} + 1 + b * {BATCH} AND {rows} + (b + 1) * {BATCH}; COMMIT;
             END LOOP; END $$"
        );
        postgres.batch(&update).await?;
        postgres.batch(&delete).await?;
        let end = rig::wal_end(&postgres, rig::MARK_EVENTS).await?;

        theirs.push(changes / rig::timed(rig::receive(&postgres, &slot, Some(&end))?).await?);
        postgres.batch(&format!("SELECT pg_drop_replication_slot('{slot}')")).await?;

        let begun = Instant::now();
        worker = Worker::spawn(&config)?;
        rig::acknowledged(&postgres, &mut worker, &end).await?;
        ours.push(changes / begun.elapsed().as_secs_f64());
        cpu.push(cpu_seconds(worker.pid())? / (changes / 1e6));
        peak.push(memory_mib(worker.pid(), "VmHWM")?);
    }
    Ok(vec![
        Measure { name: "drain", ours: median(ours), reference: Some(median(theirs)), unit: "changes/s" },
        Measure { name: "drain_cpu", ours: median(cpu), reference: None, unit: "CPU-s per million changes" },
        Measure { name: "drain_peak_rss", ours: median(peak), reference: None, unit: "MiB" },
    ])
}
