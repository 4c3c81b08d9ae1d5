//! The standalone worker: what it refuses, with which exit code, and what it tells the operator to do.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use lake_tests::{Postgres, PostgresBuilder, Source, WorkerConfig, bounded, exit_code};

use crate::TEST_LIMIT;

/// A server with a fit table `public.t` and what the worker needs.
async fn source(builder: PostgresBuilder) -> Result<Postgres> {
    let postgres = builder.start().await?;
    Source::prepare(&postgres).await?;
    postgres.batch("CREATE TABLE t (id int PRIMARY KEY)").await?;
    Source::publish(&postgres, &["public.t"]).await?;
    Ok(postgres)
}

/// `check` and `run` must both refuse with this code, name the matter, and give a hint.
pub(crate) async fn refused(config: &WorkerConfig, code: i32, wanted: &[&str]) -> Result<()> {
    let check = config.call(&["check"]).await?;
    let said = format!("{}{}", String::from_utf8_lossy(&check.stdout), String::from_utf8_lossy(&check.stderr));
    ensure!(check.status.code() == Some(code), "check: {:?}, not {code}:\n{said}", check.status);
    said_so(&said, wanted)?;
    let (found, said) = config.run_to_end(Duration::from_secs(30)).await?;
    ensure!(found == code, "run: exit code {found}, not {code}:\n{said}");
    said_so(&said, wanted)
}

fn said_so(said: &str, wanted: &[&str]) -> Result<()> {
    for word in wanted.iter().chain(&["hint"]) {
        ensure!(said.to_lowercase().contains(&word.to_lowercase()), "does not say {word:?}:\n{said}");
    }
    ensure!(!said.contains("panicked"), "a panic:\n{said}");
    Ok(())
}

#[tokio::test]
async fn a_source_without_logical_decoding() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = source(Postgres::builder().set("wal_level", "replica")).await?;
        let config = WorkerConfig::new(&postgres, "one", &["public.t"])?;
        refused(&config, exit_code::UNFIT, &["wal_level", "logical"]).await
    })
    .await
}

#[tokio::test]
async fn tables_that_cannot_be_mirrored() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = source(Postgres::builder()).await?;
        postgres
            .batch(
                "CREATE TABLE no_key (id int);
                 CREATE TABLE odd (id int, fine interval, twin int GENERATED ALWAYS AS (id) STORED PRIMARY KEY);
                 CREATE TABLE closed (id int PRIMARY KEY);
                 CREATE TABLE unpublished (id int PRIMARY KEY);
                 GRANT SELECT ON unpublished TO lakemirror",
            )
            .await?;
        Source::publish(&postgres, &["public.no_key", "public.odd"]).await?;
        postgres.batch("ALTER PUBLICATION lakemirror ADD TABLE closed").await?;
        for (table, wanted) in [
            ("public.no_key", &["no_key", "key"][..]),
            ("public.odd", &["odd", "generated"]),
            ("public.missing", &["missing"]),
            ("public.closed", &["closed", "select"]),
            ("public.unpublished", &["unpublished", "publication"]),
        ] {
            let config = WorkerConfig::new(&postgres, table, &["public.t", table])?;
            refused(&config, exit_code::UNFIT, wanted).await?;
        }
        ensure!(postgres.value("SELECT count(*) FROM pg_replication_slots").await? == "0", "a slot was left behind");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_role_that_may_not_replicate_and_a_publication_that_is_not_there() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = source(Postgres::builder()).await?;
        let config = WorkerConfig::new(&postgres, "one", &["public.t"])?;
        postgres.batch("ALTER ROLE lakemirror NOREPLICATION").await?;
        refused(&config, exit_code::UNFIT, &["replication"]).await?;
        postgres.batch("ALTER ROLE lakemirror REPLICATION; DROP PUBLICATION lakemirror").await?;
        refused(&config, exit_code::UNFIT, &["create publication"]).await
    })
    .await
}

#[tokio::test]
async fn a_schema_that_is_not_its_own() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = source(Postgres::builder()).await?;
        let config = WorkerConfig::new(&postgres, "one", &["public.t"])?;
        postgres.batch("DROP SCHEMA lake_catalog").await?;
        refused(&config, exit_code::UNFIT, &["lake_catalog", "create schema"]).await
    })
    .await
}

#[tokio::test]
async fn a_source_without_a_free_slot() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = source(Postgres::builder().set("max_replication_slots", "1")).await?;
        postgres.batch("SELECT pg_create_physical_replication_slot('taken')").await?;
        let config = WorkerConfig::new(&postgres, "one", &["public.t"])?;
        refused(&config, exit_code::UNFIT, &["max_replication_slots"]).await
    })
    .await
}

