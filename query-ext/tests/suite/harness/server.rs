//! A Postgres server of the test's own, stopped when dropped.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio_postgres::{Client, NoTls};

fn bin() -> PathBuf {
    let output = Command::new(pg_config()).arg("--bindir").output().expect("pg_config runs");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

fn pg_config() -> String {
    std::env::var("PG_CONFIG").unwrap_or_else(|_| "/usr/lib/postgresql/15/bin/pg_config".into())
}

/// A command as a user that Postgres accepts.
fn as_postgres(program: PathBuf) -> Command {
    let root = Command::new("id").arg("-u").output().unwrap().stdout.starts_with(b"0\n");
    let mut command = if root {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    // A backtrace would become the DETAIL of every error.
    command.env_remove("RUST_BACKTRACE").current_dir("/");
    command
}

pub(crate) struct Server {
    pub(crate) directory: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        // Cargo puts the extension of a test run beside the tests; elsewhere only `cargo build` does. One for another version
        // of Postgres is in a directory of its own.
        let test = std::env::current_exe().unwrap();
        let beside = test.parent().unwrap().to_path_buf();
        let target = std::env::var("LAKE_LIBRARY_DIR").map_or(beside, PathBuf::from);
        let installed = Command::new(here.join("install.sh")).arg(pg_config()).arg(target).status().unwrap();
        assert!(installed.success(), "install.sh failed");
        let directory = tempfile::Builder::new().prefix("lakeq").tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let server = Self { directory };
        let data = server.data();
        let initdb = as_postgres(bin().join("initdb"))
            .args(["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(initdb.success());
        let conf = data.join("postgresql.conf");
        let mut text = std::fs::read_to_string(&conf).unwrap();
        text.push_str(&format!(
            "\nlisten_addresses = ''\nunix_socket_directories = '{}'\nfsync = off\nshared_preload_libraries = 'lake_query'\n\
             timezone = 'UTC'\nshared_buffers = '64MB'\nmax_connections = 30\n",
            server.directory.path().display()
        ));
        std::fs::write(&conf, text).unwrap();
        server.control("start");
        server
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Where the stand-in's files are.
    pub(crate) fn files(&self) -> PathBuf {
        self.directory.path().join("files")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("data/server.log")).unwrap_or_default()
    }

    fn control(&self, action: &str) {
        let data = self.data();
        let status = as_postgres(bin().join("pg_ctl"))
            .args(["-w", "-s", "-m", "fast", "-D"])
            .arg(&data)
            .arg("-l")
            .arg(data.join("server.log"))
            .arg(action)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success() || action == "stop", "pg_ctl {action} failed: {}", self.log());
    }

    pub(crate) async fn connect(&self, user: &str) -> Client {
        let config = format!("host={} user={user} dbname=postgres", self.directory.path().display());
        let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Whether the postmaster had to start over.
    pub(crate) fn crashed(&self) -> bool {
        self.log().contains("terminating any other active server processes")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::env::var_os("LAKE_QUERY_TEST_KEEP").is_some() {
            eprintln!("kept: psql -h {} -U postgres", self.directory.path().display());
            loop {
                std::thread::sleep(Duration::from_secs(60));
            }
        }
        self.control("stop");
    }
}
