//! The extensions `lake` and `lake_query`: `lake.<table>` when the table's columns change, or get values that Iceberg has not.

use anyhow::{Context as _, Result, bail, ensure};
use lake_tests::{Oracle, Postgres, bounded, eventually};

use crate::extension_mirror::{mirror, server};
use crate::{CATCH_UP, TEST_LIMIT};

/// What a query gives on the heap and on the lake, rows or error.
async fn both(postgres: &Postgres, query: &str) -> Result<[Result<Vec<Vec<Option<String>>>, String>; 2]> {
    let mut answers = Vec::new();
    for schema in ["public", "lake"] {
        let answer = postgres.rows(&query.replace("{t}", &format!("{schema}.t"))).await;
        answers.push(answer.map_err(|error| error.root_cause().to_string()));
    }
    <[_; 2]>::try_from(answers).map_err(|_| anyhow::anyhow!("two answers"))
}

async fn same(postgres: &Postgres, query: &str) -> Result<()> {
    let [heap, lake] = both(postgres, query).await?;
    ensure!(heap == lake, "{query}\nheap: {heap:.500?}\nlake: {lake:.500?}");
    Ok(())
}

/// Until the lake has followed, a query of a changed column is an error; then it is as the heap's.
async fn same_soon(postgres: &Postgres, query: &str) -> Result<()> {
    eventually("lake.t follows", CATCH_UP, async || {
        let [heap, lake] = both(postgres, query).await?;
        ensure!(lake.is_err() || lake == heap, "{query}\nheap: {heap:.500?}\nlake: {lake:.500?}");
        Ok(lake.is_ok().then_some(()))
    })
    .await
    .context(query.to_owned())
}

const QUERIES: [&str; 27] = [
    "SELECT * FROM {t} ORDER BY id",
    "SELECT id, d, ts, tz FROM {t} WHERE d > '2020-01-10' ORDER BY id",
    "SELECT id FROM {t} WHERE d = 'infinity' OR ts = '-infinity' ORDER BY id",
    "SELECT count(*), min(d), max(d), min(ts), max(ts), min(tz), max(tz), min(t), max(t) FROM {t}",
    "SELECT d, count(*) FROM {t} GROUP BY d ORDER BY d",
    "SELECT t, count(*) FROM {t} GROUP BY t ORDER BY t",
    "SELECT id FROM {t} WHERE t > '23:00' ORDER BY id",
    "SELECT max(n), min(n), sum(n), avg(n) FROM {t}",
    "SELECT id, n FROM {t} WHERE n > 5 ORDER BY n, id",
    "SELECT n, count(*) FROM {t} GROUP BY n ORDER BY n",
    "SELECT count(DISTINCT n), count(DISTINCT d) FROM {t}",
    "SELECT extract(year FROM d), count(*) FROM {t} GROUP BY 1 ORDER BY 1",
    "SELECT extract(month FROM ts), count(*) FROM {t} GROUP BY 1 ORDER BY 1",
    "SELECT date_trunc('month', ts), count(*) FROM {t} GROUP BY 1 ORDER BY 1",
    "SELECT d - DATE '2020-01-01' FROM {t} WHERE id < 5 ORDER BY id",
    "SELECT sum(d - DATE '2020-01-01') FROM {t}",
    "SELECT d::timestamp, count(*) FROM {t} GROUP BY 1 ORDER BY 1",
    "SELECT ts::date, count(*) FROM {t} GROUP BY 1 ORDER BY 1",
    "SELECT a.id, b.id FROM {t} a JOIN {t} b ON a.d = b.d AND a.id < b.id ORDER BY 1, 2",
    "SELECT a.id, b.id FROM {t} a JOIN {t} b ON a.n = b.n AND a.id < b.id ORDER BY 1, 2",
    "SELECT id FROM {t} WHERE d < ts ORDER BY id",
    "SELECT id FROM {t} WHERE id IN (SELECT id FROM other) AND n IS NOT NULL ORDER BY 1",
    "SELECT sum(id) FROM {t}",
    "SELECT id, greatest(d, '2020-06-01'), least(n, 3) FROM {t} ORDER BY id",
    "SELECT id FROM {t} WHERE isfinite(d) ORDER BY id",
    "SELECT id, row_number() OVER (ORDER BY n DESC, id) FROM {t} ORDER BY 1",
    "SELECT x.d FROM (SELECT d, max(n) m FROM {t} GROUP BY d) x WHERE x.m = 'NaN' ORDER BY 1",
];

