//! The server: its paths, and what it says of itself.

use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::Method;
use tokio::sync::OnceCell;
use tracing::info;

use super::client::{self, Client, Reply};
use super::shapes::Configuration;
use super::vending;
use crate::error::Result;
use crate::storage::Address;

/// The request by which several tables move together, as servers list it.
const TRANSACTION: &str = "POST /v1/{prefix}/transactions/commit";

/// A server of the protocol.
pub(super) struct Server {
    pub(super) client: Client,
    warehouse: Option<String>,
    told: OnceCell<Told>,
    /// It moves several tables together, as far as is known.
    pub(super) together: AtomicBool,
    /// It says so itself.
    pub(super) surely_together: AtomicBool,
}

/// What a server said of itself.
pub(super) struct Told {
    /// What its paths begin with.
    prefix: String,
    /// Where its store is, for all tables.
    pub(super) store: Address,
}

impl Server {
    pub(super) fn new(client: Client, warehouse: Option<String>) -> Self {
        let (together, surely_together) = (AtomicBool::new(true), AtomicBool::new(false));
        Self { client, warehouse, told: OnceCell::new(), together, surely_together }
    }

    /// The path of a request, under the prefix that the server asked for.
    pub(super) async fn path(&self, segments: &[&str]) -> Result<String> {
        let prefix = &self.told().await?.prefix;
        let encoded = segments.iter().map(|segment| client::encoded(segment));
        Ok(prefix
            .split('/')
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .chain(encoded)
            .collect::<Vec<_>>()
            .join("/"))
    }

    pub(super) async fn table_path(&self, namespace: &str, name: &str) -> Result<String> {
        self.path(&["namespaces", namespace, "tables", name]).await
    }

    /// What the server said of itself, asked when it is first needed.
    pub(super) async fn told(&self) -> Result<&Told> {
        self.told.get_or_try_init(|| self.configure()).await
    }

    async fn configure(&self) -> Result<Told> {
        let query: Vec<(&str, &str)> =
            self.warehouse.iter().map(|warehouse| ("warehouse", warehouse.as_str())).collect();
        let reply =
            self.client.send(Method::GET, "config", &query, None, None).await.map_err(client::Failure::into_error)?;
        if !reply.is_success() {
            let hint =
                "see that catalog.uri is the server's address without /v1, and catalog.warehouse one that it has";
            return Err(reply.into_error("ask the catalog for its configuration", hint));
        }
        let configuration: Configuration = reply.parse("the catalog's configuration")?;
        if let Some(endpoints) = &configuration.endpoints {
            let together = endpoints.iter().any(|endpoint| endpoint == TRANSACTION);
            self.surely_together.store(together, Ordering::Relaxed);
            if !together {
                info!("the catalog moves one table at a time");
                self.together.store(false, Ordering::Relaxed);
            }
        }
        let prefix = configuration.value("prefix").unwrap_or_default();
        Ok(Told { prefix, store: vending::address(|key| configuration.value(key)) })
    }

    pub(super) async fn request(&self, method: Method, path: &str, body: Option<serde_json::Value>) -> Result<Reply> {
        self.client.send(method, path, &[], body, None).await.map_err(client::Failure::into_error)
    }
}
