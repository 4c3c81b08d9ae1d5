//! The extensions `lake` and `lake_query`: mirror, wait, read; the lake answers as the heap does.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lake_tests::{Oracle, Postgres, Workload, bounded, eventually};

use crate::{CATCH_UP, TEST_LIMIT};

/// A server with both extensions preloaded.
pub(crate) async fn server() -> Result<Postgres> {
    Postgres::builder().preload("lake, lake_query").set("lake.commit_interval", "300").start().await
}

/// Mirrors tables of a server that has them, with both extensions, and waits until they stream.
pub(crate) async fn mirror(postgres: &Postgres, tables: &[&str]) -> Result<()> {
    postgres.batch("CREATE EXTENSION IF NOT EXISTS lake; CREATE EXTENSION IF NOT EXISTS lake_query").await?;
    for table in tables {
        postgres.batch(&format!("SELECT lake.mirror('{table}')")).await?;
    }
    for table in tables {
        postgres.batch(&format!("SELECT lake.wait('{table}', '60 s')")).await?;
    }
    Ok(())
}

/// Both relations give the same rows and column types.
pub(crate) async fn same(postgres: &Postgres, query: &str, heap: &str, lake: &str) -> Result<()> {
    let heap = postgres.rows(&query.replace("{t}", heap)).await?;
    let mirrored = postgres.rows(&query.replace("{t}", lake)).await?;
    ensure!(heap == mirrored, "{query}\nheap: {heap:.300?}\nlake: {mirrored:.300?}");
    Ok(())
}

#[tokio::test]
async fn create_mirror_wait_and_read_equal_the_heap_for_every_type() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres.batch(crate::worker_copy::ALL_TYPES).await?;
        mirror(&postgres, &["all_types"]).await?;
        Oracle::new(&postgres).assert_equal(&postgres, &["public.all_types"], CATCH_UP).await?;
        for query in [
            "SELECT * FROM {t} ORDER BY id",
            "SELECT id, f4, f8 FROM {t} WHERE f8 > 1 ORDER BY id",
            "SELECT count(*), count(t), min(i8), max(i8), sum(i4::bigint), avg(i2) FROM {t}",
            "SELECT b, count(*), max(d) FROM {t} GROUP BY b ORDER BY b NULLS FIRST",
            "SELECT id FROM {t} WHERE d < '1970-01-02' AND t <> '' ORDER BY id",
            "SELECT id, n FROM {t} WHERE n = 0.0001",
            "SELECT a.id FROM {t} a JOIN {t} b ON b.id = a.id + 1 ORDER BY 1 LIMIT 3",
            "SELECT jb ->> 'a', jb FROM {t} WHERE id = 1",
        ] {
            same(&postgres, query, "public.all_types", "lake.all_types").await?;
        }
        // Fresh rows too, before they are in Iceberg.
        postgres.batch("ALTER SYSTEM SET lake.commit_interval = '60s'").await?;
        postgres.reload().await?;
        eventually("the engine runs with the new setting", CATCH_UP, async || {
            Ok(postgres.batch("SELECT lake.wait('all_types', '5 s')").await.ok())
        })
        .await?;
        postgres
            .batch(
                "CREATE TEMP TABLE again AS SELECT * FROM all_types; UPDATE again SET id = id + 100;
                 INSERT INTO all_types SELECT * FROM again; UPDATE all_types SET n = -n WHERE id IN (1, 101);
                 DELETE FROM all_types WHERE id IN (2, 102)",
            )
            .await?;
        same(&postgres, "SELECT * FROM {t} ORDER BY id", "public.all_types", "lake.all_types").await
    })
    .await
}

