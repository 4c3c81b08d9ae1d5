//! A blocking client for a Postgres backend: no threads, no runtime, and never deaf to a cancel.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::condition::Alternatives;
use crate::frame::{FrameError, encode_header, read_header, read_section};
use crate::message::{Pin, Refusal, Request, RequestBody, Response, Section};

/// How often a waiting client looks up from the socket to see whether it was cancelled.
const POLL: Duration = Duration::from_millis(20);

/// Time the worker gets beyond the request's own time-out before it counts as stuck.
const GRACE: Duration = Duration::from_secs(5);

/// A connection to the read service.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
}

/// Why a request failed on the backend's side.
#[derive(Debug)]
pub enum ClientError {
    /// Nothing listens on the socket: the worker is down.
    Unreachable(io::Error),
    /// The connection broke or the answer made no sense.
    Frame(FrameError),
    /// The worker answered, with a refusal.
    Refused(Refusal),
    /// The worker gave no answer within the deadline.
    TimedOut,
    /// `cancelled` returned true.
    Cancelled,
    /// An answer to another question.
    Unexpected,
}

impl Client {
    /// Connects to the worker's socket.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let socket = UnixStream::connect(path).map_err(ClientError::Unreachable)?;
        socket.set_read_timeout(Some(POLL)).map_err(ClientError::Unreachable)?;
        socket.set_write_timeout(Some(GRACE)).map_err(ClientError::Unreachable)?;
        Ok(Self { socket })
    }

    /// Asks one question. `cancelled` is called about every 20 ms while the answer is awaited.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn ask(&mut self, body: RequestBody, cancelled: &mut dyn FnMut() -> bool) -> Result<Response, ClientError> {
        let timeout = Duration::from_millis(body.timeout_ms());
        let request = encode_header(&Request::new(body)).map_err(ClientError::Frame)?;
        self.socket.write_all(&request).map_err(|error| ClientError::Frame(error.into()))?;
        let mut reader = Patient { socket: &mut self.socket, deadline: Instant::now() + timeout + GRACE, cancelled };
        match read_header(&mut reader).map_err(error_of)? {
            Response::Refused(refusal) => Err(ClientError::Refused(refusal)),
            response => Ok(response),
        }
    }

    /// Asks for a [`Pin`] and reads its sections. The pinned files live until this client is dropped.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn pin(
        &mut self,
        relations: Vec<u32>,
        wanted: Vec<Alternatives>,
        min_lsn: Option<u64>,
        timeout: Duration,
        cancelled: &mut dyn FnMut() -> bool,
    ) -> Result<(Pin, Vec<Section>), ClientError> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let request = RequestBody::Pin { relations, wanted, min_lsn, timeout_ms };
        let Response::Pinned(pin) = self.ask(request, cancelled)? else {
            return Err(ClientError::Unexpected);
        };
        let mut reader = Patient { socket: &mut self.socket, deadline: Instant::now() + timeout + GRACE, cancelled };
        let mut sections = Vec::with_capacity(pin.tables.len());
        for _ in &pin.tables {
            sections.push(read_section(&mut reader).map_err(error_of)?);
        }
        Ok((pin, sections))
    }
}

/// A reader that turns the socket's short time-outs into "look whether we were cancelled, then go on".
struct Patient<'a> {
    socket: &'a mut UnixStream,
    deadline: Instant,
    cancelled: &'a mut dyn FnMut() -> bool,
}

/// Marks the two ways in which [`Patient`] gives up, inside an `io::Error`.
#[derive(Debug)]
enum GaveUp {
    Cancelled,
    TimedOut,
}

impl std::fmt::Display for GaveUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed out",
        })
    }
}

impl std::error::Error for GaveUp {}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if (self.cancelled)() {
                return Err(io::Error::other(GaveUp::Cancelled));
            }
            match self.socket.read(buffer) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if Instant::now() >= self.deadline {
                        return Err(io::Error::other(GaveUp::TimedOut));
                    }
                }
                // A signal (a cancel, most likely): look at it above.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

fn error_of(error: FrameError) -> ClientError {
    let gave_up = match &error {
        FrameError::Io(io) => io.get_ref().and_then(|inner| inner.downcast_ref::<GaveUp>()),
        FrameError::TooLarge { .. } | FrameError::Malformed(_) => None,
    };
    match gave_up {
        Some(GaveUp::Cancelled) => ClientError::Cancelled,
        Some(GaveUp::TimedOut) => ClientError::TimedOut,
        None => ClientError::Frame(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Client, UnixStream) {
        let (here, there) = UnixStream::pair().unwrap();
        here.set_read_timeout(Some(POLL)).unwrap();
        (Client { socket: here }, there)
    }

    #[test]
    fn a_silent_worker_is_left_on_cancel() {
        let (mut client, _there) = pair();
        let begin = Instant::now();
        let mut polls = 0;
        let outcome = client.ask(RequestBody::Status, &mut || {
            polls += 1;
            polls > 3
        });
        assert!(matches!(outcome, Err(ClientError::Cancelled)));
        assert!(begin.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn a_closed_worker_is_a_frame_error() {
        let (mut client, there) = pair();
        drop(there);
        assert!(matches!(client.ask(RequestBody::Status, &mut || false), Err(ClientError::Frame(_))));
    }
}
