//! The standalone worker: transactions that the source sends while they still run (pgoutput's protocol 2). The servers
//! here have the least `logical_decoding_work_mem`, so that some hundred rows make a large transaction.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker, WorkerConfig, bounded, eventually};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::{CATCH_UP, TEST_LIMIT};

const TABLES: &[&str] = &["public.big", "public.small", "public.plain"];

async fn server() -> Result<Postgres> {
    let postgres = Postgres::builder()
        .set("logical_decoding_work_mem", "64kB")
        .set("max_prepared_transactions", "5")
        .start()
        .await?;
    Source::prepare(&postgres).await?;
    postgres
        .batch(
            "CREATE TABLE big (id int PRIMARY KEY, v text, wide text);
             ALTER TABLE big ALTER wide SET STORAGE EXTERNAL;
             CREATE TABLE small (id serial PRIMARY KEY, v text);
             CREATE TABLE plain (id int, v text); ALTER TABLE plain REPLICA IDENTITY FULL;
             INSERT INTO big SELECT i, 'old ' || i, repeat(md5(i::text), 100) FROM generate_series(1, 1000) i;
             INSERT INTO plain SELECT i % 100, 'twin' FROM generate_series(1, 1000) i",
        )
        .await?;
    Source::publish(&postgres, TABLES).await?;
    Ok(postgres)
}

/// Transactions that the source has sent before they ended, so far.
async fn streamed(postgres: &Postgres) -> Result<u64> {
    let sql = "SELECT stream_txns FROM pg_stat_replication_slots WHERE slot_name = 'lakemirror'";
    Ok(postgres.value(sql).await?.parse()?)
}

