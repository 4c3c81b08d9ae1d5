//! What is in a data file beside its rows: bloom filters of keys, and the indexes of pages.

use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch, StringArray};
use bytes::Bytes;
use iceberg_writer::{Catalog, ColumnSpec, DataFileWriter, Format, LakeTable, PgType, TableSpec};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::{ReadOptionsBuilder, SerializedFileReader};
use uuid::Uuid;

use crate::pairs::{append, column};
use crate::readers;
use crate::server::{Kind, Lake, batch, commit};

fn by_name(key: usize) -> TableSpec {
    let columns: Vec<ColumnSpec> = vec![column("id", 1, PgType::Int8, true), column("name", 3, PgType::Text, true)];
    TableSpec { namespace: "public".to_owned(), name: "events".to_owned(), columns, key: vec![key] }
}

/// Names as random as UUIDs are.
fn name(id: i64) -> String {
    Uuid::from_u128(u128::from(id.unsigned_abs()).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)).to_string()
}

async fn write(lake: &Lake, table: &LakeTable, rows: i64) -> (iceberg_writer::WrittenFile, Bytes) {
    let mut writer = DataFileWriter::create(&lake.warehouse, table, 1, Uuid::now_v7(), 0);
    for first in (0..rows).step_by(50_000) {
        let ids: Vec<i64> = (first..rows.min(first + 50_000)).collect();
        let names: Vec<String> = ids.iter().map(|id| name(*id)).collect();
        let columns = vec![Arc::new(Int64Array::from(ids)) as _, Arc::new(StringArray::from(names)) as _];
        writer.write(&RecordBatch::try_new(table.spec().arrow_schema(), columns).unwrap()).await.unwrap();
    }
    let file = writer.close().await.unwrap().unwrap();
    let bytes = Bytes::from(lake.read(&file.path).await);
    (file, bytes)
}

fn footer(bytes: &Bytes) -> Arc<ParquetMetaData> {
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
    Arc::clone(ArrowReaderMetadata::load(bytes, options).unwrap().metadata())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_without_an_order_have_bloom_filters_as_large_as_they_need_and_pages_have_indexes() {
    let lake = Lake::new(Kind::Beside).await;
    let table = lake.catalog.prepare(by_name(1), Format::V2).await.unwrap();
    let (small, few) = write(&lake, &table, 10).await;
    let (_, many) = write(&lake, &table, 300_000).await;
    for (bytes, most) in [(&few, 100), (&many, 140 << 10)] {
        let footer = footer(bytes);
        for group in footer.row_groups() {
            let (id, name) = (group.column(0), group.column(1));
            assert_eq!(id.bloom_filter_offset(), None);
            let length = name.bloom_filter_length().unwrap();
            assert!(length <= most, "{length} bytes for {} rows", group.num_rows());
            assert!(id.column_index_offset().is_some() && name.column_index_offset().is_some());
            assert!(id.offset_index_offset().is_some() && name.offset_index_offset().is_some());
        }
        assert!(footer.column_index().is_some() && footer.offset_index().is_some());
    }
    assert!(few.len() < 2000, "{} bytes for ten rows", few.len());

    // Each value is found that is there, and few that are not.
    let options = ReadOptionsBuilder::new().with_reader_properties(
        parquet::file::properties::ReaderProperties::builder().set_read_bloom_filter(true).build(),
    );
    let reader = SerializedFileReader::new_with_options(many, options.build()).unwrap();
    let mut first = 0;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).unwrap();
        let rows = group.metadata().num_rows();
        let filter = group.get_column_bloom_filter(1).unwrap();
        assert!((first..first + rows).all(|id| filter.check(name(id).as_str())));
        let wrong = (1_000_000..1_010_000).filter(|id| filter.check(name(*id).as_str())).count();
        assert!(wrong < 600, "{wrong} of 10000 that are not there");
        first += rows;
    }

    // Numbers have none, and readers read both.
    let table = commit(&lake.catalog, &batch(None, 10, vec![append(&table, vec![small])])).await.remove(0);
    let numbers = lake.catalog.prepare(by_name(0), Format::V2).await.unwrap();
    let (_, bytes) = write(&lake, &numbers, 10).await;
    assert!(footer(&bytes).row_group(0).columns().iter().all(|column| column.bloom_filter_offset().is_none()));
    let (duckdb, pyiceberg) = readers::scan(&lake, "events").await;
    assert_eq!((duckdb.ids(), pyiceberg.ids()), ((0..10).collect(), (0..10).collect()));
    assert_eq!(table.data_file_count(), 1);
}
