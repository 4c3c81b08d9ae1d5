//! The standalone worker: tables whose columns change while it follows them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lake_tests::{Postgres, bounded, eventually};

use crate::mirror::Mirror;
use crate::{CATCH_UP, TEST_LIMIT};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, a text, b varchar(20), n numeric(8,2), m int);
     INSERT INTO t SELECT i, 'a' || i, 'b' || i, i / 4.0, i FROM generate_series(1, 60) i;
     CREATE TABLE fine (id int PRIMARY KEY, v int); INSERT INTO fine VALUES (1, 1)";
const TABLES: [&str; 2] = ["public.t", "public.fine"];

/// Changes that leave the rows that there are as they are; and work behind each, on old rows and new ones.
const FOLLOWED: [(&str, &str); 14] = [
    ("ALTER TABLE t ADD COLUMN c bigint", "INSERT INTO t (id, a, c) VALUES (101, 'x', 7); UPDATE t SET c = id WHERE id % 7 = 0"),
    ("ALTER TABLE t DROP COLUMN b", "INSERT INTO t (id, a) VALUES (102, 'no b'); UPDATE t SET a = 'y' WHERE id = 3"),
    ("ALTER TABLE t ADD COLUMN d text, ADD COLUMN e timestamptz", "INSERT INTO t (id, d, e) VALUES (103, 'd', now()); UPDATE t SET d = 'd' WHERE id % 5 = 0"),
    ("ALTER TABLE t RENAME a TO z", "INSERT INTO t (id, z) VALUES (104, 'z'); UPDATE t SET z = 'zz' WHERE id = 4"),
    // A swap, by a third name.
    (
        "ALTER TABLE t RENAME c TO t3; ALTER TABLE t RENAME m TO c; ALTER TABLE t RENAME t3 TO m",
        "INSERT INTO t (id, c, m) VALUES (105, 1, 6000000000); UPDATE t SET m = 6000000001, c = 2 WHERE id = 5",
    ),
    ("ALTER TABLE t DROP COLUMN d, DROP COLUMN e", "DELETE FROM t WHERE id IN (10, 103); INSERT INTO t (id) VALUES (106)"),
    ("ALTER TABLE t ALTER n TYPE numeric(12,2)", "UPDATE t SET n = 9999999999.99 WHERE id = 7; INSERT INTO t (id, n) VALUES (107, 0.01)"),
    ("ALTER TABLE t ALTER n TYPE numeric(30,2)", "UPDATE t SET n = n * 1000000000000 WHERE id = 7; INSERT INTO t (id, n) VALUES (108, -1)"),
    ("ALTER TABLE t ADD COLUMN v varchar(5)", "UPDATE t SET v = 'vvvvv' WHERE id % 9 = 0"),
    ("ALTER TABLE t ALTER v TYPE varchar(50)", "UPDATE t SET v = repeat('v', 50) WHERE id = 18"),
    ("ALTER TABLE t ALTER v TYPE text", "UPDATE t SET v = repeat('v', 90) WHERE id = 27"),
    ("ALTER TABLE t ALTER m SET DEFAULT 7, ALTER z SET DEFAULT 'z'", "INSERT INTO t (id) VALUES (112)"),
    ("ALTER TABLE t RENAME id TO key", "UPDATE t SET key = -key WHERE key % 11 = 0; DELETE FROM t WHERE key = 8"),
    ("ALTER TABLE t RENAME key TO id", "UPDATE t SET id = -id WHERE id = -22; DELETE FROM t WHERE id = -33"),
];

/// Which Iceberg tables there are: a new copy makes another.
async fn copies(mirror: &Mirror) -> Result<String> {
    let sql = "SELECT string_agg(source_table || ' ' || coalesce(table_uuid::text, '') || ' ' || state, ', ' ORDER BY relation) \
               FROM lake_catalog.mirrored_tables";
    mirror.postgres.value(sql).await
}

/// Waits until the table streams from another copy than this.
async fn copied_anew(mirror: &Mirror, table: &str, before: &str) -> Result<()> {
    eventually(&format!("{table} is copied anew"), CATCH_UP, async || {
        let sql = format!("SELECT coalesce(table_uuid::text, '') || ' ' || state FROM lake_catalog.mirrored_tables WHERE source_table = '{table}'");
        let now = mirror.postgres.value(&sql).await?;
        Ok((now.ends_with(" streaming") && !before.contains(now.split(' ').next().unwrap_or_default())).then_some(()))
    })
    .await
}

