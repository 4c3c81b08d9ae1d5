//! Rows into Arrow columns, and key bytes out of either.

use std::sync::Arc;

use arrow_array::builder::{
    ArrayBuilder as _, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, FixedSizeBinaryBuilder,
    Float32Builder, Float64Builder, Int32Builder, Int64Builder, StringBuilder, Time64MicrosecondBuilder,
    TimestampMicrosecondBuilder,
};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, Time64MicrosecondType,
    TimestampMicrosecondType,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, SchemaRef};
use iceberg_writer::{PgType, TableSpec, companion_id};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

use crate::Result;
use crate::error::{COPY_ANEW, Error, ErrorKind};

use super::message::Cell;
use super::plain;
use super::value::{self, Value};

/// One column under construction.
#[derive(Debug)]
pub(super) enum Column {
    Bool(BooleanBuilder),
    Int(Int32Builder),
    Date(Date32Builder),
    Long(Int64Builder),
    Time(Time64MicrosecondBuilder),
    Timestamp(TimestampMicrosecondBuilder),
    Float(Float32Builder),
    Double(Float64Builder),
    Decimal(Decimal128Builder),
    Text(StringBuilder),
    Bytes(BinaryBuilder),
    Uuid(FixedSizeBinaryBuilder),
}

impl Column {
    pub(super) fn new(data_type: &DataType) -> Result<Self> {
        Ok(match data_type {
            DataType::Boolean => Self::Bool(BooleanBuilder::new()),
            DataType::Int32 => Self::Int(Int32Builder::new()),
            DataType::Date32 => Self::Date(Date32Builder::new()),
            DataType::Int64 => Self::Long(Int64Builder::new()),
            DataType::Time64(_) => Self::Time(Time64MicrosecondBuilder::new()),
            DataType::Timestamp(_, _) => {
                Self::Timestamp(TimestampMicrosecondBuilder::new().with_data_type(data_type.clone()))
            }
            DataType::Float32 => Self::Float(Float32Builder::new()),
            DataType::Float64 => Self::Double(Float64Builder::new()),
            DataType::Decimal128(_, _) => Self::Decimal(Decimal128Builder::new().with_data_type(data_type.clone())),
            DataType::Utf8 => Self::Text(StringBuilder::new()),
            DataType::Binary => Self::Bytes(BinaryBuilder::new()),
            DataType::FixedSizeBinary(16) => Self::Uuid(FixedSizeBinaryBuilder::new(16)),
            other => return Err(Error::new(ErrorKind::Table, format!("no column builder for {other}"))),
        })
    }

    pub(super) fn append(&mut self, value: Option<Value<'_>>) -> Result<()> {
        match (self, value) {
            (Self::Bool(to), None) => to.append_null(),
            (Self::Int(to), None) => to.append_null(),
            (Self::Date(to), None) => to.append_null(),
            (Self::Long(to), None) => to.append_null(),
            (Self::Time(to), None) => to.append_null(),
            (Self::Timestamp(to), None) => to.append_null(),
            (Self::Float(to), None) => to.append_null(),
            (Self::Double(to), None) => to.append_null(),
            (Self::Decimal(to), None) => to.append_null(),
            (Self::Text(to), None) => to.append_null(),
            (Self::Bytes(to), None) => to.append_null(),
            (Self::Uuid(to), None) => to.append_null(),
            (Self::Bool(to), Some(Value::Bool(value))) => to.append_value(value),
            (Self::Int(to), Some(Value::Int(value))) => to.append_value(value),
            (Self::Date(to), Some(Value::Int(value))) => to.append_value(value),
            (Self::Long(to), Some(Value::Long(value))) => to.append_value(value),
            (Self::Time(to), Some(Value::Long(value))) => to.append_value(value),
            (Self::Timestamp(to), Some(Value::Long(value))) => to.append_value(value),
            (Self::Float(to), Some(Value::Float(value))) => to.append_value(value),
            (Self::Double(to), Some(Value::Double(value))) => to.append_value(value),
            (Self::Decimal(to), Some(Value::Decimal(value))) => to.append_value(value),
            (Self::Text(to), Some(Value::Text(value))) => to.append_value(value),
            (Self::Bytes(to), Some(Value::Bytes(value))) => to.append_value(value),
            (Self::Uuid(to), Some(Value::Uuid(value))) => {
                to.append_value(value)
                    .map_err(|error| Error::new(ErrorKind::Table, "append a uuid").with_source(error))?;
            }
            (_, Some(_)) => {
                return Err(Error::new(ErrorKind::Table, "a value's type does not fit its column's builder"));
            }
        }
        Ok(())
    }

