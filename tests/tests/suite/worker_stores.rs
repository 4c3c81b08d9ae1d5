//! The standalone worker with its warehouse in an object store: the same promises, and what only such a store has.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lake_tests::{
    Azurite, Oracle, Postgres, Seaweed, Source, Worker, WorkerConfig, Workload, bounded, eventually, exit_code,
};

use crate::mirror::Mirror;
use crate::worker_refusals::refused;
use crate::{CATCH_UP, TEST_LIMIT};

/// These tables, mirrored into a store.
async fn mirror(store: &Seaweed, schema: &str, tables: &[&'static str]) -> Result<Mirror> {
    let postgres = Postgres::builder().start().await?;
    Source::prepare(&postgres).await?;
    postgres.batch(schema).await?;
    Source::publish(&postgres, tables).await?;
    let config = WorkerConfig::new(&postgres, "one", tables)?.in_store(store)?;
    let mut mirror = Mirror::of(postgres, config, tables).await?;
    mirror.oracle = mirror.oracle.in_store(store);
    Ok(mirror)
}

#[tokio::test]
async fn a_mirror_in_s3_is_copied_followed_killed_truncated_and_altered() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let store = Seaweed::start().await?;
        let mut mirror = mirror(&store, SCHEMA, TABLES).await?;
        all_that_happens_to(&mut mirror).await?;
        let url = mirror.config.url.clone().unwrap_or_default();
        let strays = mirror.oracle.strays(&url).await?;
        ensure!(strays.is_empty(), "left behind: {strays:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_mirror_in_azure_is_copied_followed_killed_truncated_and_altered() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let store = tokio::task::spawn_blocking(Azurite::start).await??;
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch(SCHEMA).await?;
        Source::publish(&postgres, TABLES).await?;
        let config = WorkerConfig::new(&postgres, "one", TABLES)?.in_azure(&store)?;
        let mut mirror = Mirror::of(postgres, config, TABLES).await?;
        mirror.oracle = mirror.oracle.in_azure(&store);
        all_that_happens_to(&mut mirror).await
    })
    .await
}

/// Large enough for files of several parts.
const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, at timestamptz, pad text);
    INSERT INTO t SELECT i, now(), md5(random()::text) || md5(random()::text) FROM generate_series(1, 200000) i;
    CREATE TABLE bag (v int); ALTER TABLE bag REPLICA IDENTITY FULL; INSERT INTO bag SELECT 7 FROM generate_series(1, 50)";
const TABLES: &[&str] = &["public.t", "public.bag"];

/// A copy, changes of all kinds, a restart and a kill, with the oracle's word after each.
async fn all_that_happens_to(mirror: &mut Mirror) -> Result<()> {
    ensure!(mirror.equal().await? == 200_050);
    mirror
        .after("UPDATE t SET pad = 'new' WHERE id % 100 = 0; DELETE FROM t WHERE id % 1000 = 1; INSERT INTO bag VALUES (8)")
        .await?;
    // Its index is read back from the store.
    mirror.restart().await?;
    mirror.after("UPDATE t SET id = -id WHERE id BETWEEN 500 AND 600; DELETE FROM bag WHERE v = 8").await?;
    mirror.after("ALTER TABLE t ADD COLUMN more numeric(20, 2); UPDATE t SET more = id WHERE id < 2000; ALTER TABLE t DROP COLUMN at; UPDATE t SET pad = 'behind' WHERE id = 3").await?;
    mirror.after("TRUNCATE t; INSERT INTO t SELECT i, 'again', i FROM generate_series(1, 1000) i").await?;
    mirror.kill().await?;
    mirror.postgres.batch("UPDATE t SET more = NULL WHERE id > 10; TRUNCATE bag").await?;
    mirror.spawn()?;
    ensure!(mirror.equal().await? == 1000);
    Ok(())
}

