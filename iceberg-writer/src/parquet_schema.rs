//! The Parquet schema of a data file, spelled out as Iceberg's specification has it.
//!
//! Arrow's own conversion loses one type: sixteen bytes come out without the UUID annotation (unless a feature of the
//! whole build is on), and readers then return a blob.

use std::sync::Arc;

use parquet::basic::{LogicalType, Repetition, TimeUnit, Type as Physical};
use parquet::schema::types::{SchemaDescriptor, Type};

use crate::error::{Error, Result};
use crate::pg_type::PgType;
use crate::schema::{SpecField, TableSpec};

impl TableSpec {
    /// The schema of a data file of this table that has these fields.
    pub(crate) fn parquet_schema(&self, fields: &[SpecField]) -> Result<SchemaDescriptor> {
        let fields = fields.iter().map(|SpecField { name, field_id, pg_type, required, .. }| {
            let repetition = if *required { Repetition::REQUIRED } else { Repetition::OPTIONAL };
            let (physical, logical) = pg_type.parquet();
            let mut builder = Type::primitive_type_builder(name, physical)
                .with_repetition(repetition)
                .with_logical_type(logical)
                .with_id(Some(*field_id));
            if let Some((precision, scale)) = pg_type.decimal() {
                builder = builder.with_precision(i32::from(precision)).with_scale(i32::from(scale));
            }
            if physical == Physical::FIXED_LEN_BYTE_ARRAY {
                builder = builder.with_length(pg_type.parquet_length());
            }
            builder.build().map(Arc::new)
        });
        let describe = |error| {
            Error::format(format!("make the Parquet schema of {}.{}", self.namespace, self.name)).with_source(error)
        };
        let fields = fields.collect::<Result<Vec<_>, _>>().map_err(describe)?;
        let root = Type::group_type_builder("table").with_fields(fields).build().map_err(describe)?;
        Ok(SchemaDescriptor::new(Arc::new(root)))
    }
}

impl PgType {
    fn parquet(self) -> (Physical, Option<LogicalType>) {
        let unit = TimeUnit::MICROS;
        if let Some((precision, scale)) = self.decimal() {
            let physical = match precision {
                0..=9 => Physical::INT32,
                10..=18 => Physical::INT64,
                _ => Physical::FIXED_LEN_BYTE_ARRAY,
            };
            let logical = LogicalType::Decimal { scale: i32::from(scale), precision: i32::from(precision) };
            return (physical, Some(logical));
        }
        match self {
            Self::Bool => (Physical::BOOLEAN, None),
            Self::Int2 | Self::Int4 => (Physical::INT32, None),
            Self::Int8 | Self::Oid | Self::Money => (Physical::INT64, None),
            Self::Float4 => (Physical::FLOAT, None),
            Self::Float8 => (Physical::DOUBLE, None),
            Self::Bytea => (Physical::BYTE_ARRAY, None),
            Self::Date => (Physical::INT32, Some(LogicalType::Date)),
            Self::Time => (Physical::INT64, Some(LogicalType::Time { is_adjusted_to_u_t_c: false, unit })),
            Self::Timestamp => (Physical::INT64, Some(LogicalType::Timestamp { is_adjusted_to_u_t_c: false, unit })),
            Self::Timestamptz => (Physical::INT64, Some(LogicalType::Timestamp { is_adjusted_to_u_t_c: true, unit })),
            Self::Uuid => (Physical::FIXED_LEN_BYTE_ARRAY, Some(LogicalType::Uuid)),
            _ => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        }
    }

    /// Bytes of a value of fixed length: a UUID's sixteen, or the fewest that hold a decimal of this precision.
    fn parquet_length(self) -> i32 {
        let Some((precision, _)) = self.decimal() else { return 16 };
        let largest = 10_i128.pow(u32::from(precision)) - 1;
        (1..16).find(|bytes| largest < 1_i128 << (8 * bytes - 1)).unwrap_or(16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_take_the_fewest_bytes() {
        let length = |precision| PgType::Numeric { precision, scale: 0 }.parquet_length();
        assert_eq!((length(19), length(20), length(21), length(28), length(38)), (9, 9, 9, 12, 16));
    }
}
