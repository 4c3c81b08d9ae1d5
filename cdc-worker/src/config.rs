//! What an engine is told: values only, already checked by whoever read them (the TOML file or the extension's settings).

mod catalog;

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use iceberg_writer::{Format, Retention, StoreOptions};
use serde::Deserialize;

use crate::error::{Error, ErrorKind};

pub use catalog::{CatalogConfig, CatalogOptions, CatalogType, JdbcCatalogConfig};

/// A password. `Debug` never shows it.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Wraps a password.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// A password that is in this variable of the environment, or else in the file that this key names.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the file cannot be read.
    pub(crate) fn find(variable: &str, key: &str, file: Option<&Path>) -> Result<Option<Self>, Error> {
        if let Ok(password) = std::env::var(variable) {
            return Ok(Some(Self::new(password)));
        }
        let Some(file) = file else { return Ok(None) };
        let text = std::fs::read_to_string(file).map_err(|error| {
            Error::new(ErrorKind::Config, format!("read {key} {}", file.display())).with_source(error)
        })?;
        Ok(Some(Self::new(text.trim_end_matches(['\n', '\r']))))
    }

    /// The password itself, for the connection that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Everything one engine needs. One engine runs one mirror of one database.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Name of the mirror: the key of its row in `lake_catalog.mirrors`.
    pub mirror: String,
    /// Where the tables are.
    pub source: SourceConfig,
    /// Where the lake is.
    pub lake: LakeConfig,
    /// When to commit.
    pub commit: CommitConfig,
    /// What copies may ask of the source.
    pub copy: CopyConfig,
    /// How the lake's files are kept in order.
    pub maintenance: MaintenanceConfig,
    /// How long superseded snapshots and their files stay.
    pub retention: Retention,
    /// Directory of the position index: a cache, rebuilt when it is lost.
    pub state_dir: PathBuf,
    /// Unix socket of the read service; no service without it.
    pub read_socket: Option<PathBuf>,
    /// Address of `/livez`, `/readyz` and `/metrics`; no endpoint without it.
    pub admin_listen: Option<SocketAddr>,
    /// Which tables to mirror.
    pub tables: TableSelection,
}

/// How to reach the source database.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// Host name, address, or the directory of a unix socket.
    pub host: String,
    /// Port; also names the socket file.
    pub port: u16,
    /// Database.
    pub database: String,
    /// Role: REPLICATION, SELECT on the tables, and one schema of its own.
    pub user: String,
    /// Its password, where the server asks for one.
    pub password: Option<Secret>,
    /// Publication that names the tables.
    pub publication: String,
    /// Logical replication slot; created when it does not exist.
    pub slot: String,
    /// Allow TCP without TLS.
    pub insecure: bool,
    /// The slot is one that standbys may keep too, and go on with when they are promoted (servers from 17 on).
    pub failover: bool,
    /// Connections over which a table is copied, at most.
    pub copy_connections: usize,
}

/// What [`SourceConfig::copy_connections`] is unless it is set: one for each core that we have, as far as the source is
/// likely to have as many for us.
pub fn default_copy_connections() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(4)
}

impl SourceConfig {
    /// Whether the connection stays on this machine, over a unix socket.
    pub fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }
}

/// Where the Iceberg tables go.
#[derive(Debug, Clone)]
pub struct LakeConfig {
    /// Root of the tables: `s3://…`, `gs://…`, `abfss://…` or `file:///…`.
    pub warehouse: String,
    /// How the object store of the warehouse is reached.
    pub store: StoreOptions,
    /// Schema of the catalog and the registry, in the source database.
    pub catalog_schema: String,
    /// `catalog_name` in the JDBC layout.
    pub catalog_name: String,
    /// Which catalog the tables are in.
    pub catalog: CatalogConfig,
    /// A data file is closed at about this size.
    pub file_bytes: usize,
    /// Which version of Iceberg's format new tables are of; those that are there stay as they are.
    pub format: Format,
    /// What becomes of values that Iceberg's types have not.
    pub unrepresentable: Unrepresentable,
}

/// What becomes of a value that the Iceberg type of its column has not: an infinite date, say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unrepresentable {
    /// The column is NULL in that row, and a companion column, which is added when it is first needed, has its text.
    #[default]
    Companion,
    /// The table stops.
    Stop,
}

