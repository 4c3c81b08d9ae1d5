//! Changes that a copy of several snapshots has in part.
//!
//! Such a copy has rows as of X1, X2, …; the stream brings all changes since X1. Up to the newest snapshot, a change is
//! applied to what there is: a row that is not there is not missed, one that comes is taken in, and a row that was copied as of
//! later than the change is left as it is. (To change it would come to the same in the end, for all changes up to that
//! later moment come; so it is not written again and again.) From the newest snapshot on the table is exact, and so are its changes.
//! Why that gives the table as it was at the newest snapshot is said where the copy is made (`source::copy`).

use arrow_array::RecordBatch;
use iceberg_writer::{Lsn, WrittenFile};
use roaring::RoaringTreemap;

use crate::Result;
use crate::decode::message::{Cell, Cells, Tuple};
use crate::decode::row::{OldRow, key_of_cells};

use super::files::FileState;
use super::keys::Fate;
use super::mirrored::{MirroredTable, OldValues, Place, Step};

/// A file that a copy has written.
pub(crate) struct CopiedFile {
    pub(crate) file: WrittenFile,
    /// The consistent point of the snapshot that its rows are of.
    pub(crate) as_of: Lsn,
    /// Rows of which a later snapshot had another version.
    pub(crate) superseded: RoaringTreemap,
}

/// The snapshots of a copy.
#[derive(Debug)]
pub(super) struct Overlap {
    /// By file, in the table's order; those of the stream come behind.
    as_of: Vec<Lsn>,
    exact_from: Lsn,
}

/// What there is under a key, for a change of a certain commit.
#[derive(Debug, Clone, Copy)]
enum Known {
    Nothing,
    /// A row as of before the change.
    Row(Place),
    /// A row as of after the change.
    Later,
}

impl MirroredTable {
    /// Hands over the files of the initial copy, which the next commit puts into Iceberg. The index has them.
    /// Changes will come from `from` on; what lacks them exactly is the table as of `exact_from`.
    pub(crate) fn take_copied(&mut self, copied: Vec<CopiedFile>, from: Lsn, exact_from: Lsn) {
        if from < exact_from {
            let as_of = copied.iter().map(|copied| copied.as_of).collect();
            self.overlap = Some(Overlap { as_of, exact_from });
        }
        for (CopiedFile { file, superseded, .. }, place) in copied.into_iter().zip(0..) {
            let mut state = FileState::written(&file);
            if !superseded.is_empty() {
                state.deleted = superseded.clone().into();
                self.delta.deletes.insert(place, superseded);
            }
            self.files.push(state);
            self.delta.staged.push(file);
        }
    }

    /// Whether changes of this commit are older than the newest snapshot of the copy.
    pub(crate) fn overlaps(&mut self, commit_lsn: Lsn) -> bool {
        // Commits come in order.
        if self.overlap.as_ref().is_some_and(|overlap| commit_lsn >= overlap.exact_from) {
            self.overlap = None;
        }
        self.overlap.is_some()
    }

    /// No change will come that is older than the newest snapshot of the copy.
    pub(crate) fn has_joined(&mut self) {
        self.overlap = None;
    }

    fn known(&self, key: &[u8], commit_lsn: Lsn) -> Result<Known> {
        Ok(match self.delta.fate(key) {
            Some(Fate::Fresh(ordinal)) => Known::Row(Place::Fresh(ordinal)),
            Some(Fate::Gone) => Known::Nothing,
            None => match self.index.get(key)? {
                None => Known::Nothing,
                Some(position) => {
                    let as_of = self.overlap.as_ref().and_then(|overlap| overlap.as_of.get(position.file as usize));
                    if as_of.is_some_and(|as_of| commit_lsn < *as_of) {
                        Known::Later
                    } else {
                        Known::Row(Place::Stored(position))
                    }
                }
            },
        })
    }

    fn take_out_known(&mut self, key: &[u8], known: Known) -> Result<()> {
        match known {
            Known::Row(place) => self.take_out(key, place),
            Known::Nothing | Known::Later => Ok(()),
        }
    }

