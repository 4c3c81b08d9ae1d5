//! A table's history: each of its changes as a row of another Iceberg table, `<name>_history`, which only ever grows.
//!
//! Its rows have the table's columns as they were after the change, and what the change was (the [`MARKS`]). Rows of one
//! transaction have the position of its commit record, `_lsn`, and are counted by `_seq` in the order in which they happened.
//! So what the table was *at position X* is told by the rows with `_lsn` < X alone: behind the last `truncate` among them, of each key
//! the last one, unless it is a `delete`. For that rule to hold
//! - a change of the key is two rows, `delete` of the old key and `update` with the new one. (Where all columns tell the
//!   row, that is every update, and rows are counted instead: one more for each row that comes, one less for each `delete`);
//! - each copy of the table begins with a `truncate`, and then has each row of its snapshot as `copy`. A snapshot is the table
//!   at its position P, so these rows are at P − 1, where no commit record begins: before all changes that the stream brings.
//!
//! It is exactly once for the reason that the table itself is: its rows go into the same commit, and are made of the same
//! changes, in [`MirroredTable`](super::MirroredTable), where old values are at hand.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow_array::RecordBatch;
use iceberg_writer::{ColumnSpec, LakeTable, Lsn, PgType, Rewrite, TableSpec, WrittenFile};
use uuid::Uuid;

use crate::Result;
use crate::decode::message::{Cell, Cells, Commit, POSTGRES_EPOCH_US};
use crate::decode::row::OldRow;
use crate::error::{Error, ErrorKind};

use super::columns::Seen;
use super::delta::Delta;
use super::mirrored::Pending;
use super::remark;

/// What the name of a history is the table's name and this.
const SUFFIX: &str = "_history";

/// The columns behind the table's own: what the change was, where and when it was committed, the transaction, and which of
/// its changes of the table it is, from 1. Beside the name the type and its OID; the field ids count from [`FIRST_MARK`].
const MARKS: [(&str, PgType, u32); 5] = [
    ("_op", PgType::Text, 25),
    ("_lsn", PgType::Int8, 20),
    ("_committed_at", PgType::Timestamptz, 1184),
    ("_xid", PgType::Int8, 20),
    ("_seq", PgType::Int8, 20),
];
/// Far beyond the numbers of the table's columns.
const FIRST_MARK: i32 = 30_001;

/// A column's number in the history is its number in the table; or, when files of before have values of a type there that
/// cannot be read as those of now, this much more, or twice as much, and so on. It keeps the number that it has as long as
/// it can. Postgres numbers columns up to 1600.
const RENUMBERED_BY: i32 = 2000;
const MOST_RENUMBERED: i32 = 4;

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Copy,
    Insert,
    Update,
    Delete,
    Truncate,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
        }
    }
}

/// What a row says of its change, as the source would send it.
pub(crate) struct Marks {
    operation: Operation,
    lsn: [u8; 8],
    committed_at: [u8; 8],
    xid: Option<[u8; 8]>,
    seq: [u8; 8],
}

impl Marks {
    fn new(operation: Operation, lsn: i64, time_us: i64, xid: Option<u32>, seq: i64) -> Self {
        Self {
            operation,
            lsn: lsn.to_be_bytes(),
            committed_at: time_us.saturating_sub(POSTGRES_EPOCH_US).to_be_bytes(),
            xid: xid.map(|xid| i64::from(xid).to_be_bytes()),
            seq: seq.to_be_bytes(),
        }
    }

    fn of_change(operation: Operation, commit: Commit, seq: i64) -> Self {
        Self::new(operation, commit.lsn.as_u64().cast_signed(), commit.time_us, Some(commit.xid), seq)
    }

    /// A row of a snapshot, or the `truncate` before them.
    pub(crate) fn of_copy(operation: Operation, snapshot: Snapshot, seq: i64) -> Self {
        Self::new(operation, snapshot.at.as_u64().cast_signed() - 1, snapshot.taken_us, None, seq)
    }

    /// A whole row: the table's cells, and these behind.
    pub(crate) fn behind<'a>(&'a self, cells: &[Cell<'a>]) -> Cells<'a> {
        let mut row = Cells::from_slice(cells);
        row.push(Cell::Binary(self.operation.name().as_bytes()));
        row.push(Cell::Binary(&self.lsn));
        row.push(Cell::Binary(&self.committed_at));
        row.push(self.xid.as_ref().map_or(Cell::Null, |xid| Cell::Binary(xid)));
        row.push(Cell::Binary(&self.seq));
        row
    }
}

/// The snapshot of a copy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Snapshot {
    pub(crate) at: Lsn,
    /// By the source's clock, microseconds since 1970.
    pub(crate) taken_us: i64,
}

/// The name of a table's history.
pub(crate) fn name_of(table: &str) -> String {
    format!("{table}{SUFFIX}")
}

