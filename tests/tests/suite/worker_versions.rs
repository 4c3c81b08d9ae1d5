//! The standalone worker: what only newer versions of Postgres have. On older ones these tests have nothing to look at.

use anyhow::{Context as _, Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker, WorkerConfig, bounded, eventually, exit_code};

use crate::mirror::Mirror;
use crate::{CATCH_UP, TEST_LIMIT};

/// The first version with virtual generated columns, temporal keys and `publish_generated_columns`.
const EIGHTEEN: u32 = 18;

#[tokio::test]
async fn generated_columns_are_in_the_lake_where_the_publication_sends_them() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        if postgres.major().await? < EIGHTEEN {
            return Ok(());
        }
        Source::prepare(&postgres).await?;
        let columns = "id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED, thrice int GENERATED ALWAYS AS (a * 3), b text";
        postgres.batch(&format!("CREATE TABLE t ({columns}); CREATE TABLE listed ({columns})")).await?;
        let tables = ["public.t", "public.listed"];
        Source::publish(&postgres, &tables[..1]).await?;
        postgres
            .batch("GRANT SELECT ON listed TO lakemirror; ALTER PUBLICATION lakemirror ADD TABLE listed (id, twice)")
            .await?;
        let fill = "INSERT INTO t (id, a, b) SELECT i, i, 'b' FROM generate_series(1, 20) i; INSERT INTO listed (id, a) SELECT id, a FROM t";
        postgres.batch(fill).await?;
        let config = WorkerConfig::new(&postgres, "one", &tables)?;
        let mut worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        let listed = ("public.listed", "SELECT id, twice FROM public.listed");
        let change = "UPDATE t SET a = a + 1 WHERE id > 10; INSERT INTO t (id, a) SELECT max(id) + 1, 7 FROM t; DELETE FROM t WHERE id = 1;
                      UPDATE listed SET a = a + 1 WHERE id > 10; INSERT INTO listed (id, a) SELECT max(id) + 1, 7 FROM listed";
        // The list has its way, whatever the option says, and a virtual column is never sent.
        for (option, sent) in [("none", "id, a, b"), ("stored", "id, a, twice, b"), ("none", "id, a, b"), ("stored", "id, a, twice, b")] {
            postgres.batch(&format!("ALTER PUBLICATION lakemirror SET (publish_generated_columns = {option})")).await?;
            let whole = format!("SELECT {sent} FROM public.t");
            let parts = [("public.t", whole.as_str()), listed];
            for round in 0..2 {
                postgres.batch(change).await?;
                // The first row that comes otherwise has the table copied anew.
                let equal = eventually("the lake has what is sent", CATCH_UP, async || {
                    Ok(oracle.assert_equal_to(&postgres, &parts, CATCH_UP).await.ok())
                });
                Box::pin(equal).await.with_context(|| format!("{option}, round {round}:\n{}", worker.output()))?;
            }
            worker.kill().await?;
            postgres.batch(change).await?;
            worker = Worker::start(&config, &postgres).await?;
            oracle.assert_equal_to(&postgres, &parts, CATCH_UP).await.with_context(|| format!("{option}, restarted"))?;
        }
        // Columns that come and go beside them.
        postgres
            .batch(
                "ALTER TABLE t ADD COLUMN late int; ALTER TABLE t ADD COLUMN never int GENERATED ALWAYS AS (a + 1);
                 ALTER TABLE t DROP COLUMN b; UPDATE t SET late = id WHERE id % 2 = 0",
            )
            .await?;
        oracle
            .assert_equal_to(&postgres, &[("public.t", "SELECT id, a, twice, late FROM public.t"), listed], CATCH_UP)
            .await?;
        postgres.batch("ALTER TABLE t ADD COLUMN four int GENERATED ALWAYS AS (a * 4) STORED; UPDATE t SET a = 0 WHERE id = 5").await?;
        let parts = [("public.t", "SELECT id, a, twice, late, four FROM public.t"), listed];
        eventually("the new generated column is there", CATCH_UP, async || {
            Ok(oracle.assert_equal_to(&postgres, &parts, CATCH_UP).await.ok())
        })
        .await?;
        ensure!(worker.runs()?, "the worker has ended");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_temporal_key_tells_rows_apart() -> Result<()> {
    bounded(TEST_LIMIT, async {
        if Postgres::builder().start().await?.major().await? < EIGHTEEN {
            return Ok(());
        }
        let mut mirror = Mirror::start(
            "CREATE TABLE t (room int4range, at daterange, v text, PRIMARY KEY (room, at WITHOUT OVERLAPS));
             INSERT INTO t SELECT int4range(i, i + 1), daterange(date '2020-01-01' + j * 10, date '2020-01-01' + j * 10 + 5), 'copied'
             FROM generate_series(1, 10) i, generate_series(1, 10) j",
            &["public.t"],
        )
        .await?;
        ensure!(mirror.equal().await? == 100, "not all rows");
        mirror.after("UPDATE t SET v = 'again' WHERE '[3,4)' @> room; DELETE FROM t WHERE at @> date '2020-01-12'").await?;
        // Another key, and one that takes the place of another in one transaction.
        mirror
            .after(
                "UPDATE t SET at = daterange(lower(at), upper(at) + 1); UPDATE t SET room = '[100,200)' WHERE '[5,6)' @> room;
                 BEGIN; DELETE FROM t WHERE '[7,8)' @> room; UPDATE t SET room = '[7,8)' WHERE '[8,9)' @> room; COMMIT",
            )
            .await?;
        mirror.restart().await?;
        let rows = mirror.after("UPDATE t SET v = v || '!', at = daterange(lower(at), NULL) WHERE lower(at) = '2020-04-10'").await?;
        ensure!(rows == 90 - 9, "{rows} rows");
        ensure!(!mirror.worker()?.output().contains("copied anew"), "copied anew:\n{}", mirror.worker()?.output());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_slot_that_the_server_gave_up_for_nobody_read_it_is_told_from_one_that_was_too_far_behind() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let builder = Postgres::builder();
        let mut mirror = Mirror::start_on(builder, "CREATE TABLE t (id int PRIMARY KEY)", &["public.t"]).await?;
        if mirror.postgres.major().await? < EIGHTEEN {
            return Ok(());
        }
        mirror.postgres.configure("idle_replication_slot_timeout", "1s")?;
        mirror.postgres.reload().await?;
        let said = mirror.call(&["check"]).await?;
        ensure!(said.contains("warning: idle_replication_slot_timeout is 1s"), "{said}");
        mirror.kill().await?;
        eventually("the slot is given up", CATCH_UP, async || {
            mirror.postgres.batch("INSERT INTO t SELECT count(*) FROM t; CHECKPOINT").await?;
            let sql = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'lakemirror'";
            Ok((mirror.postgres.value(sql).await? == "lost").then_some(()))
        })
        .await?;
        let (code, said) = mirror.config.run_to_end(CATCH_UP).await?;
        ensure!(code == exit_code::UNFIT, "exit code {code}:\n{said}");
        ensure!(said.contains("nobody read it") && said.contains("idle_replication_slot_timeout"), "{said}");
        Ok(())
    })
    .await
}
