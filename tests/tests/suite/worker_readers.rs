//! The readers' matrix: what each of Iceberg's readers makes of a mirrored table after each kind of change, and of each type.
//!
//! The README's table is made here. Needs what `tests/readers.sh` installs, so `make test-readers` runs it, and no other target.

mod matrix;
mod steps;

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lake_tests::{Postgres, Python, Source, WorkerConfig, bounded, repository};
use serde_json::{Value, json};

use crate::CATCH_UP;
use crate::mirror::Mirror;
use matrix::{AFTER, EXPIRED, Found, READERS, TRAVEL, TYPE};
use steps::{EXPIRY, FIRST_ROWS, STEPS, TABLES, TYPES};

/// Spark takes its time to start, the more so when it fetches Iceberg's runtime.
const LIMIT: Duration = Duration::from_secs(600);

const BY_NAME: &str = "by its name in the catalog";

#[tokio::test]
#[ignore = "needs tests/readers.sh: make test-readers"]
async fn every_reader_reads_what_the_readme_says_it_reads() -> Result<()> {
    bounded(LIMIT, async {
        // GIVEN tables of both versions with all kinds of changes, with the metadata and the heap's rows kept after each
        let mut mirror = start().await?;
        let mut asked = Vec::new();
        for (place, (name, ..)) in TYPES.iter().enumerate() {
            let (kept, _) = kept(&mirror, &format!("type_{place}"), 0).await?;
            asked.push(step(TYPE, name, &kept, Value::Null));
        }
        let mut made: [Vec<(&str, Value)>; TABLES.len()] = Default::default();
        let mut before: [Option<Value>; TABLES.len()] = Default::default();
        for (number, (name, change)) in STEPS.iter().enumerate() {
            steps::make(&mut mirror, change).await.with_context(|| format!("make {name}"))?;
            mirror.oracle.caught_up(&mirror.postgres, CATCH_UP).await?;
            for (place, (table, version)) in TABLES.into_iter().enumerate() {
                let (kept, metadata) = kept(&mirror, table, number).await?;
                steps::check(name, change, version, before[place].as_ref(), &metadata)
                    .with_context(|| format!("{name} of {table}"))?;
                before[place] = Some(metadata);
                made[place].push((name, kept));
            }
        }
        for (place, made) in made.iter().enumerate() {
            asked.extend(made.iter().map(|(name, kept)| step(AFTER[place], name, kept, Value::Null)));
            // Each of those states once more, by its snapshot, out of the last metadata that has all; and out of the very last.
            let [.., (_, last), (_, expiry)] = made.as_slice() else { anyhow::bail!("too few steps") };
            for (name, kept) in made.iter().filter(|(name, _)| *name != EXPIRY) {
                asked.push(step(TRAVEL[place], name, &located(kept, last), kept["snapshot"].clone()));
            }
            let (_, first) = &made[0];
            asked.push(step(TRAVEL[place], EXPIRED, &located(first, expiry), first["snapshot"].clone()));
            // And the last by its name, in the catalog that is in Postgres.
            let mut named = step(AFTER[place], BY_NAME, expiry, Value::Null);
            (named["by_name"], named["readers"]) = (json!(format!("public.{}", TABLES[place].0)), json!(["Spark"]));
            asked.push(named);
        }

        // WHEN every reader reads each
        let request = json!({
            "host": mirror.postgres.socket_dir(), "port": mirror.postgres.port(), "database": "postgres", "user": "postgres",
            "readers": READERS.map(|(reader, _)| reader), "steps": asked,
        });
        let answer = Python::script("oracle/matrix.py").with_interpreter(".deps/readers/venv/bin/python").ask(&request).await?;

        // THEN it is what the README says
        let mut found = Found::new();
        for result in answer["results"].as_array().context("results")? {
            let text = |name: &str| result[name].as_str().unwrap_or_default().to_owned();
            found.insert((text("of"), text("step"), text("reader")), text("outcome"));
        }
        let wanted = (asked.len() - TABLES.len()) * READERS.len() + TABLES.len();
        ensure!(found.len() == wanted, "{} outcomes, not {wanted}", found.len());
        let table = matrix::table(&found)?;
        let readme = tokio::fs::read_to_string(repository().join("README.md")).await?;
        ensure!(readme.contains(&table), "the README should say:\n{table}");
        mirror.equal().await?;
        Ok(())
    })
    .await
}

