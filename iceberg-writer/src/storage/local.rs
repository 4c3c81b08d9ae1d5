//! Files of a `file://` warehouse, crash-safe.
//!
//! A file appears under its name whole or not at all: it is written beside its place under a temporary name, fsynced,
//! renamed, and then the folder is fsynced. What a catalog points to is therefore on disk before the catalog points to it.
//! Folders made on the way are made durable too. All file system calls run on tokio's blocking threads under a deadline.

use std::fs::{self, File};
use std::io::{self, ErrorKind as IoKind, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use iceberg::io::{FileMetadata, FileRead, FileWrite, InputFile, OutputFile, Storage, StorageConfig, StorageFactory};
use iceberg::{Error as IcebergError, ErrorKind as IcebergKind, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::failure::StoreFailure;
use crate::deadline;

/// What names a file that is still being written.
const TEMPORARY_SUFFIX: &str = ".tmp";

/// Makes [`LocalStorage`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct LocalStorageFactory;

#[typetag::serde(name = "LakemirrorLocalStorageFactory")]
impl StorageFactory for LocalStorageFactory {
    fn build(&self, _config: &StorageConfig) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(LocalStorage))
    }
}

/// A warehouse in a local folder.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct LocalStorage;

/// `file:///a/b`, `file:/a/b` and `/a/b` as a path.
pub(super) fn local_path(location: &str) -> Result<PathBuf> {
    let path = location.strip_prefix("file://").or_else(|| location.strip_prefix("file:")).unwrap_or(location);
    if !path.starts_with('/') {
        let message = format!("{location:?} is not an absolute path or a file:///… URL");
        return Err(IcebergError::new(IcebergKind::DataInvalid, message));
    }
    Ok(PathBuf::from(path))
}

/// Runs file system calls on a blocking thread.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    path: PathBuf,
    call: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let owned = path.clone();
    let task = tokio::task::spawn_blocking(move || call(&owned));
    let fail = |error: io::Error| {
        if error.kind() == IoKind::PermissionDenied {
            // Until somebody has followed the hint, as it is with a bucket.
            return StoreFailure::forbidden(error.to_string()).during(what, &path.display().to_string());
        }
        // A missing file stays so; a full or a failing disk may recover.
        let lasting = matches!(error.kind(), IoKind::NotFound | IoKind::UnexpectedEof);
        let kind = if lasting { IcebergKind::DataInvalid } else { IcebergKind::Unexpected };
        IcebergError::new(kind, format!("{what} {}: {error}", path.display())).with_retryable(!lasting)
    };
    match tokio::time::timeout(deadline::STORAGE, task).await {
        Ok(Ok(result)) => result.map_err(fail),
        Ok(Err(panic)) => Err(fail(io::Error::other(panic))),
        Err(_) => Err(fail(io::Error::from(IoKind::TimedOut))),
    }
}

/// Makes a folder and those above it, durably.
fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        create_folder(parent)?;
        match fs::create_dir(folder) {
            Err(error) if error.kind() != IoKind::AlreadyExists => return Err(error),
            _ => sync_folder(parent)?,
        }
    }
    Ok(())
}

