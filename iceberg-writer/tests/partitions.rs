//! Tables with partitions, in every kind of catalog: their specs change, and files of each are there together.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, Date32Array, Decimal128Array, FixedSizeBinaryArray, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use iceberg_writer::{
    Arranged, Bound, Catalog, DataFileWriter, DeletedRows, Divider, Format, LakeTable, Layout, PgType, Rewrite,
    TableChange, TableSpec, Warehouse, WrittenFile, write_deletes,
};
use uuid::Uuid;

use crate::pairs::{append, column, ids, rows, spec};
use crate::readers;
use crate::server::{Kind, Lake, batch, commit, committed, of_every_catalog};

of_every_catalog!(files_of_several_specs_are_one_table, a_batch_of_a_new_spec_is_adopted_and_redone,);

fn layout(table: &LakeTable, partition_by: &str) -> Layout {
    Layout::parse(partition_by, "", &table.spec().columns).unwrap()
}

/// Rows as files, one for each partition.
async fn written(lake: &Warehouse, table: &LakeTable, ids: impl IntoIterator<Item = i64>) -> Vec<WrittenFile> {
    let batches = [rows(table, ids)];
    let arranged = Arranged::new(table, &batches).unwrap();
    let mut files = Vec::new();
    for (part, ordinal) in arranged.parts().iter().zip(0..) {
        let mut writer = DataFileWriter::create(lake, table, 1, Uuid::now_v7(), ordinal).in_partition(&part.partition);
        for batch in arranged.batches_of(part) {
            writer.write(&batch.unwrap()).await.unwrap();
        }
        files.extend(writer.close().await.unwrap());
    }
    files
}

/// The first row of each of some files.
async fn first_of_each(lake: &Warehouse, table: &LakeTable, files: &[WrittenFile]) -> Vec<WrittenFile> {
    let first =
        |file: &WrittenFile| DeletedRows { partition: file.partition.clone(), positions: [0].into_iter().collect() };
    let deleted: BTreeMap<String, DeletedRows> = files.iter().map(|file| (file.path.clone(), first(file))).collect();
    write_deletes(lake, table, 1, Uuid::now_v7(), &deleted).await.unwrap()
}

async fn same_by_all(lake: &Lake, table: &LakeTable, expected: &[i64]) {
    assert_eq!(ids(&lake.warehouse, table).await, expected);
    let (duckdb, pyiceberg) = readers::scan(lake, "events").await;
    assert_eq!((duckdb.ids(), pyiceberg.ids()), (expected.to_vec(), expected.to_vec()));
}

async fn files_of_several_specs_are_one_table(kind: Kind) {
    let lake = Lake::new(kind).await;
    let table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    // Names are "name 7", and NULL where a number ends with 0.
    let table = table.laid_out(&layout(&table, "truncate(4, name)"));
    let first = written(&lake.warehouse, &table, 0..20).await;
    assert_eq!(first.iter().map(|file| file.rows).collect::<Vec<_>>(), [2, 18]);
    let table = commit(&lake.catalog, &batch(None, 10, vec![append(&table, first.clone())])).await.remove(0);
    assert!(table.has_its_layout());
    same_by_all(&lake, &table, &(0..20).collect::<Vec<_>>()).await;

    // Another spec, with rows of before deleted in both of their partitions.
    let table = table.laid_out(&layout(&table, "truncate(4, name), bucket(2, id)"));
    assert!(!table.has_its_layout());
    let second = written(&lake.warehouse, &table, 20..30).await;
    assert!(second.len() > 2);
    let gone = first_of_each(&lake.warehouse, &table, &first).await;
    assert_eq!(gone.len(), 2, "a delete file for each partition");
    let change = TableChange { deletes: gone, ..append(&table, second.clone()) };
    let table = commit(&lake.catalog, &batch(Some(10), 20, vec![change])).await.remove(0);
    assert_eq!((table.data_file_count(), table.delete_file_count()), ((2 + second.len()) as u64, 2));
    same_by_all(&lake, &table, &(2..30).collect::<Vec<_>>()).await;
    // As another process finds it.
    let found = lake.other_catalog().load(spec("events")).await.unwrap().unwrap();
    assert_eq!(found.live_files(&lake.warehouse).await.unwrap(), table.live_files(&lake.warehouse).await.unwrap());

    // A file of the first spec is rewritten where it is, while the table gets rid of all partitions.
    let table = table.laid_out(&Layout::default());
    let third = written(&lake.warehouse, &table, 30..35).await;
    assert_eq!(third.len(), 1);
    let rewriter = DataFileWriter::create(&lake.warehouse, &table, 1, Uuid::now_v7(), 0);
    let mut rewriter = rewriter.in_partition(&first[0].partition);
    rewriter.write(&rows(&table, [10])).await.unwrap();
    let rewritten = rewriter.close().await.unwrap().unwrap();
    let still = first_of_each(&lake.warehouse, &table, &first[1..]).await;
    let removed = vec![first[0].path.clone()];
    let rewrite = Rewrite { removed, data: vec![rewritten], all_deletes: true, alone: false };
    let change = TableChange { deletes: still, rewrite, ..append(&table, third) };
    let table = commit(&lake.catalog, &batch(Some(20), 30, vec![change])).await.remove(0);
    same_by_all(&lake, &table, &(2..35).collect::<Vec<_>>()).await;
    assert_eq!(table.delete_file_count(), 1);

    // A truncation takes the files of all specs.
    let change = TableChange { truncate: true, ..append(&table, written(&lake.warehouse, &table, [7]).await) };
    let table = commit(&lake.catalog, &batch(Some(30), 40, vec![change])).await.remove(0);
    assert_eq!((table.data_file_count(), table.delete_file_count()), (1, 0));
    same_by_all(&lake, &table, &[7]).await;
}

