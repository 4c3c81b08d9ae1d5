//! The standalone worker: tables whose columns change while it follows them.

use anyhow::{Context, Result, ensure};
use lake_tests::{Postgres, Source, bounded, eventually};

use crate::mirror::Mirror;
use crate::{CATCH_UP, TEST_LIMIT};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, a text, b varchar(20), n numeric(8,2), m int);
     INSERT INTO t SELECT i, 'a' || i, 'b' || i, i / 4.0, i FROM generate_series(1, 60) i;
     CREATE TABLE fine (id int PRIMARY KEY, v int); INSERT INTO fine VALUES (1, 1)";
const TABLES: [&str; 2] = ["public.t", "public.fine"];

/// Changes that leave the rows that there are as they are; and work behind each, on old rows and new ones.
const FOLLOWED: [(&str, &str); 14] = [
    (
        "ALTER TABLE t ADD COLUMN c bigint",
        "INSERT INTO t (id, a, c) VALUES (101, 'x', 7); UPDATE t SET c = id WHERE id % 7 = 0",
    ),
    ("ALTER TABLE t DROP COLUMN b", "INSERT INTO t (id, a) VALUES (102, 'no b'); UPDATE t SET a = 'y' WHERE id = 3"),
    (
        "ALTER TABLE t ADD COLUMN d text, ADD COLUMN e timestamptz",
        "INSERT INTO t (id, d, e) VALUES (103, 'd', now()); UPDATE t SET d = 'd' WHERE id % 5 = 0",
    ),
    ("ALTER TABLE t RENAME a TO z", "INSERT INTO t (id, z) VALUES (104, 'z'); UPDATE t SET z = 'zz' WHERE id = 4"),
    // A swap, by a third name.
    (
        "ALTER TABLE t RENAME c TO t3; ALTER TABLE t RENAME m TO c; ALTER TABLE t RENAME t3 TO m",
        "INSERT INTO t (id, c, m) VALUES (105, 1, 6000000000); UPDATE t SET m = 6000000001, c = 2 WHERE id = 5",
    ),
    (
        "ALTER TABLE t DROP COLUMN d, DROP COLUMN e",
        "DELETE FROM t WHERE id IN (10, 103); INSERT INTO t (id) VALUES (106)",
    ),
    (
        "ALTER TABLE t ALTER n TYPE numeric(12,2)",
        "UPDATE t SET n = 9999999999.99 WHERE id = 7; INSERT INTO t (id, n) VALUES (107, 0.01)",
    ),
    (
        "ALTER TABLE t ALTER n TYPE numeric(30,2)",
        "UPDATE t SET n = n * 1000000000000 WHERE id = 7; INSERT INTO t (id, n) VALUES (108, -1)",
    ),
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

/// The columns that a query of the heap gives, and the rows: for who cannot name them all.
async fn settled(mirror: &mut Mirror, what: &str) -> Result<()> {
    eventually(what, CATCH_UP, async || Ok(mirror.equal().await.ok())).await.map(drop)
}

async fn caught_up(mirror: &Mirror) -> Result<()> {
    mirror.oracle.caught_up(&mirror.postgres, CATCH_UP).await.map(drop)
}

#[tokio::test]
async fn changes_that_leave_the_rows_as_they_are_are_followed_in_place() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = Mirror::start(TABLE, &TABLES).await?;
        let before = copies(&mirror).await?;
        for (step, (change, work)) in FOLLOWED.into_iter().enumerate() {
            mirror.postgres.batch(&format!("{change}; {work}")).await?;
            caught_up(&mirror).await?;
            if step % 4 == 3 {
                mirror.equal().await.with_context(|| change.to_owned())?;
            }
        }
        // What makes another file of the same rows.
        for change in ["VACUUM FULL t", "ALTER TABLE t ALTER m SET STATISTICS 7"] {
            mirror.postgres.batch(change).await?;
            mirror.postgres.batch("UPDATE t SET m = m + 1; INSERT INTO fine SELECT max(id) + 1 FROM fine").await?;
            caught_up(&mirror).await?;
        }
        mirror.equal().await?;
        ensure!(copies(&mirror).await? == before, "copied anew: {}, before {before}", copies(&mirror).await?);
        mirror.restart().await?;
        mirror
            .after("UPDATE t SET m = 1; ALTER TABLE t ADD COLUMN last int; INSERT INTO t (id, last) VALUES (-1, 1)")
            .await?;
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
        for change in [
            "ALTER TABLE t ADD COLUMN c bigint; ALTER TABLE t DROP COLUMN b",
            "ALTER TABLE t RENAME c TO t3; ALTER TABLE t RENAME m TO c; ALTER TABLE t RENAME t3 TO m; ALTER TABLE t ALTER n TYPE numeric(30,2)",
            // The same name and type, and another column: nothing but its number tells.
            "ALTER TABLE t DROP COLUMN a, ADD COLUMN a text",
        ] {
            mirror.postgres.batch(change).await?;
            settled(&mut mirror, change).await?;
        }
        mirror.after("UPDATE t SET a = 'new' WHERE id < 20; INSERT INTO t (id, a) VALUES (900, 'z')").await?;
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
            .postgres
            .batch(
                "BEGIN; ALTER TABLE t ADD COLUMN e int; UPDATE t SET e = 1 WHERE id < 9; ALTER TABLE t DROP COLUMN e, ADD COLUMN e int;
                 UPDATE t SET e = 2 WHERE id < 3; ALTER TABLE t DROP COLUMN e; INSERT INTO t (id) VALUES (103); COMMIT",
            )
            .await?;
        copied_anew(&mirror, "t", &before).await?;
        mirror.equal().await?;
        Ok(())
    })
    .await
}

