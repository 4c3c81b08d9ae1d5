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
                 CREATE TABLE filtered (id int PRIMARY KEY, a int);
                 GRANT SELECT ON ALL TABLES IN SCHEMA public TO lakemirror;
                 ALTER PUBLICATION lakemirror SET (publish_via_partition_root = true);
                 ALTER PUBLICATION lakemirror ADD TABLE t, parent, parts, narrow (id, b), filtered WHERE (id > 0)",
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
            ("public.narrow", &["list of columns", "without a list"]),
            ("public.filtered", &["row filter", "without WHERE"]),
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
        // Its inserts go on; an update that names its row by something else stops it, and it alone.
        postgres
            .batch("ALTER TABLE other REPLICA IDENTITY USING INDEX other_u_key; INSERT INTO other VALUES (3, 3)")
            .await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        postgres.batch("UPDATE other SET id = 4 WHERE id = 1").await?;
        eventually("the table is stopped", CATCH_UP, async || {
            let sql = "SELECT error FROM lake_catalog.mirrored_tables WHERE relation = 'other'::regclass
                       AND state = 'errored' AND error LIKE '%replica identity%' AND error_hint <> ''";
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
