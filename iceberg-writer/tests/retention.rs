//! Metadata stays small, and nothing that is referenced goes away.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use iceberg_writer::{Catalog, Format, LakeTable, Retention, TableChange};

use crate::pairs::{append, data_file, deletes, ids, spec};
use crate::readers;
use crate::server::{Kind, Lake, WITHOUT_GRACE, batch, committed, of_every_catalog};

of_every_catalog!(many_commits_leave_little_metadata_and_no_garbage, pinned_files_wait_for_a_later_sweep,);

const KEPT: usize = 10;

async fn many_commits_leave_little_metadata_and_no_garbage(kind: Kind) {
    let lake = Lake::new(kind).await;
    let catalog = lake.other_catalog().with_retention(Retention { snapshots: KEPT, ..WITHOUT_GRACE });
    let mut table = catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let mut previous: Option<String> = None;
    let mut expected = BTreeSet::new();
    let mut times = Vec::new();
    let mut swept_files = 0;
    for step in 0..150_i64 {
        let added = data_file(&lake.warehouse, &table, [2 * step, 2 * step + 1]).await;
        expected.extend([2 * step, 2 * step + 1]);
        let gone = match &previous {
            Some(path) => deletes(&lake.warehouse, &table, &[(path, &[0])]).await,
            None => Vec::new(),
        };
        if step > 0 {
            expected.remove(&(2 * (step - 1)));
        }
        previous = Some(added.path.clone());
        let truncate = step == 75;
        if truncate {
            expected = [2 * step, 2 * step + 1].into();
        }
        let deletes = if truncate { Vec::new() } else { gone };
        let change = TableChange { truncate, deletes, ..append(&table, vec![added]) };
        let lsn = u64::try_from(step).unwrap() + 1;
        let batch = batch((step > 0).then_some(lsn - 1), lsn, vec![change]);
        let start = Instant::now();
        let receipt = committed(catalog.commit(&batch).await.unwrap());
        times.push(start.elapsed());
        table = receipt.tables()[0].table.clone();
        let swept = catalog.sweep(std::slice::from_ref(&receipt), &|_| false).await;
        assert_eq!((swept.pinned, swept.failed), (0, 0));
        swept_files += swept.deleted;
    }
    let mut last = times.split_off(125);
    last.sort();
    println!("commit after 150 commits: median {:?}, slowest of 25 {:?}", last[12], last[24]);

    let expected: Vec<i64> = expected.into_iter().collect();
    assert_eq!(ids(&lake.warehouse, &table).await, expected);
    let location = lake.metadata_location("events").await.unwrap();
    let size = lake.read(&location).await.len();
    assert!(size < 26_000, "{size} bytes of metadata");
    assert!(swept_files > 400, "{swept_files}");
    assert_only_referenced_files(&lake, &table).await;
    let (duckdb, pyiceberg) = readers::scan(&lake, "events").await;
    assert_eq!((duckdb.ids(), pyiceberg.ids()), (expected.clone(), expected));
}

/// What the folder holds is exactly what the metadata log, the retained snapshots and their manifests name.
async fn assert_only_referenced_files(lake: &Lake, table: &LakeTable) {
    let live: BTreeSet<String> =
        table.live_files(&lake.warehouse).await.unwrap().into_iter().map(|file| file.path).collect();
    let files = lake.files().await;
    let of = |ending: &str| files.iter().filter(|file| file.ends_with(ending)).cloned().collect::<BTreeSet<_>>();
    let data: BTreeSet<String> =
        of(".parquet").into_iter().filter(|file| !file.ends_with("-deletes.parquet")).collect();
    assert_eq!(data, live);
    assert!(of("-deletes.parquet").len() <= 75);
    // A server removes its own.
    assert!(!lake.kind.is_jdbc() || of(".metadata.json").len() <= 21, "{:?}", of(".metadata.json"));
    assert_eq!(files.iter().filter(|file| file.contains("/metadata/snap-")).count(), KEPT);
    // Each retained snapshot has at most its own two; merging bounds the shared ones.
    let manifests = of("-data.avro").len() + of("-deletes.avro").len();
    assert!(manifests <= 2 * (20 + KEPT), "{manifests} manifests");
    assert!(of(".tmp").is_empty());
}

async fn pinned_files_wait_for_a_later_sweep(kind: Kind) {
    let lake = Lake::new(kind).await;
    let catalog =
        lake.other_catalog().with_retention(Retention { age: Duration::ZERO, snapshots: 1, grace: Duration::ZERO });
    let table = catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let first = data_file(&lake.warehouse, &table, 0..3).await;
    let receipt = committed(catalog.commit(&batch(None, 1, vec![append(&table, vec![first.clone()])])).await.unwrap());
    let table = receipt.tables()[0].table.clone();
    let second = data_file(&lake.warehouse, &table, 3..6).await;
    let change = TableChange { truncate: true, ..append(&table, vec![second]) };
    let receipt = committed(catalog.commit(&batch(Some(1), 2, vec![change])).await.unwrap());
    let swept = catalog.sweep(std::slice::from_ref(&receipt), &|path| path == first.path).await;
    assert_eq!((swept.pinned, swept.failed), (1, 0));
    assert!(lake.files().await.contains(&first.path));
    assert_eq!(ids(&lake.warehouse, &receipt.tables()[0].table).await, [3, 4, 5]);

    let receipt = committed(catalog.commit(&batch(Some(2), 3, vec![])).await.unwrap());
    let swept = catalog.sweep(std::slice::from_ref(&receipt), &|_| false).await;
    assert_eq!((swept.deleted, swept.pinned), (1, 0));
    assert!(!lake.files().await.contains(&first.path));
}
