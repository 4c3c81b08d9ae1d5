//! What commits do to tables.

use iceberg_writer::{Catalog, ErrorKind, Format, Lsn, Outcome, PgType, TableChange, WrittenFile, read_rows};

use crate::pairs::{append, column, data_file, deletes, ids, spec};
use crate::readers;
use crate::server::{Kind, Lake, batch, commit, committed, of_every_catalog};

of_every_catalog!(
    rows_are_added_and_deleted_in_one_snapshot,
    what_was_written_for_a_prepared_table_is_taken_over_by_another_process,
    truncation_removes_all_earlier_files,
    tables_move_together_and_idle_mirrors_advance,
    a_batch_from_another_position_or_an_older_epoch_does_nothing,
    a_table_made_anew_replaces_the_old_one,
);

on_each_place! {
    rows_are_read_by_position;
}

async fn rows_are_added_and_deleted_in_one_snapshot(kind: Kind) {
    let lake = Lake::new(kind).await;
    let table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    // Keys that the catalog vends come with a table, so there one is made for their sake.
    let nothing = lake.files().await.is_empty() && lake.metadata_location("events").await.is_none();
    assert!(nothing || kind == Kind::Vended, "preparing leaves no trace");

    let first = data_file(&lake.warehouse, &table, 0..100).await;
    let table = commit(&lake.catalog, &batch(None, 10, vec![append(&table, vec![first.clone()])])).await.remove(0);
    assert_eq!(lake.mirror_lsn().await, Some(Lsn::from_u64(10)));
    assert_eq!(ids(&lake.warehouse, &table).await, (0..100).collect::<Vec<_>>());

    // Positions of an older file, and of a file of the same snapshot.
    let second = data_file(&lake.warehouse, &table, 100..110).await;
    let gone = deletes(&lake.warehouse, &table, &[(&first.path, &[0, 5, 99]), (&second.path, &[9])]).await;
    let change = TableChange { deletes: gone, ..append(&table, vec![second]) };
    let table = commit(&lake.catalog, &batch(Some(10), 20, vec![change])).await.remove(0);
    let expected: Vec<i64> = (0..109).filter(|id| ![0, 5, 99].contains(id)).collect();
    assert_eq!(ids(&lake.warehouse, &table).await, expected);
    assert_eq!(table.snapshot_lsn(), Some(Lsn::from_u64(20)));

    // Deletes only, of one file: it is named in the manifest.
    let gone = deletes(&lake.warehouse, &table, &[(&first.path, &[1])]).await;
    let change = TableChange { deletes: gone, ..append(&table, vec![]) };
    let table = commit(&lake.catalog, &batch(Some(20), 30, vec![change])).await.remove(0);
    let expected: Vec<i64> = expected.into_iter().filter(|id| *id != 1).collect();

    // A new process sees the same files and positions, and other readers the same rows.
    let loaded = lake.other_catalog().load(spec("events")).await.unwrap().unwrap();
    let live = table.live_files(&lake.warehouse).await.unwrap();
    assert_eq!(loaded.live_files(&lake.warehouse).await.unwrap(), live);
    assert_eq!(live.iter().map(|file| (file.rows, file.deleted.len())).collect::<Vec<_>>(), [(100, 4), (10, 1)]);
    assert_eq!((loaded.snapshot_lsn(), loaded.uuid()), (table.snapshot_lsn(), table.uuid()));
    let (duckdb, pyiceberg) = readers::scan(&lake, "events").await;
    assert_eq!(duckdb.ids(), expected);
    assert_eq!(pyiceberg.ids(), expected);
}

