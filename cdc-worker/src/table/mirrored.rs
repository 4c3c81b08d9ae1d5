//! A table that streams: changes go in, pins and commits come out.
//!
//! Its rows are in files that Iceberg has, in *staged* files that the next commit brings it (the initial copy's, and what
//! a large transaction had no room for in memory), and in the delta. The staged ones are always the last of `files`: that
//! is how the table as Iceberg has it, which may be pinned at any time, is told from the table as it is, which is pinned
//! and committed between transactions only (I1). Staging changes where rows are, never which rows there are, so it may
//! happen in the middle of one.
//!
//! Changes are applied, and pins and commits made, by values alone, except that the index is asked (see the module above).

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use iceberg_writer::{DeletedRows, Format, LakeTable, Layout, Rewrite, TableSpec, WrittenFile};
use roaring::RoaringTreemap;

use crate::Result;
use crate::decode::message::{Cell, Cells, Tuple};
use crate::decode::row::{OldRow, key_of_cells};
use crate::error::{COPY_ANEW, Error, ErrorKind};

use super::columns::Seen;
use super::compaction::Compaction;
use super::delta::{Delta, insert_shared};
use super::files::{DataFiles, FileState};
use super::history::{History, Operation};
use super::identity::RowIdentity;
use super::index::{IndexWriter, Position, PositionIndex};
use super::keys::Fate;
use super::overlap::Overlap;
use super::pruning::Pruning;
use super::remark;

/// What applying a change came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Done,
    /// An unchanged TOASTed value lies in this row of a data file: read it, then apply the change again with it.
    NeedsOldRow(Position),
    /// An unchanged TOASTed value is not in the table, for its row was not copied before the change: the newest
    /// snapshot of the copy has it, if it has the row.
    NeedsSourceRow,
}

/// What an update knows of the row's values before it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum OldValues<'a> {
    /// Nothing: perhaps nothing is needed.
    Unknown,
    /// The row that an earlier [`Step`] asked for: one row, all columns.
    Of(&'a RecordBatch),
    /// That there is no such row in the snapshot which [`Step::NeedsSourceRow`] asked for.
    Gone,
}

/// What one table brings to a commit.
#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) batches: Vec<RecordBatch>,
    /// What is to be deleted, as [`iceberg_writer::write_deletes`] wants it for a table of its format.
    pub(crate) deletes: BTreeMap<String, DeletedRows>,
    pub(crate) truncate: bool,
    /// Files to add that are written already.
    pub(crate) staged: Vec<WrittenFile>,
    pub(crate) rewrite: Rewrite,
    /// Former snapshots are to expire.
    pub(crate) expire: bool,
}

pub(crate) struct MirroredTable {
    pub(crate) relation: u32,
    pub(crate) spec: Arc<TableSpec>,
    pub(crate) identity: RowIdentity,
    /// The columns of the identity.
    pub(super) identity_columns: Vec<usize>,
    pub(crate) lake: LakeTable,
    /// The columns as Iceberg has them.
    pub(super) committed_spec: Arc<TableSpec>,
    pub(super) files: DataFiles,
    /// The files as Iceberg has them, when a TRUNCATE that it has not got took them from `files`.
    pub(super) before_truncate: Option<Vec<FileState>>,
    /// Some of the files are being rewritten, or have been and are not committed.
    pub(super) compaction: Option<Compaction>,
    pub(super) index: PositionIndex,
    pub(super) delta: Delta,
    /// Until changes are newer than all that was copied.
    pub(super) overlap: Option<Overlap>,
    /// Nobody but us sees to it that no key comes twice.
    keys_in_doubt: bool,
    key: Vec<u8>,
    old_key: Vec<u8>,
}

impl MirroredTable {
    /// A table whose `files` are indexed in `index`.
    pub(crate) fn new(
        relation: u32,
        spec: Arc<TableSpec>,
        identity: RowIdentity,
        lake: LakeTable,
        files: Vec<FileState>,
        index: PositionIndex,
    ) -> Self {
        Self {
            relation,
            identity_columns: identity.columns(&spec),
            identity,
            committed_spec: Arc::clone(&spec),
            spec,
            lake,
            files: DataFiles::new(files),
            before_truncate: None,
            compaction: None,
            index,
            delta: Delta::default(),
            overlap: None,
            keys_in_doubt: false,
            key: Vec::new(),
            old_key: Vec::new(),
        }
    }

    /// Lets the next commit remember with the table what is known of its columns.
    pub(crate) fn remember(&mut self, seen: &Seen) {
        self.lake = self.lake.evolved((*self.spec).clone(), remark::of(&self.spec, seen));
    }

