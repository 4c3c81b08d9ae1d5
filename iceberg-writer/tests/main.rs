//! The writer against a real Postgres, a real folder, a real object store and real readers.

// Helpers of tests are tests too, which the lint's own exception does not see.
#![allow(clippy::unwrap_used)]

/// Makes a test of each function on each place that a lake can be at.
macro_rules! on_each_place {
    ($($name:ident;)+) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn in_a_folder() {
                Box::pin(super::$name(crate::server::Kind::Beside)).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn in_s3() {
                Box::pin(super::$name(crate::server::Kind::InS3)).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn in_azure() {
                Box::pin(super::$name(crate::server::Kind::InAzure)).await;
            }
        }
    )+};
}

mod columns;
mod commits;
mod faults;
mod foreign;
mod layout;
mod pairs;
mod partitions;
mod proxy;
mod readers;
mod redo;
mod refusals;
mod rest;
mod rest_server;
mod retention;
mod rewrites;
mod server;
mod store_proxy;
mod stores;
mod takeover;
mod types;
mod vectors;
mod vended;
