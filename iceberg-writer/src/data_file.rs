//! Writing rows as Parquet data files.
//!
//! Encoding and compression run on a blocking thread. The file appears under its name only when it is complete and on disk
//! (see `storage`), and belongs to no table until a commit names it.

use std::sync::Arc;

use arrow_array::RecordBatch;
use bytes::Bytes;
use iceberg::io::FileWrite;
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, DataFileFormat, FormatVersion, PrimitiveType,
    deserialize_data_file_from_json, serialize_data_file_to_json,
};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::{ColumnPath, SchemaDescriptor};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bounds::{ColumnBounds, bounds, describe_columns};
use crate::error::{Error, Result};
use crate::lineage::with_lineage;
use crate::partition::Partition;
use crate::pg_type::PgType;
use crate::schema::{SpecField, TableSpec, arrow_schema_of};
use crate::table::LakeTable;
use crate::warehouse::Warehouse;

/// Rows of a row group: the unit in which readers divide a file among threads.
const ROW_GROUP_ROWS: usize = 128 * 1024;
/// A column with more distinct values than fit is written without a dictionary: a larger one costs more time to build,
/// in vain for keys and the like, than it saves space.
const DICTIONARY_BYTES: usize = 128 << 10;
/// Of so many values that a row group has not, a reader of its bloom filter looks for one all the same. Measured on half a
/// million keys like UUIDs in text: a file with filters is 5 % larger and takes 9 % longer to write; with a hundredth
/// instead, 9 % larger and 27 % longer, which is much for a row group or two that a reader of a hundred passes over besides.
const FALSE_POSITIVES: f64 = 0.05;
/// Bytes of text that a statistics value keeps.
const STATISTICS_BYTES: usize = 32;

/// A complete file that no table has yet.
#[derive(Debug, Clone)]
pub struct WrittenFile {
    /// Where it is, as manifests name it.
    pub path: String,
    /// Its rows (of a delete file: the positions in it).
    pub rows: u64,
    /// Its size; of a deletion vector, that of its part of the file.
    pub bytes: u64,
    /// The partition it is in.
    pub partition: Partition,
    pub(crate) entry: DataFile,
}

impl WrittenFile {
    pub(crate) fn new(entry: DataFile, partition: Partition) -> Self {
        let (path, rows, bytes) = (entry.file_path().to_owned(), entry.record_count(), size_of(&entry));
        Self { path, rows, bytes, partition, entry }
    }

    /// Whether its rows are in the table's order, as it is with the next commit.
    pub fn is_sorted(&self) -> bool {
        self.entry.sort_order_id().is_some_and(|order| order != 0)
    }

    /// Between which values its columns are.
    pub fn bounds(&self) -> Arc<[ColumnBounds]> {
        bounds(&self.entry)
    }

    /// As text, for a process that may have to take the file over: Iceberg's own form of a manifest's entry, and the
    /// partition spec that it is for.
    pub fn to_json(&self) -> Result<String> {
        let entry = serialize_data_file_to_json(self.entry.clone(), self.partition.fields(), FormatVersion::V2)
            .map_err(|error| Error::iceberg(format!("describe {}", self.path), error))?;
        serde_json::to_string(&Recorded { spec_id: self.partition.spec_id(), entry })
            .map_err(|error| Error::format(format!("describe {}", self.path)).with_source(error))
    }

    /// A file of this table that an earlier process wrote, from what [`Self::to_json`] gave.
    pub fn from_json(table: &LakeTable, json: &str) -> Result<Self> {
        let context = || format!("take over a file of {}", table.full_name());
        // Versions of before, which knew no partitions, have written the entry alone.
        let Recorded { spec_id, entry } =
            serde_json::from_str(json).unwrap_or_else(|_| Recorded { spec_id: 0, entry: json.to_owned() });
        let fields = table.partition_fields(&*table.partition_spec(spec_id)?)?;
        // The columns that it has after the next commit: the file may have been written for them.
        let schema = table.next_schema()?;
        let entry = deserialize_data_file_from_json(&entry, spec_id, &fields, &schema)
            .map_err(|error| Error::iceberg(context(), error))?;
        let partition = Partition::new(spec_id, fields, entry.partition().clone());
        Ok(Self::new(entry, partition))
    }
}

/// A file as text. The entry is text in it, for the library reads a partition's values in the order in which they come.
#[derive(Serialize, Deserialize)]
struct Recorded {
    spec_id: i32,
    entry: String,
}

/// Writes one data file.
pub struct DataFileWriter {
    path: String,
    table: LakeTable,
    fields: Vec<SpecField>,
    /// `None`: the only one that there is.
    partition: Option<Partition>,
    is_sorted: bool,
    warehouse: Warehouse,
    parquet: Option<ParquetOutput>,
    rows: u64,
}

