//! The keys that a server vends with a table, as it writes them down.
//!
//! They are in `storage-credentials`, each with the prefix of the locations that it is for, or by an older manner in the
//! table's `config`. Only keys of S3 are understood, and none is looked for anywhere else: a server that vends nothing
//! for a table's folder is an error that says so.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use reqwest::Method;
use serde_json::Value;

use super::server::Server;
use super::shapes::LoadedTable;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Address, Key, Vended, Vendor, choose};

/// When a key expires, in milliseconds of the epoch.
const EXPIRES: [&str; 2] = ["s3.session-token-expires-at-ms", "expiration-time"];
/// What the settings of other stores' keys begin with.
const OF_OTHERS: [&str; 4] = ["gcs.", "adls.", "azure.", "abfs."];
/// What is said of a server that vends nothing of use.
const HINT: &str = "let the catalog vend keys of S3 for the table, and let the worker's principal use them; or set \
                    catalog.vended_credentials = false and give the store's key in the section store";

/// Where a store is, by settings of Iceberg's names.
pub(super) fn address(setting: impl Fn(&str) -> Option<String>) -> Address {
    Address {
        endpoint: setting("s3.endpoint").map(|endpoint| endpoint.trim_end_matches('/').to_owned()),
        region: setting("s3.region").or_else(|| setting("client.region")),
        path_style: setting("s3.path-style-access").and_then(|value| value.parse().ok()),
    }
}