/// What [`LakeConfig::file_bytes`] is unless it is set: large enough for readers, small enough to rewrite later.
pub const DEFAULT_FILE_BYTES: usize = 256 << 20;

/// Smaller files would be more work for their readers than for us.
pub const LEAST_FILE_BYTES: usize = 256 << 10;

/// [`Retention::snapshots`]: the current one is always there. All are in the table's metadata, which each commit writes anew:
/// some 900 bytes each.
pub const RETAINED_SNAPSHOTS: RangeInclusive<usize> = 1..=10_000;

/// [`Retention::grace`]: more would keep what nobody needs for ever: whoever reads for longer wants the snapshot itself, by
/// its age.
pub const MOST_GRACE: Duration = Duration::from_hours(366 * 24);

/// What copies may ask of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyConfig {
    /// A copy lets its snapshot go and takes a new one when it is this old: a snapshot keeps VACUUM from removing rows.
    pub snapshot_age: Duration,
    /// WAL that is held back for a copy, so that it goes on after a restart. A copy that would need more begins again.
    pub held_wal: u64,
}

impl Default for CopyConfig {
    /// Half an hour, the age from which open transactions show up in monitoring; and a thousand segments of WAL.
    fn default() -> Self {
        Self { snapshot_age: Duration::from_secs(1800), held_wal: 16 << 30 }
    }
}

/// When a batch is committed to Iceberg: whichever comes first.
#[derive(Debug, Clone, Copy)]
pub struct CommitConfig {
    /// Age of the oldest change that is not yet committed.
    pub interval: Duration,
    /// Memory held by changes that are not yet committed.
    pub max_bytes: u64,
}

impl Default for CommitConfig {
    /// Ten seconds and 64 MiB: small enough to keep Iceberg readers near, large enough to keep files few.
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), max_bytes: 64 << 20 }
    }
}

/// How the lake's files are kept in order. How large they are to be is [`LakeConfig::file_bytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaintenanceConfig {
    /// Whether files are rewritten by themselves.
    pub enabled: bool,
    /// Bytes of files that are rewritten in a second, at most.
    pub bytes_per_second: u64,
    /// Files of about one size that are rewritten into one.
    pub tier_files: usize,
}

impl MaintenanceConfig {
    /// With less, files would come faster than they are rewritten.
    pub const LEAST_BYTES_PER_SECOND: u64 = 64 << 10;

    /// One file is not rewritten into one; and of more, readers would have too many.
    pub const TIER_FILES: RangeInclusive<usize> = 2..=64;
}

impl Default for MaintenanceConfig {
    /// 16 MiB a second take some tenth of a core; eight, see [`crate::table`]'s tiers.
    fn default() -> Self {
        Self { enabled: true, bytes_per_second: 16 << 20, tier_files: 8 }
    }
}

/// Which tables a mirror has.
#[derive(Debug, Clone)]
pub enum TableSelection {
    /// The rows of `lake_catalog.mirrored_tables`, as `lake.mirror` and `lake.unmirror` leave them; watched.
    Registry,
    /// These tables (`schema.table`), from a configuration file: entered into the registry at start.
    Listed(Vec<ListedTable>),
}

/// A table of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedTable {
    /// `schema.table`, as in SQL.
    pub name: String,
    /// Only for its inserts and truncations: nothing tells its rows apart.
    pub append_only: bool,
    /// Its changes are kept too, in a table of their own.
    pub history: bool,
    /// How it is to be laid out in Iceberg.
    pub layout: ListedLayout,
}

/// Partitions and order of a table's files, as a user wrote them. Empty: none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedLayout {
    /// Columns and transforms of them: `day(created_at), bucket(16, id)`.
    #[serde(default)]
    pub partition_by: String,
    /// Columns, as in ORDER BY.
    #[serde(default)]
    pub sort_by: String,
}

impl EngineConfig {
    /// What whoever wrote the configuration should know.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let TableSelection::Listed(tables) = &self.tables else { return Vec::new() };
        let append_only = tables.iter().filter(|table| table.append_only);
        append_only
            .map(|table| {
                format!(
                    "{} is mirrored append-only: Postgres refuses its updates and deletes while it is published without a \
                     replica identity, and one that comes all the same stops its mirror",
                    table.name
                )
            })
            .collect()
    }
}
