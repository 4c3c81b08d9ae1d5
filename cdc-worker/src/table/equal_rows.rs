//! Changes of a table without a key: several rows may have one identity.
//!
//! Invariant: a row of the delta is live exactly when its ordinal is in `fresh` of its identity. Stored rows that were
//! taken out have left the index at once, so nothing is remembered of them but how far the search for equal ones got:
//! without that, deleting n equal rows would step over the remains of 1 + 2 + … + n index entries.
//!
//! Identities come out in no order, and nothing may depend on it: the index, which is all that they go to, sorts them.

use super::index::Position;

/// What an identity costs beside its bytes: the map's entry and the allocations.
const IDENTITY_OVERHEAD: usize = 96;

/// The rows of one identity.
#[derive(Debug, Default)]
struct Equal {
    /// Ordinals in the delta.
    fresh: Vec<u64>,
    /// The newest stored row that was taken out. Those are taken in the order of their positions, and a commit only
    /// adds higher ones.
    taken: Option<Position>,
}

#[cfg_attr(not(test), expect(clippy::disallowed_types, reason = "the order decides nothing, see above"))]
type ByIdentity = std::collections::HashMap<Box<[u8]>, Equal>;

/// Rows since the last commit by identity.
#[derive(Debug, Default)]
pub(super) struct EqualRows {
    rows: ByIdentity,
    bytes: usize,
}

impl EqualRows {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn entry(&mut self, identity: &[u8]) -> &mut Equal {
        if !self.rows.contains_key(identity) {
            self.bytes += identity.len() + IDENTITY_OVERHEAD;
        }
        self.rows.entry(identity.into()).or_default()
    }

    /// A row of the delta came.
    pub(super) fn add(&mut self, identity: &[u8], ordinal: u64) {
        self.bytes += size_of::<u64>();
        self.entry(identity).fresh.push(ordinal);
    }

    /// A row of the delta with this identity, if there is one.
    pub(super) fn newest(&self, identity: &[u8]) -> Option<u64> {
        self.rows.get(identity)?.fresh.last().copied()
    }

    /// The row given by [`Self::newest`] goes.
    pub(super) fn remove_newest(&mut self, identity: &[u8]) {
        if let Some(equal) = self.rows.get_mut(identity) {
            equal.fresh.pop();
        }
    }

    /// The stored row after which the search for equal ones goes on.
    pub(super) fn taken(&self, identity: &[u8]) -> Option<Position> {
        self.rows.get(identity)?.taken
    }

    /// A stored row was taken out.
    pub(super) fn take_stored(&mut self, identity: &[u8], position: Position) {
        self.entry(identity).taken = Some(position);
    }

    /// The live rows of the delta: identity and ordinal.
    pub(super) fn live(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.rows.iter().flat_map(|(identity, equal)| equal.fresh.iter().map(|ordinal| (&**identity, *ordinal)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use proptest::prelude::*;

    use super::super::identity::RowIdentity;
    use super::super::index::{IndexStore, IndexWriter, PositionIndex};
    use super::*;

    /// What may happen to rows of an identity.
    #[derive(Debug, Clone)]
    enum Happening {
        Add(u8),
        Remove(u8),
        Commit,
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            5 => (0u8..4).prop_map(Happening::Add),
            5 => (0u8..4).prop_map(Happening::Remove),
            1 => Just(Happening::Commit),
        ]
    }

    /// Takes a row out as a table does: of the delta if there is one, else a stored one. False: there is none.
    fn take_out(equal: &mut EqualRows, index: &PositionIndex, identity: &[u8], gone: &mut HashSet<(u32, u32)>) -> bool {
        if equal.newest(identity).is_some() {
            equal.remove_newest(identity);
            return true;
        }
        let Some(position) = index.next_equal(identity, equal.taken(identity)).unwrap() else { return false };
        assert!(gone.insert((position.file, position.row)), "a row was taken out twice");
        equal.take_stored(identity, position);
        index.remove_equal(identity, position).unwrap();
        true
    }

    /// The live rows go into a file, in order.
    fn commit(equal: &mut EqualRows, index: &PositionIndex, file: u32) {
        let mut live: Vec<(Vec<u8>, u64)> = equal.live().map(|(bytes, ordinal)| (bytes.to_vec(), ordinal)).collect();
        live.sort_by_key(|(_, ordinal)| *ordinal);
        let mut writer = IndexWriter::new(index.clone());
        for (row, (identity, _)) in (0..).zip(&live) {
            writer.put(identity, Position { file, row }).unwrap();
        }
        writer.finish().unwrap();
        *equal = EqualRows::default();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn rows_and_their_twins_are_a_bag(happenings in proptest::collection::vec(happening(), 0..120)) {
            let directory = tempfile::tempdir().unwrap();
            let store = IndexStore::create(&directory.path().join("index")).unwrap();
            let index = store.table(RowIdentity::FullRow);
            let (mut equal, mut bag, mut gone) = (EqualRows::default(), BTreeMap::<u8, u32>::new(), HashSet::new());
            let (mut ordinal, mut file) = (0, 0);
            for happening in happenings {
                let bytes = equal.bytes();
                match happening {
                    Happening::Add(row) => {
                        equal.add(&[row], ordinal);
                        ordinal += 1;
                        *bag.entry(row).or_default() += 1;
                        prop_assert!(equal.bytes() > bytes);
                    }
                    Happening::Remove(row) => {
                        let count = bag.entry(row).or_default();
                        prop_assert_eq!(take_out(&mut equal, &index, &[row], &mut gone), *count > 0);
                        *count = count.saturating_sub(1);
                    }
                    Happening::Commit => {
                        commit(&mut equal, &index, file);
                        file += 1;
                    }
                }
            }
            for (row, count) in bag {
                for _ in 0..count {
                    prop_assert!(take_out(&mut equal, &index, &[row], &mut gone), "a row is missing");
                }
                prop_assert!(!take_out(&mut equal, &index, &[row], &mut gone), "a row too many");
            }
            prop_assert_eq!(equal.live().count(), 0);
        }
    }
}