    fn key_of(&self, cells: &[Cell<'_>]) -> Result<Vec<u8>> {
        let mut key = Vec::new();
        key_of_cells(&self.spec, &self.identity_columns, cells, &mut key)?;
        Ok(key)
    }

    /// [`Self::insert`], for a commit that overlaps.
    pub(crate) fn insert_overlapping(&mut self, commit_lsn: Lsn, new: &Tuple) -> Result<()> {
        let cells = new.cells()?;
        let key = self.key_of(&cells)?;
        let known = self.known(&key, commit_lsn)?;
        if matches!(known, Known::Later) {
            return Ok(());
        }
        self.take_out_known(&key, known)?;
        self.delta.insert(&self.spec, &key, &cells, None)
    }

    /// [`Self::delete`], for a commit that overlaps.
    pub(crate) fn delete_overlapping(&mut self, commit_lsn: Lsn, old: &Tuple) -> Result<()> {
        let key = self.key_of(&old.cells()?)?;
        let known = self.known(&key, commit_lsn)?;
        self.take_out_known(&key, known)
    }

    /// [`Self::update`], for a commit that overlaps. Beside what that asks for, it may ask for the row of the newest
    /// snapshot, [`Step::NeedsSourceRow`].
    pub(crate) fn update_overlapping(
        &mut self,
        commit_lsn: Lsn,
        old: Option<&Tuple>,
        new: &Tuple,
        values: OldValues<'_>,
    ) -> Result<Step> {
        let mut cells = new.cells()?;
        let mut old_cells = Cells::new();
        if let Some(old) = old {
            old_cells = old.cells()?;
            Self::fill_in(&mut cells, &old_cells);
        }
        let key = self.key_of(&cells)?;
        let old_key = if old.is_some() { self.key_of(&old_cells)? } else { key.clone() };
        let before = self.known(&old_key, commit_lsn)?;
        let (moves, after) = if old_key == key { (false, before) } else { (true, self.known(&key, commit_lsn)?) };
        if matches!(after, Known::Later) {
            if moves {
                self.take_out_known(&old_key, before)?;
            }
            return Ok(Step::Done);
        }
        let mut row: Option<(RecordBatch, usize)> = None;
        if cells.contains(&Cell::Unchanged) {
            row = match (values, before) {
                (OldValues::Of(batch), _) => Some((batch.clone(), 0)),
                // A later change took the row away, and will be told.
                (OldValues::Gone, _) => {
                    self.take_out_known(&old_key, before)?;
                    return Ok(Step::Done);
                }
                // A value that was read in the snapshot may belong to another row, which took the key later. While the row keeps its
                // key that does not matter, for it is gone before the other comes; but it must not take such a value elsewhere.
                _ if moves => return Ok(Step::NeedsSourceRow),
                (OldValues::Unknown, Known::Row(Place::Fresh(ordinal))) => Some(self.delta.row(ordinal)?),
                (OldValues::Unknown, Known::Row(Place::Stored(position))) => return Ok(Step::NeedsOldRow(position)),
                (OldValues::Unknown, Known::Nothing | Known::Later) => return Ok(Step::NeedsSourceRow),
            };
        }
        self.take_out_known(&old_key, before)?;
        if moves {
            self.take_out_known(&key, after)?;
        }
        let source = row.as_ref().map(|(batch, row)| OldRow { batch, row: *row });
        self.delta.insert(&self.spec, &key, &cells, source)?;
        Ok(Step::Done)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, OnceLock};

    use arrow_array::cast::AsArray;
    use arrow_array::types::Int64Type;
    use iceberg_writer::{ColumnSpec, DataFileWriter, Format, LakeTable, PgType, StoreOptions, TableSpec, Warehouse};
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::decode::row::RowBuilder;
    use crate::table::{IndexStore, IndexWriter, Position, RowIdentity};

    const BLOCKS: usize = 3;

    #[derive(Debug, Clone, PartialEq)]
    struct Row {
        value: i64,
        /// Stored out of line.
        large: String,
        block: usize,
    }

    type Heap = BTreeMap<i64, Row>;

    #[derive(Debug, Clone)]
    enum Statement {
        Insert {
            key: i64,
            block: usize,
        },
        /// `large`: changes the value that is stored out of line.
        Update {
            key: i64,
            to: i64,
            block: usize,
            large: bool,
        },
        Delete {
            key: i64,
        },
    }

    #[derive(Debug, Clone)]
    enum Change {
        Insert(Tuple),
        Update(Option<Tuple>, Tuple),
        Delete(Tuple),
    }

    fn statement() -> impl Strategy<Value = Statement> {
        let key = || 0i64..4;
        prop_oneof![
            2 => (key(), 0..BLOCKS).prop_map(|(key, block)| Statement::Insert { key, block }),
            4 => (key(), key(), 0..BLOCKS, any::<bool>(), any::<bool>()).prop_map(|(key, other, block, moves, large)| {
                Statement::Update { key, to: if moves { other } else { key }, block, large }
            }),
            1 => key().prop_map(|key| Statement::Delete { key }),
        ]
    }

    fn tuple(key: i64, row: &Row, unchanged: bool) -> Tuple {
        let (key, value) = (key.to_be_bytes(), row.value.to_be_bytes());
        let large = if unchanged { Cell::Unchanged } else { Cell::Binary(row.large.as_bytes()) };
        Tuple::of(&[Cell::Binary(&key), Cell::Binary(&value), large])
    }

    fn key_only(key: i64) -> Tuple {
        Tuple::of(&[Cell::Binary(&key.to_be_bytes()), Cell::Null, Cell::Null])
    }

    /// Runs a statement on the heap; what the stream tells of it. `n` makes new values.
    fn run(heap: &mut Heap, statement: &Statement, n: i64) -> Option<Change> {
        let large = format!("large {n}");
        match *statement {
            Statement::Insert { key, block } => {
                let row = Row { value: n, large, block };
                (!heap.contains_key(&key)).then(|| {
                    heap.insert(key, row.clone());
                    Change::Insert(tuple(key, &row, false))
                })
            }
            Statement::Update { key, to, block, large: changes } => {
                if key != to && heap.contains_key(&to) {
                    return None;
                }
                let before = heap.remove(&key)?;
                let row = Row { value: n, large: if changes { large } else { before.large }, block };
                heap.insert(to, row.clone());
                let old = (key != to).then(|| key_only(key));
                Some(Change::Update(old, tuple(to, &row, !changes)))
            }
            Statement::Delete { key } => heap.remove(&key).map(|_| Change::Delete(key_only(key))),
        }
    }

    fn spec() -> TableSpec {
        let column = |name: &str, field_id, pg_type| ColumnSpec {
            name: name.to_owned(),
            field_id,
            pg_type,
            type_oid: 0,
            typmod: -1,
            required: field_id == 1,
            companion: false,
        };
        let columns =
            vec![column("k", 1, PgType::Int8), column("v", 2, PgType::Int8), column("large", 3, PgType::Text)];
        TableSpec { namespace: "public".to_owned(), name: "t".to_owned(), columns, key: vec![0] }
    }

    fn batch(rows: &[(i64, Row)]) -> RecordBatch {
        let mut builder = RowBuilder::new(&spec()).unwrap();
        for (key, row) in rows {
            builder.append(&spec(), &tuple(*key, row, false).cells().unwrap(), None).unwrap();
        }
        builder.finish().unwrap()
    }

    fn contents(batch: &RecordBatch) -> impl Iterator<Item = (i64, i64, String)> {
        let (keys, values) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_primitive::<Int64Type>());
        let large = batch.column(2).as_string::<i32>();
        (0..batch.num_rows()).map(|row| (keys.value(row), values.value(row), large.value(row).to_owned()))
    }

