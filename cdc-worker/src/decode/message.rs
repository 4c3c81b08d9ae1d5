//! pgoutput messages, protocol version 2 (PostgreSQL documentation, "Logical Replication Message Formats").

use bytes::Bytes;
use iceberg_writer::Lsn;
use smallvec::SmallVec;

use crate::Result;
use crate::error::{Error, ErrorKind};

/// Microseconds from 1970 to 2000, where Postgres's clock starts.
pub(crate) const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// The frame of a transaction, a change, or what a change needs to be understood.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    /// A transaction that has committed follows, whole.
    Begin(Commit),
    /// It ends.
    Commit {
        /// Where the WAL goes on behind its commit record.
        end: Lsn,
    },
    /// Changes of a transaction that still runs follow.
    StreamStart {
        xid: u32,
    },
    StreamStop,
    /// A transaction that was sent while it ran has committed.
    StreamCommit {
        xid: u32,
        commit: Commit,
        end: Lsn,
    },
    /// It, or one of its subtransactions, has not.
    StreamAbort {
        xid: u32,
        /// The same as `xid` when all of it is gone.
        subxid: u32,
    },
    Relation(Relation),
    Insert {
        relation: u32,
        new: Tuple,
    },
    Update {
        relation: u32,
        old: Option<Tuple>,
        new: Tuple,
    },
    Delete {
        relation: u32,
        old: Tuple,
    },
    Truncate {
        relations: Vec<u32>,
    },
    /// What a table's columns are from here on, as the extension's event trigger tells it. Who may send such a message may send
    /// any, so it names a secret, which has to be compared.
    Columns {
        secret: String,
        relation: u32,
        /// The catalog on the table, as JSON.
        told: String,
    },
    /// Types, origins, and the applications' logical messages: nothing to do.
    Ignored,
}

/// When a transaction committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Commit {
    /// Where its commit record begins.
    pub(crate) lsn: Lsn,
    /// Microseconds since 1970, by the source's clock.
    pub(crate) time_us: i64,
    /// Its number.
    pub(crate) xid: u32,
}

/// A table as pgoutput describes it before its first change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relation {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// `pg_class.relreplident`.
    pub(crate) identity: u8,
    pub(crate) columns: Vec<RelationColumn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RelationColumn {
    pub(crate) in_identity: bool,
    pub(crate) name: String,
    pub(crate) type_oid: u32,
    pub(crate) typmod: i32,
}

/// A row on the wire. Cells are cut out of it when they are needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tuple {
    columns: u16,
    body: Bytes,
}

/// One column of a [`Tuple`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cell<'a> {
    Null,
    /// A TOASTed value that the update did not touch.
    Unchanged,
    /// The binary format of the type's send function.
    Binary(&'a [u8]),
    /// The text format of its output function.
    Text(&'a [u8]),
}

/// The cells of a row. Those of most tables need no allocation.
pub(crate) type Cells<'a> = SmallVec<[Cell<'a>; 16]>;

