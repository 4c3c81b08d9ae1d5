//! The writer against a real Postgres, a real folder and real readers.

// Helpers of tests are tests too, which the lint's own exception does not see.
#![allow(clippy::unwrap_used)]

mod columns;
mod commits;
mod faults;
mod foreign;
mod pairs;
mod proxy;
mod readers;
mod retention;
mod rewrites;
mod server;
mod types;