#[tokio::test]
async fn a_warehouse_that_cannot_be_written() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = source(Postgres::builder()).await?;
        let config = WorkerConfig::new(&postgres, "one", &["public.t"])?;
        std::fs::set_permissions(&config.warehouse, std::fs::Permissions::from_mode(0o500))?;
        refused(&config, exit_code::LAKE, &["warehouse"]).await
    })
    .await
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_written() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = source(Postgres::builder()).await?;
        let config = WorkerConfig::new(&postgres, "one", &["public.t"])?;
        std::fs::set_permissions(&config.state, std::fs::Permissions::from_mode(0o500))?;
        refused(&config, exit_code::FAILED, &["state directory"]).await
    })
    .await
}

#[tokio::test]
async fn a_source_that_does_not_answer() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = source(Postgres::builder()).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.t"])?;
        config.port += 1;
        refused(&config, exit_code::SOURCE, &[]).await
    })
    .await
}

#[tokio::test]
async fn tcp_needs_leave_to_go_without_tls_and_a_right_password() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let builder = Postgres::builder()
            .tcp()
            .hba("host all lakemirror 127.0.0.1/32 scram-sha-256")
            .hba("host replication lakemirror 127.0.0.1/32 scram-sha-256");
        let postgres = source(builder).await?;
        postgres.batch("ALTER ROLE lakemirror PASSWORD 'right one'").await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.t"])?;
        config.host = "127.0.0.1".to_owned();
        config.password = Some("right one".to_owned());
        refused(&config, exit_code::CONFIG, &["insecure"]).await?;
        config.insecure = true;
        config.password = None;
        refused(&config, exit_code::UNFIT, &["LAKEMIRROR_SOURCE_PASSWORD"]).await?;
        config.password = Some("wrong one".to_owned());
        let check = config.call(&["check"]).await?;
        let said = format!("{check:?}");
        ensure!(matches!(check.status.code(), Some(exit_code::UNFIT | exit_code::SOURCE)), "wrong password: {said}");
        ensure!(said.contains("password") && !said.contains("wrong one"), "says why, not what: {said}");
        ensure!(said.matches("authentication failed").count() == 1, "says it once: {said}");
        config.password = Some("right one".to_owned());
        let worker = lake_tests::Worker::start(&config, &postgres).await?;
        let output = worker.output();
        ensure!(!output.contains("right one"), "the password is in the log");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn wrong_configuration_files_and_usage() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = source(Postgres::builder()).await?;
        let config = WorkerConfig::new(&postgres, "one", &["public.t"])?;
        for (interval, max_bytes) in [("soon", "64MiB"), ("1s", "much")] {
            let mut wrong = config.clone();
            wrong.interval = interval.to_owned();
            wrong.max_bytes = max_bytes.to_owned();
            let check = wrong.call(&["check"]).await?;
            ensure!(check.status.code() == Some(exit_code::CONFIG), "{interval}, {max_bytes}: {check:?}");
            let (code, said) = wrong.run_to_end(Duration::from_secs(10)).await?;
            ensure!(code == exit_code::CONFIG, "{interval}, {max_bytes}: exit code {code}: {said}");
        }
        let mut nothing = config.clone();
        nothing.tables.clear();
        ensure!(nothing.call(&["check"]).await?.status.code() == Some(exit_code::CONFIG), "no tables");
        let usage = config.call(&["walk"]).await?;
        ensure!(usage.status.code() == Some(exit_code::CONFIG), "an unknown command: {usage:?}");
        let unknown = config.clone().with_text(config.toml().replace("[commit]", "[comit]"));
        let line = 1 + config.toml().lines().take_while(|line| *line != "[commit]").count();
        let check = unknown.call(&["check"]).await?;
        ensure!(check.status.code() == Some(exit_code::CONFIG), "an unknown section: {check:?}");
        said_so(&String::from_utf8_lossy(&check.stderr), &["comit", &format!("line {line}:")])?;
        // A fit source passes.
        let check = config.call(&["check"]).await?;
        ensure!(check.status.code() == Some(exit_code::OK), "a fit source: {check:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_configuration_of_the_kubernetes_base_is_one_that_the_worker_takes() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let root = lake_tests::repository();
        let print = std::process::Command::new(root.join(".deps/venv/bin/python"))
            .arg(root.join("tests/k8s/validate.py"))
            .arg(root.join("k8s"))
            .arg("--print-config")
            .output()?;
        // Its host, on a port where nobody listens.
        let text = String::from_utf8(print.stdout)?.replace("postgres.database.svc", "127.0.0.1");
        let text = text.replace("port = 5432", "port = 1");
        let postgres = source(Postgres::builder()).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.t"])?.with_text(text);
        config.password = Some("in the environment".to_owned());
        let check = config.call(&["check"]).await?;
        ensure!(check.status.code() == Some(exit_code::SOURCE), "past the configuration, to the source: {check:?}");
        Ok(())
    })
    .await
}
