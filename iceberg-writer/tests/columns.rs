//! Tables whose columns change.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Decimal128Type;
use arrow_array::{ArrayRef, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray};
use iceberg_writer::{
    Catalog, ColumnSpec, DataFileWriter, ErrorKind, Format, LakeTable, PgType, TableChange, TableSpec, WrittenFile,
    read_rows,
};
use uuid::Uuid;

use crate::pairs::{append, column, deletes};
use crate::readers;
use crate::server::{Kind, Lake, batch, commit, committed, of_every_catalog};

of_every_catalog!(
    columns_change_with_the_rows_around_the_change_in_one_commit,
    a_table_is_loaded_by_what_its_last_commit_remarked,
    a_name_that_comes_back_is_another_column_and_old_manifests_are_merged_all_the_same,
    a_foreign_commit_in_between_is_taken_over_by_a_change_of_columns,
);

fn numeric(precision: u8) -> PgType {
    PgType::Numeric { precision, scale: 2 }
}

fn spec(columns: Vec<ColumnSpec>) -> TableSpec {
    TableSpec { namespace: "public".to_owned(), name: "items".to_owned(), columns, key: vec![0] }
}

fn before() -> TableSpec {
    spec(vec![
        column("id", 1, PgType::Int8, true),
        column("name", 3, PgType::Varchar, false),
        column("price", 4, numeric(6), false),
    ])
}

/// Renamed, widened, and one more.
fn after() -> TableSpec {
    spec(vec![
        column("key", 1, PgType::Int8, true),
        column("price", 3, PgType::Text, false),
        column("name", 4, numeric(20), false),
        column("more", 6, PgType::Int4, false),
    ])
}

fn numbers(values: &[i64]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn decimals(values: &[i128], precision: u8) -> ArrayRef {
    Arc::new(Decimal128Array::from(values.to_vec()).with_precision_and_scale(precision, 2).unwrap())
}

async fn file(lake: &Lake, table: &LakeTable, columns: Vec<ArrayRef>) -> WrittenFile {
    let mut writer = DataFileWriter::create(&lake.warehouse, table, 1, Uuid::now_v7(), 0);
    writer.write(&RecordBatch::try_new(table.spec().arrow_schema(), columns).unwrap()).await.unwrap();
    writer.close().await.unwrap().unwrap()
}

async fn schemas(lake: &Lake) -> (serde_json::Value, Vec<i64>) {
    let location = lake.metadata_location("items").await.unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&lake.read(&location).await).unwrap();
    let snapshots = metadata["snapshots"].as_array().unwrap();
    let mut numbered: Vec<(i64, i64)> = snapshots
        .iter()
        .map(|snapshot| (snapshot["sequence-number"].as_i64().unwrap(), snapshot["schema-id"].as_i64().unwrap()))
        .collect();
    numbered.sort_unstable();
    (metadata, numbered.into_iter().map(|(_, schema)| schema - lake.kind.first_schema()).collect())
}

fn shown(rows: &[&[Option<&str>]]) -> Vec<Vec<Option<String>>> {
    rows.iter().map(|row| row.iter().map(|value| value.map(str::to_owned)).collect()).collect()
}

async fn columns_change_with_the_rows_around_the_change_in_one_commit(kind: Kind) {
    let lake = Lake::new(kind).await;
    let table = lake.catalog.prepare(before(), Format::V2).await.unwrap();
    let first = file(&lake, &table, vec![numbers(&[1, 2]), texts(&["a", "b"]), decimals(&[100, 999_999], 6)]).await;
    let table = commit(&lake.catalog, &batch(None, 10, vec![append(&table, vec![first.clone()])])).await.remove(0);

    // WHEN rows of the old columns, and rows of the new ones, come in one commit with the change
    let second = file(&lake, &table, vec![numbers(&[3]), texts(&["c"]), decimals(&[-5], 6)]).await;
    let table = table.evolved(after(), "what is new".to_owned());
    let columns =
        vec![numbers(&[4]), texts(&["d"]), decimals(&[10i128.pow(19)], 20), Arc::new(Int32Array::from(vec![7]))];
    let third = file(&lake, &table, columns).await;
    let gone = deletes(&lake.warehouse, &table, &[(&first.path, &[0])]).await;
    let change = TableChange { deletes: gone, ..append(&table, vec![second.clone(), third]) };
    let ours = batch(Some(10), 20, vec![change]);
    let table = commit(&lake.catalog, &ours).await.remove(0);

    // THEN readers see all rows by the new columns
    let rows = shown(&[
        &[Some("2"), Some("b"), Some("9999.99"), None],
        &[Some("3"), Some("c"), Some("-0.05"), None],
        &[Some("4"), Some("d"), Some("100000000000000000.00"), Some("7")],
    ]);
    let (duckdb, pyiceberg) = readers::scan_by(&lake, "items", "key").await;
    assert_eq!((&duckdb.rows, &pyiceberg.rows), (&rows, &rows));
    assert_eq!(duckdb.types, ["BIGINT", "VARCHAR", "DECIMAL(20,2)", "INTEGER"]);
    // AND so do we, of files from before too
    let read = read_rows(&lake.warehouse, &table, &second.path, &[0], &[3, 2, 0]).await.unwrap();
    assert!(read.column(0).is_null(0));
    assert_eq!(read.column(1).as_primitive::<Decimal128Type>().value(0), -5);
    // AND each snapshot keeps the schema that it was made with, the key among its identifiers
    let (metadata, of_snapshots) = schemas(&lake).await;
    assert_eq!(of_snapshots, [0, 1]);
    assert_eq!(metadata["current-schema-id"], 1 + kind.first_schema());
    assert_eq!(metadata["last-column-id"], 6);
    let newest = metadata["schemas"].as_array().unwrap().iter().max_by_key(|schema| schema["schema-id"].as_i64());
    assert_eq!(newest.unwrap()["identifier-field-ids"], serde_json::json!([1]));
    // AND a commit of which the answer was lost is found, and adopted with its columns
    let again = committed(lake.other_catalog().commit(&ours).await.unwrap());
    assert_eq!(again.tables()[0].table.spec(), &after());
    assert_eq!(again.tables()[0].table.snapshot_id(), table.snapshot_id());
}

