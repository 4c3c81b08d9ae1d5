//! `numeric / numeric` as Postgres rounds it.
//!
//! A quotient has at least sixteen significant digits, and as many behind the point as its operands; how many is told by where the
//! operands' first digits to the base of 10,000 are (`select_div_scale` of `numeric.c`). It is rounded half away from zero.
//! How many zeros Postgres would show behind it is not kept.
//!
//! `lake_divide` takes DECIMALs of any precision and scale, and gives a DECIMAL(38,20).

use std::ffi::CString;

use libduckdb_sys as ffi;

use crate::error::{Error, ErrorKind};

/// Digits of a numeric to the base.
const GROUP: i32 = 4;
const SIGNIFICANT: i32 = 16;
/// Precision of the result's type, and digits behind its point.
const PRECISION: u8 = 38;
const MOST_DIGITS: u8 = 20;

/// A decimal: `digits` / 10^`scale`.
#[derive(Debug, Clone, Copy)]
struct Decimal {
    digits: i128,
    scale: u32,
}

/// The place of the first digit to the base of 10,000, and the digit.
fn first_group(of: Decimal) -> (i32, u128) {
    let digits = of.digits.unsigned_abs();
    if digits == 0 {
        return (0, 0);
    }
    let (first, scale) = (digits.ilog10().cast_signed(), of.scale.cast_signed());
    let weight = (first - scale).div_euclid(GROUP);
    // The group's last digit is worth 10^(4 × weight).
    let last = weight * GROUP + scale;
    let group =
        if last >= 0 { digits / 10u128.pow(last.cast_unsigned()) } else { digits * 10u128.pow(last.unsigned_abs()) };
    (weight, group)
}

/// A quotient, in units of the last of its twenty digits behind the point.
fn divide(left: Decimal, right: Decimal) -> Result<i128, &'static str> {
    const RANGE: &str = "a quotient with more digits than DuckDB's decimals have";
    if right.digits == 0 {
        return Err("division by zero");
    }
    let ((left_weight, left_group), (right_weight, right_group)) = (first_group(left), first_group(right));
    let weight = left_weight - right_weight - i32::from(left_group <= right_group);
    let scale = (SIGNIFICANT - weight * GROUP).max(left.scale.cast_signed()).max(right.scale.cast_signed()).max(0);
    let widened =
        |value: i128, by: u32| 10u128.checked_pow(by).and_then(|power| value.unsigned_abs().checked_mul(power));
    let above = widened(left.digits, right.scale.saturating_sub(left.scale)).ok_or(RANGE)?;
    let below = widened(right.digits, left.scale.saturating_sub(right.scale)).ok_or(RANGE)?;
    let (mut quotient, mut rest) = (above / below, above % below);
    // As many digits at a time as there is room for: mostly all of them.
    let mut missing = scale.unsigned_abs();
    while missing > 0 {
        let room = (u128::MAX / below).max(1).ilog10().min(missing);
        if room == 0 {
            return Err(RANGE);
        }
        let power = 10u128.pow(room);
        rest *= power;
        quotient = quotient.checked_mul(power).and_then(|tens| tens.checked_add(rest / below)).ok_or(RANGE)?;
        rest %= below;
        missing -= room;
    }
    if rest >= below - rest {
        quotient += 1;
    }
    let (mut scale, most) = (scale.unsigned_abs(), u32::from(MOST_DIGITS));
    while scale > most {
        if !quotient.is_multiple_of(10) {
            return Err(RANGE);
        }
        (quotient, scale) = (quotient / 10, scale - 1);
    }
    let units = quotient.checked_mul(10u128.pow(most - scale)).ok_or(RANGE)?;
    if units >= 10u128.pow(PRECISION.into()) {
        return Err(RANGE);
    }
    let units = units.cast_signed();
    Ok(if (left.digits < 0) == (right.digits < 0) { units } else { -units })
}

/// Registers the function with a connection's database.
pub(crate) fn register(connection: ffi::duckdb_connection) -> Result<(), Error> {
    // SAFETY: every handle is made, used and destroyed here.
    let state = unsafe {
        let mut function = ffi::duckdb_create_scalar_function();
        ffi::duckdb_scalar_function_set_name(function, c"lake_divide".as_ptr());
        let mut any = ffi::duckdb_create_logical_type(ffi::DUCKDB_TYPE_DUCKDB_TYPE_ANY);
        let mut quotient = ffi::duckdb_create_decimal_type(PRECISION, MOST_DIGITS);
        ffi::duckdb_scalar_function_add_parameter(function, any);
        ffi::duckdb_scalar_function_add_parameter(function, any);
        ffi::duckdb_scalar_function_set_return_type(function, quotient);
        ffi::duckdb_scalar_function_set_function(function, Some(run));
        let state = ffi::duckdb_register_scalar_function(connection, function);
        ffi::duckdb_destroy_logical_type(&raw mut any);
        ffi::duckdb_destroy_logical_type(&raw mut quotient);
        ffi::duckdb_destroy_scalar_function(&raw mut function);
        state
    };
    if state == ffi::duckdb_state_DuckDBSuccess {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Open, "could not register lake_divide"))
    }
}

