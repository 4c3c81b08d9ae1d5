//! The standalone worker: copies that are made of several snapshots, because they take long or were interrupted.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker, WorkerConfig, bounded, eventually};

use crate::{CATCH_UP, TEST_LIMIT};

/// A table of full blocks and, where the rows were of which this is true, empty ones, once VACUUM has been there: so rows
/// that are updated move there. With values stored out of line.
fn roomy(name: &str, rows: u32, empty: &str) -> String {
    format!(
        "CREATE TABLE {name} (id int PRIMARY KEY, v int, pad text, large text);
         ALTER TABLE {name} ALTER large SET STORAGE EXTERNAL;
         INSERT INTO {name} SELECT i, 0, concat(md5(i::text), md5((i * 3)::text), md5((i * 7)::text), md5((i * 11)::text)), CASE i % 97 WHEN 0 THEN repeat(md5(i::text), 80) END
           FROM generate_series(1, {rows}) i;
         DELETE FROM {name} WHERE {empty}"
    )
}

const EVERYWHERE: &str = "id / 500 % 5 = 0";

/// What happens to its rows, everywhere in it; another time something else.
fn changes(name: &str, time: u32) -> [String; 6] {
    [
        format!("UPDATE {name} SET v = v + 1 WHERE id % 97 = 0 AND id % 2 = {}", time % 2),
        format!("UPDATE {name} SET v = v + 1, large = repeat(md5(v::text), 90) WHERE id % 970 = {}", 97 * (time % 7)),
        format!(
            "UPDATE {name} t SET id = -id WHERE id % 388 = {} AND NOT EXISTS (SELECT FROM {name} o WHERE o.id = -t.id)",
            97 * (time % 4)
        ),
        format!("DELETE FROM {name} WHERE id % 41 = {time}"),
        format!("INSERT INTO {name} SELECT i, {time}, md5(i::text) FROM generate_series(5, 100000, 65) i ON CONFLICT DO NOTHING"),
        format!(
            "BEGIN; UPDATE {name} SET v = v + 1 WHERE id % 1000 = {time}; SAVEPOINT s; DELETE FROM {name} WHERE id % 3 = 0;
             ROLLBACK TO s; UPDATE {name} SET id = id + 1000000 WHERE id % 500 = {time} AND id < 1000000; COMMIT"
        ),
    ]
}

