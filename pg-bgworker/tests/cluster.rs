//! A throw-away server. Postgres refuses to run as root, so under root it runs as the user `postgres`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls, error::DbError};

/// A running server; stopped and removed when dropped.
pub(crate) struct Cluster {
    directory: TempDir,
    runtime: Runtime,
}

fn pg_config() -> String {
    std::env::var("PG_CONFIG").or_else(|_| std::env::var("PGRX_PG_CONFIG_PATH")).unwrap()
}

fn binaries() -> &'static Path {
    static BINARIES: OnceLock<PathBuf> = OnceLock::new();
    BINARIES.get_or_init(|| {
        let output = Command::new(pg_config()).arg("--bindir").output().unwrap();
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
}

/// Installs the library once a run.
fn install() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        // Beside this test: cargo copies a library to target/release only when it is built for its own sake. One for another
        // version of Postgres is in a directory of its own.
        let beside = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        let target = std::env::var("LAKE_LIBRARY_DIR").map_or(beside, PathBuf::from);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("install.sh");
        let output = Command::new(script).arg(pg_config()).arg(target).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    });
}

/// A command that runs as a user Postgres accepts.
fn unprivileged(program: &Path) -> Command {
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let mut command = if root {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.env_remove("RUST_BACKTRACE").current_dir("/");
    command
}

fn succeeded(output: &Output) {
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Cluster {
    /// A server with the library preloaded and `wal_level = logical`, and these lines at the end of its configuration.
    pub(crate) fn start(lines: &str) -> Self {
        let cluster = Self::make(lines);
        cluster.pg_ctl(&["start", "-w"]);
        cluster
    }

    fn make(lines: &str) -> Self {
        install();
        let directory = tempfile::Builder::new().prefix("lake").tempdir_in("/tmp").unwrap();
        if Command::new("id").arg("-u").output().unwrap().stdout == b"0\n" {
            succeeded(&Command::new("chown").arg("postgres").arg(directory.path()).output().unwrap());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let cluster = Self { directory, runtime };
        let data = cluster.data();
        let mut initdb = unprivileged(&binaries().join("initdb"));
        initdb.args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-locale", "--no-sync", "-D"]).arg(&data);
        succeeded(&initdb.output().unwrap());
        let socket = cluster.directory.path().display().to_string();
        let configuration = format!(
            "listen_addresses = ''\nunix_socket_directories = '{socket}'\nfsync = off\nwal_level = logical\n\
             shared_preload_libraries = 'lake'\nlake.commit_interval = '200ms'\n{lines}\n"
        );
        let path = data.join("postgresql.conf");
        let before = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, before + &configuration).unwrap();
        cluster
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Runs pg_ctl; returns how long it took.
    pub(crate) fn pg_ctl(&self, arguments: &[&str]) -> Duration {
        let begin = Instant::now();
        let mut command = unprivileged(&binaries().join("pg_ctl"));
        let log = self.directory.path().join("log");
        // Its output is not taken: the server it starts would keep the pipe open.
        command.arg("-D").arg(self.data()).arg("-l").arg(&log).args(arguments).stdout(std::process::Stdio::null());
        assert!(command.status().unwrap().success(), "pg_ctl {arguments:?}\n{}", self.log());
        begin.elapsed()
    }

    /// The server's log so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// A connection.
    pub(crate) fn connect(&self, user: &str, database: &str) -> Session<'_> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.directory.path()).user(user).dbname(database);
        let client = self.runtime.block_on(async {
            let (client, connection) = config.connect(NoTls).await.unwrap();
            tokio::spawn(connection);
            client
        });
        Session { client, runtime: &self.runtime }
    }

    /// A superuser's connection to the database `postgres`.
    pub(crate) fn session(&self) -> Session<'_> {
        self.connect("postgres", "postgres")
    }

    /// Waits until a connection can be made again.
    pub(crate) fn await_server(&self) {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.directory.path()).user("postgres").dbname("postgres");
        until("the server accepts connections", || self.runtime.block_on(config.connect(NoTls)).is_ok());
    }

    /// Process ids of the engine workers of the database `postgres` that hold the engine's lock.
    pub(crate) fn engines(&self) -> Vec<i32> {
        self.session().column(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 3 AND granted
             AND database = (SELECT oid FROM pg_database WHERE datname = 'postgres')",
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut command = unprivileged(&binaries().join("pg_ctl"));
        command.arg("-D").arg(self.data()).args(["stop", "-m", "immediate", "-w"]);
        let _already_stopped = command.output();
        if std::thread::panicking() {
            eprintln!("--- server log\n{}", self.log());
        }
    }
}

/// A connection that blocks.
pub(crate) struct Session<'a> {
    pub(crate) client: Client,
    runtime: &'a Runtime,
}

impl Session<'_> {
    /// Runs statements.
    pub(crate) fn run(&self, sql: &str) {
        if let Err(error) = self.runtime.block_on(self.client.batch_execute(sql)) {
            panic!("{sql}: {:?}", error.as_db_error());
        }
    }

    /// Runs statements that must fail.
    pub(crate) fn fail(&self, sql: &str) -> DbError {
        match self.runtime.block_on(self.client.batch_execute(sql)) {
            Ok(()) => panic!("did not fail: {sql}"),
            Err(error) => error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error:?}")).clone(),
        }
    }

    /// The first column of all rows.
    pub(crate) fn column<T: for<'r> tokio_postgres::types::FromSql<'r>>(&self, sql: &str) -> Vec<T> {
        match self.runtime.block_on(self.client.query(sql, &[])) {
            Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
            Err(error) => panic!("{sql}: {error:?}"),
        }
    }

    /// The one value of a query.
    pub(crate) fn value<T: for<'r> tokio_postgres::types::FromSql<'r>>(&self, sql: &str) -> T {
        self.column(sql).pop().unwrap_or_else(|| panic!("no row: {sql}"))
    }
}

/// Waits until something holds; a minute at most.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
