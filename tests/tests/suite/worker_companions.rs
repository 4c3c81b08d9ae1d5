//! The standalone worker: values that the Iceberg type of their column has not, kept as text beside it.

use anyhow::{Context as _, Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker, WorkerConfig, bounded, eventually};

use crate::{CATCH_UP, TEST_LIMIT};

/// Lines of the configuration's section `lake` by which such a value stops its table.
pub(crate) const STOP: &str = "unrepresentable = \"stop\"";

/// Values of `d date, t time, ts timestamp, tz timestamptz, n numeric(10,2)` that Iceberg has not, and some that it has.
const ODD: [&str; 5] = [
    "'infinity', '24:00', 'infinity', '-infinity', 'NaN'",
    "'-infinity', '23:59:59.999999', '294276-12-31 23:59:59.999999', '294276-12-31 23:59:59.999999+00', 0",
    "'5874897-12-31', '24:00', '294247-01-10 04:00:54.775806', '294247-01-10 04:00:54.775807+00', 'NaN'",
    "'infinity', NULL, NULL, 'infinity', NULL",
    "NULL, '24:00:00', '-infinity', '294276-06-05 04:03:02.1+00', 'NaN'",
];

const COLUMNS: &str = "d date, t time, ts timestamp, tz timestamptz, n numeric(10,2)";

/// Rows with plain values, numbered from the first number to the last.
fn plain(table: &str, first: u32, last: u32) -> String {
    format!(
        "INSERT INTO {table} SELECT i, DATE '2020-01-01' + i, TIME '01:00' + i * interval '1 s', TIMESTAMP '2020-01-01' + i * interval '1 s',
         TIMESTAMPTZ '2020-01-01' + i * interval '1 s', i FROM generate_series({first}, {last}) i"
    )
}

fn odd(table: &str, first: usize) -> String {
    let rows = ODD.iter().enumerate().map(|(at, values)| format!("({}, {values})", first + at));
    format!("INSERT INTO {table} VALUES {}", rows.collect::<Vec<_>>().join(", "))
}

/// The names of a table's columns in Iceberg.
async fn names(oracle: &Oracle, table: &str) -> Result<String> {
    oracle.value(&format!("SELECT string_agg(column_name, ' ') FROM (DESCRIBE SELECT * FROM {{{table}}})")).await
}

