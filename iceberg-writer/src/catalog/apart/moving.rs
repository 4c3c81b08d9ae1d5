//! The moves of a batch's tables: planned, sent, and looked for where they met with someone else's.

use futures_util::future::try_join_all;
use iceberg::spec::TableMetadata;
use tracing::{info, warn};

use super::{Progress, Step, Work};
use crate::catalog::foreign::{Foreign, Ours, foreign_commits};
use crate::catalog::mirror::MirrorCatalog;
use crate::catalog::prepare::not_made;
use crate::catalog::tables::{Found, Move, Moved, TableCatalog};
use crate::commit::{Batch, Garbage, MetadataBy, plan};
use crate::error::{Error, ErrorKind, Result};
use crate::stamp::Stamp;
use crate::table::{Checkpoint, Entry, LakeTable};

impl MirrorCatalog {
    /// Moves what has not moved. `Some`: a worker of this later epoch has the mirror.
    pub(super) async fn move_tables(&self, work: &mut Work<'_>) -> Result<Option<i64>> {
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
        let found = found.ok_or_else(|| not_made(prepared))?;
        if self.warehouse.is_vended() && found.metadata.location() != prepared.metadata().location() {
            // The keys are for another folder now, and so are other readers' of this one.
            return Err(prepared.foreign_change("was dropped and made again by someone else while it was copied"));
        }
        found.may_be_replaced(spec)?;
        let there = LakeTable::read_undescribed(&self.warehouse, spec.clone(), found).await?;
        let onto = prepared.onto(&there)?;
        if onto.next_partition_spec()?.spec_id() != prepared.next_partition_spec()?.spec_id() {
            return Err(there.foreign_change("got another partition spec while its copy was made"));
        }
        step.change.table = onto;
        step.change.truncate = true;
        Ok(())
    }

    /// Finds out where a table is that was not where it should be, and takes over what someone else did to it, or says that
    /// it can't go on. `Some`: a worker of this later epoch has the mirror.
    pub(super) async fn look(&self, tables: &dyn TableCatalog, batch: &Batch, step: &mut Step) -> Result<Option<i64>> {
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
        let taken = self.follow(tables, step, found, batch).await;
        if taken.as_ref().is_err_and(|error| error.table().is_some()) {
            // It is not what the move asserts, so that the move can't happen any more.
            self.drop_plan(step).await;
        }
        leave_out_if_its_own(step, taken)?;
        Ok(None)
    }

    async fn follow(
        &self,
        tables: &dyn TableCatalog,
        step: &mut Step,
        found: Option<Found>,
        batch: &Batch,
    ) -> Result<()> {
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
        let by = (&*batch.mirror, batch.attempt);
        match foreign_commits(&self.warehouse, &base, &found, &Ours::default(), by).await? {
            Foreign::Added(mut files) => {
                info!(table = base.full_name(), files = files.len(), "took over someone else's commit");
                if !step.change.truncate {
                    step.foreign_files.append(&mut files);
                }
            }
            Foreign::Rewritten if step.change.names_no_files() => step.rewritten = true,
            Foreign::Rewritten => return Err(base.rewritten()),
        }
        self.drop_plan(step).await;
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
            match self.foreign_beside(&step.change, &table, batch).await {
                Ok(Foreign::Added(files)) => step.foreign_files = files,
                Ok(Foreign::Rewritten) => step.rewritten = true,
                Err(error) => return leave_out_if_its_own(step, Err(error)),
            }
        }
        info!(table = table.full_name(), attempt = %batch.attempt, "the table had the commit");
        step.progress = Progress::Done(Box::new(table), None);
        Ok(())
    }

    pub(super) async fn drop_plan(&self, step: &mut Step) {
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
