//! From the columns that a table had to those that the stream describes: followed, or not.
//!
//! A column is its number in `pg_attribute`, which is its field id in Iceberg, whatever it is called. pgoutput describes a
//! table by names and types, without numbers, as it was at that place of the WAL; the catalog has the numbers, as they are
//! now. Between the two the table may have changed again. So a description is matched by what cannot change: columns are
//! described in the order of their numbers, a number is given once and never again, and a dropped column keeps its row
//! in `pg_attribute`. Names prove nothing, for any column may have been given any name meanwhile. Where that
//! leaves more than one possibility, none is chosen: the table is copied anew.
//!
//! What the stream does not tell at all is what a change did to rows that were there before it:
//! - a column that came with a default has it in all of them: `atthasmissing`, or another file when the table was rewritten;
//! - `ALTER … TYPE … USING` computes them anew: another file, and another row in `pg_attribute`;
//! - VACUUM FULL, CLUSTER and TRUNCATE make another file, and leave `pg_attribute` as it is.
//!
//! So a change is followed in place only when the table's file is the one that it was, or the mirrored columns' rows in
//! `pg_attribute` are.

mod numbers;

use std::collections::BTreeMap;

use iceberg_writer::{ColumnSpec, PgType, TableSpec};
use serde::{Deserialize, Serialize};

use crate::decode::message::RelationColumn;

use super::RowIdentity;
use numbers::numbers_then;

/// The source's catalog on a table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Shape {
    /// `pg_class.relfilenode`; 0 where the rows are in partitions.
    pub(crate) file: u32,
    /// All columns that there ever were, by their numbers.
    pub(crate) attributes: BTreeMap<i16, Attribute>,
}

/// A row of `pg_attribute`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attribute {
    pub(crate) name: String,
    pub(crate) type_oid: u32,
    pub(crate) typmod: i32,
    /// How the mirror holds it; `None`: it is dropped.
    pub(crate) held: Option<PgType>,
    pub(crate) dropped: bool,
    /// Its values are in the stream: it is not generated, and not left out by the publication.
    pub(crate) sent: bool,
    /// Rows from before the column was added have a value in it all the same.
    pub(crate) missing: bool,
    /// The transaction that wrote the row.
    pub(crate) stamp: i64,
    /// By which of its commands, if that is known.
    pub(crate) command: Option<i64>,
}

#[cfg(test)]
impl Attribute {
    /// A column of type `integer`, as a transaction wrote it.
    pub(crate) fn integer(name: &str, stamp: i64) -> Self {
        Self {
            name: name.to_owned(),
            type_oid: 23,
            typmod: -1,
            held: Some(PgType::Int4),
            dropped: false,
            sent: true,
            missing: false,
            stamp,
            command: None,
        }
    }
}

/// What was known of a table's catalog when its columns were last found to be followed: as of a moment at or after the
/// place in the WAL that they are from, and no rows had been computed anew until then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    file: u32,
    /// Every column up to this number is accounted for: it is mirrored, not sent, or dropped.
    highest: i16,
    /// By number, the transaction that wrote the column's row, of those that were there.
    stamps: BTreeMap<i16, i64>,
}

/// What became of a table's columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Followed {
    /// They are the same.
    Same(Seen),
    /// They are these now; all rows that there are have them.
    Changed(TableSpec, Seen),
    /// Rows may be otherwise than the mirror has them, and why.
    CopyAnew(String),
    /// The catalog of no time can have been described so: the publication sends other columns than it did.
    Otherwise,
}

/// What the table looked like, to whom knows nothing of it but what the mirror has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    pub(crate) spec: &'a TableSpec,
    pub(crate) identity: RowIdentity,
    /// `None`: the table is from a time when it was not remembered.
    pub(crate) seen: Option<&'a Seen>,
}

