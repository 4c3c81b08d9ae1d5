//! The engine from outside: scans with deleted and fresh rows, cancel, errors, memory, and the sandbox.
#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow_array::{Decimal128Array, FixedSizeBinaryArray, Int32Array, RecordBatch, StringArray};
use arrow_ipc::writer::StreamWriter;
use lake_engine::{ColumnKind, Delivery, Engine, ErrorKind, PinnedScan, ScanColumn, ScanFile, ScanTable, Settings};
use roaring::RoaringTreemap;

fn never() -> bool {
    false
}

fn engine(directory: &std::path::Path, cancelled: fn() -> bool) -> Engine {
    Engine::open(Settings {
        memory_mb: 128,
        threads: 2,
        temp_directory: directory.join("spill").to_str().unwrap().into(),
        temp_mb: 1024,
        allowed_directories: vec![directory.to_str().unwrap().into()],
        store: None,
        cancelled,
    })
    .unwrap()
}

fn columns() -> Vec<ScanColumn> {
    [(1, "INTEGER"), (3, "VARCHAR"), (4, "DECIMAL(12,2)"), (5, "UUID"), (9, "BIGINT")]
        .map(|(field_id, kind)| ScanColumn { field_id, duckdb_type: kind.into() })
        .into()
}

/// The first column, a `BIGINT`, of all rows.
fn numbers(engine: &Engine, sql: &str, scans: &[Arc<PinnedScan>]) -> Vec<i64> {
    let mut rows = engine.query(sql, Delivery::Streaming, scans.to_vec()).unwrap();
    assert_eq!(rows.kinds()[0], ColumnKind::Int64, "{sql}");
    let mut all = Vec::new();
    while let Some(chunk) = rows.next_chunk().unwrap() {
        // SAFETY: a column of the chunk, of the kind asserted, read while the chunk lives.
        all.extend((0..chunk.rows()).map(|row| unsafe { chunk.column(0).value::<i64>(row) }));
    }
    all
}

fn failure(engine: &Engine, sql: &str) -> lake_engine::Error {
    let mut rows = match engine.query(sql, Delivery::Streaming, Vec::new()) {
        Ok(rows) => rows,
        Err(error) => return error,
    };
    loop {
        match rows.next_chunk() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("{sql} succeeded"),
            Err(error) => return error,
        }
    }
}

/// Ten thousand rows 0.. in a file, columns named otherwise than by their field ids.
fn write(engine: &Engine, path: &str, begin: usize) -> ScanFile {
    let quoted = path.replace('\'', "''");
    let sql = format!(
        "COPY (SELECT (range + {begin})::INTEGER AS a, 's' || range AS b, (range / 4)::DECIMAL(12,2) AS d,
                uuid '00112233-4455-6677-8899-aabbccddeeff' AS u FROM range(10000))
         TO '{quoted}' (FIELD_IDS {{a: 1, b: 3, d: 4, u: 5}}, ROW_GROUP_SIZE 2048)"
    );
    let mut rows = engine.query(&sql, Delivery::Complete, Vec::new()).unwrap();
    while rows.next_chunk().unwrap().is_some() {}
    ScanFile { path: path.into(), rows: 10_000 }
}

fn fresh() -> Vec<u8> {
    let mut bytes = Vec::new();
    let batch = |begin: i32, rows: i32| {
        let range = begin..begin + rows;
        let null_every_third = |row: i32| (row % 3 != 0).then_some(row);
        let decimals: Vec<Option<i128>> = range.clone().map(|row| null_every_third(row).map(i128::from)).collect();
        let uuids: Vec<Option<[u8; 16]>> = range.clone().map(|row| Some(i128::from(row).to_be_bytes())).collect();
        RecordBatch::try_from_iter_with_nullable([
            ("c1", Arc::new(Int32Array::from_iter_values(range.clone())) as _, true),
            (
                "c3",
                Arc::new(StringArray::from_iter(range.map(|row| Some(format!("a fresh row, number {row}"))))) as _,
                true,
            ),
            ("c4", Arc::new(Decimal128Array::from(decimals).with_precision_and_scale(12, 2).unwrap()) as _, true),
            (
                "c5",
                Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(uuids.into_iter(), 16).unwrap()) as _,
                true,
            ),
            ("c9", Arc::new(arrow_array::Int64Array::from_iter_values((0..rows).map(i64::from))) as _, true),
        ])
        .unwrap()
    };
    let first = batch(50_000, 5000);
    let mut writer = StreamWriter::try_new(&mut bytes, &first.schema()).unwrap();
    writer.write(&first).unwrap();
    writer.write(&batch(60_000, 1)).unwrap();
    writer.finish().unwrap();
    drop(writer);
    bytes
}

