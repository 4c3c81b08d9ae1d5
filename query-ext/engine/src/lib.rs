//! DuckDB inside one process, as a thing that reads pinned lake tables: Parquet files, minus deleted positions, plus
//! fresh rows.
//!
//! The crate knows nothing of Postgres (and must not: its callbacks run on DuckDB's threads, where no Postgres function
//! may be called). Invariants it keeps:
//!
//! * **No signal lands on a DuckDB thread.** Every call that may start a thread runs with all signals blocked, and a
//!   thread inherits the mask of the one that starts it ([`Engine::open`]; `ahead`).
//! * **Nothing outside the allowed directories is read or written.** A directory may be a prefix of an object store, for
//!   which alone its key counts ([`ObjectStore`]). External access is off, the allowed directories are
//!   fixed at opening, and the configuration is locked; another set of directories needs another [`Engine`].
//! * **A pinned table lives as long as the rows read from it.** [`Rows`] owns the [`PinnedScan`]s its SQL names; a slot's number
//!   is never given out twice, so SQL that outlives its slot fails instead of reading another table.
//! * **A cancel is never lost.** While the caller waits for DuckDB (in a call, or for the thread that fetches a long
//!   result ahead: `ahead`), a watchdog asks the caller's `cancelled` every few milliseconds and interrupts the
//!   connection (`watchdog`).

mod account;
mod ahead;
mod chunk;
mod deleted;
mod error;
mod fresh;
mod functions;
mod instance;
mod rows;
mod scan;
mod slot;
mod spill;
mod store;
mod watchdog;

pub use account::Peak;
pub use chunk::{Chunk, ColumnKind, Vector};
pub use error::{Error, ErrorKind};
pub use instance::{Engine, Settings};
pub use rows::{Delivery, Rows};
pub use scan::{PinnedScan, ScanColumn, ScanFile, ScanTable};
pub use spill::SpillDirectory;
pub use store::ObjectStore;
