//! `lake_fresh(slot)`: the fresh rows of a slot as a table, its columns named as in the Arrow stream (`c<field id>`).
//!
//! Arrow arrays are copied into DuckDB's vectors column by column; only the projected columns are touched.

use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type, Time64MicrosecondType,
    TimestampMicrosecondType,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use libduckdb_sys as ffi;

use crate::deleted::free_extra;
use crate::error::{Error, ErrorKind};
use crate::slot::{SlotData, Slots};

/// Rows of a DuckDB vector.
const VECTOR: usize = 2048;

/// Registers the function with a connection's database.
pub(crate) fn register(connection: ffi::duckdb_connection, slots: &Arc<Slots>) -> Result<(), Error> {
    let extra = Box::into_raw(Box::new(Arc::clone(slots))).cast::<c_void>();
    // SAFETY: every handle is made, used and destroyed here; DuckDB owns `extra` from set_extra_info on.
    let state = unsafe {
        let mut function = ffi::duckdb_create_table_function();
        ffi::duckdb_table_function_set_name(function, c"lake_fresh".as_ptr());
        let mut bigint = ffi::duckdb_create_logical_type(ffi::DUCKDB_TYPE_DUCKDB_TYPE_BIGINT);
        ffi::duckdb_table_function_add_parameter(function, bigint);
        ffi::duckdb_destroy_logical_type(&raw mut bigint);
        ffi::duckdb_table_function_set_extra_info(function, extra, Some(free_extra));
        ffi::duckdb_table_function_supports_projection_pushdown(function, true);
        ffi::duckdb_table_function_set_bind(function, Some(bind));
        ffi::duckdb_table_function_set_init(function, Some(init));
        ffi::duckdb_table_function_set_function(function, Some(fill));
        let state = ffi::duckdb_register_table_function(connection, function);
        ffi::duckdb_destroy_table_function(&raw mut function);
        state
    };
    if state == ffi::duckdb_state_DuckDBSuccess {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Open, "could not register lake_fresh"))
    }
}

/// A scan's state: what to read of which columns, and how far it is.
struct Scan {
    data: Arc<SlotData>,
    columns: Vec<usize>,
    /// Next batch, and row within it.
    next: Mutex<(usize, usize)>,
}

impl Scan {
    /// The next piece of at most a vector's rows.
    fn advance(&self) -> Option<(&RecordBatch, usize, usize)> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let batch = self.data.fresh.get(next.0)?;
            let offset = next.1;
            if offset < batch.num_rows() {
                let length = VECTOR.min(batch.num_rows() - offset);
                next.1 += length;
                return Some((batch, offset, length));
            }
            *next = (next.0 + 1, 0);
        }
    }
}

unsafe extern "C" fn free_data(data: *mut c_void) {
    // SAFETY: came from Box::into_raw of this type in `bind`.
    drop(unsafe { Box::from_raw(data.cast::<Arc<SlotData>>()) });
}

unsafe extern "C" fn free_scan(scan: *mut c_void) {
    // SAFETY: came from Box::into_raw of this type in `init`.
    drop(unsafe { Box::from_raw(scan.cast::<Scan>()) });
}

unsafe extern "C" fn bind(info: ffi::duckdb_bind_info) {
    // SAFETY: DuckDB calls this with a valid `info`; the parameter is a BIGINT value we own and destroy; `extra` is the
    // Arc<Slots> of the registration; DuckDB owns the bind data afterwards.
    unsafe {
        let mut value = ffi::duckdb_bind_get_parameter(info, 0);
        let slot = ffi::duckdb_get_int64(value);
        ffi::duckdb_destroy_value(&raw mut value);
        let slots = &*ffi::duckdb_bind_get_extra_info(info).cast::<Arc<Slots>>();
        let refuse = |message: String| {
            let message = CString::new(message).unwrap_or_default();
            ffi::duckdb_bind_set_error(info, message.as_ptr());
        };
        let Some(data) = slots.find(slot) else {
            return refuse(format!("lake slot {slot} is closed"));
        };
        let fields = data.schema.as_ref().map(|schema| schema.fields().clone()).unwrap_or_default();
        for field in &fields {
            let Some(mut kind) = logical_type(field.data_type()) else {
                return refuse(format!("fresh column {} has type {}", field.name(), field.data_type()));
            };
            let name = CString::new(field.name().as_str()).unwrap_or_default();
            ffi::duckdb_bind_add_result_column(info, name.as_ptr(), kind);
            ffi::duckdb_destroy_logical_type(&raw mut kind);
        }
        if fields.is_empty() {
            // A table has a column.
            let mut boolean = ffi::duckdb_create_logical_type(ffi::DUCKDB_TYPE_DUCKDB_TYPE_BOOLEAN);
            ffi::duckdb_bind_add_result_column(info, c"c0".as_ptr(), boolean);
            ffi::duckdb_destroy_logical_type(&raw mut boolean);
        }
        let rows: usize = data.fresh.iter().map(RecordBatch::num_rows).sum();
        ffi::duckdb_bind_set_cardinality(info, data.unexpected + rows as u64, data.unexpected == 0);
        ffi::duckdb_bind_set_bind_data(info, Box::into_raw(Box::new(data)).cast(), Some(free_data));
    }
}

