//! The partitions of a partitioned table that is mirrored as one: which there are, and what of their changes the stream
//! leaves out.
//!
//! With `publish_via_partition_root` the rows of all partitions arrive under the root's name. Not in the stream are
//! ATTACH of a partition that has rows, DETACH, DROP, and TRUNCATE of a partition. They show in the catalog only, where
//! each leaves a trace: another set of partitions, another `pg_inherits` row (its `xmin`: so a partition that was
//! detached and attached again between two looks is noticed), or another file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::Result;
use crate::table::RowIdentity;

use super::identifier::quote;

/// A partition, at whatever level: only those without partitions of their own hold rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) root: u32,
    pub(crate) oid: u32,
    schema: String,
    name: String,
    /// `pg_class.relkind`.
    pub(crate) kind: String,
    /// `pg_class.relpersistence`.
    pub(crate) persistence: String,
    link: Link,
}

/// What must be as it was for nothing to have happened beside the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Link {
    parent: u32,
    /// The transaction that made it a partition of its parent.
    since: i64,
    /// `pg_class.relfilenode`; 0 where the rows are in partitions of its own.
    file: u32,
    /// `pg_class.relreplident`.
    identity: String,
}

/// The partitions whose rows the mirror has, by oid. The registry keeps them as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Links(BTreeMap<u32, Link>);

/// What became of the partitions since they were last looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Since {
    Nothing,
    /// All changes of rows are in the stream; these are the partitions now.
    Grown(Links),
    /// Changes may be missing, and why.
    Changed(String),
}

impl Partition {
    pub(crate) fn is_leaf(&self) -> bool {
        self.kind != "p"
    }

    /// As in SQL.
    pub(crate) fn full_name(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }

