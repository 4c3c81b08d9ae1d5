//! Messages of the read service: how `lake_query` and `lake` in a Postgres backend talk to the worker.
//!
//! One request and one response a connection round, over a unix socket; the connection may be used again. A frame is a
//! `u32` big-endian length and that many bytes of JSON; a [`Response::Pinned`] is followed by one [`Section`] for each
//! table in the same order: the deleted positions and the fresh rows, each a `u64` big-endian length and that many bytes.
//!
//! The worker keeps every file named in a [`Pin`] alive for as long as the connection that asked for it stays open:
//! the open connection *is* the reader's lease.
//!
//! This crate knows nothing of tokio, Arrow or pgrx, so that a backend pays for none of them.

mod client;
mod condition;
mod frame;
mod message;

pub use client::{Client, ClientError};
pub use condition::{Alternatives, Comparison, Condition, Value};
pub use frame::{
    FrameError, MAX_HEADER_BYTES, MAX_SECTION_BYTES, encode_header, encode_section, read_header, read_section,
};
pub use message::{
    Column, DataFile, LagRow, MirrorStatus, Pin, PinnedTable, Refusal, Request, RequestBody, Response, Section, VERSION,
};
