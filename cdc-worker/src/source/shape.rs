//! What the source's catalog says of tables' columns now, dropped ones included; and when "now" is.

use std::collections::HashMap;

use iceberg_writer::{Lsn, PgType, TypeFacts};
use serde::Deserialize;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, Statement};

use crate::Result;
use crate::error::{Error, ErrorKind};
use crate::table::{Attribute, Shape};

use super::identifier::quote;
use super::publication::PUBLISHES_GENERATED;

/// The columns of tables. Of a partitioned one, a column has missing values where one of its partitions says so. Whether a
/// generated column is sent is the publication's to say; where that has a list of the table's columns, [`published`] looks.
fn read_statement() -> String {
    format!(
        "SELECT c.oid, c.relfilenode, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attisdropped, \
            a.attgenerated = '' OR a.attgenerated = 's' \
                AND (SELECT {PUBLISHES_GENERATED} FROM pg_publication pub WHERE pub.pubname = $2), a.atthasmissing OR c.relkind = 'p' AND EXISTS (SELECT FROM pg_partition_tree(c.oid) t \
                JOIN pg_attribute l ON l.attrelid = t.relid WHERE l.attname = a.attname AND l.atthasmissing), \
            a.xmin::text::int8, CASE WHEN a.xmax::text = '0' THEN a.cmin::text::int8 END, pg_current_snapshot()::text, pg_current_wal_insert_lsn(), \
            f.type, f.typmod, f.is_enum, f.is_text \
     FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 LEFT JOIN LATERAL ( \
         WITH RECURSIVE resolved (type, typmod) AS ( \
             SELECT a.atttypid, a.atttypmod \
             UNION ALL SELECT typbasetype, typtypmod FROM resolved JOIN pg_type ON oid = type WHERE typtype = 'd') \
         SELECT r.type, r.typmod, t.typtype = 'e' AS is_enum, \
                coalesce(o.prolang = 12 AND o.prosrc = 'textout' AND s.prolang = 12 AND s.prosrc = 'textsend', false) AS is_text \
         FROM resolved r JOIN pg_type t ON t.oid = r.type AND t.typtype <> 'd' JOIN pg_proc o ON o.oid = t.typoutput \
         LEFT JOIN pg_proc s ON s.oid = t.typsend) f ON NOT a.attisdropped WHERE c.oid = ANY ($1)"
    )
}

/// The same in one word a table, which is another when anything of it is.
const SUMMARIES: &str = "SELECT c.oid, md5(c.relfilenode || ' ' || string_agg(a.attnum || ' ' || a.xmin, ' ' ORDER BY a.attnum)) \
     FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 WHERE c.oid = ANY ($1) GROUP BY c.oid";

/// The catalog at one moment.
#[derive(Debug)]
pub(crate) struct Look {
    /// By oid. A table that is gone is not among them.
    pub(crate) shapes: HashMap<u32, Shape>,
    /// Every transaction that is seen has its commit record before this.
    pub(crate) at: Lsn,
    snapshot: Snapshot,
}

/// The statements of one session, which is made ready for them when it needs them.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    read: OnceCell<Statement>,
    summaries: OnceCell<Statement>,
}

/// Which transactions are visible.
#[derive(Debug, Default, PartialEq, Eq)]
struct Snapshot {
    /// The next transaction's number: 64 bits, of which the lower 32 are what others call a transaction's number.
    next: u64,
    running: Vec<u64>,
}

impl Look {
    /// Whether the effects of this transaction are seen.
    pub(crate) fn sees(&self, xid: u32) -> bool {
        self.snapshot.sees(xid)
    }
}

impl Looks {
    /// Reads the columns of these tables.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`].
    pub(crate) async fn read(&self, client: &Client, relations: &[u32], publication: &str) -> Result<Look> {
        let statement = self.read.get_or_try_init(async || client.prepare(&read_statement()).await).await?;
        let mut look = Look { shapes: HashMap::new(), at: Lsn::from_u64(0), snapshot: Snapshot::default() };
        for row in client.query(statement, &[&relations, &publication]).await? {
            let shape: &mut Shape = look.shapes.entry(row.get(0)).or_default();
            shape.file = row.get(1);
            let attribute = Attribute {
                name: row.get(3),
                type_oid: row.get(4),
                typmod: row.get(5),
                held: row.get::<_, Option<u32>>(13).map(|oid| {
                    PgType::of(TypeFacts { oid, typmod: row.get(14), is_enum: row.get(15), is_text: row.get(16) })
                }),
                dropped: row.get(6),
                sent: row.get(7),
                missing: row.get(8),
                stamp: row.get(9),
                command: row.get(10),
            };
            shape.attributes.insert(row.get(2), attribute);
            if look.snapshot.next == 0 {
                look.snapshot = Snapshot::parse(row.get(11))?;
                look.at = row.get(12);
            }
        }
        Ok(look)
    }

