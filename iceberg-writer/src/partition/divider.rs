//! Rows told apart by their partitions.

use std::collections::HashMap;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Int32Type, Int64Type, Time64MicrosecondType, TimestampMicrosecondType,
};
use arrow_array::{Array as _, ArrayRef, RecordBatch};
use arrow_row::{OwnedRow, RowConverter, SortField};
use arrow_schema::{DataType, TimeUnit};
use iceberg::spec::{Literal, PrimitiveLiteral, Struct, StructType, Transform};

use super::{Partition, transform};
use crate::error::{Error, Result};
use crate::table::LakeTable;

/// Numbers the partitions of rows in the order in which they come, from 0.
pub struct Divider {
    table: LakeTable,
    spec_id: i32,
    /// Places of columns in batches, and what of their values counts.
    fields: Vec<(usize, Transform)>,
    types: StructType,
    /// `None`: there is one partition.
    converter: Option<RowConverter>,
    numbers: HashMap<OwnedRow, u32>,
    partitions: Vec<Partition>,
}

impl Divider {
    /// Of rows that are written into a table now.
    pub fn new(table: &LakeTable) -> Result<Self> {
        let spec = table.next_partition_spec()?;
        let types = table.partition_fields(&spec)?;
        let place = |id: i32| {
            let place = table.spec().columns.iter().position(|column| column.field_id == id);
            place.ok_or_else(|| {
                Error::format(format!("{} is partitioned by a column that it has not", table.full_name()))
            })
        };
        let fields: Vec<(usize, Transform)> =
            spec.fields().iter().map(|field| Ok((place(field.source_id)?, field.transform))).collect::<Result<_>>()?;
        let mut divider = Self {
            table: table.clone(),
            spec_id: spec.spec_id(),
            fields,
            types,
            converter: None,
            numbers: HashMap::new(),
            partitions: Vec::new(),
        };
        if divider.fields.is_empty() {
            divider.partitions.push(Partition::new(spec.spec_id(), divider.types.clone(), Struct::empty()));
        }
        Ok(divider)
    }

    /// The number of the partition of each row. The columns are those of
    /// [`TableSpec::arrow_schema`](crate::TableSpec::arrow_schema), in its order.
    pub fn divide(&mut self, rows: &RecordBatch) -> Result<Vec<u32>> {
        if self.fields.is_empty() {
            return Ok(vec![0; rows.num_rows()]);
        }
        let fail = |error| Error::format("tell partitions apart").with_source(error);
        let values = self.fields.iter().map(|(place, by)| transform::apply(*by, rows.column(*place)));
        let values: Vec<ArrayRef> = values.collect::<Result<_>>().map_err(|error| self.named(error))?;
        let converter = match &self.converter {
            Some(converter) => converter,
            None => {
                let fields = values.iter().map(|values| SortField::new(values.data_type().clone())).collect();
                self.converter.insert(RowConverter::new(fields).map_err(fail)?)
            }
        };
        let keys = converter.convert_columns(&values).map_err(fail)?;
        let mut numbers = Vec::with_capacity(rows.num_rows());
        // Neighbours are mostly in the same one.
        let mut last: Option<(usize, u32)> = None;
        for row in 0..keys.num_rows() {
            let key = keys.row(row);
            let number = match last {
                Some((before, number)) if keys.row(before) == key => number,
                _ => match self.numbers.get(&key.owned()) {
                    Some(number) => *number,
                    None => {
                        let number = u32::try_from(self.partitions.len()).map_err(|_| self.too_many())?;
                        let literals =
                            self.fields.iter().zip(&values).map(|((_, by), values)| literal(*by, values, row));
                        let values = literals.collect::<Result<Struct>>()?;
                        self.partitions.push(Partition::new(self.spec_id, self.types.clone(), values));
                        self.numbers.insert(key.owned(), number);
                        number
                    }
                },
            };
            last = Some((row, number));
            numbers.push(number);
        }
        Ok(numbers)
    }

    /// A partition by its number.
    pub fn partition(&self, number: u32) -> Option<&Partition> {
        self.partitions.get(number as usize)
    }

    /// How many there are so far.
    pub fn count(&self) -> usize {
        self.partitions.len()
    }

    fn named(&self, error: Error) -> Error {
        let spec = self.table.spec();
        error
            .with_table(&spec.namespace, &spec.name)
            .with_hint("give the table another partition_by, or change that row in the source")
    }

    fn too_many(&self) -> Error {
        self.named(Error::invalid("there are too many partitions"))
    }
}

/// A value as a manifest's entry has it.
fn literal(by: Transform, values: &ArrayRef, row: usize) -> Result<Option<Literal>> {
    if by == Transform::Void || values.is_null(row) {
        return Ok(None);
    }
    let value = match values.data_type() {
        DataType::Boolean => PrimitiveLiteral::Boolean(values.as_boolean().value(row)),
        DataType::Int32 => PrimitiveLiteral::Int(values.as_primitive::<Int32Type>().value(row)),
        DataType::Date32 => PrimitiveLiteral::Int(values.as_primitive::<Date32Type>().value(row)),
        DataType::Int64 => PrimitiveLiteral::Long(values.as_primitive::<Int64Type>().value(row)),
        DataType::Time64(TimeUnit::Microsecond) => {
            PrimitiveLiteral::Long(values.as_primitive::<Time64MicrosecondType>().value(row))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            PrimitiveLiteral::Long(values.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        DataType::Decimal128(_, _) => PrimitiveLiteral::Int128(values.as_primitive::<Decimal128Type>().value(row)),
        DataType::Utf8 => PrimitiveLiteral::String(values.as_string::<i32>().value(row).to_owned()),
        DataType::Binary => PrimitiveLiteral::Binary(values.as_binary::<i32>().value(row).to_vec()),
        DataType::FixedSizeBinary(16) => {
            let bytes: [u8; 16] = values.as_fixed_size_binary().value(row).try_into().map_err(|_| unknown(values))?;
            PrimitiveLiteral::UInt128(u128::from_be_bytes(bytes))
        }
        _ => return Err(unknown(values)),
    };
    Ok(Some(Literal::Primitive(value)))
}

fn unknown(values: &ArrayRef) -> Error {
    Error::invalid(format!("{} is no type of a partition", values.data_type()))
}
