//! Replication sessions: the walsender's commands, and its stream.
//!
//! The session is our own ([`super::wire`]), for no published client speaks version 2 of pgoutput's protocol, which sends
//! large transactions while they run ("Logical Streaming Replication Protocol" in the PostgreSQL documentation).

mod refusal;
mod stream;

use iceberg_writer::Lsn;

use crate::Result;
use crate::config::SourceConfig;
use crate::error::{Error, ErrorKind};

use super::identifier::{literal, quote};
use super::settings;
use super::wire::{TextRows, WireSession};
use refusal::refused;

pub(crate) use stream::{WalMessage, WalStream};

/// How the stream sends values. Each says its own format as well: types without a send function come as text in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueFormat {
    /// Of the send functions: less work for both sides.
    Binary,
    /// Of the output functions, for all tables alike: there is no choosing by table or type.
    Text,
}

/// A replication session that is authenticated and waits for commands.
pub(crate) struct ReplicationSession {
    session: WireSession,
}

impl ReplicationSession {
    /// Connects and authenticates.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`], or [`ErrorKind::SourceUnfit`] when the server refuses the role.
    pub(crate) async fn connect(source: &SourceConfig, application: &str) -> Result<Self> {
        let parameters =
            [("replication", "database"), ("application_name", application), ("options", settings::REPLICATION)];
        let session = WireSession::open(source, &parameters).await;
        session.map(|session| Self { session }).map_err(|failure| refused(failure, "open a replication session"))
    }

    /// Runs a command, and gives its rows as text.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`], or as the server's SQLSTATE says.
    pub(crate) async fn query(&mut self, command: &str, step: &str) -> Result<TextRows> {
        self.session.query(command).await.map_err(|failure| refused(failure, step))
    }

    /// The cluster's system identifier.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub(crate) async fn system_id(&mut self) -> Result<String> {
        let step = "identify the source";
        let rows = self.query("IDENTIFY_SYSTEM", step).await?;
        let id = rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten();
        id.ok_or_else(|| Error::new(ErrorKind::Protocol, format!("{step}: an unexpected answer")))
    }

    /// Starts the stream of the source's slot and publication at `begin`. The slot is told that everything before
    /// `acknowledged` is kept elsewhere.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyRunning`] when somebody else reads the slot; as [`Self::query`].
    pub(crate) async fn start(
        mut self,
        source: &SourceConfig,
        begin: Lsn,
        acknowledged: Lsn,
        values: ValueFormat,
    ) -> Result<WalStream> {
        self.query(settings::ENCODING, "choose the encoding of the stream").await?;
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {begin} (proto_version '2', streaming 'on', binary '{}', \
             messages 'true', publication_names {})",
            quote(&source.slot),
            values == ValueFormat::Binary,
            // A list of identifiers within a string.
            literal(&quote(&source.publication)),
        );
        let started = self.session.stream(&command).await.and_then(|wire| WalStream::begin(wire, acknowledged));
        started.map_err(|failure| refused(failure, "start replication"))
    }
}
