//! The standalone worker: what it wrote and never committed does not stay behind.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker, WorkerConfig, bounded, eventually, exit_code};

use crate::{CATCH_UP, TEST_LIMIT};

const TABLES: [&str; 1] = ["public.t"];
const ROWS: u32 = 300_000;

/// A mirror with so little memory that a transaction of [`ROWS`] goes into files while it arrives.
async fn small(rows: u32) -> Result<(Postgres, WorkerConfig, Oracle)> {
    let postgres = Postgres::builder().start().await?;
    Source::prepare(&postgres).await?;
    postgres
        .batch(&format!(
            "CREATE TABLE t (id int PRIMARY KEY, pad text); INSERT INTO t SELECT -i, 'old' FROM generate_series(1, {rows}) i"
        ))
        .await?;
    Source::publish(&postgres, &TABLES).await?;
    let mut config = WorkerConfig::new(&postgres, "one", &TABLES)?;
    config.max_bytes = "1MiB".to_owned();
    config.interval = "50ms".to_owned();
    let oracle = Oracle::new(&postgres);
    Ok((postgres, config, oracle))
}

async fn no_strays(oracle: &Oracle, config: &WorkerConfig) -> Result<()> {
    let mut last = Vec::new();
    let swept = eventually("only files that the tables name are left", CATCH_UP, async || {
        last = oracle.strays(&config.warehouse).await?;
        Ok(last.is_empty().then_some(()))
    });
    let swept = Box::pin(swept).await;
    swept.map_err(|error| error.context(format!("left behind: {last:?}")))
}

/// Runs a transaction while somebody else looks on.
async fn writer(client: tokio_postgres::Client, statement: String) -> Result<()> {
    Ok(client.batch_execute(&statement).await?)
}

/// How many data files there are.
fn files(warehouse: &Path) -> Result<usize> {
    files_named(warehouse, "parquet")
}

/// How many files there are whose name ends so.
fn files_named(folder: &Path, ending: &str) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            count += files_named(&entry.path(), ending)?;
        } else if entry.path().extension().is_some_and(|extension| extension == ending) {
            count += 1;
        }
    }
    Ok(count)
}

/// Waits until a copy has begun to write, other than those of the `frozen` processes, and stops the source's processes
/// that feed it.
async fn freeze_copy(postgres: &Postgres, config: &WorkerConfig, frozen: &[u32]) -> Result<Vec<u32>> {
    let begun = Instant::now();
    // A file that is being written has another ending; what an earlier copy left is not one that is fed.
    while begun.elapsed() < CATCH_UP {
        let mut feeding = postgres.processes("COPY")?;
        feeding.retain(|pid| !frozen.contains(pid));
        if !feeding.is_empty() && files_named(&config.warehouse, "tmp")? > 0 {
            feeding.iter().try_for_each(|pid| postgres.freeze_backend(*pid))?;
            return Ok(feeding);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    bail!("no copy has begun to write")
}

fn insert(first: u32) -> String {
    let last = first + ROWS - 1;
    format!("INSERT INTO t SELECT i, repeat('n', 60) FROM generate_series({first}, {last}) i")
}

#[tokio::test]
async fn a_large_transaction_that_was_interrupted_leaves_nothing_behind() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (postgres, config, oracle) = small(1000).await?;
        let mut worker = Worker::start(&config, &postgres).await?;
        let mut first = 1;
        for kill in [true, false, true] {
            let before = files(&config.warehouse)?;
            let writing = tokio::spawn(writer(postgres.client().await?, insert(first)));
            eventually(
                "rows are staged",
                CATCH_UP,
                async || Ok((files(&config.warehouse)? > before + 4).then_some(())),
            )
            .await?;
            if kill {
                worker.kill().await?;
                ensure!(
                    !oracle.strays(&config.warehouse).await?.is_empty(),
                    "the commit was too fast to be interrupted"
                );
                worker = Worker::start(&config, &postgres).await?;
            } else {
                let role = Source::ROLE;
                postgres
                    .batch(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"))
                    .await?;
            }
            writing.await??;
            oracle.assert_equal(&postgres, &TABLES, CATCH_UP).await?;
            no_strays(&oracle, &config).await?;
            first += ROWS;
        }
        ensure!(worker.runs()?, "the worker has ended");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn staged_rows_that_the_same_transaction_truncates_leave_nothing_behind() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (postgres, config, oracle) = small(1000).await?;
        let _worker = Worker::start(&config, &postgres).await?;
        postgres.batch(&format!("BEGIN; {}; TRUNCATE t; {}; COMMIT", insert(1), insert(7))).await?;
        oracle.assert_equal(&postgres, &TABLES, CATCH_UP).await?;
        postgres.batch("INSERT INTO t VALUES (0, 'one more commit')").await?;
        let rows = oracle.assert_equal(&postgres, &TABLES, CATCH_UP).await?;
        ensure!(rows == u64::from(ROWS) + 1, "{rows} rows");
        no_strays(&oracle, &config).await
    })
    .await
}

