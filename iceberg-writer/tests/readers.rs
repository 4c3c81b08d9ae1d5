//! Readers that are not ours: DuckDB and PyIceberg, through `tests/oracle/scan_table.py`.

use lake_tests::Python;
use serde_json::{Value, json};

use crate::server::Lake;

async fn ask(lake: &Lake, command: &str, more: Value) -> Value {
    let mut request = json!({"command": command, "s3": lake.s3(), "azure": lake.azure()});
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Python::server("oracle/scan_table.py").ask(&request).await.unwrap()
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
    let seen = ask(lake, "scan", json!({"metadata": metadata, "order": column})).await;
    (Seen::new(&seen["duckdb"]), Seen::new(&seen["pyiceberg"]))
}

/// Of each row of a table its `id`, its number, and the sequence number of the commit that changed it last, as DuckDB sees
/// them.
pub(crate) async fn lineage(lake: &Lake, table: &str) -> Vec<(i64, i64, i64)> {
    let metadata = lake.metadata_location(table).await.unwrap();
    serde_json::from_value(ask(lake, "lineage", json!({"metadata": metadata})).await).unwrap()
}

/// Lets PyIceberg add a row to a table through the SQL catalog.
pub(crate) async fn append(lake: &Lake, uri: String, table: &str, id: i64) {
    let more = json!({"uri": uri, "warehouse": lake.warehouse.url(), "table": table, "id": id});
    ask(lake, "append", more).await;
}
