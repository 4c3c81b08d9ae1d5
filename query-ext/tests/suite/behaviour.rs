//! What is not about values: privileges, policies, freshness, transactions, cursors, cancel, EXPLAIN, and a worker that is
//! down, silent or refuses.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::harness::ask::{ask, fails};
use crate::harness::server::Server;
use crate::harness::set_up;
use crate::harness::worker::Worker;
use tokio_postgres::Client;

async fn by_heap(client: &Client, sql: &str) {
    let plan = ask(client, &format!("EXPLAIN ANALYZE {sql}")).await.unwrap();
    assert!(!plan.contains("LakeScan") || plan.contains("Answered By: heap"), "{plan}");
}

#[tokio::test]
async fn behaviour() {
    let (server, worker, client) = set_up().await;
    privileges(&server, &client).await;
    policies(&client, &server).await;
    writes(&client).await;
    transactions(&client).await;
    plans(&client).await;
    cursors(&client).await;
    explain(&client, &worker).await;
    one_pin(&client, &worker).await;
    accelerated(&client, &server, &worker).await;
    sources(&client).await;
    assert!(worker.drained(), "a lease is still open");
    cancel(&server).await;
    assert!(worker.drained(), "a lease is still open after a cancel");
    unhealthy(&client, &worker).await;
    extension(&client).await;
    assert!(!server.crashed(), "{}", server.log());
}

async fn privileges(server: &Server, client: &Client) {
    let reader = server.connect("reader").await;
    assert_eq!(ask(&reader, "SELECT count(name) FROM lake.t2").await.unwrap(), "900");
    assert_eq!(ask(&reader, "SELECT upper(name) FROM lake.t2 WHERE k = 1").await.unwrap(), "NAME 1");
    assert_eq!(ask(&reader, "SELECT round(stddev(k), 3) FROM lake.t2 WHERE k < 10").await.unwrap(), "2.739");
    for sql in [
        "SELECT sum(amount) FROM lake.t2",
        "SELECT count(*) FROM lake.t2 WHERE amount > 1",
        "SELECT count(*) FROM lake.t1",
        "SELECT string_agg(amount::text, ',') FROM lake.t2",
        "SELECT * FROM lake.t2",
    ] {
        fails(&reader, sql, "42501").await;
    }
    // A view's owner is who reads.
    client.batch_execute("CREATE VIEW v AS SELECT k, amount FROM lake.t2; GRANT SELECT ON v TO reader").await.unwrap();
    assert_eq!(ask(&reader, "SELECT count(amount) FROM v").await.unwrap(), "900");
    assert_eq!(ask(&reader, "SELECT string_agg(amount::text, ',') FROM v WHERE k = 2").await.unwrap(), "6.50");
    client.batch_execute("DROP VIEW v").await.unwrap();
}

async fn policies(client: &Client, server: &Server) {
    client
        .batch_execute(
            "ALTER TABLE t2 ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t2 TO reader USING (k <= 10);
             CREATE VIEW rv WITH (security_invoker) AS SELECT k FROM lake.t2; GRANT SELECT ON rv TO reader",
        )
        .await
        .unwrap();
    let reader = server.connect("reader").await;
    assert_eq!(ask(&reader, "SELECT count(k) FROM lake.t2").await.unwrap(), "10");
    by_heap(&reader, "SELECT count(k) FROM lake.t2").await;
    assert_eq!(ask(client, "SELECT count(k) FROM lake.t2").await.unwrap(), "900");
    let error = fails(&reader, "SELECT count(k) FROM rv", "0A000").await;
    assert!(error.contains("row-level security"), "{error}");
    fails(&reader, "SET row_security = off; SELECT count(k) FROM lake.t2", "42501").await;
    client.batch_execute("DROP VIEW rv; DROP POLICY p ON t2; ALTER TABLE t2 DISABLE ROW LEVEL SECURITY").await.unwrap();
}

