//! A table whose columns change, and what its mirror wants to find again with them.
//!
//! A column is its field id: files written before a change stay as they are, and readers find in them what the newest
//! schema asks for by id. What a file lacks is NULL. The commit that brings a change's rows brings its schema, so no
//! snapshot shows rows of one under the names of another, and older snapshots keep the schema that they were made with.

use std::sync::Arc;

use iceberg::spec::{PrimitiveType, Schema, TableMetadata, Type};

use crate::error::{Error, Result};
use crate::pg_type::PgType;
use crate::schema::TableSpec;
use crate::table::LakeTable;

/// The table property in which the mirror keeps what Iceberg's schema does not say of the columns.
pub(crate) const REMARK_PROPERTY: &str = "lake.source";

impl LakeTable {
    /// The table as the next commit is to leave it: with these columns, and with this remark for
    /// [`Catalog::load_remarked`](crate::Catalog::load_remarked). Rows are read and written by these columns from now on.
    /// Nothing is written yet.
    #[must_use]
    pub fn evolved(&self, spec: TableSpec, remark: String) -> Self {
        self.with_spec(spec, Some(remark))
    }

    /// What the last commit that had a remark left with the table.
    pub fn remarked(&self) -> Option<&str> {
        self.metadata().properties().get(REMARK_PROPERTY).map(String::as_str)
    }

    /// Whether a column of this number can have this type, whatever it had: files of before are read by it.
    pub fn can_have(&self, field_id: i32, pg_type: PgType) -> bool {
        let wanted = pg_type.iceberg();
        let mut ever = self.metadata().schemas_iter().filter_map(|schema| schema.field_by_id(field_id));
        ever.all(|known| match (&*known.field_type, &wanted) {
            (
                Type::Primitive(PrimitiveType::Decimal { precision, scale }),
                PrimitiveType::Decimal { precision: wider, scale: same },
            ) => wider >= precision && scale == same,
            (Type::Primitive(known), wanted) => known == wanted,
            _ => false,
        })
    }

    /// Whether the table's columns in the catalog are those of its description.
    pub(crate) fn has_its_schema(&self) -> Result<bool> {
        Ok(same(&self.spec().iceberg_schema()?, self.metadata().current_schema()))
    }

    /// The schema that the table has after the next commit.
    pub(crate) fn next_schema(&self) -> Result<Arc<Schema>> {
        if self.has_its_schema()? {
            return Ok(Arc::clone(self.metadata().current_schema()));
        }
        Ok(Arc::clone(self.next_metadata()?.current_schema()))
    }

    /// The table's metadata with the schema that it has after the next commit.
    pub(crate) fn next_metadata(&self) -> Result<TableMetadata> {
        let metadata = self.metadata();
        let schema = self.spec().iceberg_schema()?;
        if same(&schema, metadata.current_schema()) {
            return Ok(metadata.clone());
        }
        let known = metadata.schemas_iter().find(|known| same(&schema, known)).map(|known| known.schema_id());
        let next = known
            .unwrap_or_else(|| metadata.schemas_iter().map(|known| known.schema_id()).max().map_or(0, |most| most + 1));
        let fail = |error| Error::format(format!("change the columns of {}", self.full_name())).with_source(error);
        // Spelled out, because the library's builder takes the time from the clock when nothing but the schema changes.
        let mut json = serde_json::to_value(metadata).map_err(fail)?;
        let last_column = metadata.last_column_id().max(schema.highest_field_id());
        let schema = schema
            .into_builder()
            .with_schema_id(next)
            .build()
            .map_err(|error| Error::iceberg(format!("change the columns of {}", self.full_name()), error))?;
        let added = serde_json::to_value(&schema).map_err(fail)?;
        if known.is_none()
            && let Some(schemas) = json.get_mut("schemas").and_then(|schemas| schemas.as_array_mut())
        {
            schemas.push(added);
        }
        json["current-schema-id"] = next.into();
        json["last-column-id"] = last_column.into();
        let changed: TableMetadata = serde_json::from_value(json).map_err(fail)?;
        if changed.current_schema_id() == next && same(&schema, changed.current_schema()) {
            return Ok(changed);
        }
        Err(Error::invalid(format!("the columns of {} could not be changed", self.full_name())))
    }
}

/// Whether two schemas have the same fields and identifiers, whatever their numbers.
fn same(one: &Schema, other: &Schema) -> bool {
    let identifiers = |schema: &Schema| {
        let mut ids: Vec<i32> = schema.identifier_field_ids().collect();
        ids.sort_unstable();
        ids
    };
    one.as_struct() == other.as_struct() && identifiers(one) == identifiers(other)
}
