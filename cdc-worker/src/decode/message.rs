//! pgoutput messages, protocol version 1 (PostgreSQL documentation, "Logical Replication Message Formats").
//!
//! The transport hands Begin, Commit and logical messages over already parsed; the rest arrives as bytes.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::Result;
use crate::error::{Error, ErrorKind};

/// A change, or what a change needs to be understood.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
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
    /// Type and Origin messages: nothing to do.
    Ignored,
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
}

/// The cells of a row. Those of most tables need no allocation.
pub(crate) type Cells<'a> = SmallVec<[Cell<'a>; 16]>;

impl Tuple {
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
                    return Err(malformed("a text value although binary was asked for"));
                }
                _ => return Err(malformed("an unknown kind of value")),
            });
        }
        Ok(cells)
    }

    /// Bytes that the tuple keeps alive.
    pub(crate) fn bytes(&self) -> usize {
        self.body.len()
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

    fn length(&mut self) -> Result<usize> {
        usize::try_from(self.int()?).map_err(|_| malformed("an impossible length"))
    }

    fn text(&mut self) -> Result<String> {
        let end = self.rest.iter().position(|byte| *byte == 0).ok_or_else(|| malformed("an unterminated name"))?;
        let text = std::str::from_utf8(self.take(end)?).map_err(|_| malformed("a name that is not UTF-8"))?.to_owned();
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

/// Parses one message.
///
/// # Errors
/// [`ErrorKind::Protocol`] when the bytes are not a message of protocol version 1.
pub(crate) fn parse(whole: &Bytes) -> Result<Message> {
    let mut at = Cursor { rest: whole };
    Ok(match at.byte()? {
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
        b'Y' | b'O' => Message::Ignored,
        _ => return Err(malformed("an unknown message")),
    })
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
        let mut raw = vec![b'I', 0, 0, 0, 9, b'N', 0, 3];
        raw.extend_from_slice(&[b'b', 0, 0, 0, 2, 7, 8, b'n', b'u']);
        raw.into()
    }

    #[test]
    fn an_insert_is_cut_into_cells() {
        let Message::Insert { relation: 9, new } = parse(&insert()).unwrap() else { panic!("not an insert") };
        assert_eq!(new.cells().unwrap().as_slice(), [Cell::Binary(&[7, 8]), Cell::Null, Cell::Unchanged]);
    }

    #[test]
    fn every_cut_of_a_message_is_an_error() {
        let whole = insert();
        for end in 0..whole.len() {
            assert!(parse(&whole.slice(..end)).is_err(), "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Message::Insert { new, .. }) = parse(&Bytes::from(raw)) {
                let _ = new.cells();
            }
        }
    }
}
