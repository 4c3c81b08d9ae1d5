//! The standalone worker: values of every type, as rows and as keys, in both of the stream's formats.

use anyhow::{Context as _, Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker, WorkerConfig, bounded};

use crate::worker_copy::ALL_TYPES;
use crate::{CATCH_UP, TEST_LIMIT};

/// A column of each type that Iceberg has not.
pub(crate) const EVERY_TYPE: &str = include_str!("every_type.sql");

/// Its columns but the first, as in SQL.
pub(crate) async fn columns(postgres: &Postgres, table: &str) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 1 AND NOT attisdropped"
    );
    Ok(postgres.rows(&sql).await?.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

#[tokio::test]
async fn a_value_of_any_type_is_copied_streamed_updated_and_found_again() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // Settings that would make the texts of other sessions unlike ours.
        let postgres = Postgres::builder()
            .set("DateStyle", "German, DMY")
            .set("IntervalStyle", "sql_standard")
            .set("TimeZone", "America/Caracas")
            .set("extra_float_digits", "-3")
            .set("bytea_output", "escape")
            .start()
            .await?;
        Source::prepare(&postgres).await?;
        postgres.batch(EVERY_TYPE).await?;
        // Native types, which this stream sends as text as well.
        postgres.batch(ALL_TYPES).await?;
        let tables = ["public.every_type", "public.all_types"];
        Source::publish(&postgres, &tables).await?;
        let config = WorkerConfig::new(&postgres, "one", &tables)?;
        let mut worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        let rows = oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("copied")?;
        ensure!(rows == 12, "{rows} rows copied");

        let again = |table: &str, by: u32| {
            format!(
                "CREATE TEMP TABLE again AS SELECT * FROM {table}; UPDATE again SET id = id + {by}; INSERT INTO {table} SELECT * FROM again;
                 DROP TABLE again"
            )
        };
        postgres.batch(&again("every_type", 100)).await?;
        postgres.batch(&again("all_types", 100)).await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("streamed")?;

        // Each value becomes another row's, large ones stay as they are.
        let rotated: Vec<String> = columns(&postgres, "every_type")
            .await?
            .into_iter()
            .map(|column| format!("UPDATE every_type t SET {column} = s.{column} FROM every_type s WHERE t.id BETWEEN 100 AND 103 AND s.id = (t.id - 99) % 4"))
            .collect();
        postgres.batch(&rotated.join(";")).await?;
        postgres.batch("UPDATE every_type SET n = n + 1; UPDATE all_types SET i4 = 3 WHERE id > 2").await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("updated")?;

        worker.kill().await?;
        postgres
            .batch("UPDATE every_type SET n = 9 WHERE id IN (1, 101, 10); DELETE FROM every_type WHERE id IN (2, 102); UPDATE all_types SET i4 = 7; DELETE FROM all_types WHERE id IN (4, 104)")
            .await?;
        worker = Worker::start(&config, &postgres).await?;
        let rows = oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("after a restart")?;
        ensure!(rows == 20, "{rows} rows after a restart");
        ensure!(worker.runs()?, "the worker has ended");
        Ok(())
    })
    .await
}

