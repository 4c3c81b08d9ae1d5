//! A pinned table as SQL: files without deletions, files with deletions, fresh rows.
//!
//! Two scans, not one a file: a scan has constant cost. `file_index` counts within a scan, so the deleted positions are
//! renumbered to the files of theirs. Nothing here filters on `filename`: that would renumber `file_index` underneath.

use std::fmt::Write;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_ipc::reader::StreamReader;
use arrow_schema::SchemaRef;
use roaring::RoaringTreemap;

use crate::error::{Error, ErrorKind};
use crate::instance::quote;
use crate::slot::{Slot, SlotData, Slots};

/// A column of a pinned table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanColumn {
    /// Iceberg field id; the SQL names the column `c<field id>`.
    pub field_id: i32,
    /// DuckDB type that the scan delivers.
    pub duckdb_type: String,
}

/// A data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanFile {
    /// Absolute path.
    pub path: String,
    /// Rows in it.
    pub rows: u64,
}

/// A pinned table, decoded.
#[derive(Debug)]
pub struct ScanTable {
    files: Vec<ScanFile>,
    deleted: Vec<Option<RoaringTreemap>>,
    fresh: Vec<RecordBatch>,
    schema: Option<SchemaRef>,
}

impl ScanTable {
    /// Decodes what the read service sent for a table: its deleted positions and its Arrow stream of fresh rows.
    ///
    /// # Errors
    /// [`ErrorKind::Pin`] when the bytes make no sense.
    pub fn decode(files: Vec<ScanFile>, deleted: &[u8], fresh: &[u8]) -> Result<Self, Error> {
        let deleted = decode_deleted(files.len(), deleted)?;
        let (schema, fresh) = decode_fresh(fresh)?;
        Ok(Self { files, deleted, fresh, schema })
    }

    /// Rows deleted from the files.
    pub fn deleted_rows(&self) -> u64 {
        self.deleted.iter().flatten().map(RoaringTreemap::len).sum()
    }

    /// Rows that no file has.
    pub fn fresh_rows(&self) -> u64 {
        self.fresh.iter().map(|batch| batch.num_rows() as u64).sum()
    }

    /// Parts the text from the data it refers to, and hands the data to the engine.
    pub(crate) fn admit(self, slots: &Arc<Slots>) -> PinnedScan {
        let mut plain = Vec::new();
        let mut holed = Vec::new();
        let mut bitmaps = Vec::new();
        for (file, deleted) in self.files.into_iter().zip(self.deleted) {
            match deleted {
                Some(bitmap) => {
                    holed.push(file);
                    bitmaps.push(bitmap);
                }
                None => plain.push(file),
            }
        }
        let rows = plain.iter().map(|file| file.rows).sum::<u64>()
            + holed.iter().zip(&bitmaps).map(|(file, deleted)| live_rows(file, deleted)).sum::<u64>()
            + self.fresh.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
        let has_fresh = self.fresh.iter().any(|batch| batch.num_rows() > 0);
        let schema = self.schema.as_ref().map(SchemaRef::clone);
        let held: u64 = holed.iter().map(|file| file.rows).sum();
        let unexpected = held - held / PASSED_BY_GUESS;
        let slot = slots.admit(SlotData { deleted: bitmaps, fresh: self.fresh, schema: self.schema, unexpected });
        PinnedScan { plain, holed, rows, has_fresh, schema, slot }
    }
}

/// Rows of a file that are not deleted.
fn live_rows(file: &ScanFile, deleted: &RoaringTreemap) -> u64 {
    // Who deletes a row that a file has not has deleted nothing.
    file.rows - file.rows.checked_sub(1).map_or(0, |last| deleted.rank(last))
}

fn decode_deleted(files: usize, mut bytes: &[u8]) -> Result<Vec<Option<RoaringTreemap>>, Error> {
    let broken = |what: &str| Error::new(ErrorKind::Pin, format!("deleted positions: {what}"));
    let mut deleted: Vec<Option<RoaringTreemap>> = (0..files).map(|_| None).collect();
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| broken("cut short"))?;
        let (index, length) = (u32::from_be_bytes([head[0], head[1], head[2], head[3]]), &head[4..]);
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let (bitmap, rest) = rest.split_at_checked(length).ok_or_else(|| broken("cut short"))?;
        let bitmap = RoaringTreemap::deserialize_from(bitmap).map_err(|error| broken(&error.to_string()))?;
        let place = deleted.get_mut(index as usize).ok_or_else(|| broken("a file that is not in the list"))?;
        if place.is_some() {
            return Err(broken("a file twice"));
        }
        *place = Some(bitmap).filter(|bitmap| !bitmap.is_empty());
        bytes = rest;
    }
    Ok(deleted)
}

