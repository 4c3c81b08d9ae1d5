//! `lake_catalog.engine_status()`: the live positions behind `lake.lag`, as JSON. Anybody may call it (a view's
//! functions run with its reader's rights), so it shows each table to those only who may read the table, or who are
//! members of `pg_monitor`.

use lake_protocol::{ClientError, MirrorStatus};
use pgrx::JsonB;
use pgrx::prelude::*;
use serde_json::{Value, json};

use crate::error::{Error, or_raise};
use crate::registry;
use crate::wait;

/// `{"engine": "running", …}`, or only `{"engine": "down"}` or `{"engine": "unresponsive"}`.
#[pg_extern]
fn lake_engine_status() -> JsonB {
    JsonB(match wait::ask_status() {
        Ok(status) => or_raise(running(status)),
        Err(ClientError::Unreachable(_)) => json!({"engine": "down"}),
        Err(_) => json!({"engine": "unresponsive"}),
    })
}

fn running(mut status: MirrorStatus) -> Result<Value, Error> {
    if !registry::holds("SELECT pg_catalog.pg_has_role('pg_monitor', 'MEMBER')", &[])? {
        let mut visible = Vec::new();
        for table in status.tables {
            // Null, hence false, for a table that was dropped.
            let may_read = "SELECT pg_catalog.has_table_privilege($1::pg_catalog.oid, 'SELECT')";
            if registry::holds(may_read, &[pg_sys::Oid::from(table.relation).into()])? {
                visible.push(table);
            }
        }
        status.tables = visible;
    }
    let mut value = serde_json::to_value(status).map_err(|error| {
        Error::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, format!("show the engine's status: {error}"))
    })?;
    value["engine"] = json!("running");
    Ok(value)
}
