//! sqlsmith beside the extensions: random queries and writes of an ordinary user, with acceleration forced, break nothing.
//!
//! Each statement runs in a transaction that sqlsmith aborts. What is looked for are crashes, of the server and of the
//! engine, and a lake that is no longer the heap. `SMITH_SECONDS` says how long, `SEED` where it begins.
//!
//! Hardly any query of all of Postgres's functions can go to DuckDB. So every other session is one of a user who finds in
//! `pg_proc` only those that are on the list.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lake_allowlist::{AGGREGATES, FUNCTIONS, WINDOWS};
use lake_tests::{Oracle, Postgres, Process, bounded, repository};
use tokio_postgres::SimpleQueryMessage;

use crate::CATCH_UP;
use crate::extension_mirror::mirror;

/// For the set-up and the comparison at the end.
const MARGIN: Duration = Duration::from_secs(120);
const TABLES: [&str; 9] =
    ["region", "nation", "supplier", "part", "partsupp", "customer", "orders", "lineitem", "kinds"];
/// A column of each type of which the lake compares values.
const KINDS: &str = "CREATE TYPE mood AS ENUM ('sad', 'so, so', 'happy');
     CREATE TABLE kinds (id int PRIMARY KEY, small smallint, big bigint, n numeric(12, 3), f real, d double precision, t text, c char(5),
         v varchar(20), b bytea, u uuid, flag bool, day date, at timestamp, atz timestamptz, clock time, length interval, feeling mood,
         j jsonb, ia int[], ta text[]);
     INSERT INTO kinds SELECT i, i % 100, i * 10000000000, i / 7.0, i / 3.0, i / 9.0, 'text ' || i, 'c' || i % 9, md5(i::text)::varchar(20),
         decode(md5(i::text), 'hex'), md5(i::text)::uuid, i % 3 = 0, date '2000-01-01' + i, timestamp '2000-01-01' + i * interval '1 hour',
         timestamptz '2000-01-01 00:00Z' + i * interval '1 hour', time '00:00' + i * interval '1 minute', i * interval '1 day',
         (enum_range(NULL::mood))[1 + i % 3], jsonb_build_object('a', i, 'b', jsonb_build_array(i, 'x')), ARRAY[i, NULL, -i], ARRAY['a', i::text]
         FROM generate_series(1, 1400) i;
     INSERT INTO kinds (id) VALUES (0);";
/// Queries of which it is asked who answers them.
const SAMPLE: u32 = 400;

fn setting(name: &str, otherwise: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().with_context(|| format!("{name}={text}")),
        _ => Ok(otherwise),
    }
}

/// All functions, and those on the list.
const USERS: [&str; 2] = ["smith", "sender"];
/// Statements of a session.
const SESSION: u32 = 20_000;

/// What stands before Postgres's `pg_proc` for the second user: functions and aggregates by their names, of the columns' types.
/// (Materialized: sqlsmith would make queries of a view.) This user has
/// the tables through views, of which sqlsmith takes no samples, and not the views of the lake, which are other tables.
fn listed() -> String {
    let mut names: Vec<&str> = FUNCTIONS.iter().chain(AGGREGATES).chain(WINDOWS).map(|entry| entry.name).collect();
    names.sort_unstable();
    names.dedup();
    format!(
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO smith;
         CREATE SCHEMA listed;
         CREATE MATERIALIZED VIEW listed.pg_proc AS SELECT * FROM pg_catalog.pg_proc
            WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY ('{{{}}}')
            AND proargtypes::oid[] <@ (SELECT array_agg(atttypid) FROM pg_attribute WHERE attrelid = 'kinds'::regclass AND attnum > 0)
            AND prorettype IN (SELECT atttypid FROM pg_attribute WHERE attrelid = 'kinds'::regclass AND attnum > 0);
         REVOKE SELECT ON ALL TABLES IN SCHEMA lake FROM PUBLIC; GRANT SELECT ON ALL TABLES IN SCHEMA lake TO smith;
         {}
         GRANT USAGE ON SCHEMA listed TO sender; GRANT SELECT ON ALL TABLES IN SCHEMA listed TO sender;
         ALTER ROLE sender SET search_path = listed, pg_catalog, public",
        names.join(","),
        TABLES.map(|table| format!("CREATE VIEW listed.{table} AS SELECT * FROM public.{table};")).concat()
    )
}

fn sqlsmith(postgres: &Postgres, user: &str, seed: u64) -> Command {
    let mut command = Command::new("sqlsmith");
    command.arg(format!(
        "--target=host={} port={} dbname=postgres user={user}",
        postgres.socket_dir().display(),
        postgres.port()
    ));
    command.args(["--exclude-catalog", &format!("--seed={seed}")]);
    command
}