impl Tuple {
    /// A row of these cells.
    #[cfg(test)]
    pub(crate) fn of(cells: &[Cell<'_>]) -> Self {
        let mut body = Vec::new();
        for cell in cells {
            match cell {
                Cell::Null => body.push(b'n'),
                Cell::Unchanged => body.push(b'u'),
                Cell::Binary(raw) | Cell::Text(raw) => {
                    body.push(if matches!(cell, Cell::Text(_)) { b't' } else { b'b' });
                    body.extend_from_slice(&u32::try_from(raw.len()).unwrap().to_be_bytes());
                    body.extend_from_slice(raw);
                }
            }
        }
        Self { columns: u16::try_from(cells.len()).unwrap(), body: body.into() }
    }

    /// Cells in column order.
    pub(crate) fn cells(&self) -> Result<Cells<'_>> {
        let mut cells = Cells::new();
        let mut at = Cursor { rest: &self.body };
        for _ in 0..self.columns {
            cells.push(match at.byte()? {
                b'n' => Cell::Null,
                b'u' => Cell::Unchanged,
                b'b' => {
                    let length = at.length()?;
                    Cell::Binary(at.take(length)?)
                }
                b't' => {
                    let length = at.length()?;
                    Cell::Text(at.take(length)?)
                }
                _ => return Err(malformed("an unknown kind of value")),
            });
        }
        Ok(cells)
    }
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("the replication stream has {what}"))
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let Some((head, rest)) = self.rest.split_at_checked(length) else {
            return Err(malformed("a message that ends too early"));
        };
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn short(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn int(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn long(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn lsn(&mut self) -> Result<Lsn> {
        Ok(Lsn::from_u64(self.long()?))
    }

    fn clock(&mut self) -> Result<i64> {
        Ok(self.long()?.cast_signed().saturating_add(POSTGRES_EPOCH_US))
    }

    fn length(&mut self) -> Result<usize> {
        usize::try_from(self.int()?).map_err(|_| malformed("an impossible length"))
    }

    fn text(&mut self) -> Result<String> {
        let end = self.rest.iter().position(|byte| *byte == 0).ok_or_else(|| malformed("an unterminated name"))?;
        // A name that is not UTF-8 is none of a mirrored table.
        let text = String::from_utf8_lossy(self.take(end)?).into_owned();
        self.take(1)?;
        Ok(text)
    }

    /// Cuts a tuple out of `whole`, of which this cursor is the tail.
    fn tuple(&mut self, whole: &Bytes) -> Result<Tuple> {
        let columns = self.short()?;
        let begin = whole.len() - self.rest.len();
        for _ in 0..columns {
            if matches!(self.byte()?, b'b' | b't') {
                let length = self.length()?;
                self.take(length)?;
            }
        }
        let end = whole.len() - self.rest.len();
        Ok(Tuple { columns, body: whole.slice(begin..end) })
    }
}

/// What stands between [`Message::StreamStart`] and [`Message::StreamStop`]: a message of the transaction that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Streamed<'a> {
    /// The transaction, or the subtransaction of it, that the message belongs to.
    pub(crate) subxid: u32,
    /// The message as [`parse`] takes it: in two parts, for the transaction's number was between them.
    pub(crate) tag: u8,
    pub(crate) rest: &'a [u8],
}

impl Streamed<'_> {
    /// The tables that it describes or changes.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`].
    pub(crate) fn relations(&self) -> Result<SmallVec<[u32; 4]>> {
        let mut at = Cursor { rest: self.rest };
        Ok(match self.tag {
            b'R' | b'I' | b'U' | b'D' => SmallVec::from_elem(at.int()?, 1),
            b'T' => {
                let count = at.int()?;
                at.byte()?;
                (0..count).map(|_| at.int()).collect::<Result<_>>()?
            }
            b'M' => match logical(&mut at)? {
                Message::Columns { relation, .. } => SmallVec::from_elem(relation, 1),
                _ => SmallVec::new(),
            },
            _ => SmallVec::new(),
        })
    }
}

/// Parses what comes while a block of a streamed transaction is open; `None`: the block ends.
///
/// # Errors
/// [`ErrorKind::Protocol`].
pub(crate) fn streamed(whole: &[u8]) -> Result<Option<Streamed<'_>>> {
    let mut at = Cursor { rest: whole };
    let tag = at.byte()?;
    match tag {
        b'E' => Ok(None),
        // An origin belongs to no transaction, and concerns us in none.
        b'O' => Ok(Some(Streamed { subxid: 0, tag, rest: at.rest })),
        b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M' => Ok(Some(Streamed { subxid: at.int()?, tag, rest: at.rest })),
        _ => Err(malformed("an unknown message within a streamed transaction")),
    }
}

/// Parses one message.
///
/// # Errors
/// [`ErrorKind::Protocol`] when the bytes are not a message of protocol version 2.
pub(crate) fn parse(whole: &Bytes) -> Result<Message> {
    let mut at = Cursor { rest: whole };
    Ok(match at.byte()? {
        b'B' => Message::Begin(Commit { lsn: at.lsn()?, time_us: at.clock()?, xid: at.int()? }),
        b'C' => {
            // Flags, none are defined; and the position that Begin has told.
            at.take(9)?;
            Message::Commit { end: at.lsn()? }
        }
        b'S' => Message::StreamStart { xid: at.int()? },
        b'E' => Message::StreamStop,
        b'c' => {
            let xid = at.int()?;
            at.byte()?;
            let (lsn, end, time_us) = (at.lsn()?, at.lsn()?, at.clock()?);
            Message::StreamCommit { xid, commit: Commit { lsn, time_us, xid }, end }
        }
        b'A' => Message::StreamAbort { xid: at.int()?, subxid: at.int()? },
        b'R' => Message::Relation(relation(&mut at)?),
        b'I' => {
            let relation = at.int()?;
            expect(&mut at, b'N')?;
            Message::Insert { relation, new: at.tuple(whole)? }
        }
        b'U' => {
            let relation = at.int()?;
            let old = match at.byte()? {
                b'K' | b'O' => {
                    let old = at.tuple(whole)?;
                    expect(&mut at, b'N')?;
                    Some(old)
                }
                b'N' => None,
                _ => return Err(malformed("an unknown part in an update")),
            };
            Message::Update { relation, old, new: at.tuple(whole)? }
        }
        b'D' => {
            let relation = at.int()?;
            if !matches!(at.byte()?, b'K' | b'O') {
                return Err(malformed("an unknown part in a delete"));
            }
            Message::Delete { relation, old: at.tuple(whole)? }
        }
        b'T' => {
            let count = at.int()?;
            // CASCADE and RESTART IDENTITY: Postgres lists the cascaded tables itself, and there are no sequences here.
            at.byte()?;
            let relations = (0..count).map(|_| at.int()).collect::<Result<_>>()?;
            Message::Truncate { relations }
        }
        b'M' => logical(&mut at)?,
        b'Y' | b'O' => Message::Ignored,
        _ => return Err(malformed("an unknown message")),
    })
}

