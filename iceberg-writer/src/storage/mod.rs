//! The files of a warehouse, in a local folder or in an object store, behind the Iceberg library's `Storage`.
//!
//! Either way a file appears under its name whole or not at all, and is durable when the call that made it returns.

mod failure;
mod local;
mod location;
mod object;
mod options;
mod profile;
mod renewing;
mod requests;
mod upload;
mod vault;

use std::sync::Arc;

use bytes::Bytes;
use iceberg::Result;
use iceberg::io::{FileIO, FileIOBuilder};

use failure::StoreFailure;
use local::LocalStorageFactory;
use object::{ObjectStorage, ObjectStorageFactory};

pub(crate) use failure::carried_by;
pub use options::StoreOptions;
pub use requests::StoreRequests;
pub(crate) use vault::{Address, Key, Vault, Vended, Vendor, choose};

/// Where files are kept.
#[derive(Debug, Clone)]
pub(crate) enum Files {
    /// In the folder of a machine.
    Local,
    /// In an object store.
    Objects(ObjectStorage),
}

impl Files {
    /// What keeps the files below a URL; `None` when its scheme is not known.
    pub(crate) fn of(url: &str, options: &StoreOptions) -> Option<Self> {
        if url.starts_with("file:") {
            return Some(Self::Local);
        }
        location::parse(url).map(|_| Self::Objects(ObjectStorage::new(options.clone())))
    }

    /// What keeps the files below a URL, with the keys that a catalog vends.
    pub(crate) fn vended(url: &str, options: &StoreOptions) -> Result<Self> {
        let bucket = location::parse(url).map(|(bucket, _)| bucket);
        let checked = match bucket {
            Some(bucket) => options.check_vended(bucket.service),
            None => Err(StoreFailure::setting("keys that a catalog vends are for s3://bucket/prefix")),
        };
        checked.map_err(|failure| failure.during("open", url))?;
        Ok(Self::Objects(ObjectStorage::vended(options.clone())))
    }

    /// The keys that a catalog vends, where it does.
    pub(crate) fn vault(&self) -> Option<Arc<Vault>> {
        match self {
            Self::Local => None,
            Self::Objects(storage) => storage.vault(),
        }
    }

    /// As the Iceberg library wants it.
    pub(crate) fn file_io(&self) -> FileIO {
        match self {
            Self::Local => FileIOBuilder::new(Arc::new(LocalStorageFactory)).build(),
            Self::Objects(storage) => FileIOBuilder::new(Arc::new(ObjectStorageFactory::new(storage.clone()))).build(),
        }
    }

    /// Whether files can be made, read and deleted below a URL.
    pub(crate) async fn probe(&self, root: &str) -> Result<()> {
        match self {
            Self::Local => local::probe(root).await,
            Self::Objects(storage) => storage.probe(root).await,
        }
    }

    /// The same in the folder of a table, where a catalog vends the keys for it.
    pub(crate) async fn probe_table(&self, folder: &str) -> Result<()> {
        match self {
            Self::Local => Ok(()),
            Self::Objects(storage) => storage.probe_table(folder).await,
        }
    }

    /// Makes a file if there is none of its name. Gives whether there was none, or one of just this content, which then is
    /// the one that an earlier try made.
    pub(crate) async fn create(&self, path: &str, content: Bytes) -> Result<bool> {
        match self {
            Self::Local => local::create(path, content).await,
            Self::Objects(storage) => storage.create(path, content).await,
        }
    }

    /// The names of the files in a folder; none when there is no such folder.
    pub(crate) async fn names_in(&self, folder: &str) -> Result<Vec<String>> {
        match self {
            Self::Local => local::list_folder(folder).await,
            Self::Objects(storage) => storage.names_in(folder).await,
        }
    }
}
