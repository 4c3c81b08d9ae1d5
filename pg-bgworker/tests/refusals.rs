//! What `lake.mirror` and its siblings refuse: each with its SQLSTATE and a hint, and nothing changed.

use tokio_postgres::error::DbError;

use crate::cluster::{Cluster, Session};

/// The error has this SQLSTATE, these words in its message or detail, and these in its hint.
fn expect(error: &DbError, sqlstate: &str, words: &str, hint: &str) {
    assert_eq!(error.code().code(), sqlstate, "{error:?}");
    let text = format!("{} {}", error.message(), error.detail().unwrap_or_default());
    assert!(text.contains(words), "{words} not in: {error:?}");
    assert!(error.hint().unwrap_or_default().contains(hint), "{hint} not in the hint of: {error:?}");
}

fn nothing_changed(session: &Session<'_>) {
    assert_eq!(session.value::<i64>("SELECT count(*) FROM lake_catalog.mirrored_tables"), 0);
    assert_eq!(session.value::<i64>("SELECT count(*) FROM pg_publication WHERE pubname = 'lake'"), 0);
}

#[test]
fn tables_that_cannot_be_mirrored() {
    let cluster = Cluster::start("");
    let session = cluster.session();
    session.run(
        "CREATE EXTENSION lake;
         CREATE TABLE no_key (a int);
         CREATE TABLE deferred_key (a int PRIMARY KEY DEFERRABLE);
         CREATE TABLE generated (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED);
         CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
         CREATE TABLE other_identity (id int PRIMARY KEY, u int NOT NULL UNIQUE);
         ALTER TABLE other_identity REPLICA IDENTITY USING INDEX other_identity_u_key;
         CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE VIEW a_view AS SELECT 1 AS a;
         CREATE MATERIALIZED VIEW a_matview AS SELECT 1 AS a;
         CREATE SEQUENCE a_sequence;
         CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
         CREATE TEMP TABLE temporary (id int PRIMARY KEY);
         CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child () INHERITS (parent);
         CREATE TABLE lag (id int PRIMARY KEY);
         CREATE ROLE stranger LOGIN;",
    );
    for (table, sqlstate, words, hint) in [
        ("no_key", "55000", "no primary key", "ADD PRIMARY KEY"),
        ("deferred_key", "55000", "deferrable", "NOT DEFERRABLE"),
        ("generated", "0A000", "Column \"twice\" is generated.", "DROP EXPRESSION"),
        ("nothing", "55000", "replica identity", "REPLICA IDENTITY DEFAULT"),
        ("other_identity", "55000", "replica identity", "REPLICA IDENTITY DEFAULT"),
        ("parted", "0A000", "partitioned", "partitions"),
        ("a_view", "42809", "is a view", "reads from"),
        ("a_matview", "42809", "is a materialized view", "reads from"),
        ("a_sequence", "42809", "is not a table", "ordinary tables"),
        ("unlogged", "0A000", "unlogged", "SET LOGGED"),
        ("temporary", "0A000", "temporary", "permanent"),
        ("parent", "0A000", "inheritance", "children"),
        ("lag", "42P07", "taken", "\"as\" =>"),
        ("lake_catalog.mirrors", "42809", "system table", "tables of users"),
        ("pg_catalog.pg_class", "42809", "system table", "tables of users"),
    ] {
        expect(&session.fail(&format!("SELECT lake.mirror('{table}')")), sqlstate, words, hint);
    }
    assert_eq!(session.fail("SELECT lake.mirror('no_such_table')").code().code(), "42P01");
    expect(&session.fail("SELECT lake.mirror(99999::oid)"), "42P01", "does not exist", "name the table");
    expect(&session.fail("SELECT lake.mirror(NULL)"), "22004", "null", "name the table");
    let long = "x".repeat(64);
    expect(&session.fail(&format!("SELECT lake.mirror('parent', '{long}')")), "0A000", "inheritance", "");
    expect(&session.fail(&format!("SELECT lake.mirror('lag', '{long}')")), "42602", "63 bytes", "\"as\" =>");
    expect(&session.fail("SELECT lake.wait('lag')"), "55000", "not mirrored", "lake.mirror");
    let stranger = cluster.connect("stranger", "postgres");
    expect(&stranger.fail("SELECT lake.mirror('lag')"), "42501", "owner", "owner");
    expect(&stranger.fail("SELECT lake.unmirror('lag')"), "42501", "owner", "owner");
    expect(&stranger.fail("SELECT lake.unmirror(99999::oid)"), "42501", "superuser", "superuser");
    assert_eq!(stranger.fail("SELECT lake_catalog.start_engine()").code().code(), "42501");
    assert_eq!(stranger.fail("SELECT * FROM lake_catalog.mirrors").code().code(), "42501");
    assert_eq!(stranger.fail("CREATE TABLE lake.mine (a int)").code().code(), "42501");
    // A repeated unmirror is no error.
    session.run("SELECT lake.unmirror('lag')");
    nothing_changed(&session);
}

