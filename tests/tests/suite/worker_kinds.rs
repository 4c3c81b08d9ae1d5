//! The standalone worker: kinds of source tables, which it refuses, and which are stopped when they become unfit.

use std::time::Duration;

use anyhow::{Result, ensure};
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
            ("public.parts", &["a partitioned table", "partitions instead"]),
            ("public.leaf", &["a partition", "publish_via_partition_root = false"]),
            ("public.narrow", &["list of columns", "without a list"]),
            ("public.filtered", &["row filter", "without WHERE"]),
        ] {
            refused(&postgres, table, wanted).await?;
        }
        // The remedies are remedies: an inheritance child, and a partition published under its own name, are mirrored.
        postgres.batch("ALTER PUBLICATION lakemirror SET (publish_via_partition_root = false)").await?;
        let tables = ["public.child", "public.leaf"];
        let _worker = Worker::start(&WorkerConfig::new(&postgres, "fit", &tables)?, &postgres).await?;
        postgres
            .batch(
                "INSERT INTO child VALUES (1); INSERT INTO parts VALUES (1), (2); UPDATE parts SET id = 3 WHERE id = 2",
            )
            .await?;
        let rows = Oracle::new(&postgres).assert_equal(&postgres, &tables, CATCH_UP).await?;
        ensure!(rows == 3, "{rows} rows");
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
