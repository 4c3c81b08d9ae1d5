//! Every type, with its extremes, as written, as read back and as other readers see it.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float32Array,
    Float64Array, Int32Array, Int64Array, RecordBatch, StringArray, Time64MicrosecondArray, TimestampMicrosecondArray,
};
use futures_util::TryStreamExt;
use iceberg_writer::{Catalog, DataFileWriter, Format, PgType, TableSpec, read_rows, scan_columns};
use uuid::Uuid;

use crate::pairs::{append, column};
use crate::readers;
use crate::server::{Kind, Lake, batch, commit};

on_each_place! {
    every_type_survives;
    rows_of_another_shape_are_refused_and_no_rows_make_no_file;
}

const NUMERICS: [(u8, u8); 5] = [(9, 2), (18, 4), (20, 0), (38, 0), (38, 38)];

fn spec() -> TableSpec {
    use PgType::*;
    let mut columns = vec![column("id", 1, Int8, true), column("uuid_key", 2, Uuid, true)];
    let mut field_id = 4; // 3 was dropped
    let mut add = |name: String, pg_type| {
        columns.push(column(&name, field_id, pg_type, false));
        field_id += 1;
    };
    let plain = [
        Bool,
        Int2,
        Int4,
        Int8,
        Float4,
        Float8,
        Text,
        Varchar,
        Bytea,
        Date,
        Time,
        Timestamp,
        Timestamptz,
        Uuid,
        Json,
        Jsonb,
    ];
    for pg_type in plain {
        add(format!("a {}", pg_type.name()), pg_type);
    }
    for (precision, scale) in NUMERICS {
        add(format!("numeric_{precision}_{scale}"), Numeric { precision, scale });
    }
    TableSpec { namespace: "types".to_owned(), name: "all".to_owned(), columns, key: vec![0, 1] }
}

const UUID: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
const DAY: i64 = 86_400_000_000;

/// Three rows: the least values, the greatest, and NULL.
fn rows(spec: &TableSpec) -> RecordBatch {
    let uuids = |values: Vec<Option<Uuid>>| -> ArrayRef {
        let bytes = values.iter().map(|value| value.as_ref().map(|uuid| uuid.as_bytes().as_slice()));
        Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(bytes, 16).unwrap())
    };
    let strings = |least: &str, most: &str| -> ArrayRef {
        Arc::new(StringArray::from(vec![Some(least.to_owned()), Some(most.to_owned()), None]))
    };
    let stamps = || TimestampMicrosecondArray::from(vec![Some(-1), Some(253_402_300_799_999_999), None]);
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![1, 2, 3])),
        uuids(vec![Some(Uuid::nil()), Some(Uuid::max()), Some(UUID)]),
        Arc::new(BooleanArray::from(vec![Some(false), Some(true), None])),
        Arc::new(Int32Array::from(vec![Some(i32::from(i16::MIN)), Some(i32::from(i16::MAX)), None])),
        Arc::new(Int32Array::from(vec![Some(i32::MIN), Some(i32::MAX), None])),
        Arc::new(Int64Array::from(vec![Some(i64::MIN), Some(i64::MAX), None])),
        Arc::new(Float32Array::from(vec![Some(-0.0), Some(f32::NAN), None])),
        Arc::new(Float64Array::from(vec![Some(f64::NEG_INFINITY), Some(1e300), None])),
        strings("", &"ü😀".repeat(100)),
        strings("a'b\"c\\d\n", "z"),
        Arc::new(BinaryArray::from(vec![Some(&b""[..]), Some(&b"\x00\xff\x10"[..]), None])),
        Arc::new(Date32Array::from(vec![Some(-719_162), Some(2_932_896), None])),
        Arc::new(Time64MicrosecondArray::from(vec![Some(0), Some(DAY - 1), None])),
        Arc::new(stamps()),
        Arc::new(stamps().with_timezone("UTC")),
        uuids(vec![Some(UUID), Some(Uuid::max()), None]),
        strings("{\"a\" :1,  \"a\":2}", "[]"),
        strings("{\"a\": 1}", "null"),
    ];
    for (precision, scale) in NUMERICS {
        let most = 10_i128.pow(u32::from(precision)) - 1;
        let values = Decimal128Array::from(vec![Some(-most), Some(most), None]);
        columns.push(Arc::new(values.with_precision_and_scale(precision, scale.cast_signed()).unwrap()));
    }
    RecordBatch::try_new(spec.arrow_schema(), columns).unwrap()
}

