//! Replication slots: the mirror's own, and the short-lived one whose snapshot a copy reads.

use iceberg_writer::Lsn;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::Result;
use crate::config::SourceConfig;
use crate::error::{Error, ErrorKind};

use super::identifier::quote;
use super::replication::ReplicationSession;

/// Where a slot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotState {
    pub(crate) confirmed_flush: Option<Lsn>,
}

/// The mirror's slot, if there is one.
///
/// # Errors
/// [`ErrorKind::Slot`] when a slot of that name is of another kind, or its WAL is gone.
pub(crate) async fn find(client: &Client, source: &SourceConfig) -> Result<Option<SlotState>> {
    let found = client
        .query_opt(
            "SELECT coalesce(plugin, ''), coalesce(database, '') = current_database(), coalesce(wal_status, ''), \
                    confirmed_flush_lsn, coalesce(to_jsonb(s) ->> 'invalidation_reason', '') \
             FROM pg_replication_slots s WHERE slot_name = $1",
            &[&source.slot],
        )
        .await?;
    let Some(row) = found else { return Ok(None) };
    let slot = &source.slot;
    if row.get::<_, &str>(0) != "pgoutput" || !row.get::<_, bool>(1) {
        return Err(Error::new(
            ErrorKind::Slot,
            format!("slot \"{slot}\" exists but is not a pgoutput slot of this database"),
        )
        .with_hint("name another slot, or drop that one if nothing uses it"));
    }
    if row.get::<_, &str>(2) == "lost" {
        let (why, setting) = match row.get::<_, &str>(4) {
            "idle_timeout" => (", for nobody read it", "idle_replication_slot_timeout"),
            _ => ("", "max_slot_wal_keep_size"),
        };
        let message = format!("slot \"{slot}\" has lost WAL that the mirror needs{why}");
        return Err(Error::new(ErrorKind::Slot, message).with_hint(format!(
            "raise {setting}, then `cdc-worker teardown` (or lake.unmirror on every table) and mirror again",
        )));
    }
    Ok(Some(SlotState { confirmed_flush: row.get(3) }))
}

/// Creates the mirror's slot. Nothing committed before the returned position will be streamed.
///
/// # Errors
/// As [`ReplicationSession::query`].
pub(crate) async fn create(source: &SourceConfig) -> Result<Lsn> {
    let mut session = ReplicationSession::connect(source, "lake slot").await?;
    let failover = if source.failover && version(&mut session).await? >= 17 { ", FAILOVER" } else { "" };
    let slot = quote(&source.slot);
    let command = format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput (SNAPSHOT 'nothing'{failover})");
    let (point, _) = create_slot(&mut session, &command).await?;
    Ok(point)
}

/// The server's major version. From 17 on it can keep slots on its standbys too.
async fn version(session: &mut ReplicationSession) -> Result<u32> {
    let step = "ask for the server's version";
    let rows = session.query("SHOW server_version_num", step).await?;
    let number = rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten();
    let number = number.and_then(|number| number.parse::<u32>().ok());
    number.map(|number| number / 10_000).ok_or_else(|| Error::new(ErrorKind::Protocol, format!("{step}: no answer")))
}

/// Lets the mirror's slot, which nobody reads, be kept on standbys or not, as it is configured now.
///
/// # Errors
/// [`ErrorKind::SourceUnreachable`]; [`ErrorKind::AlreadyRunning`] while an earlier worker's walsender has it.
pub(crate) async fn set_failover(client: &Client, source: &SourceConfig) -> Result<()> {
    // Servers before 17 have no such column.
    let is_set = "SELECT (to_jsonb(s) ->> 'failover')::boolean FROM pg_replication_slots s WHERE slot_name = $1";
    let row = client.query_opt(is_set, &[&source.slot]).await?;
    if row.and_then(|row| row.get::<_, Option<bool>>(0)).is_none_or(|is_set| is_set == source.failover) {
        return Ok(());
    }
    let mut session = ReplicationSession::connect(source, "lake slot").await?;
    let command = format!("ALTER_REPLICATION_SLOT {} (FAILOVER {})", quote(&source.slot), source.failover);
    session.query(&command, "change whether standbys keep the replication slot").await?;
    Ok(())
}

