//! Tables whose files someone else rewrites: compaction by another engine.

use std::time::Duration;

use iceberg_writer::{
    Batch, Catalog, DeletedRows, ErrorKind, Format, LakeTable, Lsn, Recovered, Rewrite, TableChange, WrittenFile,
    write_deletes,
};

use crate::pairs::{append, data_file, deletes, ids, spec};
use crate::proxy::Fault;
use crate::readers;
use crate::rest_server::Trouble;
use crate::server::{Faulty, Kind, Lake, MIRROR, batch, commit, committed, of_every_catalog};

of_every_catalog!(
    rewritten_files_are_taken_over,
    a_batch_that_names_no_file_is_made_of_the_rewritten_table,
    a_rewrite_that_changes_rows_stops_the_table,
    a_rewrite_is_followed_past_the_expiry_of_snapshots,
    what_changed_rows_while_nobody_looked_is_found,
);

/// A table of three files and two deleted rows, at position 20.
struct Begun {
    lake: Lake,
    table: LakeTable,
    files: Vec<WrittenFile>,
}

const LIVE: [i64; 28] =
    [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29];

async fn begin(kind: Kind, name: &str) -> Begun {
    let lake = Lake::new(kind).await;
    lake.add_mirror("other").await;
    let table = lake.catalog.prepare(spec(name), Format::V2).await.unwrap();
    let mut files = Vec::new();
    for first in [0, 10, 20] {
        files.push(data_file(&lake.warehouse, &table, first..first + 10).await);
    }
    let table = commit(&lake.catalog, &batch(None, 10, vec![append(&table, files.clone())])).await.remove(0);
    let gone = deletes(&lake.warehouse, &table, &[(&files[0].path, &[2, 3])]).await;
    let change = TableChange { deletes: gone, ..append(&table, vec![]) };
    let table = commit(&lake.catalog, &batch(Some(10), 20, vec![change])).await.remove(0);
    Begun { lake, table, files }
}

/// A commit by another writer: through the same catalog, under another mirror.
async fn foreign(lake: &Lake, change: TableChange) -> LakeTable {
    lake.sql.execute("UPDATE lake_catalog.mirrors SET lsn = NULL WHERE mirror = 'other'", &[]).await.unwrap();
    let other = Batch { mirror: "other".to_owned(), ..batch(None, 99, vec![change]) };
    let (catalog, files) = (lake.other_catalog(), other.clone());
    let receipt = committed(catalog.commit(&files).await.unwrap());
    // Its engine removes the files of what it lets expire.
    catalog.sweep(std::slice::from_ref(&receipt), &|_| false).await;
    receipt.tables()[0].table.clone()
}

/// The first two files in one, as another engine makes it: what it leaves of their deletes is of no file.
async fn rewrite(begun: &Begun, rows: impl IntoIterator<Item = i64>) -> TableChange {
    let Begun { lake, table, files } = begun;
    let merged = data_file(&lake.warehouse, table, rows).await;
    let removed = files[..2].iter().map(|file| file.path.clone()).collect();
    let rewrite = Rewrite { removed, data: vec![merged], all_deletes: false, alone: true };
    TableChange { rewrite, ..append(table, vec![]) }
}

fn compacted() -> impl Iterator<Item = i64> {
    (0..2).chain(4..20)
}

/// A batch of ours that names files: a deleted row and a new one.
async fn ours(begun: &Begun) -> Batch {
    let Begun { lake, table, files } = begun;
    let gone = deletes(&lake.warehouse, table, &[(&files[1].path, &[5])]).await;
    let rows = data_file(&lake.warehouse, table, [40]).await;
    batch(Some(20), 30, vec![TableChange { deletes: gone, ..append(table, vec![rows]) }])
}