impl DataFileWriter {
    /// A data file for a table. `epoch`, `attempt` and `ordinal` make its name unique. The file itself is made with the
    /// first row.
    pub fn create(warehouse: &Warehouse, table: &LakeTable, epoch: i64, attempt: Uuid, ordinal: u32) -> Self {
        Self {
            path: format!("{}/data/{epoch}-{attempt}-{ordinal:05}.parquet", table.location()),
            table: table.clone(),
            fields: table.spec().fields(),
            partition: None,
            is_sorted: false,
            warehouse: warehouse.clone(),
            parquet: None,
            rows: 0,
        }
    }

    /// The same for rows that were in other files before: behind the columns they have what [`scan_with_lineage`] gives.
    ///
    /// [`scan_with_lineage`]: crate::scan_with_lineage
    #[must_use]
    pub fn with_lineage(mut self) -> Self {
        self.fields = with_lineage(self.table.spec());
        self
    }

    /// Its rows are of this partition. A file of a table that has partitions is in one.
    #[must_use]
    pub fn in_partition(mut self, partition: &Partition) -> Self {
        self.partition = Some(partition.clone());
        self
    }

    /// Its rows come in the table's order, if that has one.
    #[must_use]
    pub fn in_order(mut self, is_sorted: bool) -> Self {
        self.is_sorted = is_sorted;
        self
    }

    /// Appends rows. The columns are those of [`TableSpec::arrow_schema`], in its order.
    pub async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let parquet = match &mut self.parquet {
            Some(parquet) => parquet,
            None => {
                let (spec, path) = (self.table.spec(), &self.path);
                let (schema, properties) = (arrow_schema_of(&self.fields), data_properties(spec));
                let parquet_schema = spec.parquet_schema(&self.fields)?;
                let output = ParquetOutput::create(&self.warehouse, path, schema, parquet_schema, properties);
                self.parquet.insert(output.await?)
            }
        };
        parquet.write(batch).await?;
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    /// Where the file will be, as manifests will name it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Rows written so far.
    pub fn rows_written(&self) -> u64 {
        self.rows
    }

    /// About how large the file would be if it were closed now.
    pub fn bytes_written(&self) -> usize {
        self.parquet.as_ref().map_or(0, ParquetOutput::size)
    }

    /// Completes the file. `None`, and no file, when no row was written.
    pub async fn close(self) -> Result<Option<WrittenFile>> {
        let Some(parquet) = self.parquet else { return Ok(None) };
        let (footer, bytes) = parquet.close().await?;
        let partition = match self.partition {
            Some(partition) => partition,
            None => self.table.only_partition()?,
        };
        let mut builder = data_file(&self.path, DataContentType::Data, &partition, self.rows, bytes);
        describe_columns(&mut builder, &footer, &self.table.spec().iceberg_schema()?);
        if self.is_sorted {
            let order = self.table.next_sort_order()?.order_id;
            builder.sort_order_id(i32::try_from(order).unwrap_or_default());
        }
        let entry =
            builder.build().map_err(|error| Error::format(format!("describe {}", self.path)).with_source(error))?;
        Ok(Some(WrittenFile::new(entry, partition)))
    }
}

/// What an entry takes of storage: a deletion vector is a part of a file.
pub(crate) fn size_of(entry: &DataFile) -> u64 {
    let part = entry.content_size_in_bytes().and_then(|size| u64::try_from(size).ok());
    part.unwrap_or(entry.file_size_in_bytes())
}

/// What all kinds of file entries have in common.
pub(crate) fn data_file(
    path: &str,
    content: DataContentType,
    partition: &Partition,
    rows: u64,
    bytes: u64,
) -> DataFileBuilder {
    let mut builder = DataFileBuilder::default();
    builder
        .content(content)
        .file_path(path.to_owned())
        .file_format(DataFileFormat::Parquet)
        .partition_spec_id(partition.spec_id())
        .partition(partition.values().clone())
        .record_count(rows)
        .file_size_in_bytes(bytes);
    builder
}

