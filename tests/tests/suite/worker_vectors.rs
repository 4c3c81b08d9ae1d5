//! Tables of Iceberg's format version 3: what is deleted in a data file is one deletion vector, and rows keep their numbers.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lake_tests::{
    Oracle, OtherCatalog, Postgres, Seaweed, Source, Worker, WorkerConfig, Workload, bounded, eventually,
};
use serde_json::Value;

use crate::mirror::Mirror;
use crate::{ALL, CATCH_UP, TEST_LIMIT};

/// New tables are of version 3.
const VERSION_3: &str = "format_version = 3";

/// The metadata of a table in the source's own catalog.
async fn metadata(postgres: &Postgres, table: &str) -> Result<Value> {
    let query = format!("SELECT metadata_location FROM lake_catalog.iceberg_tables WHERE table_name = '{table}'");
    let location = postgres.value(&query).await?;
    Ok(serde_json::from_slice(&std::fs::read(location.trim_start_matches("file://"))?)?)
}

/// What the table's newest snapshot says of itself: how many data files, deletion vectors and deleted rows there are.
async fn totals(postgres: &Postgres, table: &str) -> Result<(u64, u64, u64)> {
    let metadata = metadata(postgres, table).await?;
    ensure!(metadata["format-version"] == 3, "version {}", metadata["format-version"]);
    let snapshots = metadata["snapshots"].as_array().context("snapshots")?;
    let newest = snapshots.iter().find(|snapshot| snapshot["snapshot-id"] == metadata["current-snapshot-id"]);
    let summary = &newest.context("a snapshot")?["summary"];
    let total = |name: &str| -> Result<u64> { Ok(summary[name].as_str().context("a total")?.parse()?) };
    Ok((total("total-data-files")?, total("total-delete-files")?, total("total-position-deletes")?))
}

/// The number of each row, and the sequence number of the commit that changed it last, by its id, as DuckDB has them.
async fn numbers(mirror: &Mirror) -> Result<BTreeMap<String, (String, String)>> {
    mirror.oracle.caught_up(&mirror.postgres, CATCH_UP).await?;
    let query = "SELECT id, _row_id, _last_updated_sequence_number FROM {public.t} ORDER BY id";
    let rows = mirror.oracle.rows(query).await?;
    let count = rows.len();
    let row = |row: Vec<Option<String>>| -> Result<_> {
        let [id, number, commit] = row.try_into().ok().context("three columns")?;
        Ok((id.context("id")?, (number.context("no number")?, commit.context("no commit")?)))
    };
    let found: BTreeMap<_, _> = rows.into_iter().map(row).collect::<Result<_>>()?;
    let distinct: std::collections::BTreeSet<&String> = found.values().map(|(number, _)| number).collect();
    ensure!(distinct.len() == count, "{count} rows have {} numbers", distinct.len());
    Ok(found)
}

