//! The `cdc-worker` binary as a process: configured by a file, killed and stopped like the real thing.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::account::Account;
use crate::azurite::Azurite;
use crate::catalog::OtherCatalog;
use crate::deadline::eventually;
use crate::postgres::{Postgres, free_port};
use crate::process::Process;
use crate::python::repository;
use crate::seaweed::Seaweed;
use crate::source::Source;

/// The exit codes that the worker documents.
pub mod exit_code {
    /// Stopped because it was told to.
    pub const OK: i32 = 0;
    /// Failed in a way that has no code of its own.
    pub const FAILED: i32 = 1;
    /// Wrong configuration or usage.
    pub const CONFIG: i32 = 2;
    /// The source is not fit.
    pub const UNFIT: i32 = 3;
    /// Another worker has the mirror.
    pub const FENCED: i32 = 4;
    /// The source cannot be reached.
    pub const SOURCE: i32 = 5;
    /// Catalog or warehouse cannot be reached.
    pub const LAKE: i32 = 6;
}

/// The worker's configuration file, with the harness's defaults.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// `tables`.
    pub tables: Vec<String>,
    /// `append_only`.
    pub append_only: Vec<String>,
    /// `history`.
    pub history: Vec<String>,
    /// Tables with their `partition_by` and `sort_by`.
    pub layout: Vec<(String, String, String)>,
    /// `source.host`.
    pub host: String,
    /// `source.port`.
    pub port: u16,
    /// `source.user`.
    pub user: String,
    /// The password, given in the environment.
    pub password: Option<String>,
    /// `source.insecure`.
    pub insecure: bool,
    /// `source.slot`.
    pub slot: String,
    /// `source.failover`.
    pub failover: bool,
    /// `lake.warehouse`, as a path.
    pub warehouse: PathBuf,
    /// `lake.warehouse`, where it is not in a folder.
    pub url: Option<String>,
    /// Lines of the section `store`.
    pub store: String,
    /// The section `catalog`, where there is one.
    pub catalog: String,
    /// `commit.interval`.
    pub interval: String,
    /// `commit.max_bytes`, where there is no `memory`.
    pub max_bytes: String,
    /// `memory.budget`.
    pub memory: Option<String>,
    /// `state.dir`.
    pub state: PathBuf,
    /// Port of `admin.listen`.
    pub admin_port: u16,
    /// `source.copy_connections`; the default without it.
    pub copy_connections: Option<usize>,
    /// `lake.file_size`; the default without it.
    pub file_size: Option<String>,
    /// More lines of the section `lake`.
    pub lake: String,
    /// Lines of the section `copy`.
    pub copy: String,
    /// Lines of the section `maintenance`.
    pub maintenance: String,
    /// Lines of the section `retention`. Without a time of grace if nothing is set: tests look at what is left.
    pub retention: String,
    /// Says nothing when it ends: its log can be read where it is.
    pub quiet: bool,
    directory: PathBuf,
    text: Option<String>,
}

impl WorkerConfig {
    /// A mirror of these tables of the server's database `postgres`, with a warehouse in the server's directory. `name`
    /// tells several workers of one server apart.
    pub fn new(postgres: &Postgres, name: &str, tables: &[&str]) -> Result<Self> {
        let scratch = postgres.scratch();
        let directory = scratch.directory(&format!("worker-{name}"))?;
        Ok(Self {
            tables: tables.iter().map(|&table| table.to_owned()).collect(),
            append_only: Vec::new(),
            history: Vec::new(),
            layout: Vec::new(),
            host: postgres.socket_dir().display().to_string(),
            port: postgres.port(),
            user: Source::ROLE.to_owned(),
            password: None,
            insecure: false,
            slot: "lakemirror".to_owned(),
            failover: true,
            warehouse: scratch.directory("warehouse")?,
            url: None,
            store: String::new(),
            catalog: String::new(),
            interval: "300ms".to_owned(),
            max_bytes: "64MiB".to_owned(),
            memory: None,
            state: scratch.directory(&format!("worker-{name}/state"))?,
            admin_port: free_port()?,
            copy_connections: None,
            file_size: None,
            lake: String::new(),
            copy: String::new(),
            maintenance: String::new(),
            retention: "grace = \"0s\"".to_owned(),
            quiet: false,
            directory,
            text: None,
        })
    }

    /// With a warehouse in this store, of its own.
    pub fn in_store(mut self, store: &Seaweed) -> Result<Self> {
        let unique = self.directory.strip_prefix("/").unwrap_or(&self.directory).display().to_string();
        self.url = Some(format!("s3://{}/{}", Seaweed::BUCKET, unique.replace('/', "-")));
        self.store = format!(
            "endpoint = \"{}\"\nregion = \"{}\"\naccess_key_id = \"{}\"\nsecret_access_key_file = {:?}\nallow_http = true",
            store.endpoint(),
            Seaweed::REGION,
            Seaweed::ADMIN.id,
            store.secret_file(Seaweed::ADMIN)?
        );
        Ok(self)
    }