/// The identity of the history that begins with the copy into an Iceberg table: found again by it, wherever the copy ends.
pub(crate) fn uuid_beside(table: Uuid) -> Uuid {
    Uuid::from_u128(table.as_u128() ^ 1)
}

/// Whether a table of this name may be in the way of another's history.
pub(crate) fn may_be_named(table: &str) -> bool {
    table.ends_with(SUFFIX)
}

/// Whether these are the columns of a history.
pub(crate) fn is_history(spec: &TableSpec) -> bool {
    spec.columns.last().is_some_and(|column| column.field_id == FIRST_MARK + 4)
}

/// Refuses a table with a column that is named like one of the history's own. (Readers do not tell case apart.)
///
/// # Errors
/// [`ErrorKind::Table`].
pub(crate) fn check_names(spec: &TableSpec) -> Result<()> {
    let is_mark = |column: &&ColumnSpec| MARKS.iter().any(|(name, ..)| name.eq_ignore_ascii_case(&column.name));
    let Some(column) = spec.columns.iter().find(is_mark) else { return Ok(()) };
    Err(Error::new(
        ErrorKind::Table,
        format!("column \"{}\" of {}.{} is named like one of its history's own", column.name, spec.namespace, spec.name),
    )
    .with_hint("ALTER TABLE … RENAME COLUMN …, or do without the history: take the table out of `history`, then cdc-worker mirror (with the extension: lake.mirror(…, history => false))"))
}

/// The description of a table's history; `so_far` is what there is of it.
///
/// # Errors
/// [`ErrorKind::Table`] when it cannot have a column.
pub(crate) fn described(table: &TableSpec, so_far: Option<&LakeTable>) -> Result<TableSpec> {
    check_names(table)?;
    let own = table.columns.iter().map(|column| {
        let numbers = (0..=MOST_RENUMBERED).map(|times| column.field_id + times * RENUMBERED_BY);
        let has =
            |number: &i32| so_far.is_some_and(|lake| lake.spec().columns.iter().any(|own| own.field_id == *number));
        let mut numbers = numbers.clone().filter(has).chain(numbers);
        let number = numbers.find(|number| so_far.is_none_or(|lake| lake.can_have(*number, column.pg_type)));
        let field_id = number.ok_or_else(|| {
            let message =
                format!("column \"{}\" has had too many types for the history of {}", column.name, table.name);
            Error::new(ErrorKind::Table, message)
                .with_hint("drop its history's Iceberg table, then copy the table anew: its history begins again")
        })?;
        // Files of before may have a companion that the table, copied anew, has not needed.
        let had = |lake: &LakeTable| lake.spec().companions().any(|of| of == field_id);
        let companion = column.companion || so_far.is_some_and(had);
        Ok(ColumnSpec { field_id, required: false, companion, ..column.clone() })
    });
    let marks = MARKS.iter().zip(FIRST_MARK..).map(|(&(name, pg_type, type_oid), field_id)| {
        Ok(ColumnSpec {
            name: name.to_owned(),
            field_id,
            pg_type,
            type_oid,
            typmod: -1,
            required: false,
            companion: false,
        })
    });
    let columns = own.chain(marks).collect::<Result<_>>()?;
    Ok(TableSpec { namespace: table.namespace.clone(), name: name_of(&table.name), columns, key: Vec::new() })
}

/// A table's history, as far as Iceberg has not got it.
pub(crate) struct History {
    pub(crate) lake: LakeTable,
    spec: Arc<TableSpec>,
    /// The columns as Iceberg has them.
    committed_spec: Arc<TableSpec>,
    delta: Delta,
    /// Files that take the place of others with the next commit.
    rewritten: Option<Rewrite>,
    /// Files that a rewrite closed because they had the wanted size, whatever their bytes say: they are not rewritten again.
    full: Arc<BTreeSet<String>>,
    /// The transaction that changes the table, and how often it has.
    commit: Option<Commit>,
    seq: i64,
}

impl History {
    /// A history that goes on in this table, whose columns are the newest.
    pub(crate) fn new(lake: LakeTable) -> Self {
        let spec = Arc::new(lake.spec().clone());
        let committed_spec = Arc::clone(&spec);
        Self {
            lake,
            spec,
            committed_spec,
            delta: Delta::default(),
            rewritten: None,
            full: Arc::default(),
            commit: None,
            seq: 0,
        }
    }

    /// A copy of the table is in these files, each of its rows as [`Operation::Copy`], counted from 2.
    pub(crate) fn take_copied(&mut self, files: Vec<WrittenFile>, snapshot: Snapshot, seen: &Seen) -> Result<()> {
        self.delta.stage(files);
        self.remember(seen);
        let nothing = self.nothing();
        self.append(&Marks::of_copy(Operation::Truncate, snapshot, 1), &nothing, None)
    }

    /// Whether its columns are these, and its own.
    pub(crate) fn has_columns_of(&self, table: &TableSpec) -> bool {
        described(table, Some(&self.lake)).is_ok_and(|described| described.is_same_but_for_companions(&self.spec))
    }

