//! Rows in the order in which they go into files: partition after partition, sorted where the table is to be.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_row::{RowConverter, Rows, SortField};
use arrow_schema::SortOptions;
use arrow_select::interleave::interleave_record_batch;
use iceberg::spec::{NullOrder, SortDirection};

use crate::error::{Error, Result};
use crate::partition::{Divider, Partition};
use crate::table::LakeTable;

/// Rows that are copied together at once.
const CHUNK_ROWS: usize = 8192;

/// Some rows of a table, and which go where.
pub struct Arranged<'a> {
    batches: &'a [RecordBatch],
    parts: Vec<Part>,
    is_sorted: bool,
}

/// The rows that go into one partition.
pub struct Part {
    /// Which one.
    pub partition: Partition,
    /// Batch and row of each, in order. `None`: all rows as they came.
    rows: Option<Vec<(usize, usize)>>,
}

impl<'a> Arranged<'a> {
    /// Arranges rows for a table as it is to be laid out.
    pub fn new(table: &LakeTable, batches: &'a [RecordBatch]) -> Result<Self> {
        let mut divider = Divider::new(table)?;
        let sorter = Sorter::new(table)?;
        let is_sorted = sorter.is_some();
        if divider.count() == 1 && sorter.is_none() {
            let partition = divider.partition(0).cloned().unwrap_or_default();
            return Ok(Self { batches, parts: vec![Part { partition, rows: None }], is_sorted });
        }
        let mut rows: Vec<Vec<(usize, usize)>> = Vec::new();
        for (at, batch) in batches.iter().enumerate() {
            for (row, number) in divider.divide(batch)?.into_iter().enumerate() {
                let number = number as usize;
                if rows.len() <= number {
                    rows.resize_with(number + 1, Vec::new);
                }
                rows[number].push((at, row));
            }
        }
        if let Some(sorter) = sorter {
            let keys = batches.iter().map(|batch| sorter.keys(batch)).collect::<Result<Vec<_>>>()?;
            rows.iter_mut().for_each(|rows| in_order(&keys, rows));
        }
        let partition = |number: u32| divider.partition(number).cloned().unwrap_or_default();
        let parts =
            rows.into_iter().zip(0..).map(|(rows, number)| Part { partition: partition(number), rows: Some(rows) });
        Ok(Self { batches, parts: parts.collect(), is_sorted })
    }

    /// What goes into each partition.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Whether each part is in the table's order.
    pub fn is_sorted(&self) -> bool {
        self.is_sorted
    }

    /// The rows of a part.
    pub fn batches_of(&self, part: &Part) -> impl Iterator<Item = Result<RecordBatch>> {
        let as_they_came = if part.rows.is_none() { self.batches } else { &[] };
        let arranged = take_rows(self.batches, part.rows.as_deref().unwrap_or_default());
        as_they_came.iter().cloned().map(Ok).chain(arranged)
    }

    /// Of each row, as they came, its place among all as they are written. `None`: it is the same.
    pub fn places(&self) -> Option<Vec<u32>> {
        let mut starts = Vec::with_capacity(self.batches.len());
        let mut count = 0;
        for batch in self.batches {
            starts.push(count);
            count += batch.num_rows();
        }
        let mut places = vec![0; count];
        let mut place = 0;
        for part in &self.parts {
            for (batch, row) in part.rows.as_ref()? {
                places[starts[*batch] + row] = place;
                place += 1;
            }
        }
        Some(places)
    }
}

/// Rows of some batches, by batch and row, as batches of a bounded size.
pub fn take_rows(batches: &[RecordBatch], rows: &[(usize, usize)]) -> impl Iterator<Item = Result<RecordBatch>> {
    let all: Vec<&RecordBatch> = batches.iter().collect();
    rows.chunks(CHUNK_ROWS).map(move |chunk| {
        interleave_record_batch(&all, chunk).map_err(|error| Error::format("arrange rows").with_source(error))
    })
}

/// Puts rows, by batch and row, in the order of their keys. Equal ones stay as they came.
fn in_order(keys: &[Rows], rows: &mut [(usize, usize)]) {
    rows.sort_by(|a, b| keys[a.0].row(a.1).cmp(&keys[b.0].row(b.1)));
}

/// A table's order of rows.
pub struct Sorter {
    converter: RowConverter,
    /// Places of columns in batches.
    columns: Vec<usize>,
}

impl Sorter {
    /// `None`: rows of the table are in no order.
    pub fn new(table: &LakeTable) -> Result<Option<Self>> {
        let order = table.next_sort_order()?;
        let spec = table.spec();
        let types = spec.arrow_schema();
        let places: HashMap<i32, usize> =
            spec.columns.iter().enumerate().map(|(at, column)| (column.field_id, at)).collect();
        let (mut fields, mut columns) = (Vec::new(), Vec::new());
        for by in &order.fields {
            let place = places.get(&by.source_id).copied();
            let place = place.ok_or_else(|| Error::format("a table is sorted by a column that it has not"))?;
            let options = SortOptions {
                descending: by.direction == SortDirection::Descending,
                nulls_first: by.null_order == NullOrder::First,
            };
            fields.push(SortField::new_with_options(types.field(place).data_type().clone(), options));
            columns.push(place);
        }
        if columns.is_empty() {
            return Ok(None);
        }
        let converter =
            RowConverter::new(fields).map_err(|error| Error::format("sort the rows of a table").with_source(error))?;
        Ok(Some(Self { converter, columns }))
    }

    /// All rows of some batches in order, by batch and row.
    pub fn sorted(&self, batches: &[RecordBatch]) -> Result<Vec<(usize, usize)>> {
        let keys = batches.iter().map(|batch| self.keys(batch)).collect::<Result<Vec<_>>>()?;
        let rows = batches.iter().enumerate().flat_map(|(at, batch)| (0..batch.num_rows()).map(move |row| (at, row)));
        let mut rows: Vec<_> = rows.collect();
        in_order(&keys, &mut rows);
        Ok(rows)
    }

    /// What rows are compared by.
    pub fn keys(&self, rows: &RecordBatch) -> Result<Rows> {
        let columns: Vec<ArrayRef> = self.columns.iter().map(|place| Arc::clone(rows.column(*place))).collect();
        self.converter.convert_columns(&columns).map_err(|error| Error::format("sort rows").with_source(error))
    }
}
