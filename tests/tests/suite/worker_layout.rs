//! Tables that are divided into partitions: by every transform, under every kind of change, and laid out otherwise under way.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lake_tests::exit_code;
use lake_tests::{Oracle, Partitions, Postgres, Source, Worker, WorkerConfig, bounded, eventually};

use crate::{CATCH_UP, TEST_LIMIT};

/// Tables whose columns have all types that a partition may be of, NULL among their values, dates before Christ and values that
/// Iceberg has not.
const TABLES: &str = "
    CREATE TABLE ids (id bigint PRIMARY KEY, at timestamptz, v text);
    CREATE TABLE names (id int PRIMARY KEY, name text, at timestamp, v text);
    CREATE TABLE sums (day date, amount numeric(12, 2), code uuid, id int, v text, PRIMARY KEY (id, code));
    CREATE TABLE flags (flag boolean, n int, raw bytea, t time, at timestamptz, v text);
    ALTER TABLE flags REPLICA IDENTITY FULL;
    INSERT INTO ids SELECT i - 200, '1969-12-30 07:00+00'::timestamptz + i * interval '17 min', 'v' || i FROM generate_series(1, 400) i;
    INSERT INTO ids VALUES (1000, NULL, 'x'), (1001, 'infinity', 'y'), (1002, '4713-01-01 00:00+00 BC', 'z'), (1003, '9999-12-31 23:59+00', 'z');
    INSERT INTO names SELECT i, CASE WHEN i % 9 > 0 THEN chr(64 + i % 4) || 'ü' || i END, '1970-01-01 00:00:00'::timestamp + (i - 20) * interval '11 min', 'v'
        FROM generate_series(1, 40) i;
    INSERT INTO sums SELECT CASE WHEN i % 7 > 0 THEN date '1968-06-01' + i * 20 END, (i - 20) * 7.31, md5((i % 40)::text)::uuid, i, 'v'
        FROM generate_series(1, 40) i;
    INSERT INTO flags SELECT CASE i % 3 WHEN 0 THEN true WHEN 1 THEN false END, i % 5, decode(lpad(to_hex(i % 6), 2, '0') || 'ff', 'hex'),
        time '00:00' + i * interval '13 min', '2024-01-15 00:00+00'::timestamptz + i * interval '9 day', 'v' FROM generate_series(1, 30) i;";

const ALL_TABLES: [&str; 4] = ["public.ids", "public.names", "public.sums", "public.flags"];

fn layouts() -> Vec<(String, String, String)> {
    let layout = |table: &str, by: &str| (format!("public.{table}"), by.to_owned(), String::new());
    vec![
        layout("ids", "bucket(4, id), day(at)"),
        layout("names", "hour(at), truncate(2, name)"),
        layout("sums", "year(day), truncate(50, amount), bucket(3, code)"),
        layout("flags", "flag, void(n), truncate(1, raw), bucket(2, t), month(at)"),
    ]
}

async fn source(publish: &[&str], tables: &str) -> Result<Postgres> {
    let postgres = Postgres::builder().start().await?;
    Source::prepare(&postgres).await?;
    postgres.batch(tables).await?;
    Source::publish(&postgres, publish).await?;
    postgres.batch(&format!("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}", Source::ROLE)).await?;
    Ok(postgres)
}

/// Heap and lake are equal, and each row is in the partition where readers look for it.
async fn equal(postgres: &Postgres, oracle: &Oracle, tables: &[&str]) -> Result<Vec<Partitions>> {
    oracle.assert_equal(postgres, tables, CATCH_UP).await?;
    oracle.assert_partitions(postgres, tables, CATCH_UP).await
}

fn fields(partitions: &Partitions) -> Vec<&str> {
    partitions.now.iter().map(String::as_str).collect()
}

