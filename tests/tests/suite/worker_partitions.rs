//! The standalone worker: a partitioned table as one table of the lake, whatever becomes of its partitions.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker, WorkerConfig, bounded, eventually, exit_code};

use crate::{CATCH_UP, TEST_LIMIT};

/// Partitions of a table of events: by range, one of them by list of its own, with its columns in another order and after a
/// dropped one, an empty one, and one for the rest.
const EVENTS: &str = "
    CREATE TABLE events (id int, kind text NOT NULL, v text, big text DEFAULT 'none', PRIMARY KEY (id, kind)) PARTITION BY RANGE (id);
    CREATE TABLE events_0 PARTITION OF events FOR VALUES FROM (0) TO (100);
    CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (100) TO (200) PARTITION BY LIST (kind);
    CREATE TABLE events_1a PARTITION OF events_1 FOR VALUES IN ('a');
    CREATE TABLE events_1rest PARTITION OF events_1 DEFAULT;
    CREATE TABLE odd (big text, gone int, kind text NOT NULL, v text, id int NOT NULL);
    ALTER TABLE odd DROP COLUMN gone, ALTER COLUMN big SET DEFAULT 'none';
    INSERT INTO odd (id, kind, v) SELECT i, 'abc'::char(1), 'odd ' || i FROM generate_series(200, 260) i;
    ALTER TABLE events ATTACH PARTITION odd FOR VALUES FROM (200) TO (300);
    CREATE TABLE events_empty PARTITION OF events FOR VALUES FROM (300) TO (400);
    CREATE TABLE events_rest PARTITION OF events DEFAULT;
    INSERT INTO events (id, kind, v) SELECT i, CASE i % 3 WHEN 0 THEN 'a' WHEN 1 THEN 'b' ELSE 'c' END, 'v' || i
        FROM generate_series(0, 199) i;
    INSERT INTO events (id, kind, big)
        SELECT i, 'a', (SELECT string_agg(md5((g * i)::text), '') FROM generate_series(1, 300) g) FROM generate_series(1000, 1010) i";

/// A server with these tables, published by their roots.
async fn source(sql: &str, tables: &[&str]) -> Result<Postgres> {
    let postgres = Postgres::builder().start().await?;
    Source::prepare(&postgres).await?;
    postgres.batch(sql).await?;
    Source::publish(&postgres, tables).await?;
    postgres
        .batch(
            "ALTER PUBLICATION lakemirror SET (publish_via_partition_root = true);
             GRANT SELECT ON ALL TABLES IN SCHEMA public TO lakemirror;
             ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO lakemirror",
        )
        .await?;
    Ok(postgres)
}

/// Waits until the lake is past everything, and no table is being copied any more.
async fn followed(postgres: &Postgres, worker: &mut Worker, tables: &[&str]) -> Result<()> {
    Oracle::new(postgres).caught_up(postgres, CATCH_UP).await?;
    worker.streaming(postgres, tables.len()).await
}

/// The same, and then compares.
async fn settled(postgres: &Postgres, worker: &mut Worker, tables: &[&str]) -> Result<u64> {
    followed(postgres, worker, tables).await?;
    Oracle::new(postgres).assert_equal(postgres, tables, CATCH_UP).await
}

fn copied_anew(worker: &Worker) -> usize {
    worker.output().matches("copied anew").count()
}

