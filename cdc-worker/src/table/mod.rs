//! One mirrored table in memory: its files, the position index, and the changes that Iceberg has not got yet.

mod delta;
mod equal_rows;
mod identity;
mod index;
mod index_writer;
mod keys;
mod mirrored;

pub(crate) use identity::RowIdentity;
pub(crate) use index::{IndexStore, Position, PositionIndex};
pub(crate) use index_writer::IndexWriter;
pub(crate) use mirrored::{FileState, MirroredTable, Step, TablePin};
