//! `cdc-worker check`, `mirror`, `resync` and `teardown`: what keeps the mirror from running, what it has, and how to be rid of it.

use iceberg_writer::Warehouse;
use tokio_postgres::Client;

use crate::Result;
use crate::config::{EngineConfig, ListedTable, TableSelection};
use crate::error::{Error, ErrorKind};
use crate::registry::ensure_schema;
use crate::source::relation::Wanted;
use crate::source::{connect, preflight, publication, relation, slot};

/// Prints every finding with its remedy.
///
/// # Errors
/// [`ErrorKind::SourceUnfit`] when there is any.
pub(super) async fn check(config: &EngineConfig) -> Result<()> {
    connect::check(&config.source)?;
    let client = connect::sql(&config.source, "lake check").await?;
    let mut findings: Vec<(String, String)> = preflight::findings(&client, config)
        .await?
        .into_iter()
        .map(|finding| (finding.message, finding.hint))
        .collect();
    let mut find = |error: &Error| {
        findings.push((error.report(), error.hint().unwrap_or("").to_owned()));
    };
    if let TableSelection::Listed(tables) = &config.tables {
        for table in tables {
            match listed(config, &client, table).await {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::SourceUnreachable => return Err(error),
                Err(error) => find(&error),
            }
        }
    }
    let warehouse = Warehouse::open(&config.lake.warehouse).map_err(Error::from);
    if let Err(error) = &warehouse {
        find(error);
    }
    for warning in config.warnings() {
        println!("warning: {warning}");
    }
    if findings.is_empty() {
        println!("ready: the mirror can run");
        return Ok(());
    }
    for (message, hint) in &findings {
        println!("- {message}");
        if !hint.is_empty() {
            println!("  hint: {hint}");
        }
    }
    // The exit code is the warehouse's when nothing else is wrong.
    let kind = if warehouse.is_err() && findings.len() == 1 { ErrorKind::Lake } else { ErrorKind::SourceUnfit };
    Err(Error::new(kind, format!("{} finding(s) keep the mirror from running", findings.len())))
}

/// Whether a listed table is there, fit, and published.
async fn listed(config: &EngineConfig, client: &Client, table: &ListedTable) -> Result<()> {
    let relation = relation::resolve(client, &table.name).await?;
    relation::describe(client, relation, Wanted::new(&config.source.publication, table.append_only)).await?;
    publication::check(client, relation, config).await
}

/// Enters the configured tables into the registry, where a running worker looks every half second.
///
/// # Errors
/// [`ErrorKind::SourceUnfit`] when a table cannot be mirrored, or the mirror was never started.
pub(super) async fn mirror(config: &EngineConfig) -> Result<()> {
    connect::check(&config.source)?;
    let client = connect::sql(&config.source, "lake mirror").await?;
    let TableSelection::Listed(tables) = &config.tables else { return Ok(()) };
    if !config.registry(&client).exists().await? {
        return Err(Error::new(ErrorKind::SourceUnfit, format!("mirror \"{}\" has never run", config.mirror))
            .with_hint("cdc-worker run enters the tables itself"));
    }
    ensure_schema(&client, &config.lake.catalog_schema).await?;
    crate::engine::list(config, &client, tables).await?;
    println!("mirror \"{}\" follows {} table(s)", config.mirror, tables.len());
    Ok(())
}

/// Asks for new copies of tables. The running worker, or the next one, makes them.
///
/// # Errors
/// [`ErrorKind::SourceUnfit`] when a table is not in the mirror or cannot be mirrored; then none is copied.
pub(super) async fn resync(config: &EngineConfig, names: &[String]) -> Result<()> {
    connect::check(&config.source)?;
    let client = connect::sql(&config.source, "lake resync").await?;
    let missing = |name: &str| {
        Error::new(ErrorKind::SourceUnfit, format!("{name} is not a table of mirror \"{}\"", config.mirror))
            .with_hint("add it to `tables` in the configuration, then: cdc-worker mirror")
    };
    if !config.registry(&client).exists().await? {
        return Err(missing(&names.join(", ")));
    }
    ensure_schema(&client, &config.lake.catalog_schema).await?;
    let registered = config.registry(&client).tables().await?;
    let mut relations = Vec::with_capacity(names.len());
    for name in names {
        let relation = relation::resolve(&client, name).await?;
        let known = registered.iter().find(|table| table.relation == relation);
        let table = ListedTable { name: name.clone(), append_only: known.is_some_and(|table| table.append_only) };
        listed(config, &client, &table).await.map_err(Error::of_the_source)?;
        relations.push(relation);
    }
    client.batch_execute("BEGIN").await?;
    for (name, relation) in names.iter().zip(relations) {
        // Dropped with the connection, the transaction leaves everything as it was.
        if !config.registry(&client).resync(relation).await? {
            return Err(missing(name));
        }
    }
    client.batch_execute("COMMIT").await?;
    println!("{} table(s) are copied anew: cdc-worker status shows how far they are", names.len());
    Ok(())
}

/// Drops the slot and the mirror's row.
///
/// # Errors
/// [`ErrorKind::AlreadyRunning`] when the worker runs.
pub(super) async fn teardown(config: &EngineConfig) -> Result<()> {
    connect::check(&config.source)?;
    let client = connect::sql(&config.source, "lake teardown").await?;
    let registry = config.registry(&client);
    registry.lock().await?;
    slot::drop(&client, &config.source).await?;
    registry.forget().await?;
    println!("mirror \"{}\" is forgotten; its Iceberg tables stay as they are", config.mirror);
    Ok(())
}
