//! The number that each row of a table of format version 3 has for life, and the commit that changed it last.
//!
//! Neither is in the file that a row comes with: a row's number is its file's first one and its position, and the commit is
//! the file's. Both stay when a row moves to another file, which has them in two columns of its own then.
//!
//! A file's first number is in no manifest when the file comes: the list of manifests says of each from which number on its
//! files count, in their order. Where an entry is written again, in another manifest, it has to have it.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use arrow_schema::DataType;
use futures_util::StreamExt;
use iceberg::spec::{
    DataFile, DataFileBuilder, ManifestContentType, ManifestEntry, ManifestEntryRef, ManifestFile, ManifestStatus,
};

use crate::error::{Error, Result};
use crate::format::Format;
use crate::live_files::load_live_entries;
use crate::pg_type::PgType;
use crate::row_reader::{Projection, RowStream, open};
use crate::schema::{SpecField, TableSpec, arrow_schema_of};
use crate::table::LakeTable;
use crate::warehouse::Warehouse;

/// The columns that the specification reserves for it.
const ROW_ID: (&str, i32) = ("_row_id", 2_147_483_540);
const LAST_UPDATED: (&str, i32) = ("_last_updated_sequence_number", 2_147_483_539);

/// Where the rows of a table's data files come from.
#[derive(Debug, Clone)]
pub struct Lineage {
    /// Of each file the first row's number, and the commit's.
    files: HashMap<String, (i64, i64)>,
}

impl LakeTable {
    /// Where the rows of the table's data files come from, for who moves them. `None`: nobody keeps that in a table of this
    /// format.
    pub async fn lineage(&self, warehouse: &Warehouse) -> Result<Option<Lineage>> {
        if self.format() < Format::V3 {
            return Ok(None);
        }
        let of_data = |manifest: &&ManifestFile| manifest.content == ManifestContentType::Data;
        let manifests: Vec<ManifestFile> = self.manifests().iter().filter(of_data).cloned().collect();
        let mut files = HashMap::new();
        for entry in load_live_entries(warehouse, &manifests).await? {
            let path = entry.file_path().to_owned();
            let numbers = entry.data_file().first_row_id().zip(entry.sequence_number());
            let numbers = numbers.ok_or_else(|| Error::format(format!("the rows of {path} have no numbers")))?;
            files.insert(path, numbers);
        }
        Ok(Some(Lineage { files }))
    }
}

/// The fields of a data file whose rows were in other files before.
pub(crate) fn with_lineage(spec: &TableSpec) -> Vec<SpecField> {
    let mut fields = spec.fields();
    for (name, field_id) in [ROW_ID, LAST_UPDATED] {
        // Readers know it by its id. A column of the source may have the name.
        let mut name = name.to_owned();
        while fields.iter().any(|field| field.name == name) {
            name.push('_');
        }
        fields.push(SpecField { name, field_id, pg_type: PgType::Int8, required: false, is_companion: false });
    }
    fields
}

/// Reads all rows of a data file, deleted ones included, with all columns of the table, and behind them each row's number
/// and the commit that changed it last.
pub async fn scan_with_lineage(
    warehouse: &Warehouse,
    table: &LakeTable,
    path: &str,
    lineage: &Lineage,
) -> Result<RowStream> {
    let Some(&(first, commit)) = lineage.files.get(path) else {
        return Err(Error::invalid(format!("{path} is no file of {}", table.full_name())));
    };
    let fields = with_lineage(table.spec());
    let columns = fields.iter().map(|field| match field.field_id {
        id if id == ROW_ID.1 || id == LAST_UPDATED.1 => Projection::optional(id, DataType::Int64),
        id if field.required => Projection::required(id, field.pg_type.arrow()),
        id => Projection::optional(id, field.pg_type.arrow()),
    });
    let stream = open(warehouse, path, arrow_schema_of(&fields), columns.collect(), None).await?;
    let (mut next, path) = (first, path.to_owned());
    Ok(stream
        .map(move |batch| {
            let batch = batch?;
            let start = next;
            next += i64::try_from(batch.num_rows()).unwrap_or(i64::MAX);
            inherited(&batch, start, commit)
                .map_err(|error| Error::format(format!("number the rows of {path}")).with_source(error))
        })
        .boxed())
}

/// Fills in what rows that have never moved have of their file.
fn inherited(batch: &RecordBatch, first: i64, commit: i64) -> Result<RecordBatch, arrow_schema::ArrowError> {
    let mut columns = batch.columns().to_vec();
    let filled = |column: &ArrayRef, inherit: &dyn Fn(i64) -> i64| -> ArrayRef {
        let values = column.as_primitive::<Int64Type>().iter().zip(0..);
        Arc::new(values.map(|(value, row)| Some(value.unwrap_or_else(|| inherit(row)))).collect::<Int64Array>())
    };
    if let [.., row_id, last_updated] = columns.as_mut_slice() {
        *row_id = filled(row_id, &|row| first + row);
        *last_updated = filled(last_updated, &|_| commit);
    }
    RecordBatch::try_new(batch.schema(), columns)
}

/// The entries of a manifest, its data files with their first rows' numbers, as the specification has them counted.
pub(crate) fn number_rows(manifest: &ManifestFile, entries: Vec<ManifestEntryRef>) -> Result<Vec<ManifestEntryRef>> {
    let Some(mut next) = manifest.first_row_id.filter(|_| manifest.content == ManifestContentType::Data) else {
        return Ok(entries);
    };
    let number = |entry: ManifestEntryRef| {
        if entry.status() == ManifestStatus::Deleted || entry.data_file().first_row_id().is_some() {
            return Ok(entry);
        }
        let first = next;
        next += entry.record_count();
        let file = entry.data_file();
        let file = numbered(file, manifest.partition_spec_id, first.cast_signed())
            .map_err(|error| Error::format(format!("number the rows of {}", entry.file_path())).with_source(error))?;
        Ok(Arc::new(ManifestEntry { data_file: file, ..ManifestEntry::clone(&entry) }))
    };
    entries.into_iter().map(number).collect()
}

/// A data file's entry with its first row's number, which the library has no way to set.
fn numbered(
    file: &DataFile,
    partition_spec_id: i32,
    first_row_id: i64,
) -> Result<DataFile, iceberg::spec::DataFileBuilderError> {
    let mut builder = DataFileBuilder::default();
    if let Some(id) = file.sort_order_id() {
        builder.sort_order_id(id);
    }
    builder
        .content(file.content_type())
        .file_path(file.file_path().to_owned())
        .file_format(file.file_format())
        .partition(file.partition().clone())
        .partition_spec_id(partition_spec_id)
        .record_count(file.record_count())
        .file_size_in_bytes(file.file_size_in_bytes())
        .column_sizes(file.column_sizes().clone())
        .value_counts(file.value_counts().clone())
        .null_value_counts(file.null_value_counts().clone())
        .nan_value_counts(file.nan_value_counts().clone())
        .lower_bounds(file.lower_bounds().clone())
        .upper_bounds(file.upper_bounds().clone())
        .key_metadata(file.key_metadata().map(<[u8]>::to_vec))
        .split_offsets(file.split_offsets().map(<[i64]>::to_vec))
        .equality_ids(file.equality_ids())
        .referenced_data_file(file.referenced_data_file())
        .content_offset(file.content_offset())
        .content_size_in_bytes(file.content_size_in_bytes())
        .first_row_id(Some(first_row_id))
        .build()
}
