//! What a REST server may answer, and how it knows us.

use std::time::Duration;

use iceberg_writer::{Catalog, ErrorKind, Format, MirrorCatalog, RestAuth, RestSettings, Retry};

use crate::pairs::{append, data_file, ids, spec};
use crate::rest_server::Trouble;
use crate::server::{Kind, Lake, batch, commit, committed, config};

fn catalog(lake: &Lake, auth: RestAuth) -> MirrorCatalog {
    let settings = RestSettings {
        uri: lake.rest.as_ref().unwrap().uri(),
        warehouse: Some("w".to_owned()),
        auth,
        vended_credentials: false,
    };
    let source = config(lake.server.socket_folder(), &lake.database);
    MirrorCatalog::over_rest(source, "lake_catalog", settings, lake.warehouse.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_busy_or_does_not_know_is_asked_again() {
    for kind in [Kind::Rest, Kind::StrictRest] {
        let lake = Lake::new(kind).await;
        let rest = lake.rest.clone().unwrap();
        let mut table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
        let troubles = [
            Trouble::Refuse(429),
            Trouble::Refuse(503),
            Trouble::Answer(500),
            Trouble::Answer(502),
            Trouble::Refuse(500),
            Trouble::Answer(504),
        ];
        for (step, trouble) in (1..).zip(troubles) {
            rest.trouble(&[trouble]);
            let rows = data_file(&lake.warehouse, &table, [i64::try_from(step).unwrap()]).await;
            let expected = (step > 1).then(|| step - 1);
            table = commit(&lake.catalog, &batch(expected, step, vec![append(&table, vec![rows])])).await.remove(0);
            assert!(rest.is_calm());
        }
        assert_eq!(ids(&lake.warehouse, &table).await, [1, 2, 3, 4, 5, 6]);
        // The same request has the same name, and another another.
        let commits = rest.commits();
        let keys: Vec<_> = commits.iter().filter_map(|(_, key)| key.clone()).collect();
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), 6, "{commits:?}");
        assert!(keys.len() >= 12, "{commits:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_what_to_do_and_leaves_nothing_behind() {
    for (status, hint) in [(400, "principal"), (403, "principal"), (401, "credential_file")] {
        let lake = Lake::new(Kind::Rest).await;
        let rest = lake.rest.clone().unwrap();
        let table = lake.catalog.prepare(spec("events"), Format::V2).await.unwrap();
        let rows = data_file(&lake.warehouse, &table, [1]).await;
        let table = commit(&lake.catalog, &batch(None, 1, vec![append(&table, vec![rows])])).await.remove(0);
        let rows = data_file(&lake.warehouse, &table, [2]).await;
        let ours = batch(Some(1), 2, vec![append(&table, vec![rows])]);
        let before = lake.files().await;
        rest.trouble(&[Trouble::Refuse(status)]);
        let error = lake.catalog.commit(&ours).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Catalog, "{error}");
        assert!(error.to_string().contains(&status.to_string()), "{error}");
        assert!(error.hint().unwrap().contains(hint), "{error:?}");
        assert_eq!(lake.files().await, before);
        // Nothing is on record, so it can be tried again, or something else.
        let table = committed(lake.catalog.commit(&ours).await.unwrap()).tables()[0].table.clone();
        assert_eq!(ids(&lake.warehouse, &table).await, [1, 2]);
    }
}

/// A server that never takes the commit, and never says why: nothing is half there, and it can be made later.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_on_refusing_is_given_up_with_a_clear_error() {
    for kind in [Kind::Rest, Kind::StrictRest] {
        for status in [404, 409, 429, 500, 502, 503, 504] {
            let lake = Lake::new(kind).await;
            let rest = lake.rest.clone().unwrap();
            let mut changes = Vec::new();
            for name in ["a", "b"] {
                let table = lake.catalog.prepare(spec(name), Format::V2).await.unwrap();
                changes.push(append(&table, vec![data_file(&lake.warehouse, &table, [1]).await]));
            }
            let tables = commit(&lake.catalog, &batch(None, 1, changes)).await;
            let mut changes = Vec::new();
            for table in &tables {
                changes.push(append(table, vec![data_file(&lake.warehouse, table, [2]).await]));
            }
            let ours = batch(Some(1), 2, changes);
            let before = (lake.metadata_location("a").await, lake.metadata_location("b").await);
            rest.trouble(&vec![Trouble::Refuse(status); 1000]);
            let impatient = lake.other_catalog().with_deadline(Duration::from_millis(300));
            let error = impatient.commit(&ours).await.unwrap_err();
            // Where a server says that it does not know, nobody does.
            let kind = if status >= 500 { ErrorKind::Unknown } else { ErrorKind::Unavailable };
            assert_eq!(error.kind(), kind, "{status}: {error}");
            assert!(!matches!(error.retry(), Retry::Never), "{status}: {error}");
            assert_eq!((lake.metadata_location("a").await, lake.metadata_location("b").await), before, "{status}");
            assert_eq!(lake.mirror_lsn().await.map(|lsn| lsn.as_u64()), Some(1), "{status}");
            rest.drain();
            let tables = committed(impatient.commit(&ours).await.unwrap());
            for table in tables.tables() {
                assert_eq!(ids(&lake.warehouse, &table.table).await, [1, 2], "{status}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_asked_for_and_renewed_and_secrets_are_not_shown() {
    let lake = Lake::new(Kind::Rest).await;
    let rest = lake.rest.clone().unwrap();
    rest.want_tokens(3);
    let file = lake.folder.path().join("credential");
    std::fs::write(&file, "me:s&cret\n").unwrap();
    let auth = RestAuth::OAuth2 { credential_file: file.clone(), server_uri: None, scope: "all".to_owned() };
    let by_oauth2 = catalog(&lake, auth);
    let mut table = by_oauth2.prepare(spec("events"), Format::V2).await.unwrap();
    for step in 1..6 {
        let rows = data_file(&lake.warehouse, &table, [i64::try_from(step).unwrap()]).await;
        let expected = (step > 1).then(|| step - 1);
        table = commit(&by_oauth2, &batch(expected, step, vec![append(&table, vec![rows])])).await.remove(0);
    }
    assert_eq!(ids(&lake.warehouse, &table).await, [1, 2, 3, 4, 5]);
    assert!(rest.tokens_given() > 1);

    // One of the wrong kind, or none.
    std::fs::write(&file, "me:wrong").unwrap();
    let auth = RestAuth::OAuth2 { credential_file: file.clone(), server_uri: None, scope: "all".to_owned() };
    let refused = catalog(&lake, auth).ensure().await.unwrap_err();
    assert!(refused.hint().unwrap().contains("credential_file"), "{refused:?}");
    assert!(!format!("{refused:?}").contains("wrong"), "{refused:?}");
    std::fs::write(&file, "no colon").unwrap();
    let auth = RestAuth::OAuth2 { credential_file: file.clone(), server_uri: None, scope: "all".to_owned() };
    assert_eq!(catalog(&lake, auth).ensure().await.unwrap_err().kind(), ErrorKind::Invalid);

    // A token in a file counts as it is there at the time.
    rest.want_tokens(100);
    std::fs::write(&file, "token-0").unwrap();
    let by_token = catalog(&lake, RestAuth::Bearer { token_file: file.clone() });
    assert!(by_token.ensure().await.unwrap_err().to_string().contains("401"));
    std::fs::write(&file, format!("token-{}", rest.tokens_given())).unwrap();
    by_token.ensure().await.unwrap();
    assert!(catalog(&lake, RestAuth::None).ensure().await.unwrap_err().to_string().contains("401"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_the_protocol_is_no_catalog_and_takes_no_table_away() {
    let lake = Lake::new(Kind::Rest).await;
    for (uri, kind) in
        [("ftp://h", ErrorKind::Invalid), ("http://u:p@h", ErrorKind::Invalid), ("nowhere", ErrorKind::Invalid)]
    {
        let settings =
            RestSettings { uri: uri.to_owned(), warehouse: None, auth: RestAuth::None, vended_credentials: false };
        let source = config(lake.server.socket_folder(), &lake.database);
        let error = MirrorCatalog::over_rest(source, "lake_catalog", settings, lake.warehouse.clone()).err().unwrap();
        assert_eq!(error.kind(), kind, "{uri}");
    }
    let elsewhere = RestSettings {
        uri: format!("{}/elsewhere", lake.rest.as_ref().unwrap().uri()),
        warehouse: None,
        auth: RestAuth::None,
        vended_credentials: false,
    };
    let source = config(lake.server.socket_folder(), &lake.database);
    let elsewhere = MirrorCatalog::over_rest(source, "lake_catalog", elsewhere, lake.warehouse.clone()).unwrap();
    for error in [elsewhere.ensure().await.err(), elsewhere.load(spec("events")).await.err()] {
        let error = error.expect("it is not there");
        assert!(error.hint().unwrap().contains("catalog.uri"), "{error:?}");
    }
    // A port where nobody listens.
    let nobody = RestSettings {
        uri: "http://127.0.0.1:1".to_owned(),
        warehouse: None,
        auth: RestAuth::None,
        vended_credentials: false,
    };
    let source = config(lake.server.socket_folder(), &lake.database);
    let nobody = MirrorCatalog::over_rest(source, "lake_catalog", nobody, lake.warehouse.clone()).unwrap();
    let nobody = nobody.with_deadline(Duration::from_millis(100));
    assert_eq!(nobody.load(spec("events")).await.unwrap_err().kind(), ErrorKind::Unavailable);
}
