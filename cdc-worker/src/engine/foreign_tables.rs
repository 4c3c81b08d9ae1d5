//! `lake.<table>` in Postgres, where the extension `lake_query` is installed: it gets the columns that its table has.
//!
//! That is ordinary DDL on an ordinary foreign table, so it waits behind queries that read it, and others wait behind
//! it: therefore on a connection of its own, with a short patience (the function's `lock_timeout`), and again later.
//! Until it is done, queries of what has changed fail and say so; all others go on.

use std::time::Duration;

use iceberg_writer::PgType;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::Result;
use crate::config::{SourceConfig, TableSelection};
use crate::error::Error;
use crate::source::connect;

use super::entry::Streaming;
use super::session::Session;

/// How long to wait before another look, whatever came of the last.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// The same after one that failed: somebody reads the table, and everybody else would queue behind us.
const FOLLOW_AGAIN: Duration = Duration::from_secs(5);
/// Longest wait for all of them.
const PATIENCE: Duration = Duration::from_secs(60);

/// The function, as `lake_query` has it.
const FUNCTION: &str = "lake.follow_relation(oid,text,smallint[])";

/// A foreign table that may have other columns than its table.
#[derive(Debug)]
struct Outdated {
    relation: u32,
    name: String,
    /// The numbers of its columns that have values which DuckDB's type has not.
    companions: Vec<i16>,
}

/// The task that looks, and when the next may.
#[derive(Debug)]
pub(super) struct ForeignTables {
    task: Option<JoinHandle<Vec<u32>>>,
    next: Instant,
}

impl Default for ForeignTables {
    fn default() -> Self {
        Self { task: None, next: Instant::now() }
    }
}

impl Drop for ForeignTables {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Session {
    /// Lets `lake.<table>` follow its table, of tables whose columns have changed.
    ///
    /// # Errors
    /// [`crate::ErrorKind::SourceUnreachable`].
    pub(super) async fn follow_foreign_tables(&mut self) -> Result<()> {
        // Without the extension there are none.
        if !matches!(self.config.tables, TableSelection::Registry) || Instant::now() < self.foreign_tables.next {
            return Ok(());
        }
        if self.foreign_tables.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return Ok(());
        }
        let mut wait = FOLLOW_EVERY;
        if let Some(task) = self.foreign_tables.task.take() {
            // What the task could not do is to be done again.
            let left = task.await.unwrap_or_default();
            for table in self.tables.values_mut().filter_map(|table| table.entry.following_mut()) {
                if left.contains(&table.table.relation) {
                    (table.columns.shown, wait) = (false, FOLLOW_AGAIN);
                }
            }
        }
        self.foreign_tables.next = Instant::now() + wait;
        if wait == FOLLOW_AGAIN {
            return Ok(());
        }
        let outdated: Vec<Outdated> = self.streaming().filter(|table| !table.columns.shown).map(outdated).collect();
        if outdated.is_empty() {
            return Ok(());
        }
        // Without lake_query there are none yet, and no connection is made to find that out.
        let there = self.control.query_one("SELECT to_regprocedure($1) IS NOT NULL", &[&FUNCTION]).await?;
        if !there.get::<_, bool>(0) {
            self.foreign_tables.next = Instant::now() + FOLLOW_AGAIN;
            return Ok(());
        }
        // Those alone: one that catches up is not among them, and is followed when it streams.
        for Outdated { relation, .. } in &outdated {
            if let Some(table) = self.tables.get_mut(relation).and_then(|table| table.entry.following_mut()) {
                table.columns.shown = true;
            }
        }
        let source = self.config.source.clone();
        self.foreign_tables.task = Some(tokio::spawn(async move { follow(&source, outdated).await }));
        Ok(())
    }
}

fn outdated(streaming: &Streaming) -> Outdated {
    let spec = &streaming.table.spec;
    let decimals = spec.columns.iter().filter(|column| matches!(column.pg_type, PgType::Numeric { .. }));
    let companions = decimals.filter(|column| column.companion);
    let companions = companions.filter_map(|column| i16::try_from(column.field_id).ok()).collect();
    Outdated { relation: streaming.table.relation, name: spec.name.clone(), companions }
}

/// Follows, and gives the tables that it could not do.
async fn follow(source: &SourceConfig, outdated: Vec<Outdated>) -> Vec<u32> {
    let mut left: Vec<u32> = outdated.iter().map(|table| table.relation).collect();
    let done = tokio::time::timeout(PATIENCE, follow_each(source, &outdated, &mut left)).await;
    if let Ok(Err(error)) = done {
        tracing::debug!(error = %error.report(), "foreign tables could not be looked at");
    }
    left
}

async fn follow_each(source: &SourceConfig, outdated: &[Outdated], left: &mut Vec<u32>) -> Result<()> {
    let client = connect::sql(source, "lakemirror foreign tables").await?;
    for Outdated { relation, name, companions } in outdated {
        let followed = client.query_one("SELECT lake.follow_relation($1, $2, $3)", &[relation, name, companions]).await;
        match followed {
            Ok(changed) => {
                left.retain(|other| other != relation);
                if changed.get::<_, bool>(0) {
                    tracing::info!(table = name, "lake.<table> has the columns of its table again");
                }
            }
            // Somebody reads it.
            Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE) => {
                tracing::debug!(table = name, "lake.<table> is in use, and follows later");
            }
            Err(error) if error.code().is_some() => {
                left.retain(|other| other != relation);
                let error = Error::from(error);
                tracing::warn!(table = name, error = %error.report(), "lake.<table> keeps its former columns; lake.resync makes it anew");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