fn decode_fresh(bytes: &[u8]) -> Result<(Option<SchemaRef>, Vec<RecordBatch>), Error> {
    if bytes.is_empty() {
        return Ok((None, Vec::new()));
    }
    let broken = |error: arrow_schema::ArrowError| Error::new(ErrorKind::Pin, format!("fresh rows: {error}"));
    let reader = StreamReader::try_new(bytes, None).map_err(broken)?;
    let schema = reader.schema();
    let batches = reader.collect::<Result<Vec<_>, _>>().map_err(broken)?;
    Ok((Some(schema), batches))
}

/// A pinned table that SQL can read, until this is dropped.
#[derive(Debug)]
pub struct PinnedScan {
    plain: Vec<ScanFile>,
    holed: Vec<ScanFile>,
    rows: u64,
    has_fresh: bool,
    schema: Option<SchemaRef>,
    slot: Slot,
}

impl PinnedScan {
    /// A parenthesised subquery with the columns `c<field id>`, in order; without any, one of as many rows.
    ///
    /// # Errors
    /// [`ErrorKind::Pin`] when the fresh rows lack a column.
    pub fn sql(&self, columns: &[ScanColumn]) -> Result<String, Error> {
        if columns.is_empty() {
            // How many rows there are is known without looking into a file.
            return Ok(format!("(SELECT 1 AS c0 FROM range({}))", self.rows));
        }
        if let Some(schema) = self.schema.as_ref().filter(|_| self.has_fresh) {
            for ScanColumn { field_id, .. } in columns {
                if schema.index_of(&format!("c{field_id}")).is_err() {
                    let message = format!("the fresh rows have no column for field {field_id}");
                    return Err(Error::new(ErrorKind::Pin, message));
                }
            }
        }
        let slot = self.slot.number();
        let list = |item: fn(&ScanColumn) -> String| columns.iter().map(item).collect::<Vec<String>>().join(", ");
        let names = list(|column| format!("c{}", column.field_id));
        let mut parts = Vec::new();
        // The first of them, as a rule the largest, is the one by which DuckDB judges how many different values there are.
        if !self.holed.is_empty() {
            let keep = format!("lake_live({slot}, file_index, file_row_number)");
            parts.push(format!("SELECT {names} FROM {} WHERE {keep}", read_parquet(columns, &self.holed)));
        }
        if !self.plain.is_empty() {
            parts.push(format!("SELECT {names} FROM {}", read_parquet(columns, &self.plain)));
        }
        if self.has_fresh {
            let casts = list(|column| format!("CAST(c{0} AS {1}) AS c{0}", column.field_id, column.duckdb_type));
            parts.push(format!("SELECT {casts} FROM lake_fresh({slot})"));
        }
        if !self.has_fresh && (parts.is_empty() || !self.holed.is_empty()) {
            let nulls = list(|column| format!("CAST(NULL AS {1}) AS c{0}", column.field_id, column.duckdb_type));
            parts.push(format!("SELECT {nulls} FROM lake_fresh({slot})"));
        }
        Ok(format!("({})", parts.join(" UNION ALL ")))
    }
}

/// A filter that DuckDB knows nothing of lets one row in so many through, as it guesses; the deleted rows are few. The others it is told to
/// expect among the fresh ones, so that its guess comes out right, and joins are in the order that they have without deleted rows.
/// (With as many times the rows in the files, it would expect as many times the different values.)
const PASSED_BY_GUESS: u64 = 5;

fn read_parquet(columns: &[ScanColumn], files: &[ScanFile]) -> String {
    let mut sql = String::from("read_parquet([");
    for (index, file) in files.iter().enumerate() {
        if index > 0 {
            sql.push_str(", ");
        }
        sql.push_str(&quote(&escape_glob(&file.path)));
    }
    sql.push_str("], schema = map {");
    for (index, column) in columns.iter().enumerate() {
        let separator = if index > 0 { ", " } else { "" };
        let ScanColumn { field_id, duckdb_type } = column;
        let entry = format!("{{name: 'c{field_id}', type: '{duckdb_type}', default_value: NULL}}");
        // Writing to a String cannot fail.
        let _ = write!(sql, "{separator}{field_id}: {entry}");
    }
    let rows = files.iter().map(|file| file.rows).sum::<u64>();
    let _ = write!(sql, "}}, explicit_cardinality = {rows}, can_have_nan = true, hive_partitioning = false)");
    sql
}

/// DuckDB expands globs in file lists; a path is to be taken literally.
fn escape_glob(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for letter in path.chars() {
        match letter {
            '*' | '?' | '[' => {
                escaped.push('[');
                escaped.push(letter);
                escaped.push(']');
            }
            other => escaped.push(other),
        }
    }
    escaped
}