/// The tables of types and the one of version 2, mirrored, and then the one of version 3.
async fn start() -> Result<Mirror> {
    let [(second, _), (third, _)] = TABLES;
    let mut schema =
        format!("CREATE SCHEMA moments; {}{}", FIRST_ROWS.replace("{t}", second), FIRST_ROWS.replace("{t}", third));
    let mut tables = vec![format!("public.{second}")];
    for (place, (_, kind, values)) in TYPES.iter().enumerate() {
        let rows: Vec<String> = values.iter().map(|value| format!("({value})")).collect();
        write!(
            schema,
            "CREATE TABLE type_{place} (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, v {kind});
             INSERT INTO type_{place} (v) VALUES {};",
            rows.join(", ")
        )?;
        tables.push(format!("public.type_{place}"));
    }
    // The suite's helper takes names that live as long as the program.
    let leaked = |name: String| -> &'static str { Box::leak(name.into_boxed_str()) };
    let names: Vec<&'static str> = tables.into_iter().map(leaked).collect();
    let postgres = Postgres::builder().tcp().start().await?;
    Source::prepare(&postgres).await?;
    postgres.batch(&schema).await?;
    Source::publish(&postgres, &names).await?;
    let mut config = WorkerConfig::new(&postgres, "one", &names)?;
    // Files are put in order when it is their turn, and stay for those who read them later.
    config.maintenance = "enabled = false".to_owned();
    config.retention = String::new();
    let mut mirror = Mirror::of(postgres, config, &names).await?;
    mirror.kill().await?;
    let last = leaked(format!("public.{third}"));
    Source::publish(&mirror.postgres, &[last]).await?;
    mirror.tables.push(last);
    mirror.config.tables.push(last.to_owned());
    mirror.config.lake = "format_version = 3".to_owned();
    mirror.spawn()?;
    mirror.streaming().await?;
    mirror.oracle.caught_up(&mirror.postgres, CATCH_UP).await?;
    Ok(mirror)
}

/// What the readers are asked: a state that was kept, at this snapshot of it.
fn step(of: &str, name: &str, kept: &Value, snapshot: Value) -> Value {
    let mut step = kept.clone();
    (step["of"], step["name"], step["snapshot"]) = (json!(of), json!(name), snapshot);
    step
}

/// A state out of another one's metadata.
fn located(kept: &Value, other: &Value) -> Value {
    let mut located = kept.clone();
    located["location"] = other["location"].clone();
    located
}

/// A table's metadata file and snapshot now, with a copy of its rows; and the metadata.
async fn kept(mirror: &Mirror, table: &str, number: usize) -> Result<(Value, Value)> {
    let location = mirror
        .postgres
        .value(&format!("SELECT metadata_location FROM lake_catalog.iceberg_tables WHERE table_name = '{table}'"))
        .await?;
    let path = location.strip_prefix("file://").context("a local file")?;
    let metadata: Value = serde_json::from_slice(&tokio::fs::read(path).await?)?;
    let copy = format!("moments.{table}_{number}");
    mirror.postgres.batch(&format!("CREATE TABLE {copy} AS TABLE {table}")).await?;
    let fields = metadata["schemas"]
        .as_array()
        .context("schemas")?
        .iter()
        .flat_map(|schema| schema["fields"].as_array().cloned().unwrap_or_default());
    let companions: Vec<String> = fields
        .filter_map(|field| field["name"].as_str().filter(|name| name.ends_with("__text")).map(str::to_owned))
        .collect();
    let kept = json!({
        "location": location, "snapshot": metadata["current-snapshot-id"], "copy": copy, "key": ["id"], "companions": companions,
    });
    Ok((kept, metadata))
}
