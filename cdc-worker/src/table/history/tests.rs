use std::collections::BTreeMap;

use arrow_array::Array as _;
use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use iceberg_writer::{Format, Partition, StoreOptions, Warehouse};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::decode::message::Tuple;
use crate::decode::row::{RowBuilder, key_of_cells};
use crate::table::{FileState, IndexStore, IndexWriter, MirroredTable, OldValues, Position, RowIdentity, Shape, Step};

/// Value, and value out of line.
type Heap = BTreeMap<i64, (i64, String)>;

#[derive(Debug, Clone)]
enum Statement {
    Insert { key: i64 },
    Update { key: i64, to: i64, large: bool },
    Delete { key: i64 },
    Truncate,
}

fn statement() -> impl Strategy<Value = Statement> {
    let key = || 0i64..6;
    prop_oneof![
        4 => key().prop_map(|key| Statement::Insert { key }),
        6 => (key(), key(), any::<bool>(), any::<bool>())
            .prop_map(|(key, other, moves, large)| Statement::Update { key, to: if moves { other } else { key }, large }),
        3 => key().prop_map(|key| Statement::Delete { key }),
        1 => Just(Statement::Truncate),
    ]
}

fn spec(identity: RowIdentity) -> TableSpec {
    let column = |name: &str, field_id, pg_type| ColumnSpec {
        name: name.to_owned(),
        field_id,
        pg_type,
        type_oid: 0,
        typmod: -1,
        required: false,
        companion: false,
    };
    let columns = vec![column("k", 1, PgType::Int8), column("v", 2, PgType::Int8), column("large", 4, PgType::Text)];
    let key = if identity == RowIdentity::Key { vec![0] } else { Vec::new() };
    TableSpec { namespace: "public".to_owned(), name: "t".to_owned(), columns, key }
}

fn tuple(key: i64, row: &(i64, String), unchanged: bool) -> Tuple {
    let large = if unchanged { Cell::Unchanged } else { Cell::Binary(row.1.as_bytes()) };
    Tuple::of(&[Cell::Binary(&key.to_be_bytes()), Cell::Binary(&row.0.to_be_bytes()), large])
}

/// What the source tells of a row that is gone.
fn old(identity: RowIdentity, key: i64, row: &(i64, String)) -> Tuple {
    match identity {
        RowIdentity::Key => Tuple::of(&[Cell::Binary(&key.to_be_bytes()), Cell::Null, Cell::Null]),
        _ => tuple(key, row, false),
    }
}

fn warehouse(directory: &std::path::Path) -> Warehouse {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = format!("file://{}", directory.display());
    runtime.block_on(Warehouse::open(&url, &StoreOptions::default())).unwrap()
}

/// A mirror of a heap, as it was copied into one file, and its history.
struct Kept {
    _directory: TempDir,
    identity: RowIdentity,
    stored: Vec<(i64, (i64, String))>,
    table: MirroredTable,
    history: History,
    heap: Heap,
    rows: Vec<RecordBatch>,
    values: i64,
}

