//! Time limits: a test that hangs fails with the name of what it waited for.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Runs a future under a time limit; for whole tests.
pub async fn bounded<T>(limit: Duration, future: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(limit, Box::pin(future)).await {
        Ok(result) => result,
        Err(_) => bail!("not finished within {limit:?}"),
    }
}

/// Polls until the condition gives a value; fails with `what` (and the last error) when it has not within `limit`.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut condition: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        let last = condition().await;
        match last {
            Ok(Some(value)) => return Ok(value),
            Ok(None) if started.elapsed() > limit => bail!("still not so after {limit:?}: {what}"),
            Err(error) if started.elapsed() > limit => {
                return Err(error).with_context(|| format!("still not so after {limit:?}: {what}"));
            }
            Ok(None) | Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
