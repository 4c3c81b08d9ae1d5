//! Slots: how SQL text names deleted positions and fresh rows that live in this process's memory.
//!
//! A slot's number goes into the SQL; `lake_live` and `lake_fresh` look it up. Numbers come from one counter and are never
//! used twice.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use roaring::RoaringTreemap;

/// What a slot holds for one table.
#[derive(Debug)]
pub(crate) struct SlotData {
    /// Deleted rows, by the file's index in the *scan* of files with deletions.
    pub(crate) deleted: Vec<RoaringTreemap>,
    /// Rows that no file has yet.
    pub(crate) fresh: Vec<RecordBatch>,
    /// Their schema; `None` when there are none.
    pub(crate) schema: Option<SchemaRef>,
    /// Rows of files with deletions that DuckDB believes to be filtered out, and which it is to expect here instead.
    pub(crate) unexpected: u64,
}

/// All slots of one engine, shared with DuckDB's callbacks.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    next: AtomicI64,
    live: RwLock<HashMap<i64, Arc<SlotData>>>,
}

impl Slots {
    pub(crate) fn admit(self: &Arc<Self>, data: SlotData) -> Slot {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.live.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(data));
        Slot { number, slots: Arc::clone(self) }
    }

    pub(crate) fn find(&self, number: i64) -> Option<Arc<SlotData>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).get(&number).map(Arc::clone)
    }
}

/// A table's deleted positions and fresh rows, reachable from SQL until this is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    number: i64,
    slots: Arc<Slots>,
}

impl Slot {
    /// The number to put into SQL.
    pub(crate) fn number(&self) -> i64 {
        self.number
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.live.write().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}
