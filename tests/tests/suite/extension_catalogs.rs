//! The extensions with the tables in another catalog than the database's own: SeaweedFS's REST catalog, another database,
//! none but files. Queries of `lake.…` do not notice.

use anyhow::{Context, Result, ensure};
use lake_tests::{Oracle, OtherCatalog, Postgres, Seaweed, Source, bounded, eventually};

use crate::extension_mirror::{mirror, same, server};
use crate::{CATCH_UP, TEST_LIMIT};

/// A table of a thousand rows with a history.
const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v numeric(12, 2), s text);
     INSERT INTO t SELECT i, i / 7.0, 's' || i % 10 FROM generate_series(1, 1000) i;
     CREATE EXTENSION lake; CREATE EXTENSION lake_query; SELECT lake.mirror('t', history => true)";

/// Sets settings, and has them read.
async fn set(postgres: &Postgres, settings: &[(String, String)]) -> Result<()> {
    for (name, value) in settings {
        postgres.configure(name, value)?;
    }
    postgres.reload().await
}

/// The settings of a warehouse in the bucket of a store's REST catalog.
fn in_table_bucket(store: &Seaweed) -> Result<Vec<(String, String)>> {
    let secret = store.secret_file(Seaweed::ADMIN)?.display().to_string();
    let setting = |name: &str, value: &str| (format!("lake.{name}"), value.to_owned());
    Ok(vec![
        setting("warehouse", &format!("s3://{}", Seaweed::TABLE_BUCKET)),
        setting("store_endpoint", &store.endpoint()),
        setting("store_region", Seaweed::REGION),
        setting("store_access_key_id", Seaweed::ADMIN.id),
        setting("store_secret_access_key_file", &secret),
        setting("store_allow_http", "on"),
    ])
}

/// Queries are answered by the lake, and as the heap answers them.
async fn queries_equal(postgres: &Postgres) -> Result<()> {
    for query in [
        "SELECT count(*), sum(v), min(id), max(id) FROM {t}",
        "SELECT s, count(*), sum(v) FROM {t} GROUP BY s ORDER BY s COLLATE \"C\"",
        "SELECT * FROM {t} WHERE id BETWEEN 90 AND 130 ORDER BY id",
    ] {
        same(postgres, query, "public.t", "lake.t").await?;
    }
    let plan =
        format!("{:?}", postgres.rows("EXPLAIN (ANALYZE, COSTS OFF) SELECT s, sum(v) FROM lake.t GROUP BY s").await?);
    ensure!(plan.contains("LakeScan") && !plan.contains("Answered By: heap"), "{plan}");
    Ok(())
}

/// Changes of all kinds, columns and a new copy among them, then a mirror that is ended and begun again.
async fn follow_all(postgres: &Postgres, oracle: &Oracle) -> Result<()> {
    for statements in [
        "UPDATE t SET v = v + 1 WHERE id % 3 = 0; DELETE FROM t WHERE id % 5 = 0",
        "INSERT INTO t SELECT -i, i, 'fresh' FROM generate_series(1, 10) i; UPDATE t SET id = id + 5000 WHERE id % 50 = 1",
        "ALTER TABLE t ADD COLUMN more int; UPDATE t SET more = id WHERE id < 100",
        "SELECT lake.compact('t')",
        "SELECT lake.resync('t')",
        "TRUNCATE t; INSERT INTO t SELECT i, i, 'after', i FROM generate_series(1, 100) i",
    ] {
        postgres.batch(statements).await.context(statements)?;
        postgres.batch("SELECT lake.wait('t', '60 s')").await.context(statements)?;
        oracle.assert_equal(postgres, &["public.t"], CATCH_UP).await.context(statements)?;
        queries_equal(postgres).await.context(statements)?;
    }
    let kinds = oracle.assert_history(postgres, &["public.t"], CATCH_UP).await?;
    ensure!(kinds[0]["delete"] > 0 && kinds[0]["update"] > 0, "{kinds:?}");
    let own = "SELECT count(*) FROM lake_catalog.iceberg_tables";
    ensure!(postgres.value(own).await? == "0", "the database's own catalog has tables");
    let location = postgres.rows("SELECT metadata_location FROM lake.mirrors").await?;
    ensure!(location == [[None]], "lake.mirrors: {location:?}");
    postgres
        .batch("SELECT lake.unmirror('t'); UPDATE t SET more = 7 WHERE id < 10; DELETE FROM t WHERE id = 50")
        .await?;
    postgres.batch("SELECT lake.mirror('t')").await?;
    postgres.batch("SELECT lake.wait('t', '60 s')").await?;
    oracle.assert_equal(postgres, &["public.t"], CATCH_UP).await.context("mirrored again")?;
    queries_equal(postgres).await?;
    // The catalog keeps the table when the extension goes, and has it again when that comes back.
    postgres.batch("DROP EXTENSION lake_query; DROP EXTENSION lake CASCADE").await?;
    eventually("the engine is gone", CATCH_UP, async || {
        Ok(postgres.processes("lake engine")?.is_empty().then_some(()))
    })
    .await?;
    postgres.batch("DELETE FROM t WHERE id = 60").await?;
    mirror(postgres, &["t"]).await?;
    oracle.assert_equal(postgres, &["public.t"], CATCH_UP).await.context("mirrored by another extension")?;
    queries_equal(postgres).await
}

