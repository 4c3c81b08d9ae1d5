//! What a process has used, by the kernel's books.

use anyhow::{Context, Result};

/// Clock ticks a second in /proc (fixed on Linux for user space).
const TICKS: f64 = 100.0;

/// CPU seconds, user and system, of a process and all of its threads.
#[expect(clippy::cast_precision_loss, reason = "ticks, far below 2⁵²")]
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // utime and stime are the 14th and 15th field; after the command's bracket the 3rd comes first.
    let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / TICKS)
}

/// Memory in MiB: `VmHWM` is the peak so far, `VmRSS` what is resident now.
pub(crate) fn memory_mib(pid: u32, field: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the process has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    let kib: f64 = line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