fn table(engine: &Engine, directory: &std::path::Path) -> ScanTable {
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let files = vec![
        write(engine, &path("plain [x]*.parquet"), 0),
        write(engine, &path("it's holed.parquet"), 10_000),
        write(engine, &path("second holed.parquet"), 20_000),
    ];
    let mut deleted = Vec::new();
    for (file, rows) in [(1u32, (0..10_000).step_by(2).collect::<RoaringTreemap>()), (2, [9_999].into_iter().collect())]
    {
        let mut bitmap = Vec::new();
        rows.serialize_into(&mut bitmap).unwrap();
        deleted.extend_from_slice(&file.to_be_bytes());
        deleted.extend_from_slice(&u32::try_from(bitmap.len()).unwrap().to_be_bytes());
        deleted.extend_from_slice(&bitmap);
    }
    ScanTable::decode(files, &deleted, &fresh()).unwrap()
}

#[test]
fn a_pinned_table_is_its_files_minus_deletions_plus_fresh_rows() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path(), never);
    let table = table(&engine, directory.path());
    assert_eq!((table.deleted_rows(), table.fresh_rows()), (5001, 5001));
    let scan = Arc::new(engine.admit(table));
    let from = scan.sql(&columns()).unwrap();
    let scans = [Arc::clone(&scan)];
    let count =
        |condition: &str| numbers(&engine, &format!("SELECT count(*) FROM {from} WHERE {condition}"), &scans)[0];
    assert_eq!(count("true"), 10_000 + 5000 + 9999 + 5001);
    assert_eq!(count("c1 < 10000"), 10_000);
    assert_eq!(count("c1 >= 10000 AND c1 < 20000"), 5000);
    assert_eq!(count("c1 % 2 = 0 AND c1 >= 10000 AND c1 < 20000"), 0);
    assert_eq!(count("c1 = 29999"), 0);
    assert_eq!(count("c1 = 29998"), 1);
    assert_eq!(count("c3 = 's7'"), 3);
    assert_eq!(count("c3 = 'a fresh row, number 60000'"), 1);
    assert_eq!(count("c9 IS NULL"), 24_999);
    assert_eq!(count("c4 IS NULL"), 1668);
    assert_eq!(count("c5 = uuid '00112233-4455-6677-8899-aabbccddeeff'"), 24_999);
    assert_eq!(count("c5 = uuid '00000000-0000-0000-0000-00000000c350'"), 1);
    // No column at all.
    let bare = scan.sql(&[]).unwrap();
    assert_eq!(numbers(&engine, &format!("SELECT count(*) FROM {bare}"), &scans), [30_000]);
    // Ordered streams, and joins of a table with itself.
    let sql = format!("SELECT CAST(c1 AS BIGINT) FROM {from} ORDER BY c1 DESC LIMIT 3");
    assert_eq!(numbers(&engine, &sql, &scans), [60_000, 54_999, 54_998]);
    let sql = format!("SELECT count(*) FROM {from} AS a JOIN {from} AS b ON a.c1 = b.c1");
    assert_eq!(numbers(&engine, &sql, &scans), [30_000]);
}

#[test]
fn duckdb_expects_as_many_rows_as_if_nothing_were_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path(), never);
    let scan = Arc::new(engine.admit(table(&engine, directory.path())));
    let sql = format!("EXPLAIN SELECT c1, c3 FROM {}", scan.sql(&columns()).unwrap());
    let mut rows = engine.query(&sql, Delivery::Complete, vec![scan]).unwrap();
    let chunk = rows.next_chunk().unwrap().unwrap();
    // SAFETY: the second column of EXPLAIN is a text, read while the chunk lives.
    let plan = String::from_utf8_lossy(unsafe { chunk.column(1).bytes(0) }).into_owned();
    // 20,000 in files with deletions, of which it thinks that one in five is left; 10,000 in another; 5,001 fresh ones, and the other 16,000.
    for expected in ["lake_live", "~20,000 rows", "~4,000 rows", "~10,000 rows", "~21,001 rows"] {
        assert!(plan.contains(expected), "{expected}\n{plan}");
    }
}

#[test]
fn an_empty_table_has_no_rows_and_every_column() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path(), never);
    let scan = Arc::new(engine.admit(ScanTable::decode(Vec::new(), &[], &[]).unwrap()));
    let sql = format!("SELECT count(c9) FROM {}", scan.sql(&columns()).unwrap());
    assert_eq!(numbers(&engine, &sql, &[scan]), [0]);
}

