//! The extensions: values of every type, as `lake.<name>` gives them back.

use anyhow::{Context as _, Result, ensure};
use lake_tests::{Postgres, bounded};

use crate::TEST_LIMIT;
use crate::extension_mirror::{mirror, server};
use crate::worker_types::{EVERY_TYPE, columns, random_values};

/// All columns of all rows are the same, in value and type.
async fn compare(postgres: &Postgres, table: &str, settings: &str) -> Result<()> {
    let client = postgres.client().await?;
    client.batch_execute(settings).await?;
    for column in ["id".to_owned()].into_iter().chain(columns(postgres, table).await?) {
        let sql = format!(
            "SELECT coalesce(string_agg(format('%s: heap %s, lake %s', id, left(h.v::text, 300), left(l.v::text, 300)), '; '), '')
             FROM (SELECT id, {column} AS v FROM {table}) h FULL JOIN (SELECT id, {column} AS v FROM lake.{table}) l USING (id)
             WHERE format('%s', h.v) <> format('%s', l.v) OR (h.v IS DISTINCT FROM NULL) <> (l.v IS DISTINCT FROM NULL)
                OR pg_typeof(h.v) <> pg_typeof(l.v) OR pg_column_size(format('%s', h.v)) <> pg_column_size(format('%s', l.v))"
        );
        let different: String = client.query_one(&sql, &[]).await.with_context(|| sql.clone())?.get(0);
        ensure!(different.is_empty(), "column {column}: {different}");
    }
    let rows = format!("SELECT count(*), count(*) FILTER (WHERE h::text = l::text) FROM {table} h JOIN lake.{table} l USING (id)");
    let found = client.query_one(&rows, &[]).await?;
    let (all, same): (i64, i64) = (found.get(0), found.get(1));
    ensure!(all > 4 && all == same, "{same} of {all} rows are the same as a whole");
    Ok(())
}

#[tokio::test]
async fn a_value_of_any_type_comes_back_as_it_was_under_any_settings() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres.batch("CREATE ROLE lakemirror").await?;
        postgres.batch(EVERY_TYPE).await?;
        let seed = random_values(&postgres).await?;
        mirror(&postgres, &["every_type", "random_values"]).await?;
        let odd = "SET DateStyle = 'SQL, DMY'; SET IntervalStyle = sql_standard; SET TimeZone = 'Asia/Kathmandu'; SET array_nulls = off;
                   SET xmloption = document; SET search_path = shop, public, pg_catalog";
        compare(&postgres, "every_type", "").await?;
        compare(&postgres, "every_type", odd).await?;
        compare(&postgres, "random_values", odd).await.context(seed)?;
        // Fresh rows, and rows that were changed.
        postgres
            .batch(
                "CREATE TEMP TABLE again AS SELECT * FROM every_type; UPDATE again SET id = id + 100; INSERT INTO every_type SELECT * FROM again;
                 UPDATE every_type SET n = -n; DELETE FROM every_type WHERE id = 3",
            )
            .await?;
        compare(&postgres, "every_type", odd).await?;

        // What Postgres computes above the scan.
        let client = postgres.client().await?;
        for query in [
            "SELECT id FROM {t} WHERE iv > '1 day' AND nu = 'NaN' ORDER BY 1",
            "SELECT md, count(*), max(bp), min(nb) FROM {t} WHERE md IS NOT NULL GROUP BY md ORDER BY md",
            "SELECT id, (it).price, ia[1], hs -> 'ü', lower(rz), c5 || '|' FROM {t} ORDER BY id",
            "SELECT id FROM {t} WHERE c5 = 'ab' AND ct = 'mixed' AND dp > 1 AND ip << '::ffff:0:0/96' OR '{a}' <@ ca ORDER BY 1",
            "SELECT a.id, b.id FROM {t} a JOIN {t} b ON a.ls = b.ls AND a.id < b.id ORDER BY 1, 2",
        ] {
            let of = async |table: &str| -> Result<Vec<String>> {
                let sql = format!("SELECT r::text FROM ({}) r", query.replace("{t}", table));
                let rows = client.query(&sql, &[]).await.with_context(|| sql.clone())?;
                Ok(rows.iter().map(|row| row.get(0)).collect())
            };
            let (heap, lake) = (of("every_type").await?, of("lake.every_type").await?);
            ensure!(heap == lake && !heap.is_empty(), "{query}\nheap: {heap:?}\nlake: {lake:?}");
        }
        Ok(())
    })
    .await
}
