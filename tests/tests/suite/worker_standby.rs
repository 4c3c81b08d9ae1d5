//! The standalone worker and standbys: not a source, but where its slot goes on when the primary is gone.

use anyhow::{Context as _, Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Stop, Worker, WorkerConfig, bounded, eventually, exit_code};

use crate::mirror::Mirror;
use crate::worker_refusals::refused;
use crate::{CATCH_UP, TEST_LIMIT};

/// The first version whose slots standbys can keep.
const FAILOVER_SINCE: u32 = 17;

#[tokio::test]
async fn a_standby_is_refused_as_a_source_whether_it_has_a_mirror_or_not() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = Mirror::start("CREATE TABLE t (id int PRIMARY KEY)", &["public.t"]).await?;
        mirror.after("INSERT INTO t VALUES (1)").await?;
        let standby = Postgres::builder().standby_of(&mirror.postgres).start().await?;
        ensure!(standby.value("SELECT pg_is_in_recovery()").await? == "t", "it is no standby");
        let mut config = WorkerConfig::new(&standby, "standby", &["public.t"])?;
        refused(&config, exit_code::UNFIT, &["standby", "primary"]).await?;
        config.slot = "another".to_owned();
        refused(&config, exit_code::UNFIT, &["standby", "primary"]).await?;
        mirror.after("INSERT INTO t VALUES (2)").await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_slot_is_one_that_standbys_keep_if_the_server_can_and_it_is_wanted() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut mirror = Mirror::start("CREATE TABLE t (id int PRIMARY KEY)", &["public.t"]).await?;
        let kept = async |mirror: &Mirror| {
            let sql = "SELECT coalesce(to_jsonb(s) ->> 'failover', 'unknown') FROM pg_replication_slots s WHERE slot_name = 'lakemirror'";
            mirror.postgres.value(sql).await
        };
        let can = mirror.postgres.major().await? >= FAILOVER_SINCE;
        ensure!(kept(&mirror).await? == if can { "true" } else { "unknown" }, "{}", kept(&mirror).await?);
        // The worker that starts next makes it what is wanted then.
        for wanted in [false, true] {
            mirror.config.failover = wanted;
            mirror.restart().await?;
            mirror.after("INSERT INTO t SELECT count(*) FROM t").await?;
            let expected = if can { wanted.to_string() } else { "unknown".to_owned() };
            ensure!(kept(&mirror).await? == expected, "{} instead of {expected}", kept(&mirror).await?);
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_worker_goes_on_with_a_standby_that_was_promoted() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut primary = Postgres::builder().start().await?;
        if primary.major().await? < FAILOVER_SINCE {
            return Ok(());
        }
        Source::prepare(&primary).await?;
        let tables = ["public.t", "public.u"];
        primary
            .batch(
                "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY);
                 INSERT INTO t SELECT i, 'copied' FROM generate_series(1, 1000) i;
                 SELECT pg_create_physical_replication_slot('standby', true)",
            )
            .await?;
        Source::publish(&primary, &tables).await?;
        let mut standby = Postgres::builder()
            .standby_of(&primary)
            .set("primary_slot_name", "standby")
            .set("hot_standby_feedback", "on")
            .set("sync_replication_slots", "on")
            .start()
            .await?;
        // What the standby has not got is not sent to the lake either.
        primary.configure("synchronized_standby_slots", "standby")?;
        primary.reload().await?;
        let mut config = WorkerConfig::new(&primary, "one", &tables)?;
        // Both servers' directories go, and the lake's stays.
        config.warehouse = standby.scratch().directory("warehouse")?;
        let worker = Worker::start(&config, &primary).await?;
        primary.batch("UPDATE t SET v = 'streamed' WHERE id <= 500; INSERT INTO u VALUES (1)").await?;
        Oracle::new(&primary).assert_equal(&primary, &tables, CATCH_UP).await?;
        eventually("the standby keeps the slot", CATCH_UP * 2, async || {
            // Otherwise a standby waits a quarter of a minute for this.
            primary.batch("SELECT pg_log_standby_snapshot(); UPDATE u SET id = id").await?;
            let sql =
                "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'lakemirror' AND synced AND NOT temporary";
            Ok((standby.value(sql).await? == "1").then_some(()))
        })
        .await?;

        // The worker misses these, and what is under way when the primary goes is nobody's.
        worker.hold()?;
        primary
            .batch("DELETE FROM t WHERE id <= 100; INSERT INTO t SELECT i, 'missed' FROM generate_series(2001, 2300) i")
            .await?;
        let open = primary.client().await?;
        open.batch_execute("BEGIN; UPDATE t SET v = 'never'").await?;
        let end = primary.value("SELECT pg_current_wal_lsn()").await?;
        eventually("the standby has it all", CATCH_UP, async || {
            let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
            Ok((standby.value(&sql).await? == "t").then_some(()))
        })
        .await?;
        primary.stop(Stop::Immediate).await?;
        worker.kill().await?;
        ensure!(standby.value("SELECT pg_promote()").await? == "t", "the standby was not promoted");
        standby.batch("INSERT INTO t VALUES (0, 'promoted')").await?;

        config.host = standby.socket_dir().display().to_string();
        config.port = standby.port();
        let mut worker = Worker::start(&config, &standby).await?;
        standby.batch("UPDATE t SET v = 'after' WHERE id BETWEEN 400 AND 600; DELETE FROM u").await?;
        let rows = Oracle::new(&standby).assert_equal(&standby, &tables, CATCH_UP).await.context("promoted")?;
        ensure!(rows == 1000 - 100 + 300 + 1, "{rows} rows");
        // Nothing was copied anew, and the slot is the one that was kept.
        ensure!(!worker.output().contains("copying") || worker.output().matches("copying").count() == 2, "copied anew");
        let failover = "SELECT failover FROM pg_replication_slots WHERE slot_name = 'lakemirror'";
        ensure!(standby.value(failover).await? == "t", "the slot is another one");
        // The same again, after a restart of what was a standby.
        standby.restart().await?;
        standby.batch("UPDATE t SET v = 'restarted' WHERE id % 7 = 0").await?;
        Oracle::new(&standby).assert_equal(&standby, &tables, CATCH_UP).await.context("restarted")?;
        ensure!(worker.runs()?, "the worker has ended");
        Ok(())
    })
    .await
}
