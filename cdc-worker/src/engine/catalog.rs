//! The catalog that the configuration names.

use iceberg_writer::{Catalog as _, LeftOut, MirrorCatalog, Recovered, Warehouse};
use tokio_postgres::Client;

use crate::Result;
use crate::config::{CatalogConfig, EngineConfig, JdbcCatalogConfig};
use crate::error::{COPY_ANEW, Error, ErrorKind};
use crate::registry::TableState;
use crate::source::connect;
use crate::table::history;

/// Opens the warehouse, and sees that it can be written; where the catalog vends its keys, that is seen with each table.
///
/// # Errors
/// [`ErrorKind::Lake`]; [`ErrorKind::Config`] when its settings can't be used together.
pub(crate) async fn open_warehouse(config: &EngineConfig) -> Result<Warehouse> {
    let (url, store) = (&config.lake.warehouse, &config.lake.store);
    match &config.lake.catalog {
        CatalogConfig::Rest(rest) if rest.vended_credentials => Warehouse::vended(url, store).map_err(of_settings),
        _ => Warehouse::open(url, store).await.map_err(of_settings),
    }
}

/// An error of opening what the settings name: one of what they say, or of what is there.
fn of_settings(error: iceberg_writer::Error) -> Error {
    let is_invalid = error.kind() == iceberg_writer::ErrorKind::Invalid;
    let error = Error::from(error);
    if is_invalid { error.of_kind(ErrorKind::Config) } else { error }
}

/// Opens the catalog, and sees that it answers.
///
/// # Errors
/// [`ErrorKind::Lake`], with its remedy; [`ErrorKind::Config`] when its settings can't be used.
pub(crate) async fn open(config: &EngineConfig, warehouse: &Warehouse) -> Result<MirrorCatalog> {
    let (source, schema) = (connect::sql_config(&config.source, "lake catalog"), &config.lake.catalog_schema);
    let warehouse = warehouse.clone();
    let catalog = match &config.lake.catalog {
        CatalogConfig::Source => MirrorCatalog::in_source(source, schema, &config.lake.catalog_name, warehouse),
        CatalogConfig::Jdbc(jdbc) => {
            MirrorCatalog::in_database(source, schema, connection(jdbc), &jdbc.schema, &jdbc.name, warehouse)
        }
        CatalogConfig::Rest(rest) => {
            MirrorCatalog::over_rest(source, schema, rest.clone(), warehouse).map_err(of_settings)?
        }
        CatalogConfig::Files => MirrorCatalog::in_files(source, schema, warehouse),
    };
    let catalog = catalog.with_retention(config.retention);
    catalog.ensure().await.map_err(of_settings)?;
    Ok(catalog)
}

fn connection(jdbc: &JdbcCatalogConfig) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config.host(&jdbc.host).port(jdbc.port).dbname(&jdbc.database).user(&jdbc.user).application_name("lake catalog");
    if let Some(password) = &jdbc.password {
        config.password(password.reveal());
    }
    config
}

/// Finishes what an earlier worker had on its way, and stops the tables that it could not reach.
///
/// # Errors
/// [`ErrorKind::Lake`] when the catalog can't be asked; [`ErrorKind::SourceUnreachable`].
pub(super) async fn recover(
    config: &EngineConfig,
    control: &Client,
    catalog: &MirrorCatalog,
    epoch: i64,
) -> Result<Recovered> {
    let recovered = catalog.recover(&config.mirror, epoch).await?;
    if recovered.left_out.is_empty() {
        return Ok(recovered);
    }
    let registry = config.registry(control);
    for table in registry.tables().await? {
        let (namespace, name) = table.lake_name();
        let is_it = |left_out: &&LeftOut| {
            left_out.namespace == namespace
                && (left_out.name == name || table.history && left_out.name == history::name_of(name))
        };
        // Of one that is copied anew nothing is needed.
        if !matches!(table.state, TableState::Streaming | TableState::Copying) {
            continue;
        }
        if let (Some(left_out), Some(lsn)) = (recovered.left_out.iter().find(is_it), recovered.lsn) {
            let error = failure(left_out);
            tracing::error!(table = table.shown(), lsn = %lsn, error = %error.report(), "the table stops; the others stream on");
            registry.errored(table.relation, &error, lsn).await?;
        }
    }
    Ok(recovered)
}

/// Why a table stops that the last batch could not reach.
pub(super) fn failure(left_out: &LeftOut) -> Error {
    let hint = left_out.hint.as_ref().map_or_else(|| COPY_ANEW.to_owned(), |hint| format!("{hint}; {COPY_ANEW}"));
    Error::new(ErrorKind::Table, left_out.reason.clone()).with_hint(hint)
}
