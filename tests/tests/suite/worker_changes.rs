//! The README's table of changes, and the proof of each of its lines.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use lake_tests::{Oracle, Postgres, Source, Worker, WorkerConfig, bounded, eventually};

use crate::{CATCH_UP, TEST_LIMIT};

/// What becomes of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Becomes {
    /// The Iceberg table is the one that it was.
    Goes,
    /// It is another one.
    CopiedAnew,
    /// The lake keeps its last state.
    Stops,
}
use Becomes::{CopiedAnew, Goes, Stops};

/// A line of the table: the change, what becomes of the table, and statements that prove it, on a table `{t}` of their own.
struct Line {
    change: &'static str,
    outcome: &'static str,
    proofs: &'static [(&'static str, Becomes)],
}

/// What each `{t}` is at first.
const TABLE: &str = "CREATE TABLE {t} (id int PRIMARY KEY, a int NOT NULL UNIQUE, b text, v varchar(5), n numeric(6,2), g int GENERATED ALWAYS AS (id + 1) STORED);
     INSERT INTO {t} SELECT i, i, 'b' || i, 'v', i / 4.0 FROM generate_series(1, 50) i";

/// And of these names.
const OTHERWISE: [(&str, &str); 2] = [
    (
        "keyless",
        "CREATE TABLE {t} (a int, b text); ALTER TABLE {t} REPLICA IDENTITY FULL; INSERT INTO {t} VALUES (1, 'x'), (1, 'x')",
    ),
    ("filtered", TABLE),
];

