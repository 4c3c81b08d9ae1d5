//! What a query wants of a row at least, so that files without such rows are left out of its pin.
//!
//! Conditions say less than the query does, never more: DuckDB looks at each row that is left, as if there had been none.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// A value of a column. Values of different kinds have no order, and neither have decimals of different scales.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// An integer; the days of a date since 1970; the microseconds of a timestamp since then, in UTC where it has a zone.
    Integer(i64),
    /// A decimal number.
    Decimal {
        /// Without the point.
        unscaled: i128,
        /// Digits behind the point.
        scale: u8,
    },
    /// A text, which has the order of its bytes.
    Text(String),
    /// A UUID.
    Uuid(u128),
}

impl Value {
    /// How two values of one kind are ordered.
    fn order(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => Some(a.cmp(b)),
            (Self::Decimal { unscaled: a, scale }, Self::Decimal { unscaled: b, scale: same }) if scale == same => {
                Some(a.cmp(b))
            }
            (Self::Text(a), Self::Text(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
            (Self::Uuid(a), Self::Uuid(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }
}

/// How a column compares with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    /// `=`
    Equal,
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    Greater,
    /// `>=`
    AtLeast,
}

impl Comparison {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::Less => order.is_lt(),
            Self::AtMost => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::AtLeast => order.is_ge(),
        }
    }
}

/// A column that is not NULL and compares so with one of the values, or more. Without a value it is true of no row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// The column's `pg_attribute.attnum`.
    pub attnum: i16,
    /// How it compares.
    pub comparison: Comparison,
    /// With what.
    pub values: Vec<Value>,
}

/// A row counts only if all conditions of one of these are true of it. Without any, each row may count.
pub type Alternatives = Vec<Vec<Condition>>;

impl Condition {
    /// Whether it is true of a value, or cannot be told.
    pub fn admits(&self, value: &Value) -> bool {
        self.values.iter().any(|wanted| value.order(wanted).is_none_or(|order| self.comparison.holds(order)))
    }

    /// Whether it may be true of a value between these two, themselves included; `None` is a bound that is not known.
    pub fn may_be_true_between(&self, least: Option<&Value>, most: Option<&Value>) -> bool {
        let below =
            |wanted: &Value, holds: fn(Ordering) -> bool| least.and_then(|least| least.order(wanted)).is_none_or(holds);
        let above =
            |wanted: &Value, holds: fn(Ordering) -> bool| most.and_then(|most| most.order(wanted)).is_none_or(holds);
        self.values.iter().any(|wanted| match self.comparison {
            Comparison::Equal => below(wanted, Ordering::is_le) && above(wanted, Ordering::is_ge),
            Comparison::Less => below(wanted, Ordering::is_lt),
            Comparison::AtMost => below(wanted, Ordering::is_le),
            Comparison::Greater => above(wanted, Ordering::is_gt),
            Comparison::AtLeast => above(wanted, Ordering::is_ge),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPARISONS: [Comparison; 5] =
        [Comparison::Equal, Comparison::Less, Comparison::AtMost, Comparison::Greater, Comparison::AtLeast];

    /// A few values of each kind, in their order.
    fn values() -> [Vec<Value>; 4] {
        let decimal = |unscaled| Value::Decimal { unscaled, scale: 2 };
        [
            vec![i64::MIN, -1, 0, 7, i64::MAX].into_iter().map(Value::Integer).collect(),
            vec![i128::MIN, -250, 0, 1, i128::MAX].into_iter().map(decimal).collect(),
            ["", "A", "a", "a\u{7f}", "ä"].map(|text| Value::Text(text.to_owned())).into(),
            vec![0, 1, 1 << 64, u128::MAX - 1, u128::MAX].into_iter().map(Value::Uuid).collect(),
        ]
    }

    #[test]
    fn a_file_with_a_row_that_counts_is_never_left_out_and_one_without_is() {
        for of_kind in values() {
            for comparison in COMPARISONS {
                for wanted in &of_kind {
                    let condition = Condition { attnum: 1, comparison, values: vec![wanted.clone()] };
                    for least in 0..of_kind.len() {
                        for most in least..of_kind.len() {
                            let among = of_kind[least..=most].iter().any(|value| condition.admits(value));
                            let (least, most) = (&of_kind[least], &of_kind[most]);
                            let told = condition.may_be_true_between(Some(least), Some(most));
                            assert!(told || !among, "{condition:?} of {least:?} to {most:?}");
                            // Between two integers that are wanted and not there, others may be.
                            let exact = comparison != Comparison::Equal || least == most;
                            assert!(!told || among || !exact, "{condition:?} of {least:?} to {most:?}");
                            assert!(!among || condition.may_be_true_between(None, Some(most)));
                            assert!(!among || condition.may_be_true_between(Some(least), None));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_compared_may_count() {
        let cents = Value::Decimal { unscaled: 100, scale: 2 };
        let tenths = Value::Decimal { unscaled: 10, scale: 1 };
        let condition = Condition { attnum: 1, comparison: Comparison::Less, values: vec![cents.clone()] };
        assert!(condition.admits(&tenths) && condition.admits(&Value::Integer(7)) && !condition.admits(&cents));
        assert!(condition.may_be_true_between(Some(&tenths), Some(&Value::Text(String::new()))));
        let never = Condition { values: Vec::new(), ..condition };
        assert!(!never.admits(&cents) && !never.may_be_true_between(None, None));
    }

    #[test]
    fn values_of_any_size_travel() {
        for value in values().into_iter().flatten() {
            let text = serde_json::to_string(&value).unwrap();
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value, "{text}");
        }
    }
}
