//! The `cdc-worker` binary: everything it does is in the library.

use cdc_worker::cli::{Arguments, Command, Console, ExitCode, LogFormat, execute, load};
use std::io::IsTerminal;

use clap::Parser;
use tracing_subscriber::EnvFilter;

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let code = match load(arguments.command.config()) {
        Ok((config, format)) => {
            let runs = matches!(arguments.command, Command::Run { .. });
            let console = Console::new(runs && format == LogFormat::Text);
            log(format, &console);
            run(&arguments, config, console)
        }
        Err(error) => complain(&error),
    };
    std::process::ExitCode::from(code as u8)
}

fn run(arguments: &Arguments, config: cdc_worker::EngineConfig, console: Console) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cdc-worker: start the runtime: {error}");
            return ExitCode::Failed;
        }
    };
    let ended = runtime.block_on(execute(&arguments.command, config, console));
    // Tasks that still talk to a dead peer must not hold the process.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    match ended {
        Ok(()) => ExitCode::Done,
        Err(error) => complain(&error),
    }
}

fn complain(error: &cdc_worker::Error) -> ExitCode {
    eprintln!("cdc-worker: {}", error.report());
    if let Some(hint) = error.hint() {
        eprintln!("hint: {hint}");
    }
    ExitCode::of(error)
}

fn log(format: LogFormat, console: &Console) {
    let console = console.clone();
    // RUST_LOG chooses what is shown; without it, what an operator needs to see.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || console.clone())
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
