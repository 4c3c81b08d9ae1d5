//! The standalone worker: tables whose changes are kept. What the history must be is told by the heap, as it was remembered
//! between the steps, and by triggers that count the changes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lake_tests::{Kinds, Postgres, PostgresBuilder, Source, WorkerConfig, bounded, eventually, exit_code};

use crate::mirror::Mirror;
use crate::{CATCH_UP, TEST_LIMIT};

/// Counts each change of a table, `{}`, that commits, as the history is to have it: a change of `id` is two. Of tables
/// without a key every update is.
const COUNTED: &str = "
    CREATE FUNCTION count_{}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO counted VALUES (TG_TABLE_NAME, lower(TG_OP));
        IF TG_OP = 'UPDATE' THEN
            IF OLD.id <> NEW.id OR TG_ARGV[0] = 'no key' THEN INSERT INTO counted VALUES (TG_TABLE_NAME, 'delete'); END IF;
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER rows AFTER INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW EXECUTE FUNCTION count_{}(KEY);
    CREATE TRIGGER all_rows AFTER TRUNCATE ON {} FOR EACH STATEMENT EXECUTE FUNCTION count_{}()";

fn counted(table: &str, key: &str) -> String {
    COUNTED.replace("{}", table).replace("KEY", key)
}

/// A mirror with histories, and what the heap was.
struct Kept {
    mirror: Mirror,
    history: Vec<&'static str>,
}

