//! Moving the tables of a batch that is on record, in a catalog that the mirror's row is not part of. Why this is right is
//! said in [`super::redo`].

use futures_util::future::try_join_all;
use iceberg::spec::TableMetadata;
use tokio::time::Instant;
use tracing::{info, warn};

use super::beside::refused;
use super::foreign::{Ours, foreign_files};
use super::mirror::{MirrorCatalog, lock};
use super::redo::{Record, Recorded, Standing, left_out_text};
use super::tables::{Found, Move, Moved, TableCatalog};
use crate::commit::{
    Batch, CommitReceipt, CommittedTable, Garbage, LeftOut, MetadataBy, Outcome, Planned, TableChange, plan,
};
use crate::deadline::Backoff;
use crate::error::{Error, ErrorKind, Result, Retry};
use crate::live_files::LiveFile;
use crate::stamp::Stamp;
use crate::table::{Checkpoint, Entry, LakeTable};

/// A table of the batch on its way.
struct Step {
    change: TableChange,
    /// What was prepared, where it takes the place of what the catalog has.
    prepared: Option<LakeTable>,
    foreign_files: Vec<LiveFile>,
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
        Self { change: change.clone(), prepared, foreign_files: Vec::new(), progress }
    }

    fn is_open(&self) -> bool {
        matches!(self.progress, Progress::Open(_))
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
    /// Whether the record was asked for in this call.
    asked: bool,
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
        let mut work = Work { tables, batch, steps, decided: false, may_have_moved, asked: false };
        self.drive(&mut work).await
    }

    /// Moves the tables of a batch that an earlier worker put on record, and settles it.
    pub(super) async fn finish(
        &self,
        tables: &dyn TableCatalog,
        batch: &Batch,
        recorded: Vec<Recorded>,
    ) -> Result<CommitReceipt> {
        let step = |recorded: Recorded| {
            let progress = match recorded.standing {
                Standing::Before => Progress::Open(None),
                Standing::After => Progress::Done(Box::new(recorded.change.table.clone()), None),
                Standing::Elsewhere(obstacle) => Progress::LeftOut(obstacle),
            };
            Step { progress, ..Step::new(&recorded.change) }
        };
        let steps = recorded.into_iter().map(step).collect();
        let mut work = Work { tables, batch, steps, decided: true, may_have_moved: true, asked: true };
        match self.drive(&mut work).await? {
            Outcome::Committed(receipt) => Ok(receipt),
            Outcome::Fenced { epoch } => {
                Err(Error::invalid(format!("a newer worker (epoch {epoch}) has taken the mirror over")))
            }
            Outcome::Refused { .. } => Err(Error::invalid("the batch on record was withdrawn")),
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
                backoff.wait().await;
                continue;
            }
            return Err(self.give_up(work, error).await);
        }
    }

    /// Leaves a batch as it is, or takes it back where nothing of it can have happened.
    async fn give_up(&self, work: &mut Work<'_>, error: Error) -> Error {
        let moved = work.steps.iter().any(|step| match &step.progress {
            Progress::Done(..) => !step.change.is_empty(),
            Progress::Open(_) | Progress::LeftOut(_) => false,
        });
        if work.decided && !moved && !work.may_have_moved {
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
        if !work.decided
            && let Some(outcome) = self.decide(work).await?
        {
            return Ok(Round::Done(outcome));
        }
        if let Some(epoch) = self.move_tables(work).await? {
            return Ok(Round::Done(Outcome::Fenced { epoch }));
        }
        let moved = |step: &Step| matches!(step.progress, Progress::Done(..)) && !step.change.is_empty();
        if !work.may_have_moved && !work.steps.iter().any(moved) {
            // Nothing has happened: the caller may try without the table that can't go on.
            let stopped = work.steps.iter_mut().find(|step| matches!(step.progress, Progress::LeftOut(_)));
            if let Some(step) = stopped
                && let Progress::LeftOut(error) = std::mem::replace(&mut step.progress, Progress::Open(None))
            {
                return Err(error);
            }
        }
        if work.steps.iter().any(Step::is_open) {
            return Ok(Round::Again(Error::new(ErrorKind::Unavailable, "the commit was overtaken again and again")));
        }
        self.settle(work).await
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

    /// Moves what has not moved. `Some`: a worker of this later epoch has the mirror.
    async fn move_tables(&self, work: &mut Work<'_>) -> Result<Option<i64>> {
        self.plan_open(work).await?;
        let open: Vec<usize> = (0..work.steps.len()).filter(|index| work.steps[*index].is_open()).collect();
        let groups: Vec<Vec<usize>> = match work.tables.moves_together() {
            true => vec![open],
            false => open.into_iter().map(|index| vec![index]).collect(),
        };
        for group in groups.into_iter().filter(|group| !group.is_empty()) {
            if let Some(epoch) = self.move_group(work, &group).await? {
                return Ok(Some(epoch));
            }
        }
        Ok(None)
    }

    async fn move_group(&self, work: &mut Work<'_>, group: &[usize]) -> Result<Option<i64>> {
        let planned = |index: &usize| match &work.steps[*index] {
            Step { change, progress: Progress::Open(Some(planned)), .. } => Some(Move { base: &change.table, planned }),
            _ => None,
        };
        let moves: Vec<Move<'_>> = group.iter().filter_map(planned).collect();
        let moved = work.tables.commit(&moves).await;
        drop(moves);
        match moved {
            Moved::All(found) => {
                for (index, found) in group.iter().zip(found) {
                    let step = &mut work.steps[*index];
                    match found {
                        Some(found) => self.done(work.batch, step, found).await?,
                        None => {
                            let Progress::Open(Some(planned)) =
                                std::mem::replace(&mut step.progress, Progress::Open(None))
                            else {
                                continue;
                            };
                            step.progress = Progress::Done(Box::new(planned.next), Some(planned.garbage));
                        }
                    }
                }
                Ok(None)
            }
            Moved::Conflict => {
                for index in group {
                    if let Some(epoch) = self.look(work.tables, work.batch, &mut work.steps[*index]).await? {
                        return Ok(Some(epoch));
                    }
                }
                Ok(None)
            }
            Moved::Refused(error) => Err(error),
            Moved::Unknown(error) => {
                warn!(attempt = %work.batch.attempt, %error, "no answer to a commit, asking what became of it");
                work.may_have_moved = true;
                Err(Error::new(ErrorKind::Unavailable, "no answer to a commit").with_source(error))
            }
        }
    }

    /// Plans what is open and not planned.
    async fn plan_open(&self, work: &mut Work<'_>) -> Result<()> {
        let (tables, batch) = (work.tables, work.batch);
        let by = tables.metadata_by();
        for step in work.steps.iter_mut().filter(|step| matches!(step.progress, Progress::Open(None))) {
            if by == MetadataBy::Server && step.change.table.metadata_location().is_none() {
                let placed = self.take_place(tables, step).await;
                leave_out_if_its_own(step, placed)?;
            }
        }
        let unplanned = |step: &&mut Step| matches!(step.progress, Progress::Open(None));
        let plans = work.steps.iter().filter(|step| matches!(step.progress, Progress::Open(None)));
        let plans = plans.map(|step| plan(&self.warehouse, batch, &step.change, &self.retention, by, Stamp::draw()));
        let plans = try_join_all(plans).await?;
        for (step, planned) in work.steps.iter_mut().filter(unplanned).zip(plans) {
            step.progress = Progress::Open(Some(planned));
        }
        Ok(())
    }

    /// Puts a prepared table in the place of the one that the server has, which is made where there is none.
    async fn take_place(&self, tables: &dyn TableCatalog, step: &mut Step) -> Result<()> {
        let Some(prepared) = &step.prepared else { return Ok(()) };
        let spec = prepared.spec();
        let mut found = tables.load(&spec.namespace, &spec.name).await?;
        if found.is_none() {
            tables.create(prepared).await?;
            found = tables.load(&spec.namespace, &spec.name).await?;
        }
        let found = found.ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                format!("the catalog has not got {} a moment after it was made", prepared.full_name()),
            )
        })?;
        let there = LakeTable::read_undescribed(&self.warehouse, spec.clone(), found).await?;
        step.change.table = prepared.onto(&there)?;
        step.change.truncate = true;
        Ok(())
    }

    /// Finds out where a table is that was not where it should be, and takes over what someone else did to it, or says that
    /// it can't go on. `Some`: a worker of this later epoch has the mirror.
    async fn look(&self, tables: &dyn TableCatalog, batch: &Batch, step: &mut Step) -> Result<Option<i64>> {
        let spec = step.change.table.spec().clone();
        let found = tables.load(&spec.namespace, &spec.name).await?;
        let checkpoint = found.as_ref().and_then(|found| Checkpoint::of(&found.metadata));
        if let Some(checkpoint) = checkpoint.filter(|checkpoint| checkpoint.mirror == batch.mirror) {
            if checkpoint.attempt == batch.attempt {
                if let Some(found) = found {
                    self.done(batch, step, found).await?;
                }
                return Ok(None);
            }
            if checkpoint.epoch > batch.epoch {
                // Epochs are this database's; another mirror of the same name would be a foreign writer.
                let row = self.state.row(&self.connection, &batch.mirror).await?;
                if let Some(row) = row.filter(|row| row.epoch > batch.epoch) {
                    return Ok(Some(row.epoch));
                }
            }
        }
        let taken = self.follow(tables, step, found).await;
        if taken.as_ref().is_err_and(|error| error.table().is_some()) {
            // It is not what the move asserts, so that the move can't happen any more.
            self.drop_plan(step).await;
        }
        leave_out_if_its_own(step, taken)?;
        Ok(None)
    }

    async fn follow(&self, tables: &dyn TableCatalog, step: &mut Step, found: Option<Found>) -> Result<()> {
        let base = step.change.table.clone();
        // A refusal for another reason, or for another table's sake. What was planned, and may yet be on its way, stands.
        if is_where_it_was(&base, found.as_ref(), tables.metadata_by()) {
            return Ok(());
        }
        if let Some(prepared) = step.prepared.clone() {
            if matches!(base.entry(), Entry::Absent { replaces: None }) {
                return Err(base.foreign_change("was made by someone else meanwhile"));
            }
            self.drop_plan(step).await;
            step.change.table = prepared.replacing(found.map(|found| found.location));
            return Ok(());
        }
        let Some(found) = found else { return Err(base.foreign_change("was dropped by someone else")) };
        let found = base.read_again(&self.warehouse, found).await?;
        let mut files = foreign_files(&self.warehouse, &base, &found, &Ours::default()).await?;
        self.drop_plan(step).await;
        info!(table = base.full_name(), files = files.len(), "took over someone else's commit");
        if !step.change.truncate {
            step.foreign_files.append(&mut files);
        }
        step.change.table = found;
        Ok(())
    }

    /// A table has the batch.
    async fn done(&self, batch: &Batch, step: &mut Step, found: Found) -> Result<()> {
        let planned = match std::mem::replace(&mut step.progress, Progress::Open(None)) {
            Progress::Open(planned) => planned,
            other => {
                step.progress = other;
                return Ok(());
            }
        };
        if let Some(planned) = planned {
            if found.metadata.current_snapshot_id() == planned.next.snapshot_id() {
                let table = planned.next.confirmed(found)?;
                let garbage = Garbage { table: table.clone(), ..planned.garbage };
                step.progress = Progress::Done(Box::new(table), Some(garbage));
                return Ok(());
            }
            step.progress = Progress::Open(Some(planned));
        }
        let spec = step.change.table.spec().clone();
        let table = LakeTable::read_undescribed(&self.warehouse, spec, found).await?;
        if step.prepared.is_none() {
            match self.foreign_beside(&step.change, &table).await {
                Ok(foreign) => step.foreign_files = foreign,
                Err(error) => return leave_out_if_its_own(step, Err(error)),
            }
        }
        info!(table = table.full_name(), attempt = %batch.attempt, "the table had the commit");
        step.progress = Progress::Done(Box::new(table), None);
        Ok(())
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
                tables.push(CommittedTable { table: *table, foreign_files: std::mem::take(&mut step.foreign_files) });
            }
        }
        self.receipt(work.batch, tables, garbage)
    }

    async fn drop_plan(&self, step: &mut Step) {
        if let Progress::Open(planned) = &mut step.progress
            && let Some(planned) = planned.take()
        {
            self.delete(&planned.files).await;
        }
    }
}

/// A table's own failure leaves out that table; any other concerns all.
fn leave_out_if_its_own(step: &mut Step, result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.table().is_some() => {
            step.progress = Progress::LeftOut(error);
            Ok(())
        }
        result => result,
    }
}

/// Whether a table is still what a move was planned from.
fn is_where_it_was(base: &LakeTable, found: Option<&Found>, by: MetadataBy) -> bool {
    match (base.entry(), found, by) {
        (Entry::Absent { replaces }, found, MetadataBy::Writer) => {
            replaces.as_ref() == found.map(|found| &found.location)
        }
        (Entry::Current(location), Some(found), MetadataBy::Writer) => *location == found.location,
        (Entry::Current(_), Some(found), MetadataBy::Server) => {
            let state = |metadata: &TableMetadata| {
                (metadata.uuid(), metadata.current_snapshot_id(), metadata.current_schema_id())
            };
            state(base.metadata()) == state(&found.metadata)
        }
        _ => false,
    }
}

/// Removes what was written for moves that did not happen.
async fn drop_plans(catalog: &MirrorCatalog, work: &mut Work<'_>) {
    for step in &mut work.steps {
        catalog.drop_plan(step).await;
    }
}
