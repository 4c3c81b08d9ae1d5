//! A catalog that is not in the source: how the worker is told of it, and how the oracle reads it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::account::Account;
use crate::java_catalog::JavaCatalog;
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

    /// Iceberg's own REST catalog, which takes whatever credential there is.
    pub fn java(server: &JavaCatalog) -> Self {
        let (uri, credential) = (server.endpoint(), "worker:secret");
        Self { reader: json!({"type": "rest", "uri": uri, "warehouse": "lake", "credential": credential}) }
    }

    /// None but the files of a worker's warehouse.
    pub fn hadoop(config: &WorkerConfig) -> Self {
        Self::files_in(&config.warehouse_url())
    }

    /// None but the files of the warehouse at this URL.
    pub fn files_in(warehouse: &str) -> Self {
        Self { reader: json!({"type": "hadoop", "warehouse": warehouse}) }
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
        let path = self.credential_file(directory)?;
        let (uri, warehouse) = (text("uri")?, text("warehouse")?);
        Ok(format!(
            "[catalog]\ntype = \"rest\"\nuri = {uri}\nwarehouse = {warehouse}\ncredential_file = {path:?}\ninsecure = true\n"
        ))
    }

    /// The extension's settings; secrets go into a file of this directory.
    pub fn settings(&self, directory: &std::path::Path) -> Result<Vec<(String, String)>> {
        let keys: &[&str] = match self.reader["type"].as_str() {
            Some("rest") => &["type", "uri", "warehouse"],
            Some("jdbc") => &["type", "host", "port", "database", "schema"],
            _ => &["type"],
        };
        let text = |key: &str| self.reader[key].as_str().map_or_else(|| self.reader[key].to_string(), str::to_owned);
        let mut settings: Vec<(String, String)> =
            keys.iter().map(|&key| (format!("lake.catalog_{key}"), text(key))).collect();
        let mut add = |key: &str, value: String| settings.push((format!("lake.catalog_{key}"), value));
        if self.reader["type"] == "jdbc" {
            add("user", Source::ROLE.to_owned());
        }
        if self.reader["type"] == "rest" {
            add("credential_file", self.credential_file(directory)?.display().to_string());
            add("insecure", "on".to_owned());
        }
        Ok(settings)
    }

    fn credential_file(&self, directory: &std::path::Path) -> Result<PathBuf> {
        let path = directory.join("catalog.credential");
        std::fs::write(&path, self.reader["credential"].as_str().context("a credential")?)?;
        Account::current()?.own(&path)?;
        Ok(path)
    }
}
