//! Answers into bytes, off the engine's loop.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{Field, Schema};
use iceberg_writer::ColumnSpec;
use lake_protocol::{Column, DataFile, Pin, PinnedTable, Response, Section, encode_header, encode_section};

use crate::Result;
use crate::error::{Error, ErrorKind};
use crate::table::TablePin;

use super::{PinReply, Reply};

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Io, "encode an answer of the read service").with_source(error)
}

/// A reply as it goes over the socket.
pub(super) fn reply(reply: Reply) -> Result<(Vec<u8>, Option<crate::serve::Lease>)> {
    let response = match reply {
        Reply::Flushed { lsn } => Response::Flushed { lsn },
        Reply::Maintained => Response::Maintained,
        Reply::Status(status) => Response::Status(status),
        Reply::Refused(refusal) => Response::Refused(refusal),
        Reply::Pinned(pinned) => return pin(pinned).map(|(bytes, lease)| (bytes, Some(lease))),
    };
    Ok((encode_header(&response).map_err(broken)?, None))
}

fn pin(pinned: PinReply) -> Result<(Vec<u8>, crate::serve::Lease)> {
    let tables = pinned.tables.iter().map(table).collect();
    let header = Response::Pinned(Pin { lsn: pinned.lsn.as_u64(), committed_lsn: pinned.committed.as_u64(), tables });
    let mut bytes = encode_header(&header).map_err(broken)?;
    for table in &pinned.tables {
        encode_section(&Section { deleted: deleted(table)?, fresh: fresh(table)? }, &mut bytes);
    }
    Ok((bytes, pinned.lease))
}

fn table(pin: &TablePin) -> PinnedTable {
    PinnedTable {
        relation: pin.relation,
        columns: pin
            .spec
            .columns
            .iter()
            .map(|column| Column {
                // A field id *is* the column's attribute number.
                attnum: i16::try_from(column.field_id).unwrap_or(i16::MAX),
                field_id: column.field_id,
                name: column.name.clone(),
                type_oid: column.type_oid,
                typmod: column.typmod,
                companion: column.companion.then(|| column.companion_id()),
            })
            .collect(),
        pruned: pin.pruned as u64,
        files: pin
            .files
            .iter()
            .map(|file| DataFile {
                path: file.path.strip_prefix("file://").unwrap_or(&file.path).to_owned(),
                rows: file.rows,
                bytes: file.bytes,
                deleted: file.deleted.len(),
            })
            .collect(),
        fresh_rows: pin.fresh.iter().map(|batch| batch.num_rows() as u64).sum(),
    }
}

fn deleted(pin: &TablePin) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for (index, file) in pin.files.iter().enumerate() {
        if file.deleted.is_empty() {
            continue;
        }
        let index = u32::try_from(index).map_err(broken)?;
        let length = u32::try_from(file.deleted.serialized_size()).map_err(broken)?;
        bytes.extend_from_slice(&index.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        file.deleted.serialize_into(&mut bytes).map_err(broken)?;
    }
    Ok(bytes)
}

fn fresh(pin: &TablePin) -> Result<Vec<u8>> {
    let Some(first) = pin.fresh.first() else { return Ok(Vec::new()) };
    // Named by field id: two columns whose names differ in case only are one name to DuckDB. Companions are behind them.
    let schema = first.schema();
    let companions = pin.spec.columns.iter().filter(|column| column.companion).map(ColumnSpec::companion_id);
    let ids = pin.spec.columns.iter().map(|column| column.field_id).chain(companions);
    let fields = schema.fields().iter().zip(ids);
    let fields: Vec<Field> =
        fields.map(|(field, id)| Field::new(format!("c{id}"), field.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).map_err(broken)?;
    for batch in &pin.fresh {
        let renamed = RecordBatch::try_new(Arc::clone(&schema), batch.columns().to_vec()).map_err(broken)?;
        writer.write(&renamed).map_err(broken)?;
    }
    writer.into_inner().map_err(broken)
}