#[tokio::test]
async fn interleaved_transactions_with_savepoints_arrive_whole_and_in_the_order_of_their_commits() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        let _worker = Worker::start(&WorkerConfig::new(&postgres, "lake", TABLES)?, &postgres).await?;
        let (a, b, c) = (postgres.client().await?, postgres.client().await?, postgres.client().await?);
        let insert = |from: u32, to: u32, word: &str| {
            format!("INSERT INTO big SELECT i, '{word}', repeat(md5(i::text), 20) FROM generate_series({from}, {to}) i")
        };
        a.batch_execute(&format!("BEGIN; {}", insert(2000, 2999, "a"))).await?;
        b.batch_execute(&format!("BEGIN; {}", insert(3000, 3999, "b"))).await?;
        // Rolled back subtransactions, one within another that is kept, and one that is kept within one that is not.
        a.batch_execute(&format!("SAVEPOINT one; {}; DELETE FROM big WHERE id <= 100", insert(4000, 4999, "gone")))
            .await?;
        b.batch_execute(&format!("SAVEPOINT keep; {}; SAVEPOINT inner_one", insert(5000, 5499, "kept"))).await?;
        b.batch_execute("UPDATE big SET v = 'lost' WHERE id BETWEEN 101 AND 600; TRUNCATE plain").await?;
        a.batch_execute(&format!("SAVEPOINT two; {}", insert(6000, 6499, "gone too"))).await?;
        c.batch_execute(&format!("BEGIN; {}", insert(7000, 7999, "never"))).await?;
        a.batch_execute("RELEASE two; ROLLBACK TO one").await?;
        b.batch_execute("ROLLBACK TO inner_one; RELEASE keep").await?;
        // After the rollback, the same keys and rows again; unchanged TOAST of rows from before and of its own.
        a.batch_execute(&format!(
            "{}; UPDATE big SET v = 'new' WHERE id BETWEEN 50 AND 80 OR id BETWEEN 2000 AND 2400;
             UPDATE big SET id = id + 100000 WHERE id BETWEEN 1 AND 40; DELETE FROM big WHERE id BETWEEN 2900 AND 2950",
            insert(4000, 4499, "again")
        ))
        .await?;
        c.batch_execute("ROLLBACK").await?;
        b.batch_execute("COMMIT").await?;
        postgres
            .batch("UPDATE big SET v = 'between' WHERE id BETWEEN 3000 AND 3010; INSERT INTO small (v) VALUES ('x')")
            .await?;
        a.batch_execute("UPDATE big SET v = v || '!' WHERE id BETWEEN 3000 AND 3020; COMMIT").await?;
        let rows = Oracle::new(&postgres).assert_equal(&postgres, TABLES, CATCH_UP).await?;
        ensure!(rows == 1000 + 949 + 1000 + 500 + 500 + 1000 + 1, "{rows} rows");
        // From 18 on the server does not send what it finds to be rolled back before it is sent.
        ensure!(streamed(&postgres).await? >= 2, "the source has not streamed");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_table_may_be_described_in_a_subtransaction_that_is_rolled_back() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        let _worker = Worker::start(&WorkerConfig::new(&postgres, "lake", TABLES)?, &postgres).await?;
        // The first changes of this table that the worker hears of are in `one`, which leaves nothing but the description.
        let insert = "INSERT INTO big SELECT i, 'v', repeat(md5(i::text), 20) FROM generate_series(2000, 3999) i";
        let client = postgres.client().await?;
        client.batch_execute(&format!("BEGIN; SAVEPOINT one; {insert}")).await?;
        eventually("the source streams", CATCH_UP, async || Ok((streamed(&postgres).await? > 0).then_some(()))).await?;
        client.batch_execute(&format!("ROLLBACK TO one; {insert}; COMMIT")).await?;
        let rows = Oracle::new(&postgres).assert_equal(&postgres, TABLES, CATCH_UP).await?;
        ensure!(rows == 4000, "{rows} rows");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_large_transaction_that_runs_holds_nobody_up_and_may_be_prepared() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        let mut config = WorkerConfig::new(&postgres, "lake", TABLES)?;
        config.interval = "200ms".to_owned();
        let worker = Worker::start(&config, &postgres).await?;
        let client = postgres.client().await?;
        client
            .batch_execute(
                "BEGIN; INSERT INTO big SELECT i, 'large', repeat(md5(i::text), 20) FROM generate_series(2000, 21999) i;
                 DELETE FROM plain WHERE id < 50; UPDATE big SET v = 'changed' WHERE id < 500",
            )
            .await?;
        eventually("the source streams", CATCH_UP, async || Ok((streamed(&postgres).await? > 0).then_some(()))).await?;
        let oracle = Oracle::new(&postgres);
        postgres.batch("INSERT INTO small (v) SELECT 'meanwhile' FROM generate_series(1, 100)").await?;
        // The heap shows the others nothing of it either.
        let rows = oracle.assert_equal(&postgres, TABLES, Duration::from_secs(20)).await?;
        ensure!(rows == 2100, "{rows} rows");
        client.batch_execute("PREPARE TRANSACTION 'large'").await?;
        // What was sent is lost with the worker; what was not acknowledged is sent again.
        worker.kill().await?;
        let _worker = Worker::start(&config, &postgres).await?;
        postgres.batch("INSERT INTO small (v) SELECT 'after a kill' FROM generate_series(1, 100)").await?;
        ensure!(oracle.assert_equal(&postgres, TABLES, CATCH_UP).await? == 2200);
        postgres.batch("COMMIT PREPARED 'large'").await?;
        let rows = oracle.assert_equal(&postgres, TABLES, CATCH_UP).await?;
        ensure!(rows == 2200 + 20_000 - 500, "{rows} rows");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn changes_of_a_table_under_copy_wait_on_disk_and_a_streamed_transaction_may_be_among_them() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        // The copy's slot has to wait for a transaction that runs: so the copy lasts as long as the test wants.
        let blocker = postgres.client().await?;
        let mut config = WorkerConfig::new(&postgres, "lake", &["public.small"])?;
        let mut worker = Worker::start(&config, &postgres).await?;
        blocker.batch_execute("BEGIN; CREATE TABLE elsewhere (x int); SELECT txid_current()").await?;
        config.tables = TABLES.iter().map(|table| (*table).to_owned()).collect();
        let listed = config.call(&["mirror"]).await?;
        ensure!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        eventually("the copy waits for its slot", CATCH_UP, async || {
            let sql = "SELECT count(*) > 0 FROM lake_catalog.mirrored_tables WHERE state = 'copying'";
            Ok((postgres.value(sql).await? == "t").then_some(()))
        })
        .await?;
        let client = postgres.client().await?;
        client
            .batch_execute(
                "BEGIN; INSERT INTO big SELECT i, 'streamed', repeat(md5(i::text), 20) FROM generate_series(2000, 5999) i;
                 SAVEPOINT one; DELETE FROM big; ROLLBACK TO one; UPDATE plain SET v = 'b' WHERE id < 10;
                 UPDATE big SET v = 'new' WHERE id > 500; COMMIT",
            )
            .await?;
        postgres.batch("UPDATE big SET id = -id WHERE id < 300; DELETE FROM plain WHERE id = 20").await?;
        blocker.batch_execute("COMMIT").await?;
        postgres.batch("UPDATE big SET v = 'after' WHERE id < 0").await?;
        worker.streaming(&postgres, 3).await?;
        let rows = Oracle::new(&postgres).assert_equal(&postgres, TABLES, CATCH_UP).await?;
        ensure!(rows == 5000 + 990, "{rows} rows");
        Ok(())
    })
    .await
}