/// The DuckDB type of an Arrow column; the caller destroys it.
fn logical_type(kind: &DataType) -> Option<ffi::duckdb_logical_type> {
    let plain = match kind {
        DataType::Boolean => ffi::DUCKDB_TYPE_DUCKDB_TYPE_BOOLEAN,
        DataType::Int16 => ffi::DUCKDB_TYPE_DUCKDB_TYPE_SMALLINT,
        DataType::Int32 => ffi::DUCKDB_TYPE_DUCKDB_TYPE_INTEGER,
        DataType::Int64 => ffi::DUCKDB_TYPE_DUCKDB_TYPE_BIGINT,
        DataType::Float32 => ffi::DUCKDB_TYPE_DUCKDB_TYPE_FLOAT,
        DataType::Float64 => ffi::DUCKDB_TYPE_DUCKDB_TYPE_DOUBLE,
        DataType::Utf8 | DataType::LargeUtf8 => ffi::DUCKDB_TYPE_DUCKDB_TYPE_VARCHAR,
        DataType::Binary | DataType::LargeBinary => ffi::DUCKDB_TYPE_DUCKDB_TYPE_BLOB,
        DataType::Date32 => ffi::DUCKDB_TYPE_DUCKDB_TYPE_DATE,
        DataType::Time64(TimeUnit::Microsecond) => ffi::DUCKDB_TYPE_DUCKDB_TYPE_TIME,
        DataType::Timestamp(TimeUnit::Microsecond, None) => ffi::DUCKDB_TYPE_DUCKDB_TYPE_TIMESTAMP,
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => ffi::DUCKDB_TYPE_DUCKDB_TYPE_TIMESTAMP_TZ,
        // The only fixed-size binary of the lake is a uuid.
        DataType::FixedSizeBinary(16) => ffi::DUCKDB_TYPE_DUCKDB_TYPE_UUID,
        DataType::Decimal128(precision, scale) => {
            let scale = u8::try_from(*scale).ok()?;
            // SAFETY: precision and scale are within what Arrow allows, 1..=38.
            return Some(unsafe { ffi::duckdb_create_decimal_type(*precision, scale) });
        }
        _ => return None,
    };
    // SAFETY: a constant of the type enumeration.
    Some(unsafe { ffi::duckdb_create_logical_type(plain) })
}

unsafe extern "C" fn init(info: ffi::duckdb_init_info) {
    // SAFETY: the bind data is the Arc<SlotData> set in `bind`; DuckDB owns the init data afterwards.
    unsafe {
        let data = &*ffi::duckdb_init_get_bind_data(info).cast::<Arc<SlotData>>();
        let count = ffi::duckdb_init_get_column_count(info);
        let columns = (0..count)
            .map(|index| usize::try_from(ffi::duckdb_init_get_column_index(info, index)).unwrap_or(usize::MAX))
            .collect();
        ffi::duckdb_init_set_max_threads(info, 4);
        let scan = Scan { data: Arc::clone(data), columns, next: Mutex::new((0, 0)) };
        ffi::duckdb_init_set_init_data(info, Box::into_raw(Box::new(scan)).cast(), Some(free_scan));
    }
}

