//! The loop that owns a mirror's state, and its life from start to shutdown.
//!
//! A *session* is one run from claiming the mirror to the first error: everything it holds in memory is built from the
//! registry, the Iceberg tables and the WAL after `mirrors.lsn`. So recovery has one path only. Whatever breaks (a
//! connection, the catalog, the disk), the session is thrown away and the next one starts from what is durable; an
//! error that no retry can heal ends the engine instead.

mod answer;
mod apply;
mod catalog;
mod catching_up;
mod columns;
mod copying;
mod entry;
mod flush;
mod foreign_tables;
mod histories;
mod intake;
mod maintenance;
mod partitions;
mod registered;
mod replay;
mod rewriting;
mod session;
mod stage;
mod start;
mod stream_format;
mod sweeping;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

pub(crate) use catalog::{open as open_catalog, open_warehouse};
pub(crate) use start::list;

use crate::Result;
use crate::config::EngineConfig;
use crate::error::{Error, ErrorKind, Retry};
use crate::serve::{self, Leases, Pulse};
use session::Session;

/// Questions that may wait for the engine's attention; more are refused at the door.
const ASK_QUEUE: usize = 256;
/// Longest pause between two sessions.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A session that lived this long was a good one: the next pause starts small again.
const GOOD_SESSION: Duration = Duration::from_secs(60);

/// Runs the engine until `shutdown` turns true.
///
/// Starting fails fast: an error before the first session streams is returned at once. After that, errors that may heal
/// are retried for ever, with growing pauses.
///
/// # Errors
/// What kept the first session from starting, or any later error whose [`Error::retry`] is [`Retry::Never`].
pub async fn run(config: EngineConfig, shutdown: watch::Receiver<bool>) -> Result<()> {
    run_watched(config, shutdown, Arc::default()).await
}

/// The same, with a pulse that somebody looks at.
///
/// # Errors
/// As [`run`].
pub(crate) async fn run_watched(
    config: EngineConfig,
    mut shutdown: watch::Receiver<bool>,
    pulse: Arc<Pulse>,
) -> Result<()> {
    let config = Arc::new(config);
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let (asks, mut inbox) = mpsc::channel(ASK_QUEUE);
    // Readers outlive sessions, and so does their hold on files.
    let leases = Leases::default();
    let mut doors: Option<serve::Doors> = None;
    let mut pause = Duration::from_millis(250);
    loop {
        let begun = tokio::time::Instant::now();
        let started = tokio::select! {
            started = Session::start(&config, &pulse, &leases, doors.is_none()) => started,
            () = asked_to_stop(&mut shutdown) => return Ok(()),
        };
        let ended = match started {
            Ok(session) => {
                if doors.is_none() {
                    doors = Some(serve::open(&config, &asks, &pulse)?);
                }
                pulse.streaming(true);
                let ended = Box::pin(session.run(&mut inbox, &mut shutdown)).await;
                pulse.streaming(false);
                ended
            }
            Err(error) if doors.is_none() => return Err(error),
            Err(error) => Err(error),
        };
        let Err(error) = ended else { return Ok(()) };
        report(&error);
        pulse.failed(&error);
        if error.retry() == Retry::Never && error.kind() != ErrorKind::AlreadyRunning {
            return Err(error);
        }
        if begun.elapsed() > GOOD_SESSION {
            pause = Duration::from_millis(250);
        }
        let wake = tokio::time::Instant::now() + pause;
        pause = (pause * 2).min(LONGEST_PAUSE);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(wake) => break,
                () = asked_to_stop(&mut shutdown) => return Ok(()),
                ask = inbox.recv() => if let Some(ask) = ask { ask.refuse_down(&error) },
            }
        }
    }
}

fn report(error: &Error) {
    tracing::warn!(error = %error.report(), hint = error.hint().unwrap_or(""), "the mirror's session ended");
}

/// Resolves when a stop was asked for, or can no longer be asked for.
pub(crate) async fn asked_to_stop(shutdown: &mut watch::Receiver<bool>) {
    while !*shutdown.borrow() {
        if shutdown.changed().await.is_err() {
            return;
        }
    }
}
