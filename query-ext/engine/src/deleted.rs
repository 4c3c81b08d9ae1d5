//! `lake_live(slot, file_index, file_row_number)`: is this row of this file not deleted?
//!
//! A vector at a time. Rows of a vector come from one file and mostly without gaps, so one range probe of the bitmap
//! answers for all of them: the cost is that of the deletions in the range, not of the rows.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use libduckdb_sys as ffi;
use roaring::RoaringTreemap;

use crate::error::{Error, ErrorKind};
use crate::slot::Slots;

/// Registers the function with a connection's database.
pub(crate) fn register(connection: ffi::duckdb_connection, slots: &Arc<Slots>) -> Result<(), Error> {
    let extra = Box::into_raw(Box::new(Arc::clone(slots))).cast::<c_void>();
    // SAFETY: every handle is made, used and destroyed here; DuckDB owns `extra` from set_extra_info on and frees it
    // with the callback given.
    let state = unsafe {
        let mut function = ffi::duckdb_create_scalar_function();
        ffi::duckdb_scalar_function_set_name(function, c"lake_live".as_ptr());
        let mut bigint = ffi::duckdb_create_logical_type(ffi::DUCKDB_TYPE_DUCKDB_TYPE_BIGINT);
        // The type of DuckDB's own file_index.
        let mut ubigint = ffi::duckdb_create_logical_type(ffi::DUCKDB_TYPE_DUCKDB_TYPE_UBIGINT);
        let mut boolean = ffi::duckdb_create_logical_type(ffi::DUCKDB_TYPE_DUCKDB_TYPE_BOOLEAN);
        for kind in [bigint, ubigint, bigint] {
            ffi::duckdb_scalar_function_add_parameter(function, kind);
        }
        ffi::duckdb_scalar_function_set_return_type(function, boolean);
        ffi::duckdb_scalar_function_set_extra_info(function, extra, Some(free_extra));
        ffi::duckdb_scalar_function_set_function(function, Some(is_live));
        let state = ffi::duckdb_register_scalar_function(connection, function);
        ffi::duckdb_destroy_logical_type(&raw mut bigint);
        ffi::duckdb_destroy_logical_type(&raw mut ubigint);
        ffi::duckdb_destroy_logical_type(&raw mut boolean);
        ffi::duckdb_destroy_scalar_function(&raw mut function);
        state
    };
    if state == ffi::duckdb_state_DuckDBSuccess {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Open, "could not register lake_live"))
    }
}

/// Frees the `Arc<Slots>` behind a registered function.
pub(crate) unsafe extern "C" fn free_extra(extra: *mut c_void) {
    // SAFETY: `extra` came from Box::into_raw of exactly this type, and DuckDB calls this once.
    drop(unsafe { Box::from_raw(extra.cast::<Arc<Slots>>()) });
}

unsafe extern "C" fn is_live(
    info: ffi::duckdb_function_info,
    input: ffi::duckdb_data_chunk,
    output: ffi::duckdb_vector,
) {
    // SAFETY: DuckDB passes a flat chunk of a BIGINT, a UBIGINT and a BIGINT column and an output vector of as many BOOLEANs; `extra` is the
    // Arc<Slots> given at registration. The slices live only for this call.
    let (slots, slot, files, rows, out) = unsafe {
        let count = usize::try_from(ffi::duckdb_data_chunk_get_size(input)).unwrap_or(0);
        if count == 0 {
            return;
        }
        let column = |index| ffi::duckdb_vector_get_data(ffi::duckdb_data_chunk_get_vector(input, index)).cast_const();
        let slot = *column(0).cast::<i64>();
        let files = std::slice::from_raw_parts(column(1).cast::<u64>(), count);
        let rows = std::slice::from_raw_parts(column(2).cast::<i64>(), count);
        let slots = &*ffi::duckdb_scalar_function_get_extra_info(info).cast::<Arc<Slots>>();
        let out = std::slice::from_raw_parts_mut(ffi::duckdb_vector_get_data(output).cast::<bool>(), count);
        (slots, slot, files, rows, out)
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let data = slots.find(slot).ok_or_else(|| format!("lake slot {slot} is closed"))?;
        mark(&data.deleted, files, rows, out)
    }));
    let message = match outcome {
        Ok(Ok(())) => return,
        Ok(Err(message)) => message,
        Err(_) => "lake_live panicked".into(),
    };
    let message = CString::new(message).unwrap_or_default();
    // SAFETY: `info` is valid during the call and the text is copied.
    unsafe { ffi::duckdb_scalar_function_set_error(info, message.as_ptr()) };
}

