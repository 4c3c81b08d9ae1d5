//! A catalog that is not in the source: how the worker is told of it, and how the oracle reads it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::account::Account;
use crate::postgres::Postgres;
use crate::seaweed::{Key, Seaweed};
use crate::source::Source;
use crate::worker::WorkerConfig;

/// Where it is.
#[derive(Debug, Clone)]
pub struct OtherCatalog {
    reader: Value,
}

impl OtherCatalog {
    /// A JDBC catalog in another database of the same server, which is made, and is the worker's role's.
    pub async fn database(postgres: &Postgres, name: &str) -> Result<Self> {
        let role = Source::ROLE;
        postgres.batch(&format!("CREATE DATABASE {name} OWNER {role}")).await?;
        let (host, port) = (postgres.socket_dir(), postgres.port());
        Ok(Self { reader: json!({"type": "jdbc", "host": host, "port": port, "database": name, "schema": "public"}) })
    }

    /// The REST catalog of a store.
    pub fn rest(store: &Seaweed) -> Result<Self> {
        let Key { id, secret } = Seaweed::ADMIN;
        Ok(Self {
            reader: json!({
                "type": "rest",
                "uri": store.catalog_endpoint(),
                "warehouse": Seaweed::TABLE_BUCKET,
                "credential": format!("{id}:{secret}"),
            }),
        })
    }

    /// None but the files of a worker's warehouse.
    pub fn hadoop(config: &WorkerConfig) -> Self {
        Self { reader: json!({"type": "hadoop", "warehouse": config.warehouse_url()}) }
    }

    /// The same, but for one key.
    #[must_use]
    pub fn with(&self, key: &str, value: &str) -> Self {
        let mut other = self.clone();
        other.reader[key] = json!(value);
        other
    }

    /// What the oracle's readers are told.
    pub(crate) fn reader(&self) -> Value {
        self.reader.clone()
    }

    /// The section of the worker's configuration; secrets go into a file of this directory.
    pub(crate) fn section(&self, directory: &std::path::Path) -> Result<String> {
        let text = |key: &str| self.reader[key].as_str().map(|value| format!("{value:?}")).context("a text");
        if self.reader["type"] == "hadoop" {
            return Ok("[catalog]\ntype = \"hadoop\"\n".to_owned());
        }
        if self.reader["type"] == "jdbc" {
            let (host, database, schema) = (text("host")?, text("database")?, text("schema")?);
            let (port, role) = (&self.reader["port"], Source::ROLE);
            return Ok(format!(
                "[catalog]\ntype = \"jdbc\"\nhost = {host}\nport = {port}\ndatabase = {database}\nuser = {role:?}\n\
                 schema = {schema}\n"
            ));
        }
        let path: PathBuf = directory.join("catalog.credential");
        std::fs::write(&path, self.reader["credential"].as_str().context("a credential")?)?;
        Account::current()?.own(&path)?;
        let (uri, warehouse) = (text("uri")?, text("warehouse")?);
        Ok(format!(
            "[catalog]\ntype = \"rest\"\nuri = {uri}\nwarehouse = {warehouse}\ncredential_file = {path:?}\ninsecure = true\n"
        ))
    }
}
