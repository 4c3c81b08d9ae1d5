//! Random work from several sessions, faults in between, and the oracle after every round.
//!
//! A seed fixes what every session does in every round, and which fault the worker meets. How the sessions interleave is the
//! machine's business, so a round that failed need not fail again: the journal has what was sent, in which order.

mod fault;
mod script;
mod session;
mod tables;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::task::JoinSet;

use crate::oracle::Oracle;
use crate::postgres::Postgres;
use crate::random::Random;
use crate::source::Source;
use crate::worker::{Worker, WorkerConfig};
use fault::Fault;
use script::Kind;
use session::{Journal, Shared, Worked};

pub use tables::TABLES;

/// Sessions of short transactions, one of long ones, and one that changes tables' columns.
const SESSIONS: u64 = 6;
/// The lake may be seconds behind a source that was just hammered, and a worker that was just killed.
const CATCH_UP: Duration = Duration::from_secs(180);
/// What is not equal after this, while the source stands still, never will be.
const SETTLED: Duration = Duration::from_secs(15);

/// How long, from which seed, and where.
#[derive(Debug, Clone)]
pub struct Soak {
    /// What fixes the work.
    pub seed: u64,
    /// No round begins after this.
    pub lasting: Duration,
    /// Half of the sessions change tables' columns, instead of one.
    pub alters: bool,
    /// Work between two looks at the lake.
    pub round: Duration,
    /// The run's directory, which must not exist. It stays when the run fails.
    pub directory: PathBuf,
}

/// What a run came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Rounds, each with a comparison at its end.
    pub rounds: u64,
    /// Transactions committed, those prepared first among them.
    pub committed: u64,
}

impl Soak {
    /// Works, and compares, until the time is over; prints a line a round.
    ///
    /// # Errors
    /// The first difference, or anything that broke, with what it takes to find out why.
    pub async fn run(&self) -> Result<Done> {
        let mut postgres = Postgres::builder()
            .set("max_prepared_transactions", "40")
            // So small that the source has to spill, and streams to who can take it, what is not tiny.
            .set("logical_decoding_work_mem", "64kB")
            .set("log_min_messages", "error")
            .directory(&self.directory)
            .start()
            .await?;
        let mut round = 0;
        let outcome = self.rounds(&postgres, &mut round).await;
        outcome.inspect_err(|_| postgres.keep_files()).with_context(|| {
            format!(
                "seed {}, round {round}. Again: make soak SEED={} SECONDS={}{}. Journal, worker's log, server and warehouse are \
                 in {}",
                self.seed,
                self.seed,
                self.lasting.as_secs(),
                if self.alters { " ALTERS=1" } else { "" },
                self.directory.display()
            )
        })
    }

    async fn rounds(&self, postgres: &Postgres, round: &mut u64) -> Result<Done> {
        Source::prepare(postgres).await?;
        postgres.batch(tables::SCHEMA).await?;
        if self.seed.is_multiple_of(2) {
            postgres.batch(tables::TEXTS).await?;
        }
        Source::publish(postgres, TABLES).await?;
        let mut config = WorkerConfig::new(postgres, "one", TABLES)?;
        // Batches cut by age, and by so little memory that large transactions go through files.
        config.interval = "200ms".to_owned();
        config.max_bytes = "1MiB".to_owned();
        // Files are rewritten all the time, small as they are.
        config.maintenance = "tier_files = 2\nbandwidth = \"1GiB\"".to_owned();
        config.file_size = Some("256KiB".to_owned());
        config.quiet = true;
        // The copies of these tables are of one snapshot, and so not what they are in the other runs.
        let histories = if self.seed.is_multiple_of(3) { tables::HISTORIES } else { &[] };
        config.history = histories.iter().map(|&table| table.to_owned()).collect();
        let mut worker = Worker::start(&config, postgres).await?;
        let journal = Journal::create(&self.directory.join("journal.sql"))?;
        let mut faults = Random::new(self.seed ^ 0xFA17);
        let mut left: Vec<String> = Vec::new();
        let mut done = Done::default();
        let begun = Instant::now();
        while begun.elapsed() < self.lasting {
            *round += 1;
            journal.write(&format!("-- round {round}"))?;
            let shared = Arc::new(Shared::default());
            let mut sessions = self.sessions(postgres, *round, &shared, &journal).await?;
            let fault = Fault::of_round(*round);
            let early = self.round.mul_f64(0.2 + 0.01 * f64::from(u8::try_from(faults.below(50))?));
            self.pause(early, &mut sessions).await?;
            decide(postgres, &journal, &mut faults, std::mem::take(&mut left)).await?;
            worker = fault.strike(worker, &config, postgres, &mut faults).await?;
            self.pause(self.round.saturating_sub(early), &mut sessions).await?;
            shared.stop.store(true, Ordering::Relaxed);
            while let Some(ended) = sessions.join_next().await {
                ended??;
            }
            left.clone_from(&*shared.left.lock().map_err(|_| anyhow::anyhow!("a session panicked"))?);
            // A copy's slot waits for every transaction that is older than it, prepared ones too; and a change of columns may
            // mean a copy in any round.
            let open = left.len();
            decide(postgres, &journal, &mut faults, std::mem::take(&mut left)).await?;
            let compared = Instant::now();
            ensure!(worker.runs()?, "the worker has ended");
            let rows = agrees(postgres, &mut worker).await?;
            if !histories.is_empty() {
                Oracle::new(postgres).assert_history(postgres, histories, CATCH_UP).await?;
            }
            let committed = shared.committed.load(Ordering::Relaxed);
            println!(
                "round {round}, at {} s: {committed} committed, {} rolled back, {} collided, {} prepared ({} left open), {fault}: \
                 {rows} rows equal, {:.1} s later",
                begun.elapsed().as_secs(),
                shared.rolled_back.load(Ordering::Relaxed),
                shared.collided.load(Ordering::Relaxed),
                shared.prepared.load(Ordering::Relaxed),
                open,
                compared.elapsed().as_secs_f64()
            );
            ensure!(committed > 0, "nothing was committed in this round");
            done.rounds += 1;
            done.committed += committed;
        }
        Ok(done)
    }

