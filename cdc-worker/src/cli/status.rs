//! `cdc-worker status`: asks the running worker.

use iceberg_writer::Lsn;
use lake_protocol::{Client, ClientError, LagRow, MirrorStatus, RequestBody, Response};

use crate::Result;
use crate::config::EngineConfig;
use crate::error::{Error, ErrorKind};

/// Prints the status of the running worker.
///
/// # Errors
/// [`ErrorKind::Io`] when it does not run.
pub(super) async fn status(config: &EngineConfig, json: bool) -> Result<()> {
    let Response::Status(status) = ask(config, RequestBody::Status).await? else {
        return Err(Error::new(ErrorKind::Protocol, "the worker answered another question"));
    };
    if json {
        let text = serde_json::to_string_pretty(&status)
            .map_err(|error| Error::new(ErrorKind::Io, "print the status").with_source(error))?;
        say!("{text}");
    } else {
        print(&status);
    }
    Ok(())
}

/// Asks the running worker over its socket.
///
/// # Errors
/// [`ErrorKind::Io`] when it does not run, or refuses.
pub(super) async fn ask(config: &EngineConfig, body: RequestBody) -> Result<Response> {
    let path = config.read_socket.clone().ok_or_else(|| {
        Error::new(ErrorKind::Config, "there is no socket to ask: the path of state.dir is too long for one")
            .with_hint("set [read] socket, or look at the admin endpoint's /metrics")
    })?;
    let shown = path.clone();
    let asked = tokio::task::spawn_blocking(move || Client::connect(&path)?.ask(body, &mut || false)).await;
    match asked {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(ClientError::Unreachable(error))) => {
            Err(Error::new(ErrorKind::Io, format!("nobody answers at {}", shown.display()))
                .with_hint("the worker does not run, or has not begun to stream: its log says what it waits for")
                .with_source(error))
        }
        Ok(Err(ClientError::Refused(refusal))) => {
            let message = [Some(refusal.message), refusal.detail].into_iter().flatten().collect::<Vec<_>>().join(": ");
            let error = Error::new(ErrorKind::Io, message);
            Err(match refusal.hint {
                Some(hint) => error.with_hint(hint),
                None => error,
            })
        }
        Ok(Err(error)) => Err(Error::new(ErrorKind::Io, format!("ask the worker: {error:?}"))),
        Err(error) => Err(Error::new(ErrorKind::Io, "ask the worker").with_source(error)),
    }
}

fn print(status: &MirrorStatus) {
    say!(
        "mirror {} (pid {}, epoch {}): received {}, applied {}, committed {}, lag {} ms",
        status.mirror,
        status.pid,
        status.epoch,
        Lsn::from_u64(status.received_lsn),
        Lsn::from_u64(status.applied_lsn),
        Lsn::from_u64(status.committed_lsn),
        status.lag_ms
    );
    if let Some(error) = &status.last_error {
        say!("last error: {error}");
    }
    let names: Vec<String> = status.tables.iter().map(|table| format!("{}.{}", table.schema, table.name)).collect();
    let wide = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max("table".len());
    say!("{:<wide$}  {:<10} {:>26} {:>12} {:>14}", "table", "state", "rows copied", "fresh rows", "fresh bytes");
    for (table, name) in status.tables.iter().zip(names) {
        say!(
            "{name:<wide$}  {:<10} {:>26} {:>12} {:>14}",
            table.state,
            copied(table),
            table.pending_rows,
            table.pending_bytes
        );
        if let Some(older) = &table.waits_for {
            say!("    waits for {older}");
        }
        if let Some(error) = &table.error {
            say!("    {error}");
        }
        if let Some(hint) = &table.hint {
            say!("    hint: {hint}");
        }
    }
}

/// Rows of the copy, of how many while it is under way.
fn copied(table: &LagRow) -> String {
    let (rows, expected) = (table.copied_rows, table.copy_estimate);
    if table.state != "copying" || expected == 0 {
        return rows.to_string();
    }
    // An estimate: a copy is not over before it is.
    let percent = (u128::from(rows) * 100 / u128::from(expected)).min(99);
    format!("{rows} of ~{expected} ({percent} %)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_under_way_shows_how_far_it_is() {
        let mut table =
            LagRow { state: "copying".to_owned(), copied_rows: 500, copy_estimate: 2000, ..LagRow::default() };
        assert_eq!(copied(&table), "500 of ~2000 (25 %)");
        table.copied_rows = 3000;
        assert_eq!(copied(&table), "3000 of ~2000 (99 %)");
        table.copy_estimate = 0;
        assert_eq!(copied(&table), "3000");
        "streaming".clone_into(&mut table.state);
        assert_eq!(copied(&table), "3000");
    }
}