    /// Has other columns from now on. Rows in memory are given them; files stay as they are, for their columns are found by
    /// number, and what they lack is NULL.
    ///
    /// # Errors
    /// [`ErrorKind::Table`] when a row cannot be given them, which [`super::follow`] rules out.
    pub(crate) fn change_columns(&mut self, spec: TableSpec, seen: &Seen) -> Result<()> {
        self.delta.change_columns(&spec)?;
        self.identity_columns = self.identity.columns(&spec);
        self.spec = Arc::new(spec);
        self.remember(seen);
        Ok(())
    }

    /// Is laid out otherwise from now on: what is written, that is. Files that are there stay as they are.
    /// Gives the files of a rewrite that nothing will name any more.
    ///
    /// # Errors
    /// As [`Self::give_up_compaction`].
    pub(crate) fn lay_out(&mut self, layout: &Layout) -> Result<Vec<String>> {
        let sorted_by = self.lake.sorted_by()?;
        self.lake = self.lake.laid_out(layout);
        if self.lake.sorted_by()? == sorted_by {
            return Ok(Vec::new());
        }
        self.files.forget_order();
        self.give_up_compaction()
    }

    /// The columns whose last change needs a companion that they have not got, by field id: [`Self::change_columns`] is to
    /// follow before the next change.
    pub(crate) fn new_companions(&mut self) -> Option<Vec<i32>> {
        self.delta.new_companions()
    }

    pub(crate) fn file_path(&self, file: u32) -> Option<Arc<str>> {
        self.files.get(file).map(|file| Arc::clone(&file.path))
    }

    /// Files of the table that Iceberg has not got.
    pub(crate) fn staged_paths(&self) -> Vec<String> {
        let staged = self.delta.staged.iter().map(|file| file.path.clone());
        staged.chain(self.rewritten_paths()).collect()
    }

    pub(crate) fn has_changes(&self) -> bool {
        let described = self.spec != self.committed_spec || !self.lake.has_its_layout();
        !self.delta.is_empty() || described || self.has_rewritten() || self.has_dangling_deletes()
    }

    /// Rows that Iceberg has not got, in memory and in staged files.
    pub(crate) fn pending_rows(&self) -> u64 {
        self.delta.live_rows() + self.delta.staged.iter().map(|file| file.rows).sum::<u64>()
    }

    pub(crate) fn pending_bytes(&self) -> usize {
        self.delta.bytes()
    }

    /// Looks for a row of the same key whenever a key comes, or no longer. It costs a look into the index each time.
    pub(crate) fn doubt_keys(&mut self, doubt: bool) {
        self.keys_in_doubt = doubt && self.identity == RowIdentity::Key;
    }

    /// Refuses a key that a row in a file has. Of those in the delta [`Delta::insert`] knows.
    fn refuse_twin(&self, key: &[u8]) -> Result<()> {
        if self.keys_in_doubt && self.delta.fate(key).is_none() && self.index.get(key)?.is_some() {
            return Err(Delta::twin());
        }
        Ok(())
    }

    /// Applies an insert. It and the others record what they did in the table's history, if it has one.
    pub(crate) fn insert(&mut self, new: &Tuple, history: Option<&mut History>) -> Result<()> {
        let cells = new.cells()?;
        key_of_cells(&self.spec, &self.identity_columns, &cells, &mut self.key)?;
        self.refuse_twin(&self.key)?;
        match self.identity {
            RowIdentity::Key => self.delta.insert(&self.spec, &self.key, &cells, None)?,
            RowIdentity::FullRow => self.delta.insert_equal(&self.spec, &self.key, &cells)?,
            RowIdentity::AppendOnly => self.delta.insert_only(&self.spec, &cells, None)?,
        }
        history.map_or(Ok(()), |history| history.record(Operation::Insert, &cells, None))
    }

    pub(crate) fn delete(&mut self, old: &Tuple, history: Option<&mut History>) -> Result<()> {
        let cells = old.cells()?;
        key_of_cells(&self.spec, &self.identity_columns, &cells, &mut self.key)?;
        let key = std::mem::take(&mut self.key);
        let place = self.place(&key)?;
        self.take_out(&key, place)?;
        self.key = key;
        history.map_or(Ok(()), |history| history.record(Operation::Delete, &cells, None))
    }

