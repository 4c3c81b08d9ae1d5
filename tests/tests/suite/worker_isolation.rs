//! The standalone worker: a table that cannot go on stops alone, and comes back without touching the others.

use anyhow::{Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker, WorkerConfig, bounded, eventually, exit_code};

use crate::worker_companions::STOP;
use crate::{CATCH_UP, TEST_LIMIT};

/// Waits until the table has stopped, and returns why, with the hint.
async fn stopped(postgres: &Postgres, table: &str) -> Result<String> {
    let query = format!(
        "SELECT error || ' hint: ' || coalesce(error_hint, '') FROM lake_catalog.mirrored_tables \
         WHERE source_table = '{table}' AND state = 'errored' AND error_lsn IS NOT NULL"
    );
    eventually(&format!("{table} stops"), CATCH_UP, async || {
        Ok(postgres.rows(&query).await?.into_iter().flatten().flatten().next())
    })
    .await
}

async fn called(config: &WorkerConfig, arguments: &[&str], code: i32) -> Result<String> {
    let output = config.call(arguments).await?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code() == Some(code), "{arguments:?}: {:?}, not {code}:\n{said}", output.status);
    Ok(said)
}

#[tokio::test]
async fn a_value_that_iceberg_cannot_hold_stops_one_table_and_resync_brings_it_back() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres
            .batch(
                "CREATE TABLE bad (id int PRIMARY KEY, d date); INSERT INTO bad SELECT i, now() FROM generate_series(1, 100) i;
                 CREATE TABLE fine (id int PRIMARY KEY, v int); INSERT INTO fine SELECT i, i FROM generate_series(1, 100) i;
                 CREATE TABLE other (id int PRIMARY KEY)",
            )
            .await?;
        Source::publish(&postgres, &["public.bad", "public.fine", "public.other"]).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.bad", "public.fine"])?;
        config.lake = STOP.to_owned();
        let mut worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);

        // One transaction, both tables: the other one has all of it.
        postgres
            .batch("BEGIN; UPDATE fine SET v = -v; INSERT INTO bad VALUES (101, 'infinity'); DELETE FROM fine WHERE id = 1; COMMIT")
            .await?;
        let why = stopped(&postgres, "bad").await?;
        ensure!(why.contains("\"d\"") && why.contains("resync"), "the reason: {why}");
        oracle.assert_equal(&postgres, &["public.fine"], CATCH_UP).await?;
        let confirmed = "SELECT confirmed_flush_lsn >= (SELECT error_lsn FROM lake_catalog.mirrored_tables WHERE error IS NOT NULL) \
                         FROM pg_replication_slots WHERE slot_name = 'lakemirror'";
        eventually("the slot goes on", CATCH_UP, async || Ok((postgres.value(confirmed).await? == "t").then_some(()))).await?;

        // Unmended, it stops again; a table of no mirror is refused; both leave the rest alone.
        called(&config, &["resync", "public.bad"], exit_code::OK).await?;
        let stopped_again = stopped(&postgres, "bad").await?;
        ensure!(stopped_again.contains("\"d\""), "the reason: {stopped_again}");
        let said = called(&config, &["resync", "public.other"], exit_code::UNFIT).await?;
        ensure!(said.contains("public.other") && said.contains("hint"), "{said}");
        postgres.batch("INSERT INTO fine VALUES (500, 500)").await?;
        oracle.assert_equal(&postgres, &["public.fine"], CATCH_UP).await?;

        // Mended, it comes back, with what happened while it stood still.
        postgres.batch("UPDATE bad SET d = NULL WHERE id = 101; DELETE FROM bad WHERE id = 7").await?;
        called(&config, &["resync", "public.bad"], exit_code::OK).await?;
        worker.streaming(&postgres, 2).await?;
        postgres.batch("UPDATE bad SET d = '2020-01-01' WHERE id = 50; INSERT INTO bad VALUES (102, NULL)").await?;
        let rows = oracle.assert_equal(&postgres, &["public.bad", "public.fine"], CATCH_UP).await?;
        ensure!(rows == 201, "{rows} rows");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_table_that_streams_can_be_copied_anew_under_load() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        let workload = lake_tests::Workload::create(&postgres, 41).await?;
        let tables = lake_tests::Workload::TABLES;
        Source::publish(&postgres, tables).await?;
        let config = WorkerConfig::new(&postgres, "one", tables)?;
        let mut worker = Worker::start(&config, &postgres).await?;
        let running = workload.start(&postgres, 2);
        for _ in 0..3 {
            called(&config, &["resync", "bank.left", "bank.scratch"], exit_code::OK).await?;
            tokio::time::sleep(std::time::Duration::from_millis(400)).await;
        }
        worker.streaming(&postgres, 4).await?;
        running.stop().await?;
        Oracle::new(&postgres).assert_equal(&postgres, tables, CATCH_UP).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn tables_that_are_dropped_or_unpublished_stop_alone_and_come_back_and_altered_ones_go_on() -> Result<()> {
    bounded(TEST_LIMIT, async {
        for down in [false, true] {
            let postgres = Postgres::builder().start().await?;
            Source::prepare(&postgres).await?;
            let tables = ["public.altered", "public.dropped", "public.hidden", "public.fine"];
            for table in tables {
                postgres
                    .batch(&format!(
                        "CREATE TABLE {table} (id int PRIMARY KEY, v text); INSERT INTO {table} SELECT i, 'x' FROM generate_series(1, 50) i"
                    ))
                    .await?;
            }
            Source::publish(&postgres, &tables).await?;
            let config = WorkerConfig::new(&postgres, "one", &tables)?;
            let worker = Worker::start(&config, &postgres).await?;
            let oracle = Oracle::new(&postgres);
            oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;

            // While it streams, or while it is down.
            let running = if down {
                worker.terminate().await?;
                None
            } else {
                Some(worker)
            };
            postgres
                .batch(
                    "ALTER TABLE altered ADD COLUMN more int DEFAULT 7; INSERT INTO altered VALUES (51, 'y', 8);
                     ALTER PUBLICATION lakemirror DROP TABLE hidden; UPDATE hidden SET v = 'unseen' WHERE id < 10;
                     DELETE FROM fine WHERE id < 10",
                )
                .await?;
            if !down {
                postgres.batch("DROP TABLE dropped").await?;
            }
            // What is wrong with one table keeps no other from starting.
            let mut worker = match running {
                Some(worker) => worker,
                None => Worker::spawn(&config)?,
            };
            let why = stopped(&postgres, "hidden").await?;
            ensure!(why.contains("publication") && why.contains("resync"), "hidden: {why}");
            if !down {
                let why = stopped(&postgres, "dropped").await?;
                ensure!(why.contains("dropped"), "dropped: {why}");
            }
            postgres.batch("INSERT INTO fine VALUES (100, 'after')").await?;
            eventually("the altered table is copied anew", CATCH_UP, async || {
                Ok(oracle.assert_equal(&postgres, &["public.altered", "public.fine"], CATCH_UP).await.ok())
            })
            .await?;

            // The way back of each.
            Source::publish(&postgres, &["public.hidden"]).await?;
            if !down {
                postgres
                    .batch("CREATE TABLE dropped (v int, id bigint PRIMARY KEY); INSERT INTO dropped VALUES (1, 1)")
                    .await?;
                Source::publish(&postgres, &["public.dropped"]).await?;
                called(&config, &["mirror"], exit_code::OK).await?;
            }
            called(&config, &["resync", "public.hidden"], exit_code::OK).await?;
            worker.streaming(&postgres, config.tables.len()).await?;
            postgres.batch("UPDATE altered SET more = more + 1 WHERE id > 40").await?;
            oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_commit_that_fails_for_one_table_leaves_the_others_their_files() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres
            .batch(
                "CREATE TABLE lost (id int PRIMARY KEY); CREATE TABLE copied (id int PRIMARY KEY, v int);
                 INSERT INTO copied SELECT i, i FROM generate_series(1, 1000) i",
            )
            .await?;
        let tables = ["public.lost", "public.copied"];
        Source::publish(&postgres, &tables).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &tables)?;
        // Long enough for the change of one to wait for the copy of the other, and to share its commit.
        config.interval = "3s".to_owned();
        let mut worker = Worker::start(&config, &postgres).await?;
        postgres
            .batch("DELETE FROM lake_catalog.iceberg_tables WHERE table_name = 'lost'; INSERT INTO lost VALUES (1)")
            .await?;
        called(&config, &["resync", "public.copied"], exit_code::OK).await?;
        let why = stopped(&postgres, "lost").await?;
        ensure!(why.contains("dropped by someone else"), "the reason: {why}");
        worker.streaming(&postgres, 1).await?;
        postgres.batch("UPDATE copied SET v = -v WHERE id < 10").await?;
        let rows = Oracle::new(&postgres).assert_equal(&postgres, &["public.copied"], CATCH_UP).await?;
        ensure!(rows == 1000, "{rows} rows");
        Ok(())
    })
    .await
}
