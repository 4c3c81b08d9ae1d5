//! Position delete files: which rows of which data files are gone.
//!
//! One file a partition and commit, sorted by file and position: a delete file is in the partition of the data files that it
//! is about. When that is one only, it says so, which lets readers pass over it for all others.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema as ArrowSchema, SchemaRef};
use futures_util::TryStreamExt;
use iceberg::spec::{DataContentType, NestedField, PrimitiveType, Schema, Type};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;
use parquet::basic::{LogicalType, Repetition, Type as Physical};
use parquet::schema::types::{SchemaDescriptor, Type as ParquetType};
use roaring::RoaringTreemap;
use uuid::Uuid;

use crate::bounds::describe_columns;
use crate::data_file::{ParquetOutput, WrittenFile, data_file, properties};
use crate::deletes::DeletedRows;
use crate::error::{Error, Result};
use crate::partition::Partition;
use crate::row_reader::{Projection, open};
use crate::table::LakeTable;
use crate::warehouse::Warehouse;

/// The columns' names and ids that the specification reserves.
const FILE_PATH: (&str, i32) = ("file_path", 2_147_483_546);
const POS: (&str, i32) = ("pos", 2_147_483_545);
/// Rows handed to the encoder at once.
const BATCH_ROWS: usize = 64 * 1024;

/// Writes the deleted positions of a table's data files, by path, as one file for each partition.
pub(crate) async fn write_position_deletes(
    warehouse: &Warehouse,
    table: &LakeTable,
    epoch: i64,
    attempt: Uuid,
    deleted: &[(&String, &DeletedRows)],
) -> Result<Vec<WrittenFile>> {
    // In the order in which the files' names come: equal arguments give equal names.
    let mut partitions: Vec<(&Partition, Vec<(&str, &RoaringTreemap)>)> = Vec::new();
    let mut places: HashMap<&Partition, usize> = HashMap::new();
    for (path, DeletedRows { partition, positions }) in deleted {
        let place = *places.entry(partition).or_insert_with(|| {
            partitions.push((partition, Vec::new()));
            partitions.len() - 1
        });
        partitions[place].1.push((path, positions));
    }
    let mut written = Vec::with_capacity(partitions.len());
    for (number, (partition, files)) in partitions.into_iter().enumerate() {
        let path = format!("{}/data/{epoch}-{attempt}-{number:05}-deletes.parquet", table.location());
        written.push(write(warehouse, path, partition, &files).await?);
    }
    Ok(written)
}

async fn write(
    warehouse: &Warehouse,
    path: String,
    partition: &Partition,
    files: &[(&str, &RoaringTreemap)],
) -> Result<WrittenFile> {
    // Not cut short: readers compare the bounds of `file_path` with a data file's whole name.
    let properties = properties().set_statistics_truncate_length(None).build();
    let mut output =
        ParquetOutput::create(warehouse, &path, arrow_schema(), parquet_schema(&path)?, properties).await?;
    let mut rows = 0;
    let mut positions = files.iter().flat_map(|(file, positions)| positions.iter().map(|pos| (*file, pos)));
    loop {
        let (names, numbers): (Vec<&str>, Vec<u64>) = positions.by_ref().take(BATCH_ROWS).unzip();
        if names.is_empty() {
            break;
        }
        let numbers = numbers.into_iter().map(i64::try_from).collect::<Result<Vec<_>, _>>();
        let numbers = numbers.map_err(|error| Error::invalid("a position is out of range").with_source(error))?;
        rows += numbers.len() as u64;
        let columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from(names)), Arc::new(Int64Array::from(numbers))];
        let batch = RecordBatch::try_new(arrow_schema(), columns)
            .map_err(|error| Error::format(format!("write {path}")).with_source(error))?;
        output.write(&batch).await?;
    }
    let (footer, bytes) = output.close().await?;
    let mut builder = data_file(&path, DataContentType::PositionDeletes, partition, rows, bytes);
    describe_columns(&mut builder, &footer, &iceberg_schema(&path)?);
    if let [(only, _)] = files {
        builder.referenced_data_file(Some((*only).to_owned()));
    }
    let entry = builder.build().map_err(|error| Error::format(format!("describe {path}")).with_source(error))?;
    Ok(WrittenFile::new(entry, partition.clone()))
}

/// Adds what a position delete file of any writer deletes to `deleted`.
pub(crate) async fn read_position_deletes(
    warehouse: &Warehouse,
    path: &str,
    deleted: &mut HashMap<String, RoaringTreemap>,
) -> Result<()> {
    let columns = vec![Projection::required(FILE_PATH.1, DataType::Utf8), Projection::required(POS.1, DataType::Int64)];
    let mut stream = open(warehouse, path, arrow_schema(), columns, None).await?;
    while let Some(batch) = stream.try_next().await? {
        let (names, numbers) = (batch.column(0).as_string::<i32>(), batch.column(1).as_primitive::<Int64Type>());
        let mut run: Option<(&str, &mut RoaringTreemap)> = None;
        for (name, number) in names.iter().zip(numbers.iter()) {
            let (Some(name), Some(position)) = (name, number.and_then(|number| u64::try_from(number).ok())) else {
                return Err(Error::format(format!("{path} has a position that is none")));
            };
            match &mut run {
                Some((current, positions)) if *current == name => _ = positions.insert(position),
                _ => {
                    let positions = deleted.entry(name.to_owned()).or_default();
                    positions.insert(position);
                    run = Some((name, positions));
                }
            }
        }
    }
    Ok(())
}

fn arrow_schema() -> SchemaRef {
    let field = |(name, id): (&str, i32), ty| {
        let metadata = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())]);
        Field::new(name, ty, false).with_metadata(metadata)
    };
    Arc::new(ArrowSchema::new(vec![field(FILE_PATH, DataType::Utf8), field(POS, DataType::Int64)]))
}

fn iceberg_schema(path: &str) -> Result<Schema> {
    let field = |(name, id), ty| Arc::new(NestedField::required(id, name, Type::Primitive(ty)));
    Schema::builder()
        .with_fields([field(FILE_PATH, PrimitiveType::String), field(POS, PrimitiveType::Long)])
        .build()
        .map_err(|error| Error::iceberg(format!("describe {path}"), error))
}

fn parquet_schema(path: &str) -> Result<SchemaDescriptor> {
    let build = || {
        let file_path = ParquetType::primitive_type_builder(FILE_PATH.0, Physical::BYTE_ARRAY)
            .with_repetition(Repetition::REQUIRED)
            .with_logical_type(Some(LogicalType::String))
            .with_id(Some(FILE_PATH.1))
            .build()?;
        let pos = ParquetType::primitive_type_builder(POS.0, Physical::INT64)
            .with_repetition(Repetition::REQUIRED)
            .with_id(Some(POS.1))
            .build()?;
        ParquetType::group_type_builder("table").with_fields(vec![Arc::new(file_path), Arc::new(pos)]).build()
    };
    let root = build().map_err(|error| Error::format(format!("start {path}")).with_source(error))?;
    Ok(SchemaDescriptor::new(Arc::new(root)))
}