#[tokio::test]
async fn values_that_duckdb_or_iceberg_has_not_come_back_as_they_were_and_count_as_what_they_are() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres
            .batch(
                "CREATE TABLE t (id int PRIMARY KEY, d date, t time, ts timestamp, tz timestamptz, n numeric(10,2), m numeric(30,4));
                 INSERT INTO t SELECT i, DATE '2020-01-01' + i, '12:00', TIMESTAMP '2020-01-01' + i * interval '1 day', '2020-01-01', i, i FROM generate_series(1, 30) i;
                 CREATE TABLE other AS SELECT 2 * i AS id FROM generate_series(1, 20) i",
            )
            .await?;
        mirror(&postgres, &["t"]).await?;
        for query in QUERIES {
            same(&postgres, query).await?;
        }
        // A session with plans of before.
        let client = postgres.client().await?;
        client.batch_execute("SET plan_cache_mode = force_generic_plan; PREPARE p AS SELECT count(*), max(n) FROM lake.t; EXECUTE p; PREPARE r AS SELECT d FROM lake.t WHERE id = 4; EXECUTE r").await?;

        postgres
            .batch(
                "UPDATE t SET d = 'infinity' WHERE id % 7 = 3; UPDATE t SET d = '-infinity', t = '24:00' WHERE id % 7 = 4;
                 UPDATE t SET ts = 'infinity', tz = '-infinity' WHERE id % 5 = 1; UPDATE t SET ts = '-infinity' WHERE id % 5 = 2; UPDATE t SET d = NULL, n = NULL WHERE id = 13",
            )
            .await?;
        for query in QUERIES {
            same(&postgres, query).await?;
        }
        postgres.batch("UPDATE t SET n = 'NaN' WHERE id % 6 = 5; UPDATE t SET m = 'NaN' WHERE id = 8").await?;
        // Whole queries are right at once; a plan that sends the scans alone knows in a moment.
        same(&postgres, "SELECT max(n), min(n), sum(n), avg(n) FROM {t}").await?;
        same_soon(&postgres, "SELECT id, row_number() OVER (ORDER BY n DESC, m, id) FROM {t} ORDER BY 1").await?;
        for query in QUERIES {
            same(&postgres, query).await?;
        }
        let explained = postgres.rows("EXPLAIN (VERBOSE) SELECT id, n FROM lake.t WHERE n > 5").await?;
        ensure!(format!("{explained:?}").contains("LakeScan"), "not from the lake: {explained:?}");
        client.batch_execute("EXECUTE p; EXECUTE r").await?;
        let row = client.query_one("SELECT max(n)::text FROM lake.t", &[]).await?;
        ensure!(row.get::<_, String>(0) == "NaN");
        Oracle::new(&postgres).assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        postgres.batch("UPDATE t SET n = 3 WHERE n = 'NaN'; DELETE FROM t WHERE NOT isfinite(d)").await?;
        for query in QUERIES {
            same(&postgres, query).await?;
        }

        // A timestamp that DuckDB has not: its queries are the heap's, or an error; never another value.
        postgres.batch("UPDATE t SET ts = '294276-01-01' WHERE id = 30").await?;
        same(&postgres, "SELECT max(ts), count(*) FROM {t}").await?;
        same(&postgres, "SELECT id, d FROM {t} ORDER BY id").await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_foreign_table_follows_the_columns_of_its_table() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres
            .batch("CREATE TABLE t (id int PRIMARY KEY, a int, b text, c int, e numeric(6,2)); INSERT INTO t SELECT i, i, 'b' || i, -i, i FROM generate_series(1, 100) i")
            .await?;
        mirror(&postgres, &["t"]).await?;
        let all = "SELECT * FROM {t} ORDER BY id";
        same(&postgres, all).await?;
        for change in [
            // No row follows the first ones.
            "ALTER TABLE t ADD COLUMN f date",
            "ALTER TABLE t RENAME a TO x",
            "UPDATE t SET f = 'infinity' WHERE id = 7; ALTER TABLE t ADD COLUMN g text COLLATE \"C\"; UPDATE t SET g = 'g' WHERE id < 9",
            // A swap, in one transaction with rows.
            "BEGIN; ALTER TABLE t RENAME x TO y; ALTER TABLE t RENAME c TO x; UPDATE t SET x = 1 WHERE id = 1; ALTER TABLE t RENAME y TO c; COMMIT",
            "ALTER TABLE t DROP COLUMN b; ALTER TABLE t ADD COLUMN b int; UPDATE t SET b = id",
            "ALTER TABLE t ADD COLUMN h int; ALTER TABLE t DROP COLUMN h; ALTER TABLE t ADD COLUMN i int[]; UPDATE t SET i = ARRAY[id]",
            "ALTER TABLE t ALTER e TYPE numeric(8,2); INSERT INTO t (id, e) VALUES (200, 123456)",
            // Copied anew.
            "ALTER TABLE t ALTER x TYPE bigint; INSERT INTO t (id, x) VALUES (201, 1 << 30)",
            "ALTER TABLE t ADD COLUMN j int DEFAULT 5",
        ] {
            postgres.batch(change).await?;
            same_soon(&postgres, all).await.with_context(|| change.to_owned())?;
            same(&postgres, "SELECT count(*), sum(id), max(e) FROM {t}").await.with_context(|| change.to_owned())?;
        }
        // While somebody holds lake.t (and not the table itself) it cannot follow, and nobody waits for long.
        let reader = postgres.client().await?;
        reader.batch_execute("BEGIN; CREATE VIEW held AS SELECT id FROM lake.t").await?;
        postgres.batch("ALTER TABLE t ADD COLUMN k int; UPDATE t SET k = 1 WHERE id = 1").await?;
        let begun = std::time::Instant::now();
        for _ in 0..40 {
            same(&postgres, "SELECT count(*), sum(id) FROM {t}").await?;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        ensure!(begun.elapsed().as_secs() < 20, "readers waited");
        reader.batch_execute("ROLLBACK").await?;
        same_soon(&postgres, "SELECT id, k FROM {t} ORDER BY id").await?;

        // What cannot follow says so, and goes on as far as it can.
        postgres.batch("CREATE VIEW v AS SELECT g FROM lake.t; ALTER TABLE t DROP COLUMN g; ALTER TABLE t ADD COLUMN l int; UPDATE t SET l = 2").await?;
        eventually("the log says it", CATCH_UP, async || {
            Ok(postgres.log().contains("keeps its former columns").then_some(()))
        })
        .await?;
        same(&postgres, "SELECT count(*), sum(id), max(k) FROM {t}").await?;
        Oracle::new(&postgres).assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        Ok(())
    })
    .await
}

