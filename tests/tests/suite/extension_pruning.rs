//! Data files that have no row which counts are left out before DuckDB sees them, and no row with them.

use anyhow::{Context, Result, ensure};
use lake_tests::{Oracle, bounded, eventually};
use tokio_postgres::Client;

use crate::extension_accelerate::rows;
use crate::extension_mirror::server;
use crate::{CATCH_UP, TEST_LIMIT};

/// Parts of the table, a file each: ids from 1000 on, a thousand to a part, and all other columns rise with them.
const PARTS: u32 = 12;
const COLUMNS: &str = "i, i % 30000, i * 1000000000::bigint, i * 1.25, 'n' || lpad(i::text, 8, '0'), 'N' || lpad(i::text, 8, '0'), \
     date '2024-01-01' + i, timestamp '2024-01-01' + i * interval '1 h', timestamptz '2024-01-01 00:00+00' + i * interval '1 h', \
     lpad(to_hex(i), 32, '0')::uuid, i::real";

/// Until Iceberg has all.
const FLUSH: &str = "SELECT lake.wait('t', '60 s')";

/// Conditions, each with whether files are left out by it.
const CONDITIONS: [(&str, bool); 30] = [
    ("id = 3500", true),
    ("2000 > id", true),
    ("id BETWEEN 3500 AND 4500", true),
    ("id IN (1500, 9500, NULL)", true),
    ("id = ANY ('{}'::int[])", true),
    ("id = 3500::bigint", true),
    ("small <= 2500::int8", true),
    ("big >= 9000000000000", true),
    ("n > 11250.5", true),
    ("n = 5000", true),
    // More digits than the column's: nothing is left out, and no row is equal to it.
    ("n = 5000.001", false),
    ("name = 'n00004321'", true),
    ("name > 'n00009'", true),
    ("plain = 'N00004321'", true),
    ("day < '2030-01-01'", true),
    ("day > '2030-01-01'", true),
    ("at >= '2025-01-01' AND at < '2025-02-01'", true),
    ("atz >= '2025-01-01 00:00+02' AND atz < '2025-02-01 00:00-03'", true),
    ("uid < '00000000-0000-0000-0000-000000001000'", true),
    ("id = 3500 AND plain <> 'x' AND at IS NOT NULL", true),
    ("added = 7", false),
    ("id > 5000 OR id IS NULL", false),
    ("NOT (id > 5000)", true),
    ("id <> 5000", false),
    ("f = 3500", false),
    ("d < '2030-01-01'", false),
    ("d > '2030-01-01'", false),
    ("id + 0 = 3500", false),
    ("id = 3500 AND id = 9500", true),
    ("id >= 1000 AND id <= 99999", false),
];

#[tokio::test]
async fn files_of_other_buckets_are_left_out() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres
            .batch(
                "CREATE EXTENSION lake; CREATE EXTENSION lake_query;
                 CREATE TABLE t (id int PRIMARY KEY, name text, uid uuid);
                 INSERT INTO t SELECT i, CASE WHEN i % 7 <> 0 THEN 'n' || i END, lpad(to_hex(i), 32, '0')::uuid FROM generate_series(1, 4000) i;
                 SELECT lake.mirror('t', partition_by => 'bucket(8, id)')",
            )
            .await?;
        postgres.batch(FLUSH).await?;
        let client = postgres.client().await?;
        let both = async |condition: &str, least: u64| -> Result<()> {
            let sql = |table: &str| format!("SELECT count(*), sum(id) FROM {table} WHERE {condition}");
            let (heap, lake) = (rows(&client, &sql("t")).await?, rows(&client, &sql("lake.t")).await?);
            ensure!(heap == lake, "{condition}: {heap:?} by the heap, {lake:?} from the lake");
            let (_, pruned, _) = files(&client, &sql("lake.t")).await?;
            ensure!(pruned >= least, "{condition}: {pruned} files left out");
            Ok(())
        };
        both("id = 1234", 7).await?;
        both("id IN (17, 18)", 6).await?;
        both("id = ANY ('{}'::int[])", 8).await?;
        both("id = 5000000000", 8).await?;
        both("name = 'n18'", 0).await?;
        // Other buckets, beside files of those before; and rows in memory.
        client.batch_execute("SELECT lake.mirror('t', partition_by => 'bucket(4, name), bucket(3, uid)')").await?;
        let oracle = Oracle::new(&postgres);
        eventually("the table is divided otherwise", CATCH_UP, async || {
            let now = oracle.assert_partitions(&postgres, &["public.t"], CATCH_UP).await?.remove(0).now;
            Ok((now.len() == 2).then_some(()))
        })
        .await?;
        client
            .batch_execute("INSERT INTO t SELECT i, 'n' || i, lpad(to_hex(i), 32, '0')::uuid FROM generate_series(5001, 7000) i; INSERT INTO t (id) VALUES (9000)")
            .await?;
        client.batch_execute(FLUSH).await?;
        client.batch_execute("UPDATE t SET name = 'n5001' WHERE id % 1000 = 3; DELETE FROM t WHERE id % 13 = 5").await?;
        for (condition, least) in [
            ("id = 1234", 7),
            ("id = 6003", 7),
            ("name = 'n5001'", 9),
            ("name = 'n18'", 9),
            ("uid = '00000000-0000-0000-0000-000000001770'", 8),
            ("name = 'n5001' AND uid = '00000000-0000-0000-0000-000000001389'", 11),
            ("name IS NULL", 0),
        ] {
            both(condition, least).await?;
        }
        client.batch_execute("SET lake.freshness = 'committed'").await?;
        ensure!(files(&client, "SELECT count(*) FROM lake.t WHERE id = 1234").await?.1 >= 7);
        Ok(())
    })
    .await
}

