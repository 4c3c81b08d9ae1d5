//! A page of a run: as many entries as fit, each as its distance from the page's first.
//!
//! The keys of a page are neighbours, and its rows are often in one file, so that few bytes tell its entries apart: of a page
//! all of them have the same width, which is what its widest needs, and an entry is found by its number without reading
//! others. Entries that have nothing in common take the 24 bytes that they are made of. A checksum is over all of the page.

use std::io;

use super::entry::{ENTRY_BYTES, Entry, Key};

pub(super) const PAGE_BYTES: usize = 4096;
/// Behind the entries: the first key (16), the least place (8), how many entries there are (2), the widths of keys and places
/// and the bytes at the end of keys that none differs in (1 each), one that is free, and the checksum.
const FOOT_BYTES: usize = 30 + CHECKSUM_BYTES;
const CHECKSUM_BYTES: usize = 4;
const BODY_BYTES: usize = PAGE_BYTES - FOOT_BYTES;
/// Entries that fit into any page, whatever they are.
#[cfg(test)]
pub(super) const LEAST_ENTRIES: usize = BODY_BYTES / ENTRY_BYTES;
/// A key or place is written and read as a whole, and what is too much of it is in the foot at worst.
const _: () = assert!(FOOT_BYTES >= ENTRY_BYTES);

pub(super) type Page = [u8; PAGE_BYTES];

/// How the entries of a page are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    first: Key,
    least_place: u64,
    count: usize,
    /// Bytes of a key's distance from the first, without those at its end that are zero in all of them.
    key_width: usize,
    key_shift: usize,
    place_width: usize,
}

impl Layout {
    /// Of a page without entries.
    pub(super) const EMPTY: Self =
        Self { first: Key(0), least_place: 0, count: 0, key_width: 0, key_shift: 0, place_width: 0 };

    /// That of a page as it was read.
    ///
    /// # Errors
    /// When the page is damaged.
    pub(super) fn of(page: &Page) -> io::Result<Self> {
        let (body, sum) = page.split_at(PAGE_BYTES - CHECKSUM_BYTES);
        if sum != crc32fast::hash(body).to_be_bytes() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a page of the position index has a wrong checksum",
            ));
        }
        let foot = &page[BODY_BYTES..];
        let layout = Self {
            first: Key(u128::from_le_bytes(taken(foot, 0))),
            least_place: u64::from_le_bytes(taken(foot, 16)),
            count: usize::from(u16::from_le_bytes(taken(foot, 24))),
            key_width: usize::from(foot[26]),
            key_shift: usize::from(foot[27]),
            place_width: usize::from(foot[28]),
        };
        if layout.key_width + layout.key_shift > 16
            || layout.place_width > 8
            || layout.count * layout.entry_width() > BODY_BYTES
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a page of the position index says what cannot be"));
        }
        Ok(layout)
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    fn entry_width(&self) -> usize {
        self.key_width + self.place_width
    }

    /// An entry of the page by its number, which is below [`Self::count`].
    #[inline]
    pub(super) fn entry(&self, page: &Page, number: usize) -> Entry {
        let at = number * self.entry_width();
        let key = u128::from_le_bytes(taken(page, at)) & ones_128(self.key_width);
        // A shift by all bits is of nothing.
        let key = key.checked_shl(bits(self.key_shift)).unwrap_or(0);
        let place = u64::from_le_bytes(taken(page, at + self.key_width)) & ones_64(self.place_width);
        let key = Key(self.first.0.wrapping_add(key));
        Entry::from_ordered_place(key, self.least_place.wrapping_add(place))
    }
}

#[inline]
fn taken<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut taken = [0; N];
    taken.copy_from_slice(&bytes[at..at + N]);
    taken
}

#[expect(clippy::cast_possible_truncation, reason = "16 bytes at most")]
fn bits(bytes: usize) -> u32 {
    bytes as u32 * 8
}

fn ones_128(bytes: usize) -> u128 {
    1u128.checked_shl(bits(bytes)).unwrap_or(0).wrapping_sub(1)
}

fn ones_64(bytes: usize) -> u64 {
    1u64.checked_shl(bits(bytes)).unwrap_or(0).wrapping_sub(1)
}

/// Gathers the entries of a page. They must ascend.
#[derive(Debug, Default)]
pub(super) struct Packer {
    entries: Vec<Entry>,
    spread: Spread,
}

/// What a page's entries have in common, and what not.
#[derive(Debug, Default, Clone, Copy)]
struct Spread {
    /// The bits in which a key's distance from the first is not zero.
    key_bits: u128,
    least_place: u64,
    greatest_place: u64,
}

impl Spread {
    fn key_shift(&self) -> usize {
        if self.key_bits == 0 { 0 } else { (self.key_bits.trailing_zeros() / 8) as usize }
    }

    fn key_width(&self) -> usize {
        bytes_up_to(self.key_bits.leading_zeros(), 16) - self.key_shift()
    }

    fn place_width(&self) -> usize {
        bytes_up_to((self.greatest_place - self.least_place).leading_zeros(), 8)
    }
}

