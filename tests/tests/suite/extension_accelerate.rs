//! Queries on mirrored tables themselves, answered from the lake while the tables change, are altered and leave the mirror.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lake_tests::bounded;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::TEST_LIMIT;
use crate::extension_mirror::{mirror, server};

pub(crate) async fn rows(client: &Client, sql: &str) -> Result<Vec<Option<String>>> {
    let messages = client.simple_query(sql).await.with_context(|| sql.to_owned())?;
    let mut cells = Vec::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            cells.extend((0..row.len()).map(|index| row.get(index).map(str::to_owned)));
        }
    }
    Ok(cells)
}

/// The heap's answer and the lake's, one behind the other in a session, and whether it was the lake's.
async fn same(client: &Client, sql: &str) -> Result<bool> {
    client.batch_execute("SET lake.accelerate = off").await?;
    let heap = rows(client, sql).await?;
    client.batch_execute("SET lake.accelerate = force").await?;
    let lake = rows(client, sql).await?;
    ensure!(heap == lake, "{sql}: {heap:?} by the heap, {lake:?} accelerated");
    let plan = rows(client, &format!("EXPLAIN ANALYZE {sql}")).await?;
    let plan: Vec<String> = plan.into_iter().flatten().collect();
    Ok(plan.iter().any(|line| line.contains("LakeScan")) && !plan.iter().any(|line| line.contains("Answered By")))
}

#[tokio::test]
async fn queries_on_the_tables_themselves_see_every_change_at_once() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres
            .batch(
                "CREATE TABLE t (id int PRIMARY KEY, v text, n numeric(12,2), at timestamptz, c char(4));
                 INSERT INTO t SELECT i, 'v' || i % 7, i * 1.25, timestamptz '2024-01-01' + i * interval '1 hour', 'c' || i % 3 FROM generate_series(1, 5000) i;
                 CREATE TABLE apart (id int PRIMARY KEY); INSERT INTO apart VALUES (1)",
            )
            .await?;
        mirror(&postgres, &["t"]).await?;
        let client = postgres.client().await?;
        let (totals, groups) = (
            "SELECT count(*), sum(n), avg(n), max(at), count(DISTINCT v) FROM t WHERE id % 3 <> 1",
            "SELECT c, v, count(*), sum(n) FROM t GROUP BY ROLLUP (c, v) ORDER BY c COLLATE \"C\", v COLLATE \"C\"",
        );
        client.batch_execute("SET lake.accelerate = force; PREPARE totals AS SELECT count(*), sum(n) FROM t WHERE id > $1").await?;
        for turn in 0..15 {
            client
                .batch_execute(&format!(
                    "INSERT INTO t SELECT i, 'new', i, now(), 'n' FROM generate_series(10000 + {turn} * 100, 10020 + {turn} * 100) i;
                     UPDATE t SET n = n + 1, v = v || '{turn}' WHERE id % 50 = {turn}; DELETE FROM t WHERE id % 90 = {turn}"
                ))
                .await?;
            ensure!(same(&client, totals).await?, "the heap answered");
            ensure!(same(&client, groups).await?, "the heap answered");
            let prepared = rows(&client, "EXECUTE totals(100)").await?;
            client.batch_execute("SET lake.accelerate = off").await?;
            ensure!(prepared == rows(&client, "SELECT count(*), sum(n) FROM t WHERE id > 100").await?);
        }
        ensure!(!same(&client, "SELECT count(*) FROM t JOIN apart USING (id)").await?, "two snapshots are not one");
        // In the moment of a new column the heap has it and the lake may not.
        client.batch_execute("ALTER TABLE t ADD COLUMN x int; UPDATE t SET x = id WHERE id < 100").await?;
        for _ in 0..20 {
            same(&client, "SELECT sum(x), count(*) FROM t").await?;
        }
        client.batch_execute("TRUNCATE t; INSERT INTO t (id, n) VALUES (1, 1.50)").await?;
        same(&client, totals).await?;
        // Plans of before outlive the mirror.
        client.batch_execute("SELECT lake.unmirror('t'); INSERT INTO t (id, n) VALUES (200, 3)").await?;
        ensure!(rows(&client, "EXECUTE totals(100)").await? == [Some("1".to_owned()), Some("3.00".to_owned())]);
        ensure!(!same(&client, totals).await?, "the mirror is gone");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_cursor_and_a_function_show_the_moment_of_their_statement() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres
            .batch(
                "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 3000) i;
                 CREATE FUNCTION seen() RETURNS bigint STABLE LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT count(*) FROM lake.t); END $$",
            )
            .await?;
        mirror(&postgres, &["t"]).await?;
        let (reader, writer) = (postgres.client().await?, postgres.client().await?);
        // Whole, and by its scan; what comes after it was declared is in neither.
        let fetched = "FETCH ALL FROM c";
        for query in ["SELECT id, v FROM lake.t ORDER BY id", "SELECT id, v FROM lake.t WHERE v ~ '(?i)V' ORDER BY id"] {
            let before = rows(&reader, "SELECT id, v FROM t ORDER BY id").await?;
            reader.batch_execute(&format!("BEGIN; DECLARE c CURSOR FOR {query}")).await?;
            writer.batch_execute("UPDATE t SET v = v || 'x' WHERE id % 2 = 0; DELETE FROM t WHERE id % 7 = 3; INSERT INTO t SELECT max(id) + 1, 'v new' FROM t").await?;
            // Others see it, and the files that the cursor has still to read stay.
            ensure!(rows(&writer, "SELECT count(*) FROM lake.t").await? == rows(&writer, "SELECT count(*) FROM t").await?);
            writer.batch_execute("SELECT lake.wait('t')").await?;
            writer.batch_execute("SELECT lake.compact('t')").await?;
            ensure!(rows(&reader, fetched).await? == before, "{query}: not as of its declaration");
            reader.batch_execute("COMMIT").await?;
            ensure!(rows(&reader, query).await? == rows(&reader, "SELECT id, v FROM t ORDER BY id").await?);
        }
        // A row comes between two calls, by another session.
        let between = async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            Ok(writer.batch_execute("INSERT INTO t SELECT max(id) + 1, 'v' FROM t").await?)
        };
        let asked = rows(&reader, "SELECT seen() AS a, pg_sleep(1.2), seen() AS b");
        let (counts, ()) = tokio::try_join!(asked, between)?;
        ensure!(counts.first() == counts.last(), "two calls in one statement: {counts:?}");
        ensure!(rows(&reader, "SELECT seen()").await? != counts[..1], "the next statement sees it");
        Ok(())
    })
    .await
}
