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