    pub(super) fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Bool(from) => Arc::new(from.finish()),
            Self::Int(from) => Arc::new(from.finish()),
            Self::Date(from) => Arc::new(from.finish()),
            Self::Long(from) => Arc::new(from.finish()),
            Self::Time(from) => Arc::new(from.finish()),
            Self::Timestamp(from) => Arc::new(from.finish()),
            Self::Float(from) => Arc::new(from.finish()),
            Self::Double(from) => Arc::new(from.finish()),
            Self::Decimal(from) => Arc::new(from.finish()),
            Self::Text(from) => Arc::new(from.finish()),
            Self::Bytes(from) => Arc::new(from.finish()),
            Self::Uuid(from) => Arc::new(from.finish()),
        }
    }
}

/// The value of `array` at `row`, `None` for NULL.
pub(crate) fn value_at(array: &dyn Array, row: usize) -> Result<Option<Value<'_>>> {
    if array.is_null(row) {
        return Ok(None);
    }
    Ok(Some(match array.data_type() {
        DataType::Boolean => Value::Bool(array.as_boolean().value(row)),
        DataType::Int32 => Value::Int(array.as_primitive::<Int32Type>().value(row)),
        DataType::Date32 => Value::Int(array.as_primitive::<Date32Type>().value(row)),
        DataType::Int64 => Value::Long(array.as_primitive::<Int64Type>().value(row)),
        DataType::Time64(_) => Value::Long(array.as_primitive::<Time64MicrosecondType>().value(row)),
        DataType::Timestamp(_, _) => Value::Long(array.as_primitive::<TimestampMicrosecondType>().value(row)),
        DataType::Float32 => Value::Float(array.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => Value::Double(array.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal128(_, _) => Value::Decimal(array.as_primitive::<Decimal128Type>().value(row)),
        DataType::Utf8 => Value::Text(array.as_string::<i32>().value(row).into()),
        DataType::LargeUtf8 => Value::Text(array.as_string::<i64>().value(row).into()),
        DataType::Binary => Value::Bytes(array.as_binary::<i32>().value(row).into()),
        DataType::LargeBinary => Value::Bytes(array.as_binary::<i64>().value(row).into()),
        DataType::FixedSizeBinary(16) => {
            let mut uuid = [0; 16];
            uuid.copy_from_slice(array.as_fixed_size_binary().value(row));
            Value::Uuid(uuid)
        }
        other => return Err(Error::new(ErrorKind::Table, format!("no value of type {other}"))),
    }))
}

/// Where the value of an unchanged TOASTed column comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OldRow<'a> {
    /// Columns in the table's order.
    pub(crate) batch: &'a RecordBatch,
    pub(crate) row: usize,
}

impl<'a> OldRow<'a> {
    /// The value of a column, as it is or as its companion has it.
    fn value(self, index: usize) -> Result<Option<Value<'a>>> {
        let value = value_at(self.batch.column(index).as_ref(), self.row)?;
        if value.is_none()
            && let Some(companion) = companion_in(self.batch, index)
        {
            return exact_at(companion.as_ref(), self.row);
        }
        Ok(value)
    }
}

/// The companion of a column, if the batch has it. Companions come behind all columns.
fn companion_in(batch: &RecordBatch, index: usize) -> Option<&ArrayRef> {
    let schema = batch.schema_ref();
    let id = companion_id(field_id(schema.fields().get(index)?)?.parse().ok()?).to_string();
    let place = schema.fields().iter().rposition(|field| field_id(field) == Some(&id))?;
    Some(batch.column(place))
}

/// The field id of a column of a batch, which the writer has put there.
pub(crate) fn field_id(field: &Field) -> Option<&String> {
    field.metadata().get(PARQUET_FIELD_ID_META_KEY)
}