#[tokio::test]
async fn rows_are_in_their_partitions_by_every_transform_through_every_change() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = source(&ALL_TABLES, TABLES).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &ALL_TABLES)?;
        config.layout = layouts();
        config.maintenance = "tier_files = 4".to_owned();
        let mut worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        let copied = equal(&postgres, &oracle, &ALL_TABLES).await?;
        ensure!(fields(&copied[0]) == ["id_bucket_4=bucket[4]", "at_day=day"], "{:?}", copied[0].now);
        ensure!(
            fields(&copied[3])
                == ["flag=identity", "n_void=void", "raw_trunc_1=truncate[1]", "t_bucket_2=bucket[2]", "at_month=month"],
            "{:?}",
            copied[3].now
        );
        for partitions in &copied {
            ensure!(partitions.found.len() > 15, "there are only {} partitions", partitions.found.len());
        }

        // Rows that move to another partition, that stay in theirs, that go, and that come into new ones and into none before.
        for turn in 0..4 {
            let change = format!(
                "UPDATE ids SET at = at + interval '1 day' WHERE id % 6 = {turn} AND isfinite(at);
                 UPDATE ids SET v = v || '{turn}' WHERE id % 5 = {turn}; DELETE FROM ids WHERE id % 17 = {turn};
                 UPDATE ids SET id = id + 100000 WHERE id % 19 = {turn};
                 INSERT INTO ids SELECT 5000 + {turn} * 10 + i, now() + i * interval '1 h', NULL FROM generate_series(1, 9) i;
                 UPDATE names SET name = 'Z' || name WHERE id % 6 = {turn}; UPDATE names SET at = NULL WHERE id % 13 = {turn};
                 DELETE FROM names WHERE id % 23 = {turn};
                 UPDATE sums SET amount = -amount WHERE id % 6 = {turn}; UPDATE sums SET day = 'infinity' WHERE id % 29 = {turn};
                 UPDATE sums SET code = md5(id::text)::uuid WHERE id % 11 = {turn};
                 UPDATE flags SET flag = NOT flag, raw = '\\x'::bytea WHERE n = {turn}; DELETE FROM flags WHERE n = {turn} + 1 AND flag;
                 INSERT INTO flags SELECT NULL, {turn}, NULL, NULL, NULL, 'twin' FROM generate_series(1, 3)"
            );
            postgres.batch(&change).await?;
            equal(&postgres, &oracle, &ALL_TABLES).await?;
            if turn == 2 {
                worker.kill().await?;
                postgres.batch("UPDATE ids SET at = at - interval '2 day' WHERE id % 3 = 0 AND isfinite(at)").await?;
                worker = Worker::start(&config, &postgres).await?;
            }
        }
        postgres.batch("TRUNCATE names; INSERT INTO names VALUES (1, 'again', now(), 'v')").await?;
        let before = equal(&postgres, &oracle, &ALL_TABLES).await?;
        ensure!(before[1].found.len() == 1, "{:?}", before[1].found);

        // Files of one partition become one; none of several.
        let output = config.call(&["maintain"]).await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let after = equal(&postgres, &oracle, &ALL_TABLES).await?;
        let files = |found: &[Partitions]| found.iter().flat_map(|table| &table.found).map(|part| part.files).sum::<u64>();
        ensure!(files(&after) < files(&before), "{} files, and {} before", files(&after), files(&before));
        ensure!(after.iter().flat_map(|table| &table.found).all(|part| part.files == 1), "{after:?}");
        ensure!(worker.terminate().await?.0 == exit_code::OK, "it did not end well");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_table_is_laid_out_otherwise_under_way_and_old_files_stay() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = source(&["public.ids"], TABLES).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.ids"])?;
        config.file_size = Some("1MiB".to_owned());
        let worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        let whole = equal(&postgres, &oracle, &["public.ids"]).await?.remove(0);
        ensure!(whole.now.is_empty() && whole.found.len() == 1, "{whole:?}");
        ensure!(worker.terminate().await?.0 == exit_code::OK, "it did not end well");

        // One layout after the other; a field that comes again is the one that it was.
        let mut layouts_seen = BTreeSet::new();
        for by in ["day(at), bucket(4, id)", "", "bucket(4, id)"] {
            config.layout = vec![("public.ids".to_owned(), by.to_owned(), String::new())];
            let worker = Worker::start(&config, &postgres).await?;
            let changed = format!(
                "UPDATE ids SET v = '{by}' WHERE id % 5 = 2; DELETE FROM ids WHERE id % 37 = {};
                 INSERT INTO ids SELECT i, now(), '{by}' FROM generate_series(20000 + {1}, 20005 + {1}) i",
                layouts_seen.len(),
                layouts_seen.len() * 10
            );
            postgres.batch(&changed).await?;
            let now = equal(&postgres, &oracle, &["public.ids"]).await?.remove(0);
            layouts_seen.insert(now.now.clone());
            let in_it = now.found.iter().filter(|part| part.spec == now.now).count();
            ensure!(in_it > 0, "no file is laid out as the table is: {now:?}");
            ensure!(now.found.iter().any(|part| part.spec.is_empty()), "the first files stay: {now:?}");
            // Positions in files of every spec are deleted, and files of each are rewritten within their partitions.
            let output = config.call(&["maintain"]).await?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            equal(&postgres, &oracle, &["public.ids"]).await?;
            worker.kill().await?;
        }
        ensure!(layouts_seen.len() == 3, "{layouts_seen:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn columns_that_partitions_are_of_change_with_the_source() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = source(&["public.ids", "public.names"], TABLES).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.ids", "public.names"])?;
        config.layout = layouts().into_iter().take(2).collect();
        config.layout[1].2 = "v DESC, at".to_owned();
        let worker = Worker::start(&config, &postgres).await?;
        let (oracle, tables) = (Oracle::new(&postgres), ["public.ids", "public.names"]);
        equal(&postgres, &oracle, &tables).await?;

        // Rows are sorted by what is left of their order.
        postgres.batch("ALTER TABLE names DROP COLUMN v; UPDATE names SET id = id + 1000 WHERE id % 3 = 0").await?;
        equal(&postgres, &oracle, &tables).await?;
        // Another name for the column: the field's stays, and files are found by number.
        postgres.batch("ALTER TABLE ids RENAME at TO moment; UPDATE ids SET v = 'renamed' WHERE id % 3 = 0").await?;
        let renamed = equal(&postgres, &oracle, &tables).await?.remove(0);
        ensure!(fields(&renamed) == ["id_bucket_4=bucket[4]", "at_day=day"], "{:?}", renamed.now);
        // The name of a field for a column: readers would take one for the other, so the table is copied into another one.
        postgres.batch("ALTER TABLE ids ADD COLUMN at_day int; UPDATE ids SET at_day = 7 WHERE id % 3 = 1").await?;
        let anew = equal(&postgres, &oracle, &tables).await?.remove(0);
        ensure!(fields(&anew) == ["id_bucket_4=bucket[4]", "moment_day=day"], "{:?}", anew.now);
        // The column goes: what is left of the layout stays.
        postgres.batch("ALTER TABLE ids DROP COLUMN moment; UPDATE ids SET v = 'dropped' WHERE id % 3 = 2").await?;
        let fewer = equal(&postgres, &oracle, &tables).await?.remove(0);
        ensure!(fields(&fewer) == ["id_bucket_4=bucket[4]"], "{:?}", fewer.now);
        ensure!(worker.terminate().await?.0 == exit_code::OK, "it did not end well");

        // The file names a column that is gone. The mirror goes on; a new mirror would not begin.
        let worker = Worker::start(&config, &postgres).await?;
        postgres.batch("UPDATE ids SET v = 'still' WHERE id % 2 = 0").await?;
        equal(&postgres, &oracle, &tables).await?;
        let output = worker.output();
        ensure!(output.contains("stays laid out as it is") && output.contains("there is no column"), "{output}");
        worker.terminate().await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_layout_that_is_none_is_refused_and_a_row_that_fits_in_no_partition_stops_its_table_alone() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = source(&["public.ids", "public.names"], TABLES).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.ids", "public.names"])?;
        for (by, what) in [
            ("day(id)", "the type bigint has no such transform"),
            ("week(at)", "week(at) is not understood"),
            ("nothing", "there is no column \\\"nothing\\\""),
        ] {
            config.layout = vec![("public.ids".to_owned(), by.to_owned(), String::new())];
            let (code, output) = config.run_to_end(CATCH_UP).await?;
            ensure!(code == exit_code::CONFIG && output.contains("public.ids: partition_by"), "{code}: {output}");
            ensure!(output.replace('\\', "").contains(&what.replace('\\', "")) && output.contains("bucket(16, id)"), "{output}");
            // It can be known before.
            let check = config.call(&["check"]).await?;
            let said = String::from_utf8_lossy(&check.stdout).into_owned();
            ensure!(check.status.code() == Some(exit_code::CONFIG), "{:?}: {said}", check.status);
            ensure!(said.contains("public.ids: partition_by") && said.contains(&what.replace('\\', "")), "{said}");
            ensure!(said.contains("bucket(16, id)"), "no hint: {said}");
        }
        config.layout = vec![("public.names".to_owned(), "truncate(10, id)".to_owned(), String::new())];
        let worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        equal(&postgres, &oracle, &["public.ids", "public.names"]).await?;
        postgres
            .batch("INSERT INTO names VALUES (-2147483648, 'least', now(), 'v'); INSERT INTO ids VALUES (9999999, now(), 'w')")
            .await?;
        equal(&postgres, &oracle, &["public.ids"]).await?;
        let stopped = eventually("the table stops", CATCH_UP, async || {
            let found = postgres.value("SELECT error || ' / ' || error_hint FROM lake_catalog.mirrored_tables WHERE state = 'errored'");
            Ok(found.await.ok())
        });
        let error = Box::pin(stopped).await?;
        ensure!(error.contains("too far from zero") && error.contains("partition_by"), "{error}");
        // Without partitions it has a place.
        worker.terminate().await?;
        config.layout.clear();
        let worker = Worker::spawn(&config)?;
        let output = config.call(&["resync", "public.names"]).await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        eventually("it is copied again", CATCH_UP, async || {
            let left = postgres.value("SELECT count(*) FROM lake_catalog.mirrored_tables WHERE state <> 'streaming'").await?;
            Ok((left == "0").then_some(()))
        })
        .await?;
        equal(&postgres, &oracle, &["public.ids", "public.names"]).await?;
        worker.terminate().await?;
        Ok(())
    })
    .await
}