    /// Applies an update.
    pub(crate) fn update(
        &mut self,
        old: Option<&Tuple>,
        new: &Tuple,
        values: OldValues<'_>,
        history: Option<&mut History>,
    ) -> Result<Step> {
        let mut cells = new.cells()?;
        let mut old_cells = Cells::new();
        if let Some(old) = old {
            old_cells = old.cells()?;
            Self::fill_in(&mut cells, &old_cells);
        }
        key_of_cells(&self.spec, &self.identity_columns, &cells, &mut self.key)?;
        let (key, mut old_key) = (std::mem::take(&mut self.key), std::mem::take(&mut self.old_key));
        if old.is_some() {
            key_of_cells(&self.spec, &self.identity_columns, &old_cells, &mut old_key)?;
        } else {
            old_key.clone_from(&key);
        }
        let place = self.place(&old_key)?;
        let mut from_delta = None;
        // Without a key the old tuple has brought them all, or there would be no identity.
        if cells.contains(&Cell::Unchanged) {
            match (place, values) {
                (Place::Fresh(ordinal), _) => from_delta = Some(self.delta.row(ordinal)?),
                (Place::Stored(_), OldValues::Of(batch)) => from_delta = Some((batch.clone(), 0)),
                (Place::Stored(position), OldValues::Unknown | OldValues::Gone) => {
                    (self.key, self.old_key) = (key, old_key);
                    return Ok(Step::NeedsOldRow(position));
                }
            }
        }
        self.take_out(&old_key, place)?;
        self.refuse_twin(&key)?;
        let source = from_delta.as_ref().map(|(batch, row)| OldRow { batch, row: *row });
        match self.identity {
            RowIdentity::Key => self.delta.insert(&self.spec, &key, &cells, source)?,
            RowIdentity::FullRow => self.delta.insert_equal(&self.spec, &key, &cells)?,
            // Its row has no place.
            RowIdentity::AppendOnly => {}
        }
        if let Some(history) = history {
            if self.identity != RowIdentity::Key || old_key != key {
                history.record(Operation::Delete, &old_cells, None)?;
            }
            history.record(Operation::Update, &cells, source)?;
        }
        (self.key, self.old_key) = (key, old_key);
        Ok(Step::Done)
    }