    /// With the warehouse in this store.
    pub fn in_azure(mut self, store: &Azurite) -> Result<Self> {
        let unique = self.directory.strip_prefix("/").unwrap_or(&self.directory).display().to_string();
        self.url = Some(format!("abfss://{}/{}", Azurite::AUTHORITY, unique.replace('/', "-")));
        self.store =
            format!("endpoint = {:?}\naccount_key_file = {:?}\nallow_http = true", store.endpoint(), store.key_file()?);
        Ok(self)
    }

    /// With the tables in this catalog.
    pub fn in_catalog(mut self, catalog: &OtherCatalog) -> Result<Self> {
        self.catalog = catalog.section(&self.directory)?;
        Ok(self)
    }

    /// With a warehouse in this store's bucket for tables.
    pub fn in_table_bucket(self, store: &Seaweed) -> Result<Self> {
        let url = Some(format!("s3://{}", Seaweed::TABLE_BUCKET));
        Ok(Self { url, ..self.in_store(store)? })
    }

    /// With no key for the store but those that its REST catalog vends.
    #[must_use]
    pub fn with_vended_credentials(mut self) -> Self {
        self.store = "allow_http = true".to_owned();
        self.catalog.push_str("vended_credentials = true\n");
        self
    }

    /// A file of this text instead of the harness's own.
    #[must_use]
    pub fn with_text(mut self, text: String) -> Self {
        self.text = Some(text);
        self
    }

    /// Where its tables' files are.
    pub fn warehouse_url(&self) -> String {
        self.url.clone().unwrap_or_else(|| format!("file://{}", self.warehouse.display()))
    }

    /// The file's text.
    pub fn toml(&self) -> String {
        if let Some(text) = &self.text {
            return text.clone();
        }
        let mut text = String::new();
        let list = |tables: &[String]| tables.iter().map(|table| format!("{table:?}")).collect::<Vec<_>>().join(", ");
        let Self { host, port, user, slot, failover, insecure, interval, max_bytes, admin_port, .. } = self;
        let copy_connections =
            self.copy_connections.map_or_else(String::new, |most| format!("copy_connections = {most}\n"));
        let file_size = self.file_size.as_ref().map_or_else(String::new, |size| format!("file_size = {size:?}\n"));
        let memory = match &self.memory {
            Some(budget) => format!("[memory]\nbudget = {budget:?}\n"),
            None => format!("max_bytes = {max_bytes:?}\n"),
        };
        let section = |(table, partition_by, sort_by): &(String, String, String)| {
            format!("[layout.{table:?}]\npartition_by = {partition_by:?}\nsort_by = {sort_by:?}\n")
        };
        let warehouse = self.warehouse_url();
        let state = self.state.display();
        let _ = write!(
            text,
            "mirror = \"lake\"\n\
             tables = [{}]\nappend_only = [{}]\nhistory = [{}]\n\
             [source]\nhost = {host:?}\nport = {port}\ndatabase = \"postgres\"\nuser = {user:?}\n\
             publication = \"lakemirror\"\nslot = {slot:?}\ninsecure = {insecure}\nfailover = {failover}\n{copy_connections}\
             [lake]\nwarehouse = \"{warehouse}\"\ncatalog_schema = \"lake_catalog\"\ncatalog_name = \"lake\"\n{file_size}{}\n\
             [store]\n{}\n{}\
             [copy]\n{}\n\
             [maintenance]\n{}\n\
             [retention]\n{}\n\
             [commit]\ninterval = {interval:?}\n{memory}\
             [state]\ndir = \"{state}\"\n\
             [admin]\nlisten = \"127.0.0.1:{admin_port}\"\n\
             [read]\nsocket = \"{}/read.sock\"\n\
             [log]\nformat = \"text\"\n{}",
            list(&self.tables),
            list(&self.append_only),
            list(&self.history),
            self.lake,
            self.store,
            self.catalog,
            self.copy,
            self.maintenance,
            self.retention,
            self.directory.display(),
            self.layout.iter().map(section).collect::<String>()
        );
        text
    }

    /// `read.socket`.
    pub fn read_socket(&self) -> PathBuf {
        self.directory.join("read.sock")
    }

    fn write(&self) -> Result<PathBuf> {
        let (path, next) = (self.directory.join("lakemirror.toml"), self.directory.join("lakemirror.toml.next"));
        std::fs::write(&next, self.toml())?;
        Account::current()?.own(&next)?;
        // A worker that was started just now may be reading the former one.
        std::fs::rename(&next, &path)?;
        Ok(path)
    }

    fn command(&self, arguments: &[&str]) -> Result<std::process::Command> {
        let mut command = Account::current()?.command(binary(&self.directory)?, true);
        command.args(arguments).arg("--config").arg(self.write()?).current_dir(&self.directory);
        if let Some(password) = &self.password {
            command.env("LAKEMIRROR_SOURCE_PASSWORD", password);
        }
        Ok(command)
    }

