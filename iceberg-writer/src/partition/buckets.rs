//! The buckets that rows with some values of a column are in: where bounds tell nothing, for a bucket has values from everywhere.
//!
//! It holds because the values go through the same transform as those of the rows did.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, Date32Array, Decimal128Array, FixedSizeBinaryArray, Int32Array, Int64Array, StringArray,
    TimestampMicrosecondArray,
};
use iceberg::spec::{Literal, PartitionSpec, PrimitiveLiteral, PrimitiveType, Transform};

use super::{Partition, transform};
use crate::bounds::Bound;
use crate::table::LakeTable;

/// The buckets in which rows are that have one of some values in a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets(Vec<OfSpec>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct OfSpec {
    spec_id: i32,
    /// The place of the field among those of the spec.
    place: usize,
    numbers: HashSet<i32>,
}

impl LakeTable {
    /// The buckets of rows with one of these values in a column. `None`: no partition spec of the table has buckets by it, or
    /// one of the values is of another type.
    pub fn buckets(&self, column: i32, values: &[Bound]) -> Option<Buckets> {
        let next = self.next_partition_spec().ok();
        let known = self.metadata().partition_specs_iter().map(|spec| &**spec).chain(next.as_deref());
        let fields = |spec: &PartitionSpec| {
            let by_column = spec.fields().iter().enumerate().filter(|(_, field)| field.source_id == column);
            let buckets = by_column.filter(|(_, field)| matches!(field.transform, Transform::Bucket(_)));
            let id = spec.spec_id();
            buckets.map(|(place, field)| (id, place, field.transform)).collect::<Vec<_>>()
        };
        let fields: Vec<_> = known.flat_map(fields).collect();
        if fields.is_empty() {
            return None;
        }
        let found = self.spec().columns.iter().find(|of| of.field_id == column)?;
        let values = array(values, &found.pg_type.iceberg())?;
        let of_spec = |(spec_id, place, by)| {
            let numbers = transform::apply(by, &values).ok()?;
            let numbers = numbers.as_primitive_opt::<Int32Type>()?.iter().flatten().collect();
            Some(OfSpec { spec_id, place, numbers })
        };
        Some(Buckets(fields.into_iter().map(of_spec).collect::<Option<_>>()?))
    }
}

impl Buckets {
    /// Whether rows with one of the values may be in a partition. Of one that is not by buckets nothing is known.
    pub fn may_be_in(&self, partition: &Partition) -> bool {
        let of_its_spec = self.0.iter().filter(|of| of.spec_id == partition.spec_id());
        of_its_spec.into_iter().all(|of| match partition.values().fields().get(of.place) {
            Some(Some(Literal::Primitive(PrimitiveLiteral::Int(number)))) => of.numbers.contains(number),
            // The rows whose value is NULL.
            Some(None) => false,
            _ => true,
        })
    }
}

/// Values as a column of the type has them. Those beyond its range are left out, for no row has them.
fn array(values: &[Bound], of: &PrimitiveType) -> Option<ArrayRef> {
    let integers = || values.iter().map(|value| if let Bound::Integer(value) = value { Some(*value) } else { None });
    let small = || -> Option<Vec<i32>> {
        let wide = integers().collect::<Option<Vec<i64>>>()?;
        Some(wide.into_iter().filter_map(|value| i32::try_from(value).ok()).collect())
    };
    Some(match of {
        PrimitiveType::Int => Arc::new(Int32Array::from(small()?)),
        PrimitiveType::Date => Arc::new(Date32Array::from(small()?)),
        PrimitiveType::Long => Arc::new(Int64Array::from(integers().collect::<Option<Vec<_>>>()?)),
        PrimitiveType::Timestamp | PrimitiveType::Timestamptz => {
            Arc::new(TimestampMicrosecondArray::from(integers().collect::<Option<Vec<_>>>()?))
        }
        PrimitiveType::Decimal { precision, scale } => {
            let (precision, scale) = (u8::try_from(*precision).ok()?, u8::try_from(*scale).ok()?);
            let number = |value: &Bound| match value {
                Bound::Decimal(unscaled, digits) if *digits == scale => Some(*unscaled),
                _ => None,
            };
            let numbers = Decimal128Array::from(values.iter().map(number).collect::<Option<Vec<_>>>()?);
            Arc::new(numbers.with_precision_and_scale(precision, i8::try_from(scale).ok()?).ok()?)
        }
        PrimitiveType::String => {
            let texts =
                values.iter().map(|value| if let Bound::Text(text) = value { Some(text.as_str()) } else { None });
            Arc::new(StringArray::from(texts.collect::<Option<Vec<_>>>()?))
        }
        PrimitiveType::Uuid => {
            let bytes = |value: &Bound| if let Bound::Uuid(value) = value { Some(value.to_be_bytes()) } else { None };
            let bytes = values.iter().map(bytes).collect::<Option<Vec<_>>>()?;
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(bytes.into_iter().map(Some), 16).ok()?)
        }
        _ => return None,
    })
}
