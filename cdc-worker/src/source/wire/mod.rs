//! Sessions of our own over the frontend/backend protocol, for what `tokio-postgres` does not speak (replication) or does a
//! message at a time (COPY of millions of rows).
//!
//! Messages are cut here; they are parsed, and authentication is done, with `postgres-protocol`, as `tokio-postgres` does it.

mod failure;
mod session;

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::backend::COPY_DATA_TAG;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::config::SourceConfig;

pub(crate) use failure::Failure;
#[cfg(test)]
pub(crate) use failure::Refusal;
pub(crate) use session::{TextRows, WireSession};

/// Bytes asked of the socket at a time: many small messages a system call.
const READ_BYTES: usize = 256 << 10;
/// A buffer that a message has made larger is given back behind it.
const KEPT_BYTES: usize = 4 * READ_BYTES;
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
pub(crate) struct DetachedWire {
    socket: Detached,
    read: BytesMut,
}

impl DetachedWire {
    /// Joins the runtime of the caller.
    pub(crate) fn attach(self) -> io::Result<Wire> {
        let socket: Box<dyn Socket> = match self.socket {
            Detached::Unix(socket) => Box::new(UnixStream::from_std(socket)?),
            Detached::Tcp(socket) => Box::new(TcpStream::from_std(socket)?),
        };
        Ok(Wire { socket, read: self.read })
    }
}

/// One message of the server.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) tag: u8,
    pub(crate) body: Bytes,
    /// Header and body, for parsers that want both.
    pub(crate) whole: Bytes,
}

/// A socket and what was read ahead of it. Dropped, it is closed, which ends whatever the server does for it.
pub(crate) struct Wire {
    socket: Box<dyn Socket>,
    read: BytesMut,
}

impl Wire {
    /// Opens the socket that the configuration names.
    pub(crate) async fn open(source: &SourceConfig) -> io::Result<Self> {
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
    pub(crate) fn detach(self) -> io::Result<DetachedWire> {
        Ok(DetachedWire { socket: self.socket.detach()?, read: self.read })
    }

    /// The next message, if all of it has been read.
    pub(crate) fn take(&mut self) -> io::Result<Option<Frame>> {
        let Some(size) = size_of_first(&self.read)?.filter(|size| *size <= self.read.len()) else { return Ok(None) };
        let whole = self.read.split_to(size).freeze();
        Ok(Some(Frame { tag: whole[0], body: whole.slice(HEADER_BYTES..), whole }))
    }

    /// Whether a whole CopyData message is next.
    pub(crate) fn has_copy_data(&self) -> bool {
        let size = size_of_first(&self.read).ok().flatten();
        self.read.first() == Some(&COPY_DATA_TAG) && size.is_some_and(|size| size <= self.read.len())
    }

    /// Calls `each` with what the CopyData messages carry that have been read whole, up to a message of another kind (or
    /// none that can be one: [`Self::take`] says so). They are looked at where they lie: a copy has millions of them.
    ///
    /// # Errors
    /// Whatever `each` returns.
    pub(crate) fn each_copy_data<E>(&mut self, each: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut rest: &[u8] = &self.read;
        while let Ok(Some(size)) = size_of_first(rest) {
            let Some((message, behind)) = rest.split_at_checked(size) else { break };
            if message[0] != COPY_DATA_TAG {
                break;
            }
            each(&message[HEADER_BYTES..])?;
            rest = behind;
        }
        let done = self.read.len() - rest.len();
        self.read.advance(done);
        Ok(())
    }

    /// Reads more. False: the server has closed the connection. Dropped halfway, it loses nothing.
    pub(crate) async fn fill(&mut self) -> io::Result<bool> {
        self.make_room()?;
        Ok(self.socket.read_buf(&mut self.read).await? > 0)
    }

    /// Room for a good read, or for all of the message that has begun. Not for more behind a large one: then it would be
    /// moved once more.
    fn make_room(&mut self) -> io::Result<()> {
        let whole = size_of_first(&self.read)?.unwrap_or(0);
        let wanted = if whole > READ_BYTES { whole.saturating_sub(self.read.len()) } else { READ_BYTES };
        if self.read.capacity() > KEPT_BYTES && self.read.len() + wanted <= KEPT_BYTES {
            let mut smaller = BytesMut::with_capacity(self.read.len() + wanted);
            smaller.extend_from_slice(&self.read);
            self.read = smaller;
        }
        self.read.reserve(wanted.max(1));
        Ok(())
    }

    /// Waits for a whole message.
    pub(crate) async fn next(&mut self) -> io::Result<Frame> {
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
    pub(crate) async fn send(&mut self, mut messages: BytesMut) -> io::Result<()> {
        while messages.has_remaining() {
            self.socket.write_buf(&mut messages).await?;
        }
        self.socket.flush().await
    }
}

/// How long the first message in the buffer is, header and all, as soon as that is known.
fn size_of_first(read: &[u8]) -> io::Result<Option<usize>> {
    let Some([_, length @ ..]) = read.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    // The length counts itself, not the tag.
    let size = u32::from_be_bytes(*length) as usize + 1;
    if !(HEADER_BYTES..=LONGEST_MESSAGE).contains(&size) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message of an impossible length"));
    }
    Ok(Some(size))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    type Messages = Vec<(u8, Vec<u8>)>;

    fn wire() -> (Wire, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Wire { socket: Box::new(ours), read: BytesMut::new() }, theirs)
    }