async fn writes(client: &Client) {
    for sql in [
        "INSERT INTO lake.t2 (k) VALUES (1)",
        "UPDATE lake.t2 SET k = 1",
        "DELETE FROM lake.t2",
        "TRUNCATE lake.t2",
        "WITH x AS (DELETE FROM lake.t2 RETURNING k) SELECT * FROM x",
    ] {
        fails(client, sql, "0A000").await;
    }
    let error = fails(client, "UPDATE lake.t2 SET k = 1", "0A000").await;
    assert!(error.contains("source table"), "no hint: {error}");
    assert_eq!(
        ask(client, "CREATE TABLE made AS SELECT name, count(*) FROM lake.t2 GROUP BY name; SELECT count(*) FROM made")
            .await
            .unwrap(),
        "25"
    );
    assert_eq!(
        ask(
            client,
            "CREATE TABLE made2 AS SELECT upper(name) u FROM lake.t2 WHERE name ~ '(?i)2'; SELECT count(*) FROM made2"
        )
        .await
        .unwrap(),
        ask(client, "SELECT count(*) FROM t2 WHERE name ~ '(?i)2'").await.unwrap()
    );
    assert_eq!(
        ask(client, "INSERT INTO made SELECT name, k FROM lake.t2; SELECT count(*) FROM made").await.unwrap(),
        "925"
    );
    client.batch_execute("DROP TABLE made, made2").await.unwrap();
}

async fn transactions(client: &Client) {
    // The stand-in does not follow: whoever sees the new row read the heap.
    let seen = ask(client, "BEGIN; INSERT INTO t2 (k) VALUES (5000); SELECT count(*) FROM lake.t2").await.unwrap();
    assert_eq!(seen, "901");
    assert_eq!(ask(client, "SELECT count(*) FROM lake.t2 WHERE name ~ '(?i)^' OR name IS NULL").await.unwrap(), "901");
    client.batch_execute("ROLLBACK").await.unwrap();
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    by_heap(client, "SELECT count(*) FROM lake.t2").await;
    client.batch_execute("ROLLBACK").await.unwrap();
    // Plans made before.
    client
        .batch_execute(
            "SET plan_cache_mode = force_generic_plan;
             PREPARE whole AS SELECT count(*) FROM lake.t2;
             PREPARE scans AS SELECT count(*) FROM lake.t2 WHERE name ~ '(?i)^' OR name IS NULL;
             EXECUTE whole; EXECUTE scans",
        )
        .await
        .unwrap();
    client.batch_execute("BEGIN; INSERT INTO t2 (k) VALUES (5000)").await.unwrap();
    assert_eq!(ask(client, "EXECUTE whole").await.unwrap(), "901");
    client.batch_execute("SAVEPOINT s").await.unwrap();
    fails(client, "EXECUTE scans", "55000").await;
    client.batch_execute("ROLLBACK TO s").await.unwrap();
    assert_eq!(ask(client, "EXECUTE whole").await.unwrap(), "901");
    client.batch_execute("ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    by_heap(client, "EXECUTE whole").await;
    client.batch_execute("ROLLBACK; RESET plan_cache_mode; DEALLOCATE ALL").await.unwrap();
    // Errors leave the session as it was, subtransactions included.
    client.batch_execute("BEGIN; SAVEPOINT a").await.unwrap();
    fails(client, "SELECT 1 / (k - 1) FROM lake.t2", "22012").await;
    client.batch_execute("ROLLBACK TO a").await.unwrap();
    assert_eq!(ask(client, "SELECT count(*) FROM lake.t2").await.unwrap(), "900");
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(
        ask(client, "SET lake.pushdown = off; SELECT count(*) FROM lake.t2; RESET lake.pushdown").await.unwrap(),
        "900"
    );
}

async fn plans(client: &Client) {
    for mode in ["force_custom_plan", "force_generic_plan"] {
        client.batch_execute(&format!("SET plan_cache_mode = {mode}")).await.unwrap();
        let statement = client
            .prepare("SELECT count(*), min(k) FROM lake.t2 WHERE k > $1 AND name = $2 AND amount > $3::int")
            .await
            .unwrap();
        for k in [0i32, 100, 500] {
            let row = client.query_one(&statement, &[&k, &"name 7", &3i32]).await.unwrap();
            let expected: i64 = client
                .query_one("SELECT count(*) FROM t2 WHERE k > $1 AND name = 'name 7' AND amount > 3", &[&k])
                .await
                .unwrap()
                .get(0);
            assert_eq!(row.get::<_, i64>(0), expected);
        }
        let rows = client.query("SELECT k FROM lake.t2 ORDER BY k LIMIT $1 OFFSET $2", &[&3i64, &2i64]).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [3, 4, 5]);
        let scan = client.prepare("SELECT count(*) FROM lake.t2 WHERE k < $1 AND name ~ $2").await.unwrap();
        assert_eq!(client.query_one(&scan, &[&10i32, &"name"]).await.unwrap().get::<_, i64>(0), 9);
        // Days that the two write otherwise, by scans.
        client
            .batch_execute(
                "PREPARE days(date, timestamptz) AS SELECT count(*) FROM lake.t1 WHERE d > $1 AND tz > $2 AND md5(id::text) > '5'",
            )
            .await
            .unwrap();
        for (day, moment) in [
            ("0044-03-15 BC", "4000-01-01 00:00Z BC"),
            ("12000-01-01", "20000-01-01 00:00Z"),
            ("infinity", "-infinity"),
        ] {
            let heap = format!("SELECT count(*) FROM t1 WHERE d > '{day}' AND tz > '{moment}' AND md5(id::text) > '5'");
            let heap = ask(client, &heap).await.unwrap();
            assert_eq!(
                ask(client, &format!("EXECUTE days('{day}', '{moment}')")).await.unwrap(),
                heap,
                "{day} {moment}"
            );
        }
        client.batch_execute("DEALLOCATE days").await.unwrap();
    }
    client.batch_execute("RESET plan_cache_mode").await.unwrap();
    client
        .batch_execute(
            "CREATE FUNCTION f(x integer) RETURNS bigint LANGUAGE plpgsql AS
             $$ DECLARE r record; s bigint := 0; BEGIN
                FOR r IN SELECT k FROM lake.t2 WHERE k <= x ORDER BY k LOOP s := s + r.k; END LOOP;
                RETURN s + (SELECT count(*) FROM lake.t2 WHERE k <= x); END $$;
             CREATE FUNCTION g() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM lake.t2'",
        )
        .await
        .unwrap();
    for _ in 0..8 {
        assert_eq!(ask(client, "SELECT f(10)").await.unwrap(), "65");
    }
    assert_eq!(ask(client, "SELECT g()").await.unwrap(), "900");
    // A scan inside a nested loop is run again and again.
    assert_eq!(
        ask(
            client,
            "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off;
             SELECT count(*) FROM lake.t2 a JOIN lake.t2 b ON a.k = b.k AND a.name ~ '(?i)7' WHERE b.k < 60"
        )
        .await
        .unwrap(),
        ask(client, "SELECT count(*) FROM t2 WHERE name ~ '(?i)7' AND k < 60").await.unwrap()
    );
    client.batch_execute("RESET ALL; DROP FUNCTION f(integer); DROP FUNCTION g()").await.unwrap();
}

