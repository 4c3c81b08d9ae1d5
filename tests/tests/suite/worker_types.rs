//! The standalone worker: values of every type, as rows and as keys, in both of the stream's formats.

use anyhow::{Context as _, Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker, WorkerConfig, bounded, eventually};

use crate::worker_companions::STOP;
use crate::worker_copy::ALL_TYPES;
use crate::{CATCH_UP, TEST_LIMIT};

/// A column of each type that Iceberg has not.
const EVERY_TYPE: &str = include_str!("every_type.sql");

/// Contrib modules that it needs, and the types of theirs.
const MODULES: [(&str, &str); 6] = [
    ("citext", "citext"),
    ("hstore", "hstore"),
    ("ltree", "ltree"),
    ("cube", "cube"),
    ("seg", "seg"),
    ("isn", "isbn13"),
];

const RANDOM_VALUES: &str = include_str!("random_values.sql");

/// The table `every_type`. The servers that the matrix installs have neither contrib modules nor XML nor ICU: there texts
/// take the place of those columns, and the answer is false.
pub(crate) async fn every_type(postgres: &Postgres) -> Result<bool> {
    let names = MODULES.map(|(module, _)| format!("'{module}'")).join(", ");
    let lacks = format!(
        "SELECT current_setting('server_version_num')::int >= 160000 AND count(*) = 0 \
         FROM pg_available_extensions WHERE name IN ({names})"
    );
    if postgres.value(&lacks).await? == "f" {
        postgres.batch(EVERY_TYPE).await?;
        return Ok(true);
    }
    let mut sql = EVERY_TYPE.to_owned();
    let mut replace = |what: &str, by: &str| {
        assert!(sql.contains(what), "every_type.sql has no {what} any more");
        sql = sql.replace(what, by);
    };
    for (module, kind) in MODULES {
        replace(&format!("CREATE EXTENSION {module};"), &format!("CREATE DOMAIN {kind} AS text;"));
    }
    replace("lq lquery", "lq text");
    replace("x xml", "x text");
    replace("xmlelement(name r, xmlagg(xmlelement(name e, md5(i::text))))", "string_agg(md5(i::text), '')");
    postgres.batch(&sql).await?;
    Ok(false)
}