/// How many of a sample of queries DuckDB answers, at least in part.
async fn share(postgres: &Postgres, user: &str, seed: u64) -> Result<(usize, usize)> {
    let output = sqlsmith(postgres, user, seed).args(["--dry-run", &format!("--max-queries={SAMPLE}")]).output()?;
    let client = postgres.client_as(user, "postgres").await?;
    let (mut queries, mut by_lake) = (0, 0);
    for query in String::from_utf8_lossy(&output.stdout).split(";\n") {
        let Ok(plan) = client.simple_query(&format!("EXPLAIN {query}")).await else { continue };
        queries += 1;
        let lake = plan.iter().any(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).is_some_and(|line| line.contains("(LakeScan)")),
            _ => false,
        });
        by_lake += usize::from(lake);
    }
    Ok((queries, by_lake))
}

/// Why the heap answers, the most frequent first.
fn reasons(log: &str) -> Vec<(String, usize)> {
    let mut reasons = std::collections::BTreeMap::<&str, usize>::new();
    for line in log.lines() {
        if let Some((_, reason)) = line.split_once("lake: the heap answers: ") {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    let mut reasons: Vec<_> = reasons.into_iter().map(|(reason, times)| (reason.to_owned(), times)).collect();
    reasons.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
    reasons
}

#[tokio::test]
#[ignore = "takes long, and needs sqlsmith: make test-sqlsmith"]
async fn random_statements_break_neither_the_server_nor_the_lake() -> Result<()> {
    let length = Duration::from_secs(setting("SMITH_SECONDS", 300)?);
    let seed = setting("SEED", 1)?;
    bounded(length + MARGIN, async {
        // GIVEN mirrored tables, and a user who may do to them what users may
        let postgres = Postgres::builder()
            .preload("lake, lake_query")
            .set("lake.commit_interval", "200")
            .set("max_connections", "30")
            .start()
            .await?;
        let schema = std::fs::read_to_string(repository().join("query-ext/tests/tpch/schema.sql"))?;
        postgres.batch("CREATE EXTENSION lake; CREATE EXTENSION lake_query").await?;
        postgres.batch(&schema.replace(":sf", "0.002")).await?;
        postgres.batch(KINDS).await?;
        postgres.batch("VACUUM ANALYZE").await?;
        mirror(&postgres, &TABLES).await?;
        for user in USERS {
            postgres
                .batch(&format!(
                    "CREATE ROLE {user} LOGIN;
                     ALTER ROLE {user} SET lake.accelerate = force; ALTER ROLE {user} SET statement_timeout = '2s';
                     ALTER ROLE {user} SET lock_timeout = '2s'; ALTER ROLE {user} SET log_min_messages = debug1"
                ))
                .await?;
        }
        postgres.batch(&listed()).await?;
        for user in USERS {
            let (queries, by_lake) = share(&postgres, user, seed).await?;
            eprintln!("{user}: of {queries} queries that can be planned {by_lake} go to DuckDB");
            ensure!(by_lake > 0, "none of them");
            postgres.batch(&format!("ALTER ROLE {user} SET log_min_messages = panic")).await?;
        }
        for (reason, times) in reasons(&postgres.log()).iter().take(30) {
            eprintln!("{times:5} {reason}");
        }

        // WHEN sqlsmith does what it does, one session behind the other
        let started = Instant::now();
        let output = postgres.scratch().path().join("sqlsmith.log");
        let mut sessions = 0;
        while started.elapsed() < length {
            let user = if sessions % 2 == 0 { "sender" } else { "smith" };
            let mut command = sqlsmith(&postgres, user, seed + sessions);
            let mut smith = Process::spawn(command.arg(format!("--max-queries={SESSION}")), &output)?;
            sessions += 1;
            // THEN nobody dies of it
            while started.elapsed() < length && smith.ended()?.is_none() {
                tokio::time::sleep(Duration::from_millis(500)).await;
                let log = postgres.log();
                let died = ["terminated by signal", "PANIC", "panicked", "exited with exit code"];
                // A parallel worker ends so when its leader's time is over.
                let lines = log.lines().filter(|line| !line.contains("\"parallel worker\""));
                if let Some(line) = lines.into_iter().find(|line| died.iter().any(|death| line.contains(death))) {
                    postgres.keep();
                    anyhow::bail!("session {sessions} of seed {seed}: {line}");
                }
            }
        }
        let said = std::fs::read_to_string(&output)?;
        let counters = postgres.rows("SELECT reason, queries FROM lake.stat_fallback").await?;
        eprintln!(
            "{} s, {sessions} sessions; {counters:?}\n{}",
            started.elapsed().as_secs(),
            said.get(said.len().saturating_sub(300)..).unwrap_or_default()
        );
        let tables = TABLES.map(|table| format!("public.{table}"));
        Oracle::new(&postgres).assert_equal(&postgres, &tables.each_ref().map(String::as_str), CATCH_UP).await?;
        Ok(())
    })
    .await
}
