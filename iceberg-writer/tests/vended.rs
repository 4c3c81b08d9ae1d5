//! Keys of the store that a REST catalog vends: one for each table, for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use iceberg_writer::{
    Catalog, DataFileWriter, ErrorKind, Format, LakeTable, MirrorCatalog, RestAuth, RestSettings, Retry, StoreOptions,
    Warehouse,
};
use lake_tests::Seaweed;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::pairs::{append, data_file, ids, rows, spec};
use crate::rest_server::{Manners, RestServer};
use crate::server::{Kind, Lake, WITHOUT_GRACE, batch, client, commit, config};
use crate::store_proxy::{Refusal, StoreProxy};

/// Longer than a key is taken for a new one.
const NO_LONGER_NEW: Duration = Duration::from_millis(2200);

/// A lake whose store takes the keys only that its catalog vends at the time.
struct Vending {
    lake: Lake,
    store: Arc<Seaweed>,
    proxy: StoreProxy,
    rest: RestServer,
    catalog: MirrorCatalog,
    warehouse: Warehouse,
    /// The number of the key that counts.
    number: Arc<AtomicUsize>,
}

fn expired() -> Refusal {
    Refusal::new(400, "ExpiredToken", "")
}

/// What a server answers with the key of a number.
fn keys(number: usize, life: Option<Duration>, endpoint: &str) -> Value {
    let (id, secret) = Seaweed::temporary(number);
    let mut config = json!({"s3.access-key-id": id, "s3.secret-access-key": secret, "s3.endpoint": endpoint});
    if let Some(life) = life {
        let until = (SystemTime::now() + life).duration_since(UNIX_EPOCH).unwrap().as_millis();
        config["s3.session-token-expires-at-ms"] = json!(until.to_string());
    }
    config
}

impl Vending {
    async fn new(manners: Manners, life: Option<Duration>) -> Self {
        // For its database, and the mirror there.
        let lake = Lake::new(Kind::Beside).await;
        let store = Seaweed::shared().await.unwrap();
        let proxy = StoreProxy::start(&store.endpoint()).await;
        let url = format!("s3://{}/vended-{}", Seaweed::BUCKET, Uuid::now_v7().simple());
        let rest = RestServer::start(manners, &url).await;
        let (number, endpoint) = (Arc::new(AtomicUsize::new(0)), proxy.endpoint());
        let current = Arc::clone(&number);
        rest.vend(move |folder| {
            let config = keys(current.load(Ordering::SeqCst), life, &endpoint);
            // Another table's, which must not be taken for this one's.
            let (id, secret) = Seaweed::temporary(Seaweed::TEMPORARY - 1);
            let other = json!({"s3.access-key-id": id, "s3.secret-access-key": secret});
            json!({"storage-credentials": [{"prefix": "s3://", "config": other}, {"prefix": folder, "config": config}]})
        });
        let warehouse = Warehouse::vended(&url, &options()).unwrap();
        let catalog = catalog(&lake, &rest, &warehouse);
        let vending = Self { lake, store, proxy, rest, catalog, warehouse, number };
        vending.rotate(0);
        vending
    }

    /// From now on the key of this number counts, and no other.
    fn rotate(&self, number: usize) {
        self.number.store(number, Ordering::SeqCst);
        self.proxy.admit(&[Seaweed::temporary(number).0], expired());
    }

    /// All objects of the warehouse.
    async fn files(&self) -> Vec<String> {
        use futures_util::TryStreamExt as _;
        use object_store::ObjectStore as _;
        let (_, prefix) = self.warehouse.url().strip_prefix("s3://").unwrap().split_once('/').unwrap();
        let store = client(&self.store);
        let objects: Vec<_> = store.list(Some(&prefix.into())).try_collect().await.unwrap();
        objects.iter().map(|object| format!("s3://{}/{}", Seaweed::BUCKET, object.location)).collect()
    }
}

fn options() -> StoreOptions {
    StoreOptions { allow_http: true, region: Some(Seaweed::REGION.to_owned()), ..StoreOptions::default() }
}

