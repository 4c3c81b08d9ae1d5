//! A table's layout, from what a user wrote of it by columns' names.

use iceberg_writer::{ColumnSpec, Layout};
use tokio_postgres::Client;

use crate::Result;
use crate::config::{ListedLayout, ListedTable};
use crate::error::{Error, ErrorKind};
use crate::table::Shape;

use super::shape;

/// The layout of a table that has `before`: what is given, and what it has where nothing is. `told` is what
/// `lake_catalog.columns_told` says of its columns; layouts are as the registry has them.
///
/// # Errors
/// [`ErrorKind::Config`] with a hint: it names a column that is not there, say.
pub fn layout_of_told(
    told: &str,
    before: Option<&str>,
    partition_by: Option<&str>,
    sort_by: Option<&str>,
) -> Result<Option<String>> {
    let columns = columns_of(&shape::of_told(told)?);
    let before = before.map(Layout::from_json).transpose()?.unwrap_or_default().possible(&columns);
    let (had_partition, had_sort) = before.describe(&columns);
    let layout = parse(partition_by.unwrap_or(&had_partition), sort_by.unwrap_or(&had_sort), &columns)?;
    Ok((layout != Layout::default()).then(|| layout.to_json()).transpose()?)
}

/// The layout that a configuration file has for a table.
///
/// # Errors
/// [`ErrorKind::Config`] as above, naming the table; [`ErrorKind::SourceUnreachable`].
pub(crate) async fn listed(client: &Client, relation: u32, publication: &str, table: &ListedTable) -> Result<Layout> {
    let ListedTable { name, layout, .. } = table;
    if *layout == ListedLayout::default() {
        return Ok(Layout::default());
    }
    let shape = shape::read(client, relation, publication, None).await?.unwrap_or_default();
    parse(&layout.partition_by, &layout.sort_by, &columns_of(&shape)).map_err(|error| {
        let hint = error.hint().unwrap_or_default().to_owned();
        Error::new(error.kind(), format!("{name}: {}", error.report())).with_hint(hint)
    })
}

fn parse(partition_by: &str, sort_by: &str, columns: &[ColumnSpec]) -> Result<Layout> {
    Layout::parse(partition_by, sort_by, columns).map_err(|error| {
        let hint = error.hint().map(str::to_owned).unwrap_or_default();
        Error::new(ErrorKind::Config, error.to_string()).with_hint(hint)
    })
}

fn columns_of(shape: &Shape) -> Vec<ColumnSpec> {
    let columns = shape.attributes.iter().filter(|(_, attribute)| attribute.sent && !attribute.dropped);
    let columns = columns.filter_map(|(number, attribute)| {
        Some(ColumnSpec {
            name: attribute.name.clone(),
            field_id: i32::from(*number),
            pg_type: attribute.held?,
            type_oid: attribute.type_oid,
            typmod: attribute.typmod,
            required: false,
            companion: false,
        })
    });
    columns.collect()
}
