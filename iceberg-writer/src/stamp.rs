//! What a new state of a table takes from outside: the time, and a number that nobody else has.

use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

/// The time and a number. Who has drawn one can do the rest by values alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// As Iceberg counts it: milliseconds since 1970.
    pub(crate) now_millis: i64,
    pub(crate) unique: Uuid,
}

impl Stamp {
    pub(crate) fn draw() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_millis = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        Self { now_millis, unique: Uuid::now_v7() }
    }
}