    /// As in messages.
    pub(crate) fn shown(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

impl Links {
    pub(crate) fn of(partitions: &[Partition]) -> Self {
        Self(partitions.iter().map(|partition| (partition.oid, partition.link.clone())).collect())
    }

    pub(crate) fn contains(&self, oid: u32) -> bool {
        self.0.contains_key(&oid)
    }

    /// As the registry keeps them.
    pub(crate) fn to_text(&self) -> String {
        // Numbers and letters under numbers: that cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// As the registry had them. `None`: it had none, or in a form that is not ours.
    pub(crate) fn from_text(text: Option<&str>) -> Option<Self> {
        serde_json::from_str(text?).ok()
    }
}

/// The partitions of these roots, at all levels, by oid: as the client's snapshot has them, if it holds one. (The
/// functions `pg_partition_tree` and the like go by what is true now.)
///
/// A partition that is being detached concurrently is none any more: its changes do not come under the root's name.
///
/// # Errors
/// [`crate::ErrorKind::SourceUnreachable`].
pub(crate) async fn read(client: &Client, roots: &[u32]) -> Result<Vec<Partition>> {
    let rows = client
        .query(
            "WITH RECURSIVE tree AS ( \
                 SELECT inhparent AS root, inhrelid AS oid, inhparent AS parent, xmin::text::int8 AS since \
                 FROM pg_inherits WHERE inhparent = ANY ($1) AND NOT inhdetachpending \
                 UNION ALL \
                 SELECT t.root, i.inhrelid, i.inhparent, i.xmin::text::int8 \
                 FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid AND NOT i.inhdetachpending) \
             SELECT t.root, t.oid, n.nspname, c.relname, c.relkind::text, c.relpersistence::text, t.parent, t.since, \
                    c.relfilenode, c.relreplident::text \
             FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY t.oid",
            &[&roots],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| Partition {
            root: row.get(0),
            oid: row.get(1),
            schema: row.get(2),
            name: row.get(3),
            kind: row.get(4),
            persistence: row.get(5),
            link: Link { parent: row.get(6), since: row.get(7), file: row.get(8), identity: row.get(9) },
        })
        .collect())
}

/// Compares the partitions that there are with those whose rows the mirror has. `key`: the names of its key's columns.
///
/// # Errors
/// [`crate::ErrorKind::SourceUnreachable`].
pub(crate) async fn since(
    client: &Client,
    known: &Links,
    now: &[Partition],
    identity: RowIdentity,
    key: &[&str],
) -> Result<Since> {
    let links = Links::of(now);
    if links == *known {
        return Ok(Since::Nothing);
    }
    if let Some(oid) = known.0.keys().find(|oid| !links.contains(**oid)) {
        return Ok(Since::Changed(format!("the partition with oid {oid} was detached or dropped")));
    }
    let (mut new, mut reidentified) = (Vec::new(), Vec::new());
    for partition in now {
        let Some(before) = known.0.get(&partition.oid) else {
            new.push(partition.oid);
            continue;
        };
        if (before.parent, before.since) != (partition.link.parent, partition.link.since) {
            return Ok(Since::Changed(format!("partition {} was attached anew", partition.shown())));
        }
        if before.file != partition.link.file {
            return Ok(Since::Changed(format!("partition {} was truncated or rewritten", partition.shown())));
        }
        if before.identity != partition.link.identity {
            reidentified.push(partition.oid);
        }
    }
    let empty = created_empty(client, &new).await?;
    let name = |oid: u32| now.iter().find(|partition| partition.oid == oid).map_or_else(String::new, Partition::shown);
    if let Some(oid) = new.iter().find(|oid| !empty.contains(oid)) {
        return Ok(Since::Changed(format!("partition {} came, perhaps with rows", name(*oid))));
    }
    new.extend(reidentified);
    if let Some(oid) = unidentified(client, &new, identity, key).await? {
        return Ok(Since::Changed(format!("partition {} has another replica identity than its root", name(oid))));
    }
    Ok(Since::Grown(links))
}

/// Of new partitions those that had no rows when they became partitions: all of their rows are in the stream.
///
/// Either they have no block even now, or they were created as partitions (`CREATE TABLE … PARTITION OF`). The proof of
/// that is in the order of commands: CREATE writes a table's columns, and by a later command of the same transaction its
/// place in the tree; ATTACH writes both by one command, and all columns of the table. `xmax` shows that nobody has tried to
/// change the rows since, for then `cmin` says nothing. Both need the file with which the table was created: a
/// partition that was truncated has another.
async fn created_empty(client: &Client, new: &[u32]) -> Result<Vec<u32>> {
    if new.is_empty() {
        return Ok(Vec::new());
    }
    let rows = client
        .query(
            "SELECT c.oid FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid \
             WHERE c.oid = ANY ($1) AND c.relpersistence = 'p' \
               AND (c.relkind = 'p' OR c.relkind = 'r' AND c.relfilenode = c.oid) \
               AND (c.relkind = 'r' AND pg_relation_size(c.oid) = 0 \
                    OR i.xmax::text = '0' AND EXISTS (SELECT FROM pg_attribute a \
                       WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.xmin = i.xmin AND a.xmax::text = '0' \
                         AND a.cmin::text::int8 < i.cmin::text::int8))",
            &[&new],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The first of these partitions whose updates and deletes do not name their row as the mirror of the root knows it.
/// (What of a row they bring is the partition's affair, though the stream describes the root.) One that has no replica
/// identity at all is fit: Postgres refuses its updates and deletes.
///
/// # Errors
/// [`crate::ErrorKind::SourceUnreachable`].
pub(crate) async fn unidentified(
    client: &Client,
    partitions: &[u32],
    identity: RowIdentity,
    key: &[&str],
) -> Result<Option<u32>> {
    if partitions.is_empty() {
        return Ok(None);
    }
    let rows = client
        .query(
            "SELECT c.oid, c.relreplident = 'f', \
                    ARRAY(SELECT a.attname::text FROM pg_index x JOIN pg_attribute a ON a.attrelid = c.oid \
                          WHERE x.indrelid = c.oid AND x.indisvalid AND x.indimmediate \
                            AND CASE c.relreplident WHEN 'd' THEN x.indisprimary WHEN 'i' THEN x.indisreplident END \
                            AND a.attnum = ANY (x.indkey::int2[])) \
             FROM pg_class c WHERE c.oid = ANY ($1) AND c.relkind = 'r'",
            &[&partitions],
        )
        .await?;
    Ok(rows.iter().find_map(|row| {
        let (oid, full, columns): (u32, bool, Vec<String>) = (row.get(0), row.get(1), row.get(2));
        let fit = full
            || columns.is_empty()
            || match identity {
                RowIdentity::Key => key.iter().all(|name| columns.iter().any(|column| column == name)),
                RowIdentity::FullRow => false,
                RowIdentity::AppendOnly => true,
            };
        (!fit).then_some(oid)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_come_back_from_their_text() {
        let link = Link { parent: 7, since: 4_000_000_000, file: 8, identity: "d".to_owned() };
        let links = Links(BTreeMap::from([(9, link)]));
        assert_eq!(Links::from_text(Some(&links.to_text())), Some(links));
        assert_eq!(Links::from_text(Some(&Links::default().to_text())), Some(Links::default()));
        assert_eq!(Links::from_text(None), None);
        assert_eq!(Links::from_text(Some("")), None);
    }
}
