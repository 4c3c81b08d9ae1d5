//! One random transaction, written before it runs: the same seed gives the same scripts.

use std::time::Duration;

use super::tables::{ALTERATIONS, ALTERED, HAPPENINGS, STRANGERS, TRUNCATES};
use crate::random::Random;

/// Keys come from 1 to this.
const KEYS: u64 = 3000;
/// Savepoints within each other, at most.
const DEEPEST: u64 = 4;

/// A transaction: its steps, each of one or several statements, and its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Script {
    pub(super) steps: Vec<String>,
    /// Between two steps.
    pub(super) pause: Duration,
    pub(super) end: End,
}

/// What a session's transactions are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Short,
    /// They take seconds, while others come and go.
    Long,
    /// They change tables' columns, among other work.
    Alters,
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Commit,
    Rollback,
    Prepare(Decision),
}

/// What becomes of a prepared transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Commit,
    Rollback,
    /// Decided at the end of the round only.
    Left,
}

impl Script {
    /// The next transaction.
    pub(super) fn write(random: &mut Random, kind: Kind) -> Self {
        let long = kind == Kind::Long;
        let count = if long { 4 + random.below(10) } else { 1 + random.below(5) };
        let mut steps = Vec::new();
        let mut depth = 0;
        let mut locks = false;
        for _ in 0..count {
            match random.below(12) {
                0 | 1 if depth < DEEPEST => {
                    steps.push(format!("SAVEPOINT s{depth}"));
                    depth += 1;
                }
                2 if depth > 0 => {
                    // The savepoint itself stays.
                    let to = random.below(depth);
                    steps.push(format!("ROLLBACK TO s{to}"));
                    depth = to + 1;
                }
                3 if depth > 0 => {
                    depth = random.below(depth);
                    steps.push(format!("RELEASE s{depth}"));
                }
                _ => {}
            }
            // Nobody else would get anywhere while a long transaction holds a whole table.
            if kind == Kind::Alters && random.percent(60) {
                locks = true;
                steps.push(alteration(random));
            } else if !long && random.percent(5) {
                locks = true;
                let template = random.pick(TRUNCATES);
                steps.push(filled(template, random, 500));
            } else {
                steps.push(statement(random));
            }
        }
        let end = match random.below(100) {
            0..78 => End::Commit,
            78..86 => End::Rollback,
            86..93 => End::Prepare(Decision::Commit),
            93..98 => End::Prepare(Decision::Rollback),
            _ if locks => End::Commit,
            _ => End::Prepare(Decision::Left),
        };
        let pause =
            Duration::from_millis(if long { 100 + random.below(500) } else { random.below(2) * random.below(20) });
        Self { steps, pause, end }
    }
}

fn alteration(random: &mut Random) -> String {
    const NAMES: [&str; 4] = ["e0", "e1", "e2", "e3"];
    let (template, table) = (random.pick(ALTERATIONS), random.pick(ALTERED));
    let first = random.below(4);
    let names = [first, (first + 1 + random.below(3)) % 4].map(|at| NAMES[usize::try_from(at).unwrap_or(0)]);
    let text = template.replace("{t}", table).replace("{d}", names[0]).replace("{f}", names[1]);
    filled(&text, random, 1)
}

fn statement(random: &mut Random) -> String {
    if random.percent(5) {
        let template = random.pick(STRANGERS);
        return filled(template, random, 4000);
    }
    let table = random.below(HAPPENINGS.len() as u64);
    let happenings = &HAPPENINGS[usize::try_from(table).unwrap_or(0)];
    let choices = match random.below(10) {
        0..4 => happenings.inserts,
        4..8 => happenings.updates,
        _ => happenings.deletes,
    };
    let template = random.pick(choices);
    filled(template, random, happenings.most)
}

fn filled(template: &str, random: &mut Random, most: u64) -> String {
    let first = 1 + random.below(KEYS);
    // Mostly one row, now and then thousands.
    let span = match random.below(100) {
        0..55 => 0,
        55..90 => random.below(30),
        90..97 => random.below(300),
        _ => random.below(4000),
    };
    let last = first + span.min(most.saturating_sub(1));
    let any = random.below(1000);
    template.replace("{k}", &first.to_string()).replace("{m}", &last.to_string()).replace("{x}", &any.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scripts(seed: u64) -> Vec<Script> {
        let mut random = Random::new(seed);
        let kinds = [Kind::Long, Kind::Short, Kind::Alters, Kind::Short, Kind::Short];
        (0..1500).map(|at| Script::write(&mut random, kinds[at % 5])).collect()
    }

    #[test]
    fn a_seed_gives_the_same_scripts_and_another_seed_others() {
        assert_eq!(scripts(1), scripts(1));
        assert_ne!(scripts(1), scripts(2));
    }

    #[test]
    fn every_kind_of_work_comes_up_and_no_placeholder_is_left() {
        let text: Vec<String> = scripts(3).into_iter().flat_map(|script| script.steps).collect();
        for wanted in [
            "SAVEPOINT s3",
            "ROLLBACK TO",
            "RELEASE",
            "CASCADE",
            "pg_logical_emit_message",
            "soak.bag",
            "soak.event",
            "RENAME",
        ] {
            assert!(text.iter().any(|step| step.contains(wanted)), "{wanted}");
        }
        assert!(!text.iter().any(|step| step.contains(['{', '}'])));
        assert!(scripts(3).iter().any(|script| script.end == End::Prepare(Decision::Left)));
    }
}
