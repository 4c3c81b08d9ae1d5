//! The standalone worker: what it shows of a copy, and of what it waits for.

use std::time::Duration;

use anyhow::{Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker, WorkerConfig, bounded, eventually};

use crate::{CATCH_UP, TEST_LIMIT};

#[tokio::test]
async fn a_copy_has_a_bar_on_a_terminal_plain_lines_elsewhere_and_a_share_in_the_status() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a mirror, and another table whose copy waits for a transaction that is older than it
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres
            .batch(
                "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 12345); ANALYZE t;
                 CREATE TABLE first (id int PRIMARY KEY)",
            )
            .await?;
        Source::publish(&postgres, &["public.first", "public.t"]).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.first"])?;
        Worker::start(&config, &postgres).await?.kill().await?;
        config.tables.push("public.t".to_owned());
        let holder = postgres.client().await?;
        holder.batch_execute("BEGIN; SELECT txid_current()").await?;
        let waits = async || {
            let waiting = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%_copy_%' AND active";
            eventually("the copy waits", CATCH_UP, async || Ok((postgres.value(waiting).await? == "1").then_some(())))
                .await
        };

        // In a file, no bar.
        let worker = Worker::spawn(&config)?;
        waits().await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let output = worker.output();
        ensure!(output.contains("claimed the mirror") && !output.contains(['\u{1b}', '\r', '█', '░']), "{output}");
        worker.kill().await?;
        eventually("the copy's slot is gone", CATCH_UP, async || {
            postgres
                .batch(
                    "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name LIKE '%_copy_%'",
                )
                .await?;
            let left = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%_copy_%'";
            Ok((postgres.value(left).await? == "0").then_some(()))
        })
        .await?;

        // On a terminal, one, and the log beside it.
        let mut worker = Worker::spawn_on_terminal(&config)?;
        waits().await?;
        eventually("a bar", CATCH_UP, async || {
            let output = worker.output();
            Ok((output.contains("public.t ") && output.contains(" 0 of about 12,345 rows")).then_some(()))
        })
        .await?;
        let status = config.call(&["status"]).await?;
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        ensure!(status.contains("copying") && status.contains("0 of ~12345 (0 %)"), "{status}");

        // THEN it is a copy like any other
        holder.batch_execute("COMMIT").await?;
        worker.streaming(&postgres, 2).await?;
        let rows = Oracle::new(&postgres).assert_equal(&postgres, &["public.first", "public.t"], CATCH_UP).await?;
        let output = worker.output();
        ensure!(
            rows == 12_345 && output.contains("claimed the mirror") && output.contains("streaming"),
            "{rows}: {output}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn who_waits_for_older_transactions_says_how_many_and_names_the_oldest() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a prepared transaction and an open one, of roles that the worker knows nothing about
        let postgres = Postgres::builder().set("max_prepared_transactions", "10").start().await?;
        Source::prepare(&postgres).await?;
        postgres
            .batch("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2); CREATE TABLE other (id int PRIMARY KEY)")
            .await?;
        postgres.batch("BEGIN; INSERT INTO t VALUES (3); PREPARE TRANSACTION 'forgotten'").await?;
        Source::publish(&postgres, &["public.t", "public.other"]).await?;
        let holder = postgres.client().await?;
        holder.batch_execute("SET application_name = 'night job'; BEGIN; INSERT INTO t VALUES (4) /* hush */").await?;
        let pid: i32 = holder.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        let mut config = WorkerConfig::new(&postgres, "one", &["public.t"])?;
        let mut worker = Worker::spawn(&config)?;
        let says = async |worker: &Worker, parts: &[&str]| {
            let said = async || {
                let output = worker.output();
                Ok(output.lines().any(|line| parts.iter().all(|part| line.contains(part))).then_some(()))
            };
            eventually(&format!("a line with {parts:?}"), CATCH_UP, said).await
        };

        // WHEN the mirror's slot cannot be made, it says why
        let slot = ["WARN", "the mirror's slot waits for 2 older transactions to end", "\"forgotten\""];
        says(&worker, &slot).await?;

        // And the copy of a table, which the status shows too.
        postgres.batch("COMMIT PREPARED 'forgotten'").await?;
        holder.batch_execute("COMMIT").await?;
        worker.streaming(&postgres, 1).await?;
        holder.batch_execute("BEGIN; INSERT INTO t VALUES (5) /* hush */").await?;
        config.tables.push("public.other".to_owned());
        config.call(&["mirror"]).await?;
        let older = format!("waits for 1 older transaction to end: it is of pid {pid}, application \"night job\"");
        says(&worker, &["WARN", "the copy of public.other", &older, "database \"postgres\"", "s"]).await?;
        let status = async || {
            let output = config.call(&["status"]).await?;
            Ok::<_, anyhow::Error>(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let shown = status().await?;
        ensure!(shown.contains("public.other  copying") && shown.contains(&older), "{shown}");
        ensure!(shown.contains("public.t      streaming"), "{shown}");

        // THEN it goes on as soon as they have ended, and nothing was said of what they do.
        holder.batch_execute("COMMIT").await?;
        worker.streaming(&postgres, 2).await?;
        let shown = status().await?;
        ensure!(!shown.contains("waits for") && !worker.output().contains("hush"), "{shown}");
        let rows = Oracle::new(&postgres).assert_equal(&postgres, &["public.t", "public.other"], CATCH_UP).await?;
        ensure!(rows == 5, "{rows} rows");
        Ok(())
    })
    .await
}