/// A companion's value.
fn exact_at(companion: &dyn Array, row: usize) -> Result<Option<Value<'_>>> {
    Ok(match value_at(companion, row)? {
        Some(Value::Text(text)) => Some(Value::Exact(text)),
        _ => None,
    })
}

/// Rows of one table, growing column by column.
#[derive(Debug)]
pub(crate) struct RowBuilder {
    schema: SchemaRef,
    types: Vec<PgType>,
    columns: Vec<Column>,
    /// By column. They are shorter than it when its last values need no companion.
    companions: Vec<Option<StringBuilder>>,
    rows: usize,
    bytes: usize,
}

impl RowBuilder {
    pub(crate) fn new(spec: &TableSpec) -> Result<Self> {
        let schema = spec.arrow_schema();
        let fields = schema.fields().iter().take(spec.columns.len());
        let columns = fields.map(|field| Column::new(field.data_type())).collect::<Result<_>>()?;
        let types = spec.columns.iter().map(|column| column.pg_type).collect();
        let companions = spec.columns.iter().map(|column| column.companion.then(StringBuilder::new)).collect();
        Ok(Self { schema, types, columns, companions, rows: 0, bytes: 0 })
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of the values appended since the last [`Self::finish`], roughly what they take in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a row. On an error the builder is left uneven and must be thrown away with its table. True: a column has
    /// got a companion with it, which `spec` has not; all rows from now on have it too.
    ///
    /// # Errors
    /// [`ErrorKind::Table`], naming the column.
    pub(crate) fn append(&mut self, spec: &TableSpec, cells: &[Cell<'_>], old: Option<OldRow<'_>>) -> Result<bool> {
        if cells.len() != self.columns.len() {
            let message = format!("a row has {} columns instead of {}", cells.len(), self.columns.len());
            return Err(Error::new(ErrorKind::Table, message));
        }
        let mut grown = false;
        for (index, cell) in cells.iter().enumerate() {
            let value = match cell {
                Cell::Null => None,
                Cell::Binary(raw) => {
                    self.bytes += raw.len();
                    if plain::append(&mut self.columns[index], self.types[index], raw) {
                        continue;
                    }
                    Some(value::read_binary(self.types[index], raw).map_err(|error| column_error(spec, index, error))?)
                }
                Cell::Text(raw) => {
                    self.bytes += raw.len();
                    Some(value::read_text(self.types[index], raw).map_err(|error| column_error(spec, index, error))?)
                }
                Cell::Unchanged => {
                    let old = old.ok_or_else(|| {
                        // A row that an update moves into the publication's row filter arrives as an insert.
                        Error::new(ErrorKind::Table, "an unchanged TOASTed value has no old row to come from")
                            .with_hint(format!("ALTER TABLE … REPLICA IDENTITY FULL, then {COPY_ANEW}"))
                    })?;
                    let value = old.value(index)?;
                    if let Some(Value::Text(text)) = &value {
                        self.bytes += text.len();
                    }
                    value
                }
            };
            if let Some(Value::Exact(text)) = &value {
                grown |= self.companions[index].is_none();
                self.append_exact(index, text);
                self.columns[index].append(None)?;
                continue;
            }
            self.columns[index].append(value)?;
        }
        self.rows += 1;
        self.bytes += self.columns.len() * 8;
        if grown {
            self.schema = spec.clone().with_companions(self.companions(spec)).arrow_schema();
        }
        Ok(grown)
    }

    /// The field ids of the columns that have a companion.
    pub(crate) fn companions(&self, spec: &TableSpec) -> Vec<i32> {
        let with = spec.columns.iter().zip(&self.companions).filter(|(_, companion)| companion.is_some());
        with.map(|(column, _)| column.field_id).collect()
    }

    /// Appends to a companion, whose former values are NULL where it has none.
    fn append_exact(&mut self, index: usize, text: &str) {
        let companion = self.companions[index].get_or_insert_default();
        companion.append_nulls(self.rows - companion.len());
        companion.append_value(text);
        self.bytes += text.len();
    }

    /// As [`Self::finish`], for a builder that will take as many rows again: it makes room for them at once.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub(crate) fn finish_batch(&mut self) -> Result<RecordBatch> {
        let batch = self.finish()?;
        for (column, array) in self.columns.iter_mut().zip(batch.columns()) {
            plain::make_room(column, array.as_ref());
        }
        Ok(batch)
    }

    /// The rows so far; the builder starts again.
    ///
    /// # Errors
    /// [`ErrorKind::Table`] when a key column holds NULL, which Postgres forbids.
    pub(crate) fn finish(&mut self) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = self.columns.iter_mut().map(Column::finish).collect();
        for companion in self.companions.iter_mut().flatten() {
            companion.append_nulls(self.rows - companion.len());
            columns.push(Arc::new(companion.finish()));
        }
        self.rows = 0;
        self.bytes = 0;
        RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .map_err(|error| Error::new(ErrorKind::Table, "assemble a batch of rows").with_source(error))
    }
}

