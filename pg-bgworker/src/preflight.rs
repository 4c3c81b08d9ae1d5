//! What must hold before a table is mirrored. All of it is checked before anything is changed, and each refusal says
//! what to do.

use pgrx::prelude::*;

use crate::error::Error;
use crate::launcher::not_preloaded;
use crate::registry::{self, Mirror};
use crate::settings;

/// A table that may be mirrored.
#[derive(Debug)]
pub(crate) struct Source {
    /// Its schema.
    pub(crate) schema: String,
    /// Its name.
    pub(crate) table: String,
}

/// The facts of `pg_class` that decide.
struct Class {
    schema: String,
    table: String,
    kind: String,
    persistence: String,
    replica_identity: String,
    has_children: bool,
    has_usable_key: bool,
    has_deferrable_key: bool,
    identity_is_key: bool,
}

/// Whether the server can run a mirror of this database at all.
pub(crate) fn check_server() -> Result<(), Error> {
    // SAFETY: plain reads on the main thread.
    let (encoding, recovery) = unsafe { (pg_sys::GetDatabaseEncoding(), pg_sys::RecoveryInProgress()) };
    if recovery {
        return Err(Error::state("a standby cannot mirror tables").with_hint("run this on the primary"));
    }
    if !settings::preloaded() {
        return Err(not_preloaded());
    }
    let wal_level = setting("wal_level")?;
    if wal_level != "logical" {
        return Err(Error::state("wal_level must be logical")
            .with_detail(format!("It is \"{wal_level}\"."))
            .with_hint("ALTER SYSTEM SET wal_level = 'logical', then restart the server"));
    }
    if encoding != pg_sys::pg_enc::PG_UTF8.cast_signed() {
        let name = setting("server_encoding")?;
        return Err(Error::unsupported("only databases in UTF8 can be mirrored")
            .with_detail(format!("The encoding of this database is \"{name}\"."))
            .with_hint("Iceberg's strings are UTF-8; move the table into a database with ENCODING 'UTF8'"));
    }
    let template = "SELECT datistemplate FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()";
    if registry::holds(template, &[])? {
        return Err(Error::unsupported("a template database cannot be mirrored")
            .with_hint("mirror the databases made from it, or ALTER DATABASE … IS_TEMPLATE false"));
    }
    check_room_for_slot()
}

/// The slot is made by the engine, after this transaction: refuse now what would fail then, unseen.
fn check_room_for_slot() -> Result<(), Error> {
    let exists = "SELECT true FROM pg_catalog.pg_replication_slots WHERE slot_name = $1";
    if registry::holds(exists, &[settings::slot_name().into()])? {
        return Ok(());
    }
    let count = |what: &str| -> Result<i64, Error> {
        let query = format!("SELECT pg_catalog.count(*) FROM pg_catalog.{what}");
        Ok(registry::row(&query, &[], |row| row.get_one::<i64>())?.flatten().unwrap_or_default())
    };
    for (name, used_by) in
        [("max_replication_slots", "pg_replication_slots"), ("max_wal_senders", "pg_stat_replication")]
    {
        let limit: i64 = setting(name)?.parse().unwrap_or_default();
        let used = count(used_by)?;
        if used >= limit {
            return Err(Error::new(
                PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                format!("{name} leaves no room for the mirror"),
            )
            .with_detail(format!("{used} of {limit} are in use; a mirror needs one for each database."))
            .with_hint(format!("drop replication slots that nobody uses, or raise {name} and restart the server")));
        }
    }
    Ok(())
}

fn setting(name: &str) -> Result<String, Error> {
    let value = registry::row("SELECT pg_catalog.current_setting($1)", &[name.into()], |row| row.get_one::<String>())?;
    Ok(value.flatten().unwrap_or_default())
}

