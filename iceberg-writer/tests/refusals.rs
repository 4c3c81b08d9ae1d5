//! Stores that refuse: for good, for a while, or in the middle of an upload.

use std::time::{Duration, Instant};

use iceberg_writer::{
    Catalog, DataFileWriter, ErrorKind, Format, LakeTable, MirrorCatalog, Retry, StoreOptions, Warehouse,
};
use lake_tests::Seaweed;
use uuid::Uuid;

use crate::pairs::{append, data_file, ids, rows, spec};
use crate::server::{Kind, Lake, batch, committed, options};
use crate::store_proxy::{Refusal, StoreProxy};

/// Those that a person has to do something about, and what.
fn lasting() -> [(Refusal, &'static str); 8] {
    [
        (Refusal::new(403, "RequestTimeTooSkewed", ""), "set this machine's clock"),
        (Refusal::new(400, "ExpiredToken", ""), "renew the credentials"),
        (Refusal::new(403, "AccessDenied", ""), "allow the credentials"),
        (Refusal::new(404, "NoSuchBucket", ""), "create the bucket"),
        (Refusal::new(301, "PermanentRedirect", "<Region>eu-north-7</Region>"), "in another region"),
        (Refusal::new(400, "AuthorizationHeaderMalformed", "<Region>eu-north-7</Region>"), "region = \"eu-north-7\""),
        (Refusal::new(403, "InvalidAccessKeyId", ""), "does not know the key"),
        (Refusal::bare(401), "does not know the key"),
    ]
}

fn passing() -> [Refusal; 4] {
    [Refusal::new(503, "SlowDown", ""), Refusal::bare(429), Refusal::new(500, "InternalError", ""), Refusal::bare(502)]
}

/// A lake in the store, and the same by way of a proxy.
async fn behind_a_proxy() -> (Lake, StoreProxy, StoreOptions, Warehouse) {
    let lake = Lake::new(Kind::InS3).await;
    let store = lake.store.clone().unwrap();
    let proxy = StoreProxy::start(&store.endpoint()).await;
    let through = StoreOptions { endpoint: Some(proxy.endpoint()), ..options(&store) };
    let warehouse = Warehouse::open(lake.warehouse.url(), &through).await.unwrap();
    (lake, proxy, through, warehouse)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_for_good_says_so_at_once_with_the_remedy() {
    let (lake, proxy, through, _) = behind_a_proxy().await;
    for (refusal, remedy) in lasting() {
        proxy.refuse_all_after(0, refusal);
        let begun = Instant::now();
        let error = Warehouse::open(lake.warehouse.url(), &through).await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?} for {error}", begun.elapsed());
        assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
        // A session is begun anew after a while: what was mended counts then.
        assert!(matches!(error.retry(), Retry::After(_)), "{error}");
        assert!(error.hint().unwrap_or_default().contains(remedy), "{error}: {:?}", error.hint());
        assert!(!format!("{error} {error:?}").contains(Seaweed::ADMIN.secret), "{error}");
        proxy.calm();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_busy_is_asked_again_and_at_last_named() {
    let (lake, proxy, through, warehouse) = behind_a_proxy().await;
    let table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    for refusal in passing() {
        proxy.refuse(&[refusal.clone(), refusal.clone(), refusal]);
        let file = data_file(&warehouse, &table, 0..3).await;
        assert_eq!(proxy.calm(), 3);
        assert_eq!(lake.read(&file.path).await.len() as u64, file.bytes);
    }
    for refusal in passing() {
        proxy.refuse_all_after(0, refusal);
        let begun = Instant::now();
        let error = Warehouse::open(lake.warehouse.url(), &through).await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?} for {error}", begun.elapsed());
        assert!(proxy.calm() > 1, "it was asked again");
        assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
        assert!(matches!(error.retry(), Retry::After(_)), "{error}");
        assert!(error.hint().unwrap_or_default().contains("goes on by itself"), "{error}: {:?}", error.hint());
    }
}

/// As many rows as make a file of some parts: numbers that do not compress.
fn many() -> impl Iterator<Item = i64> {
    (0..1_500_000_i64).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64.cast_signed()) >> 1)
}

