//! The demo's data: the 336,776 flights that left New York in 2013, who wants to know what about them, and who changes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::postgres::Postgres;
use crate::python::Python;

/// The tables, smallest first.
pub const TABLES: &[&str] = &["airlines", "airports", "planes", "weather", "flights"];

/// Titles and analytical queries; `{s}` is the schema to ask.
pub const QUERIES: &[(&str, &str)] = &[
    (
        "flights and delays by airline",
        "SELECT a.name, count(*) AS flights, sum(f.distance) AS miles, avg(f.dep_delay) AS delay, max(f.dep_delay) AS worst
         FROM {s}.flights f JOIN {s}.airlines a ON a.carrier = f.carrier
         GROUP BY a.name ORDER BY flights DESC, a.name",
    ),
    (
        "delays by month and airport",
        "SELECT month, origin, count(*), count(dep_time) AS left_at_all, avg(arr_delay), min(arr_delay), max(arr_delay)
         FROM {s}.flights GROUP BY month, origin ORDER BY month, origin",
    ),
    (
        "busiest routes that run late",
        "SELECT origin, dest, count(*) AS flights, sum(arr_delay) AS minutes
         FROM {s}.flights WHERE arr_delay > 0
         GROUP BY origin, dest HAVING count(*) > 1000 ORDER BY minutes DESC, origin, dest LIMIT 10",
    ),
    (
        "air time by aircraft maker",
        "SELECT p.manufacturer, count(*) AS flights, sum(f.air_time) AS minutes, sum(f.distance) AS miles
         FROM {s}.flights f JOIN {s}.planes p ON p.tailnum = f.tailnum
         GROUP BY p.manufacturer ORDER BY flights DESC, p.manufacturer LIMIT 8",
    ),
    (
        "late departures in a gale",
        "SELECT f.origin, count(*), sum(f.dep_delay) AS minutes, max(f.dep_delay)
         FROM {s}.flights f JOIN {s}.weather w ON w.origin = f.origin AND w.time_hour = f.time_hour
         WHERE w.wind_speed > 25 GROUP BY f.origin ORDER BY f.origin",
    ),
    (
        "one aircraft's last flights",
        "SELECT id, time_hour, carrier, flight, origin, dest, arr_delay
         FROM {s}.flights WHERE tailnum = 'N14228' ORDER BY time_hour DESC, id DESC LIMIT 20",
    ),
];

/// Loads all tables; the number of rows of each, in the order of [`TABLES`].
pub async fn load(postgres: &Postgres) -> Result<Vec<u64>> {
    let request = json!({
        "host": postgres.socket_dir(), "port": postgres.port(), "database": "postgres", "user": "postgres",
    });
    let counts = Python::script("demo/load_flights.py").ask(&request).await?;
    TABLES.iter().map(|&table| counts[table].as_u64().context("a number of rows")).collect()
}

/// A session that keeps changing the flights, and can be made to hold its breath.
#[derive(Debug)]
pub struct Writer {
    between: Arc<Mutex<()>>,
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    task: JoinHandle<Result<()>>,
}

impl Writer {
    /// Starts the session.
    pub async fn start(postgres: &Postgres) -> Result<Self> {
        let client = postgres.client().await?;
        let between = Arc::new(Mutex::new(()));
        let stop = Arc::new(AtomicBool::new(false));
        let committed = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(write(client, Arc::clone(&between), Arc::clone(&stop), Arc::clone(&committed)));
        Ok(Self { between, stop, committed, task })
    }

    /// No transaction runs, and none begins, while the guard lives.
    pub async fn pause(&self) -> MutexGuard<'_, ()> {
        self.between.lock().await
    }

    /// Transactions committed so far.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Ends the session after its current transaction; its error, if it had one.
    pub async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(self.committed.load(Ordering::Relaxed))
    }
}

async fn write(
    client: Client,
    between: Arc<Mutex<()>>,
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
) -> Result<()> {
    let mut round = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let guard = between.lock().await;
        round += 1;
        let flight = round * 7919 % 336_000 + 1;
        client
            .batch_execute(&format!(
                "BEGIN;
                 INSERT INTO flights (year, month, day, dep_delay, arr_delay, carrier, flight, tailnum, origin, dest, distance, time_hour)
                 SELECT 2013, 12, 31, {round} % 90, {round} % 70 - 10, carrier, flight, tailnum, origin, dest, distance, now()
                 FROM flights WHERE id BETWEEN {flight} AND {flight} + 4;
                 UPDATE flights SET arr_delay = coalesce(arr_delay, 0) + 1 WHERE id BETWEEN {flight} + 10 AND {flight} + 14;
                 DELETE FROM flights WHERE id = {flight} + 20;
                 UPDATE planes SET seats = seats + 1 WHERE tailnum = (SELECT tailnum FROM flights WHERE id = {flight} + 30);
                 COMMIT"
            ))
            .await
            .context("the demo's writer")?;
        committed.fetch_add(1, Ordering::Relaxed);
        drop(guard);
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    Ok(())
}