/// What a session does that begins with the table as it is: it makes the same changes of it, and merges the deletes.
async fn goes_on(begun: &Begun, name: &str) {
    let lake = &begun.lake;
    let table = lake.catalog.load(spec(name)).await.unwrap().unwrap();
    lake.catalog.check(&table, MIRROR).await.unwrap();
    let live = table.live_files(&lake.warehouse).await.unwrap();
    let mut found = None;
    for file in &live {
        let rows = rows_of(lake, &table, &file.path).await;
        found = found.or(rows.iter().position(|id| *id == 15).map(|row| (file.path.clone(), row as u64)));
    }
    let (path, row) = found.unwrap();
    let mut all = std::collections::BTreeMap::new();
    for file in &live {
        let mut rows = file.deleted.clone();
        if file.path == path {
            rows.insert(row);
        }
        all.insert(file.path.clone(), DeletedRows { partition: file.partition.clone(), positions: rows });
    }
    let unique = uuid::Uuid::now_v7();
    let gone = write_deletes(&lake.warehouse, &table, 1, unique, &all).await.unwrap();
    let rewrite = Rewrite { all_deletes: true, ..Rewrite::default() };
    let row = data_file(&lake.warehouse, &table, [40]).await;
    let change = TableChange { deletes: gone, rewrite, ..append(&table, vec![row]) };
    let expected = lake.mirror_lsn().await.map(|lsn| lsn.as_u64());
    let table = commit(&lake.catalog, &batch(expected, 50, vec![change])).await.remove(0);
    lake.catalog.check(&table, MIRROR).await.unwrap();
    assert_eq!(table.deleted_position_count(), 1);
    let expected: Vec<i64> = LIVE.into_iter().filter(|id| *id != 15).chain([40]).collect();
    assert_eq!(ids(&lake.warehouse, &table).await, expected);
    let (duckdb, pyiceberg) = readers::scan(lake, name).await;
    assert_eq!((duckdb.ids(), pyiceberg.ids()), (expected.clone(), expected));
}

async fn rows_of(lake: &Lake, table: &LakeTable, path: &str) -> Vec<i64> {
    use arrow_array::cast::AsArray;
    use futures_util::TryStreamExt;
    let mut batches = iceberg_writer::scan_columns(&lake.warehouse, table, path, &[0]).await.unwrap();
    let mut rows = Vec::new();
    while let Some(batch) = batches.try_next().await.unwrap() {
        rows.extend(batch.column(0).as_primitive::<arrow_array::types::Int64Type>().values());
    }
    rows
}

async fn rewritten_files_are_taken_over(kind: Kind) {
    let begun = begin(kind, "events").await;
    let lake = &begun.lake;
    let change = rewrite(&begun, compacted()).await;
    let ours = ours(&begun).await;
    foreign(lake, change).await;
    let before = lake.files().await;

    let error = lake.catalog.commit(&ours).await.unwrap_err();
    assert_eq!((error.kind(), error.table()), (ErrorKind::Rewritten, Some(("public", "events"))), "{error}");
    assert_eq!(lake.mirror_lsn().await, Some(Lsn::from_u64(20)));
    assert_eq!(lake.files().await, before, "the plan is gone, and the caller's files are not");
    lake.catalog.discard(&ours, &|_| false).await;
    assert!(ours.tables[0].data.iter().all(|file| !before.is_empty() && before.contains(&file.path)));
    let after = lake.files().await;
    assert!(ours.tables[0].data.iter().all(|file| !after.contains(&file.path)), "nothing of it is left");
    // Nothing is on record, and the next worker has nothing to finish.
    let recovered = lake.other_catalog().recover(MIRROR, 1).await.unwrap();
    assert_eq!(recovered, Recovered { lsn: Some(Lsn::from_u64(20)), left_out: Vec::new() });
    goes_on(&begun, "events").await;
}

async fn a_batch_that_names_no_file_is_made_of_the_rewritten_table(kind: Kind) {
    let begun = begin(kind, "events").await;
    let Begun { lake, table, .. } = &begun;
    foreign(lake, rewrite(&begun, compacted()).await).await;
    let rows = data_file(&lake.warehouse, table, [30]).await;
    let ours = batch(Some(20), 30, vec![append(table, vec![rows])]);
    let receipt = committed(lake.catalog.commit(&ours).await.unwrap());
    let [after] = receipt.tables() else { panic!() };
    assert!(after.rewritten && after.foreign_files.is_empty());
    let expected: Vec<i64> = LIVE.into_iter().chain([30]).collect();
    assert_eq!(ids(&lake.warehouse, &after.table).await, expected);
    // Asked again, the answer is the same.
    let again = committed(lake.other_catalog().commit(&ours).await.unwrap());
    assert_eq!(again.lsn(), ours.lsn);
}

