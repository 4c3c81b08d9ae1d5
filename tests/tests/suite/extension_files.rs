//! The extension's settings of the lake's files: format, size, maintenance, retention.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lake_tests::{Oracle, Postgres, bounded, eventually};

use crate::extension_maintenance::totals;
use crate::extension_mirror::{mirror, same, server};
use crate::{CATCH_UP, TEST_LIMIT};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v numeric(12, 2), s text);
     INSERT INTO t SELECT i, i / 7.0, 's' || i % 10 FROM generate_series(1, 20000) i";

/// Sets a setting, and waits until the engine has it and runs.
async fn set(postgres: &Postgres, name: &str, value: &str) -> Result<()> {
    postgres.batch(&format!("ALTER SYSTEM SET {name} = '{value}'")).await?;
    let before = postgres.log().matches("claimed the mirror").count();
    postgres.reload().await?;
    eventually("the engine runs with the new setting", CATCH_UP, async || {
        let anew = postgres.log().matches("claimed the mirror").count() > before;
        Ok(if anew { postgres.batch("SELECT lake.wait('t', '5 s')").await.ok() } else { None })
    })
    .await
    .with_context(|| format!("{name} = {value}"))
}

/// The newest metadata of the table.
async fn metadata(postgres: &Postgres) -> Result<serde_json::Value> {
    let location = postgres.value("SELECT metadata_location FROM lake.mirrors").await?;
    Ok(serde_json::from_slice(&std::fs::read(location.trim_start_matches("file://"))?)?)
}

/// So many commits of one row each.
async fn commits(postgres: &Postgres, ids: std::ops::Range<u32>) -> Result<()> {
    for id in ids {
        postgres.batch(&format!("INSERT INTO t VALUES ({id}, 1, 'x')")).await?;
        postgres.batch("SELECT lake.wait('t', '30 s')").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_lake_of_version_3_answers_as_the_heap_does() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a table of version 3
        let postgres = server().await?;
        postgres.batch("ALTER SYSTEM SET lake.format_version = 3").await?;
        postgres.reload().await?;
        postgres.batch(TABLE).await?;
        mirror(&postgres, &["t"]).await?;
        ensure!(metadata(&postgres).await?["format-version"] == 3);
        let oracle = Oracle::new(&postgres);
        let equal = async || -> Result<()> {
            for query in [
                "SELECT count(*), sum(v), min(id), max(id) FROM {t}",
                "SELECT s, count(*), sum(v) FROM {t} GROUP BY s ORDER BY s COLLATE \"C\"",
                "SELECT * FROM {t} WHERE id BETWEEN 90 AND 130 ORDER BY id",
            ] {
                same(&postgres, query, "public.t", "lake.t").await?;
            }
            Ok(())
        };
        // WHEN rows are changed in many commits, THEN every reader sees what the heap has
        for statements in [
            "UPDATE t SET v = v + 1 WHERE id % 3 = 0",
            "DELETE FROM t WHERE id % 5 = 0",
            "DELETE FROM t WHERE id BETWEEN 100 AND 120; INSERT INTO t VALUES (101, 1, 'again')",
            "UPDATE t SET id = id + 100000 WHERE id % 50 = 1",
            "ALTER TABLE t ADD COLUMN more int; UPDATE t SET more = id WHERE id < 100",
        ] {
            postgres.batch(statements).await.context(statements)?;
            // Fresh rows first; a new column is told of a moment later, to the lake and then to lake.t.
            if !statements.starts_with("ALTER") {
                equal().await.context(statements)?;
            }
            oracle.assert_equal(&postgres, &["public.t"], CATCH_UP).await.context(statements)?;
            if statements.starts_with("ALTER") {
                eventually("lake.t has the new column", CATCH_UP, async || {
                    Ok(postgres.batch("SELECT more FROM lake.t LIMIT 1").await.ok())
                })
                .await?;
            }
            equal().await.context(statements)?;
        }
        let (data, deletes, _) = totals(&postgres).await?;
        ensure!(data > 1 && deletes > 0, "{data} data files, {deletes} deletion vectors");
        let plan = postgres.rows("EXPLAIN (ANALYZE, COSTS OFF) SELECT s, sum(v) FROM lake.t GROUP BY s").await?;
        let plan = format!("{plan:?}");
        ensure!(plan.contains("LakeScan") && !plan.contains("Answered By: heap"), "{plan}");
        for statements in
            ["SELECT lake.compact('t')", "TRUNCATE t; INSERT INTO t VALUES (1, 2, 'after', 3), (2, 2, NULL, NULL)"]
        {
            postgres.batch(statements).await.context(statements)?;
            oracle.assert_equal(&postgres, &["public.t"], CATCH_UP).await.context(statements)?;
            equal().await.context(statements)?;
        }
        // A copy made anew is of the version that is set then.
        set(&postgres, "lake.format_version", "2").await?;
        ensure!(metadata(&postgres).await?["format-version"] == 3, "a table changed its version by itself");
        postgres.batch("SELECT lake.resync('t')").await?;
        postgres.batch("SELECT lake.wait('t', '60 s')").await?;
        ensure!(metadata(&postgres).await?["format-version"] == 2);
        oracle.assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        equal().await
    })
    .await
}