/// Changes that may change rows which were there before, or that cannot be told apart: each of a table of its own.
const COPIED: [&str; 9] = [
    "ALTER TABLE t ADD COLUMN c int DEFAULT 5; ALTER TABLE t ALTER c DROP DEFAULT",
    "ALTER TABLE t ADD COLUMN c float8 DEFAULT random()",
    "ALTER TABLE t ADD COLUMN c serial",
    "ALTER TABLE t ALTER m TYPE int USING m + 1",
    "ALTER TABLE t ALTER m TYPE bigint",
    "ALTER TABLE t ALTER a TYPE varchar(70) USING a || 'x'",
    "ALTER TABLE t ALTER n TYPE numeric(12,3)",
    "ALTER TABLE t DROP COLUMN m, ADD COLUMN m int",
    "ALTER TABLE t ALTER m TYPE int USING m + 1; CLUSTER t USING t_pkey",
];
const COPIED_TABLES: [&str; 10] = [
    "public.t0",
    "public.t1",
    "public.t2",
    "public.t3",
    "public.t4",
    "public.t5",
    "public.t6",
    "public.t7",
    "public.t8",
    "public.fine",
];

/// The statements for one of them.
fn of(number: usize, statements: &str) -> String {
    statements
        .replace("TABLE t ", &format!("TABLE t{number} "))
        .replace(" t_pkey", &format!(" t{number}_pkey"))
        .replace("CLUSTER t ", &format!("CLUSTER t{number} "))
}

async fn copied_tables() -> Result<Mirror> {
    let mut schema = "CREATE TABLE fine (id int PRIMARY KEY, v int); INSERT INTO fine VALUES (1, 1);".to_owned();
    for number in 0..COPIED.len() {
        schema += &format!(
            "CREATE TABLE t{number} (id int PRIMARY KEY, a text, n numeric(8,2), m int);
             INSERT INTO t{number} SELECT i, 'a' || i, i / 4.0, i FROM generate_series(1, 40) i;"
        );
    }
    Mirror::start(&schema, &COPIED_TABLES).await
}

