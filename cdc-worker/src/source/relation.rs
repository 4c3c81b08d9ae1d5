//! What the source's catalog says of a table, as far as the mirror must know it.
//!
//! Refused are tables whose changes do not arrive whole, or whose rows are not only their own (views, unlogged tables,
//! inheritance parents): each with the remedy.

use iceberg_writer::{ColumnSpec, PgType, TableSpec, TypeFacts};
use tokio_postgres::Client;

use crate::Result;
use crate::decode::message::Relation;
use crate::error::{COPY_ANEW, Error, ErrorKind};
use crate::table::{RowIdentity, history};

use super::partitions::{self, Partition};
use super::publication::{self, Projection};

/// A table that can be mirrored.
#[derive(Debug, Clone)]
pub(crate) struct SourceTable {
    pub(crate) relation: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) spec: TableSpec,
    /// How its changes name their row.
    pub(crate) identity: RowIdentity,
    /// `pg_class.reltuples`; an estimate, 0 when unknown.
    pub(crate) estimate: u64,
    /// Its generated columns that are not published, and left out.
    pub(crate) generated: Vec<String>,
    /// What the publication sends of it.
    pub(crate) projection: Projection,
    /// The partitions that hold the rows of a partitioned table, and those between.
    pub(crate) partitions: Option<Vec<Partition>>,
    /// Its changes are kept.
    pub(crate) history: bool,
}

impl SourceTable {
    /// `schema.table`.
    pub(crate) fn shown(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

/// How a table is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// Its namespace and name in the lake; `None`: those that it has.
    pub(crate) lake_name: Option<(&'a str, &'a str)>,
    /// The publication that sends its changes.
    pub(crate) publication: &'a str,
    /// For its inserts only.
    pub(crate) append_only: bool,
    /// With a history.
    pub(crate) history: bool,
    /// It streams already: should its replica identity be gone, it goes on until a change comes that needs it.
    pub(crate) streams: bool,
}

impl<'a> Wanted<'a> {
    /// A table that is new to the mirror.
    pub(crate) fn new(publication: &'a str, append_only: bool) -> Self {
        Self { lake_name: None, publication, append_only, history: false, streams: false }
    }
}

impl SourceTable {
    /// What to know of a table that is mirrored without some of its columns.
    pub(crate) fn note(&self) -> Option<String> {
        let names = self.generated.join("\", \"");
        let note = || format!("{} is mirrored without its generated columns: \"{names}\"", self.shown());
        (!self.generated.is_empty()).then(note)
    }

