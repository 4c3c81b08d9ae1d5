//! Batches on their way into a catalog that is not in the source database, of which the worker dies.

use std::time::Duration;

use iceberg_writer::{
    Batch, Catalog, ErrorKind, Format, LakeTable, LeftOut, Lsn, MirrorCatalog, Outcome, PgType, Recovered, TableChange,
    TableSpec,
};
use uuid::Uuid;

use crate::pairs::{append, column, data_file, deletes, ids, spec};
use crate::proxy::Fault;
use crate::readers;
use crate::rest_server::Trouble;
use crate::server::{Faulty, Kind, Lake, MIRROR, batch, commit, committed};

/// Long enough for a few tries.
const SHORT: Duration = Duration::from_millis(400);

/// Two tables with a row each, at position 10.
async fn two_tables(lake: &Lake) -> [LakeTable; 2] {
    let (a, b) = (
        lake.catalog.prepare(spec("a"), Format::V2).await.unwrap(),
        lake.catalog.prepare(spec("b"), Format::V2).await.unwrap(),
    );
    let changes = vec![
        append(&a, vec![data_file(&lake.warehouse, &a, [1]).await]),
        append(&b, vec![data_file(&lake.warehouse, &b, [2]).await]),
    ];
    commit(&lake.catalog, &batch(None, 10, changes)).await.try_into().unwrap()
}

/// Another row for each, at position 20.
async fn next(lake: &Lake, tables: &[LakeTable; 2]) -> Batch {
    let mut changes = Vec::new();
    for (table, id) in tables.iter().zip([11, 12]) {
        changes.push(append(table, vec![data_file(&lake.warehouse, table, [id]).await]));
    }
    batch(Some(10), 20, changes)
}

async fn there(lake: &Lake, name: &str) -> Vec<i64> {
    let table = lake.other_catalog().load(spec(name)).await.unwrap().unwrap();
    ids(&lake.warehouse, &table).await
}

async fn recover(lake: &Lake) -> (MirrorCatalog, i64, Recovered) {
    let (catalog, epoch) = (lake.other_catalog(), lake.claim().await);
    let recovered = catalog.recover(MIRROR, epoch).await.unwrap();
    (catalog, epoch, recovered)
}

fn at(lsn: u64) -> Recovered {
    Recovered { lsn: Some(Lsn::from_u64(lsn)), left_out: Vec::new() }
}

