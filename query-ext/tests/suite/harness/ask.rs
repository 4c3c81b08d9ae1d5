//! What one statement answers.

use tokio_postgres::{Client, SimpleQueryMessage};

/// The first column of the last result, a line a row; or SQLSTATE, message and hint.
pub(crate) async fn ask(client: &Client, sql: &str) -> Result<String, String> {
    match client.simple_query(sql).await {
        Ok(messages) => Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
                _ => None,
            })
            .collect::<Vec<_>>()
            .join("\n")),
        Err(error) => {
            let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}")).clone();
            Err(format!("{} {} | {}", error.code().code(), error.message(), error.hint().unwrap_or("")))
        }
    }
}

/// Fails with this SQLSTATE; what it says.
pub(crate) async fn fails(client: &Client, sql: &str, state: &str) -> String {
    let error = ask(client, sql).await.expect_err(sql);
    assert!(error.starts_with(state), "{sql}: {error}");
    error
}
