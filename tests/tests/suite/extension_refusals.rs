//! The extensions: what they refuse, with SQLSTATE and hint, and what they never do to the source.

use anyhow::{Context, Result, ensure};
use lake_tests::{Postgres, bounded};
use tokio_postgres::Client;
use tokio_postgres::error::DbError;

use crate::TEST_LIMIT;
use crate::extension_mirror::{mirror, server};

/// The error of a statement that must fail.
async fn refusal(client: &Client, sql: &str) -> Result<DbError> {
    let Err(error) = client.batch_execute(sql).await else { anyhow::bail!("was not refused: {sql}") };
    error.as_db_error().cloned().with_context(|| format!("{sql}: {error}"))
}

/// Refused with this SQLSTATE, naming these words, with a hint.
async fn refused(client: &Client, sql: &str, state: &str, wanted: &[&str]) -> Result<()> {
    let error = refusal(client, sql).await?;
    ensure!(error.code().code() == state, "{sql}: {} {}", error.code().code(), error.message());
    let text = format!("{} {}", error.message(), error.detail().unwrap_or_default());
    for word in wanted {
        ensure!(text.contains(word), "{sql}: does not say {word:?}: {text}");
    }
    ensure!(error.hint().is_some(), "{sql}: no hint");
    Ok(())
}

#[tokio::test]
async fn tables_that_cannot_be_mirrored() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres
            .batch(
                "CREATE EXTENSION lake; CREATE EXTENSION lake_query;
                 CREATE TABLE no_key (id int);
                 CREATE TABLE odd (id int PRIMARY KEY, fine interval, shape int GENERATED ALWAYS AS (id) STORED, span int GENERATED ALWAYS AS (id) STORED);
                 CREATE TABLE owned (id int PRIMARY KEY);
                 CREATE VIEW seen AS SELECT 1 AS id;
                 CREATE ROLE somebody LOGIN",
            )
            .await?;
        let client = postgres.client().await?;
        refused(&client, "SELECT lake.mirror('no_key')", "55000", &["no_key"]).await?;
        refused(&client, "SELECT lake.mirror('odd')", "0A000", &["shape", "span"]).await?;
        let error = refusal(&client, "SELECT lake.mirror('missing')").await?;
        ensure!(error.code().code() == "42P01", "unknown relation: {error:?}");
        let error = refusal(&client, "SELECT lake.mirror('seen')").await?;
        ensure!(error.code().code() == "42809", "a view: {error:?}");
        let error = refusal(&client, "SELECT lake.wait('owned')").await?;
        ensure!(error.hint().is_some(), "a table that is not mirrored: {error:?}");

        let somebody = postgres.client_as("somebody", "postgres").await?;
        let error = refusal(&somebody, "SELECT lake.mirror('owned')").await?;
        ensure!(error.code().code() == "42501", "not the owner: {error:?}");
        ensure!(postgres.value("SELECT count(*) FROM lake.mirrors").await? == "0");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_lake_has_the_privileges_of_the_source() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres
            .batch("CREATE TABLE t (id int PRIMARY KEY, secret text); INSERT INTO t VALUES (1, 'x'); CREATE ROLE somebody LOGIN")
            .await?;
        mirror(&postgres, &["t"]).await?;
        let somebody = postgres.client_as("somebody", "postgres").await?;
        let error = refusal(&somebody, "SELECT * FROM lake.t").await?;
        ensure!(error.code().code() == "42501", "{error:?}");
        postgres.batch("GRANT SELECT (id) ON t TO somebody").await?;
        let error = refusal(&somebody, "SELECT secret FROM lake.t").await?;
        ensure!(error.code().code() == "42501", "{error:?}");
        let id: i32 = somebody.query_one("SELECT id FROM lake.t", &[]).await?.get(0);
        ensure!(id == 1);
        // Row-level security: the policy holds, or the query is refused; never more rows than the heap gives.
        postgres.batch("ALTER TABLE t ENABLE ROW LEVEL SECURITY; GRANT SELECT ON t TO somebody").await?;
        if let Ok(rows) = somebody.query("SELECT * FROM lake.t", &[]).await {
            ensure!(rows.is_empty(), "rows that the policy hides");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_server_without_logical_decoding_or_without_a_free_slot() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let lake = || Postgres::builder().preload("lake, lake_query");
        let postgres = lake().set("wal_level", "replica").start().await?;
        postgres.batch("CREATE EXTENSION lake; CREATE TABLE t (id int PRIMARY KEY)").await?;
        refused(&postgres.client().await?, "SELECT lake.mirror('t')", "55000", &["wal_level"]).await?;

        let postgres = lake().set("max_replication_slots", "1").start().await?;
        postgres.batch("SELECT pg_create_physical_replication_slot('taken')").await?;
        postgres.batch("CREATE EXTENSION lake; CREATE TABLE t (id int PRIMARY KEY)").await?;
        let error =
            refusal(&postgres.client().await?, "SELECT lake.mirror('t'); SELECT lake.wait('t', '10 s')").await?;
        ensure!(error.hint().is_some(), "no free slot: {error:?}");
        postgres.batch("INSERT INTO t VALUES (1)").await
    })
    .await
}

#[tokio::test]
async fn a_library_that_is_not_preloaded() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        let client = postgres.client().await?;
        // Restoring a dump must be possible; doing something with it is not.
        client.batch_execute("CREATE EXTENSION lake; CREATE TABLE t (id int PRIMARY KEY)").await?;
        refused(&client, "SELECT lake.mirror('t')", "55000", &["shared_preload_libraries"]).await?;
        refused(&client, "CREATE EXTENSION lake_query", "55000", &["lake_query"]).await
    })
    .await
}

#[tokio::test]
async fn a_strict_read_while_the_engine_is_down_says_so() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut postgres = server().await?;
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await?;
        mirror(&postgres, &["t"]).await?;
        // An engine that cannot log in does not come up.
        postgres.configure("lake.conninfo", "host=/nonexistent")?;
        postgres.restart().await?;
        let client = postgres.client().await?;
        refused(&client, "SET lake.freshness_timeout = '2s'; SELECT * FROM lake.t", "57P03", &["engine"]).await?;
        postgres.batch("INSERT INTO t VALUES (2)").await
    })
    .await
}
