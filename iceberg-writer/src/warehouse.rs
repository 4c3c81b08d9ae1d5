//! Where the lake's files are.

use bytes::Bytes;
use iceberg::io::FileIO;
use url::Url;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::storage::{Files, StoreOptions};

/// How a warehouse's URL looks.
const FORMS: &str = "give it as s3://bucket/prefix, gs://bucket/prefix, \
                     abfss://container@account.dfs.core.windows.net/prefix or file:///absolute/path";

/// What became of a file that was to be made if there was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Created {
    /// It is there now.
    New,
    /// Another one has its name.
    Taken,
}

/// A place that holds the files of Iceberg tables. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Warehouse {
    root: String,
    files: Files,
    file_io: FileIO,
    guarded: bool,
}

impl Warehouse {
    /// Opens the warehouse at a URL, and sees whether files can be written, read and deleted there. A local folder is made
    /// when there is none; a bucket must be there.
    pub async fn open(url: &str, options: &StoreOptions) -> Result<Self> {
        let parsed = Url::parse(url).map_err(|error| {
            Error::invalid(format!("warehouse {url:?} is not a URL")).with_source(error).with_hint(FORMS)
        })?;
        // As written, not as the URL parser escapes it: readers open these locations as they stand in the metadata.
        let root = url.trim_end_matches('/').to_owned();
        let files = Files::of(&root, options).ok_or_else(|| {
            Error::invalid(format!("a warehouse with the scheme {}:// is not supported", parsed.scheme()))
                .with_hint(FORMS)
        })?;
        let foreign_host = parsed.host_str().is_some_and(|host| !host.is_empty());
        if matches!(files, Files::Local) && (foreign_host || parsed.path() == "/") {
            return Err(Error::invalid(format!("warehouse {url:?} does not name a local folder")).with_hint(FORMS));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() || parsed.password().is_some() {
            return Err(Error::invalid("a warehouse's URL has a bucket and a path, and nothing else").with_hint(FORMS));
        }
        let warehouse = Self { root, file_io: files.file_io(), files, guarded: false };
        warehouse.files.probe(&warehouse.root).await.map_err(|error| {
            let error = Error::iceberg(format!("use the warehouse {url}"), error);
            match (&warehouse.files, error.hint()) {
                (Files::Local, None) => error
                    .of_storage()
                    .with_hint("let the worker's operating system user own the folder, and see that its disk has room"),
                _ => error,
            }
        })?;
        Ok(warehouse)
    }

    /// Its URL, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.root
    }

    /// The same warehouse, as a place that a catalog's server may guard: it decides which files there may be.
    pub(crate) fn guarded(self) -> Self {
        Self { guarded: true, ..self }
    }

    /// Whether a catalog's server may guard it.
    pub(crate) fn is_guarded(&self) -> bool {
        self.guarded
    }

    pub(crate) fn file_io(&self) -> &FileIO {
        &self.file_io
    }

    /// Makes a file, durably, if there is none of its name. Of all that try to at once, one has [`Created::New`].
    pub(crate) async fn create(&self, path: &str, content: Bytes) -> Result<Created> {
        let made = self.files.create(path, content).await;
        let made = made.map_err(|error| Error::iceberg(format!("create {path}"), error))?;
        Ok(if made { Created::New } else { Created::Taken })
    }

    /// The names of the files in a folder, hidden ones too. None when there is no such folder.
    pub(crate) async fn names_in(&self, folder: &str) -> Result<Vec<String>> {
        self.files.names_in(folder).await.map_err(|error| Error::iceberg(format!("list {folder}"), error))
    }

    /// The location of a new table: its name can be used again, so that the table's UUID is part of it.
    pub(crate) fn table_location(&self, namespace: &str, name: &str, uuid: Uuid) -> String {
        let id = uuid.simple().to_string();
        // The end of a version 7 UUID is its random part.
        format!("{}/{}/{}-{}", self.root, path_segment(namespace), path_segment(name), &id[id.len() - 8..])
    }
}

/// A name as a part of a path that every reader and shell takes as it is.
fn path_segment(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_-".contains(c) { c } else { '_' };
    name.chars().map(plain).take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    async fn refused(url: &str) -> Error {
        Warehouse::open(url, &StoreOptions::default()).await.unwrap_err()
    }

    #[tokio::test]
    async fn what_is_no_warehouse_is_refused() {
        for bad in ["", "/tmp/x", "ftp://h/x", "file://host/x", "file:///", "s3:///x", "s3://b/x?versionId=1"] {
            let error = refused(bad).await;
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}");
            assert!(error.hint().is_some(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_folder_that_can_not_be_made_is_an_error_with_a_hint() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), b"").unwrap();
        let error = refused(&format!("file://{}/file/lake", folder.path().display())).await;
        assert_eq!(error.kind(), ErrorKind::Storage);
        assert!(error.hint().is_some());
    }

    #[test]
    fn names_become_safe_path_segments() {
        assert_eq!(path_segment("a b/..%ö"), "a_b_____");
    }
}
