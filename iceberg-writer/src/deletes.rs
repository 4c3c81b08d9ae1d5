//! Which rows are gone, in the form that a table's format has for it.

use std::collections::BTreeMap;

use roaring::RoaringTreemap;
use uuid::Uuid;

use crate::data_file::WrittenFile;
use crate::deletion_vectors::write_vectors;
use crate::error::Result;
use crate::format::Format;
use crate::partition::Partition;
use crate::position_deletes::write_position_deletes;
use crate::table::LakeTable;
use crate::warehouse::Warehouse;

/// Deleted rows of a data file.
#[derive(Debug, Clone)]
pub struct DeletedRows {
    /// The partition of the file.
    pub partition: Partition,
    /// Their positions.
    pub positions: RoaringTreemap,
}

/// Writes the deleted positions of a table's data files, by path, for [`TableChange::deletes`](crate::TableChange::deletes). Nothing
/// is written when there are none.
///
/// In a table of format version 2 they are added to those that were deleted before. In one of version 3 they take the place
/// of what was deleted in these files: `deleted` has *all* that is gone of each file in it, whenever it went.
pub async fn write_deletes(
    warehouse: &Warehouse,
    table: &LakeTable,
    epoch: i64,
    attempt: Uuid,
    deleted: &BTreeMap<String, DeletedRows>,
) -> Result<Vec<WrittenFile>> {
    let files: Vec<_> = deleted.iter().filter(|(_, rows)| !rows.positions.is_empty()).collect();
    if files.is_empty() {
        return Ok(Vec::new());
    }
    match table.format() {
        Format::V2 => write_position_deletes(warehouse, table, epoch, attempt, &files).await,
        Format::V3 => write_vectors(warehouse, table, epoch, attempt, &files).await,
    }
}
