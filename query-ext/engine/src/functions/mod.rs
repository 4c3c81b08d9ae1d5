//! Functions that Postgres has and DuckDB has not, or has otherwise: what is on the list of `lake-allowlist` by these names.
//!
//! Those of floats and dates are macros: DuckDB's own operator, and an error where Postgres has one. Those of `jsonb` are computed here, from
//! text, and so is the division of numerics.

mod divide;
mod json;

use std::borrow::Cow;
use std::ffi::{CStr, CString, c_void};

use libduckdb_sys as ffi;

use crate::error::{Error, ErrorKind};

/// An infinite result of finite operands is an error, and so is a vanishing product or quotient. So are a day and a time before the year
/// 4714 BC, and days after 5874897: those are the ends of Postgres's calendar. What is infinite stays so; and there is no
/// year zero. Narrower integers are no plain
/// casts because DuckDB would compare what is cast instead, and then nothing fails.
pub(crate) const MACROS: [&str; 9] = [
    "CREATE MACRO lake_year(a) AS (a - CASE WHEN a <= 0 THEN 1 ELSE 0 END)",
    "CREATE MACRO lake_int2(a) AS (CASE WHEN a NOT BETWEEN -32768 AND 32767 THEN error('smallint out of range') ELSE CAST(a AS SMALLINT) END)",
    "CREATE MACRO lake_int4(a) AS (CASE WHEN a NOT BETWEEN -2147483648 AND 2147483647 THEN error('integer out of range') ELSE CAST(a AS INTEGER) END)",
    "CREATE MACRO lake_float_add(a, b) AS (CASE WHEN isinf(add(a, b)) AND isfinite(a) AND isfinite(b) THEN error('value out of range: overflow') ELSE add(a, b) END)",
    "CREATE MACRO lake_float_subtract(a, b) AS (CASE WHEN isinf(subtract(a, b)) AND isfinite(a) AND isfinite(b) THEN error('value out of range: overflow') ELSE subtract(a, b) END)",
    "CREATE MACRO lake_float_multiply(a, b) AS (CASE WHEN isinf(multiply(a, b)) AND isfinite(a) AND isfinite(b) THEN error('value out of range: overflow') WHEN multiply(a, b) = 0 AND a <> 0 AND b <> 0 THEN error('value out of range: underflow') ELSE multiply(a, b) END)",
    "CREATE MACRO lake_float_divide(a, b) AS (CASE WHEN b = 0 AND NOT isnan(a) THEN error('division by zero') WHEN isinf(a / b) AND isfinite(a) THEN error('value out of range: overflow') WHEN a / b = 0 AND a <> 0 AND isfinite(b) THEN error('value out of range: underflow') ELSE a / b END)",
    "CREATE MACRO lake_date(of, shift, moved) AS (CASE WHEN NOT isfinite(of) AND shift IS NOT NULL THEN of WHEN date_diff('day', DATE '1970-01-01', moved) NOT BETWEEN -2440588 AND 2145042905 THEN error('date out of range') ELSE moved END)",
    "CREATE MACRO lake_timestamp(of, shift, moved) AS (CASE WHEN NOT isfinite(of) AND shift IS NOT NULL THEN of WHEN epoch_us(moved) < -210866803200000000 THEN error('timestamp out of range') ELSE moved END)",
];

/// An argument.
#[derive(Debug, Clone, Copy)]
enum Argument<'a> {
    Text(&'a str),
    Integer(i32),
}

/// What a function makes of a row without NULLs; `None` is NULL.
enum Value<'a> {
    Text(Cow<'a, str>),
    Boolean(bool),
}

type Outcome<'a> = Result<Option<Value<'a>>, String>;

/// A function of a text and another argument.
struct Function {
    name: &'static CStr,
    /// Whether its second argument is an integer, and no text.
    indexed: bool,
    /// Whether it gives a truth value, and no text.
    tells: bool,
    call: for<'a> fn(&'a str, Argument<'a>) -> Outcome<'a>,
}

static FUNCTIONS: [Function; 10] = [
    Function { name: c"lake_json_field", indexed: false, tells: false, call: json::field },
    Function { name: c"lake_json_field_text", indexed: false, tells: false, call: json::field_text },
    Function { name: c"lake_json_element", indexed: true, tells: false, call: json::element },
    Function { name: c"lake_json_element_text", indexed: true, tells: false, call: json::element_text },
    Function { name: c"lake_json_exists", indexed: false, tells: true, call: json::exists },
    Function { name: c"lake_json_path", indexed: false, tells: false, call: json::path },
    Function { name: c"lake_json_path_text", indexed: false, tells: false, call: json::path_text },
    Function { name: c"lake_json_exists_any", indexed: false, tells: true, call: json::exists_any },
    Function { name: c"lake_json_exists_all", indexed: false, tells: true, call: json::exists_all },
    Function { name: c"lake_json_contains", indexed: false, tells: true, call: json::contains },
];

