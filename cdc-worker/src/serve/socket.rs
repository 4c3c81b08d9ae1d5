//! The read service's listener: a connection is a reader, and its lease lives as long as it does.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lake_protocol::{MAX_HEADER_BYTES, Refusal, Request, RequestBody, Response, VERSION, encode_header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::Result;
use crate::error::{Error, ErrorKind};

use super::encode;
use super::{Ask, Reply};

/// Readers at a time: as many as a large `max_connections`.
const MOST_READERS: usize = 1024;
/// A request is a few hundred bytes; a megabyte names a hundred thousand tables.
const MOST_REQUEST_BYTES: u32 = 1 << 20;
/// The longest path that fits `sockaddr_un.sun_path`, its terminating zero left out.
const LONGEST_PATH: usize = 107;
/// What the engine gets beyond a request's own time-out, for a batch that is just being committed.
const GRACE: Duration = Duration::from_secs(60);
/// A reader that does not take its answer for this long is gone.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);

/// Binds the socket and accepts readers.
///
/// # Errors
/// [`ErrorKind::Io`] when the socket cannot be made.
pub(super) fn listen(path: &Path, asks: mpsc::Sender<Ask>) -> Result<JoinHandle<()>> {
    let fail = |error: std::io::Error| {
        Error::new(ErrorKind::Io, format!("open the read service's socket {}", path.display()))
            .with_hint("its directory must be writable by the worker")
            .with_source(error)
    };
    if path.as_os_str().len() > LONGEST_PATH {
        return Err(Error::new(ErrorKind::Config, format!("the socket's path {} is too long", path.display()))
            .with_hint(format!("the system takes {LONGEST_PATH} bytes")));
    }
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory).map_err(fail)?;
    }
    // Left by a worker that was killed: this one holds the mirror's lock, so nobody else listens on it.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    // Whoever may open the socket may read every mirrored row: the worker's own user, and nobody else.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(tokio::spawn(accept(listener, asks)))
}

async fn accept(listener: UnixListener, asks: mpsc::Sender<Ask>) {
    let places = Arc::new(Semaphore::new(MOST_READERS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let asks = asks.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, asks).await {
                        tracing::debug!(error = %error.report(), "a reader's connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(error = %error, "accept a reader");
                // Out of file descriptors, most likely: some reader must leave first.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn io(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, "talk to a reader").with_source(error)
}

async fn serve(mut stream: UnixStream, asks: mpsc::Sender<Ask>) -> Result<()> {
    // Every lease of the connection, until it closes.
    let mut leases = Vec::new();
    while let Some(request) = read_request(&mut stream).await? {
        let answer = if request.version == VERSION {
            ask(&asks, request.body).await
        } else {
            refused(
                "08P01",
                format!("the worker speaks version {VERSION} of the read service, not {}", request.version),
            )
        };
        let (bytes, lease) = match tokio::task::spawn_blocking(move || encode::reply(answer)).await {
            Ok(encoded) => encoded?,
            Err(error) => return Err(Error::new(ErrorKind::Io, "encode an answer").with_source(error)),
        };
        leases.extend(lease);
        match tokio::time::timeout(WRITE_DEADLINE, stream.write_all(&bytes)).await {
            Ok(written) => written.map_err(io)?,
            Err(elapsed) => {
                return Err(Error::new(ErrorKind::Io, "a reader does not take its answer").with_source(elapsed));
            }
        }
    }
    Ok(())
}

fn refused(sqlstate: &str, message: String) -> Reply {
    Reply::Refused(Refusal { sqlstate: sqlstate.to_owned(), message, detail: None, hint: None })
}

async fn ask(asks: &mpsc::Sender<Ask>, body: RequestBody) -> Reply {
    let patience = Duration::from_millis(body.timeout_ms());
    let (reply, answer) = oneshot::channel();
    if asks.try_send(Ask { body, reply }).is_err() {
        return refused("53000", "the lake engine is too busy or shutting down".to_owned());
    }
    match tokio::time::timeout(patience.saturating_add(GRACE), answer).await {
        Ok(Ok(reply)) => reply,
        // The session ended with the question in its hands.
        Ok(Err(_)) => refused("57P03", "the lake engine is recovering".to_owned()),
        Err(_) => refused("57P03", "the lake engine did not answer in time".to_owned()),
    }
}

/// The next request, or nothing when the reader has left.
async fn read_request(stream: &mut UnixStream) -> Result<Option<Request>> {
    let length = match stream.read_u32().await {
        Ok(length) => length,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    if length > MOST_REQUEST_BYTES.min(MAX_HEADER_BYTES) {
        return Err(Error::new(ErrorKind::Io, "a reader announced an oversized request"));
    }
    let mut json = vec![0; length as usize];
    stream.read_exact(&mut json).await.map_err(io)?;
    match serde_json::from_slice(&json) {
        Ok(request) => Ok(Some(request)),
        Err(error) => {
            let refusal = Response::Refused(Refusal {
                sqlstate: "08P01".to_owned(),
                message: "the request is malformed".to_owned(),
                detail: Some(error.to_string()),
                hint: None,
            });
            if let Ok(bytes) = encode_header(&refusal) {
                stream.write_all(&bytes).await.map_err(io)?;
            }
            Ok(None)
        }
    }
}
