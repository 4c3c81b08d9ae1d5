//! A private object store: SeaweedFS, with a plain bucket for S3 and a table bucket for its Iceberg REST catalog.
//!
//! It listens on ports of its own, keeps its files in a directory of its own, and dies with us however we end: the kernel
//! ends it with the thread that started it, which lives as long as the handle does, whichever tests share that.

use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::account::Account;
use crate::deadline::eventually;
use crate::process::Process;
use crate::python::repository;
use crate::scratch::Scratch;

const START_LIMIT: Duration = Duration::from_secs(60);
/// Each service also listens on the port so much above its own.
const SECOND_PORT: u16 = 10_000;
/// Ports that are handed out are below those that the kernel gives to connections.
const PORTS: std::ops::Range<u16> = 12_000..22_000;
const SERVICES: [&str; 6] = ["master.port", "volume.port", "filer.port", "s3.port", "s3.port.iceberg", "admin.port"];
const S3: usize = 3;
const ICEBERG: usize = 4;
/// The role of those who have a vended key.
const ROLE: &str = "arn:aws:iam::role/Lake";

/// A key of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Its id.
    pub id: &'static str,
    /// Its secret.
    pub secret: &'static str,
}

/// A running store. Dropping it kills it and removes its files.
#[derive(Debug)]
pub struct Seaweed {
    ports: [u16; SERVICES.len()],
    running: Mutex<Option<Running>>,
    scratch: Scratch,
    /// Its catalog vends keys, signed with the one of this number.
    vending: Option<AtomicU32>,
}

/// The process, in the hands of a thread that does nothing but be its parent.
#[derive(Debug)]
struct Running {
    end: mpsc::Sender<()>,
    keeper: JoinHandle<()>,
}

impl Seaweed {
    /// A bucket for anything.
    pub const BUCKET: &str = "plain";
    /// The bucket of the Iceberg REST catalog, and that catalog's name. It takes no other names of objects than a table's
    /// files have.
    pub const TABLE_BUCKET: &str = "lake";
    /// Region of both.
    pub const REGION: &str = "us-east-1";
    /// May do everything.
    pub const ADMIN: Key = Key { id: "admin", secret: "secretkey" };
    /// May read.
    pub const READER: Key = Key { id: "reader", secret: "readerkey" };

    /// How many temporary keys there are.
    pub const TEMPORARY: usize = 20;

    /// Id and secret of a key that may do everything in [`Self::BUCKET`].
    pub fn temporary(number: usize) -> (String, String) {
        (format!("temporary-{number}"), format!("temporary-secret-{number}"))
    }

    /// A store for one test.
    pub async fn start() -> Result<Self> {
        Self::start_as(None).await
    }

    /// The same, with a catalog that vends keys to those who ask it to, for a table's folder each.
    pub async fn start_vending() -> Result<Self> {
        Self::start_as(Some(AtomicU32::new(0))).await
    }

    async fn start_as(vending: Option<AtomicU32>) -> Result<Self> {
        let scratch = Scratch::new()?;
        scratch.directory("data")?;
        let identity = |name: &str, key: Key, actions: &[&str]| json!({"name": name, "credentials": [{"accessKey": key.id, "secretKey": key.secret}], "actions": actions});
        let temporary: Vec<_> = (0..Self::TEMPORARY)
            .map(Self::temporary)
            .map(|(id, secret)| json!({"accessKey": id, "secretKey": secret}))
            .collect();
        let actions = ["Read", "List", "Write"].map(|action| format!("{action}:{}", Self::BUCKET));
        let identities = json!({"identities": [
            {"name": "temporary", "credentials": temporary, "actions": actions},
            identity("admin", Self::ADMIN, &["Admin", "Read", "List", "Tagging", "Write"]),
            identity("reader", Self::READER, &["Read", "List"]),
        ]});
        let path = scratch.path().join("identities.json");
        std::fs::write(&path, identities.to_string())?;
        Account::current()?.own(&path)?;
        let seaweed = Self { ports: free_ports()?, running: Mutex::new(None), scratch, vending };
        seaweed.restart().await?;
        Ok(seaweed)
    }

