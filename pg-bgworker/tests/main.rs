//! The extension `lake` in a real server: what it refuses, and the life of its workers. Each test has a cluster of its
//! own in a temporary directory, reachable over a unix socket only. The library under test is the one that cargo built
//! for this run, installed by `install.sh`.
#![allow(clippy::unwrap_used)]

mod cluster;
mod life;
// The crate itself can't be linked outside a server; its pure parts can.
#[allow(dead_code)]
#[path = "../src/lsn.rs"]
mod lsn;
mod mirror;
mod refusals;
