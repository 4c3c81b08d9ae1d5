//! A catalog behind Iceberg's REST protocol.
//!
//! The server writes metadata files; it is told what changes, and which snapshot, table and schema that is planned from. It
//! may keep a table under an identity and a place of its own: our copies of a source's table are named by a property
//! ([`LakeTable::onto`]), and their files are where they were written before the table was.
//!
//! What can't be taken back has no condition in the protocol, so it is never asked for: no table is dropped or renamed to
//! make room for its next copy. A new copy's files take the place of the old one's in the same table, by a commit with
//! conditions like any other, and readers see one or the other.

mod auth;
mod client;
mod server;
mod shapes;
mod sigv4;
mod vending;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use iceberg::spec::TableMetadata;
use iceberg::{TableRequirement, TableUpdate};
use reqwest::Method;
use serde_json::json;
use tracing::info;

use super::tables::{Found, Move, Moved, TableCatalog};
use crate::commit::{Commit, MetadataBy, Updates};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Vault, Vendor};
use crate::table::LakeTable;

pub use auth::RestAuth;
use client::{Client, Reply};
use server::Server;
use shapes::LoadedTable;

/// Where a REST catalog is, and who we are to it.
#[derive(Debug, Clone)]
pub struct RestSettings {
    /// Its address, without `/v1`.
    pub uri: String,
    /// The warehouse that the server is asked for, where it has several.
    pub warehouse: Option<String>,
    /// How requests are authorized.
    pub auth: RestAuth,
    /// It gives out the store's keys, for each table's folder with the table, and there are no others. The warehouse is one
    /// that was opened with [`Warehouse::vended`](crate::Warehouse::vended).
    pub vended_credentials: bool,
}

/// What [`TableUpdate`]s call the schema, partition spec or order that was added last.
const LAST_ADDED: i32 = -1;

/// A REST catalog.
pub(super) struct RestCatalog {
    server: Arc<Server>,
    identity: String,
    /// Where the keys go that it vends.
    vault: Option<Arc<Vault>>,
}

impl RestCatalog {
    /// The catalog at an address. No connection is made yet. What it vends is put into the vault, if there is one.
    pub(super) fn new(settings: RestSettings, vault: Option<Arc<Vault>>) -> Result<Self> {
        let RestSettings { uri, warehouse, auth, vended_credentials } = settings;
        let uri = uri.trim_end_matches('/').to_owned();
        let identity = format!("REST catalog {uri}, warehouse {:?}", warehouse.as_deref().unwrap_or_default());
        let server = Arc::new(Server::new(Client::new(&uri, auth, vended_credentials)?, warehouse));
        Ok(Self { server, identity, vault })
    }

    /// Takes what a table's answer has besides the table: the keys for its files.
    async fn enter(&self, namespace: &str, name: &str, loaded: &LoadedTable) -> Result<()> {
        let Some(vault) = &self.vault else { return Ok(()) };
        let vended = self.server.vended(namespace, name, loaded).await?;
        let vendor = Arc::clone(&self.server) as Arc<dyn Vendor>;
        vault.enter((namespace, name), loaded.metadata.location(), vended, &vendor);
        Ok(())
    }

    /// Whether it is the table that a server has not got, rather than the namespaces, for it is just starting, say.
    async fn is_absent(&self, namespace: &str) -> Result<bool> {
        let path = self.server.path(&["namespaces", namespace]).await?;
        let reply = self.server.request(Method::GET, &path, None).await?;
        if reply.is_success() {
            return Ok(true);
        }
        let path = self.server.path(&["namespaces"]).await?;
        let all = self.server.request(Method::GET, &path, None).await?;
        if all.is_success() && reply.status.as_u16() == 404 {
            return Ok(true);
        }
        let reply = if all.is_success() { reply } else { all };
        Err(reply
            .into_error("look for a namespace", "see that catalog.warehouse is one that the server has")
            .unavailable())
    }

    async fn make_namespace(&self, namespace: &str) -> Result<()> {
        let path = self.server.path(&["namespaces"]).await?;
        let body = json!({"namespace": [namespace], "properties": {}});
        let reply = self.server.request(Method::POST, &path, Some(body)).await?;
        match reply.status.as_u16() {
            200..300 | 409 => Ok(()),
            _ => Err(reply.into_error(&format!("make the namespace {namespace}"), MAY_WRITE)),
        }
    }

    async fn has_namespace(&self, namespace: &str) -> Result<bool> {
        let path = self.server.path(&["namespaces", namespace]).await?;
        let reply = self.server.request(Method::GET, &path, None).await?;
        match reply.status.as_u16() {
            200..300 => Ok(true),
            404 => Ok(false),
            _ => Err(reply.into_error(&format!("look for the namespace {namespace}"), MAY_WRITE)),
        }
    }