async fn all_copied_anew(mirror: &mut Mirror, before: &str) -> Result<()> {
    for (number, change) in COPIED.iter().enumerate() {
        copied_anew(mirror, &format!("t{number}"), before).await.with_context(|| (*change).to_owned())?;
    }
    mirror.equal().await?;
    let fine = before.split(", ").find(|table| table.starts_with("fine")).unwrap_or_default();
    ensure!(copies(mirror).await?.contains(fine), "the other table streams on");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_followed_is_copied_anew_by_itself() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = copied_tables().await?;
        let before = copies(&mirror).await?;
        for (number, change) in COPIED.iter().enumerate() {
            let work = format!("UPDATE t{number} SET n = n + 1 WHERE id < 5; INSERT INTO fine VALUES ({number} + 10)");
            mirror.postgres.batch(&format!("{}; {work}", of(number, change))).await?;
        }
        all_copied_anew(&mut mirror, &before).await?;
        // And is followed again.
        for number in 0..COPIED.len() {
            mirror
                .postgres
                .batch(&format!("ALTER TABLE t{number} DROP COLUMN IF EXISTS c; DELETE FROM t{number} WHERE id = 1"))
                .await?;
        }
        mirror.equal().await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn rows_that_were_computed_anew_are_copied_anew_while_nobody_looked_and_though_no_row_follows() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = copied_tables().await?;
        let before = copies(&mirror).await?;
        for (number, change) in COPIED.iter().enumerate().filter(|(number, _)| *number != 7) {
            if number == 4 {
                mirror.kill().await?;
            }
            mirror.postgres.batch(&of(number, change)).await?;
        }
        mirror.spawn()?;
        mirror.postgres.batch(&format!("{}; DELETE FROM t7 WHERE id = 3", of(7, COPIED[7]))).await?;
        all_copied_anew(&mut mirror, &before).await
    })
    .await
}

#[tokio::test]
async fn a_worker_killed_around_a_change_goes_on_from_the_columns_that_were_committed() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = Mirror::start(TABLE, &TABLES).await?;
        let before = copies(&mirror).await?;
        for (step, (change, work)) in FOLLOWED.into_iter().enumerate() {
            match step % 3 {
                // Rows before the change, the change, and rows behind it, all while it is down.
                0 => {
                    mirror.kill().await?;
                    mirror.postgres.batch(&format!("UPDATE t SET n = n + 1 WHERE n < 2; {change}; {work}")).await?;
                    mirror.spawn()?;
                }
                // Killed at once, or a moment later.
                1 => {
                    mirror.postgres.batch(&format!("{change}; {work}")).await?;
                    mirror.restart().await?;
                }
                _ => {
                    mirror
                        .postgres
                        .batch(&format!("BEGIN; UPDATE t SET n = n + 1 WHERE n < 2; {change}; {work}; COMMIT"))
                        .await?;
                    tokio::time::sleep(std::time::Duration::from_millis(150)).await;
                    mirror.restart().await?;
                }
            }
            if step % 5 == 4 {
                mirror.equal().await.with_context(|| change.to_owned())?;
            } else {
                caught_up(&mirror).await?;
            }
        }
        mirror.equal().await?;
        ensure!(copies(&mirror).await? == before, "copied anew: {}, before {before}", copies(&mirror).await?);
        Ok(())
    })
    .await
}

/// A value out of line, another one for every number.
const BIG: &str = "(SELECT string_agg(md5(i::text || g), '') FROM generate_series(1, 120) g)";