impl Kept {
    async fn start(
        builder: PostgresBuilder,
        schema: &str,
        tables: &[&'static str],
        history: &[&'static str],
        configure: impl FnOnce(&mut WorkerConfig),
    ) -> Result<Self> {
        let postgres = builder.start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch("CREATE TABLE counted (name text, kind text)").await?;
        postgres.batch(schema).await?;
        Source::publish(&postgres, tables).await?;
        let mut config = WorkerConfig::new(&postgres, "one", tables)?;
        config.history = history.iter().map(|&table| table.to_owned()).collect();
        configure(&mut config);
        let mirror = Mirror::of(postgres, config, tables).await?;
        Ok(Self { mirror, history: history.to_vec() })
    }

    async fn remember(&self) -> Result<()> {
        self.mirror.oracle.remember(&self.mirror.postgres, &self.history).await
    }

    /// Runs statements, and remembers what came of them.
    async fn step(&mut self, statements: &str) -> Result<()> {
        self.mirror.postgres.batch(statements).await.with_context(|| statements.to_owned())?;
        self.remember().await
    }

    /// Compares all histories with what is remembered; how many changes of each kind the first one has.
    async fn kinds(&self) -> Result<Kinds> {
        let all = self.mirror.oracle.assert_history(&self.mirror.postgres, &self.history, CATCH_UP).await?;
        all.into_iter().next().context("no history")
    }

    /// The same; each of these must also have as many changes as were counted, and as many rows copied as given.
    async fn assert_whole(&mut self, copied: &[(&'static str, u64)]) -> Result<()> {
        self.mirror.equal().await?;
        let tables: Vec<&str> = copied.iter().map(|(table, _)| *table).collect();
        let all = self.mirror.oracle.assert_history(&self.mirror.postgres, &tables, CATCH_UP).await?;
        for (&(table, rows), mut kinds) in copied.iter().zip(all) {
            ensure!(kinds.remove("copy").unwrap_or(0) == rows, "{table} has not {rows} rows of the copy");
            // The one before the copy.
            let truncations = kinds.entry("truncate".to_owned()).or_default();
            *truncations -= 1;
            kinds.retain(|_, count| *count > 0);
            let name = table.rsplit('.').next().unwrap_or(table);
            let query = format!("SELECT kind, count(*)::text FROM counted WHERE name = '{name}' GROUP BY kind");
            let mut counted = BTreeMap::new();
            for row in self.mirror.postgres.rows(&query).await? {
                let [Some(kind), Some(count)] = row.as_slice() else { continue };
                counted.insert(kind.clone(), count.parse::<u64>()?);
            }
            ensure!(kinds == counted, "the history of {table} has {kinds:?}, the source had {counted:?}");
        }
        Ok(())
    }
}

/// A value out of line, another one for every number.
fn big(of: &str) -> String {
    format!("(SELECT string_agg(md5(({of})::text || g), '') FROM generate_series(1, 120) g)")
}

fn schema() -> String {
    let big = big("i");
    format!(
        "CREATE TABLE t (id int PRIMARY KEY, a text, n numeric(10,2), b bytea, at timestamptz);
         ALTER TABLE t ALTER a SET STORAGE EXTERNAL;
         CREATE TABLE whole (id int PRIMARY KEY, a text, n int); ALTER TABLE whole REPLICA IDENTITY FULL, ALTER a SET STORAGE EXTERNAL;
         CREATE TABLE bag (id int, a text); ALTER TABLE bag REPLICA IDENTITY FULL;
         CREATE TABLE plain (id int PRIMARY KEY, a text);
         INSERT INTO t SELECT i, {big}, i / 7.0, decode(md5(i::text), 'hex'), timestamptz '2020-01-01' + i * interval '1 hour' FROM generate_series(1, 50) i;
         INSERT INTO whole SELECT i, {big}, i FROM generate_series(1, 20) i;
         INSERT INTO bag SELECT i % 5, 'twin' FROM generate_series(1, 20) i;
         INSERT INTO plain SELECT i, 'plain' FROM generate_series(1, 20) i;
         {}; {}; {}",
        counted("t", ""), counted("whole", ""), counted("bag", "'no key'")
    )
}

const TABLES: [&str; 4] = ["public.t", "public.whole", "public.bag", "public.plain"];
const KEPT: [&str; 3] = ["public.t", "public.whole", "public.bag"];
const COPIED: [(&str, u64); 3] = [("public.t", 50), ("public.whole", 20), ("public.bag", 20)];

#[tokio::test]
async fn every_change_is_a_row_of_the_history_and_its_replay_gives_what_the_table_was_at_each_moment() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut kept = Kept::start(Postgres::builder(), &schema(), &TABLES, &KEPT, |_| {}).await?;
        kept.remember().await?;
        let big = big("99");
        for statements in [
            // Values out of line that stay, in files and in memory; several changes of a row in one transaction.
            "UPDATE t SET n = 1 WHERE id <= 5; UPDATE whole SET n = 1 WHERE id <= 5; UPDATE bag SET a = 'other' WHERE id = 1".to_owned(),
            "BEGIN; UPDATE t SET n = 2 WHERE id <= 3; UPDATE t SET at = NULL WHERE id = 1; DELETE FROM t WHERE id = 2;
             INSERT INTO t VALUES (2, 'again', NULL, NULL, NULL); UPDATE whole SET n = NULL WHERE id = 3; COMMIT".to_owned(),
            format!("UPDATE t SET a = {big} WHERE id = 4; UPDATE t SET n = 4 WHERE id = 4; UPDATE whole SET a = {big} WHERE id = 4"),
            // Other keys, with values out of line that stay; a row that comes and goes.
            "UPDATE t SET id = 106 WHERE id = 6; UPDATE whole SET id = 106 WHERE id = 6".to_owned(),
            "BEGIN; UPDATE t SET id = 107 WHERE id = 7; UPDATE t SET id = 7 WHERE id = 107; UPDATE t SET id = 108 WHERE id = 8; COMMIT".to_owned(),
            "BEGIN; INSERT INTO t VALUES (200, 'x', 0, '', now()); DELETE FROM t WHERE id = 200; COMMIT".to_owned(),
            // What is rolled back is not there, what is kept around it is.
            "BEGIN; UPDATE t SET n = 7 WHERE id = 9; SAVEPOINT s; DELETE FROM t; TRUNCATE bag; ROLLBACK TO s; DELETE FROM t WHERE id = 10; COMMIT".to_owned(),
            "BEGIN; DELETE FROM t; DELETE FROM bag; ROLLBACK; INSERT INTO bag SELECT 3, 'twin' FROM generate_series(1, 4)".to_owned(),
            // Equal rows, one less and one more of them; an update that changes nothing.
            "DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag WHERE id = 3); INSERT INTO bag VALUES (3, 'twin'), (NULL, NULL); UPDATE bag SET a = a".to_owned(),
            "BEGIN; INSERT INTO t VALUES (300, 'gone', 0, '', now()); TRUNCATE t, bag; INSERT INTO t VALUES (301, 'new', 9.99, '\\x00ff', '2021-01-01'); COMMIT".to_owned(),
            "TRUNCATE t; UPDATE plain SET a = 'changed'; DELETE FROM whole WHERE id > 10".to_owned(),
            "INSERT INTO t SELECT i, 'later', i, NULL, now() FROM generate_series(1, 10) i; DELETE FROM t WHERE id = 3".to_owned(),
        ] {
            kept.step(&statements).await?;
        }
        kept.assert_whole(&COPIED).await?;
        // As the README asks: what a row was at a moment, before it was deleted, between, when it was back, and emptied.
        for (n, expected) in [(0, "2"), (1, "1"), (2, "2"), (10, "none"), (12, "2")] {
            let then = format!("SELECT to_timestamp(at / 1e6)::text FROM oracle.moments WHERE name = 'public.t' ORDER BY lsn OFFSET {n} LIMIT 1");
            let then = kept.mirror.postgres.value(&then).await?;
            let query = format!(
                "SELECT coalesce(max(CASE WHEN n = 1 THEN '1' ELSE '2' END), 'none') FROM (SELECT * FROM {{public.t_history}}
                 WHERE _committed_at <= TIMESTAMPTZ '{then}' AND (id = 2 OR _op = 'truncate') ORDER BY _lsn DESC, _seq DESC LIMIT 1)
                 WHERE _op NOT IN ('delete', 'truncate')"
            );
            let was = kept.mirror.oracle.value(&query).await?;
            ensure!(was == expected, "row 2 at {then}, moment {n}: {was}, not {expected}");
        }
        // A row of the delete has what the source tells: of `t` the key, of `whole` all of it.
        let oracle = &kept.mirror.oracle;
        let told = |table: &str| format!("SELECT count(*) FILTER (a IS NULL) || ' ' || count(a) FROM {{public.{table}_history}} WHERE _op = 'delete'");
        let (of_t, of_whole) = (oracle.value(&told("t")).await?, oracle.value(&told("whole")).await?);
        ensure!(of_t.ends_with(" 0") && of_whole.starts_with("0 ") && !of_whole.ends_with(" 0"), "{of_t}, {of_whole}");
        let named = "SELECT count(*) FROM lake_catalog.iceberg_tables WHERE table_name LIKE '%history'";
        ensure!(kept.mirror.postgres.value(named).await? == "3", "plain has a history too");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_transaction_that_outgrows_all_memory_is_in_the_history_but_for_what_was_rolled_back() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let builder = Postgres::builder().set("logical_decoding_work_mem", "64kB");
        let schema = format!(
            "CREATE TABLE t (id int PRIMARY KEY, a text, n int); ALTER TABLE t ALTER a SET STORAGE EXTERNAL;
             INSERT INTO t SELECT i, {}, 0 FROM generate_series(1, 100) i; {}", big("i"), counted("t", "")
        );
        let mut kept = Kept::start(builder, &schema, &["public.t"], &["public.t"], |config| {
            config.max_bytes = "64KiB".to_owned();
            // Nothing is committed while it comes, but by its own size.
            config.interval = "1h".to_owned();
        })
        .await?;
        let fill = |from: u32, to: u32| format!("INSERT INTO t SELECT i, repeat(md5(i::text), 10), 0 FROM generate_series({from}, {to}) i");
        kept.step(&format!(
            "BEGIN; {}; UPDATE t SET n = n + 1; SAVEPOINT s; {}; DELETE FROM t WHERE id < 50; ROLLBACK TO s;
             UPDATE t SET id = id + 100000 WHERE id % 10 = 0; SAVEPOINT k; {}; UPDATE t SET n = -1 WHERE id BETWEEN 20000 AND 20500; RELEASE k;
             DELETE FROM t WHERE id % 7 = 0; COMMIT",
            fill(1000, 4000), fill(10000, 12000), fill(20000, 21000)
        ))
        .await?;
        kept.step("UPDATE t SET n = 5 WHERE id % 3 = 0").await?;
        kept.step(&format!("BEGIN; TRUNCATE t; {}; UPDATE t SET n = 1; COMMIT", fill(1, 1500))).await?;
        kept.assert_whole(&[("public.t", 100)]).await?;
        let streamed = "SELECT stream_txns > 0 FROM pg_stat_replication_slots WHERE slot_name = 'lakemirror'";
        ensure!(kept.mirror.postgres.value(streamed).await? == "t", "no transaction was streamed");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_worker_that_is_killed_again_and_again_writes_each_change_into_the_history_once() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut kept = Kept::start(Postgres::builder(), &schema(), &TABLES, &KEPT, |config| {
            (config.interval, config.max_bytes) = ("20ms".to_owned(), "64KiB".to_owned());
        })
        .await?;
        for round in 0..12_u64 {
            let statements = format!(
                "INSERT INTO t SELECT i, repeat('a', 500), {round}, NULL, now() FROM generate_series(1000 + {round} * 100, 1099 + {round} * 100) i;
                 BEGIN; UPDATE t SET n = n + 1 WHERE id % 3 = 0; UPDATE t SET id = -id WHERE id % 11 = {round}; UPDATE whole SET n = {round}; COMMIT;
                 DELETE FROM t WHERE id % 13 = {round}; UPDATE bag SET a = 'round {round}' WHERE id = {round} % 5;
                 INSERT INTO plain VALUES (1000 + {round}, 'x')"
            );
            let (client, kill_after) = (kept.mirror.postgres.client().await?, Duration::from_millis(round * 37 % 200));
            let work = tokio::spawn(async move { client.batch_execute(&statements).await });
            tokio::time::sleep(kill_after).await;
            kept.mirror.restart().await?;
            work.await??;
            kept.remember().await?;
            if round % 4 == 3 {
                kept.mirror.equal().await?;
            }
        }
        kept.assert_whole(&COPIED).await
    })
    .await
}