fn expected() -> Vec<Vec<Option<String>>> {
    let least = [
        "1",
        "00000000-0000-0000-0000-000000000000",
        "false",
        "-32768",
        "-2147483648",
        "-9223372036854775808",
        "-0.0",
        "-inf",
        "",
        "a'b\"c\\d\n",
        "",
        "0001-01-01",
        "00:00:00",
        "1969-12-31 23:59:59.999999",
        "1969-12-31 23:59:59.999999+00",
        "01234567-89ab-cdef-0123-456789abcdef",
        "{\"a\" :1,  \"a\":2}",
        "{\"a\": 1}",
        "-9999999.99",
        "-99999999999999.9999",
        "-99999999999999999999",
        "-99999999999999999999999999999999999999",
        "-0.99999999999999999999999999999999999999",
    ];
    let long = "ü😀".repeat(100);
    let most = [
        "2",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "true",
        "32767",
        "2147483647",
        "9223372036854775807",
        "nan",
        "1e+300",
        &long,
        "z",
        "\\x00\\xFF\\x10",
        "9999-12-31",
        "23:59:59.999999",
        "9999-12-31 23:59:59.999999",
        "9999-12-31 23:59:59.999999+00",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "[]",
        "null",
        "9999999.99",
        "99999999999999.9999",
        "99999999999999999999",
        "99999999999999999999999999999999999999",
        "0.99999999999999999999999999999999999999",
    ];
    let mut null = vec![Some("3".to_owned()), Some(UUID.to_string())];
    null.resize(least.len(), None);
    let some = |row: &[&str]| row.iter().map(|value| Some((*value).to_owned())).collect();
    vec![some(&least), some(&most), null]
}

async fn every_type_survives(on: Kind) {
    let lake = Lake::new(on).await;
    let table = lake.catalog.prepare(spec(), Format::V2).await.unwrap();
    let written = rows(table.spec());
    let mut writer = DataFileWriter::create(&lake.warehouse, &table, 1, Uuid::now_v7(), 0);
    writer.write(&written).await.unwrap();
    assert!(writer.bytes_written() > 0);
    let file = writer.close().await.unwrap().unwrap();
    let table = commit(&lake.catalog, &batch(None, 1, vec![append(&table, vec![file.clone()])])).await.remove(0);

    let all: Vec<usize> = (0..table.spec().columns.len()).collect();
    let read: Vec<RecordBatch> =
        scan_columns(&lake.warehouse, &table, &file.path, &all).await.unwrap().try_collect().await.unwrap();
    assert_eq!(format!("{:?}", read[0].columns()), format!("{:?}", written.columns()));
    let read = read_rows(&lake.warehouse, &table, &file.path, &[1], &all).await.unwrap();
    assert_eq!(format!("{:?}", read.columns()), format!("{:?}", written.slice(1, 1).columns()));

    let (duckdb, pyiceberg) = readers::scan(&lake, "all").await;
    let numerics = NUMERICS.map(|(precision, scale)| format!("DECIMAL({precision},{scale})"));
    let types = [
        "BIGINT",
        "UUID",
        "BOOLEAN",
        "INTEGER",
        "INTEGER",
        "BIGINT",
        "FLOAT",
        "DOUBLE",
        "VARCHAR",
        "VARCHAR",
        "BLOB",
        "DATE",
        "TIME",
        "TIMESTAMP",
        "TIMESTAMP WITH TIME ZONE",
        "UUID",
        "VARCHAR",
        "VARCHAR",
    ];
    let types: Vec<String> = types.iter().map(|ty| (*ty).to_owned()).chain(numerics).collect();
    assert_eq!(duckdb.types, types);
    // DuckDB leaves the only digit before the point out where the type has none.
    let bare = |value: String| {
        value.replace("0.99999999999999999999999999999999999999", ".99999999999999999999999999999999999999")
    };
    let bare = |row: Vec<Option<String>>| row.into_iter().map(|value| value.map(bare)).collect::<Vec<_>>();
    assert_eq!(duckdb.rows, expected().into_iter().map(bare).collect::<Vec<_>>());
    assert_eq!(pyiceberg.types[1], "uuid");
    assert_eq!(pyiceberg.rows, expected());
}

async fn rows_of_another_shape_are_refused_and_no_rows_make_no_file(on: Kind) {
    let lake = Lake::new(on).await;
    let table = lake.catalog.prepare(spec(), Format::V2).await.unwrap();
    let writer = DataFileWriter::create(&lake.warehouse, &table, 1, Uuid::now_v7(), 0);
    assert!(writer.close().await.unwrap().is_none());
    let mut writer = DataFileWriter::create(&lake.warehouse, &table, 1, Uuid::now_v7(), 1);
    writer.write(&rows(table.spec()).slice(0, 0)).await.unwrap();
    assert!(writer.write(&rows(table.spec()).project(&[0, 1]).unwrap()).await.is_err());
    drop(writer);
    assert!(lake.files().await.is_empty());
}