#[test]
fn a_publication_that_is_not_ours() {
    let cluster = Cluster::start("");
    let session = cluster.session();
    session.run("CREATE EXTENSION lake; CREATE PUBLICATION lake; CREATE TABLE t (id int PRIMARY KEY)");
    expect(&session.fail("SELECT lake.mirror('t')"), "42710", "publication \"lake\" exists", "DROP PUBLICATION");
}

#[test]
fn wal_level_replica() {
    let cluster = Cluster::start("wal_level = replica");
    let session = cluster.session();
    session.run("CREATE EXTENSION lake; CREATE TABLE t (id int PRIMARY KEY)");
    expect(&session.fail("SELECT lake.mirror('t')"), "55000", "wal_level must be logical", "wal_level = 'logical'");
    nothing_changed(&session);
}

#[test]
fn not_preloaded() {
    let cluster = Cluster::start("shared_preload_libraries = ''");
    let session = cluster.session();
    session.run("CREATE EXTENSION lake; CREATE TABLE t (id int PRIMARY KEY)");
    expect(&session.fail("SELECT lake.mirror('t')"), "55000", "cannot run", "shared_preload_libraries");
    assert_eq!(session.value::<i64>("SELECT count(*) FROM lake.lag"), 0);
    nothing_changed(&session);
}

#[test]
fn no_free_slot() {
    let cluster = Cluster::start("max_replication_slots = 1");
    let session = cluster.session();
    session.run("CREATE EXTENSION lake; CREATE TABLE t (id int PRIMARY KEY)");
    session.run("SELECT pg_create_physical_replication_slot('other')");
    expect(&session.fail("SELECT lake.mirror('t')"), "53400", "1 of 1 are in use", "max_replication_slots");
    nothing_changed(&session);
}

#[test]
fn no_walsender() {
    let cluster = Cluster::start("max_wal_senders = 0");
    let session = cluster.session();
    session.run("CREATE EXTENSION lake; CREATE TABLE t (id int PRIMARY KEY)");
    expect(&session.fail("SELECT lake.mirror('t')"), "53400", "0 of 0 are in use", "max_wal_senders");
    nothing_changed(&session);
}

#[test]
fn other_encodings_and_templates() {
    let cluster = Cluster::start("");
    cluster.session().run("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0");
    cluster.session().run("CREATE DATABASE pattern IS_TEMPLATE true");
    for (database, words) in [("latin", "UTF8"), ("pattern", "template")] {
        let session = cluster.connect("postgres", database);
        session.run("CREATE EXTENSION lake; CREATE TABLE t (id int PRIMARY KEY)");
        expect(&session.fail("SELECT lake.mirror('t')"), "0A000", words, "");
        nothing_changed(&session);
    }
}

#[test]
fn a_locked_table_is_given_up_after_five_seconds() {
    let cluster = Cluster::start("");
    let session = cluster.session();
    session.run("CREATE EXTENSION lake; CREATE TABLE t (id int PRIMARY KEY)");
    let other = cluster.session();
    other.run("BEGIN; LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE");
    let begin = std::time::Instant::now();
    expect(&session.fail("SELECT lake.mirror('t')"), "55P03", "locked by another transaction", "pg_locks");
    assert!(begin.elapsed().as_secs() < 8);
    other.run("ROLLBACK");
    nothing_changed(&session);
    // Readers and writers are no obstacle.
    other.run("BEGIN; INSERT INTO t VALUES (1)");
    session.run("SELECT lake.mirror('t')");
    other.run("COMMIT");
}