#[tokio::test]
async fn lag_and_mirrors_tell_what_is_going_on() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 1000)").await?;
        mirror(&postgres, &["t"]).await?;
        let lag = postgres.rows("SELECT \"table\", state, copied_rows, engine, last_error FROM lake.lag").await?;
        let wanted = [Some("t"), Some("streaming"), Some("1000"), Some("running"), None];
        ensure!(lag == [wanted.map(|text| text.map(str::to_owned)).to_vec()], "lake.lag: {lag:?}");
        eventually("no lag when idle", CATCH_UP, async || {
            let idle = "SELECT lag_seconds = 0 AND pending_rows = 0 FROM lake.lag";
            Ok((postgres.value(idle).await? == "t").then_some(()))
        })
        .await?;
        ensure!(postgres.value("SELECT lake_table FROM lake.mirrors").await? == "t");
        // Idempotent, and undone.
        postgres.batch("SELECT lake.mirror('t')").await?;
        postgres.batch("SELECT lake.unmirror('t')").await?;
        ensure!(postgres.value("SELECT count(*) FROM lake.mirrors").await? == "0");
        ensure!(postgres.value("SELECT to_regclass('lake.t') IS NULL").await? == "t", "lake.t is still there");
        postgres.batch("DROP TABLE t").await
    })
    .await
}

#[tokio::test]
async fn a_stopped_table_says_why_and_resync_brings_it_back_with_its_new_columns() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder()
            .preload("lake, lake_query")
            .set("lake.commit_interval", "300")
            .set("lake.unrepresentable", "stop")
            .start()
            .await?;
        postgres
            .batch(
                "CREATE TABLE t (id int PRIMARY KEY, v text, d date); INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i;
                 CREATE TABLE u (id int PRIMARY KEY); CREATE TABLE w (id int PRIMARY KEY)",
            )
            .await?;
        mirror(&postgres, &["t", "u"]).await?;
        // A new column is followed; such a value is not, by choice.
        postgres.batch("ALTER TABLE t ADD COLUMN n int; INSERT INTO t VALUES (101, 'y', NULL, 5); INSERT INTO u VALUES (1)").await?;
        same(&postgres, "SELECT id, v, d FROM {t} ORDER BY id", "public.t", "lake.t").await?;
        Oracle::new(&postgres).assert_equal(&postgres, &["public.t", "public.u"], CATCH_UP).await?;
        postgres.batch("INSERT INTO t VALUES (102, 'z', 'infinity', 6)").await?;
        let error = eventually("t stops", CATCH_UP, async || {
            Ok(postgres.rows("SELECT message, hint FROM lake.errors WHERE \"table\" = 't'::regclass").await?.into_iter().next())
        })
        .await?;
        ensure!(format!("{error:?}").contains("lake.resync"), "lake.errors: {error:?}");
        same(&postgres, "SELECT * FROM {t}", "public.u", "lake.u").await?;
        ensure!(postgres.batch("SELECT lake.resync('w')").await.is_err(), "a table that is not mirrored");
        postgres.batch("UPDATE t SET d = 'today' WHERE id = 102").await?;
        postgres.batch("SELECT lake.resync('t')").await?;
        postgres.batch("SELECT lake.wait('t', '60 s')").await?;
        ensure!(postgres.value("SELECT count(*) FROM lake.errors").await? == "0");
        same(&postgres, "SELECT * FROM {t} ORDER BY id", "public.t", "lake.t").await?;
        postgres.batch("UPDATE t SET n = id").await?;
        same(&postgres, "SELECT count(*), sum(n) FROM {t}", "public.t", "lake.t").await?;
        Oracle::new(&postgres).assert_equal(&postgres, &["public.t", "public.u"], CATCH_UP).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_strict_read_sees_every_commit_before_it_under_concurrent_writers() -> Result<()> {
    const ROUNDS: i32 = 200;
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        let workload = Workload::create(&postgres, 31).await?;
        postgres
            .batch("CREATE TABLE mark (id int PRIMARY KEY, v int NOT NULL); INSERT INTO mark VALUES (0, 0)")
            .await?;
        mirror(&postgres, &["bank.left", "bank.right", "bank.ledger", "bank.scratch", "mark"]).await?;
        let running = workload.start(&postgres, 2);
        let (writer, reader) = (postgres.client().await?, postgres.client().await?);
        for round in 1..=ROUNDS {
            // GIVEN commits by another session: a changed row, a new one, and one that is gone
            writer
                .batch_execute(&format!(
                    "UPDATE mark SET v = {round} WHERE id = 0;
                     INSERT INTO mark VALUES ({round}, {round}); DELETE FROM mark WHERE id = {round} - 5 AND id > 0"
                ))
                .await?;
            // WHEN, THEN
            let sql = "SELECT count(*), max(id), min(v) FILTER (WHERE id > 0), max(v) FROM lake.mark";
            let row = reader.query_one(sql, &[]).await.with_context(|| format!("round {round}"))?;
            let found: (i64, i32, i32, i32) = (row.get(0), row.get(1), row.get(2), row.get(3));
            let wanted = (i64::from(round.min(5)) + 1, round, (round - 4).max(1), round);
            ensure!(found == wanted, "round {round}: {found:?}, not {wanted:?}");
            let sql = "SELECT ((SELECT sum(balance) FROM lake.left) + (SELECT sum(balance) FROM lake.right))::bigint";
            let total: i64 = reader.query_one(sql, &[]).await?.get(0);
            ensure!(total == Workload::TOTAL, "round {round}: half a transaction is visible: {total}");
        }
        let stats = running.stop().await?;
        ensure!(stats.committed > 100, "the writers did {} transactions only", stats.committed);
        same(&postgres, "SELECT * FROM {t} ORDER BY id", "bank.left", "lake.left").await?;
        Oracle::new(&postgres).assert_equal(&postgres, Workload::TABLES, CATCH_UP).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_source_is_never_blocked_and_the_extension_goes_away() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)").await?;
        mirror(&postgres, &["t", "u"]).await?;
        // Nothing on the source is refused because it is mirrored.
        postgres.batch("DROP TABLE u").await?;
        postgres.batch("DROP EXTENSION lake_query").await?;
        postgres.batch("DROP EXTENSION lake CASCADE").await?;
        eventually("the engine is gone", Duration::from_secs(10), async || {
            Ok(postgres.processes("lake engine")?.is_empty().then_some(()))
        })
        .await?;
        ensure!(
            postgres.value("SELECT count(*) FROM pg_namespace WHERE nspname IN ('lake', 'lake_catalog')").await? == "0"
        );
        postgres.batch("INSERT INTO t VALUES (1, 'x'); DROP TABLE t").await?;
        // And it comes back.
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'y')").await?;
        mirror(&postgres, &["t"]).await?;
        same(&postgres, "SELECT * FROM {t}", "public.t", "lake.t").await
    })
    .await
}