async fn a_table_is_loaded_by_what_its_last_commit_remarked(kind: Kind) {
    let lake = Lake::new(kind).await;
    let table = lake.catalog.prepare(before(), Format::V2).await.unwrap().evolved(before(), "made".to_owned());
    let rows = file(&lake, &table, vec![numbers(&[1]), texts(&["a"]), decimals(&[100], 6)]).await;
    let table = commit(&lake.catalog, &batch(None, 10, vec![append(&table, vec![rows])])).await.remove(0);
    // A change alone, without a row.
    let change = append(&table.evolved(after(), "changed".to_owned()), vec![]);
    let table = commit(&lake.catalog, &batch(Some(10), 20, vec![change])).await.remove(0);
    assert_eq!(schemas(&lake).await.1, [0, 1]);
    let other = lake.other_catalog();
    let by_remark = |remark: &str| (remark == "changed").then(after);
    let loaded = other.load_remarked(before(), &by_remark).await.unwrap().unwrap();
    assert_eq!((loaded.spec(), loaded.uuid()), (&after(), table.uuid()));
    // What is not understood counts for nothing, and the columns must fit.
    for error in [other.load(before()).await, other.load_remarked(before(), &|_| None).await] {
        assert_eq!(error.unwrap_err().kind(), ErrorKind::SchemaMismatch);
    }
    // The next commit leaves the remark as it is, and back to an old schema is back to its number.
    let rows = append(&table.evolved(before(), "back".to_owned()), vec![]);
    let table = commit(&lake.catalog, &batch(Some(20), 30, vec![rows])).await.remove(0);
    let rows = file(&lake, &table, vec![numbers(&[2]), texts(&["b"]), decimals(&[200], 6)]).await;
    commit(&lake.catalog, &batch(Some(30), 40, vec![append(&table, vec![rows])])).await;
    assert_eq!(schemas(&lake).await.1, [0, 1, 0, 0]);
    assert!(other.load_remarked(after(), &|remark| (remark == "back").then(before)).await.unwrap().is_some());
    let (duckdb, pyiceberg) = readers::scan(&lake, "items").await;
    assert_eq!((duckdb.ids(), pyiceberg.ids()), (vec![1, 2], vec![1, 2]));
}

async fn a_name_that_comes_back_is_another_column_and_old_manifests_are_merged_all_the_same(kind: Kind) {
    let lake = Lake::new(kind).await;
    let mut table = lake.catalog.prepare(before(), Format::V2).await.unwrap();
    let mut expected = None;
    for lsn in 1..=30_u64 {
        let id = i64::try_from(lsn).unwrap();
        // Two in three are dropped and made anew under the same name, with another type.
        let columns = if lsn % 3 == 0 {
            let again = column("name", 3 + i32::try_from(lsn).unwrap(), PgType::Int4, false);
            table = table.evolved(spec(vec![column("id", 1, PgType::Int8, true), again]), lsn.to_string());
            vec![numbers(&[id]), Arc::new(Int32Array::from(vec![7])) as ArrayRef]
        } else if table.spec().columns.len() == 3 {
            vec![numbers(&[id]), texts(&["a"]), decimals(&[1], 6)]
        } else {
            vec![numbers(&[id]), Arc::new(Int32Array::from(vec![7])) as ArrayRef]
        };
        let rows = file(&lake, &table, columns).await;
        table = commit(&lake.catalog, &batch(expected, lsn, vec![append(&table, vec![rows])])).await.remove(0);
        expected = Some(lsn);
    }
    let rows: Vec<Vec<Option<String>>> =
        (1..=30).map(|id| vec![Some(format!("{id}")), (id == 30).then(|| "7".to_owned())]).collect();
    let (duckdb, pyiceberg) = readers::scan(&lake, "items").await;
    assert_eq!((duckdb.rows, pyiceberg.rows), (rows.clone(), rows));
}

async fn a_foreign_commit_in_between_is_taken_over_by_a_change_of_columns(kind: Kind) {
    let lake = Lake::new(kind).await;
    lake.add_mirror("other").await;
    let table = lake.catalog.prepare(before(), Format::V2).await.unwrap();
    let rows = file(&lake, &table, vec![numbers(&[1]), texts(&["a"]), decimals(&[100], 6)]).await;
    let table = commit(&lake.catalog, &batch(None, 10, vec![append(&table, vec![rows])])).await.remove(0);
    let foreign = file(&lake, &table, vec![numbers(&[2]), texts(&["b"]), decimals(&[200], 6)]).await;
    let foreign =
        iceberg_writer::Batch { mirror: "other".to_owned(), ..batch(None, 99, vec![append(&table, vec![foreign])]) };
    commit(&lake.other_catalog(), &foreign).await;

    let table = table.evolved(after(), "changed".to_owned());
    let receipt = committed(lake.catalog.commit(&batch(Some(10), 20, vec![append(&table, vec![])])).await.unwrap());
    assert_eq!(receipt.tables()[0].foreign_files.len(), 1);
    assert_eq!(receipt.tables()[0].table.spec(), &after());
    let (duckdb, pyiceberg) = readers::scan_by(&lake, "items", "key").await;
    assert_eq!((duckdb.ids(), pyiceberg.ids()), (vec![1, 2], vec![1, 2]));
}
