//! Leaving the files out of a pin of which no row counts, by the bounds of their columns and the buckets that they are in.
//!
//! It holds because bounds are never narrower than the values, and because a condition on a column with a companion is
//! not looked at: values that are in the companion are NULL in the column. (Of partitions by anything but buckets, bounds tell
//! all there is to tell.)

use std::collections::BTreeMap;
use std::sync::Arc;

use iceberg_writer::{Bound, Buckets, ColumnBounds, LakeTable, TableSpec};
use lake_protocol::{Alternatives, Comparison, Condition, Value};

use super::files::FileState;

/// Between which values a column of a file is, as they are compared with those of conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    field_id: i32,
    least: Option<Value>,
    most: Option<Value>,
}

/// And back.
fn bound(value: &Value) -> Bound {
    match value {
        Value::Integer(value) => Bound::Integer(*value),
        Value::Decimal { unscaled, scale } => Bound::Decimal(*unscaled, *scale),
        Value::Text(text) => Bound::Text(text.clone()),
        Value::Uuid(value) => Bound::Uuid(*value),
    }
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
    /// Without any, all files may.
    wanted: Vec<Vec<Wanted<'a>>>,
}

/// A condition, and what is known of it beforehand.
struct Wanted<'a> {
    /// Its column.
    field_id: i32,
    condition: &'a Condition,
    /// Where the column is equal to one of the values.
    buckets: Option<Buckets>,
}

impl<'a> Pruning<'a> {
    pub(super) fn new(lake: &LakeTable, spec: &TableSpec, wanted: &'a Alternatives) -> Self {
        let in_column = |condition: &'a Condition| {
            let field_id = i32::from(condition.attnum);
            let column = spec.columns.iter().find(|column| column.field_id == field_id)?;
            let is_equal = condition.comparison == Comparison::Equal;
            let values = || condition.values.iter().map(bound).collect::<Vec<_>>();
            let buckets = if is_equal { lake.buckets(field_id, &values()) } else { None };
            (!column.companion).then_some(Wanted { field_id, condition, buckets })
        };
        let wanted: Vec<Vec<_>> =
            wanted.iter().map(|conditions| conditions.iter().filter_map(in_column).collect()).collect();
        let of_all = wanted.iter().any(Vec::is_empty);
        Self { wanted: if of_all { Vec::new() } else { wanted } }
    }

    pub(super) fn may_hold(&self, file: &FileState) -> bool {
        let may_be_true = |Wanted { field_id, condition, buckets }: &Wanted<'_>| {
            let (least, most) = bounds_of(file, *field_id);
            condition.may_be_true_between(least, most)
                && buckets.as_ref().is_none_or(|buckets| buckets.may_be_in(&file.partition))
        };
        self.wanted.is_empty() || self.wanted.iter().any(|conditions| conditions.iter().all(may_be_true))
    }
}

/// A file from before the column has nothing but NULLs, but says nothing of it.
fn bounds_of(file: &FileState, field_id: i32) -> (Option<&Value>, Option<&Value>) {
    let range = file.ranges.iter().find(|range| range.field_id == field_id);
    range.map_or((None, None), |range| (range.least.as_ref(), range.most.as_ref()))
}

/// The least and the greatest value that a column may have in a file, as far as they are known.
type Bounds = (Option<Value>, Option<Value>);

/// The bounds of columns in all files, side by side: of ten thousand files the bounds of one column are read in a tenth of
/// the time that it takes to walk from file to file, during which no change is applied.
///
/// Columns are added when they are first asked for. Files that come are added at the end; when one goes, all begins anew.
#[derive(Debug, Clone, Default)]
pub(super) struct FilesBounds {
    /// The files' numbers.
    numbers: Vec<u32>,
    columns: BTreeMap<i32, Vec<Bounds>>,
}

