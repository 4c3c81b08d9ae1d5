//! The standalone worker keeps its files in order: few of them however many commits there were, while the stream goes on, and
//! whatever is killed, altered or copied anew meanwhile.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker, WorkerConfig, Workload, bounded, eventually};

use crate::{ALL, CATCH_UP, TEST_LIMIT};

/// Tables of other kinds than the workload's: equal rows, append-only, partitioned.
const KINDS: &str = "CREATE TABLE twins (a int, b text); ALTER TABLE twins REPLICA IDENTITY FULL;
     CREATE TABLE log (at timestamptz DEFAULT now(), line text);
     CREATE TABLE parts (id int, part int, v text, PRIMARY KEY (part, id)) PARTITION BY LIST (part);
     CREATE TABLE parts_0 PARTITION OF parts FOR VALUES IN (0); CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1)";
const WITH_KEYS: [&str; 6] = ["bank.left", "bank.right", "bank.ledger", "bank.scratch", "public.twins", "public.parts"];
const EVERY: [&str; 7] =
    ["bank.left", "bank.right", "bank.ledger", "bank.scratch", "public.twins", "public.parts", "public.log"];

/// A table's newest snapshot and metadata.
#[derive(Debug, PartialEq, Eq)]
struct Totals {
    snapshots: usize,
    data_files: u64,
    delete_files: u64,
    bytes: u64,
    metadata_bytes: u64,
}

async fn totals(postgres: &Postgres, table: &str) -> Result<Totals> {
    let location = postgres
        .value(&format!("SELECT metadata_location FROM lake_catalog.iceberg_tables WHERE table_name = '{table}'"))
        .await?;
    let json = std::fs::read(location.trim_start_matches("file://"))?;
    let metadata: serde_json::Value = serde_json::from_slice(&json)?;
    let snapshots = metadata["snapshots"].as_array().context("snapshots")?;
    let newest = snapshots.iter().find(|snapshot| snapshot["snapshot-id"] == metadata["current-snapshot-id"]);
    let total = |name: &str| -> Result<u64> {
        let total = newest.and_then(|snapshot| snapshot["summary"][name].as_str()).context("a total")?;
        Ok(total.parse()?)
    };
    Ok(Totals {
        snapshots: snapshots.len(),
        data_files: total("total-data-files")?,
        delete_files: total("total-delete-files")?,
        bytes: total("total-files-size")?,
        metadata_bytes: json.len() as u64,
    })
}

/// A worker that commits and rewrites as often as it can.
fn restless(postgres: &Postgres, tables: &[&str]) -> Result<WorkerConfig> {
    let mut config = WorkerConfig::new(postgres, "one", tables)?;
    config.interval = "30ms".to_owned();
    config.file_size = Some("256KiB".to_owned());
    config.maintenance = "tier_files = 2\nbandwidth = \"1GiB\"".to_owned();
    Ok(config)
}

/// Some changes of the tables of [`KINDS`].
fn of_other_kinds(turn: u64) -> String {
    let (n, part) = (turn * 10, turn % 2);
    format!(
        "INSERT INTO twins SELECT i % 3, 'twin' FROM generate_series(1, 7) i;
         DELETE FROM twins WHERE ctid IN (SELECT ctid FROM twins LIMIT 3);
         UPDATE twins SET b = 'twin {part}' WHERE ctid IN (SELECT ctid FROM twins ORDER BY random() LIMIT 2);
         INSERT INTO log (line) SELECT 'line ' || i FROM generate_series(1, 5) i;
         INSERT INTO parts SELECT i, {part}, 'v' FROM generate_series({n}, {n} + 9) i;
         UPDATE parts SET v = v || '{turn}' WHERE id % 7 = {part}; DELETE FROM parts WHERE id % 11 = 3;
         UPDATE parts SET part = 1 - part WHERE id % 13 = 5"
    )
}

async fn rewritten(worker: &Worker) -> Result<u64> {
    let (_, metrics) = worker.admin("/metrics").await?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("lake_rewritten_files_total "));
    Ok(line.map_or(Ok(0), str::parse)?)
}