async fn streamed(second: &str) -> Result<()> {
    // GIVEN tables of plain values that stream: with a key, and with equal rows
    let postgres = Postgres::builder().start().await?;
    Source::prepare(&postgres).await?;
    postgres.batch(&format!("CREATE TABLE odd (id int PRIMARY KEY, {COLUMNS}); {}", plain("odd", 1, 200))).await?;
    postgres
        .batch(&format!(
            "CREATE TABLE whole (id int, {COLUMNS}); ALTER TABLE whole REPLICA IDENTITY FULL; {}; {second}",
            plain("whole", 1, 50)
        ))
        .await?;
    let tables = ["public.odd", "public.whole", "public.second"];
    Source::publish(&postgres, &tables).await?;
    let config = WorkerConfig::new(&postgres, "one", &tables)?;
    let worker = Worker::start(&config, &postgres).await?;
    let oracle = Oracle::new(&postgres);
    oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
    ensure!(names(&oracle, "public.odd").await? == "id d t ts tz n", "companions that nothing needs");

    // WHEN the first such value comes, in a transaction with others
    postgres
        .batch("BEGIN; UPDATE odd SET n = n + 1 WHERE id < 20; UPDATE odd SET d = 'infinity' WHERE id = 7; UPDATE odd SET n = -n WHERE id < 10; COMMIT")
        .await?;
    oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("the first")?;
    ensure!(names(&oracle, "public.odd").await? == "id d t ts tz n d__text", "a companion too many, or none");

    // AND all others come, become others, and go
    for table in ["odd", "whole"] {
        postgres.batch(&format!("BEGIN; {}; {}; COMMIT", odd(table, 1000), plain(table, 2000, 2100))).await?;
        postgres.batch(&odd(table, 3000)).await?;
    }
    // Equal rows, of which one goes.
    postgres.batch(&format!("{}; {}", odd("whole", 1000), odd("whole", 1000))).await?;
    oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("all")?;
    for table in ["odd", "whole"] {
        postgres
            .batch(&format!(
                "UPDATE {table} SET d = '2020-02-02', n = 5 WHERE id = 1000; UPDATE {table} SET t = '24:00', n = 'NaN' WHERE id IN (3, 2003);
                 DELETE FROM {table} WHERE ctid IN (SELECT min(ctid) FROM {table} WHERE id IN (1001, 3002) GROUP BY id);
                 UPDATE {table} SET ts = ts WHERE id > 2090; UPDATE {table} SET id = id + 10000 WHERE id IN (1003, 3004)"
            ))
            .await?;
    }
    oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("changed")?;

    // AND a column of the companion's name comes, and the column gets another name; the worker is killed in between
    worker.kill().await?;
    postgres
        .batch("ALTER TABLE odd ADD COLUMN d__text text; UPDATE odd SET d__text = 'mine' WHERE id = 7; ALTER TABLE odd RENAME n TO m; UPDATE odd SET m = 'NaN' WHERE id = 8")
        .await?;
    let worker = Worker::start(&config, &postgres).await?;
    oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("columns")?;
    let found = names(&oracle, "public.odd").await?;
    ensure!(found == "id d t ts tz m d__text d__text_ t__text ts__text tz__text m__text", "columns {found}");
    postgres.batch("ALTER TABLE odd ALTER m TYPE numeric(12,2); UPDATE odd SET m = m WHERE id IN (7, 8); ALTER TABLE odd DROP COLUMN d").await?;
    postgres.batch("UPDATE odd SET m = 3 WHERE id = 8; UPDATE odd SET m = 1e9 WHERE id = 9; TRUNCATE whole").await?;
    postgres.batch(&odd("whole", 1)).await?;
    oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("a column gone")?;
    let found = names(&oracle, "public.odd").await?;
    ensure!(found == "id t ts tz m d__text t__text ts__text tz__text m__text", "columns {found}");

    // THEN they are found again by another worker
    worker.kill().await?;
    postgres
        .batch(
            "DELETE FROM odd WHERE id > 2000; UPDATE whole SET n = 'NaN' WHERE id = 2; DELETE FROM whole WHERE id = 1",
        )
        .await?;
    let mut worker = Worker::start(&config, &postgres).await?;
    oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("the end")?;
    ensure!(worker.runs()?, "the worker has ended");
    Ok(())
}

#[tokio::test]
async fn values_that_iceberg_has_not_are_kept_beside_their_column_from_the_first_one_on() -> Result<()> {
    bounded(TEST_LIMIT, streamed("CREATE TABLE second (id int PRIMARY KEY)")).await
}

#[tokio::test]
async fn they_are_kept_when_the_stream_sends_text_too() -> Result<()> {
    bounded(
        TEST_LIMIT,
        streamed("CREATE TABLE second (id int PRIMARY KEY, list int[]); INSERT INTO second VALUES (1, '{1}')"),
    )
    .await
}

