//! The Python helpers of the tests: JSON in, JSON out, in the environment that the set-up made.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
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
    serves: bool,
}

impl Python {
    /// The script at this path below `tests/`, which is run for each request: that is its standard input, and the answer is
    /// its standard output.
    pub fn script(path: &str) -> Self {
        let interpreter = repository().join(".deps/venv/bin/python");
        Self { script: Path::new(env!("CARGO_MANIFEST_DIR")).join(path), interpreter, serves: false }
    }

    /// The script at this path below `tests/`, which answers one request after another (`oracle/serving.py`). As many run as
    /// there are requests at a time. They end with this process, for then their standard input ends.
    pub fn server(path: &str) -> Self {
        Self { serves: true, ..Self::script(path) }
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
        let answer = move || if python.serves { python.ask_server(&request) } else { python.run(&request) };
        tokio::task::spawn_blocking(answer).await?
    }

    fn spawn(&self, errors: Stdio) -> Result<Child> {
        let interpreter = &self.interpreter;
        Command::new(interpreter)
            .arg(&self.script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("start {} (make setup creates it)", interpreter.display()))
    }

    fn run(&self, request: &str) -> Result<Value> {
        let mut child = self.spawn(Stdio::piped())?;
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

    fn ask_server(&self, request: &str) -> Result<Value> {
        let idle = || IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = idle().get_mut(&self.script).and_then(Vec::pop);
        let mut server = match waiting {
            Some(server) => server,
            None => Server::start(self)?,
        };
        let reply = server.ask(request).with_context(|| format!("{} ended on {request}", self.script.display()))?;
        idle().entry(self.script.clone()).or_default().push(server);
        match reply.get("failed").and_then(Value::as_str) {
            Some(failed) => bail!("{} failed on {request}:\n{failed}", self.script.display()),
            None => Ok(reply["answer"].clone()),
        }
    }
}

/// The servers that wait for a request, by their scripts.
static IDLE: Mutex<BTreeMap<PathBuf, Vec<Server>>> = Mutex::new(BTreeMap::new());

/// A script that runs.
struct Server {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    errors: File,
}

impl Server {
    fn start(python: &Python) -> Result<Self> {
        let errors = tempfile::tempfile()?;
        let mut child = python.spawn(errors.try_clone()?.into())?;
        let requests = child.stdin.take().context("standard input of the helper")?;
        let answers = BufReader::new(child.stdout.take().context("standard output of the helper")?);
        Ok(Self { child, requests, answers, errors })
    }

    fn ask(&mut self, request: &str) -> Result<Value> {
        let mut answer = String::new();
        let asked = self.requests.write_all(request.as_bytes()).and_then(|()| self.requests.write_all(b"\n"));
        if asked.is_ok() && self.answers.read_line(&mut answer)? > 0 {
            return serde_json::from_str(&answer).context("read the helper's answer");
        }
        let (status, mut said) = (self.child.wait()?, String::new());
        self.errors.rewind()?;
        self.errors.read_to_string(&mut said)?;
        bail!("{status}:\n{said}")
    }
}
