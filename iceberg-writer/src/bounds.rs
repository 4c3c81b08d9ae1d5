//! Column statistics of a Parquet file as an Iceberg data file entry carries them.
//!
//! A bound may be wider than the values but never narrower: readers skip files by them. Floating point columns have none,
//! because Postgres sorts `NaN` above every number and Parquet's statistics leave it out.
//!
//! And back: what the entry says of the columns, whoever wrote it.

use std::collections::HashMap;
use std::sync::Arc;

use iceberg::spec::{DataFile, DataFileBuilder, Datum, PrimitiveLiteral, PrimitiveType, Schema};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::statistics::Statistics;
use uuid::Uuid;

/// A value that no value of a column in a file is below, or none above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// Of an int, a long, a date (days since 1970) or a timestamp (microseconds since then).
    Integer(i64),
    /// Of a decimal, without its point, and the digits behind that.
    Decimal(i128, u8),
    /// Of a string, by bytes; it may be the beginning of one, or what comes behind all that begin so.
    Text(String),
    /// Of a UUID.
    Uuid(u128),
}

/// What a file has of a column, NULLs aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnBounds {
    /// The column.
    pub field_id: i32,
    /// No value is below it.
    pub least: Option<Bound>,
    /// No value is above it.
    pub most: Option<Bound>,
}

/// The bounds of a file's columns, as far as they are known and of types that readers can leave files out by.
pub(crate) fn bounds(entry: &DataFile) -> Arc<[ColumnBounds]> {
    let mut ids: Vec<i32> = entry.lower_bounds().keys().chain(entry.upper_bounds().keys()).copied().collect();
    ids.sort_unstable();
    ids.dedup();
    let columns = ids.into_iter().map(|field_id| {
        let bound = |of: &HashMap<i32, Datum>| of.get(&field_id).and_then(bound);
        ColumnBounds { field_id, least: bound(entry.lower_bounds()), most: bound(entry.upper_bounds()) }
    });
    columns.filter(|column| column.least.is_some() || column.most.is_some()).collect()
}

fn bound(datum: &Datum) -> Option<Bound> {
    use PrimitiveType::{Date, Decimal, Int, Long, String, Timestamp, Timestamptz, Uuid};
    match (datum.data_type(), datum.literal()) {
        (Int | Date, PrimitiveLiteral::Int(value)) => Some(Bound::Integer(i64::from(*value))),
        (Long | Timestamp | Timestamptz, PrimitiveLiteral::Long(value)) => Some(Bound::Integer(*value)),
        (Decimal { scale, .. }, PrimitiveLiteral::Int128(value)) => {
            Some(Bound::Decimal(*value, u8::try_from(*scale).ok()?))
        }
        (String, PrimitiveLiteral::String(value)) => Some(Bound::Text(value.clone())),
        (Uuid, PrimitiveLiteral::UInt128(value)) => Some(Bound::Uuid(*value)),
        _ => None,
    }
}

