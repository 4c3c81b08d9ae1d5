//! A throw-away Postgres server, shared by the tests that run at the same time, and a lake on it.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use iceberg_writer::{
    Batch, Catalog, CommitReceipt, LakeTable, Lsn, MirrorCatalog, Outcome, RestAuth, RestSettings, Retention,
    StoreOptions, Swept, TableChange, Warehouse,
};
use lake_tests::{Azurite, Key, Seaweed};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::azure::{MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::{ObjectStore, ObjectStoreExt};
use tempfile::TempDir;
use tokio_postgres::{Client, Config, NoTls};
use uuid::Uuid;

use crate::proxy::{Fault, Proxy};
use crate::rest_server::{Manners, RestServer};

const SCHEMA: &str = include_str!("../../cdc-worker/src/registry/schema.sql");
pub(crate) const MIRROR: &str = "m";
/// The file with who we are to SeaweedFS's catalog.
const CREDENTIAL: &str = "catalog.credential";

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

/// Where the tables are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In the mirror's own database.
    Beside,
    /// There too, and their files in an object store.
    InS3,
    /// There too, and their files in Azure's store.
    InAzure,
    /// In a JDBC catalog in another one.
    OtherDatabase,
    /// In a REST catalog that does as it is told.
    Rest,
    /// In one that does as little as it may.
    StrictRest,
    /// In SeaweedFS's, and their files in its table bucket.
    Seaweed,
    /// The same, and there are no keys but those that it vends.
    Vended,
    /// In no catalog but their files.
    Hadoop,
    /// The same, in an object store.
    HadoopInS3,
    /// The same, in Azure's.
    HadoopInAzure,
}

impl Kind {
    /// A batch's tables move together or not at all.
    pub(crate) fn is_atomic(self) -> bool {
        !(self == Self::StrictRest || self.is_hadoop())
    }

    /// In SeaweedFS's catalog.
    fn is_seaweed(self) -> bool {
        matches!(self, Self::Seaweed | Self::Vended)
    }

    /// Tables are found by their folders.
    pub(crate) fn is_hadoop(self) -> bool {
        matches!(self, Self::Hadoop | Self::HadoopInS3 | Self::HadoopInAzure)
    }

    /// A table copied anew is another one, and the server has no part in metadata files.
    pub(crate) fn is_jdbc(self) -> bool {
        matches!(self, Self::Beside | Self::InS3 | Self::InAzure | Self::OtherDatabase)
    }

    /// The number of the first schema that we wrote.
    pub(crate) fn first_schema(self) -> i64 {
        if self.is_jdbc() || self.is_hadoop() { 0 } else { 1 }
    }
}

/// Tests that every kind of catalog passes.
macro_rules! of_every_catalog {
    ($($name:ident),* $(,)?) => {
        of_every_catalog!(@ beside, Beside, $($name),*);
        of_every_catalog!(@ in_s3, InS3, $($name),*);
        of_every_catalog!(@ in_azure, InAzure, $($name),*);
        of_every_catalog!(@ other_database, OtherDatabase, $($name),*);
        of_every_catalog!(@ rest, Rest, $($name),*);
        of_every_catalog!(@ strict_rest, StrictRest, $($name),*);
        of_every_catalog!(@ seaweed, Seaweed, $($name),*);
        of_every_catalog!(@ vended, Vended, $($name),*);
        of_every_catalog!(@ hadoop, Hadoop, $($name),*);
        of_every_catalog!(@ hadoop_in_s3, HadoopInS3, $($name),*);
        of_every_catalog!(@ hadoop_in_azure, HadoopInAzure, $($name),*);
    };
    (@ $kind:ident, $variant:ident, $($name:ident),*) => {
        mod $kind {
            use crate::server::Kind;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    Box::pin(super::$name(Kind::$variant)).await;
                }
            )*
        }
    };
}
pub(crate) use of_every_catalog;

/// Tests that every kind of catalog passes whose commits can be made to fail.
macro_rules! of_every_faulty_catalog {
    ($($name:ident),* $(,)?) => {
        crate::server::of_every_catalog!(@ beside, Beside, $($name),*);
        crate::server::of_every_catalog!(@ other_database, OtherDatabase, $($name),*);
        crate::server::of_every_catalog!(@ rest, Rest, $($name),*);
        crate::server::of_every_catalog!(@ strict_rest, StrictRest, $($name),*);
    };
}
pub(crate) use of_every_faulty_catalog;