/// What EXPLAIN (ANALYZE) says of the files.
async fn files(client: &Client, sql: &str) -> Result<(u64, u64, u64)> {
    let plan = rows(client, &format!("EXPLAIN (ANALYZE, FORMAT JSON) {sql}")).await?;
    let plan: String = plan.into_iter().collect::<Option<_>>().context("a NULL")?;
    let plan: serde_json::Value = serde_json::from_str(&plan)?;
    let scan = find(&plan).with_context(|| format!("no scan of the lake in {plan}"))?;
    let number = |name: &str| scan[name].as_u64().with_context(|| format!("{name} in {scan}"));
    Ok((number("Files")?, number("Files Pruned")?, number("Bytes")?))
}

fn find(plan: &serde_json::Value) -> Option<&serde_json::Value> {
    match plan {
        serde_json::Value::Object(fields) if fields.contains_key("Lake SQL") => Some(plan),
        serde_json::Value::Object(fields) => fields.values().find_map(find),
        serde_json::Value::Array(items) => items.iter().find_map(find),
        _ => None,
    }
}

/// The heap's answers and the lake's to all conditions, and whether files are left out where they are to be.
async fn compare(client: &Client, prunes: bool) -> Result<()> {
    for (condition, wanted) in CONDITIONS {
        for query in [
            "SELECT count(*), sum(id), min(name COLLATE \"C\") FROM {t} WHERE {c}",
            "SELECT count(*), count(b.id) FROM {t} a LEFT JOIN {t} b USING (id) WHERE a.id % 10 = 0 AND b.{c}",
            "SELECT count(*) FROM {t} WHERE id % 5 = 0 AND EXISTS (SELECT 1 FROM {t} x WHERE x.id = {t}.id AND x.{c})",
        ] {
            // Only the first of these takes conditions of any form.
            if query.contains(".{c}")
                && (condition.contains("AND")
                    || condition.contains("OR")
                    || condition.starts_with("NOT")
                    || condition.starts_with("2000"))
            {
                continue;
            }
            let sql =
                |table: &str| query.replace("{c}", condition).replace("{t}.id = ", "x.id = ").replace("{t}", table);
            let (heap, lake) = (rows(client, &sql("t")).await?, rows(client, &sql("lake.t")).await?);
            ensure!(heap == lake, "{}: {heap:?} by the heap, {lake:?} from the lake", sql("t"));
        }
        let (_, pruned, _) = files(client, &format!("SELECT count(*) FROM lake.t WHERE {condition}")).await?;
        ensure!(!prunes || (pruned > 0) == wanted, "{condition}: {pruned} files left out");
    }
    Ok(())
}

