//! A private Postgres server: its own directory, a unix socket in it, and an end that leaves nothing.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::account::Account;
use crate::process::{Process, signal_pid};
use crate::scratch::Scratch;

/// The server's `pg_config` unless the variable `PG_CONFIG` names another: the same code is tested on several versions.
const DEFAULT_PG_CONFIG: &str = "/usr/lib/postgresql/15/bin/pg_config";
/// Without TCP the port only names the socket file.
const SOCKET_PORT: u16 = 5432;
const START_LIMIT: Duration = Duration::from_secs(60);

/// What every server gets; a builder's settings come after and win.
const DEFAULTS: &[(&str, &str)] = &[
    ("wal_level", "logical"),
    ("max_wal_senders", "16"),
    ("max_replication_slots", "16"),
    ("max_connections", "60"),
    ("shared_buffers", "64MB"),
    ("timezone", "UTC"),
    ("log_line_prefix", "%m [%p] %u@%d %b: "),
    // The tests end processes, not the machine.
    ("fsync", "off"),
];

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Waits for a shutdown checkpoint and for the walsenders.
    Fast,
    /// As after a crash: recovery at the next start.
    Immediate,
    /// `kill -9` of the postmaster.
    Kill,
}

/// What a server is to be.
#[derive(Debug, Default)]
pub struct PostgresBuilder {
    settings: Vec<(String, String)>,
    hba: Vec<String>,
    tcp: bool,
    kept_at: Option<PathBuf>,
    directory: Option<PathBuf>,
    encoding: Option<String>,
    standby_of: Option<String>,
}

impl PostgresBuilder {
    /// The encoding of its databases; UTF8 without it.
    #[must_use]
    pub fn encoding(mut self, encoding: &str) -> Self {
        self.encoding = Some(encoding.to_owned());
        self
    }

    /// A hot standby of this server, with its settings and files, instead of a cluster of its own.
    #[must_use]
    pub fn standby_of(mut self, primary: &Postgres) -> Self {
        let (host, port) = (primary.socket_dir().display(), primary.port());
        self.standby_of = Some(format!("host={host} port={port} user=postgres dbname=postgres"));
        self
    }

    /// A line of postgresql.conf.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// `shared_preload_libraries`.
    #[must_use]
    pub fn preload(self, libraries: &str) -> Self {
        self.set("shared_preload_libraries", libraries)
    }

    /// A line of pg_hba.conf, before the ones that trust everybody on the socket.
    #[must_use]
    pub fn hba(mut self, line: &str) -> Self {
        self.hba.push(line.to_owned());
        self
    }

    /// Also listens on 127.0.0.1, on a free port.
    #[must_use]
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// Lives in this directory, which must not exist, and can be left running there with [`Postgres::keep`].
    #[must_use]
    pub fn at(mut self, directory: &Path) -> Self {
        self.kept_at = Some(directory.to_owned());
        self
    }

    /// Lives in this directory, which must not exist, and whose files stay after [`Postgres::keep_files`].
    #[must_use]
    pub fn directory(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// Creates the cluster and starts the server.
    pub async fn start(self) -> Result<Postgres> {
        let scratch = match self.kept_at.as_ref().or(self.directory.as_ref()) {
            Some(directory) => Scratch::at(directory, false)?,
            None => Scratch::new()?,
        };
        let port = if self.tcp { free_port()? } else { SOCKET_PORT };
        let detached = self.kept_at.is_some();
        let quiet = detached || self.directory.is_some();
        let mut postgres = Postgres { process: None, port, detached, quiet, scratch };
        postgres.initialize(&self)?;
        postgres.start().await?;
        Ok(postgres)
    }
}

/// A private server. Dropping it stops it at once and removes its files.
#[derive(Debug)]
pub struct Postgres {
    process: Option<Process>,
    port: u16,
    /// Survives the end of the thread that started it (but not a drop).
    detached: bool,
    /// Its log can be read where it is.
    quiet: bool,
    scratch: Scratch,
}

impl Postgres {
    /// A builder with the harness's defaults: `wal_level = logical`, no TCP, no extension preloaded.
    pub fn builder() -> PostgresBuilder {
        PostgresBuilder::default()
    }