    async fn move_one(&self, step: &Move<'_>, updates: &Updates) -> Result<Moved> {
        let spec = step.base.spec();
        let path = self.server.table_path(&spec.namespace, &spec.name).await?;
        let body = json!({"requirements": &updates.requirements, "updates": &updates.updates});
        let reply = match self.server.client.send(Method::POST, &path, &[], Some(body), Some(updates.key)).await {
            Ok(reply) => reply,
            Err(failure) => return Ok(failure.into_moved()),
        };
        if !reply.is_success() {
            return Ok(refusal(reply, &step.base.full_name()));
        }
        match reply.parse::<LoadedTable>("a commit's answer") {
            Ok(loaded) => Ok(Moved::All(vec![Some(loaded.into())])),
            // It has happened: the table says so.
            Err(error) => Ok(Moved::Unknown(error)),
        }
    }

    async fn move_all(&self, moves: &[(&Move<'_>, &Updates)]) -> Result<Moved> {
        let path = self.server.path(&["transactions", "commit"]).await?;
        if !self.moves_together() {
            return Ok(Moved::Conflict);
        }
        let changes: Vec<_> = moves
            .iter()
            .map(|(step, updates)| {
                let spec = step.base.spec();
                json!({
                    "identifier": {"namespace": [spec.namespace], "name": spec.name},
                    "requirements": &updates.requirements,
                    "updates": &updates.updates,
                })
            })
            .collect();
        let body = json!({"table-changes": changes});
        // The same tables planned again are another request.
        let key = moves.first().map(|(_, updates)| updates.key);
        let reply = match self.server.client.send(Method::POST, &path, &[], Some(body), key).await {
            Ok(reply) => reply,
            Err(failure) => return Ok(failure.into_moved()),
        };
        let status = reply.status.as_u16();
        if matches!(status, 404 | 405 | 406 | 501) && !reply.says("NoSuch") {
            info!(status, "the catalog moves one table at a time");
            self.server.together.store(false, Ordering::Relaxed);
            self.server.surely_together.store(false, Ordering::Relaxed);
            return Ok(Moved::Conflict);
        }
        if !reply.is_success() {
            return Ok(refusal(reply, "several tables"));
        }
        let load = moves.iter().map(|(step, _)| self.load(&step.base.spec().namespace, &step.base.spec().name));
        match try_join_all(load).await {
            Ok(found) if found.iter().all(Option::is_some) => Ok(Moved::All(found)),
            Ok(_) => Ok(Moved::Conflict),
            // It has happened: the tables say so.
            Err(error) => Ok(Moved::Unknown(error)),
        }
    }
}

/// What somebody has to allow.
const MAY_WRITE: &str = "let the catalog's principal create namespaces and tables, and read and write them";

/// What an answer that is no success means for moves.
fn refusal(reply: Reply, what: &str) -> Moved {
    let status = reply.status.as_u16();
    let context = format!("commit {what}");
    match status {
        // Not there: whoever looks finds that out.
        404 | 409 => Moved::Conflict,
        429 => Moved::Refused(reply.into_error(&context, "the catalog wants fewer requests").unavailable()),
        400..500 => Moved::Refused(reply.into_error(&context, MAY_WRITE)),
        _ => Moved::Unknown(reply.into_error(&context, "see the catalog's log")),
    }
}

/// All that a table without rows is made of.
fn creation(metadata: &TableMetadata) -> Vec<TableUpdate> {
    vec![
        TableUpdate::AssignUuid { uuid: metadata.uuid() },
        TableUpdate::UpgradeFormatVersion { format_version: metadata.format_version() },
        TableUpdate::AddSchema { schema: metadata.current_schema().as_ref().clone() },
        TableUpdate::SetCurrentSchema { schema_id: LAST_ADDED },
        TableUpdate::AddSpec { spec: metadata.default_partition_spec().as_ref().clone().into_unbound() },
        TableUpdate::SetDefaultSpec { spec_id: LAST_ADDED },
        TableUpdate::AddSortOrder { sort_order: metadata.default_sort_order().as_ref().clone() },
        TableUpdate::SetDefaultSortOrder { sort_order_id: i64::from(LAST_ADDED) },
        TableUpdate::SetLocation { location: metadata.location().to_owned() },
        TableUpdate::SetProperties { updates: metadata.properties().clone() },
    ]
}

#[async_trait]
impl TableCatalog for RestCatalog {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn metadata_by(&self) -> MetadataBy {
        MetadataBy::Server
    }

    fn moves_together(&self) -> bool {
        self.server.together.load(Ordering::Relaxed)
    }

    fn always_moved_together(&self) -> bool {
        self.server.surely_together.load(Ordering::Relaxed)
    }

    async fn location(&self, namespace: &str, name: &str) -> Result<Option<String>> {
        Ok(self.load(namespace, name).await?.map(|found| found.location))
    }

    async fn load(&self, namespace: &str, name: &str) -> Result<Option<Found>> {
        let path = self.server.table_path(namespace, name).await?;
        let reply = self.server.request(Method::GET, &path, None).await?;
        match reply.status.as_u16() {
            200..300 => {
                let loaded = reply.parse::<LoadedTable>("a table of the catalog")?;
                self.enter(namespace, name, &loaded).await?;
                Ok(Some(loaded.into()))
            }
            404 if self.is_absent(namespace).await? => Ok(None),
            _ => Err(reply.into_error(&format!("load {namespace}.{name}"), MAY_WRITE)),
        }
    }

    async fn prepare(&self, namespace: &str) -> Result<()> {
        if self.has_namespace(namespace).await? {
            return Ok(());
        }
        self.make_namespace(namespace).await
    }

    async fn create(&self, prepared: &LakeTable) -> Result<()> {
        let spec = prepared.spec();
        self.prepare(&spec.namespace).await?;
        // As it is to be, with our columns' numbers. Where keys are vended, a server has to know the table's folder as it
        // knows that of any table: SeaweedFS vends keys for the folder that it would have chosen, of a table made so.
        if self.vault.is_none() {
            let path = self.server.table_path(&spec.namespace, &spec.name).await?;
            let body = json!({"requirements": [TableRequirement::NotExist], "updates": creation(prepared.metadata())});
            let reply = self.server.request(Method::POST, &path, Some(body)).await?;
            match reply.status.as_u16() {
                200..300 | 409 => return Ok(()),
                400 | 404..407 | 422 | 501 => {}
                _ => return Err(reply.into_error(&format!("make the table {}", prepared.full_name()), MAY_WRITE)),
            }
        }
        // Else as the server makes tables: the next commit sets it right.
        let path = self.server.path(&["namespaces", &spec.namespace, "tables"]).await?;
        let metadata = prepared.metadata();
        let body = json!({
            "name": spec.name,
            "location": metadata.location(),
            "schema": metadata.current_schema().as_ref(),
            "stage-create": false,
            "properties": metadata.properties(),
        });
        let reply = self.server.request(Method::POST, &path, Some(body)).await?;
        match reply.status.as_u16() {
            200..300 | 409 => Ok(()),
            _ => Err(reply.into_error(&format!("make the table {}", prepared.full_name()), MAY_WRITE)),
        }
    }

    async fn commit(&self, moves: &[Move<'_>]) -> Moved {
        let updates: Option<Vec<_>> = moves
            .iter()
            .map(|step| match &step.planned.commit {
                Commit::Updates(updates) => Some((step, updates)),
                Commit::Location(_) => None,
            })
            .collect();
        let moved = match updates.as_deref() {
            Some([(step, updates)]) => self.move_one(step, updates).await,
            Some(several) => self.move_all(several).await,
            None => Err(Error::invalid("a plan for a catalog that writes no metadata")),
        };
        // What fails before the request is sent.
        moved.unwrap_or_else(Moved::Refused)
    }

    async fn drop_entry(&self, namespace: &str, name: &str) -> Result<()> {
        let path = self.server.table_path(namespace, name).await?;
        let query = [("purgeRequested", "false")];
        let reply = self
            .server
            .client
            .send(Method::DELETE, &path, &query, None, None)
            .await
            .map_err(client::Failure::into_error)?;
        match reply.status.as_u16() {
            200..300 | 404 => Ok(()),
            _ => Err(reply.into_error(&format!("drop {namespace}.{name}"), MAY_WRITE)),
        }
    }

    async fn ensure(&self) -> Result<()> {
        let path = self.server.path(&["namespaces"]).await?;
        let reply = self.server.request(Method::GET, &path, None).await?;
        if reply.is_success() {
            return Ok(());
        }
        Err(reply.into_error("list the catalog's namespaces", "see that catalog.warehouse is one that the server has"))
    }
}

impl From<LoadedTable> for Found {
    fn from(loaded: LoadedTable) -> Self {
        Self { location: loaded.metadata_location.unwrap_or_default(), metadata: loaded.metadata }
    }
}

impl Error {
    /// The same error, of a catalog that may be better in a moment.
    fn unavailable(self) -> Self {
        let hint = self.hint().map(str::to_owned);
        let error = Self::new(ErrorKind::Unavailable, self.to_string());
        hint.into_iter().fold(error, Self::with_hint)
    }
}
