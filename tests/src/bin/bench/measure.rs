//! What a process has used, by the kernel's books.

use std::os::unix::fs::MetadataExt as _;

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

/// Bytes of the files that a process has open and that have no name any more.
#[expect(clippy::cast_precision_loss, reason = "bytes, far below 2⁵²")]
pub(crate) fn deleted_bytes(pid: u32) -> Result<f64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).context("the process has ended")? {
        let path = entry?.path();
        // One that was closed meanwhile is none.
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        if metadata.is_file() && metadata.nlink() == 0 {
            bytes += metadata.blocks() * 512;
        }
    }
    Ok(bytes as f64)
}

/// Lets `VmHWM` count from now on.
pub(crate) fn forget_peak(pid: u32) -> Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("the process has ended")
}
