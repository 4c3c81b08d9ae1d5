//! A mirrored table's columns, and the same columns as Iceberg and as Arrow see them.
//!
//! A field id is the column's `attnum` in the source: stable across renames and never used again after a drop.
//!
//! A column whose Iceberg type lacks some values of its Postgres type (`infinity`, `24:00`, `NaN`) gets a *companion* with
//! the first such value: a text column, behind all others, that has the value as Postgres prints it where the column
//! itself is NULL. Where the companion is NULL the column is right.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema as ArrowSchema, SchemaRef, TimeUnit};
use iceberg::spec::{NestedField, Schema, Type};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::pg_type::PgType;

/// One column of a mirrored table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Whether it has a companion.
    pub companion: bool,
}

/// A companion's field id is its column's plus this: Postgres numbers columns up to 1600. Ids from twice as much on are of
/// columns that the source has not, and have no companions.
const COMPANION_IDS: i32 = 10_000;
/// A companion's name is its column's and this, and as many `_` as it takes to be no other column's.
const COMPANION_SUFFIX: &str = "__text";

impl ColumnSpec {
    /// The field id of its companion, whether or not it has one.
    pub fn companion_id(&self) -> i32 {
        companion_id(self.field_id)
    }
}

/// The field id of a column's companion.
pub fn companion_id(field_id: i32) -> i32 {
    field_id + COMPANION_IDS
}

/// A mirrored table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

    /// The table with companions for these columns too, by field id.
    #[must_use]
    pub fn with_companions(mut self, of: impl IntoIterator<Item = i32>) -> Self {
        for field_id in of {
            if let Some(column) = self.columns.iter_mut().find(|column| column.field_id == field_id) {
                column.companion = true;
            }
        }
        self
    }

    /// The field ids of the columns that have a companion.
    pub fn companions(&self) -> impl Iterator<Item = i32> {
        self.columns.iter().filter(|column| column.companion).map(|column| column.field_id)
    }

    /// Whether two tables are the same, but perhaps for companions.
    pub fn is_same_but_for_companions(&self, other: &Self) -> bool {
        let all = |spec: &Self| spec.clone().with_companions(spec.columns.iter().map(|column| column.field_id));
        self == other || all(self) == all(other)
    }

    /// The name of a column's companion.
    fn companion_name(&self, column: &ColumnSpec) -> String {
        let mut name = format!("{}{COMPANION_SUFFIX}", column.name);
        while self.columns.iter().any(|other| other.name == name) {
            name.push('_');
        }
        name
    }

    /// Whether a column has a value in every row.
    fn is_required(&self, index: usize) -> bool {
        self.is_key(index) && !self.columns[index].companion
    }

    /// The fields of some of the columns in the order asked for, and those of their companions behind them.
    pub(crate) fn fields_of(&self, columns: &[usize]) -> Vec<SpecField> {
        let own = columns.iter().map(|&index| {
            let column = &self.columns[index];
            let (name, field_id) = (column.name.clone(), column.field_id);
            SpecField {
                name,
                field_id,
                pg_type: column.pg_type,
                required: self.is_required(index),
                is_companion: false,
            }
        });
        let with_companion = columns.iter().map(|&index| &self.columns[index]).filter(|column| column.companion);
        let companions = with_companion.map(|column| SpecField {
            name: self.companion_name(column),
            field_id: column.companion_id(),
            pg_type: PgType::TextForm,
            required: false,
            is_companion: true,
        });
        own.chain(companions).collect()
    }

    /// All fields of the table, as it is in Iceberg.
    pub(crate) fn fields(&self) -> Vec<SpecField> {
        self.fields_of(&(0..self.columns.len()).collect::<Vec<_>>())
    }

    /// The Arrow schema of this table's record batches: what [`crate::DataFileWriter`] takes and the readers give.
    pub fn arrow_schema(&self) -> SchemaRef {
        arrow_schema_of(&self.fields())
    }

    /// The Iceberg schema: key columns are required, and identifier fields where Iceberg allows all of them to be.
    pub fn iceberg_schema(&self) -> Result<Schema> {
        self.check()?;
        let fields = self.fields().into_iter().map(|SpecField { name, field_id, pg_type, required, is_companion }| {
            let field_type = Type::Primitive(pg_type.iceberg());
            let companion = "values that the column's type has not, as text".to_owned();
            let doc = if is_companion { companion } else { pg_type.name() };
            Arc::new(NestedField::new(field_id, name, field_type, required).with_doc(doc))
        });
        let barred = |index: &usize| {
            !self.is_required(*index) || matches!(self.columns[*index].pg_type, PgType::Float4 | PgType::Float8)
        };
        let identifiers: Vec<i32> = if self.key.iter().any(barred) {
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
        let is_wrong = |id: i32| id < 1 || (COMPANION_IDS..2 * COMPANION_IDS).contains(&id);
        if let Some(column) = self.columns.iter().find(|column| is_wrong(column.field_id)) {
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

/// A column or a companion, as files have it.
pub(crate) struct SpecField {
    pub(crate) name: String,
    pub(crate) field_id: i32,
    pub(crate) pg_type: PgType,
    pub(crate) required: bool,
    pub(crate) is_companion: bool,
}

/// The Arrow schema of some fields.
pub(crate) fn arrow_schema_of(fields: &[SpecField]) -> SchemaRef {
    let field = |SpecField { name, field_id, pg_type, required, .. }: &SpecField| {
        let mut metadata = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), field_id.to_string())]);
        if *pg_type == PgType::Uuid {
            metadata.insert(ARROW_EXTENSION_NAME.to_owned(), ARROW_UUID.to_owned());
        }
        Field::new(name, pg_type.arrow(), !required).with_metadata(metadata)
    };
    Arc::new(ArrowSchema::new(fields.iter().map(field).collect::<Vec<_>>()))
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
