//! A child process with its output in a file: signalled by id, reaped, and never left behind.

use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

const POLL: Duration = Duration::from_millis(5);

/// A running (or ended) child process.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: PathBuf,
    kept: bool,
}

impl Process {
    /// Starts a command in a process group of its own, with standard output and error appended to `output`.
    pub fn spawn(command: &mut Command, output: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(output)?;
        command.stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().with_context(|| format!("start {:?}", command.get_program()))?;
        Ok(Self { child, output: output.to_owned(), kept: false })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Sends a signal (`TERM`, `KILL`, `STOP`, …). An ended process is not an error.
    pub fn signal(&self, signal: &str) -> Result<()> {
        signal_pid(self.pid(), signal)
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            ensure!(started.elapsed() < limit, "process {} has not ended within {limit:?}", self.pid());
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits for its end and gives the exit code; an end by a signal is an error.
    pub async fn wait_code(&mut self, limit: Duration) -> Result<i32> {
        let status = self.wait(limit).await?;
        let Some(code) = status.code() else { bail!("ended by signal {:?}:\n{}", status.signal(), self.output()) };
        Ok(code)
    }

    /// `kill -9`, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<()> {
        self.signal("KILL")?;
        self.wait(Duration::from_secs(10)).await?;
        Ok(())
    }

    /// Leaves the process running on drop.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Ends the process without async: `gentle` first, SIGKILL when it has not ended within five seconds.
    pub(crate) fn end(&mut self, gentle: &str) {
        if self.kept || matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let _ = self.signal(gentle);
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(5) {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(POLL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end("KILL");
    }
}

/// Sends a signal to one process; one that is gone already is not an error.
pub(crate) fn signal_pid(pid: u32, signal: &str) -> Result<()> {
    let output = Command::new("kill").args(["-s", signal, "--", &pid.to_string()]).output().context("run kill")?;
    let gone = !Path::new(&format!("/proc/{pid}")).exists();
    ensure!(output.status.success() || gone, "kill -{signal} {pid}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