/// Many partitions, several connections, and a copy that is killed and goes on.
#[tokio::test]
async fn a_large_copy_into_many_partitions_goes_on_after_a_kill() -> Result<()> {
    const LARGE: &str = "CREATE TABLE large (id int PRIMARY KEY, day date, place int, v text);
        INSERT INTO large SELECT i, date '2024-01-01' + (i / 4000), (i * 7919) % 30, md5(i::text) || repeat(md5((i + 1)::text), 4)
            FROM generate_series(1, 240000) i;";
    bounded(TEST_LIMIT, async {
        let postgres = source(&["public.large"], LARGE).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.large"])?;
        config.layout = vec![("public.large".to_owned(), "place, day(day)".to_owned(), String::new())];
        config.file_size = Some("1MiB".to_owned());
        config.copy_connections = Some(2);
        config.maintenance = "enabled = false".to_owned();
        let worker = Worker::spawn(&config)?;
        let parts = "SELECT count(*) FROM lake_catalog.copied_parts";
        eventually("a part of the copy is done", CATCH_UP, async || {
            let done = postgres.value(parts).await.unwrap_or_default();
            Ok((done.parse::<u64>().unwrap_or(0) > 0).then_some(()))
        })
        .await
        .with_context(|| worker.output())?;
        worker.kill().await?;
        postgres
            .batch("UPDATE large SET place = 29 - place WHERE id % 1000 = 0; DELETE FROM large WHERE id % 777 = 0")
            .await?;
        let worker = Worker::start(&config, &postgres).await?;
        let output = worker.output();
        ensure!(output.contains("the copy goes on"), "{output}");
        let oracle = Oracle::new(&postgres);
        let found = equal(&postgres, &oracle, &["public.large"]).await?.remove(0);
        ensure!(found.found.len() > 1500, "{} partitions", found.found.len());
        worker.terminate().await?;
        Ok(())
    })
    .await
}
