//! The keys that changed since the last commit of a table, and what became of them.
//!
//! Millions of short keys: they lie one after the other in one buffer, and the table of hashes beside it has an entry of
//! fixed size for each.
//!
//! The order in which they come out again is the hashes', another each time. Nothing may depend on it: the index, which
//! is all that they go to, sorts what it is given.

use std::hash::BuildHasher as _;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// What became of a key since the last commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The row is in the delta, under this ordinal.
    Fresh(u64),
    /// There is no such row any more.
    Gone,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    begin: usize,
    length: u32,
    fate: Fate,
}

/// What a key costs beside its bytes: its entry, at the load factor that the table keeps.
const KEY_OVERHEAD: usize = size_of::<Slot>() * 8 / 7 + 1;

/// Fates by key.
#[derive(Debug, Default)]
pub(super) struct Keys {
    arena: Vec<u8>,
    slots: HashTable<Slot>,
    /// Seeded at random: nobody can choose keys of the same hash.
    #[cfg_attr(not(test), expect(clippy::disallowed_types, reason = "the order decides nothing, see above"))]
    hasher: foldhash::fast::RandomState,
}

impl Keys {
    /// About what it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.arena.len() + self.slots.len() * KEY_OVERHEAD
    }

    pub(super) fn fate(&self, key: &[u8]) -> Option<Fate> {
        let hash = self.hasher.hash_one(key);
        self.slots.find(hash, |slot| key_of(&self.arena, slot) == key).map(|slot| slot.fate)
    }

    /// Sets a key's fate, and gives the one that it had.
    pub(super) fn settle(&mut self, key: &[u8], fate: Fate) -> Option<Fate> {
        let Self { arena, slots, hasher } = self;
        let same = |slot: &Slot| key_of(arena, slot) == key;
        match slots.entry(hasher.hash_one(key), same, |slot| hasher.hash_one(key_of(arena, slot))) {
            Entry::Occupied(mut known) => Some(std::mem::replace(&mut known.get_mut().fate, fate)),
            Entry::Vacant(free) => {
                // A key is a part of an index row, far below 4 GiB.
                let length = u32::try_from(key.len()).unwrap_or(u32::MAX);
                free.insert(Slot { begin: arena.len(), length, fate });
                arena.extend_from_slice(key);
                None
            }
        }
    }

    /// In no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], Fate)> {
        self.slots.iter().map(|slot| (key_of(&self.arena, slot), slot.fate))
    }
}

fn key_of<'a>(arena: &'a [u8], slot: &Slot) -> &'a [u8] {
    &arena[slot.begin..slot.begin + slot.length as usize]
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map(settled in proptest::collection::vec(("[a-c]{0,4}", any::<Option<u64>>()), 0..300)) {
            let mut keys = Keys::default();
            let mut model: HashMap<String, Fate> = HashMap::new();
            for (key, ordinal) in settled {
                let fate = ordinal.map_or(Fate::Gone, Fate::Fresh);
                prop_assert_eq!(keys.fate(key.as_bytes()), model.get(&key).copied());
                prop_assert_eq!(keys.settle(key.as_bytes(), fate), model.insert(key, fate));
            }
            let found: HashMap<String, Fate> =
                keys.iter().map(|(key, fate)| (String::from_utf8(key.to_vec()).unwrap(), fate)).collect();
            prop_assert_eq!(found, model);
        }
    }
}
