//! Objects of S3, Google Cloud Storage, Azure Blob Storage and what speaks their protocols.
//!
//! An object appears whole or not at all, and is durable when the store has answered; so what a catalog points to is there
//! before the catalog points to it. Names are never written twice but by a retry of the same content. Requests are
//! tried again with growing, random pauses, all tries together under a deadline.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use iceberg::io::{FileMetadata, FileRead, FileWrite, InputFile, OutputFile, Storage, StorageConfig, StorageFactory};
use iceberg::{Error as IcebergError, ErrorKind as IcebergKind, Result};
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutMode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::failure::{Cause, StoreFailure, carried_by, failed};
use super::location::{self, Bucket};
use super::options::{Patience, StoreOptions};
use super::upload::ObjectWrite;
use super::vault::{Address, Vault};
use crate::deadline;

/// What the probe's object holds.
const PROBE: &[u8] = b"lakemirror";

/// Makes [`ObjectStorage`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct ObjectStorageFactory {
    storage: ObjectStorage,
}

impl ObjectStorageFactory {
    pub(super) fn new(storage: ObjectStorage) -> Self {
        Self { storage }
    }
}

#[typetag::serde(name = "LakemirrorObjectStorageFactory")]
impl StorageFactory for ObjectStorageFactory {
    fn build(&self, _config: &StorageConfig) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(self.storage.clone()))
    }
}

/// Object stores, by the buckets in their locations. Cheap to clone.
///
/// The library wants to be able to serialize it. Settings that lead to secrets are no part of that: what comes out of a
/// serialized form says so when it is used.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ObjectStorage {
    #[serde(skip)]
    stores: Option<Arc<Stores>>,
}

#[derive(Debug)]
struct Stores {
    options: StoreOptions,
    opened: Mutex<HashMap<Opened, Arc<dyn ObjectStore>>>,
    /// Where a catalog vends the keys.
    vault: Option<Arc<Vault>>,
}

/// What a client is for.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Opened {
    bucket: Bucket,
    /// The prefix of the locations that a vended key is for, of which loan (by its address), and where the store is then.
    vended: Option<(String, usize, Address)>,
}

/// An object, as it is asked for.
struct Object {
    store: Arc<dyn ObjectStore>,
    key: Path,
}

/// Runs a request, all tries of it, under the deadline.
pub(super) async fn within<T>(
    what: &str,
    location: &str,
    request: impl Future<Output = object_store::Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(deadline::STORAGE, request).await {
        Ok(result) => result.map_err(|error| failed(what, location, &error)),
        Err(_) => Err(StoreFailure::timed_out().during(what, location)),
    }
}

/// Whether what an error is about is just not there.
fn is_missing(error: &IcebergError) -> bool {
    carried_by(error).is_some_and(|failure| failure.cause == Cause::NoObject)
}

impl ObjectStorage {
    pub(super) fn new(options: StoreOptions) -> Self {
        Self { stores: Some(Arc::new(Stores { options, opened: Mutex::default(), vault: None })) }
    }

    /// With the keys that a catalog vends, and no others.
    pub(super) fn vended(options: StoreOptions) -> Self {
        let vault = Some(Arc::default());
        Self { stores: Some(Arc::new(Stores { options, opened: Mutex::default(), vault })) }
    }

    pub(super) fn vault(&self) -> Option<Arc<Vault>> {
        self.stores.as_ref()?.vault.clone()
    }

    async fn object(&self, location: &str) -> Result<Object> {
        let (bucket, key) = location::parse(location).ok_or_else(|| {
            IcebergError::new(IcebergKind::DataInvalid, format!("{location:?} is not in an object store"))
        })?;
        let key = location::key(key).map_err(|error| failed("find", location, &error))?;
        let Some(stores) = &self.stores else {
            let message = "settings of object stores are not part of what is serialized";
            return Err(IcebergError::new(IcebergKind::FeatureUnsupported, message));
        };
        Ok(Object { store: stores.store(bucket, location, Patience::Steady).await?, key })
    }

    /// Puts, gets and deletes an object, so that whatever is wrong with a warehouse is said before anything depends on it.
    ///
    /// It is named as a table's data file is: there are stores for Iceberg tables alone, which refuse other names.
    pub(super) async fn probe(&self, root: &str) -> Result<()> {
        self.probe_at(format!("{root}/lakemirror/probe-{}/data/probe.parquet", Uuid::now_v7().simple())).await
    }

    /// The same in the folder of a table.
    pub(super) async fn probe_table(&self, folder: &str) -> Result<()> {
        self.probe_at(format!("{folder}/data/probe-{}/probe.parquet", Uuid::now_v7().simple())).await
    }

    async fn probe_at(&self, location: String) -> Result<()> {
        let Some(stores) = &self.stores else { return Ok(()) };
        let (bucket, key) = location::parse(&location).ok_or_else(|| {
            IcebergError::new(IcebergKind::DataInvalid, format!("{location:?} is not in an object store"))
        })?;
        let key = location::key(key).map_err(|error| failed("find", &location, &error))?;
        let store = stores.store(bucket, &location, Patience::Short).await?;
        let put = within("write", &location, store.put(&key, PROBE.into())).await;
        put.map_err(|error| match is_missing(&error) {
            // A server that has no such path is no such store.
            true => StoreFailure::unreachable(format!("{error}")).during("write", &location),
            false => error,
        })?;
        let got = within("read", &location, async { store.get(&key).await?.bytes().await }).await;
        let deleted = delete(&*store, &key, &location).await;
        if got? != PROBE {
            return Err(StoreFailure::unreachable("other bytes came back").during("read", &location));
        }
        deleted
    }

