//! Runs that a lookup need not choose from: their keys lie apart, so that at most one of them can have a key.
//!
//! A copy reads a table whose keys mostly ascend from block to block, and its connections write a run for each stretch of
//! blocks. To merge those would be to write the index twice more, a fifth of a copy's time, for lookups that find the one run
//! at hand by comparing keys anyway.

use std::ops::Range;
use std::sync::Arc;

use super::run::Run;

/// Smaller runs are cheap to merge, and each has a file that is open.
pub(super) const LAYERED_ENTRIES: usize = 64 << 10;
/// Most runs of a layer: a lookup compares its key with the ends of each.
const LAYER_RUNS: usize = 32;

/// The layers of some runs, as ranges of them. Runs and layers are from the oldest to the newest.
pub(super) fn layers(runs: &[Arc<Run>]) -> Vec<Range<usize>> {
    let mut layers: Vec<Range<usize>> = Vec::new();
    for (at, run) in runs.iter().enumerate().rev() {
        match layers.last_mut() {
            Some(layer)
                if layer.len() < LAYER_RUNS
                    && run.len() >= LAYERED_ENTRIES
                    && runs[layer.clone()]
                        .iter()
                        .all(|other| other.len() >= LAYERED_ENTRIES && run.lies_apart_from(other)) =>
            {
                layer.start = at;
            }
            _ => layers.push(at..at + 1),
        }
    }
    layers.reverse();
    layers
}

/// The runs of a layer in the order of their keys.
pub(super) fn ascending(layer: &[Arc<Run>]) -> Vec<&Run> {
    let mut runs: Vec<&Run> = layer.iter().map(|run| &**run).collect();
    runs.sort_unstable_by_key(|run| run.first_key());
    runs
}