/// A table with random values, and the seed to make the same ones again.
pub(crate) async fn random_values(postgres: &Postgres) -> Result<String> {
    let seed = postgres.value("SELECT random()").await?;
    postgres.batch(&format!("SELECT setseed({seed}); {RANDOM_VALUES}")).await?;
    Ok(format!("seed {seed}"))
}

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
        every_type(&postgres).await?;
        // Native types, which this stream sends as text as well.
        postgres.batch(ALL_TYPES).await?;
        // Rows that their old selves identify, with values out of line.
        postgres
            .batch(
                "CREATE TABLE whole (n int, big text, list text[]); ALTER TABLE whole REPLICA IDENTITY FULL;
                 ALTER TABLE whole ALTER big SET STORAGE EXTERNAL, ALTER list SET STORAGE EXTERNAL;
                 INSERT INTO whole SELECT i % 3, repeat('0123456789', 500), array_fill('0123456789'::text, ARRAY[500]) FROM generate_series(1, 8) i",
            )
            .await?;
        let seed = random_values(&postgres).await?;
        let tables = ["public.every_type", "public.all_types", "public.whole", "public.random_values"];
        Source::publish(&postgres, &tables).await?;
        let config = WorkerConfig::new(&postgres, "one", &tables)?;
        let mut worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        let rows = oracle.assert_equal(&postgres, &tables, CATCH_UP).await.with_context(|| format!("copied, {seed}"))?;
        ensure!(rows == 2020, "{rows} rows copied");

        let again = |table: &str, by: u32| {
            format!(
                "CREATE TEMP TABLE again AS SELECT * FROM {table}; UPDATE again SET id = id + {by}; INSERT INTO {table} SELECT * FROM again;
                 DROP TABLE again"
            )
        };
        postgres.batch(&again("every_type", 100)).await?;
        postgres.batch(&again("all_types", 100)).await?;
        postgres.batch(&again("random_values", 10000)).await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await.with_context(|| format!("streamed, {seed}"))?;

        // Each value becomes another row's, large ones stay as they are.
        let rotated: Vec<String> = columns(&postgres, "every_type")
            .await?
            .into_iter()
            .map(|column| format!("UPDATE every_type t SET {column} = s.{column} FROM every_type s WHERE t.id BETWEEN 100 AND 103 AND s.id = (t.id - 99) % 4"))
            .collect();
        postgres.batch(&rotated.join(";")).await?;
        postgres
            .batch("UPDATE every_type SET n = n + 1; UPDATE all_types SET i4 = 3 WHERE id > 2; UPDATE whole SET n = n + 5 WHERE n = 1")
            .await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("updated")?;

        worker.kill().await?;
        postgres
            .batch("UPDATE every_type SET n = 9 WHERE id IN (1, 101, 10); DELETE FROM every_type WHERE id IN (2, 102); UPDATE all_types SET i4 = 7; DELETE FROM all_types WHERE id IN (4, 104)")
            .await?;
        worker = Worker::start(&config, &postgres).await?;
        let rows = oracle.assert_equal(&postgres, &tables, CATCH_UP).await.context("after a restart")?;
        ensure!(rows == 4028, "{rows} rows after a restart");
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
    (
        "macaddr",
        ["08:00:2b:01:02:03", "08:00:2b:01:02:04", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "01:00:00:00:00:00"],
    ),
    ("bit(3)", ["101", "111", "000", "001", "010"]),
    ("varbit", ["101", "1010", "", "0", "1"]),
    ("oid", ["1", "4294967295", "0", "2147483648", "2"]),
    ("xid8", ["1", "18446744073709551615", "0", "9223372036854775808", "2"]),
    ("money", ["1", "-1", "0", "92233720368547758.07", "-92233720368547758.08"]),
    ("pg_lsn", ["0/1", "FFFFFFFF/FFFFFFFF", "0/0", "1/0", "0/2"]),
    ("tsvector", ["'a':1", "'a':2", "'a'", "", "'b'"]),
    ("jsonb", [r#"{"a": 1.0}"#, r#"{"a": 1.00}"#, "null", "[]", r#""x""#]),
    ("bytea", [r"\x00", r"\x", r"\xff", r"\x5c78", r"\x22"]),
    (
        "uuid",
        [
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a13",
        ],
    ),
    ("shop.code", ["a", "b", "c", "d", "e"]),
    (
        "shop.item",
        ["(x,1.0,{a},sad,empty,1 mon)", "(x,1.00,{a},sad,empty,30 days)", "(,,,,,)", r#"("a,b",,,,,)"#, "(y,,,,,)"],
    ),
    ("hstore", ["a=>1", "a=>2", "", "a=>NULL", r#"""=>"""#]),
    ("ltree", ["a.b", "a.c", "", "a", "b"]),
    ("tid", ["(0,1)", "(0,2)", "(1,1)", "(4294967295,65535)", "(2,2)"]),
];

#[tokio::test]
async fn a_key_of_any_type_finds_its_row_also_when_it_changes_into_an_equal_one() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        let has_all = every_type(&postgres).await?;
        postgres.batch("ALTER TYPE shop.mood ADD VALUE 'later'").await?;
        if has_all {
            let collation = "CREATE COLLATION shop.nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
            postgres.batch(collation).await?;
        }
        let mut names = Vec::new();
        for (number, (kind, values)) in KEYS.iter().enumerate() {
            let kind_name = kind.split(" COLLATE").next().unwrap_or(kind);
            let declared = if has_all { (*kind).to_owned() } else { kind.replace(" COLLATE shop.nocase", "") };
            let rows: Vec<String> = [0, 2, 3]
                .into_iter()
                .map(|place| format!("('{}'::{kind_name}, {place})", values[place].replace('\'', "''")))
                .collect();
            postgres
                .batch(&format!(
                    "CREATE TABLE k{number} (v int, k {declared}, more text, PRIMARY KEY (k)); INSERT INTO k{number} (k, v) VALUES {}",
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

#[tokio::test]
async fn a_database_in_another_encoding_is_mirrored_in_utf8() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().encoding("LATIN1").start().await?;
        Source::prepare(&postgres).await?;
        let tables = ["public.native", "public.texts", "public.bad"];
        let letters = "(SELECT string_agg(chr(i), '') FROM generate_series(160, 255) i)";
        postgres
            .batch(&format!(
                r#"CREATE TABLE native (id int PRIMARY KEY, "é" text, c char(4), b "char");
                   CREATE TABLE texts (k text, a text[], b "char", PRIMARY KEY (k, b)); CREATE TABLE bad (id int PRIMARY KEY, "é" numeric(5,2));
                   INSERT INTO native VALUES (1, {letters}, 'üé', (-23)::"char"), (2, '', '', '');
                   INSERT INTO texts SELECT "é", ARRAY["é", c], b FROM native"#
            ))
            .await?;
        Source::publish(&postgres, &tables).await?;
        // A stream of binary values, then one of text.
        let mut config = WorkerConfig::new(&postgres, "one", &tables[..1])?;
        config.lake = STOP.to_owned();
        let worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        let more = |by: u32| format!("INSERT INTO native SELECT id + {by}, \"é\" || {by}, 'ÿ', b FROM native WHERE id < 3");
        postgres.batch(&more(10)).await?;
        oracle.assert_equal(&postgres, &tables[..1], CATCH_UP).await?;
        worker.terminate().await?;
        config.tables = tables.map(str::to_owned).to_vec();
        let _worker = Worker::start(&config, &postgres).await?;
        postgres.batch(&more(20)).await?;
        postgres.batch(&format!("UPDATE texts SET a = a || {letters}; UPDATE texts SET b = (-1)::\"char\" WHERE k <> ''")).await?;
        // What is said of it is not Latin.
        postgres.batch("INSERT INTO bad VALUES (1, 'NaN')").await?;
        eventually("a table is in error", CATCH_UP, async || {
            let found = postgres.rows("SELECT error, error_hint FROM lake_catalog.mirrored_tables WHERE state = 'errored'").await?;
            Ok(found.into_iter().next())
        })
        .await?;
        let rows = oracle.assert_equal(&postgres, &tables[..2], CATCH_UP).await?;
        ensure!(rows == 8, "{rows} rows");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn bytes_that_are_no_utf8_stop_their_table_alone() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().encoding("SQL_ASCII").start().await?;
        Source::prepare(&postgres).await?;
        let tables = ["public.copied", "public.streamed", "public.good"];
        postgres
            .batch(
                "CREATE TABLE copied (id int PRIMARY KEY, v text); INSERT INTO copied VALUES (1, convert_from('\\xff', 'SQL_ASCII'));
                 CREATE TABLE streamed (id int PRIMARY KEY, v text); INSERT INTO streamed VALUES (1, 'ü');
                 CREATE TABLE good (id int PRIMARY KEY, v text, a text[]); INSERT INTO good VALUES (1, 'ü', '{ü}')",
            )
            .await?;
        Source::publish(&postgres, &tables).await?;
        let mut worker = Worker::spawn(&WorkerConfig::new(&postgres, "one", &tables)?)?;
        worker.streaming(&postgres, 2).await?;
        postgres.batch("INSERT INTO streamed VALUES (2, convert_from('\\xc3', 'SQL_ASCII')); INSERT INTO good VALUES (2, 'é', '{é}')").await?;
        eventually("both tables are in error", CATCH_UP, async || {
            let sql = "SELECT count(*) FROM lake_catalog.mirrored_tables WHERE state = 'errored' AND error LIKE '%\"v\"%UTF-8%'";
            Ok((postgres.value(sql).await? == "2").then_some(()))
        })
        .await?;
        let rows = Oracle::new(&postgres).assert_equal(&postgres, &["public.good"], CATCH_UP).await?;
        ensure!(rows == 2, "{rows} rows");
        ensure!(worker.runs()?, "the worker has ended");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_published_value_that_has_no_binary_form_does_not_end_the_stream_of_others() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres
            .batch("CREATE TABLE good (id int PRIMARY KEY, v timestamptz); CREATE TABLE strange (id int PRIMARY KEY, v aclitem[])")
            .await?;
        let tables = ["public.good"];
        Source::publish(&postgres, &tables).await?;
        let mut worker = Worker::start(&WorkerConfig::new(&postgres, "one", &tables)?, &postgres).await?;
        Source::publish(&postgres, &["public.strange"]).await?;
        postgres.batch("INSERT INTO strange VALUES (1, '{postgres=r/postgres}'); INSERT INTO good VALUES (1, now())").await?;
        let rows = Oracle::new(&postgres).assert_equal(&postgres, &tables, CATCH_UP).await?;
        ensure!(rows == 1, "{rows} rows");
        ensure!(worker.runs()?, "the worker has ended");
        Ok(())
    })
    .await
}
