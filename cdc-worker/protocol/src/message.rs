//! The messages themselves. LSNs travel as the `u64` behind Postgres's `pg_lsn`.

use serde::{Deserialize, Serialize};

use crate::condition::Alternatives;

/// Version of the messages; both sides refuse another one.
pub const VERSION: u32 = 5;

/// What a backend asks of the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Always [`VERSION`].
    pub version: u32,
    /// What is asked.
    pub body: RequestBody,
}

impl Request {
    /// A request of this version.
    pub fn new(body: RequestBody) -> Self {
        Self { version: VERSION, body }
    }
}

/// The kinds of request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestBody {
    /// Files, deleted positions and fresh rows of these source tables, all at one LSN.
    Pin {
        /// `pg_class.oid` of the source tables.
        relations: Vec<u32>,
        /// For each of them which rows count: files that certainly have none are left out.
        wanted: Vec<Alternatives>,
        /// The answer must hold every transaction whose commit record begins before this LSN; `None` asks for
        /// what the current Iceberg snapshots hold, without fresh rows.
        min_lsn: Option<u64>,
        /// How long the worker may wait for `min_lsn`, in milliseconds.
        timeout_ms: u64,
    },
    /// Wait until everything before `min_lsn` is committed to Iceberg (and this table is past its copy).
    Flush {
        /// `pg_class.oid` of the source table.
        relation: u32,
        /// The position to be durable.
        min_lsn: u64,
        /// How long the worker may wait, in milliseconds.
        timeout_ms: u64,
    },
    /// Put the files of these tables in order, and wait until that is committed.
    Maintain {
        /// `pg_class.oid` of the source tables; none: of all of them.
        relations: Vec<u32>,
        /// Rewrite all files that would come out better, not only those that are worth it by themselves.
        compact: bool,
        /// Let all snapshots but the newest expire.
        expire: bool,
        /// How long the worker may take, in milliseconds. It goes on after that, but nobody is told.
        timeout_ms: u64,
    },
    /// Positions and states, for `lake.lag` and `cdc-worker status`.
    Status,
}

impl RequestBody {
    /// How long the worker may take for the answer, in milliseconds.
    pub fn timeout_ms(&self) -> u64 {
        match self {
            Self::Pin { timeout_ms, .. } | Self::Flush { timeout_ms, .. } | Self::Maintain { timeout_ms, .. } => {
                *timeout_ms
            }
            Self::Status => 0,
        }
    }
}

/// What the worker answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To [`RequestBody::Pin`]; one [`Section`] a table follows.
    Pinned(Pin),
    /// To [`RequestBody::Flush`].
    Flushed {
        /// The committed LSN, at or past what was asked.
        lsn: u64,
    },
    /// To [`RequestBody::Maintain`]: the tables' files are in order.
    Maintained,
    /// To [`RequestBody::Status`].
    Status(MirrorStatus),
    /// The request could not be met.
    Refused(Refusal),
}

/// Why a request was not met, ready for `ereport`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Five characters.
    pub sqlstate: String,
    /// Primary message, lower case, no full stop.
    pub message: String,
    /// More, if there is more to say.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

/// All tables of one query at one LSN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The tables hold exactly the transactions whose commit record begins before this LSN.
    pub lsn: u64,
    /// The LSN of the Iceberg snapshots underneath.
    pub committed_lsn: u64,
    /// In the order of the request.
    pub tables: Vec<PinnedTable>,
}

/// One table of a [`Pin`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedTable {
    /// `pg_class.oid` of the source table.
    pub relation: u32,
    /// The mirrored columns, in attribute order.
    pub columns: Vec<Column>,
    /// How many data files have no row that counts, and are left out.
    pub pruned: u64,
    /// The other data files of the pinned snapshot; their index in this list is the file index of the deleted positions.
    pub files: Vec<DataFile>,
    /// Rows in the Arrow stream of this table's [`Section`].
    pub fresh_rows: u64,
}

/// A mirrored column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// `pg_attribute.attnum`.
    pub attnum: i16,
    /// Iceberg field id, as written into the Parquet files.
    pub field_id: i32,
    /// Name in the source when the table's schema was last taken.
    pub name: String,
    /// `pg_attribute.atttypid`.
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`.
    pub typmod: i32,
    /// Field id of its companion, if it has one: a text column that has the values which the column's type in the lake has
    /// not, as Postgres prints them.
    pub companion: Option<i32>,
}

/// A live Parquet file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// Absolute path or object URL, as DuckDB reads it.
    pub path: String,
    /// Rows in the file, deleted ones included.
    pub rows: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// Rows of it that are deleted at the pinned LSN.
    pub deleted: u64,
}

/// The bytes that follow a [`Response::Pinned`] for one table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Section {
    /// For each file with deleted rows: `u32` BE file index, `u32` BE length, a portable 64-bit roaring bitmap
    /// (`RoaringTreemap::serialize_into`) of row numbers. Files without deleted rows are left out.
    pub deleted: Vec<u8>,
    /// An Arrow IPC stream; columns are named `c<field_id>` and typed as in the Parquet files. Empty when there are
    /// no fresh rows.
    pub fresh: Vec<u8>,
}

/// Positions of the mirror and its tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorStatus {
    /// The mirror's name.
    pub mirror: String,
    /// Process id of the engine.
    pub pid: u32,
    /// Fencing epoch of this engine.
    pub epoch: i64,
    /// End of WAL received.
    pub received_lsn: u64,
    /// Everything before it is visible to pins.
    pub applied_lsn: u64,
    /// Everything before it is in Iceberg, and acknowledged to the slot.
    pub committed_lsn: u64,
    /// Milliseconds by which Iceberg trails the source's newest received commit; 0 when nothing is pending.
    pub lag_ms: u64,
    /// The newest error of the mirror as a whole, until a commit succeeds.
    pub last_error: Option<String>,
    /// One a mirrored table.
    pub tables: Vec<LagRow>,
}

/// The state of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LagRow {
    /// `pg_class.oid` of the source table.
    pub relation: u32,
    /// Its schema in the source.
    pub schema: String,
    /// Its name in the source.
    pub name: String,
    /// `requested`, `copying`, `streaming` or `errored`.
    pub state: String,
    /// What keeps a copy from beginning: transactions of the source that are older than it.
    pub waits_for: Option<String>,
    /// Rows copied so far by the initial copy.
    pub copied_rows: u64,
    /// `pg_class.reltuples` when the copy began; an estimate.
    pub copy_estimate: u64,
    /// Rows not yet in Iceberg: in memory, and in files that the next commit adds.
    pub pending_rows: u64,
    /// Their bytes in memory.
    pub pending_bytes: u64,
    /// Microseconds since 1970 of the newest commit that touched the table.
    pub last_commit_us: Option<i64>,
    /// Why the table is `errored`.
    pub error: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}
