//! The `cdc-worker` command: arguments, configuration file, exit codes.

/// Prints a line, unless nobody reads any more (`… | head`): then there is nobody to tell.
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($part)*);
    }};
}

mod check;
mod exit;
mod file;
mod maintain;
mod maintenance;
mod progress;
mod status;
mod store;

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use tokio::sync::watch;

use crate::config::EngineConfig;
use crate::error::{Error, ErrorKind};
use crate::serve::Pulse;

pub use exit::ExitCode;
pub use file::{LogFormat, load};
pub use progress::Console;

/// Mirrors Postgres tables into Apache Iceberg, live.
///
/// Exit codes: 0 done or asked to stop; 1 failed; 2 configuration or usage; 3 the source is not fit (the message says
/// what to change); 4 another worker runs or has taken over the mirror; 5 source unreachable; 6 catalog or warehouse
/// unreachable.
#[derive(Debug, Parser)]
#[command(name = "cdc-worker", version)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Copy the configured tables and follow them until stopped (SIGTERM, SIGINT).
    Run {
        /// Configuration file (TOML).
        #[arg(long, env = "LAKEMIRROR_CONFIG")]
        config: PathBuf,
    },
    /// Make the mirror follow the configured list of tables, also while the worker runs: it copies new ones and lets go
    /// of those that are no longer listed, whose Iceberg tables stay.
    Mirror {
        /// Configuration file (TOML).
        #[arg(long, env = "LAKEMIRROR_CONFIG")]
        config: PathBuf,
    },
    /// Copy tables anew while the worker runs and the others stream on: the way back for a table that has stopped, once
    /// its reason is mended. Readers keep the old rows until the new copy is committed.
    Resync {
        /// Configuration file (TOML).
        #[arg(long, env = "LAKEMIRROR_CONFIG")]
        config: PathBuf,
        /// The tables, as schema.table.
        #[arg(required = true)]
        tables: Vec<String>,
    },
    /// Look at source, tables and warehouse, and say everything that keeps the mirror from running.
    Check {
        /// Configuration file (TOML).
        #[arg(long, env = "LAKEMIRROR_CONFIG")]
        config: PathBuf,
    },
    /// Show how far the running worker is, and each of its tables: what it waits for, why it has stopped.
    Status {
        /// Configuration file (TOML).
        #[arg(long, env = "LAKEMIRROR_CONFIG")]
        config: PathBuf,
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Put the tables' files in order now, and wait for it: rewrite small ones and those with deleted rows, merge delete files. The
    /// running worker does it; by itself it does what is worth it.
    Maintain {
        /// Configuration file (TOML).
        #[arg(long, env = "LAKEMIRROR_CONFIG")]
        config: PathBuf,
        /// Also let all snapshots but the newest expire. Who reads an older one by its number cannot any more.
        #[arg(long)]
        expire_snapshots: bool,
        /// The tables, as schema.table; without any, all of them.
        tables: Vec<String>,
    },
    /// Drop the replication slot and forget the mirror, when the worker has ended. The Iceberg tables stay as they are.
    Teardown {
        /// Configuration file (TOML).
        #[arg(long, env = "LAKEMIRROR_CONFIG")]
        config: PathBuf,
    },
}

impl Command {
    /// The configuration file.
    pub fn config(&self) -> &std::path::Path {
        match self {
            Self::Run { config }
            | Self::Mirror { config }
            | Self::Resync { config, .. }
            | Self::Check { config }
            | Self::Status { config, .. }
            | Self::Maintain { config, .. }
            | Self::Teardown { config } => config,
        }
    }
}

/// Runs a command with its configuration.
///
/// # Errors
/// Whatever kept it from being done; [`ExitCode::of`] gives the exit code.
pub async fn execute(command: &Command, config: EngineConfig, console: Console) -> Result<(), Error> {
    match command {
        Command::Run { .. } => run(config, console).await,
        Command::Mirror { .. } => check::mirror(&config).await,
        Command::Resync { tables, .. } => check::resync(&config, tables).await,
        Command::Check { .. } => check::check(&config).await,
        Command::Status { json, .. } => status::status(&config, *json).await,
        Command::Maintain { tables, expire_snapshots, .. } => {
            maintain::maintain(&config, tables, *expire_snapshots).await
        }
        Command::Teardown { .. } => check::teardown(&config).await,
    }
}

async fn run(config: EngineConfig, console: Console) -> Result<(), Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let io = |error: std::io::Error| Error::new(ErrorKind::Io, "wait for signals").with_source(error);
    let mut terminate = signal(SignalKind::terminate()).map_err(io)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io)?;
    let (stop, stopped) = watch::channel(false);
    let pulse = Arc::new(Pulse::default());
    let engine = crate::engine::run_watched(config, stopped, Arc::clone(&pulse));
    tokio::pin!(engine);
    tokio::select! {
        ended = &mut engine => return ended,
        // Never ends.
        () = console.show(pulse) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    // Nothing needs saving: what is not committed is in the slot.
    let _ = stop.send(true);
    tokio::time::timeout(STOP_DEADLINE, engine).await.unwrap_or(Ok(()))
}

/// A batch that is being committed may finish; after this the process ends regardless, and the next start asks the
/// catalog what became of it.
const STOP_DEADLINE: std::time::Duration = std::time::Duration::from_millis(1200);
