//! PostgreSQL's own regression tests on mirrored tables, with acceleration forced: what each query gives is what the heap gives.
//!
//! The scripts (`tests/regress.sh` fetches them) run one behind the other in one database. Each table that they make is mirrored as soon as
//! it is committed; each query is run twice, by the heap and accelerated, in any order of rows where it asks for none. How many DuckDB
//! answered is printed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::SinkExt;
use lake_tests::regress::{self, Statement, statements};
use lake_tests::{Postgres, bounded, repository};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

/// The whole takes a quarter of this on two cores.
const LIMIT: Duration = Duration::from_secs(900);
/// So many of the queries go to DuckDB.
const LEAST: usize = 700;

/// Those of which DuckDB answers a good part, in the order of PostgreSQL's own schedule.
const SCRIPTS: &[&str] = &[
    "test_setup",
    "boolean",
    "char",
    "varchar",
    "text",
    "int2",
    "int4",
    "int8",
    "float4",
    "float8",
    "uuid",
    "enum",
    "strings",
    "numerology",
    "date",
    "time",
    "timestamp",
    "timestamptz",
    "horology",
    "select",
    "select_distinct",
    "select_distinct_on",
    "select_implicit",
    "select_having",
    "subselect",
    "union",
    "case",
    "join",
    "aggregates",
    "groupingsets",
    "window",
    "with",
    "limit",
    "jsonb",
    "rowtypes",
    "tsrf",
    "btree_index",
    "incremental_sort",
    "memoize",
];

/// Those that are the heap's for the most part: with `SCRIPTS=all`.
const MORE: &[&str] = &[
    "name",
    "oid",
    "bit",
    "numeric",
    "money",
    "timetz",
    "interval",
    "inet",
    "macaddr",
    "expressions",
    "arrays",
    "functional_deps",
    "json",
    "rangefuncs",
    "portals",
    "equivclass",
    "hash_index",
    "inherit",
    "partition_join",
    "partition_prune",
    "partition_aggregate",
    "generated",
    "domain",
    "tablesample",
    "select_views",
    "rangetypes",
];

/// What a query gives: columns with their types, and rows; or a SQLSTATE.
type Answer = Result<(Vec<String>, Vec<Vec<Option<String>>>), SqlState>;

async fn answer(client: &Client, sql: &str) -> Result<Answer> {
    let state = |error: tokio_postgres::Error| match error.code() {
        Some(code) => Ok(Err(code.clone())),
        None => Err(error),
    };
    let columns = match client.prepare(sql).await {
        Ok(statement) => statement.columns().iter().map(|c| format!("{} {}", c.name(), c.type_())).collect(),
        Err(error) => return Ok(state(error)?),
    };
    match client.simple_query(sql).await {
        Ok(messages) => {
            let rows = messages.into_iter().filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
                _ => None,
            });
            Ok(Ok((columns, rows.collect())))
        }
        Err(error) => Ok(state(error)?),
    }
}

fn sorted(answer: &Answer) -> Answer {
    let mut sorted = answer.clone();
    if let Ok((_, rows)) = &mut sorted {
        rows.sort();
    }
    sorted
}

/// Whether a statement is a query that gives the same when it is run again.
fn is_query(sql: &str) -> bool {
    let words = sql.to_lowercase();
    let begins = ["select", "with", "values", "table ", "("].iter().any(|word| words.starts_with(word));
    // Each is a part of a name or of a word with a blank.
    let again = [
        "nextval",
        "currval",
        "lastval",
        "setval",
        "random",
        "clock_timestamp",
        "statement_timestamp",
        "txid_",
        "pg_current_xact",
        "pg_snapshot",
        "pg_sleep",
        "pg_backend_pid",
        "pg_stat",
        "set_config",
        "lo_",
        "now()",
        "timeofday",
        "current_timestamp",
        "localtime",
        "insert ",
        "update ",
        "delete ",
        "merge ",
        " into ",
        "'now'",
        "'today'",
        "'tomorrow'",
        "'yesterday'",
    ];
    begins && !again.iter().any(|word| words.contains(word))
}

#[derive(Default)]
struct Tally {
    queries: usize,
    on_mirrored: usize,
    by_lake: usize,
    differences: Vec<String>,
}

/// One run through the scripts.
struct Run {
    postgres: Postgres,
    /// A session beside that of the scripts, which mirrors what they make.
    watcher: Client,
    newest: u32,
    mirrored: usize,
    tally: Tally,
}