/// Answers for a whole vector, a run of rows of the same file at a time.
fn mark(deleted: &[RoaringTreemap], files: &[u64], rows: &[i64], out: &mut [bool]) -> Result<(), String> {
    let bitmap_of = |file: u64| {
        let bitmap = usize::try_from(file).ok().and_then(|index| deleted.get(index));
        bitmap.ok_or_else(|| format!("file {file} is not one of the {} with deleted rows", deleted.len()))
    };
    let mut begin = 0;
    while let Some(file) = files.get(begin).copied() {
        // Mostly all are of one file. No branch a row: it is done for several at once.
        let others = files[begin..].iter().fold(0, |others, other| others | (other ^ file));
        let length = match others {
            0 => files.len() - begin,
            _ => files[begin..].iter().position(|other| *other != file).unwrap_or(files.len() - begin),
        };
        mark_run(bitmap_of(file)?, &rows[begin..begin + length], &mut out[begin..begin + length]);
        begin += length;
    }
    Ok(())
}

fn mark_run(bitmap: &RoaringTreemap, rows: &[i64], out: &mut [bool]) {
    let unsigned = |row: i64| u64::try_from(row).unwrap_or(u64::MAX);
    let [first, .., last] = *rows else {
        for (row, live) in rows.iter().zip(out) {
            *live = !bitmap.contains(unsigned(*row));
        }
        return;
    };
    let (mut gaps, mut expected) = (0, first);
    for row in rows {
        gaps |= row ^ expected;
        expected = expected.wrapping_add(1);
    }
    let ascending = gaps == 0 || rows.windows(2).all(|pair| pair[1] > pair[0]);
    if !ascending {
        for (row, live) in rows.iter().zip(out) {
            *live = !bitmap.contains(unsigned(*row));
        }
        return;
    }
    out.fill(true);
    let (low, high) = (unsigned(first), unsigned(last));
    let mut hits = bitmap.iter();
    hits.advance_to(low);
    let mut hits = hits.take_while(|hit| *hit <= high);
    if gaps == 0 {
        for hit in hits {
            if let Some(live) = usize::try_from(hit - low).ok().and_then(|offset| out.get_mut(offset)) {
                *live = false;
            }
        }
        return;
    }
    // What other filters have left: both are walked through together, which is much less than a search for each row.
    let mut hit = hits.next();
    for (row, live) in rows.iter().zip(out) {
        let row = unsigned(*row);
        while hit.is_some_and(|hit| hit < row) {
            hit = hits.next();
        }
        *live = hit != Some(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(deleted: &[u64], rows: &[i64]) -> Vec<bool> {
        let mut out = vec![false; rows.len()];
        mark(&[deleted.iter().copied().collect()], &vec![0; rows.len()], rows, &mut out).unwrap();
        out
    }

    #[test]
    fn ranges_gaps_and_disorder_agree_with_contains() {
        let deleted = [0, 5, 6, 2047, 1 << 40];
        for rows in [
            (0..2048).collect::<Vec<i64>>(),
            vec![7, 8, 9],
            vec![5],
            vec![1, 6, 2047, 3000],
            vec![0, 2, 5, 7, 2046, 2047, 2048, 1 << 40],
            vec![3000, 3002],
            vec![6, 5, 0, 4],
            vec![],
            vec![5, 4, 6],
            vec![1 << 40, (1 << 40) + 1],
        ] {
            let expected: Vec<bool> = rows.iter().map(|row| !deleted.contains(&u64::try_from(*row).unwrap())).collect();
            assert_eq!(marked(&deleted, &rows), expected, "{rows:?}");
        }
    }

    #[test]
    fn runs_of_files_use_their_own_bitmaps() {
        let deleted: Vec<RoaringTreemap> = vec![[1].into_iter().collect(), [0].into_iter().collect()];
        let mut out = [false; 4];
        mark(&deleted, &[0, 0, 1, 1], &[0, 1, 0, 1], &mut out).unwrap();
        assert_eq!(out, [true, false, false, true]);
        assert!(mark(&deleted, &[2], &[0], &mut [true]).is_err());
    }
}
