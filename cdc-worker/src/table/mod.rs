//! One mirrored table in memory: its files, the position index, and the changes that Iceberg has not got yet.
//!
//! All but the index is a function of values: no clock, no chance, no files. [`MirroredTable`] asks the index where a row
//! is, which may read a page from disk: the one seam. What the index answers depends on nothing but what was put into it,
//! so a simulation may give it any directory, one in memory for speed; only its `Run` touches files, and would be the
//! place for faults. Rows of data files are not read here either: [`Step::NeedsOldRow`] asks the caller for one.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod columns;
mod compaction;
mod companions;
mod delta;
mod equal_rows;
mod files;
pub(crate) mod history;
mod identity;
#[allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "keeps its runs on disk, and hashes with a secret"
)]
mod index;
mod keys;
mod mirrored;
mod overlap;
mod pin;
mod pruning;
pub(crate) mod remark;
mod tiers;

pub(crate) use columns::{Attribute, Described, Followed, Known, Seen, Shape, follow};
pub(crate) use compaction::{Input, Order, Output, Rewritten};
pub(crate) use delta::with_columns;
pub(crate) use files::FileState;
pub(crate) use history::History;
pub(crate) use identity::RowIdentity;
pub(crate) use index::{IndexStore, IndexWriter, Position, PositionIndex};
pub(crate) use mirrored::{MirroredTable, OldValues, Pending, Step, WrittenRows};
pub(crate) use overlap::CopiedFile;
pub(crate) use pin::TablePin;
pub(crate) use tiers::{Candidate, Extent, Wanted, choose};