/// The prefix of messages that tell a table's columns.
const COLUMNS_PREFIX: &str = "lake.columns";
/// The flag of a logical message that is part of its transaction.
const TRANSACTIONAL: u8 = 1;

/// A logical message: flags, position, prefix, and its content; of ours a secret, a table, and JSON, with a blank between.
fn logical(at: &mut Cursor<'_>) -> Result<Message> {
    let flags = at.byte()?;
    at.lsn()?;
    let prefix = at.text()?;
    let length = at.length()?;
    let content = at.take(length)?;
    if flags & TRANSACTIONAL == 0 || prefix != COLUMNS_PREFIX {
        return Ok(Message::Ignored);
    }
    let parts = std::str::from_utf8(content).ok().and_then(|text| {
        let (secret, rest) = text.split_once(' ')?;
        let (relation, told) = rest.split_once(' ')?;
        Some((secret.to_owned(), relation.parse().ok()?, told.to_owned()))
    });
    // Somebody else's, by the same name.
    Ok(parts.map_or(Message::Ignored, |(secret, relation, told)| Message::Columns { secret, relation, told }))
}

fn expect(at: &mut Cursor<'_>, byte: u8) -> Result<()> {
    if at.byte()? == byte { Ok(()) } else { Err(malformed("an unknown part in a change")) }
}

fn relation(at: &mut Cursor<'_>) -> Result<Relation> {
    let oid = at.int()?;
    let schema = at.text()?;
    let name = at.text()?;
    let identity = at.byte()?;
    let count = at.short()?;
    let columns = (0..count)
        .map(|_| {
            Ok(RelationColumn {
                in_identity: at.byte()? & 1 == 1,
                name: at.text()?,
                type_oid: at.int()?,
                typmod: at.int()?.cast_signed(),
            })
        })
        .collect::<Result<_>>()?;
    Ok(Relation { oid, schema, name, identity, columns })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn insert() -> Bytes {
        let mut raw = vec![b'I', 0, 0, 0, 9, b'N', 0, 4];
        raw.extend_from_slice(&[b'b', 0, 0, 0, 2, 7, 8, b'n', b'u', b't', 0, 0, 0, 1, b'x']);
        raw.into()
    }

    #[test]
    fn an_insert_is_cut_into_cells() {
        let Message::Insert { relation: 9, new } = parse(&insert()).unwrap() else { panic!("not an insert") };
        assert_eq!(
            new.cells().unwrap().as_slice(),
            [Cell::Binary(&[7, 8]), Cell::Null, Cell::Unchanged, Cell::Text(b"x")]
        );
    }

    #[test]
    fn every_cut_of_a_message_is_an_error() {
        let whole = insert();
        for end in 0..whole.len() {
            assert!(parse(&whole.slice(..end)).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_streamed_message_is_the_plain_one_with_its_transaction_cut_out() {
        let plain = insert();
        let mut raw = vec![b'I', 0, 0, 1, 2];
        raw.extend_from_slice(&plain[1..]);
        let found = streamed(&raw).unwrap().unwrap();
        assert_eq!((found.subxid, found.tag, found.rest), (258, b'I', &plain[1..]));
        assert_eq!(streamed(b"E").unwrap(), None);
        assert!(streamed(b"B").is_err() && streamed(&raw[..3]).is_err());
    }

    #[test]
    fn transactions_begin_and_end() {
        let mut raw = vec![b'c', 0, 0, 0, 5, 0];
        for word in [16u64, 32, 7] {
            raw.extend_from_slice(&word.to_be_bytes());
        }
        let commit = Commit { lsn: Lsn::from_u64(16), time_us: POSTGRES_EPOCH_US + 7, xid: 5 };
        let expected = Message::StreamCommit { xid: 5, commit, end: Lsn::from_u64(32) };
        assert_eq!(parse(&raw.clone().into()).unwrap(), expected);
        let (mut begin, mut end) = (vec![b'B'], vec![b'C', 0]);
        begin.extend_from_slice(&raw[6..14]);
        begin.extend_from_slice(&raw[22..30]);
        begin.extend_from_slice(&[0, 0, 0, 5]);
        end.extend_from_slice(&raw[6..]);
        assert_eq!(parse(&begin.into()).unwrap(), Message::Begin(commit));
        assert_eq!(parse(&end.into()).unwrap(), Message::Commit { end: Lsn::from_u64(32) });
        assert_eq!(
            parse(&Bytes::from_static(&[b'A', 0, 0, 0, 5, 0, 0, 0, 6])).unwrap(),
            Message::StreamAbort { xid: 5, subxid: 6 }
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = streamed(&raw);
            if let Ok(Message::Insert { new, .. }) = parse(&Bytes::from(raw)) {
                let _ = new.cells();
            }
        }
    }
}