async fn write_many(warehouse: &Warehouse, table: &LakeTable) -> iceberg_writer::Result<()> {
    let all: Vec<i64> = many().collect();
    let mut writer = DataFileWriter::create(warehouse, table, 1, Uuid::now_v7(), 0);
    for chunk in all.chunks(100_000) {
        writer.write(&rows(table, chunk.iter().copied())).await?;
    }
    writer.close().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_in_the_middle_of_an_upload_leaves_no_file() {
    let (lake, proxy, _, warehouse) = behind_a_proxy().await;
    let table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    // The upload is begun, and some of its parts are there.
    for through in 1..4 {
        proxy.refuse_all_after(through, Refusal::new(400, "ExpiredToken", ""));
        let error = write_many(&warehouse, &table).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
        assert!(error.hint().unwrap_or_default().contains("renew the credentials"), "{error}: {:?}", error.hint());
        assert!(proxy.calm() > 0);
        assert!(lake.files().await.is_empty(), "half a file is there");
    }
    write_many(&warehouse, &table).await.unwrap();
    assert_eq!(lake.files().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_the_store_refuses_is_not_made_and_can_be_made_later() {
    let (lake, proxy, _, warehouse) = behind_a_proxy().await;
    let source = crate::server::config(lake.server.socket_folder(), &lake.database);
    let catalog = iceberg_writer::MirrorCatalog::in_source(source, "lake_catalog", "lake", warehouse.clone());
    let catalog = catalog.with_deadline(Duration::from_millis(500));
    let table = catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let file = data_file(&warehouse, &table, 0..3).await;
    let first = batch(None, 10, vec![append(&table, vec![file])]);
    let table = committed(catalog.commit(&first).await.unwrap()).tables()[0].table.clone();
    let file = data_file(&warehouse, &table, 3..5).await;
    let ours = batch(Some(10), 20, vec![append(&table, vec![file])]);
    let before = lake.files().await;
    for (refusal, remedy) in lasting() {
        // Once with a manifest written, and once with none.
        for through in [0, 1] {
            proxy.refuse_all_after(through, refusal.clone());
            let error = catalog.commit(&ours).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
            assert!(error.hint().unwrap_or_default().contains(remedy), "{error}: {:?}", error.hint());
            assert!(proxy.calm() > 0, "nothing was refused");
            assert_eq!(lake.mirror_lsn().await.map(|lsn| lsn.as_u64()), Some(10));
        }
    }
    let files = lake.files().await;
    assert!(before.iter().all(|file| files.contains(file)), "a file of the table or of the batch is gone");
    let table = committed(catalog.commit(&ours).await.unwrap()).tables()[0].table.clone();
    assert_eq!(ids(&lake.warehouse, &table).await, [0, 1, 2, 3, 4]);
}

/// A catalog that is nothing but files in the store.
fn in_files(lake: &Lake, warehouse: &Warehouse) -> MirrorCatalog {
    let source = crate::server::config(lake.server.socket_folder(), &lake.database);
    MirrorCatalog::in_files(source, "lake_catalog", warehouse.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_knows_no_conditions_is_no_catalog() {
    let (lake, proxy, _, warehouse) = behind_a_proxy().await;
    let catalog = in_files(&lake, &warehouse);
    catalog.ensure().await.unwrap();
    assert!(lake.files().await.is_empty(), "the probe is there");
    // Whoever asks is told that it is done.
    proxy.refuse_all_after(0, Refusal::bare(200));
    let error = catalog.ensure().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.hint().unwrap_or_default().contains("another type of catalog"), "{error}: {:?}", error.hint());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_of_which_no_answer_came_is_there_once() {
    let (lake, proxy, _, warehouse) = behind_a_proxy().await;
    let catalog = in_files(&lake, &warehouse);
    let mut table = catalog.prepare(spec("events"), Format::V2).await.unwrap();
    for (step, lsn) in [(None, 10), (Some(10), 20), (Some(20), 30)] {
        let from = i64::try_from(lsn).unwrap();
        let file = data_file(&warehouse, &table, from..from + 3).await;
        proxy.lose_answers(1);
        let batch = batch(step, lsn, vec![append(&table, vec![file])]);
        table = committed(catalog.commit(&batch).await.unwrap()).tables()[0].table.clone();
        assert_eq!(proxy.to_lose(), 0);
    }
    assert_eq!(ids(&lake.warehouse, &table).await, [10, 11, 12, 20, 21, 22, 30, 31, 32]);
    let states = lake.files().await.into_iter().filter(|file| file.ends_with(".metadata.json")).count();
    assert_eq!(states, 4, "a table without rows, and three commits");
}