/// Whether the current user may decide about this table.
pub(crate) fn check_owner(relation: pg_sys::Oid) -> Result<(), Error> {
    let owner = "SELECT pg_catalog.pg_has_role(relowner, 'USAGE') FROM pg_catalog.pg_class WHERE oid = $1";
    match registry::row(owner, &[relation.into()], |row| row.get_one::<bool>())?.flatten() {
        Some(true) => Ok(()),
        Some(false) => {
            let name = registry::row("SELECT $1::pg_catalog.regclass::text", &[relation.into()], |row| row.get_one())?;
            let name: String = name.flatten().unwrap_or_default();
            Err(Error::new(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("must be owner of table {name}"))
                .with_detail("Mirroring copies all rows of a table and publishes its changes.")
                .with_hint("ask the table's owner, or a superuser, to call this function"))
        }
        None => Err(Error::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            format!("relation with OID {} does not exist", u32::from(relation)),
        )
        .with_hint("name the table, as in lake.mirror('schema.table')")),
    }
}

/// Whether the table can be mirrored, append-only perhaps: then nothing need tell its rows apart.
pub(crate) fn check_table(relation: pg_sys::Oid, append_only: bool) -> Result<Source, Error> {
    let class = read_class(relation)?;
    let name = format!("\"{}\"", class.table);
    check_kind(&class, &name)?;
    if !append_only {
        check_key(&class, &name)?;
    }
    check_columns(relation, &name)?;
    Ok(Source { schema: class.schema, table: class.table })
}

fn read_class(relation: pg_sys::Oid) -> Result<Class, Error> {
    let query =
        "SELECT n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relreplident::text,
            EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhparent = c.oid),
            coalesce(k.indisvalid AND k.indimmediate, false), coalesce(NOT k.indimmediate, false),
            c.relreplident IN ('d', 'f') OR coalesce(k.indisreplident, false)
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_catalog.pg_index k ON k.indrelid = c.oid AND k.indisprimary
        WHERE c.oid = $1";
    let class = registry::row(query, &[relation.into()], |row| {
        let flag = |column| row.get::<bool>(column).map(Option::unwrap_or_default);
        let text = |column| row.get::<String>(column).map(Option::unwrap_or_default);
        Ok(Class {
            schema: text(1)?,
            table: text(2)?,
            kind: text(3)?,
            persistence: text(4)?,
            replica_identity: text(5)?,
            has_children: flag(6)?,
            has_usable_key: flag(7)?,
            has_deferrable_key: flag(8)?,
            identity_is_key: flag(9)?,
        })
    })?;
    class.ok_or_else(|| Error::new(PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE, "the relation does not exist"))
}

fn check_kind(class: &Class, name: &str) -> Result<(), Error> {
    let wrong = |what: &str| Error::new(PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE, format!("{name} is {what}"));
    let ordinary = "only ordinary tables can be mirrored; mirror the tables it reads from";
    match class.kind.as_str() {
        "r" => {}
        "p" => {
            return Err(Error::unsupported(format!("{name} is a partitioned table"))
                .with_detail("Partitioned tables cannot be mirrored as a whole yet.")
                .with_hint("mirror its partitions, each under a name of its own"));
        }
        "v" => return Err(wrong("a view").with_hint(ordinary)),
        "m" => return Err(wrong("a materialized view").with_hint(ordinary)),
        "f" => return Err(wrong("a foreign table").with_hint("mirror it where its data is")),
        _ => return Err(wrong("not a table").with_hint("only ordinary tables can be mirrored")),
    }
    match class.persistence.as_str() {
        "t" => {
            return Err(Error::unsupported(format!("{name} is a temporary table"))
                .with_detail("Its changes are not in the WAL.")
                .with_hint("only permanent tables can be mirrored"));
        }
        "u" => {
            return Err(Error::unsupported(format!("{name} is an unlogged table"))
                .with_detail("Its changes are not in the WAL.")
                .with_hint(format!("ALTER TABLE {name} SET LOGGED")));
        }
        _ => {}
    }
    if ["pg_catalog", "information_schema", "lake", "lake_catalog"].contains(&class.schema.as_str()) {
        return Err(wrong("a system table").with_hint("only tables of users can be mirrored"));
    }
    if class.has_children {
        return Err(Error::unsupported(format!("{name} has inheritance children"))
            .with_detail("A query of it also reads its children, whose rows are not in its own changes.")
            .with_hint("mirror the children, each under a name of its own"));
    }
    Ok(())
}