#[tokio::test]
async fn the_history_goes_on_through_changes_of_columns_and_new_copies() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut kept = Kept::start(Postgres::builder(), &schema(), &TABLES, &KEPT, |_| {}).await?;
        kept.step("UPDATE t SET n = 1 WHERE id = 1").await?;
        // In place, with rows around them in the same transaction.
        kept.step("BEGIN; UPDATE t SET n = 2 WHERE id = 2; ALTER TABLE t ADD COLUMN extra text; UPDATE t SET extra = 'e' WHERE id = 3; COMMIT").await?;
        kept.step("UPDATE t SET n = 3 WHERE id = 4; ALTER TABLE t RENAME COLUMN extra TO more; UPDATE t SET more = 'm' WHERE id = 5").await?;
        kept.step("ALTER TABLE t DROP COLUMN b; UPDATE t SET n = 4 WHERE id < 10; ALTER TABLE t ALTER n TYPE numeric(12,2); UPDATE t SET n = 1234567890.5 WHERE id = 11").await?;
        kept.mirror.restart().await?;
        kept.step("UPDATE t SET more = 'after the restart', n = 5 WHERE id = 12; DELETE FROM t WHERE id = 13").await?;
        kept.assert_whole(&COPIED).await?;
        // Each of these copies the table anew. A type that Iceberg cannot make of the former one makes another column.
        let uuid = "SELECT table_uuid::text FROM lake_catalog.mirrored_tables WHERE source_table = 't'";
        for (times, statements) in (2..).zip([
            "UPDATE t SET n = 6 WHERE id = 14; ALTER TABLE t ADD COLUMN d int DEFAULT 7; UPDATE t SET n = 7 WHERE id = 15",
            "ALTER TABLE t ALTER n TYPE text USING 'n ' || n; UPDATE t SET more = 'text' WHERE id = 16",
            "ALTER TABLE t ALTER n TYPE int USING length(n); UPDATE t SET n = 8 WHERE id = 17",
            "",
        ]) {
            let before = kept.mirror.postgres.value(uuid).await?;
            if statements.is_empty() {
                kept.mirror.resync(&["public.t"]).await?;
            } else {
                kept.mirror.postgres.batch(statements).await?;
            }
            eventually("the table is copied anew", CATCH_UP, async || {
                Ok((kept.mirror.postgres.value(uuid).await? != before).then_some(()))
            })
            .await?;
            kept.mirror.streaming().await?;
            kept.remember().await?;
            kept.step("UPDATE t SET more = coalesce(more, '') || '+' WHERE id > 15").await?;
            kept.mirror.equal().await?;
            let kinds = kept.kinds().await?;
            ensure!(kinds["truncate"] == times && kinds["copy"] == 50 + 49 * (times - 1), "copy {times}: {kinds:?}");
        }
        kept.mirror.restart().await?;
        kept.step("DELETE FROM t WHERE id > 40; INSERT INTO t (id, n) VALUES (500, 5)").await?;
        kept.kinds().await?;
        kept.mirror.equal().await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_history_that_is_turned_on_begins_with_a_copy_and_one_that_is_turned_off_stays() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let mut kept = Kept::start(Postgres::builder(), &schema(), &TABLES, &[], |_| {}).await?;
        kept.mirror.equal().await?;
        let history = |on: &[&str]| -> Vec<String> { on.iter().map(|&table| table.to_owned()).collect() };
        let copied = "SELECT count(*) FROM lake_catalog.mirrored_tables t JOIN lake_catalog.iceberg_tables i
                      ON i.table_name = t.lake_table || '_history' WHERE t.lake_table = 't' AND t.state = 'streaming'";
        kept.mirror.config.history = history(&["public.t"]);
        let said = kept.mirror.call(&["mirror"]).await?;
        ensure!(said.contains("copied anew"), "it does not say so: {said}");
        eventually("the history begins", CATCH_UP, async || {
            Ok((kept.mirror.postgres.value(copied).await? == "1").then_some(()))
        })
        .await?;
        kept.history = vec!["public.t"];
        kept.step("UPDATE t SET n = 1 WHERE id <= 10").await?;
        let kinds = kept.kinds().await?;
        ensure!(kinds["copy"] == 50 && kinds["update"] == 10, "{kinds:?}");
        // Asked for again, nothing happens.
        kept.mirror.call(&["mirror"]).await?;
        kept.step("UPDATE t SET n = 2 WHERE id <= 10").await?;
        ensure!(kept.kinds().await?["copy"] == 50, "it was copied once more");
        kept.mirror.config.history = Vec::new();
        kept.mirror.call(&["mirror"]).await?;
        let log = kept.mirror.postgres.scratch().path().join("worker-one/worker.log");
        eventually("the history ends", CATCH_UP, async || {
            Ok(std::fs::read_to_string(&log)?.contains("its history ends").then_some(()))
        })
        .await?;
        let count = "SELECT count(*) FROM {public.t_history}";
        let before = kept.mirror.oracle.value(count).await?;
        kept.mirror.after("UPDATE t SET n = 3").await?;
        kept.mirror.restart().await?;
        kept.mirror.after("UPDATE t SET n = 4; DELETE FROM t WHERE id > 40").await?;
        ensure!(kept.mirror.oracle.value(count).await? == before, "it goes on");
        // On again: it goes on where it ended, with a new copy.
        kept.mirror.config.history = history(&["public.t", "public.bag"]);
        kept.mirror.call(&["mirror"]).await?;
        eventually("the history goes on", CATCH_UP, async || {
            let copies = "SELECT count(*) FROM {public.t_history} WHERE _op = 'truncate'";
            Ok((kept.mirror.oracle.value(copies).await? == "2").then_some(()))
        })
        .await?;
        kept.mirror.streaming().await?;
        kept.step("UPDATE t SET n = 5 WHERE id = 1; UPDATE bag SET a = 'x'").await?;
        ensure!(kept.kinds().await?["copy"] == 90, "rows of the copies");
        kept.mirror.equal().await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn partitioned_tables_and_tables_that_only_grow_have_histories_too() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let schema = format!(
            "CREATE TABLE parts (id int PRIMARY KEY, a text) PARTITION BY RANGE (id);
             CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (100); CREATE TABLE high PARTITION OF parts FOR VALUES FROM (100) TO (200);
             INSERT INTO parts SELECT i, 'a' FROM generate_series(1, 120) i;
             CREATE TABLE log (id int, a text); INSERT INTO log SELECT i, 'l' FROM generate_series(1, 30) i; {}", counted("log", "")
        );
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres.batch("CREATE TABLE counted (name text, kind text)").await?;
        postgres.batch(&schema).await?;
        Source::publish(&postgres, &["public.parts", "public.log"]).await?;
        postgres.batch("ALTER PUBLICATION lakemirror SET (publish_via_partition_root = true); GRANT SELECT ON low, high TO PUBLIC").await?;
        let mut config = WorkerConfig::new(&postgres, "one", &["public.parts"])?;
        config.append_only = vec!["public.log".to_owned()];
        config.history = vec!["public.parts".to_owned(), "public.log".to_owned()];
        let tables = ["public.parts", "public.log"];
        let mut kept =
            Kept { mirror: Mirror::of(postgres, config, &tables).await?, history: tables.to_vec() };
        kept.mirror.streaming().await?;
        kept.step("INSERT INTO parts VALUES (150, 'b'); UPDATE parts SET a = 'c' WHERE id = 7; UPDATE parts SET id = id + 150 WHERE id = 8").await?;
        kept.step("DELETE FROM parts WHERE id = 9; INSERT INTO log VALUES (1, 'twin'), (1, 'twin')").await?;
        kept.step("TRUNCATE log; INSERT INTO log VALUES (5, 'five')").await?;
        kept.assert_whole(&[("public.log", 30)]).await?;
        let kinds = kept.kinds().await?;
        // To another partition is gone and come.
        let expected = [("copy", 120), ("truncate", 1), ("insert", 2), ("update", 1), ("delete", 2)];
        ensure!(expected.iter().all(|(kind, count)| kinds.get(*kind) == Some(count)), "{kinds:?}");
        // A partition that is emptied beside the stream: the table is copied anew.
        kept.mirror.postgres.batch("TRUNCATE high").await?;
        eventually("the partitions are copied anew", CATCH_UP, async || {
            let copies = "SELECT count(*) FROM {public.parts_history} WHERE _op = 'truncate'";
            Ok((kept.mirror.oracle.value(copies).await? == "2").then_some(()))
        })
        .await?;
        kept.step("INSERT INTO parts VALUES (160, 'after')").await?;
        kept.kinds().await?;
        kept.mirror.equal().await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_copy_that_is_killed_leaves_nothing_in_the_history() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let schema = "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 40000) i";
        let mut kept = Kept::start(Postgres::builder(), schema, &["public.t"], &["public.t"], |config| {
            config.file_size = Some("256KiB".to_owned());
        })
        .await?;
        kept.step("UPDATE t SET a = 'one' WHERE id = 1").await?;
        kept.kinds().await?;
        for _ in 0..3 {
            kept.mirror.call(&["resync", "public.t"]).await?;
            let files = || std::fs::read_dir(kept.mirror.config.warehouse.join("public")).map(Iterator::count);
            let copying = "SELECT count(*) FROM lake_catalog.mirrored_tables WHERE state = 'copying'";
            eventually("the copy runs", CATCH_UP, async || {
                Ok((kept.mirror.postgres.value(copying).await? == "1" && files()? > 2).then_some(()))
            })
            .await?;
            kept.mirror.restart().await?;
        }
        kept.mirror.streaming().await?;
        kept.step("UPDATE t SET a = 'two' WHERE id = 2").await?;
        kept.mirror.equal().await?;
        let kinds = kept.kinds().await?;
        // One of those that were killed may have been committed before.
        ensure!(kinds["copy"] == 40000 * kinds["truncate"] && kinds["truncate"] >= 2, "{kinds:?}");
        eventually("nothing is left behind", CATCH_UP, async || {
            let strays = kept.mirror.oracle.strays(&kept.mirror.config.warehouse).await?;
            if !strays.is_empty() {
                // What expires is swept with the commits.
                kept.mirror.postgres.batch("UPDATE t SET a = a || '.' WHERE id = 3").await?;
            }
            Ok(strays.iter().all(|path| !path.contains("t_history")).then_some(()))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn what_a_history_cannot_be_kept_of_is_refused_with_the_way_out() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = Postgres::builder().start().await?;
        Source::prepare(&postgres).await?;
        postgres
            .batch(
                "CREATE TABLE named (id int PRIMARY KEY, \"_Seq\" int);
                 CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE t_history (id int PRIMARY KEY, v int);
                 CREATE TABLE later (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1); INSERT INTO later VALUES (1, 1)",
            )
            .await?;
        let tables = ["public.named", "public.t", "public.t_history", "public.later"];
        Source::publish(&postgres, &tables).await?;
        let mut config = WorkerConfig::new(&postgres, "one", &tables)?;
        config.history = vec!["public.other".to_owned()];
        let (code, said) = config.run_to_end(CATCH_UP).await?;
        ensure!(code == exit_code::CONFIG && said.contains("public.other") && said.contains("hint"), "{code}: {said}");
        config.history = vec!["public.named".to_owned()];
        for command in [&["check"][..], &["run"]] {
            let output = config.call(command).await?;
            let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            ensure!(!output.status.success() && said.contains("_Seq") && said.contains("RENAME COLUMN"), "{command:?}: {said}");
        }
        config.tables = vec!["public.named".to_owned(), "public.later".to_owned()];
        config.history = vec!["public.later".to_owned()];
        let mut mirror = Mirror::of(postgres, config, &["public.named", "public.later"]).await?;
        // One of two tables that want one name stops; the other goes on.
        mirror.config.tables = tables.map(str::to_owned).to_vec();
        mirror.config.history.push("public.t".to_owned());
        mirror.call(&["mirror"]).await?;
        let taken = "SELECT count(*) FROM lake_catalog.mirrored_tables WHERE error LIKE '%public.t_history is taken%' AND error_hint <> ''";
        eventually("one stops", CATCH_UP, async || Ok((mirror.postgres.value(taken).await? != "0").then_some(()))).await?;
        // A column that comes by that name later.
        mirror.postgres.batch("ALTER TABLE later ADD COLUMN _op text; INSERT INTO later VALUES (2, 2, 'x')").await?;
        let why = mirror.stopped("later").await?;
        ensure!(why.contains("_op") && why.contains("RENAME COLUMN"), "{why}");
        mirror.postgres.batch("ALTER TABLE later RENAME COLUMN _op TO op").await?;
        mirror.call(&["resync", "public.later"]).await?;
        eventually("it streams again", CATCH_UP, async || {
            let streams = "SELECT state FROM lake_catalog.mirrored_tables WHERE source_table = 'later'";
            Ok((mirror.postgres.value(streams).await? == "streaming").then_some(()))
        })
        .await?;
        mirror.after("INSERT INTO later VALUES (3, 3, 'y')").await?;
        mirror.oracle.assert_history(&mirror.postgres, &["public.later"], CATCH_UP).await?;
        // A history that somebody takes away while it is kept.
        mirror.postgres.batch("DELETE FROM lake_catalog.iceberg_tables WHERE table_name = 'later_history'; INSERT INTO later VALUES (4, 4, 'z')").await?;
        let why = mirror.stopped("later").await?;
        ensure!(why.contains("public.later_history") && why.contains("resync"), "{why}");
        mirror.call(&["resync", "public.later"]).await?;
        eventually("it begins again", CATCH_UP, async || {
            let there = "SELECT count(*) FROM lake_catalog.iceberg_tables WHERE table_name = 'later_history'";
            Ok((mirror.postgres.value(there).await? == "1").then_some(()))
        })
        .await?;
        mirror.after("INSERT INTO later VALUES (5, 5, 'z')").await?;
        let kinds = mirror.oracle.assert_history(&mirror.postgres, &["public.later"], CATCH_UP).await?;
        ensure!(kinds[0]["copy"] == 4 && kinds[0]["insert"] == 1, "{kinds:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn values_that_iceberg_has_not_are_in_the_history_as_they_are_in_the_table() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let table = |name: &str| {
            format!(
                "CREATE TABLE {name} (id int, until date, n numeric(8,2), v text, PRIMARY KEY (id, until));
                 ALTER TABLE {name} ALTER v SET STORAGE EXTERNAL"
            )
        };
        // One has such values from the beginning, the other gets them; the third is told by all of its columns.
        let schema = format!(
            "{}; {}; CREATE TABLE bag (d date, t time); ALTER TABLE bag REPLICA IDENTITY FULL;
             INSERT INTO copied SELECT i, CASE WHEN i % 3 = 0 THEN 'infinity' ELSE DATE '2020-01-01' + i END, CASE WHEN i > 900 THEN 'NaN'::numeric ELSE i END, repeat(md5(i::text), 90) FROM generate_series(1, 1000) i;
             INSERT INTO later SELECT i, '2020-01-01', i, repeat(md5(i::text), 90) FROM generate_series(1, 50) i;
             INSERT INTO bag VALUES ('2020-01-01', '12:00'), ('2020-01-01', '12:00')",
            table("copied"),
            table("later")
        );
        let tables = ["public.copied", "public.later", "public.bag"];
        let mut kept = Kept::start(Postgres::builder(), &schema, &tables, &tables, |config| {
            config.file_size = Some("256KiB".to_owned());
        })
        .await?;
        kept.remember().await?;
        for statements in [
            "BEGIN; UPDATE later SET until = 'infinity' WHERE id = 5; UPDATE later SET n = 'NaN' WHERE id = 5; DELETE FROM later WHERE id = 6; COMMIT",
            "UPDATE copied SET until = '2021-01-01' WHERE until = 'infinity' AND id < 90; INSERT INTO copied SELECT id, 'infinity', -n, v FROM copied WHERE until = '2021-01-01'",
            "UPDATE bag SET d = 'infinity', t = '24:00' WHERE ctid = '(0,1)'; INSERT INTO bag VALUES ('infinity', '24:00'); DELETE FROM bag WHERE d = 'infinity'",
            "UPDATE later SET n = 7 WHERE n = 'NaN'; DELETE FROM later WHERE until = 'infinity'; TRUNCATE copied",
        ] {
            kept.step(statements).await?;
        }
        kept.kinds().await?;
        kept.mirror.equal().await?;
        // By the worker that comes after, and through columns that change.
        kept.mirror.restart().await?;
        kept.step("ALTER TABLE later RENAME n TO m; ALTER TABLE later ADD COLUMN d date; UPDATE later SET m = 'NaN', d = '-infinity' WHERE id < 9").await?;
        kept.step("DELETE FROM later WHERE m = 'NaN' AND id < 3; UPDATE bag SET t = '24:00'").await?;
        kept.kinds().await?;
        // Copied anew, without any of them: the history has those of before.
        kept.mirror.postgres.batch("UPDATE later SET m = 1, d = NULL, until = '2020-01-01'").await?;
        kept.mirror.equal().await?;
        let added = "ALTER TABLE later ADD COLUMN e int DEFAULT 5; UPDATE later SET e = 6 WHERE id = 9";
        kept.mirror.postgres.batch(added).await?;
        kept.mirror.equal().await?;
        kept.step("UPDATE later SET d = 'infinity' WHERE id = 9").await?;
        kept.kinds().await?;
        kept.mirror.equal().await?;
        Ok(())
    })
    .await
}
