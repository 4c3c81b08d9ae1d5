//! Files of a table that are rewritten while the table goes on changing.
//!
//! Rows are taken as they are when the rewrite begins, S, and keep their order. So where a row has gone is told by counting:
//! it comes behind the live rows of the files before its own, and those before it in its file. Files of a sorted table are merged
//! instead, and then the merge says where each of these places has gone. What is deleted between S and the commit of
//! the rewrite is deleted by old positions; the commit has all of that as deletions in the new files, whether Iceberg has got the old
//! ones already or not. The position index follows by itself (`index::moving`).
//!
//! Delete files have no life of their own: what is deleted in each file is in memory, so that a commit can write all of it anew.
//! (Deletion vectors come and go with their data file: of them there is nothing to be merged.)
//!
//! Until that commit, and for ever if it does not come, the table is what it was: readers see the old files or the new ones, never some
//! of each.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use iceberg_writer::{DeletedRows, LakeTable, Partition, Rewrite, WrittenFile};
use roaring::RoaringTreemap;

use crate::Result;
use crate::error::{Error, ErrorKind};

use super::files::{DataFiles, FileState};
use super::identity::RowIdentity;
use super::index::{Position, PositionIndex};
use super::mirrored::MirroredTable;
use super::tiers::{Candidate, Extent, Wanted, choose};

/// Files that a rewrite makes at most, above what its size lets expect: numbers are set aside for them.
const SPARE_OUTPUTS: u64 = 8;

/// Rows of sorted files that are merged at a time, at most, unless one file has more: each has its place in memory.
const MERGED_ROWS: u64 = 8 << 20;

/// Delete files that are merged once there are so many: the more positions there are, the more files, for all of them are
/// written again.
const MERGED_DELETE_FILES: RangeInclusive<u64> = 8..=64;
/// Positions for which there may be one file more; they are written in some ten milliseconds.
const POSITIONS_A_FILE: u64 = 128 << 10;

/// A file that is rewritten, as it was at S.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    number: u32,
    pub(crate) path: Arc<str>,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) deleted: Arc<RoaringTreemap>,
}

impl Input {
    pub(crate) fn live_rows(&self) -> u64 {
        self.rows - self.deleted.len()
    }
}

/// What is to be rewritten, for who does it.
pub(crate) struct Order {
    pub(crate) lake: LakeTable,
    pub(crate) identity: RowIdentity,
    pub(crate) inputs: Arc<[Input]>,
    /// The partition that all of them are in, and that they stay in.
    pub(crate) partition: Partition,
    /// All of them are sorted, and what is made of them is to be.
    pub(crate) is_sorted: bool,
    pub(crate) most_outputs: u64,
    first_output: u32,
    /// To be filled with the rows' new positions.
    pub(crate) moved: PositionIndex,
}

impl Order {
    /// The position of a row of the n-th file that is made.
    pub(crate) fn output(&self, file: u32, row: u32) -> Position {
        Position { file: self.first_output + file, row }
    }

    /// Where each live row was, in the order of the old files.
    pub(crate) fn old_positions(&self) -> impl Iterator<Item = Position> {
        self.inputs.iter().flat_map(|input| {
            // Files are rolled long before 2³² rows.
            let rows = (0..=u32::MAX).take_while(|row| u64::from(*row) < input.rows);
            let live = rows.filter(|row| !input.deleted.contains(u64::from(*row)));
            live.map(|row| Position { file: input.number, row })
        })
    }
}

/// What a rewrite has made.
pub(crate) struct Rewritten {
    pub(crate) outputs: Vec<Output>,
    /// Of each live row, in the order of the old files, its place among all rows of the new ones. `None`: it is the same.
    pub(crate) places: Option<Vec<u32>>,
}

/// A file that a rewrite has made.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) file: WrittenFile,
    /// See [`FileState::full`].
    pub(crate) full: bool,
}

/// Where rows have gone.
struct Moves {
    /// Of each file the live rows before it, and its deleted rows, by number.
    from: BTreeMap<u32, (u64, Arc<RoaringTreemap>)>,
    /// The first row of each new file.
    starts: Vec<u64>,
    first_output: u32,
    /// See [`Rewritten::places`].
    places: Option<Arc<[u32]>>,
}

