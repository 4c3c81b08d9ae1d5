//! The standalone worker: the first copy, and what happens around it.

use std::time::Duration;

use anyhow::{Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker, WorkerConfig, Workload, bounded, eventually};

use crate::{CATCH_UP, TEST_LIMIT};

/// A table with every supported type and the values at their edges.
pub(crate) const ALL_TYPES: &str = r#"
CREATE TABLE all_types (
    id int PRIMARY KEY, b bool, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric(20,4), n0 numeric(38,0),
    nn numeric(38,38), t text, v varchar(50), by bytea, d date, tm time, ts timestamp, tz timestamptz, u uuid,
    j json, jb jsonb);
INSERT INTO all_types (id) VALUES (0);
INSERT INTO all_types VALUES
(1, true, 32767, 2147483647, 9223372036854775807, 3.4028235e38, 1.7976931348623157e308, 9999999999999999.9999,
 99999999999999999999999999999999999999, 0.99999999999999999999999999999999999999, 'plain', 'varying', '\x00ff10',
 '9999-12-31', '23:59:59.999999', '9999-12-31 23:59:59.999999', '9999-12-31 23:59:59.999999+00',
 'ffffffff-ffff-ffff-ffff-ffffffffffff', '{"b" : 1,  "a":[1,2 ]}', '{"b" : 1,  "a":[1,2 ]}'),
(2, false, -32768, -2147483648, -9223372036854775808, -1.17549435e-38, 5e-324, -9999999999999999.9999,
 -99999999999999999999999999999999999999, -0.00000000000000000000000000000000000001, E'line\nbreak, "quote", \\back\tTab', 'ü',
 '\x', '0001-01-01', '00:00', '0001-01-01 00:00:00', '0001-01-01 00:00:00+00',
 '00000000-0000-0000-0000-000000000000', '""', 'null'),
(3, true, 0, 0, 0, 'NaN', 'NaN', 0, 0, 0, '', '', '\xdeadbeef', '1970-01-01', '12:34:56.789012', '1969-12-31 23:59:59.999999',
 '1969-12-31 23:59:59.999999+00', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '[]', '{"z": 0.1000, "é": "\u20ac"}'),
(4, false, 1, 1, 1, '-0', '-0', 0.0001, 1, 0.5, '日本語 🦆', E'a''b', '\x0a0d22', '2000-01-01', '00:00:00.000001', '2000-01-01',
 '2000-01-01 00:00:00.000001+00', gen_random_uuid(), '1.10', '1.10'),
(5, NULL, -1, -1, -1, 'Infinity', '-Infinity', -0.0001, -1, -0.5, ' lead and trail ', NULL, NULL, '2024-02-29', NULL,
 '2024-02-29 12:00', '2024-02-29 12:00:00-08', NULL, NULL, NULL),
(6, NULL, 5, 5, 5, 0, 0, 5, 5, 0, E'\r\n', 'NULL', '\x5c4e', '1582-10-10', '01:00', '1582-10-10', '1582-10-10 00:00+00', NULL,
 'null', '{}');
"#;

