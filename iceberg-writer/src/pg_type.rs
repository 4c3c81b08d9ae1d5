//! Which Iceberg type holds a Postgres type, and how.
//!
//! Every type is held, and every value that the writer accepts survives unchanged: nothing is rounded. There are three ways.
//! *Natively*, where Iceberg has the type; values that it has not (infinite dates, `24:00` as a time, `NaN` in a
//! `numeric(p,s)`) go into a companion column ([`PgType::lacking`], `schema`). *As the same characters*, where the type is text to Postgres too. And in the
//! *text form*, where Iceberg has nothing like it: the characters of the type's own output function, under settings on which
//! nothing but the value decides (`source::settings` of the worker), so that the input function gives the value back in
//! any session. The README's table is [`PgType::DOCUMENTED`].

use iceberg::spec::PrimitiveType;
use serde::{Deserialize, Serialize};

/// How a column of the source is held in the lake. Domains are held as the type that they are made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // named as in Postgres, or documented
pub enum PgType {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Numeric {
        precision: u8,
        scale: u8,
    },
    /// A `numeric` that no Iceberg decimal holds: without digits, or with more than 38, or with a scale outside of them.
    NumericText,
    Text,
    Varchar,
    /// `character(n)`, held without its trailing blanks, which mean nothing and come back by the length. (A `bpchar` without
    /// a length keeps its blanks, and is [`Self::SameText`].)
    Char,
    /// `"char"`, a byte.
    Byte,
    /// Types whose text and binary forms are the same characters: `name`, `xml`, `bpchar`, `citext`.
    SameText,
    /// Enums, by their label.
    Enum,
    Bytea,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Uuid,
    Json,
    Jsonb,
    /// `oid`, `xid` and `cid`: 32 bits without a sign.
    Oid,
    /// 64 bits without a sign.
    Xid8,
    /// In the smallest unit of its currency, as Postgres stores it.
    Money,
    /// Every other type, in its text form.
    TextForm,
}

/// What `pg_type` says of a column's type, domains resolved to what they are made from.
#[derive(Debug, Clone, Copy)]
pub struct TypeFacts {
    /// OID of the type.
    pub oid: u32,
    /// Type modifier: the column's, or the domain's.
    pub typmod: i32,
    /// `pg_type.typtype` is `e`.
    pub is_enum: bool,
    /// Output and send function are those of `text`.
    pub is_text: bool,
}

/// A row of the published table.
#[derive(Debug, Clone, Copy)]
pub struct Documented {
    /// The Postgres types.
    pub postgres: &'static str,
    /// The Iceberg type.
    pub iceberg: &'static str,
    /// What a reader has to know.
    pub note: &'static str,
}

/// What Postgres adds to a type modifier that counts bytes or digits.
const VARHDRSZ: i32 = 4;
/// The most digits an Iceberg decimal has.
const MAX_PRECISION: i32 = 38;
/// Digits of 64 bits without a sign.
const XID8_DIGITS: u8 = 20;

impl PgType {
    /// How a column of a type that every server has is held, by `pg_attribute.atttypid` and `atttypmod`. `None`: the type is
    /// not one of those, and the catalog has to be asked what it is.
    pub fn built_in(oid: u32, typmod: i32) -> Option<Self> {
        // Numbers below are given by hand, to types that are neither domains nor enums.
        const FIRST_GENERATED: u32 = 10_000;
        (oid < FIRST_GENERATED).then(|| Self::of(TypeFacts { oid, typmod, is_enum: false, is_text: false }))
    }