impl Moves {
    fn new(inputs: &[Input], outputs: &[Output], first_output: u32, places: Option<Arc<[u32]>>) -> Self {
        let (mut from, mut starts, mut rows) = (BTreeMap::new(), Vec::with_capacity(outputs.len()), 0);
        for input in inputs {
            from.insert(input.number, (rows, Arc::clone(&input.deleted)));
            rows += input.live_rows();
        }
        rows = 0;
        for output in outputs {
            starts.push(rows);
            rows += output.file.rows;
        }
        Self { from, starts, first_output, places }
    }

    /// The new position of a row. `None`: it was deleted before S, or is in none of the files.
    fn of(&self, old: Position) -> Option<Position> {
        let (before, deleted) = self.from.get(&old.file)?;
        let row = u64::from(old.row);
        if deleted.contains(row) {
            return None;
        }
        let mut at = before + row - deleted.rank(row);
        if let Some(places) = &self.places {
            at = u64::from(*places.get(usize::try_from(at).ok()?)?);
        }
        let file = self.starts.partition_point(|start| *start <= at).checked_sub(1)?;
        let row = u32::try_from(at - self.starts.get(file)?).ok()?;
        Some(Position { file: self.first_output + u32::try_from(file).ok()?, row })
    }
}

/// A rewrite that is under way, or waits for its commit.
pub(super) struct Compaction {
    inputs: Arc<[Input]>,
    first_output: u32,
    moved: PositionIndex,
    outputs: Option<Vec<Output>>,
    places: Option<Arc<[u32]>>,
}

/// What a rewrite that is done changes.
struct Arrived<'a> {
    compaction: &'a Compaction,
    outputs: &'a [Output],
    moves: Moves,
    /// What was deleted since S, by new positions; by the number of the new file.
    deleted: BTreeMap<u32, RoaringTreemap>,
}

impl Compaction {
    fn arrived(&self, files: &DataFiles) -> Option<Arrived<'_>> {
        let outputs = self.outputs.as_deref()?;
        let moves = Moves::new(&self.inputs, outputs, self.first_output, self.places.clone());
        let mut deleted: BTreeMap<u32, RoaringTreemap> = BTreeMap::new();
        for input in &*self.inputs {
            let Some(now) = files.get(input.number) else { continue };
            for row in &*now.deleted - &*input.deleted {
                // Rows of a file have 32 bits.
                let Ok(row) = u32::try_from(row) else { continue };
                if let Some(new) = moves.of(Position { file: input.number, row }) {
                    deleted.entry(new.file).or_default().insert(u64::from(new.row));
                }
            }
        }
        Some(Arrived { compaction: self, outputs, moves, deleted })
    }
}

impl Arrived<'_> {
    fn output(&self, number: u32) -> Option<&Output> {
        self.outputs.get((number - self.compaction.first_output) as usize)
    }
}

/// Files that may become one: of one partition; and sorted ones, which are merged, apart from the others.
#[expect(clippy::disallowed_types, reason = "it is only asked, and gives places in the order of the files")]
fn by_partition<'a>(files: impl Iterator<Item = (u32, &'a FileState)>) -> Vec<Vec<(u32, &'a FileState)>> {
    let mut partitions: Vec<Vec<(u32, &FileState)>> = Vec::new();
    let mut places = std::collections::HashMap::<(&Partition, bool), usize>::new();
    for (number, file) in files {
        let place = *places.entry((&file.partition, file.is_sorted)).or_insert(partitions.len());
        if place == partitions.len() {
            partitions.push(Vec::new());
        }
        partitions[place].push((number, file));
    }
    partitions
}

impl MirroredTable {
    /// Whether its files may be rewritten now. A copy of several snapshots must be left as it is while changes ask of which
    /// one a row is; what a TRUNCATE leaves is nothing; and one rewrite is enough.
    pub(crate) fn may_be_compacted(&self) -> bool {
        self.overlap.is_none() && self.before_truncate.is_none() && self.compaction.is_none()
    }

