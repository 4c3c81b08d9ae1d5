//! The mirror engine: Postgres heap tables, copied and followed by logical replication into Iceberg.
//!
//! ```text
//!  source ─▶ decode ─▶ assemble ─▶ table (delta + position index) ─▶ engine::flush ─▶ iceberg-writer commit ─▶ slot acknowledged
//!                        │                      │
//!                        └ spool: what waits    └─▶ serve: files − deleted positions + fresh rows, all at one LSN
//! ```
//!
//! *At LSN X* means, everywhere: exactly the transactions whose commit record begins before X. A commit's end, a
//! keepalive's position and a slot's consistent point are all such an X, so they compare.
//!
//! The engine keeps these promises (numbers as in the design):
//! - **I1/I2** a batch holds whole transactions of all tables up to one X, and X is committed with the data;
//! - **I3** the slot is acknowledged from a [`iceberg_writer::CommitReceipt`] only;
//! - **I4** a table's copy reads the snapshot exported by a slot's creation, and the stream takes over at that slot's
//!   consistent point;
//! - **I6** a table that fails goes to `errored` and the others stream on.
#![cfg_attr(test, allow(clippy::cast_possible_truncation, clippy::unwrap_used, clippy::too_many_lines))]

mod assemble;
pub mod cli;
mod config;
mod decode;
mod engine;
mod error;
mod memory;
mod registry;
mod serve;
mod source;
mod spool;
mod stored_keys;
mod table;

pub use config::{
    CatalogConfig, CatalogOptions, CatalogType, CommitConfig, CopyConfig, DEFAULT_FILE_BYTES, EngineConfig,
    JdbcCatalogConfig, LEAST_FILE_BYTES, LakeConfig, ListedLayout, ListedTable, MOST_GRACE, MaintenanceConfig,
    RETAINED_SNAPSHOTS, Secret, SourceConfig, TableSelection, Unrepresentable, default_copy_connections,
};
pub use engine::run;
pub use error::{Error, ErrorKind, Retry};
pub use iceberg_writer::{Format, Retention, StoreOptions};
pub use source::identifier::quote;
pub use source::layout::layout_of_told;

/// Result of the engine's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
