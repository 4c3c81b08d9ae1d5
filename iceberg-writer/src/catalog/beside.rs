//! The one SQL transaction that makes a batch visible where mirror and tables are in the same database.
//!
//! It first moves the mirror's row, from the expected position and under the worker's epoch. That takes the row's lock, so
//! an earlier try whose end is unknown has ended when the statement returns: either it moved the row, and the attempt id
//! says so, or it did not happen. Then each table's entry is moved from the metadata the plan was made from.

use futures_util::future::try_join_all;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Catalog;
use super::connection::{Connection, Parameter, Session};
use super::foreign::{Foreign, Ours, foreign_commits};
use super::jdbc::JdbcTables;
use super::mirror::{MirrorCatalog, lock};
use super::state::{MirrorRow, State};
use super::tables::{Found, Move};
use crate::commit::{Batch, CommitReceipt, CommittedTable, MetadataBy, Outcome, Planned, TableChange, plan};
use crate::deadline::Backoff;
use crate::error::{Error, ErrorKind, Result, Retry};
use crate::live_files::LiveFile;
use crate::stamp::Stamp;
use crate::table::Entry;

/// A table of the batch on its way into the catalog.
struct Step {
    change: TableChange,
    planned: Option<Planned>,
    foreign_files: Vec<LiveFile>,
    /// Someone else rewrote files of the table.
    rewritten: bool,
}

impl Step {
    fn new(change: TableChange) -> Self {
        Self { change, planned: None, foreign_files: Vec::new(), rewritten: false }
    }
}

/// What a round of a commit found.
enum Round {
    Done(Outcome),
    Again,
}

/// How a transaction ended.
enum Ended {
    /// It is committed.
    Committed,
    /// The mirror is not where it was expected; nothing is changed.
    MirrorElsewhere(Option<MirrorRow>),
    /// These tables (indexes into the moves) were moved by someone else; nothing is changed.
    TablesMoved(Vec<usize>),
    /// COMMIT was sent and not answered.
    Lost(Error),
}

