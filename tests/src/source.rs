//! What the standalone worker needs in its source database, made with the SQL that the README gives.

use anyhow::Result;

use crate::postgres::Postgres;

/// The role, the schema and the publication of a mirror.
#[derive(Debug)]
pub struct Source;

impl Source {
    /// The role that the worker connects as.
    pub const ROLE: &str = "lakemirror";

    /// Makes the worker's role and its schema, as the README says.
    pub async fn prepare(postgres: &Postgres) -> Result<()> {
        postgres
            .batch(
                "CREATE ROLE lakemirror LOGIN REPLICATION;
                 CREATE SCHEMA lake_catalog AUTHORIZATION lakemirror;
                 CREATE PUBLICATION lakemirror",
            )
            .await
    }

    /// Lets the worker read the tables and publishes them, as their owner would.
    pub async fn publish(postgres: &Postgres, tables: &[&str]) -> Result<()> {
        for table in tables {
            let schema = table.split('.').next().unwrap_or("public");
            postgres
                .batch(&format!(
                    "GRANT USAGE ON SCHEMA {schema} TO lakemirror;
                     GRANT SELECT ON {table} TO lakemirror;
                     ALTER PUBLICATION lakemirror ADD TABLE {table}"
                ))
                .await?;
        }
        Ok(())
    }
}