async fn what_was_written_for_a_prepared_table_is_taken_over_by_another_process(kind: Kind) {
    let lake = Lake::new(kind).await;
    let table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let file = data_file(&lake.warehouse, &table, 0..10).await;
    let (uuid, json) = (table.uuid(), file.to_json().unwrap());
    drop(table);

    let table = lake.other_catalog().prepare_again(spec("events"), Format::V2, uuid).await.unwrap();
    let taken = WrittenFile::from_json(&table, &json).unwrap();
    assert_eq!((&taken.path, taken.rows, taken.bytes), (&file.path, file.rows, file.bytes));
    // Its statistics too, by which readers skip files. They come in no order.
    let statistics = |json: &str| {
        let recorded: serde_json::Value = serde_json::from_str(json).unwrap();
        let mut entry: serde_json::Value = serde_json::from_str(recorded["entry"].as_str().unwrap()).unwrap();
        for list in entry.as_object_mut().unwrap().values_mut().filter_map(|value| value.as_array_mut()) {
            list.sort_by_key(|value| value["key"].as_i64());
        }
        entry
    };
    assert_eq!(statistics(&taken.to_json().unwrap()), statistics(&json));
    assert!(json.contains("lower_bounds") && WrittenFile::from_json(&table, "{}").is_err());
    let table = commit(&lake.catalog, &batch(None, 10, vec![append(&table, vec![taken])])).await.remove(0);
    assert_eq!(ids(&lake.warehouse, &table).await, (0..10).collect::<Vec<_>>());
    let (duckdb, pyiceberg) = readers::scan(&lake, "events").await;
    assert_eq!((duckdb.ids(), pyiceberg.ids()), ((0..10).collect(), (0..10).collect()));
}

async fn truncation_removes_all_earlier_files(kind: Kind) {
    let lake = Lake::new(kind).await;
    let table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let first = data_file(&lake.warehouse, &table, 0..10).await;
    let table = commit(&lake.catalog, &batch(None, 10, vec![append(&table, vec![first.clone()])])).await.remove(0);
    let gone = deletes(&lake.warehouse, &table, &[(&first.path, &[3])]).await;
    let change = TableChange { deletes: gone, ..append(&table, vec![]) };
    let table = commit(&lake.catalog, &batch(Some(10), 20, vec![change])).await.remove(0);

    // A deletion in a file that comes with the truncation still counts.
    let second = data_file(&lake.warehouse, &table, 50..55).await;
    let gone = deletes(&lake.warehouse, &table, &[(&second.path, &[0])]).await;
    let change = TableChange { truncate: true, deletes: gone, ..append(&table, vec![second]) };
    let table = commit(&lake.catalog, &batch(Some(20), 30, vec![change])).await.remove(0);
    assert_eq!(ids(&lake.warehouse, &table).await, [51, 52, 53, 54]);
    let (duckdb, pyiceberg) = readers::scan(&lake, "events").await;
    assert_eq!((duckdb.ids(), pyiceberg.ids()), (vec![51, 52, 53, 54], vec![51, 52, 53, 54]));

    let change = TableChange { truncate: true, ..append(&table, vec![]) };
    let table = commit(&lake.catalog, &batch(Some(30), 40, vec![change])).await.remove(0);
    assert!(table.live_files(&lake.warehouse).await.unwrap().is_empty());
    let (duckdb, pyiceberg) = readers::scan(&lake, "events").await;
    assert!(duckdb.rows.is_empty() && pyiceberg.rows.is_empty());
}

