//! What to make of a table that someone else committed to.
//!
//! Files that were only added are taken over. Positions that the caller holds stay true then, because no file it knows
//! went away or lost rows. Where files were rewritten and no row was changed ([`super::ancestry`] says how that is known), the
//! table is taken over, and the positions are not. Everything else is an error that names the table.

use std::collections::BTreeSet;

use iceberg::spec::{DataContentType, ManifestEntryRef, ManifestFile};
use tracing::info;
use uuid::Uuid;

use super::ancestry::Ancestry;
use crate::error::Result;
use crate::live_files::{LiveFile, load_live_by_spec, load_live_entries};
use crate::table::LakeTable;
use crate::warehouse::Warehouse;

/// What is not foreign.
#[derive(Default)]
pub(super) struct Ours<'a> {
    /// Files that may have come or gone.
    pub(super) files: BTreeSet<&'a str>,
    /// Data files whose deletion vectors may have gone.
    pub(super) vectors_of: BTreeSet<String>,
}

/// A file, or a part of it: deletion vectors may share one.
type Identity<'a> = (&'a str, Option<i64>);

fn identity(entry: &ManifestEntryRef) -> Identity<'_> {
    (entry.file_path(), entry.data_file().content_offset())
}

/// What someone else made of a table.
pub(super) enum Foreign {
    /// There are these files besides, and all that there were.
    Added(Vec<LiveFile>),
    /// The rows are in other files.
    Rewritten,
}

/// What happened to a table between `base` and `found`, where that has changed no row which the mirror knows. What is
/// `ours` does not count as foreign. `by` is the mirror and the attempt that wants to know.
pub(super) async fn foreign_commits(
    warehouse: &Warehouse,
    base: &LakeTable,
    found: &LakeTable,
    ours: &Ours<'_>,
    by: (&str, Uuid),
) -> Result<Foreign> {
    let (mirror, attempt) = by;
    let added = foreign_files(warehouse, base, found, ours).await;
    if base.uuid() != found.uuid() {
        return added.map(Foreign::Added);
    }
    let ancestry = match (Ancestry::of(warehouse, found, mirror).await, &added) {
        (Ok(ancestry), _) => ancestry,
        // That all files are there is proof enough.
        (Err(_), Ok(_)) => return added.map(Foreign::Added),
        (Err(error), Err(_)) => return Err(error),
    };
    match added {
        Ok(files) => {
            if ancestry.has_rewrites() {
                ancestry.prove(warehouse, found).await?;
            }
            Ok(Foreign::Added(files))
        }
        // Manifests that are gone with expired snapshots say nothing against what has been proved without them.
        Err(error) if ancestry.has_rewrites() || ancestry.ends_at(attempt) || error.table().is_none() => {
            ancestry.prove(warehouse, found).await?;
            info!(table = found.full_name(), "another engine rewrote files; the table is taken over");
            Ok(Foreign::Rewritten)
        }
        Err(error) => Err(error),
    }
}

/// The files that `found` has and `base` has not, when that is all that happened between the two, but for `ours`.
async fn foreign_files(
    warehouse: &Warehouse,
    base: &LakeTable,
    found: &LakeTable,
    ours: &Ours<'_>,
) -> Result<Vec<LiveFile>> {
    if base.uuid() != found.uuid() {
        return Err(base.foreign_change("was dropped and made again by someone else"));
    }
    // A server may have put a table elsewhere than it was prepared for.
    let entered = base.metadata_location().is_some();
    if entered && base.metadata().location() != found.metadata().location() {
        return Err(base.foreign_change("was moved to another location by someone else"));
    }
    // Manifests never change, so those that both have need no look.
    let paths = |table: &LakeTable| table.manifests().iter().map(|m| m.manifest_path.clone()).collect::<BTreeSet<_>>();
    let (before, after) = (paths(base), paths(found));
    let missing_from = |table: &LakeTable, other: &BTreeSet<String>| {
        let own = |manifest: &&ManifestFile| !other.contains(&manifest.manifest_path);
        table.manifests().iter().filter(own).cloned().collect::<Vec<_>>()
    };
    let old = load_live_entries(warehouse, &missing_from(base, &after)).await?;
    let new = load_live_by_spec(warehouse, &missing_from(found, &before)).await?;
    let present: BTreeSet<Identity<'_>> = new.iter().map(|(_, entry)| identity(entry)).collect();
    let is_replaced = |entry: &ManifestEntryRef| {
        let of = entry.data_file().referenced_data_file().filter(|_| entry.content_type() != DataContentType::Data);
        of.is_some_and(|data_file| ours.vectors_of.contains(&data_file))
    };
    let is_lost = |entry: &&ManifestEntryRef| {
        !present.contains(&identity(entry)) && !ours.files.contains(entry.file_path()) && !is_replaced(entry)
    };
    if let Some(gone) = old.iter().find(is_lost) {
        let what = format!("lost the file {} to someone else's commit", gone.file_path());
        return Err(base.foreign_change(&what));
    }
    let known: BTreeSet<Identity<'_>> = old.iter().map(identity).collect();
    let is_known =
        |entry: &ManifestEntryRef| known.contains(&identity(entry)) || ours.files.contains(entry.file_path());
    let mut added = Vec::new();
    for (spec_id, entry) in new.iter().filter(|(_, entry)| !is_known(entry)) {
        if entry.content_type() != DataContentType::Data {
            let what = format!("had rows deleted by someone else, in {}", entry.file_path());
            return Err(base.foreign_change(&what));
        }
        added.push(found.live_file(*spec_id, entry)?);
    }
    Ok(added)
}
