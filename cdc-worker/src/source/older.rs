//! The transactions that the creation of a slot waits for.
//!
//! Postgres makes a logical slot when every transaction that is older than it has ended, in all databases, prepared ones
//! too, and says nothing until then. A forgotten session, or a prepared transaction whose manager is gone, keeps a copy
//! waiting for ever: so somebody has to be told which it is. What they do is nobody's business, and is not told.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::{Client, Row};

use crate::Result;
use crate::config::SourceConfig;

use super::connect;

/// Shorter waits are part of a slot's creation.
const PATIENCE: Duration = Duration::from_secs(5);
const LOG_EVERY: Duration = Duration::from_secs(60);

/// What is waited for at the moment, for whoever asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct OlderTransactions(Arc<Mutex<Option<String>>>);

impl OlderTransactions {
    /// `None`: nothing is known to be waited for.
    pub(crate) fn shown(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn show(&self, text: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
}

/// Waits for the creation of a slot, and says what it waits for when that takes long. `wanted` is what waits for the slot.
pub(crate) async fn while_made<T>(
    source: &SourceConfig,
    wanted: &str,
    older: &OlderTransactions,
    slot: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        made = slot => {
            older.show(None);
            made
        }
        never = watch(source, wanted, older) => match never {},
    }
}

async fn watch(source: &SourceConfig, wanted: &str, older: &OlderTransactions) -> Infallible {
    let begun = Instant::now();
    let (mut look, mut told) = (None, None::<Instant>);
    loop {
        tokio::time::sleep(PATIENCE).await;
        match oldest(source, &mut look).await {
            Ok(Some(waits)) => {
                let text = waits.describe(begun.elapsed());
                if told.is_none_or(|told| told.elapsed() >= LOG_EVERY) {
                    told = Some(Instant::now());
                    tracing::warn!("{wanted} waits for {text}");
                }
                older.show(Some(text));
            }
            // It may be about to be made.
            Ok(None) => older.show(None),
            Err(error) => {
                look = None;
                tracing::debug!(error = %error.report(), "could not see what a slot's creation waits for");
            }
        }
    }
}

/// A connection to look with, and the number that the older transactions are below.
struct Look {
    client: Client,
    below: String,
}

async fn oldest(source: &SourceConfig, look: &mut Option<Look>) -> Result<Option<Waits>> {
    let Look { client, below } = match look {
        Some(look) => look,
        None => {
            let client = connect::sql(source, "lake copy").await?;
            let below = newest(&client).await?;
            look.insert(Look { client, below })
        }
    };
    let found = client
        .query_opt(
            "SELECT count(*) OVER (), pid, application_name, datname, gid, \
                    extract(epoch FROM clock_timestamp() - since)::float8 \
             FROM (SELECT backend_xid AS xid, pid, application_name, datname, NULL AS gid, xact_start AS since \
                   FROM pg_stat_activity WHERE backend_xid IS NOT NULL \
                   UNION ALL SELECT transaction, NULL, NULL, database, gid, prepared FROM pg_prepared_xacts) open \
             WHERE age(xid) > age($1::text::xid) ORDER BY age(xid) DESC LIMIT 1",
            &[below],
        )
        .await?;
    if found.is_none() {
        // A slot's creation waits more than once: for those, too, that began while it waited for the first ones.
        *below = newest(client).await?;
    }
    Ok(found.map(|row| Waits::of(&row)))
}

/// The number that no transaction has got yet.
async fn newest(client: &Client) -> Result<String> {
    let row = client.query_one("SELECT pg_snapshot_xmax(pg_current_snapshot())::xid::text", &[]).await?;
    Ok(row.get(0))
}

/// How many transactions are waited for, and which is the oldest.
#[derive(Debug, Clone)]
struct Waits {
    transactions: i64,
    /// `None` of a prepared one.
    pid: Option<i32>,
    application: Option<String>,
    database: Option<String>,
    /// The name of a prepared one.
    gid: Option<String>,
    /// Since it began or was prepared. `None`: the role may not see it.
    seconds: Option<f64>,
}

impl Waits {
    fn of(row: &Row) -> Self {
        Self {
            transactions: row.get(0),
            pid: row.get(1),
            application: row.get(2),
            database: row.get(3),
            gid: row.get(4),
            seconds: row.get(5),
        }
    }

    /// For a log, after so long a wait.
    fn describe(&self, waited: Duration) -> String {
        let Self { transactions, pid, application, database, gid, seconds } = self;
        let many = if *transactions == 1 { "" } else { "s" };
        let which = if *transactions == 1 { "it is" } else { "the oldest is" };
        let database = database.as_deref().unwrap_or("?");
        let age = match seconds {
            Some(seconds) => format!("{seconds:.0} s"),
            // It is older than the wait.
            None => format!("more than {} s", waited.as_secs()),
        };
        // Names that somebody else has chosen are quoted, so that none of them can look like a line of ours.
        let what = match (gid, pid) {
            (Some(gid), _) => {
                format!(
                    "prepared transaction {gid:?} in database {database:?}, for {age} (COMMIT or ROLLBACK PREPARED)"
                )
            }
            (None, Some(pid)) => {
                let application = application.as_deref().unwrap_or_default();
                format!("of pid {pid}, application {application:?}, in database {database:?}, open for {age}")
            }
            (None, None) => format!("unknown, for {age}"),
        };
        format!("{transactions} older transaction{many} to end: {which} {what}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_named() {
        let mut waits = Waits {
            transactions: 3,
            pid: Some(4711),
            application: Some("night\njob".to_owned()),
            database: Some("app".to_owned()),
            gid: None,
            seconds: Some(42.4),
        };
        let waited = Duration::from_secs(5);
        assert_eq!(
            waits.describe(waited),
            "3 older transactions to end: the oldest is of pid 4711, application \"night\\njob\", in database \"app\", open for 42 s"
        );
        (waits.transactions, waits.seconds) = (1, None);
        let text = waits.describe(waited);
        assert!(
            text.contains("1 older transaction to end: it is of pid 4711") && text.ends_with("more than 5 s"),
            "{text}"
        );
        (waits.pid, waits.gid) = (None, Some("tm-1".to_owned()));
        let text = waits.describe(waited);
        assert!(text.contains("prepared transaction \"tm-1\"") && text.contains("ROLLBACK PREPARED"), "{text}");
    }
}