#[tokio::test]
async fn values_out_of_line_stay_across_changes_of_columns() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let external = |table: &str| format!("ALTER TABLE {table} ALTER big SET STORAGE EXTERNAL, ALTER also SET STORAGE EXTERNAL");
        let insert = |table: &str, from: u32, to: u32| format!("INSERT INTO {table} (id, big, also, n) SELECT i, {BIG}, {BIG}, 0 FROM generate_series({from}, {to}) i");
        let schema = format!(
            "CREATE TABLE doc (id int PRIMARY KEY, big text, also text, n int); {}; {};
             CREATE TABLE tale (id int PRIMARY KEY, big text, also text, n int); {}; ALTER TABLE tale REPLICA IDENTITY FULL; {}",
            external("doc"),
            insert("doc", 1, 20),
            external("tale"),
            insert("tale", 1, 20)
        );
        let mut mirror = Mirror::start(&schema, &["public.doc", "public.tale"]).await?;
        let before = copies(&mirror).await?;
        for table in ["doc", "tale"] {
            mirror.postgres.batch(&format!("ALTER TABLE {table} ADD COLUMN c int; UPDATE {table} SET c = id WHERE id < 10; UPDATE {table} SET n = 1 WHERE id = 12")).await?;
            caught_up(&mirror).await?;
            // Rows in memory, and in files of all ages; in one transaction with a change.
            mirror
                .postgres
                .batch(&format!(
                    "BEGIN; {}; UPDATE {table} SET n = 2 WHERE id IN (3, 13, 30); ALTER TABLE {table} RENAME also TO other; ALTER TABLE {table} ADD COLUMN d text;
                     UPDATE {table} SET n = 3 WHERE id IN (3, 4, 14, 31); UPDATE {table} SET d = 'd', other = NULL WHERE id IN (5, 15, 32);
                     ALTER TABLE {table} DROP COLUMN other; UPDATE {table} SET n = 4 WHERE id IN (3, 16, 33); UPDATE {table} SET id = -id WHERE id IN (6, 34); COMMIT",
                    insert(table, 30, 40)
                ))
                .await?;
        }
        mirror.equal().await?;
        mirror.restart().await?;
        mirror.after("UPDATE doc SET n = 9 WHERE id % 2 = 0; UPDATE tale SET n = 9 WHERE id % 2 = 0; ALTER TABLE doc ADD COLUMN e int; UPDATE doc SET n = 8").await?;
        let (now, doc) = (copies(&mirror).await?, before.split(", ").next().unwrap_or_default());
        ensure!(doc.starts_with("doc") && now.contains(doc), "copied anew: {now}, before {before}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn large_transactions_that_change_columns_come_while_they_run() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let builder = Postgres::builder().set("logical_decoding_work_mem", "64kB");
        let schema = format!("{TABLE}; INSERT INTO t SELECT i, 'a' || i, 'b', i, i FROM generate_series(1000, 3000) i");
        let mut mirror = Mirror::start_on(builder, &schema, &TABLES).await?;
        let before = copies(&mirror).await?;
        mirror.kill().await?;
        // So that rows leave memory in the middle, too.
        mirror.config.max_bytes = "64KiB".to_owned();
        mirror.spawn()?;
        let (large, other) = (mirror.postgres.client().await?, mirror.postgres.client().await?);
        large
            .batch_execute(
                "BEGIN; UPDATE t SET m = m + 1 WHERE id > 1000; ALTER TABLE t ADD COLUMN c text;
                 UPDATE t SET c = 'c' || id WHERE id > 1500; INSERT INTO t (id, c) SELECT i, 'new' FROM generate_series(4000, 6000) i",
            )
            .await?;
        other.batch_execute("INSERT INTO fine SELECT i FROM generate_series(10, 900) i").await?;
        large
            .batch_execute(
                "SAVEPOINT s; ALTER TABLE t DROP COLUMN a, ADD COLUMN a int; UPDATE t SET a = 1; INSERT INTO t (id, a) SELECT i, 1 FROM generate_series(7000, 9000) i;
                 ROLLBACK TO s; UPDATE t SET a = 'still text' WHERE id % 3 = 0; ALTER TABLE t DROP COLUMN b; UPDATE t SET n = n + 1 WHERE id < 2000;
                 ALTER TABLE t RENAME m TO b; DELETE FROM t WHERE id % 7 = 0; COMMIT; INSERT INTO t (id, b) VALUES (-1, -1)",
            )
            .await?;
        mirror.equal().await?;
        let streamed = mirror.postgres.value("SELECT stream_txns FROM pg_stat_replication_slots WHERE slot_name = 'lakemirror'").await?;
        ensure!(streamed.parse::<u64>()? > 0, "nothing came while it ran");
        ensure!(copies(&mirror).await? == before, "copied anew: {}, before {before}", copies(&mirror).await?);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_table_that_is_altered_while_it_is_copied_is_copied_as_it_is() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = Mirror::start(&format!("{TABLE}; CREATE TABLE late (id int PRIMARY KEY, a text, b int); INSERT INTO late SELECT i, 'a', i FROM generate_series(1, 200) i"), &TABLES).await?;
        // A copy's slot has to wait for a transaction that runs: so the copy lasts as long as the test wants.
        let blocker = mirror.postgres.client().await?;
        blocker.batch_execute("BEGIN; CREATE TABLE elsewhere (x int)").await?;
        Source::publish(&mirror.postgres, &["public.late"]).await?;
        mirror.tables = vec!["public.t", "public.late"];
        mirror.config.tables = mirror.tables.iter().map(|&table| table.to_owned()).collect();
        mirror.call(&["mirror"]).await?;
        eventually("the copy waits for its slot", CATCH_UP, async || {
            let sql = "SELECT count(*) > 0 FROM lake_catalog.mirrored_tables WHERE state = 'copying'";
            Ok((mirror.postgres.value(sql).await? == "t").then_some(()))
        })
        .await?;
        mirror.postgres.batch("UPDATE late SET a = 'x' WHERE id < 5; ALTER TABLE late ADD COLUMN c int; UPDATE late SET c = id WHERE id < 9").await?;
        mirror.postgres.batch("ALTER TABLE late RENAME b TO d; UPDATE late SET d = 0 WHERE id = 10; ALTER TABLE late DROP COLUMN a; DELETE FROM late WHERE id = 11").await?;
        blocker.batch_execute("COMMIT").await?;
        mirror.postgres.batch("ALTER TABLE late ADD COLUMN e text; UPDATE late SET e = 'e' WHERE id < 20").await?;
        mirror.streaming().await?;
        mirror.equal().await?;
        mirror.after("ALTER TABLE late DROP COLUMN c; UPDATE late SET e = NULL WHERE id = 3").await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn tables_of_all_kinds_are_followed() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let schema = "CREATE TABLE log (line text, n int); INSERT INTO log SELECT 'l', i FROM generate_series(1, 20) i;
             CREATE TABLE parts (id int PRIMARY KEY, a text, b int) PARTITION BY RANGE (id);
             CREATE TABLE low PARTITION OF parts FOR VALUES FROM (MINVALUE) TO (100);
             CREATE TABLE high (b int, gone int, a text, id int NOT NULL); ALTER TABLE high DROP COLUMN gone;
             ALTER TABLE parts ATTACH PARTITION high FOR VALUES FROM (100) TO (MAXVALUE);
             INSERT INTO parts SELECT i * 10, 'a', i FROM generate_series(1, 20) i;
             CREATE TABLE part (id int PRIMARY KEY, a text, secret text, b int); INSERT INTO part SELECT i, 'a', 's', i FROM generate_series(1, 20) i;
             CREATE TABLE gen (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED, b text); INSERT INTO gen (id, a) SELECT i, i FROM generate_series(1, 20) i;
             CREATE TABLE bag (a int, b text); ALTER TABLE bag REPLICA IDENTITY FULL; INSERT INTO bag SELECT i % 3, 'b' FROM generate_series(1, 20) i;
             ALTER PUBLICATION lakemirror SET (publish_via_partition_root = true); GRANT SELECT ON low, high TO lakemirror";
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch(schema).await?;
        Source::publish(&postgres, &["public.log", "public.parts", "public.gen", "public.bag"]).await?;
        postgres.batch("GRANT SELECT ON part TO lakemirror; ALTER PUBLICATION lakemirror ADD TABLE part (id, a, b)").await?;
        let mut config = lake_tests::WorkerConfig::new(&postgres, "one", &["public.parts", "public.part", "public.gen", "public.bag"])?;
        config.append_only = vec!["public.log".to_owned()];
        let mut mirror = Mirror::of(postgres, config, &["public.log", "public.parts", "public.part", "public.gen", "public.bag"]).await?;
        let before = copies(&mirror).await?;
        let parts = [
            ("public.log", "SELECT * FROM log"),
            ("public.parts", "SELECT * FROM parts"),
            ("public.part", "SELECT id, a2, b FROM part"),
            ("public.gen", "SELECT id, a, b2 FROM gen"),
            ("public.bag", "SELECT * FROM bag"),
        ];
        for change in [
            "ALTER TABLE log ADD COLUMN more int; INSERT INTO log VALUES ('m', 1, 2); ALTER TABLE log RENAME n TO number; INSERT INTO log VALUES ('n', 3, 4)",
            "ALTER TABLE parts ADD COLUMN c int; UPDATE parts SET c = 1 WHERE id IN (50, 150); ALTER TABLE parts RENAME a TO z; UPDATE parts SET id = id + 1000 WHERE id = 60",
            "ALTER TABLE part ADD COLUMN more int DEFAULT 7; UPDATE part SET secret = 'x', b = 0 WHERE id = 3; ALTER TABLE part RENAME a TO a2; UPDATE part SET a2 = 'y' WHERE id < 9; ALTER TABLE part DROP COLUMN secret; DELETE FROM part WHERE id = 11",
            "ALTER TABLE gen RENAME b TO b2; UPDATE gen SET a = a + 1, b2 = 'x' WHERE id < 9; INSERT INTO gen (id, a) VALUES (100, 1)",
            "ALTER TABLE bag RENAME a TO c; UPDATE bag SET c = 9 WHERE c = 1; DELETE FROM bag WHERE ctid = (SELECT max(ctid) FROM bag)",
            "ALTER TABLE parts DROP COLUMN b; UPDATE parts SET c = 2 WHERE id > 100; ALTER TABLE log DROP COLUMN line; INSERT INTO log VALUES (5, 6)",
        ] {
            mirror.postgres.batch(change).await?;
            caught_up(&mirror).await?;
        }
        mirror.oracle.assert_equal_to(&mirror.postgres, &parts, CATCH_UP).await?;
        ensure!(copies(&mirror).await? == before, "copied anew: {}, before {before}", copies(&mirror).await?);
        mirror.restart().await?;
        // A column without which rows are not told apart; a default in partitions; values that the stream did not bring.
        mirror
            .postgres
            .batch(
                "ALTER TABLE bag ADD COLUMN d int; INSERT INTO bag VALUES (1, 'b', 2); DELETE FROM bag WHERE d = 2;
                 ALTER TABLE parts ADD COLUMN d int DEFAULT 5; UPDATE parts SET d = 6 WHERE id < 30;
                 ALTER TABLE gen ALTER twice DROP EXPRESSION; INSERT INTO gen VALUES (101, 1, 3, 'x')",
            )
            .await?;
        for table in ["bag", "parts", "gen"] {
            copied_anew(&mirror, table, &before).await?;
        }
        let parts = parts.map(|(table, query)| (table, if table == "public.gen" { "SELECT * FROM gen" } else { query }));
        mirror.oracle.assert_equal_to(&mirror.postgres, &parts, CATCH_UP).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_table_that_is_renamed_or_moved_goes_on_under_its_name_in_the_lake() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = Mirror::start(TABLE, &TABLES).await?;
        let before = copies(&mirror).await?;
        let equal = async |mirror: &Mirror, heap: &str| {
            mirror.oracle.assert_equal_to(&mirror.postgres, &[("public.t", &format!("SELECT * FROM {heap}"))], CATCH_UP).await
        };
        mirror.postgres.batch("INSERT INTO t (id) VALUES (100); ALTER TABLE t RENAME TO u; UPDATE u SET m = 0 WHERE id < 9; CREATE SCHEMA s; GRANT USAGE ON SCHEMA s TO lakemirror").await?;
        // The name stays with the lake's table; another source table may have it.
        mirror.postgres.batch("ALTER TABLE u SET SCHEMA s; UPDATE s.u SET m = 1 WHERE id BETWEEN 9 AND 12; ALTER TABLE s.u ADD COLUMN c int; UPDATE s.u SET c = 4 WHERE id = 4").await?;
        caught_up(&mirror).await?;
        mirror.postgres.batch("CREATE TABLE t (LIKE s.u)").await?;
        ensure!(equal(&mirror, "s.u").await? == 61);
        mirror.kill().await?;
        mirror.config.tables[0] = "s.u".to_owned();
        mirror.spawn()?;
        mirror.postgres.batch("DELETE FROM s.u WHERE id = 100; ALTER TABLE s.u DROP COLUMN b; INSERT INTO s.u (id, c) VALUES (101, 1), (102, 2); ALTER TABLE t DROP COLUMN b").await?;
        ensure!(equal(&mirror, "s.u").await? == 62);
        let tables = |text: &str| text.split(", ").filter_map(|table| table.split(' ').nth(1).map(str::to_owned)).collect::<Vec<_>>();
        ensure!(tables(&copies(&mirror).await?) == tables(&before), "copied anew: {}, before {before}", copies(&mirror).await?);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn columns_of_types_that_only_the_catalog_knows_are_followed_and_the_first_text_form_has_the_stream_begin_again()
-> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = Mirror::start(TABLE, &TABLES).await?;
        let before = copies(&mirror).await?;
        // An enum, and a domain over a domain. (One with a CHECK has Postgres write the table anew.)
        mirror
            .postgres
            .batch(
                "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN amount AS numeric(12,3); CREATE DOMAIN price AS amount;
                 ALTER TABLE t ADD COLUMN feels mood; ALTER TABLE t ADD COLUMN costs price, ADD COLUMN code char(4)",
            )
            .await?;
        let work = "INSERT INTO t (id, feels, costs, code) VALUES (201, 'sad', 1.250, 'ab'); UPDATE t SET feels = 'ok', costs = id WHERE id % 7 = 0";
        mirror.postgres.batch(work).await?;
        mirror.equal().await?;
        ensure!(copies(&mirror).await? == before, "copied anew: {}, before {before}", copies(&mirror).await?);
        mirror.restart().await?;
        mirror.postgres.batch("UPDATE t SET feels = NULL, code = 'x' WHERE id % 14 = 0").await?;
        mirror.equal().await?;

        // A text form in a binary stream.
        mirror.postgres.batch("ALTER TABLE t ADD COLUMN span interval; UPDATE t SET span = '1 day' WHERE id % 3 = 0").await?;
        copied_anew(&mirror, "t", &before).await?;
        mirror.postgres.batch("UPDATE t SET span = '-1 month 2 days', costs = 7.5 WHERE id % 6 = 0; UPDATE fine SET v = v + 1").await?;
        mirror.equal().await?;

        // Another one, in text now; and with nothing between it and a kill.
        let before = copies(&mirror).await?;
        mirror.postgres.batch("ALTER TABLE t ADD COLUMN tags text[]; UPDATE t SET tags = ARRAY['a', NULL] WHERE id < 9").await?;
        mirror.restart().await?;
        mirror.postgres.batch("UPDATE t SET tags = tags || ARRAY['b'] WHERE id < 5; DELETE FROM t WHERE id = 6").await?;
        mirror.equal().await?;
        ensure!(copies(&mirror).await? == before, "copied anew: {}, before {before}", copies(&mirror).await?);
        Ok(())
    })
    .await
}
