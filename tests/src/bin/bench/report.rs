//! What was found, as lines for people and as JSON with the machine's facts.

use anyhow::{Context, Result};
use lake_tests::repository;
use serde_json::json;

use crate::Size;

/// One number of a scenario, beside its reference.
#[derive(Debug)]
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) ours: f64,
    pub(crate) reference: Option<f64>,
    pub(crate) unit: &'static str,
}

impl Measure {
    /// Ours ÷ reference.
    fn ratio(&self) -> Option<f64> {
        self.reference.map(|reference| self.ours / reference)
    }

    pub(crate) fn print(&self) {
        let Self { name, ours, unit, .. } = self;
        match (self.reference, self.ratio()) {
            (Some(reference), Some(ratio)) => {
                println!("{name}: {ours:.2} {unit}, reference {reference:.2} {unit}, ratio {ratio:.2}");
            }
            _ => println!("{name}: {ours:.2} {unit}"),
        }
    }
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (Some(upper), 0) => f64::midpoint(values[middle - 1], *upper),
        (Some(value), _) => *value,
        (None, _) => f64::NAN,
    }
}

/// Writes `target/bench/results.json`.
pub(crate) fn write(size: Size, measures: &[Measure]) -> Result<()> {
    let machine = machine(size);
    let results: Vec<_> = measures
        .iter()
        .map(|measure| {
            json!({
                "name": measure.name, "ours": measure.ours, "reference": measure.reference,
                "ratio": measure.ratio(), "unit": measure.unit, "machine": machine,
            })
        })
        .collect();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), Into::into);
    let directory = target.join("bench");
    std::fs::create_dir_all(&directory)?;
    let path = directory.join("results.json");
    std::fs::write(&path, serde_json::to_string_pretty(&results)?).with_context(|| path.display().to_string())?;
    println!("-> {}", path.display());
    Ok(())
}

fn machine(size: Size) -> serde_json::Value {
    let line = |path: &str, key: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let found = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        found.trim_start_matches([' ', '\t', ':']).to_owned()
    };
    json!({
        "cpu": line("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": line("/proc/meminfo", "MemTotal"),
        "kernel": line("/proc/sys/kernel/osrelease", ""),
        "load_at_end": line("/proc/loadavg", ""),
        "scale": size.scale,
        "runs": size.runs,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_median_is_in_the_middle() {
        assert!((super::median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((super::median(vec![4.0, 1.0]) - 2.5).abs() < 1e-9);
    }
}
