//! An entry of the list.

use crate::Type;

/// What the collation of the arguments has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collation {
    /// Anything: the result does not depend on it.
    Any,
    /// Deterministic: text is equal when its bytes are.
    Deterministic,
    /// `C` or `POSIX`.
    Bytes,
}

/// Precision and scale of a numeric result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digits {
    /// It is no numeric.
    None,
    /// Always these.
    Fixed(u8, u8),
    /// Those of the first argument.
    First,
    /// A whole number with as many digits before the point as the first argument, and one more.
    Whole,
}

/// A function or operator that DuckDB computes equally.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Its name in `pg_catalog`.
    pub name: &'static str,
    /// The declared types of its arguments.
    pub args: &'static [Type],
    /// Its result.
    pub result: Type,
    /// The DuckDB SQL: `{1}` stands for the first argument, in exactly its type.
    pub sql: &'static str,
    /// Arguments for which the SQL fails and Postgres does not, as a condition of Postgres's: the heap answers those.
    pub heap: &'static str,
    /// Whether one of the two may fail on a value. Then both do: where Postgres might, the SQL does.
    pub fails: bool,
    /// What the collation has to be.
    pub collation: Collation,
    /// Values one of which the first argument must be, as a constant. It is written into the SQL as it is.
    pub words: &'static [&'static str],
    /// Precision and scale of the result.
    pub digits: Digits,
    /// Whether the result depends on the session's time zone: it is the same when that is UTC.
    pub utc: bool,
}

impl Entry {
    pub(crate) const fn new(name: &'static str, args: &'static [Type], result: Type, sql: &'static str) -> Self {
        Self {
            name,
            args,
            result,
            sql,
            heap: "",
            fails: false,
            collation: Collation::Any,
            words: &[],
            digits: Digits::None,
            utc: false,
        }
    }

    pub(crate) const fn fails(mut self) -> Self {
        self.fails = true;
        self
    }

    /// Fails, for these arguments alone.
    pub(crate) const fn heap_if(mut self, condition: &'static str) -> Self {
        (self.heap, self.fails) = (condition, true);
        self
    }

    pub(crate) const fn bytes(mut self) -> Self {
        self.collation = Collation::Bytes;
        self
    }

    pub(crate) const fn deterministic(mut self) -> Self {
        self.collation = Collation::Deterministic;
        self
    }

    pub(crate) const fn words(mut self, words: &'static [&'static str]) -> Self {
        self.words = words;
        self
    }

    pub(crate) const fn utc(mut self) -> Self {
        self.utc = true;
        self
    }

    pub(crate) const fn digits(mut self, digits: Digits) -> Self {
        self.digits = digits;
        self
    }

    /// The SQL in pieces.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        let mut rest = self.sql;
        std::iter::from_fn(move || {
            if let Some(piece) = Piece::at(rest) {
                rest = &rest[3..];
                return Some(piece);
            }
            let next = (1..rest.len()).find(|at| Piece::at(&rest[*at..]).is_some());
            let (text, after) = rest.split_at(next.unwrap_or(rest.len()));
            rest = after;
            (!text.is_empty()).then_some(Piece::Text(text))
        })
    }
}

/// A part of an entry's SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// SQL.
    Text(&'static str),
    /// The argument with this index: `{1}` is the first.
    Argument(usize),
    /// `{d}`: where `DISTINCT` stands in an aggregate.
    Distinct,
    /// `{t}`: where `FILTER` and `OVER` stand behind it.
    Tail,
}

impl Piece {
    fn at(text: &str) -> Option<Self> {
        match text.as_bytes() {
            [b'{', digit @ b'1'..=b'9', b'}', ..] => Some(Self::Argument(usize::from(digit - b'1'))),
            [b'{', b'd', b'}', ..] => Some(Self::Distinct),
            [b'{', b't', b'}', ..] => Some(Self::Tail),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sql_is_cut_where_arguments_are() {
        let entry = Entry::new("f", &[Type::Int4], Type::Int4, "f({d}{1}, '{x}', {2}){t}");
        let pieces: Vec<_> = entry.pieces().collect();
        use Piece::{Argument, Distinct, Tail, Text};
        assert_eq!(pieces, [Text("f("), Distinct, Argument(0), Text(", '{x}', "), Argument(1), Text(")"), Tail]);
    }
}
