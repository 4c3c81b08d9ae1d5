//! The engine inside the worker: a tokio runtime on threads of its own, and `cdc_worker::run` on it.
//!
//! The threads never see a signal (all are blocked on them) and never call Postgres: the engine reaches its server over
//! a connection like any other client. What it says goes to the log by `tracing`, what it ends with comes back as a
//! value.

use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::settings::{DIRECTORY, Settings, in_our_words};

/// How long the engine may take to end in order. With [`LAST_GRACE`] it stays below the two seconds within which the
/// worker has to be gone.
const GRACE: Duration = Duration::from_millis(1_200);
/// How long its threads may then take to come to a point where they can be left.
const LAST_GRACE: Duration = Duration::from_millis(300);

/// A running engine.
pub(crate) struct Engine {
    runtime: Runtime,
    shutdown: watch::Sender<bool>,
    task: Option<JoinHandle<Result<(), cdc_worker::Error>>>,
}

impl Engine {
    /// Starts an engine.
    pub(crate) fn start(settings: &Settings) -> Result<Self, Error> {
        let config = config(settings).map_err(|error| failed(&error))?;
        make_directory()?;
        let runtime = without_signals(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name("lake")
                .on_thread_start(block_signals)
                .enable_all()
                .build()
        })
        .map_err(|error| Error::state("the lake engine cannot start its threads").with_detail(chain(&error)))?;
        let (shutdown, stop) = watch::channel(false);
        let task = Some(runtime.spawn(cdc_worker::run(config, stop)));
        Ok(Self { runtime, shutdown, task })
    }

    /// Why the engine has ended, if it has.
    pub(crate) fn failure(&mut self) -> Option<Error> {
        if !self.task.as_ref().is_none_or(JoinHandle::is_finished) {
            return None;
        }
        let ended = self.task.take().map(|task| self.runtime.block_on(task));
        Some(match ended {
            Some(Ok(Err(error))) => failed(&error),
            Some(Err(panicked)) => Error::state("the lake engine panicked")
                .with_detail(panicked.to_string())
                .with_hint("the server log has the panic's message; please report it"),
            Some(Ok(Ok(()))) | None => Error::state("the lake engine ended without being asked to"),
        })
    }

    /// Ends the engine, in order if it can be done in time: at the latest after [`GRACE`] and [`LAST_GRACE`]. What it
    /// had not committed is read from the slot again.
    pub(crate) fn stop(mut self) {
        // Nobody listens when the engine has ended already.
        self.shutdown.send_replace(true);
        if let Some(task) = self.task.take() {
            let ended = self.runtime.block_on(async { tokio::time::timeout(GRACE, task).await });
            if ended.is_err() {
                tracing::warn!("the engine did not end within {GRACE:?} and is left");
            }
        }
        self.runtime.shutdown_timeout(LAST_GRACE);
    }
}

/// The engine's own error. It names settings as they are in the standalone worker's file.
fn failed(error: &cdc_worker::Error) -> Error {
    let failure = Error::state(in_our_words(&error.report()));
    match error.hint() {
        Some(hint) => failure.with_hint(in_our_words(hint)),
        None => failure,
    }
}

/// The engine's configuration.
///
/// # Errors
/// When settings contradict each other.
fn config(settings: &Settings) -> Result<cdc_worker::EngineConfig, cdc_worker::Error> {
    let files = &settings.files;
    Ok(cdc_worker::EngineConfig {
        mirror: crate::registry::MIRROR.to_owned(),
        source: cdc_worker::SourceConfig {
            host: settings.server.host.clone(),
            port: settings.server.port,
            database: settings.database.clone(),
            user: settings.server.user.clone(),
            password: settings.server.password.clone().map(cdc_worker::Secret::new),
            publication: crate::registry::PUBLICATION.to_owned(),
            slot: settings.slot.clone(),
            insecure: settings.server.insecure,
            failover: true,
            copy_connections: settings.copy_connections,
        },
        lake: cdc_worker::LakeConfig {
            catalog: settings.catalog.clone().read()?,
            warehouse: settings.warehouse.clone(),
            store: settings.store.clone(),
            catalog_schema: "lake_catalog".to_owned(),
            catalog_name: "lake".to_owned(),
            file_bytes: files.file_bytes,
            format: files.format,
            unrepresentable: settings.unrepresentable,
        },
        copy: files.copy,
        maintenance: files.maintenance,
        retention: files.retention,
        commit: cdc_worker::CommitConfig { interval: settings.commit_interval, max_bytes: settings.commit_bytes },
        state_dir: settings.state_dir.clone(),
        read_socket: Some(settings.read_socket.clone()),
        admin_listen: None,
        tables: cdc_worker::TableSelection::Registry,
    })
}

/// The directory of the socket and the state, closed to other users as the data directory is.
fn make_directory() -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(DIRECTORY).map_err(|error| {
        Error::state(format!("cannot create the directory \"{DIRECTORY}\" in the data directory"))
            .with_detail(chain(&error))
            .with_hint("check free space and the rights of the data directory")
    })
}

/// An error with everything underneath, on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

/// Runs `body` with every signal blocked, so that threads it starts inherit that.
fn without_signals<R>(body: impl FnOnce() -> R) -> R {
    let before = set_signals(every_signal());
    let result = body();
    set_signals(before);
    result
}

fn block_signals() {
    set_signals(every_signal());
}

fn every_signal() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigfillset initializes the set.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// Replaces the calling thread's mask; returns the one before.
fn set_signals(mask: libc::sigset_t) -> libc::sigset_t {
    let mut before = mask;
    // SAFETY: both sets are initialized and live during the call; it can't fail with SIG_SETMASK.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, &raw mut before) };
    before
}