/// Holds the worker in its copies when so many parts of each table are done: from their beginning on it is let go on for
/// some milliseconds at a time.
pub(crate) async fn hold_after_parts(postgres: &Postgres, worker: &Worker, tables: i64, parts: i64) -> Result<()> {
    let client = postgres.client().await?;
    let begun = Instant::now();
    // Before the first start there is no registry.
    let count = async |sql: &str| client.query_one(sql, &[]).await.map_or(0, |row| row.get::<_, i64>(0));
    while count("SELECT count(*) FROM lake_catalog.mirrored_tables WHERE state = 'copying'").await == 0 {
        ensure!(begun.elapsed() < CATCH_UP, "no copy has begun");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let done = format!(
        "SELECT count(*) FROM (SELECT FROM lake_catalog.copied_parts GROUP BY relation HAVING count(*) >= {parts}) s"
    );
    loop {
        worker.hold()?;
        if count(&done).await == tables {
            break;
        }
        ensure!(begun.elapsed() < CATCH_UP, "no {parts} parts are done");
        worker.release()?;
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    let copying = "SELECT count(*) FROM lake_catalog.mirrored_tables WHERE state = 'copying' AND relation IN
                   (SELECT relation FROM lake_catalog.copied_parts)";
    ensure!(count(copying).await == tables, "a copy was over when it was to be held");
    Ok(())
}

/// Data files that the worker of this epoch has written.
fn files_of_epoch(config: &WorkerConfig, epoch: u32) -> Result<usize> {
    let mut found = 0;
    let mut folders = vec![config.warehouse.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.file_name().to_string_lossy().starts_with(&format!("{epoch}-")) {
                found += usize::from(entry.path().extension().is_some_and(|extension| extension == "parquet"));
            }
        }
    }
    Ok(found)
}

async fn confirmed_before_parts(postgres: &Postgres) -> Result<bool> {
    let sql =
        "SELECT confirmed_flush_lsn <= (SELECT min(as_of) FROM lake_catalog.copied_parts) FROM pg_replication_slots
               WHERE slot_name = 'lakemirror'";
    Ok(postgres.value(sql).await? == "t")
}

#[tokio::test]
async fn a_copy_that_was_killed_goes_on_with_the_blocks_that_are_left() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a table that streams, and the copy of another, held in the middle
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch("CREATE TABLE other (id serial PRIMARY KEY, at timestamptz DEFAULT now())").await?;
        // From blocks that are copied first to those that are copied last.
        postgres.batch(&roomy("t", 300_000, "id > 225000")).await?;
        postgres.batch("VACUUM t").await?;
        let tables = ["public.other", "public.t"];
        Source::publish(&postgres, &tables).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &tables)?;
        config.copy_connections = Some(2);
        config.file_size = Some("256KiB".to_owned());
        let worker = Worker::spawn(&config)?;
        hold_after_parts(&postgres, &worker, 1, 3).await?;

        // WHEN its rows change, it is killed, they change again; and all of that once more
        for statement in changes("t", 1) {
            postgres.batch(&statement).await?;
        }
        worker.release()?;
        worker.kill().await?;
        ensure!(confirmed_before_parts(&postgres).await?, "the slot has passed the copy");
        postgres.batch("INSERT INTO other SELECT FROM generate_series(1, 100)").await?;
        for statement in changes("t", 2) {
            postgres.batch(&statement).await?;
        }
        let parts: i64 = postgres.value("SELECT count(*) FROM lake_catalog.copied_parts").await?.parse()?;
        let worker = Worker::spawn(&config)?;
        hold_after_parts(&postgres, &worker, 1, parts + 2).await?;
        for statement in changes("t", 3) {
            postgres.batch(&statement).await?;
        }
        worker.release()?;
        worker.kill().await?;
        for statement in changes("t", 4) {
            postgres.batch(&statement).await?;
        }
        let mut worker = Worker::spawn(&config)?;
        for statement in changes("t", 5) {
            postgres.batch(&statement).await?;
        }

        // THEN the table is what it is at the source, out of what each of them has written
        worker.streaming(&postgres, 2).await?;
        ensure!(worker.output().contains("the copy goes on"), "it has begun again");
        let oracle = Oracle::new(&postgres);
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        for statement in changes("t", 6) {
            postgres.batch(&statement).await?;
        }
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        ensure!(postgres.value("SELECT count(*) FROM lake_catalog.copied_parts").await? == "0", "parts are left");
        let (code, _) = worker.terminate().await?;
        ensure!(code == 0, "{code}");
        // A worker that starts removes what earlier ones have written in vain.
        let mut worker = Worker::start(&config, &postgres).await?;
        for statement in changes("t", 7) {
            postgres.batch(&statement).await?;
        }
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        for epoch in 1..=3 {
            ensure!(files_of_epoch(&config, epoch)? > 1, "nothing is left of what worker {epoch} copied");
        }
        ensure!(worker.runs()?, "it has ended");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_long_copy_takes_new_snapshots_under_way() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a copy whose snapshots may be a moment old
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch(&roomy("t", 200_000, EVERYWHERE)).await?;
        postgres.batch("VACUUM t").await?;
        postgres
            .batch(
                "CREATE TABLE p (id int, part int, v int, pad text, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
                 CREATE TABLE p0 PARTITION OF p FOR VALUES IN (0); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
                 INSERT INTO p SELECT i, i % 2, 0, repeat(md5(i::text), 6) FROM generate_series(1, 60000) i",
            )
            .await?;
        let tables = ["public.t", "public.p"];
        Source::publish(&postgres, &tables).await?;
        let root = "ALTER PUBLICATION lakemirror SET (publish_via_partition_root = true)";
        postgres.batch(&format!("{root}; GRANT SELECT ON p0, p1 TO lakemirror")).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &tables)?;
        config.copy_connections = Some(1);
        config.copy = "snapshot_age = \"50ms\"".to_owned();

        // WHEN rows change all the time
        let mut worker = Worker::spawn(&config)?;
        let writing = async {
            for time in 1..30 {
                for statement in changes("t", time) {
                    postgres.batch(&statement).await?;
                }
                postgres
                    .batch(&format!(
                        "UPDATE p SET part = 1 - part, v = v + 1 WHERE id % 30 = {time}; DELETE FROM p WHERE id % 50 = {time};
                         INSERT INTO p SELECT i, i % 2, {time}, 'new' FROM generate_series({time}, 60000, 50) i ON CONFLICT DO NOTHING"
                    ))
                    .await?;
            }
            anyhow::Ok(())
        };
        let (written, streams) = tokio::join!(writing, worker.streaming(&postgres, 2));
        written?;
        streams?;

        // THEN
        let snapshots = worker.output().matches("takes a new snapshot").count();
        ensure!(snapshots >= 4, "{snapshots} new snapshots");
        Oracle::new(&postgres).assert_equal(&postgres, &tables, CATCH_UP).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_interrupted_copy_of_a_table_that_was_rewritten_begins_again() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN two copies, killed in the middle
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        let tables = ["public.a", "public.b"];
        for table in tables {
            postgres.batch(&roomy(table, 60_000, EVERYWHERE)).await?;
        }
        Source::publish(&postgres, &tables).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &tables)?;
        config.copy_connections = Some(1);
        config.file_size = Some("256KiB".to_owned());
        let worker = Worker::spawn(&config)?;
        hold_after_parts(&postgres, &worker, 2, 1).await?;
        worker.release()?;
        worker.kill().await?;

        // WHEN one table gets other blocks, and the other is emptied
        postgres.batch("VACUUM FULL a").await?;
        postgres.batch("TRUNCATE b; INSERT INTO b VALUES (1, 1, 'new'), (2, 2, 'new')").await?;
        let mut worker = Worker::spawn(&config)?;

        // THEN
        worker.streaming(&postgres, 2).await?;
        ensure!(worker.output().matches("its copy begins again").count() == 2, "they have not begun again");
        let oracle = Oracle::new(&postgres);
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        postgres.batch("UPDATE a SET v = 7 WHERE id % 9 = 0; DELETE FROM b WHERE id = 1").await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn values_out_of_line_of_rows_that_were_not_copied_yet_are_read_in_the_newest_snapshot() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a key that is stored out of line, and beside it values whose text is kept; room at the table's beginning only
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres
            .batch(
                "CREATE TABLE t (id text PRIMARY KEY, n int, v int, tags text[], pad text);
                 ALTER TABLE t ALTER id SET STORAGE EXTERNAL, ALTER tags SET STORAGE EXTERNAL, ALTER pad SET STORAGE PLAIN;
                 INSERT INTO t SELECT repeat(md5(i::text), 65), i, 0, ARRAY[repeat(md5((i * 3)::text), 70), NULL], repeat(md5((i * 7)::text), 20)
                   FROM generate_series(1, 24000) i;
                 DELETE FROM t WHERE n < 8000",
            )
            .await?;
        postgres.batch("VACUUM t").await?;
        let tables = ["public.t"];
        Source::publish(&postgres, &tables).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &tables)?;
        config.copy_connections = Some(1);
        config.file_size = Some("256KiB".to_owned());
        let worker = Worker::spawn(&config)?;
        hold_after_parts(&postgres, &worker, 1, 2).await?;

        // WHEN rows of its end move to its beginning, some with another key, some gone or changed again; and it is killed
        for statements in [
            "UPDATE t SET v = v + 1 WHERE n > 20000 AND n % 3 = 0",
            "UPDATE t SET v = v + 1, id = 'x' || id WHERE n > 20000 AND n % 6 = 0",
            "DELETE FROM t WHERE n > 20000 AND n % 30 = 0; UPDATE t SET v = v + 1 WHERE n > 22000 AND n % 12 = 0",
            "UPDATE t SET tags = tags || ARRAY['more'] WHERE n > 23000 AND n % 9 = 0",
        ] {
            postgres.batch(statements).await?;
        }
        worker.release()?;
        worker.kill().await?;
        postgres.batch("UPDATE t SET v = v + 1 WHERE n > 18000 AND n % 7 = 0").await?;
        let mut worker = Worker::spawn(&config)?;

        // THEN
        worker.streaming(&postgres, 1).await?;
        ensure!(worker.output().contains("the copy goes on"), "it has begun again");
        let oracle = Oracle::new(&postgres);
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        postgres.batch("UPDATE t SET v = v + 1 WHERE n % 11 = 0; DELETE FROM t WHERE n % 13 = 0").await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn columns_that_change_between_two_snapshots_of_a_copy_have_it_begin_again() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a copy whose snapshots may be a moment old, and one that was killed in the middle
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        let tables = ["public.a", "public.b"];
        for table in tables {
            postgres.batch(&roomy(table, 100_000, EVERYWHERE)).await?;
        }
        Source::publish(&postgres, &tables).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &tables)?;
        config.copy_connections = Some(1);
        config.file_size = Some("256KiB".to_owned());
        config.copy = "snapshot_age = \"20ms\"".to_owned();
        let worker = Worker::spawn(&config)?;
        hold_after_parts(&postgres, &worker, 2, 1).await?;
        worker.release()?;
        worker.kill().await?;
        postgres.batch("ALTER TABLE a ADD COLUMN n int DEFAULT 7; ALTER TABLE b DROP COLUMN pad").await?;
        postgres.batch("UPDATE a SET n = id WHERE id % 10 = 0; UPDATE b SET v = 3 WHERE id % 10 = 0").await?;

        // WHEN columns come and go while it goes on
        let mut worker = Worker::spawn(&config)?;
        for round in 0..6 {
            for statement in [
                format!("ALTER TABLE a ADD COLUMN c{round} int; UPDATE a SET c{round} = id, v = v + 1 WHERE id % 100 = {round}"),
                format!("ALTER TABLE b RENAME v TO w{round}; UPDATE b SET w{round} = id WHERE id % 100 = {round}; ALTER TABLE b RENAME w{round} TO v"),
                format!("ALTER TABLE a DROP COLUMN c{round}; UPDATE a SET v = v + 1 WHERE id % 50 = {round}; DELETE FROM b WHERE id % 200 = {round}"),
            ] {
                // Each a transaction of its own.
                for statement in statement.split("; ") {
                    postgres.batch(statement).await?;
                }
            }
        }

        // THEN
        worker.streaming(&postgres, 2).await?;
        let oracle = Oracle::new(&postgres);
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        postgres.batch("UPDATE a SET v = v + 1 WHERE id % 9 = 0; UPDATE b SET v = v + 1 WHERE id % 9 = 0").await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        ensure!(worker.runs()?, "it has ended");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_copy_holds_back_no_more_wal_than_it_may() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a table that streams, and the copy of another, which holds the slot
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch("CREATE TABLE other (id serial PRIMARY KEY, pad text)").await?;
        postgres.batch(&roomy("t", 200_000, EVERYWHERE)).await?;
        let tables = ["public.other", "public.t"];
        Source::publish(&postgres, &tables).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &tables)?;
        config.copy_connections = Some(1);
        config.file_size = Some("256KiB".to_owned());
        config.copy = "held_wal = \"1MiB\"".to_owned();
        let worker = Worker::spawn(&config)?;
        hold_after_parts(&postgres, &worker, 1, 1).await?;
        ensure!(confirmed_before_parts(&postgres).await?, "the slot has passed the copy");
        let from = postgres.value("SELECT min(as_of) FROM lake_catalog.copied_parts").await?;

        // WHEN more is written than may be held
        postgres
            .batch("INSERT INTO other (pad) SELECT repeat(md5(i::text), 50) FROM generate_series(1, 3000) i")
            .await?;
        let begun = Instant::now();
        while !worker.output().contains("holds no more WAL back") {
            ensure!(begun.elapsed() < CATCH_UP, "it keeps holding WAL back");
            worker.release()?;
            tokio::time::sleep(Duration::from_millis(2)).await;
            worker.hold()?;
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        let copying = "SELECT state FROM lake_catalog.mirrored_tables WHERE source_table = 't'";
        ensure!(postgres.value(copying).await? == "copying", "the copy was over before that");
        worker.release()?;

        // THEN the slot goes on, if the copy does not end before
        eventually("the slot passes the copy's beginning", CATCH_UP, async || {
            let sql = format!(
                "SELECT confirmed_flush_lsn > '{from}' FROM pg_replication_slots WHERE slot_name = 'lakemirror'"
            );
            Ok((postgres.value(&sql).await? == "t").then_some(()))
        })
        .await?;
        ensure!(postgres.value("SELECT count(*) FROM lake_catalog.copied_parts").await? == "0", "parts are left");
        // And the copy begins again after a restart, if it is not done.
        worker.kill().await?;
        let mut worker = Worker::spawn(&config)?;
        worker.streaming(&postgres, 2).await?;
        ensure!(!worker.output().contains("the copy goes on"), "it went on");
        Oracle::new(&postgres).assert_equal(&postgres, &tables, CATCH_UP).await?;
        Ok(())
    })
    .await
}
