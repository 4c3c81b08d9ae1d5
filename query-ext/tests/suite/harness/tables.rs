//! The tables: made in the heap, and copied from it into Arrow.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float32Array,
    Float64Array, Int32Array, Int64Array, RecordBatch, StringArray, Time64MicrosecondArray, TimestampMicrosecondArray,
};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use lake_protocol::Column;
use tokio_postgres::Client;

pub(crate) const SETUP: &str = include_str!("setup.sql");

/// A table's rows and columns, as the worker has them.
pub(crate) struct Copied {
    pub(crate) relation: u32,
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: RecordBatch,
}

/// Copies a table.
pub(crate) async fn copy(client: &Client, table: &str) -> Copied {
    let relation: u32 = client.query_one("SELECT $1::text::regclass::oid", &[&table]).await.unwrap().get(0);
    let attributes = client
        .query(
            "SELECT attnum, attname::text, atttypid, atttypmod FROM pg_attribute
             WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            &[&relation],
        )
        .await
        .unwrap();
    let mut columns = Vec::new();
    let mut expressions = Vec::new();
    for attribute in &attributes {
        let (attnum, name, type_oid, typmod): (i16, String, u32, i32) =
            (attribute.get(0), attribute.get(1), attribute.get(2), attribute.get(3));
        let scale = (typmod - 4) & 0x7ff;
        expressions.push(match type_oid {
            17 => format!("encode({name}, 'hex')"),
            1082 => format!("({name} - date '1970-01-01')::text"),
            1083 => format!("(extract(epoch from {name}) * 1000000)::bigint::text"),
            1114 | 1184 => format!("(extract(epoch from {name}) * 1000000)::bigint::text"),
            1700 => format!("({name} * 1{})::numeric(38,0)::text", "0".repeat(usize::try_from(scale).unwrap())),
            2950 => format!("replace({name}::text, '-', '')"),
            _ => format!("{name}::text"),
        });
        columns.push(Column { attnum, field_id: i32::from(attnum), name, type_oid, typmod, companion: None });
    }
    let rows = client.query(&format!("SELECT {} FROM {table} ORDER BY 1", expressions.join(", ")), &[]).await.unwrap();
    let mut fields = Vec::new();
    let mut arrays: Vec<ArrayRef> = Vec::new();
    for (index, column) in columns.iter().enumerate() {
        let texts: Vec<Option<String>> = rows.iter().map(|row| row.get(index)).collect();
        let (kind, array) = array(column, &texts);
        let id = column.field_id.to_string();
        let metadata = [("PARQUET:field_id".to_owned(), id.clone())].into();
        fields.push(Field::new(format!("c{id}"), kind, true).with_metadata(metadata));
        arrays.push(array);
    }
    Copied { relation, columns, rows: RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap() }
}

fn array(column: &Column, texts: &[Option<String>]) -> (DataType, ArrayRef) {
    fn parse<T: std::str::FromStr>(texts: &[Option<String>]) -> Vec<Option<T>> {
        texts.iter().map(|text| text.as_ref().map(|text| text.parse().map_err(|_| text.clone()).unwrap())).collect()
    }
    let bytes = || -> Vec<Option<Vec<u8>>> {
        let decode = |text: &String| -> Vec<u8> {
            (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
        };
        texts.iter().map(|text| text.as_ref().map(decode)).collect()
    };
    let array: ArrayRef = match column.type_oid {
        16 => Arc::new(BooleanArray::from(
            texts.iter().map(|text| text.as_ref().map(|text| text == "true")).collect::<Vec<_>>(),
        )),
        21 | 23 => Arc::new(Int32Array::from(parse::<i32>(texts))),
        20 => Arc::new(Int64Array::from(parse::<i64>(texts))),
        700 => Arc::new(Float32Array::from(parse::<f32>(texts))),
        701 => Arc::new(Float64Array::from(parse::<f64>(texts))),
        1700 => {
            let packed = column.typmod - 4;
            let (precision, scale) = (u8::try_from(packed >> 16).unwrap(), i8::try_from(packed & 0x7ff).unwrap());
            Arc::new(Decimal128Array::from(parse::<i128>(texts)).with_precision_and_scale(precision, scale).unwrap())
        }
        17 => {
            let bytes = bytes();
            Arc::new(BinaryArray::from_iter(bytes.iter().map(|bytes| bytes.as_deref())))
        }
        1082 => Arc::new(Date32Array::from(parse::<i32>(texts))),
        1083 => Arc::new(Time64MicrosecondArray::from(parse::<i64>(texts))),
        1114 => Arc::new(TimestampMicrosecondArray::from(parse::<i64>(texts))),
        1184 => Arc::new(TimestampMicrosecondArray::from(parse::<i64>(texts)).with_timezone("+00:00")),
        2950 => Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(bytes().into_iter(), 16).unwrap()),
        _ => Arc::new(StringArray::from(texts.to_vec())),
    };
    debug_assert!(!matches!(array.data_type(), DataType::Timestamp(TimeUnit::Second, _)));
    (array.data_type().clone(), array)
}