fn catalog(lake: &Lake, rest: &RestServer, warehouse: &Warehouse) -> MirrorCatalog {
    let settings = RestSettings { uri: rest.uri(), warehouse: None, auth: RestAuth::None, vended_credentials: true };
    let source = config(lake.server.socket_folder(), &lake.database);
    let catalog = MirrorCatalog::over_rest(source, "lake_catalog", settings, warehouse.clone()).unwrap();
    catalog.with_retention(WITHOUT_GRACE)
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_made_written_and_copied_anew_in_their_own_folder() {
    for manners in [Manners::Free, Manners::Strict] {
        let vending = Vending::new(manners, None).await;
        let Vending { catalog, warehouse, .. } = &vending;
        // The first copy is given up, before the table that was made for it has any rows.
        let given_up = catalog.prepare(spec("events"), Format::V2).await.unwrap();
        let file = data_file(warehouse, &given_up, 5..9).await;
        assert!(vending.files().await.contains(&file.path));
        catalog.discard_prepared(&spec("events"), given_up.uuid()).await.unwrap();
        assert!(!vending.files().await.contains(&file.path), "{file:?}");
        let table = catalog.prepare(spec("events"), Format::V2).await.unwrap();
        let rows = data_file(warehouse, &table, 0..3).await;
        let table = commit(catalog, &batch(None, 1, vec![append(&table, vec![rows])])).await.remove(0);
        let folder = table.location().split("/data/").next().unwrap().to_owned();
        // A copy that is given up leaves nothing, and takes nothing along.
        let given_up = catalog.prepare(spec("events"), Format::V2).await.unwrap();
        data_file(warehouse, &given_up, 5..9).await;
        catalog.discard_prepared(&spec("events"), given_up.uuid()).await.unwrap();
        assert!(vending.files().await.iter().all(|file| !file.starts_with(given_up.location())));
        assert_eq!(ids(warehouse, &table).await, [0, 1, 2]);
        // Another takes its place, prepared by one process and written by the next.
        let prepared = catalog.prepare(spec("events"), Format::V2).await.unwrap();
        let other =
            self::catalog(&vending.lake, &vending.rest, &Warehouse::vended(warehouse.url(), &options()).unwrap());
        let again = other.prepare_again(spec("events"), Format::V2, prepared.uuid()).await.unwrap();
        assert_eq!(again.location(), prepared.location());
        assert_ne!(again.location(), table.location());
        let rows = data_file(other.warehouse(), &again, 20..22).await;
        let copied = commit(&other, &batch(Some(1), 2, vec![append(&again, vec![rows])])).await.remove(0);
        assert_eq!(ids(other.warehouse(), &copied).await, [20, 21]);
        // It is one now that was entered.
        other.discard_prepared(&spec("events"), copied.uuid()).await.unwrap();
        assert_eq!(ids(warehouse, &catalog.load(spec("events")).await.unwrap().unwrap()).await, [20, 21]);
        let files = vending.files().await;
        assert!(files.iter().all(|file| file.starts_with(&folder)), "{files:?}");
        let used: Vec<String> = vending.proxy.by_key().into_keys().collect();
        assert_eq!(used, [Seaweed::temporary(0).0]);
    }
}

/// A file of some parts, of which each is sent at its time.
async fn slowly(vending: &Vending, table: &LakeTable, mut between: impl AsyncFnMut(usize)) -> Vec<i64> {
    let all: Vec<i64> =
        (0..1_500_000_i64).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64.cast_signed()) >> 1).collect();
    let mut writer = DataFileWriter::create(&vending.warehouse, table, 1, Uuid::now_v7(), 0);
    for (number, chunk) in all.chunks(500_000).enumerate() {
        for chunk in chunk.chunks(100_000) {
            writer.write(&rows(table, chunk.iter().copied())).await.unwrap();
        }
        between(number).await;
    }
    let file = writer.close().await.unwrap().unwrap();
    assert!(file.bytes > 16 << 20, "{} bytes", file.bytes);
    commit(&vending.catalog, &batch(None, 1, vec![append(table, vec![file])])).await;
    let mut expected = all;
    expected.sort_unstable();
    expected
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_expires_in_the_middle_of_an_upload_is_renewed_once_for_all() {
    let vending = Vending::new(Manners::Free, None).await;
    let table = vending.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let expected = slowly(&vending, &table, async |number| {
        tokio::time::sleep(NO_LONGER_NEW).await;
        vending.rotate(number + 1);
    })
    .await;
    let table = vending.catalog.load(spec("events")).await.unwrap().unwrap();
    assert_eq!(ids(&vending.warehouse, &table).await, expected);
    assert!(vending.proxy.refused() > 0, "no key has expired");
    // Of many who are refused at once, one asks.
    tokio::time::sleep(NO_LONGER_NEW).await;
    let asked = vending.rest.vended();
    for (number, refusal) in
        [Refusal::new(403, "InvalidAccessKeyId", ""), Refusal::bare(401), Refusal::bare(403)].into_iter().enumerate()
    {
        let number = number + 10;
        vending.number.store(number, Ordering::SeqCst);
        vending.proxy.admit(&[Seaweed::temporary(number).0], refusal);
        join_all((0..12).map(|_| data_file(&vending.warehouse, &table, 0..3))).await;
        assert_eq!(vending.rest.vended(), asked + number - 9);
        tokio::time::sleep(NO_LONGER_NEW).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_renewed_before_it_expires() {
    let vending = Vending::new(Manners::Free, Some(Duration::from_secs(3))).await;
    let table = vending.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let mut number = 0;
    let both = |number: usize| {
        // The former counts for a while yet, as the server says.
        vending.number.store(number, Ordering::SeqCst);
        let keys = [Seaweed::temporary(number - 1).0, Seaweed::temporary(number).0];
        vending.proxy.admit(&keys, expired());
    };
    let expected = slowly(&vending, &table, async |_| {
        number += 1;
        both(number);
        tokio::time::sleep(Duration::from_millis(1700)).await;
    })
    .await;
    let table = vending.catalog.load(spec("events")).await.unwrap().unwrap();
    assert_eq!(ids(&vending.warehouse, &table).await, expected);
    assert_eq!(vending.proxy.refused(), 0);
    assert!(vending.proxy.by_key().len() > 2, "{:?}", vending.proxy.by_key());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_goes_on_being_refused_is_an_error_that_says_so() {
    let vending = Vending::new(Manners::Free, None).await;
    let table = vending.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    tokio::time::sleep(NO_LONGER_NEW).await;
    // The catalog vends what the store does not know.
    vending.proxy.admit(&[], Refusal::new(403, "InvalidAccessKeyId", ""));
    vending.number.store(1, Ordering::SeqCst);
    let write = async || {
        let mut writer = DataFileWriter::create(&vending.warehouse, &table, 1, Uuid::now_v7(), 0);
        writer.write(&rows(&table, [1])).await?;
        writer.close().await.map(drop)
    };
    let asked = vending.rest.vended();
    let error = write().await.unwrap_err();
    assert_eq!((error.kind(), vending.rest.vended()), (ErrorKind::Storage, asked + 1), "{error}");
    assert!(matches!(error.retry(), Retry::After(_)) && error.to_string().contains("InvalidAccessKeyId"), "{error}");
    assert!(error.hint().unwrap().contains("principal"), "{error:?}");
    // The catalog does not vend any more, or says something else; and is well again.
    tokio::time::sleep(NO_LONGER_NEW).await;
    vending.rest.vend(|_| json!({"config": {}}));
    let error = write().await.unwrap_err();
    assert!(error.to_string().contains("vends no keys") && error.hint().is_some(), "{error:?}");
    assert!(!format!("{error:?}").contains("temporary-secret"), "{error:?}");
    let endpoint = vending.proxy.endpoint();
    vending.rest.vend(move |_| json!({"config": keys(2, None, &endpoint)}));
    vending.proxy.admit(&[Seaweed::temporary(2).0], expired());
    write().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_vended_for_a_table_is_said_before_its_copy_begins() {
    let vending = Vending::new(Manners::Free, None).await;
    let prepare = async |vended: Value| {
        vending.rest.vend(move |_| vended.clone());
        vending.catalog.prepare(spec("events"), Format::V2).await.unwrap_err()
    };
    let endpoint = vending.proxy.endpoint();
    let of = |prefix: &str, config: Value| json!({"storage-credentials": [{"prefix": prefix, "config": config}]});
    for (vended, kind, said) in [
        (json!({}), ErrorKind::Catalog, "vends no keys"),
        (of("s3://other/place", keys(0, None, &endpoint)), ErrorKind::Catalog, "s3://other/place"),
        (of("gs://b", json!({"gcs.oauth2.token": "s"})), ErrorKind::Catalog, "not S3"),
        // One that may not write: nobody's.
        (json!({"config": keys(1, None, &endpoint)}), ErrorKind::Storage, "ExpiredToken"),
    ] {
        let error = prepare(vended).await;
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(said) && error.hint().is_some(), "{error:?}");
    }
    // An address that is not encrypted has to be allowed.
    let strict = Warehouse::vended(vending.warehouse.url(), &StoreOptions { allow_http: false, ..options() }).unwrap();
    vending.rest.vend(move |_| json!({"config": keys(0, None, &endpoint)}));
    let error = catalog(&vending.lake, &vending.rest, &strict).prepare(spec("events"), Format::V2).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("allow_http"), "{error}");
    // And then it goes.
    vending.catalog.prepare(spec("events"), Format::V2).await.unwrap();
}
