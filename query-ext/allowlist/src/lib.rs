//! What DuckDB may compute in Postgres's place: the list, as data.
//!
//! An [`Entry`] is an operator, function, aggregate or window function of Postgres, by its name and the types of its arguments,
//! with the DuckDB SQL that gives the same value. What is not on the list is not sent. The deparser looks entries up; the tests
//! run each entry on both sides over values from the edges of its types; the README's table is written from it. So what is sent,
//! what is proved and what is promised are one thing.
//!
//! Syntax that is no function call (CASE, IN, joins…) is a [`Form`]: code of the deparser, named here with the queries that prove it.

mod aggregates;
mod entry;
mod forms;
mod functions;
mod markdown;
mod operators;
mod types;

pub use entry::{Collation, Digits, Entry, Piece};
pub use forms::{FORMS, Form};
pub use markdown::{not_sent, table};
pub use types::Type;

pub use aggregates::{AGGREGATES, WINDOWS};
pub use functions::FUNCTIONS;
pub use operators::OPERATORS;

/// The entries for these arguments, in the order of preference: they differ in what they ask of the collation.
pub fn find<'a>(list: &'a [Entry], name: &str, args: &[Type]) -> impl Iterator<Item = &'a Entry> {
    list.iter().filter(move |entry| entry.name == name && entry.args == args)
}

/// Whether both sides compare these types alike, apart from text, where the collation has a say.
pub fn comparable(left: Type, right: Type) -> bool {
    left.family() == right.family() && left.family() != types::Family::None
}
