//! SQL connections to the source.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use crate::Result;
use crate::config::SourceConfig;
use crate::error::{Error, ErrorKind};

/// Longest wait for a connection to be accepted and authenticated.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Settings pinned on every connection: nobody's `search_path` decides what a name means, and a row-level security
/// policy makes the copy fail instead of making it incomplete. Compiling the queries on the catalog, twice a second, would
/// take several times as long as running them.
pub(crate) const SESSION_OPTIONS: &str = "-c search_path=pg_catalog -c jit=off -c row_security=off -c statement_timeout=0 -c lock_timeout=0 \
     -c idle_in_transaction_session_timeout=0 -c default_transaction_isolation=read\\ committed -c extra_float_digits=1";

/// Refuses a configuration that would send rows and a password over an open network unasked.
pub(crate) fn check(source: &SourceConfig) -> Result<()> {
    if source.is_socket() || source.insecure {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Config, "a TCP connection to the source would not be encrypted").with_hint(
        "use a unix socket (host = \"/var/run/postgresql\"), or set insecure = true in [source] where the network is \
         trusted or a tunnel encrypts it; TLS is not there yet",
    ))
}

/// `tokio_postgres` settings for the source.
pub(crate) fn sql_config(source: &SourceConfig, application: &str) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config
        .host(&source.host)
        .port(source.port)
        .dbname(&source.database)
        .user(&source.user)
        .application_name(application)
        .options(SESSION_OPTIONS)
        .connect_timeout(CONNECT_DEADLINE);
    if let Some(password) = &source.password {
        config.password(password.reveal());
    }
    config
}

/// An SQL connection. Its driver task ends with the client.
///
/// # Errors
/// [`ErrorKind::SourceUnreachable`], or [`ErrorKind::SourceUnfit`] when the server refuses the role.
pub(crate) async fn sql(source: &SourceConfig, application: &str) -> Result<Client> {
    Ok(watched(source, application).await?.0)
}

/// An SQL connection, and the task that ends when the connection does.
///
/// # Errors
/// As [`sql`].
pub(crate) async fn watched(source: &SourceConfig, application: &str) -> Result<(Client, JoinHandle<()>)> {
    let config = sql_config(source, application);
    let (client, connection) = match tokio::time::timeout(CONNECT_DEADLINE, config.connect(NoTls)).await {
        Ok(Ok(connected)) => connected,
        Ok(Err(error)) => return Err(unreachable_source(source, error)),
        Err(elapsed) => {
            return Err(Error::new(ErrorKind::SourceUnreachable, place(source)).with_source(elapsed));
        }
    };
    let driver = tokio::spawn(async move {
        // Every statement on the client reports the break; here it would only be said twice.
        if let Err(error) = connection.await {
            tracing::debug!(error = %error, "an SQL connection ended");
        }
    });
    Ok((client, driver))
}

/// Nothing but the text tells that a password was asked for and not given.
fn wants_password(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|cause| cause.to_string().contains("password missing"))
}

fn place(source: &SourceConfig) -> String {
    format!("connect to {}:{} database {} as {}", source.host, source.port, source.database, source.user)
}

fn unreachable_source(source: &SourceConfig, error: tokio_postgres::Error) -> Error {
    let refused = error.code().is_some_and(|code| code.code().starts_with("28") || code.code() == "3D000");
    let (kind, hint) = if source.password.is_none() && error.as_db_error().is_none() && wants_password(&error) {
        (ErrorKind::SourceUnfit, "the server asks for one: set source.password_file, or LAKEMIRROR_SOURCE_PASSWORD")
    } else if refused {
        (ErrorKind::SourceUnfit, "check role, password, database and pg_hba.conf")
    } else {
        (ErrorKind::SourceUnreachable, "is the server running, and are host and port right?")
    };
    let message = match error.as_db_error() {
        Some(db) => format!("{}: {}", place(source), db.message()),
        None => place(source),
    };
    Error::new(kind, message).with_hint(hint).with_source(error)
}
