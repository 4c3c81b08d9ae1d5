//! Rows that a query says do not count are taken from it: what the worker may do with whole files, done to each row, so that
//! a condition that says too much shows in the first answer.

use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Decimal128Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use lake_protocol::{Alternatives, Column, Value};

/// Which rows of a file count.
pub(crate) fn rows_that_count(rows: &RecordBatch, columns: &[Column], wanted: &Alternatives) -> Vec<bool> {
    let counts = |row: usize| {
        wanted.is_empty()
            || wanted.iter().any(|conditions| {
                conditions.iter().all(|condition| {
                    let place = columns.iter().position(|column| column.attnum == condition.attnum).unwrap();
                    let column = rows.column(place);
                    !column.is_null(row) && value(column, row).is_none_or(|value| condition.admits(&value))
                })
            })
    };
    (0..rows.num_rows()).map(counts).collect()
}

/// A value as files have bounds of it.
fn value(column: &dyn Array, row: usize) -> Option<Value> {
    Some(match column.data_type() {
        DataType::Int32 => Value::Integer(i64::from(column.as_primitive::<Int32Type>().value(row))),
        DataType::Int64 => Value::Integer(column.as_primitive::<Int64Type>().value(row)),
        DataType::Date32 => Value::Integer(i64::from(column.as_primitive::<Date32Type>().value(row))),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            Value::Integer(column.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        DataType::Decimal128(_, scale) => Value::Decimal {
            unscaled: column.as_primitive::<Decimal128Type>().value(row),
            scale: u8::try_from(*scale).unwrap(),
        },
        DataType::Utf8 => Value::Text(column.as_string::<i32>().value(row).to_owned()),
        DataType::FixedSizeBinary(16) => {
            Value::Uuid(u128::from_be_bytes(column.as_fixed_size_binary().value(row).try_into().unwrap()))
        }
        _ => return None,
    })
}