/// A database with a mirror in epoch 1, a warehouse and a catalog.
pub(crate) struct Lake {
    // Dropped before the server.
    pub(crate) catalog: MirrorCatalog,
    pub(crate) kind: Kind,
    pub(crate) rest: Option<RestServer>,
    rest_settings: Option<RestSettings>,
    /// The database with the tables, where that is another one.
    pub(crate) other: Option<(String, Client)>,
    pub(crate) warehouse: Warehouse,
    pub(crate) sql: Client,
    pub(crate) database: String,
    pub(crate) folder: TempDir,
    pub(crate) server: Arc<Server>,
    pub(crate) store: Option<Arc<Seaweed>>,
    azure: Option<Arc<Azurite>>,
}

impl Lake {
    pub(crate) async fn new(kind: Kind) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let server = tokio::task::spawn_blocking(Server::shared).await.unwrap();
        let database = format!("lake{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let admin = server.connect("postgres").await;
        admin.batch_execute(&format!("CREATE DATABASE {database}")).await.unwrap();
        let sql = server.connect(&database).await;
        sql.batch_execute("CREATE SCHEMA lake_catalog").await.unwrap();
        sql.batch_execute(SCHEMA).await.unwrap();
        let mut other = None;
        if kind == Kind::OtherDatabase {
            let name = format!("{database}_other");
            admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
            let client = server.connect(&name).await;
            other = Some((name, client));
        }
        let folder = tempfile::tempdir().unwrap();
        let mut azure = None;
        let (store, url) = match kind {
            Kind::InAzure | Kind::HadoopInAzure => {
                azure = Some(Azurite::shared().await.unwrap());
                (None, format!("abfss://{}/{}/{database}", Azurite::AUTHORITY, std::process::id()))
            }
            Kind::InS3 | Kind::HadoopInS3 => {
                let url = format!("s3://{}/{}/{database}", Seaweed::BUCKET, std::process::id());
                (Some(Seaweed::shared().await.unwrap()), url)
            }
            // Names of tables are the whole catalog's.
            Kind::Seaweed | Kind::Vended => {
                let store = match kind {
                    Kind::Vended => Seaweed::start_vending().await.unwrap(),
                    _ => Seaweed::start().await.unwrap(),
                };
                let store = Arc::new(store);
                std::fs::write(
                    folder.path().join(CREDENTIAL),
                    format!("{}:{}", Seaweed::ADMIN.id, Seaweed::ADMIN.secret),
                )
                .unwrap();
                (Some(store), format!("s3://{}", Seaweed::TABLE_BUCKET))
            }
            _ => (None, format!("file://{}/warehouse", folder.path().display())),
        };
        let options = match (&store, &azure) {
            (Some(store), _) => options(store),
            (None, Some(azure)) => options_of_azure(azure),
            (None, None) => StoreOptions::default(),
        };
        let warehouse = match kind {
            Kind::Vended => {
                Warehouse::vended(&url, &StoreOptions { allow_http: true, ..StoreOptions::default() }).unwrap()
            }
            _ => Warehouse::open(&url, &options).await.unwrap(),
        };
        let rest = match kind {
            Kind::Rest => Some(RestServer::start(Manners::Free, warehouse.url()).await),
            Kind::StrictRest => Some(RestServer::start(Manners::Strict, warehouse.url()).await),
            _ => None,
        };
        let rest_settings = match (&rest, &store) {
            (Some(rest), _) => {
                Some(RestSettings { uri: rest.uri(), warehouse: None, auth: RestAuth::None, vended_credentials: false })
            }
            (None, Some(store)) if kind.is_seaweed() => Some(RestSettings {
                uri: store.catalog_endpoint(),
                warehouse: Some(Seaweed::TABLE_BUCKET.to_owned()),
                auth: RestAuth::OAuth2 {
                    credential_file: folder.path().join(CREDENTIAL),
                    server_uri: None,
                    scope: "catalog".to_owned(),
                },
                vended_credentials: kind == Kind::Vended,
            }),
            _ => None,
        };
        let socket = server.socket_folder();
        let source = config(socket, &database);
        let other_name = other.as_ref().map(|(name, _): &(String, Client)| &**name);
        let catalog = catalog(kind, source, socket, other_name, rest_settings.as_ref(), &warehouse);
        catalog.ensure().await.unwrap();
        let lake =
            Self { catalog, kind, rest, rest_settings, other, warehouse, sql, database, folder, server, store, azure };
        lake.add_mirror(MIRROR).await;
        lake
    }

    pub(crate) async fn add_mirror(&self, name: &str) {
        let insert = "INSERT INTO lake_catalog.mirrors (mirror, publication, slot, epoch) VALUES ($1, 'p', 's', 1)";
        self.sql.execute(insert, &[&name]).await.unwrap();
    }