fn column_error(spec: &TableSpec, index: usize, error: value::ValueError) -> Error {
    let name = spec.columns.get(index).map_or("?", |column| column.name.as_str());
    let hint = match error {
        value::ValueError::NotText => COPY_ANEW.to_owned(),
        _ => format!("change the value in the source, then {COPY_ANEW}"),
    };
    Error::new(ErrorKind::Table, format!("column \"{name}\" {error}")).with_hint(hint).with_source(error)
}

/// What stands for NULL in an identity: longer than any value's length, with which a part otherwise begins.
const NULL_PART: [u8; 4] = u32::MAX.to_be_bytes();

/// Identity bytes of a row on the wire: the values of `columns`, NULL only where the column is not part of the key.
/// `cells` are all columns of the table, or as many as the old tuple has.
pub(crate) fn key_of_cells(spec: &TableSpec, columns: &[usize], cells: &[Cell<'_>], key: &mut Vec<u8>) -> Result<()> {
    key.clear();
    for &index in columns {
        let cell = cells.get(index);
        if cell == Some(&Cell::Null) && !spec.is_key(index) {
            key.extend_from_slice(&NULL_PART);
            continue;
        }
        let pg_type = spec.columns[index].pg_type;
        let value = match cell {
            Some(Cell::Binary(raw)) if plain::append_key_part(pg_type, raw, key) => continue,
            Some(Cell::Binary(raw)) => value::read_binary(pg_type, raw),
            Some(Cell::Text(raw)) => value::read_text(pg_type, raw),
            _ => {
                return Err(Error::new(ErrorKind::Table, "a row arrived without its key")
                    .with_hint(format!("was the replica identity of the table changed? {COPY_ANEW}")));
            }
        };
        value::write_key_part(&value.map_err(|error| column_error(spec, index, error))?, key);
    }
    Ok(())
}

/// The columns of an identity in a batch, in its order.
pub(crate) struct StoredKeys<'a> {
    parts: Vec<StoredPart<'a>>,
}

struct StoredPart<'a> {
    values: &'a ArrayRef,
    companion: Option<&'a ArrayRef>,
    nullable: bool,
}

impl<'a> StoredKeys<'a> {
    /// Of a batch that has these columns of the table, and their companions behind them.
    pub(crate) fn of(keys: &'a RecordBatch, spec: &TableSpec, identity: &[usize]) -> Self {
        let part = |((place, &index), values): ((usize, &usize), &'a ArrayRef)| StoredPart {
            values,
            companion: companion_in(keys, place),
            nullable: !spec.is_key(index),
        };
        Self { parts: identity.iter().enumerate().zip(keys.columns()).map(part).collect() }
    }

    /// Identity bytes of a row.
    pub(crate) fn write(&self, row: usize, key: &mut Vec<u8>) -> Result<()> {
        key.clear();
        for StoredPart { values, companion, nullable } in &self.parts {
            let mut value = value_at(values.as_ref(), row)?;
            if let (None, Some(companion)) = (&value, companion) {
                value = exact_at(companion.as_ref(), row)?;
            }
            match value {
                Some(value) => value::write_key_part(&value, key),
                None if *nullable => key.extend_from_slice(&NULL_PART),
                None => return Err(Error::new(ErrorKind::Table, "a data file holds a row without its key")),
            }
        }
        Ok(())
    }
}
