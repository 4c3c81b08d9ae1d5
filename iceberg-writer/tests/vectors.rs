//! Tables of format version 3: one deletion vector a data file, and rows that keep their numbers.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::TryStreamExt;
use iceberg_writer::{
    Catalog, DataFileWriter, ErrorKind, Format, LakeTable, Lsn, Recovered, Retention, Rewrite, TableChange,
    WrittenFile, scan_with_lineage,
};
use uuid::Uuid;

use crate::pairs::{append, column, data_file, deletes, ids, spec};
use crate::proxy::Fault;
use crate::readers;
use crate::rest_server::Trouble;
use crate::server::{Faulty, Kind, Lake, MIRROR, batch, commit, committed, of_every_catalog};

of_every_catalog!(
    a_vector_takes_the_place_of_the_former_one,
    rows_keep_their_numbers,
    a_vector_is_there_as_long_as_it_counts,
);

/// The table's newest snapshot, and what the metadata says of the whole.
async fn newest(lake: &Lake) -> (serde_json::Value, serde_json::Value) {
    let location = lake.metadata_location("events").await.unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&lake.read(&location).await).unwrap();
    let snapshot = metadata["snapshots"].as_array().unwrap().iter().max_by_key(|s| s["sequence-number"].as_i64());
    (snapshot.unwrap().clone(), metadata.clone())
}

async fn reads(lake: &Lake, table: &LakeTable, expected: impl IntoIterator<Item = i64>) {
    let expected: Vec<i64> = expected.into_iter().collect();
    assert_eq!(ids(&lake.warehouse, table).await, expected);
    let loaded = lake.other_catalog().load(spec("events")).await.unwrap().unwrap();
    assert_eq!(loaded.format(), Format::V3);
    assert_eq!(loaded.live_files(&lake.warehouse).await.unwrap(), table.live_files(&lake.warehouse).await.unwrap());
    let (duckdb, pyiceberg) = readers::scan(lake, "events").await;
    assert_eq!((duckdb.ids(), pyiceberg.ids()), (expected.clone(), expected));
}

/// A table with two files of ten rows each.
async fn two_files(lake: &Lake) -> (LakeTable, WrittenFile, WrittenFile) {
    let table = lake.catalog.prepare(spec("events"), Format::V3).await.unwrap();
    let (a, b) = (data_file(&lake.warehouse, &table, 0..10).await, data_file(&lake.warehouse, &table, 10..20).await);
    let gone = deletes(&lake.warehouse, &table, &[(&a.path, &[1])]).await;
    let change = TableChange { deletes: gone, ..append(&table, vec![a.clone(), b.clone()]) };
    let table = commit(&lake.catalog, &batch(None, 10, vec![change])).await.remove(0);
    (table, a, b)
}

/// A file with the live rows of others, which are to have them no longer.
async fn rewritten(lake: &Lake, table: &LakeTable, of: &[(&WrittenFile, &[u64])]) -> WrittenFile {
    let lineage = table.lineage(&lake.warehouse).await.unwrap().unwrap();
    let mut writer = DataFileWriter::create(&lake.warehouse, table, 1, Uuid::now_v7(), 0).with_lineage();
    for (file, deleted) in of {
        let mut rows = scan_with_lineage(&lake.warehouse, table, &file.path, &lineage).await.unwrap();
        let mut position = 0;
        while let Some(batch) = rows.try_next().await.unwrap() {
            for row in 0..batch.num_rows() {
                if !deleted.contains(&position) {
                    writer.write(&batch.slice(row, 1)).await.unwrap();
                }
                position += 1;
            }
        }
    }
    writer.close().await.unwrap().unwrap()
}

