//! What happens to the worker in the middle of a round.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::tables::TABLES;
use crate::postgres::Postgres;
use crate::random::Random;
use crate::worker::{Worker, WorkerConfig, exit_code};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Nothing,
    /// `kill -9`, and at once another one.
    Killed,
    /// `kill -9`, its local state lost, and another one seconds later.
    Lost,
    /// SIGTERM, and another one.
    Restarted,
    /// The replication connection is cut.
    Cut,
    /// All its connections are.
    CutOff,
    /// Two tables are copied anew.
    Copied,
}

/// In the order in which rounds meet them.
const FAULTS: [Fault; 7] =
    [Fault::Killed, Fault::Copied, Fault::Cut, Fault::Lost, Fault::Nothing, Fault::Restarted, Fault::CutOff];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "no fault",
            Self::Killed => "killed",
            Self::Lost => "killed, its state lost",
            Self::Restarted => "restarted",
            Self::Cut => "its walsender ended",
            Self::CutOff => "its connections ended",
            Self::Copied => "two tables copied anew",
        })
    }
}

impl Fault {
    pub(super) fn of_round(round: u64) -> Self {
        FAULTS[usize::try_from(round.saturating_sub(1)).unwrap_or(0) % FAULTS.len()]
    }

    /// Does it, and gives the worker that runs afterwards.
    pub(super) async fn strike(
        self,
        worker: Worker,
        config: &WorkerConfig,
        postgres: &Postgres,
        random: &mut Random,
    ) -> Result<Worker> {
        match self {
            Self::Nothing => Ok(worker),
            Self::Killed => {
                worker.kill().await?;
                Worker::spawn(config)
            }
            Self::Lost => {
                worker.kill().await?;
                tokio::time::sleep(Duration::from_millis(random.below(4000))).await;
                std::fs::remove_dir_all(config.state.join("index"))?;
                Worker::spawn(config)
            }
            Self::Restarted => {
                let (code, _) = worker.terminate().await?;
                ensure!(code == exit_code::OK, "asked to stop, the worker ended with {code}");
                Worker::spawn(config)
            }
            Self::Cut => {
                postgres
                    .batch("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'lakemirror'")
                    .await?;
                Ok(worker)
            }
            Self::CutOff => {
                postgres
                    .batch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'lakemirror'")
                    .await?;
                Ok(worker)
            }
            Self::Copied => {
                let tables = [random.pick(TABLES), random.pick(TABLES)];
                let output = config.call(&["resync", tables[0], tables[1]]).await?;
                ensure!(output.status.success(), "resync: {}", String::from_utf8_lossy(&output.stderr));
                Ok(worker)
            }
        }
    }
}
