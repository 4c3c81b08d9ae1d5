//! The standalone worker with its tables in Iceberg's own REST server, the reference of what a REST catalog does.
//!
//! Needs what `tests/readers.sh` installs, so `make test-readers` runs it, and no other target.

use anyhow::{Result, ensure};
use lake_tests::{JavaCatalog, OtherCatalog, Source, WorkerConfig, bounded};

use crate::TEST_LIMIT;
use crate::mirror::Mirror;
use crate::worker_catalogs::{Bank, source};

#[tokio::test]
#[ignore = "needs tests/readers.sh: make test-readers"]
async fn nothing_is_lost_or_twice_whoever_is_killed() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (postgres, mut server) = (source().await?, JavaCatalog::start().await?);
        let catalog = OtherCatalog::java(&server);
        let mut bank = Bank::new(45, &catalog, None, postgres).await?;
        bank.survive(10, async |round| {
            if round % 4 == 3 {
                server.restart().await?;
            }
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
#[ignore = "needs tests/readers.sh: make test-readers"]
async fn columns_partitions_and_truncations_are_what_it_expects_of_a_client() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let (postgres, server) = (source().await?, JavaCatalog::start().await?);
        let catalog = OtherCatalog::java(&server);
        postgres
            .batch(
                "CREATE TABLE t (id int PRIMARY KEY, at timestamptz NOT NULL, pad text);
                 INSERT INTO t SELECT i, '2026-01-01'::timestamptz + i * interval '1 hour', 'pad' FROM generate_series(1, 1000) i",
            )
            .await?;
        Source::publish(&postgres, &["public.t"]).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.t"])?.in_catalog(&catalog)?;
        config.layout.push(("public.t".to_owned(), "month(at)".to_owned(), "id".to_owned()));
        let mut mirror = Mirror::of(postgres, config, &["public.t"]).await?;
        mirror.oracle = mirror.oracle.in_catalog(&catalog);
        ensure!(mirror.equal().await? == 1000);
        mirror.after("UPDATE t SET pad = 'new' WHERE id % 10 = 0; DELETE FROM t WHERE id % 100 = 1").await?;
        mirror.after("ALTER TABLE t ADD COLUMN more numeric(20, 2); UPDATE t SET more = id WHERE id < 200; ALTER TABLE t DROP COLUMN pad; ALTER TABLE t RENAME COLUMN more TO other; INSERT INTO t VALUES (5000, now(), 1)").await?;
        mirror.restart().await?;
        mirror.after("UPDATE t SET at = at + interval '1 year' WHERE id % 7 = 0").await?;
        mirror.after("TRUNCATE t; INSERT INTO t SELECT i, '2026-05-05', i FROM generate_series(1, 10) i").await?;
        ensure!(mirror.equal().await? == 10);
        Ok(())
    })
    .await
}
