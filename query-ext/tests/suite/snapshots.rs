//! Which moment a query is as of: cursors, functions, and tables beside the lake. The stand-in counts the pins; it follows no
//! change, so who sees one reads the heap.

use std::sync::atomic::Ordering;

use crate::harness::ask::{ask, fails};
use crate::harness::compare::{difference, way};
use crate::harness::set_up;
use crate::harness::worker::Worker;
use tokio_postgres::Client;

#[tokio::test]
async fn a_query_is_as_of_its_snapshot() {
    let (server, worker, client) = set_up().await;
    cursors(&client, &worker).await;
    functions(&client, &worker).await;
    beside_others(&client).await;
    zones(&client).await;
    known_values(&client).await;
    assert!(worker.drained(), "a lease is still open");
    assert!(!server.crashed(), "{}", server.log());
}

/// How many pins statements take.
async fn pins(client: &Client, worker: &Worker, sql: &str) -> u64 {
    let before = worker.behaviour.pins.load(Ordering::SeqCst);
    ask(client, sql).await.unwrap();
    worker.behaviour.pins.load(Ordering::SeqCst) - before
}

async fn cursors(client: &Client, worker: &Worker) {
    for query in ["SELECT k FROM lake.t2 ORDER BY k", "SELECT k FROM lake.t2 WHERE name ~ '(?i)name' AND k < 20"] {
        assert_eq!(pins(client, worker, &format!("BEGIN; DECLARE c CURSOR FOR {query}")).await, 1);
        // What this transaction writes afterwards is not in it, as it is not in the heap's.
        ask(client, "INSERT INTO t2 (k, name) VALUES (-1, 'name')").await.unwrap();
        assert_eq!(pins(client, worker, "FETCH 2 FROM c").await, 0);
        assert_eq!(ask(client, "FETCH 2 FROM c").await.unwrap().lines().count(), 2);
        assert!(!ask(client, "FETCH ALL FROM c").await.unwrap().contains('-'));
        ask(client, "ROLLBACK").await.unwrap();
    }
    // One that writes before is the heap's.
    let late =
        "BEGIN; INSERT INTO t2 (k) VALUES (-1); DECLARE c CURSOR FOR SELECT k FROM lake.t2 ORDER BY k; FETCH 1 FROM c";
    assert_eq!(ask(client, late).await.unwrap(), "-1");
    ask(client, "ROLLBACK").await.unwrap();
}