async fn a_rewrite_that_changes_rows_stops_the_table(kind: Kind) {
    let begun = begin(kind, "events").await;
    let lake = &begun.lake;
    let found = foreign(lake, rewrite(&begun, (0..2).chain(4..19)).await).await;
    let error = lake.catalog.commit(&ours(&begun).await).await.unwrap_err();
    assert_eq!((error.kind(), error.table()), (ErrorKind::ForeignChange, Some(("public", "events"))), "{error}");
    assert!(error.to_string().contains("has 27 rows after someone else's rewrite of files, and had 28"), "{error}");
    assert_eq!(lake.mirror_lsn().await, Some(Lsn::from_u64(20)));
    let loaded = lake.catalog.load(spec("events")).await.unwrap().unwrap();
    assert_eq!(lake.catalog.check(&loaded, MIRROR).await.unwrap_err().kind(), ErrorKind::ForeignChange);
    // Nor does it help that the row comes back with a commit that is none of ours: what is appended is more.
    let row = data_file(&lake.warehouse, &found, [19]).await;
    foreign(lake, append(&found, vec![row])).await;
    let loaded = lake.catalog.load(spec("events")).await.unwrap().unwrap();
    assert_eq!(lake.catalog.check(&loaded, MIRROR).await.unwrap_err().kind(), ErrorKind::ForeignChange);
}

async fn a_rewrite_is_followed_past_the_expiry_of_snapshots(kind: Kind) {
    let begun = begin(kind, "events").await;
    let lake = &begun.lake;
    let found = foreign(lake, rewrite(&begun, compacted()).await).await;
    // Rows that are appended count as such.
    let row = data_file(&lake.warehouse, &found, [77]).await;
    let found = foreign(lake, append(&found, vec![row])).await;
    let gone = found.live_files(&lake.warehouse).await.unwrap().last().unwrap().path.clone();
    let again = data_file(&lake.warehouse, &found, [77]).await;
    let rewrite = Rewrite { removed: vec![gone], data: vec![again], all_deletes: true, alone: true };
    let found = foreign(lake, TableChange { rewrite, expire: true, ..append(&found, vec![]) }).await;
    assert_eq!(found.snapshot_count(), 1);
    let error = lake.catalog.commit(&ours(&begun).await).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rewritten, "{error}");
    let loaded = lake.other_catalog().load(spec("events")).await.unwrap().unwrap();
    lake.catalog.check(&loaded, MIRROR).await.unwrap();
    let expected: Vec<i64> = LIVE.into_iter().chain([77]).collect();
    assert_eq!(ids(&lake.warehouse, &loaded).await, expected);
}

async fn what_changed_rows_while_nobody_looked_is_found(kind: Kind) {
    let begun = begin(kind, "events").await;
    let Begun { lake, table, files } = &begun;
    lake.catalog.check(table, MIRROR).await.unwrap();
    let gone = deletes(&lake.warehouse, table, &[(&files[1].path, &[5])]).await;
    let found = foreign(lake, TableChange { deletes: gone, ..append(table, vec![]) }).await;
    let error = lake.catalog.check(&found, MIRROR).await.unwrap_err();
    assert_eq!((error.kind(), error.table()), (ErrorKind::ForeignChange, Some(("public", "events"))), "{error}");
    assert!(error.to_string().contains("(delete)"), "{error}");
}

/// A worker dies with a batch on record, and another engine rewrites the files that it is about.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_on_record_is_given_up_for_a_rewrite() {
    for kind in [Kind::OtherDatabase, Kind::Rest, Kind::StrictRest] {
        let begun = begin(kind, "events").await;
        let lake = &begun.lake;
        let (faulty, dying) = Faulty::of(lake);
        let dying =
            dying.with_deadline(if kind == Kind::OtherDatabase { Duration::ZERO } else { Duration::from_millis(400) });
        faulty.set(Fault::LoseCommit);
        if let Some(rest) = &lake.rest {
            rest.trouble(&[Trouble::Refuse(503); 100]);
        }
        assert_eq!(dying.commit(&ours(&begun).await).await.unwrap_err().kind(), ErrorKind::Unknown, "{kind:?}");
        faulty.set(Fault::None);
        if let Some(rest) = &lake.rest {
            rest.drain();
        }
        foreign(lake, rewrite(&begun, compacted()).await).await;

        let (catalog, epoch) = (lake.other_catalog(), lake.claim().await);
        let recovered = catalog.recover(MIRROR, epoch).await.unwrap();
        assert_eq!(recovered, Recovered { lsn: Some(Lsn::from_u64(20)), left_out: Vec::new() }, "{kind:?}");
        lake.sql.execute("UPDATE lake_catalog.mirrors SET epoch = 1 WHERE mirror = $1", &[&MIRROR]).await.unwrap();
        goes_on(&begun, "events").await;
    }
}
