//! The standalone worker: values stored out of line, which an update that leaves them alone leaves out of the WAL.

use anyhow::{Result, ensure};
use lake_tests::bounded;

use crate::TEST_LIMIT;
use crate::mirror::Mirror;

/// A value out of line, another one for every number.
fn big(of: &str) -> String {
    format!("(SELECT string_agg(md5(({of})::text || g), '') FROM generate_series(1, 120) g)")
}

/// A key out of line, which must fit an index page nevertheless.
fn long_key(of: &str) -> String {
    format!("(SELECT left(string_agg(md5(({of})::text || g), ''), 2300) FROM generate_series(1, 80) g)")
}

const TABLES: [&str; 6] =
    ["public.doc", "public.full_doc", "public.long_key", "public.by_index", "public.leaf", "public.other_leaf"];

/// Twenty rows each: `a` and `b` out of line in all of them, `c` in none.
fn schema() -> String {
    let columns = "a text, b text, c text, n int";
    let external = "ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL, ALTER c SET STORAGE EXTERNAL";
    let row = format!("{}, {}, NULL, 0 FROM generate_series(1, 20) i", big("i"), big("-i"));
    format!(
        "CREATE TABLE doc (id int PRIMARY KEY, {columns}); ALTER TABLE doc {external};
         CREATE TABLE full_doc (id int PRIMARY KEY, {columns}); ALTER TABLE full_doc {external}; ALTER TABLE full_doc REPLICA IDENTITY FULL;
         CREATE TABLE long_key (k text, id int, {columns}, PRIMARY KEY (k, id)); ALTER TABLE long_key {external}, ALTER k SET STORAGE EXTERNAL;
         CREATE TABLE by_index (k text NOT NULL, id int, {columns}); ALTER TABLE by_index {external}, ALTER k SET STORAGE EXTERNAL;
         CREATE UNIQUE INDEX the_key ON by_index (k); ALTER TABLE by_index REPLICA IDENTITY USING INDEX the_key;
         CREATE TABLE parts (id int PRIMARY KEY, {columns}) PARTITION BY RANGE (id);
         CREATE TABLE leaf PARTITION OF parts FOR VALUES FROM (0) TO (1000); ALTER TABLE leaf {external};
         CREATE TABLE other_leaf PARTITION OF parts FOR VALUES FROM (1000) TO (9999); ALTER TABLE other_leaf {external};
         INSERT INTO doc SELECT i, {row}; INSERT INTO full_doc SELECT i, {row}; INSERT INTO parts SELECT i, {row};
         INSERT INTO long_key SELECT {key}, i, {row}; INSERT INTO by_index SELECT {key}, i, {row}",
        key = long_key("i")
    )
}

/// The statement for every table, by whatever name its rows go: `t` is the table.
fn each(statement: &str) -> String {
    ["doc", "full_doc", "long_key", "by_index", "parts"]
        .map(|table| statement.replace(" t ", &format!(" {table} ")))
        .join("; ")
}