async fn cursors(client: &Client) {
    client.batch_execute("BEGIN; DECLARE c CURSOR FOR SELECT id FROM lake.t1 ORDER BY id; DECLARE d CURSOR FOR SELECT k FROM lake.t2 ORDER BY k").await.unwrap();
    assert_eq!(ask(client, "FETCH 2 FROM c").await.unwrap(), "1\n2");
    assert_eq!(ask(client, "FETCH 2 FROM d").await.unwrap(), "1\n2");
    assert_eq!(ask(client, "FETCH 2 FROM c").await.unwrap(), "3\n4");
    client.batch_execute("SAVEPOINT s").await.unwrap();
    fails(client, "FETCH BACKWARD 1 FROM c", "55000").await;
    client.batch_execute("ROLLBACK TO s").await.unwrap();
    assert_eq!(ask(client, "FETCH 1 FROM d").await.unwrap(), "3");
    client
        .batch_execute("COMMIT; BEGIN; DECLARE c SCROLL CURSOR FOR SELECT id FROM lake.t1 ORDER BY id")
        .await
        .unwrap();
    assert_eq!(ask(client, "FETCH ABSOLUTE 5 FROM c").await.unwrap(), "5");
    assert_eq!(ask(client, "FETCH BACKWARD 2 FROM c").await.unwrap(), "4\n3");
    client
        .batch_execute("COMMIT; BEGIN; DECLARE h CURSOR WITH HOLD FOR SELECT k FROM lake.t2 ORDER BY k; COMMIT")
        .await
        .unwrap();
    assert_eq!(ask(client, "FETCH 2 FROM h; CLOSE h").await.unwrap(), "1\n2");
    assert_eq!(ask(client, "SELECT id FROM lake.t1 LIMIT 1").await.unwrap().lines().count(), 1);
}

