//! The standalone worker: killed, stopped, doubled, and cut off from its source.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Stop, Worker, WorkerConfig, Workload, bounded, eventually, exit_code};

use crate::mirror::Mirror;
use crate::{CATCH_UP, TEST_LIMIT};

async fn bank(seed: u64) -> Result<(Postgres, Workload, WorkerConfig)> {
    let postgres = Postgres::builder().start().await?;
    Source::prepare(&postgres).await?;
    let workload = Workload::create(&postgres, seed).await?;
    Source::publish(&postgres, Workload::TABLES).await?;
    let config = WorkerConfig::new(&postgres, "one", Workload::TABLES)?;
    Ok((postgres, workload, config))
}

#[tokio::test]
async fn killed_twenty_times_under_load_nothing_is_lost_and_nothing_is_twice() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (postgres, workload, mut config) = bank(20).await?;
        config.interval = "100ms".to_owned();
        let oracle = Oracle::new(&postgres);
        let running = workload.start(&postgres, 3);
        for round in 0..20_u64 {
            let worker = Worker::spawn(&config)?;
            // From the middle of the copy to the middle of any commit.
            tokio::time::sleep(Duration::from_millis(80 + round * 97 % 900)).await;
            worker.kill().await?;
            if round % 7 == 6 {
                // Local state is a cache: losing it loses nothing.
                std::fs::remove_dir_all(&config.state)?;
                config.state = postgres.scratch().directory("worker-one/state")?;
            }
        }
        let _worker = Worker::start(&config, &postgres).await?;
        running.stop().await?;
        oracle.assert_equal(&postgres, Workload::TABLES, CATCH_UP).await?;
        oracle.assert_invariant(Workload::INVARIANT, &Workload::TOTAL.to_string(), crate::ALL).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn sigterm_ends_it_with_zero_within_two_seconds_and_it_goes_on_where_it_was() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (postgres, workload, config) = bank(21).await?;
        let running = workload.start(&postgres, 2);
        for _ in 0..3 {
            let worker = Worker::start(&config, &postgres).await?;
            tokio::time::sleep(Duration::from_millis(400)).await;
            let (code, took) = worker.terminate().await?;
            ensure!(code == exit_code::OK, "exit code {code}");
            ensure!(took < Duration::from_secs(2), "took {took:?}");
        }
        running.stop().await?;
        let _worker = Worker::start(&config, &postgres).await?;
        Oracle::new(&postgres).assert_equal(&postgres, Workload::TABLES, CATCH_UP).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_second_worker_on_the_same_mirror_is_refused_and_harms_nothing() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (postgres, workload, config) = bank(22).await?;
        let mut first = Worker::start(&config, &postgres).await?;
        let second = WorkerConfig::new(&postgres, "two", Workload::TABLES)?;
        let running = workload.start(&postgres, 2);
        let (code, output) = second.run_to_end(Duration::from_secs(30)).await?;
        ensure!(code == exit_code::FENCED, "exit code {code}: {output}");
        running.stop().await?;
        ensure!(first.runs()?, "the first worker has ended");
        Oracle::new(&postgres).assert_equal(&postgres, Workload::TABLES, CATCH_UP).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_source_that_restarts_is_followed_again_without_help() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (mut postgres, workload, config) = bank(23).await?;
        let mut worker = Worker::start(&config, &postgres).await?;
        let running = workload.start(&postgres, 2);
        for how in [Stop::Fast, Stop::Immediate] {
            tokio::time::sleep(Duration::from_millis(700)).await;
            postgres.stop(how).await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            postgres.start().await?;
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        running.stop().await?;
        Oracle::new(&postgres).assert_equal(&postgres, Workload::TABLES, CATCH_UP).await?;
        ensure!(worker.runs()?, "the worker has given up");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_list_of_tables_that_changed_while_it_ran_outlives_a_broken_connection() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a worker that was told of one more table, and to let go of another
        let tables = ["public.t", "public.gone"];
        let schema = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE gone (id int PRIMARY KEY); \
                      CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1)";
        let mut mirror = Mirror::start(schema, &tables).await?;
        Source::publish(&mirror.postgres, &["public.late"]).await?;
        mirror.tables = vec!["public.t", "public.late"];
        mirror.config.tables = mirror.tables.iter().map(|&table| table.to_owned()).collect();
        mirror.call(&["mirror"]).await?;
        let both = "SELECT string_agg(source_table || ' ' || state, ', ' ORDER BY source_table) = 'late streaming, t streaming' \
                    FROM lake_catalog.mirrored_tables";
        eventually("both stream", CATCH_UP, async || Ok((mirror.postgres.value(both).await? == "t").then_some(())))
            .await?;
        ensure!(mirror.equal().await? == 1);

        // WHEN its session breaks and it begins another
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lake engine'";
        mirror.postgres.batch(end).await?;
        let epoch = "SELECT epoch FROM lake_catalog.mirrors";
        eventually("another session", CATCH_UP, async || Ok((mirror.postgres.value(epoch).await? == "2").then_some(())))
            .await?;

        // THEN it has the tables that it was told of, not those that it began with.
        ensure!(mirror.after("INSERT INTO t VALUES (1); INSERT INTO late VALUES (2)").await? == 3);
        ensure!(mirror.postgres.value(both).await? == "t");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_slot_that_was_moved_behind_our_back_is_refused() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (postgres, workload, config) = bank(24).await?;
        let worker = Worker::start(&config, &postgres).await?;
        workload.run(&postgres, 20).await?;
        Oracle::new(&postgres).caught_up(&postgres, CATCH_UP).await?;
        worker.terminate().await?;
        workload.run(&postgres, 20).await?;
        let moved = "SELECT pg_replication_slot_advance('lakemirror', pg_current_wal_lsn())";
        eventually("the slot is free", CATCH_UP, async || Ok(postgres.batch(moved).await.ok())).await?;
        let before = postgres.value("SELECT lsn FROM lake_catalog.mirrors").await?;
        let (code, output) = config.run_to_end(Duration::from_secs(30)).await?;
        ensure!(code == exit_code::UNFIT, "exit code {code}: {output}");
        ensure!(output.contains("lakemirror") && output.contains("hint"), "names the slot, gives a hint: {output}");
        ensure!(postgres.value("SELECT lsn FROM lake_catalog.mirrors").await? == before, "the lake has moved");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_admin_pages_tell_alive_from_ready_and_count() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (mut postgres, workload, config) = bank(25).await?;
        let worker = Worker::start(&config, &postgres).await?;
        eventually("ready", CATCH_UP, async || Ok((worker.admin("/readyz").await?.0 == 200).then_some(()))).await?;
        ensure!(worker.admin("/livez").await?.0 == 200);
        workload.run(&postgres, 30).await?;
        Oracle::new(&postgres).caught_up(&postgres, CATCH_UP).await?;
        let (status, metrics) = worker.admin("/metrics").await?;
        ensure!(status == 200 && metrics.contains("# TYPE"), "metrics: {status}\n{metrics}");

        // Without its source it is alive, not ready, and says so to `status` too.
        postgres.stop(Stop::Fast).await?;
        eventually("not ready", CATCH_UP, async || Ok((worker.admin("/readyz").await?.0 == 503).then_some(()))).await?;
        ensure!(worker.admin("/livez").await?.0 == 200, "a dead source must not get the pod killed");
        postgres.start().await?;
        eventually("ready again", CATCH_UP, async || Ok((worker.admin("/readyz").await?.0 == 200).then_some(())))
            .await?;

        let status = config.call(&["status", "--json"]).await?;
        ensure!(status.status.code() == Some(exit_code::OK), "status: {status:?}");
        let json: serde_json::Value = serde_json::from_slice(&status.stdout).context("status --json")?;
        ensure!(json["tables"].as_array().is_some_and(|tables| tables.len() == 4), "status has the tables: {json}");
        Ok(())
    })
    .await
}
