//! No catalog but the files: the layout of Iceberg's Hadoop catalog, for stores that can make a file only if there is none.
//!
//! A table `n.t` is the folder `n/t` of the warehouse. Its states are `metadata/v1.metadata.json`, `v2…` and so on, and
//! `metadata/version-hint.text` has the number of one of the last. Whoever makes the next file has moved the table, and of
//! two that try, one finds it there: that is all the protocol there is. The hint only saves readers a search, so it is
//! written behind the move, and is believed only as far as there is no later file.
//!
//! It does here what a REST catalog's server does elsewhere: it takes changes and conditions, and writes metadata files. So a
//! table keeps its identity when it is copied anew, and the files of its copies are in folders of their own beside its own.
//!
//! A number may be free again: when the table was dropped, or when a mover slept while more states came than are kept. So a
//! file counts only when, behind its making, the one before it is still there. (And a batch of ours counts only with the
//! mirror's row, which fences whoever has slept.)

use async_trait::async_trait;
use bytes::Bytes;
use iceberg::TableUpdate;
use iceberg::spec::{TableMetadata, TableMetadataBuildResult};
use tracing::warn;
use uuid::Uuid;

use super::tables::{Found, Move, Moved, TableCatalog};
use crate::commit::{Commit, MetadataBy, Updates};
use crate::error::{Error, ErrorKind, Result};
use crate::table::LakeTable;
use crate::warehouse::{Created, Warehouse};

/// The file with the number of a late state.
const HINT: &str = "version-hint.text";
/// What a hint says at most, so that nothing else is read for one.
const LONGEST_HINT: usize = 20;

/// Tables that are found by their folders.
pub(super) struct HadoopCatalog {
    warehouse: Warehouse,
    identity: String,
}

/// A table's folder.
struct Folder {
    location: String,
}

impl Folder {
    fn metadata(&self) -> String {
        format!("{}/metadata", self.location)
    }

    fn hint(&self) -> String {
        format!("{}/metadata/{HINT}", self.location)
    }

    fn version(&self, number: u64) -> String {
        format!("{}/metadata/v{number}.metadata.json", self.location)
    }

    /// The number of a state of this table, by its file.
    fn number(&self, file: &str) -> Option<u64> {
        number(file.strip_prefix(&self.metadata())?.strip_prefix('/')?)
    }
}

/// The number in `v7.metadata.json`.
fn number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix('v')?.strip_suffix(".metadata.json")?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

impl HadoopCatalog {
    /// The tables of a warehouse.
    pub(super) fn new(warehouse: Warehouse) -> Self {
        let identity = format!("hadoop catalog {:?}", warehouse.url());
        Self { warehouse, identity }
    }

    fn folder(&self, namespace: &str, name: &str) -> Result<Folder> {
        let plain = |part: &str| {
            !part.is_empty()
                && part.len() <= 200
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        };
        if !plain(namespace) || !plain(name) {
            let context = format!("{namespace}.{name} can't be the name of a folder");
            return Err(Error::invalid(context).with_table(namespace, name).with_hint(
                "in a catalog of type hadoop, names of schemas and tables have letters a to z, digits, _ and -; other \
                 catalogs take any name",
            ));
        }
        Ok(Folder { location: format!("{}/{namespace}/{name}", self.warehouse.url()) })
    }

    async fn exists(&self, file: &str) -> Result<bool> {
        let found = self.warehouse.file_io().exists(file).await;
        found.map_err(|error| Error::iceberg(format!("look for {file}"), error))
    }

    /// What the hint says, if it says anything.
    async fn hinted(&self, folder: &Folder) -> Result<Option<u64>> {
        let hint = folder.hint();
        if !self.exists(&hint).await? {
            return Ok(None);
        }
        let read = async { self.warehouse.file_io().new_input(&hint)?.read().await };
        let bytes = read.await.map_err(|error| Error::iceberg(format!("read {hint}"), error))?;
        let text = bytes.get(..bytes.len().min(LONGEST_HINT)).map(String::from_utf8_lossy);
        Ok(text.and_then(|text| text.trim().parse().ok()))
    }

