//! The life of the workers.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, until};

fn kill(signal: &str, pid: i32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

fn one_engine(cluster: &Cluster) -> i32 {
    let mut found = Vec::new();
    until("one engine runs", || {
        found = cluster.engines();
        found.len() == 1
    });
    found[0]
}

fn mirrored() -> Cluster {
    let cluster = Cluster::start("");
    let session = cluster.session();
    session.run("CREATE EXTENSION lake; CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')");
    session.run("SELECT lake.mirror('t')");
    session.run("SELECT lake.wait('t')");
    drop(session);
    cluster
}

#[test]
fn no_engine_without_the_extension() {
    let cluster = Cluster::start("");
    let session = cluster.session();
    until("the probes have left", || {
        session.value::<i64>("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'lake%'") == 0
    });
    // An aborted CREATE EXTENSION starts none either.
    session.run("BEGIN; CREATE EXTENSION lake; ROLLBACK");
    std::thread::sleep(Duration::from_secs(1));
    assert!(cluster.engines().is_empty());
    session.run("CREATE EXTENSION lake");
    one_engine(&cluster);
}

#[test]
fn started_with_the_server_and_gone_in_time() {
    let cluster = mirrored();
    for _ in 0..2 {
        let took = cluster.pg_ctl(&["stop", "-m", "fast", "-w"]);
        assert!(took < Duration::from_secs(3), "the shutdown took {took:?}");
        cluster.pg_ctl(&["start", "-w"]);
        one_engine(&cluster);
        cluster.session().run("INSERT INTO t SELECT max(id) + 1, 'b' FROM t");
        cluster.session().run("SELECT lake.wait('t')");
    }
}

#[test]
fn terminated_and_killed_engines_come_back_alone() {
    let cluster = mirrored();
    let first = one_engine(&cluster);
    let begin = Instant::now();
    cluster.session().run(&format!("SELECT pg_terminate_backend({first})"));
    until("the engine has gone", || !cluster.engines().contains(&first));
    assert!(begin.elapsed() < Duration::from_secs(2), "took {:?}", begin.elapsed());
    let second = one_engine(&cluster);
    cluster.session().run("INSERT INTO t VALUES (2, 'b'); SELECT lake.wait('t')");
    // Its death by a signal restarts the whole cluster: the worker comes back by itself, once.
    kill("-9", second);
    std::thread::sleep(Duration::from_millis(500));
    cluster.await_server();
    let third = one_engine(&cluster);
    assert_ne!(second, third);
    cluster.session().run("INSERT INTO t VALUES (3, 'c'); SELECT lake.wait('t')");
    // Later than a second one would have given up.
    std::thread::sleep(Duration::from_secs(12));
    let workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'lake engine'";
    assert_eq!(cluster.session().value::<i64>(workers), 1);
    assert_eq!(cluster.engines(), vec![third]);
}

#[test]
fn a_dropped_extension_leaves_nothing() {
    let cluster = mirrored();
    let session = cluster.session();
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(session.value::<i64>(slots), 1);
    session.run("DROP EXTENSION lake");
    until("the slot is gone", || session.value::<i64>(slots) == 0);
    until("the engine is gone", || cluster.engines().is_empty());
    assert_eq!(session.value::<i64>("SELECT count(*) FROM pg_publication"), 0);
    // And again, at once: the new engine takes over from the old.
    session.run("CREATE EXTENSION lake; SELECT lake.mirror('t')");
    session.run("SELECT lake.wait('t')");
    session.run("DROP EXTENSION lake");
    session.run("CREATE EXTENSION lake; SELECT lake.mirror('t')");
    session.run("SELECT lake.wait('t')");
    one_engine(&cluster);
    // A slot left while no engine could run is dropped at the next start.
    session.run("ALTER SYSTEM SET shared_preload_libraries = 'plpgsql'");
    drop(session);
    cluster.pg_ctl(&["restart", "-m", "fast", "-w"]);
    cluster.session().run("ALTER SYSTEM RESET shared_preload_libraries");
    cluster.session().run("DROP EXTENSION lake");
    assert_eq!(cluster.session().value::<i64>(slots), 1);
    cluster.pg_ctl(&["restart", "-m", "fast", "-w"]);
    until("the slot is gone", || cluster.session().value::<i64>(slots) == 0);
}

#[test]
fn an_extension_that_is_made_again_at_once_keeps_its_slot() {
    let cluster = mirrored();
    let session = cluster.session();
    for round in 0..4 {
        // The engine may have gone on with the new one before its worker sees that the old one is gone.
        session.run("DROP EXTENSION lake");
        session.run("CREATE EXTENSION lake; SELECT lake.mirror('t')");
        session.run("SELECT lake.wait('t')");
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(session.value::<i64>("SELECT count(*) FROM pg_replication_slots"), 1, "round {round}");
        session.run(&format!("INSERT INTO t VALUES ({}, 'b'); SELECT lake.wait('t')", 10 + round));
        assert_eq!(
            session.value::<i64>("SELECT count(*) FROM lake.mirrors WHERE state = 'streaming'"),
            1,
            "round {round}"
        );
    }
}

#[test]
fn a_dropped_database_stops_its_worker() {
    let cluster = Cluster::start("");
    cluster.session().run("CREATE DATABASE other");
    cluster.connect("postgres", "other").run("CREATE EXTENSION lake");
    until("the engine runs", || {
        let engines = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'lake engine' AND datname = 'other'";
        cluster.session().value::<i64>(engines) == 1
    });
    cluster.session().run("DROP DATABASE other WITH (FORCE)");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(cluster.log().matches("does not exist").count(), 0, "started again and again");
}

#[test]
fn a_copied_database_is_not_a_mirror() {
    let cluster = mirrored();
    let engine = one_engine(&cluster);
    // A copy needs its source for itself.
    cluster.session().run("ALTER SYSTEM SET shared_preload_libraries = 'plpgsql'");
    cluster.pg_ctl(&["restart", "-m", "fast", "-w"]);
    cluster.connect("postgres", "template1").run("CREATE DATABASE copy TEMPLATE postgres");
    cluster.session().run("ALTER SYSTEM RESET shared_preload_libraries");
    cluster.pg_ctl(&["restart", "-m", "fast", "-w"]);
    assert_ne!(one_engine(&cluster), engine);
    let copy = cluster.connect("postgres", "copy");
    until("the copy says what is wrong", || {
        copy.value::<i64>("SELECT count(*) FROM lake.errors WHERE message LIKE '%copy of a mirrored one%'") == 1
    });
    copy.run("CREATE TABLE u (id int PRIMARY KEY)");
    assert_eq!(copy.fail("SELECT lake.mirror('u')").code().code(), "55000");
    assert_eq!(copy.value::<i64>("SELECT count(*) FROM pg_replication_slots"), 1);
}

#[test]
fn a_failing_engine_is_reported_and_heals() {
    let cluster = Cluster::start("lake.warehouse = 'file:///proc/no/such/warehouse'");
    let session = cluster.session();
    session.run("CREATE EXTENSION lake; CREATE TABLE t (id int PRIMARY KEY); SELECT lake.mirror('t')");
    until("the failure is shown", || session.value::<i64>("SELECT count(*) FROM lake.errors") > 0);
    let shown = "SELECT count(*) FROM lake.lag WHERE last_error IS NOT NULL";
    until("lake.lag shows it too", || session.value::<i64>(shown) == 1);
    session.run("ALTER SYSTEM SET lake.warehouse = ''");
    session.run("SELECT pg_reload_conf()");
    session.run("SELECT lake.unmirror('t')");
    session.run("SELECT lake.mirror('t')");
    session.run("SELECT lake.wait('t', '60 s')");
}
