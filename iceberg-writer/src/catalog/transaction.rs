//! The one SQL transaction that makes a batch visible.
//!
//! It first moves the mirror's row, from the expected position and under the worker's epoch. That takes the row's lock, so
//! an earlier try whose end is unknown has ended when the statement returns: either it moved the row, and the attempt id
//! says so, or it did not happen. Then each table's entry is moved from the metadata the plan was made from.

use futures_util::future::try_join_all;
use uuid::Uuid;

use super::connection::{Connection, Parameter, Session};
use crate::commit::Batch;
use crate::error::Result;
use crate::lsn::Lsn;
use crate::table::{Entry, LakeTable};

/// A table's entry to move.
pub(super) struct Move<'a> {
    pub(super) base: &'a LakeTable,
    pub(super) metadata_location: &'a str,
}

/// How a transaction ended.
pub(super) enum Ended {
    /// It is committed.
    Committed,
    /// The mirror is not where it was expected; nothing is changed.
    MirrorElsewhere(Option<MirrorRow>),
    /// These tables (indexes into the moves) were moved by someone else; nothing is changed.
    TablesMoved(Vec<usize>),
    /// COMMIT was sent and not answered.
    Lost(crate::error::Error),
}

/// A mirror's row.
pub(super) struct MirrorRow {
    pub(super) epoch: i64,
    pub(super) lsn: Option<Lsn>,
    pub(super) attempt: Option<Uuid>,
}

/// The statements, with the schema's name filled in.
pub(super) struct Statements {
    advance: String,
    mirror: String,
    namespace: String,
    insert: String,
    advance_table: String,
    entry: String,
    drop: String,
}

impl Statements {
    pub(super) fn new(schema: &str) -> Self {
        let key = "catalog_name = $1 AND table_namespace = $2 AND table_name = $3";
        Self {
            advance: format!(
                "UPDATE {schema}.mirrors SET lsn = $4, attempt = $5::text::uuid, committed_at = clock_timestamp() \
                 WHERE mirror = $1 AND epoch = $2 AND lsn IS NOT DISTINCT FROM $3"
            ),
            mirror: format!("SELECT epoch, lsn, attempt::text FROM {schema}.mirrors WHERE mirror = $1"),
            namespace: format!(
                "INSERT INTO {schema}.iceberg_namespace_properties (catalog_name, namespace, property_key, property_value) \
                 VALUES ($1, $2, 'exists', 'true') ON CONFLICT DO NOTHING"
            ),
            insert: format!(
                "INSERT INTO {schema}.iceberg_tables AS t \
                 (catalog_name, table_namespace, table_name, metadata_location, iceberg_type) \
                 VALUES ($1, $2, $3, $4, 'TABLE') ON CONFLICT (catalog_name, table_namespace, table_name) DO UPDATE \
                 SET metadata_location = EXCLUDED.metadata_location, previous_metadata_location = t.metadata_location, \
                 iceberg_type = 'TABLE' WHERE t.metadata_location = $5"
            ),
            advance_table: format!(
                "UPDATE {schema}.iceberg_tables SET metadata_location = $4, previous_metadata_location = $5 \
                 WHERE {key} AND metadata_location = $5"
            ),
            entry: format!("SELECT metadata_location FROM {schema}.iceberg_tables WHERE {key}"),
            drop: format!("DELETE FROM {schema}.iceberg_tables WHERE {key}"),
        }
    }

    /// Runs the transaction. An error means that it did not happen.
    pub(super) async fn commit(
        &self,
        connection: &Connection,
        catalog: &str,
        batch: &Batch,
        moves: &[Move<'_>],
    ) -> Result<Ended> {
        let mut session = connection.take().await?;
        let advance = session.prepare(&self.advance).await?;
        let attempt = batch.attempt.to_string();
        let parameters: [Parameter<'_>; 5] = [&batch.mirror, &batch.epoch, &batch.expected, &batch.lsn, &attempt];
        // Sent together, answered in order.
        let (begun, advanced) = tokio::join!(
            session.run("begin a commit", "BEGIN"),
            session.execute("advance the mirror", &advance, &parameters)
        );
        begun?;
        if advanced? == 0 {
            let row = self.mirror_row(&mut session, &batch.mirror).await?;
            return self.roll_back(connection, session, Ended::MirrorElsewhere(row)).await;
        }
        let moved = self.move_tables(&mut session, catalog, moves).await?;
        if !moved.is_empty() {
            return self.roll_back(connection, session, Ended::TablesMoved(moved)).await;
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

    async fn roll_back(&self, connection: &Connection, session: Session, ended: Ended) -> Result<Ended> {
        session.run("roll back", "ROLLBACK").await?;
        connection.put(session).await;
        Ok(ended)
    }

    async fn mirror_row(&self, session: &mut Session, mirror: &str) -> Result<Option<MirrorRow>> {
        let statement = session.prepare(&self.mirror).await?;
        let row = session.row("read the mirror's position", &statement, &[&mirror]).await?;
        Ok(row.map(|row| MirrorRow {
            epoch: row.get(0),
            lsn: row.get(1),
            attempt: row.get::<_, Option<&str>>(2).and_then(|attempt| attempt.parse().ok()),
        }))
    }

    /// Moves the tables' entries. Gives the indexes of those that were not where they should be.
    async fn move_tables(&self, session: &mut Session, catalog: &str, moves: &[Move<'_>]) -> Result<Vec<usize>> {
        let namespace = session.prepare(&self.namespace).await?;
        let insert = session.prepare(&self.insert).await?;
        let advance = session.prepare(&self.advance_table).await?;
        let session = &*session;
        let (namespace, insert, advance) = (&namespace, &insert, &advance);
        let change = |step: &Move<'_>| {
            let (base, new) = (step.base.clone(), step.metadata_location.to_owned());
            async move {
                let spec = base.spec();
                match base.entry() {
                    Entry::Current(old) => {
                        let parameters: [Parameter<'_>; 5] = [&catalog, &spec.namespace, &spec.name, &new, old];
                        session.execute("move a table", advance, &parameters).await
                    }
                    Entry::Absent { replaces } => {
                        session.execute("make a namespace", namespace, &[&catalog, &spec.namespace]).await?;
                        let parameters: [Parameter<'_>; 5] = [&catalog, &spec.namespace, &spec.name, &new, replaces];
                        session.execute("enter a table", insert, &parameters).await
                    }
                }
            }
        };
        let rows = try_join_all(moves.iter().map(change)).await?;
        Ok(rows.iter().enumerate().filter(|(_, rows)| **rows == 0).map(|(index, _)| index).collect())
    }

    /// Where the catalog says a table's metadata is.
    pub(super) async fn metadata_location(
        &self,
        connection: &Connection,
        catalog: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<String>> {
        let mut session = connection.take().await?;
        let statement = session.prepare(&self.entry).await?;
        let row = session.row("look a table up", &statement, &[&catalog, &namespace, &name]).await?;
        connection.put(session).await;
        Ok(row.and_then(|row| row.get(0)))
    }

    pub(super) async fn drop_entry(
        &self,
        connection: &Connection,
        catalog: &str,
        namespace: &str,
        name: &str,
    ) -> Result<()> {
        let mut session = connection.take().await?;
        let statement = session.prepare(&self.drop).await?;
        session.execute("drop a table", &statement, &[&catalog, &namespace, &name]).await?;
        connection.put(session).await;
        Ok(())
    }
}