/// zstd level 1: measured as nearly the size of level 3 at a fifth more speed.
///
/// Values are plain or in a dictionary. The delta encodings would be smaller and quicker, but the vectorized reader of
/// Iceberg's Spark runtime refused them until 2026 (apache/iceberg, issue 7162).
pub(crate) fn properties() -> WriterPropertiesBuilder {
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).expect("1 is a level of zstd")))
        .set_created_by(concat!("lakemirror ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_dictionary_page_size_limit(DICTIONARY_BYTES)
}

fn data_properties(spec: &TableSpec) -> WriterProperties {
    let mut builder = properties().set_statistics_truncate_length(Some(STATISTICS_BYTES));
    if let [key] = spec.key[..] {
        // No value comes twice: a dictionary would be given up each time, after it has cost space and time.
        builder = builder.set_column_dictionary_enabled(ColumnPath::from(spec.columns[key].name.as_str()), false);
    }
    for column in spec.key.iter().map(|key| &spec.columns[*key]).filter(|column| is_scattered(&column.pg_type)) {
        // Sized for a full row group, and folded to what the rows need: a file of ten rows has one of 32 bytes.
        builder = builder.set_column_bloom_filter_fpp(ColumnPath::from(column.name.as_str()), FALSE_POSITIVES);
    }
    for column in &spec.columns {
        if matches!(column.pg_type, PgType::Float4 | PgType::Float8) {
            // See `bounds`: readers would skip rows that hold NaN.
            let path = ColumnPath::from(column.name.as_str());
            builder = builder.set_column_statistics_enabled(path, EnabledStatistics::None);
        }
    }
    builder.build()
}

/// Whether values of a key are of no order in time, as a rule: the bounds of a file then say nothing about which are in it,
/// and a bloom filter does. Numbers and times mostly grow, so that bounds tell, and a filter would cost more than them: it
/// is an eighth of a bigint's size.
fn is_scattered(key: &PgType) -> bool {
    matches!(key.iceberg(), PrimitiveType::String | PrimitiveType::Uuid | PrimitiveType::Binary)
}

type Encoder = ArrowWriter<Vec<u8>>;

/// A Parquet file being written.
pub(crate) struct ParquetOutput {
    path: String,
    schema: arrow_schema::SchemaRef,
    /// `None` only while a blocking thread has it, or after a failure.
    encoder: Option<Box<Encoder>>,
    output: Box<dyn FileWrite>,
}

impl ParquetOutput {
    pub(crate) async fn create(
        warehouse: &Warehouse,
        path: &str,
        schema: arrow_schema::SchemaRef,
        parquet_schema: SchemaDescriptor,
        properties: WriterProperties,
    ) -> Result<Self> {
        let options = ArrowWriterOptions::new()
            .with_properties(properties)
            .with_parquet_schema(parquet_schema)
            .with_skip_arrow_metadata(true);
        let encoder = ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(&schema), options)
            .map_err(|error| Error::format(format!("start {path}")).with_source(error))?;
        let open = async { warehouse.file_io().new_output(path)?.writer().await };
        let output = open.await.map_err(|error| Error::iceberg(format!("start {path}"), error))?;
        Ok(Self { path: path.to_owned(), schema, encoder: Some(Box::new(encoder)), output })
    }

    pub(crate) async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let types = |schema: &arrow_schema::Schema| {
            schema.fields().iter().map(|field| (field.name().clone(), field.data_type().clone())).collect::<Vec<_>>()
        };
        if types(&batch.schema()) != types(&self.schema) {
            let (given, wanted) = (types(&batch.schema()), types(&self.schema));
            return Err(Error::invalid(format!("rows for {} have columns {given:?} instead of {wanted:?}", self.path)));
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), batch.columns().to_vec()).map_err(|error| {
            Error::invalid(format!("rows for {} don't fit the table", self.path)).with_source(error)
        })?;
        self.encode(move |encoder| encoder.write(&batch)).await
    }

    fn size(&self) -> usize {
        self.encoder.as_ref().map_or(0, |encoder| encoder.bytes_written() + encoder.in_progress_size())
    }

    pub(crate) async fn close(mut self) -> Result<(ParquetMetaData, u64)> {
        let footer = self.encode(Encoder::finish).await?;
        let bytes = self.encoder.as_ref().map_or(0, |encoder| encoder.bytes_written()) as u64;
        self.output.close().await.map_err(|error| Error::iceberg(format!("complete {}", self.path), error))?;
        Ok((footer, bytes))
    }

    /// Encodes on a blocking thread, then passes on the bytes that became final.
    async fn encode<T: Send + 'static>(
        &mut self,
        step: impl FnOnce(&mut Encoder) -> Result<T, ParquetError> + Send + 'static,
    ) -> Result<T> {
        let context = || format!("write {}", self.path);
        let mut encoder = self.encoder.take().ok_or_else(|| Error::invalid(format!("{} failed before", self.path)))?;
        let run = move || {
            let result = step(&mut encoder);
            let bytes = std::mem::take(encoder.inner_mut());
            (encoder, bytes, result)
        };
        let (encoder, bytes, result) =
            tokio::task::spawn_blocking(run).await.map_err(|error| Error::format(context()).with_source(error))?;
        let value = result.map_err(|error| Error::format(context()).with_source(error))?;
        if !bytes.is_empty() {
            self.output.write(Bytes::from(bytes)).await.map_err(|error| Error::iceberg(context(), error))?;
        }
        self.encoder = Some(encoder);
        Ok(value)
    }
}