    /// Chooses files that are worth rewriting, and begins to. S is now.
    ///
    /// # Errors
    /// [`ErrorKind::Index`].
    pub(crate) fn begin_compaction(&mut self, wanted: Wanted, extent: Extent) -> Result<Option<Order>> {
        if !self.may_be_compacted() {
            return Ok(None);
        }
        let committed = self.files.len().saturating_sub(self.delta.staged.len());
        let partitions = by_partition(self.files.iter().take(committed));
        let chosen = partitions.iter().find_map(|files| {
            let candidates: Vec<Candidate> = files.iter().map(|(_, file)| file.candidate()).collect();
            let mut chosen = choose(&candidates, wanted, extent);
            if files[0].1.is_sorted {
                let mut rows = 0;
                chosen.retain(|at| {
                    let is_first = rows == 0;
                    rows += files[*at].1.rows;
                    is_first || rows <= MERGED_ROWS
                });
                let improves = chosen.len() > 1 || chosen.iter().any(|at| !files[*at].1.deleted.is_empty());
                chosen.truncate(if improves { chosen.len() } else { 0 });
            }
            (!chosen.is_empty()).then_some((files, chosen))
        });
        let Some((files, chosen)) = chosen else { return Ok(None) };
        let (partition, is_sorted) = (files[0].1.partition.clone(), files[0].1.is_sorted);
        let inputs: Arc<[Input]> = chosen
            .into_iter()
            .map(|at| {
                let (number, file) = files[at];
                let FileState { path, rows, bytes, deleted, .. } = file.clone();
                Input { number, path, rows, bytes, deleted }
            })
            .collect();
        let bytes: u64 = inputs.iter().map(|input| input.bytes).sum();
        let most_outputs = 2 * bytes / wanted.file_bytes.max(1) + SPARE_OUTPUTS;
        let first_output = self.files.reserve(u32::try_from(most_outputs).unwrap_or(u32::MAX))?;
        let moved = self.index.begin_move()?;
        let (lake, identity) = (self.lake.clone(), self.identity);
        self.compaction = Some(Compaction {
            inputs: Arc::clone(&inputs),
            first_output,
            moved: moved.clone(),
            outputs: None,
            places: None,
        });
        Ok(Some(Order { lake, identity, inputs, partition, is_sorted, most_outputs, first_output, moved }))
    }

    /// The files that were ordered have been made, and come with the next commit. False: nobody waits for them.
    ///
    /// # Errors
    /// [`ErrorKind::Index`] when they have other rows than those that they take the place of.
    pub(crate) fn compacted(&mut self, order: &Order, rewritten: Rewritten) -> Result<bool> {
        let Rewritten { outputs, places } = rewritten;
        let Some(compaction) = &mut self.compaction else { return Ok(false) };
        if !Arc::ptr_eq(&compaction.inputs, &order.inputs) {
            return Ok(false);
        }
        let live: u64 = compaction.inputs.iter().map(Input::live_rows).sum();
        let written: u64 = outputs.iter().map(|output| output.file.rows).sum();
        if live != written || outputs.len() as u64 > order.most_outputs {
            return Err(Error::new(ErrorKind::Index, format!("{live} rows were to be rewritten, and {written} were")));
        }
        compaction.outputs = Some(outputs);
        compaction.places = places.map(Into::into);
        Ok(true)
    }

    /// Whether it is this rewrite that the table waits for.
    pub(crate) fn waits_for(&self, order: &Order) -> bool {
        self.compaction.as_ref().is_some_and(|compaction| Arc::ptr_eq(&compaction.inputs, &order.inputs))
    }

    /// Goes on without the rewrite. Gives the files that nothing will name any more.
    ///
    /// # Errors
    /// [`ErrorKind::Index`].
    pub(crate) fn give_up_compaction(&mut self) -> Result<Vec<String>> {
        let paths = self.rewritten_paths();
        if self.compaction.take().is_some() {
            self.index.give_up_move()?;
        }
        Ok(paths)
    }

    /// Files of rewrites that are done, and that Iceberg has not got.
    pub(super) fn rewritten_paths(&self) -> Vec<String> {
        let outputs = self.compaction.iter().filter_map(|compaction| compaction.outputs.as_ref()).flatten();
        outputs.map(|output| output.file.path.clone()).collect()
    }

    /// Whether a rewrite waits for its commit.
    pub(crate) fn has_rewritten(&self) -> bool {
        self.compaction.as_ref().is_some_and(|compaction| compaction.outputs.is_some())
    }

