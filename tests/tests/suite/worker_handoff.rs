//! The standalone worker: the moment when a copy ends and the stream takes over, for rows and for tables.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker, WorkerConfig, Workload, bounded, eventually};
use tokio_postgres::Client;

use crate::mirror::Mirror;
use crate::worker_truncate::hold_in_copy;
use crate::{CATCH_UP, TEST_LIMIT};

#[tokio::test]
async fn rows_that_move_between_the_shares_of_a_copy_are_there_once() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a table that is worth several connections, and its copy held in the middle
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres
            .batch(
                "CREATE TABLE t (id int PRIMARY KEY, v int, pad text);
                 INSERT INTO t SELECT i, 0, repeat('x', 100) FROM generate_series(1, 160000) i;
                 CREATE TABLE bag (a int, pad text); ALTER TABLE bag REPLICA IDENTITY FULL;
                 INSERT INTO bag SELECT i % 10, repeat('x', 100) FROM generate_series(1, 40000) i",
            )
            .await?;
        let tables = ["public.t", "public.bag"];
        Source::publish(&postgres, &tables).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &tables)?;
        config.copy_connections = Some(4);
        let mut worker = Worker::spawn(&config)?;
        hold_in_copy(&postgres, &worker, 2, 200_000).await?;

        // WHEN rows move to the end of the table, take other keys, go, come back, come and go
        for statements in [
            "UPDATE t SET v = v + 1 WHERE id % 7 = 0; UPDATE bag SET a = a + 1 WHERE a < 5",
            "UPDATE t SET v = v + 1 WHERE id % 7 = 0 AND id % 3 = 0",
            "UPDATE t SET id = -id WHERE id % 11 = 0",
            "BEGIN; DELETE FROM t WHERE id % 13 = 0; INSERT INTO t SELECT i, 5, 'back' FROM generate_series(13, 160000, 26) i
               WHERE i % 11 <> 0; COMMIT",
            "INSERT INTO t SELECT i, 6, 'new' FROM generate_series(200001, 203000) i",
            "UPDATE t SET v = 7 WHERE id % 5 = 0 AND id > 200000; DELETE FROM t WHERE id > 202000",
            "DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE a = 5 LIMIT 999); INSERT INTO bag SELECT 5, 'new' FROM generate_series(1, 99)",
            // The key of a row that the copy has, given to one that it may have or not.
            "DELETE FROM t WHERE id = 1; UPDATE t SET id = 1 WHERE id = 159999; UPDATE t SET id = 159999 WHERE id = 2",
        ] {
            postgres.batch(statements).await?;
        }
        worker.release()?;

        // THEN
        worker.streaming(&postgres, 2).await?;
        let oracle = Oracle::new(&postgres);
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        postgres.batch("UPDATE t SET v = v - 1 WHERE id % 9 = 0; DELETE FROM bag WHERE a = 7").await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        Ok(())
    })
    .await
}

/// A transaction that changes `t`, is committed in the WAL, and not yet visible, for it waits for a standby.
fn hanging(client: Client, sql: &'static str) -> tokio::task::JoinHandle<Result<(), tokio_postgres::Error>> {
    tokio::spawn(async move {
        client.batch_execute("SET synchronous_commit = on").await?;
        client.batch_execute(sql).await
    })
}

