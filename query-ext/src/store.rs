//! Where the warehouse is, and the key that reads it, as the extension `lake` has it in its settings.
//!
//! They are that extension's settings, which only a superuser sees: they are looked at by name, here where DuckDB is opened,
//! and go nowhere else. The file with a secret is read by the server's own user, as the engine reads it.

use std::ffi::CStr;

use lake_engine::{Error, ObjectStore};
use pgrx::prelude::*;

/// The file beside this library. DuckDB takes the name of what is in it from the file's.
const EXTENSION: &str = "httpfs.duckdb_extension";

/// A setting that may not exist. Null and empty are the same.
fn option(name: &CStr) -> Option<String> {
    // SAFETY: GetConfigOption answers null for a setting that does not exist; the text is copied at once.
    let value = unsafe {
        let value = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned())
    };
    value.filter(|value| !value.is_empty())
}

/// The warehouse, as its files are named to DuckDB: a directory, or the URL of a prefix.
pub(crate) fn warehouse() -> Option<String> {
    match option(c"lake.warehouse") {
        Some(set) => {
            let place = set.strip_prefix("file://").unwrap_or(&set);
            Some(place.trim_end_matches('/').to_owned())
        }
        None => option(c"data_directory").map(|data| format!("{data}/lake/warehouse")),
    }
}

/// The store of a file.
///
/// # Errors
/// When it is of another kind than S3, or there is no key for it.
pub(crate) fn of(file: &str) -> Result<ObjectStore, Error> {
    if !file.starts_with("s3://") {
        let scheme = file.split("://").next().unwrap_or_default();
        return Err(Error::store(format!("queries do not read {scheme}:// warehouses")));
    }
    let scope = warehouse().filter(|warehouse| file.starts_with(&format!("{warehouse}/")));
    let scope = scope.ok_or_else(|| Error::store("a data file is in another bucket than lake.warehouse"))?;
    let from = |setting: &CStr, variable: &str| option(setting).or_else(|| std::env::var(variable).ok());
    let secret_of = |setting: &CStr| match option(setting) {
        None => Ok(None),
        Some(file) => match std::fs::read_to_string(&file) {
            Ok(text) => Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned())),
            Err(error) => Err(Error::store(format!("could not read the secret in {file}: {error}"))),
        },
    };
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let set = option(c"lake.store_access_key_id");
    // The environment's token belongs to the environment's key.
    let token = if set.is_some() { None } else { variable("AWS_SESSION_TOKEN") };
    let key_id = set.or_else(|| variable("AWS_ACCESS_KEY_ID"));
    let secret = secret_of(c"lake.store_secret_access_key_file")?.or_else(|| variable("AWS_SECRET_ACCESS_KEY"));
    let (Some(key_id), Some(secret)) = (key_id, secret) else {
        return Err(Error::store("there is no key for the object store"));
    };
    let region = from(c"lake.store_region", "AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
    Ok(ObjectStore {
        extension: extension(),
        scope,
        endpoint: from(c"lake.store_endpoint", "AWS_ENDPOINT_URL"),
        region: region.unwrap_or_else(|| "us-east-1".to_owned()),
        path_style: option(c"lake.store_path_style").as_deref() != Some("off"),
        key_id,
        secret,
        session_token: secret_of(c"lake.store_session_token_file")?.or(token),
    })
}

/// Where the installation put DuckDB's extension.
fn extension() -> String {
    // SAFETY: a buffer of the server, filled at its start, with a NUL at its end.
    let libraries = unsafe { CStr::from_ptr((&raw const pg_sys::pkglib_path).cast()) };
    format!("{}/{EXTENSION}", libraries.to_string_lossy())
}
