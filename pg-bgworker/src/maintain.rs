//! `lake.compact(rel)` and `lake.expire_snapshots(rel)`: ask the engine to put a table's files in order, and wait for it.
//! What is worth it, it does by itself.

use std::time::Duration;

use lake_protocol::{ClientError, RequestBody, Response};
use pgrx::prelude::*;

use crate::error::{Error, or_raise};
use crate::launcher::not_preloaded;
use crate::mirror::required;
use crate::preflight;
use crate::registry;
use crate::settings;
use crate::wait::ask;

/// Longest wait; `statement_timeout` and a cancel end it at any time.
const PATIENCE: Duration = Duration::from_hours(24);

/// `lake.compact(rel)`.
#[pg_extern]
fn lake_compact(relation: Option<pg_sys::Oid>) {
    or_raise(required(relation).and_then(|relation| maintain(relation, true, false)));
}

/// `lake.expire_snapshots(rel)`.
#[pg_extern]
fn lake_expire_snapshots(relation: Option<pg_sys::Oid>) {
    or_raise(required(relation).and_then(|relation| maintain(relation, false, true)));
}

fn maintain(relation: pg_sys::Oid, compact: bool, expire: bool) -> Result<(), Error> {
    preflight::check_owner(relation)?;
    registry::as_owner(|| registry::mirrored_table(relation))?
        .ok_or_else(|| Error::state("the table is not mirrored").with_hint("call lake.mirror on it first"))?;
    if !settings::preloaded() {
        return Err(not_preloaded());
    }
    let timeout_ms = u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX);
    match ask(RequestBody::Maintain { relations: vec![u32::from(relation)], compact, expire, timeout_ms }) {
        Ok(Response::Maintained) => Ok(()),
        Ok(_) | Err(ClientError::Cancelled | ClientError::Unexpected) => {
            Err(Error::state("the engine answered another question"))
        }
        Err(ClientError::Refused(refusal)) => {
            let error =
                Error::state(refusal.message).with_hint(refusal.hint.unwrap_or_else(|| "see lake.errors".to_owned()));
            Err(match refusal.detail {
                Some(detail) => error.with_detail(detail),
                None => error,
            })
        }
        Err(ClientError::Unreachable(_) | ClientError::Frame(_) | ClientError::TimedOut) => {
            Err(Error::state("the lake engine does not answer").with_hint("see lake.errors, and try again"))
        }
    }
}