    /// How a column of this type is held.
    pub fn of(facts: TypeFacts) -> Self {
        match facts.oid {
            16 => Self::Bool,
            21 => Self::Int2,
            23 => Self::Int4,
            20 => Self::Int8,
            700 => Self::Float4,
            701 => Self::Float8,
            1700 => Self::numeric(facts.typmod).unwrap_or(Self::NumericText),
            25 => Self::Text,
            1043 => Self::Varchar,
            1042 if facts.typmod > VARHDRSZ => Self::Char,
            18 => Self::Byte,
            19 | 142 | 1042 => Self::SameText,
            17 => Self::Bytea,
            1082 => Self::Date,
            1083 => Self::Time,
            1114 => Self::Timestamp,
            1184 => Self::Timestamptz,
            2950 => Self::Uuid,
            114 => Self::Json,
            3802 => Self::Jsonb,
            26 | 28 | 29 => Self::Oid,
            5069 => Self::Xid8,
            790 => Self::Money,
            _ if facts.is_enum => Self::Enum,
            _ if facts.is_text => Self::SameText,
            _ => Self::TextForm,
        }
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

    /// Precision and scale of the Iceberg decimal that holds it, if it is one.
    pub fn decimal(&self) -> Option<(u8, u8)> {
        match *self {
            Self::Numeric { precision, scale } => Some((precision, scale)),
            Self::Xid8 => Some((XID8_DIGITS, 0)),
            _ => None,
        }
    }

    /// The Iceberg type that holds it.
    pub fn iceberg(&self) -> PrimitiveType {
        if let Some((precision, scale)) = self.decimal() {
            return PrimitiveType::Decimal { precision: u32::from(precision), scale: u32::from(scale) };
        }
        match *self {
            Self::Bool => PrimitiveType::Boolean,
            Self::Int2 | Self::Int4 => PrimitiveType::Int,
            Self::Int8 | Self::Oid | Self::Money => PrimitiveType::Long,
            Self::Float4 => PrimitiveType::Float,
            Self::Float8 => PrimitiveType::Double,
            Self::Bytea => PrimitiveType::Binary,
            Self::Date => PrimitiveType::Date,
            Self::Time => PrimitiveType::Time,
            Self::Timestamp => PrimitiveType::Timestamp,
            Self::Timestamptz => PrimitiveType::Timestamptz,
            Self::Uuid => PrimitiveType::Uuid,
            _ => PrimitiveType::String,
        }
    }

    /// Which values of the type the Iceberg type has not, and the SQL condition that finds them, of a column `{c}`. They are
    /// kept in a companion column. `None`: it has them all.
    pub fn lacking(&self) -> Option<(&'static str, &'static str)> {
        match *self {
            Self::Numeric { .. } => Some(("NaN", "{c} = 'NaN'")),
            Self::Date => Some(("an infinite date", "NOT isfinite({c})")),
            Self::Time => Some(("24:00", "{c} = '24:00'")),
            Self::Timestamp | Self::Timestamptz => {
                Some(("an infinite timestamp, or one after 294246", "NOT isfinite({c}) OR {c} >= '294247-01-01'"))
            }
            _ => None,
        }
    }

    /// The type's name in Postgres, with digits where it has them; what it is held as, where that name is not ours to know.
    pub fn name(&self) -> String {
        let name = match *self {
            Self::Bool => "boolean",
            Self::Int2 => "smallint",
            Self::Int4 => "integer",
            Self::Int8 => "bigint",
            Self::Float4 => "real",
            Self::Float8 => "double precision",
            Self::Numeric { precision, scale } => return format!("numeric({precision},{scale})"),
            Self::NumericText => "numeric",
            Self::Text | Self::SameText => "text",
            Self::Varchar => "character varying",
            Self::Char => "character, without trailing blanks",
            Self::Byte => "\"char\"",
            Self::Enum => "label of an enum",
            Self::Bytea => "bytea",
            Self::Date => "date",
            Self::Time => "time without time zone",
            Self::Timestamp => "timestamp without time zone",
            Self::Timestamptz => "timestamp with time zone",
            Self::Uuid => "uuid",
            Self::Json => "json",
            Self::Jsonb => "jsonb",
            Self::Oid => "oid",
            Self::Xid8 => "xid8",
            Self::Money => "money, in the smallest unit of the currency",
            Self::TextForm => "text form of another type",
        };
        name.to_owned()
    }

    /// The published table, in the README's order.
    pub const DOCUMENTED: &'static [Documented] = &[
        Documented { postgres: "`boolean`", iceberg: "`boolean`", note: "" },
        Documented { postgres: "`smallint`, `integer`", iceberg: "`int`", note: "" },
        Documented { postgres: "`bigint`", iceberg: "`long`", note: "" },
        Documented {
            postgres: "`real`, `double precision`",
            iceberg: "`float`, `double`",
            note: "bit by bit; all `NaN` are one",
        },
        Documented {
            postgres: "`numeric(p,s)`, p up to 38, s from 0 to p",
            iceberg: "`decimal(p,s)`",
            note: "`NaN` in a companion",
        },
        Documented {
            postgres: "`numeric` with more digits, without digits, or with a scale outside of them",
            iceberg: "`string`",
            note: "as Postgres prints it, zeros behind the point and `NaN` included",
        },
        Documented { postgres: "`text`, `varchar`, `name`, `json`", iceberg: "`string`", note: "the same characters" },
        Documented {
            postgres: "`citext`, and other types that are `text` inside",
            iceberg: "`string`",
            note: "the same characters",
        },
        Documented {
            postgres: "`xml`",
            iceberg: "`string`",
            note: "without the encoding in its declaration: Postgres sends none",
        },
        Documented { postgres: "`jsonb`", iceberg: "`string`", note: "as Postgres prints it" },
        Documented {
            postgres: "`character(n)`",
            iceberg: "`string`",
            note: "without trailing blanks, in keys too; `bpchar` without a length keeps them",
        },
        Documented { postgres: "`\"char\"`", iceberg: "`string`", note: "a byte above 127 as `\\ooo`, octal" },
        Documented { postgres: "enums", iceberg: "`string`", note: "the label" },
        Documented { postgres: "domains", iceberg: "as the type they are made from", note: "" },
        Documented { postgres: "`bytea`", iceberg: "`binary`", note: "" },
        Documented {
            postgres: "`date`, `timestamp`, `timestamptz`",
            iceberg: "`date`, `timestamp`, `timestamptz`",
            note: "an infinite one, and a timestamp after 294246, in a companion",
        },
        Documented { postgres: "`time`", iceberg: "`time`", note: "`24:00` in a companion" },
        Documented { postgres: "`uuid`", iceberg: "`uuid`", note: "" },
        Documented { postgres: "`oid`, `xid`, `cid`", iceberg: "`long`", note: "" },
        Documented {
            postgres: "`xid8`",
            iceberg: "`decimal(20,0)`",
            note: "64 bits without a sign are more than a `long`",
        },
        Documented {
            postgres: "`money`",
            iceberg: "`long`",
            note: "in the smallest unit of the currency, which `lc_monetary` knows",
        },
        Documented {
            postgres: "`interval`, `timetz`, arrays, composites, ranges and multiranges, `inet`, `cidr`, `macaddr`, `macaddr8`, `bit`, \
                       `varbit`, `tsvector`, `tsquery`, geometric types, `pg_lsn`, `jsonpath`, `reg…` types, `hstore`, and all others",
            iceberg: "`string`",
            note: "text form: what the type prints under `DateStyle` ISO, `IntervalStyle` iso_8601, `TimeZone` UTC, `bytea_output` hex, \
                   `search_path` pg_catalog and enough digits",
        },
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modifier(precision: i32, scale: i32) -> i32 {
        ((precision << 16) | (scale & 0x7FF)) + VARHDRSZ
    }

    fn of(oid: u32, typmod: i32) -> PgType {
        PgType::of(TypeFacts { oid, typmod, is_enum: false, is_text: false })
    }

    #[test]
    fn a_numeric_is_a_decimal_only_with_digits_that_fit() {
        let of = |precision, scale| of(1700, modifier(precision, scale));
        assert_eq!(of(38, 0), PgType::Numeric { precision: 38, scale: 0 });
        assert_eq!(of(38, 38), PgType::Numeric { precision: 38, scale: 38 });
        assert_eq!(of(10, 2), PgType::Numeric { precision: 10, scale: 2 });
        assert_eq!(of(39, 0), PgType::NumericText);
        assert_eq!(of(1000, 10), PgType::NumericText);
        assert_eq!(of(5, -2), PgType::NumericText, "a negative scale rounds to hundreds");
        assert_eq!(of(2, 5), PgType::NumericText, "more digits after the point than there are");
        assert_eq!(self::of(1700, -1), PgType::NumericText, "numeric without digits");
    }

    #[test]
    fn blanks_are_dropped_only_where_the_length_brings_them_back() {
        assert_eq!(of(1042, VARHDRSZ + 1), PgType::Char);
        assert_eq!(of(1042, -1), PgType::SameText);
    }

    #[test]
    fn what_is_not_known_is_held_as_its_text() {
        for oid in [869, 1186, 1266, 1007, 600, 99_999] {
            assert_eq!(of(oid, -1), PgType::TextForm, "{oid}");
        }
        let facts = TypeFacts { oid: 99_999, typmod: -1, is_enum: true, is_text: false };
        assert_eq!(PgType::of(facts), PgType::Enum);
        assert_eq!(PgType::of(TypeFacts { is_enum: false, is_text: true, ..facts }), PgType::SameText);
    }

    #[test]
    fn the_readme_has_the_table() {
        let mut table = String::from("| Postgres | Iceberg | |\n|---|---|---|\n");
        for Documented { postgres, iceberg, note } in PgType::DOCUMENTED {
            let note = if note.is_empty() { String::new() } else { format!(" {note}") };
            table += &format!("| {postgres} | {iceberg} |{note} |\n");
        }
        let readme = include_str!("../../README.md");
        assert!(readme.contains(&table), "the README's table of types should be:\n{table}");
    }
}