    /// The names of the key's columns.
    pub(crate) fn key_names(&self) -> Vec<&str> {
        key_names(&self.spec)
    }
}

/// The names of the key's columns.
pub(crate) fn key_names(spec: &TableSpec) -> Vec<&str> {
    spec.key.iter().filter_map(|&index| Some(spec.columns.get(index)?.name.as_str())).collect()
}

/// The way out for a table that has nothing to tell its rows apart by.
const APPEND_ONLY: &str = "or, where rows are only ever inserted, name it in `append_only` instead of `tables` (with the \
                           extension: lake.mirror(…, append_only => true))";

fn unfit(message: String, hint: impl Into<String>) -> Error {
    Error::new(ErrorKind::Table, message).with_hint(hint)
}

/// A table that Iceberg has no equal for: Postgres allows it, and mostly it is one that is being rebuilt.
pub(crate) fn no_columns(shown: &str) -> Error {
    unfit(format!("{shown} has no columns that are published"), format!("when it has one, {COPY_ANEW}"))
}

/// The oid of `schema.table`, written as in SQL (`public.flights`, `"My".t`).
///
/// # Errors
/// [`ErrorKind::SourceUnfit`] when there is no such relation.
pub(crate) async fn resolve(client: &Client, name: &str) -> Result<u32> {
    let found = client.query_one("SELECT to_regclass($1)::oid", &[&name]).await?;
    found.get::<_, Option<u32>>(0).ok_or_else(|| {
        Error::new(ErrorKind::SourceUnfit, format!("relation \"{name}\" does not exist"))
            .with_hint("write it as schema.table; is the database right?")
    })
}

/// Describes a table, or says why it cannot be mirrored.
///
/// # Errors
/// [`ErrorKind::Table`] with the remedy; [`ErrorKind::SourceUnreachable`].
pub(crate) async fn describe(client: &Client, relation: u32, wanted: Wanted<'_>) -> Result<SourceTable> {
    let found = client
        .query_opt(
            "SELECT n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.relreplident::text, \
                    greatest(c.reltuples, 0)::float8, has_table_privilege(c.oid, 'SELECT'), \
                    (SELECT i.indkey::int2[] FROM pg_index i WHERE i.indrelid = c.oid AND i.indimmediate AND i.indisvalid AND \
                     CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END), \
                    EXISTS (SELECT FROM pg_inherits h WHERE h.inhparent = c.oid) \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
            &[&relation],
        )
        .await?;
    let Some(class) = found else {
        return Err(unfit(
            format!("the source table with oid {relation} was dropped"),
            "SELECT lake.unmirror(…) (without the extension: take it out of `tables`, then cdc-worker mirror)",
        ));
    };
    let (schema, name): (String, String) = (class.get(0), class.get(1));
    let shown = format!("{schema}.{name}");
    let (kind, persistence, identity): (&str, &str, &str) = (class.get(2), class.get(3), class.get(4));
    check_kind(&shown, kind, persistence, class.get(8))?;
    if !class.get::<_, bool>(6) {
        let hint = format!("GRANT SELECT ON {shown} TO the worker's role");
        return Err(unfit(format!("no permission to read {shown}"), hint));
    }
    let key = class.get::<_, Option<Vec<i16>>>(7);
    let by = match (&key, identity) {
        _ if wanted.append_only => RowIdentity::AppendOnly,
        (Some(_), "n") if !wanted.streams => {
            return Err(unfit(
                format!("{shown} has REPLICA IDENTITY NOTHING, so its updates and deletes cannot be followed"),
                format!("ALTER TABLE … REPLICA IDENTITY DEFAULT; {APPEND_ONLY}"),
            ));
        }
        (Some(_), _) => RowIdentity::Key,
        (None, "f") => RowIdentity::FullRow,
        (None, _) => {
            return Err(unfit(
                format!("{shown} has no primary key, so its updates and deletes cannot be followed"),
                format!(
                    "ALTER TABLE … ADD PRIMARY KEY (…); where no columns are unique: ALTER TABLE … REPLICA IDENTITY FULL; \
                     {APPEND_ONLY}"
                ),
            ));
        }
    };
    let key = key.unwrap_or_default();
    let projection = publication::projection(client, relation, wanted.publication).await?;
    let (columns, generated) = columns(client, (relation, &shown), &key, &projection).await?;
    let key = key
        .iter()
        .map(|attnum| columns.iter().position(|column| column.field_id == i32::from(*attnum)))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| {
            unfit(
                format!("the key of {shown} has a column that is generated or not published"),
                "ALTER PUBLICATION … SET TABLE … with all columns of the key in its list",
            )
        })?;
    let (namespace, lake_name) = wanted.lake_name.unwrap_or((&schema, &name));
    let spec = TableSpec { namespace: namespace.to_owned(), name: lake_name.to_owned(), columns, key };
    if wanted.history {
        history::check_names(&spec)?;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate, not negative by the query"
    )]
    let estimate = class.get::<_, f64>(5) as u64;
    let mut table = SourceTable {
        relation,
        schema,
        name,
        spec,
        identity: by,
        estimate,
        generated,
        projection,
        partitions: None,
        history: wanted.history,
    };
    if kind == "p" {
        describe_partitions(client, &mut table).await?;
    }
    Ok(table)
}

