//! The identities of rows, read back from data files: what a position index is made of when there is none.

use futures_util::TryStreamExt as _;
use iceberg_writer::{LakeTable, Warehouse};

use crate::Result;
use crate::decode::row::StoredKeys;
use crate::table::RowIdentity;

/// Gives each row of a data file and its identity, in the file's order.
///
/// # Errors
/// [`crate::ErrorKind::Lake`] when the file cannot be read; what `each` gives.
pub(crate) async fn each_stored_key(
    warehouse: &Warehouse,
    lake: &LakeTable,
    identity: RowIdentity,
    path: &str,
    mut each: impl FnMut(u32, &[u8]) -> Result<()>,
) -> Result<()> {
    let columns = identity.columns(lake.spec());
    let mut key = Vec::new();
    let mut row = 0;
    let mut batches = iceberg_writer::scan_columns(warehouse, lake, path, &columns).await?;
    while let Some(batch) = batches.try_next().await? {
        let keys = StoredKeys::of(&batch, lake.spec(), &columns);
        for at in 0..batch.num_rows() {
            keys.write(at, &mut key)?;
            each(row, &key)?;
            row += 1;
        }
    }
    Ok(())
}