async fn functions(client: &Client, worker: &Worker) {
    // EXECUTE is a statement of its own: it may say which rows count, and its pin ends with it.
    ask(
        client,
        "BEGIN; SET plan_cache_mode = force_generic_plan; PREPARE p AS SELECT count(*) FROM lake.t2 WHERE k < $1",
    )
    .await
    .unwrap();
    let before = worker.behaviour.left_out.load(Ordering::SeqCst);
    assert_eq!(ask(client, "EXECUTE p (5)").await.unwrap(), "4");
    assert!(worker.behaviour.left_out.load(Ordering::SeqCst) > before, "all rows count for EXECUTE");
    assert!(worker.drained(), "EXECUTE keeps its pin");
    ask(client, "ROLLBACK; DEALLOCATE ALL").await.unwrap();
    client
        .batch_execute(
            "CREATE FUNCTION once(x integer) RETURNS bigint STABLE LANGUAGE plpgsql AS
             $$ BEGIN RETURN (SELECT count(*) FROM lake.t2 WHERE k <= x); END $$;
             CREATE FUNCTION scans(x integer) RETURNS bigint STABLE LANGUAGE plpgsql AS
             $$ BEGIN RETURN (SELECT count(*) FROM lake.t2 WHERE k <= x AND name ~ '(?i)name'); END $$;
             CREATE FUNCTION each(x integer) RETURNS bigint VOLATILE LANGUAGE plpgsql AS
             $$ BEGIN RETURN (SELECT count(*) FROM lake.t2 WHERE k <= x); END $$",
        )
        .await
        .unwrap();
    // One state for all calls of a function that is not volatile, another for each call of one that is.
    assert_eq!(pins(client, worker, "SELECT sum(once(g)) FROM generate_series(1, 5) g").await, 1);
    assert_eq!(pins(client, worker, "SELECT sum(once(g)), sum(scans(g)) FROM generate_series(1, 5) g").await, 1);
    assert_eq!(pins(client, worker, "SELECT sum(each(g)) FROM generate_series(1, 5) g").await, 5);
    // Also for the statement that calls it, when that reads the lake.
    assert_eq!(pins(client, worker, "SELECT sum(once(k)) FROM lake.t2 WHERE name ~ '(?i)name 7'").await, 1);
    for sql in
        ["SELECT sum(once(g)), sum(scans(g)), sum(each(g)) FROM generate_series(1, 5) g", "SELECT once(3) + scans(4)"]
    {
        let heap = ask(client, &format!("SET lake.pushdown = off; {sql}")).await.unwrap();
        assert_eq!(ask(client, &format!("RESET lake.pushdown; {sql}")).await.unwrap(), heap);
    }
    // The next statement of the transaction has a snapshot of its own, and what was kept goes with the transaction.
    let two = "BEGIN; SELECT once(1); INSERT INTO other VALUES (779); SELECT once(2)";
    assert_eq!(pins(client, worker, two).await, 2);
    assert_eq!(pins(client, worker, "INSERT INTO t2 (k) VALUES (0); SELECT once(2)").await, 0);
    assert_eq!(ask(client, "SELECT once(2)").await.unwrap(), "3");
    ask(client, "ROLLBACK").await.unwrap();
    ask(client, "BEGIN; SELECT once(1); ROLLBACK").await.unwrap();
    assert!(worker.drained(), "a lease is open after the transaction");
    fails(client, "SELECT once(1), 1 / (SELECT 0)", "22012").await;
    assert!(worker.drained(), "a lease is open after an error");
    client.batch_execute("DROP FUNCTION once(integer), scans(integer), each(integer)").await.unwrap();
}

/// Of the lake and of other tables, the answer is of one moment: the heap's. Who allows older rows has each as it is.
async fn beside_others(client: &Client) {
    let joined = "SELECT a.id, o.k FROM @t1 a JOIN public.other o ON o.k = a.id WHERE a.i4 > 0";
    let lake = joined.replace('@', "lake.");
    assert_eq!(way(client, &lake).await, Some('H'));
    for freshness in ["session", "committed"] {
        ask(client, &format!("SET lake.freshness = {freshness}")).await.unwrap();
        for query in [
            joined,
            "SELECT count(*), sum(a.n) FROM @t1 a JOIN @t2 b ON a.id = b.ref LEFT JOIN public.other o ON o.k = b.k",
            "SELECT o.k, (SELECT max(i8) FROM @t1 WHERE id = o.k) FROM public.other o",
            "SELECT count(*) FROM @t2 WHERE k IN (SELECT k FROM public.other)",
        ] {
            assert_eq!(way(client, &query.replace('@', "lake.")).await, Some('S'), "{query}");
            assert_eq!(difference(client, query, false).await, None);
        }
    }
    let plan = ask(client, &format!("EXPLAIN {lake}")).await.unwrap();
    assert!(plan.contains("Not Pushed: the statement reads other tables too") && plan.contains("c5 > "), "{plan}");
    // A plan that was made for older rows does not answer for newer ones.
    ask(client, &format!("SET plan_cache_mode = force_generic_plan; PREPARE p AS {lake}; EXECUTE p")).await.unwrap();
    let error = fails(client, "RESET lake.freshness; EXECUTE p", "55000").await;
    assert!(error.contains("lake.freshness is strict") && error.contains("DISCARD PLANS"), "{error}");
    ask(client, "DISCARD PLANS; EXECUTE p; RESET ALL; DEALLOCATE ALL").await.unwrap();
}