/// How many of so many bytes are needed for a number with these zeros in front.
fn bytes_up_to(leading_zeros: u32, bytes: usize) -> usize {
    bytes - (leading_zeros / 8) as usize
}

impl Packer {
    /// Nothing has been gathered.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds an entry. False: the page is full, and has to be packed first.
    #[inline]
    pub(super) fn push(&mut self, entry: Entry) -> bool {
        let place = entry.ordered_place();
        let Some(first) = self.entries.first() else {
            self.spread = Spread { key_bits: 0, least_place: place, greatest_place: place };
            self.entries.push(entry);
            return true;
        };
        let spread = Spread {
            key_bits: self.spread.key_bits | entry.key.0.wrapping_sub(first.key.0),
            least_place: self.spread.least_place.min(place),
            greatest_place: self.spread.greatest_place.max(place),
        };
        // No two entries of a run are equal, so that one of the widths is above zero, and a page has no more of them than it
        // has bytes.
        let width = (spread.key_width() + spread.place_width()).max(1);
        if (self.entries.len() + 1) * width > BODY_BYTES {
            return false;
        }
        self.spread = spread;
        self.entries.push(entry);
        true
    }

    /// Writes what has been gathered, at least one entry, as a page, all of which is zero, and begins anew.
    pub(super) fn pack(&mut self, page: &mut Page) {
        let Some(first) = self.entries.first().copied() else { return };
        let Spread { least_place, .. } = self.spread;
        let (key_shift, key_width) = (self.spread.key_shift(), self.spread.key_width());
        let place_width = self.spread.place_width();
        let mut at = 0;
        for entry in &self.entries {
            // Whole, and the next one is written over what is too much of it.
            let key = entry.key.0.wrapping_sub(first.key.0) >> bits(key_shift);
            page[at..at + 16].copy_from_slice(&key.to_le_bytes());
            at += key_width;
            page[at..at + 8].copy_from_slice(&(entry.ordered_place() - least_place).to_le_bytes());
            at += place_width;
        }
        let foot = &mut page[BODY_BYTES..];
        foot[..16].copy_from_slice(&first.key.0.to_le_bytes());
        foot[16..24].copy_from_slice(&least_place.to_le_bytes());
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a page has fewer entries than bytes, and a width is 16 at most"
        )]
        {
            foot[24..26].copy_from_slice(&(self.entries.len() as u16).to_le_bytes());
            foot[26..30].copy_from_slice(&[key_width as u8, key_shift as u8, place_width as u8, 0]);
        }
        let (body, sum) = page.split_at_mut(PAGE_BYTES - CHECKSUM_BYTES);
        sum.copy_from_slice(&crc32fast::hash(body).to_be_bytes());
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::entry::Position;
    use super::*;

    proptest! {
        /// Keys and places near each other and far apart, at both ends of what they can be.
        #[test]
        fn what_is_packed_is_read(
            first: u128,
            entries in proptest::collection::vec((0u32..17, any::<u128>(), any::<u32>(), 0u32..32, any::<bool>()), 1..600),
            shift in 0u32..128,
        ) {
            let entries = entries.into_iter().map(|(width, key, row, file, gone)| {
                let distance = if width == 0 { 0 } else { key >> (128 - width * 8) };
                let position = Position { file: 0x7FFF_FFFF >> file, row: row >> (file / 2) };
                let key = Key(first.wrapping_add(distance << shift));
                if gone { Entry::gone(key, Some(position)) } else { Entry::at(key, position) }
            });
            let mut entries: Vec<Entry> = entries.collect();
            entries.sort_unstable_by(Entry::cmp_order);
            entries.dedup_by_key(|entry| entry.order());
            let (mut packer, mut read, mut pages) = (Packer::default(), Vec::new(), 0);
            let mut unpack = |packer: &mut Packer| {
                let mut page = [0; PAGE_BYTES];
                packer.pack(&mut page);
                let layout = Layout::of(&page).unwrap();
                read.extend((0..layout.count()).map(|number| layout.entry(&page, number)));
                pages += 1;
            };
            for entry in &entries {
                if !packer.push(*entry) {
                    unpack(&mut packer);
                    prop_assert!(packer.push(*entry));
                }
            }
            unpack(&mut packer);
            prop_assert_eq!(&read, &entries);
            prop_assert!(pages <= entries.len().div_ceil(LEAST_ENTRIES), "{} pages of {}", pages, entries.len());
        }

        /// Whatever byte is another one, it is seen.
        #[test]
        fn damage_is_seen(at in 0..PAGE_BYTES, by in 1u8..) {
            let mut packer = Packer::default();
            for number in 0..100 {
                let fits = packer.push(Entry::at(Key(number * 7), Position { file: 1, row: 5 }));
                prop_assert!(fits);
            }
            let mut page = [0; PAGE_BYTES];
            packer.pack(&mut page);
            page[at] ^= by;
            prop_assert!(Layout::of(&page).is_err());
        }
    }
}