    /// How many strays of writers before `epoch` went from a table's folder.
    pub(crate) async fn strays_swept(&self, table: &LakeTable, epoch: i64) -> Swept {
        let found = self.catalog.look_for_strays(table, epoch).await.unwrap();
        let swept = self.catalog.sweep(&[], &|_| false).await;
        assert_eq!(swept.deleted, found);
        swept
    }

    /// The catalog as another process sees it.
    pub(crate) fn other_catalog(&self) -> MirrorCatalog {
        self.catalog_at(self.server.socket_folder())
    }

    /// The catalog by way of a proxy, if its commits go to a Postgres server.
    pub(crate) fn catalog_at(&self, socket_folder: &Path) -> MirrorCatalog {
        let source = match self.kind {
            Kind::Beside | Kind::InS3 | Kind::InAzure => socket_folder,
            _ => self.server.socket_folder(),
        };
        let other = self.other.as_ref().map(|(name, _)| &**name);
        let source = config(source, &self.database);
        catalog(self.kind, source, socket_folder, other, self.rest_settings.as_ref(), &self.warehouse)
    }

    /// Gives the mirror to another worker.
    pub(crate) async fn claim(&self) -> i64 {
        let claim = "UPDATE lake_catalog.mirrors SET epoch = epoch + 1 WHERE mirror = $1 RETURNING epoch";
        self.sql.query_one(claim, &[&MIRROR]).await.unwrap().get(0)
    }

    pub(crate) async fn mirror_lsn(&self) -> Option<Lsn> {
        self.sql.query_one("SELECT lsn FROM lake_catalog.mirrors WHERE mirror = $1", &[&MIRROR]).await.unwrap().get(0)
    }

    pub(crate) async fn metadata_location(&self, table: &str) -> Option<String> {
        if let Some(rest) = &self.rest {
            return rest.metadata_location(table);
        }
        if self.kind.is_seaweed() {
            return self.seaweed_location(table).await;
        }
        if self.kind.is_hadoop() {
            return self.last_state(table).await;
        }
        let query = "SELECT metadata_location FROM lake_catalog.iceberg_tables WHERE table_name = $1";
        let sql = self.other.as_ref().map_or(&self.sql, |(_, client)| client);
        sql.query_opt(query, &[&table]).await.unwrap().map(|row| row.get(0))
    }

    /// A table's file with the highest number, past the hint.
    async fn last_state(&self, table: &str) -> Option<String> {
        let folder = format!("/{table}/metadata/v");
        let number = |file: &String| file.split_once(&folder)?.1.strip_suffix(".metadata.json")?.parse::<u64>().ok();
        self.files().await.into_iter().filter(|file| number(file).is_some()).max_by_key(|file| number(file))
    }

    async fn seaweed_location(&self, table: &str) -> Option<String> {
        let (store, http) = (self.store.as_ref().unwrap(), reqwest::Client::new());
        let form = format!(
            "grant_type=client_credentials&client_id={}&client_secret={}",
            Seaweed::ADMIN.id,
            Seaweed::ADMIN.secret
        );
        let ask = http.post(format!("{}/v1/oauth/tokens", store.catalog_endpoint()));
        let ask = ask.header("Content-Type", "application/x-www-form-urlencoded").body(form);
        let token: serde_json::Value = ask.send().await.unwrap().json().await.unwrap();
        let namespaces = format!("{}/v1/{}/namespaces", store.catalog_endpoint(), Seaweed::TABLE_BUCKET);
        for namespace in ["public", "types"] {
            let load = http.get(format!("{namespaces}/{namespace}/tables/{table}"));
            let found = load.bearer_auth(token["access_token"].as_str().unwrap()).send().await.unwrap();
            if found.status().is_success() {
                let found: serde_json::Value = found.json().await.unwrap();
                return found["metadata-location"].as_str().map(str::to_owned);
            }
        }
        None
    }

    /// What foreign readers are told of the store.
    pub(crate) fn s3(&self) -> serde_json::Value {
        self.store.as_ref().map_or(serde_json::Value::Null, |store| {
            let Key { id, secret } = Seaweed::ADMIN;
            serde_json::json!({ "endpoint": store.endpoint(), "key": id, "secret": secret, "region": Seaweed::REGION })
        })
    }

    /// The same of Azure's.
    pub(crate) fn azure(&self) -> serde_json::Value {
        self.azure.as_ref().map_or(serde_json::Value::Null, |azure| azure.reader())
    }

