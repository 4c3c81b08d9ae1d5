//! `many_commits`: ten thousand small commits of one table, with maintenance as it is by default. The reference of a commit's
//! time is the median of the first hundred; the bars are 1.2 times that at the end, 64 data files, and 100 KB of metadata.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker};

use crate::Size;
use crate::report::{Measure, median};
use crate::rig;

const COMMITS: u64 = 10_000;
/// Commits that a median is taken of.
const SAMPLE: usize = 100;
/// Rows of the table before, which the commits change.
const ROWS: u64 = 100_000;
/// How long the files may take to become few, when the commits have ended.
const SETTLING: Duration = Duration::from_secs(60);

#[expect(clippy::cast_precision_loss, reason = "counts")]
pub(crate) async fn run(size: Size) -> Result<Vec<Measure>> {
    let (commits, rows) = (size.of(COMMITS).max(2 * SAMPLE as u64), size.of(ROWS));
    let postgres = rig::server().await?;
    postgres.batch(rig::EVENTS).await?;
    postgres.batch(&rig::fill(1, rows)).await?;
    Source::publish(&postgres, &["public.events"]).await?;
    let mut config = rig::worker(&postgres, "commits", &["public.events"])?;
    // A transaction a commit, which the next one waits for.
    config.interval = "1ms".to_owned();
    let mut worker = Worker::spawn(&config)?;
    rig::streaming(&postgres, &mut worker, 1).await?;
    let client = postgres.client().await?;
    let mut seconds = Vec::with_capacity(usize::try_from(commits)?);
    for n in 0..commits {
        let (id, touched) = (rows + 1 + n, 1 + n * 7919 % rows);
        let begun = Instant::now();
        client.batch_execute("BEGIN").await?;
        client.batch_execute(&rig::fill(id, id)).await?;
        let update = format!("UPDATE events SET amount = amount + 1 WHERE id = {touched}");
        client.batch_execute(&update).await?;
        // The commit comes behind it; and nothing that the lake follows is in between.
        let end: String = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
        client.batch_execute("COMMIT").await?;
        committed(&client, &mut worker, &end).await?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    let first = median(seconds[..SAMPLE].to_vec());
    let last = median(seconds[seconds.len() - SAMPLE..].to_vec());
    Oracle::new(&postgres).assert_equal(&postgres, &["public.events"], SETTLING).await?;
    let (data, deletes, metadata) = files(&postgres).await?;
    let begun = Instant::now();
    let mut strays = Oracle::new(&postgres).strays(&config.warehouse).await?.len();
    while strays > 0 && begun.elapsed() < SETTLING {
        tokio::time::sleep(Duration::from_secs(1)).await;
        strays = Oracle::new(&postgres).strays(&config.warehouse).await?.len();
    }
    Ok(vec![
        Measure {
            name: "many_commits",
            ours: last * 1000.0,
            reference: Some(first * 1000.0),
            unit: "ms, last against first",
        },
        Measure { name: "many_commits_data_files", ours: data, reference: Some(64.0), unit: "files" },
        Measure { name: "many_commits_delete_files", ours: deletes, reference: None, unit: "files" },
        Measure { name: "many_commits_metadata", ours: metadata, reference: Some(102_400.0), unit: "bytes" },
        Measure {
            name: "many_commits_strays",
            ours: strays as f64,
            reference: None,
            unit: "files, a minute later at most",
        },
    ])
}

/// Waits until the lake has the commit that comes next behind a position.
async fn committed(client: &tokio_postgres::Client, worker: &mut Worker, lsn: &str) -> Result<()> {
    let sql = format!("SELECT lsn > '{lsn}' FROM lake_catalog.mirrors");
    let begun = Instant::now();
    loop {
        if client.query_one(&sql, &[]).await?.get::<_, Option<bool>>(0) == Some(true) {
            return Ok(());
        }
        ensure!(worker.runs()? && begun.elapsed() < rig::PATIENCE, "no commit comes:\n{}", worker.output());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Live data and delete files, and the size of the metadata.
#[expect(clippy::cast_precision_loss, reason = "counts")]
async fn files(postgres: &Postgres) -> Result<(f64, f64, f64)> {
    let location = postgres.value("SELECT metadata_location FROM lake_catalog.iceberg_tables").await?;
    let json = std::fs::read(location.trim_start_matches("file://"))?;
    let metadata: serde_json::Value = serde_json::from_slice(&json)?;
    let snapshots = metadata["snapshots"].as_array().context("snapshots")?;
    let newest = snapshots.iter().find(|snapshot| snapshot["snapshot-id"] == metadata["current-snapshot-id"]);
    let total = |name: &str| -> Result<f64> {
        let total = newest.and_then(|snapshot| snapshot["summary"][name].as_str()).context("a total")?;
        Ok(total.parse()?)
    };
    Ok((total("total-data-files")?, total("total-delete-files")?, json.len() as f64))
}