const LINES: &[Line] = &[
    Line {
        change: "`ADD COLUMN` without a default",
        outcome: "followed: older rows read NULL",
        proofs: &[
            ("ALTER TABLE {t} ADD COLUMN x bigint", Goes),
            ("ALTER TABLE {t} ADD COLUMN x date; UPDATE {t} SET x = 'infinity' WHERE id = 3", Goes),
        ],
    },
    Line {
        change: "`ADD COLUMN` with a default, `serial`, identity, or of a domain with a `CHECK`",
        outcome: "copied anew: the WAL does not bring it to older rows",
        proofs: &[
            ("ALTER TABLE {t} ADD COLUMN x int DEFAULT 5", CopiedAnew),
            ("ALTER TABLE {t} ADD COLUMN x timestamptz DEFAULT clock_timestamp()", CopiedAnew),
            ("ALTER TABLE {t} ADD COLUMN x serial", CopiedAnew),
            (
                "ALTER TABLE {t} ADD COLUMN x int GENERATED ALWAYS AS IDENTITY; INSERT INTO {t} (id, a) VALUES (70, 70)",
                CopiedAnew,
            ),
            ("CREATE DOMAIN odd AS int CHECK (VALUE % 2 = 1); ALTER TABLE {t} ADD COLUMN x odd", CopiedAnew),
        ],
    },
    Line {
        change: "`DROP COLUMN`",
        outcome: "followed; of the key: copied anew",
        proofs: &[
            ("ALTER TABLE {t} DROP COLUMN b", Goes),
            (
                "ALTER TABLE {t} DROP COLUMN id CASCADE; ALTER TABLE {t} ADD PRIMARY KEY (a); UPDATE {t} SET b = 'y' WHERE a = 2",
                CopiedAnew,
            ),
        ],
    },
    Line {
        change: "`RENAME COLUMN`, also a swap by a third name, also of the key",
        outcome: "followed; of a column that the publication's row filter names: stops",
        proofs: &[
            ("ALTER TABLE {t} RENAME b TO x", Goes),
            (
                "ALTER TABLE {t} RENAME b TO x; ALTER TABLE {t} RENAME v TO b; ALTER TABLE {t} RENAME x TO v; INSERT INTO {t} (id, a, b, v) VALUES (70, 70, 'v', 'b')",
                Goes,
            ),
            ("ALTER TABLE {t} RENAME id TO key; DELETE FROM {t} WHERE key = 2", Goes),
            ("ALTER TABLE filtered RENAME id TO key; UPDATE filtered SET b = 'z' WHERE key = 2", Stops),
        ],
    },
    Line {
        change: "`varchar(n)` to a longer one or `text`, `text` to `varchar`, `numeric` to more digits of the same scale",
        outcome: "followed",
        proofs: &[
            ("ALTER TABLE {t} ALTER v TYPE varchar(50); UPDATE {t} SET v = repeat('v', 50) WHERE id = 2", Goes),
            ("ALTER TABLE {t} ALTER v TYPE text", Goes),
            ("ALTER TABLE {t} ALTER b TYPE varchar", Goes),
            ("ALTER TABLE {t} ALTER n TYPE numeric(20,2); UPDATE {t} SET n = 1e15 WHERE id = 2", Goes),
        ],
    },
    Line {
        change: "any other change of a type, or one with `USING`",
        outcome: "copied anew: the table is rewritten, and its rows are not in the WAL",
        proofs: &[
            ("ALTER TABLE {t} ALTER a TYPE bigint", CopiedAnew),
            ("ALTER TABLE {t} ALTER n TYPE numeric(8,3)", CopiedAnew),
            ("ALTER TABLE {t} ALTER b TYPE text USING b || '!'", CopiedAnew),
            ("ALTER TABLE {t} ALTER b TYPE bytea USING b::bytea", CopiedAnew),
        ],
    },
    Line {
        change: "`SET` or `DROP NOT NULL`, `SET` or `DROP DEFAULT`, statistics, `VACUUM FULL`, `CLUSTER`",
        outcome: "nothing to do",
        proofs: &[
            (
                "ALTER TABLE {t} ALTER b SET NOT NULL; ALTER TABLE {t} ALTER b DROP NOT NULL; INSERT INTO {t} (id, a) VALUES (70, 70)",
                Goes,
            ),
            (
                "ALTER TABLE {t} ALTER b SET DEFAULT 'd', ALTER b SET STATISTICS 9; INSERT INTO {t} (id, a) VALUES (70, 70)",
                Goes,
            ),
            ("VACUUM FULL {t}", Goes),
            ("CLUSTER {t} USING {t}_pkey", Goes),
        ],
    },
    Line {
        change: "another key",
        outcome: "copied anew, at the first row that the former one does not tell apart; no key at all: stops there",
        proofs: &[
            (
                "ALTER TABLE {t} DROP CONSTRAINT {t}_pkey, ADD PRIMARY KEY (id, a); INSERT INTO {t} (id, a) VALUES (5, 70)",
                CopiedAnew,
            ),
            (
                "ALTER TABLE {t} DROP CONSTRAINT {t}_pkey; ALTER TABLE {t} REPLICA IDENTITY FULL; INSERT INTO {t} (id, a) VALUES (5, 70)",
                CopiedAnew,
            ),
            ("ALTER TABLE {t} DROP CONSTRAINT {t}_pkey; INSERT INTO {t} (id, a) VALUES (5, 70)", Stops),
        ],
    },
    Line {
        change: "several in one `ALTER`, in one transaction, rows in between",
        outcome: "each is followed as above. Where a column came and another of the same kind went between two rows, or came and went before the worker looked: copied anew",
        proofs: &[
            (
                "ALTER TABLE {t} ADD COLUMN x int, DROP COLUMN b, ALTER n TYPE numeric(9,2); UPDATE {t} SET x = 1 WHERE id = 2",
                Goes,
            ),
            (
                "BEGIN; UPDATE {t} SET b = 'before' WHERE id = 2; ALTER TABLE {t} ADD COLUMN x int; UPDATE {t} SET x = 1 WHERE id < 4; ALTER TABLE {t} DROP COLUMN v; DELETE FROM {t} WHERE id = 9; COMMIT",
                Goes,
            ),
            (
                "BEGIN; ALTER TABLE {t} ADD COLUMN x text; UPDATE {t} SET x = 'x' WHERE id = 2; ALTER TABLE {t} DROP COLUMN x; COMMIT",
                CopiedAnew,
            ),
        ],
    },
    Line {
        change: "columns added to or dropped from a table without a key (`REPLICA IDENTITY FULL`)",
        outcome: "copied anew",
        proofs: &[("ALTER TABLE keyless ADD COLUMN x int; DELETE FROM keyless WHERE ctid = '(0,1)'", CopiedAnew)],
    },
    Line {
        change: "`ALTER TABLE … RENAME`, `SET SCHEMA`",
        outcome: "goes on under its name in the lake; change `tables` too before the worker starts the next time",
        proofs: &[
            (
                "ALTER TABLE {t} RENAME TO {t}_renamed; UPDATE {t}_renamed SET b = 'r' WHERE id = 2; ALTER TABLE {t}_renamed RENAME TO {t}",
                Goes,
            ),
            (
                "CREATE SCHEMA apart; ALTER TABLE {t} SET SCHEMA apart; UPDATE apart.{t} SET b = 'r' WHERE id = 2; ALTER TABLE apart.{t} SET SCHEMA public",
                Goes,
            ),
        ],
    },
    Line {
        change: "`DROP TABLE`",
        outcome: "stops; the lake keeps its last state",
        proofs: &[("DROP TABLE {t}", Stops)],
    },
    Line {
        change: "generated columns",
        outcome: "are left out of the lake, for the stream does not bring them; `cdc-worker check` names them. `DROP EXPRESSION`: copied anew. From PostgreSQL 18 on stored ones are in the lake where the publication sends them (`publish_generated_columns = stored`, or by its list of columns)",
        proofs: &[
            (
                "ALTER TABLE {t} ADD COLUMN x int GENERATED ALWAYS AS (a * 2) STORED; UPDATE {t} SET a = 99 WHERE id = 2",
                Goes,
            ),
            ("ALTER TABLE {t} ALTER g DROP EXPRESSION; UPDATE {t} SET g = 5 WHERE id = 2", CopiedAnew),
        ],
    },
    Line {
        change: "a column that is kept in text form, added or changed to, the first of the mirror",
        outcome: "copied anew: the stream begins again in text for it",
        proofs: &[("ALTER TABLE {t} ADD COLUMN x int[]; UPDATE {t} SET x = '{1}' WHERE id = 2", CopiedAnew)],
    },
];