#[tokio::test]
async fn values_out_of_line_that_an_update_leaves_alone_stay_wherever_the_row_was() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = Mirror::start(&schema(), &TABLES).await?;
        let out_of_line = mirror.postgres.value(
            "SELECT bool_and(pg_relation_size(reltoastrelid) > 40000) FROM pg_class WHERE relname IN ('doc', 'long_key', 'by_index', 'leaf')",
        );
        ensure!(out_of_line.await? == "t", "the values are in line");
        ensure!(mirror.equal().await? == 100, "rows of the copy");
        for step in [
            // In a data file.
            each("UPDATE t SET n = 1 WHERE id <= 10"),
            // In memory, if the commit has not been quicker; twice, and then gone.
            each("UPDATE t SET n = 2 WHERE id = 1; UPDATE t SET n = 3 WHERE id = 1; UPDATE t SET n = 4 WHERE id = 2; DELETE FROM t WHERE id = 2"),
            each("BEGIN; UPDATE t SET n = 2 WHERE id = 3; UPDATE t SET n = 3 WHERE id = 3; DELETE FROM t WHERE id = 3; COMMIT"),
            // Some change, some do not.
            each(&format!("UPDATE t SET a = {} WHERE id IN (4, 14)", big("n"))),
            each(&format!("BEGIN; UPDATE t SET b = {} WHERE id = 4; UPDATE t SET n = 9 WHERE id = 4; UPDATE t SET a = 'short' WHERE id = 4; COMMIT", big("99"))),
            // From NULL and back; from out of line to in line and back.
            each(&format!("UPDATE t SET c = {}, a = NULL WHERE id = 5", big("5"))),
            each("UPDATE t SET n = 5 WHERE id = 5"),
            each(&format!("UPDATE t SET c = NULL, a = {}, b = 'in line' WHERE id = 5", big("55"))),
            each(&format!("UPDATE t SET n = 6 WHERE id = 5; UPDATE t SET b = {} WHERE id = 5; UPDATE t SET n = 7 WHERE id = 5", big("6"))),
            // Other keys: in line and out of line, of rows in files and in memory.
            each("UPDATE t SET id = id + 100 WHERE id = 6; UPDATE t SET n = 1 WHERE id = 106; UPDATE t SET id = 6 WHERE id = 106"),
            ["long_key", "by_index"].map(|table| format!("UPDATE {table} SET k = 'in line' WHERE id = 7; UPDATE {table} SET n = 1 WHERE id = 7;
                UPDATE {table} SET k = {} WHERE id = 7; UPDATE {table} SET n = 2 WHERE id = 7; UPDATE {table} SET k = {} WHERE id = 8",
                long_key("777"), long_key("id + 5000"))).join("; "),
            // To another partition, and back.
            "UPDATE parts SET id = id + 1000 WHERE id = 9; UPDATE parts SET n = 1 WHERE id = 1009; UPDATE parts SET id = 9 WHERE id = 1009".to_owned(),
        ] {
            mirror.after(&step).await?;
        }
        // A worker whose index comes from the files, before it has seen any change.
        mirror.restart().await?;
        mirror.after(&each("UPDATE t SET n = 10 WHERE id > 10")).await?;
        mirror.restart().await?;
        mirror.after(&each("DELETE FROM t WHERE id = 11; UPDATE t SET n = 11 WHERE id = 12; UPDATE t SET id = 300 WHERE id = 13")).await?;
        mirror.after(&each("DELETE FROM t WHERE n >= 0")).await?;
        ensure!(mirror.equal().await? == 0, "all rows are gone");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn values_out_of_line_of_rows_that_their_own_transaction_brought_stay() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = Mirror::start(&schema(), &TABLES).await?;
        let plain = format!("{}, {}, NULL, 0 FROM generate_series(21, 30) i", big("i"), big("-i"));
        let insert = format!(
            "INSERT INTO doc SELECT i, {plain}; INSERT INTO full_doc SELECT i, {plain}; INSERT INTO parts SELECT i, {plain};
             INSERT INTO long_key SELECT {key}, i, {plain}; INSERT INTO by_index SELECT {key}, i, {plain}",
            key = long_key("i")
        );
        // In memory, and where there is no room in memory.
        for restart_with in [None, Some("64KiB")] {
            if let Some(max_bytes) = restart_with {
                mirror.kill().await?;
                mirror.config.max_bytes = max_bytes.to_owned();
                mirror.spawn()?;
            }
            mirror
                .after(&format!(
                    "BEGIN; {insert}; {}; {}; SAVEPOINT s; {}; ROLLBACK TO s; {}; COMMIT",
                    each("UPDATE t SET n = 1 WHERE id BETWEEN 21 AND 25"),
                    each("UPDATE t SET n = 2, c = a WHERE id BETWEEN 24 AND 26"),
                    each("UPDATE t SET a = 'never' WHERE id > 10; DELETE FROM t WHERE id < 10"),
                    each("UPDATE t SET n = 3 WHERE id = 24; DELETE FROM t WHERE id = 30; UPDATE t SET id = 400 WHERE id = 29"),
                ))
                .await?;
            mirror.after(&each("DELETE FROM t WHERE id > 20")).await?;
        }
        ensure!(mirror.equal().await? == 100, "the rows of the copy");
        Ok(())
    })
    .await
}
