//! What a catalog of tables has to be able to do for a mirror, whatever kind it is.
//!
//! Two things are all that is asked of it: that a table can be moved to its next state only from the one that the mover
//! knows, and that a table's present state can be read. Everything else, above all that several tables move as one and that
//! nothing moves twice, is the mirror's business ([`super::redo`]).

use async_trait::async_trait;
use iceberg::spec::TableMetadata;

use crate::commit::{MetadataBy, Planned};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::TableSpec;
use crate::table::{Checkpoint, LakeTable};
use crate::warehouse::Warehouse;

/// What a catalog has under a table's name.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) location: String,
    pub(crate) metadata: TableMetadata,
}

impl Found {
    /// Reads the metadata that a catalog only has the place of.
    pub(crate) async fn read(warehouse: &Warehouse, location: String) -> Result<Self> {
        let metadata = TableMetadata::read_from(warehouse.file_io(), &location).await;
        let metadata = metadata.map_err(|error| Error::iceberg(format!("read the metadata {location}"), error))?;
        Ok(Self { location, metadata })
    }

    /// Makes sure that another copy may take the place of it: that a mirror made it, or that it has no rows.
    pub(crate) fn may_be_replaced(&self, spec: &TableSpec) -> Result<()> {
        if Checkpoint::of(&self.metadata).is_some() || self.metadata.current_snapshot().is_none() {
            return Ok(());
        }
        let TableSpec { namespace, name, .. } = spec;
        let context = format!("the catalog has a table {namespace}.{name} that no mirror made");
        Err(Error::new(ErrorKind::ForeignChange, context).with_table(namespace, name).with_hint(
            "mirror the table under another name, or take the one that is there out of the catalog, if nobody needs it",
        ))
    }
}

/// A table on its way from one state to the next.
#[derive(Clone, Copy)]
pub(crate) struct Move<'a> {
    pub(crate) base: &'a LakeTable,
    pub(crate) planned: &'a Planned,
}

/// What became of some moves.
#[derive(Debug)]
pub(crate) enum Moved {
    /// All of them happened. What the catalog then has of each, where it says so; otherwise it is what was planned.
    All(Vec<Option<Found>>),
    /// A table was not where it should be, and none has moved.
    Conflict,
    /// None has moved, nor will.
    Refused(Error),
    /// They may have happened, or may still.
    Unknown(Error),
}

/// A catalog of tables.
#[async_trait]
pub(crate) trait TableCatalog: Send + Sync {
    /// Says which catalog it is, in words without secrets, the same at every start.
    fn identity(&self) -> &str;

    /// Who writes a table's metadata file.
    fn metadata_by(&self) -> MetadataBy;

    /// Whether [`Self::commit`] takes more than one table at a time.
    fn moves_together(&self) -> bool;

    /// Whether that is certain: that nobody has ever moved some of a batch's tables by a request of their own.
    fn always_moved_together(&self) -> bool {
        self.moves_together()
    }

    /// Whether a table can have this name.
    fn check_name(&self, _namespace: &str, _name: &str) -> Result<()> {
        Ok(())
    }

    /// The place of a table's metadata, where that is less work than [`Self::load`].
    async fn location(&self, namespace: &str, name: &str) -> Result<Option<String>>;

    /// What is there of a table.
    async fn load(&self, namespace: &str, name: &str) -> Result<Option<Found>>;

    /// Makes a namespace, before the files of a table in it are written: a server may keep the one where the others are.
    async fn prepare(&self, namespace: &str) -> Result<()>;

    /// Makes a table, without rows, where the catalog can only move tables that it has. One that is there already stays.
    async fn create(&self, prepared: &LakeTable) -> Result<()>;

    /// Moves tables, all or none: one, unless it [moves several together](Self::moves_together).
    async fn commit(&self, moves: &[Move<'_>]) -> Moved;

    /// Takes a table out. Its files stay.
    async fn drop_entry(&self, namespace: &str, name: &str) -> Result<()>;

    /// Makes what the catalog needs for itself, and sees that it answers.
    async fn ensure(&self) -> Result<()>;
}