/// The names of the files in a folder; none when there is no such folder.
pub(super) async fn list_folder(location: &str) -> Result<Vec<String>> {
    let list = |folder: &Path| {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == IoKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    blocking("list", local_path(location)?, list).await
}

/// Makes a warehouse's folder when there is none, and sees whether files can be made in it.
pub(super) async fn probe(location: &str) -> Result<()> {
    let probe = |folder: &Path| {
        let file = folder.join(format!(".probe-{}", Uuid::now_v7().simple()));
        create_folder(folder)?;
        fs::write(&file, b"")?;
        fs::remove_file(&file)
    };
    blocking("write to", local_path(location)?, probe).await
}

/// Makes a file, unless another one has its name.
pub(super) async fn create(location: &str, content: Bytes) -> Result<bool> {
    let create = move |path: &Path| {
        let mut unpublished = Unpublished::create(path)?;
        unpublished.file.write_all(&content)?;
        match unpublished.publish_first(path) {
            Err(error) if error.kind() == IoKind::AlreadyExists => Ok(fs::read(path)? == content),
            published => published.map(|()| true),
        }
    };
    blocking("create", local_path(location)?, create).await
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A file under its temporary name. Dropped before it is published, it leaves nothing behind.
#[derive(Debug)]
struct Unpublished {
    file: File,
    temporary: PathBuf,
    published: bool,
}

impl Unpublished {
    fn create(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(IoKind::InvalidInput)?.to_string_lossy();
        let folder = path.parent().ok_or(IoKind::InvalidInput)?;
        create_folder(folder)?;
        let temporary = folder.join(format!(".{name}.{}{TEMPORARY_SUFFIX}", Uuid::now_v7().simple()));
        let file = File::options().write(true).create_new(true).open(&temporary)?;
        Ok(Self { file, temporary, published: false })
    }

    fn publish(mut self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.temporary, path)?;
        self.published = true;
        path.parent().map_or(Ok(()), sync_folder)
    }

    /// The same, if nothing has the name: the temporary name goes, whatever comes of it.
    fn publish_first(self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::hard_link(&self.temporary, path)?;
        path.parent().map_or(Ok(()), sync_folder)
    }
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        if !self.published {
            // Best effort: the name is unique and nothing refers to it.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[async_trait]
#[typetag::serde(name = "LakemirrorLocalStorage")]
impl Storage for LocalStorage {
    async fn exists(&self, path: &str) -> Result<bool> {
        blocking("look for", local_path(path)?, |path| path.try_exists()).await
    }

    async fn metadata(&self, path: &str) -> Result<FileMetadata> {
        let size = blocking("read the size of", local_path(path)?, |path| Ok(fs::metadata(path)?.len())).await?;
        Ok(FileMetadata { size })
    }

    async fn read(&self, path: &str) -> Result<Bytes> {
        blocking("read", local_path(path)?, |path| Ok(Bytes::from(fs::read(path)?))).await
    }

    async fn reader(&self, path: &str) -> Result<Box<dyn FileRead>> {
        let path = local_path(path)?;
        let file = blocking("open", path.clone(), |path| File::open(path)).await?;
        Ok(Box::new(LocalRead { file: Arc::new(file), path }))
    }

    async fn write(&self, path: &str, bytes: Bytes) -> Result<()> {
        let write = move |path: &Path| {
            let mut unpublished = Unpublished::create(path)?;
            unpublished.file.write_all(&bytes)?;
            unpublished.publish(path)
        };
        blocking("write", local_path(path)?, write).await
    }

    async fn writer(&self, path: &str) -> Result<Box<dyn FileWrite>> {
        let path = local_path(path)?;
        let unpublished = blocking("create", path.clone(), Unpublished::create).await?;
        Ok(Box::new(LocalWrite { unpublished: Some(unpublished), path }))
    }

    async fn delete(&self, path: &str) -> Result<()> {
        let remove = |path: &Path| match fs::remove_file(path) {
            Err(error) if error.kind() != IoKind::NotFound => Err(error),
            _ => Ok(()),
        };
        blocking("delete", local_path(path)?, remove).await
    }

    async fn delete_prefix(&self, path: &str) -> Result<()> {
        let remove = |path: &Path| match fs::remove_dir_all(path) {
            Err(error) if error.kind() != IoKind::NotFound => Err(error),
            _ => Ok(()),
        };
        blocking("delete", local_path(path)?, remove).await
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

struct LocalRead {
    file: Arc<File>,
    path: PathBuf,
}

#[async_trait]
impl FileRead for LocalRead {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let file = Arc::clone(&self.file);
        let read = move |_: &Path| {
            let length = usize::try_from(range.end.saturating_sub(range.start)).map_err(io::Error::other)?;
            let mut buffer = vec![0; length];
            file.read_exact_at(&mut buffer, range.start)?;
            Ok(Bytes::from(buffer))
        };
        blocking("read", self.path.clone(), read).await
    }
}

struct LocalWrite {
    /// `None` once closed, or after a failure: the file is then gone.
    unpublished: Option<Unpublished>,
    path: PathBuf,
}

impl LocalWrite {
    fn take(&mut self) -> Result<Unpublished> {
        let closed = || {
            let message = format!("{} is closed or failed before", self.path.display());
            IcebergError::new(IcebergKind::Unexpected, message)
        };
        self.unpublished.take().ok_or_else(closed)
    }
}

#[async_trait]
impl FileWrite for LocalWrite {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let mut unpublished = self.take()?;
        let write = move |_: &Path| {
            unpublished.file.write_all(&bytes)?;
            Ok(unpublished)
        };
        self.unpublished = Some(blocking("write", self.path.clone(), write).await?);
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        let unpublished = self.take()?;
        blocking("write", self.path.clone(), move |path| unpublished.publish(path)).await
    }
}
