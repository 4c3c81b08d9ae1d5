//! `lake.mirror`, `lake.unmirror` and `lake.resync`: what a user wants mirrored. They write the wish down (registry, publication, and
//! the relation `lake.<table>` where `lake_query` is installed) in the caller's transaction; the engine acts on it when
//! that has committed.
//!
//! The function's definition sets `lock_timeout`: the one lock on the table that is needed (SHARE UPDATE EXCLUSIVE, by
//! ALTER PUBLICATION) never stops a reader or writer, but queues behind maintenance commands.

use std::panic::AssertUnwindSafe;

use pgrx::pg_sys::PgTryBuilder;
use pgrx::prelude::*;

use crate::error::{Error, or_raise};
use crate::lock::Lock;
use crate::preflight;
use crate::registry::{self, Kept, MirroredTable};

/// `lake.mirror(rel, as, append_only, history, partition_by, sort_by)`; returns the name of the table in the lake.
#[pg_extern]
fn lake_mirror(
    relation: Option<pg_sys::Oid>,
    lake_table: Option<String>,
    append_only: Option<bool>,
    history: Option<bool>,
    partition_by: Option<String>,
    sort_by: Option<String>,
) -> String {
    let append_only = append_only.unwrap_or_default();
    let layout = WantedLayout { partition_by, sort_by };
    or_raise(required(relation).and_then(|relation| mirror(relation, lake_table, append_only, history, &layout)))
}

/// `lake.unmirror(rel)`.
#[pg_extern]
fn lake_unmirror(relation: Option<pg_sys::Oid>) {
    or_raise(required(relation).and_then(unmirror));
}

/// `lake.resync(rel)`.
#[pg_extern]
fn lake_resync(relation: Option<pg_sys::Oid>) {
    or_raise(required(relation).and_then(resync));
}

/// A null is an error here, not "do nothing": a typo must not look like a success.
pub(crate) fn required<T>(argument: Option<T>) -> Result<T, Error> {
    argument.ok_or_else(|| {
        Error::new(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, "the table must not be null")
            .with_hint("name the table, as in lake.mirror('schema.table')")
    })
}

/// How a table's files are to be cut, as far as the caller says it.
struct WantedLayout {
    partition_by: Option<String>,
    sort_by: Option<String>,
}

impl WantedLayout {
    fn is_given(&self) -> bool {
        self.partition_by.is_some() || self.sort_by.is_some()
    }

    /// Lays a mirrored table out like this. As the owner of the registry.
    fn write_down(&self, relation: pg_sys::Oid) -> Result<(), Error> {
        let (told, before) = registry::layout(relation)?;
        let (partition_by, sort_by) = (self.partition_by.as_deref(), self.sort_by.as_deref());
        let layout = cdc_worker::layout_of_told(&told, before.as_deref(), partition_by, sort_by).map_err(|error| {
            let refused = Error::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, error.to_string());
            error.hint().into_iter().fold(refused, Error::with_hint)
        })?;
        registry::set_layout(relation, layout)
    }
}

fn mirror(
    relation: pg_sys::Oid,
    lake_table: Option<String>,
    append_only: bool,
    history: Option<bool>,
    layout: &WantedLayout,
) -> Result<String, Error> {
    preflight::check_owner(relation)?;
    preflight::check_server()?;
    with_patience(|| {
        registry::as_owner(|| {
            Lock::Registry.for_transaction();
            preflight::check_mirror()
        })?;
        if let Some(existing) = registry::as_owner(|| registry::mirrored_table(relation))? {
            return already_mirrored(relation, existing, lake_table, append_only, history, layout);
        }
        let source = preflight::check_table(relation, append_only)?;
        let history = history.unwrap_or_default();
        if history {
            preflight::check_history(relation)?;
        }
        let lake_table = lake_table.unwrap_or_else(|| source.table.clone());
        registry::as_owner(|| {
            preflight::check_name(&source.schema, &lake_table)?;
            if history {
                preflight::check_history_name(&source.schema, &lake_table)?;
            }
            let how = Kept { append_only, history };
            registry::insert_table(relation, &source.schema, &source.table, &lake_table, how)?;
            if layout.is_given() {
                layout.write_down(relation)?;
            }
            if append_only {
                warning!(
                    "{lake_table} is mirrored append-only: Postgres refuses updates and deletes of a published table without \
                     a replica identity, and one that comes all the same stops its mirror"
                );
            }
            if registry::extension("lake_query").is_some() {
                Spi::run_with_args(
                    "SELECT lake.create_relation($1::pg_catalog.regclass, $2)",
                    &[relation.into(), lake_table.as_str().into()],
                )?;
            }
            Ok(lake_table)
        })
    })
}

