//! The standalone worker: streaming, and what each statement becomes in the lake.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker, WorkerConfig, Workload, bounded, eventually};

use crate::{CATCH_UP, TEST_LIMIT};

/// A server with these tables, published, and a worker that streams them.
async fn mirrored(schema: &str, tables: &[&str]) -> Result<(Postgres, Worker, Oracle)> {
    let postgres = Postgres::builder().start().await?;
    Source::prepare(&postgres).await?;
    postgres.batch(schema).await?;
    Source::publish(&postgres, tables).await?;
    let worker = Worker::start(&WorkerConfig::new(&postgres, "one", tables)?, &postgres).await?;
    let oracle = Oracle::new(&postgres);
    Ok((postgres, worker, oracle))
}

#[tokio::test]
async fn inserts_updates_key_changes_deletes_and_truncates_arrive_in_commit_order() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let tables = ["public.t"];
        let schema = "CREATE TABLE t (a int, b text, v int, PRIMARY KEY (a, b));
                      INSERT INTO t SELECT i, 'k' || i, i FROM generate_series(1, 2000) i";
        let (postgres, _worker, oracle) = mirrored(schema, &tables).await?;
        for (statements, rows) in [
            ("INSERT INTO t SELECT i, 'n', i FROM generate_series(1, 100) i", 2100),
            ("UPDATE t SET v = v + 1 WHERE a <= 50", 2100),
            // The same row many times within one transaction, and over several.
            ("UPDATE t SET v = 1 WHERE a = 1; UPDATE t SET v = 2 WHERE a = 1; DELETE FROM t WHERE a = 1 AND b = 'n'", 2099),
            ("BEGIN; UPDATE t SET a = a + 100000 WHERE a <= 20; UPDATE t SET a = a - 50000 WHERE a > 100000; COMMIT", 2099),
            // A key that goes and comes back.
            ("BEGIN; DELETE FROM t WHERE a = 30; INSERT INTO t VALUES (30, 'k30', 0), (30, 'n', 0); COMMIT", 2099),
            ("BEGIN; UPDATE t SET b = 'swap' WHERE a = 40 AND b = 'n'; UPDATE t SET b = 'n' WHERE a = 40 AND b = 'k40';
              UPDATE t SET b = 'k40' WHERE a = 40 AND b = 'swap'; COMMIT", 2099),
            ("BEGIN; INSERT INTO t VALUES (-1, 'x', 0); DELETE FROM t WHERE a = -1; COMMIT", 2099),
            ("DELETE FROM t WHERE a % 2 = 0", 1049),
            ("BEGIN; INSERT INTO t VALUES (-2, 'before', 0); TRUNCATE t; INSERT INTO t VALUES (-3, 'after', 0); COMMIT", 1),
            ("TRUNCATE t", 0),
            ("INSERT INTO t SELECT i, 'again', i FROM generate_series(1, 3000) i", 3000),
        ] {
            postgres.batch(statements).await?;
            let found = oracle.assert_equal(&postgres, &tables, CATCH_UP).await.with_context(|| statements.to_owned())?;
            ensure!(found == rows, "{found} rows after {statements}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn every_retained_snapshot_shows_whole_transactions_over_all_tables() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        let workload = Workload::create(&postgres, 11).await?;
        Source::publish(&postgres, Workload::TABLES).await?;
        let mut config = WorkerConfig::new(&postgres, "one", Workload::TABLES)?;
        config.interval = "200ms".to_owned();
        // So little memory that batches are cut by size too.
        config.max_bytes = "256KiB".to_owned();
        let _worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        let running = workload.start(&postgres, 3);
        let mut points = 0;
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            points += oracle.assert_invariant(Workload::INVARIANT, &Workload::TOTAL.to_string(), 15).await?;
        }
        running.stop().await?;
        oracle.assert_equal(&postgres, Workload::TABLES, CATCH_UP).await?;
        points += oracle.assert_invariant(Workload::INVARIANT, &Workload::TOTAL.to_string(), crate::ALL).await?;
        ensure!(points > 8, "only {points} points in time were looked at");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn toasted_values_that_an_update_does_not_touch_stay_as_they_were() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let tables = ["public.doc"];
        // Incompressible and far over the toast threshold; `copied` comes with the copy, the rest with the stream.
        let big = "(SELECT string_agg(md5((i * 1000 + g)::text), '') FROM generate_series(1, 600) g)";
        let schema = format!(
            "CREATE TABLE doc (id int PRIMARY KEY, big text, also bytea, n int);
             ALTER TABLE doc ALTER big SET STORAGE EXTERNAL, ALTER also SET STORAGE EXTERNAL;
             INSERT INTO doc SELECT i, {big}, decode({big}, 'hex'), 0 FROM generate_series(1, 20) i"
        );
        let (postgres, _worker, oracle) = mirrored(&schema, &tables).await?;
        for statements in [
            "UPDATE doc SET n = 1 WHERE id <= 10".to_owned(),
            // Inserted and updated within one transaction, before anything of it is in a file.
            format!("BEGIN; INSERT INTO doc SELECT i, {big}, NULL, 0 FROM generate_series(21, 25) i; UPDATE doc SET n = 2 WHERE id > 20; COMMIT"),
            "UPDATE doc SET n = 3 WHERE id > 20; UPDATE doc SET n = n + 1 WHERE id IN (1, 21)".to_owned(),
            "UPDATE doc SET id = id + 1000 WHERE id IN (2, 22)".to_owned(),
            format!("BEGIN; UPDATE doc SET big = 'small' WHERE id = 3; UPDATE doc SET n = 9 WHERE id = 3; COMMIT;
                     UPDATE doc d SET big = (SELECT {big} FROM (SELECT 77 AS i) x) WHERE id = 4; UPDATE doc SET n = 10 WHERE id = 4"),
            "UPDATE doc SET also = NULL WHERE id = 5; UPDATE doc SET n = 11 WHERE id = 5".to_owned(),
        ] {
            postgres.batch(&statements).await?;
            oracle.assert_equal(&postgres, &tables, CATCH_UP).await.with_context(|| statements.clone())?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_transaction_larger_than_the_memory_limit_is_one_step_in_the_lake() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let tables = ["public.l", "public.r"];
        let schema = "CREATE TABLE l (id int PRIMARY KEY, pad text); CREATE TABLE r (id int PRIMARY KEY, pad text)";
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch(schema).await?;
        Source::publish(&postgres, &tables).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &tables)?;
        config.max_bytes = "1MiB".to_owned();
        config.interval = "50ms".to_owned();
        let _worker = Worker::start(&config, &postgres).await?;
        postgres
            .batch(
                "BEGIN; INSERT INTO l SELECT i, repeat('l', 100) FROM generate_series(1, 60000) i;
                 INSERT INTO r SELECT i, repeat('r', 100) FROM generate_series(1, 60000) i; COMMIT",
            )
            .await?;
        let oracle = Oracle::new(&postgres);
        let rows = oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        ensure!(rows == 120_000, "{rows} rows");
        oracle
            .assert_invariant(
                "SELECT (SELECT count(*) FROM {public.l}) - (SELECT count(*) FROM {public.r})",
                "0",
                crate::ALL,
            )
            .await?;
        Ok(())
    })
    .await
}