/// Every proof, with its table.
fn proofs() -> Vec<(String, String, Becomes)> {
    let all = LINES.iter().flat_map(|line| line.proofs);
    let named = all.enumerate().map(|(number, (sql, becomes))| {
        let named = OTHERWISE.iter().find(|(name, _)| sql.contains(&format!("TABLE {name} ")));
        let table = named.map_or_else(|| format!("t{number}"), |(name, _)| (*name).to_owned());
        (table.clone(), sql.replace("{t}", &table), *becomes)
    });
    named.collect()
}

/// By table, its Iceberg table and its state.
async fn states(postgres: &Postgres) -> Result<BTreeMap<String, (String, String)>> {
    let sql = "SELECT source_table, coalesce(table_uuid::text, ''), state FROM lake_catalog.mirrored_tables";
    let cell = |cell: &Option<String>| cell.clone().unwrap_or_default();
    Ok(postgres.rows(sql).await?.iter().map(|row| (cell(&row[0]), (cell(&row[1]), cell(&row[2])))).collect())
}

#[test]
fn the_readme_has_the_table_of_changes() -> Result<()> {
    let mut table = String::from("| change of a mirrored table | what becomes of it |\n|---|---|\n");
    for Line { change, outcome, .. } in LINES {
        writeln!(table, "| {change} | {outcome} |")?;
    }
    let readme = std::fs::read_to_string(lake_tests::repository().join("README.md"))?;
    ensure!(readme.contains(&table), "the README's table of changes should be:\n{table}");
    Ok(())
}

#[tokio::test]
async fn each_change_of_the_table_comes_to_what_the_readme_says() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        let proofs = proofs();
        for (table, ..) in &proofs {
            let schema = OTHERWISE.iter().find(|(name, _)| name == table).map_or(TABLE, |(_, schema)| schema);
            postgres.batch(&schema.replace("{t}", table)).await?;
        }
        let tables: Vec<String> = proofs.iter().map(|(table, ..)| format!("public.{table}")).collect();
        let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
        Source::publish(&postgres, &tables).await?;
        postgres
            .batch("ALTER PUBLICATION lakemirror DROP TABLE filtered; ALTER PUBLICATION lakemirror ADD TABLE filtered WHERE (id > 0)")
            .await?;
        let config = WorkerConfig::new(&postgres, "one", &tables)?;
        let mut worker = Worker::start(&config, &postgres).await?;
        let before = states(&postgres).await?;

        // The last one lets the stream begin again, which is not to fall among the others.
        for (last, (table, sql, becomes)) in proofs.iter().enumerate().map(|(at, proof)| (at + 1 == proofs.len(), proof)) {
            if last {
                Oracle::new(&postgres).caught_up(&postgres, CATCH_UP).await?;
                reached(&postgres, &before, &proofs[..proofs.len() - 1]).await?;
            }
            // A statement at a time, but for transactions: not all may be in one.
            if sql.starts_with("BEGIN") {
                postgres.batch(sql).await.with_context(|| sql.clone())?;
            } else {
                for statement in sql.split("; ") {
                    postgres.batch(statement).await.with_context(|| statement.to_owned())?;
                }
            }
            // And rows behind it.
            if *becomes != Stops && table != "keyless" {
                let columns = if sql.contains("DROP COLUMN id") { "a, n" } else if sql.contains("TO key") { "key, a" } else { "id, a" };
                postgres.batch(&format!("INSERT INTO {table} ({columns}) VALUES (900, 901)")).await.with_context(|| sql.clone())?;
            }
        }
        reached(&postgres, &before, &proofs).await?;
        let left = tables.iter().zip(&proofs).filter(|(_, (.., becomes))| *becomes != Stops).map(|(table, _)| *table);
        Oracle::new(&postgres).assert_equal_but_generated(&postgres, left, CATCH_UP).await?;
        reached(&postgres, &before, &proofs).await?;
        ensure!(worker.runs()?, "the worker has ended");
        Ok(())
    })
    .await
}

/// Waits until every table has become what it is to become.
async fn reached(
    postgres: &Postgres,
    before: &BTreeMap<String, (String, String)>,
    proofs: &[(String, String, Becomes)],
) -> Result<()> {
    let mut wrong = Vec::new();
    let waited = eventually("every table is what it is to become", CATCH_UP, async || {
        let now = states(postgres).await?;
        wrong = proofs
            .iter()
            .filter(|(table, _, becomes)| {
                let (Some((was, _)), Some((is, state))) = (before.get(table), now.get(table)) else { return true };
                match becomes {
                    Goes => state != "streaming" || is != was,
                    CopiedAnew => state != "streaming" || is == was,
                    Stops => state != "errored",
                }
            })
            .map(|(table, sql, becomes)| format!("{table} is {:?}, not {becomes:?}: {sql}", now.get(table)))
            .collect();
        Ok(wrong.is_empty().then_some(()))
    })
    .await;
    waited.with_context(|| wrong.join("\n"))
}
