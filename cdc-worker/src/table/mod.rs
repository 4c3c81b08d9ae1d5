//! One mirrored table in memory: its files, the position index, and the changes that Iceberg has not got yet.

mod delta;
mod equal_rows;
mod identity;
mod index;
mod keys;
mod mirrored;

pub(crate) use identity::RowIdentity;
pub(crate) use index::{IndexStore, IndexWriter, Position, PositionIndex};
pub(crate) use mirrored::{FileState, MirroredTable, Step, TablePin};