async fn tables_move_together_and_idle_mirrors_advance(kind: Kind) {
    let lake = Lake::new(kind).await;
    let (a, b) = (
        lake.catalog.prepare(spec("a"), Format::V2).await.unwrap(),
        lake.catalog.prepare(spec("b"), Format::V2).await.unwrap(),
    );
    let rows = data_file(&lake.warehouse, &a, 0..3).await;
    // b is new and empty, and must be readable.
    let tables = commit(&lake.catalog, &batch(None, 10, vec![append(&a, vec![rows]), append(&b, vec![])])).await;
    assert_eq!(tables.iter().map(|table| table.snapshot_lsn()).collect::<Vec<_>>(), [Some(Lsn::from_u64(10)); 2]);
    let (duckdb, pyiceberg) = readers::scan(&lake, "b").await;
    assert!(duckdb.rows.is_empty() && pyiceberg.rows.is_empty());

    // Nothing to do for a: it is left alone. The mirror advances without any table, too.
    let before = lake.metadata_location("a").await;
    let tables = commit(&lake.catalog, &batch(Some(10), 20, vec![append(&tables[0], vec![])])).await;
    assert_eq!(lake.metadata_location("a").await, before);
    assert_eq!(tables[0].snapshot_lsn(), Some(Lsn::from_u64(10)));
    commit(&lake.catalog, &batch(Some(20), 30, vec![])).await;
    assert_eq!(lake.mirror_lsn().await, Some(Lsn::from_u64(30)));

    // One of two tables can't be moved: the other one stays as well.
    let b = lake.catalog.load(spec("b")).await.unwrap().unwrap();
    let changes = vec![
        append(&tables[0], vec![data_file(&lake.warehouse, &tables[0], 3..4).await]),
        append(&b, vec![data_file(&lake.warehouse, &b, 0..1).await]),
    ];
    lake.catalog.drop_entry("public", "b").await.unwrap();
    let failed = batch(Some(30), 40, changes);
    if !kind.is_atomic() {
        // The other one had it already, so it goes on, and the receipt says what did not.
        let receipt = committed(lake.catalog.commit(&failed).await.unwrap());
        let left_out = receipt.left_out();
        assert_eq!(left_out.iter().map(|table| &*table.name).collect::<Vec<_>>(), ["b"]);
        assert!(left_out[0].reason.contains("dropped") && left_out[0].hint.is_some(), "{left_out:?}");
        assert_eq!(ids(&lake.warehouse, &receipt.tables()[0].table).await, [0, 1, 2, 3]);
        return;
    }
    let error = lake.catalog.commit(&failed).await.unwrap_err();
    assert_eq!((error.kind(), error.table()), (ErrorKind::ForeignChange, Some(("public", "b"))));
    assert!(error.hint().is_some());
    assert_eq!((lake.metadata_location("a").await, lake.mirror_lsn().await), (before, Some(Lsn::from_u64(30))));
    // Its files are still there, so the good table goes on with them.
    let rest = batch(Some(30), 40, vec![failed.tables[0].clone()]);
    let tables = commit(&lake.catalog, &rest).await;
    assert_eq!(ids(&lake.warehouse, &tables[0]).await, [0, 1, 2, 3]);
}

async fn a_batch_from_another_position_or_an_older_epoch_does_nothing(kind: Kind) {
    let lake = Lake::new(kind).await;
    let table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let rows = data_file(&lake.warehouse, &table, 0..3).await;
    let table = commit(&lake.catalog, &batch(None, 10, vec![append(&table, vec![rows])])).await.remove(0);
    let before = (lake.files().await, lake.metadata_location("events").await);

    for expected in [None, Some(9), Some(11)] {
        let rows = data_file(&lake.warehouse, &table, 3..5).await;
        let refused = lake.catalog.commit(&batch(expected, 20, vec![append(&table, vec![rows])])).await.unwrap();
        assert!(matches!(refused, Outcome::Refused { found } if found == Some(Lsn::from_u64(10))), "{refused:?}");
        assert_eq!((lake.files().await, lake.metadata_location("events").await), before);
    }
    lake.sql.execute("UPDATE lake_catalog.mirrors SET epoch = 2", &[]).await.unwrap();
    let rows = data_file(&lake.warehouse, &table, 3..5).await;
    let fenced = lake.catalog.commit(&batch(Some(10), 20, vec![append(&table, vec![rows])])).await.unwrap();
    assert!(matches!(fenced, Outcome::Fenced { epoch: 2 }), "{fenced:?}");
    assert_eq!((lake.files().await, lake.metadata_location("events").await), before);

    lake.sql.execute("DELETE FROM lake_catalog.mirrors", &[]).await.unwrap();
    let refused = lake.catalog.commit(&batch(Some(10), 20, vec![])).await.unwrap();
    assert!(matches!(refused, Outcome::Refused { found: None }), "{refused:?}");
}

