//! An object store whose objects queries may read.
//!
//! DuckDB reads it by its extension `httpfs`, which is loaded from a file beside this library and never fetched. The key
//! is a secret of this instance alone, for the objects below one URL; nothing of the environment or of a home directory
//! counts. All of it happens before the instance is locked.

use std::fmt;

use crate::error::Error;
use crate::instance::quote;

/// An S3 bucket's prefix, and the key that reads it.
#[derive(Clone, PartialEq, Eq)]
pub struct ObjectStore {
    /// The file of DuckDB's extension `httpfs`.
    pub extension: String,
    /// What the key is for: the URL of the warehouse.
    pub scope: String,
    /// Address with its scheme; without it the service's own.
    pub endpoint: Option<String>,
    /// Region of the bucket.
    pub region: String,
    /// Whether the bucket is a part of the path rather than of the host name.
    pub path_style: bool,
    /// The key's id.
    pub key_id: String,
    /// The key's secret.
    pub secret: String,
    /// The token of a temporary key.
    pub session_token: Option<String>,
}

impl fmt::Debug for ObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStore")
            .field("scope", &self.scope)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl ObjectStore {
    /// Makes the objects readable. `run` runs a statement; what DuckDB says of one that has a secret in it stays here.
    pub(crate) fn admit(&self, run: impl Fn(&str) -> Result<(), Error>) -> Result<(), Error> {
        run("SET allow_persistent_secrets = false")?;
        run(&format!("LOAD {}", quote(&self.extension)))
            .map_err(|error| Error::store(format!("could not load DuckDB's extension httpfs: {error}")))?;
        run("SET enable_global_s3_configuration = false")?;
        // Data files never change once they are named.
        run("SET enable_http_metadata_cache = true")?;
        run(&self.secret_statement()).map_err(|_| Error::store("DuckDB did not take the settings of the object store"))
    }

    fn secret_statement(&self) -> String {
        let mut options = vec![
            format!("SCOPE {}", quote(&self.scope)),
            format!("KEY_ID {}", quote(&self.key_id)),
            format!("SECRET {}", quote(&self.secret)),
            format!("REGION {}", quote(&self.region)),
            format!("URL_STYLE '{}'", if self.path_style { "path" } else { "vhost" }),
        ];
        if let Some(token) = &self.session_token {
            options.push(format!("SESSION_TOKEN {}", quote(token)));
        }
        if let Some(endpoint) = &self.endpoint {
            let (scheme, address) = endpoint.split_once("://").unwrap_or(("https", endpoint));
            options.push(format!("ENDPOINT {}", quote(address.trim_end_matches('/'))));
            options.push(format!("USE_SSL {}", scheme != "http"));
        }
        format!("CREATE SECRET warehouse (TYPE s3, PROVIDER config, {})", options.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_quoted_for_duckdb_and_not_shown() {
        let store = ObjectStore {
            extension: "/e".to_owned(),
            scope: "s3://b/w".to_owned(),
            endpoint: Some("http://h:1/".to_owned()),
            region: "r".to_owned(),
            path_style: true,
            key_id: "k".to_owned(),
            secret: "it's".to_owned(),
            session_token: None,
        };
        let statement = store.secret_statement();
        for part in ["SCOPE 's3://b/w'", "SECRET 'it''s'", "ENDPOINT 'h:1'", "USE_SSL false", "URL_STYLE 'path'"] {
            assert!(statement.contains(part), "{part} in {statement}");
        }
        assert!(!format!("{store:?}").contains("it's"));
        let refuse = |sql: &str| if sql.contains("SECRET") { Err(Error::store(sql)) } else { Ok(()) };
        assert!(!store.admit(refuse).unwrap_err().to_string().contains("it''s"));
    }
}
