//! One row in the index: 24 bytes, of which a page keeps those that tell it from its neighbours ([`page`](super::page)).
//!
//! The key takes 16 of them. A short identity (an integer, a date and an integer) is kept as it is, in its own order, so
//! that neighbours share a page. A longer one is kept as a SipHash-2-4 of 120 bits under a key that the session draws at
//! random: nobody can choose two rows that collide, and that two do among a billion rows by chance has a probability of
//! 4 × 10⁻¹⁹, far below that of a wrong bit in memory.

use std::cmp::Ordering;
use std::hash::Hasher as _;

use siphasher::sip128::{Hasher128 as _, SipHasher24};

use crate::error::{Error, ErrorKind};

use super::super::identity::RowIdentity;

/// Bytes of an entry.
pub(super) const ENTRY_BYTES: usize = 24;
/// Longest identity that is kept as it is: a byte is its length.
const SHORT: usize = 15;
/// In place of the length, for a hash.
const HASHED: u128 = 0xFF << 120;
/// The row is gone.
const GONE: u64 = 1 << 63;

/// Where a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// Index into the table's list of files, below 2³¹.
    pub(crate) file: u32,
    /// Row number in the file. Files are rolled long before 2³² rows.
    pub(crate) row: u32,
}

impl Position {
    fn pack(self) -> u64 {
        (u64::from(self.file) << 32) | u64::from(self.row)
    }

    fn unpack(packed: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of the packed position")]
        Self { file: (packed >> 32) as u32, row: packed as u32 }
    }
}

/// An identity as the index keeps it. Packed, or an entry would have 32 bytes in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, packed(8))]
pub(super) struct Key(pub(super) u128);

/// The secret of a session's hashes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Secret(SipHasher24);

impl Secret {
    pub(super) fn draw() -> Self {
        // Two UUIDs of version 7 have 74 random bits each.
        let draw = || {
            let (high, low) = uuid::Uuid::now_v7().as_u64_pair();
            (high.rotate_left(32) ^ low).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        };
        Self(SipHasher24::new_with_keys(draw(), draw()))
    }

    #[inline]
    pub(super) fn key(&self, identity: &[u8]) -> Key {
        if identity.len() <= SHORT {
            let mut bytes = [0; 16];
            match <&[u8; 12]>::try_from(identity) {
                // A single number of 64 bits: most keys are.
                Ok(number) => bytes[1..13].copy_from_slice(number),
                Err(_) => bytes[1..=identity.len()].copy_from_slice(identity),
            }
            // The length comes first; identities of a table that are all of one length keep their order.
            bytes[0] = identity.len().to_le_bytes()[0];
            return Key(u128::from_be_bytes(bytes));
        }
        let mut hasher = self.0;
        hasher.write(identity);
        Key(hasher.finish128().as_u128() | HASHED)
    }
}

/// A key, and the position of its row or the news that it has none.
///
/// Of a table without a key there are several with one key: the position tells them apart, and `gone` means that one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Key,
    place: u64,
}

impl Entry {
    #[inline]
    pub(super) fn at(key: Key, position: Position) -> Self {
        Self { key, place: position.pack() }
    }

    /// No row has the key (`None`), or not the row at this position.
    pub(super) fn gone(key: Key, position: Option<Position>) -> Self {
        Self { key, place: position.map_or(0, Position::pack) | GONE }
    }

    /// What comes first behind a position of a key.
    pub(super) fn behind(key: Key, position: Position) -> Option<Self> {
        Some(Self { key, place: position.pack().checked_add(1).filter(|place| place & GONE == 0)? })
    }

    /// The row's position, if there is a row.
    pub(super) fn position(self) -> Option<Position> {
        (self.place & GONE == 0).then(|| Position::unpack(self.place))
    }

    /// The position that the entry speaks of.
    pub(super) fn about(self) -> Position {
        Position::unpack(self.place & !GONE)
    }

    /// Entries of a run ascend by this.
    #[inline]
    pub(super) fn order(self) -> (Key, u64) {
        (self.key, self.place & !GONE)
    }

    /// Compares two entries by [`Self::order`]. Written out, without a branch: the tuples' own comparison is a call, and this
    /// is where a lookup and a sort spend their time.
    #[inline]
    pub(super) fn cmp_order(&self, other: &Self) -> Ordering {
        if self.is_before(other) {
            Ordering::Less
        } else if other.is_before(self) {
            Ordering::Greater
        } else {
            Ordering::Equal
        }
    }

    #[inline]
    fn is_before(&self, other: &Self) -> bool {
        let ((key, place), (other_key, other_place)) = (self.order(), other.order());
        (key.0 < other_key.0) | ((key.0 == other_key.0) & (place < other_place))
    }

    /// Entries of which the newer one hides the older ones share this.
    #[inline]
    pub(super) fn subject(self, identity: RowIdentity) -> (Key, u64) {
        match identity {
            RowIdentity::Key => (self.key, 0),
            RowIdentity::FullRow | RowIdentity::AppendOnly => self.order(),
        }
    }

    /// The position and whether the row is gone as one number, in which this is the last bit: a page keeps how far such
    /// numbers are apart, and rows that are gone are not to be far from those that are not.
    #[inline]
    pub(super) fn ordered_place(self) -> u64 {
        self.place.rotate_left(1)
    }

    #[inline]
    pub(super) fn from_ordered_place(key: Key, place: u64) -> Self {
        Self { key, place: place.rotate_right(1) }
    }
}

const _: () = assert!(size_of::<Entry>() == ENTRY_BYTES);

/// A file of the index failed.
pub(super) fn failed(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Index, "use the position index")
        .with_hint("check space and rights of the state directory; the index is a cache and is rebuilt at start")
        .with_source(error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn entries_survive_their_numbers(key: u128, file in 0u32..1 << 31, row: u32, gone: bool) {
            let position = Position { file, row };
            let entry = if gone { Entry::gone(Key(key), Some(position)) } else { Entry::at(Key(key), position) };
            prop_assert_eq!(Entry::from_ordered_place(entry.key, entry.ordered_place()), entry);
            prop_assert_eq!((entry.about(), entry.position()), (position, (!gone).then_some(position)));
        }

        #[test]
        fn keys_differ_as_identities_do(a in proptest::collection::vec(0u8..3, 0..20), b in proptest::collection::vec(0u8..3, 0..20)) {
            let secret = Secret::draw();
            prop_assert_eq!(secret.key(&a) == secret.key(&b), a == b);
            if a.len() == b.len() && a.len() <= SHORT {
                prop_assert_eq!(secret.key(&a).cmp(&secret.key(&b)), a.cmp(&b));
            }
        }
    }

    proptest! {
        #[test]
        fn the_comparison_is_that_of_the_order(a in (0u128..3, 0u32..3, any::<bool>()), b in (0u128..3, 0u32..3, any::<bool>())) {
            let entry = |(key, row, gone): (u128, u32, bool)| {
                let position = Position { file: 0, row };
                if gone { Entry::gone(Key(key), Some(position)) } else { Entry::at(Key(key), position) }
            };
            let (a, b) = (entry(a), entry(b));
            prop_assert_eq!(a.cmp_order(&b), a.order().cmp(&b.order()));
        }
    }

    #[test]
    fn secrets_differ() {
        let long = [7; 40];
        assert_ne!(Secret::draw().key(&long), Secret::draw().key(&long));
    }
}
