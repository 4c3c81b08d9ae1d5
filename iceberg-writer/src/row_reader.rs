//! Reading rows back from data files: all of some columns, or some rows by position.
//!
//! Columns are found by field id. A column that a file has not got is NULL, as Iceberg has it. The types are those of the
//! table or an error: nothing is cast, but a decimal to one of more digits. Companions come behind the columns asked for.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Decimal128Type;
use arrow_array::{ArrayRef, RecordBatch, new_null_array};
use arrow_schema::{DataType, SchemaRef};
use arrow_select::concat::concat_batches;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use iceberg::arrow::ArrowFileReader;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection};
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::errors::ParquetError;
use parquet::file::metadata::PageIndexPolicy;

use crate::error::{Error, Result};
use crate::schema::arrow_schema_of;
use crate::table::LakeTable;
use crate::warehouse::Warehouse;

/// Rows of a batch.
const BATCH_ROWS: usize = 16 * 1024;

/// Record batches in file order.
pub type RowStream = BoxStream<'static, Result<RecordBatch>>;

/// A column to read.
pub(crate) struct Projection {
    field_id: i32,
    data_type: DataType,
    required: bool,
}

impl Projection {
    pub(crate) fn required(field_id: i32, data_type: DataType) -> Self {
        Self { field_id, data_type, required: true }
    }

    pub(crate) fn optional(field_id: i32, data_type: DataType) -> Self {
        Self { field_id, data_type, required: false }
    }
}

/// Reads some rows of a data file: `rows` are positions, ascending, and `columns` are indexes into the table's columns.
/// The batch has one row for each position, in their order.
pub async fn read_rows(
    warehouse: &Warehouse,
    table: &LakeTable,
    path: &str,
    rows: &[u64],
    columns: &[usize],
) -> Result<RecordBatch> {
    let (schema, projections) = project(table, columns)?;
    if rows.is_empty() {
        return Ok(RecordBatch::new_empty(schema));
    }
    if !rows.is_sorted_by(|a, b| a < b) {
        return Err(Error::invalid("positions to read are not ascending"));
    }
    let stream = open(warehouse, path, Arc::clone(&schema), projections, Some(rows)).await?;
    let batches: Vec<RecordBatch> = stream.try_collect().await?;
    let batch =
        concat_batches(&schema, &batches).map_err(|error| Error::format(format!("read {path}")).with_source(error))?;
    if batch.num_rows() != rows.len() {
        return Err(Error::format(format!("{path} gave {} rows instead of {}", batch.num_rows(), rows.len())));
    }
    Ok(batch)
}

/// Reads all rows of a data file, deleted ones included; `columns` are indexes into the table's columns. The n-th row of
/// the stream is position n.
pub async fn scan_columns(
    warehouse: &Warehouse,
    table: &LakeTable,
    path: &str,
    columns: &[usize],
) -> Result<RowStream> {
    let (schema, projections) = project(table, columns)?;
    open(warehouse, path, schema, projections, None).await
}

fn project(table: &LakeTable, columns: &[usize]) -> Result<(SchemaRef, Vec<Projection>)> {
    let spec = table.spec();
    if columns.is_empty() || columns.iter().any(|&index| index >= spec.columns.len()) {
        return Err(Error::invalid(format!("columns {columns:?} to read are not columns of {}", table.full_name())));
    }
    let fields = spec.fields_of(columns);
    let projections = fields.iter().map(|field| Projection {
        field_id: field.field_id,
        data_type: field.pg_type.arrow(),
        required: field.required,
    });
    Ok((arrow_schema_of(&fields), projections.collect()))
}

