//! Changes since the last commit of a table, folded by key.
//!
//! Invariant: a row of the delta is live (not in `dead`) exactly when `keys` maps its key to its ordinal. So at every
//! transaction's end the table is: the rows of its files, less the deleted positions, plus the live rows here.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Decimal128Type;
use arrow_array::{ArrayRef, BooleanArray, RecordBatch, new_null_array};
use arrow_schema::{DataType, FieldRef, SchemaRef};
use arrow_select::filter::filter_record_batch;
use iceberg_writer::{TableSpec, WrittenFile};
use roaring::RoaringTreemap;

use crate::Result;
use crate::decode::message::Cell;
use crate::decode::row::{OldRow, RowBuilder, field_id};
use crate::error::{COPY_ANEW, Error, ErrorKind};

use super::equal_rows::EqualRows;
use super::index::Position;
use super::keys::{Fate, Keys};

/// Rows after which a batch is sealed: large enough for Parquet and Arrow, small enough to convert without a pause.
const SEAL_ROWS: usize = 8192;
/// The same in bytes, for wide rows.
const SEAL_BYTES: usize = 4 << 20;
#[derive(Debug)]
struct Sealed {
    first: u64,
    batch: RecordBatch,
}

#[derive(Debug, Default)]
pub(super) struct Delta {
    /// None before the first row: its buffers are some ten kilobytes, and most tables of many are idle.
    builder: Option<RowBuilder>,
    sealed: Vec<Sealed>,
    sealed_rows: u64,
    sealed_bytes: usize,
    dead: RoaringTreemap,
    keys: Keys,
    /// In place of `keys`, for a table without a key.
    pub(super) equal: EqualRows,
    /// Deleted rows of the table's files, by index of the file.
    pub(super) deletes: BTreeMap<u32, RoaringTreemap>,
    /// All files from before are gone.
    pub(super) truncated: bool,
    /// Files whose rows Iceberg has not got: those of the initial copy, and those of [`Self::stage`].
    pub(super) staged: Vec<WrittenFile>,
    /// Columns that have got a companion with a row here, by field id, until the table has it.
    new_companions: Vec<i32>,
}

impl Delta {
    fn building(&self) -> u64 {
        self.builder.as_ref().map_or(0, |builder| builder.rows() as u64)
    }

    pub(super) fn is_empty(&self) -> bool {
        let rows = self.sealed_rows + self.building();
        rows == 0 && !self.truncated && self.staged.is_empty() && self.deletes.is_empty()
    }

    pub(super) fn live_rows(&self) -> u64 {
        self.sealed_rows + self.building() - self.dead.len()
    }

    pub(super) fn bytes(&self) -> usize {
        let building = self.builder.as_ref().map_or(0, RowBuilder::bytes);
        self.sealed_bytes + building + self.keys.bytes() + self.equal.bytes()
    }

    pub(super) fn fate(&self, key: &[u8]) -> Option<Fate> {
        self.keys.fate(key)
    }

    pub(super) fn fates(&self) -> impl Iterator<Item = (&[u8], Fate)> {
        self.keys.iter()
    }

