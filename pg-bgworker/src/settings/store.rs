//! The settings `lake.store_…`: how the object store of the warehouse is reached.
//!
//! Only a superuser sets and sees them, and none is a secret: secrets are in files that the server can read, or in its
//! environment.

use std::ffi::{CStr, CString};
use std::path::PathBuf;

use cdc_worker::StoreOptions;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};

type Text = GucSetting<Option<CString>>;

static ENDPOINT: Text = Text::new(Some(c""));
static REGION: Text = Text::new(Some(c""));
static ACCESS_KEY_ID: Text = Text::new(Some(c""));
static SECRET_ACCESS_KEY_FILE: Text = Text::new(Some(c""));
static SESSION_TOKEN_FILE: Text = Text::new(Some(c""));
static SERVICE_ACCOUNT_FILE: Text = Text::new(Some(c""));
static ACCOUNT: Text = Text::new(Some(c""));
static ACCOUNT_KEY_FILE: Text = Text::new(Some(c""));
static SAS_TOKEN_FILE: Text = Text::new(Some(c""));
static PATH_STYLE: GucSetting<bool> = GucSetting::<bool>::new(true);
static ALLOW_HTTP: GucSetting<bool> = GucSetting::<bool>::new(false);

/// Every text setting, with what it is.
const TEXTS: &[(&CStr, &CStr, &Text)] = &[
    (c"lake.store_endpoint", c"Address of the warehouse's object store; empty: the service's own.", &ENDPOINT),
    (c"lake.store_region", c"Region of the warehouse's bucket; empty: the environment's.", &REGION),
    (c"lake.store_access_key_id", c"S3: id of the key; empty: the environment's.", &ACCESS_KEY_ID),
    (c"lake.store_secret_access_key_file", c"S3: file with the secret of the key.", &SECRET_ACCESS_KEY_FILE),
    (c"lake.store_session_token_file", c"S3: file with the token of a temporary key.", &SESSION_TOKEN_FILE),
    (c"lake.store_service_account_file", c"Google: file with the key of a service account.", &SERVICE_ACCOUNT_FILE),
    (c"lake.store_account", c"Azure: the storage account, where the URL does not name it.", &ACCOUNT),
    (c"lake.store_account_key_file", c"Azure: file with the key of the storage account.", &ACCOUNT_KEY_FILE),
    (c"lake.store_sas_token_file", c"Azure: file with a shared access signature.", &SAS_TOKEN_FILE),
];

/// Defines the settings.
pub(super) fn define() {
    for (name, what, setting) in TEXTS {
        GucRegistry::define_string_guc(name, what, c"", setting, GucContext::Sighup, GucFlags::SUPERUSER_ONLY);
    }
    GucRegistry::define_bool_guc(
        c"lake.store_path_style",
        c"S3: the bucket is a part of the path; off: of the host name.",
        c"",
        &PATH_STYLE,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_bool_guc(
        c"lake.store_allow_http",
        c"Allows an endpoint that is not encrypted.",
        c"",
        &ALLOW_HTTP,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
}

/// What the engine is told.
pub(super) fn options() -> StoreOptions {
    let text = |setting: &Text| Some(super::string(setting)).filter(|value| !value.is_empty());
    let file = |setting: &Text| text(setting).map(PathBuf::from);
    StoreOptions {
        endpoint: text(&ENDPOINT),
        region: text(&REGION),
        access_key_id: text(&ACCESS_KEY_ID),
        secret_access_key_file: file(&SECRET_ACCESS_KEY_FILE),
        session_token_file: file(&SESSION_TOKEN_FILE),
        profile: None,
        path_style: (!PATH_STYLE.get()).then_some(false),
        service_account_file: file(&SERVICE_ACCOUNT_FILE),
        account: text(&ACCOUNT),
        account_key_file: file(&ACCOUNT_KEY_FILE),
        sas_token_file: file(&SAS_TOKEN_FILE),
        allow_http: ALLOW_HTTP.get(),
    }
}