/// Statements that reach, within one transaction, rows that had no room in memory any more.
#[tokio::test]
async fn rows_of_an_open_transaction_that_left_memory_are_changed_like_any_other() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let tables = ["public.t", "public.doc", "public.bag"];
        let big = "(SELECT string_agg(md5(g::text), '') FROM generate_series(1, 400) g)";
        let schema = "CREATE TABLE t (id int PRIMARY KEY, v int, pad text);
                      CREATE TABLE doc (id int PRIMARY KEY, big text, n int); ALTER TABLE doc ALTER big SET STORAGE EXTERNAL;
                      CREATE TABLE bag (a int, pad text); ALTER TABLE bag REPLICA IDENTITY FULL;
                      INSERT INTO t SELECT i, 0, repeat('o', 80) FROM generate_series(1, 5000) i;
                      INSERT INTO bag SELECT i % 10, repeat('o', 80) FROM generate_series(1, 1000) i";
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch(schema).await?;
        Source::publish(&postgres, &tables).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &tables)?;
        config.max_bytes = "256KiB".to_owned();
        config.interval = "50ms".to_owned();
        let mut worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        let fill = "INSERT INTO t SELECT i, 1, repeat('n', 80) FROM generate_series(10001, 30000) i";
        let bag = "INSERT INTO bag SELECT i % 10, repeat('o', 80) FROM generate_series(1, 8000) i";
        let one = |a: u32| format!("DELETE FROM bag WHERE ctid = (SELECT ctid FROM bag WHERE a = {a} ORDER BY ctid DESC LIMIT 1)");
        for (statements, rows) in [
            (format!("BEGIN; {fill}; UPDATE t SET v = 2 WHERE id % 3 = 0; {bag}; UPDATE t SET id = -id WHERE id % 5 = 0;
                      DELETE FROM t WHERE id % 7 = 0; COMMIT"), None),
            // Keys that go and come back, with enough between to be staged each time.
            (format!("BEGIN; DELETE FROM t WHERE id > 10000; {fill} ON CONFLICT DO NOTHING; UPDATE t SET v = 3; {one}; {one};
                      DELETE FROM t WHERE id > 20000; SAVEPOINT s; {fill} ON CONFLICT DO NOTHING; ROLLBACK TO s;
                      UPDATE t SET v = 4 WHERE id < 100; COMMIT", one = one(3)), None),
            (format!("BEGIN; INSERT INTO doc SELECT i, {big}, 0 FROM generate_series(1, 100) i; {bag};
                      UPDATE doc SET n = n + 1; UPDATE doc SET id = id + 1000 WHERE id % 2 = 0; {}; COMMIT", one(4)), None),
            (format!("BEGIN; {bag}; {fill} ON CONFLICT DO NOTHING; TRUNCATE t; INSERT INTO t VALUES (1, 1, 'a'), (2, 1, 'b'); TRUNCATE bag;
                      {bag}; {fill}; DELETE FROM t WHERE id = 2 OR id > 29000; {}; {}; COMMIT", one(5), one(5)),
             Some(19_001 + 100 + 7998)),
            ("BEGIN; UPDATE t SET v = v + 1; UPDATE t SET v = v + 1; UPDATE bag SET a = a + 1 WHERE a < 5; COMMIT".to_owned(), None),
            (format!("BEGIN; {bag}; TRUNCATE t, bag, doc; COMMIT"), Some(0)),
        ] {
            postgres.batch(&statements).await?;
            let found = oracle.assert_equal(&postgres, &tables, CATCH_UP).await.with_context(|| statements.clone())?;
            ensure!(rows.is_none_or(|rows| rows == found), "{found} rows after {statements}");
        }
        // Killed in the middle of one, it begins that one again.
        postgres.batch(&format!("BEGIN; {fill}; {bag}; UPDATE t SET v = 9; UPDATE t SET v = 10; COMMIT")).await?;
        tokio::time::sleep(Duration::from_millis(150)).await;
        worker.kill().await?;
        worker = Worker::start(&config, &postgres).await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        postgres.batch("UPDATE t SET v = 11 WHERE id % 2 = 0; DELETE FROM t WHERE id % 3 = 0").await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        ensure!(worker.runs()?, "the worker has ended");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn memory_does_not_grow_with_a_transaction() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let tables = ["public.t"];
        let (postgres, worker, oracle) = mirrored("CREATE TABLE t (id int PRIMARY KEY, pad text)", &tables).await?;
        let mut peaks = Vec::new();
        for (from, to) in [(1, 300_000), (300_001, 1_500_000)] {
            postgres
                .batch(&format!("INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series({from}, {to}) i"))
                .await?;
            oracle.caught_up(&postgres, TEST_LIMIT).await?;
            peaks.push(worker.peak_mib()?);
        }
        let rows = oracle.value("SELECT count(*) FROM {public.t}").await?;
        ensure!(rows == "1500000", "{rows} rows");
        // Caches fill up to their bounds; rows and keys of the larger one alone would take more than 400 MiB.
        ensure!(peaks[1] < 352, "peaks of {peaks:?} MiB");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_small_memory_budget_is_kept_through_a_copy_and_a_large_transaction() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let tables = ["public.t"];
        let postgres = Postgres::builder().set("logical_decoding_work_mem", "1MB").start().await?;
        Source::prepare(&postgres).await?;
        let row = "i, repeat('x', 150) || i";
        postgres
            .batch(&format!(
                "CREATE TABLE t (id int PRIMARY KEY, pad text); INSERT INTO t SELECT {row} FROM generate_series(1, 800000) i"
            ))
            .await?;
        Source::publish(&postgres, &tables).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &tables)?;
        config.memory = Some("64MiB".to_owned());
        let worker = Worker::start(&config, &postgres).await?;
        let copied = worker.peak_mib()?;
        // Streamed while it runs, and another beside it.
        postgres
            .batch(&format!(
                "BEGIN; INSERT INTO t SELECT {row} FROM generate_series(800001, 1600000) i; UPDATE t SET pad = pad || '!' WHERE id % 4 = 0; COMMIT"
            ))
            .await?;
        let oracle = Oracle::new(&postgres);
        oracle.caught_up(&postgres, TEST_LIMIT).await?;
        let peaks = [copied, worker.peak_mib()?];
        let rows = oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        ensure!(rows == 1_600_000, "{rows} rows");
        ensure!(peaks.iter().all(|peak| *peak < 64 + 96), "peaks of {peaks:?} MiB");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn tables_without_changes_do_not_hold_the_slot_back() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let schema = "CREATE TABLE idle (id int PRIMARY KEY); CREATE TABLE foreign_to_us (id int, pad text)";
        let (postgres, _worker, oracle) = mirrored(schema, &["public.idle"]).await?;
        postgres
            .batch("INSERT INTO foreign_to_us SELECT i, repeat('x', 1000) FROM generate_series(1, 20000) i")
            .await?;
        let end = postgres.value("SELECT pg_current_wal_insert_lsn()").await?;
        // The slot may trail by a bounded distance: the last two megabytes are not counted.
        postgres.batch("INSERT INTO foreign_to_us SELECT i, repeat('y', 1000) FROM generate_series(1, 2000) i").await?;
        eventually("the slot follows", CATCH_UP, async || {
            let sql = format!(
                "SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = 'lakemirror'"
            );
            Ok((postgres.value(&sql).await? == "t").then_some(()))
        })
        .await?;
        // Never past what the lake has recorded. The slot is read first: the record only grows.
        let slot = postgres
            .value("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'lakemirror'")
            .await?;
        let recorded = postgres.value(&format!("SELECT lsn >= '{slot}' FROM lake_catalog.mirrors")).await?;
        ensure!(recorded == "t", "acknowledged {slot}, more than the lake holds");
        oracle.assert_equal(&postgres, &["public.idle"], CATCH_UP).await?;
        Ok(())
    })
    .await
}
