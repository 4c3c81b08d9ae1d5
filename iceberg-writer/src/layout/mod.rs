//! How a table's rows are to be divided into files: its owner's wish, by the numbers of columns.
//!
//! Files may be divided otherwise than it says: those that were written before the wish changed stay where they are, and a
//! reader finds rows in either. So a layout decides how much is read, never what is found.

mod parse;

use std::fmt;

use iceberg::spec::{NullOrder, SortDirection, Transform, Type};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::pg_type::PgType;
use crate::schema::ColumnSpec;

/// A table's partitions and the order of rows in a file. The default is neither.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// By what rows are divided into partitions: a file has rows of one.
    #[serde(default)]
    pub(crate) partition: Vec<PartitionBy>,
    /// By what rows are sorted in a file.
    #[serde(default)]
    pub(crate) sort: Vec<SortBy>,
}

/// A column, and what of its values tells partitions apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartitionBy {
    /// The column's field id.
    pub(crate) column: i32,
    pub(crate) transform: Transform,
}

/// A column that rows are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SortBy {
    /// The column's field id.
    pub(crate) column: i32,
    pub(crate) direction: SortDirection,
    pub(crate) nulls: NullOrder,
}

/// The forms of `partition_by`, for those who have used another.
const PARTITION_FORMS: &str = "write columns, or transforms of them, divided by commas: region, day(created_at), bucket(16, id), \
                               truncate(4, name); also year, month, hour and void";
const SORT_FORMS: &str = "write columns, divided by commas, each with ASC or DESC and NULLS FIRST or NULLS LAST, or without: created_at DESC, id";

impl Layout {
    /// Reads what a user wrote: columns and transforms of them, divided by commas (`day(created_at), bucket(16, id)`), and
    /// columns to sort by as in ORDER BY. Empty text is none.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid), with a hint: it is not that, names a column that is not there, or a
    /// transform that the column's type has not.
    pub fn parse(partition_by: &str, sort_by: &str, columns: &[ColumnSpec]) -> Result<Self> {
        let mut layout = Self::default();
        let fail =
            |option: &str, what: String, forms: &str| Error::invalid(format!("{option}: {what}")).with_hint(forms);
        let number = |name: &str| {
            let found = columns.iter().find(|column| column.name == name);
            found.map(|column| column.field_id).ok_or_else(|| format!("there is no column \"{name}\""))
        };
        for item in parse::partition(partition_by).map_err(|what| fail("partition_by", what, PARTITION_FORMS))? {
            let column = number(&item.column).map_err(|what| fail("partition_by", what, PARTITION_FORMS))?;
            layout.partition.push(PartitionBy { column, transform: item.transform });
        }
        for item in parse::sort(sort_by).map_err(|what| fail("sort_by", what, SORT_FORMS))? {
            let column = number(&item.column).map_err(|what| fail("sort_by", what, SORT_FORMS))?;
            layout.sort.push(SortBy { column, direction: item.direction, nulls: item.nulls });
        }
        match layout.conflict(columns) {
            None => Ok(layout),
            Some(why) => Err(Error::invalid(format!("partition_by: {why}")).with_hint(PARTITION_FORMS)),
        }
    }

    /// As [`Self::parse`] reads it, partitions and order.
    pub fn describe(&self, columns: &[ColumnSpec]) -> (String, String) {
        let name = |id: i32| {
            let column = columns.iter().find(|column| column.field_id == id);
            column.map_or_else(|| "?".to_owned(), |column| parse::quoted(&column.name))
        };
        let partition = self.partition.iter().map(|by| by.describe(&name(by.column))).collect::<Vec<_>>();
        let sort = self.sort.iter().map(|by| format!("{}{by}", name(by.column))).collect::<Vec<_>>();
        (partition.join(", "), sort.join(", "))
    }

    /// As text, for the registry.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::format("describe a layout").with_source(error))
    }

    /// What [`Self::to_json`] gave.
    pub fn from_json(json: &str) -> Result<Self> {
        serde_json::from_str(json).map_err(|error| Error::format("read a layout").with_source(error))
    }

    /// What of the layout is possible with these columns: a column may have been dropped, or have got another type.
    #[must_use]
    pub fn possible(&self, columns: &[ColumnSpec]) -> Self {
        let there = |id: i32| columns.iter().any(|column| column.field_id == id);
        let fits = |by: &&PartitionBy| by.conflict(columns).is_none();
        let partition = self.partition.iter().filter(fits).cloned().collect();
        let sort = self.sort.iter().filter(|by| there(by.column)).copied().collect();
        Self { partition, sort }
    }

    /// Why the layout is impossible with these columns.
    fn conflict(&self, columns: &[ColumnSpec]) -> Option<String> {
        let twice = self.partition.iter().enumerate().find(|(at, by)| self.partition[..*at].contains(by));
        let twice = twice.map(|_| "the same transform of a column comes twice".to_owned());
        twice.or_else(|| self.partition.iter().find_map(|by| by.conflict(columns)))
    }
}

impl PartitionBy {
    /// As a user writes it.
    fn describe(&self, column: &str) -> String {
        match self.transform {
            Transform::Identity => column.to_owned(),
            Transform::Bucket(count) => format!("bucket({count}, {column})"),
            Transform::Truncate(width) => format!("truncate({width}, {column})"),
            other => format!("{other}({column})"),
        }
    }

