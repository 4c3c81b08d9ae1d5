//! The protocol's answers, as far as we read them.

use std::collections::HashMap;

use iceberg::spec::TableMetadata;
use serde::Deserialize;
use serde_json::Value;

/// What a server says of itself.
#[derive(Deserialize)]
pub(super) struct Configuration {
    #[serde(default)]
    defaults: HashMap<String, String>,
    #[serde(default)]
    overrides: HashMap<String, String>,
    /// Its requests, as `GET /v1/{prefix}/namespaces`. Servers of before that was asked for say nothing.
    pub(super) endpoints: Option<Vec<String>>,
}

impl Configuration {
    /// A setting, as it counts.
    pub(super) fn value(&self, key: &str) -> Option<String> {
        self.overrides.get(key).or_else(|| self.defaults.get(key)).cloned()
    }
}

/// A table as a server has it.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct LoadedTable {
    pub(super) metadata_location: Option<String>,
    pub(super) metadata: TableMetadata,
    /// What is to be known to reach its files. It may hold secrets, so it is taken as it comes, whatever it is: an error of
    /// the parser's would quote it.
    #[serde(default)]
    pub(super) config: Value,
    #[serde(default)]
    pub(super) storage_credentials: Value,
}

/// What went wrong.
#[derive(Deserialize)]
pub(super) struct Problem {
    pub(super) error: ProblemDetail,
}

#[derive(Deserialize)]
pub(super) struct ProblemDetail {
    #[serde(default)]
    pub(super) message: String,
    #[serde(default, rename = "type")]
    pub(super) kind: String,
}

/// What a token is asked for with is answered by.
#[derive(Deserialize)]
pub(super) struct Token {
    pub(super) access_token: String,
    pub(super) expires_in: Option<u64>,
}
