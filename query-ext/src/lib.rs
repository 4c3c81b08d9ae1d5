//! The Postgres extension `lake_query`: `lake.<table>` answers what its source table would, from the lake.
//!
//! A query that names such a relation is planned twice: against the source ([`planner`] swaps the relation in, so
//! privileges, locks and invalidation are those of the source), and for DuckDB. There are three ways to answer:
//!
//! 1. the **whole query** goes to DuckDB ([`whole`]), what cannot go being finished above it ([`finish`]);
//! 2. the **scans alone** go, columns and filters ([`foreign`]);
//! 3. the **heap** answers, from the plan against the source.
//!
//! With `lake.accelerate`, a query on the source's own name is answered in the first way, or by the heap ([`accelerate`]).
//!
//! Invariants:
//! - **Same answer.** Only what [`deparse`] has on its list is sent; unknown means not sent. A failure of DuckDB before
//!   the first row runs the heap's plan, which is kept beside, so errors are those of Postgres ([`answer`]).
//! - **One LSN.** All scans of a statement read from one pin ([`pin`]), and so do the functions in it that see what it sees
//!   ([`snapshot`]).
//! - **Privileges of the source**, column by column, and its row-level security ([`security`]).
//! - **Never stale in silence.** A pin that cannot be had is an error, not an older answer.

use pgrx::prelude::*;

mod accelerate;
mod answer;
mod backend;
mod companion;
mod convert;
mod deparse;
mod error;
mod explain;
mod fallback;
mod finish;
mod foreign;
mod input;
mod lake_plan;
mod literal;
mod marker;
mod node;
mod numeric;
mod pin;
mod planner;
mod pruning;
mod room;
mod security;
mod settings;
mod snapshot;
mod store;
mod tree;
mod version;
mod whole;

pgrx::pg_module_magic!();

/// Called by Postgres when the library is loaded.
#[pg_guard]
extern "C-unwind" fn _PG_init() {
    // SAFETY: a plain flag of the main thread.
    if unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        settings::define();
        fallback::reserve();
        node::register();
        planner::install();
        security::install();
    }
}

/// Raises when the library is not preloaded.
#[pg_extern(sql = "")]
fn require_query_preload() {
    if !settings::preloaded() {
        error::Error::state("lake_query must be loaded by the server")
            .with_hint("set shared_preload_libraries = 'lake, lake_query' and restart the server")
            .raise();
    }
}
