//! Frames of the frontend/backend protocol on one socket (PostgreSQL documentation, "Message Formats").

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::config::SourceConfig;

/// Bytes asked of the socket at a time: many small messages a system call.
const READ_BYTES: usize = 256 << 10;
/// Tag and length.
const HEADER_BYTES: usize = 5;
/// Longest message a server may announce: a row of Postgres is below 1 GiB, and an update brings two.
const LONGEST_MESSAGE: usize = (2 << 30) + (64 << 20);

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {
    /// Lets go of the runtime that the socket belongs to.
    fn detach(self: Box<Self>) -> io::Result<Detached>;
}

impl Socket for UnixStream {
    fn detach(self: Box<Self>) -> io::Result<Detached> {
        Ok(Detached::Unix(self.into_std()?))
    }
}

impl Socket for TcpStream {
    fn detach(self: Box<Self>) -> io::Result<Detached> {
        Ok(Detached::Tcp(self.into_std()?))
    }
}

/// A socket between two runtimes.
enum Detached {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
}

/// A [`Wire`] between two runtimes.
pub(super) struct DetachedWire {
    socket: Detached,
    read: BytesMut,
}

impl DetachedWire {
    /// Joins the runtime of the caller.
    pub(super) fn attach(self) -> io::Result<Wire> {
        let socket: Box<dyn Socket> = match self.socket {
            Detached::Unix(socket) => Box::new(UnixStream::from_std(socket)?),
            Detached::Tcp(socket) => Box::new(TcpStream::from_std(socket)?),
        };
        Ok(Wire { socket, read: self.read })
    }
}

/// One message of the server.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) tag: u8,
    pub(super) body: Bytes,
    /// Header and body, for parsers that want both.
    pub(super) whole: Bytes,
}

/// A socket and what was read ahead of it.
pub(super) struct Wire {
    socket: Box<dyn Socket>,
    read: BytesMut,
}

impl Wire {
    /// Opens the socket that the configuration names.
    pub(super) async fn open(source: &SourceConfig) -> io::Result<Self> {
        let socket: Box<dyn Socket> = if source.is_socket() {
            Box::new(UnixStream::connect(format!("{}/.s.PGSQL.{}", source.host, source.port)).await?)
        } else {
            let stream = TcpStream::connect((source.host.as_str(), source.port)).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        };
        Ok(Self { socket, read: BytesMut::with_capacity(READ_BYTES) })
    }

    /// Takes the wire out of the runtime that it was opened in.
    pub(super) fn detach(self) -> io::Result<DetachedWire> {
        Ok(DetachedWire { socket: self.socket.detach()?, read: self.read })
    }

    /// The next message, if all of it has been read.
    pub(super) fn take(&mut self) -> io::Result<Option<Frame>> {
        let Some((header, _)) = self.read.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        // The length counts itself, not the tag.
        let size = length + 1;
        if !(HEADER_BYTES..=LONGEST_MESSAGE).contains(&size) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message of an impossible length"));
        }
        if self.read.len() < size {
            self.read.reserve(size - self.read.len());
            return Ok(None);
        }
        let whole = self.read.split_to(size).freeze();
        Ok(Some(Frame { tag: whole[0], body: whole.slice(HEADER_BYTES..), whole }))
    }

    /// Reads more. False: the server has closed the connection. Dropped halfway, it loses nothing.
    pub(super) async fn fill(&mut self) -> io::Result<bool> {
        self.read.reserve(READ_BYTES);
        Ok(self.socket.read_buf(&mut self.read).await? > 0)
    }

    /// Waits for a whole message.
    pub(super) async fn next(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(frame);
            }
            if !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Sends bytes that are whole messages.
    pub(super) async fn send(&mut self, mut messages: BytesMut) -> io::Result<()> {
        while messages.has_remaining() {
            self.socket.write_buf(&mut messages).await?;
        }
        self.socket.flush().await
    }
}