#[tokio::test]
async fn killed_under_load_nothing_is_lost_in_s3_and_nothing_is_twice() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let store = Seaweed::start().await?;
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        let workload = Workload::create(&postgres, 61).await?;
        Source::publish(&postgres, Workload::TABLES).await?;
        let mut config = WorkerConfig::new(&postgres, "one", Workload::TABLES)?.in_store(&store)?;
        config.interval = "100ms".to_owned();
        let oracle = Oracle::new(&postgres).in_store(&store);
        let running = workload.start(&postgres, 3);
        for round in 0..8_u64 {
            let worker = Worker::spawn(&config)?;
            tokio::time::sleep(Duration::from_millis(300 + round * 397 % 1900)).await;
            worker.kill().await?;
        }
        let _worker = Worker::start(&config, &postgres).await?;
        running.stop().await?;
        oracle.assert_equal(&postgres, Workload::TABLES, CATCH_UP).await?;
        oracle.assert_invariant(Workload::INVARIANT, &Workload::TOTAL.to_string(), crate::ALL).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_outage_of_the_store_is_waited_for() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let store = Seaweed::start().await?;
        let schema =
            "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 1000) i";
        let mut mirror = mirror(&store, schema, &["public.t"]).await?;
        mirror.equal().await?;
        // Within the time for which requests are tried again, and beyond it.
        for seconds in [3, 40] {
            store.kill()?;
            for n in 0..10 {
                mirror
                    .postgres
                    .batch(&format!(
                        "UPDATE t SET v = v + 1 WHERE id % 10 = {n}; INSERT INTO t VALUES ({seconds}0000 + {n}, 0)"
                    ))
                    .await?;
                tokio::time::sleep(Duration::from_secs(seconds) / 10).await;
            }
            ensure!(mirror.worker()?.runs()?, "the worker has ended");
            store.restart().await?;
            mirror.after("UPDATE t SET v = v + 1 WHERE id = 1").await?;
        }
        // What it says meanwhile helps who is on call.
        let said = mirror.worker()?.output();
        ensure!(said.contains("see that endpoint is the store's address"), "{said}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_folder_that_the_worker_may_not_write_to_any_more_is_waited_for() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await?;
        Source::publish(&postgres, &["public.t"]).await?;
        let config = WorkerConfig::new(&postgres, "one", &["public.t"])?;
        let mut mirror = Mirror::of(postgres, config, &["public.t"]).await?;
        mirror.equal().await?;
        let location = "SELECT metadata_location FROM lake_catalog.iceberg_tables";
        let location = mirror.postgres.value(location).await?;
        let metadata = Path::new(location.trim_start_matches("file://")).parent().context("a folder")?.to_owned();
        let allow = |mode| std::fs::set_permissions(&metadata, std::fs::Permissions::from_mode(mode));
        allow(0o500)?;
        mirror.postgres.batch("INSERT INTO t VALUES (2)").await?;
        eventually("the worker says what is in its way", CATCH_UP, async || {
            Ok(mirror.worker()?.output().contains("own the warehouse's folder").then_some(()))
        })
        .await?;
        ensure!(mirror.worker()?.runs()?, "the worker has ended");
        allow(0o700)?;
        ensure!(mirror.equal().await? == 2);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_store_that_refuses_says_why_and_what_to_do() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let store = Seaweed::start().await?;
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY)").await?;
        Source::publish(&postgres, &["public.t"]).await?;
        let fit = WorkerConfig::new(&postgres, "one", &["public.t"])?.in_store(&store)?;
        let with = |from: &str, to: &str| {
            let mut config = fit.clone();
            config.store = config.store.replace(from, to);
            config
        };
        let reader = store.secret_file(Seaweed::READER)?.display().to_string();
        let file = store.secret_file(Seaweed::ADMIN)?.display().to_string();
        let mut read_only = with("\"admin\"", "\"reader\"");
        read_only.store = read_only.store.replace(&file, &reader);
        let mut no_bucket = fit.clone();
        no_bucket.url = Some("s3://no-such-bucket/lake".to_owned());
        for (config, wanted) in [
            (no_bucket, &["no-such-bucket", "create the bucket"][..]),
            (read_only, &["403", "allow the credentials"]),
            (with("\"admin\"", "\"nobody\""), &["does not know the key"]),
            (with(&store.endpoint(), "http://127.0.0.1:9"), &["endpoint"]),
        ] {
            refused(&config, exit_code::LAKE, wanted).await?;
        }
        // Settings that can't be used together, or at all, are a matter of the configuration.
        for (config, wanted) in [
            (with("allow_http = true", ""), &["allow_http"][..]),
            (with(&file, "/no/such/file"), &["/no/such/file"]),
            (with("access_key_id = \"admin\"", ""), &["secret_access_key_file is set, and access_key_id is not"]),
            (with("allow_http = true", "allow_http = true\nprofile = \"p\""), &["both access_key_id and profile"]),
            (with("allow_http = true", "allow_http = true\naccount = \"a\""), &["not a setting of this kind of store"]),
        ] {
            refused(&config, exit_code::CONFIG, wanted).await?;
        }
        let output = fit.call(&["check"]).await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        // An unknown key of the section is a matter of the configuration.
        refused(&with("region", "regoin"), exit_code::CONFIG, &["regoin"]).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_key_that_was_taken_away_is_waited_for() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let store = Seaweed::start().await?;
        let schema = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)";
        let mut mirror = mirror(&store, schema, &["public.t"]).await?;
        mirror.equal().await?;
        let file = store.secret_file(Seaweed::ADMIN)?;
        std::fs::write(&file, "another secret")?;
        // The next session reads it, which begins when the store has gone away and come back.
        store.kill()?;
        mirror.postgres.batch("INSERT INTO t VALUES (2)").await?;
        eventually("the session ends", Duration::from_secs(90), async || {
            Ok(mirror.worker()?.output().contains("the mirror's session ended").then_some(()))
        })
        .await?;
        store.restart().await?;
        eventually("the worker says what is wrong with the key", Duration::from_secs(60), async || {
            Ok(mirror.worker()?.output().contains("the store does not know the key").then_some(()))
        })
        .await?;
        ensure!(mirror.worker()?.runs()?, "the worker has ended");
        store.secret_file(Seaweed::ADMIN)?;
        mirror.after("INSERT INTO t VALUES (3)").await?;
        ensure!(!mirror.worker()?.output().contains("another secret"));
        Ok(())
    })
    .await
}