/// A type and five values of it. An update makes the first into the second, which may be equal to it by the key's index.
const KEYS: &[(&str, [&str; 5])] = &[
    ("bpchar", ["a", "a ", "b  ", " c", ""]),
    ("char(4)", ["a", "a ", "bcde", " c", ""]),
    ("name", ["a", "b", "c", "d", "e"]),
    (r#""char""#, ["a", "b", "c", r"\", ""]),
    ("shop.mood", ["sad", r#"very "happy""#, "so, so", "", "later"]),
    ("citext", ["a", "A", "b", "c", "d"]),
    ("text COLLATE shop.nocase", ["a", "A", "b", "c", "d"]),
    ("numeric", ["1.0", "1.00", "NaN", "-0.001", "1e200"]),
    ("numeric(5,-2)", ["100", "200", "300", "400", "500"]),
    ("numeric(8,2)", ["1", "2", "3", "4", "5"]),
    ("float8", ["0", "-0", "NaN", "Infinity", "0.1"]),
    ("interval", ["1 mon", "30 days", "1 sec", "-1 day +1 sec", "0"]),
    ("timetz", ["12:00+00", "13:00+01", "12:00:00.5+00", "24:00-15:59:59", "00:00+15:59:59"]),
    ("timestamptz", ["2020-01-01", "2020-01-02", "0044-03-15 BC", "10000-01-01", "2020-01-01 00:00:00.000001"]),
    ("date", ["2020-01-01", "2020-01-02", "0044-03-15 BC", "10000-01-01", "1970-01-01"]),
    ("int[]", ["{1,2}", "[0:1]={1,2}", "{}", "{{1},{2}}", "{NULL}"]),
    ("text[]", [r#"{a,"b c"}"#, r#"{"NULL"}"#, "{NULL}", "{}", r#"{""}"#]),
    ("int4range", ["[1,5)", "empty", "(,)", "[5,)", "(,5)"]),
    ("tstzrange", ["[2020-01-01,infinity]", "[2020-01-01,)", "empty", "(,)", "[-infinity,2020-01-01]"]),
    ("inet", ["1.2.3.4/24", "1.2.3.4", "::1", "::ffff:1.2.3.4", "1.2.3.5"]),
    ("cidr", ["1.2.3.0/24", "1.2.3.4", "::1", "::/0", "0.0.0.0/0"]),
    ("macaddr", ["08:00:2b:01:02:03", "08:00:2b:01:02:04", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "01:00:00:00:00:00"]),
    ("bit(3)", ["101", "111", "000", "001", "010"]),
    ("varbit", ["101", "1010", "", "0", "1"]),
    ("oid", ["1", "4294967295", "0", "2147483648", "2"]),
    ("xid8", ["1", "18446744073709551615", "0", "9223372036854775808", "2"]),
    ("money", ["1", "-1", "0", "92233720368547758.07", "-92233720368547758.08"]),
    ("pg_lsn", ["0/1", "FFFFFFFF/FFFFFFFF", "0/0", "1/0", "0/2"]),
    ("tsvector", ["'a':1", "'a':2", "'a'", "", "'b'"]),
    ("jsonb", [r#"{"a": 1.0}"#, r#"{"a": 1.00}"#, "null", "[]", r#""x""#]),
    ("bytea", [r"\x00", r"\x", r"\xff", r"\x5c78", r"\x22"]),
    ("uuid", [
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a13",
    ]),
    ("shop.code", ["a", "b", "c", "d", "e"]),
    ("shop.item", ["(x,1.0,{a},sad,empty,1 mon)", "(x,1.00,{a},sad,empty,30 days)", "(,,,,,)", r#"("a,b",,,,,)"#, "(y,,,,,)"]),
    ("hstore", ["a=>1", "a=>2", "", "a=>NULL", r#"""=>"""#]),
    ("ltree", ["a.b", "a.c", "", "a", "b"]),
    ("tid", ["(0,1)", "(0,2)", "(1,1)", "(4294967295,65535)", "(2,2)"]),
];

#[tokio::test]
async fn a_key_of_any_type_finds_its_row_also_when_it_changes_into_an_equal_one() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch(EVERY_TYPE).await?;
        postgres
            .batch(
                "ALTER TYPE shop.mood ADD VALUE 'later';
                 CREATE COLLATION shop.nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
            )
            .await?;
        let mut names = Vec::new();
        for (number, (kind, values)) in KEYS.iter().enumerate() {
            let kind_name = kind.split(" COLLATE").next().unwrap_or(kind);
            let rows: Vec<String> = [0, 2, 3]
                .into_iter()
                .map(|place| format!("('{}'::{kind_name}, {place})", values[place].replace('\'', "''")))
                .collect();
            postgres
                .batch(&format!(
                    "CREATE TABLE k{number} (v int, k {kind}, more text, PRIMARY KEY (k)); INSERT INTO k{number} (k, v) VALUES {}",
                    rows.join(", ")
                ))
                .await
                .with_context(|| (*kind).to_owned())?;
            names.push(format!("public.k{number}"));
        }
        let tables: Vec<&str> = names.iter().map(String::as_str).collect();
        Source::publish(&postgres, &tables).await?;
        let config = WorkerConfig::new(&postgres, "one", &tables)?;
        let mut worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("copied")?;

        let each = async |statements: &dyn Fn(&str, usize) -> String| -> Result<()> {
            for (number, (kind, values)) in KEYS.iter().enumerate() {
                let value = |place: usize| {
                    let kind = kind.split(" COLLATE").next().unwrap_or(kind);
                    format!("'{}'::{kind}", values[place].replace('\'', "''"))
                };
                let mut sql = statements(&format!("k{number}"), values.len());
                for place in 0..values.len() {
                    sql = sql.replace(&format!("${place}"), &value(place));
                }
                postgres.batch(&sql).await.with_context(|| format!("{kind}: {sql}"))?;
            }
            Ok(())
        };
        // Another value of the row; a key that changes, into an equal one perhaps; one that goes, one that comes.
        each(&|table, _| {
            format!(
                "UPDATE {table} SET more = 'x'; UPDATE {table} SET k = $1 WHERE v = 0; DELETE FROM {table} WHERE v = 2;
                 INSERT INTO {table} VALUES (4, $4); UPDATE {table} SET more = 'y' WHERE v = 4"
            )
        })
        .await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("streamed")?;
        worker.kill().await?;
        // The index is read back from the files, that of the rows above too.
        each(&|table, _| {
            format!(
                "UPDATE {table} SET more = 'z' WHERE v = 0; UPDATE {table} SET k = $0 WHERE v = 0; DELETE FROM {table} WHERE v IN (3, 4);
                 INSERT INTO {table} VALUES (2, $2)"
            )
        })
        .await?;
        worker = Worker::start(&config, &postgres).await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("after a restart")?;
        ensure!(worker.runs()?, "the worker has ended");
        Ok(())
    })
    .await
}