impl Kept {
    fn new(identity: RowIdentity) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let warehouse = warehouse(directory.path());
        let spec = spec(identity);
        let heap: Heap = (0..4).map(|key| (key, (key, format!("large {key}")))).collect();
        let stored: Vec<_> = heap.clone().into_iter().collect();
        let index = IndexStore::create(&directory.path().join("index")).unwrap().table(identity);
        let mut writer = IndexWriter::new(index.clone());
        for ((key, row), place) in stored.iter().zip(0..) {
            let mut bytes = Vec::new();
            let tuple = tuple(*key, row, false);
            key_of_cells(&spec, &identity.columns(&spec), &tuple.cells().unwrap(), &mut bytes).unwrap();
            writer.put(&bytes, Position { file: 0, row: place }).unwrap();
        }
        writer.finish().unwrap();
        let file = FileState {
            path: "file".into(),
            rows: 4,
            bytes: 1,
            deleted: Arc::default(),
            full: false,
            partition: Partition::default(),
            is_sorted: false,
            ranges: Arc::default(),
        };
        let kept = described(&spec, None).unwrap();
        let prepare = |spec| LakeTable::prepare(&warehouse, spec, Format::V2, None, None).unwrap();
        let (lake, kept) = (prepare(spec.clone()), prepare(kept));
        let table = MirroredTable::new(1, Arc::new(spec), identity, lake, vec![file], index);
        let mut history = History::new(kept);
        let mut rows = vec![base(&history, &stored)];
        history.take_copied(Vec::new(), SNAPSHOT, &Shape::default().seen()).unwrap();
        rows.extend(history.fresh_batches().unwrap());
        history.stage(Vec::new());
        Self { _directory: directory, identity, stored, table, history, heap, rows, values: 100 }
    }

    /// Runs a statement, if the source would let it run; how many rows of the history it makes.
    fn run(&mut self, statement: &Statement) -> usize {
        self.values += 1;
        let (identity, value) = (self.identity, self.values);
        let large = format!("large {value}");
        let history = Some(&mut self.history);
        match *statement {
            Statement::Insert { key } => {
                if self.heap.contains_key(&key) {
                    return 0;
                }
                let row = (value, large);
                self.table.insert(&tuple(key, &row, false), history).unwrap();
                self.heap.insert(key, row);
                1
            }
            Statement::Delete { key } => {
                let Some(row) = self.heap.remove(&key) else { return 0 };
                self.table.delete(&old(identity, key, &row), history).unwrap();
                1
            }
            Statement::Truncate => {
                self.heap.clear();
                self.table.truncate(history).unwrap();
                1
            }
            Statement::Update { key, to, large: changes } => {
                if key != to && self.heap.contains_key(&to) {
                    return 0;
                }
                let Some(before) = self.heap.remove(&key) else { return 0 };
                let row = (value, if changes { large } else { before.1.clone() });
                let told = identity != RowIdentity::Key || key != to;
                let (old, new) = (told.then(|| old(identity, key, &before)), tuple(to, &row, !changes));
                let step = self.table.update(old.as_ref(), &new, OldValues::Unknown, history).unwrap();
                if let Step::NeedsOldRow(position) = step {
                    let batch = whole(&spec(identity), &self.stored[position.row as usize..][..1]);
                    let values = OldValues::Of(&batch);
                    let step = self.table.update(old.as_ref(), &new, values, Some(&mut self.history)).unwrap();
                    assert_eq!(step, Step::Done);
                }
                self.heap.insert(to, row);
                if told { 2 } else { 1 }
            }
        }
    }
}

const SNAPSHOT: Snapshot = Snapshot { at: Lsn::from_u64(1000), taken_us: 5_000_000 };

fn whole(spec: &TableSpec, rows: &[(i64, (i64, String))]) -> RecordBatch {
    let mut builder = RowBuilder::new(spec).unwrap();
    for (key, row) in rows {
        builder.append(spec, &tuple(*key, row, false).cells().unwrap(), None).unwrap();
    }
    builder.finish().unwrap()
}

/// The rows of the copy, as `source::copy` writes them.
fn base(history: &History, rows: &[(i64, (i64, String))]) -> RecordBatch {
    let mut builder = RowBuilder::new(&history.spec).unwrap();
    for ((key, row), number) in rows.iter().zip(2..) {
        let (tuple, marks) = (tuple(*key, row, false), Marks::of_copy(Operation::Copy, SNAPSHOT, number));
        builder.append(&history.spec, &marks.behind(&tuple.cells().unwrap()), None).unwrap();
    }
    builder.finish().unwrap()
}

#[derive(Debug, Clone)]
struct Change {
    lsn: i64,
    seq: i64,
    time_us: i64,
    xid: Option<i64>,
    operation: String,
    key: Option<i64>,
    row: Option<(i64, String)>,
}

fn changes(batches: &[RecordBatch]) -> Vec<Change> {
    let mut changes = Vec::new();
    for batch in batches {
        let long = |column: usize, row: usize| {
            let array = batch.column(column).as_primitive::<Int64Type>();
            array.is_valid(row).then(|| array.value(row))
        };
        for row in 0..batch.num_rows() {
            let large = batch.column(2).as_string::<i32>();
            changes.push(Change {
                operation: batch.column(3).as_string::<i32>().value(row).to_owned(),
                lsn: long(4, row).unwrap(),
                time_us: batch.column(5).as_primitive::<TimestampMicrosecondType>().value(row),
                xid: long(6, row),
                seq: long(7, row).unwrap(),
                key: long(0, row),
                row: long(1, row).map(|value| (value, large.value(row).to_owned())),
            });
        }
    }
    changes.sort_by_key(|change| (change.lsn, change.seq));
    changes
}