    /// REPLICA IDENTITY FULL, and keys stored out of line: the old tuple brings what the new one leaves out.
    pub(crate) fn fill_in<'a>(cells: &mut [Cell<'a>], old_cells: &[Cell<'a>]) {
        for (cell, old_cell) in cells.iter_mut().zip(old_cells) {
            if *cell == Cell::Unchanged && matches!(old_cell, Cell::Binary(_) | Cell::Text(_)) {
                *cell = *old_cell;
            }
        }
    }

    /// Empties the table. Gives the staged files that nothing will name any more.
    pub(crate) fn truncate(&mut self, history: Option<&mut History>) -> Result<Vec<String>> {
        if let Some(history) = history {
            history.record(Operation::Truncate, &[], None)?;
        }
        let staged = self.staged_paths();
        if self.before_truncate.is_none() {
            self.before_truncate = Some(self.committed_files(&Pruning::default()).0);
        }
        self.give_up_compaction()?;
        self.files.clear();
        self.index.clear();
        self.delta.truncate();
        Ok(staged)
    }

    fn place(&self, key: &[u8]) -> Result<Place> {
        let missing = || {
            Err(Error::new(ErrorKind::Table, "a changed row is not in the mirror")
                .with_hint(format!("the mirror and the source disagree: {COPY_ANEW}")))
        };
        if self.identity == RowIdentity::AppendOnly {
            return missing();
        }
        if self.identity == RowIdentity::FullRow {
            if let Some(ordinal) = self.delta.equal.newest(key) {
                return Ok(Place::Fresh(ordinal));
            }
            let stored = self.index.next_equal(key, self.delta.equal.taken(key))?;
            return stored.map_or_else(missing, |position| Ok(Place::Stored(position)));
        }
        match self.delta.fate(key) {
            Some(Fate::Fresh(ordinal)) => Ok(Place::Fresh(ordinal)),
            Some(Fate::Gone) => missing(),
            None => self.index.get(key)?.map_or_else(missing, |position| Ok(Place::Stored(position))),
        }
    }

    pub(super) fn take_out(&mut self, key: &[u8], place: Place) -> Result<()> {
        match (place, self.identity) {
            (Place::Fresh(ordinal), RowIdentity::Key) => self.delta.kill(key, ordinal),
            (Place::Fresh(ordinal), RowIdentity::FullRow) => self.delta.kill_equal(key, ordinal),
            // No row of it has a place.
            (_, RowIdentity::AppendOnly) => {}
            (Place::Stored(position), identity) => {
                let Some(file) = self.files.get_mut(position.file) else {
                    return Err(Error::new(ErrorKind::Index, "the position index names a file that is not there"));
                };
                insert_shared(&mut file.deleted, u64::from(position.row));
                if identity == RowIdentity::FullRow {
                    self.delta.delete_equal(key, position);
                    self.index.remove_equal(key, position)?;
                } else {
                    self.delta.delete(key, position.file, position.row);
                }
            }
        }
        Ok(())
    }

    /// What the next commit must bring to Iceberg. Changes nothing: a commit that fails may ask again.
    pub(crate) fn pending(&mut self) -> Result<Pending> {
        let replaces = self.has_vectors();
        let rows = |(&file, positions): (&u32, &RoaringTreemap)| {
            let FileState { path, partition, deleted, .. } = self.files.get(file)?;
            let positions = if replaces { (**deleted).clone() } else { positions.clone() };
            Some((path.to_string(), DeletedRows { partition: partition.clone(), positions }))
        };
        let mut deletes = self.delta.deletes.iter().filter_map(rows).collect();
        let rewrite = self.pending_rewrite(&mut deletes);
        Ok(Pending {
            rewrite,
            expire: false,
            batches: self.delta.live_batches()?,
            deletes,
            truncate: self.delta.truncated,
            staged: self.delta.staged.clone(),
        })
    }

    /// Whether what is deleted in a file takes the place of what was.
    pub(super) fn has_vectors(&self) -> bool {
        self.lake.format() >= Format::V3
    }

    /// The rows in memory, to be written for [`Self::stage`].
    pub(crate) fn fresh_batches(&mut self) -> Result<Vec<RecordBatch>> {
        self.delta.live_batches()
    }

    /// Takes note that what [`Self::fresh_batches`] gave is in these files, which the next commit adds.
    pub(crate) fn stage(&mut self, written: WrittenRows) -> Result<()> {
        self.index_written(&written)?;
        self.delta.stage(written.files);
        Ok(())
    }

    /// Takes note that what [`Self::pending`] gave is in Iceberg, as `lake`, its fresh rows in `written`.
    pub(crate) fn committed(&mut self, lake: LakeTable, written: &WrittenRows) -> Result<()> {
        self.index_written(written)?;
        self.rewrite_committed()?;
        self.before_truncate = None;
        self.committed_spec = Arc::clone(&self.spec);
        self.lake = lake;
        self.delta = Delta::default();
        Ok(())
    }

    /// Adds files that hold the delta's live rows, and brings the index in line with the delta.
    fn index_written(&mut self, written: &WrittenRows) -> Result<()> {
        let base = self.files.reserve(0)?;
        // First row of each file, to find a row's file.
        let mut starts = Vec::with_capacity(written.files.len());
        let mut rows = 0u64;
        for file in &written.files {
            starts.push(rows);
            rows += file.rows;
        }
        let position = |ordinal: u64| {
            let live = written.place(self.delta.live_index(ordinal));
            let file = starts.partition_point(|start| *start <= live).saturating_sub(1);
            let position = starts.get(file).and_then(|start| {
                Some(Position {
                    file: base.checked_add(u32::try_from(file).ok()?)?,
                    row: u32::try_from(live - start).ok()?,
                })
            });
            position.ok_or_else(|| Error::new(ErrorKind::Index, "a committed row has no position in a file"))
        };
        let mut index = IndexWriter::new(self.index.clone());
        for (key, fate) in self.delta.fates() {
            match fate {
                Fate::Gone => index.remove(key)?,
                Fate::Fresh(ordinal) => index.put(key, position(ordinal)?)?,
            }
        }
        for (identity, ordinal) in self.delta.equal.live() {
            index.put(identity, position(ordinal)?)?;
        }
        index.finish()?;
        written.files.iter().map(FileState::written).for_each(|file| self.files.push(file));
        Ok(())
    }
}

/// Files that hold a table's rows in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct WrittenRows {
    pub(crate) files: Vec<WrittenFile>,
    /// Of each row its place in all of the files together; `None`: they are in the order in which they were in memory.
    pub(crate) places: Option<Vec<u32>>,
}

impl WrittenRows {
    /// The place of a row.
    fn place(&self, live: u64) -> u64 {
        let moved = self.places.as_ref().and_then(|places| places.get(usize::try_from(live).ok()?));
        moved.map_or(live, |place| u64::from(*place))
    }
}

/// Where a live row is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    Fresh(u64),
    Stored(Position),
}