#[tokio::test]
async fn the_rows_of_all_partitions_are_one_table() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let sql = format!(
            "{EVENTS};
             CREATE TABLE notes (id int PRIMARY KEY, event int, kind text, FOREIGN KEY (event, kind) REFERENCES events (id, kind));
             INSERT INTO notes VALUES (1, 0, 'a'), (2, 3, 'a');
             CREATE TABLE none (id int PRIMARY KEY) PARTITION BY RANGE (id)"
        );
        let tables = ["public.events", "public.notes", "public.none"];
        let postgres = source(&sql, &tables).await?;
        let mut worker = Worker::start(&WorkerConfig::new(&postgres, "one", &tables)?, &postgres).await?;
        let rows = settled(&postgres, &mut worker, &tables).await?;
        ensure!(rows == 200 + 61 + 11 + 2, "{rows} rows");
        for statements in [
            "INSERT INTO events VALUES (50000, 'z', 'rest'), (350, 'a', 'was empty'), (299, 'q', 'odd'); INSERT INTO events_0 VALUES (7, 'z', 'by name');
             UPDATE events SET v = v || '!' WHERE id % 5 = 0; UPDATE odd SET v = NULL WHERE id < 210; DELETE FROM events WHERE id % 7 = 1",
            // From partition to partition, there and back, and by the inner key.
            "BEGIN; UPDATE events SET id = id + 250 WHERE id BETWEEN 20 AND 30; UPDATE events SET id = id - 250, v = 'back' WHERE id BETWEEN 272 AND 274
                AND v LIKE 'v%'; UPDATE events SET kind = 'a' WHERE kind = 'b' AND id BETWEEN 110 AND 150; COMMIT",
            // Values that are stored out of line, and do not come with the update.
            "UPDATE events SET v = 'touched' WHERE id BETWEEN 1000 AND 1004; UPDATE events SET id = id + 200 WHERE id = 1005",
        ] {
            postgres.batch(statements).await?;
            settled(&postgres, &mut worker, &tables).await.context(statements)?;
        }
        ensure!(copied_anew(&worker) == 0, "copied anew");
        // TRUNCATE of the root, with rows before and after it, alone and with what refers to it.
        for statements in [
            "BEGIN; INSERT INTO events VALUES (70000, 'z', 'before'); TRUNCATE events CASCADE;
             INSERT INTO events VALUES (1, 'z', 'after'), (150, 'a', 'after'); INSERT INTO notes VALUES (1, 1, 'z'); COMMIT;
             INSERT INTO events VALUES (70000, 'z', 'later'); UPDATE events SET v = 'more' WHERE id = 1",
            "TRUNCATE events CASCADE",
        ] {
            postgres.batch(statements).await?;
            settled(&postgres, &mut worker, &tables).await.context(statements)?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn equal_rows_of_a_partitioned_table_without_a_key_go_one_by_one() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let sql = "
            CREATE TABLE bare (a int, b text) PARTITION BY HASH (a); ALTER TABLE bare REPLICA IDENTITY FULL;
            CREATE TABLE bare_0 PARTITION OF bare FOR VALUES WITH (MODULUS 2, REMAINDER 0);
            CREATE TABLE bare_1 PARTITION OF bare FOR VALUES WITH (MODULUS 2, REMAINDER 1);
            ALTER TABLE bare_0 REPLICA IDENTITY FULL; ALTER TABLE bare_1 REPLICA IDENTITY FULL;
            INSERT INTO bare SELECT i % 7, 'x' FROM generate_series(1, 100) i";
        let tables = ["public.bare"];
        let postgres = source(sql, &tables).await?;
        let mut worker = Worker::start(&WorkerConfig::new(&postgres, "one", &tables)?, &postgres).await?;
        for (statements, copy) in [
            (
                "DELETE FROM bare WHERE ctid = (SELECT min(ctid) FROM bare_0) AND tableoid = 'bare_0'::regclass;
                 UPDATE bare SET b = 'y' WHERE a = 3; UPDATE bare SET a = a + 1 WHERE a = 4 AND b = 'x'",
                false,
            ),
            (
                "BEGIN; INSERT INTO bare VALUES (1, 'before'); TRUNCATE bare; INSERT INTO bare SELECT i % 20, 'z' FROM generate_series(1, 40) i; COMMIT",
                true,
            ),
            ("ALTER TABLE bare DETACH PARTITION bare_1 CONCURRENTLY", true),
            // One without a replica identity, whose rows Postgres lets nobody change.
            (
                "CREATE TABLE bare_2 PARTITION OF bare FOR VALUES WITH (MODULUS 2, REMAINDER 1);
                 INSERT INTO bare SELECT i, 'new' FROM generate_series(1, 20) i",
                false,
            ),
        ] {
            let before = copied_anew(&worker);
            postgres.batch(statements).await?;
            settled(&postgres, &mut worker, &tables).await.context(statements)?;
            ensure!((copied_anew(&worker) > before) == copy, "copied anew: {statements}");
        }
        ensure!(postgres.batch("DELETE FROM bare_2").await.is_err(), "Postgres lets its rows be deleted");
        Ok(())
    })
    .await
}