    /// The name that its partition field gets, as Spark would call it.
    pub(crate) fn field_name(&self, column: &str) -> String {
        match self.transform {
            Transform::Identity => column.to_owned(),
            Transform::Bucket(count) => format!("{column}_bucket_{count}"),
            Transform::Truncate(width) => format!("{column}_trunc_{width}"),
            other => format!("{column}_{other}"),
        }
    }

    pub(crate) fn is_identity(&self) -> bool {
        self.transform == Transform::Identity
    }

    fn conflict(&self, columns: &[ColumnSpec]) -> Option<String> {
        let Some(column) = columns.iter().find(|column| column.field_id == self.column) else {
            return Some("a column is not there".to_owned());
        };
        let shown = self.describe(&column.name);
        match self.transform {
            // -0 and 0, and the many NaN, are one value to Postgres and several to Iceberg.
            Transform::Identity if matches!(column.pg_type, PgType::Float4 | PgType::Float8) => {
                Some(format!("{shown}: a floating point number is no partition"))
            }
            // As Iceberg's own libraries have them: signed, of 32 bits.
            Transform::Bucket(0) | Transform::Truncate(0) => Some(format!("{shown}: it must be 1 at least")),
            Transform::Bucket(number) | Transform::Truncate(number) if i32::try_from(number).is_err() => {
                Some(format!("{shown}: the number is too large"))
            }
            transform => match transform.result_type(&Type::Primitive(column.pg_type.iceberg())) {
                Ok(_) => None,
                Err(_) => Some(format!("{shown}: the type {} has no such transform", column.pg_type.name())),
            },
        }
    }
}

impl fmt::Display for SortBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.direction, self.nulls) {
            (SortDirection::Ascending, NullOrder::Last) => "",
            (SortDirection::Ascending, NullOrder::First) => " NULLS FIRST",
            (SortDirection::Descending, NullOrder::First) => " DESC",
            (SortDirection::Descending, NullOrder::Last) => " DESC NULLS LAST",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<ColumnSpec> {
        let types = [
            ("id", PgType::Int8),
            ("name", PgType::Text),
            ("at", PgType::Timestamptz),
            ("day", PgType::Date),
            ("x", PgType::Float8),
            ("Odd \"one\"", PgType::Int4),
        ];
        let column = |((name, pg_type), field_id): ((&str, PgType), i32)| ColumnSpec {
            name: name.to_owned(),
            field_id,
            pg_type,
            type_oid: 0,
            typmod: -1,
            required: false,
            companion: false,
        };
        types.into_iter().zip(1..).map(column).collect()
    }

    #[test]
    fn what_is_read_is_described_as_it_was_written() {
        let partition = "name, bucket(16, id), truncate(4, name), year(day), month(at), day(at), hour(at), void(x), \"Odd \"\"one\"\"\"";
        let sort = "id, at DESC, name NULLS FIRST, day DESC NULLS LAST";
        let layout = Layout::parse(partition, sort, &columns()).unwrap();
        assert_eq!(layout.describe(&columns()), (partition.to_owned(), sort.to_owned()));
        assert_eq!(Layout::from_json(&layout.to_json().unwrap()).unwrap(), layout);
        // As SQL reads names and keywords.
        let otherwise =
            Layout::parse("NAME ,BUCKET( 16 , Id ),identity(\"day\")", "ID asc nulls last", &columns()).unwrap();
        let shown = otherwise.describe(&columns());
        assert_eq!((shown.0.as_str(), shown.1.as_str()), ("name, bucket(16, id), day", "id"));
        assert_eq!(Layout::parse(" ", "", &columns()).unwrap(), Layout::default());
    }

    #[test]
    fn what_is_not_a_layout_is_told_with_a_hint() {
        for (partition, sort, what) in [
            ("nothing", "", "there is no column \"nothing\""),
            ("Name, \"Name\"", "", "there is no column \"Name\""),
            ("hour(day)", "", "hour(day): the type date has no such transform"),
            ("bucket(0, id)", "", "must be 1 at least"),
            ("bucket(4294967295, id)", "", "too large"),
            ("bucket(99999999999, id)", "", "bucket"),
            ("bucket(id)", "", "bucket"),
            ("bucket(-1, id)", "", "\"-\" is not understood"),
            ("day(16, at)", "", "day"),
            ("week(at)", "", "week"),
            ("day(at", "", "day(at"),
            ("id,", "", "partition_by"),
            ("id id", "", "id id"),
            ("\"id", "", "\"id"),
            ("id, id", "", "twice"),
            ("x", "", "floating point"),
            ("", "id UP", "id UP"),
            ("", "id NULLS", "id NULLS"),
            ("", "bucket(1, id)", "sort_by"),
            ("", "nothing", "there is no column \"nothing\""),
        ] {
            let error = Layout::parse(partition, sort, &columns()).expect_err(partition);
            assert!(error.to_string().contains(what) && error.hint().is_some(), "{partition}/{sort}: {error}");
        }
    }

    #[test]
    fn what_is_not_possible_any_more_is_left_out() {
        let layout = Layout::parse("day(at), bucket(4, id)", "at, id", &columns()).unwrap();
        let mut fewer = columns();
        fewer.remove(2);
        assert_eq!(layout.possible(&columns()), layout);
        assert_eq!(layout.possible(&fewer), Layout::parse("bucket(4, id)", "id", &fewer).unwrap());
        fewer[0].pg_type = PgType::Float8;
        assert_eq!(layout.possible(&fewer), Layout::parse("", "id", &fewer).unwrap());
    }
}
