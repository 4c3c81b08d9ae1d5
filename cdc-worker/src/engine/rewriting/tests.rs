//! Files are rewritten while rows come and go: the table stays what a plain list of rows says it is, for who reads it
//! through the worker and for who reads its files.

use std::collections::BTreeMap;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use iceberg_writer::{ColumnSpec, Format, Layout, PgType, StoreOptions, TableSpec, WrittenFile};
use proptest::prelude::*;

use super::super::stage::write_rows;
use super::*;
use crate::decode::message::{Cell, Tuple};
use crate::table::{IndexStore, MirroredTable, OldValues, Step, WrittenRows};

/// A row: its key, and a value.
type Row = (i64, i64);

#[derive(Debug, Clone)]
enum Happening {
    Insert(i64),
    /// The value, or the key too.
    Update(usize, Option<i64>),
    Delete(usize),
    Stage,
    Commit,
    Truncate,
    Begin(Extent),
    Finish,
    Fail,
}

fn happening() -> impl Strategy<Value = Happening> {
    let extent = prop_oneof![Just(Extent::Due), Just(Extent::All)];
    prop_oneof![
        12 => (0i64..30).prop_map(Happening::Insert),
        6 => (any::<usize>(), proptest::option::of(0i64..30)).prop_map(|(row, key)| Happening::Update(row, key)),
        6 => any::<usize>().prop_map(Happening::Delete),
        1 => Just(Happening::Stage),
        8 => Just(Happening::Commit),
        1 => Just(Happening::Truncate),
        6 => extent.prop_map(Happening::Begin),
        5 => Just(Happening::Finish),
        1 => Just(Happening::Fail),
    ]
}

fn spec(identity: RowIdentity) -> TableSpec {
    let column = |name: &str, field_id, required| ColumnSpec {
        name: name.to_owned(),
        field_id,
        pg_type: PgType::Int8,
        type_oid: 20,
        typmod: -1,
        required,
        companion: false,
    };
    let key = if identity == RowIdentity::Key { vec![0] } else { Vec::new() };
    TableSpec {
        namespace: "public".to_owned(),
        name: "t".to_owned(),
        columns: vec![column("k", 1, true), column("v", 2, false)],
        key,
    }
}

fn tuple((key, value): Row) -> Tuple {
    Tuple::of(&[Cell::Binary(&key.to_be_bytes()), Cell::Binary(&value.to_be_bytes())])
}

/// A table, the files that Iceberg has of it, and the rows that it should have.
struct Rig {
    shop: Workshop,
    lake: LakeTable,
    table: MirroredTable,
    identity: RowIdentity,
    committed: BTreeMap<String, RoaringTreemap>,
    rows: Vec<Row>,
    committed_rows: Vec<Row>,
    order: Option<Order>,
    rewritten: u64,
    next: i64,
    _directory: tempfile::TempDir,
}

