//! The section `store` of the configuration file: how the warehouse's object store is reached.
//!
//! No key of it is a secret: secrets are in files that it names, or in the environment, where the store's own tools look for
//! them too.

use std::path::PathBuf;

use iceberg_writer::StoreOptions;
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Store {
    endpoint: Option<String>,
    region: Option<String>,
    access_key_id: Option<String>,
    secret_access_key_file: Option<PathBuf>,
    session_token_file: Option<PathBuf>,
    profile: Option<String>,
    path_style: Option<bool>,
    service_account_file: Option<PathBuf>,
    account: Option<String>,
    account_key_file: Option<PathBuf>,
    sas_token_file: Option<PathBuf>,
    #[serde(default)]
    allow_http: bool,
}

impl Store {
    /// For the writer, which checks them when it opens the warehouse.
    pub(super) fn options(self) -> StoreOptions {
        StoreOptions {
            endpoint: self.endpoint,
            region: self.region,
            access_key_id: self.access_key_id,
            secret_access_key_file: self.secret_access_key_file,
            session_token_file: self.session_token_file,
            profile: self.profile,
            path_style: self.path_style,
            service_account_file: self.service_account_file,
            account: self.account,
            account_key_file: self.account_key_file,
            sas_token_file: self.sas_token_file,
            allow_http: self.allow_http,
        }
    }
}
