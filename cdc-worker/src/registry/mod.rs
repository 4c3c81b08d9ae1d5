//! The mirror's durable state in the source database: who writes, how far the lake is, and which tables are wanted.
//!
//! Fence: [`claim`] raises `mirrors.epoch`, and every commit of a batch demands the epoch it was claimed with, in the
//! same SQL transaction that moves the tables. The `UPDATE` of the claim waits for a commit of an older worker that is
//! still under way, so what it returns is final: nothing can be committed behind a new worker's back.

mod copied_parts;

use std::time::Duration;

use iceberg_writer::{Layout, Lsn};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use crate::Result;
use crate::config::{EngineConfig, SourceConfig};
use crate::error::{Error, ErrorKind};
use crate::source::identifier::quote;
use crate::source::publication::{PUBLISHED_AS, PUBLISHED_BY};

/// The tables' definitions; `lake_catalog` stands for the configured schema.
const SCHEMA_SQL: &str = include_str!("schema.sql");
const SCHEMA_NAME: &str = "lake_catalog";

/// How long to wait for the lock of a worker that was just killed: its backend notices the closed socket at once, or
/// when it is done with its statement.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(100);

/// The registry of one mirror.
pub(crate) struct Registry<'a> {
    pub(crate) client: &'a Client,
    pub(crate) schema: &'a str,
    pub(crate) mirror: &'a str,
}

/// State of a table, as the registry knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableState {
    Requested,
    Copying,
    Streaming,
    Errored,
}

/// A table as it is to be listed.
#[derive(Debug, Clone)]
pub(crate) struct WantedTable {
    pub(crate) relation: u32,
    pub(crate) append_only: bool,
    pub(crate) history: bool,
    pub(crate) layout: Layout,
}

/// One row of `mirrored_tables`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RegisteredTable {
    pub(crate) relation: u32,
    /// As the source names it, or did when it was last there.
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) lake_table: String,
    /// The Iceberg namespace: the schema in which the table was when it was entered.
    pub(crate) lake_namespace: String,
    pub(crate) state: TableState,
    pub(crate) table_uuid: Option<Uuid>,
    pub(crate) error: Option<String>,
    pub(crate) error_hint: Option<String>,
    /// The source table is gone from `pg_class`.
    pub(crate) dropped: bool,
    /// Rows of the initial copy.
    pub(crate) copied_rows: u64,
    /// What in the publication has sent its changes since its copy began; `None` in a registry of before that was kept.
    pub(crate) published_since: Option<Vec<String>>,
    /// What in the publication sends them now: the table, its schema, or one that it is a partition of.
    pub(crate) published_by: Vec<String>,
    /// The publication has a row filter for it.
    pub(crate) row_filtered: bool,
    /// It has inheritance children.
    pub(crate) has_heirs: bool,
    /// It is a partition, and the publication sends partitions' changes as those of their root.
    pub(crate) sent_as_root: bool,
    /// It is a partitioned table, and the publication sends its changes as those of its partitions.
    pub(crate) sent_as_partitions: bool,
    /// The partitions whose rows the mirror has, as [`Registry::partitions`] remembered them.
    pub(crate) partitions: Option<String>,
    /// Only its inserts and truncations are wanted.
    pub(crate) append_only: bool,
    /// Its changes are kept.
    pub(crate) history: bool,
    /// How it is to be laid out in Iceberg.
    pub(crate) layout: Layout,
    /// What part of it the publication sent when it was copied, see [`PUBLISHED_AS`]; `None`: it was not remembered.
    pub(crate) copied_as: Option<String>,
    /// What part of it the publication sends.
    pub(crate) published_as: String,
    /// The publication sends inserts, updates, deletes and truncations.
    pub(crate) sent_whole: bool,
}

impl RegisteredTable {
    /// The publication has the table, so its changes arrive.
    pub(crate) fn is_published(&self) -> bool {
        !self.published_by.is_empty()
    }

    /// Namespace and name in the lake: they stay, whatever becomes of the source table's.
    pub(crate) fn lake_name(&self) -> (&str, &str) {
        (&self.lake_namespace, &self.lake_table)
    }

