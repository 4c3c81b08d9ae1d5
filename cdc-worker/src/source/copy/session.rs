//! A connection of a copy: a transaction that reads the table under the snapshot.
//!
//! Not one of `tokio-postgres`: that hands over a row a message, through two tasks, which took a tenth of a copy's time.

use std::time::Duration;

use crate::Result;
use crate::decode::copy::CopyRows;
use crate::decode::message::Cell;
use crate::error::{Error, ErrorKind};

use super::super::identifier::literal;
use super::super::settings;
use super::super::wire::{Failure, WireSession};
use super::CopyJob;
use super::snapshot::{denied, full_name};

/// Longest silence of the server. A COPY may wait for cold disks, hence the patience.
const COPY_SILENCE: Duration = Duration::from_secs(600);
/// A server that filters many rows out sends nothing for long, and would notice as late that it copies for nobody any more.
const NOTICE_OUR_END: &str = "-c client_connection_check_interval=1s";

/// An open transaction with the snapshot, and with a lock that keeps the table from being rewritten. Dropped, it ends.
pub(super) struct CopySession {
    session: WireSession,
    /// Of the COPY that runs.
    rows: CopyRows,
}

impl CopySession {
    /// Opens one. The caller holds the same lock on another connection, so nobody else holds one that is in its way. `None`:
    /// somebody waits for one. To wait behind them would be to wait for ourselves.
    ///
    /// # Errors
    /// [`ErrorKind::Table`] when the table cannot be read; [`ErrorKind::SourceUnreachable`], [`ErrorKind::SourceUnfit`].
    pub(super) async fn open(job: &CopyJob, snapshot: &str) -> Result<Option<Self>> {
        let options = format!("{} {NOTICE_OUR_END}", settings::SQL);
        let parameters = [("application_name", "lake copy"), ("options", &options)];
        let session = WireSession::open(&job.source, &parameters).await;
        let mut session = session.map_err(|failure| failure.at("open a session for the copy"))?;
        in_time(session.query(settings::ENCODING)).await?.map_err(|failure| refused(failure, job))?;
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; \
             LOCK TABLE {} IN ACCESS SHARE MODE NOWAIT",
            literal(snapshot),
            full_name(&job.table)
        );
        match in_time(session.query(&begin)).await? {
            Ok(_) => Ok(Some(Self { session, rows: CopyRows::default() })),
            Err(failure) if failure.sqlstate() == LOCK_NOT_AVAILABLE => Ok(None),
            Err(failure) => Err(refused(failure, job)),
        }
    }

    /// Begins a binary COPY.
    ///
    /// # Errors
    /// [`ErrorKind::Table`] when the table cannot be read; [`ErrorKind::SourceUnreachable`].
    pub(super) async fn begin(&mut self, job: &CopyJob, command: &str) -> Result<()> {
        self.rows = CopyRows::of(&job.table.spec);
        in_time(self.session.copy_out(command)).await?.map_err(|failure| refused(failure, job))
    }

    /// Waits for more of the COPY, and calls `row` with the cells of each row that has come. False: that was the last one.
    ///
    /// # Errors
    /// As [`Self::begin`]; [`ErrorKind::Protocol`] when the server's data make no sense; as `row`.
    pub(super) async fn more(
        &mut self,
        job: &CopyJob,
        row: &mut (dyn FnMut(&[Cell<'_>]) -> Result<()> + Send),
    ) -> Result<bool> {
        if !in_time(self.session.copied()).await?.map_err(|failure| refused(failure, job))? {
            self.rows.finish()?;
            return Ok(false);
        }
        self.session.each_copied(&mut |data| self.rows.each(data, row))?;
        Ok(true)
    }
}

/// `NOWAIT` did not get the lock.
const LOCK_NOT_AVAILABLE: &str = "55P03";

async fn in_time<T>(answer: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(COPY_SILENCE, answer)
        .await
        .map_err(|elapsed| Error::new(ErrorKind::SourceUnreachable, "the copy fell silent").with_source(elapsed))
}

fn refused(failure: Failure, job: &CopyJob) -> Error {
    let sqlstate = failure.sqlstate().to_owned();
    let error = failure.at("copy from the source");
    // Class 42: access rule violation, or something that the server has not.
    let error = if sqlstate.starts_with("42") { error.of_kind(ErrorKind::SourceUnfit) } else { error };
    denied(&sqlstate, error, &job.table)
}