async fn a_vector_takes_the_place_of_the_former_one(kind: Kind) {
    let lake = Lake::new(kind).await;
    let (table, a, b) = two_files(&lake).await;
    assert_eq!(table.delete_file_count(), 1);
    reads(&lake, &table, (0..20).filter(|id| *id != 1)).await;

    let gone = deletes(&lake.warehouse, &table, &[(&a.path, &[1, 2]), (&b.path, &[0])]).await;
    let paths: BTreeSet<&str> = gone.iter().map(|vector| vector.path.as_str()).collect();
    assert_eq!((gone.len(), paths.len()), (2, 2));
    let change = TableChange { deletes: gone, ..append(&table, vec![]) };
    let table = commit(&lake.catalog, &batch(Some(10), 20, vec![change])).await.remove(0);
    assert_eq!(table.delete_file_count(), 2);
    reads(&lake, &table, (0..20).filter(|id| ![1, 2, 10].contains(id))).await;
    let (snapshot, metadata) = newest(&lake).await;
    let summary = |name: &str| snapshot["summary"][name].as_str().unwrap_or("none").to_owned();
    assert_eq!((metadata["format-version"].as_i64(), &*summary("operation")), (Some(3), "delete"));
    assert_eq!((&*summary("added-dvs"), &*summary("removed-dvs")), ("2", "1"));
    assert_eq!((&*summary("total-delete-files"), &*summary("total-position-deletes")), ("2", "3"));

    // One of the two only; and rows come.
    let c = data_file(&lake.warehouse, &table, 20..30).await;
    let gone = deletes(&lake.warehouse, &table, &[(&b.path, &[0, 9]), (&c.path, &[5])]).await;
    let change = TableChange { deletes: gone, ..append(&table, vec![c.clone()]) };
    let table = commit(&lake.catalog, &batch(Some(20), 30, vec![change])).await.remove(0);
    let expected: Vec<i64> = (0..30).filter(|id| ![1, 2, 10, 19, 25].contains(id)).collect();
    assert_eq!(table.delete_file_count(), 3);
    reads(&lake, &table, expected.clone()).await;

    // A file goes, with its vector; the others stay as they are.
    let moved = rewritten(&lake, &table, &[(&a, &[1, 2])]).await;
    let still = deletes(&lake.warehouse, &table, &[(&moved.path, &[7])]).await;
    let rewrite = Rewrite { removed: vec![a.path], data: vec![moved.clone()], all_deletes: false, alone: false };
    let change = TableChange { deletes: still, rewrite, ..append(&table, vec![]) };
    let table = commit(&lake.catalog, &batch(Some(30), 40, vec![change])).await.remove(0);
    assert_eq!((table.data_file_count(), table.delete_file_count()), (3, 3));
    reads(&lake, &table, expected.iter().copied().filter(|id| *id != 9)).await;

    // Rewritten without new deletions; and a file that has none.
    let merged = rewritten(&lake, &table, &[(&b, &[0, 9]), (&c, &[5])]).await;
    let removed = vec![b.path, c.path];
    let rewrite = Rewrite { removed, data: vec![merged.clone()], all_deletes: false, alone: true };
    let ours = batch(Some(40), 50, vec![TableChange { rewrite, ..append(&table, vec![]) }]);
    let table = commit(&lake.catalog, &ours).await.remove(0);
    assert_eq!((table.data_file_count(), table.delete_file_count()), (2, 1));
    reads(&lake, &table, expected.iter().copied().filter(|id| *id != 9)).await;
    assert_eq!(newest(&lake).await.0["summary"]["operation"], "replace");
    // Asked again, what happened is found to have happened, and nothing foreign.
    let again = committed(lake.other_catalog().commit(&ours).await.unwrap());
    assert!(again.tables()[0].foreign_files.is_empty());

    let d = data_file(&lake.warehouse, &table, 40..45).await;
    let gone = deletes(&lake.warehouse, &table, &[(&d.path, &[0])]).await;
    let change = TableChange { truncate: true, deletes: gone, ..append(&table, vec![d]) };
    let ours = batch(Some(50), 60, vec![change]);
    let table = commit(&lake.catalog, &ours).await.remove(0);
    assert_eq!((table.data_file_count(), table.delete_file_count()), (1, 1));
    reads(&lake, &table, 41..45).await;
    assert!(committed(lake.other_catalog().commit(&ours).await.unwrap()).tables()[0].foreign_files.is_empty());
}