/// A snapshot exported by a slot's creation: usable for as long as the session lives, or until it is imported.
pub(crate) struct ExportedSnapshot {
    /// The snapshot holds exactly the transactions whose commit record begins before this LSN.
    pub(crate) consistent_point: Lsn,
    pub(crate) name: String,
    _session: ReplicationSession,
}

/// Exports a snapshot together with the WAL position that it stands for (I4). Waits for the transactions that are
/// running now, as every logical slot's creation does.
///
/// # Errors
/// As [`ReplicationSession::query`].
pub(crate) async fn export_snapshot(source: &SourceConfig, relation: u32) -> Result<ExportedSnapshot> {
    let mut session = ReplicationSession::connect(source, "lake copy").await?;
    // A name of its own each time: while it waits, the walsender of an earlier copy does not notice that nobody waits for
    // it any more, and keeps its slot until those transactions have ended.
    let random = Uuid::now_v7().simple().to_string();
    let name = format!("{}{relation}_{}", copies_of(source), &random[random.len() - 12..]);
    let command = format!("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export')", quote(&name));
    let (consistent_point, snapshot) = create_slot(&mut session, &command).await?;
    let name = snapshot.ok_or_else(|| Error::new(ErrorKind::Protocol, "the slot's creation exported no snapshot"))?;
    Ok(ExportedSnapshot { consistent_point, name, _session: session })
}

/// What the names of the slots of a mirror's copies begin with. With a table's oid and twelve digits, 59 bytes at most.
fn copies_of(source: &SourceConfig) -> String {
    format!("{}_copy_", source.slot.chars().take(30).collect::<String>())
}

/// Ends the walsenders that still make slots for copies of an earlier worker. The caller has claimed the mirror, so no
/// other worker has copies.
///
/// # Errors
/// [`ErrorKind::SourceUnreachable`], also when the role may not end them.
pub(crate) async fn end_copies(client: &Client, source: &SourceConfig) -> Result<()> {
    client
        .execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
             WHERE temporary AND active_pid IS NOT NULL AND starts_with(slot_name, $1)",
            &[&copies_of(source)],
        )
        .await?;
    Ok(())
}

async fn create_slot(session: &mut ReplicationSession, command: &str) -> Result<(Lsn, Option<String>)> {
    // While a slot waits for older transactions, a walsender of version 18 (18.4, at least) dies of a large transaction that it
    // finds to be rolled back, and takes the whole server into recovery. It looks for such where memory is short.
    if version(session).await? >= 18 {
        session.query("SET logical_decoding_work_mem = '1GB'", "make room for the slot's creation").await?;
    }
    let rows = session.query(command, "create a replication slot").await?;
    let malformed = || Error::new(ErrorKind::Protocol, "the slot's creation gave an unexpected answer");
    let mut columns = rows.into_iter().next().ok_or_else(malformed)?.into_iter();
    // Its name comes first.
    let point = columns.nth(1).flatten().and_then(|point| point.parse::<Lsn>().ok()).ok_or_else(malformed)?;
    Ok((point, columns.next().flatten()))
}

/// WAL that may be held back without need, of which so much is wanted: at most half of what the server keeps for a slot
/// before it gives the slot up.
///
/// # Errors
/// [`ErrorKind::SourceUnreachable`].
pub(crate) async fn held_wal(client: &Client, wanted: u64) -> Result<u64> {
    let kept = "SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'";
    let megabytes: i64 = client.query_one(kept, &[]).await?.get(0);
    // -1: all.
    Ok(u64::try_from(megabytes).map_or(wanted, |megabytes| wanted.min((megabytes << 20) / 2)))
}

/// Drops the mirror's slot if it is there and idle.
///
/// # Errors
/// [`ErrorKind::SourceUnreachable`], also when the slot is in use.
pub(crate) async fn drop(client: &Client, source: &SourceConfig) -> Result<()> {
    client
        .execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1",
            &[&source.slot],
        )
        .await?;
    Ok(())
}
