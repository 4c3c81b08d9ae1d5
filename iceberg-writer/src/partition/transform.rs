//! Iceberg's partition transforms, of whole columns.
//!
//! Moments are reckoned in whole numbers: Postgres' years go beyond those of the calendars in libraries, and a row in the wrong
//! partition is a row that readers do not find.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Decimal128Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array as _, ArrayRef, Int32Array};
use arrow_schema::DataType;
use iceberg::spec::Transform;
use iceberg::transform::create_transform_function;

use crate::error::{Error, Result};

const MICROS_A_DAY: i64 = 86_400_000_000;
const MICROS_AN_HOUR: i64 = 3_600_000_000;

/// The values of a partition's field for rows with these values of its column.
///
/// # Errors
/// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when Iceberg has no partition for one of them: an hour beyond the year
/// 246,000, or a number below the least of its type when it is truncated.
pub(super) fn apply(transform: Transform, values: &ArrayRef) -> Result<ArrayRef> {
    let beyond = || Error::invalid(format!("a value is in no partition by {transform}: it is too far from zero"));
    let undefined = || Error::invalid(format!("{transform} of {} is not defined", values.data_type()));
    let moments = || values.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(undefined);
    let whole = |number: i64| i32::try_from(number).map_err(|_| beyond());
    let of_days = |of: &dyn Fn(i64) -> i64| -> Result<ArrayRef> {
        let numbers: Int32Array = match values.as_primitive_opt::<Date32Type>() {
            Some(days) => days.try_unary(|days| whole(of(i64::from(days))))?,
            None => moments()?.try_unary(|micros| whole(of(micros.div_euclid(MICROS_A_DAY))))?,
        };
        Ok(Arc::new(numbers))
    };
    match transform {
        Transform::Identity => Ok(Arc::clone(values)),
        Transform::Void => Ok(Arc::new(Int32Array::new_null(values.len()))),
        Transform::Year => of_days(&|days| year_and_month(days).0 - 1970),
        Transform::Month => of_days(&|days| {
            let (year, month) = year_and_month(days);
            (year - 1970) * 12 + month - 1
        }),
        Transform::Day => of_days(&|days| days),
        Transform::Hour => {
            let hours: Int32Array = moments()?.try_unary(|micros| whole(micros.div_euclid(MICROS_AN_HOUR)))?;
            Ok(Arc::new(hours))
        }
        // Down to a multiple: below zero as well.
        Transform::Truncate(width) if !matches!(values.data_type(), DataType::Utf8 | DataType::Binary) => {
            Ok(match values.data_type() {
                DataType::Int32 => {
                    let width = i32::try_from(width).map_err(|_| beyond())?;
                    let down = |value: i32| value.checked_sub(value.rem_euclid(width)).ok_or_else(beyond);
                    Arc::new(values.as_primitive::<Int32Type>().try_unary::<_, Int32Type, Error>(down)?)
                }
                DataType::Int64 => {
                    let down = |value: i64| value.checked_sub(value.rem_euclid(i64::from(width))).ok_or_else(beyond);
                    Arc::new(values.as_primitive::<Int64Type>().try_unary::<_, Int64Type, Error>(down)?)
                }
                DataType::Decimal128(precision, scale) => {
                    // Down from the least number of this many digits is one of more digits, which Iceberg's type may not hold.
                    let most = 10_i128.checked_pow(u32::from(*precision)).unwrap_or(i128::MAX);
                    let down = |value: i128| {
                        let down = value.checked_sub(value.rem_euclid(i128::from(width)));
                        down.filter(|down| *down > -most).ok_or_else(beyond)
                    };
                    let numbers =
                        values.as_primitive::<Decimal128Type>().try_unary::<_, Decimal128Type, Error>(down)?;
                    let numbers = numbers.with_precision_and_scale(*precision, *scale);
                    Arc::new(numbers.map_err(|error| Error::format("truncate numbers").with_source(error))?)
                }
                _ => return Err(undefined()),
            })
        }
        Transform::Truncate(_) | Transform::Bucket(_) | Transform::Unknown => {
            let function = create_transform_function(&transform);
            function
                .and_then(|function| function.transform(Arc::clone(values)))
                .map_err(|error| Error::iceberg(format!("find partitions by {transform}"), error))
        }
    }
}