#[test]
fn a_closed_slot_fails_and_a_pin_that_makes_no_sense_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path(), never);
    let scan = engine.admit(table(&engine, directory.path()));
    let sql = format!("SELECT count(*) FROM {}", scan.sql(&columns()).unwrap());
    drop(scan);
    assert!(failure(&engine, &sql).to_string().contains("closed"));
    assert_eq!(ScanTable::decode(Vec::new(), &[0; 7], &[]).unwrap_err().kind(), ErrorKind::Pin);
    assert_eq!(ScanTable::decode(Vec::new(), &[0; 8], &[]).unwrap_err().kind(), ErrorKind::Pin);
    assert_eq!(ScanTable::decode(Vec::new(), &[], &[1, 2, 3]).unwrap_err().kind(), ErrorKind::Pin);
}

#[test]
fn nothing_outside_the_directories_can_be_touched() {
    let directory = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let engine = engine(directory.path(), never);
    let file = outside.path().join("secret.csv");
    std::fs::write(&file, "a\n1\n").unwrap();
    let (file, inside) = (file.to_str().unwrap(), directory.path().to_str().unwrap());
    for sql in [
        format!("SELECT * FROM read_csv('{file}')"),
        format!("SELECT * FROM read_text('{inside}/../../etc/passwd')"),
        "SELECT * FROM glob('/etc/*')".into(),
        format!("COPY (SELECT 1) TO '{}/out.csv'", outside.path().display()),
        format!("ATTACH '{}/x.db'", outside.path().display()),
        "INSTALL httpfs".into(),
        "LOAD httpfs".into(),
        "SET enable_external_access = true".into(),
        format!("SET allowed_directories = ['{}']", outside.path().display()),
        "SET memory_limit = '100GB'".into(),
        "SET temp_directory = '/etc'".into(),
    ] {
        let error = match engine.query(&sql, Delivery::Complete, Vec::new()) {
            Err(error) => error,
            Ok(mut rows) => match rows.next_chunk() {
                Err(error) => error,
                Ok(chunk) => {
                    assert_eq!(chunk.map_or(0, |chunk| chunk.rows()), 0, "{sql} gave rows");
                    continue;
                }
            },
        };
        assert_eq!(error.kind(), ErrorKind::Query, "{sql}: {error}");
    }
}

static CANCEL: AtomicBool = AtomicBool::new(false);

#[test]
fn a_cancel_acts_while_computing_and_while_streaming() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path(), || CANCEL.load(Ordering::SeqCst));
    let cancel_soon = || {
        CANCEL.store(false, Ordering::SeqCst);
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            CANCEL.store(true, Ordering::SeqCst);
        });
        Instant::now()
    };
    for sql in [
        "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range + b.range = 7",
        "SELECT a.range, repeat('x', 100) FROM range(10000000) a, range(10000000) b",
    ] {
        let begin = cancel_soon();
        assert_eq!(failure(&engine, sql).kind(), ErrorKind::Cancelled, "{sql}");
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    }
    CANCEL.store(false, Ordering::SeqCst);
    assert_eq!(numbers(&engine, "SELECT CAST(7 AS BIGINT)", &[]), [7]);
}

/// Threads of this process that fetch ahead, each seen to have all signals blocked that can be.
fn fetching() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().filter_map(|task| {
        // One that has ended meanwhile has no name.
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).ok()?;
        status.contains("Name:\tlake fetch\n").then_some(status)
    });
    let blocked = |status: String| {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap().to_owned();
        let mask = u64::from_str_radix(&mask, 16).unwrap();
        // SIGINT, SIGUSR1, SIGALRM, SIGTERM: what Postgres sends.
        assert!([2, 10, 14, 15].iter().all(|signal| mask & (1 << (signal - 1)) != 0), "{mask:x}");
    };
    threads.map(blocked).count()
}

/// A result far longer than what lies ready.
const LONG: &str = "SELECT range FROM range(3000000)";

#[test]
fn a_long_result_is_whole_and_its_errors_come_last() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path(), never);
    let mut all = numbers(&engine, LONG, &[]);
    all.sort_unstable();
    assert!(all.into_iter().eq(0..3_000_000));
    // Fetched again after its end it stays at its end.
    let mut rows = engine.query(LONG, Delivery::Streaming, Vec::new()).unwrap();
    while rows.next_chunk().unwrap().is_some() {}
    assert!(rows.next_chunk().unwrap().is_none());
    let late =
        failure(&engine, "SELECT CASE WHEN range = 2999999 THEN error('late') ELSE range END FROM range(3000000)");
    assert_eq!((late.kind(), late.to_string().as_str()), (ErrorKind::Query, "Invalid Input Error: late"));
}