/// Registers them with a connection's database.
pub(crate) fn register(connection: ffi::duckdb_connection) -> Result<(), Error> {
    divide::register(connection)?;
    for function in &FUNCTIONS {
        // SAFETY: every handle is made, used and destroyed here; the extra info is static, and nobody frees it.
        let state = unsafe {
            let mut made = ffi::duckdb_create_scalar_function();
            ffi::duckdb_scalar_function_set_name(made, function.name.as_ptr());
            let mut text = ffi::duckdb_create_logical_type(ffi::DUCKDB_TYPE_DUCKDB_TYPE_VARCHAR);
            let mut integer = ffi::duckdb_create_logical_type(ffi::DUCKDB_TYPE_DUCKDB_TYPE_INTEGER);
            let mut boolean = ffi::duckdb_create_logical_type(ffi::DUCKDB_TYPE_DUCKDB_TYPE_BOOLEAN);
            ffi::duckdb_scalar_function_add_parameter(made, text);
            ffi::duckdb_scalar_function_add_parameter(made, if function.indexed { integer } else { text });
            ffi::duckdb_scalar_function_set_return_type(made, if function.tells { boolean } else { text });
            ffi::duckdb_scalar_function_set_extra_info(made, (&raw const *function).cast_mut().cast::<c_void>(), None);
            ffi::duckdb_scalar_function_set_function(made, Some(run));
            let state = ffi::duckdb_register_scalar_function(connection, made);
            ffi::duckdb_destroy_logical_type(&raw mut text);
            ffi::duckdb_destroy_logical_type(&raw mut integer);
            ffi::duckdb_destroy_logical_type(&raw mut boolean);
            ffi::duckdb_destroy_scalar_function(&raw mut made);
            state
        };
        if state != ffi::duckdb_state_DuckDBSuccess {
            let name = function.name.to_string_lossy();
            return Err(Error::new(ErrorKind::Open, format!("could not register {name}")));
        }
    }
    Ok(())
}

unsafe extern "C" fn run(info: ffi::duckdb_function_info, input: ffi::duckdb_data_chunk, output: ffi::duckdb_vector) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // SAFETY: `extra` is the static Function of the registration; DuckDB passes a flat chunk of its two arguments' types and a
        // vector of its result's, with room for as many rows.
        unsafe {
            let function = &*ffi::duckdb_scalar_function_get_extra_info(info).cast::<Function>();
            fill(function, input, output)
        }
    }));
    let message = match outcome {
        Ok(Ok(())) => return,
        Ok(Err(message)) => message,
        Err(_) => "a function of the lake panicked".into(),
    };
    let message = CString::new(message).unwrap_or_default();
    // SAFETY: `info` is valid during the call and the text is copied.
    unsafe { ffi::duckdb_scalar_function_set_error(info, message.as_ptr()) };
}

/// # Safety
/// As [`run`] is called.
unsafe fn fill(function: &Function, input: ffi::duckdb_data_chunk, output: ffi::duckdb_vector) -> Result<(), String> {
    // SAFETY: per the contract; the strings live as long as the chunk, which outlives this call.
    unsafe {
        let rows = usize::try_from(ffi::duckdb_data_chunk_get_size(input)).unwrap_or(0);
        let vector = |index| ffi::duckdb_data_chunk_get_vector(input, index);
        let (first, second) = (vector(0), vector(1));
        let is_null = |vector, row: usize| {
            let validity = ffi::duckdb_vector_get_validity(vector);
            !validity.is_null() && !ffi::duckdb_validity_row_is_valid(validity, row as u64)
        };
        ffi::duckdb_vector_ensure_validity_writable(output);
        let validity = ffi::duckdb_vector_get_validity(output);
        for row in 0..rows {
            let value = if is_null(first, row) || is_null(second, row) {
                None
            } else {
                let argument = if function.indexed {
                    Argument::Integer(*ffi::duckdb_vector_get_data(second).cast::<i32>().add(row))
                } else {
                    Argument::Text(text_at(second, row))
                };
                (function.call)(text_at(first, row), argument)?
            };
            match value {
                None => ffi::duckdb_validity_set_row_invalid(validity, row as u64),
                Some(Value::Boolean(value)) => *ffi::duckdb_vector_get_data(output).cast::<bool>().add(row) = value,
                Some(Value::Text(text)) => {
                    let begin = text.as_ptr().cast();
                    ffi::duckdb_unsafe_vector_assign_string_element_len(output, row as u64, begin, text.len() as u64);
                }
            }
        }
        Ok(())
    }
}

/// # Safety
/// `vector` is a live vector of VARCHAR, which is UTF-8, with a value at `row`.
unsafe fn text_at<'a>(vector: ffi::duckdb_vector, row: usize) -> &'a str {
    // SAFETY: up to 12 bytes are within the string, more behind its pointer.
    unsafe {
        let string = &*ffi::duckdb_vector_get_data(vector).cast::<ffi::duckdb_string_t>().add(row);
        let length = string.value.inlined.length;
        let begin = if length <= 12 {
            (&raw const string.value.inlined.inlined).cast::<u8>()
        } else {
            string.value.pointer.ptr.cast::<u8>().cast_const()
        };
        std::str::from_utf8_unchecked(std::slice::from_raw_parts(begin, length as usize))
    }
}
