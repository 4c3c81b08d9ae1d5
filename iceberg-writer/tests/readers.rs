//! Readers that are not ours: DuckDB and PyIceberg, through `readers.py`.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::server::{Lake, output};

/// `$LAKE_PYTHON`, or the project's own environment. The tests that need it fail without it.
fn python(lake: &Lake) -> Command {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = || folder.join("../.deps/venv/bin/python");
    let program = std::env::var_os("LAKE_PYTHON").map_or_else(own, PathBuf::from);
    let mut command = Command::new(program);
    command.arg(folder.join("tests/readers.py")).envs(lake.s3_environment());
    command
}

/// What one reader sees.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) types: Vec<String>,
    pub(crate) rows: Vec<Vec<Option<String>>>,
}

impl Seen {
    fn new(value: &Value) -> Self {
        let list = |value: &Value| value.as_array().unwrap().clone();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Self {
            types: list(&value["types"]).iter().map(|ty| text(ty).unwrap()).collect(),
            rows: list(&value["rows"]).iter().map(|row| list(row).iter().map(text).collect()).collect(),
        }
    }

    /// The first column, as numbers.
    pub(crate) fn ids(&self) -> Vec<i64> {
        self.rows.iter().map(|row| row[0].as_ref().unwrap().parse().unwrap()).collect()
    }
}

/// What DuckDB and PyIceberg see in a table, sorted by its column `id`.
pub(crate) async fn scan(lake: &Lake, table: &str) -> (Seen, Seen) {
    scan_by(lake, table, "id").await
}

/// The same, sorted by another column.
pub(crate) async fn scan_by(lake: &Lake, table: &str, column: &str) -> (Seen, Seen) {
    let metadata = lake.metadata_location(table).await.unwrap();
    let mut command = python(lake);
    command.args(["scan", &metadata, column]);
    let run = move || output(&mut command);
    let seen: Value = serde_json::from_str(&tokio::task::spawn_blocking(run).await.unwrap()).unwrap();
    (Seen::new(&seen["duckdb"]), Seen::new(&seen["pyiceberg"]))
}

/// Of each row of a table its `id`, its number, and the sequence number of the commit that changed it last, as DuckDB sees
/// them.
pub(crate) async fn lineage(lake: &Lake, table: &str) -> Vec<(i64, i64, i64)> {
    let metadata = lake.metadata_location(table).await.unwrap();
    let mut command = python(lake);
    command.args(["lineage", &metadata]);
    let run = move || output(&mut command);
    serde_json::from_str(&tokio::task::spawn_blocking(run).await.unwrap()).unwrap()
}

/// Lets PyIceberg add a row to a table through the SQL catalog.
pub(crate) async fn append(lake: &Lake, uri: String, table: &str, id: i64) {
    let mut command = python(lake);
    command.args(["append", &uri, lake.warehouse.url(), table, &id.to_string()]);
    let run = move || output(&mut command);
    tokio::task::spawn_blocking(run).await.unwrap();
}
