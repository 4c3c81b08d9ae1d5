//! Postgres's types, as far as DuckDB has an equal of them.

/// A type whose values are the same on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "they are named as Postgres names them")]
pub enum Type {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    /// With precision and scale.
    Numeric,
    Text,
    Varchar,
    /// `character(n)`, in the lake without its trailing blanks.
    Bpchar,
    Bytea,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    /// Constants only: a column of intervals is text in the lake.
    Interval,
    Uuid,
    Json,
    /// As Postgres prints it.
    Jsonb,
    /// Any enum, by its label.
    Enum,
}

/// Types that are compared with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    None,
    Bool,
    Int,
    Float,
    Numeric,
    Text,
    Bpchar,
    Bytes,
    Day,
    Zoned,
    Time,
    Uuid,
}

impl Type {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::Bool,
        Self::Int2,
        Self::Int4,
        Self::Int8,
        Self::Float4,
        Self::Float8,
        Self::Numeric,
        Self::Text,
        Self::Varchar,
        Self::Bpchar,
        Self::Bytea,
        Self::Date,
        Self::Time,
        Self::Timestamp,
        Self::Timestamptz,
        Self::Interval,
        Self::Uuid,
        Self::Json,
        Self::Jsonb,
        Self::Enum,
    ];

    /// The type of an OID of `pg_type`; enums have no fixed ones.
    pub fn of_oid(oid: u32) -> Option<Self> {
        Some(match oid {
            16 => Self::Bool,
            17 => Self::Bytea,
            20 => Self::Int8,
            21 => Self::Int2,
            23 => Self::Int4,
            25 => Self::Text,
            114 => Self::Json,
            700 => Self::Float4,
            701 => Self::Float8,
            1042 => Self::Bpchar,
            1043 => Self::Varchar,
            1082 => Self::Date,
            1083 => Self::Time,
            1114 => Self::Timestamp,
            1184 => Self::Timestamptz,
            1186 => Self::Interval,
            1700 => Self::Numeric,
            2950 => Self::Uuid,
            3802 => Self::Jsonb,
            _ => return None,
        })
    }

    /// What Postgres calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "boolean",
            Self::Int2 => "smallint",
            Self::Int4 => "integer",
            Self::Int8 => "bigint",
            Self::Float4 => "real",
            Self::Float8 => "double precision",
            Self::Numeric => "numeric",
            Self::Text => "text",
            Self::Varchar => "varchar",
            Self::Bpchar => "character",
            Self::Bytea => "bytea",
            Self::Date => "date",
            Self::Time => "time",
            Self::Timestamp => "timestamp",
            Self::Timestamptz => "timestamptz",
            Self::Interval => "interval",
            Self::Uuid => "uuid",
            Self::Json => "json",
            Self::Jsonb => "jsonb",
            Self::Enum => "enum",
        }
    }

    pub(crate) fn family(self) -> Family {
        match self {
            Self::Bool => Family::Bool,
            Self::Int2 | Self::Int4 | Self::Int8 => Family::Int,
            Self::Float4 | Self::Float8 => Family::Float,
            Self::Numeric => Family::Numeric,
            Self::Text | Self::Varchar => Family::Text,
            Self::Bpchar => Family::Bpchar,
            Self::Bytea => Family::Bytes,
            Self::Date | Self::Timestamp => Family::Day,
            Self::Timestamptz => Family::Zoned,
            Self::Time => Family::Time,
            Self::Uuid => Family::Uuid,
            // Enums are equal by their labels, but ordered otherwise: the deparser sees to them.
            Self::Interval | Self::Json | Self::Jsonb | Self::Enum => Family::None,
        }
    }

    /// Whether a collation has a say in how values compare.
    pub fn is_collated(self) -> bool {
        matches!(self, Self::Text | Self::Varchar | Self::Bpchar)
    }
}