unsafe extern "C" fn run(info: ffi::duckdb_function_info, input: ffi::duckdb_data_chunk, output: ffi::duckdb_vector) {
    // SAFETY: DuckDB passes a flat chunk of two columns, and a vector of DECIMAL(38,20)s with room for as many rows.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| unsafe { fill(input, output) }));
    let message = match outcome {
        Ok(Ok(())) => return,
        Ok(Err(message)) => message,
        Err(_) => "lake_divide panicked",
    };
    let message = CString::new(message).unwrap_or_default();
    // SAFETY: `info` is valid during the call and the text is copied.
    unsafe { ffi::duckdb_scalar_function_set_error(info, message.as_ptr()) };
}

/// # Safety
/// As [`run`] is called.
unsafe fn fill(input: ffi::duckdb_data_chunk, output: ffi::duckdb_vector) -> Result<(), &'static str> {
    // SAFETY: per the contract; a DECIMAL(38,20) is an integer of 16 bytes, which DuckDB aligns to 8.
    unsafe {
        let rows = usize::try_from(ffi::duckdb_data_chunk_get_size(input)).unwrap_or(0);
        let (left, right) = (Decimals::of(input, 0)?, Decimals::of(input, 1)?);
        ffi::duckdb_vector_ensure_validity_writable(output);
        let validity = ffi::duckdb_vector_get_validity(output);
        let quotients = ffi::duckdb_vector_get_data(output).cast::<i128>();
        for row in 0..rows {
            match (left.get(row), right.get(row)) {
                (Some(left), Some(right)) => quotients.add(row).write_unaligned(divide(left, right)?),
                _ => ffi::duckdb_validity_set_row_invalid(validity, row as u64),
            }
        }
        Ok(())
    }
}

/// A column of decimals.
struct Decimals {
    data: *const u8,
    validity: *mut u64,
    internal: ffi::duckdb_type,
    scale: u32,
}

impl Decimals {
    /// # Safety
    /// The chunk lives, and has the column.
    unsafe fn of(chunk: ffi::duckdb_data_chunk, column: u64) -> Result<Self, &'static str> {
        // SAFETY: per the contract; the type is destroyed after its use.
        unsafe {
            let vector = ffi::duckdb_data_chunk_get_vector(chunk, column);
            let mut kind = ffi::duckdb_vector_get_column_type(vector);
            let is_decimal = ffi::duckdb_get_type_id(kind) == ffi::DUCKDB_TYPE_DUCKDB_TYPE_DECIMAL;
            let (internal, scale) = (ffi::duckdb_decimal_internal_type(kind), ffi::duckdb_decimal_scale(kind));
            ffi::duckdb_destroy_logical_type(&raw mut kind);
            if !is_decimal {
                return Err("lake_divide is of decimals");
            }
            let data = ffi::duckdb_vector_get_data(vector).cast::<u8>().cast_const();
            Ok(Self { data, validity: ffi::duckdb_vector_get_validity(vector), internal, scale: scale.into() })
        }
    }

    /// # Safety
    /// The chunk still lives, and has the row.
    unsafe fn get(&self, row: usize) -> Option<Decimal> {
        // SAFETY: per the contract; the internal type says how wide the column's integers are.
        unsafe {
            if !self.validity.is_null() && !ffi::duckdb_validity_row_is_valid(self.validity, row as u64) {
                return None;
            }
            let digits = match self.internal {
                ffi::DUCKDB_TYPE_DUCKDB_TYPE_SMALLINT => self.data.cast::<i16>().add(row).read_unaligned().into(),
                ffi::DUCKDB_TYPE_DUCKDB_TYPE_INTEGER => self.data.cast::<i32>().add(row).read_unaligned().into(),
                ffi::DUCKDB_TYPE_DUCKDB_TYPE_BIGINT => self.data.cast::<i64>().add(row).read_unaligned().into(),
                _ => self.data.cast::<i128>().add(row).read_unaligned(),
            };
            Some(Decimal { digits, scale: self.scale })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let scale = u32::try_from(fraction.len()).unwrap();
        Decimal { digits: format!("{whole}{fraction}").parse().unwrap(), scale }
    }

    fn of(left: &str, right: &str) -> Result<i128, &'static str> {
        divide(decimal(left), decimal(right))
    }

    /// As `SELECT left / right` gives it.
    #[test]
    fn quotients_are_those_of_postgres() {
        for (left, right, quotient) in [
            ("1", "3", "0.33333333333333333333"),
            ("2", "3", "0.66666666666666666667"),
            ("10", "3", "3.33333333333333330000"),
            ("-10.00", "3", "-3.33333333333333330000"),
            ("100000", "7", "14285.71428571428600000000"),
            ("0.00", "7", "0.00000000000000000000"),
            ("5", "-4", "-1.25000000000000000000"),
            ("-7", "-2", "3.50000000000000000000"),
            ("99999999999999999.99", "3", "33333333333333333.33000000000000000000"),
        ] {
            assert_eq!(of(left, right).unwrap(), decimal(quotient).digits, "{left} / {right}");
        }
        assert!(of("1", "0.00").is_err());
        assert!(of("1", "30000000").is_err());
        assert!(of("1000000000000000000", "1").is_err());
    }

    /// The digits are the same however many are computed at a time.
    #[test]
    fn large_divisors_leave_room_for_few_digits() {
        let wide = Decimal { digits: 10i128.pow(37) + 7, scale: 18 };
        let (left, right) = (Decimal { digits: 3 * 10i128.pow(37), scale: 18 }, wide);
        assert_eq!(divide(left, right).unwrap(), 300_000_000_000_000_000_000);
    }
}