    /// Follows the table's columns.
    ///
    /// # Errors
    /// As [`described`].
    pub(crate) fn change_columns(&mut self, table: &TableSpec, seen: &Seen) -> Result<()> {
        let spec = described(table, Some(&self.lake))?;
        self.delta.change_columns(&spec)?;
        self.spec = Arc::new(spec);
        self.remember(seen);
        Ok(())
    }

    fn remember(&mut self, seen: &Seen) {
        self.lake = self.lake.evolved((*self.spec).clone(), remark::of(&self.spec, seen));
    }

    /// Whether a column needs a companion that it has not got: [`Self::change_columns`] is to follow.
    pub(crate) fn new_companions(&mut self) -> Option<Vec<i32>> {
        self.delta.new_companions()
    }

    /// What is recorded from now on belongs to this transaction.
    pub(crate) fn enter(&mut self, commit: Commit) {
        if self.commit != Some(commit) {
            (self.commit, self.seq) = (Some(commit), 0);
        }
    }

    /// Records a change; `cells` are the table's, and those that are unchanged are in `old`. A row that is gone has as many as
    /// the source tells. Not inlined: most tables have no history, and what applies their changes is to stay small.
    #[inline(never)]
    pub(super) fn record(&mut self, operation: Operation, cells: &[Cell<'_>], old: Option<OldRow<'_>>) -> Result<()> {
        let Some(commit) = self.commit else {
            return Err(Error::new(ErrorKind::Protocol, "a change is to be recorded outside a transaction"));
        };
        self.seq += 1;
        let marks = Marks::of_change(operation, commit, self.seq);
        if matches!(operation, Operation::Insert | Operation::Update) {
            return self.append(&marks, cells, old);
        }
        let mut told = self.nothing();
        for (to, cell) in told.iter_mut().zip(cells).filter(|(_, cell)| **cell != Cell::Unchanged) {
            *to = *cell;
        }
        self.append(&marks, &told, None)
    }

    /// A row of the table without a value.
    fn nothing<'a>(&self) -> Cells<'a> {
        Cells::from_elem(Cell::Null, self.spec.columns.len() - MARKS.len())
    }

    fn append(&mut self, marks: &Marks, cells: &[Cell<'_>], old: Option<OldRow<'_>>) -> Result<()> {
        self.delta.insert_only(&self.spec, &marks.behind(cells), old)
    }

    pub(crate) fn has_changes(&self) -> bool {
        !self.delta.is_empty() || self.spec != self.committed_spec || self.rewritten.is_some()
    }

    /// Files have been rewritten: these data files take the place of those. Some are full.
    pub(crate) fn take_rewritten(&mut self, removed: Vec<String>, data: Vec<WrittenFile>, full: Vec<String>) {
        let known = Arc::make_mut(&mut self.full);
        known.extend(full);
        for path in &removed {
            known.remove(path);
        }
        self.rewritten = Some(Rewrite { removed, data, ..Rewrite::default() });
    }

    /// Files that are as large as they are wanted. (After a start, none is known.)
    pub(crate) fn full_files(&self) -> Arc<BTreeSet<String>> {
        Arc::clone(&self.full)
    }

    /// Whether rewritten files wait for their commit.
    pub(crate) fn has_rewritten(&self) -> bool {
        self.rewritten.is_some()
    }

    pub(crate) fn pending_bytes(&self) -> usize {
        self.delta.bytes()
    }

    pub(crate) fn staged_paths(&self) -> Vec<String> {
        let rewritten = self.rewritten.iter().flat_map(|rewritten| &rewritten.data);
        self.delta.staged.iter().chain(rewritten).map(|file| file.path.clone()).collect()
    }

    /// As [`MirroredTable::pending`](super::MirroredTable::pending): nothing is ever deleted.
    pub(crate) fn pending(&mut self) -> Result<Pending> {
        let (batches, staged) = (self.delta.live_batches()?, self.delta.staged.clone());
        let alone = self.delta.is_empty() && self.rewritten.is_some();
        let rewrite = Rewrite { alone, ..self.rewritten.clone().unwrap_or_default() };
        Ok(Pending { batches, staged, rewrite, ..Pending::default() })
    }

    /// The rows in memory, to be written for [`Self::stage`].
    pub(crate) fn fresh_batches(&mut self) -> Result<Vec<RecordBatch>> {
        self.delta.live_batches()
    }

    /// Takes note that what [`Self::fresh_batches`] gave is in these files, which the next commit adds.
    pub(crate) fn stage(&mut self, written: Vec<WrittenFile>) {
        self.delta.stage(written);
    }

    /// Takes note that what [`Self::pending`] gave is in Iceberg, as `lake`.
    pub(crate) fn committed(&mut self, lake: LakeTable) {
        self.committed_spec = Arc::clone(&self.spec);
        self.lake = lake;
        self.rewritten = None;
        self.delta = Delta::default();
    }
}

#[cfg(test)]
mod tests;