/// What the engine says of itself, once it says these words.
async fn failed(postgres: &Postgres, words: &[&str]) -> Result<String> {
    let query = "SELECT message || ' hint: ' || coalesce(hint, '') FROM lake.errors WHERE \"table\" IS NULL";
    eventually(&format!("lake.errors says {words:?}"), CATCH_UP, async || {
        let said = postgres.rows(query).await?.into_iter().flatten().flatten().next();
        Ok(said.filter(|said| words.iter().all(|word| said.contains(word))))
    })
    .await
    .with_context(|| postgres.log())
}

#[tokio::test]
async fn a_rest_catalog_has_the_tables_and_wrong_settings_say_so_and_lose_nothing() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a mirror whose tables are in a REST catalog
        let (postgres, store) = (server().await?, Seaweed::start().await?);
        let catalog = OtherCatalog::rest(&store)?;
        let directory = postgres.scratch().directory("secrets")?;
        let good = catalog.settings(&directory)?;
        set(&postgres, &in_table_bucket(&store)?).await?;
        set(&postgres, &good).await?;
        postgres.batch(TABLE).await?;
        postgres.batch("SELECT lake.wait('t', '60 s')").await?;
        let oracle = Oracle::new(&postgres).in_catalog(&catalog).in_store(&store);
        oracle.assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        queries_equal(&postgres).await?;

        // WHEN a setting is wrong, THEN the engine says which, by its name here, and shows no secret
        let one = |key: &str, value: &str| vec![(format!("lake.catalog_{key}"), value.to_owned())];
        std::fs::write(directory.join("wrong"), "admin:hunter2")?;
        let wrong = directory.join("wrong").display().to_string();
        let cases = [
            (one("warehouse", "nowhere"), &["lake.catalog_warehouse"][..]),
            (one("uri", "http://127.0.0.1:1"), &["is the catalog's server running", "lake.catalog_uri"]),
            (one("uri", ""), &["lake.catalog_uri is missing"]),
            (one("insecure", "off"), &["would not be encrypted", "lake.catalog_insecure"]),
            (one("type", "jdbc"), &["means nothing to a catalog of type jdbc", "lake.catalog_type"]),
            (one("token_file", &wrong), &["in two ways", "lake.catalog_token_file"]),
            (one("credential_file", &wrong), &["lake.catalog_credential_file"]),
        ];
        for (id, (settings, words)) in (2000..).zip(cases) {
            set(&postgres, &settings).await?;
            let said = failed(&postgres, words).await?;
            ensure!(!said.contains("hunter2"), "a secret is shown: {said}");
            postgres.batch(&format!("INSERT INTO t VALUES ({id}, 1, 'while it is wrong')")).await?;
            let last = postgres.rows("SELECT last_error FROM lake.lag").await?;
            ensure!(
                format!("{last:?}").contains(said.split(" hint: ").next().unwrap_or_default()),
                "lake.lag: {last:?}"
            );
            set(&postgres, &one("token_file", "")).await?;
            set(&postgres, &good).await?;
        }
        ensure!(!postgres.log().contains("hunter2") && !postgres.log().contains(Seaweed::ADMIN.secret));

        // AND mended it goes on, with what was written meanwhile
        oracle.assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        queries_equal(&postgres).await?;
        follow_all(&postgres, &oracle).await
    })
    .await
}