impl FilesBounds {
    /// Adds a file whose number is above all others.
    pub(super) fn push(&mut self, number: u32, file: &FileState) {
        // Nobody has asked since it was forgotten.
        if self.columns.is_empty() {
            return;
        }
        self.numbers.push(number);
        for (field_id, bounds) in &mut self.columns {
            let (least, most) = bounds_of(file, *field_id);
            bounds.push((least.cloned(), most.cloned()));
        }
    }

    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// The numbers of those of the files that may have rows which count.
    pub(super) fn that_may_hold(&mut self, files: &BTreeMap<u32, FileState>, pruning: &Pruning<'_>) -> Vec<u32> {
        if pruning.wanted.is_empty() {
            return files.keys().copied().collect();
        }
        if self.columns.is_empty() {
            self.numbers = files.keys().copied().collect();
        }
        let mut all: Vec<usize> = Vec::new();
        for conditions in &pruning.wanted {
            let mut left: Option<Vec<usize>> = None;
            for Wanted { field_id, condition, buckets } in conditions {
                let column = self.columns.entry(*field_id).or_insert_with(|| {
                    let bounds = files.values().map(|file| bounds_of(file, *field_id));
                    bounds.map(|(least, most)| (least.cloned(), most.cloned())).collect()
                });
                let may = |(least, most): &Bounds| condition.may_be_true_between(least.as_ref(), most.as_ref());
                match &mut left {
                    Some(left) => left.retain(|place| column.get(*place).is_none_or(may)),
                    None => left = Some((0..column.len()).filter(|place| column.get(*place).is_none_or(may)).collect()),
                }
                if let (Some(buckets), Some(left)) = (buckets, &mut left) {
                    let file = |place: usize| self.numbers.get(place).and_then(|number| files.get(number));
                    left.retain(|place| file(*place).is_none_or(|file| buckets.may_be_in(&file.partition)));
                }
            }
            all.extend(left.unwrap_or_default());
        }
        all.sort_unstable();
        all.dedup();
        all.into_iter().filter_map(|place| self.numbers.get(place).copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use iceberg_writer::Partition;
    use lake_protocol::Comparison;
    use proptest::prelude::*;

    use super::super::files::DataFiles;
    use super::*;

    fn file(least: Option<i64>, most: Option<i64>, other: i64) -> FileState {
        let range = |field_id, least: Option<i64>, most: Option<i64>| Range {
            field_id,
            least: least.map(Value::Integer),
            most: most.map(Value::Integer),
        };
        FileState {
            path: "".into(),
            rows: 1,
            bytes: 1,
            deleted: Arc::default(),
            full: false,
            partition: Partition::default(),
            is_sorted: false,
            ranges: [range(1, least, most), range(2, Some(other), Some(other))].into(),
        }
    }

    fn conditions() -> impl Strategy<Value = Vec<Vec<Condition>>> {
        let comparison = prop_oneof![Just(Comparison::Equal), Just(Comparison::Less), Just(Comparison::AtLeast)];
        let condition = (1i16..4, comparison, prop::collection::vec((0i64..20).prop_map(Value::Integer), 1..3));
        let condition = condition.prop_map(|(attnum, comparison, values)| Condition { attnum, comparison, values });
        prop::collection::vec(prop::collection::vec(condition, 1..3), 0..3)
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(Option<i64>, i64, i64),
        Remove(u32),
        Insert(u32, i64),
        Clear,
        Ask(Vec<Vec<Condition>>, usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (prop::option::of(0i64..10), 10i64..20, 0i64..20).prop_map(|(a, b, c)| Step::Push(a, b, c)),
            2 => (0u32..20).prop_map(Step::Remove),
            1 => (0u32..20, 0i64..20).prop_map(|(number, value)| Step::Insert(number, value)),
            1 => Just(Step::Clear),
            6 => (conditions(), 0usize..30).prop_map(|(wanted, count)| Step::Ask(wanted, count)),
        ];
        prop::collection::vec(step, 1..60)
    }

    proptest! {
        #[test]
        fn bounds_side_by_side_tell_what_the_files_tell_whatever_comes_and_goes(steps in steps()) {
            let mut files = DataFiles::default();
            files.reserve(20).unwrap();
            for step in steps {
                match step {
                    Step::Push(least, most, other) => files.push(file(least, Some(most), other)),
                    Step::Remove(number) => files.remove(number),
                    Step::Insert(number, value) => files.insert(number, file(Some(value), None, value)),
                    Step::Clear => files.clear(),
                    Step::Ask(wanted, count) => {
                        let mut pruning = Pruning::default();
                        for conditions in &wanted {
                            let mut all = Vec::new();
                            for condition in conditions {
                                all.push(Wanted { field_id: i32::from(condition.attnum), condition, buckets: None });
                            }
                            pruning.wanted.push(all);
                        }
                        let expected: Vec<u32> = files
                            .iter()
                            .take(count)
                            .filter_map(|(number, file)| pruning.may_hold(file).then_some(number))
                            .collect();
                        prop_assert_eq!(files.that_may_hold(&pruning, count), expected);
                    }
                }
            }
        }
    }
}
