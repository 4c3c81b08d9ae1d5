//! The oracle: heap and lake at one LSN are equal, as two foreign readers see it.
//!
//! Why one LSN: the callers pause all writers, and the oracle waits until the mirror has committed a position past the
//! WAL's end. From then on the lake stands for exactly what the heap holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::azurite::Azurite;
use crate::catalog::OtherCatalog;
use crate::deadline::eventually;
use crate::postgres::Postgres;
use crate::python::Python;
use crate::seaweed::{Key, Seaweed};

/// How many changes of each kind there are.
pub type Kinds = BTreeMap<String, u64>;

/// How a table is partitioned.
#[derive(Debug, Clone, Deserialize)]
pub struct Partitions {
    /// Name and transform of each field that new files are partitioned by, as `at_day=day`.
    pub now: Vec<String>,
    /// Every partition of every spec that has files.
    pub found: Vec<PartitionFiles>,
}

/// A partition.
#[derive(Debug, Clone, Deserialize)]
pub struct PartitionFiles {
    /// As [`Partitions::now`], when its files were written.
    pub spec: Vec<String>,
    /// Its values, printed.
    pub values: String,
    /// Its data files.
    pub files: u64,
}

/// Compares the lake of one server with its heap.
#[derive(Debug, Clone)]
pub struct Oracle {
    host: PathBuf,
    port: u16,
    python: Python,
    s3: Option<Value>,
    azure: Option<Value>,
    catalog: Option<Value>,
}

impl Oracle {
    /// An oracle of the server's database `postgres`.
    pub fn new(postgres: &Postgres) -> Self {
        let python = Python::server("oracle/read_lake.py");
        let (host, port) = (postgres.socket_dir().to_owned(), postgres.port());
        Self { host, port, python, s3: None, azure: None, catalog: None }
    }

    /// The same of a lake in this store.
    #[must_use]
    pub fn in_store(mut self, store: &Seaweed) -> Self {
        let Key { id, secret } = Seaweed::ADMIN;
        self.s3 = Some(json!({ "endpoint": store.endpoint(), "key": id, "secret": secret, "region": Seaweed::REGION }));
        self
    }

    /// The same of a lake in this store.
    #[must_use]
    pub fn in_azure(mut self, store: &Azurite) -> Self {
        self.azure = Some(store.reader());
        self
    }

    /// The same of a lake whose tables are in this catalog.
    #[must_use]
    pub fn in_catalog(mut self, catalog: &OtherCatalog) -> Self {
        self.catalog = Some(catalog.reader());
        self
    }

    /// Takes a table out of the catalog, as somebody else would.
    pub async fn drop_table(&self, table: &str) -> Result<()> {
        self.ask("drop", json!({ "table": table })).await.map(drop)
    }

    async fn ask(&self, command: &str, more: Value) -> Result<Value> {
        let mut request = json!({
            "command": command, "host": self.host, "port": self.port, "database": "postgres", "user": "postgres",
            "catalog_schema": "lake_catalog", "catalog_name": "lake", "s3": self.s3, "azure": self.azure, "catalog": self.catalog,
        });
        if let (Value::Object(request), Value::Object(more)) = (&mut request, more) {
            request.extend(more);
        }
        self.python.ask(&request).await
    }

    /// Waits until the lake holds everything that is committed now; the position it then has.
    pub async fn caught_up(&self, postgres: &Postgres, limit: Duration) -> Result<String> {
        let client = postgres.client().await?;
        let end: String = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
        // An idle mirror records its position only after a mebibyte of WAL that is none of its own: write that much.
        client.execute("SELECT pg_logical_emit_message(false, 'oracle', repeat('x', 1500000))", &[]).await?;
        let sql = format!("SELECT lsn::text, lsn >= '{end}' FROM lake_catalog.mirrors");
        let mut last = None;
        let what = format!("the lake reaches {end}");
        let reached = eventually(&what, limit, async || {
            let rows = client.query(sql.as_str(), &[]).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            last = row.get(0);
            let reached: Option<bool> = row.get(1);
            Ok(if reached == Some(true) { last.clone() } else { None })
        });
        let reached = Box::pin(reached).await;
        reached.with_context(|| format!("the lake is at {last:?}"))
    }

    /// Waits for the lake, then compares every table, by DuckDB and by PyIceberg: rows, values bit by bit, column types
    /// and field ids. The source must stand still. Gives the number of rows compared.
    pub async fn assert_equal(&self, postgres: &Postgres, tables: &[&str], limit: Duration) -> Result<u64> {
        self.compare(postgres, tables, json!({}), limit).await
    }

    /// [`Self::assert_equal`] of all columns but the generated ones, which the mirror leaves out.
    pub async fn assert_equal_but_generated(
        &self,
        postgres: &Postgres,
        tables: impl Iterator<Item = &str>,
        limit: Duration,
    ) -> Result<u64> {
        let mut parts = Vec::new();
        for table in tables {
            let columns = postgres
                .value(&format!(
                    "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
                     WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"
                ))
                .await?;
            parts.push((table, format!("SELECT {columns} FROM {table}")));
        }
        let parts: Vec<(&str, &str)> = parts.iter().map(|(table, query)| (*table, query.as_str())).collect();
        self.assert_equal_to(postgres, &parts, limit).await
    }