    /// The bucket, past the writer, and its URL; `None`: the warehouse is a folder.
    fn bucket(&self) -> Option<(Box<dyn ObjectStore>, String)> {
        let (scheme, rest) = self.warehouse.url().split_once("://")?;
        let name = rest.split('/').next()?;
        let bucket: Box<dyn ObjectStore> = match (&self.store, &self.azure) {
            (Some(store), _) => Box::new(client_of(store, name)),
            (None, Some(azure)) => Box::new(client_of_azure(azure)),
            (None, None) => return None,
        };
        Some((bucket, format!("{scheme}://{name}/")))
    }

    /// A file of the warehouse.
    pub(crate) async fn read(&self, location: &str) -> Vec<u8> {
        match self.bucket() {
            None => std::fs::read(location.trim_start_matches("file://")).unwrap(),
            Some((bucket, url)) => {
                let key = location.strip_prefix(&url).unwrap();
                bucket.get(&key.into()).await.unwrap().bytes().await.unwrap().to_vec()
            }
        }
    }

    /// All files of the warehouse.
    pub(crate) async fn files(&self) -> Vec<String> {
        if let Some((bucket, url)) = self.bucket() {
            let prefix = self.warehouse.url().strip_prefix(&url).unwrap_or_default();
            let objects = bucket.list(Some(&prefix.into())).try_collect::<Vec<_>>().await.unwrap();
            let mut files: Vec<String> = objects.iter().map(|object| format!("{url}{}", object.location)).collect();
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

/// How the writer reaches the test's Azure.
pub(crate) fn options_of_azure(azure: &Azurite) -> StoreOptions {
    StoreOptions {
        endpoint: Some(azure.endpoint()),
        account_key_file: Some(azure.key_file().unwrap()),
        allow_http: true,
        ..StoreOptions::default()
    }
}

fn client_of_azure(azure: &Azurite) -> MicrosoftAzure {
    MicrosoftAzureBuilder::new()
        .with_endpoint(azure.endpoint())
        .with_container_name(Azurite::CONTAINER)
        .with_account(Azurite::ACCOUNT.id)
        .with_access_key(Azurite::ACCOUNT.secret)
        .with_allow_http(true)
        .build()
        .unwrap()
}

/// The plain bucket, past the writer.
pub(crate) fn client(store: &Seaweed) -> AmazonS3 {
    client_of(store, Seaweed::BUCKET)
}

fn client_of(store: &Seaweed, bucket: &str) -> AmazonS3 {
    AmazonS3Builder::new()
        .with_endpoint(store.endpoint())
        .with_region(Seaweed::REGION)
        .with_bucket_name(bucket)
        .with_access_key_id(Seaweed::ADMIN.id)
        .with_secret_access_key(Seaweed::ADMIN.secret)
        .with_allow_http(true)
        .build()
        .unwrap()
}

fn catalog(
    kind: Kind,
    source: Config,
    socket_folder: &Path,
    other: Option<&str>,
    rest: Option<&RestSettings>,
    warehouse: &Warehouse,
) -> MirrorCatalog {
    let (schema, warehouse) = ("lake_catalog", warehouse.clone());
    let catalog = match (other, rest) {
        (Some(other), _) => {
            let other = config(socket_folder, other);
            MirrorCatalog::in_database(source, schema, other, schema, "lake", warehouse)
        }
        (_, Some(rest)) => MirrorCatalog::over_rest(source, schema, rest.clone(), warehouse).unwrap(),
        _ if kind.is_hadoop() => MirrorCatalog::in_files(source, schema, warehouse),
        _ => MirrorCatalog::in_source(source, schema, "lake", warehouse),
    };
    catalog.with_retention(WITHOUT_GRACE)
}

/// What is superfluous goes at once, so that tests see it go.
pub(crate) const WITHOUT_GRACE: Retention =
    Retention { age: Duration::from_secs(600), snapshots: 100, grace: Duration::ZERO };

/// What can keep a commit's request or its answer from arriving.
pub(crate) enum Faulty {
    Proxy(Proxy),
    Rest(RestServer),
}

impl Faulty {
    pub(crate) fn of(lake: &Lake) -> (Self, MirrorCatalog) {
        match &lake.rest {
            Some(rest) => (Self::Rest(rest.clone()), lake.other_catalog()),
            None => {
                let proxy = Proxy::new(lake.server.socket_folder());
                let catalog = lake.catalog_at(proxy.socket_folder());
                (Self::Proxy(proxy), catalog)
            }
        }
    }

    pub(crate) fn set(&self, fault: Fault) {
        match self {
            Self::Proxy(proxy) => proxy.set(fault),
            Self::Rest(rest) => rest.set(fault),
        }
    }

    pub(crate) fn is_set(&self, fault: Fault) -> bool {
        match self {
            Self::Proxy(proxy) => proxy.is_set(fault),
            Self::Rest(rest) => rest.is_set(fault),
        }
    }
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