    /// `schema.table`.
    pub(crate) fn shown(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// It has had the table all the time, in one way or another.
    pub(crate) fn is_published_since(&self) -> bool {
        let Some(since) = &self.published_since else { return true };
        since.iter().any(|way| self.published_by.contains(way))
    }
}

/// The column of `mirrored_tables` and the table that came last: where both are, nothing is missing.
const NEWEST_COLUMN: &str = "layout";
const NEWEST_TABLE: &str = "copied_parts";

/// A layout as the registry has it. What is not to be understood is none: it decides how files are cut, not what is in them.
fn read_layout(text: Option<&str>) -> Layout {
    let read = text.map(Layout::from_json).transpose();
    read.unwrap_or_else(|error| {
        tracing::warn!(error = %error, "a layout in the registry is not understood, and left out");
        None
    })
    .unwrap_or_default()
}

fn layout_text(layout: &Layout) -> Result<Option<String>> {
    Ok((*layout != Layout::default()).then(|| layout.to_json()).transpose()?)
}

/// Creates schema, tables and columns where they are missing.
///
/// # Errors
/// [`ErrorKind::SourceUnfit`] when the role may not.
pub(crate) async fn ensure_schema(client: &Client, schema: &str) -> Result<()> {
    let complete: bool = client
        .query_one(
            "SELECT to_regclass(quote_ident($1) || '.' || $3) IS NOT NULL AND EXISTS (SELECT FROM pg_attribute \
             WHERE attrelid = to_regclass(quote_ident($1) || '.mirrored_tables') AND attname = $2)",
            &[&schema, &NEWEST_COLUMN, &NEWEST_TABLE],
        )
        .await?
        .get(0);
    if complete {
        return Ok(());
    }
    let hint = |error: Error| {
        error.with_hint(format!(
            "let a superuser or the database's owner run: CREATE SCHEMA {} AUTHORIZATION <the worker's role>",
            quote(schema)
        ))
    };
    let exists: bool =
        client.query_one("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", &[&schema]).await?.get(0);
    if !exists {
        let create = format!("CREATE SCHEMA {}", quote(schema));
        client.batch_execute(&create).await.map_err(|error| hint(error.into()))?;
    }
    let definitions = SCHEMA_SQL.replace(&format!("{SCHEMA_NAME}."), &format!("{}.", quote(schema)));
    client.batch_execute(&definitions).await.map_err(|error| hint(error.into()))
}

impl Registry<'_> {
    fn table(&self, name: &str) -> String {
        format!("{}.{name}", quote(self.schema))
    }

    /// Takes the mirror over: one worker at a time, and every earlier one fenced. Gives this one's epoch.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyRunning`] when another worker holds the lock; [`ErrorKind::SourceUnfit`] when the mirror's
    /// row belongs to another cluster.
    pub(crate) async fn claim(&self, source: &SourceConfig, system_id: &str) -> Result<i64> {
        self.lock().await?;
        let mirrors = self.table("mirrors");
        self.client
            .execute(
                &format!(
                    "INSERT INTO {mirrors} (mirror, publication, slot) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
                ),
                &[&self.mirror, &source.publication, &source.slot],
            )
            .await?;
        let row = self
            .client
            .query_one(
                &format!(
                    "UPDATE {mirrors} SET epoch = epoch + 1, publication = $2, slot = $3, \
                     system_id = coalesce(system_id, $4) WHERE mirror = $1 RETURNING epoch, system_id"
                ),
                &[&self.mirror, &source.publication, &source.slot, &system_id],
            )
            .await?;
        let recorded: String = row.get(1);
        if recorded != system_id {
            return Err(Error::new(
                ErrorKind::SourceUnfit,
                format!("mirror \"{}\" belongs to the cluster with system identifier {recorded}, not {system_id}", self.mirror),
            )
            .with_hint("this database was restored or copied from another cluster: `cdc-worker teardown` here, then mirror again"));
        }
        Ok(row.get(0))
    }

