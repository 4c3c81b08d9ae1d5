//! `cdc-worker check`, `mirror`, `resync` and `teardown`: what keeps the mirror from running, what it has, and how to be rid of it.

use std::path::Path;

use iceberg_writer::MirrorCatalog;
use tokio_postgres::Client;

use crate::Result;
use crate::config::{EngineConfig, ListedLayout, ListedTable, TableSelection};
use crate::error::{Error, ErrorKind};
use crate::registry::ensure_schema;
use crate::source::relation::{SourceTable, Wanted};
use crate::source::{connect, layout, preflight, publication, relation, slot};

/// Prints every finding with its remedy.
///
/// # Errors
/// The kind of the one finding, or [`ErrorKind::SourceUnfit`] when there are several.
pub(super) async fn check(config: &EngineConfig) -> Result<()> {
    connect::check(&config.source)?;
    let client = connect::sql(&config.source, "lake check").await?;
    let mut findings: Vec<(String, String, ErrorKind)> = preflight::findings(&client, config)
        .await?
        .into_iter()
        .map(|finding| (finding.message, finding.hint, ErrorKind::SourceUnfit))
        .collect();
    let mut find = |error: &Error| {
        findings.push((error.report(), error.hint().unwrap_or("").to_owned(), error.kind()));
    };
    let mut fit = Vec::new();
    if let TableSelection::Listed(tables) = &config.tables {
        for table in tables {
            match listed(config, &client, table).await {
                Ok(source) => {
                    if let Some(note) = source.note() {
                        say!("note: {note}");
                    }
                    fit.push(source);
                }
                Err(error) if error.kind() == ErrorKind::SourceUnreachable => return Err(error),
                Err(error) => find(&error),
            }
        }
    }
    match open_catalog(config).await {
        Ok(catalog) => {
            let names = fit.iter().map(|table| catalog.check_name(&table.schema, &table.name));
            names.filter_map(Result::err).for_each(|error| find(&Error::from(error).of_kind(ErrorKind::Config)));
            for table in &fit {
                match catalog.check_vended(&table.schema, &table.name).await {
                    Ok(Some(())) => {}
                    Ok(None) => say!(
                        "note: {}.{} is not in the catalog yet: whether that vends keys for it shows when it is made",
                        table.schema,
                        table.name
                    ),
                    Err(error) => find(&Error::from(error)),
                }
            }
        }
        Err(error) => find(&error),
    }
    if let Err(error) = state_directory(&config.state_dir) {
        find(&error);
    }
    for warning in preflight::warnings(&client).await?.into_iter().chain(config.warnings()) {
        say!("warning: {warning}");
    }
    if findings.is_empty() {
        say!("ready: the mirror can run");
        return Ok(());
    }
    for (message, hint, _) in &findings {
        say!("- {message}");
        if !hint.is_empty() {
            say!("  hint: {hint}");
        }
    }
    // The exit code is that of the one finding, when nothing else is wrong.
    let kind = match findings.as_slice() {
        [(_, _, kind)] => *kind,
        _ => ErrorKind::SourceUnfit,
    };
    Err(Error::new(kind, format!("{} finding(s) keep the mirror from running", findings.len())))
}

async fn open_catalog(config: &EngineConfig) -> Result<MirrorCatalog> {
    let warehouse = crate::engine::open_warehouse(config).await?;
    crate::engine::open_catalog(config, &warehouse).await
}

/// Whether the worker can keep its cache there.
fn state_directory(path: &Path) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Io, format!("write to the state directory {}", path.display()))
            .with_hint("let the worker's operating system user own it, and see that its disk has room")
            .with_source(error)
    };
    std::fs::create_dir_all(path).map_err(failed)?;
    tempfile::tempfile_in(path).map(drop).map_err(failed)
}

/// Whether a listed table is there, fit, and published, and can be laid out as it is to be.
async fn listed(config: &EngineConfig, client: &Client, table: &ListedTable) -> Result<SourceTable> {
    let relation = relation::resolve(client, &table.name).await?;
    let wanted = Wanted { history: table.history, ..Wanted::new(&config.source.publication, table.append_only) };
    let source = relation::describe(client, relation, wanted).await?;
    publication::check(client, relation, config).await?;
    layout::listed(client, relation, &config.source.publication, table).await?;
    Ok(source)
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
    say!("mirror \"{}\" follows {} table(s)", config.mirror, tables.len());
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
        let table = ListedTable {
            name: name.clone(),
            append_only: known.is_some_and(|table| table.append_only),
            history: known.is_some_and(|table| table.history),
            layout: ListedLayout::default(),
        };
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
    say!(
        "{} table(s) will be copied anew, by the worker that runs or by the next: cdc-worker status shows how far they are",
        names.len()
    );
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
    say!("mirror \"{}\" is forgotten; its Iceberg tables stay as they are", config.mirror);
    Ok(())
}
