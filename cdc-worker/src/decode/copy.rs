//! Rows of `COPY … TO STDOUT (FORMAT binary)` (PostgreSQL documentation, "COPY", Binary Format).

use crate::Result;
use crate::error::{Error, ErrorKind};

use iceberg_writer::{PgType, TableSpec};

use super::message::{Cell, Cells};

/// Signature, flags and header extension length: 11 + 4 + 4 bytes; the extension has been empty in every version.
const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";

/// Cuts a chunk of the COPY stream into rows. The server sends one row a message, the header glued to the first.
#[derive(Debug, Default)]
pub(crate) struct CopyRows {
    header_seen: bool,
    /// The columns that were selected as text.
    texts: Vec<bool>,
    /// The trailer has been seen.
    ended: bool,
}

impl CopyRows {
    /// For the columns of a table, selected by `source::copy`.
    pub(crate) fn of(spec: &TableSpec) -> Self {
        let texts = spec.columns.iter().map(|column| column.pg_type == PgType::TextForm).collect();
        Self { header_seen: false, texts, ended: false }
    }

    /// Calls `row` with the cells of each row in `chunk`.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] on malformed bytes, and whatever `row` returns.
    pub(crate) fn each<'a>(
        &mut self,
        mut chunk: &'a [u8],
        row: &mut dyn FnMut(&[Cell<'a>]) -> Result<()>,
    ) -> Result<()> {
        if !self.header_seen {
            let Some((header, rest)) = chunk.split_at_checked(19) else { return Err(malformed()) };
            if !header.starts_with(SIGNATURE) || header[11..] != [0; 8] {
                return Err(malformed());
            }
            self.header_seen = true;
            chunk = rest;
        }
        while !chunk.is_empty() {
            if self.ended {
                return Err(malformed());
            }
            let columns = i16::from_be_bytes(take(&mut chunk)?);
            if columns == -1 && chunk.is_empty() {
                self.ended = true;
                return Ok(());
            }
            let columns = usize::try_from(columns).map_err(|_| malformed())?;
            let mut cells = Cells::new();
            for column in 0..columns {
                let length = i32::from_be_bytes(take(&mut chunk)?);
                cells.push(match usize::try_from(length) {
                    Ok(length) => {
                        let (value, rest) = chunk.split_at_checked(length).ok_or_else(malformed)?;
                        chunk = rest;
                        if self.texts.get(column) == Some(&true) { Cell::Text(value) } else { Cell::Binary(value) }
                    }
                    Err(_) if length == -1 => Cell::Null,
                    Err(_) => return Err(malformed()),
                });
            }
            row(&cells)?;
        }
        Ok(())
    }

    /// That was all of the stream.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] when it lacks an end.
    pub(crate) fn finish(&self) -> Result<()> {
        if self.ended { Ok(()) } else { Err(malformed()) }
    }
}

#[inline]
fn take<const N: usize>(chunk: &mut &[u8]) -> Result<[u8; N]> {
    let (head, rest) = chunk.split_first_chunk::<N>().ok_or_else(malformed)?;
    *chunk = rest;
    Ok(*head)
}

fn malformed() -> Error {
    Error::new(ErrorKind::Protocol, "COPY sent malformed binary data")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The columns of each row of a stream of messages, if they are a whole stream.
    fn read(messages: &[&[u8]]) -> Result<Vec<usize>> {
        let mut seen = Vec::new();
        let mut rows = CopyRows::default();
        for message in messages {
            rows.each(message, &mut |row| {
                seen.push(row.len());
                Ok(())
            })?;
        }
        rows.finish()?;
        Ok(seen)
    }

    fn header() -> Vec<u8> {
        [&SIGNATURE[..], &[0; 8]].concat()
    }

    #[test]
    fn header_rows_and_trailer() {
        let row: &[u8] = &[0, 2, 0, 0, 0, 1, 42, 0xff, 0xff, 0xff, 0xff];
        let (no_columns, trailer): (&[u8], &[u8]) = (&[0, 0], &[0xff, 0xff]);
        let first = [&header(), row].concat();
        assert_eq!(read(&[&first, no_columns, row, trailer]).unwrap(), [2, 0, 2]);
        assert_eq!(read(&[&[&first, no_columns, trailer].concat()]).unwrap(), [2, 0]);
        assert_eq!(read(&[&header(), trailer]).unwrap(), [0; 0]);
        // Without an end, without a beginning, with something behind the end.
        assert!(read(&[&first, row]).is_err());
        assert!(read(&[]).is_err());
        assert!(read(&[row, trailer]).is_err());
        assert!(read(&[&first[1..], trailer]).is_err());
        assert!(read(&[&first, trailer, row]).is_err());
        assert!(read(&[&first, &[trailer, row].concat()]).is_err());
        // Numbers that cannot be: columns, bytes.
        assert!(read(&[&first, &[0xff, 0xfe], trailer]).is_err());
        assert!(read(&[&first, &[0, 1, 0xff, 0xff, 0xff, 0xfe], trailer]).is_err());
        for cut in 1..row.len() {
            assert!(read(&[&header(), &row[..cut], trailer]).is_err(), "cut at {cut}");
        }
    }
}
