//! A session at random work, and the journal of what it did.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::script::{Decision, End, Kind, Script};
use crate::random::Random;

/// What concurrent work may run into. Anything else is a mistake of ours.
const COLLISIONS: &[SqlState] = &[
    SqlState::T_R_DEADLOCK_DETECTED,
    SqlState::LOCK_NOT_AVAILABLE,
    // A row went to another partition.
    SqlState::T_R_SERIALIZATION_FAILURE,
    SqlState::UNIQUE_VIOLATION,
    SqlState::FOREIGN_KEY_VIOLATION,
    // Of an identity column.
    SqlState::NOT_NULL_VIOLATION,
    // Columns that others have changed.
    SqlState::DUPLICATE_COLUMN,
    SqlState::UNDEFINED_COLUMN,
    SqlState::DATATYPE_MISMATCH,
    SqlState::INVALID_TEXT_REPRESENTATION,
    SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
    SqlState::STRING_DATA_RIGHT_TRUNCATION,
    // A column that others have made an identity.
    SqlState::INVALID_PARAMETER_VALUE,
    SqlState::INVALID_DATETIME_FORMAT,
    SqlState::DATETIME_FIELD_OVERFLOW,
    SqlState::CANNOT_COERCE,
    SqlState::GENERATED_ALWAYS,
    SqlState::SYNTAX_ERROR,
    SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
    SqlState::INVALID_COLUMN_DEFINITION,
    SqlState::INVALID_TABLE_DEFINITION,
    SqlState::OBJECT_IN_USE,
    SqlState::TOO_MANY_COLUMNS,
];

/// What all sessions share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) stop: AtomicBool,
    pub(super) committed: AtomicU64,
    pub(super) rolled_back: AtomicU64,
    pub(super) collided: AtomicU64,
    pub(super) prepared: AtomicU64,
    /// Names of prepared transactions that nobody has decided on.
    pub(super) left: Mutex<Vec<String>>,
}

/// Every statement in the order in which it was sent, with its session and outcome: enough to play it again by hand.
#[derive(Debug, Clone)]
pub(super) struct Journal(Arc<Mutex<File>>);

impl Journal {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(Arc::new(Mutex::new(file))))
    }

    pub(super) fn write(&self, line: &str) -> Result<()> {
        let mut file = self.0.lock().map_err(|_| anyhow::anyhow!("a session panicked while it wrote the journal"))?;
        writeln!(file, "{line}").context("write the journal")
    }
}

/// A session, and the number under which it appears.
#[derive(Debug)]
pub(super) struct Worked {
    pub(super) client: Client,
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) random: Random,
    pub(super) shared: Arc<Shared>,
    pub(super) journal: Journal,
}

impl Worked {
    /// Runs transactions until it is told to stop.
    pub(super) async fn run(mut self) -> Result<()> {
        self.client.batch_execute("SET lock_timeout = '250ms'; SET deadlock_timeout = '100ms'").await?;
        let mut number = 0;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let script = Script::write(&mut self.random, self.kind);
            self.transaction(&script, number).await?;
            number += 1;
        }
        Ok(())
    }

    async fn transaction(&self, script: &Script, number: u64) -> Result<()> {
        let shared = &self.shared;
        let mut steps = vec!["BEGIN".to_owned()];
        steps.extend(script.steps.iter().cloned());
        let name = format!("{}-{number}", self.name);
        steps.push(match script.end {
            End::Commit => "COMMIT".to_owned(),
            End::Rollback => "ROLLBACK".to_owned(),
            End::Prepare(_) => format!("PREPARE TRANSACTION '{name}'"),
        });
        for step in &steps {
            if !self.step(step).await? {
                self.step("ROLLBACK").await?;
                shared.collided.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            if !shared.stop.load(Ordering::Relaxed) && !script.pause.is_zero() {
                tokio::time::sleep(script.pause).await;
            }
        }
        match script.end {
            End::Commit => shared.committed.fetch_add(1, Ordering::Relaxed),
            End::Rollback => shared.rolled_back.fetch_add(1, Ordering::Relaxed),
            End::Prepare(decision) => {
                match decision {
                    Decision::Commit => drop(self.step(&format!("COMMIT PREPARED '{name}'")).await?),
                    Decision::Rollback => drop(self.step(&format!("ROLLBACK PREPARED '{name}'")).await?),
                    Decision::Left => {
                        shared.left.lock().map_err(|_| anyhow::anyhow!("another session panicked"))?.push(name);
                    }
                }
                shared.prepared.fetch_add(1, Ordering::Relaxed)
            }
        };
        Ok(())
    }

    /// False: it ran into somebody else's work, and the transaction is aborted.
    async fn step(&self, sql: &str) -> Result<bool> {
        let outcome = self.client.batch_execute(sql).await;
        let collision = outcome.as_ref().err().and_then(tokio_postgres::Error::code).cloned();
        let said = collision.as_ref().map_or_else(String::new, |code| format!(" -- {}", code.code()));
        self.journal.write(&format!("/* {} */ {sql};{said}", self.name))?;
        match (outcome, collision) {
            (Ok(()), _) => Ok(true),
            (Err(_), Some(code)) if COLLISIONS.contains(&code) => Ok(false),
            (Err(error), _) => Err(error).with_context(|| format!("session {}: {sql}", self.name)),
        }
    }
}