impl Rig {
    async fn new(identity: RowIdentity, format: Format, layout: Layout) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("file://{}/lake", directory.path().display());
        let warehouse = Arc::new(Warehouse::open(&url, &StoreOptions::default()).await.unwrap());
        let spec = spec(identity);
        let lake = LakeTable::prepare(&warehouse, spec.clone(), format, None, None).unwrap().laid_out(&layout);
        let index = IndexStore::create(&directory.path().join("index")).unwrap().table(identity);
        let table = MirroredTable::new(1, Arc::new(spec), identity, lake.clone(), Vec::new(), index);
        // It is never connected.
        let config = tokio_postgres::Config::new();
        let catalog = Arc::new(MirrorCatalog::in_source(config, "lake_catalog", "lake", (*warehouse).clone()));
        let wanted = Wanted { file_bytes: 1 << 20, tier_files: 2 };
        let shop = Workshop { catalog, warehouse, epoch: 1, wanted, bytes_per_second: 1 << 40 };
        Self {
            shop,
            lake,
            table,
            identity,
            committed: BTreeMap::new(),
            rows: Vec::new(),
            committed_rows: Vec::new(),
            order: None,
            rewritten: 0,
            next: 0,
            _directory: directory,
        }
    }

    /// The key of a new row: one that no row has, where it tells rows apart.
    fn is_free(&self, key: i64) -> bool {
        self.identity != RowIdentity::Key || self.rows.iter().all(|row| row.0 != key)
    }

    fn value(&mut self) -> i64 {
        self.next += 1;
        // Without a key, rows are often equal.
        if self.identity == RowIdentity::Key { self.next } else { self.next % 3 }
    }

    async fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Insert(key) if self.is_free(key) => {
                let row = (key, self.value());
                self.table.insert(&tuple(row), None).unwrap();
                self.rows.push(row);
            }
            Happening::Update(at, key) if !self.rows.is_empty() => {
                let old = self.rows.remove(at % self.rows.len());
                let key = key.filter(|key| self.is_free(*key)).unwrap_or(old.0);
                let new = (key, self.value());
                let told = (self.identity != RowIdentity::Key || key != old.0).then(|| tuple(old));
                let step = self.table.update(told.as_ref(), &tuple(new), OldValues::Unknown, None).unwrap();
                assert_eq!(step, Step::Done);
                self.rows.push(new);
            }
            Happening::Delete(at) if !self.rows.is_empty() => {
                let row = self.rows.remove(at % self.rows.len());
                self.table.delete(&tuple(row), None).unwrap();
            }
            Happening::Stage => {
                let batches = self.table.fresh_batches().unwrap();
                let written = self.write(&batches).await;
                self.table.stage(written).unwrap();
            }
            Happening::Commit => self.commit().await,
            Happening::Truncate => {
                self.table.truncate(None).unwrap();
                self.rows.clear();
            }
            Happening::Begin(extent) if self.order.is_none() && !self.table.has_rewritten() => {
                self.order = self.table.begin_compaction(self.shop.wanted, extent).unwrap();
            }
            Happening::Finish => {
                if let Some(order) = self.order.take() {
                    // Nothing is committed, so nobody knows where rows come from.
                    let outputs = rewrite_rows(&self.shop, &order, None).await.unwrap();
                    let waits = self.table.waits_for(&order);
                    assert_eq!(self.table.compacted(&order, outputs).unwrap(), waits);
                    self.rewritten += u64::from(waits);
                }
            }
            Happening::Fail if self.order.take().is_some() => drop(self.table.give_up_compaction().unwrap()),
            _ => {}
        }
        self.check().await;
    }

    async fn write(&self, batches: &[RecordBatch]) -> WrittenRows {
        write_rows(&self.shop.warehouse, &self.lake, 1, Uuid::now_v7(), 1 << 20, batches).await.unwrap()
    }

    /// As a commit does, in the order of the specification: files go, files come, and positions of any of them.
    async fn commit(&mut self) {
        let pending = self.table.pending().unwrap();
        let written = self.write(&pending.batches).await;
        if pending.truncate {
            self.committed.clear();
        }
        for path in &pending.rewrite.removed {
            assert!(self.committed.remove(path).is_some(), "{path} is not there");
        }
        if pending.rewrite.alone {
            assert!(written.files.is_empty() && pending.staged.is_empty() && !pending.truncate);
            assert_eq!(sorted(&self.rows), sorted(&self.committed_rows));
        }
        for file in pending.staged.iter().chain(&written.files).chain(&pending.rewrite.data) {
            self.committed.insert(file.path.clone(), RoaringTreemap::new());
            self.check_file(file).await;
        }
        if pending.rewrite.all_deletes {
            assert_eq!(self.lake.format(), Format::V2);
            self.committed.values_mut().for_each(|deleted| *deleted = RoaringTreemap::new());
        }
        for (path, rows) in pending.deletes {
            let deleted = self.committed.get_mut(&path).unwrap();
            match self.lake.format() {
                Format::V2 => *deleted |= rows.positions,
                Format::V3 => {
                    assert!(deleted.is_subset(&rows.positions), "a vector has all that is deleted");
                    *deleted = rows.positions;
                }
            }
        }
        self.table.committed(self.lake.clone(), &written).unwrap();
        self.committed_rows.clone_from(&self.rows);
        let found = self.read(self.committed.iter().map(|(path, deleted)| (path.as_str(), deleted))).await;
        assert_eq!(found, sorted(&self.rows), "what Iceberg has");
    }

    /// Rows of one partition, in order if the file says so; a table with an order has no other files here.
    async fn check_file(&self, file: &WrittenFile) {
        let batches = scan_columns(&self.shop.warehouse, &self.lake, &file.path, &[0, 1]).await.unwrap();
        let batches: Vec<RecordBatch> = batches.try_collect().await.unwrap();
        let rows: Vec<Row> = batches.iter().flat_map(rows_of).collect();
        let mut divider = iceberg_writer::Divider::new(&self.lake).unwrap();
        for batch in &batches {
            divider.divide(batch).unwrap();
        }
        assert_eq!((divider.count(), divider.partition(0)), (1, Some(&file.partition)));
        assert_eq!(file.is_sorted(), self.lake.sorted_by().unwrap() != 0);
        assert!(!file.is_sorted() || rows.is_sorted_by_key(|row| std::cmp::Reverse(row.1)), "{rows:?}");
    }

    /// What readers are shown.
    async fn check(&mut self) {
        let pin = self.table.pin(&Vec::new()).unwrap();
        let mut rows = self.read(pin.files.iter().map(|file| (&*file.path, &*file.deleted))).await;
        for batch in &pin.fresh {
            rows.extend(rows_of(batch));
        }
        assert_eq!(sorted(&rows), sorted(&self.rows), "what the worker shows");
        let pin = self.table.pin_committed(&Vec::new());
        let rows = self.read(pin.files.iter().map(|file| (&*file.path, &*file.deleted))).await;
        assert_eq!(rows, sorted(&self.committed_rows), "what it shows of Iceberg");
    }

    async fn read<'a>(&self, files: impl Iterator<Item = (&'a str, &'a RoaringTreemap)>) -> Vec<Row> {
        let mut rows = Vec::new();
        for (path, deleted) in files {
            let batches = scan_columns(&self.shop.warehouse, &self.lake, path, &[0, 1]).await.unwrap();
            let batches: Vec<RecordBatch> = batches.try_collect().await.unwrap();
            let all = batches.iter().flat_map(rows_of).zip(0..);
            rows.extend(all.filter(|(_, position)| !deleted.contains(*position)).map(|(row, _)| row));
        }
        sorted(&rows)
    }
}

