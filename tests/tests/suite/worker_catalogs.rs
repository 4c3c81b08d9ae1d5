//! Catalogs that are not in the source database: a JDBC catalog in another one, SeaweedFS's REST catalog, and none but the
//! files themselves.

use std::time::Duration;

use anyhow::{Result, ensure};
use lake_tests::{
    Oracle, OtherCatalog, Postgres, Seaweed, Source, Worker, WorkerConfig, Workload, bounded, eventually, exit_code,
};

use crate::mirror::Mirror;
use crate::{CATCH_UP, TEST_LIMIT};

/// A server, prepared as the README says.
pub(crate) async fn source() -> Result<Postgres> {
    let postgres = Postgres::builder().start().await?;
    Source::prepare(&postgres).await?;
    Ok(postgres)
}

/// The bank, and a worker that keeps it in another catalog.
pub(crate) struct Bank {
    pub(crate) postgres: Postgres,
    pub(crate) workload: Workload,
    pub(crate) config: WorkerConfig,
    oracle: Oracle,
}

impl Bank {
    /// Without a catalog, in a folder or in a store.
    async fn in_files(seed: u64, store: Option<&Seaweed>) -> Result<Self> {
        let postgres = source().await?;
        let workload = Workload::create(&postgres, seed).await?;
        Source::publish(&postgres, Workload::TABLES).await?;
        let mut config = WorkerConfig::new(&postgres, "one", Workload::TABLES)?;
        if let Some(store) = store {
            config = config.in_store(store)?;
        }
        let catalog = OtherCatalog::hadoop(&config);
        let mut config = config.in_catalog(&catalog)?;
        let oracle = Oracle::new(&postgres).in_catalog(&catalog);
        let oracle = store.iter().fold(oracle, |oracle, store| oracle.in_store(store));
        config.interval = "100ms".to_owned();
        Ok(Self { postgres, workload, config, oracle })
    }

    pub(crate) async fn new(
        seed: u64,
        catalog: &OtherCatalog,
        store: Option<&Seaweed>,
        postgres: Postgres,
    ) -> Result<Self> {
        let workload = Workload::create(&postgres, seed).await?;
        Source::publish(&postgres, Workload::TABLES).await?;
        let mut config = WorkerConfig::new(&postgres, "one", Workload::TABLES)?.in_catalog(catalog)?;
        let mut oracle = Oracle::new(&postgres).in_catalog(catalog);
        if let Some(store) = store {
            config = config.in_table_bucket(store)?;
            oracle = oracle.in_store(store);
        }
        config.interval = "100ms".to_owned();
        Ok(Self { postgres, workload, config, oracle })
    }

    pub(crate) async fn equal(&self) -> Result<()> {
        self.oracle.assert_equal(&self.postgres, Workload::TABLES, CATCH_UP).await?;
        self.oracle.assert_invariant(Workload::INVARIANT, &Workload::TOTAL.to_string(), crate::ALL).await?;
        let pending = "SELECT count(pending) + count(pending_attempt) + count(left_out) FROM lake_catalog.mirrors";
        ensure!(self.postgres.value(pending).await? == "0", "a batch is still on record");
        Ok(())
    }

    /// Kills workers at all moments, each with what `before` does to the catalog.
    pub(crate) async fn survive(&mut self, rounds: u64, mut before: impl AsyncFnMut(u64) -> Result<()>) -> Result<()> {
        let running = self.workload.start(&self.postgres, 3);
        for round in 0..rounds {
            let worker = Worker::spawn(&self.config)?;
            // From the middle of the copy to the middle of any commit.
            tokio::time::sleep(Duration::from_millis(150 + round * 197 % 1300)).await;
            before(round).await?;
            worker.kill().await?;
        }
        let worker = Worker::start(&self.config, &self.postgres).await?;
        running.stop().await?;
        self.equal().await?;
        worker.kill().await
    }
}

