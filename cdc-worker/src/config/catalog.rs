//! Which catalog the Iceberg tables are in: as it is written in the section `[catalog]` of the configuration file or in the
//! extension's settings `lake.catalog_…`, and as the engine is told. Messages name the keys as the file has them.

use std::path::PathBuf;

use iceberg_writer::{RestAuth, RestSettings};
use serde::Deserialize;

use super::Secret;
use crate::error::{Error, ErrorKind};

/// The password of the catalog's role, where that is in another database; beats `password_file`.
const PASSWORD_VARIABLE: &str = "LAKEMIRROR_CATALOG_PASSWORD";
/// The schema in which Iceberg's JDBC catalogs are unless somebody says otherwise.
const DEFAULT_SCHEMA: &str = "public";
/// `catalog_name` unless it is set, as it is in the source.
const DEFAULT_NAME: &str = "lake";
/// What a token is for unless it is set, by the protocol.
const DEFAULT_SCOPE: &str = "catalog";
/// The service whose requests are signed unless it is set.
const DEFAULT_SERVICE: &str = "s3tables";

/// Which catalog the Iceberg tables are in. The registry is in the source in any case.
#[derive(Debug, Clone)]
pub enum CatalogConfig {
    /// A JDBC catalog beside the registry.
    Source,
    /// A JDBC catalog in another database.
    Jdbc(Box<JdbcCatalogConfig>),
    /// A REST catalog.
    Rest(RestSettings),
    /// None but the warehouse's files, as Iceberg's Hadoop catalog has them.
    Files,
}

/// A JDBC catalog in a database that is not the source.
#[derive(Debug, Clone)]
pub struct JdbcCatalogConfig {
    /// Host name, address, or the directory of a unix socket.
    pub host: String,
    /// Port; also names the socket file.
    pub port: u16,
    /// Database.
    pub database: String,
    /// Role, which may create tables in the schema.
    pub user: String,
    /// Its password, where the server asks for one.
    pub password: Option<Secret>,
    /// Schema of the catalog's tables.
    pub schema: String,
    /// `catalog_name`.
    pub name: String,
}

/// What kind of catalog it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CatalogType {
    /// In the source database, beside the registry.
    #[default]
    Source,
    /// None but files.
    Hadoop,
    /// In another Postgres database.
    Jdbc,
    /// Behind Iceberg's REST protocol.
    Rest,
}

impl CatalogType {
    fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Hadoop => "hadoop",
            Self::Jdbc => "jdbc",
            Self::Rest => "rest",
        }
    }
}

/// A catalog as a user has written it down; [`Self::read`] checks it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogOptions {
    /// `type`.
    pub r#type: CatalogType,
    /// Allows what is not encrypted.
    #[serde(default)]
    pub insecure: bool,
    /// JDBC: where the database is.
    pub host: Option<String>,
    /// JDBC: its port.
    #[serde(default = "CatalogOptions::default_port")]
    pub port: u16,
    /// JDBC: the database.
    pub database: Option<String>,
    /// JDBC: the role.
    pub user: Option<String>,
    /// JDBC: file with the role's password.
    pub password_file: Option<PathBuf>,
    /// JDBC: schema of the catalog's tables.
    pub schema: Option<String>,
    /// JDBC: `catalog_name`.
    pub name: Option<String>,
    /// REST: the server's address, without `/v1`.
    pub uri: Option<String>,
    /// REST: the warehouse that the server is asked for.
    pub warehouse: Option<String>,
    /// REST: file with `client_id:client_secret`, or `access_key:secret_key`.
    pub credential_file: Option<PathBuf>,
    /// REST: file with a bearer token.
    pub token_file: Option<PathBuf>,
    /// REST: where tokens are given out.
    pub oauth2_server_uri: Option<String>,
    /// REST: what tokens are for.
    pub scope: Option<String>,
    /// REST: region for which requests are signed.
    pub sigv4_region: Option<String>,
    /// REST: service for which requests are signed.
    pub sigv4_service: Option<String>,
    /// REST: the server vends the store's keys, and the section `store` has none.
    #[serde(default)]
    pub vended_credentials: bool,
}

