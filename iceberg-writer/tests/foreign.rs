//! Tables that someone else commits to.

use iceberg_writer::{Batch, Catalog, ErrorKind, Format, LakeTable, TableChange};

use crate::pairs::{append, data_file, deletes, ids, spec};
use crate::readers;
use crate::server::{Kind, Lake, batch, commit, committed, of_every_catalog};

of_every_catalog!(files_added_by_someone_else_are_taken_over, anything_else_by_someone_else_stops_the_table,);

on_each_place! {
    rows_added_by_pyiceberg_are_taken_over;
}

async fn lake_with_table(kind: Kind) -> (Lake, LakeTable) {
    lake_with_table_of(Format::V2, kind).await
}

async fn lake_with_table_of(format: Format, kind: Kind) -> (Lake, LakeTable) {
    let lake = Lake::new(kind).await;
    lake.add_mirror("other").await;
    let table = lake.catalog.prepare(spec("events"), format).await.unwrap();
    let rows = data_file(&lake.warehouse, &table, 0..3).await;
    let table = commit(&lake.catalog, &batch(None, 10, vec![append(&table, vec![rows])])).await.remove(0);
    (lake, table)
}

/// A commit by another writer: through the same catalog, under another mirror.
async fn foreign(lake: &Lake, change: TableChange) -> LakeTable {
    let other = Batch { mirror: "other".to_owned(), ..batch(None, 99, vec![change]) };
    commit(&lake.other_catalog(), &other).await.remove(0)
}

async fn files_added_by_someone_else_are_taken_over(kind: Kind) {
    let (lake, table) = lake_with_table(kind).await;
    let added = data_file(&lake.warehouse, &table, 100..102).await;
    foreign(&lake, append(&table, vec![added.clone()])).await;

    let rows = data_file(&lake.warehouse, &table, 3..5).await;
    let ours = batch(Some(10), 20, vec![append(&table, vec![rows])]);
    let receipt = committed(lake.catalog.commit(&ours).await.unwrap());
    let [after] = receipt.tables() else { panic!() };
    assert_eq!(after.foreign_files.iter().map(|file| &file.path).collect::<Vec<_>>(), [&added.path]);
    assert_eq!(ids(&lake.warehouse, &after.table).await, [0, 1, 2, 3, 4, 100, 101]);
    // Adopted later, the answer is the same.
    let again = committed(lake.other_catalog().commit(&ours).await.unwrap());
    assert_eq!(again.tables()[0].foreign_files, after.foreign_files);
}

async fn rows_added_by_pyiceberg_are_taken_over(kind: Kind) {
    let (lake, table) = lake_with_table(kind).await;
    let host = lake.server.socket_folder().display().to_string();
    // PyIceberg finds the catalog's tables by the role's search path.
    lake.sql.batch_execute(&format!("ALTER DATABASE {} SET search_path = lake_catalog", lake.database)).await.unwrap();
    let uri = format!("postgresql+psycopg2://postgres@/{}?host={host}", lake.database);
    readers::append(&lake, uri, "public.events", 77).await;

    let rows = data_file(&lake.warehouse, &table, 3..5).await;
    let receipt = committed(lake.catalog.commit(&batch(Some(10), 20, vec![append(&table, vec![rows])])).await.unwrap());
    let [after] = receipt.tables() else { panic!() };
    assert_eq!(after.foreign_files.iter().map(|file| file.rows).collect::<Vec<_>>(), [1]);
    assert_eq!(ids(&lake.warehouse, &after.table).await, [0, 1, 2, 3, 4, 77]);
    let (duckdb, pyiceberg) = readers::scan(&lake, "events").await;
    assert_eq!((duckdb.ids(), pyiceberg.ids()), (vec![0, 1, 2, 3, 4, 77], vec![0, 1, 2, 3, 4, 77]));
}

async fn anything_else_by_someone_else_stops_the_table(kind: Kind) {
    // A deletion vector is told from others in its file, and from the one that it replaces.
    for format in [Format::V2, Format::V3] {
        Box::pin(anything_else_stops_a_table_of(format, kind)).await;
    }
}