#[tokio::test]
async fn another_database_has_the_tables_and_nothing_is_lost_or_twice_however_often_the_worker_is_killed() -> Result<()>
{
    bounded(TEST_LIMIT, async {
        let postgres = source().await?;
        let catalog = OtherCatalog::database(&postgres, "elsewhere").await?;
        let mut bank = Bank::new(40, &catalog, None, postgres).await?;
        bank.survive(15, async |_| Ok(())).await?;
        // The source has none of them.
        let own = bank.postgres.value("SELECT count(*) FROM lake_catalog.iceberg_tables").await?;
        ensure!(own == "0", "{own} tables in the source's own catalog");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_rest_catalog_has_the_tables_and_nothing_is_lost_or_twice_whoever_is_killed() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (postgres, store) = (source().await?, Seaweed::start().await?);
        let catalog = OtherCatalog::rest(&store)?;
        let mut bank = Bank::new(41, &catalog, Some(&store), postgres).await?;
        bank.survive(12, async |round| {
            if round % 4 == 3 {
                store.restart().await?;
            }
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn files_alone_have_the_tables_and_nothing_is_lost_or_twice_however_often_the_worker_is_killed() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut bank = Bank::in_files(44, None).await?;
        let folder = bank.config.warehouse.join("bank");
        bank.survive(15, async |round| {
            // Readers lose the hint, the worker does not need it.
            let hint = folder.join("left/metadata/version-hint.text");
            match round % 5 {
                3 if hint.exists() => std::fs::write(hint, "1")?,
                4 if hint.exists() => std::fs::remove_file(hint)?,
                _ => {}
            }
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_bucket_alone_has_the_tables_and_nothing_is_lost_or_twice_whoever_is_killed() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let store = Seaweed::start().await?;
        let mut bank = Bank::in_files(45, Some(&store)).await?;
        bank.survive(12, async |round| {
            if round % 4 == 3 {
                store.restart().await?;
            }
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_rest_catalog_that_is_away_for_a_while_is_waited_for() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (postgres, store) = (source().await?, Seaweed::start().await?);
        let catalog = OtherCatalog::rest(&store)?;
        let bank = Bank::new(42, &catalog, Some(&store), postgres).await?;
        let mut worker = Worker::start(&bank.config, &bank.postgres).await?;
        let running = bank.workload.start(&bank.postgres, 2);
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            store.kill()?;
            tokio::time::sleep(Duration::from_millis(1500)).await;
            store.restart().await?;
        }
        running.stop().await?;
        bank.equal().await?;
        ensure!(worker.runs()?, "the worker has given up");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn columns_histories_and_new_copies_are_followed_in_a_rest_catalog() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (postgres, store) = (source().await?, Seaweed::start().await?);
        let catalog = OtherCatalog::rest(&store)?;
        postgres
            .batch("CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, 'a' || i FROM generate_series(1, 1000) i")
            .await?;
        Source::publish(&postgres, &["public.t"]).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.t"])?.in_catalog(&catalog)?.in_table_bucket(&store)?;
        config.history = vec!["public.t".to_owned()];
        let oracle = Oracle::new(&postgres).in_catalog(&catalog).in_store(&store);
        let mut mirror = Mirror::of(postgres, config, &["public.t"]).await?;
        mirror.oracle = oracle;
        follow_all(&mut mirror).await
    })
    .await
}

/// Columns that come, change and go, new copies, and a history, of a table of a thousand rows.
pub(crate) async fn follow_all(mirror: &mut Mirror) -> Result<()> {
    ensure!(mirror.equal().await? == 1000);
    mirror
        .after("UPDATE t SET a = 'b' WHERE id <= 10; DELETE FROM t WHERE id > 990; INSERT INTO t VALUES (2000, 'new')")
        .await?;
    // A row behind each change: without the extension a change is seen with the next one.
    mirror
        .after("ALTER TABLE t ADD COLUMN more int; INSERT INTO t VALUES (2001, 'x', 7); ALTER TABLE t RENAME a TO b; INSERT INTO t VALUES (2002, 'y', 8)")
        .await?;
    // Copied anew: in the place of the former copy, after another type too.
    mirror.resync(&["public.t"]).await?;
    mirror.after("INSERT INTO t VALUES (2003, 'z', 9)").await?;
    mirror
        .after("ALTER TABLE t ALTER more TYPE text USING 'was ' || more; INSERT INTO t VALUES (2004, 'u', 'v')")
        .await?;
    mirror.restart().await?;
    mirror.after("TRUNCATE t; INSERT INTO t VALUES (1, 'again', 'w')").await?;
    let kinds = mirror.oracle.assert_history(&mirror.postgres, &["public.t"], CATCH_UP).await?;
    ensure!(kinds[0]["update"] == 10 && kinds[0]["delete"] == 10, "{kinds:?}");
    Ok(())
}

#[tokio::test]
async fn columns_histories_and_new_copies_are_followed_without_a_catalog() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = source().await?;
        postgres
            .batch("CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, 'a' || i FROM generate_series(1, 1000) i")
            .await?;
        Source::publish(&postgres, &["public.t"]).await?;
        let config = WorkerConfig::new(&postgres, "one", &["public.t"])?;
        let catalog = OtherCatalog::hadoop(&config);
        let mut config = config.in_catalog(&catalog)?;
        config.history = vec!["public.t".to_owned()];
        let oracle = Oracle::new(&postgres).in_catalog(&catalog);
        let mut mirror = Mirror::of(postgres, config, &["public.t"]).await?;
        mirror.oracle = oracle;
        follow_all(&mut mirror).await
    })
    .await
}

#[tokio::test]
async fn what_is_wrong_with_a_catalog_is_said_with_its_remedy() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (postgres, store) = (source().await?, Seaweed::start().await?);
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY)").await?;
        Source::publish(&postgres, &["public.t"]).await?;
        let config = WorkerConfig::new(&postgres, "one", &["public.t"])?.in_table_bucket(&store)?;
        let check = async |catalog: &OtherCatalog| -> Result<(Option<i32>, String)> {
            let output = config.clone().in_catalog(catalog)?.call(&["check"]).await?;
            let said =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            Ok((output.status.code(), said))
        };
        let good = OtherCatalog::rest(&store)?;
        let (code, said) = check(&good).await?;
        ensure!(code == Some(exit_code::OK), "{code:?}: {said}");
        for (catalog, wanted, remedy) in [
            (good.with("credential", "admin:wrong"), exit_code::LAKE, "catalog.credential_file"),
            (good.with("credential", "nonsense"), exit_code::CONFIG, "client_id:client_secret"),
            (good.with("uri", "ftp://127.0.0.1"), exit_code::CONFIG, "without /v1"),
            (good.with("uri", "http://127.0.0.1:1"), exit_code::LAKE, "is the catalog's server running"),
            (good.with("warehouse", "nowhere"), exit_code::LAKE, "catalog.warehouse"),
        ] {
            let (code, said) = check(&catalog).await?;
            ensure!(code == Some(wanted) && said.contains(remedy), "{catalog:?}: {code:?}: {said}");
            ensure!(!said.contains("wrong") && !said.contains(Seaweed::ADMIN.secret), "a secret is shown: {said}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_name_that_is_none_of_a_folder_is_found_before_the_mirror_runs() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = source().await?;
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE \"odd.name\" (id int PRIMARY KEY)").await?;
        let tables = ["public.t", "public.\"odd.name\""];
        Source::publish(&postgres, &tables).await?;
        let config = WorkerConfig::new(&postgres, "one", &tables)?;
        let check = async |config: &WorkerConfig| -> Result<(Option<i32>, String)> {
            let output = config.call(&["check"]).await?;
            Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
        };
        let (code, said) = check(&config).await?;
        ensure!(code == Some(exit_code::OK), "another catalog takes any name: {code:?}: {said}");
        let catalog = OtherCatalog::hadoop(&config);
        let (code, said) = check(&config.in_catalog(&catalog)?).await?;
        let findings = said.lines().filter(|line| line.starts_with("- ")).count();
        ensure!(code == Some(exit_code::CONFIG) && findings == 1, "{code:?}: {said}");
        ensure!(
            said.contains("public.odd.name can't be the name of a folder") && said.contains("letters a to z"),
            "{said}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_table_that_somebody_dropped_from_a_rest_catalog_stops_alone() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (postgres, store) = (source().await?, Seaweed::start().await?);
        let catalog = OtherCatalog::rest(&store)?;
        let bank = Bank::new(43, &catalog, Some(&store), postgres).await?;
        let _worker = Worker::start(&bank.config, &bank.postgres).await?;
        bank.oracle.drop_table("bank.scratch").await?;
        bank.postgres.batch("INSERT INTO bank.scratch VALUES (999999, 'z', 'z')").await?;
        let stopped = "SELECT source_table || ' ' || error FROM lake_catalog.mirrored_tables WHERE state = 'errored'";
        let reason = eventually("the table stops", CATCH_UP, async || {
            Ok(bank.postgres.rows(stopped).await?.into_iter().flatten().flatten().next())
        })
        .await?;
        ensure!(reason.starts_with("scratch") && reason.contains("dropped by someone else"), "{reason}");
        bank.workload.run(&bank.postgres, 20).await?;
        let others = ["bank.left", "bank.right", "bank.ledger"];
        bank.oracle.assert_equal(&bank.postgres, &others, CATCH_UP).await?;
        Ok(())
    })
    .await
}
