//! The layout of Iceberg's JDBC catalog in a Postgres schema: a row a table, which says where its metadata is.
//!
//! A table moves by an UPDATE that names the metadata it moves from, so of two movers one finds no row. Several move in one
//! SQL transaction: with the mirror's row in it, where that is in the same database ([`super::beside`]), else by themselves.

use async_trait::async_trait;
use futures_util::future::try_join_all;
use tokio_postgres::Config;

use super::connection::{Connection, Parameter, Session, quoted};
use super::tables::{Found, Move, Moved, TableCatalog};
use crate::commit::MetadataBy;
use crate::error::{Error, Result};
use crate::table::{Entry, LakeTable};
use crate::warehouse::Warehouse;

/// The statements, with the schema's name filled in.
pub(super) struct JdbcTables {
    schema: String,
    catalog: String,
    namespace: String,
    insert: String,
    advance: String,
    entry: String,
    drop: String,
}

impl JdbcTables {
    pub(super) fn new(schema: &str, catalog: &str) -> Self {
        let schema = quoted(schema).to_string();
        let key = "catalog_name = $1 AND table_namespace = $2 AND table_name = $3";
        Self {
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
            advance: format!(
                "UPDATE {schema}.iceberg_tables SET metadata_location = $4, previous_metadata_location = $5 \
                 WHERE {key} AND metadata_location = $5"
            ),
            entry: format!("SELECT metadata_location FROM {schema}.iceberg_tables WHERE {key}"),
            drop: format!("DELETE FROM {schema}.iceberg_tables WHERE {key}"),
            schema,
            catalog: catalog.to_owned(),
        }
    }

