//! `huge_txn`: one transaction of 20 million rows, and the memory that it takes in our process.

use std::time::Instant;

use anyhow::Result;
use lake_tests::{Source, Worker};

use crate::Size;
use crate::measure::memory_mib;
use crate::report::Measure;
use crate::rig;

const ROWS: u64 = 20_000_000;

pub(crate) async fn run(size: Size) -> Result<Vec<Measure>> {
    let postgres = rig::server().await?;
    postgres.batch(rig::EVENTS).await?;
    Source::publish(&postgres, &["public.events"]).await?;
    let config = rig::worker(&postgres, "huge", &["public.events"])?;
    let mut worker = Worker::spawn(&config)?;
    rig::streaming(&postgres, &mut worker, 1).await?;
    let begun = Instant::now();
    postgres.batch(&rig::fill(1, size.of(ROWS))).await?;
    let written = begun.elapsed();
    let end = rig::wal_end(&postgres, rig::MARK_EVENTS).await?;
    rig::acknowledged(&postgres, &mut worker, &end).await?;
    Ok(vec![
        Measure { name: "huge_txn", ours: memory_mib(worker.pid(), "VmHWM")?, reference: None, unit: "MiB peak RSS" },
        Measure {
            name: "huge_txn_lag",
            ours: (begun.elapsed() - written).as_secs_f64(),
            reference: Some(written.as_secs_f64()),
            unit: "s from its commit to acknowledged (reference: s to write it)",
        },
    ])
}
