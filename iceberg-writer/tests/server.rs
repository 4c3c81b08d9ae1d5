//! A throw-away Postgres server, shared by the tests that run at the same time, and a lake on it.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use iceberg_writer::{
    Batch, Catalog, CommitReceipt, LakeTable, Lsn, Outcome, SqlCatalog, StoreOptions, TableChange, Warehouse,
};
use lake_tests::Seaweed;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{ObjectStore, ObjectStoreExt};
use tempfile::TempDir;
use tokio_postgres::{Client, Config, NoTls};
use uuid::Uuid;

const SCHEMA: &str = include_str!("../../cdc-worker/src/registry/schema.sql");
pub(crate) const MIRROR: &str = "m";

/// A running server. Its folder and its process go with it.
pub(crate) struct Server {
    process: Child,
    folder: TempDir,
}

static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());

impl Server {
    fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start());
            *shared = Arc::downgrade(&server);
            server
        })
    }

    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let as_root = folder.path().metadata().unwrap().uid() == 0;
        if as_root {
            let id = |flag| output(Command::new("id").args([flag, "postgres"])).parse().ok();
            chown(folder.path(), id("-u"), id("-g")).unwrap();
        }
        // The server refuses to run as root.
        let command = |program: &str| {
            let program = bin_folder().join(program);
            let mut command = Command::new(if as_root { "setpriv".into() } else { program.clone() });
            if as_root {
                command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
            }
            command.env_remove("RUST_BACKTRACE").current_dir(folder.path());
            command
        };
        let data = folder.path().join("data");
        output(command("initdb").args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"]).arg(&data));
        let process = command("postgres")
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(folder.path())
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200"])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { process, folder }
    }

    pub(crate) fn socket_folder(&self) -> &Path {
        self.folder.path()
    }

    async fn connect(&self, database: &str) -> Client {
        let give_up = Instant::now() + Duration::from_secs(20);
        loop {
            match config(self.socket_folder(), database).connect(NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error) if Instant::now() > give_up => {
                    panic!("{error}: {}", std::fs::read_to_string(self.folder.path().join("log")).unwrap())
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-QUIT", &self.process.id().to_string()]).status();
        let _ = self.process.wait();
    }
}

fn bin_folder() -> PathBuf {
    let pg_config = std::env::var("PGRX_PG_CONFIG_PATH").unwrap_or_else(|_| "pg_config".to_owned());
    output(Command::new(pg_config).arg("--bindir")).into()
}

pub(crate) fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "{command:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
    text
}

pub(crate) fn config(socket_folder: &Path, database: &str) -> Config {
    let mut config = Config::new();
    config.host_path(socket_folder).user("postgres").dbname(database);
    config
}

/// Where a lake's files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Folder,
    S3,
}

/// A database with a mirror in epoch 1, a warehouse and a catalog.
pub(crate) struct Lake {
    // Dropped before the server.
    pub(crate) catalog: SqlCatalog,
    pub(crate) warehouse: Warehouse,
    pub(crate) sql: Client,
    pub(crate) database: String,
    pub(crate) folder: TempDir,
    pub(crate) server: Arc<Server>,
    pub(crate) store: Option<Arc<Seaweed>>,
}

impl Lake {
    pub(crate) async fn new(on: Place) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let server = tokio::task::spawn_blocking(Server::shared).await.unwrap();
        let database = format!("lake{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let admin = server.connect("postgres").await;
        admin.batch_execute(&format!("CREATE DATABASE {database}")).await.unwrap();
        let sql = server.connect(&database).await;
        sql.batch_execute("CREATE SCHEMA lake_catalog").await.unwrap();
        sql.batch_execute(SCHEMA).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (store, url) = match on {
            Place::Folder => (None, format!("file://{}/warehouse", folder.path().display())),
            Place::S3 => {
                let url = format!("s3://{}/{}/{database}", Seaweed::BUCKET, std::process::id());
                (Some(Seaweed::shared().await.unwrap()), url)
            }
        };
        let options = store.as_deref().map_or_else(StoreOptions::default, options);
        let warehouse = Warehouse::open(&url, &options).await.unwrap();
        let catalog =
            SqlCatalog::new(config(server.socket_folder(), &database), "lake_catalog", "lake", warehouse.clone());
        let lake = Self { catalog, warehouse, sql, database, folder, server, store };
        lake.add_mirror(MIRROR).await;
        lake
    }

    pub(crate) async fn add_mirror(&self, name: &str) {
        let insert = "INSERT INTO lake_catalog.mirrors (mirror, publication, slot, epoch) VALUES ($1, 'p', 's', 1)";
        self.sql.execute(insert, &[&name]).await.unwrap();
    }

