//! Files that take the place of others.

use std::time::Duration;

use iceberg_writer::{Catalog, ErrorKind, Format, LakeTable, Lsn, Recovered, Rewrite, TableChange};
use uuid::Uuid;

use crate::pairs::{append, data_file, deletes, ids, spec};
use crate::proxy::Fault;
use crate::readers;
use crate::server::{Faulty, Kind, Lake, MIRROR, batch, commit, committed, of_every_catalog};

of_every_catalog!(rewritten_files_have_the_rows_of_those_whose_place_they_take);

/// What the newest snapshot says it did.
async fn operation(lake: &Lake) -> String {
    let location = lake.metadata_location("events").await.unwrap();
    let json = lake.read(&location).await;
    let metadata: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let snapshot = metadata["snapshots"].as_array().unwrap().iter().max_by_key(|s| s["sequence-number"].as_i64());
    snapshot.unwrap()["summary"]["operation"].as_str().unwrap().to_owned()
}

async fn reads(lake: &Lake, table: &LakeTable, expected: &[i64]) {
    assert_eq!(ids(&lake.warehouse, table).await, expected);
    let (duckdb, pyiceberg) = readers::scan(lake, "events").await;
    assert_eq!((duckdb.ids(), pyiceberg.ids()), (expected.to_vec(), expected.to_vec()));
}

async fn rewritten_files_have_the_rows_of_those_whose_place_they_take(kind: Kind) {
    let lake = Lake::new(kind).await;
    let table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let (first, second) =
        (data_file(&lake.warehouse, &table, 0..10).await, data_file(&lake.warehouse, &table, 10..20).await);
    let third = data_file(&lake.warehouse, &table, 20..30).await;
    let all = vec![first.clone(), second.clone(), third.clone()];
    let table = commit(&lake.catalog, &batch(None, 10, vec![append(&table, all)])).await.remove(0);
    let gone = deletes(&lake.warehouse, &table, &[(&first.path, &[2, 3])]).await;
    let change = TableChange { deletes: gone, ..append(&table, vec![]) };
    let table = commit(&lake.catalog, &batch(Some(10), 20, vec![change])).await.remove(0);
    let both = deletes(&lake.warehouse, &table, &[(&second.path, &[0]), (&third.path, &[9])]).await;
    let change = TableChange { deletes: both, ..append(&table, vec![]) };
    let table = commit(&lake.catalog, &batch(Some(20), 30, vec![change])).await.remove(0);
    assert_eq!((table.data_file_count(), table.delete_file_count()), (3, 2));

    // Rewritten as of the first deletions: the second ones come with it, by the new positions.
    let rewritten = data_file(&lake.warehouse, &table, (0..2).chain(4..20)).await;
    let all = deletes(&lake.warehouse, &table, &[(&rewritten.path, &[8]), (&third.path, &[9])]).await;
    let table_file = rewritten.path.clone();
    let rewrite = Rewrite {
        removed: vec![first.path.clone(), second.path.clone()],
        data: vec![rewritten],
        all_deletes: true,
        alone: true,
    };
    let change = TableChange { deletes: all, rewrite, ..append(&table, vec![]) };
    let batch_of_it = batch(Some(30), 40, vec![change]);
    let table = commit(&lake.catalog, &batch_of_it).await.remove(0);
    let expected: Vec<i64> = (0..2).chain(4..10).chain(11..29).collect();
    reads(&lake, &table, &expected).await;
    assert_eq!(operation(&lake).await, "replace");
    assert_eq!((table.data_file_count(), table.delete_file_count()), (2, 1));
    let loaded = lake.other_catalog().load(spec("events")).await.unwrap().unwrap();
    assert_eq!(loaded.live_files(&lake.warehouse).await.unwrap(), table.live_files(&lake.warehouse).await.unwrap());
    // The snapshots from before still have their files.
    assert!(lake.files().await.contains(&first.path));

    // Asked again, what happened is found to have happened, and nothing foreign.
    let again = committed(lake.other_catalog().commit(&batch_of_it).await.unwrap());
    assert!(again.tables()[0].foreign_files.is_empty());

    // With other changes it is not a replacement only.
    let fourth = data_file(&lake.warehouse, &table, 40..41).await;
    let merged = data_file(&lake.warehouse, &table, 20..29).await;
    let still = deletes(&lake.warehouse, &table, &[(&table_file, &[8])]).await;
    let rewrite = Rewrite { removed: vec![third.path], data: vec![merged], all_deletes: true, alone: false };
    let change = TableChange { deletes: still, rewrite, ..append(&table, vec![fourth]) };
    let table = commit(&lake.catalog, &batch(Some(40), 50, vec![change])).await.remove(0);
    let expected: Vec<i64> = expected.into_iter().chain([40]).collect();
    reads(&lake, &table, &expected).await;
    assert_eq!(operation(&lake).await, "overwrite");

    // A file that is not there cannot be replaced, and nothing happens.
    let rewrite = Rewrite { removed: vec![first.path], ..Rewrite::default() };
    let wrong = TableChange { rewrite, ..append(&table, vec![]) };
    let error = lake.catalog.commit(&batch(Some(50), 60, vec![wrong])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ForeignChange);
    reads(&lake, &table, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_interrupted_commit_left_of_metadata_is_removed_in_time() {
    let lake = Lake::new(Kind::Beside).await;
    let table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let mut table = commit(&lake.catalog, &batch(None, 10, vec![append(&table, vec![])])).await.remove(0);
    for lsn in [20, 30] {
        let file = data_file(&lake.warehouse, &table, lsn..lsn + 5).await;
        let next = batch(Some(lsn.unsigned_abs() - 10), lsn.unsigned_abs(), vec![append(&table, vec![file])]);
        table = commit(&lake.catalog, &next).await.remove(0);
    }
    let before = lake.files().await;
    let folder = format!("{}/metadata", table.location().trim_start_matches("file://"));
    let seconds = |ago: u64| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, now - ago, 0))
    };
    let leave = |name: String| std::fs::write(format!("{folder}/{name}"), b"").unwrap();
    let long_ago = seconds(2 * 3600);
    for name in ["5-{}-data.avro", "5-{}-deletes.avro", "snap-5-{}.avro", "00009-{}.metadata.json"] {
        leave(name.replace("{}", &long_ago.to_string()));
    }
    // A commit may still be under way; and what others have left is not ours to remove.
    let kept = [format!("5-{}-data.avro", seconds(600)), format!("{long_ago}-m0.avro"), "snap-1-x.avro".to_owned()];
    kept.iter().cloned().for_each(leave);
    let swept = lake.strays_swept(&table, 2).await;
    assert_eq!((swept.deleted, swept.failed), (4, 0));
    let mut expected: Vec<String> = before;
    expected.extend(kept.iter().map(|name| format!("file://{folder}/{name}")));
    expected.sort();
    assert_eq!(lake.files().await, expected);
    reads(&lake, &table, &(20..25).chain(30..35).collect::<Vec<_>>()).await;
}

