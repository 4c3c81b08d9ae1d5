//! A Postgres socket in front of the server's, which can cut a connection around a COMMIT.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

const SOCKET: &str = ".s.PGSQL.5432";
const COMMIT: &[u8] = b"COMMIT\0";

/// What happens at the next COMMIT.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Fault {
    None,
    /// The server gets it; its answer is lost.
    LoseReply,
    /// It never gets to the server.
    LoseCommit,
    /// As `LoseReply`, and no connection is accepted afterwards.
    LoseReplyAndStayDown,
    Down,
}

pub(crate) struct Proxy {
    folder: TempDir,
    fault: Arc<AtomicU8>,
}

impl Proxy {
    pub(crate) fn new(server: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
        let fault = Arc::new(AtomicU8::new(Fault::None as u8));
        let (server, shared) = (server.join(SOCKET), Arc::clone(&fault));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if shared.load(Ordering::SeqCst) != Fault::Down as u8 {
                    tokio::spawn(serve(client, server.clone(), Arc::clone(&shared)));
                }
            }
        });
        Self { folder, fault }
    }

    pub(crate) fn socket_folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn set(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::SeqCst);
    }

    pub(crate) fn is_set(&self, fault: Fault) -> bool {
        self.fault.load(Ordering::SeqCst) == fault as u8
    }
}

async fn serve(mut client: UnixStream, server: PathBuf, fault: Arc<AtomicU8>) {
    let mut server = UnixStream::connect(server).await.unwrap();
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(read @ 1..) = read else { return };
                let is_commit = up[..read].windows(COMMIT.len()).any(|window| window == COMMIT);
                let now = fault.load(Ordering::SeqCst);
                if is_commit && now != Fault::None as u8 {
                    let after = now == Fault::LoseReplyAndStayDown as u8;
                    fault.store(if after { Fault::Down } else { Fault::None } as u8, Ordering::SeqCst);
                    if now != Fault::LoseCommit as u8 {
                        server.write_all(&up[..read]).await.unwrap();
                        assert_ne!(server.read(&mut down).await.unwrap(), 0, "the server answers");
                    }
                    return;
                }
                if server.write_all(&up[..read]).await.is_err() { return }
            }
            read = server.read(&mut down) => {
                let Ok(read @ 1..) = read else { return };
                if client.write_all(&down[..read]).await.is_err() { return }
            }
        }
    }
}
