//! The mirror's row in the source database: who may write, how far the lake is, and the batch that is on its way.
//!
//! Each statement names the epoch, so a worker that was fenced off changes nothing.

use uuid::Uuid;

use super::connection::{Connection, Parameter, Session};
use crate::commit::Batch;
use crate::error::Result;
use crate::lsn::Lsn;

/// A mirror's row.
#[derive(Debug, Clone)]
pub(super) struct MirrorRow {
    pub(super) epoch: i64,
    pub(super) lsn: Option<Lsn>,
    pub(super) attempt: Option<Uuid>,
    /// The batch that is decided, and not everywhere yet.
    pub(super) pending: Option<Uuid>,
}

/// What a row's redo record and its remainder are.
#[derive(Debug, Clone, Default)]
pub(super) struct Records {
    pub(super) pending: Option<String>,
    pub(super) left_out: Option<String>,
}

/// The statements, with the schema's name filled in.
pub(super) struct State {
    advance: String,
    decide: String,
    settle: String,
    withdraw: String,
    row: String,
    records: String,
}

impl State {
    pub(super) fn new(schema: &str) -> Self {
        let ours = "mirror = $1 AND epoch = $2";
        Self {
            advance: format!(
                "UPDATE {schema}.mirrors SET lsn = $4, attempt = $5::text::uuid, committed_at = clock_timestamp(), \
                 left_out = NULL WHERE {ours} AND lsn IS NOT DISTINCT FROM $3 AND pending_attempt IS NULL"
            ),
            decide: format!(
                "UPDATE {schema}.mirrors SET pending = $4, pending_attempt = $5::text::uuid, left_out = NULL \
                 WHERE {ours} AND lsn IS NOT DISTINCT FROM $3 AND pending_attempt IS NULL"
            ),
            settle: format!(
                "UPDATE {schema}.mirrors SET lsn = $4, attempt = pending_attempt, committed_at = clock_timestamp(), \
                 pending = NULL, pending_attempt = NULL, left_out = $5 WHERE {ours} AND pending_attempt = $3::text::uuid"
            ),
            withdraw: format!(
                "UPDATE {schema}.mirrors SET pending = NULL, pending_attempt = NULL \
                 WHERE {ours} AND pending_attempt = $3::text::uuid"
            ),
            row: format!(
                "SELECT epoch, lsn, attempt::text, pending_attempt::text FROM {schema}.mirrors WHERE mirror = $1"
            ),
            records: format!("SELECT pending, left_out FROM {schema}.mirrors WHERE mirror = $1"),
        }
    }

    /// The statement that moves the mirror to a batch's position, for a transaction that moves its tables too.
    pub(super) fn advance(&self) -> &str {
        &self.advance
    }

    /// Puts a batch on record as the one that comes next, when the mirror is where it is expected; one without a record
    /// moves the mirror at once. False: the mirror is elsewhere.
    pub(super) async fn decide(
        &self,
        connection: &Connection,
        session: Session,
        batch: &Batch,
        record: Option<&str>,
    ) -> Result<bool> {
        let attempt = batch.attempt.to_string();
        let (sql, fourth): (_, Parameter<'_>) = match &record {
            Some(record) => (&self.decide, record),
            None => (&self.advance, &batch.lsn),
        };
        let parameters: [Parameter<'_>; 5] = [&batch.mirror, &batch.epoch, &batch.expected, fourth, &attempt];
        change_in(connection, session, "record a batch", sql, &parameters).await
    }

    /// The batch on record is everywhere but in the tables `left_out`: the mirror is at its position.
    pub(super) async fn settle(&self, connection: &Connection, batch: &Batch, left_out: Option<&str>) -> Result<bool> {
        let attempt = batch.attempt.to_string();
        let parameters: [Parameter<'_>; 5] = [&batch.mirror, &batch.epoch, &attempt, &batch.lsn, &left_out];
        change(connection, "advance the mirror", &self.settle, &parameters).await
    }

    /// Takes a batch off the record that no table has, nor will have.
    pub(super) async fn withdraw(&self, connection: &Connection, batch: &Batch) -> Result<bool> {
        let attempt = batch.attempt.to_string();
        let parameters: [Parameter<'_>; 3] = [&batch.mirror, &batch.epoch, &attempt];
        change(connection, "withdraw a batch", &self.withdraw, &parameters).await
    }

    /// The mirror's row, in a session that may be in a transaction.
    pub(super) async fn row_in(&self, session: &mut Session, mirror: &str) -> Result<Option<MirrorRow>> {
        let statement = session.prepare(&self.row).await?;
        let row = session.row("read the mirror's position", &statement, &[&mirror]).await?;
        let uuid = |text: Option<&str>| text.and_then(|text| text.parse().ok());
        Ok(row.map(|row| MirrorRow {
            epoch: row.get(0),
            lsn: row.get(1),
            attempt: uuid(row.get(2)),
            pending: uuid(row.get(3)),
        }))
    }

    /// The mirror's row.
    pub(super) async fn row(&self, connection: &Connection, mirror: &str) -> Result<Option<MirrorRow>> {
        let mut session = connection.take().await?;
        let row = self.row_in(&mut session, mirror).await?;
        connection.put(session).await;
        Ok(row)
    }

    /// What is on record for a mirror.
    pub(super) async fn records(&self, connection: &Connection, mirror: &str) -> Result<Records> {
        let mut session = connection.take().await?;
        let statement = session.prepare(&self.records).await?;
        let row = session.row("read what is on record", &statement, &[&mirror]).await?;
        connection.put(session).await;
        Ok(row.map_or_else(Records::default, |row| Records { pending: row.get(0), left_out: row.get(1) }))
    }
}

/// Runs a statement that changes the one row, or does not find it as it should be.
async fn change(connection: &Connection, what: &str, sql: &str, parameters: &[Parameter<'_>]) -> Result<bool> {
    let session = connection.take().await?;
    change_in(connection, session, what, sql, parameters).await
}

async fn change_in(
    connection: &Connection,
    mut session: Session,
    what: &str,
    sql: &str,
    parameters: &[Parameter<'_>],
) -> Result<bool> {
    let statement = session.prepare(sql).await?;
    let rows = session.execute(what, &statement, parameters).await?;
    connection.put(session).await;
    Ok(rows > 0)
}
