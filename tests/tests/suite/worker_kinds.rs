//! The standalone worker: kinds of source tables. Which are refused, which stop when they become unfit, and how rows are
//! told apart without a key.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker, WorkerConfig, bounded, eventually, exit_code};

use crate::{CATCH_UP, TEST_LIMIT};

/// `check` and `run` refuse the table, and say these words.
async fn refused(postgres: &Postgres, table: &str, wanted: &[&str]) -> Result<()> {
    let config = WorkerConfig::new(postgres, table, &[table])?;
    let check = config.call(&["check"]).await?;
    let checked = format!("{}{}", String::from_utf8_lossy(&check.stdout), String::from_utf8_lossy(&check.stderr));
    ensure!(check.status.code() == Some(exit_code::UNFIT), "check of {table}: {:?}:\n{checked}", check.status);
    let (code, ran) = config.run_to_end(Duration::from_secs(30)).await?;
    ensure!(code == exit_code::UNFIT, "run with {table}: exit code {code}:\n{ran}");
    for said in [checked, ran] {
        for word in wanted.iter().chain(&["hint"]) {
            ensure!(said.contains(word), "{table}: does not say {word:?}:\n{said}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_not_an_ordinary_table_published_whole_is_refused_by_its_kind() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres
            .batch(
                "CREATE TABLE t (id int PRIMARY KEY, a int, b int);
                 CREATE VIEW view AS SELECT * FROM t;
                 CREATE MATERIALIZED VIEW matview AS SELECT * FROM t;
                 CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
                 CREATE SEQUENCE sequence;
                 CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;
                 CREATE FOREIGN TABLE elsewhere (id int) SERVER s;
                 CREATE TABLE parent (id int PRIMARY KEY);
                 CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
                 CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
                 CREATE TABLE leaf PARTITION OF parts FOR VALUES FROM (0) TO (100);
                 CREATE TABLE narrow (id int PRIMARY KEY, a int, b int);
                 CREATE TABLE silent (id int PRIMARY KEY); ALTER TABLE silent REPLICA IDENTITY NOTHING;
                 CREATE TABLE keyless (a int);
                 GRANT SELECT ON ALL TABLES IN SCHEMA public TO lakemirror;
                 ALTER PUBLICATION lakemirror SET (publish_via_partition_root = true);
                 ALTER PUBLICATION lakemirror ADD TABLE t, parent, parts, silent, keyless, narrow (a, b)",
            )
            .await?;
        for (table, wanted) in [
            ("public.view", &["a view", "reads from"][..]),
            ("public.matview", &["a materialized view", "reads from"]),
            ("public.unlogged", &["an unlogged table", "SET LOGGED"]),
            ("public.sequence", &["not a table"]),
            ("public.elsewhere", &["a foreign table"]),
            ("public.parent", &["inheritance children", "mirror the children"]),
            ("public.leaf", &["a partition", "publish_via_partition_root = false"]),
            ("public.narrow", &["key", "not published", "in its list"]),
            ("public.silent", &["REPLICA IDENTITY NOTHING", "DEFAULT", "append_only"]),
            ("public.keyless", &["no primary key", "REPLICA IDENTITY FULL", "append_only"]),
        ] {
            refused(&postgres, table, wanted).await?;
        }
        // The remedies are remedies: an inheritance child, and a partition published under its own name, are mirrored.
        postgres.batch("ALTER PUBLICATION lakemirror SET (publish_via_partition_root = false)").await?;
        refused(
            &postgres,
            "public.parts",
            &["a partitioned table", "publish_via_partition_root = true", "partitions instead"],
        )
        .await?;
        let tables = ["public.child", "public.leaf"];
        let _worker = Worker::start(&WorkerConfig::new(&postgres, "fit", &tables)?, &postgres).await?;
        postgres
            .batch(
                "INSERT INTO child VALUES (1); INSERT INTO parts VALUES (1), (2); UPDATE parts SET id = 3 WHERE id = 2",
            )
            .await?;
        let rows = Oracle::new(&postgres).assert_equal(&postgres, &tables, CATCH_UP).await?;
        ensure!(rows == 3, "{rows} rows");
        // Past the engine's next look at the publication, which has the partition by its root only.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        postgres.batch("INSERT INTO child VALUES (2); INSERT INTO parts VALUES (4)").await?;
        let rows = Oracle::new(&postgres).assert_equal(&postgres, &tables, CATCH_UP).await?;
        ensure!(rows == 5, "{rows} rows");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_table_that_becomes_unfit_while_it_streams_stops_alone() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres
            .batch(
                "CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE heir (id int PRIMARY KEY);
                 CREATE TABLE filter (id int PRIMARY KEY); CREATE TABLE narrow (id int PRIMARY KEY, a int);
                 CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
                 CREATE TABLE leaf PARTITION OF parts FOR VALUES FROM (0) TO (100)",
            )
            .await?;
        let tables = ["public.good", "public.heir", "public.filter", "public.narrow", "public.leaf"];
        Source::publish(&postgres, &tables).await?;
        let mut worker = Worker::start(&WorkerConfig::new(&postgres, "one", &tables)?, &postgres).await?;
        postgres
            .batch(
                "CREATE TABLE child () INHERITS (heir);
                 ALTER PUBLICATION lakemirror ADD TABLE parts;
                 ALTER PUBLICATION lakemirror SET (publish_via_partition_root = true);
                 ALTER PUBLICATION lakemirror SET TABLE good, heir, leaf, parts, narrow (id), filter WHERE (id > 0);
                 INSERT INTO narrow VALUES (1, 1)",
            )
            .await?;
        for (table, word) in
            [("heir", "inheritance"), ("filter", "row filter"), ("leaf", "as those of its root"), ("narrow", "column")]
        {
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
        postgres.batch("INSERT INTO good SELECT generate_series(1, 10)").await?;
        let rows = Oracle::new(&postgres).assert_equal(&postgres, &["public.good"], CATCH_UP).await?;
        ensure!(rows == 10 && worker.runs()?, "{rows} rows");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn equal_rows_of_a_table_without_a_key_go_one_by_one() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        let big = "(SELECT string_agg(md5(g::text), '') FROM generate_series(1, 400) g)";
        postgres
            .batch(&format!(
                "CREATE TABLE t (a int, f float8, n numeric(8,2), big text);
                 ALTER TABLE t REPLICA IDENTITY FULL, ALTER big SET STORAGE EXTERNAL;
                 INSERT INTO t SELECT i % 10, NULL, i % 3, NULL FROM generate_series(1, 300) i;
                 INSERT INTO t VALUES (50, 0, 1, NULL), (50, '-0', 1, NULL), (51, 'NaN', 1.5, {big}), (51, 'NaN', 1.50, {big})"
            ))
            .await?;
        let tables = ["public.t"];
        Source::publish(&postgres, &tables).await?;
        let config = WorkerConfig::new(&postgres, "one", &tables)?;
        let mut worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        let one = |verb: &str, what: &str| {
            format!("{verb} ctid = (SELECT ctid FROM t WHERE {what} ORDER BY ctid DESC LIMIT 1)")
        };
        let (delete, update) = ("DELETE FROM t WHERE", "UPDATE t SET a = a + 100 WHERE");
        for restart in [false, true] {
            for statements in [
                one(delete, "a = 1"),
                one(update, "a = 2"),
                // The zeros are equal in SQL, and two rows all the same.
                one(delete, "f = 0 AND f::text = '-0'"),
                // TOASTed values that the update does not touch, in equal rows.
                one(update, "big IS NOT NULL"),
                "UPDATE t SET n = n + 1 WHERE a = 3; UPDATE t SET n = n - 1 WHERE a = 3".to_owned(),
                "UPDATE t SET a = a WHERE a = 4".to_owned(),
                format!("BEGIN; INSERT INTO t SELECT 7, NULL, 7, NULL FROM generate_series(1, 5); {}; {}; COMMIT",
                    one(delete, "a = 7"), one(delete, "a = 7 AND n = 7")),
                format!("INSERT INTO t VALUES (50, '-0', 1, NULL), (60, NULL, NULL, {big}), (60, NULL, NULL, {big})"),
                "DELETE FROM t WHERE a = 5 OR a = 60".to_owned(),
            ] {
                postgres.batch(&statements).await?;
                oracle.assert_equal(&postgres, &tables, CATCH_UP).await.with_context(|| statements)?;
            }
            if restart {
                worker.kill().await?;
                worker = Worker::start(&config, &postgres).await?;
            }
            // In one batch, of stored and fresh rows together.
            postgres
                .batch("BEGIN; INSERT INTO t SELECT 8, NULL, 2, NULL FROM generate_series(1, 3000); COMMIT;
                        DELETE FROM t WHERE ctid IN (SELECT ctid FROM t WHERE a = 8 LIMIT 1500)")
                .await?;
            oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        }
        worker.kill().await?;
        postgres.batch("DELETE FROM t WHERE ctid IN (SELECT ctid FROM t WHERE a = 8 LIMIT 700)").await?;
        let _worker = Worker::start(&config, &postgres).await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        postgres.batch("BEGIN; INSERT INTO t VALUES (1); TRUNCATE t; INSERT INTO t VALUES (1), (1); COMMIT").await?;
        postgres.batch(&one(delete, "a = 1")).await?;
        let rows = oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        ensure!(rows == 1, "{rows} rows");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_replica_identity_that_changes_is_no_obstacle_while_changes_name_their_row() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres
            .batch(
                "CREATE TABLE t (id int PRIMARY KEY, u int NOT NULL UNIQUE, v int); ALTER TABLE t REPLICA IDENTITY FULL;
                 CREATE TABLE bare (a int); ALTER TABLE bare REPLICA IDENTITY FULL;
                 CREATE TABLE other (id int PRIMARY KEY, u int NOT NULL UNIQUE);
                 INSERT INTO t SELECT i, i, i FROM generate_series(1, 100) i;
                 INSERT INTO bare SELECT 1 FROM generate_series(1, 10); INSERT INTO other VALUES (1, 1), (2, 2)",
            )
            .await?;
        let tables = ["public.t", "public.bare", "public.other"];
        Source::publish(&postgres, &tables).await?;
        let mut worker = Worker::start(&WorkerConfig::new(&postgres, "one", &tables)?, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        for statements in [
            "UPDATE t SET id = id + 1000 WHERE id <= 10; DELETE FROM t WHERE id = 50; UPDATE t SET v = 0 WHERE id = 60",
            "ALTER TABLE t REPLICA IDENTITY DEFAULT; UPDATE t SET v = 7 WHERE id > 90; DELETE FROM t WHERE id = 51",
            "ALTER TABLE t REPLICA IDENTITY NOTHING; INSERT INTO t VALUES (-1, -1, -1)",
            "ALTER TABLE bare REPLICA IDENTITY DEFAULT; INSERT INTO bare VALUES (1)",
            "ALTER TABLE bare REPLICA IDENTITY FULL; DELETE FROM bare WHERE ctid = '(0,1)'",
            "ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET v = 8, id = -2 WHERE id = -1",
        ] {
            postgres.batch(statements).await?;
            oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context(statements)?;
        }
        // Its inserts go on; an update that names its row by another key has it copied anew, and it alone.
        postgres
            .batch("ALTER TABLE other REPLICA IDENTITY USING INDEX other_u_key; INSERT INTO other VALUES (3, 3)")
            .await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        postgres.batch("UPDATE other SET id = 4 WHERE id = 1").await?;
        eventually("the table is copied by its new key", CATCH_UP, async || {
            Ok(oracle.assert_equal(&postgres, &["public.other"], CATCH_UP).await.ok())
        })
        .await?;
        postgres.batch("UPDATE other SET id = 1 WHERE u = 1").await?;
        oracle.assert_equal(&postgres, &["public.other"], CATCH_UP).await?;
        // By no key at all it stops, when a change needs one.
        postgres
            .batch("ALTER TABLE other DROP CONSTRAINT other_pkey, DROP CONSTRAINT other_u_key; INSERT INTO other VALUES (3, 3)")
            .await?;
        eventually("the table is stopped", CATCH_UP, async || {
            let sql = "SELECT error FROM lake_catalog.mirrored_tables WHERE relation = 'other'::regclass
                       AND state = 'errored' AND error_hint <> ''";
            Ok((!postgres.rows(sql).await?.is_empty()).then_some(()))
        })
        .await?;
        postgres.batch("INSERT INTO t VALUES (-3, -3, -3)").await?;
        oracle.assert_equal(&postgres, &["public.t", "public.bare"], CATCH_UP).await?;
        ensure!(worker.runs()?, "the worker has ended");
        Ok(())
    })
    .await
}

/// Waits until the table has stopped; why, and the hint.
async fn stopped(postgres: &Postgres, table: &str) -> Result<String> {
    let sql = format!(
        "SELECT error || ' hint: ' || error_hint FROM lake_catalog.mirrored_tables
         WHERE source_table = '{table}' AND state = 'errored'"
    );
    eventually(&format!("{table} is stopped"), CATCH_UP, async || {
        Ok(postgres.rows(&sql).await?.into_iter().flatten().flatten().next())
    })
    .await
}

#[tokio::test]
async fn a_table_without_a_key_is_mirrored_append_only_when_that_is_asked_for() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres
            .batch(
                "CREATE TABLE log (at timestamptz, line text); CREATE TABLE silent (id int PRIMARY KEY, v text);
                 CREATE TABLE keyed (id int PRIMARY KEY, v text); ALTER TABLE silent REPLICA IDENTITY NOTHING;
                 INSERT INTO log SELECT to_timestamp(i % 10), NULL FROM generate_series(1, 2000) i; INSERT INTO silent VALUES (1, 'a');
                 INSERT INTO keyed SELECT i, 'v' FROM generate_series(1, 100) i",
            )
            .await?;
        let all = ["public.log", "public.silent", "public.keyed"];
        Source::publish(&postgres, &all).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.keyed"])?;
        config.append_only = vec!["public.log".to_owned(), "public.silent".to_owned()];
        config.max_bytes = "64KiB".to_owned();
        let check = config.call(&["check"]).await?;
        let said = String::from_utf8_lossy(&check.stdout).into_owned();
        ensure!(check.status.success() && said.contains("warning: public.log is mirrored append-only"), "{said}");
        let mut worker = Worker::start(&config, &postgres).await?;
        ensure!(worker.output().contains("public.silent is mirrored append-only"), "no warning: {}", worker.output());
        let oracle = Oracle::new(&postgres);
        let refusal = postgres.batch("UPDATE log SET line = 'x'").await;
        ensure!(format!("{:?}", refusal.err()).contains("replica identity"), "Postgres lets it be updated");
        for restart in [false, true] {
            for statements in [
                "INSERT INTO log VALUES (now(), 'equal'), (now(), 'equal'); INSERT INTO silent SELECT max(id) + 1, 'b' FROM silent",
                // More than fits in memory.
                "INSERT INTO log SELECT now(), repeat('x', 100) || i FROM generate_series(1, 5000) i",
                "BEGIN; INSERT INTO log VALUES (NULL, 'before'); TRUNCATE log; INSERT INTO log VALUES (NULL, NULL), (NULL, 'after'); COMMIT",
                // A table with a key whose identity is taken away goes on with its inserts.
                "ALTER TABLE keyed REPLICA IDENTITY NOTHING; INSERT INTO keyed SELECT max(id) + 1, 'w' FROM keyed",
            ] {
                postgres.batch(statements).await?;
                oracle.assert_equal(&postgres, &all, CATCH_UP).await.context(statements)?;
            }
            if !restart {
                worker.kill().await?;
                postgres.batch("INSERT INTO log VALUES (NULL, 'while it is down'); INSERT INTO keyed VALUES (1000, 'w')").await?;
                worker = Worker::start(&config, &postgres).await?;
            }
        }
        postgres.batch("ALTER TABLE keyed REPLICA IDENTITY DEFAULT; UPDATE keyed SET v = 'known' WHERE id > 90").await?;
        oracle.assert_equal(&postgres, &all, CATCH_UP).await?;
        // Somebody makes an update possible.
        postgres.batch("ALTER TABLE log REPLICA IDENTITY FULL; UPDATE log SET line = 'changed'").await?;
        let why = stopped(&postgres, "log").await?;
        ensure!(why.contains("append-only") && why.contains("`tables` instead"), "{why}");
        postgres.batch("INSERT INTO silent VALUES (-1, 'on')").await?;
        oracle.assert_equal(&postgres, &all[1..], CATCH_UP).await?;
        // The remedy.
        config.append_only.remove(0);
        config.tables.push("public.log".to_owned());
        let mirror = config.call(&["mirror"]).await?;
        ensure!(mirror.status.success(), "{mirror:?}");
        worker.streaming(&postgres, 3).await?;
        postgres.batch("UPDATE log SET line = 'again' WHERE line IS NOT NULL").await?;
        oracle.assert_equal(&postgres, &all, CATCH_UP).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_table_that_is_published_in_part_is_mirrored_in_part() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        let big = "(SELECT string_agg(md5((g * i)::text), '') FROM generate_series(1, 300) g)";
        postgres
            .batch(&format!(
                "CREATE TABLE narrow (gone int, secret point, id int PRIMARY KEY, a text, b numeric); ALTER TABLE narrow DROP COLUMN gone;
                 INSERT INTO narrow SELECT NULL, i, 'a' || i, i FROM generate_series(1, 50) i;
                 CREATE TABLE filtered (id int PRIMARY KEY, \"Shown\" bool, big text); ALTER TABLE filtered REPLICA IDENTITY FULL;
                 INSERT INTO filtered SELECT i, i % 3 > 0, {big} FROM generate_series(1, 50) i;
                 CREATE TABLE both_parts (id int PRIMARY KEY, a text, b text);
                 INSERT INTO both_parts SELECT i, 'a' || i, {big} FROM generate_series(1, 50) i;
                 CREATE TABLE parts (id int PRIMARY KEY, a text, b text) PARTITION BY RANGE (id);
                 CREATE TABLE odd_part (b text, a text, id int NOT NULL);
                 ALTER TABLE parts ATTACH PARTITION odd_part FOR VALUES FROM (0) TO (100);
                 CREATE TABLE part PARTITION OF parts DEFAULT; INSERT INTO parts SELECT i * 7, 'a', 'b' FROM generate_series(1, 50) i;
                 CREATE TABLE whole (id int PRIMARY KEY);
                 GRANT SELECT ON ALL TABLES IN SCHEMA public TO lakemirror;
                 ALTER PUBLICATION lakemirror SET (publish_via_partition_root = true);
                 ALTER PUBLICATION lakemirror ADD TABLE narrow (id, a), filtered WHERE (\"Shown\"), whole,
                    both_parts (id, b) WHERE (id > 10 AND id % 2 = 0), parts (id, b) WHERE (id <> 21 AND id < 200)"
            ))
            .await?;
        let parts = [
            ("public.narrow", "SELECT id, a FROM narrow"),
            ("public.filtered", "SELECT * FROM filtered WHERE \"Shown\""),
            ("public.both_parts", "SELECT id, b FROM both_parts WHERE id > 10 AND id % 2 = 0"),
            ("public.parts", "SELECT id, b FROM parts WHERE id <> 21 AND id < 200"),
            ("public.whole", "TABLE whole"),
        ];
        let tables = parts.map(|(table, _)| table);
        let config = WorkerConfig::new(&postgres, "one", &tables)?;
        let mut worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        let rows = oracle.assert_equal_to(&postgres, &parts, CATCH_UP).await?;
        ensure!(rows == 50 + 34 + 20 + 27, "{rows} rows");
        for statements in [
            "UPDATE narrow SET b = -b; UPDATE narrow SET a = NULL WHERE id < 10; DELETE FROM narrow WHERE id > 40;
             INSERT INTO narrow (id, a) VALUES (100, 'new'); UPDATE narrow SET id = id + 1000 WHERE id % 10 = 0",
            // Rows come into the filter, with values that the update does not touch, and leave it.
            "UPDATE filtered SET \"Shown\" = NOT \"Shown\" WHERE id % 2 = 0; DELETE FROM filtered WHERE id % 5 = 0;
             INSERT INTO filtered VALUES (100, true, 'in'), (101, false, 'out'), (102, NULL, 'out'); UPDATE filtered SET id = -id WHERE id > 45",
            "UPDATE both_parts SET b = 'short' WHERE id < 30; UPDATE both_parts SET id = id + 101 WHERE id BETWEEN 25 AND 28;
             UPDATE both_parts SET id = 12345678 WHERE id = 13; UPDATE both_parts SET a = 'unseen'; DELETE FROM both_parts WHERE id = 20",
            "DELETE FROM parts WHERE id = 21; UPDATE parts SET id = 21 WHERE id = 14; UPDATE parts SET id = 1 WHERE id = 21; UPDATE parts SET id = 199 WHERE id = 350;
             UPDATE parts SET id = id + 100 WHERE id BETWEEN 40 AND 60; UPDATE parts SET a = 'unseen', b = b || id; DELETE FROM parts WHERE id > 180",
            "BEGIN; INSERT INTO parts VALUES (2, 'a', 'b'); TRUNCATE filtered, narrow; INSERT INTO filtered VALUES (1, true, 'x'), (2, false, 'y'); COMMIT",
        ] {
            postgres.batch(statements).await?;
            oracle.assert_equal_to(&postgres, &parts, CATCH_UP).await.context(statements)?;
        }
        // A value that the source does not send is not made up.
        postgres.batch("UPDATE both_parts SET id = 40000 WHERE id = 41").await?;
        let why = stopped(&postgres, "both_parts").await?;
        ensure!(why.contains("TOASTed") && why.contains("REPLICA IDENTITY FULL"), "{why}");
        // What is published changes, while the worker runs and while it is down; one is put back as it was.
        postgres.batch("ALTER PUBLICATION lakemirror SET TABLE narrow (id, a, b), filtered WHERE (\"Shown\"), both_parts, parts (id, b) WHERE (id <> 21 AND id < 200), whole").await?;
        let why = stopped(&postgres, "narrow").await?;
        ensure!(why.contains("column"), "{why}");
        worker.kill().await?;
        postgres
            .batch(
                "ALTER PUBLICATION lakemirror DROP TABLE whole, filtered; INSERT INTO whole VALUES (1);
                 ALTER PUBLICATION lakemirror ADD TABLE whole, filtered WHERE (id > 1 AND \"Shown\")",
            )
            .await?;
        worker = Worker::spawn(&config)?;
        for (table, word) in [("whole", "came back"), ("filtered", "row filter")] {
            let why = stopped(&postgres, table).await?;
            ensure!(why.contains(word) && why.contains("resync"), "{why}");
        }
        let names: Vec<&str> = std::iter::once("resync").chain(tables.into_iter().filter(|name| *name != "public.narrow")).collect();
        let resync = config.call(&names).await?;
        ensure!(resync.status.success(), "{resync:?}");
        worker.streaming(&postgres, 4).await?;
        postgres.batch("UPDATE filtered SET \"Shown\" = true; INSERT INTO whole VALUES (2); UPDATE both_parts SET a = 'seen'").await?;
        let parts = [
            ("public.filtered", "SELECT * FROM filtered WHERE \"Shown\" AND id > 1"),
            ("public.both_parts", "TABLE both_parts"),
            parts[3],
            parts[4],
        ];
        oracle.assert_equal_to(&postgres, &parts, CATCH_UP).await?;
        Ok(())
    })
    .await
}