    /// The same for tables of which the lake has a part: each with the query that gives that part of the heap, a subset of
    /// the table's rows and columns.
    pub async fn assert_equal_to(&self, postgres: &Postgres, parts: &[(&str, &str)], limit: Duration) -> Result<u64> {
        let tables: Vec<&str> = parts.iter().map(|(table, _)| *table).collect();
        let heap: serde_json::Map<String, Value> =
            parts.iter().map(|(table, query)| ((*table).to_owned(), json!(query))).collect();
        self.compare(postgres, &tables, json!(heap), limit).await
    }

    async fn compare(&self, postgres: &Postgres, tables: &[&str], heap: Value, limit: Duration) -> Result<u64> {
        self.caught_up(postgres, limit).await?;
        let answer = self.ask("compare", json!({ "tables": tables, "heap": heap })).await?;
        let results = answer["tables"].as_array().context("results by table")?;
        ensure!(results.len() == tables.len(), "{} results for {} tables", results.len(), tables.len());
        let mut rows = 0;
        for result in results {
            if let Some(difference) = result["difference"].as_str() {
                bail!("{} differs: {difference}", result["table"]);
            }
            rows += result["rows"].as_u64().context("a number of rows")?;
        }
        Ok(rows)
    }

    /// Evaluates a query with `{schema.table}` in it on the newest source LSNs (so many at most) that the retained
    /// snapshots stand for, by DuckDB. The value must be the expected one each time. Gives the number of LSNs.
    pub async fn assert_invariant(&self, query: &str, expected: &str, newest: usize) -> Result<usize> {
        let answer = self.ask("invariant", json!({ "query": query, "newest": newest })).await?;
        let values = answer["values"].as_array().context("values by LSN")?;
        for value in values {
            ensure!(
                value["value"] == expected,
                "at {}: {query} gives {}, not {expected}",
                value["lsn"],
                value["value"]
            );
        }
        ensure!(!values.is_empty(), "no LSN at which all tables of the query have a snapshot");
        Ok(values.len())
    }

    /// Remembers tables' rows in the heap, for [`Self::assert_history`]. The source must stand still.
    pub async fn remember(&self, postgres: &Postgres, tables: &[&str]) -> Result<()> {
        let begin = "CREATE SCHEMA IF NOT EXISTS oracle; CREATE SEQUENCE IF NOT EXISTS oracle.number;
                     CREATE TABLE IF NOT EXISTS oracle.moments (name text, copy text, lsn pg_lsn, at bigint, numbers int[])";
        postgres.batch(&format!("SET client_min_messages = warning; {begin}")).await?;
        for table in tables {
            let number = postgres.value("SELECT nextval('oracle.number')").await?;
            let copy = format!("oracle.moment_{number}");
            let remember = format!(
                "CREATE TABLE {copy} AS TABLE {table}; INSERT INTO oracle.moments SELECT '{table}', '{copy}',
                 pg_current_wal_insert_lsn(), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, ARRAY(SELECT attnum::int
                 FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum)"
            );
            postgres.batch(&remember).await?;
        }
        Ok(())
    }

    /// Waits for the lake, then replays tables' histories up to each of the moments and to now: that must give what the heap
    /// had, read by DuckDB and by PyIceberg, with positions, times and numbers in order. Gives how many changes of each
    /// kind each of them has.
    pub async fn assert_history(&self, postgres: &Postgres, tables: &[&str], limit: Duration) -> Result<Vec<Kinds>> {
        self.caught_up(postgres, limit).await?;
        let answer = self.ask("history", json!({ "tables": tables })).await?;
        let results = answer["tables"].as_array().context("results by table")?;
        ensure!(results.len() == tables.len(), "{} results for {} tables", results.len(), tables.len());
        let mut kinds = Vec::with_capacity(tables.len());
        for result in results {
            if let Some(difference) = result["difference"].as_str() {
                bail!("the history of {} differs: {difference}", result["table"]);
            }
            kinds.push(serde_json::from_value(result["kinds"].clone())?);
        }
        Ok(kinds)
    }

    /// Waits for the lake, then looks into every file of some tables: each row has to be in the partition that its file says,
    /// by PyIceberg's transforms, and each delete file in that of its data files.
    pub async fn assert_partitions(
        &self,
        postgres: &Postgres,
        tables: &[&str],
        limit: Duration,
    ) -> Result<Vec<Partitions>> {
        self.caught_up(postgres, limit).await?;
        let answer = self.ask("partitions", json!({ "tables": tables })).await?;
        let found: Vec<Partitions> = serde_json::from_value(answer["tables"].clone())?;
        ensure!(found.len() == tables.len(), "{} results for {} tables", found.len(), tables.len());
        Ok(found)
    }

    /// The files of a warehouse that no retained snapshot of the catalog's tables names.
    pub async fn strays(&self, warehouse: impl AsRef<Path>) -> Result<Vec<String>> {
        let answer = self.ask("strays", json!({ "warehouse": warehouse.as_ref() })).await?;
        Ok(serde_json::from_value(answer["strays"].clone())?)
    }

    /// The first value of a query with `{schema.table}` in it on the current snapshots, by DuckDB.
    pub async fn value(&self, query: &str) -> Result<String> {
        let rows = self.rows(query).await?;
        let value = rows.into_iter().next().and_then(|row| row.into_iter().next()?);
        value.with_context(|| format!("no value from {query}"))
    }

    /// All rows of such a query, each value as text.
    pub async fn rows(&self, query: &str) -> Result<Vec<Vec<Option<String>>>> {
        let answer = self.ask("read", json!({ "query": query })).await?;
        Ok(serde_json::from_value(answer["rows"].clone())?)
    }
}