/// Runs the transaction. An error means that it did not happen.
async fn run(
    connection: &Connection,
    state: &State,
    tables: &JdbcTables,
    batch: &Batch,
    moves: &[Move<'_>],
) -> Result<Ended> {
    let mut session = connection.take().await?;
    let advance = session.prepare(state.advance()).await?;
    let attempt = batch.attempt.to_string();
    let parameters: [Parameter<'_>; 5] = [&batch.mirror, &batch.epoch, &batch.expected, &batch.lsn, &attempt];
    // Sent together, answered in order.
    let (begun, advanced) = tokio::join!(
        session.run("begin a commit", "BEGIN"),
        session.execute("advance the mirror", &advance, &parameters)
    );
    begun?;
    if advanced? == 0 {
        let row = state.row_in(&mut session, &batch.mirror).await?;
        return roll_back(connection, session, Ended::MirrorElsewhere(row)).await;
    }
    let moved = tables.move_in(&mut session, moves).await?;
    if !moved.is_empty() {
        return roll_back(connection, session, Ended::TablesMoved(moved)).await;
    }
    match session.run("commit", "COMMIT").await {
        Ok(()) => {
            connection.put(session).await;
            Ok(Ended::Committed)
        }
        // Even an error message may come from a server that was stopped after it committed.
        Err(error) => Ok(Ended::Lost(error)),
    }
}

async fn roll_back(connection: &Connection, session: Session, ended: Ended) -> Result<Ended> {
    session.run("roll back", "ROLLBACK").await?;
    connection.put(session).await;
    Ok(ended)
}

impl MirrorCatalog {
    /// Goes round until it knows: plan, write, run the transaction.
    pub(super) async fn commit_beside(&self, tables: &JdbcTables, batch: &Batch) -> Result<Outcome> {
        let give_up_at = Instant::now() + self.deadline;
        let mut steps: Vec<Step> = batch.tables.iter().cloned().map(Step::new).collect();
        let (mut sent, mut backoff) = (false, Backoff::new());
        loop {
            let error = match self.round_beside(tables, batch, &mut steps, &mut sent).await {
                Ok(Round::Done(outcome)) => {
                    if !matches!(outcome, Outcome::Committed(_)) {
                        if !sent {
                            self.drop_plans(&mut steps).await;
                        }
                        self.discard(batch, &|_| false).await;
                    }
                    return Ok(outcome);
                }
                Ok(Round::Again) => Error::new(ErrorKind::Unavailable, "the commit was overtaken again and again"),
                Err(error) => error,
            };
            if error.retry() == Retry::Never || Instant::now() >= give_up_at {
                if !sent {
                    self.drop_plans(&mut steps).await;
                }
                // Of an earlier call, it may be.
                if lock(&self.unknown).contains(&batch.attempt) {
                    return Err(Error::unknown(batch.attempt, error));
                }
                return Err(error);
            }
            if error.kind() == ErrorKind::Storage {
                let hint = error.hint().unwrap_or_default();
                warn!(attempt = %batch.attempt, %error, hint, "the warehouse is in a commit's way, trying again");
            }
            backoff.wait().await;
        }
    }

    /// One try: plan what is not planned, then run the transaction.
    async fn round_beside(
        &self,
        tables: &JdbcTables,
        batch: &Batch,
        steps: &mut [Step],
        sent: &mut bool,
    ) -> Result<Round> {
        let plans = steps.iter().filter(|step| step.planned.is_none() && !step.change.is_empty());
        let by = MetadataBy::Writer;
        let plans = plans.map(|step| plan(&self.warehouse, batch, &step.change, &self.retention, by, Stamp::draw()));
        let mut plans = try_join_all(plans).await?.into_iter();
        for step in steps.iter_mut().filter(|step| step.planned.is_none() && !step.change.is_empty()) {
            step.planned = plans.next();
        }
        let planned = steps.iter().enumerate().filter_map(|(index, step)| Some((index, step, step.planned.as_ref()?)));
        let (indexes, moves): (Vec<usize>, Vec<Move<'_>>) =
            planned.map(|(index, step, planned)| (index, Move { base: &step.change.table, planned })).unzip();
        match run(&self.connection, &self.state, tables, batch, &moves).await? {
            Ended::Committed => Ok(Round::Done(Outcome::Committed(self.receipt_beside(batch, steps)))),
            Ended::Lost(error) => {
                warn!(attempt = %batch.attempt, %error, "no answer to a commit, asking what became of it");
                *sent = true;
                lock(&self.unknown).insert(batch.attempt);
                Ok(Round::Again)
            }
            Ended::MirrorElsewhere(row) => self.elsewhere_beside(batch, steps, *sent, row).await.map(Round::Done),
            Ended::TablesMoved(moved) => {
                // The mirror's row was ours to move, so no earlier try of this batch has happened.
                *sent = false;
                lock(&self.unknown).remove(&batch.attempt);
                for index in moved.into_iter().map(|index| indexes[index]) {
                    self.take_over(&mut steps[index], batch).await?;
                }
                Ok(Round::Again)
            }
        }
    }

    async fn elsewhere_beside(
        &self,
        batch: &Batch,
        steps: &mut [Step],
        sent: bool,
        row: Option<MirrorRow>,
    ) -> Result<Outcome> {
        if row.as_ref().is_some_and(|row| row.attempt == Some(batch.attempt)) {
            info!(attempt = %batch.attempt, "the commit had happened");
            // Sent in this call: what is planned is what is committed. Otherwise the catalog knows; should it not say, the
            // files stay protected, for they are the table's.
            if sent {
                lock(&self.unknown).remove(&batch.attempt);
                return Ok(Outcome::Committed(self.receipt_beside(batch, steps)));
            }
            lock(&self.unknown).insert(batch.attempt);
            self.drop_plans(steps).await;
            let receipt = self.adopt(batch).await?;
            lock(&self.unknown).remove(&batch.attempt);
            return Ok(Outcome::Committed(receipt));
        }
        refused(batch, row)
    }

    /// Finds what moved a table, and plans on top of it when that is possible.
    async fn take_over(&self, step: &mut Step, batch: &Batch) -> Result<()> {
        if let Some(planned) = step.planned.take() {
            self.delete(&planned.files).await;
        }
        let base = &step.change.table;
        let location = self.metadata_location(base.spec()).await?;
        match (base.entry(), location) {
            (Entry::Absent { replaces: Some(_) }, location) => step.change.table = base.replacing(location),
            (Entry::Absent { replaces: None }, _) => {
                return Err(base.foreign_change("was made by someone else meanwhile"));
            }
            (Entry::Current(_), None) => return Err(base.foreign_change("was dropped by someone else")),
            (Entry::Current(_), Some(location)) => {
                let found = Found::read(&self.warehouse, location).await?;
                let found = base.read_again(&self.warehouse, found).await?;
                let by = (&*batch.mirror, batch.attempt);
                match foreign_commits(&self.warehouse, base, &found, &Ours::default(), by).await? {
                    Foreign::Added(mut files) => {
                        info!(table = base.full_name(), files = files.len(), "took over someone else's commit");
                        if !step.change.truncate {
                            step.foreign_files.append(&mut files);
                        }
                    }
                    Foreign::Rewritten if step.change.names_no_files() => step.rewritten = true,
                    Foreign::Rewritten => return Err(base.rewritten()),
                }
                step.change.table = found;
            }
        }
        Ok(())
    }

    fn receipt_beside(&self, batch: &Batch, steps: &mut [Step]) -> CommitReceipt {
        let (mut garbage, mut tables) = (Vec::new(), Vec::new());
        for step in steps {
            let table = match step.planned.take() {
                None => step.change.table.clone(),
                Some(planned) => {
                    garbage.push(planned.garbage);
                    planned.next
                }
            };
            let foreign_files = std::mem::take(&mut step.foreign_files);
            tables.push(CommittedTable { table, foreign_files, rewritten: step.rewritten });
        }
        self.receipt(batch, tables, garbage)
    }

    /// Removes what was written for tries that did not happen.
    async fn drop_plans(&self, steps: &mut [Step]) {
        for planned in steps.iter_mut().filter_map(|step| step.planned.take()) {
            self.delete(&planned.files).await;
        }
    }
}

/// What it means for a batch that the mirror is not where it was expected, and does not have the batch.
pub(super) fn refused(batch: &Batch, row: Option<MirrorRow>) -> Result<Outcome> {
    let Some(row) = row else { return Ok(Outcome::Refused { found: None }) };
    if row.epoch > batch.epoch {
        return Ok(Outcome::Fenced { epoch: row.epoch });
    }
    if row.epoch < batch.epoch {
        let context =
            format!("mirror {} is in epoch {}, and {} was never issued", batch.mirror, row.epoch, batch.epoch);
        return Err(Error::invalid(context));
    }
    if row.pending.is_some() {
        let context = format!("mirror {} has a batch on its way that has to be finished first", batch.mirror);
        return Err(Error::invalid(context));
    }
    Ok(Outcome::Refused { found: row.lsn })
}
