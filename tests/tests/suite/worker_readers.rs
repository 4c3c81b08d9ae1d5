//! The readers' matrix: what each of Iceberg's readers makes of a mirrored table after each kind of change, and of each type.
//!
//! The README's table is made here. Needs what `tests/readers.sh` installs, so `make test-readers` runs it, and no other target.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lake_tests::{Postgres, Python, bounded, repository};
use serde_json::{Value, json};

use crate::CATCH_UP;
use crate::mirror::Mirror;

/// Spark takes its time to start, the more so when it fetches Iceberg's runtime.
const LIMIT: Duration = Duration::from_secs(600);

/// As the matrix's script calls them, and as the README does.
const READERS: [(&str, &str); 4] = [
    ("DuckDB", "DuckDB 1.5"),
    ("PyIceberg", "PyIceberg 0.12"),
    ("ClickHouse", "ClickHouse 26.9"),
    ("Spark", "Spark 4.1, Iceberg 1.12"),
];

const BY_NAME: &str = "by its name in the catalog";

/// What a reader does not read as the others do: the step, the reader, what the comparison or the reader says, and what the
/// README says of it.
const LIMITS: &[(&str, &str, &str, &str)] = &[
    ("`time`", "ClickHouse", "heap '86399999999', lake '86399'", "cut to whole seconds"),
    ("`time`", "Spark", "Spark does not support time fields", "not at all: leave the column out"),
    ("`date` before the year 0 or after 9999", "ClickHouse", "out of allowed Date32 range", "refused"),
];

/// Each kind of change, in the order in which they are made, and what makes it.
const STEPS: &[(&str, &str)] = &[
    ("a copy", ""),
    (
        "inserts",
        "INSERT INTO t SELECT i, i, i * 1.5, 'new ' || i, DATE '2026-01-01' + i, now() FROM generate_series(1001, 1500) i",
    ),
    ("updates", "UPDATE t SET name = upper(name), amount = -amount WHERE id % 3 = 0"),
    ("updates of a key", "UPDATE t SET id = id + 100000 WHERE id % 50 = 0"),
    ("deletes", "DELETE FROM t WHERE id % 7 = 0"),
    (
        "deletes of one file's rows, again and again",
        "DELETE FROM t WHERE id BETWEEN 100 AND 120; DELETE FROM t WHERE id BETWEEN 200 AND 210",
    ),
    ("a row inserted again", "INSERT INTO t SELECT i, 1, 1, 'again', NULL, NULL FROM generate_series(100, 110) i"),
    (
        "`TRUNCATE`, and rows after it",
        "TRUNCATE t; INSERT INTO t SELECT i, i, i, 'after', NULL, now() FROM generate_series(1, 500) i",
    ),
    ("`ADD COLUMN`", "ALTER TABLE t ADD COLUMN extra text; UPDATE t SET extra = 'x' WHERE id < 100"),
    (
        "`RENAME COLUMN`, a swap",
        "ALTER TABLE t RENAME name TO swap; ALTER TABLE t RENAME extra TO name; ALTER TABLE t RENAME swap TO extra; UPDATE t SET name = 'swapped' WHERE id = 1",
    ),
    ("`DROP COLUMN`", "ALTER TABLE t DROP COLUMN n; INSERT INTO t (id, name) VALUES (9000, 'dropped')"),
    ("a column of a dropped one's name", "ALTER TABLE t ADD COLUMN n int; UPDATE t SET n = 5 WHERE id < 10"),
    (
        "`numeric` with more digits",
        "ALTER TABLE t ALTER amount TYPE numeric(30, 2); INSERT INTO t (id, amount) VALUES (9001, 1234567890123456789012.34)",
    ),
    ("values that Iceberg has not (companions)", "UPDATE t SET day = 'infinity' WHERE id < 20"),
];

