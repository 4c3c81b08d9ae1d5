//! Writes Postgres tables as Apache Iceberg tables.
//!
//! The crate knows what an Iceberg table is and how a batch of changes to several of them becomes visible at one source
//! position; it knows nothing of WAL, of replication or of a Postgres server's insides. A caller
//!
//! 1. describes a table by a [`TableSpec`] and loads or prepares it in a [`Catalog`],
//! 2. writes rows with a [`DataFileWriter`] and deleted positions with [`write_deletes`],
//! 3. hands everything over as one [`Batch`] and gets an [`Outcome`].
//!
//! Only [`Catalog::commit`] and [`Catalog::resolve`] make a [`CommitReceipt`], so a type that takes one (the
//! acknowledgement of a replication slot) can't be built from anything that is not durable in the lake.

mod arrange;
mod bounds;
mod catalog;
mod commit;
mod data_file;
mod deadline;
mod deletes;
mod deletion_vectors;
mod error;
mod evolution;
mod format;
mod layout;
mod lineage;
mod live_files;
mod lsn;
mod parquet_schema;
mod partition;
mod pg_type;
mod position_deletes;
mod row_reader;
mod schema;
mod stamp;
mod storage;
mod table;
mod warehouse;

pub use arrange::{Arranged, Part, Sorter, take_rows};
pub use bounds::{Bound, ColumnBounds};
pub use catalog::{Catalog, IsPinned, MirrorCatalog, Recovered, Remarked, RestAuth, RestSettings, Retention, Swept};
pub use commit::{Batch, CommitReceipt, CommittedTable, LeftOut, Outcome, Rewrite, TableChange};
pub use data_file::{DataFileWriter, WrittenFile};
pub use deletes::{DeletedRows, write_deletes};
pub use error::{Error, ErrorKind, Result, Retry};
pub use format::Format;
pub use layout::Layout;
pub use lineage::{Lineage, scan_with_lineage};
pub use live_files::LiveFile;
pub use lsn::{Lsn, ParseLsnError};
pub use partition::{Buckets, Divider, Partition};
pub use pg_type::{Documented, PgType, TypeFacts};
pub use row_reader::{RowStream, read_rows, scan_columns};
pub use schema::{ColumnSpec, TableSpec, companion_id};
pub use storage::{StoreOptions, StoreRequests};
pub use table::LakeTable;
pub use warehouse::Warehouse;
