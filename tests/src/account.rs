//! The OS account that servers run as: Postgres refuses root, so root's tests use the account `postgres`.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

/// An ordinary account of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    uid: u32,
    gid: u32,
    /// Whether processes have to be moved to this account, because we are root.
    other: bool,
}

impl Account {
    /// The account that servers run as: ourselves, or `postgres` when we are root.
    pub fn current() -> Result<Self> {
        static CURRENT: OnceLock<Account> = OnceLock::new();
        if let Some(account) = CURRENT.get() {
            return Ok(*account);
        }
        let other = id(&["-u"])? == 0;
        let name: &[&str] = if other { &["postgres"] } else { &[] };
        let account = Self { uid: id(&[&["-u"], name].concat())?, gid: id(&[&["-g"], name].concat())?, other };
        Ok(*CURRENT.get_or_init(|| account))
    }

    /// A command under this account, with a clean environment: no backtraces in server messages, UTC, UTF-8.
    /// With `dies_with_us`, the kernel ends it (SIGQUIT, Postgres's immediate shutdown) when the starting thread ends.
    pub fn command(&self, program: impl AsRef<OsStr>, dies_with_us: bool) -> Command {
        let mut command = Command::new("setpriv");
        if self.other {
            command.arg(format!("--reuid={}", self.uid)).arg(format!("--regid={}", self.gid)).arg("--clear-groups");
        }
        if dies_with_us {
            command.arg("--pdeathsig=QUIT");
        }
        if !self.other && !dies_with_us {
            // setpriv wants at least one thing to do.
            command.arg("--inh-caps=-all");
        }
        // A shell's background job ignores SIGQUIT, and so would all that it starts.
        command.args(["--", "env", "--default-signal=QUIT"]).arg(program.as_ref());
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LANG", "C.UTF-8").env("TZ", "UTC");
        command.stdin(Stdio::null());
        command
    }

    /// Gives a file or directory to this account.
    pub fn own(&self, path: &Path) -> Result<()> {
        if self.other {
            std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
                .with_context(|| format!("chown {}", path.display()))?;
        }
        Ok(())
    }
}

fn id(arguments: &[&str]) -> Result<u32> {
    let output = Command::new("id").args(arguments).output().context("run id")?;
    ensure!(output.status.success(), "id {arguments:?} failed; does the account exist? (make setup creates it)");
    String::from_utf8(output.stdout)?.trim().parse().context("parse the output of id")
}