/// The way out for a table that has nothing to tell its rows apart by.
const APPEND_ONLY: &str = "or, where rows are only ever inserted: lake.mirror(…, append_only => true)";

fn check_key(class: &Class, name: &str) -> Result<(), Error> {
    if class.has_deferrable_key {
        return Err(Error::state(format!("the primary key of {name} is deferrable"))
            .with_detail("Postgres does not use a deferrable key to identify changed rows.")
            .with_hint(format!("make it NOT DEFERRABLE: drop the key of {name} and add it again")));
    }
    // All columns identify a row; rows that are equal are each other's stand-in.
    if class.replica_identity == "f" && !class.has_usable_key {
        return Ok(());
    }
    if !class.has_usable_key {
        return Err(Error::state(format!("{name} has no primary key"))
            .with_detail("Updates and deletes name their row by its key.")
            .with_hint(format!(
                "ALTER TABLE {name} ADD PRIMARY KEY (…); where no column is unique: ALTER TABLE {name} REPLICA IDENTITY FULL; \
                 {APPEND_ONLY}"
            )));
    }
    if class.replica_identity == "n" {
        return Err(Error::state(format!("the replica identity of {name} is \"nothing\""))
            .with_detail("Its updates and deletes do not say which row they changed.")
            .with_hint(format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT; {APPEND_ONLY}")));
    }
    if !class.identity_is_key {
        return Err(Error::state(format!("the replica identity of {name} is another index than its primary key"))
            .with_detail("Its updates and deletes do not name the key of the row they changed.")
            .with_hint(format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT")));
    }
    Ok(())
}

/// All columns that stand in the way are named at once. Types never do.
fn check_columns(relation: pg_sys::Oid, name: &str) -> Result<(), Error> {
    let query = "SELECT attname::text FROM pg_catalog.pg_attribute
        WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated <> '' ORDER BY attnum";
    let mut generated = Vec::new();
    Spi::connect(|client| -> Result<(), pgrx::spi::Error> {
        for row in client.select(query, None, &[relation.into()])? {
            let column: String = row.get(1)?.unwrap_or_default();
            generated.push(format!("Column \"{column}\" is generated."));
        }
        Ok(())
    })?;
    if !generated.is_empty() {
        return Err(Error::unsupported(format!("{name} has generated columns"))
            .with_detail(generated.join("\n"))
            .with_hint("logical replication of this server does not send them; ALTER TABLE … ALTER COLUMN … DROP EXPRESSION keeps their values"));
    }
    Ok(())
}

/// Whether this database's registry is its own.
pub(crate) fn check_mirror() -> Result<(), Error> {
    match registry::mirror_of_database()? {
        Some(Mirror::Foreign { slot }) => Err(Error::state("this database is a copy of a mirrored one")
            .with_detail(format!("Its registry belongs to the slot \"{slot}\", not to \"{}\".", settings::slot_name()))
            .with_hint("DROP EXTENSION lake CASCADE, then CREATE EXTENSION lake and mirror the tables anew")),
        Some(Mirror::Ours) => Ok(()),
        // SAFETY: a catalog lookup.
        None if unsafe { pg_sys::get_publication_oid(c"lake".as_ptr(), true) } != pg_sys::InvalidOid => {
            Err(Error::new(
                PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
                format!("publication \"{}\" exists, and is not that of a mirror", registry::PUBLICATION),
            )
            .with_detail("It came with a restored dump, or somebody made it.")
            .with_hint(format!("DROP PUBLICATION {}, or rename it", registry::PUBLICATION)))
        }
        None => Ok(()),
    }
}

/// Whether a table's changes can be kept: the history has columns of its own. (Readers do not tell case apart.)
pub(crate) fn check_history(relation: pg_sys::Oid) -> Result<(), Error> {
    let query = "SELECT pg_catalog.format('Column %I of %s.', attname, attrelid::pg_catalog.regclass)
        FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped
        AND pg_catalog.lower(attname) IN ('_op', '_lsn', '_committed_at', '_xid', '_seq') LIMIT 1";
    match registry::row(query, &[relation.into()], |row| row.get_one::<String>())?.flatten() {
        None => Ok(()),
        Some(column) => Err(Error::new(
            PgSqlErrorCode::ERRCODE_DUPLICATE_COLUMN,
            "the table has a column that is named like one of its history's own",
        )
        .with_detail(column)
        .with_hint("ALTER TABLE … RENAME COLUMN …, or mirror it without a history")),
    }
}

/// Whether the name of a table's history is free in the lake.
pub(crate) fn check_history_name(schema: &str, lake_table: &str) -> Result<(), Error> {
    let taken = "SELECT pg_catalog.format('%I.%I is mirrored under that name', source_schema, source_table)
         FROM lake_catalog.mirrored_tables WHERE source_schema = $1 AND lake_table = $2 || '_history' LIMIT 1";
    match registry::row(taken, &[schema.into(), lake_table.into()], |row| row.get_one::<String>())?.flatten() {
        None => Ok(()),
        Some(why) => Err(Error::new(
            PgSqlErrorCode::ERRCODE_DUPLICATE_TABLE,
            format!("the name \"{lake_table}_history\" is taken in the lake"),
        )
        .with_detail(format!("{why}."))
        .with_hint("lake.unmirror one of the two, then mirror it under another name, \"as\" => 'another_name'")),
    }
}

/// Whether the name is free in the lake.
pub(crate) fn check_name(schema: &str, lake_table: &str) -> Result<(), Error> {
    let other = format!("choose another name: lake.mirror('{schema}.…', \"as\" => 'another_name')");
    if lake_table.is_empty() || lake_table.len() > 63 {
        return Err(Error::new(PgSqlErrorCode::ERRCODE_INVALID_NAME, "a name in the lake has 1 to 63 bytes")
            .with_detail(format!("\"{lake_table}\" has {}.", lake_table.len()))
            .with_hint(other));
    }
    let taken = "SELECT coalesce(
            (SELECT pg_catalog.format('%I.%I is mirrored under that name', source_schema, source_table)
             FROM lake_catalog.mirrored_tables WHERE lake_table = $1 LIMIT 1),
            (SELECT pg_catalog.format('the history of %I.%I has that name', source_schema, source_table)
             FROM lake_catalog.mirrored_tables
             WHERE history AND source_schema = $2 AND lake_table || '_history' = $1 LIMIT 1),
            (SELECT 'a relation of that name exists in the schema lake' FROM pg_catalog.pg_class
             WHERE relnamespace = 'lake'::pg_catalog.regnamespace AND relname = $1))";
    match registry::row(taken, &[lake_table.into(), schema.into()], |row| row.get_one::<String>())?.flatten() {
        None => Ok(()),
        Some(why) => Err(Error::new(
            PgSqlErrorCode::ERRCODE_DUPLICATE_TABLE,
            format!("the name \"{lake_table}\" is taken in the lake"),
        )
        .with_detail(format!("{why}."))
        .with_hint(match left_over(lake_table)? {
            Some(oid) => format!("that table was dropped: SELECT lake.unmirror({oid}) ends its mirror; or {other}"),
            None => other,
        })),
    }
}

/// The oid of a table that is mirrored under a name, and does not exist any more.
fn left_over(lake_table: &str) -> Result<Option<pg_sys::Oid>, Error> {
    let gone = "SELECT relation FROM lake_catalog.mirrored_tables m WHERE lake_table = $1
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = m.relation)";
    Ok(registry::row(gone, &[lake_table.into()], |row| row.get_one::<pg_sys::Oid>())?.flatten())
}
