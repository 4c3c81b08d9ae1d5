//! The standalone worker: tables whose key, replica identity or publication changes under way. What can be followed is
//! followed, and what cannot stops its table, and it alone.

use std::time::Duration;

use anyhow::{Result, ensure};
use lake_tests::{bounded, eventually};

use crate::mirror::Mirror;
use crate::{CATCH_UP, TEST_LIMIT};

#[tokio::test]
async fn a_table_that_leaves_the_publication_and_comes_back_stops_however_quick_it_was() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let schema = "CREATE SCHEMA whole; GRANT USAGE ON SCHEMA whole TO lakemirror;
             CREATE TABLE one (id int PRIMARY KEY, v int); CREATE TABLE fine (id int PRIMARY KEY, v int);
             CREATE TABLE whole.by_schema (id int PRIMARY KEY, v int); GRANT SELECT ON whole.by_schema TO lakemirror;
             CREATE TABLE parts (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
             CREATE TABLE leaf PARTITION OF parts FOR VALUES FROM (0) TO (100); GRANT SELECT ON leaf TO lakemirror;
             ALTER PUBLICATION lakemirror ADD TABLE parts; ALTER PUBLICATION lakemirror ADD TABLES IN SCHEMA whole;
             INSERT INTO one VALUES (1, 0); INSERT INTO fine VALUES (1, 0); INSERT INTO whole.by_schema VALUES (1, 0); INSERT INTO parts VALUES (1, 0);
             GRANT SELECT ON one TO lakemirror; ALTER PUBLICATION lakemirror ADD TABLE one";
        let mut mirror = Mirror::start(schema, &["public.fine"]).await?;
        mirror.kill().await?;
        mirror.tables = vec!["public.one", "public.fine", "whole.by_schema", "public.leaf"];
        mirror.config.tables = mirror.tables.iter().map(|&table| table.to_owned()).collect();
        mirror.spawn()?;
        mirror.streaming().await?;
        // Published in a second way before it leaves by the first, a table has not left.
        let (by_table, by_others) = ("TABLE whole.by_schema, leaf", "TABLES IN SCHEMA whole, TABLE parts");
        for (step, (comes, goes)) in (1..).zip([(by_table, by_others), (by_others, by_table)]) {
            mirror.postgres.batch(&format!("ALTER PUBLICATION lakemirror ADD {comes}")).await?;
            let work = format!("UPDATE whole.by_schema SET v = {step}; UPDATE parts SET v = {step}");
            mirror.after(&work).await?;
            // The engine looks twice a second.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            mirror.postgres.batch(&format!("ALTER PUBLICATION lakemirror DROP {goes}")).await?;
            let rows = mirror.after(&work.replace("v = ", "v = 10 + ")).await?;
            ensure!(rows == 4, "{rows} rows");
        }
        for down in [false, true] {
            if down {
                mirror.kill().await?;
            }
            mirror
                .postgres
                .batch(
                    "ALTER PUBLICATION lakemirror DROP TABLE one; ALTER PUBLICATION lakemirror DROP TABLES IN SCHEMA whole; ALTER TABLE parts DETACH PARTITION leaf;
                     UPDATE one SET v = v + 10; UPDATE whole.by_schema SET v = v + 10; UPDATE leaf SET v = v + 10; UPDATE fine SET v = v + 10;
                     ALTER PUBLICATION lakemirror ADD TABLE one; ALTER PUBLICATION lakemirror ADD TABLES IN SCHEMA whole;
                     ALTER TABLE parts ATTACH PARTITION leaf FOR VALUES FROM (0) TO (100);
                     UPDATE one SET v = v + 1; UPDATE whole.by_schema SET v = v + 1; UPDATE parts SET v = v + 1; UPDATE fine SET v = v + 1",
                )
                .await?;
            if down {
                mirror.spawn()?;
            }
            for table in ["one", "by_schema", "leaf"] {
                let why = mirror.stopped(table).await?;
                ensure!(why.contains("came back") && why.contains("resync"), "{table}: {why}");
            }
            mirror.resync(&["public.one", "whole.by_schema", "public.leaf"]).await?;
            mirror.after("UPDATE one SET v = v + 1; UPDATE whole.by_schema SET v = v + 1; UPDATE parts SET v = v + 1").await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn tables_of_a_publication_that_no_longer_sends_everything_stop() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror =
            Mirror::start("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0)", &["public.t"])
                .await?;
        mirror
            .postgres
            .batch("ALTER PUBLICATION lakemirror SET (publish = 'insert, delete'); UPDATE t SET v = 1")
            .await?;
        let why = mirror.stopped("t").await?;
        ensure!(why.contains("leaves out") && why.contains("resync"), "{why}");
        mirror
            .postgres
            .batch("ALTER PUBLICATION lakemirror SET (publish = 'insert, update, delete, truncate')")
            .await?;
        mirror.resync(&["public.t"]).await?;
        ensure!(mirror.after("UPDATE t SET v = 2").await? == 1);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_key_that_comes_twice_because_its_constraint_is_gone_stops_the_table_or_has_it_copied_anew() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let tables = ["public.in_file", "public.by_update", "public.by_default", "public.null_key", "public.unique_still", "public.fine"];
        let schema: String = ["in_file", "by_update", "by_default", "null_key", "unique_still", "fine"]
            .map(|table| {
                let full = if ["by_default", "fine"].contains(&table) { "DEFAULT" } else { "FULL" };
                format!(
                    "CREATE TABLE {table} (id int CONSTRAINT {table}_key PRIMARY KEY, v int); ALTER TABLE {table} REPLICA IDENTITY {full};
                     INSERT INTO {table} SELECT i, 0 FROM generate_series(1, 10) i;"
                )
            })
            .concat();
        let mut mirror = Mirror::start(&schema, &tables).await?;
        // With its constraint back before anybody could look, and with the twin gone again.
        mirror
            .postgres
            .batch(
                "ALTER TABLE in_file DROP CONSTRAINT in_file_key; INSERT INTO in_file VALUES (1, 1);
                 DELETE FROM in_file WHERE id = 1 AND v = 0; ALTER TABLE in_file ADD PRIMARY KEY (id);
                 ALTER TABLE by_update DROP CONSTRAINT by_update_key; UPDATE by_update SET id = 3 WHERE id = 2;
                 ALTER TABLE by_default DROP CONSTRAINT by_default_key; INSERT INTO by_default VALUES (1, 1);
                 ALTER TABLE null_key DROP CONSTRAINT null_key_key, ALTER id DROP NOT NULL; INSERT INTO null_key VALUES (NULL, 1);
                 ALTER TABLE unique_still DROP CONSTRAINT unique_still_key; INSERT INTO unique_still VALUES (11, 1);
                 UPDATE unique_still SET id = 12 WHERE id = 1; UPDATE unique_still SET v = 3 WHERE id = 12; DELETE FROM unique_still WHERE id = 2;
                 BEGIN; DELETE FROM unique_still WHERE id = 3; INSERT INTO unique_still VALUES (3, 3); COMMIT",
            )
            .await?;
        for table in ["in_file", "by_default"] {
            let why = mirror.stopped(table).await?;
            ensure!(why.contains("came twice") && why.contains("resync"), "{table}: {why}");
        }
        mirror.tables = vec!["public.unique_still", "public.fine"];
        ensure!(mirror.equal().await? == 20);
        // By all of its columns, a row may be there twice: those that have become such tables are copied anew by themselves.
        mirror.tables = vec!["public.by_update", "public.null_key", "public.fine"];
        eventually("tables of another key", CATCH_UP, async || Ok(mirror.equal().await.ok())).await?;

        mirror.call(&["resync", "public.in_file", "public.unique_still"]).await?;
        mirror.tables = vec!["public.in_file", "public.by_update", "public.null_key", "public.unique_still", "public.fine"];
        mirror.streaming().await?;
        mirror
            .after(
                "UPDATE in_file SET v = 5 WHERE id = 1; INSERT INTO by_update VALUES (3, 0), (3, 0); DELETE FROM by_update WHERE ctid =
                 (SELECT ctid FROM by_update WHERE id = 3 LIMIT 1); INSERT INTO null_key VALUES (NULL, 1); DELETE FROM null_key WHERE id = 4;
                 INSERT INTO unique_still VALUES (3, 3), (3, 3)",
            )
            .await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_table_that_changed_its_key_while_the_worker_was_down_is_copied_anew() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let tables = ["public.got_key", "public.lost_key", "public.other_key", "public.same_key", "public.fine"];
        let schema = "CREATE TABLE got_key (id int, v int); ALTER TABLE got_key REPLICA IDENTITY FULL;
             CREATE TABLE lost_key (id int CONSTRAINT lost PRIMARY KEY, v int); ALTER TABLE lost_key REPLICA IDENTITY FULL;
             CREATE TABLE other_key (id int PRIMARY KEY, u int NOT NULL UNIQUE);
             CREATE TABLE same_key (id int CONSTRAINT same PRIMARY KEY, v int); CREATE TABLE fine (id int PRIMARY KEY, v int);
             INSERT INTO got_key VALUES (1, 1), (1, 2), (2, 2); INSERT INTO lost_key VALUES (1, 1), (2, 2); INSERT INTO other_key VALUES (1, 1), (2, 2);
             INSERT INTO same_key VALUES (1, 1), (2, 2); INSERT INTO fine VALUES (1, 1), (2, 2)";
        let mut mirror = Mirror::start(schema, &tables).await?;
        ensure!(mirror.equal().await? == 11);
        mirror.kill().await?;
        mirror
            .postgres
            .batch(
                "DELETE FROM got_key WHERE v = 2 AND id = 1; ALTER TABLE got_key ADD PRIMARY KEY (id); UPDATE got_key SET v = 7;
                 ALTER TABLE lost_key DROP CONSTRAINT lost; INSERT INTO lost_key VALUES (2, 2), (2, 2); DELETE FROM lost_key WHERE ctid = '(0,2)';
                 ALTER TABLE other_key REPLICA IDENTITY USING INDEX other_key_u_key; UPDATE other_key SET u = 3, id = 3 WHERE id = 2;
                 ALTER TABLE same_key DROP CONSTRAINT same; ALTER TABLE same_key ADD PRIMARY KEY (id); UPDATE same_key SET id = 3 WHERE id = 2;
                 UPDATE fine SET v = 3",
            )
            .await?;
        mirror.spawn()?;
        let rows = eventually("all are equal", CATCH_UP, async || Ok(mirror.equal().await.ok())).await?;
        ensure!(rows == 11, "{rows} rows");
        mirror
            .after(
                "UPDATE got_key SET id = 5 WHERE id = 1; DELETE FROM lost_key WHERE ctid = (SELECT max(ctid) FROM lost_key);
                 UPDATE other_key SET u = 9 WHERE id = 1; DELETE FROM other_key WHERE id = 3; UPDATE same_key SET v = 9",
            )
            .await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_replica_identity_that_is_switched_to_and_fro_in_the_middle_of_things_is_followed() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let tables = ["public.t", "public.doc"];
        let schema = "CREATE TABLE t (id int PRIMARY KEY, u int NOT NULL, v int); CREATE UNIQUE INDEX wider ON t (id, u);
             CREATE TABLE doc (id int PRIMARY KEY, u int NOT NULL, big text); ALTER TABLE doc ALTER big SET STORAGE EXTERNAL;
             INSERT INTO t SELECT i, i, 0 FROM generate_series(1, 100) i;
             INSERT INTO doc SELECT i, i, (SELECT string_agg(md5((i * 99 + g)::text), '') FROM generate_series(1, 100) g) FROM generate_series(1, 20) i";
        let mut mirror = Mirror::start(schema, &tables).await?;
        let work = |step: u32| {
            format!(
                "UPDATE t SET v = {step} WHERE id % 3 = 0; UPDATE t SET id = id + 1000, u = u + 1 WHERE id = {step}; DELETE FROM t WHERE id = {};
                 UPDATE doc SET u = u + 100 WHERE id = {step}; UPDATE doc SET id = id + 100 WHERE id = {step};",
                step + 50
            )
        };
        let identity = |of: &str, doc: &str| format!("ALTER TABLE t REPLICA IDENTITY {of}; ALTER TABLE doc REPLICA IDENTITY {doc};");
        // Each in one transaction with work on both sides of the switch, and then all of them.
        let switches = [
            identity("FULL", "FULL"), identity("USING INDEX wider", "DEFAULT"), identity("DEFAULT", "FULL"),
            identity("USING INDEX t_pkey", "USING INDEX doc_pkey"), identity("FULL", "DEFAULT"), identity("DEFAULT", "DEFAULT"),
        ];
        let mut all = "BEGIN;".to_owned();
        for (step, switch) in (1..).zip(&switches) {
            mirror.after(&format!("BEGIN; {} {switch} {} COMMIT", work(step * 2), work(step * 2 + 1))).await?;
            all += &format!("{} {switch} SAVEPOINT s; {} ROLLBACK TO s;", work(20 + step), identity("NOTHING", "NOTHING"));
        }
        mirror.after(&format!("{all} COMMIT")).await?;
        mirror.restart().await?;
        mirror.after(&work(40)).await?;
        Ok(())
    })
    .await
}