#[tokio::test]
async fn a_table_without_a_key_is_mirrored_append_only_when_that_is_asked_for() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres
            .batch(
                "CREATE EXTENSION lake; CREATE EXTENSION lake_query; CREATE TABLE log (at int, line text);
                 INSERT INTO log SELECT i % 3, 'x' FROM generate_series(1, 100) i",
            )
            .await?;
        let refusal = format!("{:?}", postgres.batch("SELECT lake.mirror('log')").await);
        ensure!(refusal.contains("append_only"), "the hint names the way out: {refusal}");
        postgres.batch("SELECT lake.mirror('log', append_only => true)").await?;
        postgres.batch("SELECT lake.wait('log', '60 s')").await?;
        ensure!(postgres.batch("UPDATE log SET line = 'y'").await.is_err(), "Postgres lets it be updated");
        ensure!(postgres.batch("SELECT lake.mirror('log')").await.is_err(), "the other way it is not mirrored");
        let rows = "SELECT at, line, count(*) FROM {t} GROUP BY at, line ORDER BY at, line";
        for statements in [
            "INSERT INTO log VALUES (7, 'fresh'), (7, 'fresh')",
            "BEGIN; TRUNCATE log; INSERT INTO log VALUES (1, 'after'), (NULL, NULL); COMMIT",
        ] {
            postgres.batch(statements).await?;
            same(&postgres, rows, "public.log", "lake.log").await.context(statements)?;
        }
        postgres.batch("SELECT lake.resync('log')").await?;
        postgres.batch("SELECT lake.wait('log', '60 s')").await?;
        postgres.batch("INSERT INTO log VALUES (8, 'more')").await?;
        same(&postgres, rows, "public.log", "lake.log").await?;
        Oracle::new(&postgres).assert_equal(&postgres, &["public.log"], CATCH_UP).await?;
        Ok(())
    })
    .await
}
