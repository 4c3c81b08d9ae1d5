//! Another engine's maintenance of mirrored tables, beside the worker: Spark's.
//!
//! Needs what `tests/readers.sh` installs, so `make test-readers` runs it, and no other target.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lake_tests::{Postgres, Python, Source, WorkerConfig, bounded};
use serde_json::{Value, json};

use crate::CATCH_UP;
use crate::mirror::Mirror;

/// Spark takes its time to start, three times, the more so when it fetches Iceberg's runtime.
const LIMIT: Duration = Duration::from_secs(600);

/// All that Spark's documentation recommends for a table, so that it really does it.
fn maintenance(table: &str) -> Vec<String> {
    vec![
        format!(
            "CALL lake.system.rewrite_data_files(table => '{table}', options => map('rewrite-all', 'true', 'remove-dangling-deletes', 'true'))"
        ),
        format!(
            "CALL lake.system.rewrite_position_delete_files(table => '{table}', options => map('rewrite-all', 'true'))"
        ),
        format!("CALL lake.system.rewrite_manifests(table => '{table}')"),
        format!(
            "CALL lake.system.expire_snapshots(table => '{table}', older_than => TIMESTAMP '2100-01-01 00:00:00', retain_last => 1)"
        ),
    ]
}

/// What statements gave in Spark.
async fn spark(mirror: &Mirror, statements: &[String]) -> Result<Vec<Value>> {
    let request = json!({
        "port": mirror.postgres.port(), "database": "postgres", "user": "postgres", "statements": statements,
    });
    let answer =
        Python::script("oracle/spark.py").with_interpreter(".deps/readers/venv/bin/python").ask(&request).await?;
    Ok(answer["gave"].as_array().context("what they gave")?.clone())
}

/// The first number of what a statement gave.
fn number(gave: &Value) -> Result<u64> {
    Ok(gave[0][0].as_str().with_context(|| format!("a number in {gave}"))?.parse()?)
}

#[tokio::test]
#[ignore = "needs tests/readers.sh: make test-readers"]
async fn tables_that_spark_puts_in_order_go_on() -> Result<()> {
    bounded(LIMIT, async {
        // GIVEN tables with many files and deletes, one of them with a history
        let schema = "CREATE TABLE t (id int PRIMARY KEY, v int, pad text); CREATE TABLE other (id int PRIMARY KEY, v int);
             INSERT INTO t SELECT i, 0, md5(i::text) FROM generate_series(1, 5000) i; INSERT INTO other VALUES (1, 0)";
        let tables = &["public.t", "public.other"];
        let postgres = Postgres::builder().tcp().start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch(schema).await?;
        Source::publish(&postgres, tables).await?;
        let mut config = WorkerConfig::new(&postgres, "one", tables)?;
        config.history = vec!["public.t".to_owned()];
        // Spark gives up when files that it rewrites go: one of the two is enough.
        config.maintenance = "enabled = false".to_owned();
        // And it reads what it has found for as long as the default is.
        config.retention = String::new();
        let mut mirror = Mirror::of(postgres, config, tables).await?;
        for round in 0..5 {
            let change = format!(
                "UPDATE t SET v = v + 1 WHERE id % 50 = {round}; DELETE FROM t WHERE id % 500 = 100 + {round};
                 INSERT INTO t SELECT 10000 * (1 + {round}) + i, 0, 'new' FROM generate_series(1, 100) i"
            );
            mirror.after(&change).await?;
        }
        mirror.oracle.remember(&mirror.postgres, &["public.t"]).await?;

        // WHEN Spark does its maintenance while rows are coming
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let load = async {
            for n in 0.. {
                let more = format!("INSERT INTO t VALUES ({}, 0, 'load'); UPDATE other SET v = {n} WHERE id = 1", 100_000 + n);
                mirror.postgres.batch(&more).await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
                if stopped.try_recv().is_ok() {
                    break;
                }
            }
            anyhow::Ok(())
        };
        let all = [maintenance("public.t"), maintenance("public.t_history")].concat();
        let work = async {
            let gave = spark(&mirror, &all).await;
            let _ = stop.send(());
            gave
        };
        let (gave, loaded) = tokio::join!(work, load);
        let gave = gave?;
        loaded?;
        ensure!(number(&gave[0])? >= 2 && number(&gave[4])? >= 2, "Spark has rewritten nothing: {gave:?}");
        // THEN changes of rows that it has moved come through, and the history's rows are all there
        mirror.after("UPDATE t SET v = v + 1 WHERE id % 7 = 0; DELETE FROM t WHERE id % 11 = 0; UPDATE t SET id = -id WHERE id < 50").await?;
        mirror.oracle.assert_history(&mirror.postgres, &["public.t"], CATCH_UP).await?;
        mirror.after("INSERT INTO t VALUES (7, 7, 'again'); DELETE FROM t WHERE id % 13 = 0").await?;

        // WHEN the worker is down meanwhile, and the source changes
        mirror.kill().await?;
        mirror.postgres.batch("UPDATE t SET v = -v WHERE id % 3 = 0; DELETE FROM t WHERE id % 17 = 0").await?;
        spark(&mirror, &all).await?;
        mirror.spawn()?;
        // THEN it goes on from where it was
        mirror.after("UPDATE t SET v = 99 WHERE id % 19 = 0; DELETE FROM t WHERE id % 23 = 0").await?;
        mirror.oracle.assert_history(&mirror.postgres, &["public.t"], CATCH_UP).await?;

        // WHEN Spark changes rows
        spark(&mirror, &["DELETE FROM lake.public.t WHERE id = 1009".to_owned()]).await?;
        mirror.postgres.batch("INSERT INTO t VALUES (1000001, 1, 'late')").await?;
        // THEN that table stops, and says why, and the other goes on
        let why = mirror.stopped("t").await?;
        ensure!(why.contains("someone else"), "{why}");
        mirror.postgres.batch("UPDATE other SET v = -1").await?;
        mirror.oracle.assert_equal(&mirror.postgres, &["public.other"], CATCH_UP).await?;
        Ok(())
    })
    .await
}
