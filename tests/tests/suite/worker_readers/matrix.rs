//! The README's table, out of what the readers have made of each step.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};

use super::steps::{EXPIRY, STEPS, TYPES};

/// As the matrix's script calls them, and as the README does.
pub(super) const READERS: [(&str, &str); 4] = [
    ("DuckDB", "DuckDB 1.5"),
    ("PyIceberg", "PyIceberg 0.12"),
    ("ClickHouse", "ClickHouse 26.9"),
    ("Spark", "Spark 4.1, Iceberg 1.12"),
];

/// What a reader does not read as the others do.
struct Limit {
    /// What the steps are of.
    of: &'static [&'static str],
    /// The steps.
    steps: &'static [&'static str],
    /// Who.
    reader: &'static str,
    /// What the comparison or the reader says.
    said: &'static str,
    /// What the README says of it.
    says: &'static str,
}

/// The rows that a step leaves are in files of which some are deleted. (Compaction, and a new beginning, leave none.)
const WITH_DELETES: &[&str] = &[
    "updates",
    "updates of a key",
    "deletes",
    "deletes of one file's rows, again and again",
    "a row inserted again",
    "`partition_by` of a table that had none",
    "rows that move to another partition",
    "another `partition_by`",
    "deletes after compaction",
    "`ADD COLUMN`",
    "`RENAME COLUMN`, a swap",
    "`DROP COLUMN`",
    "a column of a dropped one's name",
    "`numeric` with more digits",
    "values that Iceberg has not (companions)",
];

const LIMITS: &[Limit] = &[
    // Deletion vectors.
    Limit {
        of: &["after 3", "travel 3"],
        steps: WITH_DELETES,
        reader: "ClickHouse",
        said: "Position deletes are supported only for parquet format",
        says: "refused",
    },
    // Of tables too that Spark has written.
    Limit {
        of: &["after 2", "travel 2"],
        steps: &["another `partition_by`", "deletes after compaction"],
        reader: "ClickHouse",
        said: "Position deletes objects are not sorted by common_partition_specification",
        says: "refused, by a fault of its own",
    },
    Limit {
        of: &["travel 2", "travel 3"],
        steps: &[EXPIRED],
        reader: "DuckDB",
        said: "Could not find snapshot",
        says: GONE,
    },
    Limit {
        of: &["travel 2", "travel 3"],
        steps: &[EXPIRED],
        reader: "PyIceberg",
        said: "Snapshot not found",
        says: GONE,
    },
    Limit {
        of: &["travel 2", "travel 3"],
        steps: &[EXPIRED],
        reader: "ClickHouse",
        said: "No snapshot found",
        says: GONE,
    },
    Limit {
        of: &["travel 2", "travel 3"],
        steps: &[EXPIRED],
        reader: "Spark",
        said: "Cannot find snapshot",
        says: GONE,
    },
    Limit {
        of: &[TYPE],
        steps: &["`time`"],
        reader: "ClickHouse",
        said: "heap '86399999999', lake '86399'",
        says: "cut to whole seconds",
    },
    Limit {
        of: &[TYPE],
        steps: &["`time`"],
        reader: "Spark",
        said: "Spark does not support time fields",
        says: "not at all: leave the column out",
    },
    Limit {
        of: &[TYPE],
        steps: &["`date` before the year 0 or after 9999"],
        reader: "ClickHouse",
        said: "out of allowed Date32 range",
        says: "refused",
    },
];

/// A snapshot of a step that has expired since.
pub(super) const EXPIRED: &str = "a snapshot that has expired";
const GONE: &str = "is not there";

/// What each reader made of each step: by where the step is of, its name, and the reader.
pub(super) type Found = BTreeMap<(String, String, String), String>;

/// What the steps are of, and what the README says before them.
pub(super) const AFTER: [&str; 2] = ["after 2", "after 3"];
pub(super) const TRAVEL: [&str; 2] = ["travel 2", "travel 3"];
pub(super) const TYPE: &str = "type";