async fn compact(mirror: &Mirror) -> Result<()> {
    let done = mirror.config.call(&["maintain", "public.t"]).await?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

#[tokio::test]
async fn a_table_of_version_3_is_the_heap_after_whatever_happens_and_rows_keep_their_numbers() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres
            .batch(
                "CREATE TABLE t (id int PRIMARY KEY, v text, n numeric(10, 2));
                 INSERT INTO t SELECT i, 'row ' || i, i FROM generate_series(1, 3000) i",
            )
            .await?;
        Source::publish(&postgres, &["public.t"]).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.t"])?;
        config.lake = VERSION_3.to_owned();
        config.maintenance = "enabled = false".to_owned();
        let mut mirror = Mirror::of(postgres, config, &["public.t"]).await?;
        mirror.equal().await?;
        ensure!(totals(&mirror.postgres, "t").await?.1 == 0);

        mirror.after("INSERT INTO t SELECT i, 'new', NULL FROM generate_series(3001, 3100) i").await?;
        mirror.after("UPDATE t SET v = upper(v) WHERE id % 10 = 0").await?;
        mirror.after("DELETE FROM t WHERE id % 7 = 0").await?;
        mirror.after("DELETE FROM t WHERE id % 7 = 1; UPDATE t SET id = id + 10000 WHERE id % 50 = 2").await?;
        mirror.after("DELETE FROM t WHERE id BETWEEN 3050 AND 3060; INSERT INTO t VALUES (3050, 'again', 1)").await?;
        let (files, vectors, deleted) = totals(&mirror.postgres, "t").await?;
        ensure!(
            vectors > 1 && vectors <= files && deleted > 900,
            "{files} files, {vectors} vectors, {deleted} deleted"
        );
        let before = numbers(&mirror).await?;
        // Not what is read is the same, but what is known of it.
        mirror.restart().await?;
        mirror.after("DELETE FROM t WHERE id = 3; UPDATE t SET v = 'after' WHERE id BETWEEN 20 AND 30").await?;
        let after = numbers(&mirror).await?;
        let changed = |id: &&String| id.parse().is_ok_and(|id: i64| id == 3 || (20..=30).contains(&id));
        ensure!(before.keys().filter(changed).all(|id| before.get(id) != after.get(id)));
        ensure!(before.iter().filter(|(id, _)| !changed(id)).all(|(id, row)| after.get(id) == Some(row)));

        // All files become one, of which nothing is deleted, and each row is the one that it was.
        compact(&mirror).await?;
        ensure!(totals(&mirror.postgres, "t").await? == (1, 0, 0), "{:?}", totals(&mirror.postgres, "t").await?);
        mirror.equal().await?;
        ensure!(numbers(&mirror).await? == after, "rows have other numbers after a rewrite");
        mirror.after("DELETE FROM t WHERE id BETWEEN 100 AND 199; INSERT INTO t VALUES (0, 'zero', 0)").await?;
        mirror.restart().await?;
        mirror.equal().await?;
        // Once more: with rows that have moved before, and rows that have not.
        let before = numbers(&mirror).await?;
        compact(&mirror).await?;
        mirror.equal().await?;
        ensure!(totals(&mirror.postgres, "t").await? == (1, 0, 0) && numbers(&mirror).await? == before);
        let newest = before.get("0").context("the newest row")?.0.parse::<u64>()?;
        ensure!(after.values().all(|(number, _)| number.parse().is_ok_and(|number: u64| number < newest)));

        mirror.after("ALTER TABLE t ADD COLUMN extra date; UPDATE t SET extra = '2026-01-01' WHERE id < 50").await?;
        let before = numbers(&mirror).await?;
        compact(&mirror).await?;
        mirror.equal().await?;
        ensure!(numbers(&mirror).await? == before);
        mirror.after("UPDATE t SET extra = 'infinity' WHERE id = 40").await?;
        mirror.after("TRUNCATE t").await?;
        mirror
            .after("INSERT INTO t SELECT i, 'next', 0 FROM generate_series(1, 10) i; DELETE FROM t WHERE id = 5")
            .await?;
        mirror.after("DELETE FROM t WHERE id < 5").await?;
        mirror.restart().await?;
        mirror.after("UPDATE t SET v = v || '!'").await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn under_load_rewritten_all_the_time_and_killed_tables_of_version_3_lose_nothing() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        let workload = Workload::create(&postgres, 33).await?;
        Source::publish(&postgres, Workload::TABLES).await?;
        let mut config = WorkerConfig::new(&postgres, "one", Workload::TABLES)?;
        config.lake = VERSION_3.to_owned();
        config.interval = "30ms".to_owned();
        config.file_size = Some("256KiB".to_owned());
        config.maintenance = "tier_files = 2\nbandwidth = \"1GiB\"".to_owned();
        config.history = vec!["bank.left".to_owned()];
        let oracle = Oracle::new(&postgres);
        // What a worker leaves behind of a copy is looked for an hour later; of a table that streams, at the next start.
        Worker::start(&config, &postgres).await?.kill().await?;
        let running = workload.start(&postgres, 3);
        for round in 0..8_u64 {
            let worker = Worker::spawn(&config)?;
            tokio::time::sleep(Duration::from_millis(600 + round * 397 % 1900)).await;
            worker.kill().await?;
        }
        let worker = Worker::start(&config, &postgres).await?;
        running.stop().await?;
        oracle.assert_equal(&postgres, Workload::TABLES, CATCH_UP).await?;
        oracle.assert_history(&postgres, &["bank.left"], CATCH_UP).await?;
        oracle.assert_invariant(Workload::INVARIANT, &Workload::TOTAL.to_string(), ALL).await?;
        let (files, vectors, deleted) = totals(&postgres, "left").await?;
        ensure!(vectors <= files, "{files} files, {vectors} vectors, {deleted} deleted");
        ensure!(totals(&postgres, "left_history").await?.1 == 0, "nothing is deleted of a history");
        // Files of vectors of which none counts go too.
        let mut left = Vec::new();
        let swept = eventually("only files that the tables name are left", CATCH_UP, async || {
            left = oracle.strays(&config.warehouse).await?;
            Ok(left.is_empty().then_some(()))
        });
        let swept = Box::pin(swept).await;
        swept.with_context(|| format!("left behind: {left:?}"))?;
        drop(worker);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_table_is_of_version_3_when_it_is_copied_anew_and_in_seaweeds_catalog_too() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')").await?;
        Source::publish(&postgres, &["public.t"]).await?;
        let store = Seaweed::start().await?;
        let catalog = OtherCatalog::rest(&store)?;
        let mut config =
            WorkerConfig::new(&postgres, "one", &["public.t"])?.in_catalog(&catalog)?.in_table_bucket(&store)?;
        let oracle = Oracle::new(&postgres).in_catalog(&catalog).in_store(&store);
        let worker = Worker::start(&config, &postgres).await?;
        postgres.batch("DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (3, 'c')").await?;
        oracle.assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        worker.kill().await?;

        config.lake = VERSION_3.to_owned();
        let worker = Worker::start(&config, &postgres).await?;
        postgres.batch("DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (4, 'd')").await?;
        oracle.assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        let output = config.call(&["resync", "public.t"]).await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Of rows of version 2 nobody knows a number.
        let numbered = "SELECT count(_row_id) FROM {public.t}";
        let copied = eventually("it is copied anew", CATCH_UP, async || {
            let rows = oracle.rows(numbered).await;
            Ok(rows.is_ok_and(|rows| rows == [[Some("2".to_owned())]]).then_some(()))
        });
        Box::pin(copied).await?;
        for sql in [
            "INSERT INTO t SELECT i, 'more' FROM generate_series(10, 50) i",
            "DELETE FROM t WHERE id % 3 = 0",
            "UPDATE t SET v = 'other' WHERE id % 5 = 0",
            "DELETE FROM t WHERE id % 7 = 0",
        ] {
            postgres.batch(sql).await?;
            oracle.assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        }
        let numbers = "SELECT id, _row_id FROM {public.t} ORDER BY id";
        let before = oracle.rows(numbers).await?;
        let output = config.call(&["maintain", "--expire-snapshots", "public.t"]).await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        oracle.assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        ensure!(oracle.rows(numbers).await? == before);
        drop(worker);
        Ok(())
    })
    .await
}
