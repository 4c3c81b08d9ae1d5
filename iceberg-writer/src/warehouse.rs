//! Where the lake's files are.

use std::sync::Arc;

use bytes::Bytes;
use iceberg::io::FileIO;
use url::Url;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::storage::{Files, StoreOptions, Vault};

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
        let (root, parsed) = root_of(url)?;
        let files = Files::of(&root, options).ok_or_else(|| {
            Error::invalid(format!("a warehouse with the scheme {}:// is not supported", parsed.scheme()))
                .with_hint(FORMS)
        })?;
        if parsed.scheme() == "az" {
            let message = format!("warehouse {url:?} would be read by few: most Iceberg readers do not know az://");
            return Err(Error::invalid(message).with_hint(FORMS));
        }
        let foreign_host = parsed.host_str().is_some_and(|host| !host.is_empty());
        if matches!(files, Files::Local) && (foreign_host || parsed.path() == "/") {
            return Err(Error::invalid(format!("warehouse {url:?} does not name a local folder")).with_hint(FORMS));
        }
        check_plain(&parsed)?;
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

    /// The warehouse at a URL in S3, of which a REST catalog vends the keys (see
    /// [`RestSettings::vended_credentials`](crate::RestSettings::vended_credentials)), a table's with the table. Nothing is
    /// tried yet: whether files can be written, read and deleted is seen in the folder of each table before it is copied.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid): another kind of store, or settings that name a key.
    pub fn vended(url: &str, options: &StoreOptions) -> Result<Self> {
        let (root, parsed) = root_of(url)?;
        check_plain(&parsed)?;
        let files = Files::vended(&root, options).map_err(|error| {
            Error::iceberg(format!("use the warehouse {url}"), error).with_hint(
                "with catalog.vended_credentials the warehouse is s3://bucket/prefix, and the section store has no key: \
                 endpoint, region, path_style and allow_http at most",
            )
        })?;
        Ok(Self { root, file_io: files.file_io(), files, guarded: false })
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

    /// The keys that a catalog vends, where it does.
    pub(crate) fn vault(&self) -> Option<Arc<Vault>> {
        self.files.vault()
    }

    /// Whether a catalog vends the keys.
    pub(crate) fn is_vended(&self) -> bool {
        self.vault().is_some()
    }

    /// Whether files can be made, read and deleted in a table's folder.
    pub(crate) async fn probe(&self, folder: &str) -> Result<()> {
        let probed = self.files.probe_table(folder).await;
        probed.map_err(|error| Error::iceberg(format!("use the table's folder {folder}"), error))
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

    /// Where a table and a copy of its rows lie: its name can be used again, so that the copy's UUID is part of it.
    ///
    /// Keys that a catalog vends are for a table's folder, as the catalog has it. Then the copies of a table all lie in
    /// it, also those that take the place of an earlier one: `there` is that folder, where the catalog has the table.
    pub(crate) fn place(&self, namespace: &str, name: &str, uuid: Uuid, there: Option<&str>) -> Place {
        let id = uuid.simple().to_string();
        // The end of a version 7 UUID is its random part.
        let id = &id[id.len() - 8..];
        let own = || format!("{}/{}/{}-{id}", self.root, path_segment(namespace), path_segment(name));
        if !self.is_vended() {
            return Place { copy: own(), table: own() };
        }
        let table = there.map_or_else(own, str::to_owned);
        Place { copy: format!("{table}/{COPIES}/{id}"), table }
    }
}

/// The folder of a table's copies, in a table's folder. That of its data, for there are stores that take no other.
const COPIES: &str = "data";

/// Where a table's metadata is that has its copies in its folder; `None`: the copy is no such one.
pub(crate) fn table_of_copy<'a>(copy: &'a str, table: &str) -> Option<&'a str> {
    let id = copy.strip_prefix(table)?.strip_prefix('/')?.strip_prefix(COPIES)?.strip_prefix('/')?;
    (!id.contains('/')).then(|| &copy[..table.len()])
}

/// Where a table and a copy of its rows lie.
pub(crate) struct Place {
    /// What the catalog calls the table's location.
    pub(crate) table: String,
    /// The folder of the copy's files.
    pub(crate) copy: String,
}

/// A warehouse's URL, as it is used and as it was understood.
fn root_of(url: &str) -> Result<(String, Url)> {
    let parsed = Url::parse(url).map_err(|error| {
        Error::invalid(format!("warehouse {url:?} is not a URL")).with_source(error).with_hint(FORMS)
    })?;
    // As written, not as the URL parser escapes it: readers open these locations as they stand in the metadata.
    Ok((url.trim_end_matches('/').to_owned(), parsed))
}

fn check_plain(parsed: &Url) -> Result<()> {
    if parsed.query().is_some() || parsed.fragment().is_some() || parsed.password().is_some() {
        return Err(Error::invalid("a warehouse's URL has a bucket and a path, and nothing else").with_hint(FORMS));
    }
    Ok(())
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
    fn with_vended_keys_all_copies_lie_in_the_tables_folder() {
        let options = StoreOptions::default();
        let warehouse = Warehouse::vended("s3://b/w/", &options).unwrap();
        let first = warehouse.place("n", "t", Uuid::from_u128(0x12), None);
        assert_eq!((&*first.table, &*first.copy), ("s3://b/w/n/t-00000012", "s3://b/w/n/t-00000012/data/00000012"));
        let next = warehouse.place("n", "t", Uuid::from_u128(0x34), Some("s3://b/theirs"));
        assert_eq!((&*next.table, &*next.copy), ("s3://b/theirs", "s3://b/theirs/data/00000034"));
        assert_eq!(table_of_copy(&next.copy, &next.table), Some("s3://b/theirs"));
        for other in ["s3://b/theirs", "s3://b/theirs2/data/00000034", "s3://b/theirs/data/a/b"] {
            assert_eq!(table_of_copy(other, "s3://b/theirs"), None, "{other}");
        }
        for (url, options) in [
            ("file:///w", options.clone()),
            ("gs://b/w", options.clone()),
            ("s3://b/w", StoreOptions { profile: Some("p".to_owned()), ..options }),
        ] {
            let error = Warehouse::vended(url, &options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{url}: {error}");
            assert!(
                error.hint().is_some_and(|hint| hint.contains("vended_credentials") && !hint.contains("  ")),
                "{url}"
            );
        }
    }

    #[test]
    fn names_become_safe_path_segments() {
        assert_eq!(path_segment("a b/..%ö"), "a_b_____");
    }
}