/// The worker dies when the batch is on record, and the catalog has not got it.
#[tokio::test(flavor = "multi_thread")]
async fn a_rewrite_is_on_record() {
    let lake = Lake::new(Kind::OtherDatabase).await;
    let table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let (first, second) =
        (data_file(&lake.warehouse, &table, 0..10).await, data_file(&lake.warehouse, &table, 10..20).await);
    let gone = deletes(&lake.warehouse, &table, &[(&first.path, &[2, 3])]).await;
    let change = TableChange { deletes: gone, ..append(&table, vec![first.clone(), second.clone()]) };
    let table = commit(&lake.catalog, &batch(None, 10, vec![change])).await.remove(0);
    let rewritten = data_file(&lake.warehouse, &table, (0..2).chain(4..20)).await;
    let still = deletes(&lake.warehouse, &table, &[(&rewritten.path, &[8])]).await;
    let removed = vec![first.path, second.path];
    let rewrite = Rewrite { removed, data: vec![rewritten.clone()], all_deletes: true, alone: false };
    let lost = batch(Some(10), 20, vec![TableChange { deletes: still, rewrite, ..append(&table, vec![]) }]);

    let (faulty, dying) = Faulty::of(&lake);
    let dying = dying.with_deadline(Duration::ZERO);
    faulty.set(Fault::LoseCommit);
    assert_eq!(dying.commit(&lost).await.unwrap_err().kind(), ErrorKind::Unknown);
    faulty.set(Fault::None);

    let (catalog, epoch) = (lake.other_catalog(), lake.claim().await);
    let recovered = catalog.recover(MIRROR, epoch).await.unwrap();
    assert_eq!(recovered, Recovered { lsn: Some(Lsn::from_u64(20)), left_out: Vec::new() });
    let table = catalog.load(spec("events")).await.unwrap().unwrap();
    assert_eq!((table.data_file_count(), table.delete_file_count()), (1, 1));
    assert_eq!(table.live_files(&lake.warehouse).await.unwrap()[0].path, rewritten.path);
    reads(&lake, &table, &(0..2).chain(4..10).chain(11..20).collect::<Vec<_>>()).await;
}
