//! The extensions with the warehouse in an object store: the engine writes there, queries read from there.

use anyhow::{Result, ensure};
use lake_tests::{Oracle, Postgres, Seaweed, bounded, eventually};

use crate::extension_mirror::{mirror, same};
use crate::{CATCH_UP, TEST_LIMIT};

/// A server with both extensions, whose warehouse is in the store.
async fn server(store: &Seaweed) -> Result<Postgres> {
    Postgres::builder()
        .preload("lake, lake_query")
        .set("lake.commit_interval", "300")
        .set("lake.warehouse", &format!("s3://{}/extension", Seaweed::BUCKET))
        .set("lake.store_endpoint", &store.endpoint())
        .set("lake.store_region", Seaweed::REGION)
        .set("lake.store_access_key_id", Seaweed::ADMIN.id)
        .set("lake.store_secret_access_key_file", &store.secret_file(Seaweed::ADMIN)?.display().to_string())
        .set("lake.store_allow_http", "on")
        .start()
        .await
}

#[tokio::test]
async fn queries_on_a_lake_in_s3_equal_the_heap() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let store = Seaweed::start().await?;
        let postgres = server(&store).await?;
        postgres
            .batch("CREATE TABLE t (id int PRIMARY KEY, v numeric(12, 2), s text); INSERT INTO t SELECT i, i / 7.0, 's' || i % 10 FROM generate_series(1, 20000) i")
            .await?;
        mirror(&postgres, &["t"]).await?;
        postgres.batch("UPDATE t SET v = v + 1 WHERE id % 3 = 0; DELETE FROM t WHERE id % 5 = 0").await?;
        Oracle::new(&postgres).in_store(&store).assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        // Rows that Iceberg has not got yet, too.
        postgres.batch("ALTER SYSTEM SET lake.commit_interval = '60s'").await?;
        postgres.reload().await?;
        eventually("the engine runs with the new setting", CATCH_UP, async || {
            Ok(postgres.batch("SELECT lake.wait('t', '5 s')").await.ok())
        })
        .await?;
        postgres.batch("INSERT INTO t SELECT -i, i, 'fresh' FROM generate_series(1, 10) i").await?;
        for query in [
            "SELECT count(*), sum(v), min(id), max(s) FROM {t}",
            "SELECT s, count(*), sum(v) FROM {t} GROUP BY s ORDER BY s COLLATE \"C\"",
            "SELECT * FROM {t} WHERE id BETWEEN -5 AND 60 ORDER BY id",
        ] {
            same(&postgres, query, "public.t", "lake.t").await?;
        }
        let plan = postgres.rows("EXPLAIN (ANALYZE, COSTS OFF) SELECT s, sum(v) FROM lake.t GROUP BY s").await?;
        let plan = format!("{plan:?}");
        ensure!(plan.contains("LakeScan") && !plan.contains("Answered By: heap"), "{plan}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_settings_of_a_store_are_the_superusers_and_its_secrets_nobodys() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let store = Seaweed::start().await?;
        let postgres = server(&store).await?;
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)").await?;
        mirror(&postgres, &["t"]).await?;
        postgres.batch("CREATE ROLE somebody; GRANT SELECT ON t TO somebody").await?;
        for setting in ["endpoint", "access_key_id", "secret_access_key_file"] {
            let shown = postgres.batch(&format!("SET ROLE somebody; SHOW lake.store_{setting}")).await;
            ensure!(shown.is_err(), "an ordinary role sees lake.store_{setting}");
        }
        // The query needs no right on the settings.
        let counted = postgres.rows("SET ROLE somebody; SELECT count(*) FROM lake.t").await?;
        ensure!(format!("{counted:?}").contains("100"), "{counted:?}");
        // A key that the store does not know: the heap answers, and EXPLAIN says why.
        std::fs::write(store.secret_file(Seaweed::ADMIN)?, "another secret")?;
        let explain = "EXPLAIN (ANALYZE, COSTS OFF) SELECT count(*), min(id) FROM lake.t";
        let plan = format!("{:?}", postgres.rows(explain).await?);
        ensure!(plan.contains("Answered By: heap") && plan.contains("403"), "{plan}");
        ensure!(!plan.contains("another secret"), "{plan}");
        store.secret_file(Seaweed::ADMIN)?;
        let plan = format!("{:?}", postgres.rows(explain).await?);
        ensure!(plan.contains("LakeScan") && !plan.contains("Answered By: heap"), "{plan}");
        ensure!(!postgres.log().contains("another secret") && !postgres.log().contains(Seaweed::ADMIN.secret));
        Ok(())
    })
    .await
}