    /// The number of a table's last state.
    async fn last(&self, folder: &Folder) -> Result<Option<u64>> {
        let hinted = match self.hinted(folder).await? {
            Some(number) if self.exists(&folder.version(number)).await? => Some(number),
            _ => {
                let names = self.warehouse.names_in(&folder.metadata()).await?;
                names.iter().filter_map(|name| number(name)).max()
            }
        };
        let Some(mut last) = hinted else { return Ok(None) };
        while self.exists(&folder.version(last + 1)).await? {
            last += 1;
        }
        Ok(Some(last))
    }

    /// A table's last state. The hint is set right on the way: whoever moved the table may have been killed before.
    async fn find(&self, folder: &Folder) -> Result<Option<Found>> {
        let Some(last) = self.last(folder).await? else { return Ok(None) };
        let found = Found::read(&self.warehouse, folder.version(last)).await?;
        if found.metadata.location() != folder.location {
            let context = format!("{} says of itself that it is in {}", found.location, found.metadata.location());
            return Err(
                Error::new(ErrorKind::Format, context).with_hint("a table of this catalog is where its name says")
            );
        }
        if self.hinted(folder).await? != Some(last) {
            self.hint_at(folder, last).await;
        }
        Ok(Some(found))
    }

    /// Makes a state, if it is not there yet.
    async fn make(&self, folder: &Folder, number: u64, metadata: &TableMetadata) -> Result<Created> {
        let json = serde_json::to_vec(metadata).map_err(|error| Error::format("write metadata").with_source(error))?;
        self.warehouse.create(&folder.version(number), Bytes::from(json)).await
    }

    /// Makes the state behind one that is known. There is none behind one that is gone: the table has been dropped, or moved
    /// so often that the state was no longer kept.
    async fn make_next(&self, folder: &Folder, known: u64, metadata: &TableMetadata) -> Result<Created> {
        let created = self.make(folder, known + 1, metadata).await?;
        // Looked at behind it: before, it could go in between.
        if created == Created::Taken || self.exists(&folder.version(known)).await? {
            return Ok(created);
        }
        self.remove(&folder.version(known + 1)).await;
        Ok(Created::Taken)
    }

    async fn hint_at(&self, folder: &Folder, number: u64) {
        let hint = folder.hint();
        let write = async { self.warehouse.file_io().new_output(&hint)?.write(number.to_string().into()).await };
        if let Err(error) = write.await {
            warn!(file = hint, %error, "could not write which state of a table is the last; readers search for it");
        }
    }

    async fn remove(&self, file: &str) {
        if let Err(error) = self.warehouse.file_io().delete(file).await {
            warn!(file, %error, "could not remove a superfluous file");
        }
    }

    /// Moves a table from the state that the mover knows.
    async fn move_one(&self, base: &LakeTable, updates: &Updates) -> Result<Moved> {
        let spec = base.spec();
        let folder = self.folder(&spec.namespace, &spec.name)?;
        let Some(location) = base.metadata_location() else { return Ok(Moved::Conflict) };
        let Some(known) = folder.number(location) else { return Ok(Moved::Conflict) };
        let before = base.metadata();
        if updates.requirements.iter().any(|requirement| requirement.check(Some(before)).is_err()) {
            return Ok(Moved::Conflict);
        }
        let builder = before.clone().into_builder(Some(location.to_owned()));
        let next = updates.updates.iter().cloned().try_fold(builder, |builder, update| update.apply(builder));
        let TableMetadataBuildResult { metadata, expired_metadata_logs, .. } = next
            .and_then(iceberg::spec::TableMetadataBuilder::build)
            .map_err(|error| Error::iceberg(format!("make the next state of {}", base.full_name()), error))?;
        match self.make_next(&folder, known, &metadata).await {
            Ok(Created::New) => self.hint_at(&folder, known + 1).await,
            Ok(Created::Taken) => return Ok(Moved::Conflict),
            Err(error) => return Ok(Moved::Unknown(error)),
        }
        for log in expired_metadata_logs.iter().filter(|log| folder.number(&log.metadata_file).is_some()) {
            self.remove(&log.metadata_file).await;
        }
        Ok(Moved::All(vec![Some(Found { location: folder.version(known + 1), metadata })]))
    }
}

