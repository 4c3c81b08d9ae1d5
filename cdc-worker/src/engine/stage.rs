//! Files written before their transaction ends, so that memory does not grow with it (I9).
//!
//! Nobody sees them early: the newest state is pinned and committed between transactions only, and a pin of what Iceberg
//! has leaves them out. A session that ends in the middle of a transaction leaves them behind, named by nothing; the next
//! session removes them and reads the transaction anew.

use arrow_array::RecordBatch;
use iceberg_writer::{Arranged, DataFileWriter, LakeTable, Part, Warehouse};
use uuid::Uuid;

use crate::Result;
use crate::error::{Error, ErrorKind};
use crate::table::WrittenRows;

use super::entry::Streaming;
use super::session::Session;

impl Session {
    /// Bytes of changes in memory, of tables that stream and of tables that catch up.
    fn pending_bytes(&self) -> u64 {
        let changed = self.changed.iter().filter_map(|relation| self.tables.get(relation));
        let following = changed.filter_map(|table| table.entry.following());
        following.map(Streaming::pending_bytes).sum()
    }

    /// Makes room in memory, if that is needed: the largest tables' rows go into files until half of the budget is free,
    /// so that a transaction over many tables does not stage a few rows at a time.
    pub(super) async fn make_room(&mut self) -> Result<()> {
        let (budget, file_bytes) = (self.config.commit.max_bytes, self.config.lake.file_bytes);
        if self.pending_bytes() < budget {
            return Ok(());
        }
        // Once a table at most, whatever an empty one counts for.
        for _ in 0..self.tables.len() {
            if self.pending_bytes() <= budget / 2 {
                break;
            }
            let following = self.tables.values_mut().filter_map(|table| table.entry.following_mut());
            let Some(streaming) = following.max_by_key(|streaming| streaming.pending_bytes()) else { break };
            let table = &mut streaming.table;
            let batches = table.fresh_batches()?;
            let relation = table.relation;
            let written =
                write_rows(&self.warehouse, &table.lake, self.epoch, Uuid::now_v7(), file_bytes, &batches).await;
            let written = match written {
                Ok(written) => written,
                Err(error) if error.kind() == ErrorKind::Table => {
                    self.fail_table(relation, error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            tracing::debug!(table = relation, rows = written.files.iter().map(|file| file.rows).sum::<u64>(), "staged");
            table.stage(written)?;
            if let Some(history) = &mut streaming.history {
                let (batches, lake) = (history.fresh_batches()?, &history.lake);
                let written =
                    write_rows(&self.warehouse, lake, self.epoch, Uuid::now_v7(), file_bytes, &batches).await?;
                history.stage(written.files);
            }
        }
        Ok(())
    }
}

/// The fresh rows into files of bounded size, as the table is to be laid out.
pub(super) async fn write_rows(
    warehouse: &Warehouse,
    lake: &LakeTable,
    epoch: i64,
    attempt: Uuid,
    file_bytes: usize,
    batches: &[RecordBatch],
) -> Result<WrittenRows> {
    if batches.is_empty() {
        return Ok(WrittenRows::default());
    }
    let arranged = Arranged::new(lake, batches).map_err(Error::of_rows)?;
    let mut written = WrittenRows { files: Vec::new(), places: arranged.places() };
    let create = |part: &Part, files: usize| {
        let ordinal = u32::try_from(files).unwrap_or(u32::MAX);
        let writer = DataFileWriter::create(warehouse, lake, epoch, attempt, ordinal);
        writer.in_partition(&part.partition).in_order(arranged.is_sorted())
    };
    for part in arranged.parts() {
        let mut writer: Option<DataFileWriter> = None;
        for batch in arranged.batches_of(part) {
            let open = writer.get_or_insert_with(|| create(part, written.files.len()));
            open.write(&batch?).await?;
            if open.bytes_written() >= file_bytes
                && let Some(full) = writer.take()
            {
                written.files.extend(full.close().await?);
            }
        }
        if let Some(last) = writer {
            written.files.extend(last.close().await?);
        }
    }
    Ok(written)
}
