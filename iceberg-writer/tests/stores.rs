//! What only object stores have: buckets and keys that are wrong, uploads of several parts, outages.

use std::time::{Duration, Instant};

use iceberg_writer::{Catalog, DataFileWriter, ErrorKind, Format, Retry, StoreOptions, Warehouse};
use lake_tests::{Azurite, Key, Seaweed};
use object_store::ObjectStoreExt;
use uuid::Uuid;

use crate::pairs::{append, data_file, ids, rows, spec};
use crate::server::{Kind, Lake, batch, client, commit, options, options_of_azure};

/// Opens a warehouse that is not to be had; the error, and how long it took to say so.
async fn refused(url: &str, options: &StoreOptions) -> (iceberg_writer::Error, Duration) {
    let begun = Instant::now();
    (Warehouse::open(url, options).await.unwrap_err(), begun.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_store_is_said_with_its_remedy() {
    let store = Seaweed::shared().await.unwrap();
    let options = options(&store);
    let url = format!("s3://{}/wrong", Seaweed::BUCKET);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "not the secret").unwrap();
    let of_key = |key: Key| StoreOptions {
        access_key_id: Some(key.id.to_owned()),
        secret_access_key_file: Some(store.secret_file(key).unwrap()),
        ..options.clone()
    };
    let cases = [
        ("s3://no-such-bucket/lake".to_owned(), options.clone(), "create the bucket"),
        (url.clone(), of_key(Seaweed::READER), "allow the credentials"),
        (
            url.clone(),
            StoreOptions { access_key_id: Some("nobody".to_owned()), ..options.clone() },
            "does not know the key",
        ),
        (
            url.clone(),
            StoreOptions { secret_access_key_file: Some(file.path().to_owned()), ..options.clone() },
            "does not know the key",
        ),
        (url.clone(), StoreOptions { endpoint: Some("http://127.0.0.1:9".to_owned()), ..options.clone() }, "endpoint"),
        // Another service of the same machine.
        (url.clone(), StoreOptions { endpoint: Some(store.catalog_endpoint()), ..options.clone() }, "endpoint"),
    ];
    for (url, options, remedy) in cases {
        let (error, took) = refused(&url, &options).await;
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains(remedy), "{error}, hint: {hint}");
        assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
        assert!(took < Duration::from_secs(15), "{took:?} for {error}");
        let said = format!("{error} {error:?} {hint}");
        assert!(!said.contains(Seaweed::ADMIN.secret) && !said.contains("not the secret"), "{said}");
    }
    let (error, _) = refused(&url, &StoreOptions { allow_http: false, ..options.clone() }).await;
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Invalid, Retry::Never));
    assert!(error.to_string().contains("allow_http"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_azure_is_said_with_its_remedy() {
    let azure = Azurite::shared().await.unwrap();
    let options = options_of_azure(&azure);
    let url = format!("abfss://{}/wrong", Azurite::AUTHORITY);
    let file = tempfile::NamedTempFile::new().unwrap();
    // "not the key", as a key is written.
    std::fs::write(file.path(), "bm90IHRoZSBrZXk=").unwrap();
    let other_key = StoreOptions { account_key_file: Some(file.path().to_owned()), ..options.clone() };
    let elsewhere = StoreOptions { endpoint: Some("http://127.0.0.1:9/account".to_owned()), ..options.clone() };
    let no_container = url.replace(Azurite::CONTAINER, "none");
    let cases = [
        (&no_container, options.clone(), "create the"),
        (&url, other_key, "credentials"),
        (&url, elsewhere, "endpoint"),
    ];
    for (url, options, remedy) in cases {
        let (error, took) = refused(url, &options).await;
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains(remedy), "{error}, hint: {hint}");
        assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
        assert!(took < Duration::from_secs(15), "{took:?} for {error}");
        let said = format!("{error} {error:?} {hint}");
        assert!(!said.contains(Azurite::ACCOUNT.secret) && !said.contains("bm90"), "{said}");
    }
    let (error, _) = refused("az://plain/wrong", &options).await;
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Invalid, Retry::Never));
    assert!(error.hint().unwrap().contains("abfss://container@account"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_for_tables_alone_is_a_warehouse_too() {
    let store = Seaweed::shared().await.unwrap();
    Warehouse::open(&format!("s3://{}", Seaweed::TABLE_BUCKET), &options(&store)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_leaves_nothing_behind() {
    let lake = Lake::new(Kind::InS3).await;
    assert!(lake.files().await.is_empty());
}

/// As many rows as make a file of some parts: numbers that do not compress.
fn many() -> impl Iterator<Item = i64> {
    (0..1_500_000_i64).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64.cast_signed()) >> 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_is_sent_in_parts_and_appears_when_it_is_complete() {
    let lake = Lake::new(Kind::InS3).await;
    let table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let mut writer = DataFileWriter::create(&lake.warehouse, &table, 1, Uuid::now_v7(), 0);
    let all: Vec<i64> = many().collect();
    for chunk in all.chunks(100_000) {
        writer.write(&rows(&table, chunk.iter().copied())).await.unwrap();
    }
    assert!(lake.files().await.is_empty(), "not there before it is complete");
    let file = writer.close().await.unwrap().unwrap();
    assert!(file.bytes > 16 << 20, "{} bytes", file.bytes);
    assert_eq!(lake.read(&file.path).await.len() as u64, file.bytes);
    let table = commit(&lake.catalog, &batch(None, 10, vec![append(&table, vec![file])])).await.remove(0);
    let mut expected = all;
    expected.sort_unstable();
    assert_eq!(ids(&lake.warehouse, &table).await, expected);
    // One that is given up leaves nothing.
    let mut writer = DataFileWriter::create(&lake.warehouse, &table, 1, Uuid::now_v7(), 1);
    for chunk in expected.chunks(100_000) {
        writer.write(&rows(&table, chunk.iter().copied())).await.unwrap();
    }
    let path = writer.path().to_owned();
    drop(writer);
    assert!(!lake.files().await.contains(&path));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_waited_for_and_a_longer_one_is_said_to_pass() {
    // Of its own: it is killed.
    let store = Seaweed::start().await.unwrap();
    let warehouse = Warehouse::open(&format!("s3://{}/outage", Seaweed::BUCKET), &options(&store)).await.unwrap();
    let table = iceberg_writer::LakeTable::prepare(&warehouse, spec("events"), Format::V2, None, None).unwrap();
    let before = data_file(&warehouse, &table, 0..3).await;
    store.kill().unwrap();
    let written = tokio::spawn({
        let (warehouse, table) = (warehouse.clone(), table.clone());
        async move { data_file(&warehouse, &table, 3..5).await }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    store.restart().await.unwrap();
    let during = written.await.unwrap();
    for file in [before, during] {
        let key = file.path.strip_prefix(&format!("s3://{}/", Seaweed::BUCKET)).unwrap();
        assert_eq!(client(&store).head(&key.into()).await.unwrap().size, file.bytes);
    }
    store.kill().unwrap();
    let error = Warehouse::open(warehouse.url(), &options(&store)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage);
    assert!(matches!(error.retry(), Retry::After(_)), "{error}");
}
