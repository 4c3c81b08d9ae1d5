//! Numerics, made in place: Postgres's own functions would take longer than all else that is done to a row.

use pgrx::pg_sys;

use crate::room::{HEADER, Room};

/// A numeric as Postgres keeps it (`NumericShort` of `numeric.c`): digits to the base of 10,000, without zeros at either end.
struct Numeric;

impl Numeric {
    /// Digits to the base in 38 decimal ones, wherever the point is.
    const MOST_DIGITS: usize = 11;
    /// Header, sign, scale and weight, digits: rounded as [`Room`] does.
    const MOST_BYTES: usize = Room::rounded(HEADER + 2 + 2 * Self::MOST_DIGITS);
    const SHORT: u16 = 0x8000;
    const NEGATIVE: u16 = 0x2000;
}

/// Room for so many of them.
pub(crate) fn numerics(count: usize) -> Room {
    // SAFETY: columns are converted on the main thread.
    unsafe { Room::of(count * Numeric::MOST_BYTES) }
}

/// The digits of a number whose lowest one is to be filled up with so many zeros, lowest first; and how many they are.
macro_rules! digits_of {
    ($kind:ty, $magnitude:ident, $filled:ident, $digits:ident) => {{
        // The digits behind the point begin at the point; the lowest one may be cut short, and is filled up.
        let (mut next, mut rest): ($kind, $kind) = match $filled {
            0 => ($magnitude % 10_000, $magnitude / 10_000),
            1 => ($magnitude % 1000 * 10, $magnitude / 1000),
            2 => ($magnitude % 100 * 100, $magnitude / 100),
            _ => ($magnitude % 10 * 1000, $magnitude / 10),
        };
        let mut count = 0;
        loop {
            $digits[count] = u16::try_from(next).unwrap_or_default();
            count += 1;
            if rest == 0 {
                break count;
            }
            (next, rest) = (rest % 10_000, rest / 10_000);
        }
    }};
}

/// `value / 10^scale`, shown with `scale` digits.
pub(crate) fn numeric(room: &mut Room, value: i128, scale: u8) -> pg_sys::Datum {
    let magnitude = value.unsigned_abs();
    let behind = u32::from(scale).div_ceil(4);
    let filled = behind * 4 - u32::from(scale);
    let mut digits = [0u16; Numeric::MOST_DIGITS + 1];
    // Most have eighteen decimal digits at most, and wide division takes longer than all else here.
    let count = match u64::try_from(magnitude) {
        Ok(magnitude) => digits_of!(u64, magnitude, filled, digits),
        Err(_) => digits_of!(u128, magnitude, filled, digits),
    };
    let trailing = digits[..count].iter().take_while(|digit| **digit == 0).count();
    let shown = u16::from(scale) << 7;
    if trailing == count {
        return room.varlena(&[&(Numeric::SHORT | shown).to_ne_bytes()]);
    }
    let weight = i32::try_from(count).unwrap_or_default() - 1 - behind.cast_signed();
    // Seven bits with a sign.
    let weight = u16::try_from(weight & 0x7f).unwrap_or_default();
    let sign = if value < 0 { Numeric::NEGATIVE } else { 0 };
    let header = Numeric::SHORT | sign | shown | weight;
    let mut bytes = [0u8; 2 * (Numeric::MOST_DIGITS + 1)];
    let significant = digits[trailing..count].iter().rev();
    for (place, digit) in bytes.chunks_exact_mut(2).zip(significant) {
        place.copy_from_slice(&digit.to_ne_bytes());
    }
    room.varlena(&[&header.to_ne_bytes(), &bytes[..2 * (count - trailing)]])
}
