//! A REST catalog that vends the store's keys: the worker has none of its own.

use std::time::Duration;

use anyhow::{Result, ensure};
use lake_tests::{Oracle, OtherCatalog, Seaweed, Source, Worker, WorkerConfig, bounded, exit_code};

use crate::mirror::Mirror;
use crate::worker_catalogs::{Bank, follow_all, source};
use crate::{CATCH_UP, TEST_LIMIT};

/// The bank, in a store whose catalog vends its keys.
async fn bank(seed: u64, store: &Seaweed) -> Result<Bank> {
    let catalog = OtherCatalog::rest(store)?;
    let mut bank = Bank::new(seed, &catalog, Some(store), source().await?).await?;
    bank.config = bank.config.with_vended_credentials();
    ensure!(!bank.config.toml().contains("access_key"), "the worker has a key of its own");
    Ok(bank)
}

#[tokio::test]
async fn with_vended_keys_alone_nothing_is_lost_or_twice_whoever_is_killed() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let store = Seaweed::start_vending().await?;
        let mut bank = bank(46, &store).await?;
        bank.survive(12, async |round| {
            if round % 4 == 3 {
                store.restart_with_other_keys().await?;
            }
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn keys_that_count_no_more_are_renewed_while_the_worker_runs() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let store = Seaweed::start_vending().await?;
        let bank = bank(47, &store).await?;
        let mut worker = Worker::start(&bank.config, &bank.postgres).await?;
        let running = bank.workload.start(&bank.postgres, 2);
        for _ in 0..3 {
            // Longer than a key is taken for a new one.
            tokio::time::sleep(Duration::from_millis(2500)).await;
            store.restart_with_other_keys().await?;
        }
        running.stop().await?;
        bank.equal().await?;
        ensure!(worker.runs()?, "the worker has given up");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn columns_histories_and_new_copies_are_followed_with_vended_keys() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (postgres, store) = (source().await?, Seaweed::start_vending().await?);
        let catalog = OtherCatalog::rest(&store)?;
        postgres
            .batch("CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, 'a' || i FROM generate_series(1, 1000) i")
            .await?;
        Source::publish(&postgres, &["public.t"]).await?;
        let config = WorkerConfig::new(&postgres, "one", &["public.t"])?.in_catalog(&catalog)?.in_table_bucket(&store)?;
        let mut config = config.with_vended_credentials();
        config.history = vec!["public.t".to_owned()];
        // Its vectors have names that this store takes in one folder only.
        config.lake = "format_version = 3".to_owned();
        let oracle = Oracle::new(&postgres).in_catalog(&catalog).in_store(&store);
        let mut mirror = Mirror::of(postgres, config, &["public.t"]).await?;
        mirror.oracle = oracle;
        follow_all(&mut mirror).await
    })
    .await
}

#[tokio::test]
async fn a_catalog_that_vends_nothing_is_told_of_and_no_other_key_is_used() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (postgres, store) = (source().await?, Seaweed::start().await?);
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY)").await?;
        Source::publish(&postgres, &["public.t"]).await?;
        let catalog = OtherCatalog::rest(&store)?;
        let config =
            WorkerConfig::new(&postgres, "one", &["public.t"])?.in_catalog(&catalog)?.in_table_bucket(&store)?;
        let with_a_key = config.clone();
        let config = config.with_vended_credentials();
        let check = async |config: &WorkerConfig| -> Result<(Option<i32>, String)> {
            let output = config.call(&["check"]).await?;
            let said =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            Ok((output.status.code(), said))
        };
        let (code, said) = check(&config).await?;
        ensure!(code == Some(exit_code::OK) && said.contains("shows when it is made"), "{code:?}: {said}");
        // A worker that has a key makes the table, and leaves it without a key.
        let worker = Worker::start(&with_a_key, &postgres).await?;
        let oracle = Oracle::new(&postgres).in_catalog(&catalog).in_store(&store);
        oracle.assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        worker.kill().await?;
        let (code, said) = check(&config).await?;
        let remedy = said.contains("vends no keys") && said.contains("catalog.vended_credentials = false");
        ensure!(code == Some(exit_code::LAKE) && remedy, "{code:?}: {said}");
        let (code, said) = config.run_to_end(CATCH_UP).await?;
        ensure!(code == exit_code::LAKE && said.contains("vends no keys"), "{code}: {said}");
        // Two sources of keys are one too many.
        let mut both = config.clone();
        both.store.push_str("\naccess_key_id = \"k\"");
        let (code, said) = check(&both).await?;
        ensure!(code == Some(exit_code::CONFIG) && said.contains("access_key_id"), "{code:?}: {said}");
        let mut elsewhere = config.clone();
        elsewhere.url = None;
        let (code, said) = check(&elsewhere).await?;
        ensure!(code == Some(exit_code::CONFIG) && said.contains("s3://bucket"), "{code:?}: {said}");
        Ok(())
    })
    .await
}
