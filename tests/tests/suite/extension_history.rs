//! The extension `lake`: tables whose changes are kept.

use anyhow::{Result, ensure};
use lake_tests::{Oracle, bounded, eventually};

use crate::extension_mirror::server;
use crate::{CATCH_UP, TEST_LIMIT};

#[tokio::test]
async fn a_history_is_kept_when_that_is_asked_for_and_turned_on_and_off_by_asking_again() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres
            .batch(
                "CREATE EXTENSION lake; CREATE EXTENSION lake_query;
                 CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b');
                 CREATE TABLE later (id int PRIMARY KEY, v text); INSERT INTO later VALUES (1, 'a');
                 CREATE TABLE named (id int PRIMARY KEY, _op text); CREATE TABLE t_history (id int PRIMARY KEY)",
            )
            .await?;
        let refusal = async |sql: &str| format!("{:?}", postgres.batch(sql).await.err());
        let refused = refusal("SELECT lake.mirror('named', history => true)").await;
        ensure!(refused.contains("_op") && refused.contains("RENAME COLUMN"), "{refused}");
        postgres.batch("SELECT lake.mirror('t', history => true); SELECT lake.mirror('later')").await?;
        let refused = refusal("SELECT lake.mirror('t_history')").await;
        ensure!(refused.contains("the history of public.t has that name"), "{refused}");
        // Asked for as before, it stays as it is.
        postgres.batch("SELECT lake.mirror('t')").await?;
        let oracle = Oracle::new(&postgres);
        postgres.batch("SELECT lake.wait('t', '60 s'); SELECT lake.wait('later', '60 s')").await?;
        oracle.remember(&postgres, &["public.t"]).await?;
        postgres.batch("UPDATE t SET v = 'c' WHERE id = 1; DELETE FROM t WHERE id = 2").await?;
        oracle.remember(&postgres, &["public.t"]).await?;
        postgres.batch("UPDATE t SET id = 3; SELECT lake.mirror('later', history => true)").await?;
        eventually("the history of the other begins", CATCH_UP, async || {
            let there = "SELECT count(*) FROM lake_catalog.iceberg_tables WHERE table_name = 'later_history'";
            Ok((postgres.value(there).await? == "1").then_some(()))
        })
        .await?;
        postgres.batch("INSERT INTO later VALUES (2, 'x')").await?;
        let kinds = oracle.assert_history(&postgres, &["public.t", "public.later"], CATCH_UP).await?;
        ensure!(kinds[0]["copy"] == 2 && kinds[0]["update"] == 2 && kinds[0]["delete"] == 2, "{kinds:?}");
        ensure!(postgres.value("SELECT count(*) FROM lake.mirrors WHERE history").await? == "2", "lake.mirrors tells");
        oracle.assert_equal(&postgres, &["public.t", "public.later"], CATCH_UP).await?;
        postgres.batch("SELECT lake.mirror('t', history => false)").await?;
        ensure!(postgres.value("SELECT count(*) FROM lake.mirrors WHERE history").await? == "1", "it was turned off");
        Ok(())
    })
    .await
}