    /// Makes an object, unless another one has its name.
    pub(super) async fn create(&self, location: &str, content: Bytes) -> Result<bool> {
        let Object { store, key } = self.object(location).await?;
        let create = async {
            let put = store.put_opts(&key, content.clone().into(), PutMode::Create.into()).await;
            match put {
                // A try whose answer was lost may have made it.
                Err(StoreError::AlreadyExists { .. }) => Ok(store.get(&key).await?.bytes().await? == content),
                put => put.map(|_| true),
            }
        };
        within("create", location, create).await
    }

    /// The names of the objects right below a folder.
    pub(super) async fn names_in(&self, folder: &str) -> Result<Vec<String>> {
        let Object { store, key } = self.object(folder).await?;
        let list = within("list", folder, store.list_with_delimiter(Some(&key))).await?;
        let names = list.objects.iter().filter_map(|object| object.location.filename().map(str::to_owned));
        Ok(names.collect())
    }
}

impl Stores {
    /// The client of a bucket for a location, made when it is first needed; for one who waits, each time.
    async fn store(&self, bucket: Bucket, location: &str, patience: Patience) -> Result<Arc<dyn ObjectStore>> {
        let fail = |failure: StoreFailure| failure.during("open", location);
        let loan = match &self.vault {
            None => None,
            Some(vault) => {
                let loan = vault.find(location).map_err(fail)?;
                let vended = loan.held(location).map_err(fail)?;
                Some((loan, vended.prefix, vended.address))
            }
        };
        let vended = loan.as_ref().map(|(loan, prefix, said)| (prefix.clone(), Arc::as_ptr(loan).addr(), said.clone()));
        let wanted = Opened { bucket, vended };
        let opened = || self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = opened().get(&wanted).filter(|_| patience == Patience::Steady) {
            return Ok(Arc::clone(store));
        }
        let store = match loan {
            None => self.options.connect(&wanted.bucket, patience).await?,
            Some((loan, prefix, said)) => {
                self.options.borrow(&wanted.bucket, loan, prefix, &said, patience).await.map_err(fail)?
            }
        };
        if patience == Patience::Short {
            return Ok(store);
        }
        Ok(Arc::clone(opened().entry(wanted).or_insert(store)))
    }
}

/// Deletes an object, or finds that it is not there.
async fn delete(store: &dyn ObjectStore, key: &Path, location: &str) -> Result<()> {
    match within("delete", location, store.delete(key)).await {
        Err(error) if !is_missing(&error) => Err(error),
        _ => Ok(()),
    }
}

#[async_trait]
#[typetag::serde(name = "LakemirrorObjectStorage")]
impl Storage for ObjectStorage {
    async fn exists(&self, path: &str) -> Result<bool> {
        let Object { store, key } = self.object(path).await?;
        match within("look for", path, store.head(&key)).await {
            Ok(_) => Ok(true),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn metadata(&self, path: &str) -> Result<FileMetadata> {
        let Object { store, key } = self.object(path).await?;
        let found = within("read the size of", path, store.head(&key)).await?;
        Ok(FileMetadata { size: found.size })
    }

    async fn read(&self, path: &str) -> Result<Bytes> {
        let Object { store, key } = self.object(path).await?;
        within("read", path, async { store.get(&key).await?.bytes().await }).await
    }

    async fn reader(&self, path: &str) -> Result<Box<dyn FileRead>> {
        let Object { store, key } = self.object(path).await?;
        Ok(Box::new(ObjectRead { store, key, location: path.to_owned() }))
    }

    async fn write(&self, path: &str, bytes: Bytes) -> Result<()> {
        let mut writer = self.writer(path).await?;
        writer.write(bytes).await?;
        writer.close().await
    }

    async fn writer(&self, path: &str) -> Result<Box<dyn FileWrite>> {
        let Object { store, key } = self.object(path).await?;
        Ok(Box::new(ObjectWrite::new(store, key, path)))
    }

    async fn delete(&self, path: &str) -> Result<()> {
        let Object { store, key } = self.object(path).await?;
        delete(&*store, &key, path).await
    }

    async fn delete_prefix(&self, path: &str) -> Result<()> {
        let Object { store, key } = self.object(path).await?;
        let found: Vec<Path> =
            within("list", path, store.list(Some(&key)).map_ok(|object| object.location).try_collect()).await?;
        for key in found {
            delete(&*store, &key, path).await?;
        }
        Ok(())
    }

    async fn delete_stream(&self, mut paths: BoxStream<'static, String>) -> Result<()> {
        while let Some(path) = paths.next().await {
            self.delete(&path).await?;
        }
        Ok(())
    }

    fn new_input(&self, path: &str) -> Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), path.to_owned()))
    }

    fn new_output(&self, path: &str) -> Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), path.to_owned()))
    }
}

struct ObjectRead {
    store: Arc<dyn ObjectStore>,
    key: Path,
    location: String,
}

#[async_trait]
impl FileRead for ObjectRead {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        within("read", &self.location, self.store.get_range(&self.key, range)).await
    }
}
