//! Tables that are to come: what a copy is prepared as, and where.
//!
//! Nothing of it is in the catalog before the copy is committed, but where the catalog vends the keys of the store: they come
//! with a table, so there it is made first, empty, and the copy lies in its folder.

use uuid::Uuid;

use super::mirror::{MirrorCatalog, Tables};
use super::tables::Found;
use crate::commit::MetadataBy;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Format;
use crate::schema::TableSpec;
use crate::table::LakeTable;

impl MirrorCatalog {
    /// What a prepared table is to take the place of.
    async fn replaced(&self, spec: &TableSpec) -> Result<Option<String>> {
        match &self.tables {
            // It is looked for when the copy is committed, for it changes until then.
            Tables::Apart(tables) if tables.metadata_by() == MetadataBy::Server => {
                tables.prepare(&spec.namespace).await?;
                if let Some(found) = tables.load(&spec.namespace, &spec.name).await? {
                    found.may_be_replaced(spec)?;
                }
                Ok(None)
            }
            _ => {
                let Some(location) = self.metadata_location(spec).await? else { return Ok(None) };
                match Found::read(&self.warehouse, location.clone()).await {
                    Ok(found) => found.may_be_replaced(spec)?,
                    // Of what is gone, or is no table, nobody can have rows.
                    Err(error) if error.kind() == ErrorKind::Format => {}
                    Err(error) => return Err(error),
                }
                Ok(Some(location))
            }
        }
    }

    pub(super) async fn prepare_as(&self, spec: TableSpec, format: Format, uuid: Option<Uuid>) -> Result<LakeTable> {
        let replaces = self.replaced(&spec).await?;
        let prepare = |uuid, there: Option<&str>| {
            LakeTable::prepare_at(&self.warehouse, spec.clone(), format, uuid, replaces.clone(), there)
        };
        let tables = match &self.tables {
            Tables::Apart(tables) if tables.metadata_by() == MetadataBy::Server => tables,
            _ => return prepare(uuid, None),
        };
        let mut found = tables.load(&spec.namespace, &spec.name).await?;
        let mut prepared = prepare(uuid, found.as_ref().map(|found| found.metadata.location()))?;
        if self.warehouse.is_vended() {
            // Its keys come with the table, so it is made before its first copy's files are.
            if found.is_none() {
                tables.create(&prepared).await?;
                found = tables.load(&spec.namespace, &spec.name).await?;
            }
            let made = found.as_ref().ok_or_else(|| not_made(&prepared))?;
            self.warehouse.probe(made.metadata.location()).await?;
            prepared = prepare(Some(prepared.uuid()), Some(made.metadata.location()))?;
        }
        match found {
            // It takes the place of the table that is there, which keeps its specs and orders.
            Some(found) => prepared.numbered_like(&found.metadata),
            None => Ok(prepared),
        }
    }

    /// Sees that the store can be used for a table, where the catalog vends its keys and has the table. `None`: only its
    /// first copy will tell.
    ///
    /// # Errors
    /// [`ErrorKind::Catalog`] when nothing is vended, [`ErrorKind::Storage`] when it is of no use.
    pub async fn check_vended(&self, namespace: &str, name: &str) -> Result<Option<()>> {
        let Tables::Apart(tables) = &self.tables else { return Ok(Some(())) };
        if !self.warehouse.is_vended() {
            return Ok(Some(()));
        }
        match tables.load(namespace, name).await? {
            Some(found) => self.warehouse.probe(found.metadata.location()).await.map(Some),
            None => Ok(None),
        }
    }
}

/// The error of a table that is not there although the catalog said that it had made it.
pub(super) fn not_made(table: &LakeTable) -> Error {
    let context = format!("the catalog has not got {} a moment after it was made", table.full_name());
    Error::new(ErrorKind::Unavailable, context)
}
