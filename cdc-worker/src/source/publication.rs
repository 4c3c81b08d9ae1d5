//! What the publication sends of a table: nothing, all of it, or the rows and columns that it names.

use tokio_postgres::Client;

use crate::Result;
use crate::config::{EngineConfig, TableSelection};
use crate::error::{COPY_ANEW, Error, ErrorKind};

use super::identifier::quote;

/// SQL: what part of the relation `c` the publication `pub` sends, as text that changes when that does.
pub(crate) const PUBLISHED_AS: &str = "coalesce( \
    (SELECT concat_ws(' ', '(' || array_to_string(r.prattrs::int2[], ', ') || ')', \
                      'WHERE ' || pg_get_expr(r.prqual, r.prrelid)) \
     FROM pg_publication_rel r WHERE r.prpubid = pub.oid AND r.prrelid = c.oid AND NOT EXISTS \
     (SELECT FROM pg_publication_namespace n WHERE n.pnpubid = pub.oid AND n.pnnspid = c.relnamespace)), '')";

/// SQL: the ways in which the publication `pub` has the relation `c`, as text: each is gone when the table has left that
/// way, and another one when it comes back. A partition that comes through its ancestors comes another way when it was
/// detached meanwhile. (All tables: the publication itself.)
pub(crate) const PUBLISHED_BY: &str = "ARRAY(SELECT 'all ' || pub.oid::text WHERE pub.puballtables AND c.oid IS NOT NULL \
     UNION SELECT way.name || CASE WHEN at.relid = c.oid THEN '' ELSE ' by ' || \
         (SELECT string_agg(h.xmin::text, ' ' ORDER BY h.inhrelid) FROM pg_inherits h \
          WHERE h.inhrelid IN (SELECT pg_partition_ancestors(c.oid))) END \
     FROM (SELECT c.oid AS relid UNION SELECT pg_partition_ancestors(c.oid)) at JOIN pg_class ac ON ac.oid = at.relid \
     JOIN LATERAL (SELECT 'table ' || r.oid::text FROM pg_publication_rel r WHERE r.prpubid = pub.oid AND r.prrelid = ac.oid \
         UNION ALL SELECT 'schema ' || n.oid::text FROM pg_publication_namespace n \
         WHERE n.pnpubid = pub.oid AND n.pnnspid = ac.relnamespace) way (name) ON true ORDER BY 1)";

/// SQL: whether the publication `pub` sends stored generated columns of tables that it has no list of columns for. Only
/// servers from 18 on have the option, so it is asked for by its name. (Virtual ones are never sent.)
pub(crate) const PUBLISHES_GENERATED: &str = "coalesce(to_jsonb(pub) ->> 'pubgencols' = 's', false)";

/// What of a table the publication sends, and the lake therefore has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Projection {
    /// [`PUBLISHED_AS`].
    pub(crate) published_as: String,
    /// The numbers of the columns; `None`: all of them.
    pub(crate) columns: Option<Vec<i16>>,
    /// Generated columns that are stored are among them.
    pub(crate) generated: bool,
    /// The rows, as an SQL condition on the table's columns.
    pub(crate) filter: Option<String>,
}

impl Projection {
    /// Whether it has a column of this number, and of this kind (`pg_attribute.attgenerated`).
    pub(crate) fn sends(&self, number: i16, generated: &str) -> bool {
        match &self.columns {
            Some(listed) => listed.contains(&number),
            None => generated.is_empty() || generated == "s" && self.generated,
        }
    }
}

/// What the publication sends of a table.
///
/// # Errors
/// [`ErrorKind::SourceUnreachable`].
pub(crate) async fn projection(client: &Client, relation: u32, publication: &str) -> Result<Projection> {
    // Where the table's schema is published too, all of it is sent.
    let statement = format!(
        "SELECT {PUBLISHED_AS}, r.prattrs::int2[], pg_get_expr(r.prqual, r.prrelid), {PUBLISHES_GENERATED} \
         FROM pg_class c CROSS JOIN pg_publication pub \
         LEFT JOIN pg_publication_rel r ON r.prpubid = pub.oid AND r.prrelid = c.oid \
              AND NOT EXISTS (SELECT FROM pg_publication_namespace n WHERE n.pnpubid = pub.oid AND n.pnnspid = c.relnamespace) \
         WHERE c.oid = $1 AND pub.pubname = $2"
    );
    let row = client.query_opt(&statement, &[&relation, &publication]).await?;
    Ok(match row {
        Some(row) => {
            Projection { published_as: row.get(0), columns: row.get(1), generated: row.get(3), filter: row.get(2) }
        }
        // Refused elsewhere: it is not published at all.
        None => Projection { published_as: String::new(), columns: None, generated: false, filter: None },
    })
}

