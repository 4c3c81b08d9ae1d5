//! The settings `lake.catalog_…`: which catalog the Iceberg tables are in. They are the keys of the section `[catalog]` in the
//! standalone worker's file, and are checked by its code when the engine starts.
//!
//! Only a superuser sets them, and sees all but the type. None is a secret: secrets are in files that the server can read.

use std::ffi::{CStr, CString};
use std::path::PathBuf;

use cdc_worker::CatalogOptions;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};

type Text = GucSetting<Option<CString>>;

static TYPE: GucSetting<CatalogType> = GucSetting::<CatalogType>::new(CatalogType::source);
static INSECURE: GucSetting<bool> = GucSetting::<bool>::new(false);
static PORT: GucSetting<i32> = GucSetting::<i32>::new(5432);
static HOST: Text = Text::new(Some(c""));
static DATABASE: Text = Text::new(Some(c""));
static USER: Text = Text::new(Some(c""));
static PASSWORD_FILE: Text = Text::new(Some(c""));
static SCHEMA: Text = Text::new(Some(c""));
static NAME: Text = Text::new(Some(c""));
static URI: Text = Text::new(Some(c""));
static WAREHOUSE: Text = Text::new(Some(c""));
static CREDENTIAL_FILE: Text = Text::new(Some(c""));
static TOKEN_FILE: Text = Text::new(Some(c""));
static OAUTH2_SERVER_URI: Text = Text::new(Some(c""));
static SCOPE: Text = Text::new(Some(c""));
static SIGV4_REGION: Text = Text::new(Some(c""));
static SIGV4_SERVICE: Text = Text::new(Some(c""));

/// `lake.catalog_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, pgrx::guc::PostgresGucEnum)]
#[allow(non_camel_case_types)]
enum CatalogType {
    /// In the database itself.
    source,
    /// Behind Iceberg's REST protocol.
    rest,
    /// In another Postgres database.
    jdbc,
    /// None but the warehouse's files.
    hadoop,
}

/// Every text setting, with what it is.
const TEXTS: &[(&CStr, &CStr, &Text)] = &[
    (c"lake.catalog_uri", c"REST: address of the catalog, without /v1.", &URI),
    (
        c"lake.catalog_warehouse",
        c"REST: the warehouse that the catalog is asked for, where it has several.",
        &WAREHOUSE,
    ),
    (
        c"lake.catalog_credential_file",
        c"REST: file with client_id:client_secret, or access_key:secret_key.",
        &CREDENTIAL_FILE,
    ),
    (c"lake.catalog_token_file", c"REST: file with a bearer token.", &TOKEN_FILE),
    (c"lake.catalog_oauth2_server_uri", c"REST: where tokens are given out; empty: the catalog.", &OAUTH2_SERVER_URI),
    (c"lake.catalog_scope", c"REST: what tokens are for; empty: \"catalog\".", &SCOPE),
    (c"lake.catalog_sigv4_region", c"REST: region for which requests are signed; empty: they are not.", &SIGV4_REGION),
    (
        c"lake.catalog_sigv4_service",
        c"REST: service for which requests are signed; empty: \"s3tables\".",
        &SIGV4_SERVICE,
    ),
    (c"lake.catalog_host", c"JDBC: host of the catalog's server, or directory of its socket.", &HOST),
    (c"lake.catalog_database", c"JDBC: database of the catalog.", &DATABASE),
    (c"lake.catalog_user", c"JDBC: role that writes the catalog.", &USER),
    (c"lake.catalog_password_file", c"JDBC: file with its password.", &PASSWORD_FILE),
    (c"lake.catalog_schema", c"JDBC: schema of the catalog's tables; empty: \"public\".", &SCHEMA),
    (c"lake.catalog_name", c"JDBC: catalog_name of the tables; empty: \"lake\".", &NAME),
];

/// Defines the settings.
pub(super) fn define() {
    // Anybody sees it: the view lake.mirrors looks at it, with its reader's rights.
    GucRegistry::define_enum_guc(
        c"lake.catalog_type",
        c"Which kind of catalog the Iceberg tables are in.",
        c"source: in this database. jdbc: in another one. rest: behind Iceberg's REST protocol. hadoop: none but files.",
        &TYPE,
        GucContext::Sighup,
        GucFlags::default(),
    );
    for (name, what, setting) in TEXTS {
        GucRegistry::define_string_guc(name, what, c"", setting, GucContext::Sighup, GucFlags::SUPERUSER_ONLY);
    }
    GucRegistry::define_int_guc(
        c"lake.catalog_port",
        c"JDBC: port of the catalog's server.",
        c"",
        &PORT,
        1,
        u16::MAX.into(),
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_bool_guc(
        c"lake.catalog_insecure",
        c"Allows connections to the catalog that are not encrypted.",
        c"",
        &INSECURE,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
}

/// What is set, as it is set.
pub(super) fn options() -> CatalogOptions {
    let text = |setting: &Text| Some(super::string(setting)).filter(|value| !value.is_empty());
    let file = |setting: &Text| text(setting).map(PathBuf::from);
    CatalogOptions {
        r#type: match TYPE.get() {
            CatalogType::source => cdc_worker::CatalogType::Source,
            CatalogType::rest => cdc_worker::CatalogType::Rest,
            CatalogType::jdbc => cdc_worker::CatalogType::Jdbc,
            CatalogType::hadoop => cdc_worker::CatalogType::Hadoop,
        },
        insecure: INSECURE.get(),
        host: text(&HOST),
        port: u16::try_from(PORT.get()).unwrap_or_else(|_| CatalogOptions::default_port()),
        database: text(&DATABASE),
        user: text(&USER),
        password_file: file(&PASSWORD_FILE),
        schema: text(&SCHEMA),
        name: text(&NAME),
        uri: text(&URI),
        warehouse: text(&WAREHOUSE),
        credential_file: file(&CREDENTIAL_FILE),
        token_file: file(&TOKEN_FILE),
        oauth2_server_uri: text(&OAUTH2_SERVER_URI),
        scope: text(&SCOPE),
        sigv4_region: text(&SIGV4_REGION),
        sigv4_service: text(&SIGV4_SERVICE),
        // Queries read the store too, and have no part in what the engine is given.
        vended_credentials: false,
    }
}

/// The engine's words, with the keys of the worker's file as the settings are called here.
pub(crate) fn in_our_words(text: &str) -> String {
    let others = ["lake.catalog_type", "lake.catalog_port", "lake.catalog_insecure"];
    let names = TEXTS.iter().filter_map(|(name, ..)| name.to_str().ok()).chain(others);
    names.fold(text.to_owned(), |text, name| text.replace(&name.replacen("lake.catalog_", "catalog.", 1), name))
}