/// Opens a Parquet file for reading these columns, and these rows when given.
pub(crate) async fn open(
    warehouse: &Warehouse,
    path: &str,
    schema: SchemaRef,
    columns: Vec<Projection>,
    rows: Option<&[u64]>,
) -> Result<RowStream> {
    let fail = |error| Error::iceberg(format!("open {path}"), error);
    let input = warehouse.file_io().new_input(path).map_err(fail)?;
    let metadata = input.metadata().await.map_err(fail)?;
    let mut reader = ArrowFileReader::new(metadata, input.reader().await.map_err(fail)?);
    let owned = path.to_owned();
    let damaged = move |error| unreadable(&owned, error);
    // The types come from Parquet's own schema: what a writer thought they were in Arrow does not matter.
    let policy = if rows.is_some() { PageIndexPolicy::Optional } else { PageIndexPolicy::Skip };
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true).with_page_index_policy(policy);
    let footer = ArrowReaderMetadata::load_async(&mut reader, options).await.map_err(&damaged)?;
    let total = u64::try_from(footer.metadata().file_metadata().num_rows()).unwrap_or(0);

    let roots = footer.parquet_schema().root_schema().get_fields();
    let by_id: HashMap<i32, usize> = roots
        .iter()
        .enumerate()
        .filter(|(_, field)| field.get_basic_info().has_id())
        .map(|(index, field)| (field.get_basic_info().id(), index))
        .collect();
    let mut wanted = Vec::with_capacity(columns.len());
    for column in &columns {
        let root = by_id.get(&column.field_id).copied();
        if root.is_none() && column.required {
            return Err(Error::format(format!("{path} has no column with field id {}", column.field_id)));
        }
        wanted.push(root);
    }
    let mut read: Vec<usize> = wanted.iter().flatten().copied().collect();
    read.sort_unstable();
    read.dedup();

    let mask = ProjectionMask::roots(footer.parquet_schema(), read.iter().copied());
    let mut builder = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, footer)
        .with_projection(mask)
        .with_batch_size(BATCH_ROWS);
    if let Some(rows) = rows {
        if rows.last().is_some_and(|&last| last >= total) {
            return Err(Error::format(format!(
                "{path} has {total} rows and none at position {}",
                rows[rows.len() - 1]
            )));
        }
        builder = builder.with_row_selection(selection(rows, total)?);
    }
    let stream = builder.build().map_err(&damaged)?;
    let path = path.to_owned();
    Ok(stream
        .map(move |batch| {
            let batch = batch.map_err(&damaged)?;
            let take = |(root, column): (&Option<usize>, &Projection)| -> Result<ArrayRef> {
                let Some(root) = root else { return Ok(new_null_array(&column.data_type, batch.num_rows())) };
                let index = read.binary_search(root).expect("all wanted columns are read");
                let array = batch.column(index);
                if *array.data_type() == column.data_type {
                    return Ok(Arc::clone(array));
                }
                if let Some(wider) = widened(array, &column.data_type) {
                    return Ok(wider);
                }
                let (found, expected) = (array.data_type(), &column.data_type);
                Err(Error::format(format!("field {} of {path} is {found} instead of {expected}", column.field_id)))
            };
            let arrays = wanted.iter().zip(&columns).map(take).collect::<Result<Vec<_>>>()?;
            let rebuilt = RecordBatch::try_new(Arc::clone(&schema), arrays);
            rebuilt.map_err(|error| Error::format(format!("read {path}")).with_source(error))
        })
        .boxed())
}

/// What a file could not be read for: what the storage says, or its content.
fn unreadable(path: &str, error: ParquetError) -> Error {
    let context = format!("read {path}");
    match error {
        ParquetError::External(cause) => match cause.downcast::<iceberg::Error>() {
            Ok(cause) => Error::iceberg(context, *cause),
            Err(cause) => Error::format(context).with_source(cause),
        },
        error => Error::format(context).with_source(error),
    }
}

/// A file's decimals as those of a column that has been given more digits since.
fn widened(array: &ArrayRef, wanted: &DataType) -> Option<ArrayRef> {
    let DataType::Decimal128(precision, scale) = *wanted else { return None };
    let found = array.as_primitive_opt::<Decimal128Type>()?;
    if found.scale() != scale || found.precision() > precision {
        return None;
    }
    Some(Arc::new(found.clone().with_precision_and_scale(precision, scale).ok()?))
}

/// The selection of some ascending positions.
fn selection(rows: &[u64], total: u64) -> Result<RowSelection> {
    let position =
        |row: u64| usize::try_from(row).map_err(|error| Error::invalid("a position is too large").with_source(error));
    let runs = rows.chunk_by(|a, b| a + 1 == *b).map(|run| Ok(position(run[0])?..position(run[run.len() - 1])? + 1));
    let runs = runs.collect::<Result<Vec<_>>>()?;
    Ok(RowSelection::from_consecutive_ranges(runs.into_iter(), position(total)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn selections_select_exactly_the_positions(rows in prop::collection::btree_set(0_u64..300, 1..100)) {
            let rows: Vec<u64> = rows.into_iter().collect();
            let mut position = 0;
            let mut selected = BTreeSet::new();
            for selector in selection(&rows, 300).unwrap().iter() {
                let end = position + selector.row_count as u64;
                if !selector.skip {
                    selected.extend(position..end);
                }
                position = end;
            }
            prop_assert_eq!(position, 300);
            prop_assert_eq!(selected.into_iter().collect::<Vec<_>>(), rows);
        }
    }
}
