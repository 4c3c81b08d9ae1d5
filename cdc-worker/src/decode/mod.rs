//! From bytes to values: pgoutput messages, binary tuples, and Arrow columns.
//!
//! Everything here is a function of its input: no clock, no IO. Values are borrowed from the message and go straight
//! into column builders.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub(crate) mod copy;
pub(crate) mod message;
mod plain;
pub(crate) mod row;
pub(crate) mod value;