fn replay(changes: &[Change], before: i64) -> Heap {
    let mut heap = Heap::new();
    for change in changes.iter().filter(|change| change.lsn < before) {
        match (change.operation.as_str(), change.key) {
            ("truncate", None) => heap.clear(),
            ("delete", Some(key)) => assert!(heap.remove(&key).is_some(), "{change:?}"),
            ("copy" | "insert", Some(key)) => {
                assert!(heap.insert(key, change.row.clone().unwrap()).is_none(), "{change:?}");
            }
            ("update", Some(key)) => drop(heap.insert(key, change.row.clone().unwrap())),
            _ => panic!("{change:?}"),
        }
    }
    heap
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn the_history_tells_the_table_before_every_transaction_and_behind_it(
        transactions in proptest::collection::vec(proptest::collection::vec(statement(), 1..6), 1..12),
        by_key in any::<bool>(),
        staged in proptest::collection::vec(any::<bool>(), 12),
    ) {
        let mut kept = Kept::new(if by_key { RowIdentity::Key } else { RowIdentity::FullRow });
        // A transaction may begin right where the snapshot's position is.
        let mut moments = vec![(1000, kept.heap.clone())];
        let (mut expected, mut counts) = (5, Vec::new());
        for ((statements, lsn), stage) in transactions.iter().zip((1000..).step_by(8)).zip(staged) {
            let commit = Commit { lsn: Lsn::from_u64(lsn), time_us: 7_000_000 + lsn.cast_signed(), xid: 9 + lsn as u32 };
            let mut rows = 0;
            for statement in statements {
                kept.history.enter(commit);
                rows += kept.run(statement);
            }
            expected += rows;
            counts.push((lsn.cast_signed(), rows as i64));
            moments.push((lsn.cast_signed() + 1, kept.heap.clone()));
            if stage {
                kept.rows.extend(kept.history.fresh_batches().unwrap());
                kept.history.stage(Vec::new());
            }
        }
        kept.rows.extend(kept.history.fresh_batches().unwrap());
        let changes = changes(&kept.rows);
        prop_assert_eq!(changes.len(), expected);
        for (lsn, rows) in counts {
            let seqs: Vec<i64> = changes.iter().filter(|change| change.lsn == lsn).map(|change| change.seq).collect();
            prop_assert_eq!(seqs, (1..=rows).collect::<Vec<_>>());
        }
        for change in &changes {
            let wanted = match change.lsn {
                999 => (5_000_000, None),
                lsn => (7_000_000 + lsn, Some(9 + lsn)),
            };
            prop_assert_eq!((change.time_us, change.xid), wanted);
        }
        for (before, heap) in moments {
            prop_assert_eq!(replay(&changes, before), heap, "before {}", before);
        }
    }
}

#[test]
fn names_and_numbers_of_its_own_are_kept_apart() {
    let mut table = spec(RowIdentity::Key);
    let numbers = |spec: &TableSpec| spec.columns.iter().map(|column| column.field_id).collect::<Vec<_>>();
    let described = described(&table, None).unwrap();
    assert_eq!(numbers(&described), [1, 2, 4, 30_001, 30_002, 30_003, 30_004, 30_005]);
    assert!(is_history(&described) && !is_history(&table) && described.key.is_empty());
    assert_eq!((described.name.as_str(), may_be_named(&described.name)), ("t_history", true));
    let id = Uuid::from_u128(7);
    assert!(uuid_beside(id) != id && uuid_beside(uuid_beside(id)) == id);
    // A type that cannot be read as what is there makes another column, and the former type the former one.
    let directory = tempfile::tempdir().unwrap();
    let warehouse = warehouse(directory.path());
    let lake = LakeTable::prepare(&warehouse, described, Format::V2, None, None).unwrap();
    table.columns[1].pg_type = PgType::Text;
    let renumbered = super::described(&table, Some(&lake)).unwrap();
    assert_eq!(numbers(&renumbered)[..3], [1, 2002, 4]);
    table.columns[1].pg_type = PgType::Money;
    assert_eq!(numbers(&super::described(&table, Some(&lake)).unwrap())[..3], [1, 2, 4]);
    // As long as it can it keeps the number that it has.
    let lake = lake.evolved(renumbered, String::new());
    assert_eq!(numbers(&super::described(&table, Some(&lake)).unwrap())[..3], [1, 2002, 4]);
    for name in ["_op", "_LSN", "_committed_at", "_xid", "_Seq"] {
        table.columns[1].name = name.to_owned();
        let error = super::described(&table, None).unwrap_err();
        assert!(error.report().contains(name) && error.hint().is_some());
    }
}