/// What depends on the time zone is DuckDB's where that is UTC, and of a plan that was made there no longer when it is not.
async fn zones(client: &Client) {
    let days = "SELECT date_trunc('day', tz), tz::date, count(*), min(extract(hour FROM tz)) FROM @t1 WHERE tz > date '1999-12-31' GROUP BY 1, 2";
    let (heap, lake) = (days.replace('@', "public."), days.replace('@', "lake."));
    let scan = "SELECT id FROM lake.t1 WHERE date_trunc('day', tz) = tz AND s ~ '(?i)a'";
    let zones = ["UTC", "Europe/Berlin", "Etc/UTC", "GMT", "UTC+3", "Etc/GMT-5", "America/St_Johns"];
    ask(
        client,
        &format!("SET plan_cache_mode = force_generic_plan; PREPARE p AS {lake}; PREPARE s AS {scan}; EXECUTE s"),
    )
    .await
    .unwrap();
    for zone in zones {
        ask(client, &format!("SET timezone = '{zone}'")).await.unwrap();
        let is_utc = ["UTC", "Etc/UTC", "GMT"].contains(&zone);
        assert_eq!(way(client, &lake).await == Some('W'), is_utc, "{zone}");
        assert_eq!(difference(client, days, false).await, None, "{zone}");
        let sorted = |text: String| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let prepared = sorted(ask(client, "EXECUTE p").await.unwrap());
        assert_eq!(prepared, sorted(ask(client, &heap).await.unwrap()), "{zone}, prepared");
        if is_utc {
            ask(client, "EXECUTE s").await.unwrap();
        } else {
            let error = fails(client, "EXECUTE s", "55000").await;
            assert!(error.contains("time zone") && error.contains("DISCARD PLANS"), "{error}");
        }
        // A moment is one everywhere.
        assert_eq!(way(client, "SELECT max(tz), min(tz AT TIME ZONE 'UTC') FROM lake.t1").await, Some('W'), "{zone}");
    }
    ask(client, "RESET ALL; DEALLOCATE ALL").await.unwrap();
}

/// What Postgres computes beforehand: an error of it is one where a row would have met it, and none where there is no row.
async fn known_values(client: &Client) {
    for (filter, whole) in [
        ("tz > now() - interval '1 day'", 'W'),
        ("ts < date_trunc('month', localtimestamp) - 3 * interval '1 mon' AND d > current_date - 30000", 'W'),
        ("tz > now() - random() * interval '1 day'", 'S'),
        ("tz > now() - interval '3000 years' AND s ~ '(?i)a'", 'S'),
    ] {
        let query = format!("SELECT count(*) FROM @t1 WHERE {filter}");
        assert_eq!(way(client, &query.replace('@', "lake.")).await, Some(whole), "{filter}");
        if !filter.contains("random") {
            assert_eq!(difference(client, &query, false).await, None);
        }
    }
    fails(client, "SELECT count(*) FROM lake.t1 WHERE tz > now() - interval '290000 years'", "22008").await;
    // With parameters, in generic and in custom plans.
    for mode in ["force_generic_plan", "force_custom_plan"] {
        ask(client, &format!("SET plan_cache_mode = {mode}")).await.unwrap();
        for filter in [
            "d > $1 - 400 AND ts > $1 + interval '1 mon'",
            "ts > $1 + interval '290000 years' AND id < 0",
            "ts > $1 + interval '290000 years'",
        ] {
            for schema in ["public", "lake"] {
                let query = format!("SELECT count(*) FROM {schema}.t1 WHERE {filter}");
                ask(client, &format!("PREPARE of_{schema} (date) AS {query}")).await.unwrap();
            }
            for day in ["2000-01-01", "2020-06-30", "1970-01-01", "infinity"] {
                let mut counts = Vec::new();
                for schema in ["public", "lake"] {
                    counts.push(ask(client, &format!("EXECUTE of_{schema} ('{day}')")).await);
                }
                assert_eq!(counts[0], counts[1], "{filter} of {day}, {mode}");
            }
            ask(client, "DEALLOCATE ALL").await.unwrap();
        }
    }
    ask(client, "RESET ALL").await.unwrap();
}
