//! Result rows as columns of plain memory: what a converter to another row format reads, without a value object a cell.

use libduckdb_sys as ffi;

use crate::error::{Error, ErrorKind};

/// How a result column lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    /// `bool`.
    Bool,
    /// `i16`.
    Int16,
    /// `i32`.
    Int32,
    /// `i64`.
    Int64,
    /// `i128`.
    Huge,
    /// `f32`.
    Float,
    /// `f64`.
    Double,
    /// An integer of 2, 4, 8 or 16 bytes to be divided by 10 to the scale.
    Decimal {
        /// Digits after the point.
        scale: u8,
        /// Bytes of the integer.
        bytes: u8,
    },
    /// UTF-8.
    Text,
    /// Bytes.
    Blob,
    /// Days since 1970.
    Date,
    /// Microseconds since midnight.
    Time,
    /// Microseconds since 1970.
    Timestamp,
    /// Microseconds since 1970, UTC.
    TimestampTz,
    /// `i128` with the top bit flipped.
    Uuid,
}

impl ColumnKind {
    pub(crate) fn of_result(result: &mut ffi::duckdb_result) -> Result<Vec<Self>, Error> {
        // SAFETY: the result is live; each logical type is destroyed after its use.
        unsafe {
            (0..ffi::duckdb_column_count(result))
                .map(|index| {
                    let mut logical = ffi::duckdb_column_logical_type(result, index);
                    let kind = Self::of_logical(logical);
                    ffi::duckdb_destroy_logical_type(&raw mut logical);
                    kind.ok_or_else(|| Error::new(ErrorKind::Query, format!("column {index} has an unknown type")))
                })
                .collect()
        }
    }

    /// # Safety
    /// `logical` must be a live logical type.
    unsafe fn of_logical(logical: ffi::duckdb_logical_type) -> Option<Self> {
        // SAFETY: per the contract.
        let id = unsafe { ffi::duckdb_get_type_id(logical) };
        Some(match id {
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_BOOLEAN => Self::Bool,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_SMALLINT => Self::Int16,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_INTEGER => Self::Int32,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_BIGINT => Self::Int64,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_HUGEINT => Self::Huge,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_FLOAT => Self::Float,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_DOUBLE => Self::Double,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_VARCHAR => Self::Text,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_BLOB => Self::Blob,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_DATE => Self::Date,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_TIME => Self::Time,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_TIMESTAMP => Self::Timestamp,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_TIMESTAMP_TZ => Self::TimestampTz,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_UUID => Self::Uuid,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_DECIMAL => {
                // SAFETY: a decimal type, as its id says.
                let (scale, internal) =
                    unsafe { (ffi::duckdb_decimal_scale(logical), ffi::duckdb_decimal_internal_type(logical)) };
                let bytes = match internal {
                    ffi::DUCKDB_TYPE_DUCKDB_TYPE_SMALLINT => 2,
                    ffi::DUCKDB_TYPE_DUCKDB_TYPE_INTEGER => 4,
                    ffi::DUCKDB_TYPE_DUCKDB_TYPE_BIGINT => 8,
                    ffi::DUCKDB_TYPE_DUCKDB_TYPE_HUGEINT => 16,
                    _ => return None,
                };
                Self::Decimal { scale, bytes }
            }
            _ => return None,
        })
    }
}

/// Up to 2048 rows.
#[derive(Debug)]
pub struct Chunk {
    raw: ffi::duckdb_data_chunk,
    rows: usize,
}

// SAFETY: a fetched chunk is memory of its own; what it shares with others is counted atomically.
unsafe impl Send for Chunk {}

impl Chunk {
    pub(crate) fn new(raw: ffi::duckdb_data_chunk) -> Self {
        // SAFETY: a live chunk, owned from here on.
        let rows = usize::try_from(unsafe { ffi::duckdb_data_chunk_get_size(raw) }).unwrap_or(0);
        Self { raw, rows }
    }

    /// Rows in it.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of the texts of a column.
    ///
    /// # Safety
    /// It is one of texts or blobs.
    pub(crate) unsafe fn text_bytes(&self, column: usize) -> usize {
        let vector = self.column(column);
        // SAFETY: per the contract; the rows are the chunk's, and no NULL is read.
        unsafe { (0..self.rows).filter(|row| !vector.is_null(*row)).map(|row| vector.bytes(row).len()).sum() }
    }

    /// A column's memory.
    pub fn column(&self, index: usize) -> Vector {
        // SAFETY: the chunk is live, and fetched chunks are flat.
        unsafe {
            let vector = ffi::duckdb_data_chunk_get_vector(self.raw, index as u64);
            Vector {
                data: ffi::duckdb_vector_get_data(vector).cast::<u8>().cast_const(),
                validity: ffi::duckdb_vector_get_validity(vector).cast_const(),
            }
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed only here.
        unsafe { ffi::duckdb_destroy_data_chunk(&raw mut self.raw) };
    }
}

/// A column of a [`Chunk`], as raw memory: the reader knows its [`ColumnKind`] and its rows, and keeps the chunk alive.
#[derive(Debug, Clone, Copy)]
pub struct Vector {
    data: *const u8,
    validity: *const u64,
}

impl Vector {
    /// Whether a row is NULL.
    ///
    /// # Safety
    /// The chunk must be alive and `row` less than its rows.
    #[inline]
    pub unsafe fn is_null(&self, row: usize) -> bool {
        // SAFETY: a validity mask, when there is one, has a bit for each row.
        !self.validity.is_null() && unsafe { *self.validity.add(row / 64) } & (1 << (row % 64)) == 0
    }

    /// The value of a row.
    ///
    /// # Safety
    /// As [`Self::is_null`]; `T` must be the type that the column's [`ColumnKind`] names, and the row not NULL.
    #[inline]
    pub unsafe fn value<T: Copy>(&self, row: usize) -> T {
        // SAFETY: per the contract the data is an array of T. DuckDB aligns to 8 bytes, i128 wants 16.
        unsafe { self.data.cast::<T>().add(row).read_unaligned() }
    }

    /// The bytes of a row of a text or blob column.
    ///
    /// # Safety
    /// As [`Self::value`]; the bytes live as long as the chunk.
    #[inline]
    pub unsafe fn bytes<'chunk>(&self, row: usize) -> &'chunk [u8] {
        // SAFETY: text and blobs are duckdb_string_t: up to 12 bytes within it, more behind its pointer.
        unsafe {
            let string = &*self.data.cast::<ffi::duckdb_string_t>().add(row);
            let length = string.value.inlined.length;
            let begin = if length <= 12 {
                (&raw const string.value.inlined.inlined).cast::<u8>()
            } else {
                string.value.pointer.ptr.cast::<u8>().cast_const()
            };
            std::slice::from_raw_parts(begin, length as usize)
        }
    }
}
