//! Which object of which store a location is.
//!
//! Locations stand in metadata as they were written, also by other engines, so the schemes that name the same object are
//! all understood. Keys are taken as they stand: nothing is escaped or unescaped.

use object_store::path::Path;

/// A kind of object store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Service {
    /// S3 and what speaks its protocol.
    Amazon,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

/// A bucket, or a container of an account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Bucket {
    pub(crate) service: Service,
    /// What stands between `://` and the next slash.
    pub(crate) authority: String,
}

impl Bucket {
    /// The bucket as a URL that the store's client takes.
    pub(super) fn url(&self) -> String {
        let scheme = match self.service {
            Service::Amazon => "s3",
            Service::Google => "gs",
            Service::Azure => "abfss",
        };
        format!("{scheme}://{}", self.authority)
    }
}

/// The bucket and the key of a location; `None` when it is no URL of an object store.
pub(crate) fn parse(location: &str) -> Option<(Bucket, &str)> {
    let (scheme, rest) = location.split_once("://")?;
    let service = match scheme {
        "s3" | "s3a" | "s3n" => Service::Amazon,
        "gs" | "gcs" => Service::Google,
        "az" | "abfs" | "abfss" => Service::Azure,
        _ => return None,
    };
    let (authority, key) = rest.split_once('/').unwrap_or((rest, ""));
    (!authority.is_empty()).then(|| (Bucket { service, authority: authority.to_owned() }, key))
}

/// A key as the client takes it.
pub(super) fn key(key: &str) -> Result<Path, object_store::Error> {
    Ok(Path::parse(key)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_of_the_same_store_are_the_same() {
        for location in ["s3://b/a/c", "s3a://b/a/c", "s3n://b/a/c"] {
            let (bucket, key) = parse(location).unwrap();
            assert_eq!((bucket.url().as_str(), key), ("s3://b", "a/c"));
        }
        let (bucket, key) = parse("abfss://c@account.dfs.core.windows.net/x").unwrap();
        assert_eq!((bucket.authority.as_str(), key), ("c@account.dfs.core.windows.net", "x"));
        assert_eq!(parse("gs://b").unwrap().1, "");
        for other in ["file:///x", "s3:///x", "/x", "hdfs://n/x"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn keys_are_taken_as_they_stand() {
        assert_eq!(key("a/b=%20c d/é").unwrap().as_ref(), "a/b=%20c d/é");
        assert!(key("a/../b").is_err());
    }
}
