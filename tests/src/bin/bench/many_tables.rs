//! `many_tables`: 1,000 tables in one mirror of which 10 are busy, against a mirror of just the 10.

use std::time::Instant;

use anyhow::Result;
use lake_tests::{Source, Worker};

use crate::Size;
use crate::measure::memory_mib;
use crate::report::{Measure, median};
use crate::rig;

const TABLES: u64 = 1000;
const BUSY: u64 = 10;
/// Transactions, each of one row into every busy table.
const TRANSACTIONS: u64 = 20_000;

pub(crate) async fn run(size: Size) -> Result<Vec<Measure>> {
    let few = mirror(size, BUSY).await?;
    let many = mirror(size, TABLES).await?;
    Ok(vec![
        Measure { name: "many_tables", ours: many.0, reference: Some(few.0), unit: "changes/s" },
        Measure { name: "many_tables_rss", ours: many.1, reference: Some(few.1), unit: "MiB RSS" },
    ])
}

/// Throughput and resident memory of a mirror of so many tables.
#[expect(clippy::cast_precision_loss, reason = "row counts")]
async fn mirror(size: Size, tables: u64) -> Result<(f64, f64)> {
    let postgres = rig::server().await?;
    let names: Vec<String> = (0..tables).map(|table| format!("public.t{table}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for name in &names {
        postgres.batch(&format!("CREATE TABLE {name} (id bigserial PRIMARY KEY, v text)")).await?;
    }
    Source::publish(&postgres, &names).await?;
    let config = rig::worker(&postgres, "many", &names)?;
    let mut worker = Worker::spawn(&config)?;
    rig::streaming(&postgres, &mut worker, names.len()).await?;
    let transactions = size.of(TRANSACTIONS);
    let inserts: Vec<String> =
        (0..BUSY).map(|table| format!("INSERT INTO t{table} (v) VALUES (md5(b::text));")).collect();
    let load = format!("DO $$ BEGIN FOR b IN 1..{transactions} LOOP {} COMMIT; END LOOP; END $$", inserts.join(" "));
    let (mut rates, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..size.runs {
        let begun = Instant::now();
        postgres.batch(&load).await?;
        let end = rig::wal_end(&postgres, "INSERT INTO t0 (v) VALUES ('mark')").await?;
        rig::acknowledged(&postgres, &mut worker, &end).await?;
        rates.push((transactions * BUSY) as f64 / begun.elapsed().as_secs_f64());
        memory.push(memory_mib(worker.pid(), "VmRSS")?);
    }
    Ok((median(rates), median(memory)))
}