/// Sets counts, sizes, bounds and split offsets from a file's footer.
pub(crate) fn describe_columns(builder: &mut DataFileBuilder, footer: &ParquetMetaData, schema: &Schema) {
    let mut sizes = HashMap::<i32, u64>::new();
    let mut values = HashMap::<i32, u64>::new();
    let mut nulls = HashMap::<i32, Option<u64>>::new();
    // A column chunk without a usable bound leaves its column without one.
    let mut lower = HashMap::<i32, Option<Datum>>::new();
    let mut upper = HashMap::<i32, Option<Datum>>::new();
    for chunk in footer.row_groups().iter().flat_map(|group| group.columns()) {
        let id = chunk.column_descr().self_type().get_basic_info().id();
        let Some(ty) = schema.field_by_id(id).and_then(|field| field.field_type.as_primitive_type()) else { continue };
        *sizes.entry(id).or_default() += chunk.compressed_size().cast_unsigned();
        *values.entry(id).or_default() += chunk.num_values().cast_unsigned();
        let statistics = chunk.statistics();
        let null_count = statistics.and_then(Statistics::null_count_opt);
        let all_null = null_count == Some(chunk.num_values().cast_unsigned());
        nulls.entry(id).and_modify(|sum| *sum = sum.zip(null_count).map(|(a, b)| a + b)).or_insert(null_count);
        if all_null {
            continue;
        }
        let least = statistics.and_then(|found| datum(ty, found, found.min_bytes_opt()?));
        let most = statistics.and_then(|found| datum(ty, found, found.max_bytes_opt()?));
        merge(&mut lower, id, least, |new, old| new < old);
        merge(&mut upper, id, most, |new, old| new > old);
    }
    let offsets = footer.row_groups().iter().filter_map(|group| group.file_offset()).collect::<Vec<_>>();
    builder
        .column_sizes(sizes)
        .value_counts(values)
        .null_value_counts(known(nulls))
        .lower_bounds(known(lower))
        .upper_bounds(known(upper))
        .split_offsets((!offsets.is_empty()).then_some(offsets));
}

fn known<T>(found: HashMap<i32, Option<T>>) -> HashMap<i32, T> {
    found.into_iter().filter_map(|(id, value)| Some((id, value?))).collect()
}

fn merge(bounds: &mut HashMap<i32, Option<Datum>>, id: i32, new: Option<Datum>, wider: fn(&Datum, &Datum) -> bool) {
    let bound = bounds.entry(id).or_insert_with(|| new.clone());
    match (bound.as_ref(), new) {
        (Some(old), Some(new)) if wider(&new, old) => *bound = Some(new),
        (Some(_), Some(_)) => {}
        _ => *bound = None,
    }
}

/// A statistics value of a column's type.
fn datum(ty: &PrimitiveType, statistics: &Statistics, bytes: &[u8]) -> Option<Datum> {
    let int = || Some(i32::from_le_bytes(bytes.try_into().ok()?));
    let long = || Some(i64::from_le_bytes(bytes.try_into().ok()?));
    Some(match ty {
        PrimitiveType::Boolean => Datum::bool(*bytes.first()? != 0),
        PrimitiveType::Int => Datum::int(int()?),
        PrimitiveType::Long => Datum::long(long()?),
        PrimitiveType::Date => Datum::date(int()?),
        PrimitiveType::Time => Datum::time_micros(long()?).ok()?,
        PrimitiveType::Timestamp => Datum::timestamp_micros(long()?),
        PrimitiveType::Timestamptz => Datum::timestamptz_micros(long()?),
        PrimitiveType::String => Datum::string(std::str::from_utf8(bytes).ok()?),
        PrimitiveType::Binary => Datum::binary(bytes.iter().copied()),
        PrimitiveType::Uuid => Datum::uuid(Uuid::from_slice(bytes).ok()?),
        PrimitiveType::Decimal { .. } => {
            let unscaled = match statistics {
                Statistics::Int32(_) => i128::from(int()?),
                Statistics::Int64(_) => i128::from(long()?),
                _ => big_endian(bytes)?,
            };
            Datum::try_from_bytes(&unscaled.to_be_bytes(), ty.clone()).ok()?
        }
        _ => return None,
    })
}

/// A two's complement integer of up to sixteen bytes.
fn big_endian(bytes: &[u8]) -> Option<i128> {
    let sign = if bytes.first()? & 0x80 == 0 { 0 } else { 0xFF };
    let mut wide = [sign; 16];
    wide.get_mut(16_usize.checked_sub(bytes.len())?..)?.copy_from_slice(bytes);
    Some(i128::from_be_bytes(wide))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn integers_of_any_length_are_read(value in any::<i64>()) {
            let wide = i128::from(value).to_be_bytes();
            for start in 0..=8 {
                prop_assert_eq!(big_endian(&wide[start..]), Some(i128::from(value)));
            }
        }
    }
}
