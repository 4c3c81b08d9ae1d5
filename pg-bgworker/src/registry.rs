//! The registry in `lake_catalog`: which tables are mirrored, and what became of it. All SQL on it is here.
//!
//! Backends reach it through [`as_owner`] only: users have no rights on the schema, the functions of `lake` check theirs
//! before they come here. All names are qualified, and the functions' `search_path` is pinned by their definition.

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::quote_identifier;

use crate::error::Error;
use crate::settings;

/// The name of the mirror that the extension runs: one a database.
pub(crate) const MIRROR: &str = "lake";
/// Its publication.
pub(crate) const PUBLICATION: &str = "lake";

/// Whose mirror the registry of this database describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mirror {
    /// This database's.
    Ours,
    /// That of the database this one was copied from (`CREATE DATABASE … TEMPLATE`): its slot has another name. To run an engine
    /// on it would write into the other one's tables.
    Foreign {
        /// The slot it belongs to.
        slot: String,
    },
}

/// A mirrored table's row.
#[derive(Debug, Clone)]
pub(crate) struct MirroredTable {
    /// Its name in the lake.
    pub(crate) lake_table: String,
    /// `requested`, `copying`, `streaming` or `errored`.
    pub(crate) state: String,
    /// Why it is `errored`.
    pub(crate) error: Option<String>,
    /// What to do about it.
    pub(crate) error_hint: Option<String>,
    /// Only its inserts and truncations are wanted.
    pub(crate) append_only: bool,
    /// Its changes are kept too.
    pub(crate) history: bool,
}

/// What is kept of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    /// Only its inserts and truncations.
    pub(crate) append_only: bool,
    /// Its changes too.
    pub(crate) history: bool,
}