async fn a_table_made_anew_replaces_the_old_one(kind: Kind) {
    let lake = Lake::new(kind).await;
    let old = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let rows = data_file(&lake.warehouse, &old, 0..3).await;
    let old = commit(&lake.catalog, &batch(None, 10, vec![append(&old, vec![rows])])).await.remove(0);

    let mut other = spec("events");
    other.columns.push(column("extra", 7, PgType::Int4, false));
    let error = lake.catalog.load(other).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaMismatch);
    assert!(error.to_string().contains("extra int (id 7)"), "{error}");

    let new = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    // The old one goes on while the new one is being copied.
    let rows = data_file(&lake.warehouse, &old, 3..4).await;
    commit(&lake.catalog, &batch(Some(10), 20, vec![append(&old, vec![rows])])).await;
    let rows = data_file(&lake.warehouse, &new, 100..102).await;
    let outcome = lake.catalog.commit(&batch(Some(20), 30, vec![append(&new, vec![rows])])).await.unwrap();
    let receipt = committed(outcome);
    assert_ne!(receipt.tables()[0].table.uuid(), old.uuid());
    assert_eq!(ids(&lake.warehouse, &receipt.tables()[0].table).await, [100, 101]);
    lake.catalog.sweep(std::slice::from_ref(&receipt), &|_| false).await;
    // Its snapshots stay readable for as long as any where the new one takes its place in the same Iceberg table.
    let gone = lake.files().await.iter().all(|file| !file.starts_with(old.location()));
    assert!(gone || !kind.is_jdbc(), "{:?}", lake.files().await);
    let loaded = lake.catalog.load(spec("events")).await.unwrap().unwrap();
    assert_eq!(ids(&lake.warehouse, &loaded).await, [100, 101]);
}

async fn rows_are_read_by_position(kind: Kind) {
    let lake = Lake::new(kind).await;
    let table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let file = data_file(&lake.warehouse, &table, 0..300_000).await;
    let positions = [0, 1, 2, 19_999, 20_000, 131_071, 131_072, 131_075, 299_999];
    let batch = read_rows(&lake.warehouse, &table, &file.path, &positions, &[0]).await.unwrap();
    let expected = crate::pairs::rows(&table, positions.map(|position| i64::try_from(position).unwrap()));
    assert_eq!(batch.column(0), expected.column(0));
    let batch = read_rows(&lake.warehouse, &table, &file.path, &positions, &[1, 0]).await.unwrap();
    assert_eq!((batch.column(0), batch.column(1)), (expected.column(1), expected.column(0)));
    assert_eq!(read_rows(&lake.warehouse, &table, &file.path, &[], &[0]).await.unwrap().num_rows(), 0);
    assert!(read_rows(&lake.warehouse, &table, &file.path, &[300_000], &[0]).await.is_err());
    assert!(read_rows(&lake.warehouse, &table, &file.path, &[2, 1], &[0]).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hint_that_was_not_written_any_more_is_written_by_the_next_who_looks() {
    let lake = Lake::new(Kind::Hadoop).await;
    let table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let file = data_file(&lake.warehouse, &table, 0..3).await;
    commit(&lake.catalog, &batch(None, 10, vec![append(&table, vec![file])])).await;
    let hint = lake.folder.path().join("warehouse/public/events/metadata/version-hint.text");
    let last = std::fs::read_to_string(&hint).unwrap();
    assert_eq!(last, "2");
    for before in [Some("1"), Some("nonsense"), Some("77"), None] {
        match before {
            Some(text) => std::fs::write(&hint, text).unwrap(),
            None => std::fs::remove_file(&hint).unwrap(),
        }
        let loaded = lake.other_catalog().load(spec("events")).await.unwrap().unwrap();
        assert_eq!(ids(&lake.warehouse, &loaded).await, [0, 1, 2], "{before:?}");
        assert_eq!(std::fs::read_to_string(&hint).unwrap(), last, "{before:?}");
    }
}
