//! Aggregates and window functions. Sums of floats depend on the order of the rows, and are not on the list.

use crate::entry::{Digits, Entry};
use crate::types::Type;
use Type::*;

macro_rules! extremes {
    ($($kind:ident),*) => {
        [$(Entry::new("min", &[$kind], $kind, "min({d}{1}){t}"), Entry::new("max", &[$kind], $kind, "max({d}{1}){t}")),*]
    };
}

const EXTREMES: [Entry; 14] = extremes!(Int2, Int4, Int8, Date, Time, Timestamp, Timestamptz);
const OTHERS: [Entry; 17] = [
    Entry::new("min", &[Text], Text, "min({d}{1}){t}").bytes(),
    Entry::new("max", &[Text], Text, "max({d}{1}){t}").bytes(),
    Entry::new("min", &[Numeric], Numeric, "min({d}{1}){t}").digits(Digits::First),
    Entry::new("max", &[Numeric], Numeric, "max({d}{1}){t}").digits(Digits::First),
    Entry::new("sum", &[Int2], Int8, "CAST(sum({d}{1}){t} AS BIGINT)").fails(),
    Entry::new("sum", &[Int4], Int8, "CAST(sum({d}{1}){t} AS BIGINT)").fails(),
    Entry::new("sum", &[Int8], Numeric, "CAST(sum({d}{1}){t} AS DECIMAL(38,0))").digits(Digits::Fixed(38, 0)).fails(),
    Entry::new("bool_and", &[Bool], Bool, "bool_and({d}{1}){t}"),
    Entry::new("every", &[Bool], Bool, "bool_and({d}{1}){t}"),
    Entry::new("bool_or", &[Bool], Bool, "bool_or({d}{1}){t}"),
    Entry::new("bit_and", &[Int2], Int2, "bit_and({d}{1}){t}"),
    Entry::new("bit_and", &[Int4], Int4, "bit_and({d}{1}){t}"),
    Entry::new("bit_and", &[Int8], Int8, "bit_and({d}{1}){t}"),
    Entry::new("bit_or", &[Int2], Int2, "bit_or({d}{1}){t}"),
    Entry::new("bit_or", &[Int4], Int4, "bit_or({d}{1}){t}"),
    Entry::new("bit_or", &[Int8], Int8, "bit_or({d}{1}){t}"),
    Entry::new("count", &[], Int8, "count(*){t}"),
];

const COUNT: usize = EXTREMES.len() + OTHERS.len();
const ALL: [Entry; COUNT] = {
    let mut all = [OTHERS[0]; COUNT];
    let mut at = 0;
    while at < COUNT {
        all[at] = if at < EXTREMES.len() { EXTREMES[at] } else { OTHERS[at - EXTREMES.len()] };
        at += 1;
    }
    all
};

/// Aggregates whose arguments have one type. `count` of anything, sums of numerics and averages are forms.
pub const AGGREGATES: &[Entry] = &ALL;

/// Window functions proper. Aggregates over a window are aggregates; those that give a row's value (`lag`) are a form.
pub const WINDOWS: &[Entry] = &[
    Entry::new("row_number", &[], Int8, "row_number(){t}"),
    Entry::new("rank", &[], Int8, "rank(){t}"),
    Entry::new("dense_rank", &[], Int8, "dense_rank(){t}"),
    Entry::new("percent_rank", &[], Float8, "percent_rank(){t}"),
    Entry::new("cume_dist", &[], Float8, "cume_dist(){t}"),
    Entry::new("ntile", &[Int4], Int4, "CAST(ntile({1}){t} AS INTEGER)").fails(),
];