/// Each row's number, by the writer's own reading.
async fn numbers(lake: &Lake, table: &LakeTable) -> Vec<(i64, i64, i64)> {
    use arrow_array::cast::AsArray;
    use arrow_array::types::Int64Type;
    let lineage = table.lineage(&lake.warehouse).await.unwrap().unwrap();
    let mut found = Vec::new();
    for file in table.live_files(&lake.warehouse).await.unwrap() {
        let mut position = 0;
        let mut rows = scan_with_lineage(&lake.warehouse, table, &file.path, &lineage).await.unwrap();
        while let Some(batch) = rows.try_next().await.unwrap() {
            let column = |at: usize| batch.column(at).as_primitive::<Int64Type>().clone();
            let (ids, numbers, commits) = (column(0), column(2), column(3));
            for row in 0..batch.num_rows() {
                if !file.deleted.contains(position) {
                    found.push((ids.value(row), numbers.value(row), commits.value(row)));
                }
                position += 1;
            }
        }
    }
    found.sort_unstable();
    found
}

async fn rows_keep_their_numbers(kind: Kind) {
    let lake = Lake::new(kind).await;
    let (mut table, a, b) = two_files(&lake).await;
    let first = numbers(&lake, &table).await;
    assert_eq!(first.iter().map(|row| row.1).collect::<BTreeSet<_>>().len(), 19, "{first:?}");
    // More commits than there are manifests: they are merged.
    for step in 0..24 {
        let file = data_file(&lake.warehouse, &table, [100 + step]).await;
        let lsn = 10 + u64::try_from(step).unwrap();
        table = commit(&lake.catalog, &batch(Some(lsn), lsn + 1, vec![append(&table, vec![file])])).await.remove(0);
    }
    let all = numbers(&lake, &table).await;
    assert_eq!(all[..19], first[..], "what was there has kept its numbers");
    assert_eq!(all.iter().map(|row| row.1).collect::<BTreeSet<_>>().len(), 43, "no number comes twice: {all:?}");
    assert_eq!(readers::lineage(&lake, "events").await, all);
    let loaded = lake.other_catalog().load(spec("events")).await.unwrap().unwrap();
    assert_eq!(numbers(&lake, &loaded).await, all);

    // Rewritten, and again: with the file, one that has been rewritten before.
    let moved = rewritten(&lake, &table, &[(&a, &[1]), (&b, &[])]).await;
    let removed = vec![a.path, b.path];
    let rewrite = Rewrite { removed, data: vec![moved.clone()], all_deletes: false, alone: true };
    let change = TableChange { rewrite, ..append(&table, vec![]) };
    let table = commit(&lake.catalog, &batch(Some(34), 35, vec![change])).await.remove(0);
    assert_eq!((numbers(&lake, &table).await, readers::lineage(&lake, "events").await), (all.clone(), all.clone()));
    let live = table.live_files(&lake.warehouse).await.unwrap();
    let other = live.iter().find(|file| file.path != moved.path).unwrap();
    let again = {
        let lineage = table.lineage(&lake.warehouse).await.unwrap().unwrap();
        let mut writer = DataFileWriter::create(&lake.warehouse, &table, 1, Uuid::now_v7(), 0).with_lineage();
        for path in [&moved.path, &other.path] {
            let mut rows = scan_with_lineage(&lake.warehouse, &table, path, &lineage).await.unwrap();
            while let Some(batch) = rows.try_next().await.unwrap() {
                writer.write(&batch).await.unwrap();
            }
        }
        writer.close().await.unwrap().unwrap()
    };
    let removed = vec![moved.path, other.path.clone()];
    let rewrite = Rewrite { removed, data: vec![again], all_deletes: false, alone: true };
    let change = TableChange { rewrite, ..append(&table, vec![]) };
    let table = commit(&lake.catalog, &batch(Some(35), 36, vec![change])).await.remove(0);
    assert_eq!((numbers(&lake, &table).await, readers::lineage(&lake, "events").await), (all.clone(), all.clone()));
    // New rows get new numbers, above all that were given.
    let file = data_file(&lake.warehouse, &table, [1000]).await;
    let table = commit(&lake.catalog, &batch(Some(36), 37, vec![append(&table, vec![file])])).await.remove(0);
    let now = numbers(&lake, &table).await;
    assert!(all.iter().all(|row| row.1 < now[now.len() - 1].1));
    assert_eq!(readers::lineage(&lake, "events").await, now);
}

