//! How often the heap had to answer because DuckDB failed before the first row: counters in shared memory.

use std::sync::atomic::{AtomicU64, Ordering};

use pgrx::prelude::*;
use pgrx::{PgAtomic, pg_shmem_init};

/// Why.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reason {
    /// A value overflowed or divided by zero, a query did not bind.
    Query,
    /// The memory limit.
    Memory,
    /// DuckDB did not open.
    Open,
    /// The pin did not fit the plan.
    Pin,
    /// The worker was down or late, and the query named the sources.
    Worker,
}

/// The counters' names, in the order of [`Reason`].
const NAMES: [&str; 5] = ["query", "memory", "open", "pin", "worker"];

// SAFETY: the names are unique to this library.
static QUERY: PgAtomic<AtomicU64> = unsafe { PgAtomic::new(c"lake_query_fallback_query") };
// SAFETY: as above.
static MEMORY: PgAtomic<AtomicU64> = unsafe { PgAtomic::new(c"lake_query_fallback_memory") };
// SAFETY: as above.
static OPEN: PgAtomic<AtomicU64> = unsafe { PgAtomic::new(c"lake_query_fallback_open") };
// SAFETY: as above.
static PIN: PgAtomic<AtomicU64> = unsafe { PgAtomic::new(c"lake_query_fallback_pin") };
// SAFETY: as above.
static WORKER: PgAtomic<AtomicU64> = unsafe { PgAtomic::new(c"lake_query_fallback_worker") };

/// Reserves the shared memory; called by the postmaster.
#[allow(unexpected_cfgs, reason = "the macro asks for versions that this crate does not build for")]
pub(crate) fn reserve() {
    pg_shmem_init!(QUERY);
    pg_shmem_init!(MEMORY);
    pg_shmem_init!(OPEN);
    pg_shmem_init!(PIN);
    pg_shmem_init!(WORKER);
}

/// Counts one.
pub(crate) fn count(reason: Reason) {
    let counter = match reason {
        Reason::Query => &QUERY,
        Reason::Memory => &MEMORY,
        Reason::Open => &OPEN,
        Reason::Pin => &PIN,
        Reason::Worker => &WORKER,
    };
    counter.get().fetch_add(1, Ordering::Relaxed);
}

/// The view `lake.stat_fallback`.
#[pg_extern(sql = "")]
fn query_fallbacks() -> TableIterator<'static, (name!(reason, &'static str), name!(queries, i64))> {
    let counters =
        if crate::settings::preloaded() { [&QUERY, &MEMORY, &OPEN, &PIN, &WORKER].to_vec() } else { Vec::new() };
    TableIterator::new(
        NAMES
            .into_iter()
            .zip(counters)
            .map(|(name, counter)| (name, i64::try_from(counter.get().load(Ordering::Relaxed)).unwrap_or(i64::MAX))),
    )
}