/// A worker dies at some point of a commit; the next one finishes it without any WAL.
async fn dies(kind: Kind, fault: Fault, troubles: &[Trouble]) {
    let lake = Lake::new(kind).await;
    let tables = two_tables(&lake).await;
    let (faulty, dying) = Faulty::of(&lake);
    let dying = dying.with_deadline(SHORT);
    let lost = next(&lake, &tables).await;
    faulty.set(fault);
    if let Some(rest) = &lake.rest {
        rest.trouble(troubles);
    }
    let error = dying.commit(&lost).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
    faulty.set(Fault::None);
    if let Some(rest) = &lake.rest {
        rest.drain();
    }
    assert_eq!(lake.mirror_lsn().await, Some(Lsn::from_u64(10)));
    let files = lake.files().await;

    let (catalog, epoch, recovered) = recover(&lake).await;
    assert_eq!(recovered, at(20));
    assert_eq!((there(&lake, "a").await, there(&lake, "b").await), (vec![1, 11], vec![2, 12]));
    // Nothing that was written for it went away, and there is nothing left to recover.
    let now = lake.files().await;
    assert!(files.iter().all(|file| now.contains(file)));
    assert_eq!(catalog.recover(MIRROR, epoch).await.unwrap(), at(20));

    // The former worker, which is not dead after all, is fenced off, and takes nothing along.
    let outcome = dying.resolve(&lost).await.unwrap();
    assert!(matches!(outcome, Outcome::Committed(_) | Outcome::Fenced { epoch: 2 }), "{outcome:?}");
    dying.discard(&lost, &|_| false).await;
    // So it is when its successor has gone on.
    let mut changes = Vec::new();
    for (name, id) in [("a", 21), ("b", 22)] {
        let table = catalog.load(spec(name)).await.unwrap().unwrap();
        changes.push(append(&table, vec![data_file(&lake.warehouse, &table, [id]).await]));
    }
    commit(&catalog, &Batch { epoch, ..batch(Some(20), 30, changes) }).await;
    let outcome = dying.resolve(&lost).await.unwrap();
    assert!(matches!(outcome, Outcome::Fenced { epoch: 2 }), "{outcome:?}");
    assert_eq!((there(&lake, "a").await, there(&lake, "b").await), (vec![1, 11, 21], vec![2, 12, 22]));
    let (duckdb, pyiceberg) = readers::scan(&lake, "b").await;
    assert_eq!((duckdb.ids(), pyiceberg.ids()), (vec![2, 12, 22], vec![2, 12, 22]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_finished_that_another_database_has_and_did_not_say() {
    dies(Kind::OtherDatabase, Fault::LoseReplyAndStayDown, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_finished_that_a_server_has_and_did_not_say() {
    dies(Kind::Rest, Fault::LoseReplyAndStayDown, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_finished_of_which_one_table_has_it_and_did_not_say() {
    dies(Kind::StrictRest, Fault::LoseReplyAndStayDown, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_finished_of_which_one_table_has_it() {
    dies(Kind::StrictRest, Fault::None, &[Trouble::LastOne]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_finished_of_which_no_table_is_known_to_have_it() {
    let all = [Trouble::Refuse(500); 100];
    dies(Kind::StrictRest, Fault::None, &all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_after_all_changes_nothing() {
    for kind in [Kind::Rest, Kind::StrictRest] {
        let lake = Lake::new(kind).await;
        let tables = two_tables(&lake).await;
        let rest = lake.rest.clone().unwrap();
        let dying = lake.other_catalog().with_deadline(SHORT);
        let lost = next(&lake, &tables).await;
        rest.trouble(&[Trouble::Late; 100]);
        assert_eq!(dying.commit(&lost).await.unwrap_err().kind(), ErrorKind::Unknown);
        rest.drain();
        assert_eq!(recover(&lake).await.2, at(20));
        let before = [lake.metadata_location("a").await, lake.metadata_location("b").await];
        let statuses = rest.let_arrive();
        assert!(!statuses.is_empty() && statuses.iter().all(|status| *status == 409), "{statuses:?}");
        assert_eq!([lake.metadata_location("a").await, lake.metadata_location("b").await], before);
        assert_eq!((there(&lake, "a").await, there(&lake, "b").await), (vec![1, 11], vec![2, 12]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_before_its_successors_is_found() {
    let lake = Lake::new(Kind::StrictRest).await;
    let tables = two_tables(&lake).await;
    let rest = lake.rest.clone().unwrap();
    let dying = lake.other_catalog().with_deadline(SHORT);
    rest.trouble(&[Trouble::Late; 100]);
    let lost = next(&lake, &tables).await;
    assert_eq!(dying.commit(&lost).await.unwrap_err().kind(), ErrorKind::Unknown);
    rest.drain();
    assert_eq!(rest.let_arrive().iter().filter(|status| **status == 200).count(), 1, "the first of all that were sent");
    assert_eq!(there(&lake, "a").await, [1, 11]);
    assert_eq!(recover(&lake).await.2, at(20));
    assert_eq!((there(&lake, "a").await, there(&lake, "b").await), (vec![1, 11], vec![2, 12]));
}

#[tokio::test(flavor = "multi_thread")]
async fn new_tables_changed_columns_deletions_and_truncations_are_on_record() {
    for kind in [Kind::OtherDatabase, Kind::Rest, Kind::StrictRest] {
        let lake = Lake::new(kind).await;
        let [a, b] = two_tables(&lake).await;
        let (faulty, dying) = Faulty::of(&lake);
        let dying = dying.with_deadline(if kind == Kind::OtherDatabase { Duration::ZERO } else { SHORT });
        let wider = TableSpec {
            columns: [spec("a").columns, vec![column("more", 9, PgType::Int4, false)]].concat(),
            ..spec("a")
        };
        let live = a.live_files(&lake.warehouse).await.unwrap();
        let a = a.evolved(wider.clone(), "wider".to_owned());
        let c = dying.prepare(spec("c"), Format::V2).await.unwrap();
        // Copied anew, in the place of the former one.
        let anew = dying.prepare(spec("b"), Format::V2).await.unwrap();
        let gone = deletes(&lake.warehouse, &a, &[(&live[0].path, &[0])]).await;
        let changes = vec![
            TableChange { deletes: gone, ..append(&a, vec![]) },
            append(&anew, vec![data_file(&lake.warehouse, &anew, [31, 32]).await]),
            append(&c, vec![data_file(&lake.warehouse, &c, [41]).await]),
        ];
        faulty.set(Fault::LoseCommit);
        if let Some(rest) = &lake.rest {
            rest.trouble(&[Trouble::Refuse(503); 100]);
        }
        assert_eq!(dying.commit(&batch(Some(10), 20, changes)).await.unwrap_err().kind(), ErrorKind::Unknown);
        faulty.set(Fault::None);
        if let Some(rest) = &lake.rest {
            rest.drain();
        }

        let (catalog, epoch, recovered) = recover(&lake).await;
        assert_eq!(recovered, at(20));
        let by_remark = |remark: &str| (remark == "wider").then(|| wider.clone());
        let a = catalog.load_remarked(spec("a"), &by_remark).await.unwrap().unwrap();
        assert_eq!(a.spec(), &wider);
        assert!(a.live_files(&lake.warehouse).await.unwrap().iter().all(|file| file.deleted.len() == file.rows));
        let found = catalog.load(spec("b")).await.unwrap().unwrap();
        assert_eq!(found.uuid(), anew.uuid());
        assert_ne!(found.uuid(), b.uuid());
        assert_eq!((there(&lake, "b").await, there(&lake, "c").await), (vec![31, 32], vec![41]));
        assert_eq!(catalog.load(spec("c")).await.unwrap().unwrap().uuid(), c.uuid());
        let (duckdb, pyiceberg) = readers::scan(&lake, "b").await;
        assert_eq!((duckdb.ids(), pyiceberg.ids()), (vec![31, 32], vec![31, 32]));

        // A truncation, and nothing else.
        let change = TableChange { truncate: true, ..append(&found, vec![]) };
        commit(&catalog, &Batch { epoch, ..batch(Some(20), 30, vec![change]) }).await;
        assert!(there(&lake, "b").await.is_empty());
        // A copy that is called off leaves the table as it is.
        catalog.discard_prepared(&spec("c"), Uuid::now_v7()).await.unwrap();
        catalog.discard_prepared(&spec("c"), c.uuid()).await.unwrap();
        assert_eq!(there(&lake, "c").await, [41]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_changed_meanwhile_is_left_out_and_stays_named_until_the_next_batch() {
    for kind in [Kind::OtherDatabase, Kind::Rest, Kind::StrictRest] {
        let lake = Lake::new(kind).await;
        lake.add_mirror("other").await;
        let tables = two_tables(&lake).await;
        let (faulty, dying) = Faulty::of(&lake);
        let lost = next(&lake, &tables).await;
        faulty.set(Fault::LoseCommit);
        if let Some(rest) = &lake.rest {
            rest.trouble(&[Trouble::Refuse(500); 100]);
        }
        let dying = dying.with_deadline(if kind == Kind::OtherDatabase { Duration::ZERO } else { SHORT });
        assert_eq!(dying.commit(&lost).await.unwrap_err().kind(), ErrorKind::Unknown);
        faulty.set(Fault::None);
        if let Some(rest) = &lake.rest {
            rest.drain();
        }
        // WHEN someone else adds a row to one, and takes a row from the other
        let more = append(&tables[0], vec![data_file(&lake.warehouse, &tables[0], [7]).await]);
        let live = tables[1].live_files(&lake.warehouse).await.unwrap();
        let gone = deletes(&lake.warehouse, &tables[1], &[(&live[0].path, &[0])]).await;
        let fewer = TableChange { deletes: gone, ..append(&tables[1], vec![]) };
        let foreign = Batch { mirror: "other".to_owned(), ..batch(None, 99, vec![more, fewer]) };
        commit(&lake.other_catalog(), &foreign).await;

        // THEN the one has both, and the other is named
        let (catalog, epoch, recovered) = recover(&lake).await;
        assert_eq!(recovered.lsn, Some(Lsn::from_u64(20)));
        let [LeftOut { namespace, name, reason, .. }] = &recovered.left_out[..] else { panic!("{recovered:?}") };
        assert_eq!((&**namespace, &**name), ("public", "b"));
        assert!(reason.contains("rows deleted"), "{reason}");
        assert_eq!((there(&lake, "a").await, there(&lake, "b").await), (vec![1, 7, 11], vec![]));
        assert_eq!(recover(&lake).await.2, recovered);
        let a = catalog.load(spec("a")).await.unwrap().unwrap();
        let rows = data_file(&lake.warehouse, &a, [21]).await;
        commit(&catalog, &Batch { epoch: epoch + 1, ..batch(Some(20), 30, vec![append(&a, vec![rows])]) }).await;
        assert_eq!(recover(&lake).await.2, at(30));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_record_for_another_catalog_is_not_touched() {
    let lake = Lake::new(Kind::OtherDatabase).await;
    let tables = two_tables(&lake).await;
    let (proxy, dying) = Faulty::of(&lake);
    proxy.set(Fault::LoseReplyAndStayDown);
    let lost = next(&lake, &tables).await;
    assert_eq!(dying.with_deadline(SHORT).commit(&lost).await.unwrap_err().kind(), ErrorKind::Unknown);
    let beside = MirrorCatalog::in_source(
        crate::server::config(lake.server.socket_folder(), &lake.database),
        "lake_catalog",
        "lake",
        lake.warehouse.clone(),
    );
    let epoch = lake.claim().await;
    let error = beside.recover(MIRROR, epoch).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.hint().unwrap().contains("former [catalog]"), "{error}");
    // Nor does a batch pass it by.
    let error = beside.commit(&Batch { epoch, ..batch(Some(10), 30, vec![]) }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert_eq!(lake.mirror_lsn().await, Some(Lsn::from_u64(10)));
    assert_eq!(recover(&lake).await.2, at(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_has_no_table_to_move_moves_the_mirror_at_once() {
    let lake = Lake::new(Kind::Rest).await;
    let [a, _] = two_tables(&lake).await;
    let rest = lake.rest.clone().unwrap();
    let commits = rest.commits().len();
    let receipt = committed(lake.catalog.commit(&batch(Some(10), 20, vec![append(&a, vec![])])).await.unwrap());
    assert_eq!((receipt.lsn(), receipt.tables().len()), (Lsn::from_u64(20), 1));
    commit(&lake.catalog, &batch(Some(20), 30, vec![])).await;
    assert_eq!((lake.mirror_lsn().await, rest.commits().len()), (Some(Lsn::from_u64(30)), commits));
}

/// The worker that finishes what is on record is overtaken itself.
#[tokio::test(flavor = "multi_thread")]
async fn who_finishes_a_batch_may_be_fenced_off() {
    for kind in [Kind::OtherDatabase, Kind::Rest, Kind::StrictRest] {
        let lake = Lake::new(kind).await;
        let tables = two_tables(&lake).await;
        let (faulty, dying) = Faulty::of(&lake);
        let dying = dying.with_deadline(if kind == Kind::OtherDatabase { Duration::ZERO } else { SHORT });
        let lost = next(&lake, &tables).await;
        faulty.set(Fault::LoseCommit);
        if let Some(rest) = &lake.rest {
            rest.trouble(&[Trouble::Refuse(503); 100]);
        }
        assert_eq!(dying.commit(&lost).await.unwrap_err().kind(), ErrorKind::Unknown);
        faulty.set(Fault::None);
        if let Some(rest) = &lake.rest {
            rest.drain();
        }
        let (second, third) = (lake.claim().await, lake.claim().await);
        let error = lake.other_catalog().recover(MIRROR, second).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.hint()),
            (ErrorKind::Fenced, Some("this one stops; nothing is lost")),
            "{error}"
        );
        assert!(error.to_string().contains("epoch 3"), "{error}");
        assert_eq!(lake.other_catalog().recover(MIRROR, third).await.unwrap(), at(20));
        assert_eq!((there(&lake, "a").await, there(&lake, "b").await), (vec![1, 11], vec![2, 12]));
    }
}