    async fn sessions(
        &self,
        postgres: &Postgres,
        round: u64,
        shared: &Arc<Shared>,
        journal: &Journal,
    ) -> Result<JoinSet<Result<()>>> {
        let mut sessions = JoinSet::new();
        for number in 0..SESSIONS {
            let seed = self.seed.wrapping_mul(1_000_003).wrapping_add(round * 1009 + number);
            let session = Worked {
                client: postgres.client().await?,
                name: format!("{round}-{number}"),
                kind: match number {
                    0 => Kind::Long,
                    1 => Kind::Alters,
                    2 | 3 if self.alters => Kind::Alters,
                    _ => Kind::Short,
                },
                random: Random::new(seed),
                shared: Arc::clone(shared),
                journal: journal.clone(),
            };
            sessions.spawn(session.run());
        }
        Ok(sessions)
    }

    /// Lets the sessions work. None of them may end.
    async fn pause(&self, time: Duration, sessions: &mut JoinSet<Result<()>>) -> Result<()> {
        match tokio::time::timeout(time, sessions.join_next()).await {
            Err(_) => Ok(()),
            Ok(Some(ended)) => {
                ended??;
                bail!("a session ended before it was told to");
            }
            Ok(None) => bail!("no session works"),
        }
    }
}

/// Decides what an earlier round left prepared.
async fn decide(postgres: &Postgres, journal: &Journal, random: &mut Random, left: Vec<String>) -> Result<()> {
    for name in left {
        let verb = random.pick(&["COMMIT", "COMMIT", "ROLLBACK"]);
        let sql = format!("{verb} PREPARED '{name}'");
        postgres.batch(&sql).await?;
        journal.write(&format!("{sql};"))?;
    }
    Ok(())
}

/// Waits for the lake, and compares all tables. The number of rows.
async fn agrees(postgres: &Postgres, worker: &mut Worker) -> Result<u64> {
    let stopped = postgres
        .rows("SELECT source_table || ': ' || error FROM lake_catalog.mirrored_tables WHERE state = 'errored'")
        .await?;
    ensure!(stopped.is_empty(), "tables have stopped: {stopped:?}");
    let until = Instant::now() + SETTLED;
    loop {
        worker.streaming(postgres, TABLES.len()).await?;
        let rows = Oracle::new(postgres).assert_equal_but_generated(postgres, TABLES.iter().copied(), CATCH_UP).await;
        if rows.is_err() && !worker.runs()? {
            bail!("the worker has ended");
        }
        // A change of columns that no row follows is noticed a moment later, and may mean another copy.
        if rows.is_ok() || Instant::now() > until {
            return rows;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Where a run of this process may keep its things: short, for a unix socket's path has 107 bytes, and not swept.
pub fn directory(name: &str) -> PathBuf {
    Path::new("/tmp").join(format!("lakesoak-{}-{name}", std::process::id()))
}
