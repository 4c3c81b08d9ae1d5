//! The extension `lake`: files put in order by hand.

use anyhow::{Result, ensure};
use lake_tests::{Oracle, bounded};

use crate::extension_mirror::server;
use crate::{CATCH_UP, TEST_LIMIT};

/// How many live data files, delete files and snapshots a table has, by its newest metadata.
pub(crate) async fn totals(postgres: &lake_tests::Postgres) -> Result<(u64, u64, usize)> {
    let location =
        postgres.value("SELECT metadata_location FROM lake_catalog.iceberg_tables WHERE table_name = 't'").await?;
    let metadata: serde_json::Value = serde_json::from_slice(&std::fs::read(location.trim_start_matches("file://"))?)?;
    let snapshots = metadata["snapshots"].as_array().map_or(&[][..], Vec::as_slice);
    let newest = snapshots.iter().find(|snapshot| snapshot["snapshot-id"] == metadata["current-snapshot-id"]);
    let total = |name: &str| -> u64 {
        newest.and_then(|newest| newest["summary"][name].as_str()?.parse().ok()).unwrap_or(u64::MAX)
    };
    Ok((total("total-data-files"), total("total-delete-files"), snapshots.len()))
}

#[tokio::test]
async fn files_are_put_in_order_and_snapshots_expire_when_that_is_asked_for() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a table of a few small files, of which some rows are deleted
        let postgres = server().await?;
        postgres
            .batch(
                "CREATE EXTENSION lake; CREATE EXTENSION lake_query; CREATE ROLE other LOGIN;
                 CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE heap (id int PRIMARY KEY);
                 INSERT INTO t SELECT i, 'v' FROM generate_series(1, 10) i; SELECT lake.mirror('t')",
            )
            .await?;
        for n in 1..=4 {
            postgres.batch("SELECT lake.wait('t', '60 s')").await?;
            postgres.batch(&format!("INSERT INTO t VALUES ({n} * 100, 'w'); DELETE FROM t WHERE id = {n}")).await?;
        }
        postgres.batch("SELECT lake.wait('t', '60 s')").await?;
        let before = totals(&postgres).await?;
        ensure!(before.0 > 3 && before.1 > 0 && before.2 > 3, "{before:?}");

        // WHEN somebody who may not asks, or for a table that is not mirrored, nothing is done
        let other = postgres.client_as("other", "postgres").await?;
        for sql in ["SELECT lake.compact('t')", "SELECT lake.expire_snapshots('t')"] {
            let refused = format!("{:?}", other.batch_execute(sql).await.err());
            ensure!(refused.contains("42501"), "{sql}: {refused}");
        }
        let refused = format!("{:?}", postgres.batch("SELECT lake.compact('heap')").await.err());
        ensure!(refused.contains("the table is not mirrored"), "{refused}");
        ensure!(totals(&postgres).await? == before, "nothing was to be done");

        // THEN the owner gets one file, with the old snapshots beside it until they are to expire
        postgres.batch("SELECT lake.compact('t')").await?;
        let after = totals(&postgres).await?;
        ensure!((after.0, after.1) == (1, 0) && after.2 > before.2, "{after:?}");
        ensure!(postgres.value("SELECT sum(id) FROM lake.t").await? == "1045", "the rows are the same");
        postgres.batch("SELECT lake.expire_snapshots('t')").await?;
        ensure!(totals(&postgres).await? == (1, 0, 1), "{:?}", totals(&postgres).await?);
        postgres.batch("UPDATE t SET v = 'x' WHERE id % 2 = 0").await?;
        Oracle::new(&postgres).assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        Ok(())
    })
    .await
}
