//! What is done to the tables that every reader then reads: each kind of change in turn, and values of each type.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::mirror::Mirror;

/// The tables that everything is done to, with the version of Iceberg's format that each is of.
pub(super) const TABLES: [(&str, u64); 2] = [("t", 2), ("t3", 3)];

/// How such a table begins.
pub(super) const FIRST_ROWS: &str =
    "CREATE TABLE {t} (id bigint PRIMARY KEY, n int, amount numeric(12, 2), name text, day date, seen timestamptz);
     INSERT INTO {t} SELECT i, i, i * 0.25, 'row ' || i, DATE '2020-01-01' + i, TIMESTAMPTZ '2026-01-01 00:00+00' + i * interval '1 hour 1 us'
     FROM generate_series(1, 1000) i;";

/// How a step is made.
pub(super) enum Change {
    /// By statements on the table `{t}`.
    Sql(&'static str),
    /// By another `partition_by`, and statements after it.
    Layout(&'static str, &'static str),
    /// By the worker's maintenance, asked for by hand.
    Maintain(&'static [&'static str]),
}

use Change::{Layout, Maintain, Sql};

/// After it there is one snapshot, and those of all other steps have expired.
pub(super) const EXPIRY: &str = "expiry of all other snapshots";

/// Each kind of change, in the order in which they are made, and what makes it.
pub(super) const STEPS: &[(&str, Change)] = &[
    ("a copy", Sql("")),
    (
        "inserts",
        Sql("INSERT INTO {t} SELECT i, i, i * 1.5, 'new ' || i, DATE '2026-01-01' + i, now() FROM generate_series(1001, 1500) i"),
    ),
    ("updates", Sql("UPDATE {t} SET name = upper(name), amount = -amount WHERE id % 3 = 0")),
    ("updates of a key", Sql("UPDATE {t} SET id = id + 100000 WHERE id % 50 = 0")),
    ("deletes", Sql("DELETE FROM {t} WHERE id % 7 = 0")),
    (
        "deletes of one file's rows, again and again",
        Sql("DELETE FROM {t} WHERE id BETWEEN 100 AND 120; DELETE FROM {t} WHERE id BETWEEN 200 AND 210"),
    ),
    ("a row inserted again", Sql("INSERT INTO {t} SELECT i, 1, 1, 'again', NULL, NULL FROM generate_series(100, 110) i")),
    (
        "`partition_by` of a table that had none",
        Layout(
            "bucket(2, id), year(day)",
            "INSERT INTO {t} SELECT i, i, i, 'parted', DATE '2021-01-01' + i, now() FROM generate_series(2001, 2300) i;
             UPDATE {t} SET amount = 0 WHERE id % 13 = 1; DELETE FROM {t} WHERE id % 17 = 1",
        ),
    ),
    (
        "rows that move to another partition",
        Sql("UPDATE {t} SET day = day + 400 WHERE id % 11 = 0; UPDATE {t} SET day = NULL WHERE id % 19 = 0"),
    ),
    (
        "another `partition_by`",
        Layout(
            "month(day)",
            "INSERT INTO {t} SELECT i, i, i, 'other', DATE '2021-01-01' + i % 90, now() FROM generate_series(3001, 3200) i;
             UPDATE {t} SET n = -n WHERE id % 23 = 0; DELETE FROM {t} WHERE id % 29 = 0",
        ),
    ),
    ("compaction", Maintain(&["maintain"])),
    ("deletes after compaction", Sql("DELETE FROM {t} WHERE id % 31 = 0; UPDATE {t} SET name = 'late' WHERE id % 37 = 0")),
    (
        "`TRUNCATE`, and rows after it",
        Sql("TRUNCATE {t}; INSERT INTO {t} SELECT i, i, i, 'after', NULL, now() FROM generate_series(1, 500) i"),
    ),
    ("`ADD COLUMN`", Sql("ALTER TABLE {t} ADD COLUMN extra text; UPDATE {t} SET extra = 'x' WHERE id < 100")),
    (
        "`RENAME COLUMN`, a swap",
        Sql("ALTER TABLE {t} RENAME name TO swap; ALTER TABLE {t} RENAME extra TO name; ALTER TABLE {t} RENAME swap TO extra;
             UPDATE {t} SET name = 'swapped' WHERE id = 1"),
    ),
    ("`DROP COLUMN`", Sql("ALTER TABLE {t} DROP COLUMN n; INSERT INTO {t} (id, name) VALUES (9000, 'dropped')")),
    ("a column of a dropped one's name", Sql("ALTER TABLE {t} ADD COLUMN n int; UPDATE {t} SET n = 5 WHERE id < 10")),
    (
        "`numeric` with more digits",
        Sql("ALTER TABLE {t} ALTER amount TYPE numeric(30, 2); INSERT INTO {t} (id, amount) VALUES (9001, 1234567890123456789012.34)"),
    ),
    ("values that Iceberg has not (companions)", Sql("UPDATE {t} SET day = 'infinity' WHERE id < 20")),
    (EXPIRY, Maintain(&["maintain", "--expire-snapshots"])),
];

/// Makes a step, of all tables.
pub(super) async fn make(mirror: &mut Mirror, change: &Change) -> Result<()> {
    let statements = match change {
        Sql(statements) => statements,
        Layout(by, statements) => {
            mirror.kill().await?;
            let layout = |(table, _): (&str, u64)| (format!("public.{table}"), (*by).to_owned(), String::new());
            mirror.config.layout = TABLES.map(layout).to_vec();
            mirror.spawn()?;
            mirror.streaming().await?;
            statements
        }
        Maintain(arguments) => {
            let names = TABLES.map(|(table, _)| format!("public.{table}"));
            let arguments = arguments.iter().copied().chain(names.iter().map(String::as_str)).collect::<Vec<_>>();
            mirror.call(&arguments).await?;
            ""
        }
    };
    for (table, _) in TABLES {
        mirror.postgres.batch(&statements.replace("{t}", table)).await?;
    }
    Ok(())
}

/// That a step was what it is to be, by the table's metadata before and after it.
pub(super) fn check(name: &str, change: &Change, version: u64, before: Option<&Value>, after: &Value) -> Result<()> {
    ensure!(after["format-version"] == version, "it is of version {}", after["format-version"]);
    let snapshots = after["snapshots"].as_array().context("snapshots")?;
    let newest = snapshots.iter().find(|snapshot| snapshot["snapshot-id"] == after["current-snapshot-id"]);
    let summary = &newest.context("a snapshot")?["summary"];
    let before = |key: &str| before.map(|before| before[key].clone()).unwrap_or_default();
    match change {
        Sql(_) => {}
        Layout(..) => ensure!(after["default-spec-id"] != before("default-spec-id"), "the partitions are the same"),
        Maintain(_) if name == EXPIRY => {
            ensure!(snapshots.len() == 1 && before("snapshots").as_array().is_some_and(|before| before.len() > 1));
        }
        Maintain(_) => {
            ensure!(summary["operation"] == "replace" && summary["total-delete-files"] == "0", "{summary}");
        }
    }
    Ok(())
}

/// A table for each type of Iceberg that the lake uses, and values at its edges.
pub(super) const TYPES: &[(&str, &str, &[&str])] = &[
    ("`boolean`", "boolean", &["true", "false", "NULL"]),
    ("`int`", "int", &["-2147483648", "2147483647", "0", "NULL"]),
    ("`long`", "bigint", &["-9223372036854775808", "9223372036854775807", "NULL"]),
    ("`float`", "real", &["'3.4028235e38'", "'1e-45'", "'-0'", "'Infinity'", "'-Infinity'", "'NaN'", "NULL"]),
    (
        "`double`",
        "double precision",
        &["'1.7976931348623157e308'", "'5e-324'", "'-0'", "'Infinity'", "'-Infinity'", "'NaN'", "NULL"],
    ),
    ("`decimal`", "numeric(38, 10)", &["9999999999999999999999999999.9999999999", "-0.0000000001", "NULL"]),
    ("`date`", "date", &["'0001-01-01'", "'1900-01-01'", "'2026-11-28'", "'2299-12-31'", "NULL"]),
    (
        "`date` before the year 0 or after 9999",
        "date",
        &["'4000-01-01 BC'", "'1066-10-14'", "'9999-12-31'", "'294000-01-01'"],
    ),
    ("`time`", "time", &["'00:00'", "'23:59:59.999999'", "NULL"]),
    (
        "`timestamp`",
        "timestamp",
        &["'1900-01-01 00:00'", "'1969-12-31 23:59:59.999999'", "'2026-11-28 12:00:00.123456'", "NULL"],
    ),
    (
        "`timestamp` before the year 0 or after 2299",
        "timestamp",
        &["'4000-01-01 BC'", "'1066-10-14 12:00'", "'9999-12-31 23:59:59.999999'"],
    ),
    (
        "`timestamptz`",
        "timestamptz",
        &["'1900-01-01 00:00+00'", "'1969-12-31 23:59:59.999999+00'", "'2026-11-28 12:00:00.123456+00'", "NULL"],
    ),
    ("`string`", "text", &["''", "'ä€😀'", "E'\\n\\t'", "repeat('x', 100000)", "NULL"]),
    ("`uuid`", "uuid", &["'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'", "NULL"]),
    ("`binary`", "bytea", &["'\\x'", "'\\x00ff80'", "NULL"]),
];
