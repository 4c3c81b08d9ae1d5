//! The source database: connections, what must be true of it, its tables, slots, and the copy of a table.

pub(crate) mod connect;
pub(crate) mod copy;
pub(crate) mod identifier;
pub(crate) mod layout;
pub(crate) mod older;
pub(crate) mod partitions;
pub(crate) mod preflight;
pub(crate) mod publication;
pub(crate) mod relation;
pub(crate) mod replication;
pub(crate) mod sending;
pub(crate) mod settings;
pub(crate) mod shape;
pub(crate) mod slot;
mod wire;