/// Year and month of a day, counted from 1970-01-01, in the Gregorian calendar for all time.
/// (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": `civil_from_days`.)
fn year_and_month(days: i64) -> (i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month)
}

#[cfg(test)]
mod tests {
    use arrow_array::{Date32Array, Decimal128Array, Int64Array, TimestampMicrosecondArray};
    use iceberg::spec::Datum;
    use proptest::prelude::*;

    use super::*;

    fn numbers(transform: Transform, values: ArrayRef) -> Vec<Option<i32>> {
        apply(transform, &values).unwrap().as_primitive::<Int32Type>().iter().collect()
    }

    #[test]
    fn moments_before_1970_and_far_away_are_in_their_own_partitions() {
        let days = vec![Some(0), Some(-1), None, Some(-719_528), Some(2_145_031_948)];
        assert_eq!(
            numbers(Transform::Day, Arc::new(Date32Array::from(days))),
            [Some(0), Some(-1), None, Some(-719_528), Some(2_145_031_948)]
        );
        // 4713 BC is -4712; Postgres' dates end in 5874897.
        let day: ArrayRef = Arc::new(Date32Array::from(vec![0, -1, 31, -719_528, -719_529, 2_145_031_948]));
        assert_eq!(
            numbers(Transform::Year, Arc::clone(&day)),
            [Some(0), Some(-1), Some(0), Some(-1970), Some(-1971), Some(5_872_927)]
        );
        assert_eq!(numbers(Transform::Month, day)[..5], [Some(0), Some(-1), Some(1), Some(-23_640), Some(-23_641)]);
        let moments: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![-1, 0, 3_599_999_999, 3_600_000_000]));
        assert_eq!(numbers(Transform::Hour, Arc::clone(&moments)), [Some(-1), Some(0), Some(0), Some(1)]);
        assert_eq!(numbers(Transform::Day, Arc::clone(&moments)), [Some(-1), Some(0), Some(0), Some(0)]);
        assert_eq!(numbers(Transform::Year, moments), [Some(-1), Some(0), Some(0), Some(0)]);
        // The last that Iceberg's type has, in 294247.
        let last: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![i64::MAX]));
        assert_eq!(numbers(Transform::Year, Arc::clone(&last)), [Some(292_277)]);
        assert!(apply(Transform::Hour, &last).is_err());
    }

    #[test]
    fn numbers_below_all_multiples_are_in_no_partition() {
        let values: ArrayRef = Arc::new(Int32Array::from(vec![Some(-1), Some(0), None, Some(19), Some(i32::MIN + 8)]));
        assert_eq!(
            numbers(Transform::Truncate(10), values),
            [Some(-10), Some(0), None, Some(10), Some(-2_147_483_640)]
        );
        let least: ArrayRef = Arc::new(Int32Array::from(vec![i32::MIN]));
        assert!(apply(Transform::Truncate(10), &least).is_err());
        let least: ArrayRef = Arc::new(Int64Array::from(vec![i64::MIN]));
        assert!(apply(Transform::Truncate(10), &least).is_err());
        let numbers = |value: i128| -> ArrayRef {
            Arc::new(Decimal128Array::from(vec![value]).with_precision_and_scale(4, 2).unwrap())
        };
        let down = apply(Transform::Truncate(50), &numbers(1065)).unwrap();
        assert_eq!(down.as_primitive::<Decimal128Type>().value(0), 1050);
        assert!(apply(Transform::Truncate(50), &numbers(-9999)).is_err());
    }

    proptest! {
        /// The library reckons single values in its own way; where its calendar reaches, both agree.
        #[test]
        fn moments_are_where_the_library_has_them(micros in -62_000_000_000_000_000i64..250_000_000_000_000_000) {
            let values: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![micros]));
            for transform in [Transform::Year, Transform::Month, Transform::Day, Transform::Hour] {
                let function = create_transform_function(&transform).unwrap();
                let theirs = function.transform_literal_result(&Datum::timestamp_micros(micros)).unwrap();
                let ours = numbers(transform, Arc::clone(&values))[0].unwrap();
                prop_assert_eq!(theirs.literal(), &iceberg::spec::PrimitiveLiteral::Int(ours), "{}", transform);
            }
        }
    }
}
