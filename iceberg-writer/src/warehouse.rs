//! Where the lake's files are.

use std::fs;

use iceberg::io::{FileIO, FileIOBuilder};
use std::sync::Arc;
use url::Url;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{LocalStorageFactory, create_folder, list_folder, local_path};

/// A place that holds the files of Iceberg tables. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Warehouse {
    root: String,
    file_io: FileIO,
}

impl Warehouse {
    /// Opens the warehouse at a URL, `file:///absolute/path`; its folder is made when there is none.
    pub fn open(url: &str) -> Result<Self> {
        let parsed = Url::parse(url).map_err(|error| {
            Error::invalid(format!("warehouse {url:?} is not a URL"))
                .with_source(error)
                .with_hint("give it as file:///absolute/path")
        })?;
        if parsed.scheme() != "file" {
            return Err(Error::invalid(format!(
                "a warehouse with the scheme {}:// is not supported yet",
                parsed.scheme()
            ))
            .with_hint("give it as file:///absolute/path"));
        }
        if parsed.host_str().is_some_and(|host| !host.is_empty()) || parsed.path() == "/" {
            return Err(Error::invalid(format!("warehouse {url:?} does not name a local folder"))
                .with_hint("give it as file:///absolute/path"));
        }
        // As written, not as the URL parser escapes it: readers open these locations as they stand in the metadata.
        let root = url.trim_end_matches('/').to_owned();
        let folder = local_path(&root).map_err(|error| Error::iceberg("open the warehouse", error))?;
        let probe = folder.join(format!(".probe-{}", Uuid::now_v7().simple()));
        create_folder(&folder).and_then(|()| fs::write(&probe, b"")).and_then(|()| fs::remove_file(&probe)).map_err(
            |error| {
                Error::new(ErrorKind::Storage, format!("write to the warehouse {url}"))
                    .with_source(error)
                    .with_hint("let the worker's operating system user own the folder, and see that its disk has room")
            },
        )?;
        let file_io = FileIOBuilder::new(Arc::new(LocalStorageFactory)).build();
        Ok(Self { root, file_io })
    }

    /// Its URL, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.root
    }

    pub(crate) fn file_io(&self) -> &FileIO {
        &self.file_io
    }

    /// The names of the files in a folder, hidden ones too. None when there is no such folder.
    pub(crate) async fn names_in(&self, folder: &str) -> Result<Vec<String>> {
        list_folder(folder).await.map_err(|error| Error::iceberg(format!("list {folder}"), error))
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

    #[test]
    fn only_local_folders_are_opened() {
        for bad in ["", "/tmp/x", "s3://bucket/x", "file://host/x", "file:///"] {
            let error = Warehouse::open(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}");
            assert!(error.hint().is_some(), "{bad}");
        }
        assert!(Warehouse::open("s3://b/x").unwrap_err().to_string().contains("not supported yet"));
    }

    #[test]
    fn a_folder_that_can_not_be_made_is_an_error_with_a_hint() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), b"").unwrap();
        let error = Warehouse::open(&format!("file://{}/file/lake", folder.path().display())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Storage);
        assert!(error.hint().is_some());
    }

    #[test]
    fn names_become_safe_path_segments() {
        assert_eq!(path_segment("a b/..%ö"), "a_b_____");
    }
}
