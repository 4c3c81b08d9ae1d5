//! Memory for the values of a column.

use lake_engine::Vector;
use pgrx::pg_sys;

/// Bytes before a datum of variable length.
pub(crate) const HEADER: usize = 4;
/// Values of a column up to so many bytes are allocated together: far below the largest allocation that there is.
const MOST_TOGETHER: usize = 64 << 20;

/// Memory for the values of a column, allocated at once: a value's own allocation costs more than its conversion.
pub(crate) struct Room {
    next: *mut u8,
    left: usize,
}

impl Room {
    /// So many bytes, in the current memory context.
    ///
    /// # Safety
    /// On the main thread.
    pub(crate) unsafe fn of(bytes: usize) -> Self {
        // SAFETY: palloc raises when there is no memory.
        Self { next: unsafe { pg_sys::palloc(bytes.max(1)) }.cast(), left: bytes }
    }

    /// Room for all strings of a column; `None`: they are too much for one allocation.
    ///
    /// # Safety
    /// On the main thread; `vector` is a column of strings, of a live chunk with so many rows.
    pub(crate) unsafe fn of_strings(vector: Vector, rows: usize) -> Option<Self> {
        // SAFETY: per the contract; a row that is not NULL has a string.
        unsafe {
            let there = (0..rows).filter(|row| !vector.is_null(*row));
            let bytes: usize = there.map(|row| Self::rounded(HEADER + vector.bytes(row).len())).sum();
            (bytes <= MOST_TOGETHER).then(|| Self::of(bytes))
        }
    }

    /// The place of a value: the next one begins where any type may.
    pub(crate) const fn rounded(bytes: usize) -> usize {
        bytes.next_multiple_of(8)
    }

    /// A datum of variable length out of these parts.
    #[inline]
    pub(crate) fn varlena(&mut self, parts: &[&[u8]]) -> pg_sys::Datum {
        let bytes = HEADER + parts.iter().map(|part| part.len()).sum::<usize>();
        let room = Self::rounded(bytes);
        assert!(room <= self.left, "a value is longer than was counted");
        let begin = self.next;
        // A length in a header is shifted by the two bits that say which kind of header it is: here, the plain one.
        let length = u32::try_from(bytes).unwrap_or(u32::MAX) << 2;
        // SAFETY: the assertion has it that all of this is within what was allocated.
        unsafe {
            begin.copy_from_nonoverlapping(length.to_ne_bytes().as_ptr(), HEADER);
            let mut at = begin.add(HEADER);
            for part in parts {
                at.copy_from_nonoverlapping(part.as_ptr(), part.len());
                at = at.add(part.len());
            }
            self.next = begin.add(room);
        }
        self.left -= room;
        pg_sys::Datum::from(begin)
    }
}
