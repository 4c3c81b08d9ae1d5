//! The one connection to the catalog's database: made when needed, kept while it works, thrown away after any doubt.
//!
//! A session is *taken* for use and put back only after it ended its transaction, so a caller that is cancelled in between
//! closes the connection, and the server rolls back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_postgres::{Client, Config, NoTls, Row, Statement};

use crate::deadline;
use crate::error::{Error, ErrorKind, Result};

/// A value for a statement's parameter.
pub(super) type Parameter<'a> = &'a (dyn tokio_postgres::types::ToSql + Sync);

/// Makes sessions.
pub(super) struct Connection {
    config: Config,
    idle: Mutex<Option<Session>>,
}

/// What every session says first: times out on its own when we are gone, resolves no name by a search path, and has its
/// commits on disk when they return.
fn session_settings() -> String {
    let timeout = deadline::STATEMENT.as_millis();
    format!(
        "SET statement_timeout = {timeout}; SET lock_timeout = {timeout}; \
         SET idle_in_transaction_session_timeout = {timeout}; SET search_path = pg_catalog; \
         SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off; \
         SELECT pg_catalog.set_config('synchronous_commit', 'on', false) \
         WHERE pg_catalog.current_setting('synchronous_commit') IN ('off', 'local')"
    )
}

/// A connection with its prepared statements.
pub(super) struct Session {
    client: Client,
    statements: HashMap<String, Statement>,
}

impl Connection {
    pub(super) fn new(config: Config) -> Self {
        Self { config, idle: Mutex::new(None) }
    }

    /// The idle session, or a new one.
    pub(super) async fn take(&self) -> Result<Session> {
        let idle = self.idle.lock().await.take();
        match idle.filter(|session| !session.client.is_closed()) {
            Some(session) => Ok(session),
            None => self.connect().await,
        }
    }

    /// Gives back a session that is in no transaction.
    pub(super) async fn put(&self, session: Session) {
        *self.idle.lock().await = Some(session);
    }

    async fn connect(&self) -> Result<Session> {
        let hint = "see that the database of the catalog is up and lets the worker connect";
        let connect = async {
            let (client, connection) = self.config.connect(NoTls).await?;
            // Ends when the client is dropped; its errors come out of the client's calls.
            tokio::spawn(connection);
            client.batch_execute(&session_settings()).await?;
            Ok(client)
        };
        match tokio::time::timeout(deadline::CONNECT, connect).await {
            Ok(Ok(client)) => Ok(Session { client, statements: HashMap::new() }),
            Ok(Err(error)) => Err(Error::sql("connect to the catalog", error).with_hint(hint)),
            Err(_) => Err(Error::new(ErrorKind::Unavailable, "connect to the catalog: timed out").with_hint(hint)),
        }
    }
}

/// The server cuts a statement off first, with a better message.
fn patience() -> Duration {
    deadline::STATEMENT + Duration::from_secs(1)
}

async fn within<T>(what: &str, call: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T> {
    match tokio::time::timeout(patience(), call).await {
        Ok(result) => result.map_err(|error| Error::sql(what, error)),
        Err(_) => Err(Error::new(ErrorKind::Unavailable, format!("{what}: no answer from the catalog's database"))),
    }
}

impl Session {
    /// A statement without parameters, such as BEGIN.
    pub(super) async fn run(&self, what: &str, sql: &str) -> Result<()> {
        within(what, self.client.batch_execute(sql)).await
    }

    /// Prepares a statement once a session.
    pub(super) async fn prepare(&mut self, sql: &str) -> Result<Statement> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = within("prepare a statement of the catalog", self.client.prepare(sql)).await?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Runs a statement and counts its rows.
    pub(super) async fn execute(&self, what: &str, sql: &Statement, parameters: &[Parameter<'_>]) -> Result<u64> {
        within(what, self.client.execute(sql, parameters)).await
    }

    /// Runs a query that has one row or none.
    pub(super) async fn row(&self, what: &str, sql: &Statement, parameters: &[Parameter<'_>]) -> Result<Option<Row>> {
        within(what, self.client.query_opt(sql, parameters)).await
    }
}

/// An SQL name, quoted.
pub(super) fn quoted(name: &str) -> Arc<str> {
    format!("\"{}\"", name.replace('"', "\"\"")).into()
}