/// A setting, as text.
fn text(config: &Value, key: &str) -> Option<String> {
    match config.get(key)? {
        Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

/// The key in settings; `None`: they have none. An error never has their values.
fn key(config: &Value) -> Result<Option<Key>, String> {
    let (id, secret) = (text(config, "s3.access-key-id"), text(config, "s3.secret-access-key"));
    let (id, secret) = match (id, secret) {
        (Some(id), Some(secret)) => (id, secret),
        (None, None) => return Ok(None),
        (Some(_), None) => return Err("it has s3.access-key-id without s3.secret-access-key".to_owned()),
        (None, Some(_)) => return Err("it has s3.secret-access-key without s3.access-key-id".to_owned()),
    };
    let token = text(config, "s3.session-token");
    let is_plain = |text: &String| text.bytes().all(|byte| byte.is_ascii_graphic());
    if ![Some(&id), Some(&secret), token.as_ref()].into_iter().flatten().all(is_plain) {
        return Err("it has characters that no key has".to_owned());
    }
    Ok(Some(Key { id, secret, token }))
}

/// What is vended for a table in a folder: `fallback` is where the store is as far as neither says.
fn read(config: &Value, credentials: &Value, folder: &str, fallback: &Address) -> Result<Vec<Vended>, String> {
    let merged = |over: &Value, under: &Address| {
        let Address { endpoint, region, path_style } = address(|key| text(over, key));
        Address {
            endpoint: endpoint.or_else(|| under.endpoint.clone()),
            region: region.or_else(|| under.region.clone()),
            path_style: path_style.or(under.path_style),
        }
    };
    let of_table = merged(config, fallback);
    let until = |config: &Value| {
        let millis = EXPIRES.iter().find_map(|key| text(config, key)?.parse::<u64>().ok())?;
        UNIX_EPOCH.checked_add(Duration::from_millis(millis)).map(|until: SystemTime| until)
    };
    let mut vended = Vec::new();
    for credential in credentials.as_array().map(Vec::as_slice).unwrap_or_default() {
        let (prefix, own) = (text(credential, "prefix").unwrap_or_default(), &credential["config"]);
        if let Some(key) = key(own)? {
            let until = until(own).or_else(|| until(config));
            vended.push(Vended { prefix, key, address: merged(own, &of_table), until });
        }
    }
    // Clients that know the former know to let this be.
    if vended.is_empty()
        && let Some(key) = key(config)?
    {
        vended.push(Vended { prefix: folder.to_owned(), key, address: of_table, until: until(config) });
    }
    if vended.is_empty() {
        return Err(why_none(config, credentials));
    }
    if choose(&vended, &format!("{folder}/")).is_none() {
        let prefixes: Vec<&str> = vended.iter().map(|vended| &*vended.prefix).collect();
        return Err(format!("it vends keys for {}, and the table is in {folder}", prefixes.join(" and ")));
    }
    Ok(vended)
}

/// What there is in place of a key.
fn why_none(config: &Value, credentials: &Value) -> String {
    let all = credentials.as_array().map(Vec::as_slice).unwrap_or_default();
    let configs: Vec<&Value> = all.iter().map(|credential| &credential["config"]).chain([config]).collect();
    let names = || configs.iter().filter_map(|config| config.as_object()).flat_map(|config| config.keys());
    if let Some(other) = names().find(|name| OF_OTHERS.iter().any(|start| name.starts_with(start))) {
        return format!("it vends keys of a store that is not S3 ({other})");
    }
    if configs.iter().any(|config| text(config, "s3.remote-signing-enabled").as_deref() == Some("true")) {
        return "it signs requests itself (s3.remote-signing-enabled), and vends no keys".to_owned();
    }
    "it vends no keys, although it was asked to".to_owned()
}

fn useless(namespace: &str, name: &str, why: &str) -> Error {
    let context = format!("use the keys that the catalog vends for {namespace}.{name}: {why}");
    Error::new(ErrorKind::Catalog, context).with_hint(HINT)
}

impl Server {
    /// What is vended with a table.
    pub(super) async fn vended(&self, namespace: &str, name: &str, loaded: &LoadedTable) -> Result<Vec<Vended>> {
        let (config, folder) = (&loaded.config, loaded.metadata.location());
        let vended = read(config, &loaded.storage_credentials, folder, &self.told().await?.store);
        vended.map_err(|why| useless(namespace, name, &why))
    }
}

#[async_trait]
impl Vendor for Server {
    async fn vend(&self, namespace: &str, name: &str) -> Result<Vec<Vended>> {
        let path = self.path(&["namespaces", namespace, "tables", name]).await?;
        let reply = self.request(Method::GET, &path, None).await?;
        if !reply.is_success() {
            return Err(reply.into_error(&format!("load {namespace}.{name} for its keys"), HINT));
        }
        self.vended(namespace, name, &reply.parse::<LoadedTable>("a table of the catalog")?).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FOLDER: &str = "s3://b/n/t";

    fn read_for(config: Value, credentials: Value) -> Result<Vec<Vended>, String> {
        let fallback = Address { region: Some("of-the-server".to_owned()), ..Address::default() };
        read(&config, &credentials, FOLDER, &fallback)
    }

    fn keys(id: &str) -> Value {
        json!({"s3.access-key-id": id, "s3.secret-access-key": "hunter2", "s3.session-token": "t/+="})
    }

    #[test]
    fn keys_are_read_with_their_prefix_or_of_the_tables_settings() {
        let mut own = keys("own");
        own["s3.session-token-expires-at-ms"] = json!("1700000000000");
        own["s3.endpoint"] = json!("http://own:1/");
        let config = json!({"s3.access-key-id": "older", "s3.secret-access-key": "s", "client.region": "r",
            "s3.endpoint": "http://h:1", "s3.path-style-access": "true", "expiration-time": 1_800_000_000_000_u64});
        let credentials =
            json!([{"prefix": "s3://b", "config": keys("wide")}, {"prefix": "s3://b/n/t", "config": own}]);
        let vended = read_for(config.clone(), credentials).unwrap();
        let best = choose(&vended, "s3://b/n/t/data/x").unwrap();
        assert_eq!((&*best.key.id, best.key.token.as_deref()), ("own", Some("t/+=")));
        assert_eq!(best.until, Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
        let said =
            Address { endpoint: Some("http://own:1".to_owned()), region: Some("r".to_owned()), path_style: Some(true) };
        assert_eq!(best.address, said);
        let wide = choose(&vended, "s3://b/other/x").unwrap();
        assert_eq!((&*wide.key.id, wide.address.endpoint.as_deref()), ("wide", Some("http://h:1")));
        // By the older manner, and where the server says for all tables where the store is.
        let of_table = read_for(config, Value::Null).unwrap();
        assert_eq!((&*of_table[0].key.id, &*of_table[0].prefix, &of_table[0].key.token), ("older", FOLDER, &None));
        assert_eq!(of_table[0].until, Some(UNIX_EPOCH + Duration::from_secs(1_800_000_000)));
        let plain = read_for(keys("k"), json!([])).unwrap();
        assert_eq!((plain[0].address.region.as_deref(), plain[0].until), (Some("of-the-server"), None));
    }

    #[test]
    fn what_is_of_no_use_is_said_without_secrets() {
        let elsewhere = json!([{"prefix": "s3://b/other", "config": keys("k")}]);
        let half = json!([{"prefix": FOLDER, "config": {"s3.access-key-id": "hunter2"}}]);
        let mut broken = keys("k");
        broken["s3.session-token"] = json!("hunter2\n");
        for (config, credentials, said) in [
            (Value::Null, Value::Null, "no keys"),
            (json!({}), json!([]), "no keys"),
            (json!("hunter2"), json!("hunter2"), "no keys"),
            (json!({"s3.endpoint": "http://h"}), json!([{"prefix": FOLDER, "config": {}}]), "no keys"),
            (json!({"s3.remote-signing-enabled": "true"}), Value::Null, "signs requests itself"),
            (json!({}), json!([{"prefix": "gs://b", "config": {"gcs.oauth2.token": "hunter2"}}]), "not S3"),
            (json!({"adls.sas-token.account": "hunter2"}), Value::Null, "not S3"),
            (json!({}), elsewhere, "s3://b/other"),
            (json!({}), half, "without s3.secret-access-key"),
            (broken, Value::Null, "characters"),
        ] {
            let why = read_for(config, credentials).unwrap_err();
            assert!(why.contains(said) && !why.contains("hunter2"), "{why}");
        }
    }
}
