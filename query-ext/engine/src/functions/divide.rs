//! `numeric / numeric` as Postgres rounds it.
//!
//! A quotient has at least sixteen significant digits, and as many behind the point as its operands; how many is told by where the
//! operands' first digits to the base of 10,000 are (`select_div_scale` of `numeric.c`). It is rounded half away from zero.
//! The quotient is given as text; how many zeros Postgres would show behind it is not kept.

use super::{Argument, Outcome, Value};

/// Digits of a numeric to the base.
const GROUP: i32 = 4;
const SIGNIFICANT: i32 = 16;
/// Digits behind the point that the result's type has.
const MOST_DIGITS: i32 = 20;

/// A numeric without its sign: `digits` / 10^`scale`.
struct Magnitude {
    digits: u128,
    scale: u32,
}

/// Reads what DuckDB prints of a DECIMAL.
fn parse(text: &str) -> Option<(bool, Magnitude)> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{whole}{fraction}").parse().ok()?;
    Some((negative, Magnitude { digits, scale: u32::try_from(fraction.len()).ok()? }))
}

/// The place of the first digit to the base of 10,000, and the digit.
fn first_group(of: &Magnitude) -> (i32, u128) {
    if of.digits == 0 {
        return (0, 0);
    }
    let (digits, scale) = (of.digits.ilog10().cast_signed(), of.scale.cast_signed());
    let weight = (digits - scale).div_euclid(GROUP);
    // The group's last digit is worth 10^(4 × weight).
    let last = weight * GROUP + scale;
    let group = if last >= 0 {
        of.digits / 10u128.pow(last.cast_unsigned())
    } else {
        of.digits * 10u128.pow(last.unsigned_abs())
    };
    (weight, group)
}

pub(super) fn divide<'a>(left: &'a str, right: Argument<'a>) -> Outcome<'a> {
    let Argument::Text(right) = right else { return Ok(None) };
    let range = || "a quotient with more digits than DuckDB's decimals have".to_owned();
    let ((left_negative, left), (right_negative, right)) =
        (parse(left).ok_or_else(range)?, parse(right).ok_or_else(range)?);
    if right.digits == 0 {
        return Err("division by zero".into());
    }
    let ((left_weight, left_group), (right_weight, right_group)) = (first_group(&left), first_group(&right));
    let weight = left_weight - right_weight - i32::from(left_group <= right_group);
    let scale = (SIGNIFICANT - weight * GROUP).max(left.scale.cast_signed()).max(right.scale.cast_signed()).max(0);
    let widened = |value: u128, by: u32| 10u128.checked_pow(by).and_then(|power| value.checked_mul(power));
    let above = widened(left.digits, right.scale.saturating_sub(left.scale)).ok_or_else(range)?;
    let below = widened(right.digits, left.scale.saturating_sub(right.scale)).ok_or_else(range)?;
    let (mut quotient, mut rest) = (above / below, above % below);
    let mut scale = scale;
    for _ in 0..scale {
        rest = rest.checked_mul(10).ok_or_else(range)?;
        quotient = quotient.checked_mul(10).and_then(|tens| tens.checked_add(rest / below)).ok_or_else(range)?;
        rest %= below;
    }
    if rest.checked_mul(2).ok_or_else(range)? >= below {
        quotient += 1;
    }
    while scale > MOST_DIGITS {
        if quotient % 10 != 0 {
            return Err(range());
        }
        (quotient, scale) = (quotient / 10, scale - 1);
    }
    let sign = if quotient > 0 && left_negative != right_negative { "-" } else { "" };
    let places = usize::try_from(scale).unwrap_or(0);
    let digits = format!("{quotient:0>width$}", width = places + 1);
    let (whole, fraction) = digits.split_at(digits.len() - places);
    Ok(Some(Value::Text(format!("{sign}{whole}.{fraction}").into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(left: &str, right: &str) -> Result<String, String> {
        match divide(left, Argument::Text(right))? {
            Some(Value::Text(text)) => Ok(text.into_owned()),
            _ => Err("no text".into()),
        }
    }

    /// As `SELECT left / right` prints it, but for the zeros at the end.
    #[test]
    fn quotients_are_those_of_postgres() {
        for (left, right, quotient) in [
            ("1", "3", "0.33333333333333333333"),
            ("2", "3", "0.66666666666666666667"),
            ("10", "3", "3.3333333333333333"),
            ("-10.00", "3", "-3.3333333333333333"),
            ("100000", "7", "14285.714285714286"),
            ("0.00", "7", "0.00000000000000000000"),
            ("5", "4", "1.2500000000000000"),
        ] {
            assert_eq!(of(left, right).unwrap(), quotient, "{left} / {right}");
        }
        assert!(of("1", "0.00").is_err());
        assert!(of("1", "30000000").is_err());
    }
}