#[tokio::test]
async fn copies_that_were_killed_or_called_off_leave_nothing_behind() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (postgres, config, oracle) = small(1_000_000).await?;
        let resume = |frozen: Vec<u32>| frozen.into_iter().try_for_each(|pid| postgres.resume_backend(pid));
        for _ in 0..2 {
            let worker = Worker::spawn(&config)?;
            let frozen = freeze_copy(&postgres, &config, &[]).await?;
            worker.kill().await?;
            resume(frozen)?;
        }
        ensure!(!oracle.strays(&config.warehouse).await?.is_empty(), "the copies had written nothing");
        let mut worker = Worker::spawn(&config)?;
        let mut frozen = Vec::new();
        for _ in 0..3 {
            frozen.extend(freeze_copy(&postgres, &config, &frozen).await?);
            let output = config.call(&["resync", "public.t"]).await?;
            ensure!(output.status.code() == Some(exit_code::OK), "{output:?}");
        }
        resume(frozen)?;
        worker.streaming(&postgres, 1).await?;
        let rows = oracle.assert_equal(&postgres, &TABLES, CATCH_UP).await?;
        ensure!(rows == 1_000_000, "{rows} rows");
        postgres.batch("INSERT INTO t VALUES (0, 'one more commit')").await?;
        oracle.assert_equal(&postgres, &TABLES, CATCH_UP).await?;
        no_strays(&oracle, &config).await
    })
    .await
}

/// How long files stay in the next test: longer than it takes to look at them, on a busy machine.
const GRACE: Duration = Duration::from_secs(8);

/// What the table's newest metadata file is, which a reader has found that begins now.
async fn found(postgres: &Postgres) -> Result<String> {
    let location =
        postgres.value("SELECT metadata_location FROM lake_catalog.iceberg_tables WHERE table_name = 't'").await?;
    Ok(location.trim_start_matches("file://").to_owned())
}

#[tokio::test]
async fn what_a_reader_has_found_stays_for_a_time_of_grace() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a mirror that keeps only one snapshot, and files for some seconds more
        let (postgres, mut config, oracle) = small(1000).await?;
        config.retention = format!("snapshots = 1\ngrace = \"{}s\"", GRACE.as_secs());
        let mut worker = Worker::spawn(&config)?;
        worker.streaming(&postgres, 1).await?;
        oracle.assert_equal(&postgres, &TABLES, CATCH_UP).await?;
        let read =
            async |metadata: &str| oracle.value(&format!("SELECT count(*) FROM iceberg_scan('{metadata}')")).await;
        // WHEN a reader has found a snapshot, and it expires with all of its files
        let before = found(&postgres).await?;
        let begun = Instant::now();
        // Enough commits that its metadata file leaves the log, too.
        for round in 0..25 {
            postgres.batch(&format!("TRUNCATE t; INSERT INTO t VALUES ({round}, 'new')")).await?;
            oracle.caught_up(&postgres, CATCH_UP).await?;
        }
        let last = Instant::now();
        // THEN it can read it all the same
        ensure!(read(&before).await? == "1000");
        ensure!(last.elapsed() < GRACE, "this machine is too slow for the test");
        // and after the time of grace all is gone that is of no use
        no_strays(&oracle, &config).await?;
        ensure!(begun.elapsed() >= GRACE && !Path::new(&before).exists());
        oracle.assert_equal(&postgres, &TABLES, CATCH_UP).await?;

        // WHEN a worker is killed that has let a snapshot expire
        let before = found(&postgres).await?;
        postgres.batch("TRUNCATE t; INSERT INTO t VALUES (-1, 'newer')").await?;
        oracle.caught_up(&postgres, CATCH_UP).await?;
        worker.kill().await?;
        let begun = Instant::now();
        let mut worker = Worker::spawn(&config)?;
        worker.streaming(&postgres, 1).await?;
        postgres.batch("INSERT INTO t VALUES (-2, 'newest')").await?;
        oracle.assert_equal(&postgres, &TABLES, CATCH_UP).await?;
        // THEN the next one leaves its files to readers as long, and removes them then
        ensure!(read(&before).await? == "1" && files(&config.warehouse)? == 3);
        ensure!(begun.elapsed() < GRACE, "this machine is too slow for the test");
        let gone = || files(&config.warehouse).map(|files| (files == 2).then_some(()));
        eventually("the files of an expired snapshot are gone", CATCH_UP, async || gone()).await?;
        oracle.assert_equal(&postgres, &TABLES, CATCH_UP).await?;
        Ok(())
    })
    .await
}