    /// Moves the tables' entries, in the session's transaction. Gives the indexes of those that were not where they should
    /// be.
    pub(super) async fn move_in(&self, session: &mut Session, moves: &[Move<'_>]) -> Result<Vec<usize>> {
        let namespace = session.prepare(&self.namespace).await?;
        let insert = session.prepare(&self.insert).await?;
        let advance = session.prepare(&self.advance).await?;
        let (session, catalog) = (&*session, &self.catalog);
        let (namespace, insert, advance) = (&namespace, &insert, &advance);
        let change = |step: &Move<'_>| {
            let (base, to) = (step.base.clone(), step.planned.commit.location().map(str::to_owned));
            async move {
                let spec = base.spec();
                let to = to.ok_or_else(|| Error::invalid("a plan without a metadata file"))?;
                match base.entry() {
                    Entry::Current(old) => {
                        let parameters: [Parameter<'_>; 5] = [catalog, &spec.namespace, &spec.name, &to, old];
                        session.execute("move a table", advance, &parameters).await
                    }
                    Entry::Absent { replaces } => {
                        session.execute("make a namespace", namespace, &[catalog, &spec.namespace]).await?;
                        let parameters: [Parameter<'_>; 5] = [catalog, &spec.namespace, &spec.name, &to, replaces];
                        session.execute("enter a table", insert, &parameters).await
                    }
                }
            }
        };
        let rows = try_join_all(moves.iter().map(change)).await?;
        Ok(rows.iter().enumerate().filter(|(_, rows)| **rows == 0).map(|(index, _)| index).collect())
    }

    /// Where the catalog says a table's metadata is.
    pub(super) async fn location(
        &self,
        connection: &Connection,
        namespace: &str,
        name: &str,
    ) -> Result<Option<String>> {
        let mut session = connection.take().await?;
        let statement = session.prepare(&self.entry).await?;
        let row = session.row("look a table up", &statement, &[&self.catalog, &namespace, &name]).await?;
        connection.put(session).await;
        Ok(row.and_then(|row| row.get(0)))
    }

    pub(super) async fn drop_entry(&self, connection: &Connection, namespace: &str, name: &str) -> Result<()> {
        let mut session = connection.take().await?;
        let statement = session.prepare(&self.drop).await?;
        session.execute("drop a table", &statement, &[&self.catalog, &namespace, &name]).await?;
        connection.put(session).await;
        Ok(())
    }
}

/// A JDBC catalog in a database that is not the source.
pub(super) struct JdbcCatalog {
    connection: Connection,
    tables: JdbcTables,
    identity: String,
    warehouse: Warehouse,
}

impl JdbcCatalog {
    /// The catalog `name` in a schema of the database that `config` connects to. No connection is made yet.
    pub(super) fn new(config: Config, schema: &str, name: &str, warehouse: Warehouse) -> Self {
        let database = config.get_dbname().unwrap_or_default().to_owned();
        let identity = format!("jdbc catalog {name:?} in schema {schema:?} of database {database:?}");
        Self { connection: Connection::new(config), tables: JdbcTables::new(schema, name), identity, warehouse }
    }

    /// Runs the transaction. An error means that it did not happen.
    async fn transaction(&self, moves: &[Move<'_>]) -> Result<Moved> {
        let mut session = self.connection.take().await?;
        session.run("begin a commit", "BEGIN").await?;
        let moved = self.tables.move_in(&mut session, moves).await?;
        if !moved.is_empty() {
            session.run("roll back", "ROLLBACK").await?;
            self.connection.put(session).await;
            return Ok(Moved::Conflict);
        }
        match session.run("commit", "COMMIT").await {
            Ok(()) => {
                self.connection.put(session).await;
                Ok(Moved::All(moves.iter().map(|_| None).collect()))
            }
            // Even an error message may come from a server that was stopped after it committed.
            Err(error) => Ok(Moved::Unknown(error)),
        }
    }
}

#[async_trait]
impl TableCatalog for JdbcCatalog {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn metadata_by(&self) -> MetadataBy {
        MetadataBy::Writer
    }

    fn moves_together(&self) -> bool {
        true
    }

    async fn location(&self, namespace: &str, name: &str) -> Result<Option<String>> {
        self.tables.location(&self.connection, namespace, name).await
    }

    async fn load(&self, namespace: &str, name: &str) -> Result<Option<Found>> {
        match self.location(namespace, name).await? {
            None => Ok(None),
            Some(location) => Found::read(&self.warehouse, location).await.map(Some),
        }
    }

    async fn prepare(&self, _namespace: &str) -> Result<()> {
        Ok(())
    }

    async fn create(&self, _prepared: &LakeTable) -> Result<()> {
        // A table comes with its first rows.
        Ok(())
    }

    async fn commit(&self, moves: &[Move<'_>]) -> Moved {
        self.transaction(moves).await.unwrap_or_else(Moved::Refused)
    }

    async fn drop_entry(&self, namespace: &str, name: &str) -> Result<()> {
        self.tables.drop_entry(&self.connection, namespace, name).await
    }

    async fn ensure(&self) -> Result<()> {
        let schema = &self.tables.schema;
        let session = self.connection.take().await?;
        let script = format!(
            "DO $$ BEGIN IF pg_catalog.to_regnamespace({literal}) IS NULL THEN CREATE SCHEMA {schema}; END IF; END $$; \
             CREATE TABLE IF NOT EXISTS {schema}.iceberg_tables (catalog_name varchar(255) NOT NULL, \
             table_namespace varchar(255) NOT NULL, table_name varchar(255) NOT NULL, metadata_location varchar(1000), \
             previous_metadata_location varchar(1000), iceberg_type varchar(5), \
             PRIMARY KEY (catalog_name, table_namespace, table_name)); \
             CREATE TABLE IF NOT EXISTS {schema}.iceberg_namespace_properties (catalog_name varchar(255) NOT NULL, \
             namespace varchar(255) NOT NULL, property_key varchar(255) NOT NULL, property_value varchar(1000), \
             PRIMARY KEY (catalog_name, namespace, property_key))",
            literal = literal(schema)
        );
        session.run("prepare the catalog's tables", &script).await?;
        self.connection.put(session).await;
        Ok(())
    }
}

/// An SQL string.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