#[tokio::test]
async fn files_and_snapshots_are_kept_as_the_settings_say_after_a_reload() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a mirror that rewrites nothing by itself
        let postgres = server().await?;
        postgres.batch("ALTER SYSTEM SET lake.maintenance = off").await?;
        postgres.batch("ALTER SYSTEM SET lake.file_size = '256kB'").await?;
        postgres.reload().await?;
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY, v numeric(12, 2), s text); INSERT INTO t SELECT i, i, encode(sha256(i::text::bytea), 'hex') FROM generate_series(1, 100000) i").await?;
        mirror(&postgres, &["t"]).await?;
        // THEN files are of the size that was set, and none is rewritten
        let copied = totals(&postgres).await?;
        ensure!(copied.0 > 3, "6 MB of hashes in {} files", copied.0);
        commits(&postgres, 300000..300012).await?;
        let small = totals(&postgres).await?;
        ensure!(small.0 >= copied.0 + 12 && small.2 > 12, "{small:?}");

        // WHEN maintenance is turned on, four files at a time
        postgres.batch("ALTER SYSTEM SET lake.maintenance_tier_files = 4").await?;
        set(&postgres, "lake.maintenance", "on").await?;
        eventually("small files are rewritten", CATCH_UP, async || {
            Ok((totals(&postgres).await?.0 < small.0 - 6).then_some(()))
        })
        .await?;

        // WHEN fewer snapshots are to be kept, THEN they go with the next commit
        set(&postgres, "lake.retention_snapshots", "3").await?;
        commits(&postgres, 300012..300014).await?;
        let left = totals(&postgres).await?.2;
        ensure!(left <= 3, "{left} snapshots");
        // By their age too, and their files with them.
        postgres.batch("ALTER SYSTEM SET lake.retention_snapshots = 1000").await?;
        postgres.batch("ALTER SYSTEM SET lake.retention_grace = 0").await?;
        set(&postgres, "lake.retention_age", "1s").await?;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        eventually("all that is superseded is gone", CATCH_UP, async || {
            postgres.batch("UPDATE t SET v = v + 1 WHERE id = 1").await?;
            postgres.batch("SELECT lake.wait('t', '30 s')").await?;
            tokio::time::sleep(Duration::from_millis(1100)).await;
            let few = totals(&postgres).await?.2 <= 4;
            let strays = Oracle::new(&postgres).strays(postgres.data_dir().join("lake/warehouse")).await?;
            Ok((few && strays.is_empty()).then_some(()))
        })
        .await?;
        Oracle::new(&postgres).assert_equal(&postgres, &["public.t"], CATCH_UP).await?;

        // What makes no sense is refused where it is said.
        for wrong in [
            "lake.format_version = 1", "lake.format_version = 4", "lake.file_size = '1kB'", "lake.maintenance_tier_files = 1",
            "lake.retention_snapshots = 0", "lake.retention_grace = '400d'", "lake.maintenance_bandwidth = '1kB'",
            "lake.catalog_type = 'hive'", "lake.catalog_port = 0",
        ] {
            ensure!(postgres.batch(&format!("ALTER SYSTEM SET {wrong}")).await.is_err(), "{wrong} is taken");
        }
        Ok(())
    })
    .await
}
