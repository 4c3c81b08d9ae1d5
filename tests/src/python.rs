//! The Python helpers of the tests: JSON in, JSON out, in the environment that the set-up made.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").to_owned()
}

/// One of the scripts in `tests/`.
#[derive(Debug, Clone)]
pub struct Python {
    script: PathBuf,
    interpreter: PathBuf,
}

impl Python {
    /// The script at this path below `tests/`.
    pub fn script(path: &str) -> Self {
        let interpreter = repository().join(".deps/venv/bin/python");
        Self { script: Path::new(env!("CARGO_MANIFEST_DIR")).join(path), interpreter }
    }

    /// The same in another environment, by its interpreter's path below the repository.
    #[must_use]
    pub fn with_interpreter(mut self, path: &str) -> Self {
        self.interpreter = repository().join(path);
        self
    }

    /// Runs it on a request.
    pub async fn ask(&self, request: &Value) -> Result<Value> {
        let (python, request) = (self.clone(), request.to_string());
        tokio::task::spawn_blocking(move || python.ask_blocking(&request)).await?
    }

    fn ask_blocking(&self, request: &str) -> Result<Value> {
        let interpreter = &self.interpreter;
        let mut child = Command::new(interpreter)
            .arg(&self.script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {} (make setup creates it)", interpreter.display()))?;
        child.stdin.take().context("standard input of the helper")?.write_all(request.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "{} failed on {request}:\n{}",
            self.script.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).context("read the helper's answer")
    }
}