    /// The catalog as another process sees it.
    pub(crate) fn other_catalog(&self) -> SqlCatalog {
        self.catalog_at(self.server.socket_folder())
    }

    pub(crate) fn catalog_at(&self, socket_folder: &Path) -> SqlCatalog {
        SqlCatalog::new(config(socket_folder, &self.database), "lake_catalog", "lake", self.warehouse.clone())
    }

    pub(crate) async fn mirror_lsn(&self) -> Option<Lsn> {
        self.sql.query_one("SELECT lsn FROM lake_catalog.mirrors WHERE mirror = $1", &[&MIRROR]).await.unwrap().get(0)
    }

    pub(crate) async fn metadata_location(&self, table: &str) -> Option<String> {
        let query = "SELECT metadata_location FROM lake_catalog.iceberg_tables WHERE table_name = $1";
        self.sql.query_opt(query, &[&table]).await.unwrap().map(|row| row.get(0))
    }

    /// What foreign readers are told of the store.
    pub(crate) fn s3_environment(&self) -> Vec<(&'static str, String)> {
        let Some(store) = &self.store else { return Vec::new() };
        vec![
            ("AWS_ENDPOINT_URL", store.endpoint()),
            ("AWS_ACCESS_KEY_ID", Seaweed::ADMIN.id.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", Seaweed::ADMIN.secret.to_owned()),
            ("AWS_REGION", Seaweed::REGION.to_owned()),
        ]
    }

    /// A file of the warehouse.
    pub(crate) async fn read(&self, location: &str) -> Vec<u8> {
        match &self.store {
            None => std::fs::read(location.trim_start_matches("file://")).unwrap(),
            Some(store) => {
                let key = location.strip_prefix(&format!("s3://{}/", Seaweed::BUCKET)).unwrap();
                client(store).get(&key.into()).await.unwrap().bytes().await.unwrap().to_vec()
            }
        }
    }

    /// All files of the warehouse.
    pub(crate) async fn files(&self) -> Vec<String> {
        if let Some(store) = &self.store {
            let bucket = format!("s3://{}/", Seaweed::BUCKET);
            let prefix = self.warehouse.url().strip_prefix(&bucket).unwrap();
            let objects = client(store).list(Some(&prefix.into())).try_collect::<Vec<_>>().await.unwrap();
            let mut files: Vec<String> = objects.iter().map(|object| format!("{bucket}{}", object.location)).collect();
            files.sort();
            return files;
        }
        let mut files = Vec::new();
        let mut folders = vec![self.folder.path().join("warehouse")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { files.push(format!("file://{}", path.display())) }
            }
        }
        files.sort();
        files
    }
}

/// How the writer reaches the test's store.
pub(crate) fn options(store: &Seaweed) -> StoreOptions {
    StoreOptions {
        endpoint: Some(store.endpoint()),
        region: Some(Seaweed::REGION.to_owned()),
        access_key_id: Some(Seaweed::ADMIN.id.to_owned()),
        secret_access_key_file: Some(store.secret_file(Seaweed::ADMIN).unwrap()),
        allow_http: true,
        ..StoreOptions::default()
    }
}

/// The plain bucket, past the writer.
pub(crate) fn client(store: &Seaweed) -> AmazonS3 {
    AmazonS3Builder::new()
        .with_endpoint(store.endpoint())
        .with_region(Seaweed::REGION)
        .with_bucket_name(Seaweed::BUCKET)
        .with_access_key_id(Seaweed::ADMIN.id)
        .with_secret_access_key(Seaweed::ADMIN.secret)
        .with_allow_http(true)
        .build()
        .unwrap()
}

/// A batch of the test's mirror, from one position to another.
pub(crate) fn batch(expected: Option<u64>, lsn: u64, tables: Vec<TableChange>) -> Batch {
    Batch {
        mirror: MIRROR.to_owned(),
        epoch: 1,
        attempt: Uuid::now_v7(),
        expected: expected.map(Lsn::from_u64),
        lsn: Lsn::from_u64(lsn),
        tables,
    }
}

pub(crate) fn committed(outcome: Outcome) -> CommitReceipt {
    match outcome {
        Outcome::Committed(receipt) => receipt,
        other => panic!("{other:?}"),
    }
}

/// Commits and gives the tables as they are then.
pub(crate) async fn commit(catalog: &dyn Catalog, batch: &Batch) -> Vec<LakeTable> {
    let receipt = committed(catalog.commit(batch).await.unwrap());
    assert_eq!(receipt.lsn(), batch.lsn);
    receipt.tables().iter().map(|committed| committed.table.clone()).collect()
}
