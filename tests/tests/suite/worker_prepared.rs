//! The standalone worker: prepared transactions, logical messages, and tables in which nothing happens.

use anyhow::{Result, ensure};
use lake_tests::{Postgres, bounded, eventually};

use crate::mirror::Mirror;
use crate::{CATCH_UP, TEST_LIMIT};

const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, v int, pad text); CREATE TABLE other (id int PRIMARY KEY);
    CREATE TABLE unpublished (id int, pad text);
    INSERT INTO t SELECT i, 0, 'x' FROM generate_series(1, 100) i";
const TABLES: [&str; 2] = ["public.t", "public.other"];

async fn mirror() -> Result<Mirror> {
    let builder = Postgres::builder().set("max_prepared_transactions", "10").set("logical_decoding_work_mem", "64kB");
    Mirror::start_on(builder, SCHEMA, &TABLES).await
}

/// Waits until the slot is past what was written up to now.
async fn slot_follows(mirror: &Mirror) -> Result<()> {
    let end = mirror.postgres.value("SELECT pg_current_wal_insert_lsn()").await?;
    // An idle mirror leaves the last mebibyte where it is.
    mirror
        .postgres
        .batch("INSERT INTO unpublished SELECT i, repeat('y', 1000) FROM generate_series(1, 2500) i")
        .await?;
    eventually("the slot follows", CATCH_UP, async || {
        let sql =
            format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = 'lakemirror'");
        Ok((mirror.postgres.value(&sql).await? == "t").then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_prepared_transaction_arrives_when_it_is_committed_and_holds_nobody_up() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = mirror().await?;
        for (kill_between, last) in [(false, "COMMIT"), (true, "COMMIT"), (true, "ROLLBACK")] {
            mirror.postgres
                .batch(
                    "BEGIN; INSERT INTO t SELECT i, 1, repeat('p', 200) FROM generate_series(1001, 3000) i; UPDATE t SET v = v + 1 WHERE id <= 50;
                     SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; DELETE FROM t WHERE id = 2000; INSERT INTO other VALUES (-1); PREPARE TRANSACTION 'small';
                     BEGIN; INSERT INTO other SELECT generate_series(1000, 1010); PREPARE TRANSACTION 'second'",
                )
                .await?;
            // Others go on, and see nothing of it; the slot goes on too.
            ensure!(mirror.after("INSERT INTO other VALUES (1), (2); UPDATE t SET v = 5 WHERE id = 60").await? == 102);
            slot_follows(&mirror).await?;
            if kill_between {
                mirror.restart().await?;
                ensure!(mirror.after("INSERT INTO other VALUES (3)").await? == 103);
                mirror.kill().await?;
            }
            mirror.postgres.batch("COMMIT PREPARED 'second'").await?;
            mirror.postgres.batch(&format!("{last} PREPARED 'small'")).await?;
            if kill_between {
                mirror.spawn()?;
            }
            let rows = mirror.equal().await?;
            let expected = 102 + u64::from(kill_between) + 11 + if last == "COMMIT" { 2000 } else { 0 };
            ensure!(rows == expected, "{rows} rows, not {expected}");
            mirror.after("DELETE FROM t WHERE id > 1000; TRUNCATE other").await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn logical_messages_of_any_kind_and_size_change_nothing() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = mirror().await?;
        for prefix in ["app", "lakemirror", "lake", ""] {
            let message = |transactional: bool, size: u32| {
                format!("PERFORM pg_logical_emit_message({transactional}, '{prefix}', repeat('m', {size}))")
            };
            let statements = format!(
                "DO $$BEGIN {}; {}; END$$;
                 BEGIN; INSERT INTO t VALUES (1000, 1, 'a'); DO $$BEGIN {}; {}; END$$; SAVEPOINT s; UPDATE t SET v = 9; DO $$BEGIN {}; END$$;
                 ROLLBACK TO s; UPDATE t SET v = v + 1 WHERE id > 50; DO $$BEGIN {}; {}; END$$; COMMIT;
                 BEGIN; DELETE FROM t; DO $$BEGIN {}; {}; END$$; ROLLBACK; DELETE FROM t WHERE id = 1000",
                message(true, 0), message(false, 0), message(true, 10), message(false, 10), message(true, 500_000),
                message(true, 20_000_000), message(false, 20_000_000), message(true, 300_000), message(false, 300_000),
            );
            let rows = mirror.after(&statements).await?;
            ensure!(rows == 100, "{rows} rows");
        }
        mirror.restart().await?;
        ensure!(mirror.after("SELECT pg_logical_emit_message(true, 'x', 'y'); INSERT INTO other VALUES (1)").await? == 101);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn published_tables_in_which_nothing_happens_let_the_slot_go_on_through_a_restart() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = mirror().await?;
        slot_follows(&mirror).await?;
        // A transaction that stays open holds back what the server must keep, not what the mirror has confirmed.
        let open = mirror.postgres.client().await?;
        open.batch_execute("BEGIN; INSERT INTO t VALUES (500, 1, 'open')").await?;
        slot_follows(&mirror).await?;
        mirror.restart().await?;
        slot_follows(&mirror).await?;
        open.batch_execute("COMMIT").await?;
        let rows = mirror.equal().await?;
        ensure!(rows == 101, "{rows} rows");
        Ok(())
    })
    .await
}