/// The README's table. An outcome that is neither equality nor one of the known limits is an error, and so is a limit that is
/// none any more.
pub(super) fn table(found: &Found) -> Result<String> {
    let unexpected: Vec<String> = found
        .iter()
        .filter_map(|((of, step, reader), outcome)| {
            cell(found, of, step, reader).err().map(|_| (of, step, reader, outcome))
        })
        .map(|(of, step, reader, outcome)| format!("{of}: {step}: {reader}: {outcome}"))
        .collect();
    ensure!(unexpected.is_empty(), "not what is known of the readers:\n{}", unexpected.join("\n"));
    let mut text = format!(
        "| the lake after | {} |\n|---|{}\n",
        READERS.map(|(_, shown)| shown).join(" | "),
        "---|".repeat(READERS.len())
    );
    let every: Vec<&str> = STEPS.iter().map(|(step, _)| *step).collect();
    let types: Vec<&str> = TYPES.iter().map(|(step, ..)| *step).collect();
    let mut add = |name: &str, cells: &[&str]| writeln!(text, "| {name} | {} |", cells.join(" | "));
    for (steps, cells) in groups(found, AFTER[0], &every)? {
        add(&steps.join(", "), &cells)?;
    }
    add("time travel to each of these", &travels(found, 0, &every)?)?;
    // All is said above; so the longest list is that of the others.
    let mut third = groups(found, AFTER[1], &every)?;
    third.sort_by_key(|(steps, _)| steps.len());
    let (_, others) = third.pop().context("a group")?;
    for (steps, cells) in &third {
        add(&format!("version 3: {}", steps.join(", ")), cells)?;
    }
    add(if third.is_empty() { "version 3: each of these" } else { "version 3: the others of these" }, &others)?;
    add("version 3: time travel to each of these", &travels(found, 1, &every)?)?;
    for (steps, cells) in groups(found, TRAVEL[0], &[EXPIRED])? {
        add(&format!("time travel to {}", steps.join(", ")), &cells)?;
    }
    for (steps, cells) in groups(found, TYPE, &types)? {
        add(&steps.join(", "), &cells)?;
    }
    Ok(text)
}

/// What the readers make of the steps' snapshots in a later state of the table: the same as of the steps themselves.
fn travels(found: &Found, place: usize, steps: &[&str]) -> Result<Vec<&'static str>> {
    let travel = |(reader, _): (&str, &str)| {
        let mut same = "yes";
        for step in steps.iter().filter(|step| **step != EXPIRY) {
            let (then, now) = (cell(found, AFTER[place], step, reader)?, cell(found, TRAVEL[place], step, reader)?);
            ensure!(then == now, "{reader} on time travel to {step}: {now}");
            if now != "yes" {
                same = "as above";
            }
        }
        Ok(same)
    };
    READERS.map(travel).into_iter().collect()
}

type Group<'a> = (Vec<&'a str>, Vec<&'static str>);

/// The steps that all readers read alike, in the order of the first of each.
fn groups<'a>(found: &Found, of: &str, steps: &[&'a str]) -> Result<Vec<Group<'a>>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for step in steps {
        let cells = READERS.map(|(reader, _)| cell(found, of, step, reader)).into_iter().collect::<Result<Vec<_>>>()?;
        match groups.iter_mut().find(|(_, same)| *same == cells) {
            Some((steps, _)) => steps.push(step),
            None => groups.push((vec![step], cells)),
        }
    }
    Ok(groups)
}

fn cell(found: &Found, of: &str, step: &str, reader: &str) -> Result<&'static str> {
    let key = (of.to_owned(), step.to_owned(), reader.to_owned());
    let outcome = found.get(&key).with_context(|| format!("no outcome of {key:?}"))?;
    let is_it = |limit: &&Limit| limit.reader == reader && limit.of.contains(&of) && limit.steps.contains(&step);
    match LIMITS.iter().find(is_it) {
        Some(limit) if outcome.contains(limit.said) => Ok(limit.says),
        None if outcome == "equal" => Ok("yes"),
        _ => anyhow::bail!("{reader} on {step}: {outcome}"),
    }
}