#[tokio::test]
async fn files_without_a_row_that_counts_are_left_out_and_every_answer_is_the_heaps() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres
            .batch(&format!(
                "CREATE EXTENSION lake; CREATE EXTENSION lake_query;
                 CREATE TABLE t (id int PRIMARY KEY, small smallint, big bigint, n numeric(12,2), name text COLLATE \"C\", plain text, day date, at timestamp,
                     atz timestamptz, uid uuid, f real, d date);
                 INSERT INTO t SELECT {COLUMNS}, NULL FROM generate_series(1000, 1999) i;
                 SELECT lake.mirror('t', partition_by => 'truncate(1000, id)')"
            ))
            .await?;
        postgres.batch("SELECT lake.wait('t', '60 s')").await?;
        let client = postgres.client().await?;
        client.batch_execute("SET lake.freshness = 'session'").await?;
        for part in 2..=PARTS {
            let sql = format!("INSERT INTO t SELECT {COLUMNS}, 'infinity' FROM generate_series({part} * 1000, {part} * 1000 + 999) i");
            client.batch_execute(&sql).await?;
        }
        client.batch_execute(FLUSH).await?;
        client.batch_execute("ALTER TABLE t ADD COLUMN added int; INSERT INTO t (id, added) VALUES (99999, 7)").await?;
        client.batch_execute("UPDATE t SET d = '2024-01-01' WHERE id % 500 = 0").await?;
        client.batch_execute(FLUSH).await?;
        eventually("lake.t has the new column", CATCH_UP, async || {
            Ok(client.batch_execute("SELECT added FROM lake.t LIMIT 1").await.ok())
        })
        .await?;
        compare(&client, true).await?;
        client.batch_execute("SET lake.freshness = 'committed'").await?;
        compare(&client, true).await?;
        client.batch_execute("SET lake.freshness = 'session'").await?;
        // All of a file's bytes are read or none.
        let (all, none, bytes) = files(&client, "SELECT sum(id) FROM lake.t").await?;
        let (few, pruned, read) = files(&client, "SELECT sum(id) FROM lake.t WHERE id = 3500").await?;
        ensure!(none == 0 && few + pruned == all && few <= 2 && read < bytes / 2, "{few} of {all} files, {read} of {bytes} bytes");
        // Values that are known when the query begins; and those of each execution, not of the first.
        client.batch_execute("SET plan_cache_mode = force_generic_plan; PREPARE by_id AS SELECT count(*), sum(id) FROM lake.t WHERE id >= $1 AND id = ANY ($2)").await?;
        for (from, ids, wanted) in [(0, "{1500,9500}", "2"), (5000, "{1500,9500}", "1"), (0, "{}", "0"), (0, "{3500,NULL}", "1")] {
            let execute = format!("EXECUTE by_id({from}, '{ids}')");
            ensure!(rows(&client, &execute).await?[0].as_deref() == Some(wanted), "{execute}");
            ensure!(files(&client, &execute).await?.1 >= 10, "{execute}");
        }
        ensure!(rows(&client, "EXECUTE by_id(NULL, '{3500}')").await?[0].as_deref() == Some("0"));
        // A condition may be longer than anybody wants to send.
        let ids: Vec<String> = (0..200_000).map(|id| (7 * id).to_string()).collect();
        for condition in [
            format!("id IN ({})", ids.join(", ")),
            format!("plain <> '{0}' AND name = '{0}'", "x".repeat(5_000_000)),
        ] {
            let sql = |table: &str| format!("SELECT count(*), sum(id) FROM {table} WHERE {condition}");
            let (heap, lake) = (rows(&client, &sql("t")).await?, rows(&client, &sql("lake.t")).await?);
            ensure!(heap == lake, "{heap:?} by the heap, {lake:?} from the lake of {condition:.40}");
        }
        // Rows that are fresh, moved or deleted.
        client
            .batch_execute(
                "UPDATE t SET n = 5000, name = 'n00004321', day = '2024-02-02', at = '2025-01-15', uid = '00000000-0000-0000-0000-000000000001' WHERE id % 777 = 3;
                 DELETE FROM t WHERE id % 13 = 5; INSERT INTO t (id, big) VALUES (500, 9000000000000), (2, NULL)",
            )
            .await?;
        compare(&client, false).await?;
        client.batch_execute(FLUSH).await?;
        client.batch_execute("SELECT lake.compact('t')").await?;
        compare(&client, false).await?;
        Ok(())
    })
    .await
}