/// The Iceberg table of `t`: another one when it was copied anew.
async fn iceberg(postgres: &Postgres) -> Result<String> {
    postgres.value("SELECT table_uuid FROM lake_catalog.mirrored_tables").await
}

#[tokio::test]
async fn columns_that_come_and_go_between_two_rows_are_followed_where_it_happened() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres
            .batch("CREATE TABLE t (id int PRIMARY KEY, a text, b text, n numeric(6,2)); INSERT INTO t SELECT i, 'a' || i, 'b' || i, i FROM generate_series(1, 100) i")
            .await?;
        mirror(&postgres, &["t"]).await?;
        let before = iceberg(&postgres).await?;
        let all = "SELECT * FROM {t} ORDER BY id";
        // From two accounts of the table none of these could be told from another history.
        for change in [
            "BEGIN; ALTER TABLE t ADD COLUMN x text, DROP COLUMN b; UPDATE t SET x = 'x' WHERE id = 2; COMMIT",
            "BEGIN; ALTER TABLE t ADD COLUMN y text; UPDATE t SET y = 'never' WHERE id = 3; ALTER TABLE t DROP COLUMN y; COMMIT; UPDATE t SET x = 'y' WHERE id = 3",
            "ALTER TABLE t ADD COLUMN z int; ALTER TABLE t DROP COLUMN z; ALTER TABLE t ADD COLUMN z int; UPDATE t SET z = 7 WHERE id = 4",
            // In a subtransaction that is rolled back, and with its event trigger's message.
            "BEGIN; SAVEPOINT s; ALTER TABLE t DROP COLUMN a; ALTER TABLE t ADD COLUMN a int; UPDATE t SET a = 5; ROLLBACK TO s; ALTER TABLE t RENAME a TO c; UPDATE t SET c = 'c' WHERE id = 5; COMMIT",
            // No row at all.
            "ALTER TABLE t RENAME c TO d; ALTER TABLE t ADD COLUMN c date; ALTER TABLE t ALTER n TYPE numeric(9,2)",
            // So large that it is sent while it runs.
            "BEGIN; INSERT INTO t (id, d) SELECT i, repeat('d', 900) FROM generate_series(1000, 90000) i; ALTER TABLE t ADD COLUMN e text, DROP COLUMN d; UPDATE t SET e = 'e' WHERE id > 89000; COMMIT",
        ] {
            postgres.batch(change).await.with_context(|| change.to_owned())?;
            same_soon(&postgres, all).await.with_context(|| change.to_owned())?;
            ensure!(iceberg(&postgres).await? == before, "copied anew: {change}");
        }
        Oracle::new(&postgres).assert_equal(&postgres, &["public.t"], CATCH_UP).await?;

        // What somebody else says in the same words is nothing.
        let client = postgres.client().await?;
        // Believed, it would be a rewrite of the table, and a copy.
        let forged = postgres
            .value(
                r#"SELECT '00000000-0000-0000-0000-000000000000 ' || 't'::regclass::oid || ' ' || regexp_replace(regexp_replace(
                   lake_catalog.columns_told('t'::regclass)::text, '"stamp" : \d+', '"stamp" : 3', 'g'), '"file" : \d+', '"file" : 3')"#,
            )
            .await?;
        ensure!(forged.contains(r#""file" : 3,"#) && forged.contains(r#""stamp" : 3,"#), "{forged}");
        client.execute("SELECT pg_logical_emit_message(true, 'lake.columns', $1)", &[&forged]).await?;
        client.execute("SELECT pg_logical_emit_message(true, 'lake.columns', 'nonsense')", &[]).await?;
        postgres.batch("CREATE ROLE nosy LOGIN").await?;
        let nosy = postgres.client_as("nosy", "postgres").await?;
        ensure!(nosy.query("SELECT secret FROM lake_catalog.ddl_secret", &[]).await.is_err(), "anybody may read the secret");
        postgres.batch("UPDATE t SET e = 'after' WHERE id = 1").await?;
        Oracle::new(&postgres).assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        same(&postgres, all).await?;
        ensure!(iceberg(&postgres).await? == before, "a forged message was believed");

        // Rows that a change computes anew are never shown under an older state, quiet as the table is.
        postgres.batch("ALTER TABLE t ALTER e TYPE text USING e || '!'").await?;
        let begun = std::time::Instant::now();
        while begun.elapsed().as_secs() < 3 {
            let [heap, lake] = both(&postgres, "SELECT count(e), min(e) FROM {t}").await?;
            ensure!(lake.is_err() || lake == heap, "heap: {heap:?}, lake: {lake:?}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        same_soon(&postgres, "SELECT count(e), min(e) FROM {t}").await?;

        // Another user's ALTER TABLE, of a table that is not mirrored and of one that is, goes as before.
        postgres.batch("ALTER TABLE t OWNER TO nosy; GRANT CREATE ON SCHEMA public TO nosy").await?;
        nosy.batch_execute("CREATE TABLE mine (id int); ALTER TABLE mine ADD COLUMN x int; ALTER TABLE t ADD COLUMN theirs int; UPDATE t SET theirs = 1 WHERE id = 1").await?;
        same_soon(&postgres, all).await?;
        ensure!(!postgres.log().contains("was not told"), "the log: {}", postgres.log());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_table_that_loses_its_last_column_stops_alone_and_comes_back_with_another() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres
            .batch(
                "CREATE TABLE t (a int, b int); INSERT INTO t VALUES (1, 2); ALTER TABLE t REPLICA IDENTITY FULL;
                 CREATE TABLE u (a int); ALTER TABLE u REPLICA IDENTITY FULL;
                 CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)",
            )
            .await?;
        mirror(&postgres, &["t", "u", "other"]).await?;
        // One with a row behind it, one without.
        postgres.batch("ALTER TABLE t DROP COLUMN a, DROP COLUMN b; INSERT INTO t DEFAULT VALUES").await?;
        postgres.batch("ALTER TABLE u DROP COLUMN a").await?;
        let stopped = "SELECT \"table\", last_error FROM lake.lag WHERE state = 'errored' ORDER BY 1";
        let errors = eventually("both have stopped", CATCH_UP, async || {
            Ok(Some(postgres.rows(stopped).await?).filter(|rows| rows.len() == 2))
        })
        .await?;
        for error in errors.iter().map(|row| row[1].clone().unwrap_or_default()) {
            ensure!(error.contains("has no columns"), "{error}");
        }
        postgres.batch("INSERT INTO other VALUES (2)").await?;
        postgres.batch("SELECT lake.wait('other', '20 s')").await?;
        Oracle::new(&postgres).assert_equal(&postgres, &["public.other"], CATCH_UP).await?;
        for table in ["t", "u"] {
            postgres
                .batch(&format!("ALTER TABLE {table} ADD COLUMN c int DEFAULT 7; INSERT INTO {table} VALUES (8)"))
                .await?;
            postgres.batch(&format!("SELECT lake.resync('{table}')")).await?;
            postgres.batch(&format!("SELECT lake.wait('{table}', '30 s')")).await?;
        }
        Oracle::new(&postgres).assert_equal(&postgres, &["public.t", "public.u"], CATCH_UP).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_table_that_is_dropped_and_made_again_is_mirrored_again_when_its_mirror_has_ended() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await?;
        mirror(&postgres, &["t"]).await?;
        let oid = postgres.value("SELECT 't'::regclass::oid").await?;
        postgres
            .batch("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (2, 'x')")
            .await?;
        let Err(refused) = postgres.batch("SELECT lake.mirror('t')").await else { bail!("the name is taken") };
        let refused = format!("{refused:#}");
        ensure!(refused.contains(&format!("SELECT lake.unmirror({oid})")), "{refused}");
        postgres.batch(&format!("SELECT lake.unmirror({oid})")).await?;
        mirror(&postgres, &["t"]).await?;
        ensure!(postgres.value("SELECT v FROM lake.t").await? == "x");
        Oracle::new(&postgres).assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        Ok(())
    })
    .await
}
