//! What the scenarios have in common: a server that keeps its promises (fsync on), a table of events, and waiting.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lake_tests::{Account, Postgres, Source, Worker, WorkerConfig, eventually};

/// Longest wait for any one step.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1800);

/// The table of the bars: bigint key, bigint, text, numeric(18,4), timestamptz, 32 characters of text.
pub(crate) const EVENTS: &str = "CREATE TABLE events (id bigint PRIMARY KEY, account bigint NOT NULL, kind text NOT NULL, \
     amount numeric(18,4) NOT NULL, at timestamptz NOT NULL, note text NOT NULL)";

/// A statement that fills it with the ids from `first` to `last`.
pub(crate) fn fill(first: u64, last: u64) -> String {
    format!(
        "INSERT INTO events SELECT i, i * 7919 % 100000, 'kind ' || i % 20, (i % 1000000) / 100.0, \
         timestamptz '2024-01-01' + i * interval '1 second', md5(i::text) FROM generate_series({first}::bigint, {last}) i"
    )
}

/// A server set up as a small production one, with the worker's role and publication.
pub(crate) async fn server() -> Result<Postgres> {
    let postgres = Postgres::builder()
        .set("fsync", "on")
        .set("shared_buffers", "1GB")
        .set("max_wal_size", "16GB")
        .set("checkpoint_timeout", "30min")
        .set("max_replication_slots", "20")
        .set("max_wal_senders", "20")
        .start()
        .await?;
    Source::prepare(&postgres).await?;
    Ok(postgres)
}

/// A worker's configuration of its own. Batches are committed every second, so that waiting for one is not what is measured.
pub(crate) fn worker(postgres: &Postgres, name: &str, tables: &[&str]) -> Result<WorkerConfig> {
    let mut config = WorkerConfig::new(postgres, name, tables)?;
    config.warehouse = postgres.scratch().directory(&format!("warehouse-{name}"))?;
    config.interval = "1s".to_owned();
    Ok(config)
}

/// Waits until so many tables stream: copied, indexed, committed.
pub(crate) async fn streaming(postgres: &Postgres, worker: &mut Worker, tables: usize) -> Result<()> {
    wait(
        postgres,
        worker,
        &format!("SELECT count(*) = {tables} FROM lake_catalog.mirrored_tables WHERE state = 'streaming'"),
    )
    .await
}

/// Waits until everything up to the position is committed to Iceberg and acknowledged to the slot.
pub(crate) async fn acknowledged(postgres: &Postgres, worker: &mut Worker, lsn: &str) -> Result<()> {
    let query =
        format!("SELECT confirmed_flush_lsn >= '{lsn}' FROM pg_replication_slots WHERE slot_name = 'lakemirror'");
    wait(postgres, worker, &query).await
}

async fn wait(postgres: &Postgres, worker: &mut Worker, query: &str) -> Result<()> {
    // Until the worker has made its tables the query fails.
    let client = postgres.client().await?;
    let runs = eventually(query, PATIENCE, async || {
        // An error would be tried again.
        if !worker.runs()? {
            return Ok(Some(false));
        }
        let said = client.query_one(query, &[]).await;
        Ok(said.ok().and_then(|row| row.get::<_, Option<bool>>(0)).unwrap_or(false).then_some(true))
    })
    .await?;
    ensure!(runs, "the worker has ended:\n{}", worker.output());
    Ok(())
}

/// A change that changes nothing, for the mark behind a scenario's end.
pub(crate) const MARK_EVENTS: &str = "UPDATE events SET amount = amount WHERE id = (SELECT min(id) FROM events)";

/// The end of the WAL, and behind it a commit of `mark`: a mirror that is idle need not move its slot up to a position
/// that no commit has passed.
pub(crate) async fn wal_end(postgres: &Postgres, mark: &str) -> Result<String> {
    let end = postgres.value("SELECT pg_current_wal_lsn()").await?;
    postgres.batch(mark).await?;
    Ok(end)
}

/// A program of the server's version, to be run against it.
pub(crate) fn client_program(postgres: &Postgres, program: &str) -> Result<std::process::Command> {
    let mut command = Account::current()?.command(lake_tests::program(program)?, true);
    command
        .args([
            "-h",
            &postgres.socket_dir().display().to_string(),
            "-p",
            &postgres.port().to_string(),
            "-U",
            "postgres",
        ])
        .current_dir(postgres.socket_dir())
        .stderr(Stdio::piped());
    Ok(command)
}

/// `pg_recvlogical` on a slot, its output thrown away, until `end` or until it is killed.
pub(crate) fn receive(postgres: &Postgres, slot: &str, end: Option<&str>) -> Result<std::process::Command> {
    let mut command = client_program(postgres, "pg_recvlogical")?;
    command.args(["-d", "postgres", "--slot", slot, "--start", "--no-loop", "-f", "/dev/null"]);
    command.args(["-o", "proto_version=1", "-o", "publication_names=lakemirror", "-o", "binary=true"]);
    if let Some(end) = end {
        command.args(["--endpos", end]);
    }
    Ok(command)
}

/// Seconds that a command takes.
pub(crate) async fn timed(mut command: std::process::Command) -> Result<f64> {
    let begun = Instant::now();
    let output = tokio::task::spawn_blocking(move || command.output()).await?.context("run a program")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(begun.elapsed().as_secs_f64())
}
