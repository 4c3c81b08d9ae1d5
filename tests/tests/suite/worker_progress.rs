//! The standalone worker: what it shows of a copy.

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