    /// Runs a command that ends by itself, such as `check` or `status --json`.
    pub async fn call(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command(arguments)?;
        tokio::task::spawn_blocking(move || command.output()).await?.context("run cdc-worker")
    }

    /// Runs `cdc-worker run`, expecting it to give up by itself; its exit code and output.
    pub async fn run_to_end(&self, limit: Duration) -> Result<(i32, String)> {
        let mut worker = Worker::spawn(self)?;
        let code = worker.wait_code(limit).await?;
        Ok((code, worker.output()))
    }
}

/// A running worker. Dropping it kills it.
#[derive(Debug)]
pub struct Worker {
    process: Process,
    admin_port: u16,
    quiet: bool,
}

impl Worker {
    /// Starts `cdc-worker run`.
    pub fn spawn(config: &WorkerConfig) -> Result<Self> {
        let mut command = config.command(&["run"])?;
        let process = Process::spawn(&mut command, &config.directory.join("worker.log"))?;
        Ok(Self { process, admin_port: config.admin_port, quiet: config.quiet })
    }

    /// The same on a terminal of its own, whose contents are the output. (What is killed is the terminal.)
    pub fn spawn_on_terminal(config: &WorkerConfig) -> Result<Self> {
        let run = format!("exec {} run --config {}", binary(&config.directory)?.display(), config.write()?.display());
        let mut command = Account::current()?.command("script", true);
        command.args(["-qfec", &run, "/dev/null"]).env("TERM", "xterm").current_dir(&config.directory);
        let process = Process::spawn(&mut command, &config.directory.join("terminal.log"))?;
        Ok(Self { process, admin_port: config.admin_port, quiet: config.quiet })
    }

    /// Starts it and waits until all of its tables stream.
    pub async fn start(config: &WorkerConfig, postgres: &Postgres) -> Result<Self> {
        let mut worker = Self::spawn(config)?;
        worker.streaming(postgres, config.tables.len() + config.append_only.len()).await?;
        Ok(worker)
    }

    /// Waits until so many tables are streaming.
    pub async fn streaming(&mut self, postgres: &Postgres, tables: usize) -> Result<()> {
        let client = postgres.client().await?;
        eventually("all tables stream", Duration::from_secs(90), async || {
            if let Some(status) = self.process.ended()? {
                return Ok(Some(Err(anyhow::anyhow!("the worker ended with {status}:\n{}", self.output()))));
            }
            let sql = "SELECT count(*) FROM lake_catalog.mirrored_tables WHERE state = 'streaming'";
            let streaming: i64 = client.query_one(sql, &[]).await?.get(0);
            Ok((usize::try_from(streaming)? == tables).then_some(Ok(())))
        })
        .await
        .with_context(|| format!("the worker says:\n{}", self.output()))?
    }

    /// `kill -9`, and waits until it is gone.
    pub async fn kill(mut self) -> Result<()> {
        self.process.kill().await
    }

    /// SIGTERM; its exit code and how long it took.
    pub async fn terminate(mut self) -> Result<(i32, Duration)> {
        let started = Instant::now();
        self.process.signal("TERM")?;
        let code = self.process.wait_code(Duration::from_secs(30)).await?;
        Ok((code, started.elapsed()))
    }

    /// Holds it where it is (SIGSTOP), its connections open.
    pub fn hold(&self) -> Result<()> {
        self.process.signal("STOP")
    }

    /// Lets it go on (SIGCONT).
    pub fn release(&self) -> Result<()> {
        self.process.signal("CONT")
    }

    /// Waits until it ends by itself.
    pub async fn wait_code(&mut self, limit: Duration) -> Result<i32> {
        self.process.wait_code(limit).await.with_context(|| format!("the worker says:\n{}", self.output()))
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// The largest resident set that the process has had, in MiB.
    pub fn peak_mib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? / 1024)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Everything it has printed.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// Status and body of an admin page.
    pub async fn admin(&self, path: &str) -> Result<(u16, String)> {
        let (port, path) = (self.admin_port, path.to_owned());
        tokio::task::spawn_blocking(move || http_get(port, &path)).await?
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.quiet {
            return;
        }
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        eprintln!("-- end of the worker's output\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
    }
}

fn http_get(port: u16, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connect to the admin port")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
    let status = head.split_whitespace().nth(1).context("an HTTP status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// The binary that was built in this profile, in the worker's directory: root's home may be closed to its account.
fn binary(directory: &Path) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    let built = target.join("release/cdc-worker");
    ensure!(built.exists(), "{} is not built: cargo build --release -p cdc-worker", built.display());
    let path = directory.join("cdc-worker");
    if !path.exists() && std::fs::hard_link(&built, &path).is_err() {
        std::fs::copy(&built, &path).context("copy cdc-worker")?;
    }
    Ok(path)
}