/// A table for each type of Iceberg that the lake uses, and values at its edges.
const TYPES: &[(&str, &str, &str)] = &[
    ("`boolean`", "boolean", "true, false, NULL"),
    ("`int`", "int", "-2147483648, 2147483647, 0, NULL"),
    ("`long`", "bigint", "-9223372036854775808, 9223372036854775807, NULL"),
    ("`float`", "real", "'3.4028235e38', '1e-45', '-0', 'Infinity', '-Infinity', 'NaN', NULL"),
    ("`double`", "double precision", "'1.7976931348623157e308', '5e-324', '-0', 'Infinity', '-Infinity', 'NaN', NULL"),
    ("`decimal`", "numeric(38, 10)", "9999999999999999999999999999.9999999999, -0.0000000001, NULL"),
    ("`date`", "date", "'0001-01-01', '1900-01-01', '2026-11-28', '2299-12-31', NULL"),
    ("`date` before the year 0 or after 9999", "date", "'4000-01-01 BC', '1066-10-14', '9999-12-31', '294000-01-01'"),
    ("`time`", "time", "'00:00', '23:59:59.999999', NULL"),
    (
        "`timestamp`",
        "timestamp",
        "'1900-01-01 00:00', '1969-12-31 23:59:59.999999', '2026-11-28 12:00:00.123456', NULL",
    ),
    (
        "`timestamp` before the year 0 or after 2299",
        "timestamp",
        "'4000-01-01 BC', '1066-10-14 12:00', '9999-12-31 23:59:59.999999'",
    ),
    (
        "`timestamptz`",
        "timestamptz",
        "'1900-01-01 00:00+00', '1969-12-31 23:59:59.999999+00', '2026-11-28 12:00:00.123456+00', NULL",
    ),
    ("`string`", "text", "'', 'ä€😀', E'\\n\\t', repeat('x', 100000), NULL"),
    ("`uuid`", "uuid", "'00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff', NULL"),
    ("`binary`", "bytea", "'\\x', '\\x00ff80', NULL"),
];

#[tokio::test]
#[ignore = "needs tests/readers.sh: make test-readers"]
async fn every_reader_reads_what_the_readme_says_it_reads() -> Result<()> {
    bounded(LIMIT, async {
        // GIVEN tables with all kinds of changes, with the metadata and the heap's rows kept after each
        let mut schema = "CREATE SCHEMA moments; CREATE TABLE t (id bigint PRIMARY KEY, n int, amount numeric(12, 2), name text, day date, seen timestamptz);
             INSERT INTO t SELECT i, i, i * 0.25, 'row ' || i, DATE '2020-01-01' + i, TIMESTAMPTZ '2026-01-01 00:00+00' + i * interval '1 hour 1 us' FROM generate_series(1, 1000) i;"
            .to_owned();
        let mut tables = vec!["public.t".to_owned()];
        for (place, (_, kind, values)) in TYPES.iter().enumerate() {
            let rows: Vec<String> = split(values).iter().map(|value| format!("({value})")).collect();
            write!(
                schema,
                "CREATE TABLE type_{place} (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, v {kind});
                 INSERT INTO type_{place} (v) VALUES {};",
                rows.join(", ")
            )?;
            tables.push(format!("public.type_{place}"));
        }
        // The suite's helper takes names that live as long as the program.
        let names: Vec<&'static str> = tables.iter().map(|name| &*Box::leak(name.clone().into_boxed_str())).collect();
        let mut mirror = Mirror::start_on(Postgres::builder().tcp(), &schema, &names).await?;
        mirror.oracle.caught_up(&mirror.postgres, CATCH_UP).await?;
        let mut steps = Vec::new();
        for (place, (name, _, _)) in TYPES.iter().enumerate() {
            let mut step = kept(&mirror, &format!("type_{place}")).await?;
            step["name"] = json!(name);
            steps.push(step);
        }
        let mut changes = Vec::new();
        for (name, sql) in STEPS {
            mirror.postgres.batch(sql).await.with_context(|| format!("make {name}"))?;
            mirror.oracle.caught_up(&mirror.postgres, CATCH_UP).await?;
            let mut step = kept(&mirror, "t").await?;
            step["name"] = json!(name);
            changes.push(step);
        }
        // Each of those states once more, out of the last metadata, by its snapshot.
        let last = changes.last().context("a step")?["location"].clone();
        let travels = changes.iter().map(|step| {
            let mut step = step.clone();
            (step["name"], step["location"]) = (json!(format!("then: {}", step["name"].as_str().unwrap_or_default())), last.clone());
            step
        });
        let travels: Vec<Value> = travels.collect();
        for step in steps.iter_mut().chain(&mut changes) {
            step["snapshot"] = Value::Null;
        }
        // And the last by its name, in the catalog that is in Postgres.
        let mut named = changes.last().context("a step")?.clone();
        (named["name"], named["by_name"], named["readers"]) = (json!(BY_NAME), json!("public.t"), json!(["Spark"]));
        let all: Vec<&Value> = changes.iter().chain(&travels).chain(&steps).chain([&named]).collect();

        // WHEN every reader reads each
        let request = json!({
            "host": mirror.postgres.socket_dir(), "port": mirror.postgres.port(), "database": "postgres", "user": "postgres",
            "readers": READERS.map(|(reader, _)| reader), "steps": all,
        });
        let answer = Python::script("oracle/matrix.py").with_interpreter(".deps/readers/venv/bin/python").ask(&request).await?;

        // THEN it is what the README says
        let mut found: BTreeMap<(String, String), String> = BTreeMap::new();
        for result in answer["results"].as_array().context("results")? {
            let text = |name: &str| result[name].as_str().unwrap_or_default().to_owned();
            found.insert((text("step"), text("reader")), text("outcome"));
        }
        ensure!(found.len() == (all.len() - 1) * READERS.len() + 1, "{} outcomes", found.len());
        let by_name = &found[&(BY_NAME.to_owned(), "Spark".to_owned())];
        ensure!(by_name == "equal", "Spark by the catalog: {by_name}");
        let matrix = matrix(&found)?;
        let readme = tokio::fs::read_to_string(repository().join("README.md")).await?;
        ensure!(readme.contains(&matrix), "the README should say:\n{matrix}");
        mirror.equal().await?;
        Ok(())
    })
    .await
}