/// A data file, and what is deleted in it.
type Deleted<'a> = (&'a str, &'a [u64]);

/// Vectors in one file, as other writers put them.
async fn together(lake: &Lake, table: &LakeTable, vectors: &[WrittenFile]) -> Vec<WrittenFile> {
    let (mut file, mut entries) = (b"PFA1".to_vec(), Vec::new());
    let path = format!("{}.puffin", vectors[0].path);
    for vector in vectors {
        let mut recorded: serde_json::Value = serde_json::from_str(&vector.to_json().unwrap()).unwrap();
        let mut entry: serde_json::Value = serde_json::from_str(recorded["entry"].as_str().unwrap()).unwrap();
        let at = |name: &str| usize::try_from(entry[name].as_u64().unwrap()).unwrap();
        let place = at("content_offset")..at("content_offset") + at("content_size_in_bytes");
        let blob = lake.read(&vector.path).await[place].to_vec();
        (entry["content_offset"], entry["file_path"]) = (file.len().into(), path.clone().into());
        file.extend(blob);
        recorded["entry"] = entry.to_string().into();
        entries.push(recorded);
    }
    // Nobody here reads the footer.
    std::fs::write(path.trim_start_matches("file://"), file).unwrap();
    entries.iter().map(|entry| WrittenFile::from_json(table, &entry.to_string()).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_several_vectors_is_there_as_long_as_one_of_them_counts() {
    let lake = Lake::new(Kind::Beside).await;
    let catalog =
        lake.other_catalog().with_retention(Retention { age: Duration::ZERO, snapshots: 1, grace: Duration::ZERO });
    let (mut table, a, b) = two_files(&lake).await;
    // The first file has a vector of each; the second replaces one of them, and the third the other.
    let steps: [(&[Deleted<'_>], bool, &[i64]); 3] = [
        (&[(&a.path, &[1, 2]), (&b.path, &[0])], true, &[1, 2, 10]),
        (&[(&a.path, &[1, 2, 3])], true, &[1, 2, 3, 10]),
        (&[(&b.path, &[0, 1])], false, &[1, 2, 3, 10, 11]),
    ];
    let mut shared = None;
    for (step, (positions, is_there, gone)) in (0..).zip(steps) {
        let mut vectors = deletes(&lake.warehouse, &table, positions).await;
        if shared.is_none() {
            vectors = together(&lake, &table, &vectors).await;
        }
        let shared = shared.get_or_insert_with(|| vectors[0].path.clone());
        let change = TableChange { deletes: vectors, ..append(&table, vec![]) };
        let receipt = committed(catalog.commit(&batch(Some(10 + step), 11 + step, vec![change])).await.unwrap());
        table = receipt.tables()[0].table.clone();
        let swept = catalog.sweep(std::slice::from_ref(&receipt), &|_| false).await;
        assert_eq!((swept.pinned, swept.failed), (0, 0));
        assert_eq!(lake.files().await.contains(shared), is_there, "step {step}");
        let expected: Vec<i64> = (0..20).filter(|id| !gone.contains(id)).collect();
        assert_eq!(ids(&lake.warehouse, &table).await, expected);
        let loaded = lake.other_catalog().load(spec("events")).await.unwrap().unwrap();
        assert_eq!(ids(&lake.warehouse, &loaded).await, expected);
    }
}

async fn a_vector_is_there_as_long_as_it_counts(kind: Kind) {
    let lake = Lake::new(kind).await;
    let catalog =
        lake.other_catalog().with_retention(Retention { age: Duration::ZERO, snapshots: 1, grace: Duration::ZERO });
    let (mut table, a, b) = two_files(&lake).await;
    let steps: [(&[Deleted<'_>], &[i64]); 3] = [
        (&[(&a.path, &[1, 2]), (&b.path, &[0])], &[1, 2, 10]),
        (&[(&a.path, &[1, 2, 3])], &[1, 2, 3, 10]),
        (&[(&b.path, &[0, 1])], &[1, 2, 3, 10, 11]),
    ];
    let mut live = std::collections::BTreeMap::new();
    for (step, (positions, gone)) in (0..).zip(steps) {
        let vectors = deletes(&lake.warehouse, &table, positions).await;
        live.extend(positions.iter().zip(&vectors).map(|((of, _), vector)| (*of, vector.path.clone())));
        let change = TableChange { deletes: vectors, ..append(&table, vec![]) };
        let receipt = committed(catalog.commit(&batch(Some(10 + step), 11 + step, vec![change])).await.unwrap());
        table = receipt.tables()[0].table.clone();
        let swept = catalog.sweep(std::slice::from_ref(&receipt), &|_| false).await;
        assert_eq!((swept.pinned, swept.failed), (0, 0));
        let mut there = lake.files().await;
        there.retain(|file| file.ends_with(".puffin") || file.ends_with(".stats"));
        assert_eq!(there.iter().collect::<BTreeSet<_>>(), live.values().collect(), "step {step}");
        reads(&lake, &table, (0..20).filter(|id| !gone.contains(id))).await;
    }
    // What was written for nothing is known by its name, wherever it is.
    let lost = deletes(&lake.warehouse, &table, &[(&a.path, &[0])]).await.remove(0);
    assert_eq!(lake.strays_swept(&table, 1).await.deleted, 0);
    let swept = lake.strays_swept(&table, 2).await;
    assert_eq!((swept.deleted, swept.failed), (1, 0));
    let now = lake.files().await;
    assert!(!now.contains(&lost.path) && live.values().all(|file| now.contains(file)));
    // A commit that comes to nothing takes its file along.
    let never = deletes(&lake.warehouse, &table, &[(&a.path, &[0]), (&b.path, &[5])]).await;
    let paths: Vec<String> = never.iter().map(|vector| vector.path.clone()).collect();
    let change = TableChange { deletes: never, ..append(&table, vec![]) };
    lake.catalog.discard(&batch(Some(13), 14, vec![change]), &|_| false).await;
    let now = lake.files().await;
    assert!(paths.iter().all(|path| !now.contains(path)));
}

/// The worker dies when the batch is on record, and the catalog has not got it.
#[tokio::test(flavor = "multi_thread")]
async fn vectors_are_on_record() {
    for kind in [Kind::OtherDatabase, Kind::Rest, Kind::StrictRest] {
        let lake = Lake::new(kind).await;
        let (table, a, b) = two_files(&lake).await;
        let moved = rewritten(&lake, &table, &[(&a, &[1])]).await;
        let gone = deletes(&lake.warehouse, &table, &[(&moved.path, &[0]), (&b.path, &[3, 4])]).await;
        let rewrite = Rewrite { removed: vec![a.path], data: vec![moved], all_deletes: false, alone: false };
        // A new table of the same format, too.
        let other = lake.catalog.prepare(spec("other"), Format::V3).await.unwrap();
        let c = data_file(&lake.warehouse, &other, 0..5).await;
        let gone_there = deletes(&lake.warehouse, &other, &[(&c.path, &[4])]).await;
        let changes = vec![
            TableChange { deletes: gone, rewrite, ..append(&table, vec![]) },
            TableChange { deletes: gone_there, ..append(&other, vec![c]) },
        ];
        let (faulty, dying) = Faulty::of(&lake);
        let dying =
            dying.with_deadline(if kind == Kind::OtherDatabase { Duration::ZERO } else { Duration::from_millis(400) });
        faulty.set(Fault::LoseCommit);
        if let Some(rest) = &lake.rest {
            rest.trouble(&[Trouble::Refuse(503); 100]);
        }
        assert_eq!(dying.commit(&batch(Some(10), 20, changes)).await.unwrap_err().kind(), ErrorKind::Unknown);
        faulty.set(Fault::None);
        if let Some(rest) = &lake.rest {
            rest.drain();
        }

        let (catalog, epoch) = (lake.other_catalog(), lake.claim().await);
        let recovered = catalog.recover(MIRROR, epoch).await.unwrap();
        assert_eq!(recovered, Recovered { lsn: Some(Lsn::from_u64(20)), left_out: Vec::new() });
        let table = catalog.load(spec("events")).await.unwrap().unwrap();
        assert_eq!((table.data_file_count(), table.delete_file_count()), (2, 2));
        reads(&lake, &table, (0..20).filter(|id| ![0, 1, 13, 14].contains(id))).await;
        let other = catalog.load(spec("other")).await.unwrap().unwrap();
        assert_eq!((other.format(), ids(&lake.warehouse, &other).await), (Format::V3, vec![0, 1, 2, 3]));
    }
}

/// Where a copy takes the place of another in the same Iceberg table, that table goes on to the copy's version, and never back.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_copied_anew_may_be_of_a_newer_version() {
    for kind in [Kind::Beside, Kind::OtherDatabase, Kind::Rest, Kind::StrictRest, Kind::Seaweed, Kind::Vended] {
        let lake = Lake::new(kind).await;
        let old = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
        let rows = data_file(&lake.warehouse, &old, 0..5).await;
        let gone = deletes(&lake.warehouse, &old, &[(&rows.path, &[0])]).await;
        let change = TableChange { deletes: gone, ..append(&old, vec![rows]) };
        commit(&lake.catalog, &batch(None, 10, vec![change])).await;
        let anew = lake.catalog.prepare(spec("events"), Format::V3).await.unwrap();
        let rows = data_file(&lake.warehouse, &anew, 10..15).await;
        let gone = deletes(&lake.warehouse, &anew, &[(&rows.path, &[0])]).await;
        let change = TableChange { deletes: gone, ..append(&anew, vec![rows]) };
        let table = commit(&lake.catalog, &batch(Some(10), 20, vec![change])).await.remove(0);
        assert_eq!(
            (table.format(), newest(&lake).await.1["format-version"].as_i64()),
            (Format::V3, Some(3)),
            "{kind:?}"
        );
        reads(&lake, &table, 11..15).await;
        assert_eq!(readers::lineage(&lake, "events").await, numbers(&lake, &table).await);

        let back = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
        let rows = data_file(&lake.warehouse, &back, 20..25).await;
        let outcome = lake.catalog.commit(&batch(Some(20), 30, vec![append(&back, vec![rows])])).await;
        if kind.is_jdbc() {
            assert_eq!(committed(outcome.unwrap()).tables()[0].table.format(), Format::V2);
        } else {
            let error = outcome.unwrap_err();
            assert_eq!(
                (error.kind(), error.table()),
                (ErrorKind::ForeignChange, Some(("public", "events"))),
                "{error}"
            );
            assert!(error.hint().unwrap().contains("version 3"), "{error:?}");
            reads(&lake, &table, 11..15).await;
        }
    }
}

/// A column of the source that is named as one of the format's.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_may_be_named_as_the_rows_numbers_are() {
    let lake = Lake::new(Kind::Beside).await;
    let mut spec = spec("events");
    spec.columns[1] = column("_row_id", 3, iceberg_writer::PgType::Text, false);
    let table = lake.catalog.prepare(spec.clone(), Format::V3).await.unwrap();
    let a = data_file(&lake.warehouse, &table, 0..10).await;
    let table = commit(&lake.catalog, &batch(None, 10, vec![append(&table, vec![a.clone()])])).await.remove(0);
    let before = numbers(&lake, &table).await;
    let moved = rewritten(&lake, &table, &[(&a, &[])]).await;
    let rewrite = Rewrite { removed: vec![a.path], data: vec![moved], all_deletes: false, alone: true };
    let change = TableChange { rewrite, ..append(&table, vec![]) };
    let table = commit(&lake.catalog, &batch(Some(10), 20, vec![change])).await.remove(0);
    assert_eq!(numbers(&lake, &table).await, before);
    assert_eq!(ids(&lake.warehouse, &table).await, (0..10).collect::<Vec<_>>());
    let (_, pyiceberg) = readers::scan(&lake, "events").await;
    assert_eq!(pyiceberg.ids(), (0..10).collect::<Vec<_>>());
}