/// What happens to the partitions, and whether the table must be copied anew for it. Each leaves the table larger or smaller.
const CHANGES: &[(&str, bool)] = &[
    ("CREATE TABLE day_1 PARTITION OF events FOR VALUES FROM (400) TO (500)", false),
    ("INSERT INTO events SELECT i, 'n', 'new' FROM generate_series(410, 420) i; UPDATE events SET v = 'x' WHERE id = 411", false),
    (
        "BEGIN; CREATE TABLE day_2 PARTITION OF events FOR VALUES FROM (500) TO (600) PARTITION BY LIST (kind);
         CREATE TABLE day_2a PARTITION OF day_2 FOR VALUES IN ('a'); INSERT INTO events VALUES (501, 'a', 'at once'); COMMIT;
         UPDATE events SET v = 'twice' WHERE id = 501",
        false,
    ),
    // As partition managers do it.
    (
        "CREATE TABLE day_3 (LIKE events INCLUDING ALL); ALTER TABLE events ATTACH PARTITION day_3 FOR VALUES FROM (600) TO (700)",
        false,
    ),
    ("INSERT INTO events VALUES (601, 'a', 'v')", false),
    (
        "CREATE TABLE day_4 (LIKE events INCLUDING ALL); INSERT INTO day_4 SELECT i, 'a', 'there' FROM generate_series(700, 720) i;
         ALTER TABLE events ATTACH PARTITION day_4 FOR VALUES FROM (700) TO (800);
         UPDATE events SET v = 'changed' WHERE id BETWEEN 705 AND 710; DELETE FROM events WHERE id = 720",
        true,
    ),
    (
        "BEGIN; CREATE TABLE day_5 (LIKE events INCLUDING ALL); INSERT INTO day_5 SELECT i, 'a', 'there' FROM generate_series(800, 820) i;
         ALTER TABLE events ATTACH PARTITION day_5 FOR VALUES FROM (800) TO (900); COMMIT",
        true,
    ),
    ("TRUNCATE day_4", true),
    ("TRUNCATE day_5; INSERT INTO events VALUES (801, 'a', 'same key'), (802, 'a', 'too')", true),
    (
        "BEGIN; INSERT INTO events VALUES (803, 'a', 'twice'); TRUNCATE day_5; INSERT INTO events VALUES (803, 'a', 'in one transaction'); COMMIT",
        true,
    ),
    ("ALTER TABLE events DETACH PARTITION day_1", true),
    (
        "ALTER TABLE events DETACH PARTITION day_5; DELETE FROM day_5 WHERE id = 801; INSERT INTO day_5 VALUES (890, 'x', 'unseen');
         ALTER TABLE events ATTACH PARTITION day_5 FOR VALUES FROM (800) TO (900)",
        true,
    ),
    // It came and went, and in between its rows did.
    (
        "CREATE TABLE day_6 PARTITION OF events FOR VALUES FROM (400) TO (500); INSERT INTO events VALUES (440, 'a', 'short-lived');
         DROP TABLE day_6",
        true,
    ),
    (
        "CREATE TABLE day_7 (LIKE events INCLUDING ALL) PARTITION BY LIST (kind); CREATE TABLE day_7a PARTITION OF day_7 FOR VALUES IN ('a');
         INSERT INTO day_7 VALUES (401, 'a', 'there'); ALTER TABLE events ATTACH PARTITION day_7 FOR VALUES FROM (400) TO (500)",
        true,
    ),
    ("DROP TABLE day_2a", true),
    ("DROP TABLE day_5; INSERT INTO events VALUES (0, 'new', 'last')", true),
];