/// The README's table. An outcome that is neither equality nor one of the known limits is an error, and so is a limit that is
/// none any more.
fn matrix(found: &BTreeMap<(String, String), String>) -> Result<String> {
    let cell = |step: &str, (reader, _): (&str, &str)| -> Result<&'static str> {
        let outcome = found.get(&(step.to_owned(), reader.to_owned())).context("an outcome")?;
        let limit = LIMITS.iter().find(|(where_, who, _, _)| (*where_, *who) == (step, reader));
        match limit {
            Some((_, _, said, says)) if outcome.contains(said) => Ok(says),
            None if outcome == "equal" => Ok("yes"),
            _ => bail!("{reader} on {step}: {outcome}"),
        }
    };
    let cells = |step: &str| READERS.map(|reader| cell(step, reader)).into_iter().collect::<Result<Vec<_>>>();
    // Lines with the same cells are one.
    let mut lines: Vec<(Vec<&str>, Vec<&str>)> = Vec::new();
    let mut add = |step: &str, shown: &'static str, first: bool| -> Result<()> {
        let cells = cells(step)?;
        match lines.last_mut() {
            Some((steps, same)) if *same == cells && !first => steps.push(shown),
            _ => lines.push((vec![shown], cells)),
        }
        Ok(())
    };
    for (place, (step, _)) in STEPS.iter().enumerate() {
        add(step, step, place == 0)?;
    }
    for (place, (step, _)) in STEPS.iter().enumerate() {
        let travel = format!("then: {step}");
        if place == 0 { add(&travel, "time travel to each of these", true)? } else { cells(&travel).map(drop)? }
    }
    let is_limited = |step: &str| LIMITS.iter().any(|(limited, ..)| *limited == step);
    for limited in [false, true] {
        for (place, (step, ..)) in TYPES.iter().filter(|(step, ..)| is_limited(step) == limited).enumerate() {
            add(step, step, place == 0)?;
        }
    }
    let mut text = format!(
        "| the lake after | {} |\n|---|{}\n",
        READERS.map(|(_, shown)| shown).join(" | "),
        "---|".repeat(READERS.len())
    );
    for (steps, cells) in lines {
        writeln!(text, "| {} | {} |", steps.join(", "), cells.join(" | "))?;
    }
    Ok(text)
}

/// The values of a list; none of them has a comma in it.
fn split(values: &str) -> Vec<&str> {
    if values.contains("repeat(") {
        vec!["''", "'ä€😀'", "E'\\n\\t'", "repeat('x', 100000)", "NULL"]
    } else {
        values.split(", ").collect()
    }
}

/// A table's metadata file and snapshot now, and a copy of its rows.
async fn kept(mirror: &Mirror, table: &str) -> Result<Value> {
    let location = mirror
        .postgres
        .value(&format!("SELECT metadata_location FROM lake_catalog.iceberg_tables WHERE table_name = '{table}'"))
        .await?;
    let path = location.strip_prefix("file://").context("a local file")?;
    let metadata: Value = serde_json::from_slice(&tokio::fs::read(path).await?)?;
    let copy = format!("moments.{table}_{}", metadata["last-sequence-number"]);
    mirror.postgres.batch(&format!("CREATE TABLE {copy} AS TABLE {table}")).await?;
    let fields = metadata["schemas"]
        .as_array()
        .context("schemas")?
        .iter()
        .flat_map(|schema| schema["fields"].as_array().cloned().unwrap_or_default());
    let companions: Vec<String> = fields
        .filter_map(|field| field["name"].as_str().filter(|name| name.ends_with("__text")).map(str::to_owned))
        .collect();
    Ok(json!({
        "location": location, "snapshot": metadata["current-snapshot-id"], "copy": copy, "key": ["id"], "companions": companions,
    }))
}
