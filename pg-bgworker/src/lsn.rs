//! Positions in the WAL, as far as the extension computes with them.

/// Size of a WAL page.
const PAGE: u64 = 8192;
/// Header of a page.
const SHORT_HEADER: u64 = 24;
/// Header of a segment's first page.
const LONG_HEADER: u64 = 40;

/// The end of the WAL that exists when the insert position is `insert`.
///
/// An insert position right behind a page header means that the page is still empty: the last record ended at the
/// page's first byte. Flushing to, or waiting for, the position behind the header would ask for WAL that nobody has
/// written, and end in an error or not at all.
pub(crate) fn end_of_wal(insert: u64, segment_size: u64) -> u64 {
    if insert % segment_size == LONG_HEADER {
        insert - LONG_HEADER
    } else if insert % PAGE == SHORT_HEADER {
        insert - SHORT_HEADER
    } else {
        insert
    }
}

/// An LSN as Postgres prints it.
pub(crate) fn display(lsn: u64) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::{display, end_of_wal};

    const SEGMENT: u64 = 16 << 20;

    #[test]
    fn a_position_behind_a_header_is_the_pages_first_byte() {
        assert_eq!(end_of_wal(5 * SEGMENT + 40, SEGMENT), 5 * SEGMENT);
        assert_eq!(end_of_wal(5 * SEGMENT + 8192 + 24, SEGMENT), 5 * SEGMENT + 8192);
    }

    #[test]
    fn any_other_position_stays() {
        for lsn in [5 * SEGMENT, 5 * SEGMENT + 24 + 8192 * 3 + 8, 5 * SEGMENT + 8192 + 40, 0x1_0000_0028 + 8] {
            assert_eq!(end_of_wal(lsn, SEGMENT), lsn);
        }
    }

    #[test]
    fn an_lsn_prints_as_postgres_does() {
        assert_eq!(display(0x1_0000_00AB), "1/AB");
    }
}