    fn initialize(&self, wanted: &PostgresBuilder) -> Result<()> {
        match &wanted.standby_of {
            None => self.make_cluster(wanted)?,
            Some(primary) => self.copy_cluster(primary)?,
        }
        let mut lines = String::new();
        for (name, value) in DEFAULTS {
            writeln!(lines, "{name} = '{value}'")?;
        }
        writeln!(lines, "listen_addresses = '{}'", if wanted.tcp { "127.0.0.1" } else { "" })?;
        writeln!(lines, "port = {}", self.port)?;
        writeln!(lines, "unix_socket_directories = '{}'", self.socket_dir().display())?;
        for (name, value) in &wanted.settings {
            writeln!(lines, "{name} = '{}'", value.replace('\'', "''"))?;
        }
        append(&self.data_dir().join("postgresql.conf"), &lines)?;
        let hba = self.data_dir().join("pg_hba.conf");
        let trusting = std::fs::read_to_string(&hba)?;
        std::fs::write(&hba, format!("{}\n{trusting}", wanted.hba.join("\n")))?;
        Ok(())
    }

    fn copy_cluster(&self, primary: &str) -> Result<()> {
        let output = Account::current()?
            .command(program("pg_basebackup")?, true)
            .args(["--checkpoint=fast", "--no-sync", "--wal-method=stream", "--dbname", primary, "--pgdata"])
            .arg(self.data_dir())
            .current_dir(self.scratch.path())
            .output()
            .context("run pg_basebackup")?;
        ensure!(output.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&output.stderr));
        append(&self.data_dir().join("postgresql.conf"), &format!("primary_conninfo = '{primary}'\n"))?;
        let signal = self.data_dir().join("standby.signal");
        std::fs::write(&signal, "")?;
        Account::current()?.own(&signal)
    }

    fn make_cluster(&self, wanted: &PostgresBuilder) -> Result<()> {
        let output = Account::current()?
            .command(program("initdb")?, true)
            .args(["--auth=trust", "--username=postgres", "--no-sync"])
            .args(match &wanted.encoding {
                None => [String::from("--encoding=UTF8"), String::from("--locale=C.UTF-8")],
                Some(encoding) => [format!("--encoding={encoding}"), String::from("--locale=C")],
            })
            .arg("--pgdata")
            .arg(self.data_dir())
            .current_dir(self.scratch.path())
            .output()
            .context("run initdb (make setup installs it)")?;
        ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// The server's major version.
    pub async fn major(&self) -> Result<u32> {
        let version: u32 = self.value("SHOW server_version_num").await?.parse()?;
        Ok(version / 10_000)
    }

    /// Starts the server again after [`Postgres::stop`].
    pub async fn start(&mut self) -> Result<()> {
        let mut command = Account::current()?.command(program("postgres")?, !self.detached);
        command.arg("-D").arg(self.data_dir()).current_dir(self.scratch.path());
        self.process = Some(Process::spawn(&mut command, &self.log_file())?);
        let started = Instant::now();
        loop {
            let Err(error) = self.client().await else { return Ok(()) };
            let process = self.process.as_mut().context("the server was just started")?;
            if let Some(status) = process.ended()? {
                bail!("postgres ended with {status} at start:\n{}", self.log());
            }
            if started.elapsed() > START_LIMIT {
                return Err(error.context(format!("postgres does not accept connections:\n{}", self.log())));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops the server and says how long that took.
    pub async fn stop(&mut self, how: Stop) -> Result<Duration> {
        let mut process = self.process.take().context("the server is not running")?;
        let started = Instant::now();
        process.signal(match how {
            Stop::Fast => "INT",
            Stop::Immediate => "QUIT",
            Stop::Kill => "KILL",
        })?;
        process.wait(Duration::from_secs(60)).await?;
        Ok(started.elapsed())
    }

    /// Stops fast and starts again.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop(Stop::Fast).await?;
        self.start().await
    }

    /// Appends a setting to postgresql.conf; takes effect at a reload or restart.
    pub fn configure(&self, name: &str, value: &str) -> Result<()> {
        append(&self.data_dir().join("postgresql.conf"), &format!("{name} = '{}'\n", value.replace('\'', "''")))
    }

    /// Re-reads the configuration.
    pub async fn reload(&self) -> Result<()> {
        self.batch("SELECT pg_reload_conf()").await
    }

    /// A connection as the superuser to the database `postgres`.
    pub async fn client(&self) -> Result<Client> {
        self.client_as("postgres", "postgres").await
    }

    /// A connection over the socket.
    pub async fn client_as(&self, user: &str, database: &str) -> Result<Client> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.socket_dir()).port(self.port).user(user).dbname(database);
        config.connect_timeout(Duration::from_secs(10));
        let (client, connection) = config.connect(NoTls).await.context("connect to the test's server")?;
        tokio::spawn(async move {
            // A lost connection shows in the client's next call.
            let _ = connection.await;
        });
        Ok(client)
    }

    /// Runs statements in a session of their own, as superuser.
    pub async fn batch(&self, sql: &str) -> Result<()> {
        self.client().await?.batch_execute(sql).await.with_context(|| sql.to_owned())
    }

    /// The rows of a query, all values as text, as superuser.
    pub async fn rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        text_rows(&self.client().await?, sql).await
    }