unsafe extern "C" fn fill(info: ffi::duckdb_function_info, output: ffi::duckdb_data_chunk) {
    // SAFETY: the init data is the Scan set in `init`, shared between DuckDB's threads and Sync.
    let scan = unsafe { &*ffi::duckdb_function_get_init_data(info).cast::<Scan>() };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let Some((batch, offset, length)) = scan.advance() else {
            return 0;
        };
        for (index, column) in scan.columns.iter().enumerate() {
            // A virtual column (DuckDB asks for one when it only counts rows) has no array and needs no value.
            if *column < batch.num_columns() {
                // SAFETY: the vector has the type announced in `bind` and room for VECTOR rows.
                unsafe {
                    let vector = ffi::duckdb_data_chunk_get_vector(output, index as u64);
                    copy_column(batch.column(*column), offset, length, vector);
                }
            }
        }
        length
    }));
    // SAFETY: `info` and `output` are valid during the call.
    unsafe {
        match outcome {
            Ok(length) => ffi::duckdb_data_chunk_set_size(output, length as u64),
            Err(_) => ffi::duckdb_function_set_error(info, c"lake_fresh panicked".as_ptr()),
        }
    }
}

/// Copies rows `offset..offset + length` of an array into a vector of its type.
///
/// # Safety
/// The vector must have the type of [`logical_type`] for the array and room for `length` rows.
unsafe fn copy_column(array: &ArrayRef, offset: usize, length: usize, vector: ffi::duckdb_vector) {
    let array = array.slice(offset, length);
    // SAFETY: per the contract, `data` holds `length` values of the type matched below; validity is made writable first.
    unsafe {
        if let Some(nulls) = array.nulls().filter(|nulls| nulls.null_count() > 0) {
            ffi::duckdb_vector_ensure_validity_writable(vector);
            let validity = ffi::duckdb_vector_get_validity(vector);
            for row in (0..length).filter(|row| nulls.is_null(*row)) {
                ffi::duckdb_validity_set_row_invalid(validity, row as u64);
            }
        }
        let data = ffi::duckdb_vector_get_data(vector);
        macro_rules! copy {
            ($kind:ty, $native:ty) => {{
                let values = array.as_primitive::<$kind>().values();
                std::ptr::copy_nonoverlapping(values.as_ptr(), data.cast::<$native>(), length);
            }};
        }
        macro_rules! bytes {
            ($values:expr) => {
                for (row, value) in $values.iter().enumerate() {
                    if let Some(value) = value {
                        let value: &[u8] = value.as_ref();
                        let begin = value.as_ptr().cast();
                        ffi::duckdb_unsafe_vector_assign_string_element_len(
                            vector,
                            row as u64,
                            begin,
                            value.len() as u64,
                        );
                    }
                }
            };
        }
        match array.data_type() {
            DataType::Boolean => {
                for (row, value) in array.as_boolean().iter().enumerate() {
                    *data.cast::<bool>().add(row) = value.unwrap_or_default();
                }
            }
            DataType::Int16 => copy!(Int16Type, i16),
            DataType::Int32 => copy!(Int32Type, i32),
            DataType::Int64 => copy!(Int64Type, i64),
            DataType::Float32 => copy!(Float32Type, f32),
            DataType::Float64 => copy!(Float64Type, f64),
            DataType::Date32 => copy!(Date32Type, i32),
            DataType::Time64(_) => copy!(Time64MicrosecondType, i64),
            DataType::Timestamp(..) => copy!(TimestampMicrosecondType, i64),
            DataType::Utf8 => bytes!(array.as_string::<i32>()),
            DataType::LargeUtf8 => bytes!(array.as_string::<i64>()),
            DataType::Binary => bytes!(array.as_binary::<i32>()),
            DataType::LargeBinary => bytes!(array.as_binary::<i64>()),
            DataType::FixedSizeBinary(_) => {
                for (row, value) in array.as_fixed_size_binary().iter().enumerate() {
                    let value = value.and_then(|value| <[u8; 16]>::try_from(value).ok()).unwrap_or_default();
                    // DuckDB keeps a uuid as a signed number whose top bit is flipped, so that it sorts.
                    *data.cast::<i128>().add(row) = i128::from_be_bytes(value) ^ i128::MIN;
                }
            }
            DataType::Decimal128(precision, _) => {
                let values = array.as_primitive::<Decimal128Type>().values();
                for (row, value) in values.iter().enumerate() {
                    // The width bounds the value, so the narrow forms hold it; what a NULL's place holds is not read.
                    match precision {
                        0..=4 => *data.cast::<i16>().add(row) = i16::try_from(*value).unwrap_or_default(),
                        5..=9 => *data.cast::<i32>().add(row) = i32::try_from(*value).unwrap_or_default(),
                        10..=18 => *data.cast::<i64>().add(row) = i64::try_from(*value).unwrap_or_default(),
                        _ => data.cast::<i128>().add(row).write_unaligned(*value),
                    }
                }
            }
            other => unreachable!("bind refuses {other}"),
        }
    }
}
