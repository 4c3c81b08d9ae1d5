//! The harness itself: an oracle that never objects, or a server that stays behind, would make every other test worthless.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use lake_tests::{Account, Oracle, Postgres, Process, Python, Stop, Workload, bounded};
use serde_json::json;

use crate::TEST_LIMIT;

/// Registers copies of heap tables in the catalog, written by PyIceberg, as a mirror would.
async fn foreign_copy(postgres: &Postgres, warehouse: &Path, tables: &[&str]) -> Result<()> {
    let registry = std::fs::read_to_string(lake_tests::repository().join("cdc-worker/src/registry/schema.sql"))?;
    postgres.batch(&format!("CREATE SCHEMA IF NOT EXISTS lake_catalog; {registry}")).await?;
    let mirror =
        "INSERT INTO lake_catalog.mirrors (mirror, publication, slot, lsn) VALUES ('lake', 'p', 's', 'FFFF/0')";
    postgres.batch(&format!("{mirror} ON CONFLICT DO NOTHING")).await?;
    let request = json!({
        "host": postgres.socket_dir(), "port": postgres.port(), "database": "postgres", "user": "postgres",
        "warehouse": warehouse, "tables": tables,
    });
    Python::script("oracle/write_lake.py").ask(&request).await?;
    Ok(())
}

#[tokio::test]
async fn the_oracle_accepts_equal_tables_of_all_types_and_sees_every_kind_of_difference() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        let warehouse = postgres.scratch().directory("warehouse")?;
        postgres.batch(crate::worker_copy::ALL_TYPES).await?;
        foreign_copy(&postgres, &warehouse, &["public.all_types"]).await?;
        let oracle = Oracle::new(&postgres);
        let limit = Duration::from_secs(5);
        let rows = oracle.assert_equal(&postgres, &["public.all_types"], limit).await?;
        ensure!(rows == 7, "{rows} rows were compared");
        let value = oracle.value("SELECT count(*) FROM {public.all_types}").await?;
        ensure!(value == "7", "DuckDB counted {value}");

        // Each change makes the heap another one; the lake stays.
        for (change, wanted) in [
            ("INSERT INTO all_types (id) VALUES (99)", "rows"),
            ("DELETE FROM all_types WHERE id = 1", "rows"),
            ("UPDATE all_types SET f8 = 0 WHERE f8 = 0", "column f8"),
            ("UPDATE all_types SET n = n + 0.0001 WHERE id = 2", "column n"),
            ("UPDATE all_types SET t = NULL WHERE t = ''", "column t"),
            ("UPDATE all_types SET tz = tz + interval '1 microsecond' WHERE id = 2", "column tz"),
            ("UPDATE all_types SET by = by || '\\x00'::bytea WHERE id = 2", "column by"),
            ("ALTER TABLE all_types ALTER f4 TYPE float8", "Iceberg schema"),
            ("ALTER TABLE all_types DROP COLUMN u", "Iceberg schema"),
        ] {
            postgres.batch("DROP TABLE all_types").await?;
            postgres.batch(crate::worker_copy::ALL_TYPES).await?;
            postgres.batch(change).await?;
            let Err(error) = oracle.assert_equal(&postgres, &["public.all_types"], limit).await else {
                anyhow::bail!("the oracle has not seen: {change}");
            };
            ensure!(error.to_string().contains(wanted), "after {change}: {error}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_oracle_waits_for_the_lake_and_fails_when_it_does_not_come() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        let warehouse = postgres.scratch().directory("warehouse")?;
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY)").await?;
        foreign_copy(&postgres, &warehouse, &["public.t"]).await?;
        postgres.batch("UPDATE lake_catalog.mirrors SET lsn = '0/1'").await?;
        let error = Oracle::new(&postgres).assert_equal(&postgres, &["public.t"], Duration::from_millis(300)).await;
        ensure!(error.is_err_and(|error| format!("{error:#}").contains("the lake is at")));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_server_starts_stops_in_every_way_and_leaves_nothing() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut postgres = Postgres::builder().set("work_mem", "5MB").tcp().start().await?;
        ensure!(postgres.value("SHOW work_mem").await? == "5MB");
        ensure!(postgres.value("SHOW wal_level").await? == "logical");
        postgres.batch("CREATE TABLE t AS SELECT 7 AS x").await?;
        for how in [Stop::Fast, Stop::Immediate, Stop::Kill] {
            postgres.stop(how).await?;
            postgres.start().await?;
            ensure!(postgres.value("SELECT x FROM t").await? == "7");
        }
        ensure!(!postgres.processes("checkpointer")?.is_empty());
        let directory: PathBuf = postgres.socket_dir().to_owned();
        let postmaster = std::fs::read_to_string(postgres.data_dir().join("postmaster.pid"))?;
        let pid = postmaster.lines().next().unwrap_or_default().to_owned();
        drop(postgres);
        ensure!(!directory.exists() && !Path::new(&format!("/proc/{pid}")).exists(), "something is left");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_process_dies_with_the_thread_that_started_it() -> Result<()> {
    let scratch = lake_tests::Scratch::new()?;
    let output = scratch.path().join("output");
    let thread = std::thread::spawn(move || -> Result<Process> {
        let mut command = Account::current()?.command("sleep", true);
        let process = Process::spawn(command.arg("600"), &output)?;
        // The kernel's promise holds once setpriv has asked for it, which it does before it becomes the program.
        let started = std::time::Instant::now();
        while std::fs::read_to_string(format!("/proc/{}/comm", process.pid()))?.trim() != "sleep" {
            ensure!(started.elapsed() < Duration::from_secs(60), "setpriv has not become the program");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(process)
    });
    let mut process = thread.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??;
    let status = process.wait(Duration::from_secs(5)).await?;
    ensure!(!status.success(), "ended with {status}");
    Ok(())
}

#[tokio::test]
async fn the_workload_keeps_its_invariant_on_the_heap_and_runs_the_same_twice() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let sum = "SELECT (SELECT sum(balance) FROM bank.left) + (SELECT sum(balance) FROM bank.right)";
        let digest = "SELECT md5(string_agg(l::text, ',' ORDER BY id)) FROM bank.left l";
        let mut digests = Vec::new();
        for _ in 0..2 {
            let postgres = Postgres::builder().start().await?;
            let workload = Workload::create(&postgres, 42).await?;
            workload.run(&postgres, 300).await?;
            ensure!(postgres.value(sum).await? == Workload::TOTAL.to_string());
            digests.push(postgres.value(digest).await?);
            let running = workload.start(&postgres, 4);
            tokio::time::sleep(Duration::from_secs(1)).await;
            let stats = running.stop().await?;
            ensure!(stats.committed > 20, "only {} transactions", stats.committed);
            ensure!(postgres.value(sum).await? == Workload::TOTAL.to_string());
        }
        ensure!(digests[0] == digests[1], "one seed, two outcomes");
        Ok(())
    })
    .await
}