impl Run {
    async fn script(&mut self, name: &str) -> Result<()> {
        let path = repository().join(".deps/regress/sql").join(name).with_extension("sql");
        let script = std::fs::read(&path).with_context(|| format!("{}: run tests/regress.sh", path.display()))?;
        let client = self.postgres.client().await?;
        client.batch_execute("SET statement_timeout = '20s'; SET lock_timeout = '5s'").await?;
        let mut in_transaction = false;
        for statement in statements(&String::from_utf8_lossy(&script)) {
            let sql = match &statement {
                Statement::Sql(sql) => sql,
                Statement::Copy(sql, rows) => {
                    load(&client, sql, rows).await?;
                    continue;
                }
            };
            let words = sql.to_lowercase();
            if let Some(table) = words.strip_prefix("copy ").filter(|_| words.contains(":'filename'")) {
                let table = table.split([' ', '(']).next().unwrap_or_default();
                if let Some(rows) = regress::rows(table) {
                    load(&client, &format!("COPY {table} FROM stdin"), &rows).await?;
                }
            } else if is_query(sql) {
                self.compare(&client, name, sql, in_transaction).await?;
            } else if !words.starts_with("vacuum") && !words.starts_with("alter system") {
                // Many are made to fail.
                let _ = client.simple_query(sql).await;
            }
            match words.split_whitespace().next() {
                Some("begin" | "start") => in_transaction = true,
                Some("commit" | "end" | "abort") => in_transaction = false,
                Some("rollback") if !words.contains(" to ") => in_transaction = false,
                Some("select") | None => {}
                Some(_) if !in_transaction => self.mirror().await?,
                Some(_) => {}
            }
            ensure!(!client.is_closed(), "{name}: the session ended with {sql}\n{}", self.postgres.log());
        }
        Ok(())
    }

    /// Mirrors the tables that are new.
    async fn mirror(&mut self) -> Result<()> {
        let new = self
            .watcher
            .query(
                "SELECT oid, format('%I.%I', relnamespace::regnamespace, relname), relreplident = 'd' AND NOT EXISTS
                    (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary)
                 FROM pg_class c WHERE oid > $1 AND relkind = 'r' AND relpersistence = 'p' AND NOT relispartition
                    AND relnamespace = 'public'::regnamespace ORDER BY oid",
                &[&self.newest],
            )
            .await?;
        if !new.is_empty() {
            // Those that a script has dropped, whose names may come again.
            let gone = "SELECT lake.unmirror(relation) FROM lake_catalog.mirrored_tables m
                WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = m.relation)";
            self.watcher.batch_execute(gone).await?;
        }
        for row in &new {
            let (oid, name, keyless): (u32, String, bool) = (row.get(0), row.get(1), row.get(2));
            self.newest = oid;
            if keyless {
                self.watcher.batch_execute(&format!("ALTER TABLE {name} REPLICA IDENTITY FULL")).await?;
            }
            // Some have columns that no table of ours can have, and say so.
            let mirrored = self.watcher.query_one("SELECT lake.mirror($1::text::regclass)", &[&name]).await;
            match mirrored {
                Ok(_) => {
                    self.mirrored += 1;
                    let wait = format!("SELECT lake.wait('{name}', '30 s')");
                    self.watcher.batch_execute(&wait).await.with_context(|| name)?;
                }
                Err(error) => eprintln!("{name}: {}", error.as_db_error().map_or("", |error| error.message())),
            }
        }
        Ok(())
    }

    async fn compare(&mut self, client: &Client, script: &str, sql: &str, in_transaction: bool) -> Result<()> {
        let set = async |value: &str| {
            // Fails in a transaction that has failed.
            client.batch_execute(&format!("SET lake.accelerate = {value}")).await.is_ok()
        };
        let savepoint = async |sql: &str| if in_transaction { client.batch_execute(sql).await.is_ok() } else { true };
        if !set("off").await || !savepoint("SAVEPOINT regress").await {
            return Ok(());
        }
        let heap = answer(client, sql).await?;
        savepoint("ROLLBACK TO regress").await;
        set("force").await;
        let lake = answer(client, sql).await?;
        savepoint("ROLLBACK TO regress").await;
        set("off").await;
        self.tally.queries += 1;
        if let Ok(plan) = client.simple_query(&format!("EXPLAIN (VERBOSE, FORMAT JSON) {sql}")).await
            && shows(&plan, "\"Schema\": \"public\"")
        {
            self.tally.on_mirrored += 1;
            set("force").await;
            // Not for the roles that scripts make.
            let _ = client.batch_execute("SET log_min_messages = debug1").await;
            let plan = client.simple_query(&format!("EXPLAIN {sql}")).await?;
            let _ = client.batch_execute("RESET log_min_messages").await;
            set("off").await;
            self.tally.by_lake += usize::from(shows(&plan, "(LakeScan)"));
        } else {
            savepoint("ROLLBACK TO regress").await;
        }
        let same = if is_ordered(sql) { heap == lake } else { sorted(&heap) == sorted(&lake) };
        // Functions that count their calls, or explain a plan, give something else each time.
        let again = if same { None } else { Some(answer(client, sql).await?) };
        savepoint("ROLLBACK TO regress").await;
        savepoint("RELEASE regress").await;
        let explains = sql.contains("explain_");
        if again.is_some_and(|again| sorted(&again) == sorted(&heap))
            && !explains
            && !(script == "window" && sql.to_lowercase().contains(TIED))
        {
            let found = format!("{script}: {sql}\n  heap: {}\n  lake: {}", show(&heap), show(&lake));
            self.tally.differences.push(found);
        }
        Ok(())
    }
}

