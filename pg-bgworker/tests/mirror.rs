//! A mirror as a user sees it: `lake.mirror`, `lake.wait`, the views, `lake.unmirror`.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, until};

#[test]
fn a_table_from_mirror_to_unmirror() {
    let cluster = Cluster::start("");
    let session = cluster.session();
    session.run(
        "CREATE EXTENSION lake; CREATE ROLE app LOGIN; CREATE ROLE nosy LOGIN; CREATE SCHEMA app AUTHORIZATION app;
         CREATE TABLE app.events (id int PRIMARY KEY, v text);
         INSERT INTO app.events SELECT g, 'v' || g FROM generate_series(1, 1000) g;
         ALTER TABLE app.events OWNER TO app;",
    );
    // The owner needs no other right, and gives nothing of the owner's to the superuser's search_path.
    let app = cluster.connect("app", "postgres");
    app.run("SET search_path = app, pg_catalog");
    assert_eq!(app.value::<String>("SELECT lake.mirror('events')"), "events");
    assert_eq!(app.value::<String>("SELECT lake.mirror('events')"), "events");
    assert_eq!(app.fail("SELECT lake.mirror('events', 'other')").code().code(), "42710");
    app.run("SELECT lake.wait('events')");
    app.run("INSERT INTO events VALUES (1001, 'x'); SELECT lake.wait('events')");
    assert_eq!(app.value::<String>("SELECT state FROM lake.lag"), "streaming");
    assert_eq!(app.value::<String>("SELECT engine FROM lake.lag"), "running");
    assert_eq!(app.value::<String>("SELECT \"table\"::text FROM lake.lag"), "events");
    assert!(app.value::<bool>("SELECT copied_rows = 1000 AND copy_progress = 1 FROM lake.lag"));
    assert!(app.value::<bool>(
        "SELECT committed_lsn <= applied_lsn AND lag_bytes >= 0 AND slot_retained_bytes >= 0 FROM lake.lag"
    ));
    assert!(app.value::<bool>("SELECT last_error IS NULL AND lag_seconds < 60 FROM lake.lag"));
    assert!(app.value::<bool>("SELECT metadata_location LIKE 'file:///%' FROM lake.mirrors"));
    // Another name in the lake, and a name that is taken.
    session.run("CREATE TABLE public.events (id int PRIMARY KEY)");
    assert_eq!(session.fail("SELECT lake.mirror('public.events')").code().code(), "42P07");
    assert_eq!(session.value::<String>("SELECT lake.mirror('public.events', \"as\" => 'events2')"), "events2");
    session.run("SELECT lake.wait('public.events')");
    // Who may not read a table does not see it.
    let nosy = cluster.connect("nosy", "postgres");
    assert_eq!(nosy.value::<i64>("SELECT count(*) FROM lake.lag"), 0);
    assert_eq!(nosy.value::<i64>("SELECT count(*) FROM lake.mirrors"), 0);
    session.run("GRANT pg_monitor TO nosy");
    assert_eq!(
        nosy.value::<i64>("SELECT count(*) FROM lake.lag WHERE applied_lsn IS NOT NULL AND pending_rows >= 0"),
        2
    );
    // The end of one mirror is none of the other's, and leaves the Iceberg table.
    app.run("SELECT lake.unmirror('events')");
    assert_eq!(session.value::<i64>("SELECT count(*) FROM lake.mirrors"), 1);
    assert_eq!(session.value::<i64>("SELECT count(*) FROM pg_publication_tables WHERE pubname = 'lake'"), 1);
    assert_eq!(session.value::<i64>("SELECT count(*) FROM lake_catalog.iceberg_tables"), 2);
    session.run("INSERT INTO public.events VALUES (1); SELECT lake.wait('public.events')");
    // A table that was dropped is taken out by its oid.
    let oid: u32 = session.value("SELECT 'public.events'::regclass::oid");
    session.run("DROP TABLE public.events");
    session.run(&format!("SELECT lake.unmirror({oid}::oid)"));
    assert_eq!(session.value::<i64>("SELECT count(*) FROM lake.mirrors"), 0);
}

#[test]
fn waiting_can_be_cancelled_and_times_out() {
    // A commit interval that no test waits for.
    let cluster = Cluster::start("lake.commit_interval = '1h'");
    let session = cluster.session();
    session.run("CREATE EXTENSION lake; CREATE TABLE t (id int PRIMARY KEY)");
    let uncommitted = session.fail("BEGIN; SELECT lake.mirror('t'); SELECT lake.wait('t')");
    assert_eq!(uncommitted.code().code(), "55000");
    assert!(uncommitted.hint().unwrap().contains("COMMIT"));
    session.run("ROLLBACK");
    session.run("SELECT lake.mirror('t')");
    until("it streams", || session.value::<String>("SELECT state FROM lake.lag") == "streaming");
    // Stop the engine from answering at all.
    session.run("INSERT INTO t VALUES (1)");
    let engine = cluster.engines()[0];
    let stop = |signal: &str| {
        assert!(std::process::Command::new("kill").args([signal, &engine.to_string()]).status().unwrap().success());
    };
    stop("-STOP");
    let begin = Instant::now();
    let cancelled = session.fail("SET statement_timeout = '300ms'; SELECT lake.wait('t')");
    assert_eq!(cancelled.code().code(), "57014");
    assert!(begin.elapsed() < Duration::from_millis(600), "took {:?}", begin.elapsed());
    stop("-CONT");
    session.run("RESET statement_timeout");
}

#[test]
fn waiting_for_an_engine_that_is_down() {
    let cluster = Cluster::start("");
    let session = cluster.session();
    session.run("CREATE EXTENSION lake; CREATE TABLE t (id int PRIMARY KEY); SELECT lake.mirror('t')");
    session.run("SELECT lake.wait('t')");
    session.run("ALTER SYSTEM SET lake.conninfo = 'host=/nowhere'; ");
    session.run("SELECT pg_reload_conf()");
    until("the engine is down", || session.value::<String>("SELECT engine FROM lake.lag") == "down");
    let down = session.fail("SELECT lake.wait('t', '2 s')");
    assert_eq!(down.code().code(), "57P03");
    assert!(down.hint().unwrap().contains("lake.errors"));
    // What the registry knows is still shown.
    assert_eq!(session.value::<String>("SELECT state FROM lake.lag"), "streaming");
    assert!(session.value::<bool>("SELECT lag_bytes IS NOT NULL AND slot_retained_bytes > 0 FROM lake.lag"));
}