/// A second call is fine, unless it asks for something else.
fn already_mirrored(
    relation: pg_sys::Oid,
    existing: MirroredTable,
    wanted: Option<String>,
    append_only: bool,
    history: Option<bool>,
    layout: &WantedLayout,
) -> Result<String, Error> {
    let is = existing.lake_table;
    if existing.append_only != append_only {
        let how = if existing.append_only { "append-only" } else { "with its updates and deletes" };
        return Err(Error::new(
            PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            format!("the table is already mirrored, {how}"),
        )
        .with_hint("lake.unmirror it first, then mirror it anew"));
    }
    match wanted {
        Some(wanted) if wanted != is => Err(Error::new(
            PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            format!("the table is already mirrored, under the name \"{is}\""),
        )
        .with_hint("lake.unmirror it first, then mirror it under the new name")),
        _ => {
            let history = history.filter(|history| *history != existing.history);
            if layout.is_given() {
                registry::as_owner(|| layout.write_down(relation))?;
            }
            match history {
                Some(history) => keep_history(relation, &is, append_only, history)?,
                None if layout.is_given() => {}
                None => notice!("the table is already mirrored, under the name \"{is}\""),
            }
            Ok(is)
        }
    }
}

/// Turns the history of a mirrored table on or off. It begins with a copy, so the table is copied anew.
fn keep_history(relation: pg_sys::Oid, lake_table: &str, append_only: bool, history: bool) -> Result<(), Error> {
    if !history {
        registry::as_owner(|| registry::end_history(relation))?;
        notice!("the history of \"{lake_table}\" ends; its Iceberg table stays as it is");
        return Ok(());
    }
    let source = preflight::check_table(relation, append_only)?;
    preflight::check_history(relation)?;
    registry::as_owner(|| {
        preflight::check_history_name(&source.schema, lake_table)?;
        registry::begin_history(relation, &source.schema, &source.table)
    })?;
    notice!("the table is copied anew, for its history begins with a copy");
    Ok(())
}

fn unmirror(relation: pg_sys::Oid) -> Result<(), Error> {
    let exists = registry::holds("SELECT true FROM pg_catalog.pg_class WHERE oid = $1", &[relation.into()])?;
    if exists {
        preflight::check_owner(relation)?;
    } else {
        // Nobody owns a dropped table any more.
        // SAFETY: a catalog lookup for the current user.
        if !unsafe { pg_sys::superuser() } {
            return Err(Error::new(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                "only a superuser can end the mirror of a table that was dropped",
            )
            .with_hint("ask a superuser to call lake.unmirror with the table's oid, which lake.mirrors shows"));
        }
    }
    with_patience(|| {
        registry::as_owner(|| {
            Lock::Registry.for_transaction();
            let Some(lake_table) = registry::delete_table(relation)? else {
                notice!("the table is not mirrored");
                return Ok(());
            };
            if registry::extension("lake_query").is_some() {
                Spi::run_with_args("SELECT lake.drop_relation($1)", &[lake_table.into()])?;
            }
            Ok(())
        })
    })
}

fn resync(relation: pg_sys::Oid) -> Result<(), Error> {
    preflight::check_owner(relation)?;
    with_patience(|| {
        let known = registry::as_owner(|| registry::mirrored_table(relation))?;
        let source = preflight::check_table(relation, known.is_some_and(|table| table.append_only))?;
        registry::as_owner(|| {
            Lock::Registry.for_transaction();
            let Some(lake_table) = registry::request_copy(relation, &source.schema, &source.table)? else {
                return Err(Error::new(
                    PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    "the table is not mirrored",
                )
                .with_hint("SELECT lake.mirror(…)"));
            };
            // lake.<table> has the columns that the source had when it was made.
            if registry::extension("lake_query").is_some() && registry::columns_differ(relation, &lake_table)? {
                Spi::run_with_args("SELECT lake.drop_relation($1)", &[lake_table.as_str().into()])?;
                Spi::run_with_args(
                    "SELECT lake.create_relation($1::pg_catalog.regclass, $2)",
                    &[relation.into(), lake_table.into()],
                )?;
            }
            Ok(())
        })
    })
}

/// Runs `body`; says what a lock's time-out means here.
fn with_patience<R>(body: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
    PgTryBuilder::new(AssertUnwindSafe(body))
        .catch_when(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, |_cause| {
            Err(Error::new(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, "the table is locked by another transaction")
                .with_detail(
                    "lake.mirror waits five seconds for its lock, so as not to hold up others. The lock conflicts with \
                     DDL and VACUUM on the table, and with an uncommitted lake.mirror or lake.unmirror; not with reads or writes.",
                )
                .with_hint("try again when the other transaction has ended; pg_locks shows who holds the lock"))
        })
        .execute()
}