    /// One word for the columns of each of these tables.
    ///
    /// # Errors
    /// [`ErrorKind::SourceUnreachable`].
    pub(crate) async fn summaries(&self, client: &Client, relations: &[u32]) -> Result<HashMap<u32, String>> {
        let statement = self.summaries.get_or_try_init(|| client.prepare(SUMMARIES)).await?;
        let rows = client.query(statement, &[&relations]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}

/// What the extension's event trigger tells of a table: what [`read_statement`] reads, as `lake_catalog.columns_told` writes it.
/// (Generated columns are not sent there: the extension's publication does not ask for them.)
#[derive(Deserialize)]
struct Told {
    file: u32,
    columns: Vec<ToldColumn>,
}

#[derive(Deserialize)]
struct ToldColumn {
    number: i16,
    name: String,
    type_oid: u32,
    typmod: i32,
    dropped: bool,
    sent: bool,
    missing: bool,
    stamp: i64,
    /// What its type is made from; all four or none.
    base: Option<u32>,
    base_typmod: Option<i32>,
    is_enum: Option<bool>,
    is_text: Option<bool>,
}

/// Reads what the event trigger told.
///
/// # Errors
/// [`ErrorKind::Protocol`] when that is not to be understood.
pub(crate) fn of_told(told: &str) -> Result<Shape> {
    let Told { file, columns } = serde_json::from_str(told).map_err(|error| {
        Error::new(ErrorKind::Protocol, "what the event trigger tells of a table is not to be understood")
            .with_hint("is the extension lake of another version than the engine?")
            .with_source(error)
    })?;
    let attribute = |column: ToldColumn| {
        let facts = column.base.map(|oid| TypeFacts {
            oid,
            typmod: column.base_typmod.unwrap_or(-1),
            is_enum: column.is_enum.unwrap_or_default(),
            is_text: column.is_text.unwrap_or_default(),
        });
        let attribute = Attribute {
            name: column.name,
            type_oid: column.type_oid,
            typmod: column.typmod,
            held: facts.map(PgType::of),
            dropped: column.dropped,
            sent: column.sent,
            missing: column.missing,
            stamp: column.stamp,
            command: None,
        };
        (column.number, attribute)
    };
    Ok(Shape { file, attributes: columns.into_iter().map(attribute).collect() })
}

/// What the event trigger's messages name. `None`: the extension is not there.
///
/// # Errors
/// [`ErrorKind::SourceUnreachable`].
pub(crate) async fn ddl_secret(client: &Client, schema: &str) -> Result<Option<String>> {
    let table = format!("{}.ddl_secret", quote(schema));
    let there = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&table]).await?;
    if !there.get::<_, bool>(0) {
        return Ok(None);
    }
    let secret = client.query_opt(&format!("SELECT secret::text FROM {table}"), &[]).await?;
    Ok(secret.map(|row| row.get(0)))
}

/// Reads the columns of one table, as the client's transaction sees them. `None`: there is no such table.
///
/// # Errors
/// [`ErrorKind::SourceUnreachable`].
pub(crate) async fn read(
    client: &Client,
    relation: u32,
    publication: &str,
    only: Option<&[i16]>,
) -> Result<Option<Shape>> {
    let mut look = Looks::default().read(client, &[relation], publication).await?;
    Ok(look.shapes.remove(&relation).map(|shape| published(shape, only)))
}

/// A table's columns, of which the publication sends only these.
pub(crate) fn published(mut shape: Shape, only: Option<&[i16]>) -> Shape {
    if let Some(only) = only {
        // Whatever is generated of the listed columns: a server that sends no generated ones lets none be listed.
        shape.attributes.iter_mut().for_each(|(number, attribute)| attribute.sent = only.contains(number));
    }
    shape
}

impl Snapshot {
    /// `xmin:xmax:xip,…`, as `pg_snapshot` prints it.
    fn parse(text: &str) -> Result<Self> {
        let parse = || {
            let mut parts = text.split(':').skip(1);
            let next = parts.next()?.parse().ok()?;
            let running = parts.next()?.split(',').filter(|xid| !xid.is_empty());
            Some(Self { next, running: running.map(|xid| xid.parse().ok()).collect::<Option<_>>()? })
        };
        parse().ok_or_else(|| Error::new(ErrorKind::Protocol, format!("the source's snapshot is \"{text}\"")))
    }

    fn sees(&self, xid: u32) -> bool {
        // A number that is too large for this round of 32 bits is from the one before.
        let mut full = self.next >> 32 << 32 | u64::from(xid);
        if full >= self.next && full - self.next >= 1 << 31 && full > u64::from(u32::MAX) {
            full -= 1 << 32;
        }
        full < self.next && !self.running.contains(&full)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_snapshot_sees_what_had_ended() {
        let snapshot = Snapshot::parse("740:750:742,745").unwrap();
        let seen: Vec<u32> = (739..753).filter(|xid| snapshot.sees(*xid)).collect();
        assert_eq!(seen, [739, 740, 741, 743, 744, 746, 747, 748, 749]);
        assert_eq!(Snapshot::parse("740:740:").unwrap(), Snapshot { next: 740, running: vec![] });
        assert!(Snapshot::parse("x").is_err() && Snapshot::parse("1:x:").is_err());
        // The numbers have come round.
        let snapshot = Snapshot::parse("4294967290:4294967300:4294967295,4294967297").unwrap();
        assert!(snapshot.sees(u32::MAX - 1) && !snapshot.sees(u32::MAX) && snapshot.sees(0));
        assert!(!snapshot.sees(1) && snapshot.sees(2) && !snapshot.sees(4) && !snapshot.sees(5));
    }

    #[test]
    fn what_the_publication_leaves_out_is_not_sent() {
        let attribute = Attribute::integer("a", 1);
        let attributes = BTreeMap::from([(1, attribute.clone()), (2, attribute)]);
        let shape = Shape { file: 1, attributes };
        assert_eq!(published(shape.clone(), None), shape);
        let part = published(shape, Some(&[2]));
        assert_eq!((part.attributes[&1].sent, part.attributes[&2].sent), (false, true));
    }
}