    /// The one value of a query as text; NULL is an error.
    pub async fn value(&self, sql: &str) -> Result<String> {
        let rows = self.rows(sql).await?;
        let value = rows.first().and_then(|row| row.first()).cloned().flatten();
        value.with_context(|| format!("no value from: {sql}"))
    }

    /// `kill -9` of one server process, such as a backend or a background worker.
    pub fn kill_backend(&self, pid: u32) -> Result<()> {
        signal_pid(pid, "KILL")
    }

    /// Stops a server process where it is, until [`Self::resume_backend`].
    pub fn freeze_backend(&self, pid: u32) -> Result<()> {
        signal_pid(pid, "STOP")
    }

    /// Lets a process go on that [`Self::freeze_backend`] has stopped.
    pub fn resume_backend(&self, pid: u32) -> Result<()> {
        signal_pid(pid, "CONT")
    }

    /// Ids of this server's processes whose title contains the text.
    pub fn processes(&self, title: &str) -> Result<Vec<u32>> {
        let Some(postmaster) = self.process.as_ref().map(Process::pid) else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // pid (command) state parent …; the command may hold blanks and brackets.
            let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
            let parent = after.split_whitespace().nth(1).and_then(|parent| parent.parse::<u32>().ok());
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if parent == Some(postmaster) && String::from_utf8_lossy(&line).contains(title) {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// Directory of the unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.scratch.path()
    }

    /// The port, which also names the socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// The server's directory, to put other things of the test in.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    fn log_file(&self) -> PathBuf {
        self.scratch.path().join("postgres.log")
    }

    /// The server's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Leaves its files where they are, though the server ends with it.
    pub fn keep_files(&mut self) {
        self.scratch.keep();
    }

    /// Leaves the server running, and its files where they are.
    pub fn keep(mut self) {
        if let Some(process) = &mut self.process {
            process.keep();
        }
        self.scratch.keep();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            process.end("QUIT");
        }
        if !self.quiet {
            // Captured with the test's output, hence shown when it fails.
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("-- end of the server's log\n{}", lines[lines.len().saturating_sub(80)..].join("\n"));
        }
    }
}

/// The rows of a query (the last one of several), all values as text.
pub(crate) async fn text_rows(client: &Client, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
    let messages = client.simple_query(sql).await.with_context(|| sql.to_owned())?;
    let mut rows = Vec::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            rows.push((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect());
        }
    }
    Ok(rows)
}

/// A program of the server that the tests run on.
pub fn program(name: &str) -> Result<PathBuf> {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    if let Some(directory) = DIRECTORY.get() {
        return Ok(directory.join(name));
    }
    let pg_config = std::env::var_os("PG_CONFIG").unwrap_or_else(|| DEFAULT_PG_CONFIG.into());
    let output = Command::new(&pg_config).arg("--bindir").output();
    let output = output.with_context(|| format!("run {} (make setup installs it)", pg_config.display()))?;
    ensure!(output.status.success(), "pg_config --bindir: {}", String::from_utf8_lossy(&output.stderr));
    let directory = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    Ok(DIRECTORY.get_or_init(|| directory).join(name))
}

/// A TCP port that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn append(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().append(true).open(path)?;
    file.write_all(text.as_bytes()).with_context(|| format!("append to {}", path.display()))
}
