//! Whether a run may have a key: a Bloom filter in blocks of a cache line (Putze, Sanders, Singler: "Cache-, Hash- and
//! Space-Efficient Bloom Filters", 2007). Most lookups are for rows of the large, old runs, and ask all newer ones before.

use std::hash::BuildHasher as _;

use super::entry::Key;

/// Bits a key. With six probes, one in about fifty absent keys is looked for in vain.
const BITS_A_KEY: usize = 10;
const PROBES: u32 = 6;
const BLOCK_WORDS: usize = 8;
const BLOCK_BITS: usize = BLOCK_WORDS * 64;

#[derive(Debug)]
pub(super) struct Filter {
    blocks: Vec<[u64; BLOCK_WORDS]>,
}

impl Filter {
    /// A filter for so many keys.
    pub(super) fn new(keys: usize) -> Self {
        Self { blocks: vec![[0; BLOCK_WORDS]; (keys * BITS_A_KEY).div_ceil(BLOCK_BITS).max(1)] }
    }

    /// The block of a key, and the hash that its bits are drawn from.
    #[inline]
    fn place(&self, key: Key) -> (usize, u64) {
        let hash = foldhash::fast::FixedState::default().hash_one(key.0);
        // The upper half chooses the block, the lower half the bits.
        let block = ((hash >> 32) * self.blocks.len() as u64) >> 32;
        (usize::try_from(block).unwrap_or(0), hash)
    }

    #[inline]
    pub(super) fn add(&mut self, key: Key) {
        let (block, hash) = self.place(key);
        for (word, bit) in bits(hash) {
            self.blocks[block][word] |= bit;
        }
    }

    /// False: it has not.
    pub(super) fn may_have(&self, key: Key) -> bool {
        let (block, hash) = self.place(key);
        bits(hash).all(|(word, bit)| self.blocks[block][word] & bit != 0)
    }
}

/// The bits of a key within its block.
#[inline]
fn bits(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    // Nine bits a probe, from a product that spreads the lower half over 64 bits.
    let spread = (hash & 0xFFFF_FFFF).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (0..PROBES).map(move |probe| {
        let at = (spread >> (probe * 9)) & (BLOCK_BITS as u64 - 1);
        (usize::try_from(at / 64).unwrap_or(0), 1 << (at % 64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_knows_all_of_its_keys_and_few_others() {
        let scattered = |number: u128| Key((number.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_0C71) << 40) | number);
        for count in [1u32, 100, 20_000] {
            let mut filter = Filter::new(count as usize);
            // Keys in a row differ in one place only, as those of a sequence do.
            for number in 0..u128::from(count) {
                filter.add(Key(number << 24));
                filter.add(scattered(number + (1 << 60)));
            }
            assert!((0..u128::from(count)).all(|number| filter.may_have(Key(number << 24))));
        }
        let mut filter = Filter::new(20_000);
        (0..20_000).for_each(|number| filter.add(Key(number << 24)));
        let wrong = (20_000..120_000).filter(|number| filter.may_have(Key(number << 24))).count();
        assert!(wrong < 4_000, "{wrong} of 100,000");
    }
}
