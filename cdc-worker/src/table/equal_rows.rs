//! Changes of a table without a key: several rows may have one identity.
//!
//! Invariant: a row of the delta is live exactly when its ordinal is in `fresh` of its identity. Stored rows that were
//! taken out have left the index at once, so nothing is remembered of them but how far the search for equal ones got:
//! without that, deleting n equal rows would step over the remains of 1 + 2 + … + n index entries.

use std::collections::HashMap;

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

/// Rows since the last commit by identity.
#[derive(Debug, Default)]
pub(super) struct EqualRows {
    rows: HashMap<Box<[u8]>, Equal>,
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
