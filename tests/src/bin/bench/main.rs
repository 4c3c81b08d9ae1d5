//! The benchmarks: whole scenarios against a peer or the physical limit, side by side in one run.
//!
//! `SCENARIO` names one of them, `SCALE` multiplies their sizes (1 is the size that the bars are for), `RUNS` is how often
//! each side runs; the median counts. The results go to `target/bench/results.json`. Nothing here passes or fails.

mod compact;
mod copy;
mod drain;
mod huge_txn;
mod index;
mod many_commits;
mod many_tables;
mod measure;
mod queries;
mod report;
mod rig;
mod source_cost;
mod write_cost;

use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};

use report::Measure;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
struct Size {
    scale: f64,
    runs: usize,
}

impl Size {
    /// `full` rows at scale 1.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "row counts"
    )]
    fn of(self, full: u64) -> u64 {
        ((full as f64 * self.scale) as u64).max(100)
    }
}

const SCENARIOS: [&str; 14] = [
    "compact",
    "copy",
    "dirty",
    "drain",
    "first_query",
    "huge_txn",
    "index",
    "many_commits",
    "many_files",
    "many_tables",
    "rows_out",
    "source_cost",
    "tpch",
    "write_cost",
];

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> Result<T> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().ok().with_context(|| format!("{name}={text} is not a number")),
        _ => Ok(default),
    }
}

async fn run() -> Result<()> {
    let size = Size { scale: setting("SCALE", 1.0)?, runs: setting("RUNS", 3)? };
    ensure!(size.scale > 0.0 && size.runs > 0, "SCALE and RUNS must be above zero");
    let wanted = std::env::var("SCENARIO").unwrap_or_default();
    if !wanted.is_empty() && !SCENARIOS.contains(&wanted.as_str()) {
        bail!("SCENARIO={wanted}: there are {}", SCENARIOS.join(", "));
    }
    let mut measures: Vec<Measure> = Vec::new();
    for scenario in SCENARIOS.iter().filter(|name| wanted.is_empty() || wanted == **name) {
        println!("== {scenario}");
        let found = match *scenario {
            "compact" => compact::run(size).await,
            "copy" => copy::run(size).await,
            "dirty" => queries::dirty(size).await,
            "drain" => drain::run(size).await,
            "first_query" => queries::first_query(size).await,
            "many_files" => queries::many_files(size).await,
            "huge_txn" => huge_txn::run(size).await,
            "index" => index::run(size).await,
            "many_commits" => many_commits::run(size).await,
            "many_tables" => many_tables::run(size).await,
            "rows_out" => queries::rows_out(size).await,
            "source_cost" => source_cost::run(size).await,
            "tpch" => queries::tpch(size).await,
            _ => write_cost::run(size).await,
        };
        for measure in found.with_context(|| format!("scenario {scenario}"))? {
            measure.print();
            measures.push(measure);
        }
        // What was measured survives a later scenario's failure.
        report::write(size, &measures)?;
    }
    Ok(())
}