/// Refuses a table that is not in the publication, or whose changes come under another name. Where the lake has to answer
/// as the table does (the extension), a part of its rows or columns is refused too.
///
/// # Errors
/// [`ErrorKind::Table`] with the remedy; [`ErrorKind::SourceUnreachable`].
pub(crate) async fn check(control: &Client, relation: u32, config: &EngineConfig) -> Result<()> {
    let publication = &config.source.publication;
    let row = control
        .query_one(
            "SELECT n.nspname || '.' || c.relname, p.pubname IS NOT NULL, p.rowfilter IS NOT NULL, \
                    EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 \
                            AND NOT a.attisdropped AND a.attname <> ALL (p.attnames)), \
                    c.relispartition AND EXISTS (SELECT FROM pg_publication v WHERE v.pubname = $2 AND v.pubviaroot \
                        AND (v.puballtables OR EXISTS (SELECT FROM pg_partition_ancestors(c.oid) u \
                             JOIN pg_class uc ON uc.oid = u.relid WHERE u.relid <> c.oid AND \
                             (EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = v.oid AND r.prrelid = u.relid) \
                             OR EXISTS (SELECT FROM pg_publication_namespace s \
                                        WHERE s.pnpubid = v.oid AND s.pnnspid = uc.relnamespace))))), \
                    c.relkind = 'p' AND EXISTS (SELECT FROM pg_publication v WHERE v.pubname = $2 AND NOT v.pubviaroot) \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             LEFT JOIN pg_publication_tables p ON p.pubname = $2 AND p.schemaname = n.nspname \
                 AND p.tablename = c.relname WHERE c.oid = $1",
            &[&relation, &publication],
        )
        .await?;
    let name: &str = row.get(0);
    if row.get(4) {
        return Err(as_root(name));
    }
    if row.get(5) {
        return Err(as_partitions(name));
    }
    if !allows_parts(config) && row.get(2) {
        return Err(row_filtered(name));
    }
    if !allows_parts(config) && row.get(3) {
        return Err(column_filtered(name));
    }
    if row.get(1) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Table, format!("{name} is not in publication \"{publication}\""))
        .with_hint(format!("as the table's owner: ALTER PUBLICATION {} ADD TABLE {name}", quote(publication))))
}

/// Whether the lake may have a part of a table's rows or columns.
pub(crate) fn allows_parts(config: &EngineConfig) -> bool {
    matches!(config.tables, TableSelection::Listed(_))
}

fn unfit(message: String, hint: impl Into<String>) -> Error {
    Error::new(ErrorKind::Table, message).with_hint(hint)
}

/// The refusal of a partition whose changes the publication sends under another name.
pub(crate) fn as_root(shown: &str) -> Error {
    unfit(
        format!("{shown} is a partition, and the publication sends its changes as those of its root"),
        "ALTER PUBLICATION … SET (publish_via_partition_root = false), or name the root instead",
    )
}

/// The refusal of a partitioned table whose changes the publication sends under the names of its partitions.
pub(crate) fn as_partitions(shown: &str) -> Error {
    unfit(
        format!("{shown} is a partitioned table, and the publication sends its changes as those of its partitions"),
        "ALTER PUBLICATION … SET (publish_via_partition_root = true), or name the partitions instead",
    )
}

/// The refusal of a table of which the publication sends some rows only.
pub(crate) fn row_filtered(shown: &str) -> Error {
    unfit(
        format!("{shown} is published with a row filter (WHERE …), so the lake would not be the table"),
        "publish all of its rows: ALTER PUBLICATION … DROP TABLE …, then ADD TABLE … without WHERE",
    )
}

/// The refusal of a table of which the publication sends some columns only.
fn column_filtered(shown: &str) -> Error {
    unfit(
        format!("{shown} is published with a list of columns that leaves some out"),
        "publish all of its columns: ALTER PUBLICATION … DROP TABLE …, then ADD TABLE … without a list",
    )
}

/// The publication sends another part of the table than when it was copied.
pub(crate) fn otherwise(shown: &str) -> Error {
    unfit(
        format!(
            "the publication has {shown} otherwise than when it was copied: its row filter (WHERE …) or list of columns \
             changed"
        ),
        format!("when it is as it should be, {COPY_ANEW}"),
    )
}

/// The publication does not send all kinds of changes.
pub(crate) fn not_whole() -> Error {
    unfit(
        "the publication leaves out inserts, updates, deletes or truncates: not all changes arrive".to_owned(),
        format!("ALTER PUBLICATION … SET (publish = 'insert, update, delete, truncate'), then {COPY_ANEW}"),
    )
}

/// The table was not in the publication for a while.
pub(crate) fn came_back() -> Error {
    unfit("the table left the publication and came back: changes in between did not arrive".to_owned(), COPY_ANEW)
}