    /// A prepared table and a file of it. Nothing here reads the file, so it stands for all of them.
    fn lake() -> (LakeTable, WrittenFile) {
        static LAKE: OnceLock<(LakeTable, WrittenFile)> = OnceLock::new();
        let make = || {
            let directory = tempfile::tempdir().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let url = format!("file://{}", directory.path().display());
            let warehouse = runtime.block_on(Warehouse::open(&url, &StoreOptions::default())).unwrap();
            let lake = LakeTable::prepare(&warehouse, spec(), Format::V2, None, None).unwrap();
            let mut writer = DataFileWriter::create(&warehouse, &lake, 1, Uuid::nil(), 0);
            let row = Row { value: 0, large: String::new(), block: 0 };
            runtime.block_on(writer.write(&batch(&[(0, row)]))).unwrap();
            (lake, runtime.block_on(writer.close()).unwrap().unwrap())
        };
        LAKE.get_or_init(make).clone()
    }

    /// A copy of as many snapshots as there are points, each block in one of them, and then the stream.
    fn mirrored(before: &[Statement], statements: &[Statement], points: &[usize], turns: &[usize]) -> (Heap, Heap) {
        let mut heap = Heap::new();
        for (statement, n) in before.iter().zip(0..) {
            run(&mut heap, statement, n);
        }
        let mut changes = Vec::new();
        let mut rounds: Vec<(Lsn, Vec<(i64, Row)>)> = Vec::new();
        let mut newest = Heap::new();
        for at in 0..=statements.len() {
            let lsn = Lsn::from_u64(100 + at as u64 * 10);
            for _ in points.iter().filter(|point| **point == at) {
                let turn = rounds.len();
                let rows = heap.iter().filter(|(_, row)| turns[row.block].min(points.len() - 1) == turn);
                rounds.push((lsn, rows.map(|(key, row)| (*key, row.clone())).collect()));
                newest.clone_from(&heap);
            }
            if let Some(statement) = statements.get(at)
                && let Some(change) = run(&mut heap, statement, 1000 + at as i64)
                && !rounds.is_empty()
            {
                changes.push((lsn, change));
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let (lake, some_file) = lake();
        let index = IndexStore::create(&directory.path().join("index")).unwrap().table(RowIdentity::Key);
        let key_of = |key: i64| {
            let mut bytes = Vec::new();
            key_of_cells(&spec(), &[0], &[Cell::Binary(&key.to_be_bytes())], &mut bytes).unwrap();
            bytes
        };
        rounds.retain(|(_, rows)| !rows.is_empty());
        for ((_, rows), file) in rounds.iter().zip(0..) {
            let mut writer = IndexWriter::new(index.clone());
            for ((key, _), row) in rows.iter().zip(0..) {
                writer.put(&key_of(*key), Position { file, row }).unwrap();
            }
            writer.finish().unwrap();
        }
        let exact_from = Lsn::from_u64(100 + points[points.len() - 1] as u64 * 10);
        let mut copied = Vec::new();
        for ((as_of, rows), file) in rounds.iter().zip(0..) {
            let mut superseded = RoaringTreemap::new();
            for ((key, _), row) in rows.iter().zip(0..) {
                if index.get(&key_of(*key)).unwrap() != Some(Position { file, row }) {
                    superseded.insert(u64::from(row));
                }
            }
            copied.push(CopiedFile { file: some_file.clone(), as_of: *as_of, superseded });
        }
        let mut table = MirroredTable::new(1, Arc::new(spec()), RowIdentity::Key, lake, Vec::new(), index);
        table.take_copied(copied, Lsn::from_u64(100 + points[0] as u64 * 10), exact_from);
        for (lsn, change) in &changes {
            let overlaps = table.overlaps(*lsn);
            let mut update = |values: OldValues<'_>| match change {
                Change::Insert(new) if overlaps => table.insert_overlapping(*lsn, new).map(|()| Step::Done),
                Change::Insert(new) => table.insert(new, None).map(|()| Step::Done),
                Change::Delete(old) if overlaps => table.delete_overlapping(*lsn, old).map(|()| Step::Done),
                Change::Delete(old) => table.delete(old, None).map(|()| Step::Done),
                Change::Update(old, new) if overlaps => table.update_overlapping(*lsn, old.as_ref(), new, values),
                Change::Update(old, new) => table.update(old.as_ref(), new, values, None),
            };
            let done = match update(OldValues::Unknown).unwrap() {
                Step::Done => Step::Done,
                Step::NeedsOldRow(position) => {
                    let (_, rows) = &rounds[position.file as usize];
                    let row = batch(&rows[position.row as usize..=position.row as usize]);
                    update(OldValues::Of(&row)).unwrap()
                }
                Step::NeedsSourceRow => {
                    let Change::Update(_, new) = change else { panic!("{change:?} needs no row") };
                    let Cell::Binary(key) = new.cells().unwrap()[0] else { panic!("no key") };
                    let key = i64::from_be_bytes(key.try_into().unwrap());
                    let row = newest.get(&key).map(|row| batch(&[(key, row.clone())]));
                    update(row.as_ref().map_or(OldValues::Gone, OldValues::Of)).unwrap()
                }
            };
            assert_eq!(done, Step::Done, "{change:?}");
        }
        let pin = table.pin(&Vec::new()).unwrap();
        let mut lake = Heap::new();
        let mut take = |(key, value, large)| {
            assert!(lake.insert(key, Row { value, large, block: 0 }).is_none(), "{key} is there twice");
        };
        for (file, (_, rows)) in pin.files.iter().zip(&rounds) {
            let stored = batch(rows);
            let live = contents(&stored).zip(0..).filter(|(_, row)| !file.deleted.contains(*row));
            live.for_each(|(row, _)| take(row));
        }
        pin.fresh.iter().for_each(|batch| contents(batch).for_each(&mut take));
        heap.values_mut().for_each(|row| row.block = 0);
        (heap, lake)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn a_copy_of_several_snapshots_and_the_stream_make_the_table(
            before in proptest::collection::vec(statement(), 0..25),
            statements in proptest::collection::vec(statement(), 10..40),
            cuts in proptest::collection::vec(0usize..40, 1..4),
            turns in proptest::collection::vec(0usize..3, BLOCKS),
        ) {
            let mut points: Vec<usize> = cuts.into_iter().map(|cut| cut.min(statements.len())).collect();
            points.sort_unstable();
            let (heap, lake) = mirrored(&before, &statements, &points, &turns);
            prop_assert_eq!(heap, lake);
        }
    }
}
