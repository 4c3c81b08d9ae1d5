//! The engine and an object store: what it reads, and what it must not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;

use lake_engine::{Delivery, Engine, Error, ErrorKind, ObjectStore, Settings};
use lake_tests::Seaweed;

fn never() -> bool {
    false
}

fn open(directory: &Path, allowed: &str, store: ObjectStore) -> Result<Engine, Error> {
    Engine::open(Settings {
        memory_mb: 128,
        threads: 2,
        temp_directory: directory.join("spill").to_str().unwrap().into(),
        temp_mb: 1024,
        allowed_directories: vec![allowed.into()],
        store: Some(store),
        cancelled: never,
    })
}

fn run(engine: &Engine, sql: &str) -> Result<u64, Error> {
    let mut rows = engine.query(sql, Delivery::Complete, Vec::new())?;
    let mut count = 0;
    while let Some(chunk) = rows.next_chunk()? {
        count += chunk.rows() as u64;
    }
    Ok(count)
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_below_the_warehouse_are_read_and_nothing_else() {
    let seaweed = Seaweed::start().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let root = format!("s3://{}", Seaweed::BUCKET);
    let key = |scope: &str, key: lake_tests::Key| ObjectStore {
        extension: Path::new(env!("DUCKDB_LIB_DIR")).join("httpfs.duckdb_extension").to_str().unwrap().to_owned(),
        scope: scope.to_owned(),
        endpoint: Some(seaweed.endpoint()),
        region: Seaweed::REGION.to_owned(),
        path_style: true,
        key_id: key.id.to_owned(),
        secret: key.secret.to_owned(),
        session_token: None,
    };
    let writer = open(directory.path(), &root, key(&root, Seaweed::ADMIN)).unwrap();
    for name in ["lake/a", "lakeside/b", "c"] {
        run(&writer, &format!("COPY (FROM range(1000)) TO '{root}/{name}.parquet'")).unwrap();
    }
    // A key that may read is enough.
    let lake = format!("{root}/lake");
    let reader = open(directory.path(), &lake, key(&lake, Seaweed::READER)).unwrap();
    assert_eq!(run(&reader, &format!("FROM read_parquet('{lake}/a.parquet')")).unwrap(), 1000);
    for sql in [
        format!("FROM read_parquet('{root}/lakeside/b.parquet')"),
        format!("FROM read_parquet('{root}/c.parquet')"),
        format!("FROM read_parquet('{lake}/../c.parquet')"),
        format!("FROM glob('{root}/*')"),
        format!("COPY (SELECT 1) TO '{lake}/d.parquet'"),
        format!("FROM read_text('{}/plain/c.parquet')", seaweed.endpoint()),
        "FROM read_text('/etc/passwd')".to_owned(),
        "SET s3_endpoint = 'example.org'".to_owned(),
        "SET enable_external_access = true".to_owned(),
        "INSTALL spatial".to_owned(),
    ] {
        let error = run(&reader, &sql).expect_err(&sql);
        assert!(!error.to_string().contains(Seaweed::READER.secret), "{error}");
    }
    // What is asked of a store that is away fails in time, and leaves the engine usable.
    seaweed.kill().unwrap();
    assert_eq!(run(&reader, &format!("FROM read_parquet('{lake}/e.parquet')")).unwrap_err().kind(), ErrorKind::Query);
    seaweed.restart().await.unwrap();
    assert_eq!(run(&reader, &format!("FROM read_parquet('{lake}/a.parquet')")).unwrap(), 1000);
}

#[test]
fn without_its_extension_it_does_not_open_and_fetches_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = ObjectStore {
        extension: directory.path().join("httpfs.duckdb_extension").to_str().unwrap().to_owned(),
        scope: "s3://b/w".to_owned(),
        endpoint: None,
        region: "r".to_owned(),
        path_style: true,
        key_id: "k".to_owned(),
        secret: "hunter2".to_owned(),
        session_token: None,
    };
    let error = open(directory.path(), "s3://b/w", store).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Store);
    assert!(error.hint().is_some() && !error.to_string().contains("hunter2"), "{error}");
}