async fn anything_else_stops_a_table_of(format: Format, kind: Kind) {
    let (lake, table) = lake_with_table_of(format, kind).await;
    let live = table.live_files(&lake.warehouse).await.unwrap();
    let refused = async |changed: &str| {
        let rows = data_file(&lake.warehouse, &table, 3..5).await;
        let written = rows.path.clone();
        let before = lake.files().await;
        let error = lake.catalog.commit(&batch(Some(10), 20, vec![append(&table, vec![rows])])).await.unwrap_err();
        assert_eq!((error.kind(), error.table()), (ErrorKind::ForeignChange, Some(("public", "events"))), "{error}");
        assert!(error.to_string().contains(changed), "{error}");
        assert_eq!(lake.files().await, before, "the plan is gone, the caller's file {written} is not");
        assert_eq!(lake.mirror_lsn().await.unwrap().as_u64(), 10);
    };
    let gone = deletes(&lake.warehouse, &table, &[(&live[0].path, &[0])]).await;
    let found = foreign(&lake, TableChange { deletes: gone, ..append(&table, vec![]) }).await;
    refused("rows deleted").await;

    lake.sql.execute("UPDATE lake_catalog.mirrors SET lsn = NULL WHERE mirror = 'other'", &[]).await.unwrap();
    let rewritten = data_file(&lake.warehouse, &found, 0..3).await;
    foreign(&lake, TableChange { truncate: true, ..append(&found, vec![rewritten]) }).await;
    refused("lost the file").await;

    lake.sql.execute("UPDATE lake_catalog.mirrors SET lsn = NULL WHERE mirror = 'other'", &[]).await.unwrap();
    let anew = lake.catalog.prepare(spec("events"), format).await.unwrap();
    foreign(&lake, append(&anew, vec![])).await;
    refused("made again").await;

    lake.catalog.drop_entry("public", "events").await.unwrap();
    refused("dropped").await;
}

/// Makes a table of ours one that no mirror has made.
async fn disown(lake: &Lake) {
    if let Some(rest) = &lake.rest {
        let url = format!("{}/v1/lake/namespaces/public/tables/events", rest.uri());
        let body =
            r#"{"requirements": [], "updates": [{"action": "remove-properties", "removals": ["lake.checkpoint"]}]}"#;
        let request = reqwest::Client::new().post(url).header("Content-Type", "application/json").body(body);
        assert!(request.send().await.unwrap().status().is_success());
        return;
    }
    let location = lake.metadata_location("events").await.unwrap();
    let mut metadata: serde_json::Value = serde_json::from_slice(&lake.read(&location).await).unwrap();
    metadata["properties"].as_object_mut().unwrap().remove("lake.checkpoint").unwrap();
    let other = location.replace(".metadata.json", "-other.metadata.json");
    std::fs::write(other.trim_start_matches("file://"), metadata.to_string()).unwrap();
    let sql = lake.other.as_ref().map_or(&lake.sql, |(_, client)| client);
    sql.execute("UPDATE lake_catalog.iceberg_tables SET metadata_location = $1", &[&other]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_place_of_a_table_that_no_mirror_made_is_not_taken() {
    for kind in [Kind::Beside, Kind::OtherDatabase, Kind::Rest, Kind::StrictRest] {
        let (lake, _) = lake_with_table(kind).await;
        // What a mirror has made may be copied anew.
        let anew = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
        disown(&lake).await;
        let before = (lake.files().await, lake.metadata_location("events").await);
        let error = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap_err();
        assert_eq!((error.kind(), error.table()), (ErrorKind::ForeignChange, Some(("public", "events"))), "{error}");
        assert!(error.to_string().contains("that no mirror made"), "{error}");
        assert!(error.hint().unwrap().contains("under another name"), "{error:?}");
        // Nor is it when that shows only when the copy is done, where the server does not keep us from it.
        if lake.rest.is_some() {
            let rows = data_file(&lake.warehouse, &anew, 0..3).await;
            let files = lake.files().await;
            let error = lake.catalog.commit(&batch(Some(10), 20, vec![append(&anew, vec![rows])])).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ForeignChange, "{error}");
            assert_eq!((lake.files().await, lake.metadata_location("events").await), (files, before.1));
        } else {
            assert_eq!((lake.files().await, lake.metadata_location("events").await), before);
        }
    }
}