    fn on_the_wire(messages: &Messages) -> Vec<u8> {
        let mut raw = Vec::new();
        for (tag, body) in messages {
            raw.push(*tag);
            raw.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
            raw.extend_from_slice(body);
        }
        raw
    }

    /// Reads to the end as a copy does: data where they lie, other messages one by one.
    async fn read(mut wire: Wire) -> io::Result<(Messages, Wire)> {
        let mut seen: Messages = Vec::new();
        loop {
            let had = wire.has_copy_data();
            let before = seen.len();
            wire.each_copy_data(&mut |data| {
                seen.push((COPY_DATA_TAG, data.to_vec()));
                Ok::<(), io::Error>(())
            })?;
            assert_eq!(had, seen.len() > before);
            if let Some(frame) = wire.take()? {
                assert_eq!(frame.whole.slice(HEADER_BYTES..), frame.body);
                seen.push((frame.tag, frame.body.to_vec()));
            } else if !wire.fill().await? {
                return Ok((seen, wire));
            }
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    fn body() -> impl Strategy<Value = Vec<u8>> {
        let large = (200_000usize..1_500_000, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]);
        prop_oneof![20 => proptest::collection::vec(any::<u8>(), 0..40), 1 => large]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// However the bytes come, the messages are the same ones.
        #[test]
        fn messages_may_be_cut_anywhere(
            messages in proptest::collection::vec((prop_oneof![4 => Just(COPY_DATA_TAG), 1 => Just(b'N')], body()), 0..40),
            pieces in proptest::collection::vec(prop_oneof![1usize..9, 1usize..300_000], 1..40),
        ) {
            let raw = on_the_wire(&messages);
            let seen = block_on(async {
                let (wire, mut server) = wire();
                let write = async move {
                    let mut rest = &raw[..];
                    for piece in pieces.iter().cycle() {
                        let (now, later) = rest.split_at(rest.len().min(*piece));
                        server.write_all(now).await.unwrap();
                        tokio::task::yield_now().await;
                        rest = later;
                        if rest.is_empty() {
                            break;
                        }
                    }
                };
                tokio::join!(write, read(wire)).1
            });
            let (seen, wire) = seen.unwrap();
            prop_assert!(seen == messages, "{} instead of {} messages", seen.len(), messages.len());
            prop_assert_eq!(wire.read.len(), 0);
        }
    }

    #[test]
    fn every_cut_of_a_few_messages_leaves_them_as_they_are() {
        let messages = vec![(COPY_DATA_TAG, b"row".to_vec()), (b'N', vec![]), (COPY_DATA_TAG, vec![0; 7])];
        let raw = on_the_wire(&messages);
        for cut in 0..=raw.len() {
            let seen = block_on(async {
                let (wire, mut server) = wire();
                let write = async {
                    server.write_all(&raw[..cut]).await.unwrap();
                    tokio::task::yield_now().await;
                    server.write_all(&raw[cut..]).await.unwrap();
                    drop(server);
                };
                tokio::join!(write, read(wire)).1
            });
            assert_eq!(seen.unwrap().0, messages, "cut at {cut}");
        }
    }

    #[test]
    fn room_for_a_large_message_is_given_back_behind_it() {
        let large = vec![(COPY_DATA_TAG, vec![1; 4 * KEPT_BYTES])];
        let small: Messages = (0..10).map(|_| (COPY_DATA_TAG, vec![2; READ_BYTES / 4])).collect();
        let both = [large, small].concat();
        let raw = on_the_wire(&both);
        let read = block_on(async {
            let (wire, mut server) = wire();
            let write = async move { server.write_all(&raw).await.unwrap() };
            tokio::join!(write, read(wire)).1
        });
        let (seen, wire) = read.unwrap();
        assert!(seen == both);
        assert!(wire.read.capacity() <= KEPT_BYTES, "{} bytes are kept", wire.read.capacity());
    }

    #[test]
    fn a_length_that_cannot_be_is_an_error_and_no_message() {
        for length in [0u32, 3, u32::MAX] {
            let mut raw = on_the_wire(&vec![(COPY_DATA_TAG, b"row".to_vec())]);
            raw.push(COPY_DATA_TAG);
            raw.extend_from_slice(&length.to_be_bytes());
            let read = block_on(async {
                let (wire, mut server) = wire();
                let write = async move { server.write_all(&raw).await.unwrap() };
                tokio::join!(write, read(wire)).1
            });
            assert_eq!(read.map(|_| ()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
