//! `cdc-worker maintain`: asks the running worker to put tables' files in order.

use std::time::Duration;

use lake_protocol::{RequestBody, Response};

use crate::Result;
use crate::config::EngineConfig;
use crate::error::{Error, ErrorKind};
use crate::source::{connect, relation};

use super::status::ask;

/// Longest wait: a day, in which a tebibyte is rewritten at the usual pace.
const PATIENCE: Duration = Duration::from_hours(24);

/// Waits until the files of these tables, or of all, are in order and committed so.
///
/// # Errors
/// [`ErrorKind::Io`] when the worker does not run, or could not do it.
pub(super) async fn maintain(config: &EngineConfig, names: &[String], expire: bool) -> Result<()> {
    let mut relations = Vec::with_capacity(names.len());
    if !names.is_empty() {
        connect::check(&config.source)?;
        let client = connect::sql(&config.source, "lake maintain").await?;
        for name in names {
            relations.push(relation::resolve(&client, name).await?);
        }
    }
    let timeout_ms = u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX);
    let request = RequestBody::Maintain { relations, compact: true, expire, timeout_ms };
    let Response::Maintained = ask(config, request).await? else {
        return Err(Error::new(ErrorKind::Protocol, "the worker answered another question"));
    };
    say!("the files are in order");
    Ok(())
}
