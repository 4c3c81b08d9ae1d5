//! Which rows are gone, in the form that a table's format has for it.

use std::collections::BTreeMap;

use roaring::RoaringTreemap;
use uuid::Uuid;

use crate::data_file::WrittenFile;
use crate::deletion_vectors::write_vectors;
use crate::error::Result;
use crate::format::Format;
use crate::position_deletes::write_position_deletes;
use crate::table::LakeTable;
use crate::warehouse::Warehouse;

/// Writes the deleted positions of a table's data files, for [`TableChange::deletes`](crate::TableChange::deletes). Nothing
/// is written when there are none.
///
/// In a table of format version 2 they are added to those that were deleted before. In one of version 3 they take the place
/// of what was deleted in these files: `deleted` has *all* that is gone of each file in it, whenever it went.
pub async fn write_deletes(
    warehouse: &Warehouse,
    table: &LakeTable,
    epoch: i64,
    attempt: Uuid,
    deleted: &BTreeMap<String, RoaringTreemap>,
) -> Result<Vec<WrittenFile>> {
    let files: Vec<_> = deleted.iter().filter(|(_, positions)| !positions.is_empty()).collect();
    if files.is_empty() {
        return Ok(Vec::new());
    }
    match table.format() {
        Format::V2 => Ok(vec![write_position_deletes(warehouse, table, epoch, attempt, &files).await?]),
        Format::V3 => write_vectors(warehouse, table, epoch, attempt, &files).await,
    }
}
