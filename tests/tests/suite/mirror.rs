//! A server with tables, and a standalone worker that streams them: where most tests begin.

use anyhow::{Context, Result, ensure};
use lake_tests::{Oracle, Postgres, PostgresBuilder, Source, Worker, WorkerConfig, eventually};

use crate::CATCH_UP;

/// A mirror at work.
pub(crate) struct Mirror {
    // First, so that it ends before its server.
    worker: Option<Worker>,
    pub(crate) config: WorkerConfig,
    pub(crate) oracle: Oracle,
    pub(crate) tables: Vec<&'static str>,
    pub(crate) postgres: Postgres,
}

impl Mirror {
    /// These tables, copied and streaming.
    pub(crate) async fn start(schema: &str, tables: &[&'static str]) -> Result<Self> {
        Self::start_on(Postgres::builder(), schema, tables).await
    }

    /// The same on a server of these settings.
    pub(crate) async fn start_on(builder: PostgresBuilder, schema: &str, tables: &[&'static str]) -> Result<Self> {
        let postgres = builder.start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch(schema).await?;
        Source::publish(&postgres, tables).await?;
        let config = WorkerConfig::new(&postgres, "one", tables)?;
        Self::of(postgres, config, tables).await
    }

    /// The same of a source that is prepared, by this configuration.
    pub(crate) async fn of(postgres: Postgres, config: WorkerConfig, tables: &[&'static str]) -> Result<Self> {
        let worker = Some(Worker::start(&config, &postgres).await?);
        let oracle = Oracle::new(&postgres);
        Ok(Self { worker, config, oracle, tables: tables.to_vec(), postgres })
    }

    pub(crate) fn worker(&mut self) -> Result<&mut Worker> {
        self.worker.as_mut().context("the worker is down")
    }

    /// Compares all tables; the number of rows.
    pub(crate) async fn equal(&mut self) -> Result<u64> {
        let rows = self.oracle.assert_equal(&self.postgres, &self.tables, CATCH_UP).await?;
        ensure!(self.worker()?.runs()?, "the worker has ended");
        Ok(rows)
    }

    /// Runs statements, and compares all tables; the number of rows.
    pub(crate) async fn after(&mut self, statements: &str) -> Result<u64> {
        self.postgres.batch(statements).await?;
        self.equal().await.with_context(|| format!("after {statements}"))
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        match self.worker.take() {
            Some(worker) => worker.kill().await,
            None => Ok(()),
        }
    }

    /// Another worker, after [`Self::kill`], without waiting for anything.
    pub(crate) fn spawn(&mut self) -> Result<()> {
        self.worker = Some(Worker::spawn(&self.config)?);
        Ok(())
    }

    /// `kill -9`, and another worker, whose index is read back from the files.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        self.kill().await?;
        self.spawn()
    }

    /// Waits until the table has stopped; why, with the hint.
    pub(crate) async fn stopped(&self, table: &str) -> Result<String> {
        let query = format!(
            "SELECT error || ' hint: ' || coalesce(error_hint, '') FROM lake_catalog.mirrored_tables \
             WHERE source_table = '{table}' AND state = 'errored'"
        );
        eventually(&format!("{table} stops"), CATCH_UP, async || {
            Ok(self.postgres.rows(&query).await?.into_iter().flatten().flatten().next())
        })
        .await
    }

    /// A command of the worker that ends by itself, and must succeed.
    pub(crate) async fn call(&self, arguments: &[&str]) -> Result<String> {
        let output = self.config.call(arguments).await?;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{arguments:?}: {:?}:\n{said}", output.status);
        Ok(said)
    }

    /// Copies tables anew and waits until all stream.
    pub(crate) async fn resync(&mut self, tables: &[&str]) -> Result<()> {
        self.call(&[&["resync"], tables].concat()).await?;
        self.streaming().await
    }

    /// Waits until all tables stream.
    pub(crate) async fn streaming(&mut self) -> Result<()> {
        let tables = self.tables.len();
        let worker = self.worker.as_mut().context("the worker is down")?;
        worker.streaming(&self.postgres, tables).await
    }
}