#[tokio::test]
async fn another_database_has_the_tables() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        postgres.batch(&format!("CREATE ROLE {} LOGIN", Source::ROLE)).await?;
        let catalog = OtherCatalog::database(&postgres, "elsewhere").await?;
        set(&postgres, &catalog.settings(&postgres.scratch().directory("secrets")?)?).await?;
        postgres.batch(TABLE).await?;
        postgres.batch("SELECT lake.wait('t', '60 s')").await?;
        follow_all(&postgres, &Oracle::new(&postgres).in_catalog(&catalog)).await
    })
    .await
}

#[tokio::test]
async fn files_alone_have_the_tables() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let postgres = server().await?;
        let warehouse = format!("file://{}/lake/warehouse", postgres.data_dir().display());
        let catalog = OtherCatalog::files_in(&warehouse);
        set(&postgres, &catalog.settings(postgres.scratch().path())?).await?;
        postgres.batch(TABLE).await?;
        postgres.batch("SELECT lake.wait('t', '60 s')").await?;
        follow_all(&postgres, &Oracle::new(&postgres).in_catalog(&catalog)).await?;
        // A folder cannot have any name: that table says so, the others go on.
        postgres.batch("CREATE TABLE \"Odd.name\" (id int PRIMARY KEY); SELECT lake.mirror('\"Odd.name\"')").await?;
        let stopped = "SELECT message || ' hint: ' || coalesce(hint, '') FROM lake.errors WHERE \"table\" IS NOT NULL";
        let said = eventually("the table stops", CATCH_UP, async || {
            Ok(postgres.rows(stopped).await?.into_iter().flatten().flatten().next())
        })
        .await?;
        ensure!(said.contains("Odd.name"), "{said}");
        postgres.batch("INSERT INTO t VALUES (7000, 1, 'x', 1)").await?;
        queries_equal(&postgres).await
    })
    .await
}

#[tokio::test]
async fn tables_are_copied_into_a_catalog_that_is_named_later() -> Result<()> {
    bounded(TEST_LIMIT, async {
        // GIVEN a mirror in the database's own catalog
        let postgres = server().await?;
        postgres.batch("CREATE TABLE t (id int PRIMARY KEY, v numeric(12, 2), s text); INSERT INTO t SELECT i, i, 's' FROM generate_series(1, 1000) i").await?;
        mirror(&postgres, &["t"]).await?;
        // WHEN another one is named
        let warehouse = format!("file://{}/lake/warehouse", postgres.data_dir().display());
        let catalog = OtherCatalog::files_in(&warehouse);
        set(&postgres, &catalog.settings(postgres.scratch().path())?).await?;
        // THEN the table stops with the way on, and is in the other one after it
        let stopped = "SELECT hint FROM lake.errors WHERE \"table\" = 't'::regclass";
        let hint = eventually("the table stops", CATCH_UP, async || {
            Ok(postgres.rows(stopped).await?.into_iter().flatten().flatten().next())
        })
        .await?;
        ensure!(hint.contains("lake.resync"), "{hint}");
        postgres.batch("DELETE FROM t WHERE id % 3 = 0; SELECT lake.resync('t')").await?;
        postgres.batch("SELECT lake.wait('t', '60 s')").await?;
        Oracle::new(&postgres).in_catalog(&catalog).assert_equal(&postgres, &["public.t"], CATCH_UP).await?;
        queries_equal(&postgres).await
    })
    .await
}