#[tokio::test]
async fn every_type_is_copied_and_streamed_bit_by_bit() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch(ALL_TYPES).await?;
        Source::publish(&postgres, &["public.all_types"]).await?;
        let config = WorkerConfig::new(&postgres, "one", &["public.all_types"])?;
        let _worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        let rows = oracle.assert_equal(&postgres, &["public.all_types"], CATCH_UP).await?;
        ensure!(rows == 7, "{rows} rows copied");

        // The same values again through the stream, old rows changed and taken away.
        postgres
            .batch(
                "CREATE TEMP TABLE again AS SELECT * FROM all_types;
                 UPDATE again SET id = id + 100;
                 INSERT INTO all_types SELECT * FROM again;
                 UPDATE all_types SET f8 = -f8, n = -n, t = t || '!', by = by || '\\x00'::bytea WHERE id IN (1, 103, 4);
                 DELETE FROM all_types WHERE id IN (2, 102)",
            )
            .await?;
        let rows = oracle.assert_equal(&postgres, &["public.all_types"], CATCH_UP).await?;
        ensure!(rows == 12, "{rows} rows after streaming");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_empty_table_and_one_with_dropped_columns_and_odd_names_are_mirrored() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres
            .batch(
                r#"CREATE TABLE empty (id int PRIMARY KEY, t text);
                   CREATE TABLE "select" (gone text, "Order" int, "a b" text, also_gone int, "ü" date, PRIMARY KEY ("a b", "Order"));
                   ALTER TABLE "select" DROP COLUMN gone, DROP COLUMN also_gone;
                   INSERT INTO "select" SELECT i, 'x' || i % 7, date '2020-01-01' + i FROM generate_series(1, 500) i"#,
            )
            .await?;
        postgres
            .batch(
                r#"GRANT SELECT ON empty, "select" TO lakemirror;
                   ALTER PUBLICATION lakemirror ADD TABLE empty, "select""#,
            )
            .await?;
        let tables = ["public.empty", "public.select"];
        let _worker = Worker::start(&WorkerConfig::new(&postgres, "one", &tables)?, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        postgres.batch(r#"INSERT INTO empty VALUES (1); UPDATE "select" SET "Order" = -"Order" WHERE "a b" = 'x3'"#).await?;
        let rows = oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        ensure!(rows == 501, "{rows} rows");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_copy_that_begins_under_load_takes_over_at_its_slot() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        let workload = Workload::create(&postgres, 7).await?;
        Source::publish(&postgres, Workload::TABLES).await?;
        let running = workload.start(&postgres, 3);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let _worker = Worker::start(&WorkerConfig::new(&postgres, "one", Workload::TABLES)?, &postgres).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let stats = running.stop().await?;
        ensure!(stats.committed > 50, "only {} transactions", stats.committed);
        let oracle = Oracle::new(&postgres);
        oracle.assert_equal(&postgres, Workload::TABLES, CATCH_UP).await?;
        oracle.assert_invariant(Workload::INVARIANT, &Workload::TOTAL.to_string(), crate::ALL).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_commit_that_hangs_in_synchronous_replication_during_the_copy_is_neither_lost_nor_doubled() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a transaction that is committed in the WAL and not yet visible, because no standby confirms it
        let postgres = Postgres::builder()
            .set("synchronous_standby_names", "nobody")
            .set("synchronous_commit", "local")
            .start()
            .await?;
        Source::prepare(&postgres).await?;
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'before')").await?;
        Source::publish(&postgres, &["public.t"]).await?;
        let hanging = postgres.client().await?;
        let hanging = tokio::spawn(async move {
            let sql = "SET synchronous_commit = on; BEGIN; INSERT INTO t VALUES (2, 'hangs'); UPDATE t SET v = 'changed' WHERE id = 1; COMMIT";
            hanging.batch_execute(sql).await
        });
        eventually("the commit hangs", Duration::from_secs(10), async || {
            let waits = postgres.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await?;
            Ok((waits == "1").then_some(()))
        })
        .await?;

        // WHEN the mirror begins, others commit, and the standby comes back
        let mut worker = Worker::spawn(&WorkerConfig::new(&postgres, "one", &["public.t"])?)?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        postgres.batch("INSERT INTO t VALUES (3, 'meanwhile')").await?;
        postgres.configure("synchronous_standby_names", "")?;
        postgres.reload().await?;
        hanging.await??;

        // THEN
        worker.streaming(&postgres, 1).await?;
        let rows = Oracle::new(&postgres).assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        ensure!(rows == 3, "{rows} rows");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_truncation_between_the_snapshot_and_the_copy_loses_no_change_before_it() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN connections that take a second, so that there is time between the slot's snapshot and the copy
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')").await?;
        Source::publish(&postgres, &["public.t"]).await?;
        let client = postgres.client().await?;
        postgres.configure("post_auth_delay", "1")?;
        postgres.reload().await?;
        let mut worker = Worker::spawn(&WorkerConfig::new(&postgres, "one", &["public.t"])?)?;
        eventually("the copy's slot is there", Duration::from_secs(30), async || {
            let made =
                "SELECT 1 FROM pg_replication_slots WHERE slot_name LIKE '%_copy_%' AND confirmed_flush_lsn > '0/0'";
            Ok((!client.query(made, &[]).await?.is_empty()).then_some(()))
        })
        .await?;

        // WHEN a row of the snapshot is changed, and then the table gets another file, which the snapshot sees empty
        client.batch_execute("UPDATE t SET v = 'changed' WHERE id = 1").await?;
        client.batch_execute("BEGIN; TRUNCATE t; INSERT INTO t VALUES (3, 'c'); COMMIT").await?;
        postgres.configure("post_auth_delay", "0")?;
        postgres.reload().await?;

        // THEN the table streams; it did not stop for a change to a row that the copy has not seen
        worker.streaming(&postgres, 1).await?;
        let rows = Oracle::new(&postgres).assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        ensure!(rows == 1, "{rows} rows");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_truncation_that_waits_for_the_copy_to_begin_goes_first() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a table that several connections copy, and somebody whose lock the copy waits for
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres
            .batch("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 40000) i")
            .await?;
        Source::publish(&postgres, &["public.t"]).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.t"])?;
        config.copy_connections = Some(2);
        let (holder, watch, truncating) =
            (postgres.client().await?, postgres.client().await?, postgres.client().await?);
        // Connections take two seconds, so that there is time between the slot's snapshot and the copy.
        postgres.configure("post_auth_delay", "2")?;
        postgres.reload().await?;
        let mut worker = Worker::spawn(&config)?;
        eventually("the copy's slot is there", Duration::from_secs(30), async || {
            let made =
                "SELECT 1 FROM pg_replication_slots WHERE slot_name LIKE '%_copy_%' AND confirmed_flush_lsn > '0/0'";
            Ok((!watch.query(made, &[]).await?.is_empty()).then_some(()))
        })
        .await?;
        let waiting = async |who: &str, what: &str| {
            let query = format!(
                "SELECT 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT granted AND relation = 't'::regclass AND {who}"
            );
            eventually(what, Duration::from_secs(30), async || Ok((!watch.query(&query, &[]).await?.is_empty()).then_some(()))).await
        };
        holder.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await?;
        postgres.configure("post_auth_delay", "0")?;
        postgres.reload().await?;
        waiting("application_name LIKE 'lake%'", "the copy waits for the lock").await?;

        // WHEN a truncation waits behind it, so that what else the copy asks for would wait behind the truncation
        let truncating = tokio::spawn(async move { truncating.batch_execute("TRUNCATE t; INSERT INTO t VALUES (1, 'new')").await });
        waiting("query LIKE 'TRUNCATE%'", "the truncation waits").await?;
        holder.batch_execute("ROLLBACK").await?;

        // THEN neither waits for the other
        truncating.await??;
        worker.streaming(&postgres, 1).await?;
        let rows = Oracle::new(&postgres).assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        ensure!(rows == 1, "{rows} rows");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn rows_that_are_larger_than_every_buffer_are_copied_between_small_ones() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        // Not compressible, so that they are as large in the lake; one is larger than a batch, and one than a read.
        postgres
            .batch(
                "CREATE TABLE t (id int PRIMARY KEY, v text);
                 INSERT INTO t SELECT i, 'small ' || i FROM generate_series(1, 20000) i;
                 UPDATE t SET v = (SELECT string_agg(md5((t.id::int8 * k)::text), '') FROM generate_series(1, 600000) k) WHERE id = 10000;
                 UPDATE t SET v = (SELECT string_agg(md5((t.id::int8 * k)::text), '') FROM generate_series(1, 10000) k) WHERE id IN (1, 9999, 20000)",
            )
            .await?;
        Source::publish(&postgres, &["public.t"]).await?;
        let _worker = Worker::start(&WorkerConfig::new(&postgres, "one", &["public.t"])?, &postgres).await?;
        let rows = Oracle::new(&postgres).assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        ensure!(rows == 20000, "{rows} rows");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_table_that_is_published_and_configured_later_joins_the_mirror() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres
            .batch(
                "CREATE TABLE first (id int PRIMARY KEY, v int); INSERT INTO first SELECT i, i FROM generate_series(1, 1000) i;
                 CREATE TABLE second (id int PRIMARY KEY, v int); INSERT INTO second SELECT i, i FROM generate_series(1, 1000) i;
                 CREATE TABLE other (id int PRIMARY KEY)",
            )
            .await?;
        Source::publish(&postgres, &["public.first"]).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.first"])?;
        let worker = Worker::start(&config, &postgres).await?;

        // A published table that is not in the configuration is none of ours.
        Source::publish(&postgres, &["public.second", "public.other"]).await?;
        postgres.batch("INSERT INTO other VALUES (1); UPDATE first SET v = 0 WHERE id < 10").await?;
        let oracle = Oracle::new(&postgres);
        oracle.assert_equal(&postgres, &["public.first"], CATCH_UP).await?;
        worker.terminate().await?;

        postgres.batch("UPDATE second SET v = -1 WHERE id < 10; DELETE FROM first WHERE id = 500").await?;
        config.tables.push("public.second".to_owned());
        let _worker = Worker::start(&config, &postgres).await?;
        postgres.batch("UPDATE second SET v = -2 WHERE id < 5; INSERT INTO first VALUES (5000, 1)").await?;
        oracle.assert_equal(&postgres, &["public.first", "public.second"], CATCH_UP).await?;
        let tables = postgres.value("SELECT count(*) FROM lake_catalog.iceberg_tables").await?;
        ensure!(tables == "2", "{tables} tables in the catalog");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn hundreds_of_tables_are_copied_with_a_few_slots_and_little_memory() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // One for the mirror, and one for each copy that runs.
        let postgres = Postgres::builder().set("max_replication_slots", "3").start().await?;
        Source::prepare(&postgres).await?;
        let names: Vec<String> = (0..300).map(|table| format!("public.t{table}")).collect();
        let tables: Vec<&str> = names.iter().map(String::as_str).collect();
        let create: Vec<String> = tables
            .iter()
            .map(|table| {
                format!(
                    "CREATE TABLE {table} (id bigserial PRIMARY KEY, v text); INSERT INTO {table} (v) VALUES ('old')"
                )
            })
            .collect();
        postgres.batch(&create.join(";")).await?;
        Source::publish(&postgres, &tables).await?;
        let worker = Worker::start(&WorkerConfig::new(&postgres, "one", &tables)?, &postgres).await?;
        // A transaction over all of them, and one over a few.
        let insert: Vec<String> =
            tables.iter().map(|table| format!("INSERT INTO {table} (v) VALUES ('new')")).collect();
        postgres.batch(&format!("BEGIN; {}; COMMIT", insert.join(";"))).await?;
        postgres.batch("UPDATE t7 SET v = 'changed'; DELETE FROM t299 WHERE id = 1").await?;
        let looked_at = ["public.t0", "public.t7", "public.t150", "public.t298", "public.t299"];
        let rows = Oracle::new(&postgres).assert_equal(&postgres, &looked_at, CATCH_UP).await?;
        ensure!(rows == 9, "{rows} rows");
        let peak = worker.peak_mib()?;
        ensure!(peak < 128, "a peak of {peak} MiB");
        Ok(())
    })
    .await
}
