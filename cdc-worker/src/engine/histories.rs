//! Where the histories of tables are: what there is of one when a copy begins or a session starts, and what is in its way.
//!
//! A history outlives its mirror: whatever has its name and its columns is gone on with, also after the table was copied
//! anew, or was not mirrored for a while. Nothing else is touched, and nothing else takes its name.

use std::sync::Arc;

use iceberg_writer::{Catalog, LakeTable, MirrorCatalog, TableSpec};
use uuid::Uuid;

use crate::Result;
use crate::error::{COPY_ANEW, Error, ErrorKind};
use crate::registry::RegisteredTable;
use crate::source::copy::Base;
use crate::source::relation::SourceTable;
use crate::table::{History, history, remark};

use super::entry::Entry;
use super::session::Session;
use super::start::own_failure;

/// The table of this name as our commits left it; `None`: there is none.
async fn find(catalog: &MirrorCatalog, named: TableSpec) -> Result<Option<LakeTable>> {
    let (namespace, name) = (named.namespace.clone(), named.name.clone());
    let by_remark = |text: &str| remark::read(text, &namespace, &name).map(|(spec, _)| spec);
    match catalog.load_remarked(named, &by_remark).await {
        // It is somebody else's, or is not as we left it.
        Err(error) if error.table().is_some() => Err(own_failure(&error)),
        found => Ok(found?),
    }
}

/// The history that a streaming table of these columns has, if it is to have one.
///
/// # Errors
/// [`ErrorKind::Table`] when it is gone, or is another.
pub(super) async fn reload(
    catalog: &MirrorCatalog,
    mirror: &str,
    registered: &RegisteredTable,
    table: &TableSpec,
) -> Result<Option<Box<History>>> {
    if !registered.history {
        return Ok(None);
    }
    let gone = |what: &str| {
        let name = history::name_of(&table.name);
        Error::new(ErrorKind::Table, format!("the history {}.{name} {what}", table.namespace)).with_hint(COPY_ANEW)
    };
    let lake =
        find(catalog, history::described(table, None)?).await?.ok_or_else(|| gone("is gone from the catalog"))?;
    match catalog.check(&lake, mirror).await {
        Err(error) if error.table().is_some() => return Err(own_failure(&error)),
        checked => checked?,
    }
    let history = History::new(lake);
    if !history.has_columns_of(table) {
        return Err(gone("has other columns than the table"));
    }
    Ok(Some(Box::new(history)))
}

/// Removes the folder of a history that was to begin with the copy into this Iceberg table, and did not.
///
/// # Errors
/// As [`Catalog::discard_prepared`].
pub(super) async fn discard_begun(catalog: &MirrorCatalog, table: &TableSpec, uuid: Uuid) -> Result<()> {
    let named = TableSpec { name: history::name_of(&table.name), ..table.clone() };
    Ok(catalog.discard_prepared(&named, history::uuid_beside(uuid)).await?)
}

impl Session {
    /// Looks for a table's history, and for what has its name, or is a history and has the table's.
    ///
    /// # Errors
    /// [`ErrorKind::Table`] when one is in the other's way.
    pub(super) async fn find_history(
        &self,
        registered: &RegisteredTable,
        source: &SourceTable,
    ) -> Result<Option<LakeTable>> {
        let (namespace, name) = registered.lake_name();
        if history::may_be_named(name) {
            // Of what else may be there, its copy takes the place.
            let there = find(&self.catalog, source.spec.clone()).await.unwrap_or_default();
            if there.is_some_and(|there| history::is_history(there.spec())) {
                return Err(name_taken(namespace, name, "the history of a table"));
            }
        }
        if !source.history && !history::may_be_named(name) {
            return Ok(None);
        }
        let wanted = history::name_of(name);
        for other in self.config.registry(&self.control).tables().await? {
            if other.relation == registered.relation || other.lake_namespace != namespace {
                continue;
            }
            if source.history && other.lake_table == wanted {
                return Err(name_taken(namespace, &wanted, "the mirror of a table"));
            }
            if other.history && history::name_of(&other.lake_table) == name {
                return Err(name_taken(namespace, name, "the history of a table"));
            }
        }
        if !source.history {
            return Ok(None);
        }
        let Some(lake) = find(&self.catalog, history::described(&source.spec, None)?).await? else { return Ok(None) };
        if !history::is_history(lake.spec()) {
            return Err(name_taken(namespace, &wanted, "in the catalog, and no history"));
        }
        // What a copy that was interrupted has left behind in it.
        self.sweeper.look_for_strays(vec![lake.clone()], self.epoch);
        let spec = history::described(&source.spec, Some(&lake))?;
        Ok(Some(lake.evolved(spec, String::new())))
    }

    /// What a copy into the Iceberg table `uuid` begins the table's history with, in the table that was found, or in a new one.
    ///
    /// # Errors
    /// As [`Catalog::prepare_again`].
    pub(super) async fn begin_history(
        &self,
        source: &SourceTable,
        found: Option<LakeTable>,
        uuid: Uuid,
    ) -> Result<Option<Arc<Base>>> {
        if !source.history {
            return Ok(None);
        }
        let lake = match found {
            Some(lake) => lake,
            None => {
                let spec = history::described(&source.spec, None)?;
                self.catalog.prepare_again(spec, self.config.lake.format, history::uuid_beside(uuid)).await?
            }
        };
        Ok(Some(Arc::new(Base::new(lake))))
    }

    /// A table is to have no history any more: what there is of it stays as it is.
    pub(super) fn end_history(&mut self, relation: u32) {
        let ended = match self.tables.get_mut(&relation).map(|table| &mut table.entry) {
            Some(Entry::Streaming(streaming)) => streaming.history.take(),
            // When it streams.
            _ => None,
        };
        if let Some(history) = ended {
            self.catalog.abandon(history.staged_paths());
            tracing::info!(table = self.shown(relation), "its history ends");
        }
    }
}

fn name_taken(namespace: &str, name: &str, by: &str) -> Error {
    Error::new(ErrorKind::Table, format!("the name {namespace}.{name} is taken in the lake: it is {by}")).with_hint(
        "do without the history, or let the other table have another name; one that is only left over is taken out by \
         DELETE FROM lake_catalog.iceberg_tables WHERE table_name = '…'",
    )
}
