//! The section `[catalog]` of the configuration file: which catalog the Iceberg tables are in.

use std::path::PathBuf;

use iceberg_writer::{RestAuth, RestSettings};
use serde::Deserialize;

use super::file::{config_error, default_mirror, default_port, password};
use crate::config::{CatalogConfig, JdbcCatalogConfig};
use crate::error::Error;

/// The password of the catalog's role, where that is in another database; beats `password_file`.
const PASSWORD_VARIABLE: &str = "LAKEMIRROR_CATALOG_PASSWORD";
/// The schema in which Iceberg's JDBC catalogs are unless somebody says otherwise.
const DEFAULT_SCHEMA: &str = "public";
/// What a token is for unless it is set, by the protocol.
const DEFAULT_SCOPE: &str = "catalog";
/// The service whose requests are signed unless it is set.
const DEFAULT_SERVICE: &str = "s3tables";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Type {
    Hadoop,
    Jdbc,
    Rest,
}

/// The section as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Catalog {
    r#type: Type,
    #[serde(default)]
    insecure: bool,
    // jdbc
    host: Option<String>,
    #[serde(default = "default_port")]
    port: u16,
    database: Option<String>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    schema: Option<String>,
    name: Option<String>,
    // rest
    uri: Option<String>,
    warehouse: Option<String>,
    credential_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
    oauth2_server_uri: Option<String>,
    scope: Option<String>,
    sigv4_region: Option<String>,
    sigv4_service: Option<String>,
}

impl Catalog {
    /// What the engine is told.
    pub(super) fn read(self) -> Result<CatalogConfig, Error> {
        match self.r#type {
            Type::Hadoop => self.hadoop(),
            Type::Jdbc => self.jdbc(),
            Type::Rest => self.rest(),
        }
    }

    fn hadoop(&self) -> Result<CatalogConfig, Error> {
        let foreign = [self.of_jdbc(), self.of_rest(), vec![("insecure", self.insecure)]].concat();
        refuse("hadoop", &foreign).map(|()| CatalogConfig::Files)
    }

    /// The keys of one type, and whether they are given.
    fn of_jdbc(&self) -> Vec<(&'static str, bool)> {
        vec![
            ("host", self.host.is_some()),
            ("database", self.database.is_some()),
            ("user", self.user.is_some()),
            ("password_file", self.password_file.is_some()),
            ("schema", self.schema.is_some()),
            ("name", self.name.is_some()),
        ]
    }

    fn of_rest(&self) -> Vec<(&'static str, bool)> {
        vec![
            ("uri", self.uri.is_some()),
            ("warehouse", self.warehouse.is_some()),
            ("credential_file", self.credential_file.is_some()),
            ("token_file", self.token_file.is_some()),
            ("oauth2_server_uri", self.oauth2_server_uri.is_some()),
            ("scope", self.scope.is_some()),
            ("sigv4_region", self.sigv4_region.is_some()),
            ("sigv4_service", self.sigv4_service.is_some()),
        ]
    }

    fn jdbc(self) -> Result<CatalogConfig, Error> {
        refuse("jdbc", &self.of_rest())?;
        let missing = |key: &str| {
            config_error(format!("catalog.{key} is missing")).with_hint(
                "a catalog of type jdbc has host, database and user; leave [catalog] out to have it in the source",
            )
        };
        let host = self.host.ok_or_else(|| missing("host"))?;
        if !host.starts_with('/') && !self.insecure {
            return Err(config_error("a TCP connection to the catalog would not be encrypted".to_owned()).with_hint(
                "use a unix socket, or set insecure = true in [catalog] where the network is trusted or a tunnel encrypts it",
            ));
        }
        Ok(CatalogConfig::Jdbc(Box::new(JdbcCatalogConfig {
            host,
            port: self.port,
            database: self.database.ok_or_else(|| missing("database"))?,
            user: self.user.ok_or_else(|| missing("user"))?,
            password: password(PASSWORD_VARIABLE, "catalog.password_file", self.password_file.as_deref())?,
            schema: self.schema.unwrap_or_else(|| DEFAULT_SCHEMA.to_owned()),
            name: self.name.unwrap_or_else(default_mirror),
        })))
    }

    fn rest(self) -> Result<CatalogConfig, Error> {
        refuse("rest", &self.of_jdbc())?;
        let uri = self.uri.ok_or_else(|| {
            config_error("catalog.uri is missing".to_owned()).with_hint("the REST catalog's address, without /v1")
        })?;
        let auth = match (self.sigv4_region, self.token_file, self.credential_file) {
            (Some(_), Some(_), _) | (None, Some(_), Some(_)) => {
                return Err(config_error("[catalog] says in two ways who we are".to_owned()).with_hint(
                    "give token_file, or credential_file, or sigv4_region with or without credential_file",
                ));
            }
            (Some(region), None, credential_file) => {
                let service = self.sigv4_service.unwrap_or_else(|| DEFAULT_SERVICE.to_owned());
                RestAuth::SigV4 { credential_file, region, service }
            }
            (None, Some(token_file), None) => RestAuth::Bearer { token_file },
            (None, None, Some(credential_file)) => RestAuth::OAuth2 {
                credential_file,
                server_uri: self.oauth2_server_uri,
                scope: self.scope.unwrap_or_else(|| DEFAULT_SCOPE.to_owned()),
            },
            (None, None, None) => RestAuth::None,
        };
        if !uri.starts_with("https://") && !self.insecure {
            return Err(config_error("requests to the catalog would not be encrypted".to_owned()).with_hint(
                "give catalog.uri as https://…, or set insecure = true in [catalog] where the network is trusted",
            ));
        }
        Ok(CatalogConfig::Rest(RestSettings { uri, warehouse: self.warehouse, auth }))
    }
}

/// Keys of another type of catalog would have no effect.
fn refuse(of: &str, foreign: &[(&str, bool)]) -> Result<(), Error> {
    match foreign.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((key, _)) => Err(config_error(format!("catalog.{key} means nothing to a catalog of type {of}"))
            .with_hint("take it out, or change catalog.type")),
    }
}
