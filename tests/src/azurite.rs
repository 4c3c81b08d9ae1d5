//! A private Azure blob storage: Azurite, Microsoft's own emulator, with one container, in memory.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};

use anyhow::{Context, Result, bail, ensure};

use crate::python::repository;
use crate::scratch::Scratch;
use crate::seaweed::Key;

/// A running store. Dropping it ends it; so does the end of this process, for it ends with its standard input.
#[derive(Debug)]
pub struct Azurite {
    process: Child,
    port: u16,
    scratch: Scratch,
}

impl Azurite {
    /// Its container.
    pub const CONTAINER: &str = "plain";
    /// What stands for both in a URL.
    pub const AUTHORITY: &str = "plain@devstoreaccount1.dfs.core.windows.net";
    /// The storage account and its key, which every such emulator has.
    pub const ACCOUNT: Key = Key {
        id: "devstoreaccount1",
        secret: "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
    };

    /// A store for one test.
    ///
    /// # Errors
    /// When it does not start, or `make setup` was not run.
    pub fn start() -> Result<Self> {
        let scratch = Scratch::new()?;
        let folder = repository().join(".deps/azurite");
        let node = folder.join("node");
        ensure!(node.exists(), "{} is missing: make setup installs it", node.display());
        // The system's choice: one that is free.
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let mut process = Command::new(node)
            .arg(repository().join("tests/azurite/serve.js"))
            .arg(&folder)
            .args([&port.to_string(), Self::CONTAINER])
            .current_dir(scratch.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(scratch.path().join("log"))?)
            .spawn()?;
        let output = BufReader::new(process.stdout.take().context("standard output")?);
        // Until it ends, if it does not start.
        if !output.lines().map_while(Result::ok).any(|line| line == "ready") {
            let _ = process.kill();
            let status = process.wait()?;
            bail!("Azurite: {status}: {}", std::fs::read_to_string(scratch.path().join("log"))?);
        }
        Ok(Self { process, port, scratch })
    }

    /// A store that the tests that run at the same time share.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn shared() -> Result<Arc<Self>> {
        static SHARED: tokio::sync::Mutex<Weak<Azurite>> = tokio::sync::Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(azurite) = shared.upgrade() {
            return Ok(azurite);
        }
        let azurite = Arc::new(tokio::task::spawn_blocking(Self::start).await??);
        *shared = Arc::downgrade(&azurite);
        Ok(azurite)
    }

    /// Address of the account.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/{}", self.port, Self::ACCOUNT.id)
    }

    /// What foreign readers are told of it.
    pub fn reader(&self) -> serde_json::Value {
        let (Key { id, secret }, endpoint) = (Self::ACCOUNT, self.endpoint());
        let connection =
            format!("DefaultEndpointsProtocol=http;AccountName={id};AccountKey={secret};BlobEndpoint={endpoint};");
        serde_json::json!({ "connection": connection })
    }

    /// A file with the account's key, as the worker wants it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn key_file(&self) -> Result<std::path::PathBuf> {
        let path = self.scratch.path().join("account.key");
        if !path.exists() {
            let next = self.scratch.path().join(format!("account.key.{:?}", std::thread::current().id()));
            std::fs::write(&next, Self::ACCOUNT.secret)?;
            crate::account::Account::current()?.own(&next)?;
            std::fs::rename(&next, &path)?;
        }
        Ok(path)
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
