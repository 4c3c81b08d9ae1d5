//! The numbers of the columns that the stream describes.
//!
//! What may have been there is a set of candidates; what is looked for are the ways to choose as many of them as are
//! described that can have been there at one time. Where there is one only, it is right.

use iceberg_writer::TableSpec;

use crate::decode::message::RelationColumn;

use super::{OTHERWISE, Seen, Shape, number};

/// A column of which it is to be found out whether it was there when the table was described.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    number: i16,
    kind: Kind,
    /// When the column was dropped: by which transaction, and which of its commands.
    dropped: Option<(i64, i64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It is mirrored and is there now, so it was there.
    There,
    /// It was there before, and is gone now.
    Gone,
    /// It came after the last description that was followed, and is there.
    Came,
    /// It came, and went.
    CameAndWent,
    /// It was there and not sent, and this may have changed.
    Unsent,
}

/// More of them than this are not told apart one by one.
const MOST_DOUBTFUL: usize = 16;

/// The numbers of a description's columns, if there is one possibility only.
pub(super) fn numbers_then(
    spec: &TableSpec,
    seen: &Seen,
    described: &[RelationColumn],
    now: &Shape,
) -> Result<Vec<i16>, String> {
    let mut candidates = Vec::new();
    for column in &spec.columns {
        let number = number(column);
        let kind = match now.attributes.get(&number) {
            None => return Err(format!("the catalog has no row of column \"{}\"", column.name)),
            Some(attribute) if attribute.dropped => Kind::Gone,
            Some(attribute) if !attribute.sent => {
                return Err(format!("column \"{}\" is not sent any more", column.name));
            }
            Some(_) => Kind::There,
        };
        candidates.push(Candidate { number, kind, dropped: dropped(now, number) });
    }
    let mirrored = |number: i16| spec.columns.iter().any(|column| column.field_id == i32::from(number));
    for (&number, attribute) in &now.attributes {
        let kind = if number <= seen.highest {
            // A generated column may have been made an ordinary one, and then dropped.
            if mirrored(number) || !seen.stamps.contains_key(&number) || !attribute.dropped && !attribute.sent {
                continue;
            }
            Kind::Unsent
        } else {
            match (attribute.dropped, attribute.sent) {
                (true, _) => Kind::CameAndWent,
                (false, true) => Kind::Came,
                // An ordinary column is never made a generated one.
                (false, false) => continue,
            }
        };
        candidates.push(Candidate { number, kind, dropped: dropped(now, number) });
    }
    candidates.sort_unstable_by_key(|candidate| candidate.number);
    let had_types = |chosen: &[Candidate]| {
        // Of a table that was not rewritten, no column's type can have become just any other.
        now.file != seen.file
            || chosen.iter().zip(described).all(|(candidate, column)| {
                let known = spec.columns.iter().find(|known| known.field_id == i32::from(candidate.number));
                let catalog = now.attributes.get(&candidate.number).filter(|attribute| !attribute.dropped);
                let types = [known.map(|known| known.type_oid), catalog.map(|attribute| attribute.type_oid)];
                types.into_iter().flatten().all(|other| one_family(other, column.type_oid))
            })
    };
    let chosen = only_choice(&candidates, described.len(), &had_types)?;
    Ok(chosen.into_iter().map(|candidate| candidate.number).collect())
}

/// When a column was dropped, which is the last that happens to its row in the catalog.
fn dropped(now: &Shape, number: i16) -> Option<(i64, i64)> {
    let attribute = now.attributes.get(&number).filter(|attribute| attribute.dropped)?;
    Some((attribute.stamp, attribute.command?))
}

/// The one way to choose so many columns that there can have been at a time.
fn only_choice(
    candidates: &[Candidate],
    count: usize,
    is_possible: &dyn Fn(&[Candidate]) -> bool,
) -> Result<Vec<Candidate>, String> {
    let ambiguous = || Err("its columns changed several times, and cannot be told apart any more".to_owned());
    let doubtful = candidates.iter().filter(|candidate| candidate.kind != Kind::There).count();
    let there = candidates.len() - doubtful;
    if count < there || count > candidates.len() {
        return Err(OTHERWISE.to_owned());
    }
    if count == candidates.len() {
        return Ok(candidates.to_vec());
    }
    if count == there {
        return Ok(candidates.iter().filter(|candidate| candidate.kind == Kind::There).copied().collect());
    }
    if doubtful > MOST_DOUBTFUL {
        return ambiguous();
    }
    let mut choices = (0u32..1 << doubtful)
        .filter_map(|choice| chosen(candidates, choice, count))
        .filter(|chosen| is_possible(chosen));
    match (choices.next(), choices.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(OTHERWISE.to_owned()),
        (Some(_), Some(_)) => ambiguous(),
    }
}

/// The columns there, and of the doubtful ones those whose bits are set, if that is possible: numbers are given one after
/// the other, so with a column that came, all that came before it were there unless they went; and of those that one
/// transaction dropped, the first were gone first.
fn chosen(candidates: &[Candidate], choice: u32, count: usize) -> Option<Vec<Candidate>> {
    let (mut chosen, mut doubtful, mut came_later) = (Vec::with_capacity(count), 0, false);
    for candidate in candidates {
        let is_chosen = candidate.kind == Kind::There || {
            let bit = choice & 1 << doubtful != 0;
            doubtful += 1;
            bit
        };
        match (candidate.kind, is_chosen) {
            (Kind::Came, false) => came_later = true,
            (Kind::Came | Kind::CameAndWent, true) if came_later => return None,
            _ => {}
        }
        if is_chosen {
            chosen.push(*candidate);
        }
    }
    let still_there = |candidate: &&Candidate| chosen.iter().any(|chosen| chosen.number == candidate.number);
    let in_order = candidates.iter().filter(still_there).filter_map(|kept| kept.dropped).all(|(by, command)| {
        // A column that had not come yet is not one that was gone already.
        let gone = candidates.iter().filter(|other| other.kind == Kind::Gone && !still_there(other));
        gone.filter_map(|gone| gone.dropped).all(|(other, earlier)| by != other || earlier < command)
    });
    (chosen.len() == count && in_order).then_some(chosen)
}

/// Whether a column of one type may have become one of the other without its table being rewritten. Of types that are
/// not listed, nothing is excluded.
fn one_family(one: u32, other: u32) -> bool {
    /// Each list has types that may become each other by a mere change of the catalog; those of two lists may not.
    const FAMILIES: [&[u32]; 14] = [
        &[16],
        &[17],
        &[20],
        &[21],
        &[23],
        &[700],
        &[701],
        &[1700],
        &[25, 1043],
        &[1082],
        &[1083],
        // When the session's time zone is UTC.
        &[1114, 1184],
        &[2950],
        &[114, 3802],
    ];
    let family = |oid: u32| FAMILIES.iter().position(|family| family.contains(&oid));
    match (family(one), family(other)) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    }
}