    pub(crate) async fn lock(&self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + LOCK_PATIENCE;
        let name = format!("lakemirror:{}:{}", self.schema, self.mirror);
        loop {
            let locked: bool =
                self.client.query_one("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", &[&name]).await?.get(0);
            if locked {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                let message = format!("another worker runs mirror \"{}\"", self.mirror);
                return Err(Error::new(ErrorKind::AlreadyRunning, message)
                    .with_hint("stop it first, or give this one another mirror name, slot and catalog schema"));
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    /// Whether the mirror has been claimed before.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`].
    pub(crate) async fn exists(&self) -> Result<bool> {
        let schema = quote(self.schema);
        let there = self.client.query_one("SELECT to_regclass($1 || '.mirrors') IS NOT NULL", &[&schema]).await?;
        if !there.get::<_, bool>(0) {
            return Ok(false);
        }
        let statement = format!("SELECT EXISTS (SELECT FROM {} WHERE mirror = $1)", self.table("mirrors"));
        Ok(self.client.query_one(&statement, &[&self.mirror]).await?.get(0))
    }

    /// Records where a new slot begins.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`].
    pub(crate) async fn begin_at(&self, lsn: Option<Lsn>) -> Result<()> {
        let statement = format!("UPDATE {} SET lsn = $2, attempt = NULL WHERE mirror = $1", self.table("mirrors"));
        self.client.execute(&statement, &[&self.mirror, &lsn]).await?;
        Ok(())
    }

    /// The tables of the mirror.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`].
    pub(crate) async fn tables(&self) -> Result<Vec<RegisteredTable>> {
        let statement = format!(
            "SELECT t.relation, t.lake_table, t.state, t.table_uuid, t.error, t.error_hint, c.oid IS NULL, t.copied_rows, \
                    t.published_by, {PUBLISHED_BY}, \
                    EXISTS (SELECT FROM pg_publication p JOIN {0} m ON m.publication = p.pubname \
                            JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid \
                            WHERE m.mirror = t.mirror AND r.prqual IS NOT NULL), \
                    c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits h WHERE h.inhparent = t.relation), \
                    coalesce(c.relispartition, false) AND EXISTS (SELECT FROM pg_publication p \
                            JOIN {0} m ON m.publication = p.pubname WHERE m.mirror = t.mirror AND p.pubviaroot \
                            AND (p.puballtables OR EXISTS (SELECT FROM pg_partition_ancestors(c.oid) u \
                                 JOIN pg_class uc ON uc.oid = u.relid WHERE u.relid <> c.oid AND \
                                 (EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = u.relid) \
                                 OR EXISTS (SELECT FROM pg_publication_namespace n \
                                            WHERE n.pnpubid = p.oid AND n.pnnspid = uc.relnamespace))))), \
                    c.relkind = 'p' AND NOT coalesce(pub.pubviaroot, false), t.partitions, t.append_only, \
                    coalesce(pub.pubinsert AND pub.pubupdate AND pub.pubdelete AND pub.pubtruncate, true), \
                    t.published_as, coalesce({PUBLISHED_AS}, ''), \
                    coalesce(ns.nspname, t.source_schema), coalesce(c.relname, t.source_table), t.source_schema, t.history, t.layout \
             FROM {1} t JOIN {0} mine ON mine.mirror = t.mirror LEFT JOIN pg_publication pub ON pub.pubname = mine.publication \
             LEFT JOIN pg_class c ON c.oid = t.relation \
             LEFT JOIN pg_namespace ns ON ns.oid = c.relnamespace WHERE t.mirror = $1",
            self.table("mirrors"),
            self.table("mirrored_tables")
        );
        let rows = self.client.query(&statement, &[&self.mirror]).await?;
        Ok(rows
            .iter()
            .map(|row| RegisteredTable {
                relation: row.get(0),
                lake_table: row.get(1),
                state: match row.get::<_, &str>(2) {
                    "copying" => TableState::Copying,
                    "streaming" => TableState::Streaming,
                    "errored" => TableState::Errored,
                    _ => TableState::Requested,
                },
                table_uuid: row.get(3),
                error: row.get(4),
                error_hint: row.get(5),
                dropped: row.get(6),
                copied_rows: row.get::<_, Option<i64>>(7).and_then(|rows| u64::try_from(rows).ok()).unwrap_or(0),
                published_since: row.get(8),
                published_by: row.get(9),
                row_filtered: row.get(10),
                has_heirs: row.get::<_, Option<bool>>(11).unwrap_or(false),
                sent_as_root: row.get(12),
                sent_as_partitions: row.get::<_, Option<bool>>(13).unwrap_or(false),
                partitions: row.get(14),
                append_only: row.get(15),
                sent_whole: row.get(16),
                copied_as: row.get(17),
                published_as: row.get(18),
                schema: row.get(19),
                name: row.get(20),
                lake_namespace: row.get(21),
                history: row.get(22),
                layout: read_layout(row.get(23)),
            })
            .collect())
    }

    /// Makes the registry list exactly these tables: new ones are requested, others are forgotten. One that is wanted otherwise
    /// than before is copied anew, for its index is another, or its history has to begin.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`].
    pub(crate) async fn list(&self, tables: &[WantedTable]) -> Result<()> {
        let table = self.table("mirrored_tables");
        let relations: Vec<u32> = tables.iter().map(|table| table.relation).collect();
        let append_only: Vec<bool> = tables.iter().map(|table| table.append_only).collect();
        let history: Vec<bool> = tables.iter().map(|table| table.history).collect();
        let layouts = tables.iter().map(|table| layout_text(&table.layout)).collect::<Result<Vec<_>>>()?;
        self.client
            .execute(
                &format!("DELETE FROM {table} WHERE mirror = $1 AND relation <> ALL ($2)"),
                &[&self.mirror, &relations],
            )
            .await?;
        self.client
            .execute(
                &format!(
                    "UPDATE {table} t SET append_only = u.append_only, history = u.history, state = 'requested', error = NULL, \
                     error_hint = NULL, error_lsn = NULL FROM unnest($2::oid[], $3::bool[], $4::bool[]) u (relation, append_only, history) \
                     WHERE t.mirror = $1 AND t.relation = u.relation \
                     AND (t.append_only <> u.append_only OR u.history AND NOT t.history)"
                ),
                &[&self.mirror, &relations, &append_only, &history],
            )
            .await?;
        self.client
            .execute(
                &format!(
                    "UPDATE {table} t SET history = false FROM unnest($2::oid[], $3::bool[]) u (relation, history) \
                     WHERE t.mirror = $1 AND t.relation = u.relation AND t.history AND NOT u.history"
                ),
                &[&self.mirror, &relations, &history],
            )
            .await?;
        self.client
            .execute(
                &format!(
                    "INSERT INTO {table} (mirror, relation, source_schema, source_table, lake_table, append_only, history) \
                     SELECT $1, c.oid, n.nspname, c.relname, c.relname, u.append_only, u.history \
                     FROM unnest($2::oid[], $3::bool[], $4::bool[]) u (relation, append_only, history) \
                     JOIN pg_catalog.pg_class c ON c.oid = u.relation \
                     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace ON CONFLICT DO NOTHING"
                ),
                &[&self.mirror, &relations, &append_only, &history],
            )
            .await?;
        let lay_out = format!(
            "UPDATE {table} t SET layout = u.layout FROM unnest($2::oid[], $3::text[]) u (relation, layout) \
             WHERE t.mirror = $1 AND t.relation = u.relation AND t.layout IS DISTINCT FROM u.layout"
        );
        self.client.execute(&lay_out, &[&self.mirror, &relations, &layouts]).await?;
        Ok(())
    }

    /// Wants a table of the mirror copied anew; false: the mirror has no such table.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`].
    pub(crate) async fn resync(&self, relation: u32) -> Result<bool> {
        let statement = format!(
            "UPDATE {} SET state = 'requested', error = NULL, error_hint = NULL, error_lsn = NULL \
             WHERE mirror = $1 AND relation = $2",
            self.table("mirrored_tables")
        );
        Ok(self.client.execute(&statement, &[&self.mirror, &relation]).await? == 1)
    }

    /// A copy begins, into the Iceberg table `table_uuid`.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`].
    pub(crate) async fn copying(&self, relation: u32, table_uuid: Uuid) -> Result<()> {
        self.client
            .execute(
                &format!(
                    "UPDATE {1} SET state = 'copying', table_uuid = $3, copy_lsn = NULL, copied_rows = NULL, \
                     published_as = NULL, partitions = NULL, error = NULL, error_hint = NULL, error_lsn = NULL, published_by = \
                     (SELECT {PUBLISHED_BY} FROM pg_class c, {0} mine JOIN pg_publication pub ON pub.pubname = mine.publication \
                      WHERE mine.mirror = $1 AND c.oid = $2) WHERE mirror = $1 AND relation = $2",
                    self.table("mirrors"),
                    self.table("mirrored_tables")
                ),
                &[&self.mirror, &relation, &table_uuid],
            )
            .await?;
        self.forget_parts(relation).await
    }

    /// The publication has had a table without a gap, now also in other ways than those that are on record.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`].
    pub(crate) async fn published(&self, table: &RegisteredTable) -> Result<()> {
        let statement = format!(
            "UPDATE {} SET published_by = $3 WHERE mirror = $1 AND relation = $2",
            self.table("mirrored_tables")
        );
        self.client.execute(&statement, &[&self.mirror, &table.relation, &table.published_by]).await?;
        Ok(())
    }

    /// A copy is committed and its table streams, unless somebody has asked for another copy meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`].
    pub(crate) async fn streaming(&self, relation: u32, copied: Option<(Lsn, u64)>) -> Result<()> {
        let (lsn, rows) = match copied {
            Some((lsn, rows)) => (Some(lsn), i64::try_from(rows).ok()),
            None => (None, None),
        };
        self.client
            .execute(
                &format!(
                    "UPDATE {} SET state = 'streaming', copy_lsn = coalesce($3, copy_lsn), \
                     copied_rows = coalesce($4, copied_rows) \
                     WHERE mirror = $1 AND relation = $2 AND state = 'copying'",
                    self.table("mirrored_tables")
                ),
                &[&self.mirror, &relation, &lsn, &rows],
            )
            .await?;
        self.forget_parts(relation).await
    }

    /// Remembers the partitions whose rows the mirror has.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`].
    pub(crate) async fn partitions(&self, relation: u32, partitions: &str) -> Result<()> {
        let statement =
            format!("UPDATE {} SET partitions = $3 WHERE mirror = $1 AND relation = $2", self.table("mirrored_tables"));
        self.client.execute(&statement, &[&self.mirror, &relation, &partitions]).await?;
        Ok(())
    }

    /// What the copy of a table is a copy of, before it is committed: how the publication had it, and its partitions.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`].
    pub(crate) async fn copied(&self, relation: u32, published_as: &str, partitions: Option<&str>) -> Result<()> {
        let statement = format!(
            "UPDATE {} SET published_as = $3, partitions = $4 WHERE mirror = $1 AND relation = $2",
            self.table("mirrored_tables")
        );
        self.client.execute(&statement, &[&self.mirror, &relation, &published_as, &partitions]).await?;
        Ok(())
    }

    /// A table stopped, and why.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`].
    pub(crate) async fn errored(&self, relation: u32, error: &Error, at: Lsn) -> Result<()> {
        let sql = format!(
            "UPDATE {} SET state = 'errored', error = $3, error_hint = $4, error_lsn = $5 WHERE mirror = $1 AND relation = $2",
            self.table("mirrored_tables")
        );
        let (report, hint) = (error.report(), error.hint().map(str::to_owned));
        match self.client.execute(&sql, &[&self.mirror, &relation, &report, &hint, &at]).await {
            // The database is not in UTF-8, and has not all of our characters.
            Err(refused) if refused.code() == Some(&SqlState::UNTRANSLATABLE_CHARACTER) => {
                let (report, hint) = (plain(&report), hint.as_deref().map(plain));
                self.client.execute(&sql, &[&self.mirror, &relation, &report, &hint, &at]).await?;
            }
            done => {
                done?;
            }
        }
        Ok(())
    }

    /// Forgets the mirror. Its Iceberg tables stay.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`].
    pub(crate) async fn forget(&self) -> Result<()> {
        self.client
            .execute(&format!("DELETE FROM {} WHERE mirror = $1", self.table("mirrors")), &[&self.mirror])
            .await?;
        Ok(())
    }
}

/// A text in characters that every encoding has.
fn plain(text: &str) -> String {
    text.replace('…', "...").chars().map(|letter| if letter.is_ascii() { letter } else { '?' }).collect()
}

impl EngineConfig {
    pub(crate) fn registry<'a>(&'a self, client: &'a Client) -> Registry<'a> {
        Registry { client, schema: &self.lake.catalog_schema, mirror: &self.mirror }
    }
}
