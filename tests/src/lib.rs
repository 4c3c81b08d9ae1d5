//! The end-to-end harness: private Postgres servers, the worker as a process, and an oracle that compares heap and lake.
//!
//! ```text
//!  Postgres ──────── heap ───────────────┐
//!     │ WAL                              ▼
//!  Worker (or the extension) ─▶ lake ─▶ Oracle: heap = DuckDB = PyIceberg, at one LSN
//!     ▲ kill -9, SIGTERM                 ▲
//!  Workload: seeded transactions over several tables, with an invariant that each snapshot of the lake must keep
//! ```
//!
//! Invariant: a test leaves nothing behind. Every server and worker runs in a directory of its own, listens on a socket in
//! it (or on a port that the kernel chose), and dies with the thread that started it, even when that is killed; the
//! directories of killed runs are swept by the next one.

mod account;
mod azurite;
mod catalog;
mod deadline;
mod java_catalog;
mod oracle;
mod postgres;
mod process;
mod python;
mod random;
mod scratch;
mod seaweed;
mod source;
mod worker;
mod workload;

pub mod flights;
pub mod regress;
pub mod soak;

pub use account::Account;
pub use azurite::Azurite;
pub use catalog::OtherCatalog;
pub use deadline::{bounded, eventually};
pub use java_catalog::JavaCatalog;
pub use oracle::{Kinds, Oracle, PartitionFiles, Partitions};
pub use postgres::{Postgres, PostgresBuilder, Stop, program};
pub use process::Process;
pub use python::{Python, repository};
pub use scratch::Scratch;
pub use seaweed::{Key, Seaweed};
pub use source::Source;
pub use worker::{Worker, WorkerConfig, exit_code};
pub use workload::{Running, Stats, Workload};
