//! What must be true of the source before a byte is read: every finding names its remedy.

use tokio_postgres::Client;

use crate::Result;
use crate::config::{EngineConfig, TableSelection};
use crate::error::{Error, ErrorKind};

use super::identifier::quote;

/// Oldest server with `security_invoker`-era pgoutput features that the engine relies on (binary output came with 14,
/// suppressed empty transactions with 15).
const OLDEST_VERSION: i32 = 150_000;

/// Encodings of databases whose every text the server can send in UTF-8: a single one that it cannot would stop the whole
/// stream. And SQL_ASCII, whose bytes are taken as they are, and must be UTF-8, or their table stops.
const ENCODINGS: [&str; 16] = [
    "UTF8",
    "SQL_ASCII",
    "LATIN1",
    "LATIN2",
    "LATIN4",
    "LATIN5",
    "LATIN6",
    "LATIN7",
    "LATIN8",
    "LATIN9",
    "LATIN10",
    "WIN1256",
    "WIN866",
    "KOI8R",
    "KOI8U",
    "ISO_8859_5",
];

/// One thing that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What is wrong, lower case, no full stop.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: String,
}

/// Looks at the server, the role and the publication. Tables are looked at one by one, in `relation`.
pub(crate) async fn findings(client: &Client, config: &EngineConfig) -> Result<Vec<Finding>> {
    let source = &config.source;
    let tables_listed = matches!(config.tables, TableSelection::Listed(_));
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int, current_setting('wal_level'), \
                    current_setting('server_encoding'), pg_is_in_recovery(), \
                    (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user), \
                    (SELECT count(*) FROM pg_replication_slots), current_setting('max_replication_slots')::bigint, \
                    EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)",
            &[&source.slot],
        )
        .await?;
    let mut findings = Vec::new();
    let mut find = |message: String, hint: &str| findings.push(Finding { message, hint: hint.to_owned() });
    let version: i32 = row.get(0);
    if version < OLDEST_VERSION {
        find(format!("the server is version {}, older than 15", version / 10_000), "upgrade PostgreSQL to 15 or newer");
    }
    let wal_level: &str = row.get(1);
    if wal_level != "logical" {
        find(
            format!("wal_level is {wal_level}, not logical"),
            "ALTER SYSTEM SET wal_level = 'logical', then restart the server",
        );
    }
    let encoding: &str = row.get(2);
    if !ENCODINGS.contains(&encoding) {
        find(
            format!("the database's encoding is {encoding}, which has characters that UTF-8 has not"),
            &format!("move the tables to a database in UTF8 (or one of {})", ENCODINGS[1..].join(", ")),
        );
    }
    if row.get(3) {
        find("the server is a standby".to_owned(), "point the worker at the primary");
    }
    if !row.get::<_, Option<bool>>(4).unwrap_or(false) {
        find(
            format!("role {} may not replicate", source.user),
            &format!("ALTER ROLE {} REPLICATION", quote(&source.user)),
        );
    }
    let (used, most): (i64, i64) = (row.get(5), row.get(6));
    // A copy needs one more slot for a moment.
    if !row.get::<_, bool>(7) && used + 2 > most {
        find(
            format!("{used} of {most} replication slots are in use; the mirror needs one, and one more during a copy"),
            "drop a slot that is not in use, or raise max_replication_slots (needs a restart)",
        );
    }
    let publication = client
        .query_opt(
            "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_publication WHERE pubname = $1",
            &[&source.publication],
        )
        .await?;
    match publication {
        None if tables_listed => find(
            format!("publication \"{}\" does not exist", source.publication),
            &format!(
                "as the tables' owner: CREATE PUBLICATION {} FOR TABLE {}",
                quote(&source.publication),
                listed(config)
            ),
        ),
        Some(row) if !row.get::<_, bool>(0) => find(
            format!("publication \"{}\" leaves out inserts, updates, deletes or truncates", source.publication),
            &format!(
                "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate')",
                quote(&source.publication)
            ),
        ),
        _ => {}
    }
    findings.extend(schema(client, &config.lake.catalog_schema, &source.user).await?);
    Ok(findings)
}

/// What is no obstacle, and should be known.
///
/// # Errors
/// [`ErrorKind::SourceUnreachable`].
pub(crate) async fn warnings(client: &Client) -> Result<Vec<String>> {
    // Servers before 18 have no such setting.
    let idle = "SELECT nullif(current_setting('idle_replication_slot_timeout', true), '0')";
    let row = client.query_one(idle, &[]).await?;
    let warning = |limit: String| {
        format!(
            "idle_replication_slot_timeout is {limit}: the server gives up the slot of a worker that is down for so long, \
             and the mirror has to begin anew"
        )
    };
    Ok(row.get::<_, Option<String>>(0).map(warning).into_iter().collect())
}

fn listed(config: &EngineConfig) -> String {
    match &config.tables {
        TableSelection::Listed(tables) => tables.iter().map(|table| table.name.as_str()).collect::<Vec<_>>().join(", "),
        TableSelection::Registry => "…".to_owned(),
    }
}

/// Whether the schema of catalog and registry is there, or can be made.
async fn schema(client: &Client, schema: &str, user: &str) -> Result<Option<Finding>> {
    let row = client
        .query_one(
            "SELECT has_database_privilege(current_database(), 'CREATE'), \
                    (SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = $1), \
                    to_regclass(quote_ident($1) || '.mirrored_tables') IS NOT NULL",
            &[&schema],
        )
        .await?;
    let (database, own, complete): (bool, Option<bool>, bool) = (row.get(0), row.get(1), row.get(2));
    let message = match own {
        None if !database => format!("schema \"{schema}\" does not exist, and the role may not create it"),
        Some(false) if !complete => format!("the role may not create tables in schema \"{schema}\""),
        _ => return Ok(None),
    };
    let change = if own.is_none() {
        format!("CREATE SCHEMA {} AUTHORIZATION {}", quote(schema), quote(user))
    } else {
        format!("GRANT CREATE, USAGE ON SCHEMA {} TO {}", quote(schema), quote(user))
    };
    Ok(Some(Finding { message, hint: format!("as a superuser or the database's owner: {change}") }))
}

/// The findings as one error, or nothing.
pub(crate) fn refuse(findings: Vec<Finding>) -> Result<()> {
    let Some(first) = findings.first() else { return Ok(()) };
    let message = findings.iter().map(|finding| finding.message.as_str()).collect::<Vec<_>>().join("; ");
    let hint = if findings.len() == 1 {
        first.hint.clone()
    } else {
        findings.iter().map(|finding| finding.hint.as_str()).collect::<Vec<_>>().join("; ")
    };
    Err(Error::new(ErrorKind::SourceUnfit, message).with_hint(hint))
}