#[async_trait]
impl TableCatalog for HadoopCatalog {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn metadata_by(&self) -> MetadataBy {
        MetadataBy::Server
    }

    fn moves_together(&self) -> bool {
        false
    }

    fn check_name(&self, namespace: &str, name: &str) -> Result<()> {
        self.folder(namespace, name).map(drop)
    }

    async fn location(&self, namespace: &str, name: &str) -> Result<Option<String>> {
        let folder = self.folder(namespace, name)?;
        Ok(self.last(&folder).await?.map(|last| folder.version(last)))
    }

    async fn load(&self, namespace: &str, name: &str) -> Result<Option<Found>> {
        let folder = self.folder(namespace, name)?;
        self.find(&folder).await
    }

    async fn prepare(&self, _namespace: &str) -> Result<()> {
        Ok(())
    }

    async fn create(&self, prepared: &LakeTable) -> Result<()> {
        let spec = prepared.spec();
        let folder = self.folder(&spec.namespace, &spec.name)?;
        if self.last(&folder).await?.is_some() {
            return Ok(());
        }
        let moved = TableUpdate::SetLocation { location: folder.location.clone() };
        let built = moved
            .apply(prepared.metadata().clone().into_builder(None))
            .and_then(iceberg::spec::TableMetadataBuilder::build);
        let built = built.map_err(|error| Error::iceberg(format!("make the table {}", prepared.full_name()), error))?;
        // Somebody else's first state stays.
        if self.make(&folder, 1, &built.metadata).await? == Created::New {
            self.hint_at(&folder, 1).await;
        }
        Ok(())
    }

    async fn commit(&self, moves: &[Move<'_>]) -> Moved {
        let moved = match moves {
            [Move { base, planned }] => match &planned.commit {
                Commit::Updates(updates) => self.move_one(base, updates).await,
                Commit::Location(_) => Err(Error::invalid("a plan for a catalog that writes no metadata")),
            },
            _ => Ok(Moved::Conflict),
        };
        // What fails before anything is written.
        moved.unwrap_or_else(Moved::Refused)
    }

    async fn drop_entry(&self, namespace: &str, name: &str) -> Result<()> {
        let folder = self.folder(namespace, name)?;
        let mut numbers: Vec<u64> =
            self.warehouse.names_in(&folder.metadata()).await?.iter().filter_map(|name| number(name)).collect();
        // The last goes last, and the hint behind it: until then the table is what it was.
        numbers.sort_unstable();
        for file in numbers.into_iter().map(|number| folder.version(number)).chain([folder.hint()]) {
            let deleted = self.warehouse.file_io().delete(&file).await;
            deleted.map_err(|error| Error::iceberg(format!("drop {namespace}.{name}"), error))?;
        }
        Ok(())
    }

    /// Sees that of two who make a file, one is refused: stores that don't know the condition make it twice.
    async fn ensure(&self) -> Result<()> {
        let probe = format!("{}/lakemirror/probe-{}.metadata.json", self.warehouse.url(), Uuid::now_v7().simple());
        let first = self.warehouse.create(&probe, Bytes::from_static(b"1")).await?;
        let second = self.warehouse.create(&probe, Bytes::from_static(b"2")).await;
        let deleted = self.warehouse.file_io().delete(&probe).await;
        if (first, second?) != (Created::New, Created::Taken) {
            let context = format!("the store of {} can't make a file only if there is none", self.warehouse.url());
            return Err(Error::invalid(context)
                .with_hint("two writers could not tell who was first: use another store, or another type of catalog"));
        }
        deleted.map_err(|error| Error::iceberg(format!("delete {probe}"), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_known_by_their_names() {
        assert_eq!(number("v7.metadata.json"), Some(7));
        for other in [
            "v.metadata.json",
            "v-1.metadata.json",
            "v+1.metadata.json",
            "00001-x.metadata.json",
            "v1.gz.metadata.json",
        ] {
            assert_eq!(number(other), None, "{other}");
        }
    }
}