#[tokio::test]
async fn what_happens_to_partitions_while_the_worker_runs_is_followed() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let tables = ["public.events", "public.other"];
        let postgres = source(&format!("{EVENTS}; CREATE TABLE other (id int PRIMARY KEY)"), &tables).await?;
        let mut worker = Worker::start(&WorkerConfig::new(&postgres, "one", &tables)?, &postgres).await?;
        let mut copies = 0;
        for (at, (statements, copy)) in CHANGES.iter().enumerate() {
            postgres.batch(statements).await?;
            postgres.batch(&format!("INSERT INTO other VALUES ({at})")).await?;
            followed(&postgres, &mut worker, &tables).await.context(*statements)?;
            // A change and the rows that come with it may be noticed one after the other.
            let now = copied_anew(&worker);
            ensure!((now > copies) == *copy, "copied anew {} times: {statements}", now - copies);
            copies = now;
            if !copy {
                Oracle::new(&postgres).assert_equal(&postgres, &tables, CATCH_UP).await.context(*statements)?;
            }
        }
        settled(&postgres, &mut worker, &tables).await?;
        ensure!(!worker.output().contains("the table stops"), "a table stopped");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_happened_to_partitions_while_the_worker_was_down_is_noticed() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let tables = ["public.events"];
        let postgres = source(EVENTS, &tables).await?;
        let config = WorkerConfig::new(&postgres, "one", &tables)?;
        let mut worker = Worker::start(&config, &postgres).await?;
        settled(&postgres, &mut worker, &tables).await?;
        let mut copies = 0;
        for (statements, copy) in CHANGES {
            worker.kill().await?;
            postgres.batch(statements).await?;
            worker = Worker::spawn(&config)?;
            followed(&postgres, &mut worker, &tables).await.context(*statements)?;
            if !copy {
                Oracle::new(&postgres).assert_equal(&postgres, &tables, CATCH_UP).await.context(*statements)?;
            }
            let now = copied_anew(&worker);
            ensure!((now > copies) == *copy, "copied anew {} times: {statements}", now - copies);
            copies = now;
        }
        // A registry from before the columns were there: the partitions are not known, so the table is copied.
        worker.kill().await?;
        postgres
            .batch(
                "ALTER TABLE lake_catalog.mirrored_tables
                    DROP COLUMN partitions, DROP COLUMN published_as, DROP COLUMN published_by, DROP COLUMN append_only,
                    DROP COLUMN history, DROP COLUMN layout;
                 ALTER TABLE lake_catalog.mirrors DROP COLUMN pending, DROP COLUMN pending_attempt, DROP COLUMN left_out;
                 TRUNCATE odd",
            )
            .await?;
        worker = Worker::spawn(&config)?;
        settled(&postgres, &mut worker, &tables).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn partitions_may_come_and_go_under_load() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let tables = ["public.events"];
        let postgres = source(EVENTS, &tables).await?;
        let config = WorkerConfig::new(&postgres, "one", &tables)?;
        let mut worker = Worker::start(&config, &postgres).await?;
        let writer = postgres.client().await?;
        let writing = tokio::spawn(async move {
            for round in 0..400 {
                let at = (round * 7919) % 900;
                let sql = format!(
                    "INSERT INTO events SELECT i, 'w', 'round {round}' FROM generate_series({at}, {at} + 20) i ON CONFLICT DO NOTHING;
                     UPDATE events SET v = 'updated {round}', id = (id + 211) % 900 WHERE kind = 'w' AND id % 50 = {at} % 50
                        AND NOT EXISTS (SELECT FROM events e WHERE e.kind = 'w' AND e.id = (events.id + 211) % 900);
                     DELETE FROM events WHERE id % 31 = {round} % 31"
                );
                // A row may have met a partition that was just going, or another that was just moving.
                if let Err(error) = writer.batch_execute(&sql).await
                    && error.as_db_error().is_none()
                {
                    return Err(error);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        });
        // Also while a copy begins.
        let brief = postgres.client().await?;
        let coming_and_going = tokio::spawn(async move {
            for round in 0..100 {
                let create = "CREATE TABLE brief PARTITION OF events FOR VALUES FROM (20000) TO (20010)";
                brief.batch_execute(create).await?;
                brief.batch_execute(&format!("INSERT INTO events VALUES (20001, 'b', '{round}')")).await?;
                brief.batch_execute("DROP TABLE brief").await?;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok::<(), tokio_postgres::Error>(())
        });
        for round in 0..6 {
            postgres
                .batch(&format!(
                    "CREATE TABLE late_{round} (LIKE events INCLUDING ALL);
                     INSERT INTO late_{round} SELECT i, 'l', 'late' FROM generate_series(10000 + {round} * 10, 10009 + {round} * 10) i;
                     ALTER TABLE events ATTACH PARTITION late_{round} FOR VALUES FROM (10000 + {round} * 10) TO (10010 + {round} * 10);
                     TRUNCATE events_1a"
                ))
                .await?;
            tokio::time::sleep(Duration::from_millis(300 * (round % 3))).await;
            postgres
                .batch(&format!("ALTER TABLE events DETACH PARTITION odd; DELETE FROM odd WHERE id % 3 = {round} % 3"))
                .await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
            let attach = "ALTER TABLE events ATTACH PARTITION odd FOR VALUES FROM (200) TO (300)";
            // Not while rows for it are in the partition for the rest.
            postgres.batch(&format!("BEGIN; LOCK TABLE events; DELETE FROM events_rest WHERE id < 300; {attach}; COMMIT")).await?;
            if round % 2 == 1 {
                worker.kill().await?;
                postgres.batch(&format!("DROP TABLE late_{round}")).await?;
                worker = Worker::spawn(&config)?;
            }
        }
        writing.await??;
        coming_and_going.await??;
        settled(&postgres, &mut worker, &tables).await?;
        ensure!(copied_anew(&worker) > 0, "nothing was noticed");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn partitions_that_cannot_be_followed_are_refused_and_stop_the_table_when_they_come() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let part = |table: &str, from: i32| format!("PARTITION OF {table} FOR VALUES FROM ({from}) TO ({})", from + 10);
        let sql = format!(
            "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;
             CREATE TABLE elsewhere (id int NOT NULL) PARTITION BY RANGE (id); ALTER TABLE elsewhere REPLICA IDENTITY FULL;
             CREATE FOREIGN TABLE foreign_one {} SERVER s;
             CREATE TABLE unlogged (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE UNLOGGED TABLE unlogged_one {};
             CREATE TABLE closed (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE closed_one {};
             CREATE TABLE other (id int PRIMARY KEY, u int NOT NULL) PARTITION BY RANGE (id); CREATE TABLE other_one {};
             CREATE UNIQUE INDEX other_u ON other_one (u); ALTER TABLE other_one REPLICA IDENTITY USING INDEX other_u;
             CREATE TABLE keyless (id int) PARTITION BY RANGE (id); CREATE TABLE keyless_one {};
             CREATE TABLE fine (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE fine_one {}",
            part("elsewhere", 0),
            part("unlogged", 0),
            part("closed", 0),
            part("other", 0),
            part("keyless", 0),
            part("fine", 0)
        );
        let all = ["public.elsewhere", "public.unlogged", "public.closed", "public.other", "public.keyless", "public.fine"];
        let postgres = source(&sql, &all[1..]).await?;
        postgres.batch("REVOKE SELECT ON closed_one FROM lakemirror; GRANT SELECT ON elsewhere TO lakemirror").await?;
        for (table, wanted) in [
            ("public.elsewhere", &["foreign_one", "a foreign table", "DETACH"][..]),
            ("public.unlogged", &["unlogged_one", "SET LOGGED"]),
            ("public.closed", &["closed_one", "GRANT SELECT"]),
            ("public.other", &["other_one", "replica identity", "REPLICA IDENTITY DEFAULT"]),
            ("public.keyless", &["no primary key"]),
        ] {
            let check = WorkerConfig::new(&postgres, table, &[table])?.call(&["check"]).await?;
            let said = format!("{}{}", String::from_utf8_lossy(&check.stdout), String::from_utf8_lossy(&check.stderr));
            ensure!(check.status.code() == Some(exit_code::UNFIT), "check of {table}: {:?}:\n{said}", check.status);
            for word in wanted {
                ensure!(said.contains(word), "{table}: does not say {word:?}:\n{said}");
            }
        }
        // The same while it streams: the table stops, with the reason; mended, it comes back.
        let tables = ["public.fine", "public.other"];
        postgres.batch("ALTER TABLE other_one REPLICA IDENTITY DEFAULT").await?;
        let config = WorkerConfig::new(&postgres, "one", &tables)?;
        let mut worker = Worker::start(&config, &postgres).await?;
        postgres
            .batch(&format!(
                "CREATE UNLOGGED TABLE fine_two {}; INSERT INTO fine VALUES (1), (11);
                 ALTER TABLE other_one REPLICA IDENTITY USING INDEX other_u; INSERT INTO other VALUES (1, 1)",
                part("fine", 10)
            ))
            .await?;
        for (table, word) in [("fine", "unlogged"), ("other", "replica identity")] {
            eventually(&format!("{table} is stopped"), CATCH_UP, async || {
                let sql = format!(
                    "SELECT error || ' / ' || error_hint FROM lake_catalog.mirrored_tables
                     WHERE source_table = '{table}' AND state = 'errored'"
                );
                let rows = postgres.rows(&sql).await?;
                let Some(Some(text)) = rows.first().map(|row| row[0].clone()) else { return Ok(None) };
                ensure!(text.contains(word), "{table}: {text}");
                Ok(Some(()))
            })
            .await?;
        }
        postgres.batch("ALTER TABLE fine_two SET LOGGED; ALTER TABLE other_one REPLICA IDENTITY FULL").await?;
        let resync = config.call(&["resync", "public.fine", "public.other"]).await?;
        ensure!(resync.status.success(), "{resync:?}");
        worker.streaming(&postgres, 2).await?;
        postgres.batch("UPDATE other SET u = 7; UPDATE fine SET id = 12 WHERE id = 1").await?;
        let rows = settled(&postgres, &mut worker, &tables).await?;
        ensure!(rows == 3, "{rows} rows");
        // Its changes come under other names from now on.
        postgres.batch("ALTER PUBLICATION lakemirror SET (publish_via_partition_root = false)").await?;
        let sql = "SELECT count(*) FROM lake_catalog.mirrored_tables WHERE error LIKE '%those of its partitions%' AND error_hint <> ''";
        eventually("both are stopped", CATCH_UP, async || Ok((postgres.value(sql).await? == "2").then_some(()))).await
    })
    .await
}
