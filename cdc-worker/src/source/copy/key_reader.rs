//! Single rows of a copy's last snapshot, by key.

use std::error::Error as StdError;
use std::time::Duration;

use arrow_array::RecordBatch;
use bytes::{BufMut as _, BytesMut};
use iceberg_writer::{PgType, TableSpec};
use tokio_postgres::types::{Format, FromSql, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Statement};

use crate::Result;
use crate::decode::message::Cell;
use crate::decode::row::RowBuilder;
use crate::error::{Error, ErrorKind};

use super::super::identifier::quote;
use super::super::relation::SourceTable;
use super::share::columns;
use super::snapshot::{denied, full_name};

/// Longest wait for a row that an index finds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads rows of the snapshot that a connection holds. Dropped, it ends that transaction and its lock.
pub(crate) struct KeyReader {
    client: Client,
    table: SourceTable,
    command: String,
    statement: Option<Statement>,
}

impl KeyReader {
    pub(super) fn new(client: Client, table: &SourceTable) -> Self {
        let key = table.key_names();
        let conditions = key.iter().zip(1..).map(|(name, place)| format!("{} = ${place}", quote(name)));
        let command = format!(
            "SELECT {} FROM {}{} WHERE {}",
            columns(table),
            if table.partitions.is_some() { "" } else { "ONLY " },
            full_name(table),
            conditions.collect::<Vec<_>>().join(" AND ")
        );
        Self { client, table: table.clone(), command, statement: None }
    }

    /// The columns of its rows.
    pub(crate) fn spec(&self) -> &TableSpec {
        &self.table.spec
    }

    /// The row with the key that these cells of a row have: one row, all columns of the mirror.
    ///
    /// # Errors
    /// [`ErrorKind::Table`], [`ErrorKind::SourceUnreachable`].
    pub(crate) async fn row(&mut self, cells: &[Cell<'_>]) -> Result<Option<RecordBatch>> {
        let spec = &self.table.spec;
        let key = spec.key.iter().map(|&index| match cells.get(index) {
            Some(Cell::Binary(raw)) => Ok(Raw { bytes: raw, format: Format::Binary }),
            Some(Cell::Text(raw)) => Ok(Raw { bytes: raw, format: Format::Text }),
            _ => Err(Error::new(ErrorKind::Table, "a row arrived without its key")),
        });
        let key = key.collect::<Result<Vec<_>>>()?;
        let parameters: Vec<&(dyn ToSql + Sync)> = key.iter().map(|raw| raw as _).collect();
        let read = async {
            let statement = match &self.statement {
                Some(statement) => statement.clone(),
                None => self.statement.insert(self.client.prepare(&self.command).await?).clone(),
            };
            self.client.query_opt(&statement, &parameters).await
        };
        let read = tokio::time::timeout(PATIENCE, read).await.map_err(|elapsed| {
            Error::new(ErrorKind::SourceUnreachable, "reading a row of the source took too long").with_source(elapsed)
        })?;
        let read = read.map_err(|error| {
            let sqlstate = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
            denied(&sqlstate, error.into(), &self.table)
        });
        let Some(row) = read? else { return Ok(None) };
        let cells = (0..row.len()).map(|column| {
            let value: Option<Raw<'_>> = row.try_get(column)?;
            // As in a COPY.
            let text = spec.columns.get(column).is_some_and(|column| column.pg_type == PgType::TextForm);
            let cell = if text { Cell::Text } else { Cell::Binary };
            Ok(value.map_or(Cell::Null, |raw| cell(raw.bytes)))
        });
        let cells = cells.collect::<Result<Vec<_>>>()?;
        one_row(spec, &cells).map(Some)
    }
}

fn one_row(spec: &TableSpec, cells: &[Cell<'_>]) -> Result<RecordBatch> {
    let mut builder = RowBuilder::new(spec)?;
    builder.append(spec, cells, None)?;
    builder.finish()
}

/// A value of whatever type, in one of its formats.
#[derive(Debug)]
struct Raw<'a> {
    bytes: &'a [u8],
    format: Format,
}

impl ToSql for Raw<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> std::result::Result<IsNull, Box<dyn StdError + Sync + Send>> {
        out.put_slice(self.bytes);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        self.format
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> std::result::Result<Self, Box<dyn StdError + Sync + Send>> {
        // What is read is always asked for in binary.
        Ok(Self { bytes: raw, format: Format::Binary })
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