/// Windows whose order leaves ties: a frame of rows is of whichever come first.
const TIED: &str = "order by four";

/// Whether the rows of a query have an order: one outside of all parentheses.
fn is_ordered(sql: &str) -> bool {
    let mut depth = 0;
    let outer: String = sql
        .chars()
        .filter(|c| {
            depth += i32::from(*c == '(') - i32::from(*c == ')');
            depth == 0
        })
        .collect();
    outer.to_lowercase().contains("order by")
}

fn show(answer: &Answer) -> String {
    match answer {
        Ok((columns, rows)) => format!("{columns:?} {} rows {:.300}", rows.len(), format!("{rows:?}")),
        Err(state) => format!("error {}", state.code()),
    }
}

fn shows(plan: &[SimpleQueryMessage], what: &str) -> bool {
    let has = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => row.get(0).is_some_and(|line| line.contains(what)),
        _ => false,
    };
    plan.iter().any(has)
}

/// Rows by COPY, where they can be had.
async fn load(client: &Client, sql: &str, rows: &str) -> Result<()> {
    if let Ok(sink) = client.copy_in(sql).await {
        let mut sink = std::pin::pin!(sink);
        if sink.send(std::io::Cursor::new(rows.as_bytes().to_vec())).await.is_ok() {
            // Some are made to fail.
            let _ = sink.close().await;
        }
    }
    Ok(())
}

#[tokio::test]
#[ignore = "fetches PostgreSQL's scripts: make test-regress"]
async fn postgres_own_regression_queries_are_equal_when_accelerated() -> Result<()> {
    bounded(LIMIT, async {
        let postgres = Postgres::builder()
            .preload("lake, lake_query")
            .set("lake.commit_interval", "100")
            .set("lake.freshness_timeout", "5000")
            .start()
            .await?;
        postgres.batch("CREATE EXTENSION lake; CREATE EXTENSION lake_query").await?;
        let watcher = postgres.client().await?;
        let mut run = Run { postgres, watcher, newest: 16_384, mirrored: 0, tally: Tally::default() };
        let only = std::env::var("SCRIPTS").unwrap_or_default();
        let all = only == "all";
        for (name, often) in SCRIPTS.iter().map(|name| (name, true)).chain(MORE.iter().map(|name| (name, false))) {
            let is_named = || *name == "test_setup" || only.split(',').any(|only| only == *name);
            if all || (only.is_empty() && often) || is_named() {
                let begin = std::time::Instant::now();
                let before = (run.tally.queries, run.tally.on_mirrored, run.tally.by_lake);
                run.script(name).await?;
                let now = &run.tally;
                let done = (now.queries - before.0, now.on_mirrored - before.1, now.by_lake - before.2);
                eprintln!(
                    "{name}: {} queries, {} on mirrored tables, {} by DuckDB, {:.1?}",
                    done.0,
                    done.1,
                    done.2,
                    begin.elapsed()
                );
            }
        }
        let mut reasons = std::collections::BTreeMap::<String, usize>::new();
        for line in run.postgres.log().lines() {
            if let Some((_, reason)) = line.split_once("lake: the heap answers: ") {
                *reasons.entry(reason.to_owned()).or_default() += 1;
            }
        }
        let mut reasons: Vec<_> = reasons.into_iter().collect();
        reasons.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
        for (reason, times) in reasons.iter().take(60) {
            eprintln!("{times:5} {reason}");
        }
        let Tally { queries, on_mirrored, by_lake, differences } = &run.tally;
        eprintln!(
            "{queries} queries, {on_mirrored} on {} mirrored tables, of which DuckDB answers {by_lake}",
            run.mirrored
        );
        ensure!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
        ensure!(!(all || only.is_empty()) || *by_lake >= LEAST, "DuckDB answers only {by_lake}");
        Ok(())
    })
    .await
}