/// Adds the partitions of a partitioned table, or says which of them is in the way.
async fn describe_partitions(client: &Client, table: &mut SourceTable) -> Result<()> {
    let shown = format!("{}.{}", table.schema, table.name);
    let found = partitions::read(client, &[table.relation]).await?;
    for partition in &found {
        let (what, hint) = match (partition.kind.as_str(), partition.persistence.as_str()) {
            ("r" | "p", "p") => continue,
            ("f", _) => ("a foreign table: its rows are elsewhere", "ALTER TABLE … DETACH PARTITION …"),
            ("r", "u") => ("unlogged: its changes are not in the WAL", "ALTER TABLE … SET LOGGED"),
            _ => ("not a permanent table", "ALTER TABLE … DETACH PARTITION …"),
        };
        return Err(unfit(format!("partition {} of {shown} is {what}", partition.shown()), hint));
    }
    let oids: Vec<u32> = found.iter().filter(|partition| partition.is_leaf()).map(|partition| partition.oid).collect();
    let shown_of =
        |oid: u32| found.iter().find(|partition| partition.oid == oid).map_or_else(String::new, Partition::shown);
    let row = client
        .query_one(
            "SELECT sum(greatest(reltuples, 0))::float8, min(oid) FILTER (WHERE NOT has_table_privilege(oid, 'SELECT')) \
             FROM pg_class WHERE oid = ANY ($1)",
            &[&oids],
        )
        .await?;
    if let Some(closed) = row.get::<_, Option<u32>>(1) {
        return Err(unfit(
            format!("no permission to read {}, a partition of {shown}", shown_of(closed)),
            "GRANT SELECT ON … TO the worker's role, on all partitions; ALTER DEFAULT PRIVILEGES covers those to come",
        ));
    }
    if let Some(other) = partitions::unidentified(client, &oids, table.identity, &table.key_names()).await? {
        return Err(unfit(
            format!(
                "the replica identity of {}, a partition of {shown}, does not tell {}",
                shown_of(other),
                identity_tells(table.identity)
            ),
            match table.identity {
                RowIdentity::Key => "ALTER TABLE <partition> REPLICA IDENTITY DEFAULT (or FULL)",
                RowIdentity::FullRow | RowIdentity::AppendOnly => "ALTER TABLE <partition> REPLICA IDENTITY FULL",
            },
        ));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate, not negative by the query"
    )]
    let estimate = row.get::<_, Option<f64>>(0).unwrap_or(0.0) as u64;
    table.estimate = estimate;
    table.partitions = Some(found);
    Ok(())
}

/// Refuses what is not an ordinary, permanent table that has all of its rows itself.
fn check_kind(shown: &str, kind: &str, persistence: &str, has_children: bool) -> Result<()> {
    let (what, hint) = match (kind, persistence) {
        ("r", "p") if has_children => return Err(has_heirs(shown)),
        ("r", "p") => return Ok(()),
        ("r", "u") => ("an unlogged table: its changes are not in the WAL", "ALTER TABLE … SET LOGGED"),
        ("r", _) => ("a temporary table: its changes are not in the WAL", "only permanent tables can be mirrored"),
        // Its partitions are looked at one by one.
        ("p", _) => return Ok(()),
        ("v", _) => ("a view", "mirror the tables that it reads from"),
        ("m", _) => ("a materialized view", "mirror the tables that it reads from"),
        ("f", _) => ("a foreign table", "mirror it in the database where its rows are"),
        _ => ("not a table", "only ordinary tables can be mirrored"),
    };
    Err(unfit(format!("{shown} is {what}"), hint))
}

/// The refusal of an inheritance parent.
pub(crate) fn has_heirs(shown: &str) -> Error {
    unfit(
        format!(
            "{shown} has inheritance children: a query of it also reads their rows, which are not in its own changes"
        ),
        "mirror the children, each by its own name, or ALTER TABLE <child> NO INHERIT …",
    )
}

