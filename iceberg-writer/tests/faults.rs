//! Commits whose answer is lost.

use std::time::Duration;

use iceberg_writer::{Catalog, ErrorKind, Format, Lsn, Outcome};

use crate::pairs::{append, data_file, ids, spec};
use crate::proxy::Fault;
use crate::server::{Faulty, Kind, Lake, batch, committed, of_every_faulty_catalog};

of_every_faulty_catalog!(
    a_commit_with_a_lost_reply_is_adopted,
    a_commit_that_never_arrived_is_made_again,
    an_unknown_commit_is_resolved_later,
    a_batch_is_committed_once_however_often_it_is_tried,
    an_unreachable_catalog_leaves_the_batch_to_be_tried_again,
);

async fn commit_through(kind: Kind, fault: Fault) {
    let lake = Lake::new(kind).await;
    let (proxy, catalog) = Faulty::of(&lake);
    let table = catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let mut table = table;
    for step in 1..4 {
        let rows = data_file(&lake.warehouse, &table, [i64::try_from(step).unwrap()]).await;
        proxy.set(fault);
        let expected = (step > 1).then_some(step - 1);
        let receipt =
            committed(catalog.commit(&batch(expected, step, vec![append(&table, vec![rows])])).await.unwrap());
        assert!(proxy.is_set(Fault::None), "the fault has happened");
        table = receipt.tables()[0].table.clone();
        assert_eq!(lake.mirror_lsn().await, Some(Lsn::from_u64(step)));
    }
    assert_eq!(ids(&lake.warehouse, &table).await, [1, 2, 3]);
    let loaded = lake.catalog.load(spec("events")).await.unwrap().unwrap();
    assert_eq!(ids(&lake.warehouse, &loaded).await, [1, 2, 3]);
}

async fn a_commit_with_a_lost_reply_is_adopted(kind: Kind) {
    commit_through(kind, Fault::LoseReply).await;
}

async fn a_commit_that_never_arrived_is_made_again(kind: Kind) {
    commit_through(kind, Fault::LoseCommit).await;
}

async fn an_unknown_commit_is_resolved_later(kind: Kind) {
    let lake = Lake::new(kind).await;
    let (proxy, catalog) = Faulty::of(&lake);
    let catalog = catalog.with_deadline(Duration::from_millis(300));
    let table = catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let lost = batch(None, 1, vec![append(&table, vec![data_file(&lake.warehouse, &table, [1, 2]).await])]);
    proxy.set(Fault::LoseReplyAndStayDown);
    let error = catalog.commit(&lost).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
    catalog.discard(&lost, &|_| false).await;
    proxy.set(Fault::None);
    let loaded = lake.catalog.load(spec("events")).await.unwrap().unwrap();
    assert_eq!(ids(&lake.warehouse, &loaded).await, [1, 2], "nothing of it was deleted");
    proxy.set(Fault::Down);
    // Still down: still unknown, and still nothing deleted.
    assert_eq!(catalog.resolve(&lost).await.unwrap_err().kind(), ErrorKind::Unknown);
    proxy.set(Fault::None);
    let receipt = committed(catalog.resolve(&lost).await.unwrap());
    assert_eq!(ids(&lake.warehouse, &receipt.tables()[0].table).await, [1, 2]);
    assert!(receipt.tables()[0].foreign_files.is_empty());

    // It goes on from there.
    let table = &receipt.tables()[0].table;
    let next = batch(Some(1), 2, vec![append(table, vec![data_file(&lake.warehouse, table, [3]).await])]);
    let receipt = committed(catalog.commit(&next).await.unwrap());
    assert_eq!(ids(&lake.warehouse, &receipt.tables()[0].table).await, [1, 2, 3]);
}

async fn a_batch_is_committed_once_however_often_it_is_tried(kind: Kind) {
    let lake = Lake::new(kind).await;
    let table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let once = batch(None, 1, vec![append(&table, vec![data_file(&lake.warehouse, &table, [1, 2]).await])]);
    committed(lake.catalog.commit(&once).await.unwrap());
    for catalog in [&lake.catalog, &lake.other_catalog()] {
        let receipt = committed(catalog.commit(&once).await.unwrap());
        assert_eq!(receipt.lsn(), Lsn::from_u64(1));
        assert_eq!(ids(&lake.warehouse, &receipt.tables()[0].table).await, [1, 2]);
        assert!(receipt.tables()[0].foreign_files.is_empty());
    }
}

async fn an_unreachable_catalog_leaves_the_batch_to_be_tried_again(kind: Kind) {
    let lake = Lake::new(kind).await;
    let (proxy, catalog) = Faulty::of(&lake);
    let catalog = catalog.with_deadline(Duration::from_millis(200));
    let table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
    let later = batch(None, 1, vec![append(&table, vec![data_file(&lake.warehouse, &table, [1]).await])]);
    let before = lake.files().await;
    proxy.set(Fault::Down);
    let error = catalog.commit(&later).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(lake.files().await, before);
    proxy.set(Fault::None);
    assert!(matches!(catalog.commit(&later).await.unwrap(), Outcome::Committed(_)));
}
