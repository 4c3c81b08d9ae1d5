//! Deciding a batch, in a catalog that the mirror's row is not part of: it is put on record, its tables are moved, and it is
//! settled or withdrawn. Why this is right is said in [`super::redo`].

mod moving;

use futures_util::future::try_join_all;
use tokio::time::Instant;
use tracing::{info, warn};

use super::beside::refused;
use super::mirror::{MirrorCatalog, lock};
use super::redo::{Record, Recorded, Standing, left_out_text};
use super::tables::TableCatalog;
use crate::commit::{Batch, CommitReceipt, CommittedTable, Garbage, LeftOut, Outcome, Planned, TableChange};
use crate::deadline::Backoff;
use crate::error::{Error, ErrorKind, Result, Retry};
use crate::live_files::LiveFile;
use crate::table::LakeTable;

/// A table of the batch on its way.
struct Step {
    change: TableChange,
    /// What was prepared, where it takes the place of what the catalog has.
    prepared: Option<LakeTable>,
    foreign_files: Vec<LiveFile>,
    /// Someone else rewrote files of the table.
    rewritten: bool,
    progress: Progress,
}

enum Progress {
    /// It has not moved as far as is known.
    Open(Option<Planned>),
    /// It has.
    Done(Box<LakeTable>, Option<Garbage>),
    /// It can't.
    LeftOut(Error),
}

impl Step {
    fn new(change: &TableChange) -> Self {
        let progress = match change.is_empty() {
            true => Progress::Done(Box::new(change.table.clone()), None),
            false => Progress::Open(None),
        };
        let prepared = change.table.metadata_location().is_none().then(|| change.table.clone());
        Self { change: change.clone(), prepared, foreign_files: Vec::new(), rewritten: false, progress }
    }

    fn is_open(&self) -> bool {
        matches!(self.progress, Progress::Open(_))
    }

    fn has_moved(&self) -> bool {
        matches!(self.progress, Progress::Done(..)) && !self.change.is_empty()
    }
}

/// A batch on its way.
struct Work<'a> {
    tables: &'a dyn TableCatalog,
    batch: &'a Batch,
    steps: Vec<Step>,
    /// It is on record.
    decided: bool,
    /// A table may have it of which that is not known, by an earlier call or a request without an answer.
    may_have_moved: bool,
    /// No request that was ever sent for it can be granted any more.
    is_void: bool,
    /// Whether the record was asked for in this call.
    asked: bool,
}

impl Work<'_> {
    /// Whether a table has the batch, or may still get it.
    fn may_be_anywhere(&self) -> bool {
        self.may_have_moved && !self.is_void || self.steps.iter().any(Step::has_moved)
    }

    /// Ends in the error of a table that can't go on, while nothing has happened: the caller may try without it.
    fn stop_if_nothing_moved(&mut self) -> Result<()> {
        let changes = self.steps.iter().filter(|step| !step.change.is_empty()).count();
        let rewritten = |step: &Step| match &step.progress {
            Progress::LeftOut(error) => error.kind() == ErrorKind::Rewritten,
            Progress::Done(..) | Progress::Open(_) => false,
        };
        // Every request so far has asserted the snapshot that the other engine has replaced, and so none will be granted:
        // where one request moves all tables, or there is one table only, the batch is nowhere.
        let asserted = self.tables.always_moved_together() || changes <= 1;
        self.is_void |= asserted && self.steps.iter().any(rewritten);
        if self.may_be_anywhere() {
            return Ok(());
        }
        let stopped = self.steps.iter_mut().find(|step| matches!(step.progress, Progress::LeftOut(_)));
        if let Some(step) = stopped
            && let Progress::LeftOut(error) = std::mem::replace(&mut step.progress, Progress::Open(None))
        {
            return Err(error);
        }
        Ok(())
    }
}

/// What a round found.
enum Round {
    Done(Outcome),
    Again(Error),
}

impl MirrorCatalog {
    /// Decides a batch, moves its tables and settles it.
    pub(super) async fn commit_apart(&self, tables: &dyn TableCatalog, batch: &Batch) -> Result<Outcome> {
        let steps: Vec<Step> = batch.tables.iter().map(Step::new).collect();
        let may_have_moved = lock(&self.unknown).contains(&batch.attempt);
        let mut work = Work { tables, batch, steps, decided: false, may_have_moved, is_void: false, asked: false };
        self.drive(&mut work).await
    }

