//! A table as readers get it: at the LSN to which changes have been applied, or as Iceberg has it.
//!
//! Both share files and fresh rows with the table and copy neither, but the committed one makes the deleted positions that
//! Iceberg has from those that the table has (I1: what is not committed is not in it).

use std::sync::Arc;

use arrow_array::RecordBatch;
use iceberg_writer::TableSpec;
use lake_protocol::Alternatives;

use crate::Result;

use super::files::FileState;
use super::mirrored::MirroredTable;
use super::pruning::Pruning;

/// A table at one LSN, shared with readers.
#[derive(Debug, Clone)]
pub(crate) struct TablePin {
    pub(crate) relation: u32,
    pub(crate) spec: Arc<TableSpec>,
    pub(crate) files: Vec<FileState>,
    /// Files that were left out.
    pub(crate) pruned: usize,
    pub(crate) fresh: Vec<RecordBatch>,
}

impl MirroredTable {
    /// The files as the current Iceberg snapshot has them, but those that have no row which counts; and how many those are.
    pub(super) fn committed_files(&mut self, pruning: &Pruning<'_>) -> (Vec<FileState>, usize) {
        let committed = self.files.len().saturating_sub(self.delta.staged.len());
        let numbers = self.files.that_may_hold(pruning, committed);
        let as_committed = |number: u32| {
            let mut file = self.files.get(number)?.clone();
            if let Some(pending) = self.delta.deletes.get(&number) {
                file.deleted = Arc::new(&*file.deleted - pending);
            }
            Some(file)
        };
        let files: Vec<_> = numbers.into_iter().filter_map(as_committed).collect();
        let pruned = committed - files.len();
        (files, pruned)
    }

    /// The table at the LSN to which changes have been applied, as far as rows of it may count.
    pub(crate) fn pin(&mut self, wanted: &Alternatives) -> Result<TablePin> {
        let fresh = self.delta.live_batches()?;
        let pruning = Pruning::new(&self.lake, &self.spec, wanted);
        let all = self.files.len();
        let numbers = self.files.that_may_hold(&pruning, all);
        let files: Vec<_> = numbers.into_iter().filter_map(|number| self.files.get(number).cloned()).collect();
        let (spec, pruned) = (Arc::clone(&self.spec), all - files.len());
        Ok(TablePin { relation: self.relation, spec, files, pruned, fresh })
    }

    /// The table as Iceberg has it, as far as rows of it may count.
    pub(crate) fn pin_committed(&mut self, wanted: &Alternatives) -> TablePin {
        let spec = Arc::clone(&self.committed_spec);
        let pruning = Pruning::new(&self.lake, &spec, wanted);
        let (files, pruned) = match &self.before_truncate {
            Some(before) => {
                let files: Vec<_> = before.iter().filter(|file| pruning.may_hold(file)).cloned().collect();
                let pruned = before.len() - files.len();
                (files, pruned)
            }
            None => self.committed_files(&pruning),
        };
        TablePin { relation: self.relation, spec, files, pruned, fresh: Vec::new() }
    }
}
