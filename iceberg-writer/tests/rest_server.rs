//! A REST catalog of our own, in memory, whose answers can be lost, refused or come late, and which can be as particular as
//! the servers that there are. Its metadata files are where readers that are not ours find them.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use iceberg::spec::{FormatVersion, Schema, SortOrder, TableMetadata, TableMetadataBuilder, UnboundPartitionSpec};
use iceberg::{TableRequirement, TableUpdate};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use crate::proxy::Fault;

/// How a server differs from another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manners {
    /// Tables keep the place and the identity that they are asked for; several move together.
    Free,
    /// It gives each table a place, an identity and columns' numbers of its own, and moves one at a time.
    Strict,
}

/// What happens to the requests that come next.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Answered with a status, without being carried out.
    Refuse(u16),
    /// Carried out, and answered with a status.
    Answer(u16),
    /// Not answered, and carried out when it is asked for.
    Late,
    /// Carried out; nothing afterwards is.
    LastOne,
}

type Name = (String, String);

/// What an answer with a table has besides, of a table in this folder.
pub(crate) type Vend = dyn Fn(&str) -> Value + Send + Sync;

#[derive(Default)]
struct Tables {
    namespaces: BTreeSet<String>,
    tables: BTreeMap<Name, (TableMetadata, String)>,
    tokens: BTreeSet<String>,
    given: u64,
}

struct Shared {
    manners: Manners,
    folder: String,
    tables: Mutex<Tables>,
    fault: Mutex<Fault>,
    troubles: Mutex<VecDeque<Trouble>>,
    late: Mutex<Vec<(String, Value)>>,
    /// The path of each commit, and its key.
    commits: Mutex<Vec<(String, Option<String>)>>,
    /// How many requests a token is good for, where one is needed at all.
    token_uses: Mutex<Option<usize>>,
    uses: Mutex<HashMap<String, usize>>,
    vend: Mutex<Option<Arc<Vend>>>,
    vended: AtomicUsize,
}

/// A running server. It ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct RestServer {
    shared: Arc<Shared>,
    port: u16,
}

struct Request {
    method: String,
    path: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

type Answer = (u16, Value);

fn problem(status: u16, kind: &str) -> Answer {
    (status, json!({"error": {"message": format!("the test says {kind}"), "type": kind, "code": status}}))
}

impl RestServer {
    pub(crate) async fn start(manners: Manners, folder: &str) -> Self {
        let shared = Arc::new(Shared {
            manners,
            folder: folder.to_owned(),
            tables: Mutex::default(),
            fault: Mutex::new(Fault::None),
            troubles: Mutex::default(),
            late: Mutex::default(),
            commits: Mutex::default(),
            token_uses: Mutex::default(),
            uses: Mutex::default(),
            vend: Mutex::default(),
            vended: AtomicUsize::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepting = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, Arc::clone(&accepting)));
            }
        });
        Self { shared, port }
    }

    pub(crate) fn uri(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn set(&self, fault: Fault) {
        *self.shared.fault.lock().unwrap() = fault;
    }

    pub(crate) fn is_set(&self, fault: Fault) -> bool {
        *self.shared.fault.lock().unwrap() == fault
    }

    /// The next commits meet these, one after the other.
    pub(crate) fn trouble(&self, troubles: &[Trouble]) {
        self.shared.troubles.lock().unwrap().extend(troubles);
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.shared.troubles.lock().unwrap().is_empty()
    }

    /// No trouble any more.
    pub(crate) fn drain(&self) {
        self.shared.troubles.lock().unwrap().clear();
    }

    /// From now on a token is needed, and good for so many requests.
    pub(crate) fn want_tokens(&self, uses: usize) {
        *self.shared.token_uses.lock().unwrap() = Some(uses);
    }

    /// Who asks for it gets this with each table that is loaded.
    pub(crate) fn vend(&self, vend: impl Fn(&str) -> Value + Send + Sync + 'static) {
        *self.shared.vend.lock().unwrap() = Some(Arc::new(vend));
    }

    /// How often somebody has got it.
    pub(crate) fn vended(&self) -> usize {
        self.shared.vended.load(Ordering::Relaxed)
    }

    pub(crate) fn tokens_given(&self) -> u64 {
        self.shared.tables.lock().unwrap().given
    }

    /// Carries out what has not arrived yet. The statuses.
    pub(crate) fn let_arrive(&self) -> Vec<u16> {
        let late = std::mem::take(&mut *self.shared.late.lock().unwrap());
        late.iter().map(|(path, body)| self.shared.change(path, body).0).collect()
    }

    pub(crate) fn metadata_location(&self, name: &str) -> Option<String> {
        let tables = self.shared.tables.lock().unwrap();
        tables.tables.iter().find(|((_, table), _)| table == name).map(|(_, (_, location))| location.clone())
    }

    pub(crate) fn commits(&self) -> Vec<(String, Option<String>)> {
        self.shared.commits.lock().unwrap().clone()
    }
}

