//! The list as the README shows it.

use std::fmt::Write as _;

use crate::forms::NOT_SENT;
use crate::{AGGREGATES, Collation, Entry, FORMS, FUNCTIONS, OPERATORS, WINDOWS};

/// Types of arguments, short.
fn signature(entry: &Entry) -> String {
    let mut args: Vec<&str> = entry.args.iter().map(|kind| kind.name()).collect();
    if !entry.words.is_empty() {
        args.remove(0);
    }
    let mut text = match (entry.args, args.len()) {
        ([], _) => "()".to_owned(),
        (_, 1) => args[0].to_owned(),
        _ => args.join(", "),
    };
    if !entry.words.is_empty() {
        let _ = write!(text, ": {}", entry.words.join(", "));
    }
    match entry.collation {
        Collation::Bytes => text.push_str(" in `C`"),
        Collation::Any | Collation::Deterministic => {}
    }
    if entry.utc {
        text.push_str(" in UTC");
    }
    text
}

fn rows(text: &mut String, kind: &str, list: &[Entry]) {
    let mut names: Vec<&str> = Vec::new();
    for entry in list {
        if !names.contains(&entry.name) {
            names.push(entry.name);
        }
    }
    for name in names {
        let of: Vec<String> = list.iter().filter(|entry| entry.name == name).map(signature).collect();
        let name = name.replace('|', "\\|");
        let _ = writeln!(text, "| {kind} `{name}` | {} |", of.join("; "));
    }
}

/// What is sent: forms, then entries, a row for each name.
pub fn table() -> String {
    let mut text = String::from("| | sent when |\n|---|---|\n");
    for form in FORMS {
        let _ = writeln!(text, "| {} | {} |", form.syntax, form.when);
    }
    rows(&mut text, "operator", OPERATORS);
    rows(&mut text, "function", FUNCTIONS);
    rows(&mut text, "aggregate", AGGREGATES);
    rows(&mut text, "window function", WINDOWS);
    text
}

/// What is not, and why.
pub fn not_sent() -> String {
    let mut text = String::from("| not sent | because |\n|---|---|\n");
    for (what, why) in NOT_SENT {
        let _ = writeln!(text, "| {what} | {why} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_entry_is_there_twice() {
        for list in [OPERATORS, FUNCTIONS, AGGREGATES, WINDOWS] {
            for (at, entry) in list.iter().enumerate() {
                let same = |other: &&Entry| {
                    (other.name, other.args, other.collation, other.words)
                        == (entry.name, entry.args, entry.collation, entry.words)
                };
                assert!(!list[..at].iter().any(|other| same(&other)), "{} {:?}", entry.name, entry.args);
            }
        }
    }
}