/// The oid of an extension, if it is installed. Inside a transaction.
pub(crate) fn extension(name: &str) -> Option<pg_sys::Oid> {
    let name = std::ffi::CString::new(name).expect("our names have no NUL");
    // SAFETY: a catalog lookup with a string that lives during the call.
    let oid = unsafe { pg_sys::get_extension_oid(name.as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// Runs `body` as the bootstrap superuser, who owns the registry and the publication. Users can't change what it runs:
/// all names in it are qualified and quoted.
pub(crate) fn as_owner<R>(body: impl FnOnce() -> R) -> R {
    struct Before(pg_sys::Oid, std::ffi::c_int);
    impl Drop for Before {
        fn drop(&mut self) {
            // SAFETY: puts back what was read below. After an error the transaction's abort does the same.
            unsafe { pg_sys::SetUserIdAndSecContext(self.0, self.1) }
        }
    }
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    let flags = (pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION).cast_signed();
    // SAFETY: the documented way to act as another role for a while; `Before` ends it.
    let _before = unsafe {
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
        pg_sys::SetUserIdAndSecContext(pg_sys::BOOTSTRAP_SUPERUSERID.into(), context | flags);
        Before(user, context)
    };
    body()
}

/// One row of a query, or none.
///
/// Reading must not give the transaction an id, which pgrx's `update` would do: the engine's slot is made only when
/// every transaction with an id has ended, so a `lake.wait` that has one would wait for itself.
pub(crate) fn row<R>(
    query: &str,
    arguments: &[DatumWithOid<'_>],
    read: impl FnOnce(pgrx::spi::SpiTupleTable<'_>) -> Result<R, pgrx::spi::Error>,
) -> Result<Option<R>, Error> {
    Spi::connect(|client| {
        let rows = client.select(query, Some(1), arguments)?;
        if rows.is_empty() {
            return Ok(None);
        }
        read(rows.first()).map(Some).map_err(Error::from)
    })
}

/// Runs `body` with a snapshot of now: a long function would otherwise read what was there when its statement began.
pub(crate) fn now<R>(body: impl FnOnce() -> R) -> R {
    // SAFETY: inside a transaction; an error raised in between drops the snapshot with the transaction.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
    let result = body();
    // SAFETY: takes off what was put on above.
    unsafe { pg_sys::PopActiveSnapshot() };
    result
}

/// The newest failure of the engine as a whole, while it counts: what, and what to do.
pub(crate) fn engine_error() -> Result<Option<(String, Option<String>)>, Error> {
    row("SELECT message, hint FROM lake_catalog.engine_error", &[], |row| {
        Ok((row.get::<String>(1)?.unwrap_or_default(), row.get::<String>(2)?))
    })
}

/// Whether a query that asks for a boolean says yes. No row and null are a no.
pub(crate) fn holds(query: &str, arguments: &[DatumWithOid<'_>]) -> Result<bool, Error> {
    Ok(row(query, arguments, |row| row.get_one::<bool>())?.flatten().unwrap_or(false))
}

/// The mirror of this database, once a table is mirrored.
pub(crate) fn mirror_of_database() -> Result<Option<Mirror>, Error> {
    let slot = row("SELECT slot FROM lake_catalog.mirrors WHERE mirror = $1", &[MIRROR.into()], |row| {
        row.get_one::<String>()
    })?;
    Ok(slot.flatten().map(|slot| if slot == settings::slot_name() { Mirror::Ours } else { Mirror::Foreign { slot } }))
}

/// The row of a mirrored table.
pub(crate) fn mirrored_table(relation: pg_sys::Oid) -> Result<Option<MirroredTable>, Error> {
    let query = "SELECT lake_table, state, error, error_hint, append_only, history
                 FROM lake_catalog.mirrored_tables WHERE mirror = $1 AND relation = $2";
    row(query, &[MIRROR.into(), relation.into()], |row| {
        Ok(MirroredTable {
            lake_table: row.get(1)?.unwrap_or_default(),
            state: row.get(2)?.unwrap_or_default(),
            error: row.get(3)?,
            error_hint: row.get(4)?,
            append_only: row.get(5)?.unwrap_or_default(),
            history: row.get(6)?.unwrap_or_default(),
        })
    })
}

/// Enters a table, and the mirror with it when it is the first. The publication comes before both.
pub(crate) fn insert_table(
    relation: pg_sys::Oid,
    schema: &str,
    table: &str,
    lake_table: &str,
    kept: Kept,
) -> Result<(), Error> {
    let Kept { append_only, history } = kept;
    publish(schema, table)?;
    Spi::run_with_args(
        "INSERT INTO lake_catalog.mirrors (mirror, publication, slot) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        &[MIRROR.into(), PUBLICATION.into(), settings::slot_name().into()],
    )?;
    Spi::run_with_args(
        "INSERT INTO lake_catalog.mirrored_tables (mirror, relation, source_schema, source_table, lake_table, append_only, history)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        &[
            MIRROR.into(),
            relation.into(),
            schema.into(),
            table.into(),
            lake_table.into(),
            append_only.into(),
            history.into(),
        ],
    )?;
    Ok(())
}

/// What the catalog says of a mirrored table's columns, and how it is laid out.
pub(crate) fn layout(relation: pg_sys::Oid) -> Result<(String, Option<String>), Error> {
    let query = "SELECT lake_catalog.columns_told($2)::pg_catalog.text, layout
                 FROM lake_catalog.mirrored_tables WHERE mirror = $1 AND relation = $2";
    let found = row(query, &[MIRROR.into(), relation.into()], |row| {
        Ok((row.get::<String>(1)?.unwrap_or_default(), row.get::<String>(2)?))
    })?;
    Ok(found.unwrap_or_default())
}

/// Lays a mirrored table out otherwise.
pub(crate) fn set_layout(relation: pg_sys::Oid, layout: Option<String>) -> Result<(), Error> {
    let statement = "UPDATE lake_catalog.mirrored_tables SET layout = $3 WHERE mirror = $1 AND relation = $2";
    Ok(Spi::run_with_args(statement, &[MIRROR.into(), relation.into(), layout.into()])?)
}

/// Takes a table out again, if it is there; returns its name in the lake.
pub(crate) fn delete_table(relation: pg_sys::Oid) -> Result<Option<String>, Error> {
    let query = "DELETE FROM lake_catalog.mirrored_tables WHERE mirror = $1 AND relation = $2 RETURNING lake_table";
    let deleted = Spi::connect_mut(|client| -> Result<Option<String>, pgrx::spi::Error> {
        let rows = client.update(query, None, &[MIRROR.into(), relation.into()])?;
        if rows.is_empty() { Ok(None) } else { rows.first().get_one() }
    })?;
    // The table's name of today, which need not be the one it was mirrored under.
    let published = "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
         FROM pg_catalog.pg_publication_rel pr
         JOIN pg_catalog.pg_publication p ON p.oid = pr.prpubid
         JOIN pg_catalog.pg_class c ON c.oid = pr.prrelid
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE p.pubname = $1 AND pr.prrelid = $2";
    let name = row(published, &[PUBLICATION.into(), relation.into()], |row| row.get_one::<String>())?.flatten();
    if let Some(name) = name {
        Spi::run(&format!("ALTER PUBLICATION {} DROP TABLE ONLY {name}", quote_identifier(PUBLICATION)))?;
    }
    Ok(deleted)
}

/// Wants a mirrored table copied anew; returns its name in the lake, or `None` when it is not mirrored.
pub(crate) fn request_copy(relation: pg_sys::Oid, schema: &str, table: &str) -> Result<Option<String>, Error> {
    let Some(mirrored) = mirrored_table(relation)? else { return Ok(None) };
    // It may have left the publication: perhaps that is why it has stopped.
    publish(schema, table)?;
    Spi::run_with_args(
        "UPDATE lake_catalog.mirrored_tables
         SET state = 'requested', error = NULL, error_hint = NULL, error_lsn = NULL
         WHERE mirror = $1 AND relation = $2",
        &[MIRROR.into(), relation.into()],
    )?;
    Ok(Some(mirrored.lake_table))
}

/// Wants a mirrored table's changes kept, beginning with a new copy.
pub(crate) fn begin_history(relation: pg_sys::Oid, schema: &str, table: &str) -> Result<(), Error> {
    request_copy(relation, schema, table)?;
    let statement = "UPDATE lake_catalog.mirrored_tables SET history = true WHERE mirror = $1 AND relation = $2";
    Ok(Spi::run_with_args(statement, &[MIRROR.into(), relation.into()])?)
}

/// Wants a mirrored table's changes kept no longer.
pub(crate) fn end_history(relation: pg_sys::Oid) -> Result<(), Error> {
    let statement = "UPDATE lake_catalog.mirrored_tables SET history = false WHERE mirror = $1 AND relation = $2";
    Ok(Spi::run_with_args(statement, &[MIRROR.into(), relation.into()])?)
}

/// Whether `lake.<lake_table>` has other columns than its source.
pub(crate) fn columns_differ(relation: pg_sys::Oid, lake_table: &str) -> Result<bool, Error> {
    holds(
        "WITH heap AS (SELECT attnum, attname, atttypid, atttypmod, attcollation FROM pg_catalog.pg_attribute
                       WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped),
              lake AS (SELECT attnum, attname, atttypid, atttypmod, attcollation FROM pg_catalog.pg_attribute
                       WHERE attrelid = pg_catalog.to_regclass(pg_catalog.format('lake.%I', $2))
                         AND attnum > 0 AND NOT attisdropped)
         SELECT EXISTS (TABLE heap EXCEPT TABLE lake) OR EXISTS (TABLE lake EXCEPT TABLE heap)",
        &[relation.into(), lake_table.into()],
    )
}

/// Adds a table to the publication, which is made when it is missing.
///
/// A publication made here depends on the extension, so that `DROP EXTENSION` takes it along. The dependency is an
/// automatic one, not that of a member: a dump then holds the publication whole, not its tables alone.
fn publish(schema: &str, table: &str) -> Result<(), Error> {
    let publication = quote_identifier(PUBLICATION);
    // SAFETY: a catalog lookup.
    let exists = unsafe { pg_sys::get_publication_oid(c"lake".as_ptr(), true) } != pg_sys::InvalidOid;
    if !exists {
        Spi::run(&format!("CREATE PUBLICATION {publication}"))?;
        let extension = extension("lake")
            .ok_or_else(|| Error::state("the extension lake is not installed").with_hint("CREATE EXTENSION lake"))?;
        let address = |class, object| pg_sys::ObjectAddress { classId: class, objectId: object, objectSubId: 0 };
        // SAFETY: both objects exist; the addresses live during the call.
        unsafe {
            let made = pg_sys::get_publication_oid(c"lake".as_ptr(), false);
            let made = address(pg_sys::PublicationRelationId, made);
            let extension = address(pg_sys::ExtensionRelationId, extension);
            pg_sys::recordDependencyOn(&raw const made, &raw const extension, pg_sys::DependencyType::DEPENDENCY_AUTO);
        }
    }
    let published = "SELECT true FROM pg_catalog.pg_publication_tables
                     WHERE pubname = $1 AND schemaname = $2 AND tablename = $3";
    if !holds(published, &[PUBLICATION.into(), schema.into(), table.into()])? {
        let name = pgrx::spi::quote_qualified_identifier(schema, table);
        Spi::run(&format!("ALTER PUBLICATION {publication} ADD TABLE ONLY {name}"))?;
    }
    Ok(())
}

/// Keeps the newest failure of the engine as a whole.
pub(crate) fn note_engine_error(message: &str, hint: Option<&str>, failures: u32) -> Result<(), Error> {
    wait_little_for_locks()?;
    Spi::run_with_args(
        "INSERT INTO lake_catalog.engine_error (at, message, hint, failures)
         VALUES (pg_catalog.clock_timestamp(), $1, $2, $3)
         ON CONFLICT (only_row) DO UPDATE
         SET at = excluded.at, message = excluded.message, hint = excluded.hint, failures = excluded.failures",
        &[message.into(), hint.into(), i64::from(failures).into()],
    )?;
    Ok(())
}

/// Forgets it, when the engine has shown that it runs.
pub(crate) fn clear_engine_error() -> Result<(), Error> {
    wait_little_for_locks()?;
    Spi::run("DELETE FROM lake_catalog.engine_error")?;
    Ok(())
}

/// The worker must not hang behind a `DROP EXTENSION` that is not committed: it has an engine to watch.
fn wait_little_for_locks() -> Result<(), Error> {
    Spi::run("SET LOCAL lock_timeout = '1s'")?;
    Ok(())
}

/// Drops this database's slot; returns whether there was one. An error while it is active.
///
/// An extension that was made since has a slot of the same name, which is its own as soon as its mirror has begun: that one
/// stays. (Before it begins, a slot that is there is the former one's. The mirror would replace it, but nobody knows when.)
pub(crate) fn drop_slot() -> Result<bool, Error> {
    let begun = "SELECT lsn IS NOT NULL FROM lake_catalog.mirrors WHERE mirror = $1";
    if extension("lake").is_some() && holds(begun, &[MIRROR.into()])? {
        return Ok(false);
    }
    let slot = settings::slot_name();
    let exists = "SELECT true FROM pg_catalog.pg_replication_slots
                  WHERE slot_name = $1 AND database = pg_catalog.current_database()";
    if !holds(exists, &[slot.as_str().into()])? {
        return Ok(false);
    }
    Spi::run_with_args("SELECT pg_catalog.pg_drop_replication_slot($1)", &[slot.as_str().into()])?;
    Ok(true)
}