async fn rewrites_go_on(worker: &Worker) -> Result<()> {
    let before = rewritten(worker).await?;
    let more = async || Ok((rewritten(worker).await? > before + 10).then_some(()));
    Box::pin(eventually("files are rewritten", CATCH_UP, more)).await
}

/// Files that are as they should be are left alone, however small they came out.
async fn rewrites_end(worker: &Worker) -> Result<()> {
    let mut before = None;
    let none = async || {
        let now = Some(rewritten(worker).await?);
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok((std::mem::replace(&mut before, now) == now).then_some(()))
    };
    Box::pin(eventually("rewrites end", CATCH_UP, none)).await
}

async fn no_strays(oracle: &Oracle, warehouse: &Path) -> Result<()> {
    let mut last = Vec::new();
    let swept = eventually("only files that the tables name are left", CATCH_UP, async || {
        last = oracle.strays(warehouse).await?;
        Ok(last.is_empty().then_some(()))
    });
    let swept = Box::pin(swept).await;
    swept.with_context(|| format!("left behind: {last:?}"))
}

#[tokio::test]
async fn files_are_rewritten_under_way_through_kills_resyncs_and_alterations() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        let workload = Workload::create(&postgres, 77).await?;
        postgres.batch(KINDS).await?;
        Source::publish(&postgres, &EVERY).await?;
        postgres.batch(&format!("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}", Source::ROLE)).await?;
        postgres.batch("ALTER PUBLICATION lakemirror SET (publish_via_partition_root = true)").await?;
        let mut config = restless(&postgres, &WITH_KEYS)?;
        config.append_only = vec!["public.log".to_owned()];
        config.history = vec!["bank.left".to_owned()];
        let mut worker = Worker::start(&config, &postgres).await?;
        let oracle = Oracle::new(&postgres);
        let running = workload.start(&postgres, 3);
        for turn in 0..6 {
            for n in 0..30 {
                postgres.batch(&of_other_kinds(turn * 30 + n)).await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            rewrites_go_on(&worker).await?;
            match turn {
                0 | 3 => {
                    worker.kill().await?;
                    worker = Worker::start(&config, &postgres).await?;
                }
                1 => {
                    postgres
                        .batch(
                            "ALTER TABLE bank.left ADD COLUMN extra date; ALTER TABLE bank.left RENAME note TO remark",
                        )
                        .await?
                }
                2 => {
                    let output = config.call(&["resync", "bank.right"]).await?;
                    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                    worker.streaming(&postgres, EVERY.len()).await?;
                }
                // A companion, that files from before have not got.
                4 => postgres.batch("UPDATE bank.left SET extra = 'infinity' WHERE id = 5").await?,
                _ => {}
            }
        }
        running.stop().await?;
        oracle.assert_equal(&postgres, &EVERY, CATCH_UP).await?;
        oracle.assert_history(&postgres, &["bank.left"], CATCH_UP).await?;
        // Every snapshot that is retained, files of before the last rewrites among them.
        let seen = oracle.assert_invariant(Workload::INVARIANT, &Workload::TOTAL.to_string(), ALL).await?;
        ensure!(seen > 10, "only {seen} positions");
        for table in ["left", "right", "ledger", "scratch", "twins", "parts", "log", "left_history"] {
            let mut last = None;
            let few = async || {
                let totals = totals(&postgres, table).await?;
                // Those of about the wanted size, and few that are smaller.
                let most = 24 + totals.bytes / (128 << 10);
                let few = totals.data_files <= most && totals.delete_files <= 24;
                last = Some(totals);
                Ok(few.then_some(()))
            };
            let few = Box::pin(eventually("few files", CATCH_UP, few)).await;
            few.with_context(|| format!("{table}: {last:?}"))?;
        }
        rewrites_end(&worker).await?;
        no_strays(&oracle, &config.warehouse).await?;
        ensure!(worker.runs()?, "the worker has ended");
        // What is read back at start is the same.
        worker.kill().await?;
        let worker = Worker::start(&config, &postgres).await?;
        postgres.batch(&of_other_kinds(999)).await?;
        oracle.assert_equal(&postgres, &EVERY, CATCH_UP).await?;
        drop(worker);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn after_many_small_commits_files_and_metadata_are_few() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY, v text)").await?;
        Source::publish(&postgres, &["public.t"]).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.t"])?;
        config.interval = "5ms".to_owned();
        let worker = Worker::start(&config, &postgres).await?;
        for n in 0..800 {
            let sql = format!("INSERT INTO t VALUES ({n}, 'v'); UPDATE t SET v = 'w' WHERE id = {n} * 7 % ({n} + 1)");
            postgres.batch(&sql).await?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Oracle::new(&postgres).assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        let few = async || {
            let totals = totals(&postgres, "t").await?;
            Ok((totals.data_files < 24 && totals.delete_files < 24 && totals.metadata_bytes <= 100 << 10).then_some(()))
        };
        Box::pin(eventually("few files", CATCH_UP, few)).await.with_context(|| "t".to_owned())?;
        ensure!(rewritten(&worker).await? > 0, "no file was rewritten");
        // As the default is; turned off, they stay.
        worker.kill().await?;
        config.maintenance = "enabled = false".to_owned();
        let worker = Worker::start(&config, &postgres).await?;
        let mut n = 5000;
        let many = async || {
            n += 1;
            postgres.batch(&format!("INSERT INTO t VALUES ({n}, 'v')")).await?;
            Ok((totals(&postgres, "t").await?.data_files > 24).then_some(()))
        };
        Box::pin(eventually("files are many", CATCH_UP, many)).await?;
        Oracle::new(&postgres).assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        ensure!(rewritten(&worker).await? == 0, "files were rewritten");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn by_hand_all_files_become_one_and_former_snapshots_expire() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)").await?;
        let tables = ["public.t", "public.u"];
        Source::publish(&postgres, &tables).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &tables)?;
        config.interval = "20ms".to_owned();
        config.history = vec!["public.t".to_owned()];
        config.maintenance = "enabled = false".to_owned();
        let down = config.call(&["maintain"]).await?;
        ensure!(!down.status.success() && String::from_utf8_lossy(&down.stderr).contains("nobody answers"));
        let worker = Worker::start(&config, &postgres).await?;
        for n in 0..20 {
            let sql = format!("INSERT INTO t VALUES ({n}, 'v'), ({n} + 100, 'v'); DELETE FROM t WHERE id = {n} / 2; INSERT INTO u VALUES ({n})");
            postgres.batch(&sql).await?;
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        let oracle = Oracle::new(&postgres);
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        let before = totals(&postgres, "t").await?;
        ensure!(before.data_files > 5 && before.delete_files > 0 && before.snapshots > 5, "{before:?}");
        let done = config.call(&["maintain", "--expire-snapshots", "public.t"]).await?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        for table in ["t", "t_history"] {
            let after = totals(&postgres, table).await?;
            ensure!((after.data_files, after.delete_files, after.snapshots) == (1, 0, 1), "{table}: {after:?}");
        }
        ensure!(totals(&postgres, "u").await?.data_files > 5, "nobody asked for u");
        // Of what is in order, nothing more is done; and without names all tables are meant.
        let again = totals(&postgres, "t").await?;
        let done = config.call(&["maintain"]).await?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        ensure!(totals(&postgres, "t").await? == again && totals(&postgres, "u").await?.data_files == 1);
        postgres.batch("UPDATE t SET v = 'w' WHERE id % 3 = 0; DELETE FROM t WHERE id > 110").await?;
        oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
        oracle.assert_history(&postgres, &["public.t"], CATCH_UP).await?;
        no_strays(&oracle, &config.warehouse).await?;
        let wrong = config.call(&["maintain", "public.nothing"]).await?;
        ensure!(!wrong.status.success());
        drop(worker);
        Ok(())
    })
    .await
}