    /// A store that the tests that run at the same time share.
    pub async fn shared() -> Result<Arc<Self>> {
        static SHARED: tokio::sync::Mutex<Weak<Seaweed>> = tokio::sync::Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(seaweed) = shared.upgrade() {
            return Ok(seaweed);
        }
        let seaweed = Arc::new(Self::start().await?);
        *shared = Arc::downgrade(&seaweed);
        Ok(seaweed)
    }

    /// Address of S3.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[S3])
    }

    /// Address of the Iceberg REST catalog; its warehouse is [`Self::TABLE_BUCKET`], and its client credentials are a key.
    pub fn catalog_endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[ICEBERG])
    }

    /// A file with the secret of a key, as the worker wants it.
    pub fn secret_file(&self, key: Key) -> Result<std::path::PathBuf> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = self.scratch.path().join(format!("{}.secret", key.id));
        // In one step: another test that shares the store may be reading it.
        let next = path.with_extension(format!("next{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        std::fs::write(&next, key.secret)?;
        Account::current()?.own(&next)?;
        std::fs::rename(&next, &path)?;
        Ok(path)
    }

    /// `kill -9`; its files stay.
    pub fn kill(&self) -> Result<()> {
        let running = self.lock().take();
        if let Some(Running { end, keeper }) = running {
            drop(end);
            ensure!(keeper.join().is_ok(), "the thread that keeps the store has panicked");
        }
        Ok(())
    }

    /// Starts it (again), and waits until it answers.
    pub async fn restart(&self) -> Result<()> {
        self.kill()?;
        let (end, ended) = mpsc::channel::<()>();
        let (started, spawned) = mpsc::channel();
        let (mut command, log) = (self.command()?, self.scratch.path().join("log"));
        let keeper = std::thread::spawn(move || match Process::spawn(&mut command, &log) {
            Err(error) => drop(started.send(Err(error))),
            Ok(mut process) => {
                let _ = started.send(Ok(()));
                // Until the handle is gone.
                let _ = ended.recv();
                process.end("KILL");
            }
        });
        spawned.recv().context("start the store")??;
        *self.lock() = Some(Running { end, keeper });
        let log = || std::fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default();
        let ready = eventually("the store answers", START_LIMIT, async || Ok(self.is_ready().await?.then_some(())));
        Box::pin(ready).await.with_context(log)
    }

    /// Restarts it, and no key that it has vended counts any more.
    pub async fn restart_with_other_keys(&self) -> Result<()> {
        let number = self.vending.as_ref().context("a store whose catalog vends keys")?;
        number.fetch_add(1, Ordering::Relaxed);
        self.restart().await
    }

    /// What its catalog needs to vend keys: a role for all buckets that the catalog may take, and narrows to a table.
    fn role(&self, number: u32) -> Result<std::path::PathBuf> {
        let everything = json!({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*", "arn:aws:s3:::*/*"]}]});
        let trust = json!({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Principal": {"Federated": "iceberg-catalog"}, "Action": ["sts:AssumeRoleWithCredentials"]}]});
        // Of 35 bytes, base64.
        let signing_key = format!("{number:04}dGVzdC1zaWduaW5nLWtleS0zMi1jaGFyYWN0ZXJzLWxvbmc=");
        let iam = json!({
            "sts": {"tokenDuration": "1h", "maxSessionLength": "12h", "issuer": "seaweedfs-sts", "signingKey": signing_key},
            "policy": {"defaultEffect": "Deny", "storeType": "memory"},
            "policies": [{"name": "Lake", "document": everything}],
            "roles": [{"roleName": "Lake", "roleArn": ROLE, "trustPolicy": trust, "attachedPolicies": ["Lake"]}],
        });
        let path = self.scratch.path().join("iam.json");
        std::fs::write(&path, iam.to_string())?;
        Account::current()?.own(&path)?;
        Ok(path)
    }

    fn command(&self) -> Result<std::process::Command> {
        let program = repository().join(".deps/venv/bin/weed");
        ensure!(program.exists(), "{} is missing: make setup installs it", program.display());
        let scratch = self.scratch.path();
        let mut command = Account::current()?.command(program_for_all(&program, scratch)?, true);
        command.arg("mini").arg(format!("-dir={}", scratch.join("data").display()));
        command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false"]);
        // It would tell its makers that it runs.
        command.arg("-master.telemetry=false");
        command.args(["-s3.port.lance=0", "-s3.autoCreateBucket=false"]);
        command.arg(format!("-s3.config={}", scratch.join("identities.json").display()));
        command.arg(format!("-bucket={}", Self::BUCKET)).arg(format!("-tableBucket={}", Self::TABLE_BUCKET));
        if let Some(number) = &self.vending {
            command.arg(format!("-s3.iam.config={}", self.role(number.load(Ordering::Relaxed))?.display()));
            command.arg(format!("-s3.iceberg.credentialRole={ROLE}"));
            command.arg(format!("-s3.externalUrl={}", self.endpoint()));
        }
        for (service, port) in SERVICES.iter().zip(self.ports) {
            command.arg(format!("-{service}={port}"));
        }
        // Its sockets are put into the temporary directory.
        command.env("TMPDIR", scratch).env("HOME", scratch).current_dir(scratch);
        Ok(command)
    }

    /// The catalog answers before its bucket is there, so both are asked for.
    async fn is_ready(&self) -> Result<bool> {
        let (s3, catalog) = (self.ports[S3], self.ports[ICEBERG]);
        let ask = move || -> Result<bool> {
            let form = format!(
                "grant_type=client_credentials&client_id={}&client_secret={}",
                Self::ADMIN.id,
                Self::ADMIN.secret
            );
            let token = http(catalog, "POST", "/v1/oauth/tokens", "", &form)?.1;
            let token: serde_json::Value = serde_json::from_str(&token)?;
            let token = token["access_token"].as_str().context("a token")?;
            let authorization = format!("Authorization: Bearer {token}\r\n");
            let namespaces =
                http(catalog, "GET", &format!("/v1/{}/namespaces", Self::TABLE_BUCKET), &authorization, "")?;
            // Without a key it refuses, once the bucket is known.
            let bucket = http(s3, "GET", &format!("/{}", Self::BUCKET), "", "")?;
            Ok(namespaces.0 == 200 && bucket.0 == 403)
        };
        tokio::task::spawn_blocking(ask).await?
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The program where every account may run it: root's home may be closed to the servers' account.
fn program_for_all(program: &Path, scratch: &Path) -> Result<std::path::PathBuf> {
    let path = scratch.join("weed");
    if !path.exists() && std::fs::hard_link(program, &path).is_err() {
        std::fs::copy(program, &path).context("copy weed")?;
    }
    Ok(path)
}

/// Ports that are free now, and whose second ports are. Processes begin to look at different places.
fn free_ports() -> Result<[u16; SERVICES.len()]> {
    static NEXT: Mutex<Option<u16>> = Mutex::new(None);
    let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
    let width = PORTS.end - PORTS.start;
    let start = u16::try_from(std::process::id() % u32::from(width / 100))? * 100;
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut ports = Vec::with_capacity(SERVICES.len());
    for _ in 0..width {
        let at = next.map_or(start, |last| (last + 1) % width);
        *next = Some(at);
        let port = PORTS.start + at;
        if free(port) && free(port + SECOND_PORT) {
            ports.push(port);
        }
        if let Ok(ports) = ports.as_slice().try_into() {
            return Ok(ports);
        }
    }
    bail!("no free ports for SeaweedFS")
}

/// Status and body of an answer.
fn http(port: u16, method: &str, path: &str, headers: &str, body: &str) -> Result<(u16, String)> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\n{headers}Content-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
    let status = head.split_whitespace().nth(1).context("an HTTP status")?.parse()?;
    Ok((status, body.to_owned()))
}