fn rows_of(batch: &RecordBatch) -> Vec<Row> {
    let (keys, values) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_primitive::<Int64Type>());
    keys.values().iter().copied().zip(values.values().iter().copied()).collect()
}

fn sorted(rows: &[Row]) -> Vec<Row> {
    let mut rows = rows.to_vec();
    rows.sort_unstable();
    rows
}

/// No layout, partitions, an order, and both.
fn layouts() -> [Layout; 4] {
    [("", ""), ("truncate(10, k)", ""), ("", "v DESC"), ("bucket(3, k)", "v DESC, k")]
        .map(|(partition_by, sort_by)| Layout::parse(partition_by, sort_by, &spec(RowIdentity::Key).columns).unwrap())
}

fn run(format: Format, identity: RowIdentity, layout: Layout, happenings: Vec<Happening>) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut rig = Rig::new(identity, format, layout).await;
        for happening in happenings {
            rig.happen(happening).await;
        }
        rig.happen(Happening::Commit).await;
        rig.rewritten
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]
    #[test]
    fn a_table_with_a_key_is_the_same_when_its_files_are_rewritten(
        happenings in proptest::collection::vec(happening(), 1..120),
        layout in 0usize..4,
    ) {
        run(Format::V2, RowIdentity::Key, layouts()[layout].clone(), happenings.clone());
        run(Format::V3, RowIdentity::Key, layouts()[layout].clone(), happenings);
    }

    #[test]
    fn a_table_of_equal_rows_is_the_same_when_its_files_are_rewritten(
        happenings in proptest::collection::vec(happening(), 1..120),
        layout in 0usize..4,
    ) {
        run(Format::V2, RowIdentity::FullRow, layouts()[layout].clone(), happenings);
    }
}

#[test]
fn rows_are_deleted_before_during_and_after_a_rewrite() {
    for identity in [RowIdentity::Key, RowIdentity::FullRow] {
        let insert = |keys: std::ops::Range<i64>| keys.map(Happening::Insert).collect::<Vec<_>>();
        let mut happenings = insert(0..10);
        happenings.push(Happening::Commit);
        happenings.extend(insert(10..20));
        // Committed before it, pending at it, committed during it, pending at its end, after it.
        happenings.extend([Happening::Commit, Happening::Delete(3), Happening::Commit, Happening::Delete(4)]);
        happenings.extend([
            Happening::Begin(Extent::All),
            Happening::Delete(5),
            Happening::Commit,
            Happening::Delete(5),
        ]);
        happenings.extend([Happening::Finish, Happening::Update(0, None), Happening::Commit, Happening::Delete(1)]);
        happenings.extend([Happening::Commit, Happening::Begin(Extent::All), Happening::Finish, Happening::Commit]);
        for layout in layouts() {
            for format in [Format::V2, Format::V3] {
                assert!(run(format, identity, layout.clone(), happenings.clone()) >= 2);
            }
        }
    }
}
