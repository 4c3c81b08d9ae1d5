//! The engine's log: `tracing` to stderr, which is the server log. The level is `lake.log_level`; the engine's threads
//! can't use `ereport`, and `RUST_LOG` is not read: a server's log must not depend on who started it.

use std::sync::OnceLock;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt, reload};

/// How much the engine tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, pgrx::guc::PostgresGucEnum)]
#[allow(non_camel_case_types)]
pub(crate) enum LogLevel {
    /// What failed.
    error,
    /// What may fail soon.
    warn,
    /// What an operator wants to see of a healthy engine.
    info,
    /// Every batch.
    debug,
    /// Every message.
    trace,
}

static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Starts the log, or changes its level.
pub(crate) fn set_level(level: LogLevel) {
    let targets = targets(level);
    if let Some(filter) = FILTER.get() {
        // The subscriber lives as long as the process: the handle can't be stale.
        filter.reload(targets).expect("the subscriber is never dropped");
        return;
    }
    let (filter, handle) = reload::Layer::new(targets);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(filter).with(lines).init();
    FILTER.get_or_init(|| handle);
}

/// Our crates at the level asked for, all others when they warn.
fn targets(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::error => LevelFilter::ERROR,
        LogLevel::warn => LevelFilter::WARN,
        LogLevel::info => LevelFilter::INFO,
        LogLevel::debug => LevelFilter::DEBUG,
        LogLevel::trace => LevelFilter::TRACE,
    };
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_targets([
        ("cdc_worker", level),
        ("iceberg_writer", level),
        ("lake", level),
    ])
}