#[tokio::test]
async fn changes_that_leave_the_rows_as_they_are_are_followed_in_place() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = Mirror::start(TABLE, &TABLES).await?;
        let before = copies(&mirror).await?;
        for (change, work) in FOLLOWED {
            mirror.after(&format!("{change}; {work}")).await?;
        }
        // What makes another file of the same rows.
        for change in ["VACUUM FULL t", "CLUSTER t USING t_pkey", "ALTER TABLE t ALTER m SET STATISTICS 7"] {
            mirror.postgres.batch(change).await?;
            mirror.after("UPDATE t SET m = m + 1; INSERT INTO fine SELECT max(id) + 1 FROM fine").await?;
        }
        ensure!(copies(&mirror).await? == before, "copied anew: {}, before {before}", copies(&mirror).await?);
        mirror.restart().await?;
        mirror.after("UPDATE t SET m = 1; ALTER TABLE t ADD COLUMN last int; INSERT INTO t (id, last) VALUES (-1, 1)").await?;
        ensure!(copies(&mirror).await? == before, "copied anew after the restart");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn changes_are_followed_that_no_row_follows() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = Mirror::start(TABLE, &TABLES).await?;
        let before = copies(&mirror).await?;
        for (change, _) in FOLLOWED {
            mirror.postgres.batch(change).await?;
            let names = mirror.postgres.value("SELECT string_agg(attname || attnum, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped").await?;
            eventually(&format!("{names} after {change}"), CATCH_UP, async || Ok(mirror.equal().await.ok())).await?;
        }
        // The same name and type, and another column: nothing but its number tells.
        mirror.postgres.batch("ALTER TABLE t DROP COLUMN z, ADD COLUMN z text").await?;
        eventually("another column of the same name", CATCH_UP, async || Ok(mirror.equal().await.ok())).await?;
        mirror.after("UPDATE t SET z = 'new' WHERE id < 20; INSERT INTO t (id, z) VALUES (900, 'z')").await?;
        ensure!(copies(&mirror).await? == before, "copied anew: {}, before {before}", copies(&mirror).await?);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn several_descriptions_in_one_transaction_are_followed_row_by_row() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = Mirror::start(TABLE, &TABLES).await?;
        let before = copies(&mirror).await?;
        mirror
            .after(
                "BEGIN; UPDATE t SET m = 0 WHERE id < 5; ALTER TABLE t ADD COLUMN c int;
                 INSERT INTO t (id, c) VALUES (100, 1); UPDATE t SET c = 2 WHERE id < 7; SAVEPOINT s;
                 ALTER TABLE t ADD COLUMN never int; UPDATE t SET never = 3; ROLLBACK TO s;
                 UPDATE t SET c = 4 WHERE id BETWEEN 5 AND 10; ALTER TABLE t RENAME c TO k; ALTER TABLE t RENAME m TO c;
                 UPDATE t SET c = -1, k = -2 WHERE id BETWEEN 8 AND 12; INSERT INTO t (id, k) VALUES (101, 1); DELETE FROM t WHERE id = 11;
                 ALTER TABLE t ADD COLUMN d text; UPDATE t SET d = 'd' WHERE id BETWEEN 10 AND 20; COMMIT",
            )
            .await?;
        mirror
            .after(
                "BEGIN; UPDATE t SET a = 'x' WHERE id < 5; ALTER TABLE t DROP COLUMN b; UPDATE t SET a = 'y' WHERE id BETWEEN 3 AND 9;
                 INSERT INTO t (id, a) VALUES (102, 'z'); ALTER TABLE t DROP COLUMN d, DROP COLUMN k; UPDATE t SET a = 'w' WHERE id > 90;
                 DELETE FROM t WHERE id = 4; INSERT INTO t (id, a) VALUES (4, 'again'); COMMIT",
            )
            .await?;
        ensure!(copies(&mirror).await? == before, "copied anew: {}, before {before}", copies(&mirror).await?);
        // Where that is not to be told apart it is copied anew, with the same outcome.
        mirror
            .after(
                "BEGIN; ALTER TABLE t ADD COLUMN e int; UPDATE t SET e = 1 WHERE id < 9; ALTER TABLE t DROP COLUMN e, ADD COLUMN e int;
                 UPDATE t SET e = 2 WHERE id < 3; ALTER TABLE t DROP COLUMN e; INSERT INTO t (id) VALUES (103); COMMIT",
            )
            .await?;
        mirror.streaming().await?;
        mirror.equal().await?;
        Ok(())
    })
    .await
}

/// Changes that may change rows which were there before, or that cannot be told apart.
const COPIED: [&str; 10] = [
    "ALTER TABLE t ADD COLUMN c int DEFAULT 5",
    "ALTER TABLE t ADD COLUMN c int DEFAULT 5; ALTER TABLE t ALTER c DROP DEFAULT",
    "ALTER TABLE t ADD COLUMN c float8 DEFAULT random()",
    "ALTER TABLE t ADD COLUMN c serial",
    "ALTER TABLE t ALTER m TYPE int USING m + 1",
    "ALTER TABLE t ALTER m TYPE bigint",
    "ALTER TABLE t ALTER a TYPE varchar(70) USING a || 'x'",
    "ALTER TABLE t ALTER n TYPE numeric(12,3)",
    "ALTER TABLE t DROP COLUMN a, ADD COLUMN a text",
    "ALTER TABLE t ALTER m TYPE int USING m + 1; VACUUM FULL t",
];

#[tokio::test]
async fn what_cannot_be_followed_is_copied_anew_by_itself() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = Mirror::start(TABLE, &TABLES).await?;
        for change in COPIED {
            let before = copies(&mirror).await?;
            // With rows right behind it.
            mirror.postgres.batch(&format!("{change}; UPDATE t SET n = n + 1 WHERE id < 5; INSERT INTO fine SELECT max(id) + 1 FROM fine")).await?;
            copied_anew(&mirror, "t", &before).await.with_context(|| change.to_owned())?;
            mirror.equal().await.with_context(|| change.to_owned())?;
            let fine = copies(&mirror).await?.split(", ").filter(|table| table.starts_with("fine")).count();
            ensure!(fine == 1, "the other table streams on");
            mirror.postgres.batch("ALTER TABLE t DROP COLUMN IF EXISTS c; DELETE FROM t WHERE id = (SELECT max(id) FROM t)").await?;
            mirror.equal().await.with_context(|| format!("behind {change}"))?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn rows_that_were_computed_anew_are_copied_anew_though_no_row_follows() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = Mirror::start(TABLE, &TABLES).await?;
        for change in ["ALTER TABLE t ALTER m TYPE int USING m + 1", "ALTER TABLE t ADD COLUMN c int DEFAULT 5"] {
            let before = copies(&mirror).await?;
            mirror.postgres.batch(change).await?;
            copied_anew(&mirror, "t", &before).await.with_context(|| change.to_owned())?;
            mirror.equal().await?;
        }
        Ok(())
    })
    .await
}
