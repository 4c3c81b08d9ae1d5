//! Which Postgres types the lake can hold, and as what.
//!
//! A type is here only when every value that the writer accepts survives unchanged. Where Iceberg lacks some values of a
//! type (infinite dates, `24:00` as a time, `NaN` as a numeric), the caller refuses those values; nothing is rounded.

use iceberg::spec::PrimitiveType;

/// A column type of the source that the lake can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // named as in Postgres
pub enum PgType {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Numeric { precision: u8, scale: u8 },
    Text,
    Varchar,
    Bytea,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Uuid,
    Json,
    Jsonb,
}

/// What Postgres adds to a `numeric`'s type modifier.
const VARHDRSZ: i32 = 4;
/// The most digits an Iceberg decimal has.
const MAX_PRECISION: i32 = 38;

impl PgType {
    /// The type of a column by `pg_attribute.atttypid` and `atttypmod`. `None`: the lake can't hold it.
    pub fn from_oid(type_oid: u32, typmod: i32) -> Option<Self> {
        Some(match type_oid {
            16 => Self::Bool,
            21 => Self::Int2,
            23 => Self::Int4,
            20 => Self::Int8,
            700 => Self::Float4,
            701 => Self::Float8,
            1700 => Self::numeric(typmod)?,
            25 => Self::Text,
            1043 => Self::Varchar,
            17 => Self::Bytea,
            1082 => Self::Date,
            1083 => Self::Time,
            1114 => Self::Timestamp,
            1184 => Self::Timestamptz,
            2950 => Self::Uuid,
            114 => Self::Json,
            3802 => Self::Jsonb,
            _ => return None,
        })
    }

    /// `numeric(p,s)`: its modifier is `(p << 16 | s as 11-bit signed) + 4`; without one the digits have no bound.
    fn numeric(typmod: i32) -> Option<Self> {
        let packed = typmod.checked_sub(VARHDRSZ).filter(|packed| *packed >= 0)?;
        let precision = (packed >> 16) & 0xFFFF;
        let scale = ((packed & 0x7FF) ^ 1024) - 1024;
        if precision > MAX_PRECISION || scale > precision {
            return None;
        }
        Some(Self::Numeric { precision: u8::try_from(precision).ok()?, scale: u8::try_from(scale).ok()? })
    }

    /// The Iceberg type that holds it.
    pub fn iceberg(&self) -> PrimitiveType {
        match *self {
            Self::Bool => PrimitiveType::Boolean,
            Self::Int2 | Self::Int4 => PrimitiveType::Int,
            Self::Int8 => PrimitiveType::Long,
            Self::Float4 => PrimitiveType::Float,
            Self::Float8 => PrimitiveType::Double,
            Self::Numeric { precision, scale } => {
                PrimitiveType::Decimal { precision: u32::from(precision), scale: u32::from(scale) }
            }
            Self::Text | Self::Varchar | Self::Json | Self::Jsonb => PrimitiveType::String,
            Self::Bytea => PrimitiveType::Binary,
            Self::Date => PrimitiveType::Date,
            Self::Time => PrimitiveType::Time,
            Self::Timestamp => PrimitiveType::Timestamp,
            Self::Timestamptz => PrimitiveType::Timestamptz,
            Self::Uuid => PrimitiveType::Uuid,
        }
    }

    /// The type's name in Postgres, with digits where it has them.
    pub fn name(&self) -> String {
        let name = match *self {
            Self::Bool => "boolean",
            Self::Int2 => "smallint",
            Self::Int4 => "integer",
            Self::Int8 => "bigint",
            Self::Float4 => "real",
            Self::Float8 => "double precision",
            Self::Numeric { precision, scale } => return format!("numeric({precision},{scale})"),
            Self::Text => "text",
            Self::Varchar => "character varying",
            Self::Bytea => "bytea",
            Self::Date => "date",
            Self::Time => "time without time zone",
            Self::Timestamp => "timestamp without time zone",
            Self::Timestamptz => "timestamp with time zone",
            Self::Uuid => "uuid",
            Self::Json => "json",
            Self::Jsonb => "jsonb",
        };
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modifier(precision: i32, scale: i32) -> i32 {
        ((precision << 16) | (scale & 0x7FF)) + VARHDRSZ
    }

    #[test]
    fn numeric_is_held_only_with_digits_that_fit() {
        let of = |precision, scale| PgType::from_oid(1700, modifier(precision, scale));
        assert_eq!(of(38, 0), Some(PgType::Numeric { precision: 38, scale: 0 }));
        assert_eq!(of(38, 38), Some(PgType::Numeric { precision: 38, scale: 38 }));
        assert_eq!(of(10, 2), Some(PgType::Numeric { precision: 10, scale: 2 }));
        assert_eq!(of(39, 0), None);
        assert_eq!(of(1000, 10), None);
        assert_eq!(of(5, -2), None, "a negative scale rounds to hundreds");
        assert_eq!(of(2, 5), None, "more digits after the point than there are");
        assert_eq!(PgType::from_oid(1700, -1), None, "numeric without digits");
    }

    #[test]
    fn unknown_types_are_refused() {
        for oid in [0, 18, 19, 26, 869, 1042, 1186, 1266, 1007, 600] {
            assert_eq!(PgType::from_oid(oid, -1), None, "{oid}");
        }
    }
}
