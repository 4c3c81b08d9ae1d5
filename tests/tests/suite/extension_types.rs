//! The extensions: values of every type, as `lake.<name>` gives them back.

use anyhow::{Context as _, Result, ensure};
use lake_tests::{Postgres, bounded};

use crate::TEST_LIMIT;
use crate::extension_mirror::{mirror, server};
use crate::worker_types::{columns, every_type, random_values};

/// All columns of all rows are the same, in value and type. Heap and lake are asked one after the other: Postgres answers a
/// query of both from the heap alone.
async fn compare(postgres: &Postgres, table: &str, settings: &str) -> Result<()> {
    let client = postgres.client().await?;
    client.batch_execute(settings).await?;
    let plan = client.query(&format!("EXPLAIN (ANALYZE, VERBOSE) SELECT * FROM lake.{table}"), &[]).await?;
    let plan: Vec<&str> = plan.iter().map(|row| row.get(0)).collect();
    ensure!(plan.iter().any(|line| line.contains("LakeScan")), "{plan:#?}");
    ensure!(!plan.iter().any(|line| line.contains("Answered By: heap")), "{plan:#?}");
    let mut shown = vec![("the row".to_owned(), "t::text".to_owned())];
    for column in columns(postgres, table).await? {
        let text = format!(
            "CASE WHEN {column} IS DISTINCT FROM NULL THEN format('%s of %s', {column}, pg_typeof({column})) END"
        );
        shown.push((column, text));
    }
    for (column, text) in shown {
        let of = async |relation: &str| -> Result<Vec<(i32, Option<String>)>> {
            let sql = format!("SELECT id, {text} FROM {relation} t ORDER BY id");
            let rows = client.query(&sql, &[]).await.with_context(|| sql.clone())?;
            Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
        };
        let (heap, lake) = (of(&format!("public.{table}")).await?, of(&format!("lake.{table}")).await?);
        ensure!(heap.len() == lake.len() && heap.len() > 3, "{} rows, the heap has {}", lake.len(), heap.len());
        for (here, there) in heap.iter().zip(&lake) {
            ensure!(here == there, "{column}: heap {here:.300?}, lake {there:.300?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_value_of_any_type_comes_back_as_it_was_under_any_settings() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres.batch("CREATE ROLE lakemirror").await?;
        let key = if every_type(&postgres).await? { "hs -> 'ü'" } else { "hs" };
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
                let sql = format!("SELECT r::text FROM ({}) r", query.replace("{t}", table).replace("hs -> 'ü'", key));
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