/// The columns of a table that are published, and the names of generated ones that are not.
async fn columns(
    client: &Client,
    (relation, shown): (u32, &str),
    key: &[i16],
    projection: &Projection,
) -> Result<(Vec<ColumnSpec>, Vec<String>)> {
    // A domain is resolved to what it is made from, which brings the type modifier with it.
    let rows = client
        .query(
            "WITH RECURSIVE resolved (attnum, type, typmod) AS ( \
                 SELECT attnum, atttypid, atttypmod FROM pg_attribute \
                 WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND ($2::int2[] IS NULL OR attnum = ANY ($2)) \
                 UNION ALL SELECT attnum, typbasetype, typtypmod FROM resolved JOIN pg_type ON oid = type WHERE typtype = 'd') \
             SELECT a.attname, a.attnum, a.atttypid, a.atttypmod, a.attgenerated::text, r.type, r.typmod, t.typtype = 'e', \
                    o.prolang = 12 AND o.prosrc = 'textout' AND s.prolang = 12 AND s.prosrc = 'textsend' \
             FROM resolved r JOIN pg_attribute a ON a.attrelid = $1 AND a.attnum = r.attnum \
             JOIN pg_type t ON t.oid = r.type AND t.typtype <> 'd' JOIN pg_proc o ON o.oid = t.typoutput \
             LEFT JOIN pg_proc s ON s.oid = t.typsend ORDER BY a.attnum",
            &[&relation, &projection.columns],
        )
        .await?;
    let mut columns = Vec::with_capacity(rows.len());
    let mut left_out = Vec::new();
    for row in &rows {
        let (name, attnum): (String, i16) = (row.get(0), row.get(1));
        // The stream does not bring it, so the mirror has not got it. In a key, that stops the table further up.
        if !projection.sends(attnum, row.get(4)) {
            left_out.push(name);
            continue;
        }
        let facts = TypeFacts {
            oid: row.get(5),
            typmod: row.get(6),
            is_enum: row.get(7),
            is_text: row.get::<_, Option<bool>>(8).unwrap_or(false),
        };
        columns.push(ColumnSpec {
            name,
            field_id: i32::from(attnum),
            pg_type: PgType::of(facts),
            type_oid: row.get(2),
            typmod: row.get(3),
            required: key.contains(&attnum),
            companion: false,
        });
    }
    if columns.is_empty() {
        return Err(no_columns(shown));
    }
    Ok((columns, left_out))
}

/// Whether updates and deletes name their row as the mirror does. Inserts do not need it: a table whose replica
/// identity was taken away goes on until the first change that cannot be followed, if Postgres lets one happen at all.
pub(crate) fn identifies(spec: &TableSpec, identity: RowIdentity, relation: &Relation) -> bool {
    match identity {
        RowIdentity::Key => {
            spec.key.iter().all(|&index| relation.columns.get(index).is_some_and(|column| column.in_identity))
        }
        RowIdentity::FullRow => relation.identity == b'f',
        RowIdentity::AppendOnly => false,
    }
}

/// What an update or delete must tell of its row.
fn identity_tells(identity: RowIdentity) -> &'static str {
    match identity {
        RowIdentity::Key => "its key",
        RowIdentity::FullRow | RowIdentity::AppendOnly => "all of its columns",
    }
}

/// Whether the source itself sees to it that no key comes twice. It does while its replica identity is an index on just
/// the key's columns; of `FULL` and `NOTHING` the stream does not tell, and the primary key may have been dropped.
pub(crate) fn keeps_unique(spec: &TableSpec, relation: &Relation) -> bool {
    let in_key = |index: usize| spec.key.contains(&index);
    matches!(relation.identity, b'd' | b'i')
        && relation.columns.iter().enumerate().all(|(index, column)| column.in_identity == in_key(index))
}

/// An update or delete came that does not say which row it means.
pub(crate) fn not_identified(identity: RowIdentity) -> Error {
    if identity == RowIdentity::AppendOnly {
        return unfit(
            "an update or delete came for a table that is mirrored append-only".to_owned(),
            format!(
                "mirror it with its updates: in `tables` instead of `append_only`, then cdc-worker mirror (with the extension: \
                 lake.unmirror, then lake.mirror without append_only); or, if it is not to happen again, {COPY_ANEW}"
            ),
        );
    }
    let what = identity_tells(identity);
    unfit(
        format!("the replica identity of the source table changed: an update or delete came that does not tell {what}"),
        format!("set the replica identity that it had, then {COPY_ANEW}"),
    )
}
