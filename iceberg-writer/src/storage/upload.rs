//! One object being written.
//!
//! A small one is a single PUT; a larger one is sent in parts of one size (which some stores demand), a few at a time. The
//! object appears under its name whole or not at all: the store shows it when the upload is completed. What is given up is
//! aborted; an upload whose process was killed is the business of the bucket's lifecycle rule.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use iceberg::io::FileWrite;
use iceberg::{Error as IcebergError, ErrorKind as IcebergKind, Result};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};
use tokio::task::JoinSet;
use tracing::warn;

use super::object::within;

/// The size of a part: the least that S3 takes, so that little is held in memory; its most parts then make 48 GiB.
const PART_BYTES: usize = 5 << 20;
/// Parts of one object on their way at a time. Together with the one that fills up they are what a writer holds.
const PARTS_IN_FLIGHT: usize = 2;

/// An object that appears when it is closed.
pub(super) struct ObjectWrite {
    store: Arc<dyn ObjectStore>,
    key: Path,
    location: String,
    /// What is not sent yet: less than a part, or all of it.
    pending: Vec<Bytes>,
    pending_bytes: usize,
    written: u64,
    upload: Option<Upload>,
    closed: bool,
}

/// An object of several parts.
struct Upload {
    /// `None` once it is completed or aborted.
    multipart: Option<Box<dyn MultipartUpload>>,
    parts: JoinSet<Result<()>>,
}

impl ObjectWrite {
    pub(super) fn new(store: Arc<dyn ObjectStore>, key: Path, location: &str) -> Self {
        Self {
            store,
            key,
            location: location.to_owned(),
            pending: Vec::new(),
            pending_bytes: 0,
            written: 0,
            upload: None,
            closed: false,
        }
    }

    fn check_open(&self) -> Result<()> {
        if self.closed {
            let message = format!("{} is closed or failed before", self.location);
            return Err(IcebergError::new(IcebergKind::Unexpected, message));
        }
        Ok(())
    }

    /// Sends what is pending as a part, when fewer than the most are on their way.
    async fn send_part(&mut self) -> Result<()> {
        if self.upload.is_none() {
            let begin = within("begin to write", &self.location, self.store.put_multipart(&self.key)).await?;
            self.upload = Some(Upload { multipart: Some(begin), parts: JoinSet::new() });
        }
        let payload = PutPayload::from_iter(std::mem::take(&mut self.pending));
        self.pending_bytes = 0;
        let Some(upload) = &mut self.upload else { return Ok(()) };
        while upload.parts.len() >= PARTS_IN_FLIGHT {
            upload.next_part().await?;
        }
        let Some(multipart) = &mut upload.multipart else { return Ok(()) };
        let (part, location) = (multipart.put_part(payload), self.location.clone());
        upload.parts.spawn(async move { within("write a part of", &location, part).await });
        Ok(())
    }

    async fn append(&mut self, mut bytes: Bytes) -> Result<()> {
        self.written += bytes.len() as u64;
        // A full part waits for the byte behind it, without which it is the whole object.
        while self.pending_bytes + bytes.len() > PART_BYTES {
            let head = bytes.split_to(PART_BYTES - self.pending_bytes);
            self.pending.push(head);
            self.send_part().await?;
        }
        self.pending_bytes += bytes.len();
        self.pending.push(bytes);
        Ok(())
    }

    async fn finish(&mut self) -> Result<()> {
        if self.upload.is_none() {
            let payload = PutPayload::from_iter(std::mem::take(&mut self.pending));
            return within("write", &self.location, self.store.put(&self.key, payload)).await.map(drop);
        }
        self.send_part().await?;
        let Some(upload) = &mut self.upload else { return Ok(()) };
        while !upload.parts.is_empty() {
            upload.next_part().await?;
        }
        let Some(multipart) = &mut upload.multipart else { return Ok(()) };
        let completed = within("complete", &self.location, multipart.complete()).await;
        if let Err(error) = completed {
            // The answer may have been lost, and a second try finds no upload: then the object is there. Its name is ours alone.
            let there = within("look for", &self.location, self.store.head(&self.key)).await;
            if there.is_ok_and(|object| object.size == self.written) {
                upload.multipart = None;
                return Ok(());
            }
            return Err(error);
        }
        upload.multipart = None;
        Ok(())
    }

    /// After a failure the object is given up: its writer cannot know what was sent.
    async fn give_up(&mut self) {
        self.closed = true;
        self.pending.clear();
        if let Some(upload) = self.upload.take() {
            upload.abort(&self.location).await;
        }
    }
}

impl Upload {
    async fn next_part(&mut self) -> Result<()> {
        match self.parts.join_next().await {
            None => Ok(()),
            Some(Ok(sent)) => sent,
            Some(Err(panic)) => {
                Err(IcebergError::new(IcebergKind::Unexpected, "a part's task ended").with_source(panic))
            }
        }
    }

    /// Best effort: nothing refers to the object, and a lifecycle rule of the bucket ends what is left.
    async fn abort(mut self, location: &str) {
        self.parts.shutdown().await;
        if let Some(mut multipart) = self.multipart.take()
            && let Err(error) = within("give up", location, multipart.abort()).await
        {
            warn!(file = location, %error, "could not end an upload that was given up");
        }
    }
}

impl Drop for ObjectWrite {
    fn drop(&mut self) {
        let Some(upload) = self.upload.take().filter(|upload| upload.multipart.is_some()) else { return };
        let location = std::mem::take(&mut self.location);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { upload.abort(&location).await });
        }
    }
}

#[async_trait]
impl FileWrite for ObjectWrite {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.check_open()?;
        let result = self.append(bytes).await;
        if result.is_err() {
            self.give_up().await;
        }
        result
    }

    async fn close(&mut self) -> Result<()> {
        self.check_open()?;
        let result = self.finish().await;
        if result.is_err() {
            self.give_up().await;
        }
        self.closed = true;
        result
    }
}