/// A reply is lost, or a worker dies, in the batch that brings another spec.
async fn a_batch_of_a_new_spec_is_adopted_and_redone(kind: Kind) {
    let lake = Lake::new(kind).await;
    let table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let data = written(&lake.warehouse, &table, 0..10).await;
    let table = commit(&lake.catalog, &batch(None, 10, vec![append(&table, data.clone())])).await.remove(0);
    // The names of the fields come in another order than they themselves.
    let table = table.laid_out(&layout(&table, "truncate(4, name), bucket(3, id)"));
    let more = written(&lake.warehouse, &table, 10..20).await;
    let gone = first_of_each(&lake.warehouse, &table, &data).await;
    // Files keep their partitions as text.
    for file in &more {
        let again = WrittenFile::from_json(&table, &file.to_json().unwrap()).unwrap();
        assert_eq!((again.partition, again.path), (file.partition.clone(), file.path.clone()));
    }
    let ours = batch(Some(10), 20, vec![TableChange { deletes: gone, ..append(&table, more) }]);
    let receipt = committed(lake.catalog.commit(&ours).await.unwrap());
    let again = committed(lake.other_catalog().commit(&ours).await.unwrap());
    assert_eq!(again.lsn(), receipt.lsn());
    same_by_all(&lake, &again.tables()[0].table, &(1..20).collect::<Vec<_>>()).await;
}

/// Rows of each type that files are left out by are looked for in the bucket in which they were put, and in no other.
#[tokio::test]
async fn rows_are_looked_for_in_the_buckets_in_which_they_are() {
    let numbers: Vec<i64> = (-60..60).map(|number| number * 37_003).collect();
    let small: Vec<i32> = numbers.iter().map(|number| i32::try_from(*number).unwrap()).collect();
    let cents: Vec<i128> = numbers.iter().map(|number| i128::from(*number)).collect();
    let texts: Vec<String> = numbers.iter().map(|number| format!("ä{number}")).collect();
    let uuids: Vec<u128> = cents.iter().map(|number| number.cast_unsigned().rotate_left(70)).collect();
    let integers: Vec<Bound> = numbers.iter().copied().map(Bound::Integer).collect();
    let bytes = FixedSizeBinaryArray::try_from_iter(uuids.iter().map(|uuid| uuid.to_be_bytes())).unwrap();
    let decimals = Decimal128Array::from(cents.clone()).with_precision_and_scale(12, 2).unwrap();
    let moments = TimestampMicrosecondArray::from(numbers.clone());
    let of_types: [(PgType, ArrayRef, Vec<Bound>); 8] = [
        (PgType::Int4, Arc::new(Int32Array::from(small.clone())), integers.clone()),
        (PgType::Int8, Arc::new(Int64Array::from(numbers)), integers.clone()),
        (PgType::Date, Arc::new(Date32Array::from(small)), integers.clone()),
        (PgType::Timestamp, Arc::new(moments.clone()), integers.clone()),
        (PgType::Timestamptz, Arc::new(moments.with_timezone("UTC")), integers),
        (
            PgType::Numeric { precision: 12, scale: 2 },
            Arc::new(decimals),
            cents.into_iter().map(|number| Bound::Decimal(number, 2)).collect(),
        ),
        (PgType::Text, Arc::new(StringArray::from(texts.clone())), texts.into_iter().map(Bound::Text).collect()),
        (PgType::Uuid, Arc::new(bytes), uuids.into_iter().map(Bound::Uuid).collect()),
    ];
    let lake = Lake::new(Kind::Hadoop).await;
    for (at, (pg_type, array, values)) in of_types.into_iter().enumerate() {
        let described = TableSpec {
            namespace: "public".to_owned(),
            name: format!("buckets_{at}"),
            columns: vec![column("c", 1, pg_type, true)],
            key: vec![0],
        };
        let table = lake.catalog.prepare(described, Format::V2).await.unwrap();
        assert_eq!(table.buckets(1, &values), None, "it has none");
        let table = table.laid_out(&layout(&table, "bucket(7, c)"));
        let mut divider = Divider::new(&table).unwrap();
        let numbers = divider.divide(&RecordBatch::try_new(table.spec().arrow_schema(), vec![array]).unwrap()).unwrap();
        assert_eq!(divider.count(), 7);
        for (value, number) in values.iter().zip(numbers) {
            let buckets = table.buckets(1, std::slice::from_ref(value)).unwrap();
            let admits = |number| buckets.may_be_in(divider.partition(number).unwrap());
            let admitted: Vec<u32> = (0..7).filter(|number| admits(*number)).collect();
            assert_eq!(admitted, [number], "{pg_type:?} {value:?}");
        }
        let none = table.buckets(1, &[]).unwrap();
        assert!((0..7).all(|number| !none.may_be_in(divider.partition(number).unwrap())));
        let all = table.buckets(1, &values).unwrap();
        assert!((0..7).all(|number| all.may_be_in(divider.partition(number).unwrap())));
        // Of a file from before the buckets nothing is known, and nothing of values of another type.
        assert!(none.may_be_in(&iceberg_writer::Partition::default()));
        let other = if matches!(values[0], Bound::Uuid(_)) { Bound::Integer(1) } else { Bound::Uuid(1) };
        assert_eq!(table.buckets(1, &[other]), None);
    }
}
