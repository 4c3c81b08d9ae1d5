//! Changes of the stream that wait for their table, in order.

use bytes::{Buf as _, Bytes, TryGetError};
use iceberg_writer::Lsn;

use crate::Result;
use crate::decode::message::{self, Commit, Message};
use crate::error::{Error, ErrorKind};
use crate::spool::Spool;

/// Keeps a message of the stream until the table can take it.
pub(super) fn keep(queue: &mut Spool, commit: Commit, raw: &Bytes) -> Result<()> {
    queue.push(&[&commit.lsn.as_u64().to_be_bytes(), &commit.time_us.to_be_bytes(), &commit.xid.to_be_bytes(), raw])
}

/// The next message that was kept.
pub(super) fn kept(queue: &mut Spool) -> Result<Option<(Commit, Message)>> {
    kept_raw(queue)?.map(|(commit, raw)| Ok((commit, message::parse(&raw)?))).transpose()
}

/// The same, as it came.
pub(super) fn kept_raw(queue: &mut Spool) -> Result<Option<(Commit, Bytes)>> {
    let Some(mut record) = queue.pop()? else { return Ok(None) };
    let mut commit = || -> Result<Commit, TryGetError> {
        let lsn = Lsn::from_u64(record.try_get_u64()?);
        Ok(Commit { lsn, time_us: record.try_get_i64()?, xid: record.try_get_u32()? })
    };
    let commit = commit()
        .map_err(|error| Error::new(ErrorKind::Io, "a change that waited came back damaged").with_source(error))?;
    Ok(Some((commit, record)))
}
