//! Leaving the files out of a pin of which no row counts, by the bounds of their columns.
//!
//! It holds because bounds are never narrower than the values, and because a condition on a column with a companion is
//! not looked at: values that are in the companion are NULL in the column.

use std::sync::Arc;

use iceberg_writer::{Bound, ColumnBounds, TableSpec};
use lake_protocol::{Alternatives, Condition, Value};

use super::files::FileState;

/// Between which values a column of a file is, as they are compared with those of conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    field_id: i32,
    least: Option<Value>,
    most: Option<Value>,
}

/// The ranges of a file's columns.
pub(super) fn ranges(bounds: &[ColumnBounds]) -> Arc<[Range]> {
    let value = |bound: &Bound| match bound {
        Bound::Integer(value) => Value::Integer(*value),
        Bound::Decimal(unscaled, scale) => Value::Decimal { unscaled: *unscaled, scale: *scale },
        Bound::Text(text) => Value::Text(text.clone()),
        Bound::Uuid(value) => Value::Uuid(*value),
    };
    let range = |ColumnBounds { field_id, least, most }: &ColumnBounds| Range {
        field_id: *field_id,
        least: least.as_ref().map(value),
        most: most.as_ref().map(value),
    };
    bounds.iter().map(range).collect()
}

/// Which files of a table may have rows that count; by default all.
#[derive(Default)]
pub(super) struct Pruning<'a> {
    /// Each with the column that it is of. Without any, all files may.
    wanted: Vec<Vec<(i32, &'a Condition)>>,
}

impl<'a> Pruning<'a> {
    pub(super) fn new(spec: &TableSpec, wanted: &'a Alternatives) -> Self {
        let in_column = |condition: &'a Condition| {
            let field_id = i32::from(condition.attnum);
            let column = spec.columns.iter().find(|column| column.field_id == field_id)?;
            (!column.companion).then_some((field_id, condition))
        };
        let wanted: Vec<Vec<_>> =
            wanted.iter().map(|conditions| conditions.iter().filter_map(in_column).collect()).collect();
        let of_all = wanted.iter().any(Vec::is_empty);
        Self { wanted: if of_all { Vec::new() } else { wanted } }
    }

    pub(super) fn may_hold(&self, file: &FileState) -> bool {
        let may_be_true = |(field_id, condition): &(i32, &Condition)| {
            // A file from before the column has nothing but NULLs, but says nothing of it.
            let range = file.ranges.iter().find(|range| range.field_id == *field_id);
            range.is_none_or(|range| condition.may_be_true_between(range.least.as_ref(), range.most.as_ref()))
        };
        self.wanted.is_empty() || self.wanted.iter().any(|conditions| conditions.iter().all(may_be_true))
    }
}
