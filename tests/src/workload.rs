//! Seeded transactions over several tables, with an invariant that every snapshot of the lake must keep.
//!
//! Invariant: every transaction leaves `sum(bank.left.balance) + sum(bank.right.balance)` at [`Workload::TOTAL`], though
//! nearly every statement breaks it. A lake that shows half a transaction shows another sum. The argument needs all
//! kinds of statements, so each transaction is drawn from transfers, opened and closed accounts, changed keys, savepoints
//! that are rolled back, whole transactions that are rolled back, truncations, and some of thousands of rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::JoinHandle;

use crate::postgres::Postgres;
use crate::random::Random;

/// The tables, and the seed of what happens to them.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    seed: u64,
}

/// Writers at work.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    writers: Vec<JoinHandle<()>>,
}

/// What the writers have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Transactions that committed (some outcomes are unknown when the server dies; those are not counted).
    pub committed: u64,
}

impl Workload {
    /// The tables.
    pub const TABLES: &[&str] = &["bank.left", "bank.right", "bank.ledger", "bank.scratch"];
    /// What the balances add up to, always.
    pub const TOTAL: i64 = 1_000_000;
    /// The invariant, as a query for [`crate::Oracle::assert_invariant`].
    pub const INVARIANT: &str =
        "SELECT (SELECT sum(balance) FROM {bank.left}) + (SELECT sum(balance) FROM {bank.right})";

    /// Creates the tables with a thousand accounts on each side.
    pub async fn create(postgres: &Postgres, seed: u64) -> Result<Self> {
        postgres
            .batch(
                "CREATE SCHEMA bank;
                 CREATE TABLE bank.left (id int PRIMARY KEY, balance bigint NOT NULL, note text);
                 CREATE TABLE bank.right (id int PRIMARY KEY, balance bigint NOT NULL, note text);
                 CREATE TABLE bank.ledger (id bigserial PRIMARY KEY, amount numeric(12,2) NOT NULL, at timestamptz DEFAULT now());
                 CREATE TABLE bank.scratch (id int, part text, filler text, PRIMARY KEY (part, id));
                 CREATE SEQUENCE bank.account START 100000;
                 INSERT INTO bank.left SELECT i, 500, 'left ' || i FROM generate_series(1, 1000) i;
                 INSERT INTO bank.right SELECT i, 500, 'right ' || i FROM generate_series(1, 1000) i;
                 INSERT INTO bank.scratch SELECT i, 'a', repeat('x', 100) FROM generate_series(1, 100) i",
            )
            .await?;
        Ok(Self { seed })
    }

    /// Starts writers. A deadlock rolls a transaction back; a lost connection is made anew, until [`Running::stop`].
    pub fn start(&self, postgres: &Postgres, writers: u64) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let committed = Arc::new(AtomicU64::new(0));
        let (host, port) = (postgres.socket_dir().to_owned(), postgres.port());
        let writers = (0..writers)
            .map(|writer| {
                let mut random = Random::new(self.seed.wrapping_mul(1000).wrapping_add(writer));
                let (stop, committed) = (Arc::clone(&stop), Arc::clone(&committed));
                let mut config = tokio_postgres::Config::new();
                config.host_path(&host).port(port).user("postgres").dbname("postgres");
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let _ = write_until(&config, &mut random, &stop, &committed).await;
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                })
            })
            .collect();
        Running { stop, committed, writers }
    }

    /// Runs so many transactions, one after the other, and returns when they are committed.
    pub async fn run(&self, postgres: &Postgres, transactions: usize) -> Result<()> {
        let client = postgres.client().await?;
        let mut random = Random::new(self.seed);
        for _ in 0..transactions {
            let sql = transaction(&mut random);
            client.batch_execute(&sql).await.with_context(|| sql)?;
        }
        Ok(())
    }
}

impl Running {
    /// Transactions committed so far.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Lets every writer finish its transaction.
    pub async fn stop(mut self) -> Result<Stats> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in std::mem::take(&mut self.writers) {
            writer.await?;
        }
        Ok(Stats { committed: self.committed() })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for writer in &self.writers {
            writer.abort();
        }
    }
}

async fn write_until(
    config: &tokio_postgres::Config,
    random: &mut Random,
    stop: &AtomicBool,
    committed: &AtomicU64,
) -> Result<()> {
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    let connection = tokio::spawn(connection);
    while !stop.load(Ordering::Relaxed) {
        match client.batch_execute(&transaction(random)).await {
            Ok(()) => committed.fetch_add(1, Ordering::Relaxed),
            // The server said no (a deadlock): the transaction is aborted, the session goes on.
            Err(error) if error.as_db_error().is_some() && !client.is_closed() => {
                client.batch_execute("ROLLBACK").await?;
                0
            }
            Err(error) => return Err(error.into()),
        };
        tokio::time::sleep(Duration::from_millis(random.below(8))).await;
    }
    drop(client);
    connection.await??;
    Ok(())
}

/// One transaction's SQL.
fn transaction(random: &mut Random) -> String {
    let (amount, a, b) = (random.below(50), random.below(1000) + 1, random.below(1000) + 1);
    // The first thousand accounts of each side are never closed.
    let transfer = format!(
        "UPDATE bank.left SET balance = balance - {amount} WHERE id = {a};
         INSERT INTO bank.ledger (amount) VALUES ({amount}.25);
         UPDATE bank.right SET balance = balance + {amount} WHERE id = {b}"
    );
    let body = match random.below(100) {
        0..40 => transfer,
        40..55 => format!(
            "INSERT INTO bank.left SELECT nextval('bank.account'), {amount}, repeat('né', {a});
             INSERT INTO bank.right VALUES (nextval('bank.account'), -{amount}, NULL)"
        ),
        // Closes the newest opened account of one side, and gives what it held to account 1.
        55..65 => "WITH gone AS (DELETE FROM bank.left WHERE id = (SELECT max(id) FROM bank.left WHERE id > 1000) RETURNING balance)
             UPDATE bank.right SET balance = balance + (SELECT sum(balance) FROM gone)
             WHERE id = 1 AND EXISTS (SELECT FROM gone)".to_owned(),
        // Changes a key; the account moves past all others.
        65..75 => "UPDATE bank.right SET id = nextval('bank.account'), note = 'moved'
             WHERE id = (SELECT min(id) FROM bank.right WHERE id > 1000)".to_owned(),
        75..83 => format!(
            "UPDATE bank.left SET balance = balance + 1000000;
             ROLLBACK TO start; {transfer}; SAVEPOINT inner_one; DELETE FROM bank.right; ROLLBACK TO inner_one"
        ),
        83..88 => format!("UPDATE bank.left SET balance = balance - {amount}; ROLLBACK"),
        88..93 => format!(
            "TRUNCATE bank.scratch;
             INSERT INTO bank.scratch SELECT i, 'p{}', repeat(md5(i::text), 4) FROM generate_series(1, {}) i",
            amount % 3,
            a + 10
        ),
        93..98 => format!("DELETE FROM bank.scratch WHERE id % 3 = {}; UPDATE bank.scratch SET filler = '{b}' WHERE id < {a}", a % 3),
        _ => "UPDATE bank.left SET balance = balance + 3 WHERE id BETWEEN 1 AND 1000;
             UPDATE bank.right SET balance = balance
                 - (SELECT 3 * count(*) FROM bank.left WHERE id BETWEEN 1 AND 1000) WHERE id = 1".to_owned(),
    };
    format!("BEGIN; SAVEPOINT start; {body}; COMMIT")
}
