//! Tables with partitions, in every kind of catalog: their specs change, and files of each are there together.

use std::collections::BTreeMap;

use iceberg_writer::{
    Arranged, Catalog, DataFileWriter, DeletedRows, Format, LakeTable, Layout, Rewrite, TableChange, Warehouse,
    WrittenFile, write_deletes,
};
use uuid::Uuid;

use crate::pairs::{append, ids, rows, spec};
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