async fn explain(client: &Client, worker: &Worker) {
    let plan = ask(client, "EXPLAIN SELECT count(*) FROM lake.t1 WHERE i4 > 5").await.unwrap();
    for part in ["Lake SQL: SELECT", "FROM lake.t1", "Lake LSN: ", "Files: 2", "Deleted Positions: ", "Fresh Rows: "] {
        assert!(plan.contains(part), "no {part} in {plan}");
    }
    assert_eq!(worker.behaviour.last_lsn.load(Ordering::SeqCst), 0, "a plain EXPLAIN waits for nothing");
    let plan =
        ask(client, "EXPLAIN (ANALYZE, VERBOSE) SELECT i2, avg(i4) FROM lake.t1 GROUP BY i2 ORDER BY 2").await.unwrap();
    for part in
        ["Lake LSN: ", "Files: 2", "Fresh Rows: 2001", "Freshness: strict", "Wait ms: ", "Engine Memory: ", "Sort Key"]
    {
        assert!(plan.contains(part), "no {part} in {plan}");
    }
    assert!(!plan.contains("Answered By"), "{plan}");
    let json = ask(client, "EXPLAIN (ANALYZE, FORMAT JSON) SELECT count(*) FROM lake.t1").await.unwrap();
    assert!(json.contains("\"Fresh Rows\": 2001") && json.contains("\"Engine Spilled\": 0"), "{json}");
    // What would be spilled beyond the limit is the heap's.
    let large = "EXPLAIN ANALYZE SELECT count(*), max(s) FROM (SELECT a.id, b.cs AS s,
        row_number() OVER (ORDER BY b.cs, a.id, b.id ROWS UNBOUNDED PRECEDING) AS r FROM lake.t1 a, lake.t1 b WHERE a.id < 200) x WHERE r > 3";
    let plan = ask(
        client,
        &format!("SET work_mem = '256MB'; SET lake.memory_limit = '32MB'; SET lake.temp_limit = 0; {large}"),
    )
    .await
    .unwrap();
    assert!(plan.contains("Answered By: heap (Out of Memory"), "{plan}");
    let plan = ask(client, &format!("RESET lake.temp_limit; {large}")).await.unwrap();
    let bytes = |label| -> u64 {
        let line = plan.lines().find_map(|line| line.trim().strip_prefix(label));
        line.unwrap_or_else(|| panic!("no {label} in {plan}")).parse().unwrap()
    };
    assert!(bytes("Engine Memory: ") > 16 << 20 && bytes("Engine Memory: ") < 80 << 20, "{plan}");
    assert!(bytes("Engine Spilled: ") > 1 << 20 && !plan.contains("Answered By"), "{plan}");
    client.batch_execute("RESET ALL").await.unwrap();
    let plan = ask(client, "EXPLAIN ANALYZE SELECT sum(n2 * n2) FROM lake.t1").await.unwrap();
    assert!(plan.contains("Answered By: heap (Out of Range") && plan.contains("Seq Scan on t1"), "{plan}");
    // A parallel plan of the heap runs under the scan as well.
    let parallel = "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
        EXPLAIN ANALYZE SELECT sum(n2 * n2) FROM lake.t1";
    let plan = ask(client, parallel).await.unwrap();
    assert!(plan.contains("Answered By: heap") && plan.contains("Gather"), "{plan}");
    client.batch_execute("RESET ALL").await.unwrap();
    assert_ne!(ask(client, "SELECT queries FROM lake.stat_fallback WHERE reason = 'query'").await.unwrap(), "0");
}

