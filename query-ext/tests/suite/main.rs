//! Tests of the extension on servers of their own, with a stand-in for the worker.
#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "a test that cannot go on has failed")]

mod allowlist;
mod behaviour;
mod differential;
mod harness;
mod random;
mod snapshots;
mod workloads;