async fn serve(mut client: TcpStream, shared: Arc<Shared>) {
    while let Some(request) = read(&mut client).await {
        if *shared.fault.lock().unwrap() == Fault::Down {
            return;
        }
        let Some((status, body)) = shared.answer(&request) else { return };
        let body = if status == 204 { String::new() } else { body.to_string() };
        let head = format!(
            "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        if client.write_all(format!("{head}{body}").as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read(client: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if client.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    let headers: HashMap<String, String> = lines.filter_map(header).collect();
    let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = bytes.split_off(end + 4);
    while body.len() < length {
        if client.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Request { method, path, headers, body })
}

impl Shared {
    /// `None`: the connection breaks.
    fn answer(&self, request: &Request) -> Option<Answer> {
        let path = request.path.split('?').next().unwrap().trim_start_matches("/v1/").to_owned();
        if path == "oauth/tokens" {
            return Some(self.give_token(&request.body));
        }
        if !self.is_known(request) {
            return Some(problem(401, "NotAuthorizedException"));
        }
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let parts: Vec<&str> = path.split('/').collect();
        let is_commit = request.method == "POST"
            && matches!(parts[..], ["lake", "transactions", "commit"] | ["lake", "namespaces", _, "tables", _]);
        if !is_commit {
            let asks = request.headers.get("x-iceberg-access-delegation").map(String::as_str);
            let (status, answer) = self.route(&request.method, &parts, &body);
            let is_load = request.method == "GET" && status == 200 && answer["metadata"].is_object();
            let vends = is_load && asks == Some("vended-credentials");
            return Some((status, if vends { self.with_keys(answer) } else { answer }));
        }
        self.commits.lock().unwrap().push((path.clone(), request.headers.get("idempotency-key").cloned()));
        // Making a table is not the commit that is meant.
        if body["requirements"][0]["type"] == "assert-create" {
            return Some(self.change(&path, &body));
        }
        let fault = *self.fault.lock().unwrap();
        if fault != Fault::None {
            let after = if fault == Fault::LoseReplyAndStayDown { Fault::Down } else { Fault::None };
            *self.fault.lock().unwrap() = after;
            if fault != Fault::LoseCommit {
                assert!(self.change(&path, &body).0 < 300);
            }
            return None;
        }
        match self.troubles.lock().unwrap().pop_front() {
            None => Some(self.change(&path, &body)),
            Some(Trouble::Refuse(status)) => Some(problem(status, "Trouble")),
            Some(Trouble::Answer(status)) => {
                self.change(&path, &body);
                Some(problem(status, "CommitStateUnknownException"))
            }
            Some(Trouble::Late) => {
                self.late.lock().unwrap().push((path, body));
                None
            }
            Some(Trouble::LastOne) => {
                *self.fault.lock().unwrap() = Fault::Down;
                Some(self.change(&path, &body))
            }
        }
    }

    fn with_keys(&self, mut answer: Value) -> Value {
        let vend = self.vend.lock().unwrap().clone();
        if let Some(vend) = vend {
            self.vended.fetch_add(1, Ordering::Relaxed);
            let vended = vend(answer["metadata"]["location"].as_str().unwrap());
            answer.as_object_mut().unwrap().extend(vended.as_object().unwrap().clone());
        }
        answer
    }

    fn give_token(&self, body: &[u8]) -> Answer {
        let form = String::from_utf8_lossy(body);
        if !form.contains("client_id=me&client_secret=s%26cret&scope=all") {
            return problem(401, "invalid_client");
        }
        let mut tables = self.tables.lock().unwrap();
        tables.given += 1;
        let token = format!("token-{}", tables.given);
        tables.tokens.insert(token.clone());
        (200, json!({"access_token": token, "token_type": "bearer", "expires_in": 3600}))
    }

    fn is_known(&self, request: &Request) -> bool {
        let Some(most) = *self.token_uses.lock().unwrap() else { return true };
        let Some(token) = request.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer ")) else {
            return false;
        };
        let mut uses = self.uses.lock().unwrap();
        let used = uses.entry(token.to_owned()).or_default();
        *used += 1;
        *used <= most && self.tables.lock().unwrap().tokens.contains(token)
    }

    fn route(&self, method: &str, parts: &[&str], body: &Value) -> Answer {
        let mut tables = self.tables.lock().unwrap();
        match (method, parts) {
            ("GET", ["config"]) => {
                let mut answer = json!({"defaults": {}, "overrides": {"prefix": "lake"}});
                if self.manners == Manners::Strict {
                    answer["endpoints"] = json!(["GET /v1/{prefix}/namespaces"]);
                }
                (200, answer)
            }
            ("GET", ["lake", "namespaces"]) => (200, json!({"namespaces": [tables.namespaces]})),
            ("POST", ["lake", "namespaces"]) => {
                let name = body["namespace"][0].as_str().unwrap().to_owned();
                if tables.namespaces.insert(name) { (200, json!({})) } else { problem(409, "AlreadyExistsException") }
            }
            ("GET", ["lake", "namespaces", namespace]) => match tables.namespaces.contains(*namespace) {
                true => (200, json!({"namespace": [namespace]})),
                false => problem(404, "NoSuchNamespaceException"),
            },
            ("POST", ["lake", "namespaces", namespace, "tables"]) => {
                let name = (namespace.to_string(), body["name"].as_str().unwrap().to_owned());
                if tables.tables.contains_key(&name) {
                    return problem(409, "AlreadyExistsException");
                }
                let schema: Schema = serde_json::from_value(body["schema"].clone()).unwrap();
                let place = format!("{}/theirs/{}", self.folder, Uuid::now_v7());
                let properties = serde_json::from_value(body["properties"].clone()).unwrap();
                let made = made(schema, place, properties);
                self.enter(&mut tables, name.clone(), made);
                loaded(&tables.tables[&name])
            }
            ("GET", ["lake", "namespaces", namespace, "tables", name]) => {
                match tables.tables.get(&(namespace.to_string(), name.to_string())) {
                    Some(table) => loaded(table),
                    None => problem(404, "NoSuchTableException"),
                }
            }
            ("DELETE", ["lake", "namespaces", namespace, "tables", name]) => {
                match tables.tables.remove(&(namespace.to_string(), name.to_string())) {
                    Some(_) => (204, Value::Null),
                    None => problem(404, "NoSuchTableException"),
                }
            }
            _ => problem(404, "NotFound"),
        }
    }

    fn enter(&self, tables: &mut Tables, name: Name, metadata: TableMetadata) {
        let location = format!("{}/metadata/{}.metadata.json", metadata.location(), Uuid::now_v7());
        // Nobody looks for it in a store.
        if let Some(path) = location.strip_prefix("file://") {
            std::fs::create_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
            std::fs::write(path, serde_json::to_vec(&metadata).unwrap()).unwrap();
        }
        tables.tables.insert(name, (metadata, location));
    }

    /// One or several tables, all or none.
    fn change(&self, path: &str, body: &Value) -> Answer {
        let parts: Vec<&str> = path.split('/').collect();
        let mut tables = self.tables.lock().unwrap();
        if let ["lake", "namespaces", namespace, "tables", name] = parts[..] {
            let name = (namespace.to_owned(), name.to_owned());
            return match self.changed(&tables, &name, body) {
                Ok(next) => {
                    self.enter(&mut tables, name.clone(), next);
                    loaded(&tables.tables[&name])
                }
                Err(answer) => answer,
            };
        }
        if self.manners == Manners::Strict {
            return problem(404, "NotFound");
        }
        let mut next = Vec::new();
        for change in body["table-changes"].as_array().unwrap() {
            let part = |value: &Value| value.as_str().unwrap().to_owned();
            let name = (part(&change["identifier"]["namespace"][0]), part(&change["identifier"]["name"]));
            match self.changed(&tables, &name, change) {
                Ok(metadata) => next.push((name, metadata)),
                Err(answer) => return answer,
            }
        }
        for (name, metadata) in next {
            self.enter(&mut tables, name, metadata);
        }
        (204, Value::Null)
    }

    fn changed(&self, tables: &Tables, name: &Name, change: &Value) -> Result<TableMetadata, Answer> {
        let requirements: Vec<TableRequirement> = serde_json::from_value(change["requirements"].clone()).unwrap();
        let updates: Vec<TableUpdate> = serde_json::from_value(change["updates"].clone()).unwrap();
        let there = tables.tables.get(name).map(|(metadata, location)| (metadata.clone(), location.clone()));
        let creates = requirements == [TableRequirement::NotExist];
        if creates && self.manners == Manners::Strict || there.is_none() && !creates {
            return Err(problem(404, "NoSuchTableException"));
        }
        let current = there.as_ref().map(|(metadata, _)| metadata);
        if requirements.iter().any(|requirement| requirement.check(current).is_err()) {
            return Err(problem(409, "CommitFailedException"));
        }
        let (metadata, location) = match there {
            Some((metadata, location)) => (metadata, Some(location)),
            // As SeaweedFS has it: with an empty schema of its own before ours.
            None => (made(Schema::builder().build().unwrap(), self.folder.clone(), HashMap::new()), None),
        };
        let builder =
            updates.into_iter().try_fold(metadata.into_builder(location), |builder, update| update.apply(builder));
        let built = builder.and_then(TableMetadataBuilder::build);
        built.map(|built| built.metadata).map_err(|error| {
            (400, json!({"error": {"message": error.to_string(), "type": "BadRequestException", "code": 400}}))
        })
    }
}

/// A table as a server makes it: with columns numbered anew.
fn made(schema: Schema, location: String, properties: HashMap<String, String>) -> TableMetadata {
    let (spec, order) = (UnboundPartitionSpec::builder().build(), SortOrder::unsorted_order());
    let builder = TableMetadataBuilder::new(schema, spec, order, location, FormatVersion::V2, properties).unwrap();
    builder.build().unwrap().metadata
}

fn loaded((metadata, location): &(TableMetadata, String)) -> Answer {
    (200, json!({"metadata-location": location, "metadata": metadata, "config": {}}))
}
