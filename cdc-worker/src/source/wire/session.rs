//! A session: authenticated, and waiting for commands.

use std::io;
use std::ops::Range;
use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::{backend, frontend};

use crate::config::SourceConfig;

use super::{Failure, Frame, Wire};

/// Longest wait for a connection to be accepted and authenticated.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Message tags that `postgres-protocol` keeps to itself.
const COPY_BOTH_RESPONSE: u8 = b'W';

/// Rows as text, NULL as `None`.
pub(crate) type TextRows = Vec<Vec<Option<String>>>;

/// A session that waits for commands of the simple query protocol.
pub(crate) struct WireSession {
    wire: Wire,
}

impl WireSession {
    /// Connects and authenticates. `parameters` are those of the startup message beside role, database and encoding.
    pub(crate) async fn open(source: &SourceConfig, parameters: &[(&str, &str)]) -> Result<Self, Failure> {
        match tokio::time::timeout(CONNECT_DEADLINE, Self::authenticated(source, parameters)).await {
            Ok(session) => session,
            Err(elapsed) => Err(io::Error::from(elapsed).into()),
        }
    }

    async fn authenticated(source: &SourceConfig, parameters: &[(&str, &str)]) -> Result<Self, Failure> {
        let mut wire = Wire::open(source).await?;
        let mut startup = BytesMut::new();
        let common = [("user", source.user.as_str()), ("database", &source.database), ("client_encoding", "UTF8")];
        frontend::startup_message(common.iter().chain(parameters).copied(), &mut startup)?;
        wire.send(startup).await?;
        let mut scram = None;
        loop {
            match parse(&wire.next().await?)? {
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

    /// Runs commands, and gives their rows.
    pub(crate) async fn query(&mut self, command: &str) -> Result<TextRows, Failure> {
        self.ask(command).await?;
        let mut rows = Vec::new();
        self.until_ready(|message| {
            if let backend::Message::DataRow(row) = message {
                rows.push(text_columns(&row)?);
            }
            Ok(())
        })
        .await?;
        Ok(rows)
    }

    /// Sends a command whose answer is a replication stream, and gives the wire that carries it.
    pub(crate) async fn stream(mut self, command: &str) -> Result<Wire, Failure> {
        self.ask(command).await?;
        loop {
            let frame = self.wire.next().await?;
            if frame.tag == COPY_BOTH_RESPONSE {
                return Ok(self.wire);
            }
            parse(&frame)?;
        }
    }

    /// Sends a command `COPY … TO STDOUT (FORMAT binary)`. Its data come with [`Self::copied`].
    pub(crate) async fn copy_out(&mut self, command: &str) -> Result<(), Failure> {
        self.ask(command).await?;
        loop {
            match self.next().await? {
                Some(backend::Message::CopyOutResponse(body)) if body.format() == 1 => return Ok(()),
                Some(backend::Message::NoticeResponse(_) | backend::Message::ParameterStatus(_)) => {}
                _ => return Err(Failure::protocol("a copy that does not begin as one")),
            }
        }
    }

    /// Waits for more of the copy, at most until something comes. False: that was all of it, and the session waits for
    /// commands again. Dropped halfway, it loses nothing unless it was the end that came.
    pub(crate) async fn copied(&mut self) -> Result<bool, Failure> {
        // What came with the beginning of the copy, or with an earlier read.
        if self.wire.has_copy_data() {
            return Ok(true);
        }
        let Some(frame) = self.wire.take()? else {
            return if self.wire.fill().await? {
                Ok(true)
            } else {
                Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
            };
        };
        match parse(&frame)? {
            Some(backend::Message::CopyDone) => {
                self.until_ready(|_| Ok(())).await?;
                Ok(false)
            }
            Some(backend::Message::NoticeResponse(_) | backend::Message::ParameterStatus(_)) => Ok(true),
            _ => Err(Failure::protocol("a copy that does not end as one")),
        }
    }

    /// Calls `each` with what each message of the copy carries, as far as they have been read.
    ///
    /// # Errors
    /// Whatever `each` returns. Then the session is of no more use.
    pub(crate) fn each_copied<E>(&mut self, each: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        self.wire.each_copy_data(each)
    }

    async fn ask(&mut self, command: &str) -> Result<(), Failure> {
        let mut query = BytesMut::new();
        frontend::query(command, &mut query)?;
        Ok(self.wire.send(query).await?)
    }

    async fn next(&mut self) -> Result<Option<backend::Message>, Failure> {
        parse(&self.wire.next().await?)
    }

    /// Calls `each` with every message up to the one that says that the session waits again.
    async fn until_ready(
        &mut self,
        mut each: impl FnMut(backend::Message) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut refused = None;
        loop {
            match self.next().await {
                Ok(Some(backend::Message::ReadyForQuery(_))) => return refused.map_or(Ok(()), Err),
                Ok(Some(message)) => each(message)?,
                Ok(None) => {}
                // The session goes on behind it.
                Err(refusal @ Failure::Server(_)) => refused = Some(refusal),
                Err(broken) => return Err(broken),
            }
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
fn parse(frame: &Frame) -> Result<Option<backend::Message>, Failure> {
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
