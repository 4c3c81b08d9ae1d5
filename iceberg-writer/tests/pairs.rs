//! A small table of numbers and names: `(id bigint PRIMARY KEY, name text)`, its changes and its content.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Int64Array, RecordBatch, StringArray};
use futures_util::TryStreamExt;
use iceberg_writer::{
    ColumnSpec, DataFileWriter, DeletedRows, LakeTable, Partition, PgType, Rewrite, TableChange, TableSpec, Warehouse,
    WrittenFile, scan_columns, write_deletes,
};
use uuid::Uuid;

pub(crate) fn column(name: &str, field_id: i32, pg_type: PgType, required: bool) -> ColumnSpec {
    ColumnSpec { name: name.to_owned(), field_id, pg_type, type_oid: 0, typmod: -1, required, companion: false }
}

pub(crate) fn spec(name: &str) -> TableSpec {
    TableSpec {
        namespace: "public".to_owned(),
        name: name.to_owned(),
        columns: vec![column("id", 1, PgType::Int8, true), column("name", 3, PgType::Text, false)],
        key: vec![0],
    }
}

pub(crate) fn rows(table: &LakeTable, ids: impl IntoIterator<Item = i64>) -> RecordBatch {
    let ids: Vec<i64> = ids.into_iter().collect();
    let names: Vec<Option<String>> = ids.iter().map(|id| (id % 10 != 0).then(|| format!("name {id}"))).collect();
    let columns = vec![Arc::new(Int64Array::from(ids)) as _, Arc::new(StringArray::from(names)) as _];
    RecordBatch::try_new(table.spec().arrow_schema(), columns).unwrap()
}

pub(crate) async fn data_file(lake: &Warehouse, table: &LakeTable, ids: impl IntoIterator<Item = i64>) -> WrittenFile {
    let mut writer = DataFileWriter::create(lake, table, 1, Uuid::now_v7(), 0);
    writer.write(&rows(table, ids)).await.unwrap();
    writer.close().await.unwrap().unwrap()
}

pub(crate) async fn deletes(lake: &Warehouse, table: &LakeTable, positions: &[(&str, &[u64])]) -> Vec<WrittenFile> {
    let rows =
        |rows: &[u64]| DeletedRows { partition: Partition::default(), positions: rows.iter().copied().collect() };
    let deleted: BTreeMap<String, DeletedRows> =
        positions.iter().map(|(path, deleted)| ((*path).to_owned(), rows(deleted))).collect();
    write_deletes(lake, table, 1, Uuid::now_v7(), &deleted).await.unwrap()
}

pub(crate) fn append(table: &LakeTable, data: Vec<WrittenFile>) -> TableChange {
    TableChange {
        table: table.clone(),
        truncate: false,
        data,
        deletes: Vec::new(),
        rewrite: Rewrite::default(),
        expire: false,
    }
}

/// The ids a table holds, by its data and delete files.
pub(crate) async fn ids(lake: &Warehouse, table: &LakeTable) -> Vec<i64> {
    let mut ids = Vec::new();
    for file in table.live_files(lake).await.unwrap() {
        let mut position = 0;
        let mut batches = scan_columns(lake, table, &file.path, &[1, 0]).await.unwrap();
        while let Some(batch) = batches.try_next().await.unwrap() {
            let names = batch.column(0).as_string::<i32>();
            for (name, id) in names.iter().zip(batch.column(1).as_primitive::<Int64Type>().values()) {
                assert_eq!(name.map(str::to_owned), (id % 10 != 0).then(|| format!("name {id}")));
                if !file.deleted.contains(position) {
                    ids.push(*id);
                }
                position += 1;
            }
        }
        assert_eq!(position, file.rows);
    }
    ids.sort_unstable();
    ids
}