/// The end of the WAL.
async fn end_of_wal(client: &Client) -> Result<u64> {
    let sql = "SELECT (pg_current_wal_insert_lsn() - '0/0')::int8";
    Ok(u64::try_from(client.query_one(sql, &[]).await?.get::<_, i64>(0))?)
}

/// A thread that asks the read service for tables as of a position.
fn pinned(config: &WorkerConfig, relations: Vec<u32>, lsn: u64) -> JoinHandle<Result<u64>> {
    let socket = config.read_socket();
    tokio::task::spawn_blocking(move || {
        let refused = |error| anyhow!("no answer: {error:?}");
        let mut client = lake_protocol::Client::connect(&socket).map_err(refused)?;
        let (pin, _) = client.pin(relations, Vec::new(), Some(lsn), CATCH_UP, &mut || false).map_err(refused)?;
        Ok(pin.committed_lsn)
    })
}

#[tokio::test]
async fn tables_that_a_large_transaction_does_not_touch_are_fresh_while_it_is_taken_in() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a transaction that takes a while to be taken in
        let postgres = server().await?;
        let config = WorkerConfig::new(&postgres, "lake", TABLES)?;
        let worker = Worker::start(&config, &postgres).await?;
        let client = postgres.client().await?;
        let oid = async |table: &str| anyhow::Ok(postgres.value(&format!("SELECT '{table}'::regclass::oid")).await?.parse::<u32>()?);
        let (big, small) = (oid("big").await?, oid("small").await?);
        client.batch_execute("BEGIN; INSERT INTO big SELECT i, 'large' FROM generate_series(2000, 701999) i").await?;
        client
            .batch_execute("UPDATE big SET v = 'changed' WHERE id < 500; INSERT INTO plain VALUES (7, 'large'); COMMIT")
            .await?;
        let after = end_of_wal(&client).await?;
        let large = pinned(&config, vec![big], after);

        // WHEN other tables change behind it, and its own
        let (mut fresh, mut committed) = (0, Vec::new());
        while !large.is_finished() {
            client
                .batch_execute(&format!(
                    "INSERT INTO small (v) VALUES ('fresh'); UPDATE big SET v = v || '!' WHERE id = {fresh} OR id = 3000;
                     INSERT INTO big VALUES (-{fresh} - 1, 'late', 'wide'); DELETE FROM big WHERE id = 100000 + {fresh}"
                ))
                .await?;
            // Of a table that is behind and of one that is not, in one step.
            if fresh == 5 {
                client.batch_execute("BEGIN; TRUNCATE plain, small; INSERT INTO plain VALUES (1, 'new'); COMMIT").await?;
            }
            let lsn = end_of_wal(&client).await?;
            committed.push(pinned(&config, vec![small], lsn).await??);
            fresh += u32::from(!large.is_finished());
        }

        // THEN they were read as they were, several times, before it was taken in; and in the end all is as it should be
        large.await??;
        ensure!(fresh >= 5, "{fresh} answers before the large transaction was taken in");
        ensure!(committed[..5].iter().all(|lsn| *lsn < after), "Iceberg had a part of what had happened");
        let end = end_of_wal(&client).await?;
        pinned(&config, vec![big, small], end).await??;
        let oracle = Oracle::new(&postgres);
        oracle.assert_equal(&postgres, TABLES, CATCH_UP).await?;

        // And WHEN two are behind one another, and the worker is killed as it takes them in
        for word in ["a", "b"] {
            let statement = format!("UPDATE big SET v = '{word}' || id WHERE id > 200000; UPDATE plain SET v = '{word}'");
            client.batch_execute(&statement).await?;
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        worker.kill().await?;
        client.batch_execute("INSERT INTO small (v) VALUES ('last')").await?;
        let _worker = Worker::start(&config, &postgres).await?;
        oracle.assert_equal(&postgres, TABLES, CATCH_UP).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_table_whose_text_is_kept_joins_a_binary_stream_in_which_transactions_run() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        let mut config = WorkerConfig::new(&postgres, "lake", TABLES)?;
        config.interval = "2s".to_owned();
        let worker = Worker::start(&config, &postgres).await?;
        let reader = async || postgres.value("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'lakemirror'").await;
        let before = reader().await?;
        let writer = postgres.client().await?;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let writing = tokio::spawn(async move {
            let mut transactions = 0;
            while !*stopped.borrow() {
                let sql = "BEGIN; INSERT INTO small (v) VALUES ('x'); INSERT INTO plain VALUES (7, 'twin'); UPDATE big SET v = v || '.' WHERE id = 5;
                           DELETE FROM plain WHERE ctid = (SELECT ctid FROM plain WHERE id = 3 LIMIT 1); COMMIT";
                writer.batch_execute(sql).await?;
                transactions += 1;
            }
            Ok::<_, tokio_postgres::Error>(transactions)
        });

        // GIVEN a large transaction of which the source has sent a part
        let large = postgres.client().await?;
        let part = |from: u32| format!("INSERT INTO big SELECT i, 'l', repeat(md5(i::text), 20) FROM generate_series({from}, {from} + 999) i");
        large.batch_execute(&format!("BEGIN; {}; SAVEPOINT s; {}", part(10_000), part(20_000))).await?;
        eventually("a part of it was sent", CATCH_UP, async || Ok((streamed(&postgres).await? >= 1).then_some(()))).await?;

        // WHEN the table comes
        postgres
            .batch(
                "CREATE TABLE typed (id int PRIMARY KEY, span interval, tags text[], at timestamptz, raw bytea);
                 INSERT INTO typed SELECT i, i * interval '1 hour', ARRAY[i::text, NULL], now(), '\\xff00' FROM generate_series(1, 500) i",
            )
            .await?;
        Source::publish(&postgres, &["public.typed"]).await?;
        config.tables.push("public.typed".to_owned());
        config.call(&["mirror"]).await?;
        eventually("the stream begins again", CATCH_UP, async || {
            let now = reader().await?;
            Ok((!now.is_empty() && now != before).then_some(()))
        })
        .await?;
        // Nothing was acknowledged for it that the lake has not got.
        let slot = postgres.value("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'lakemirror'").await?;
        let recorded = postgres.value(&format!("SELECT lsn >= '{slot}' FROM lake_catalog.mirrors")).await?;
        ensure!(recorded == "t", "acknowledged {slot}, more than the lake holds");
        large
            .batch_execute(&format!("ROLLBACK TO s; {}; UPDATE big SET v = 'u' WHERE id > 10500; COMMIT", part(30_000)))
            .await?;
        postgres.batch("UPDATE typed SET span = -span, tags = tags || ARRAY['more'] WHERE id % 2 = 0; DELETE FROM typed WHERE id % 7 = 0").await?;
        eventually("the table streams", CATCH_UP, async || {
            let sql = "SELECT count(*) FROM lake_catalog.mirrored_tables WHERE state = 'streaming'";
            Ok((postgres.value(sql).await? == "4").then_some(()))
        })
        .await?;
        postgres.batch("UPDATE typed SET span = span + interval '1 month' WHERE id < 100").await?;
        stop.send(true)?;
        let transactions = writing.await??;
        ensure!(transactions > 20, "only {transactions} transactions beside it");

        // THEN nothing is lost or doubled, now and after a restart, which begins in text
        let oracle = Oracle::new(&postgres);
        let tables: Vec<&str> = TABLES.iter().copied().chain(["public.typed"]).collect();
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        worker.kill().await?;
        postgres.batch("UPDATE typed SET span = '1 day'; UPDATE big SET v = 'w' WHERE id < 100").await?;
        let _worker = Worker::start(&config, &postgres).await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        Ok(())
    })
    .await
}
