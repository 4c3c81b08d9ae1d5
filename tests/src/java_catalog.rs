//! Iceberg's own REST server, in Java: the one that the project tests its clients with, over SQLite and the machine's folders.
//!
//! Needs what `tests/readers.sh` installs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::deadline::eventually;
use crate::process::Process;
use crate::python::repository;
use crate::scratch::Scratch;

const START_LIMIT: Duration = Duration::from_secs(60);

/// A running server. Dropping it kills it and removes what it knew.
#[derive(Debug)]
pub struct JavaCatalog {
    process: Process,
    port: u16,
    scratch: Scratch,
}

impl JavaCatalog {
    /// An empty catalog.
    ///
    /// # Errors
    /// When it does not start, or `tests/readers.sh` was not run.
    pub async fn start() -> Result<Self> {
        let scratch = Scratch::new()?;
        // The system's choice: one that is free.
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let process = run(scratch.path(), port)?;
        let mut catalog = Self { process, port, scratch };
        catalog.answers().await?;
        Ok(catalog)
    }

    /// `kill -9`, and starts it again.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill().await?;
        self.process = run(self.scratch.path(), self.port)?;
        self.answers().await
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    async fn answers(&mut self) -> Result<()> {
        let port = self.port;
        eventually("Iceberg's REST server answers", START_LIMIT, async || {
            if let Some(status) = self.process.ended()? {
                anyhow::bail!("{status}: {}", self.process.output());
            }
            Ok(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok().then_some(()))
        })
        .await
    }
}

fn run(scratch: &Path, port: u16) -> Result<Process> {
    let jars = repository().join(".deps/readers/java_catalog");
    ensure!(jars.exists(), "{} is missing: tests/readers.sh installs it", jars.display());
    // It makes folders that the worker writes to too, under another account: it may be that only ours can read the jars.
    let open =
        "<configuration><property><name>fs.permissions.umask-mode</name><value>000</value></property></configuration>";
    std::fs::write(scratch.join("core-site.xml"), open)?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig=KILL", "--", "sh", "-c", "umask 0 && exec java -Xmx256m -cp \"$0\" \"$1\""]);
    command.arg(format!("{}:{}/*", scratch.display(), jars.display())).arg("org.apache.iceberg.rest.RESTCatalogServer");
    command.env("CATALOG_REST_PORT", port.to_string());
    command.env("CATALOG_WAREHOUSE", format!("file://{}/warehouse", scratch.display()));
    command.env("CATALOG_URI", format!("jdbc:sqlite:{}/catalog.db", scratch.display()));
    // Of several connections to SQLite one waits in vain for another.
    command.env("CATALOG_CLIENTS", "1");
    command.env("CATALOG_JDBC_SCHEMA__VERSION", "V1").current_dir(scratch);
    Process::spawn(&mut command, &scratch.join("log")).context("start Iceberg's REST server")
}
