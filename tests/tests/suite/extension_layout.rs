//! The extension `lake`: partitions and order of a table's files, asked for and changed by `lake.mirror`.

use anyhow::{Result, ensure};
use lake_tests::{Oracle, bounded, eventually};

use crate::extension_mirror::server;
use crate::{CATCH_UP, TEST_LIMIT};

#[tokio::test]
async fn a_table_is_divided_as_asked_and_otherwise_when_that_is_asked_and_queries_stay_as_they_are() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres
            .batch(
                "CREATE EXTENSION lake; CREATE EXTENSION lake_query;
                 CREATE TABLE t (id int PRIMARY KEY, at timestamptz, \"Kind\" text);
                 INSERT INTO t SELECT i, '2026-01-01 00:00+00'::timestamptz + i * interval '7 h', 'k' || i % 3 FROM generate_series(1, 300) i",
            )
            .await?;
        let refusal = async |sql: &str| format!("{:?}", postgres.batch(sql).await.err());
        for (wanted, what) in [
            ("partition_by => 'day(id)'", "day(id): the type integer has no such transform"),
            ("partition_by => 'kind'", "there is no column"),
            ("sort_by => 'at UP'", "at up is not understood"),
        ] {
            let refused = refusal(&format!("SELECT lake.mirror('t', {wanted})")).await;
            ensure!(refused.contains(what) && refused.contains("22023"), "{refused}");
        }
        ensure!(postgres.value("SELECT count(*) FROM lake.mirrors").await? == "0", "a refused call mirrors nothing");
        postgres
            .batch("SELECT lake.mirror('t', partition_by => 'month(at), bucket(2, id)', sort_by => '\"Kind\", at DESC')")
            .await?;
        let shown = "SELECT coalesce(partition_by, '') || ' / ' || coalesce(sort_by, '') FROM lake.mirrors";
        ensure!(postgres.value(shown).await? == "month(at), bucket(2, id) / \"Kind\", at DESC", "lake.mirrors tells");
        let (oracle, tables) = (Oracle::new(&postgres), ["public.t"]);
        let equal = async || -> Result<Vec<String>> {
            postgres.batch("SELECT lake.wait('t', '60 s')").await?;
            oracle.assert_equal(&postgres, &tables, CATCH_UP).await?;
            let heap = postgres.value("SELECT count(*) || ' ' || sum(id) || ' ' || min(at) FROM t WHERE \"Kind\" <> 'k1'").await?;
            let lake = postgres.value("SELECT count(*) || ' ' || sum(id) || ' ' || min(at) FROM lake.t WHERE \"Kind\" <> 'k1'").await?;
            ensure!(heap == lake, "{heap} in the heap, {lake} in the lake");
            Ok(oracle.assert_partitions(&postgres, &tables, CATCH_UP).await?.remove(0).now)
        };
        ensure!(equal().await? == ["at_month=month", "id_bucket_2=bucket[2]"], "as it was asked for");
        postgres.batch("UPDATE t SET at = at + interval '40 day' WHERE id % 4 = 0; DELETE FROM t WHERE id % 9 = 0").await?;
        equal().await?;

        // One of the two is changed, and the other stays.
        postgres.batch("SELECT lake.mirror('t', partition_by => '\"Kind\"')").await?;
        ensure!(postgres.value(shown).await? == "\"Kind\" / \"Kind\", at DESC", "{}", postgres.value(shown).await?);
        eventually("the table is laid out otherwise, though nothing changes", CATCH_UP, async || {
            let now = oracle.assert_partitions(&postgres, &tables, CATCH_UP).await?.remove(0).now;
            Ok((now == ["Kind=identity"]).then_some(()))
        })
        .await?;
        postgres.batch("INSERT INTO t SELECT i, now(), 'new' FROM generate_series(1001, 1010) i; UPDATE t SET \"Kind\" = 'k1' WHERE id % 5 = 0").await?;
        equal().await?;
        postgres.batch("SELECT lake.compact('t'); SELECT lake.mirror('t', partition_by => '', sort_by => '')").await?;
        postgres.batch("UPDATE t SET \"Kind\" = 'k2' WHERE id % 7 = 0").await?;
        eventually("it has no partitions any more", CATCH_UP, async || {
            let now = oracle.assert_partitions(&postgres, &tables, CATCH_UP).await?.remove(0).now;
            Ok(now.is_empty().then_some(()))
        })
        .await?;
        equal().await?;
        ensure!(postgres.value(shown).await? == " / ", "{}", postgres.value(shown).await?);
        // A copy takes the layout as it is then.
        postgres.batch("SELECT lake.mirror('t', partition_by => 'truncate(100, id)'); SELECT lake.resync('t')").await?;
        ensure!(equal().await? == ["id_trunc_100=truncate[100]"], "a new copy is divided");
        Ok(())
    })
    .await
}