async fn one_pin(client: &Client, worker: &Worker) {
    let before = worker.behaviour.pins.load(Ordering::SeqCst);
    ask(client, "SELECT count(*) FROM lake.t1 a JOIN lake.t2 b ON a.id = b.ref WHERE a.s ~ '(?i)r' AND EXISTS (SELECT FROM lake.t3 WHERE name ~ '(?i)x')")
        .await
        .unwrap();
    assert_eq!(worker.behaviour.pins.load(Ordering::SeqCst) - before, 1, "one pin a statement");
    assert_eq!(worker.behaviour.tables_of_last_pin.load(Ordering::SeqCst), 3);
    // Strict: past every commit before it.
    let lsn = ask(client, "SET synchronous_commit = off; INSERT INTO other VALUES (777); SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
        .await
        .unwrap();
    ask(client, "SELECT count(*) FROM lake.t2").await.unwrap();
    assert!(worker.behaviour.last_lsn.load(Ordering::SeqCst) >= lsn.parse::<u64>().unwrap() - 40);
    let flushed = ask(client, "SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint").await.unwrap();
    assert!(flushed.parse::<u64>().unwrap() >= worker.behaviour.last_lsn.load(Ordering::SeqCst));
    ask(client, "RESET synchronous_commit; SET lake.freshness = 'committed'; SELECT count(*) FROM lake.t2")
        .await
        .unwrap();
    assert_eq!(worker.behaviour.last_lsn.load(Ordering::SeqCst), 0);
    ask(client, "SET lake.freshness = 'session'; SELECT count(*) FROM lake.t2; RESET lake.freshness").await.unwrap();
    let session = worker.behaviour.last_lsn.load(Ordering::SeqCst);
    assert!(session > 0 && session <= flushed.parse::<u64>().unwrap() + 1_000_000);
    fails(client, "SET lake.freshness = 'bounded'", "22023").await;
}

/// Queries on the sources' own names.
async fn accelerated(client: &Client, server: &Server, worker: &Worker) {
    let by_lake = async |sql: &str| {
        let plan = ask(client, &format!("EXPLAIN ANALYZE {sql}")).await.unwrap();
        plan.contains("LakeScan") && !plan.contains("Answered By")
    };
    let count = "SELECT count(*), sum(amount) FROM t2";
    assert!(!by_lake(count).await, "it is off by default");
    // When it pays, and never for a look at one row.
    client.batch_execute("SET lake.accelerate = on").await.unwrap();
    assert!(!by_lake(count).await);
    client.batch_execute("SET lake.accelerate_cost = 10").await.unwrap();
    assert!(by_lake(count).await);
    assert!(!by_lake("SELECT * FROM t2 WHERE k = 5").await);
    client.batch_execute("SET lake.accelerate = force").await.unwrap();
    assert!(by_lake("SELECT * FROM t2 WHERE k = 5").await);
    assert!(by_lake("SELECT k, name, disc, count(*) FROM t2 GROUP BY k").await, "by its primary key");
    let outer =
        "SELECT max(s) FROM (SELECT (SELECT b.amount + a.k FROM t2 b WHERE b.k = a.k GROUP BY b.k) AS s FROM t2 a) x";
    assert_eq!(ask(client, outer).await.unwrap(), "3825.00");
    client.batch_execute("CREATE VIEW v2 AS SELECT grp, sum(amount) AS s FROM t2 GROUP BY grp").await.unwrap();
    assert!(by_lake("SELECT max(s) FROM v2").await);
    // What is not a mirrored table's alone, or not for a reader.
    for sql in [
        "SELECT count(*) FROM t2 JOIN other USING (k)",
        "SELECT k FROM t2 WHERE k < 3 FOR UPDATE",
        "SELECT ctid, k FROM t2",
        "SELECT count(*) FROM t2 TABLESAMPLE SYSTEM (100)",
        "SELECT count(*) FROM pg_class",
    ] {
        assert!(!by_lake(sql).await, "{sql}");
    }
    client
        .batch_execute("CREATE VIEW guarded WITH (security_barrier) AS SELECT * FROM t2 WHERE grp = 1")
        .await
        .unwrap();
    assert!(!by_lake("SELECT count(*) FROM guarded").await);
    client.batch_execute("CREATE TABLE child () INHERITS (t2); INSERT INTO child (k) VALUES (7000)").await.unwrap();
    assert_eq!(ask(client, "SELECT count(*) FROM t2").await.unwrap(), "901");
    client.batch_execute("DROP TABLE child; DROP VIEW guarded, v2").await.unwrap();
    // Writes of its own are seen, and a snapshot of its own is kept.
    assert_eq!(ask(client, "BEGIN; INSERT INTO t2 (k) VALUES (5000); SELECT count(*) FROM t2").await.unwrap(), "901");
    client.batch_execute("ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    assert!(!by_lake(count).await);
    client.batch_execute("ROLLBACK").await.unwrap();
    client
        .batch_execute("SET plan_cache_mode = force_generic_plan; PREPARE p AS SELECT count(*) FROM t2 WHERE k = ANY ($1); EXECUTE p('{1}')")
        .await
        .unwrap();
    assert_eq!(ask(client, "EXECUTE p('{1,2,NULL,950}')").await.unwrap(), "2");
    assert_eq!(ask(client, "EXECUTE p('{}')").await.unwrap(), "0");
    assert_eq!(ask(client, "EXECUTE p(NULL)").await.unwrap(), "0");
    client.batch_execute("BEGIN; INSERT INTO t2 (k) VALUES (5000)").await.unwrap();
    assert_eq!(ask(client, "EXECUTE p('{5000}')").await.unwrap(), "1");
    client.batch_execute("ROLLBACK; RESET plan_cache_mode").await.unwrap();
    // A cursor is the heap's. (The stand-in does not follow: who sees the new row read the heap.)
    client.batch_execute("INSERT INTO t2 (k) VALUES (6000)").await.unwrap();
    assert_eq!(ask(client, "SELECT count(*) FROM t2").await.unwrap(), "900");
    let declared = "BEGIN; DECLARE c CURSOR FOR SELECT count(*) FROM t2; FETCH ALL FROM c";
    assert_eq!(ask(client, declared).await.unwrap(), "901");
    client.batch_execute("COMMIT; DELETE FROM t2 WHERE k = 6000").await.unwrap();
    // Nobody sees more than before.
    let reader = server.connect("reader").await;
    reader.batch_execute("SET lake.accelerate = force").await.unwrap();
    assert_eq!(ask(&reader, "SELECT count(name) FROM t2").await.unwrap(), "900");
    fails(&reader, "SELECT count(amount) FROM t2", "42501").await;
    client
        .batch_execute("ALTER TABLE t2 ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON t2 USING (k < 10)")
        .await
        .unwrap();
    assert_eq!(ask(&reader, "SELECT count(name) FROM t2").await.unwrap(), "9");
    client.batch_execute("DROP POLICY few ON t2; ALTER TABLE t2 DISABLE ROW LEVEL SECURITY").await.unwrap();
    // A lake that cannot answer is no error.
    let worked = "SELECT queries FROM lake.stat_fallback WHERE reason = 'worker'";
    let before: u64 = ask(client, worked).await.unwrap().parse().unwrap();
    worker.behaviour.refuse.store(true, Ordering::SeqCst);
    assert_eq!(ask(client, "SELECT count(*) FROM t2").await.unwrap(), "900");
    worker.behaviour.refuse.store(false, Ordering::SeqCst);
    worker.behaviour.silent.store(true, Ordering::SeqCst);
    client.batch_execute("SET lake.freshness_timeout = '100ms'").await.unwrap();
    assert_eq!(ask(client, "SELECT count(*) FROM t2").await.unwrap(), "900");
    fails(
        client,
        "SET statement_timeout = '50ms'; SET lake.freshness_timeout = '10s'; SELECT count(*) FROM t2",
        "57014",
    )
    .await;
    client.batch_execute("RESET statement_timeout; RESET lake.freshness_timeout").await.unwrap();
    worker.behaviour.silent.store(false, Ordering::SeqCst);
    let after: u64 = ask(client, worked).await.unwrap().parse().unwrap();
    assert_eq!(after - before, 2);
    let plan = ask(client, "EXPLAIN ANALYZE SELECT sum(n2 * n2) FROM t1").await.unwrap();
    assert!(plan.contains("Answered By: heap"), "{plan}");
    client.batch_execute("RESET ALL").await.unwrap();
}

async fn sources(client: &Client) {
    client.batch_execute("CREATE TABLE gone (k integer PRIMARY KEY, a integer, b integer); SELECT lake.create_relation('gone', 'gone')").await.unwrap();
    client.batch_execute("ALTER TABLE gone DROP COLUMN a; ALTER TABLE gone ADD COLUMN c integer").await.unwrap();
    let error = fails(client, "SELECT a FROM lake.gone", "55000").await;
    assert!(error.contains("\"a\""), "{error}");
    fails(client, "SELECT c FROM lake.gone", "42703").await;
    client.batch_execute("DROP TABLE gone").await.unwrap();
    fails(client, "SELECT k FROM lake.gone", "42P01").await;
    client.batch_execute("SELECT lake.drop_relation('gone')").await.unwrap();
    let error = fails(client, "SELECT lake.create_relation('t2', 't1')", "42P07").await;
    assert!(error.contains("\"as\""), "{error}");
}

async fn cancel(server: &Server) {
    let client = server.connect("postgres").await;
    let slow = "SELECT count(*) FROM lake.t1 a, lake.t1 b, lake.t2 c WHERE a.i4 <> b.i8 - c.k";
    let begin = Instant::now();
    fails(&client, &format!("SET statement_timeout = '300ms'; {slow}"), "57014").await;
    assert!(begin.elapsed() < Duration::from_millis(1300), "{:?}", begin.elapsed());
    // While rows stream.
    let begin = Instant::now();
    let streaming = "SELECT a.id, repeat(b.s, 200) FROM lake.t1 a, lake.t1 b";
    fails(&client, &format!("SET statement_timeout = '300ms'; {streaming}"), "57014").await;
    assert!(begin.elapsed() < Duration::from_millis(1300), "{:?}", begin.elapsed());
    client.batch_execute("RESET statement_timeout").await.unwrap();
    assert_eq!(ask(&client, "SELECT count(*) FROM lake.t2").await.unwrap(), "900");
    let pid = ask(&client, "SELECT pg_backend_pid()").await.unwrap();
    threads_are_deaf(&pid);
    // Terminated in the middle of a query, and while rows stream.
    let other = server.connect("postgres").await;
    for query in [slow, streaming] {
        let client = server.connect("postgres").await;
        let pid = ask(&client, "SELECT pg_backend_pid()").await.unwrap();
        let running = tokio::spawn(async move { client.simple_query(query).await.map(|_| ()) });
        tokio::time::sleep(Duration::from_millis(400)).await;
        let begin = Instant::now();
        ask(&other, &format!("SELECT pg_terminate_backend({pid})")).await.unwrap();
        assert!(running.await.unwrap().is_err());
        while ask(&other, &format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}")).await.unwrap() != "0" {
            assert!(begin.elapsed() < Duration::from_secs(1), "still there after {:?}", begin.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn unhealthy(client: &Client, worker: &Worker) {
    worker.behaviour.refuse.store(true, Ordering::SeqCst);
    let error = fails(client, "SELECT count(*) FROM lake.t2", "55000").await;
    assert!(error.contains("errored") && error.contains("a hint"), "{error}");
    worker.behaviour.refuse.store(false, Ordering::SeqCst);
    worker.behaviour.silent.store(true, Ordering::SeqCst);
    let begin = Instant::now();
    fails(client, "SET statement_timeout = '300ms'; SELECT count(*) FROM lake.t2", "57014").await;
    assert!(begin.elapsed() < Duration::from_millis(1300), "{:?}", begin.elapsed());
    client.batch_execute("RESET statement_timeout").await.unwrap();
    let error = fails(client, "SET lake.freshness_timeout = '100ms'; SELECT count(*) FROM lake.t2", "55000").await;
    assert!(error.contains("lake.freshness_timeout"), "{error}");
    client.batch_execute("RESET lake.freshness_timeout").await.unwrap();
    worker.behaviour.silent.store(false, Ordering::SeqCst);
    worker.close();
    for sql in ["SELECT count(*) FROM lake.t2", "SELECT count(*) FROM lake.t2 WHERE name ~ '(?i)x'"] {
        let error = fails(client, sql, "57P03").await;
        assert!(error.contains("not running") && error.contains("source table"), "{error}");
    }
    let plan = ask(client, "EXPLAIN SELECT count(*) FROM lake.t2").await.unwrap();
    assert!(plan.contains("Lake: the lake engine is not running"), "{plan}");
    assert_eq!(
        ask(client, "SET lake.pushdown = off; SELECT count(*) FROM lake.t2; RESET lake.pushdown").await.unwrap(),
        "900"
    );
}

async fn extension(client: &Client) {
    let members = "SELECT count(*) FROM pg_depend WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
        AND classid = 'pg_class'::regclass AND objid IN ('lake.t1'::regclass, 'lake.t2'::regclass, 'lake.t3'::regclass)";
    assert_eq!(ask(client, members).await.unwrap(), "3");
    client.batch_execute("DROP EXTENSION lake_query").await.unwrap();
    assert_eq!(
        ask(client, "SELECT count(*) FROM pg_class WHERE relnamespace = 'lake'::regnamespace").await.unwrap(),
        "0"
    );
}

/// Signals are for the main thread: on any other, a handler of Postgres would run where no Postgres function may.
fn threads_are_deaf(pid: &str) {
    let mut others = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let task = task.unwrap();
        if task.file_name().to_str() == Some(pid) {
            continue;
        }
        others += 1;
        let status = std::fs::read_to_string(task.path().join("status")).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim();
        // All but those that cannot be blocked, and the two of the C library.
        assert_eq!(blocked, "fffffffe7ffbfeff", "{status}");
    }
    assert!(others >= 2, "a worker and the watchdog");
}
