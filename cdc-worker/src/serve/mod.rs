//! What the worker offers to others: the read service on a unix socket, and the admin endpoint.

mod admin;
mod ask;
mod copies;
mod encode;
mod lease;
pub(crate) mod metrics;
mod pulse;
mod socket;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::Result;
use crate::config::EngineConfig;

pub(crate) use ask::{Ask, PinReply, Reply};
pub(crate) use copies::CopyProgress;
pub(crate) use lease::{Lease, Leases};
pub(crate) use pulse::{Health, Pulse};

/// The open doors. Dropping them closes them.
pub(crate) struct Doors {
    tasks: Vec<JoinHandle<()>>,
    socket: Option<PathBuf>,
}

impl Drop for Doors {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        if let Some(socket) = &self.socket {
            // A socket file without a listener only makes the next connect fail in another way.
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// Opens what the configuration asks for.
///
/// # Errors
/// [`crate::ErrorKind::Io`] when a path or an address cannot be had.
pub(crate) fn open(config: &EngineConfig, asks: &mpsc::Sender<Ask>, pulse: &Arc<Pulse>) -> Result<Doors> {
    let mut tasks = Vec::new();
    if let Some(path) = &config.read_socket {
        tasks.push(socket::listen(path, asks.clone())?);
    }
    if let Some(address) = config.admin_listen {
        tasks.push(admin::listen(address, Arc::clone(pulse), asks.clone())?);
    }
    Ok(Doors { tasks, socket: config.read_socket.clone() })
}
