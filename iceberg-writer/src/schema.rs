//! A mirrored table's columns, and the same columns as Iceberg and as Arrow see them.
//!
//! A field id is the column's `attnum` in the source: stable across renames and never used again after a drop.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema as ArrowSchema, SchemaRef, TimeUnit};
use iceberg::spec::{NestedField, Schema, Type};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

use crate::error::{Error, ErrorKind, Result};
use crate::pg_type::PgType;

/// One column of a mirrored table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnSpec {
    /// The column's name in the source.
    pub name: String,
    /// `pg_attribute.attnum`.
    pub field_id: i32,
    /// The type.
    pub pg_type: PgType,
    /// `pg_attribute.atttypid`.
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`.
    pub typmod: i32,
    /// Whether the column is declared `NOT NULL`. Only key columns are `required` in Iceberg, because the source may drop
    /// the constraint of any other at any time.
    pub required: bool,
}

/// A mirrored table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// The Iceberg namespace: the source's schema.
    pub namespace: String,
    /// The table's name in the lake.
    pub name: String,
    /// Its columns, in the source's order.
    pub columns: Vec<ColumnSpec>,
    /// Indexes into `columns` of those that identify a row, in key order.
    pub key: Vec<usize>,
}

/// The name under which Arrow knows that sixteen bytes are a UUID.
const ARROW_EXTENSION_NAME: &str = "ARROW:extension:name";
const ARROW_UUID: &str = "arrow.uuid";

impl TableSpec {
    /// Whether column `index` is part of the key.
    pub fn is_key(&self, index: usize) -> bool {
        self.key.contains(&index)
    }

    /// The Arrow schema of this table's record batches: what [`crate::DataFileWriter`] takes and the readers give.
    pub fn arrow_schema(&self) -> SchemaRef {
        let all: Vec<usize> = (0..self.columns.len()).collect();
        self.arrow_schema_of(&all)
    }

    /// The Arrow schema of some of the columns, in the order asked for.
    pub(crate) fn arrow_schema_of(&self, columns: &[usize]) -> SchemaRef {
        let fields: Vec<Field> = columns.iter().map(|&index| self.arrow_field(index)).collect();
        Arc::new(ArrowSchema::new(fields))
    }

    fn arrow_field(&self, index: usize) -> Field {
        let column = &self.columns[index];
        let mut metadata = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), column.field_id.to_string())]);
        if column.pg_type == PgType::Uuid {
            metadata.insert(ARROW_EXTENSION_NAME.to_owned(), ARROW_UUID.to_owned());
        }
        Field::new(&column.name, column.pg_type.arrow(), !self.is_key(index)).with_metadata(metadata)
    }

    /// The Iceberg schema: key columns are required, and identifier fields where Iceberg allows all of them to be.
    pub fn iceberg_schema(&self) -> Result<Schema> {
        self.check()?;
        let fields = self.columns.iter().enumerate().map(|(index, column)| {
            let field_type = Type::Primitive(column.pg_type.iceberg());
            let field = NestedField::new(column.field_id, &column.name, field_type, self.is_key(index));
            Arc::new(field.with_doc(column.pg_type.name()))
        });
        let float = |index: &usize| matches!(self.columns[*index].pg_type, PgType::Float4 | PgType::Float8);
        let identifiers: Vec<i32> = if self.key.iter().any(float) {
            Vec::new()
        } else {
            self.key.iter().map(|&index| self.columns[index].field_id).collect()
        };
        Schema::builder()
            .with_fields(fields)
            .with_identifier_field_ids(identifiers)
            .build()
            .map_err(|error| Error::iceberg(format!("make the schema of {}.{}", self.namespace, self.name), error))
    }

    fn check(&self) -> Result<()> {
        let table = format!("{}.{}", self.namespace, self.name);
        if self.namespace.is_empty() || self.name.is_empty() {
            return Err(Error::invalid("a table needs a namespace and a name"));
        }
        if self.columns.is_empty() {
            return Err(Error::invalid(format!("table {table} has no columns")));
        }
        if let Some(column) = self.columns.iter().find(|column| column.field_id < 1) {
            return Err(Error::invalid(format!("column {} of {table} has field id {}", column.name, column.field_id)));
        }
        if self.key.iter().any(|&index| index >= self.columns.len()) {
            return Err(Error::invalid(format!("the key of {table} names a column that it has not got")));
        }
        Ok(())
    }

    /// Whether a table's schema in the lake has exactly these columns.
    pub(crate) fn check_schema(&self, found: &Schema) -> Result<()> {
        let expected = self.iceberg_schema()?;
        let describe = |field: &NestedField| {
            let null = if field.required { " required" } else { "" };
            format!("{} {}{null} (id {})", field.name, field.field_type, field.id)
        };
        let list = |schema: &Schema| schema.as_struct().fields().iter().map(|f| describe(f)).collect::<Vec<_>>();
        let (want, have) = (list(&expected), list(found));
        let missing: Vec<_> = want.iter().filter(|field| !have.contains(field)).cloned().collect();
        let extra: Vec<_> = have.iter().filter(|field| !want.contains(field)).cloned().collect();
        if missing.is_empty() && extra.is_empty() {
            return Ok(());
        }
        // Nothing but key columns is required.
        let bare = |fields: &[String]| fields.iter().map(|field| field.replace(" required", "")).collect::<Vec<_>>();
        let what = if bare(&missing) == bare(&extra) { "another key" } else { "other columns" };
        let context = format!(
            "the lake's table {}.{} has {what} than the source: the source has [{}], the lake has [{}]",
            self.namespace,
            self.name,
            missing.join(", "),
            extra.join(", ")
        );
        Err(Error::new(ErrorKind::SchemaMismatch, context)
            .with_table(&self.namespace, &self.name)
            .with_hint("copy the table again, into a new Iceberg table"))
    }
}

impl PgType {
    /// The Arrow type of this type's values in record batches.
    pub fn arrow(&self) -> DataType {
        if let Some((precision, scale)) = self.decimal() {
            return DataType::Decimal128(precision, scale.cast_signed());
        }
        match *self {
            Self::Bool => DataType::Boolean,
            Self::Int2 | Self::Int4 => DataType::Int32,
            Self::Int8 | Self::Oid | Self::Money => DataType::Int64,
            Self::Float4 => DataType::Float32,
            Self::Float8 => DataType::Float64,
            Self::Bytea => DataType::Binary,
            Self::Date => DataType::Date32,
            Self::Time => DataType::Time64(TimeUnit::Microsecond),
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Self::Timestamptz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Self::Uuid => DataType::FixedSizeBinary(16),
            _ => DataType::Utf8,
        }
    }
}
