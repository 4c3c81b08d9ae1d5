//! Replication sessions: the walsender's commands, and its stream.
//!
//! Messages are cut and authentication is done with `postgres-protocol`, as `tokio-postgres` does it. The session is our
//! own, for no published client speaks version 2 of pgoutput's protocol, which sends large transactions while they
//! run ("Logical Streaming Replication Protocol" in the PostgreSQL documentation).

mod failure;
mod stream;
mod wire;

use std::ops::Range;
use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use iceberg_writer::Lsn;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::{backend, frontend};

use crate::Result;
use crate::config::SourceConfig;
use crate::error::{Error, ErrorKind};

use super::identifier::{literal, quote};
use super::settings;
use failure::Failure;
use wire::{Frame, Wire};

pub(crate) use stream::{WalMessage, WalStream};

/// Longest wait for a connection to be accepted and authenticated.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Message tags that `postgres-protocol` keeps to itself.
const COPY_BOTH_RESPONSE: u8 = b'W';

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
    wire: Wire,
}

impl ReplicationSession {
    /// Connects and authenticates.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`], or [`ErrorKind::SourceUnfit`] when the server refuses the role.
    pub(crate) async fn connect(source: &SourceConfig, application: &str) -> Result<Self> {
        let step = "open a replication session";
        match tokio::time::timeout(CONNECT_DEADLINE, Self::authenticated(source, application)).await {
            Ok(session) => session.map_err(|failure| failure.at(step)),
            Err(elapsed) => Err(Error::new(ErrorKind::SourceUnreachable, step).with_source(elapsed)),
        }
    }

    async fn authenticated(source: &SourceConfig, application: &str) -> Result<Self, Failure> {
        let mut wire = Wire::open(source).await?;
        let mut startup = BytesMut::new();
        let parameters = [
            ("user", source.user.as_str()),
            ("database", &source.database),
            ("replication", "database"),
            ("client_encoding", "UTF8"),
            ("application_name", application),
            ("options", settings::REPLICATION),
        ];
        frontend::startup_message(parameters, &mut startup)?;
        wire.send(startup).await?;
        let mut scram = None;
        loop {
            match message(&wire.next().await?)? {
                Some(backend::Message::AuthenticationOk) => {}
                Some(backend::Message::ReadyForQuery(_)) => return Ok(Self { wire }),
                Some(asked) => {
                    if let Some(answer) = answer(source, asked, &mut scram)? {
                        wire.send(answer).await?;
                    }
                }
                None => return Err(Failure::protocol("the server's greeting is not understood")),
            }
        }
    }

    /// Runs a command, and gives its rows as text.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`], or as the server's SQLSTATE says.
    pub(crate) async fn query(&mut self, command: &str, step: &str) -> Result<Vec<Vec<Option<String>>>> {
        self.rows(command).await.map_err(|failure| failure.at(step))
    }

    async fn rows(&mut self, command: &str) -> Result<Vec<Vec<Option<String>>>, Failure> {
        let mut query = BytesMut::new();
        frontend::query(command, &mut query)?;
        self.wire.send(query).await?;
        let (mut rows, mut failed) = (Vec::new(), None);
        loop {
            match message(&self.wire.next().await?) {
                Ok(Some(backend::Message::DataRow(row))) => rows.push(text_columns(&row)?),
                Ok(Some(backend::Message::ReadyForQuery(_))) => return failed.map_or(Ok(rows), Err),
                Ok(_) => {}
                // The session goes on behind it.
                Err(refused @ Failure::Server { .. }) => failed = Some(refused),
                Err(broken) => return Err(broken),
            }
        }
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
        let started = self.started(source, begin, values).await;
        started
            .and_then(|()| WalStream::begin(self.wire, acknowledged))
            .map_err(|failure| failure.at("start replication"))
    }

    async fn started(&mut self, source: &SourceConfig, begin: Lsn, values: ValueFormat) -> Result<(), Failure> {
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {begin} (proto_version '2', streaming 'on', binary '{}', \
             messages 'true', publication_names {})",
            quote(&source.slot),
            values == ValueFormat::Binary,
            // A list of identifiers within a string.
            literal(&quote(&source.publication)),
        );
        let mut query = BytesMut::new();
        frontend::query(&command, &mut query)?;
        self.wire.send(query).await?;
        loop {
            let frame = self.wire.next().await?;
            if frame.tag == COPY_BOTH_RESPONSE {
                return Ok(());
            }
            message(&frame)?;
        }
    }
}

/// What to send for a request to authenticate.
fn answer(
    source: &SourceConfig,
    asked: backend::Message,
    scram: &mut Option<sasl::ScramSha256>,
) -> Result<Option<BytesMut>, Failure> {
    let password = || source.password.as_ref().map(|password| password.reveal()).ok_or(Failure::NoPassword);
    let mut answer = BytesMut::new();
    match asked {
        backend::Message::AuthenticationCleartextPassword => {
            frontend::password_message(password()?.as_bytes(), &mut answer)?;
        }
        backend::Message::AuthenticationMd5Password(body) => {
            let hash = md5_hash(source.user.as_bytes(), password()?.as_bytes(), body.salt());
            frontend::password_message(hash.as_bytes(), &mut answer)?;
        }
        backend::Message::AuthenticationSasl(_) => {
            let first = sasl::ScramSha256::new(password()?.as_bytes(), sasl::ChannelBinding::unsupported());
            frontend::sasl_initial_response(sasl::SCRAM_SHA_256, first.message(), &mut answer)?;
            *scram = Some(first);
        }
        backend::Message::AuthenticationSaslContinue(body) => {
            let scram = scram.as_mut().ok_or_else(|| Failure::protocol("SASL out of order"))?;
            scram.update(body.data())?;
            frontend::sasl_response(scram.message(), &mut answer)?;
        }
        backend::Message::AuthenticationSaslFinal(body) => {
            scram.as_mut().ok_or_else(|| Failure::protocol("SASL out of order"))?.finish(body.data())?;
            return Ok(None);
        }
        backend::Message::ParameterStatus(_)
        | backend::Message::BackendKeyData(_)
        | backend::Message::NoticeResponse(_) => return Ok(None),
        _ => return Err(Failure::protocol("the server asks for a kind of authentication that is not supported")),
    }
    Ok(Some(answer))
}

/// Parses a frame; a server's error becomes ours. `None`: not a message that the parser knows.
fn message(frame: &Frame) -> Result<Option<backend::Message>, Failure> {
    if frame.tag == COPY_BOTH_RESPONSE {
        return Ok(None);
    }
    match backend::Message::parse(&mut BytesMut::from(&*frame.whole))? {
        Some(backend::Message::ErrorResponse(body)) => Err(Failure::server(&body)),
        parsed => Ok(parsed),
    }
}

fn text_columns(row: &backend::DataRowBody) -> Result<Vec<Option<String>>, Failure> {
    let text =
        |range: Option<Range<usize>>| Ok(range.map(|range| String::from_utf8_lossy(&row.buffer()[range]).into_owned()));
    Ok(row.ranges().map(text).collect()?)
}
