//! `numeric`: decimal digits without bounds, as integers of a fixed scale or as the text that Postgres prints.

use std::fmt::Write as _;

use super::ValueError;

const TOO_WIDE: ValueError = ValueError::NotRepresentable("a numeric wider than its column");
const INFINITE: ValueError = ValueError::NotRepresentable("an infinite numeric");

/// `numeric_send`: number of base-10000 digits, weight of the first, sign, display scale, the digits.
struct Sent<'a> {
    weight: i32,
    sign: u16,
    display_scale: usize,
    digits: &'a [u8],
}

impl<'a> Sent<'a> {
    fn parse(raw: &'a [u8]) -> Result<Self, ValueError> {
        let (header, digits) = raw.split_first_chunk::<8>().ok_or(ValueError::Malformed)?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let sent = Self {
            weight: i32::from(word(2).cast_signed()),
            sign: word(4),
            display_scale: usize::from(word(6)),
            digits,
        };
        if digits.len() != usize::from(word(0)) * 2 || sent.words().any(|word| word > 9999) {
            return Err(ValueError::Malformed);
        }
        Ok(sent)
    }

    fn words(&self) -> impl Iterator<Item = u16> + '_ {
        self.digits.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
    }

    /// The word that counts 10000^place.
    fn word(&self, place: i32) -> u16 {
        let index = usize::try_from(self.weight - place).ok();
        index
            .and_then(|index| self.digits.get(index * 2..index * 2 + 2))
            .map_or(0, |pair| u16::from_be_bytes([pair[0], pair[1]]))
    }
}

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;

/// Whether the binary format is that of `NaN`.
pub(super) fn is_nan(raw: &[u8]) -> bool {
    Sent::parse(raw).is_ok_and(|sent| sent.sign == NAN)
}

/// The value times 10^scale, from the binary format.
pub(super) fn unscaled(raw: &[u8], scale: u8) -> Result<i128, ValueError> {
    let sent = Sent::parse(raw)?;
    match sent.sign {
        0 | NEGATIVE => {}
        0xD000 | 0xF000 => return Err(INFINITE),
        _ => return Err(ValueError::Malformed),
    }
    let mut unscaled: i128 = 0;
    for (place, digit) in (0..).map(|index: i32| sent.weight - index).zip(sent.words()) {
        let digit = i128::from(digit);
        // This digit counts 10000^place; in units of 10^-scale that is 10^(4*place + scale).
        let exponent = place * 4 + i32::from(scale);
        let part = if exponent >= 0 {
            let factor = 10i128.checked_pow(exponent.unsigned_abs()).ok_or(TOO_WIDE);
            if digit == 0 { 0 } else { digit.checked_mul(factor?).ok_or(TOO_WIDE)? }
        } else {
            // At most three decimals of the last digit lie beyond the scale, and they must be zero: nothing is rounded.
            let divisor = 10i128.checked_pow(exponent.unsigned_abs()).ok_or(TOO_WIDE)?;
            if digit % divisor != 0 {
                return Err(TOO_WIDE);
            }
            digit / divisor
        };
        unscaled = unscaled.checked_add(part).ok_or(TOO_WIDE)?;
    }
    Ok(if sent.sign == NEGATIVE { -unscaled } else { unscaled })
}

/// The value times 10^scale, from the text format.
pub(super) fn unscaled_of_text(text: &str, scale: u8) -> Result<i128, ValueError> {
    match text {
        "Infinity" | "-Infinity" => return Err(INFINITE),
        _ => {}
    }
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mut unscaled: i128 = 0;
    let mut push = |digit: u8| -> Result<(), ValueError> {
        if !digit.is_ascii_digit() {
            return Err(ValueError::Malformed);
        }
        unscaled =
            unscaled.checked_mul(10).and_then(|value| value.checked_add(i128::from(digit - b'0'))).ok_or(TOO_WIDE)?;
        Ok(())
    };
    if whole.is_empty() {
        return Err(ValueError::Malformed);
    }
    whole.bytes().try_for_each(&mut push)?;
    let places = usize::from(scale);
    fraction.bytes().chain(std::iter::repeat(b'0')).take(places).try_for_each(&mut push)?;
    if fraction.bytes().skip(places).any(|digit| digit != b'0') {
        return Err(TOO_WIDE);
    }
    Ok(if negative { -unscaled } else { unscaled })
}

/// What `numeric_out` prints, from the binary format.
pub(super) fn print(raw: &[u8]) -> Result<String, ValueError> {
    let sent = Sent::parse(raw)?;
    let mut text = String::new();
    match sent.sign {
        0 => {}
        NEGATIVE => text.push('-'),
        NAN => return Ok("NaN".to_owned()),
        0xD000 => return Ok("Infinity".to_owned()),
        0xF000 => return Ok("-Infinity".to_owned()),
        _ => return Err(ValueError::Malformed),
    }
    if sent.weight < 0 {
        text.push('0');
    } else {
        // Writing to a String cannot fail.
        let _ = write!(text, "{}", sent.word(sent.weight));
        for place in (0..sent.weight).rev() {
            let _ = write!(text, "{:04}", sent.word(place));
        }
    }
    if sent.display_scale > 0 {
        text.push('.');
        let whole = text.len();
        let mut place = -1;
        while text.len() - whole < sent.display_scale {
            let _ = write!(text, "{:04}", sent.word(place));
            place -= 1;
        }
        text.truncate(whole + sent.display_scale);
    }
    Ok(text)
}
