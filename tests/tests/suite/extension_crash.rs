//! The extension's engine: killed, and shut down with its server.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lake_tests::{Oracle, Stop, Workload, bounded, eventually};

use crate::extension_mirror::{mirror, server};
use crate::{CATCH_UP, TEST_LIMIT};

#[tokio::test]
async fn killed_twice_under_load_the_engine_comes_back_and_nothing_is_lost() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        let workload = Workload::create(&postgres, 41).await?;
        mirror(&postgres, Workload::TABLES).await?;
        let running = workload.start(&postgres, 2);
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let engine =
                eventually("the engine runs", CATCH_UP, async || Ok(postgres.processes("lake engine")?.pop())).await?;
            // The death of any process of the server restarts the whole of it; clients reconnect.
            postgres.kill_backend(engine)?;
            eventually("another engine runs", CATCH_UP, async || {
                Ok(postgres.processes("lake engine")?.pop().filter(|&pid| pid != engine))
            })
            .await?;
        }
        running.stop().await?;
        Oracle::new(&postgres).assert_equal(&postgres, Workload::TABLES, CATCH_UP).await?;
        let total = "SELECT (SELECT sum(balance) FROM lake.left) + (SELECT sum(balance) FROM lake.right)";
        ensure!(postgres.value(total).await? == Workload::TOTAL.to_string());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_a_killed_backend_has_spilled_goes_with_the_next_query() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        let spill = postgres.scratch().directory("spill")?;
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 1000)").await?;
        postgres.batch(&format!("ALTER SYSTEM SET lake.temp_directory = '{}'", spill.display())).await?;
        postgres.reload().await?;
        mirror(&postgres, &["t"]).await?;
        let theirs = |pid: &str| spill.join(format!("lake_query.{pid}.0"));
        let query = "SELECT sum(id) FROM lake.t";
        let ask = async || -> Result<(tokio_postgres::Client, String)> {
            let client = postgres.client().await?;
            client.batch_execute(query).await?;
            let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
            Ok((client, pid.to_string()))
        };
        let (_client, killed) = ask().await?;
        let left = theirs(&killed);
        ensure!(left.is_dir(), "no directory of its own");
        std::fs::write(left.join("spilled"), b"rows")?;
        postgres.kill_backend(killed.parse()?)?;
        let (client, next) = eventually("the server is back", CATCH_UP, async || Ok(ask().await.ok())).await?;
        ensure!(!left.exists() && theirs(&next).is_dir(), "what was left is there still");
        // A session that ends by itself takes its own along.
        drop(client);
        eventually("the directory goes", CATCH_UP, async || Ok((!theirs(&next).exists()).then_some(()))).await
    })
    .await
}

#[tokio::test]
async fn a_fast_shutdown_takes_two_seconds_at_most_and_the_engine_goes_on_after_it() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut postgres = server().await?;
        let workload = Workload::create(&postgres, 42).await?;
        mirror(&postgres, Workload::TABLES).await?;
        let running = workload.start(&postgres, 2);
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(800)).await;
            let took = postgres.stop(Stop::Fast).await?;
            ensure!(took < Duration::from_secs(2), "the shutdown took {took:?}");
            postgres.start().await?;
        }
        running.stop().await?;
        Oracle::new(&postgres).assert_equal(&postgres, Workload::TABLES, CATCH_UP).await.context("after restarts")?;
        Ok(())
    })
    .await
}
