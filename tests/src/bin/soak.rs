//! Random work and faults until the time is over, or until heap and lake differ. `SOAK_SECONDS` and `SEED` say how long, and which,
//! `SOAK_ALTERS=1` that half of it changes tables' columns.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use lake_tests::soak::{Soak, directory};

const ROUND: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn setting(name: &str) -> Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => {
            Ok(Some(text.parse().with_context(|| format!("{name}={text} is not a number"))?))
        }
        _ => Ok(None),
    }
}

async fn run() -> Result<()> {
    let seconds = setting("SOAK_SECONDS")?.unwrap_or(600);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let seed = setting("SEED")?.unwrap_or(now);
    println!("seed {seed}, {seconds} s");
    let alters = setting("SOAK_ALTERS")?.is_some_and(|wanted| wanted > 0);
    let lasting = Duration::from_secs(seconds);
    let soak = Soak { seed, lasting, alters, round: ROUND, directory: directory(&seed.to_string()) };
    let done = Box::pin(soak.run()).await?;
    println!("{} rounds, {} transactions: heap and lake were equal each time", done.rounds, done.committed);
    Ok(())
}
