//! `source_cost`: pgbench's transactions a second with the mirror on, against those with `pg_recvlogical` on an equal slot.

use anyhow::{Context, Result, ensure};
use lake_tests::{Postgres, Process, Source, Worker};

use crate::Size;
use crate::report::{Measure, median};
use crate::rig;

/// `pgbench -i -s`: 2 million accounts.
const SCALE: u64 = 20;
const SECONDS: u64 = 15;
/// A change of a mirrored table that changes nothing.
const MARK: &str = "UPDATE pgbench_branches SET bbalance = bbalance WHERE bid = 1";

pub(crate) async fn run(size: Size) -> Result<Vec<Measure>> {
    let postgres = rig::server().await?;
    let mut initialize = rig::client_program(&postgres, "pgbench")?;
    initialize.args(["-i", "-q", "-s", &SCALE.to_string(), "postgres"]);
    rig::timed(initialize).await?;
    postgres.batch("VACUUM ANALYZE").await?;
    // The history has no key.
    let tables = ["public.pgbench_accounts", "public.pgbench_branches", "public.pgbench_tellers"];
    Source::publish(&postgres, &tables).await?;
    let config = rig::worker(&postgres, "cost", &tables)?;
    let mut worker = Worker::spawn(&config)?;
    rig::streaming(&postgres, &mut worker, tables.len()).await?;
    worker.terminate().await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..size.runs {
        let mut worker = Worker::spawn(&config)?;
        let end = rig::wal_end(&postgres, MARK).await?;
        rig::acknowledged(&postgres, &mut worker, &end).await.context("the worker catches up")?;
        ours.push(transactions_per_second(&postgres).await?);
        let end = rig::wal_end(&postgres, MARK).await?;
        rig::acknowledged(&postgres, &mut worker, &end).await?;
        worker.terminate().await?;

        postgres.batch("SELECT pg_create_logical_replication_slot('reference', 'pgoutput')").await?;
        let log = postgres.scratch().path().join("pg_recvlogical.log");
        let mut receiver = Process::spawn(&mut rig::receive(&postgres, "reference", None)?, &log)?;
        theirs.push(transactions_per_second(&postgres).await?);
        ensure!(receiver.ended()?.is_none(), "pg_recvlogical has ended: {}", receiver.output());
        receiver.kill().await?;
        lake_tests::eventually("the slot is free", rig::PATIENCE, async || {
            Ok(postgres.batch("SELECT pg_drop_replication_slot('reference')").await.ok())
        })
        .await?;
    }
    Ok(vec![Measure {
        name: "source_cost",
        ours: median(ours),
        reference: Some(median(theirs)),
        unit: "transactions/s",
    }])
}

async fn transactions_per_second(postgres: &Postgres) -> Result<f64> {
    let mut pgbench = rig::client_program(postgres, "pgbench")?;
    pgbench.args(["-n", "-c", "4", "-j", "1", "-T", &SECONDS.to_string(), "postgres"]);
    let output = tokio::task::spawn_blocking(move || pgbench.output()).await?.context("run pgbench")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
    let line = text.lines().find_map(|line| line.strip_prefix("tps = ")).context("pgbench's result")?;
    line.split_whitespace().next().context("tps")?.parse().context("tps")
}