/// Ten chunks at once, and the last row after so many were looked at. DuckDB hands rows out when it has a megabyte of them, or all: that is
/// one chunk of so many columns.
fn ten_chunks_and_a_last_row(of: u64) -> String {
    let wide = (0..100).map(|column| format!("range + {column}")).collect::<Vec<_>>().join(", ");
    format!("SELECT {wide} FROM range({of}) WHERE range < 10 * 2048 OR range = {}", of - 1)
}

#[test]
fn rows_that_nobody_wants_any_more_end_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path(), never);
    let endless = ten_chunks_and_a_last_row(10_000_000_000);
    for chunks in [0, 1, 4, 5, 6] {
        // Also on the connection that keeps account, which the next query gets again.
        let mut rows = engine.observe(&endless, Delivery::Streaming, Vec::new()).unwrap();
        for _ in 0..chunks {
            rows.next_chunk().unwrap().unwrap();
        }
        if chunks > 4 {
            assert!(fetching() > 0, "the rest is fetched ahead");
            // Until it has nothing to hand over, and is at work.
            std::thread::sleep(Duration::from_millis(100));
        }
        // What a query takes is told at its end.
        assert_eq!(rows.peak(), None);
        let begin = Instant::now();
        drop(rows);
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?} after {chunks}", begin.elapsed());
        let mut rows = engine.observe("SELECT 7", Delivery::Streaming, Vec::new()).unwrap();
        assert_eq!(rows.next_chunk().unwrap().unwrap().rows(), 1);
        assert!(rows.next_chunk().unwrap().is_none());
        assert!(rows.peak().is_some());
    }
}

static IDLE_CANCEL: AtomicBool = AtomicBool::new(false);

#[test]
fn a_cancel_between_two_fetches_does_not_end_the_rows() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path(), || IDLE_CANCEL.load(Ordering::SeqCst));
    // Work for a few tenths of a second.
    let slow = ten_chunks_and_a_last_row(200_000_000);
    let mut rows = engine.query(&slow, Delivery::Streaming, Vec::new()).unwrap();
    let mut count = 0;
    for _ in 0..6 {
        count += rows.next_chunk().unwrap().unwrap().rows();
    }
    // The thread that fetches ahead is at work, and the caller in no call.
    std::thread::sleep(Duration::from_millis(50));
    IDLE_CANCEL.store(true, Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(50));
    IDLE_CANCEL.store(false, Ordering::SeqCst);
    while let Some(chunk) = rows.next_chunk().unwrap() {
        count += chunk.rows();
    }
    assert_eq!(count, 10 * 2048 + 1);
}

#[test]
fn errors_have_their_kind_and_memory_its_limit() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path(), never);
    assert_eq!(failure(&engine, "SELECT nothing FROM nowhere").kind(), ErrorKind::Query);
    assert_eq!(failure(&engine, "SELECT error('boom')").to_string(), "Invalid Input Error: boom");
    assert_eq!(failure(&engine, "SELECT CAST(2147483647 AS INTEGER) + CAST(1 AS INTEGER)").kind(), ErrorKind::Query);
    // Held back: the error comes before the first row.
    let sql = "SELECT CASE WHEN range = 99999 THEN error('late') ELSE range END FROM range(100000)";
    assert!(engine.query(sql, Delivery::Complete, Vec::new()).is_err());
    let greedy = failure(&engine, "SELECT list(repeat('x', 1000) || range) FROM range(5000000)");
    assert_eq!(greedy.kind(), ErrorKind::OutOfMemory, "{greedy}");
    assert!(greedy.retry() && greedy.hint().is_some());
    // What fits on disk is spilled.
    assert_eq!(
        numbers(&engine, "SELECT count(*) FROM (SELECT DISTINCT repeat('x', 60) || range FROM range(3000000))", &[]),
        [3_000_000]
    );
}

#[test]
fn two_streams_are_open_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path(), never);
    let mut first = engine.query("SELECT range FROM range(100000)", Delivery::Streaming, Vec::new()).unwrap();
    let mut second = engine.query("SELECT range FROM range(100000)", Delivery::Streaming, Vec::new()).unwrap();
    let mut rows = 0;
    while let (Some(a), Some(b)) = (first.next_chunk().unwrap(), second.next_chunk().unwrap()) {
        rows += a.rows() + b.rows();
    }
    assert_eq!(rows, 200_000);
}