/// What is to be followed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Described<'a> {
    /// This description of the stream; the catalog may have moved on since.
    Then(&'a [RelationColumn]),
    /// The same, and it is proved that the table's columns have not changed since.
    Still(&'a [RelationColumn]),
    /// What the catalog has, where the stream has described nothing else until then.
    Now,
}

impl Shape {
    /// What there is to remember of a table whose columns are just those of the catalog.
    pub(crate) fn seen(&self) -> Seen {
        let highest = self.attributes.keys().next_back().copied().unwrap_or(0);
        Seen { file: self.file, highest, stamps: self.stamps(highest) }
    }

    fn stamps(&self, highest: i16) -> BTreeMap<i16, i64> {
        let there = self.attributes.range(..=highest).filter(|(_, attribute)| !attribute.dropped);
        there.map(|(&number, attribute)| (number, attribute.stamp)).collect()
    }

    /// The columns that the stream would describe now.
    fn sent(&self) -> impl Iterator<Item = (i16, &Attribute)> {
        let sent = self.attributes.iter().filter(|(_, attribute)| attribute.sent && !attribute.dropped);
        sent.map(|(&number, attribute)| (number, attribute))
    }

    /// Whether the columns' rows in the catalog are the same, whatever the file.
    pub(crate) fn same_columns(&self, other: &Self) -> bool {
        self.attributes == other.attributes
    }
}

/// Two accounts of one table that do not go together.
const OTHERWISE: &str = "the stream describes columns that the catalog has not";

/// The number of a mirrored column.
fn number(column: &ColumnSpec) -> i16 {
    // A field id is a column's number, so that always fits.
    i16::try_from(column.field_id).unwrap_or(i16::MAX)
}

/// Follows a table to a description of it, by the catalog of now.
///
/// What is `now` must have been read when the transaction that the description is from was visible, and with it every
/// change of the table before it.
pub(crate) fn follow(known: Known<'_>, described: Described<'_>, now: &Shape) -> Followed {
    match judge(known, described, now) {
        Ok(followed) => followed,
        Err(why) if why == OTHERWISE => Followed::Otherwise,
        Err(why) => Followed::CopyAnew(why),
    }
}

fn judge(known: Known<'_>, described: Described<'_>, now: &Shape) -> Result<Followed, String> {
    let spec = known.spec;
    let from_catalog: Vec<RelationColumn>;
    let (columns, numbers): (&[RelationColumn], Vec<i16>) = match (described, known.seen) {
        // Nothing is known, so nothing may have happened.
        (Described::Then(columns), None) => (columns, standing(spec, now)?),
        (Described::Then(columns), Some(seen)) => (columns, numbers_then(spec, seen, columns, now)?),
        (Described::Still(columns), _) => {
            let described = columns.iter().map(|column| (&*column.name, column.type_oid, column.typmod));
            if !described.eq(now.sent().map(|(_, now)| (&*now.name, now.type_oid, now.typmod))) {
                return Err(OTHERWISE.to_owned());
            }
            (columns, now.sent().map(|(number, _)| number).collect())
        }
        (Described::Now, _) => {
            let column = |(_, attribute): (i16, &Attribute)| RelationColumn {
                in_identity: false,
                name: attribute.name.clone(),
                type_oid: attribute.type_oid,
                typmod: attribute.typmod,
            };
            from_catalog = now.sent().map(column).collect();
            (&from_catalog, now.sent().map(|(number, _)| number).collect())
        }
    };
    if columns.len() != numbers.len() {
        return Err(OTHERWISE.to_owned());
    }
    let next = columns.iter().zip(&numbers).map(|(column, &number)| next_column(spec, column, number, now));
    let next = next.collect::<Result<Vec<_>, String>>()?;
    let key = spec.key.iter().filter_map(|&index| spec.columns.get(index)).map(|part| {
        let place = next.iter().position(|column| column.field_id == part.field_id);
        place.ok_or_else(|| format!("column \"{}\" of the key was dropped", part.name))
    });
    let key = key.collect::<Result<Vec<_>, String>>()?;
    let Some(seen) = known.seen else {
        let same = next.iter().zip(&spec.columns).all(|(next, column)| next == column);
        return if same { Ok(Followed::Same(now.seen())) } else { Err(not_remembered()) };
    };
    check_rows(spec, seen, &next, now)?;
    let same_numbers = numbers.iter().copied().eq(spec.columns.iter().map(number));
    if known.identity == RowIdentity::FullRow && !same_numbers {
        // What tells its rows apart is all of their columns.
        return Err("a table without a key has more or fewer columns".to_owned());
    }
    let last = numbers.last().copied().unwrap_or(0);
    let highest = match described {
        Described::Then(_) => seen.highest.max(last),
        Described::Still(_) | Described::Now => now.attributes.keys().next_back().copied().unwrap_or(last),
    };
    // A column that is not followed yet may have come by a rewrite: until then the file counts as the one of before.
    let beyond = now.attributes.keys().next_back().is_some_and(|&last| last > highest);
    let (file, stamps) = if beyond && now.file != seen.file {
        (seen.file, seen.stamps.clone())
    } else {
        (now.file, now.stamps(highest))
    };
    let seen = Seen { file, highest, stamps };
    if same_numbers && next == spec.columns {
        return Ok(Followed::Same(seen));
    }
    Ok(Followed::Changed(TableSpec { columns: next, key, ..spec.clone() }, seen))
}

fn not_remembered() -> String {
    "the source table changed, and the mirror of an earlier version has not remembered enough to follow".to_owned()
}

/// The numbers of the mirrored columns, when they are all that the catalog has.
fn standing(spec: &TableSpec, now: &Shape) -> Result<Vec<i16>, String> {
    let numbers: Vec<i16> = spec.columns.iter().map(number).collect();
    if now.sent().map(|(number, _)| number).eq(numbers.iter().copied()) { Ok(numbers) } else { Err(not_remembered()) }
}

/// A column of the next description.
fn next_column(spec: &TableSpec, column: &RelationColumn, number: i16, now: &Shape) -> Result<ColumnSpec, String> {
    let field_id = i32::from(number);
    let known = spec.columns.iter().find(|known| known.field_id == field_id);
    let attribute = now.attributes.get(&number);
    let same = |type_oid, typmod| (type_oid, typmod) == (column.type_oid, column.typmod);
    let held = known.filter(|known| same(known.type_oid, known.typmod)).map(|known| known.pg_type);
    let held = held.or_else(|| PgType::built_in(column.type_oid, column.typmod));
    let held = held.or_else(|| attribute.filter(|now| same(now.type_oid, now.typmod)).and_then(|now| now.held));
    let Some(pg_type) = held else {
        return Err(format!("column \"{}\" had a type that it has not any more", column.name));
    };
    Ok(ColumnSpec {
        name: column.name.clone(),
        field_id,
        pg_type,
        type_oid: column.type_oid,
        typmod: column.typmod,
        required: known.is_some_and(|known| known.required),
        companion: known.is_some_and(|known| known.companion),
    })
}

/// Whether the rows that were there before are what the mirror makes of them: the columns that they had, and NULL.
fn check_rows(spec: &TableSpec, seen: &Seen, next: &[ColumnSpec], now: &Shape) -> Result<(), String> {
    let same_file = now.file == seen.file;
    for column in next {
        let Some(known) = spec.columns.iter().find(|known| known.field_id == column.field_id) else {
            if number(column) <= seen.highest {
                return Err(format!("column \"{}\" is sent, which it was not", column.name));
            }
            let attribute = now.attributes.get(&number(column));
            // Whether it had a default is not known of a column that is gone.
            let plain = attribute.is_some_and(|attribute| !attribute.dropped && !attribute.missing);
            if !plain || !same_file {
                return Err(format!("column \"{}\" was added, perhaps with a default", column.name));
            }
            continue;
        };
        let same_type = (known.type_oid, known.typmod) == (column.type_oid, column.typmod);
        let same_values = same_type || same_file && keeps_values(known, column);
        if !same_values {
            let (from, to) = (known.pg_type.name(), column.pg_type.name());
            return Err(format!("column \"{}\" was made {to} from {from}, and its values perhaps others", column.name));
        }
    }
    if same_file {
        return Ok(());
    }
    let stamp = |number: i16| now.attributes.get(&number).map(|attribute| attribute.stamp);
    let touched = spec.columns.iter().find(|column| stamp(number(column)) != seen.stamps.get(&number(column)).copied());
    match touched {
        // VACUUM FULL, CLUSTER, TRUNCATE: the columns' rows in the catalog are those of before.
        None => Ok(()),
        Some(column) => Err(format!("the table was rewritten, and column \"{}\" perhaps with it", column.name)),
    }
}

/// Whether a column's values, in a file that was not rewritten, are the same in its new type, and Iceberg can follow.
fn keeps_values(from: &ColumnSpec, to: &ColumnSpec) -> bool {
    /// `text` and `varchar`.
    const TEXT: [u32; 2] = [25, 1043];
    if from.type_oid != to.type_oid {
        return TEXT.contains(&from.type_oid) && TEXT.contains(&to.type_oid);
    }
    match (from.pg_type, to.pg_type) {
        (PgType::Numeric { precision, scale }, PgType::Numeric { precision: wider, scale: same }) => {
            wider >= precision && scale == same
        }
        (from, to) => from == to,
    }
}

#[cfg(test)]
mod tests;