#[tokio::test]
async fn commits_that_hang_in_synchronous_replication_on_either_side_of_a_copy_are_there_once() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a mirror at work, and then no standby that would confirm anything
        let postgres = Postgres::builder().set("synchronous_commit", "local").start().await?;
        Source::prepare(&postgres).await?;
        postgres
            .batch(
                "CREATE TABLE old (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY, v int);
                 INSERT INTO t SELECT i, 0 FROM generate_series(1, 100) i",
            )
            .await?;
        Source::publish(&postgres, &["public.old", "public.t"]).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.old"])?;
        let mut worker = Worker::start(&config, &postgres).await?;

        postgres.configure("synchronous_standby_names", "nobody")?;
        postgres.reload().await?;
        // The checkpointer is who tells the others.
        tokio::time::sleep(Duration::from_secs(1)).await;
        postgres.batch("CHECKPOINT").await?;

        // WHEN commits hang before the copy of another table begins, more join them while its slot waits. (Not in the first table: the mirror's own
        // commit would wait for the standby, and the mirror with it.)
        let hangs = async |number: u32| {
            eventually(&format!("{number} commits hang"), CATCH_UP, async || {
                let waits = postgres.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename = 'postgres'").await?;
                Ok((waits == number.to_string()).then_some(()))
            })
            .await
        };
        let first = hanging(
            postgres.client().await?,
            "BEGIN; INSERT INTO t VALUES (101, 1); UPDATE t SET v = 1 WHERE id = 1; UPDATE t SET id = 102 WHERE id = 2; COMMIT",
        );
        hangs(1).await?;
        config.tables.push("public.t".to_owned());
        let output = config.call(&["mirror"]).await?;
        ensure!(output.status.success(), "{output:?}");
        eventually("the copy has begun", CATCH_UP, async || {
            let copying = "SELECT count(*) FROM lake_catalog.mirrored_tables WHERE state = 'copying'";
            Ok((postgres.value(copying).await? == "1").then_some(()))
        })
        .await?;
        // Time to take a snapshot, for a copy that would not wait for the first transaction.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let second = hanging(
            postgres.client().await?,
            "BEGIN; DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (103, 2), (104, 2); DELETE FROM t WHERE id = 104; COMMIT",
        );
        hangs(2).await?;
        postgres.batch("UPDATE t SET v = 3 WHERE id BETWEEN 50 AND 60; INSERT INTO old VALUES (3)").await?;
        let oracle = Oracle::new(&postgres);
        postgres.configure("synchronous_standby_names", "")?;
        postgres.reload().await?;
        first.await??;
        second.await??;

        // THEN
        worker.streaming(&postgres, 2).await?;
        let rows = oracle.assert_equal(&postgres, &["public.old", "public.t"], CATCH_UP).await?;
        ensure!(rows == 1 + 101, "{rows} rows");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn tables_come_go_come_back_and_are_made_anew_while_others_stream() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        let workload = Workload::create(&postgres, 31).await?;
        let make = "CREATE TABLE guest (id int PRIMARY KEY, v text); INSERT INTO guest SELECT i, 'x' FROM generate_series(1, 500) i";
        postgres.batch(make).await?;
        let all: Vec<&str> = [Workload::TABLES, &["public.guest"]].concat();
        Source::publish(&postgres, &all).await?;
        let mut config = WorkerConfig::new(&postgres, "one", Workload::TABLES)?;
        let mut worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        let running = workload.start(&postgres, 2);
        let mirrored = async |config: &WorkerConfig| {
            let output = config.call(&["mirror"]).await?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        };
        // In, out and in again, slowly and at once; then a namesake with other columns.
        for round in 0..3 {
            config.tables.push("public.guest".to_owned());
            mirrored(&config).await?;
            worker.streaming(&postgres, 5).await?;
            postgres.batch("UPDATE guest SET v = v || 'i' WHERE id % 2 = 0; DELETE FROM guest WHERE id % 100 = 7").await?;
            eventually("the guest's changes arrive", CATCH_UP, async || {
                Ok((oracle.value("SELECT count(*) FROM {public.guest} WHERE id % 100 = 7").await? == "0").then_some(()))
            })
            .await?;
            config.tables.pop();
            mirrored(&config).await?;
            if round != 1 {
                worker.streaming(&postgres, 4).await?;
            }
            // Nobody follows these.
            postgres.batch("UPDATE guest SET v = v || 'o' WHERE id % 3 = 0; INSERT INTO guest SELECT max(id) + 7, 'o' FROM guest").await?;
        }
        postgres
            .batch("DROP TABLE guest; CREATE TABLE guest (w bigint, name text PRIMARY KEY); INSERT INTO guest SELECT i, 'n' || i FROM generate_series(1, 50) i")
            .await?;
        Source::publish(&postgres, &["public.guest"]).await?;
        config.tables.push("public.guest".to_owned());
        mirrored(&config).await?;
        worker.streaming(&postgres, 5).await?;
        postgres.batch("UPDATE guest SET w = -w, name = name || '!' WHERE w > 25").await?;
        running.stop().await?;
        let rows = oracle.assert_equal(&postgres, &all, CATCH_UP).await?;
        ensure!(rows > 2000 && worker.runs()?, "{rows} rows");
        oracle.assert_invariant(Workload::INVARIANT, &Workload::TOTAL.to_string(), crate::ALL).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_long_transaction_whose_records_precede_committed_short_ones_survives_a_kill() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let schema = "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE u (id int PRIMARY KEY, v int)";
        let mut mirror = Mirror::start(schema, &["public.t", "public.u"]).await?;
        let long = mirror.postgres.client().await?;
        long.batch_execute("BEGIN; INSERT INTO t SELECT i, 0 FROM generate_series(1, 1000) i; SAVEPOINT s; INSERT INTO u VALUES (-1, 0)")
            .await?;
        ensure!(mirror.after("INSERT INTO t SELECT i, 1 FROM generate_series(2001, 2100) i; INSERT INTO u VALUES (1, 1)").await? == 101);
        mirror.restart().await?;
        ensure!(mirror.after("UPDATE t SET v = 2 WHERE id > 2050; INSERT INTO u VALUES (2, 1)").await? == 102);
        long.batch_execute("ROLLBACK TO s; UPDATE t SET v = 3 WHERE id < 500; INSERT INTO u VALUES (3, 3)").await?;
        ensure!(mirror.after("DELETE FROM u WHERE id = 1").await? == 101);
        // Committed while the worker is down.
        mirror.kill().await?;
        long.batch_execute("COMMIT").await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        mirror.spawn()?;
        let rows = mirror.after("UPDATE u SET v = 9").await.context("after the long transaction")?;
        ensure!(rows == 1100 + 2, "{rows} rows");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_worker_killed_while_its_copy_waits_for_an_old_transaction_is_not_in_the_way_of_the_next_one() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let schema = "CREATE TABLE old (id int PRIMARY KEY); CREATE TABLE new (id int PRIMARY KEY);
             INSERT INTO new VALUES (1); GRANT SELECT ON new TO lakemirror; ALTER PUBLICATION lakemirror ADD TABLE new";
        let mut mirror = Mirror::start(schema, &["public.old"]).await?;
        let open = mirror.postgres.client().await?;
        open.batch_execute("BEGIN; INSERT INTO new VALUES (2)").await?;
        mirror.kill().await?;
        mirror.config.tables.push("public.new".to_owned());
        for round in 1..3_u64 {
            mirror.spawn()?;
            eventually("a copy waits", CATCH_UP, async || {
                let copies = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%_copy_%'";
                Ok((mirror.postgres.value(copies).await? != "0").then_some(()))
            })
            .await?;
            // The walsender that makes the slot does not look whether anybody still waits for it.
            mirror.kill().await?;
            mirror.spawn()?;
            // Nor is a copy that was called off.
            mirror.call(&["resync", "public.new"]).await?;
            ensure!(mirror.after(&format!("INSERT INTO old VALUES ({round})")).await? == round);
            mirror.kill().await?;
        }
        mirror.spawn()?;
        open.batch_execute("COMMIT").await?;
        mirror.tables.push("public.new");
        mirror.streaming().await?;
        ensure!(mirror.after("INSERT INTO new VALUES (3)").await? == 2 + 3);
        Ok(())
    })
    .await
}