#[tokio::test]
async fn a_key_may_have_them_when_it_is_copied_and_when_it_streams() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        // One has such values from the beginning, the other gets them.
        postgres
            .batch(
                "CREATE TABLE versions (id int, until date, v int, PRIMARY KEY (id, until));
                 CREATE TABLE later (n numeric(8,2), t time, v text, PRIMARY KEY (n, t)); ALTER TABLE later ALTER v SET STORAGE EXTERNAL;
                 INSERT INTO versions SELECT i, CASE i % 3 WHEN 0 THEN 'infinity' WHEN 1 THEN '-infinity' ELSE DATE '2020-01-01' + i END, i FROM generate_series(1, 3000) i;
                 INSERT INTO later SELECT i, '12:00', repeat(md5(i::text), 100) FROM generate_series(1, 100) i",
            )
            .await?;
        let tables = ["public.versions", "public.later"];
        Source::publish(&postgres, &tables).await?;
        let config = WorkerConfig::new(&postgres, "one", &tables)?;
        let worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("copied")?;

        // A version is closed, and the next begins: what such keys are for.
        postgres
            .batch(
                "BEGIN; UPDATE versions SET until = '2021-01-01' WHERE until = 'infinity' AND id < 600;
                 INSERT INTO versions SELECT id, 'infinity', -v FROM versions WHERE until = '2021-01-01'; COMMIT;
                 DELETE FROM versions WHERE until = '-infinity' AND id % 2 = 0;
                 UPDATE later SET n = 'NaN' WHERE n = 5; UPDATE later SET t = '24:00' WHERE n = 6; INSERT INTO later VALUES ('NaN', '24:00', 'x')",
            )
            .await?;
        // The large values stay as they are, and come from the row's old place.
        postgres.batch("UPDATE later SET n = 7.5 WHERE n = 'NaN' AND t = '12:00'").await?;
        postgres.batch("UPDATE later SET n = 'NaN', t = '11:00' WHERE n = 7").await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("streamed")?;

        worker.kill().await?;
        let changes = "UPDATE versions SET v = v + 1 WHERE until IN ('infinity', '-infinity'); DELETE FROM later WHERE n = 'NaN' AND t = '24:00';
                       UPDATE later SET t = '10:00' WHERE n = 'NaN'; UPDATE later SET t = '12:00' WHERE t = '24:00'";
        postgres.batch(changes).await?;
        let worker = Worker::start(&config, &postgres).await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("after a restart")?;
        postgres.batch("DELETE FROM versions WHERE until = 'infinity' AND id % 6 = 0; UPDATE later SET n = 5 WHERE n = 'NaN'").await?;
        let rows = oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("by the index read back")?;
        ensure!(rows > 2000, "{rows} rows");
        worker.terminate().await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_copy_keeps_them_however_its_rows_are_spread_over_connections_files_and_processes() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        // Each kind begins somewhere else, most of them far from the first block; one is in the very first row.
        let mixed = |name: &str, key: &str| {
            format!(
                "CREATE TABLE {name} (id int, {COLUMNS}, pad text{key});
                 INSERT INTO {name} SELECT i, CASE WHEN i > 70000 AND i % 11 = 0 THEN 'infinity' ELSE DATE '2020-01-01' + i % 99 END,
                   CASE WHEN i % 5000 = 1 THEN '24:00' ELSE '12:00'::time END, CASE WHEN i = 99999 THEN '-infinity' ELSE TIMESTAMP '2020-01-01' END,
                   CASE WHEN i BETWEEN 30000 AND 30010 THEN 'infinity' ELSE TIMESTAMPTZ '2020-01-01' END, CASE WHEN i = 50000 THEN 'NaN'::numeric ELSE i % 1000 END,
                   concat(md5(i::text), md5((i * 3)::text)) FROM generate_series(1, 100000) i"
            )
        };
        postgres.batch(&mixed("keyed", ", PRIMARY KEY (id, t)")).await?;
        postgres.batch(&mixed("whole", "")).await?;
        postgres.batch("ALTER TABLE whole REPLICA IDENTITY FULL").await?;
        let tables = ["public.keyed", "public.whole"];
        Source::publish(&postgres, &tables).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &tables)?;
        config.copy_connections = Some(2);
        config.file_size = Some("256KiB".to_owned());
        // Killed in the middle, several times: of the one with a key what is done stays.
        let worker = Worker::spawn(&config)?;
        crate::worker_resume::hold_after_parts(&postgres, &worker, 1, 3).await?;
        worker.kill().await?;
        postgres.batch("UPDATE keyed SET d = '-infinity', n = 'NaN' WHERE id % 1000 = 7; DELETE FROM keyed WHERE id % 700 = 0").await?;
        let worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        let rows = oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("copied")?;
        ensure!(rows == 199_858, "{rows} rows");
        ensure!(names(&oracle, "public.keyed").await? == "id d t ts tz n pad d__text t__text ts__text tz__text n__text");
        postgres.batch("UPDATE keyed SET t = '13:00' WHERE t = '24:00'; UPDATE whole SET d = 'today' WHERE d = 'infinity'").await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("streamed")?;
        worker.terminate().await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn where_that_is_not_wanted_such_a_value_stops_its_table_alone_and_the_hint_finds_it() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        let each = ["d", "t", "ts", "tz", "n"].map(|column| format!("stream_{column}"));
        for table in &each {
            postgres.batch(&format!("CREATE TABLE {table} (id int PRIMARY KEY, {COLUMNS}); {}", plain(table, 1, 3))).await?;
        }
        postgres.batch(&format!("CREATE TABLE copied (id int PRIMARY KEY, {COLUMNS}); {}; {}", plain("copied", 1, 3), odd("copied", 10))).await?;
        postgres.batch("CREATE TABLE good (id int PRIMARY KEY); INSERT INTO good VALUES (1)").await?;
        let mut tables: Vec<String> = each.iter().map(|table| format!("public.{table}")).collect();
        tables.extend(["public.copied".to_owned(), "public.good".to_owned()]);
        let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
        Source::publish(&postgres, &tables).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &tables)?;
        config.lake = STOP.to_owned();
        let mut worker = Worker::spawn(&config)?;
        worker.streaming(&postgres, tables.len() - 1).await?;
        // Each in a transaction with another table, which has all of it.
        for (number, (table, value)) in each.iter().zip(["infinity", "24:00", "-infinity", "294276-12-31", "NaN"]).enumerate() {
            let column = &table["stream_".len()..];
            postgres.batch(&format!("BEGIN; INSERT INTO good VALUES ({}); UPDATE {table} SET {column} = '{value}' WHERE id = 2; COMMIT", number + 2)).await?;
        }
        let errors = eventually("the tables are in error", CATCH_UP, async || {
            let sql = "SELECT source_table, error, error_hint FROM lake_catalog.mirrored_tables WHERE state = 'errored' ORDER BY 1";
            let rows = postgres.rows(sql).await?;
            Ok((rows.len() == tables.len() - 1).then_some(rows))
        })
        .await?;
        for row in errors {
            let [Some(table), Some(error), Some(hint)] = &row[..] else { anyhow::bail!("{row:?}") };
            let column = table.strip_prefix("stream_").unwrap_or("");
            ensure!(error.contains(&format!("column \"{column}")) && hint.contains("companion"), "{table}: {error}; {hint}");
            let query = hint.split(';').next().unwrap_or_default();
            let found = postgres.rows(query).await.with_context(|| query.to_owned())?;
            ensure!(!found.is_empty() && (table == "copied" || found.len() == 1), "{query} finds {found:?}");
        }
        let rows = oracle_of_good(&postgres).await?;
        ensure!(rows == 6, "{rows} rows");

        // As the hint says, they come back with the other setting.
        worker.terminate().await?;
        config.lake = String::new();
        let mut worker = Worker::spawn(&config)?;
        for table in &tables[..tables.len() - 1] {
            config.call(&["resync", table]).await?;
        }
        worker.streaming(&postgres, tables.len()).await?;
        Oracle::new(&postgres).assert_equal(&postgres, &tables, CATCH_UP).await?;
        worker.terminate().await?;
        Ok(())
    })
    .await
}

async fn oracle_of_good(postgres: &Postgres) -> Result<u64> {
    Oracle::new(postgres).assert_equal(postgres, &["public.good"], CATCH_UP).await
}