impl CatalogOptions {
    /// Where Postgres listens unless it is said.
    pub fn default_port() -> u16 {
        5432
    }

    /// What the engine is told.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the key.
    pub fn read(self) -> Result<CatalogConfig, Error> {
        self.refuse_foreign_keys()?;
        match self.r#type {
            CatalogType::Source => Ok(CatalogConfig::Source),
            CatalogType::Hadoop => Ok(CatalogConfig::Files),
            CatalogType::Jdbc => self.jdbc(),
            CatalogType::Rest => self.rest(),
        }
    }

    /// Keys of another type of catalog would have no effect.
    fn refuse_foreign_keys(&self) -> Result<(), Error> {
        let of_jdbc = [
            ("host", self.host.is_some()),
            ("database", self.database.is_some()),
            ("user", self.user.is_some()),
            ("password_file", self.password_file.is_some()),
            ("schema", self.schema.is_some()),
            ("name", self.name.is_some()),
        ];
        let of_rest = [
            ("uri", self.uri.is_some()),
            ("warehouse", self.warehouse.is_some()),
            ("credential_file", self.credential_file.is_some()),
            ("token_file", self.token_file.is_some()),
            ("oauth2_server_uri", self.oauth2_server_uri.is_some()),
            ("scope", self.scope.is_some()),
            ("sigv4_region", self.sigv4_region.is_some()),
            ("sigv4_service", self.sigv4_service.is_some()),
            ("vended_credentials", self.vended_credentials),
        ];
        let insecure = [("insecure", self.insecure)];
        let foreign = match self.r#type {
            CatalogType::Source | CatalogType::Hadoop => [&of_jdbc[..], &of_rest[..], &insecure[..]].concat(),
            CatalogType::Jdbc => of_rest.to_vec(),
            CatalogType::Rest => of_jdbc.to_vec(),
        };
        match foreign.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((key, _)) => {
                let name = self.r#type.name();
                Err(invalid(format!("catalog.{key} means nothing to a catalog of type {name}"))
                    .with_hint("take it out, or change catalog.type"))
            }
        }
    }

    fn jdbc(self) -> Result<CatalogConfig, Error> {
        let missing = |key: &str| {
            invalid(format!("catalog.{key} is missing")).with_hint(
                "a catalog of type jdbc has catalog.host, catalog.database and catalog.user; without any of catalog.… it is in \
                 the source",
            )
        };
        let host = self.host.ok_or_else(|| missing("host"))?;
        if !host.starts_with('/') && !self.insecure {
            return Err(invalid("a TCP connection to the catalog would not be encrypted").with_hint(
                "use a unix socket, or set catalog.insecure = true where the network is trusted or a tunnel encrypts it",
            ));
        }
        Ok(CatalogConfig::Jdbc(Box::new(JdbcCatalogConfig {
            host,
            port: self.port,
            database: self.database.ok_or_else(|| missing("database"))?,
            user: self.user.ok_or_else(|| missing("user"))?,
            password: Secret::find(PASSWORD_VARIABLE, "catalog.password_file", self.password_file.as_deref())?,
            schema: self.schema.unwrap_or_else(|| DEFAULT_SCHEMA.to_owned()),
            name: self.name.unwrap_or_else(|| DEFAULT_NAME.to_owned()),
        })))
    }

    fn rest(self) -> Result<CatalogConfig, Error> {
        let uri = self
            .uri
            .ok_or_else(|| invalid("catalog.uri is missing").with_hint("the REST catalog's address, without /v1"))?;
        let auth = match (self.sigv4_region, self.token_file, self.credential_file) {
            (Some(_), Some(_), _) | (None, Some(_), Some(_)) => {
                return Err(invalid("the catalog's settings say in two ways who we are").with_hint(
                    "give catalog.token_file, or catalog.credential_file, or catalog.sigv4_region with or without \
                     catalog.credential_file",
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
            return Err(invalid("requests to the catalog would not be encrypted").with_hint(
                "give catalog.uri as https://…, or set catalog.insecure = true where the network is trusted",
            ));
        }
        let (warehouse, vended_credentials) = (self.warehouse, self.vended_credentials);
        Ok(CatalogConfig::Rest(RestSettings { uri, warehouse, auth, vended_credentials }))
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}