    /// Moves the tables of a batch that an earlier worker put on record, and settles it; or withdraws it, where another
    /// engine has rewritten the files that it is about, and no table has it.
    pub(super) async fn finish(&self, tables: &dyn TableCatalog, batch: &Batch, recorded: Vec<Recorded>) -> Result<()> {
        let step = |recorded: Recorded| {
            let progress = match recorded.standing {
                Standing::Before => Progress::Open(None),
                Standing::After => Progress::Done(Box::new(recorded.change.table.clone()), None),
                Standing::Elsewhere(obstacle) => Progress::LeftOut(obstacle),
            };
            Step { progress, ..Step::new(&recorded.change) }
        };
        let steps = recorded.into_iter().map(step).collect();
        let (may_have_moved, is_void) = (true, false);
        let mut work = Work { tables, batch, steps, decided: true, may_have_moved, is_void, asked: true };
        match self.drive(&mut work).await {
            Ok(Outcome::Committed(_)) => Ok(()),
            Ok(Outcome::Fenced { epoch }) => Err(Error::fenced(epoch)),
            Ok(Outcome::Refused { .. }) => Err(Error::invalid("the batch on record was withdrawn")),
            Err(error) if error.kind() == ErrorKind::Rewritten && !work.decided => {
                info!(attempt = %batch.attempt, %error, "the batch on record is given up; WAL brings its changes again");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn drive(&self, work: &mut Work<'_>) -> Result<Outcome> {
        let give_up_at = Instant::now() + self.deadline;
        let mut backoff = Backoff::new();
        loop {
            let error = match self.round(work).await {
                Ok(Round::Done(outcome)) => {
                    if !matches!(outcome, Outcome::Committed(_)) {
                        self.discard_undecided(work).await;
                    }
                    return Ok(outcome);
                }
                Ok(Round::Again(error)) | Err(error) => error,
            };
            if error.retry() != Retry::Never && Instant::now() < give_up_at {
                if error.kind() == ErrorKind::Storage {
                    let hint = error.hint().unwrap_or_default();
                    warn!(attempt = %work.batch.attempt, %error, hint, "the warehouse is in a commit's way, trying again");
                }
                backoff.wait().await;
                continue;
            }
            return Err(self.give_up(work, error).await);
        }
    }

    /// Leaves a batch as it is, or takes it back where nothing of it can have happened.
    async fn give_up(&self, work: &mut Work<'_>, error: Error) -> Error {
        if work.decided && !work.may_be_anywhere() {
            match self.withdraw(work.batch).await {
                Ok(true) => {
                    work.decided = false;
                    lock(&self.unknown).remove(&work.batch.attempt);
                }
                Ok(false) => {}
                Err(error) => warn!(attempt = %work.batch.attempt, %error, "could not withdraw a batch"),
            }
        }
        if lock(&self.unknown).contains(&work.batch.attempt) {
            return Error::unknown(work.batch.attempt, error);
        }
        drop_plans(self, work).await;
        error
    }

    /// Whether the batch is off the record, and nobody has begun with it.
    async fn withdraw(&self, batch: &Batch) -> Result<bool> {
        if self.state.withdraw(&self.connection, batch).await? {
            return Ok(true);
        }
        // A newer worker has taken over, or the answer of an earlier try was lost.
        let row = self.state.row(&self.connection, &batch.mirror).await?;
        let attempt = Some(batch.attempt);
        Ok(row.is_some_and(|row| row.epoch == batch.epoch && row.pending != attempt && row.attempt != attempt))
    }

    /// Deletes the files of a batch that was never on record.
    async fn discard_undecided(&self, work: &mut Work<'_>) {
        if !work.decided && !lock(&self.unknown).contains(&work.batch.attempt) {
            drop_plans(self, work).await;
            super::Catalog::discard(self, work.batch, &|_| false).await;
        }
    }

    async fn round(&self, work: &mut Work<'_>) -> Result<Round> {
        if !work.decided {
            self.look_ahead(work).await?;
            work.stop_if_nothing_moved()?;
            if let Some(outcome) = self.decide(work).await? {
                return Ok(Round::Done(outcome));
            }
        }
        if let Some(epoch) = self.move_tables(work).await? {
            return Ok(Round::Done(Outcome::Fenced { epoch }));
        }
        work.stop_if_nothing_moved()?;
        if work.steps.iter().any(Step::is_open) {
            return Ok(Round::Again(Error::new(ErrorKind::Unavailable, "the commit was overtaken again and again")));
        }
        self.settle(work).await
    }

    /// Looks whether all tables are where they should be, where they move one by one: once the first has the batch, there
    /// is no way back for the others. (It is one request a table more; without it, any compaction of another engine since a
    /// table's last commit would be found too late.)
    async fn look_ahead(&self, work: &mut Work<'_>) -> Result<()> {
        let (tables, batch) = (work.tables, work.batch);
        let open = work.steps.iter_mut().filter(|step| step.is_open() && step.prepared.is_none());
        let mut open: Vec<&mut Step> = open.collect();
        if tables.moves_together() || open.len() < 2 {
            return Ok(());
        }
        // That a later worker has the mirror is found when the batch is put on record.
        try_join_all(open.iter_mut().map(|step| self.look(tables, batch, step))).await?;
        for step in open {
            if matches!(&step.progress, Progress::LeftOut(error) if error.kind() != ErrorKind::Rewritten) {
                // The others go on without it.
                step.progress = Progress::Open(None);
            }
        }
        Ok(())
    }

    /// Puts the batch on record, unless it has no table to move: then the mirror alone moves.
    async fn decide(&self, work: &mut Work<'_>) -> Result<Option<Outcome>> {
        let batch = work.batch;
        let record = match work.steps.iter().any(Step::is_open) {
            true => Some(Record::of(batch, work.tables.identity())?),
            false => None,
        };
        let session = self.connection.take().await?;
        // From here on until it is known otherwise.
        let first = !std::mem::replace(&mut work.asked, true);
        lock(&self.unknown).insert(batch.attempt);
        let decided = self.state.decide(&self.connection, session, batch, record.as_deref()).await?;
        if decided && record.is_none() {
            lock(&self.unknown).remove(&batch.attempt);
            return Ok(Some(Outcome::Committed(self.receipt_apart(work))));
        }
        if decided {
            work.decided = true;
            return Ok(None);
        }
        let row = self.state.row(&self.connection, &batch.mirror).await?;
        let Some(row) = row else {
            lock(&self.unknown).remove(&batch.attempt);
            return Ok(Some(Outcome::Refused { found: None }));
        };
        if row.pending == Some(batch.attempt) && row.epoch == batch.epoch {
            // By a statement whose answer was lost, or by an earlier call, which may have gone further.
            work.may_have_moved |= first;
            work.decided = true;
            return Ok(None);
        }
        if row.attempt == Some(batch.attempt) {
            // Its files stay protected, whatever the caller does with the batch next.
            info!(attempt = %batch.attempt, "the commit had happened");
            return Ok(Some(Outcome::Committed(self.adopt(batch).await?)));
        }
        // A newer worker finishes what is on record; whether this was, only the first answer in the first call tells.
        if first && !work.may_have_moved && row.pending != Some(batch.attempt) || row.epoch == batch.epoch {
            lock(&self.unknown).remove(&batch.attempt);
        }
        refused(batch, Some(row)).map(Some)
    }

    /// Every table has the batch, or can't have it: the mirror is at its position.
    async fn settle(&self, work: &mut Work<'_>) -> Result<Round> {
        let batch = work.batch;
        let left_out = |step: &Step| match &step.progress {
            Progress::LeftOut(error) => Some(LeftOut {
                namespace: step.change.table.spec().namespace.clone(),
                name: step.change.table.spec().name.clone(),
                reason: error.to_string(),
                hint: error.hint().map(str::to_owned),
            }),
            Progress::Done(..) | Progress::Open(_) => None,
        };
        let left_out: Vec<LeftOut> = work.steps.iter().filter_map(left_out).collect();
        let text = left_out_text(&left_out)?;
        if !self.state.settle(&self.connection, batch, text.as_deref()).await? {
            let row = self.state.row(&self.connection, &batch.mirror).await?;
            if row.as_ref().is_none_or(|row| row.attempt != Some(batch.attempt)) {
                return refused(batch, row).map(Round::Done);
            }
            // The answer of an earlier try was lost.
        }
        lock(&self.unknown).remove(&batch.attempt);
        let receipt = self.receipt_apart(work).without(left_out);
        Ok(Round::Done(Outcome::Committed(receipt)))
    }

    fn receipt_apart(&self, work: &mut Work<'_>) -> CommitReceipt {
        let (mut tables, mut garbage) = (Vec::new(), Vec::new());
        for step in &mut work.steps {
            if let Progress::Done(table, superfluous) = std::mem::replace(&mut step.progress, Progress::Open(None)) {
                garbage.extend(superfluous);
                let foreign_files = std::mem::take(&mut step.foreign_files);
                tables.push(CommittedTable { table: *table, foreign_files, rewritten: step.rewritten });
            }
        }
        self.receipt(work.batch, tables, garbage)
    }
}

/// Removes what was written for moves that did not happen.
async fn drop_plans(catalog: &MirrorCatalog, work: &mut Work<'_>) {
    for step in &mut work.steps {
        catalog.drop_plan(step).await;
    }
}