    pub(super) fn insert(
        &mut self,
        spec: &TableSpec,
        key: &[u8],
        cells: &[Cell<'_>],
        old: Option<OldRow<'_>>,
    ) -> Result<()> {
        let ordinal = self.append(spec, cells, old)?;
        if let Some(Fate::Fresh(_)) = self.keys.settle(key, Fate::Fresh(ordinal)) {
            return Err(Self::twin());
        }
        Ok(())
    }

    /// A second row came with the key of another.
    pub(super) fn twin() -> Error {
        Error::new(ErrorKind::Table, "a key came twice, so it does not tell rows apart any more")
            .with_hint(format!("was the primary key of the source table dropped? {COPY_ANEW}"))
    }

    /// Adds a row of a table without a key.
    pub(super) fn insert_equal(&mut self, spec: &TableSpec, identity: &[u8], cells: &[Cell<'_>]) -> Result<()> {
        let ordinal = self.append(spec, cells, None)?;
        self.equal.add(identity, ordinal);
        Ok(())
    }

    /// Adds a row that will not be changed.
    pub(super) fn insert_only(&mut self, spec: &TableSpec, cells: &[Cell<'_>], old: Option<OldRow<'_>>) -> Result<()> {
        self.append(spec, cells, old)?;
        Ok(())
    }

    fn append(&mut self, spec: &TableSpec, cells: &[Cell<'_>], old: Option<OldRow<'_>>) -> Result<u64> {
        let ordinal = self.sealed_rows + self.building();
        let builder = match &mut self.builder {
            Some(builder) => builder,
            None => self.builder.insert(RowBuilder::new(spec)?),
        };
        if builder.append(spec, cells, old)? {
            self.new_companions = builder.companions(spec);
        }
        if builder.rows() >= SEAL_ROWS || builder.bytes() >= SEAL_BYTES {
            self.seal()?;
        }
        Ok(ordinal)
    }

    /// The columns that need a companion since the last call, by field id. [`Self::change_columns`] is to follow.
    pub(super) fn new_companions(&mut self) -> Option<Vec<i32>> {
        (!self.new_companions.is_empty()).then(|| std::mem::take(&mut self.new_companions))
    }

    /// Takes a live row of the delta out.
    pub(super) fn kill(&mut self, key: &[u8], ordinal: u64) {
        self.dead.insert(ordinal);
        self.keys.settle(key, Fate::Gone);
    }

    /// Records that a row in a file is gone.
    pub(super) fn delete(&mut self, key: &[u8], file: u32, row: u32) {
        self.deletes.entry(file).or_default().insert(u64::from(row));
        self.keys.settle(key, Fate::Gone);
    }

    /// Takes out a live row of the delta that [`EqualRows::newest`] gave.
    pub(super) fn kill_equal(&mut self, identity: &[u8], ordinal: u64) {
        self.dead.insert(ordinal);
        self.equal.remove_newest(identity);
    }

    /// Records that a row in a file is gone, of a table without a key.
    pub(super) fn delete_equal(&mut self, identity: &[u8], position: Position) {
        self.deletes.entry(position.file).or_default().insert(u64::from(position.row));
        self.equal.take_stored(identity, position);
    }

    pub(super) fn seal(&mut self) -> Result<()> {
        let Some(builder) = self.builder.as_mut().filter(|builder| builder.rows() > 0) else { return Ok(()) };
        let bytes = builder.bytes();
        let batch = builder.finish()?;
        let first = self.sealed_rows;
        self.sealed_rows += batch.num_rows() as u64;
        self.sealed_bytes += bytes;
        self.sealed.push(Sealed { first, batch });
        Ok(())
    }

    /// Gives all rows other columns.
    pub(super) fn change_columns(&mut self, to: &TableSpec) -> Result<()> {
        self.seal()?;
        self.builder = None;
        self.new_companions.clear();
        let schema = to.arrow_schema();
        for sealed in &mut self.sealed {
            sealed.batch = with_columns(&sealed.batch, &schema)?;
        }
        Ok(())
    }

    /// The batch that holds a row, and where in it.
    pub(super) fn row(&mut self, ordinal: u64) -> Result<(RecordBatch, usize)> {
        if ordinal >= self.sealed_rows {
            self.seal()?;
        }
        let at = self.sealed.partition_point(|sealed| sealed.first <= ordinal).checked_sub(1);
        let Some(sealed) = at.and_then(|at| self.sealed.get(at)) else {
            return Err(Error::new(ErrorKind::Table, "a row of the delta is missing"));
        };
        let row = usize::try_from(ordinal - sealed.first).unwrap_or(usize::MAX);
        Ok((sealed.batch.clone(), row))
    }

    /// The live rows in the order in which they came.
    pub(super) fn live_batches(&mut self) -> Result<Vec<RecordBatch>> {
        self.seal()?;
        let mut live = Vec::with_capacity(self.sealed.len());
        for sealed in &self.sealed {
            let rows = sealed.batch.num_rows() as u64;
            let end = sealed.first + rows;
            let dead = self.dead.rank(end - 1) - sealed.first.checked_sub(1).map_or(0, |last| self.dead.rank(last));
            if dead == rows {
                continue;
            }
            if dead == 0 {
                live.push(sealed.batch.clone());
                continue;
            }
            let mask: BooleanArray = (sealed.first..end).map(|ordinal| Some(!self.dead.contains(ordinal))).collect();
            let batch = filter_record_batch(&sealed.batch, &mask)
                .map_err(|error| Error::new(ErrorKind::Table, "filter live rows").with_source(error))?;
            live.push(batch);
        }
        Ok(live)
    }

    /// The place of a live row among the live rows.
    pub(super) fn live_index(&self, ordinal: u64) -> u64 {
        // `rank` counts up to and including; a live ordinal is not in `dead`.
        ordinal - self.dead.rank(ordinal)
    }

    /// Forgets the rows, which are in these files now.
    pub(super) fn stage(&mut self, written: Vec<WrittenFile>) {
        let Self { deletes, truncated, mut staged, .. } = std::mem::take(self);
        staged.extend(written);
        *self = Self { deletes, truncated, staged, ..Self::default() };
    }

    /// Starts again, empty, after a TRUNCATE. The caller sees to the staged files: a reader may hold them.
    pub(super) fn truncate(&mut self) {
        *self = Self { truncated: true, ..Self::default() };
    }
}

/// The same rows with other columns: those of the same field id, and NULL.
pub(crate) fn with_columns(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let fail = |error| Error::new(ErrorKind::Table, "give rows in memory other columns").with_source(error);
    let known = batch.schema();
    let column = |field: &FieldRef| {
        let wanted = field.data_type();
        let Some(place) = known.fields().iter().position(|known| field_id(known) == field_id(field)) else {
            return Ok(new_null_array(wanted, batch.num_rows()));
        };
        let array = batch.column(place);
        match (array.as_primitive_opt::<Decimal128Type>(), wanted) {
            // More digits, of the same scale.
            (Some(numbers), &DataType::Decimal128(precision, scale)) if numbers.scale() == scale => {
                let wider = numbers.clone().with_precision_and_scale(precision, scale).map_err(fail)?;
                Ok(Arc::new(wider) as ArrayRef)
            }
            _ => Ok(Arc::clone(array)),
        }
    };
    let columns = schema.fields().iter().map(column).collect::<Result<Vec<_>>>()?;
    RecordBatch::try_new(Arc::clone(schema), columns).map_err(fail)
}

/// Shares a bitmap until somebody changes it.
pub(super) fn insert_shared(bitmap: &mut Arc<RoaringTreemap>, row: u64) {
    Arc::make_mut(bitmap).insert(row);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use arrow_array::types::Int64Type;
    use iceberg_writer::{ColumnSpec, PgType};
    use proptest::prelude::*;

    use super::*;
    use crate::decode::row::key_of_cells;

    fn spec() -> TableSpec {
        let column = |name: &str, field_id, pg_type, required| ColumnSpec {
            name: name.to_owned(),
            field_id,
            pg_type,
            type_oid: 0,
            typmod: -1,
            required,
            companion: false,
        };
        TableSpec {
            namespace: "public".to_owned(),
            name: "t".to_owned(),
            columns: vec![column("id", 1, PgType::Int8, true), column("v", 2, PgType::Text, false)],
            key: vec![0],
        }
    }

    /// What may happen to a key, in the order in which it happens.
    #[derive(Debug, Clone)]
    enum Happening {
        Put(i64, String),
        Remove(i64),
        Seal,
        Truncate,
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            6 => (0i64..20, "[a-z]{0,3}").prop_map(|(key, value)| Happening::Put(key, value)),
            3 => (0i64..20).prop_map(Happening::Remove),
            1 => Just(Happening::Seal),
            1 => Just(Happening::Truncate),
        ]
    }

    fn put(delta: &mut Delta, spec: &TableSpec, id: i64, value: &str) -> Result<()> {
        let id = id.to_be_bytes();
        let cells = [Cell::Binary(&id), Cell::Binary(value.as_bytes())];
        let mut key = Vec::new();
        key_of_cells(spec, &spec.key, &cells, &mut key)?;
        if let Some(Fate::Fresh(ordinal)) = delta.fate(&key) {
            delta.kill(&key, ordinal);
        }
        delta.insert(spec, &key, &cells, None)
    }

    fn contents(delta: &mut Delta) -> Vec<(i64, String)> {
        let mut rows = Vec::new();
        for batch in delta.live_batches().unwrap() {
            let (ids, values) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_string::<i32>());
            rows.extend((0..batch.num_rows()).map(|row| (ids.value(row), values.value(row).to_owned())));
        }
        rows
    }

    proptest! {
        #[test]
        fn the_delta_is_the_fold_of_its_changes(happenings in proptest::collection::vec(happening(), 0..200)) {
            let spec = spec();
            let mut delta = Delta::default();
            let mut model: BTreeMap<i64, String> = BTreeMap::new();
            for happening in happenings {
                match happening {
                    Happening::Put(id, value) => {
                        put(&mut delta, &spec, id, &value).unwrap();
                        model.insert(id, value);
                    }
                    Happening::Remove(id) => {
                        let raw = id.to_be_bytes();
                        let mut key = Vec::new();
                        key_of_cells(&spec, &spec.key, &[Cell::Binary(&raw)], &mut key).unwrap();
                        if let Some(Fate::Fresh(ordinal)) = delta.fate(&key) {
                            delta.kill(&key, ordinal);
                        }
                        model.remove(&id);
                    }
                    Happening::Seal => delta.seal().unwrap(),
                    Happening::Truncate => {
                        delta.truncate();
                        model.clear();
                    }
                }
            }
            let rows = contents(&mut delta);
            prop_assert_eq!(delta.live_rows(), rows.len() as u64);
            // Every live key's place among the live rows is where the row really is: positions in files depend on it.
            for (key, fate) in delta.fates() {
                if let Fate::Fresh(ordinal) = fate {
                    let at = usize::try_from(delta.live_index(ordinal)).unwrap();
                    let raw = rows[at].0.to_be_bytes();
                    let mut expected = Vec::new();
                    key_of_cells(&spec, &spec.key, &[Cell::Binary(&raw)], &mut expected).unwrap();
                    prop_assert_eq!(key, expected.as_slice());
                }
            }
            prop_assert_eq!(rows.into_iter().collect::<BTreeMap<_, _>>(), model);
        }
    }

    #[test]
    fn a_key_inserted_twice_is_an_error() {
        let spec = spec();
        let mut delta = Delta::default();
        let id = 1i64.to_be_bytes();
        let cells = [Cell::Binary(&id), Cell::Null];
        delta.insert(&spec, b"k", &cells, None).unwrap();
        assert_eq!(delta.insert(&spec, b"k", &cells, None).unwrap_err().kind(), ErrorKind::Table);
    }

    #[test]
    fn a_value_that_iceberg_has_not_is_kept_in_a_companion() {
        let mut spec = spec();
        spec.columns[1].pg_type = PgType::Date;
        let mut delta = Delta::default();
        let (id, infinity) = (1i64.to_be_bytes(), i32::MAX.to_be_bytes());
        let cells = [Cell::Binary(&id), Cell::Binary(&infinity)];
        let today = 0i32.to_be_bytes();
        delta.insert(&spec, b"a", &[Cell::Binary(&id), Cell::Binary(&today)], None).unwrap();
        assert_eq!(delta.new_companions(), None);
        delta.seal().unwrap();
        delta.insert(&spec, b"b", &[Cell::Binary(&id), Cell::Null], None).unwrap();
        delta.insert(&spec, b"c", &cells, None).unwrap();
        assert_eq!(delta.new_companions(), Some(vec![2]));
        let grown = spec.with_companions([2]);
        delta.change_columns(&grown).unwrap();
        delta.insert(&grown, b"d", &cells, None).unwrap();
        delta.insert(&grown, b"e", &[Cell::Binary(&id), Cell::Binary(&today)], None).unwrap();
        assert_eq!(delta.new_companions(), None);
        let batches = delta.live_batches().unwrap();
        let rows = arrow_select::concat::concat_batches(&grown.arrow_schema(), &batches).unwrap();
        let days: Vec<_> = rows.column(1).as_primitive::<arrow_array::types::Date32Type>().iter().collect();
        assert_eq!(days, [Some(10_957), None, None, None, Some(10_957)]);
        let companion: Vec<_> = rows.column_by_name("v__text").unwrap().as_string::<i32>().iter().collect();
        assert_eq!(companion, [None, None, Some("infinity"), Some("infinity"), None]);
    }
}