    /// What rewrites bring to the next commit; `deletes` are what it is to delete, which becomes what it is with them.
    pub(super) fn pending_rewrite(&self, deletes: &mut BTreeMap<String, DeletedRows>) -> Rewrite {
        let mut rewrite = Rewrite::default();
        let arrived = self.compaction.as_ref().and_then(|compaction| compaction.arrived(&self.files));
        if let Some(arrived) = &arrived {
            rewrite.removed = arrived.compaction.inputs.iter().map(|input| input.path.to_string()).collect();
            rewrite.data = arrived.outputs.iter().map(|output| output.file.clone()).collect();
        }
        rewrite.all_deletes = !self.delta.truncated && self.merges_deletes(arrived.as_ref());
        if rewrite.all_deletes {
            let deleted = self.files.iter().filter(|(_, file)| !file.deleted.is_empty());
            let rows = |file: &FileState| DeletedRows {
                partition: file.partition.clone(),
                positions: (*file.deleted).clone(),
            };
            *deletes = deleted.map(|(_, file)| (file.path.to_string(), rows(file))).collect();
        }
        if let Some(arrived) = &arrived {
            for path in &rewrite.removed {
                deletes.remove(path);
            }
            for (number, rows) in &arrived.deleted {
                let Some(Output { file, .. }) = arrived.output(*number) else { continue };
                let rows = DeletedRows { partition: file.partition.clone(), positions: rows.clone() };
                deletes.insert(file.path.clone(), rows);
            }
        }
        rewrite.alone = self.delta.is_empty() && (arrived.is_some() || rewrite.all_deletes);
        rewrite
    }

    /// Whether Iceberg has deleted positions of files that it has no more, as another engine's compaction leaves them.
    pub(crate) fn has_dangling_deletes(&self) -> bool {
        let count = self.lake.deleted_position_count();
        // A vector goes with its data file, whoever takes that away.
        if count == 0 || self.delta.truncated || self.has_vectors() {
            return false;
        }
        let deleted: u64 = self.files.iter().map(|(_, file)| file.deleted.len()).sum();
        let pending: u64 = self.delta.deletes.values().map(RoaringTreemap::len).sum();
        count > deleted.saturating_sub(pending)
    }

    /// Whether the next commit has all deleted positions in one file. It must when a data file goes in which Iceberg has
    /// deletions, or when another engine has let one go: readers count positions, and DuckDB fails at a table that has more
    /// of them than rows. And it does when there are too many delete files.
    fn merges_deletes(&self, arrived: Option<&Arrived<'_>>) -> bool {
        let count = self.lake.delete_file_count();
        if count == 0 || self.has_vectors() {
            return false;
        }
        let is_deleted = |input: &Input| self.files.get(input.number).is_some_and(|file| !file.deleted.is_empty());
        let positions: u64 = self.files.iter().map(|(_, file)| file.deleted.len()).sum();
        let most = (positions / POSITIONS_A_FILE).clamp(*MERGED_DELETE_FILES.start(), *MERGED_DELETE_FILES.end());
        // Merged, there is still one for each partition.
        let least = by_partition(self.files.iter().filter(|(_, file)| !file.deleted.is_empty())).len() as u64;
        let most = most.max(least.saturating_mul(2));
        count >= most
            || self.has_dangling_deletes()
            || arrived.is_some_and(|arrived| arrived.compaction.inputs.iter().any(is_deleted))
    }

    /// Takes note that what [`Self::pending_rewrite`] gave is in Iceberg.
    pub(super) fn rewrite_committed(&mut self) -> Result<()> {
        if !self.has_rewritten() {
            return Ok(());
        }
        let Some(compaction) = self.compaction.take() else { return Ok(()) };
        let Some(Arrived { outputs, moves, mut deleted, .. }) = compaction.arrived(&self.files) else { return Ok(()) };
        self.index.end_move(&compaction.moved, |old| moves.of(old))?;
        for input in &*compaction.inputs {
            self.files.remove(input.number);
        }
        for (output, number) in outputs.iter().zip(compaction.first_output..) {
            let mut state = FileState { full: output.full, ..FileState::written(&output.file) };
            state.deleted = deleted.remove(&number).unwrap_or_default().into();
            self.files.insert(number, state);
        }
        Ok(())
    }
}
