//! The configuration file: TOML, every key documented here; secrets from the environment or a file of their own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use iceberg_writer::Format;
use serde::Deserialize;

use super::maintenance::{MaintenanceSection, RetentionSection};
use super::store::Store;
use crate::config::{
    CatalogConfig, CatalogOptions, CommitConfig, CopyConfig, DEFAULT_FILE_BYTES, EngineConfig, LEAST_FILE_BYTES,
    LakeConfig, ListedLayout, ListedTable, Secret, SourceConfig, TableSelection, Unrepresentable,
    default_copy_connections,
};
use crate::error::{Error, ErrorKind};
use crate::memory::{MemoryBudget, control_group_limit};

/// The password of the source's role; beats `password_file`.
const PASSWORD_VARIABLE: &str = "LAKEMIRROR_SOURCE_PASSWORD";

/// More would only queue for the same disks and cores.
const MOST_COPY_CONNECTIONS: usize = 64;

/// The longest path that a socket can have; a longer one is no default.
const LONGEST_SOCKET: usize = 107;

/// Form of the log on standard error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default = "default_mirror")]
    mirror: String,
    #[serde(default)]
    tables: Vec<String>,
    /// Tables of which only inserts and truncations are followed.
    #[serde(default)]
    append_only: Vec<String>,
    /// Those of both lists whose changes are kept too.
    #[serde(default)]
    history: Vec<String>,
    /// How some of them are laid out in Iceberg, by name.
    #[serde(default)]
    layout: BTreeMap<String, ListedLayout>,
    source: Source,
    lake: Lake,
    /// Without it the catalog is in the source.
    catalog: Option<CatalogOptions>,
    #[serde(default)]
    store: Store,
    #[serde(default)]
    commit: Commit,
    #[serde(default)]
    copy: Copy,
    #[serde(default)]
    maintenance: MaintenanceSection,
    #[serde(default)]
    retention: RetentionSection,
    #[serde(default)]
    memory: Memory,
    state: State,
    #[serde(default)]
    admin: Admin,
    #[serde(default)]
    read: Read,
    #[serde(default)]
    log: Log,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    host: String,
    #[serde(default = "CatalogOptions::default_port")]
    port: u16,
    database: String,
    user: String,
    password_file: Option<PathBuf>,
    #[serde(default = "default_name")]
    publication: String,
    #[serde(default = "default_name")]
    slot: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default = "yes")]
    failover: bool,
    copy_connections: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lake {
    warehouse: String,
    #[serde(default = "default_schema")]
    catalog_schema: String,
    #[serde(default = "default_mirror")]
    catalog_name: String,
    file_size: Option<String>,
    #[serde(default)]
    format_version: Format,
    #[serde(default)]
    unrepresentable: Unrepresentable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Copy {
    #[serde(default, with = "humantime_serde::option")]
    snapshot_age: Option<Duration>,
    held_wal: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Commit {
    #[serde(default, with = "humantime_serde::option")]
    interval: Option<Duration>,
    max_bytes: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    budget: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    dir: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Admin {
    listen: Option<SocketAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    socket: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Log {
    #[serde(default)]
    format: LogFormat,
}

fn default_mirror() -> String {
    "lake".to_owned()
}

fn default_name() -> String {
    "lakemirror".to_owned()
}

fn default_schema() -> String {
    "lake_catalog".to_owned()
}

fn yes() -> bool {
    true
}

pub(super) fn config_error(message: String) -> Error {
    Error::new(ErrorKind::Config, message)
}

/// Reads and checks a configuration file.
///
/// # Errors
/// [`ErrorKind::Config`], naming the key.
pub fn load(path: &Path) -> Result<(EngineConfig, LogFormat), Error> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        config_error(format!("read the configuration {}", path.display()))
            .with_hint("give its path with --config or LAKEMIRROR_CONFIG")
            .with_source(error)
    })?;
    let file: File = toml::from_str(&text).map_err(|error| {
        // The parser's text names the key; its quotation of the file stays out, lest it quote a secret.
        let line = error.span().map(|span| 1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count());
        let place = line.map_or_else(String::new, |line| format!(", line {line}"));
        config_error(format!("the configuration {}{place}: {}", path.display(), error.message()))
            .with_hint("the README lists all keys")
    })?;
    let password = Secret::find(PASSWORD_VARIABLE, "source.password_file", file.source.password_file.as_deref())?;
    check_lists(&file)?;
    let (history, layout) = (&file.history, &file.layout);
    let tables = listed(file.tables, history, layout, false).chain(listed(file.append_only, history, layout, true));
    let tables = TableSelection::Listed(tables.collect());
    let slot = file.source.slot;
    if slot.is_empty()
        || slot.len() > 63
        || !slot.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    {
        return Err(config_error(format!("\"{slot}\" is not a name for a replication slot"))
            .with_hint("up to 63 lower case letters, digits and underscores"));
    }
    let budget = match &file.memory.budget {
        Some(text) => bytes(text).and_then(MemoryBudget::new).ok_or_else(|| {
            config_error(format!("memory.budget = \"{text}\" is not a size, or too small"))
                .with_hint("like \"512MiB\"; at least 64MiB")
        })?,
        None => MemoryBudget::within(control_group_limit()),
    };
    let affordable = budget.copy_connections(!file.lake.warehouse.starts_with("file:"));
    let copy_connections = file.source.copy_connections.unwrap_or_else(|| default_copy_connections().min(affordable));
    if !(1..=MOST_COPY_CONNECTIONS).contains(&copy_connections) {
        return Err(config_error(format!("source.copy_connections = {copy_connections}"))
            .with_hint(format!("between 1 and {MOST_COPY_CONNECTIONS}")));
    }
    let default = CommitConfig::default();
    let max_bytes = match &file.commit.max_bytes {
        Some(text) => bytes(text).ok_or_else(|| {
            config_error(format!("commit.max_bytes = \"{text}\" is not a size")).with_hint("like \"64MiB\"")
        })?,
        None => budget.changes(),
    };
    let (file_bytes, copy) = (file_bytes(&file.lake)?, copy(&file.copy)?);
    let catalog = file.catalog.map_or(Ok(CatalogConfig::Source), CatalogOptions::read)?;
    let default_socket = Some(file.state.dir.join("read.sock")).filter(|path| path.as_os_str().len() <= LONGEST_SOCKET);
    let config = EngineConfig {
        mirror: file.mirror,
        source: SourceConfig {
            host: file.source.host,
            port: file.source.port,
            database: file.source.database,
            user: file.source.user,
            password,
            publication: file.source.publication,
            slot,
            insecure: file.source.insecure,
            failover: file.source.failover,
            copy_connections,
        },
        lake: LakeConfig {
            warehouse: file.lake.warehouse,
            store: file.store.options(),
            catalog_schema: file.lake.catalog_schema,
            catalog_name: file.lake.catalog_name,
            catalog,
            file_bytes,
            format: file.lake.format_version,
            unrepresentable: file.lake.unrepresentable,
        },
        copy,
        maintenance: file.maintenance.read()?,
        retention: file.retention.read()?,
        commit: CommitConfig { interval: file.commit.interval.unwrap_or(default.interval), max_bytes },
        state_dir: file.state.dir,
        read_socket: file.read.socket.or(default_socket),
        admin_listen: file.admin.listen,
        tables,
    };
    Ok((config, file.log.format))
}

fn file_bytes(lake: &Lake) -> Result<usize, Error> {
    let Some(text) = &lake.file_size else { return Ok(DEFAULT_FILE_BYTES) };
    let size = bytes(text).and_then(|bytes| usize::try_from(bytes).ok());
    size.filter(|bytes| *bytes >= LEAST_FILE_BYTES).ok_or_else(|| {
        config_error(format!("lake.file_size = \"{text}\" is not a size, or too small"))
            .with_hint("like \"256MiB\"; at least 256KiB")
    })
}

fn copy(copy: &Copy) -> Result<CopyConfig, Error> {
    let default = CopyConfig::default();
    let held_wal = match &copy.held_wal {
        Some(text) => bytes(text).ok_or_else(|| {
            config_error(format!("copy.held_wal = \"{text}\" is not a size")).with_hint("like \"16GiB\"")
        })?,
        None => default.held_wal,
    };
    Ok(CopyConfig { snapshot_age: copy.snapshot_age.unwrap_or(default.snapshot_age), held_wal })
}

/// Every table is in one list, and what is said of a table is said of one in a list.
fn check_lists(file: &File) -> Result<(), Error> {
    if file.tables.is_empty() && file.append_only.is_empty() {
        return Err(config_error("tables is empty".to_owned()).with_hint("tables = [\"public.flights\"]"));
    }
    if let Some(name) = file.append_only.iter().find(|name| file.tables.contains(name)) {
        return Err(config_error(format!("\"{name}\" is in tables and in append_only"))
            .with_hint("name it in append_only alone, unless its updates and deletes are wanted"));
    }
    let is_listed = |name: &&String| file.tables.contains(name) || file.append_only.contains(name);
    if let Some(name) = file.history.iter().find(|name| !is_listed(name)) {
        return Err(config_error(format!("\"{name}\" is in history, and not in tables"))
            .with_hint("name it in tables too, written in the same way"));
    }
    if let Some(name) = file.layout.keys().find(|name| !is_listed(name)) {
        return Err(config_error(format!("[layout.\"{name}\"] is of a table that is not in tables"))
            .with_hint("name it in tables too, written in the same way"));
    }
    Ok(())
}

fn listed(
    names: Vec<String>,
    history: &[String],
    layout: &BTreeMap<String, ListedLayout>,
    append_only: bool,
) -> impl Iterator<Item = ListedTable> {
    names.into_iter().map(move |name| {
        let (history, layout) = (history.contains(&name), layout.get(&name).cloned().unwrap_or_default());
        ListedTable { history, layout, name, append_only }
    })
}

/// A size such as `64MiB`, `512 KiB` or `1000000`.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let shift = match text[digits..].trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cli) fn load_text(text: &str) -> Result<(EngineConfig, LogFormat), Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        load(file.path())
    }

    pub(in crate::cli) const LEAST: &str = "tables = ['public.t']\n[source]\nhost = '/tmp'\ndatabase = 'd'\nuser = 'u'\n\
                         [lake]\nwarehouse = 'file:///w'\n[state]\ndir = '/s'\n";

    #[test]
    fn the_least_configuration_has_defaults() {
        let (config, format) = load_text(LEAST).unwrap();
        assert_eq!(config.mirror, "lake");
        assert_eq!(config.commit.interval, Duration::from_secs(10));
        assert_eq!(format, LogFormat::Text);
        assert_eq!(config.read_socket.as_deref(), Some(Path::new("/s/read.sock")));
        let long = LEAST.replace("'/s'", &format!("'/{}'", "s".repeat(100)));
        assert_eq!(load_text(&long).unwrap().0.read_socket, None);
    }

    #[test]
    fn the_memory_budget_decides_what_is_not_set() {
        let (config, _) = load_text(&format!("{LEAST}[memory]\nbudget = '128MiB'\n")).unwrap();
        assert_eq!((config.commit.max_bytes, config.source.copy_connections), (16 << 20, 1));
        let both = format!("{LEAST}[memory]\nbudget = '128MiB'\n[commit]\nmax_bytes = '1MiB'\n");
        assert_eq!(load_text(&both).unwrap().0.commit.max_bytes, 1 << 20);
        let error = load_text(&format!("{LEAST}[memory]\nbudget = '1MiB'\n")).unwrap_err();
        assert!(error.report().contains("memory.budget") && error.hint().is_some());
    }

    #[test]
    fn tables_are_of_version_2_unless_it_is_said() {
        assert_eq!(load_text(LEAST).unwrap().0.lake.format, Format::V2);
        let of = |version: &str| load_text(&LEAST.replace("[state]", &format!("format_version = {version}\n[state]")));
        assert_eq!(of("3").unwrap().0.lake.format, Format::V3);
        for wrong in ["1", "4", "'3'"] {
            assert!(of(wrong).unwrap_err().report().contains("line 8"), "{wrong}");
        }
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = load_text(&format!("{LEAST}\n[commit]\nintervall = '1s'\n")).unwrap_err();
        assert!(error.report().contains("intervall") && error.report().contains("line 12"), "{}", error.report());
        assert!(error.hint().is_some());
    }

    #[test]
    fn a_store_is_described_without_its_secrets() {
        let store = "[store]\nendpoint = 'https://s3.example'\naccess_key_id = 'k'\nsecret_access_key_file = '/s'\n";
        let (config, _) = load_text(&format!("{LEAST}{store}path_style = false\n")).unwrap();
        let store = &config.lake.store;
        assert_eq!((store.endpoint.as_deref(), store.path_style), (Some("https://s3.example"), Some(false)));
        assert_eq!(store.secret_access_key_file.as_deref(), Some(Path::new("/s")));
        let error = load_text(&format!("{LEAST}[store]\nsecret_access_key = 'hunter2'\n")).unwrap_err();
        assert!(error.report().contains("secret_access_key") && !error.report().contains("hunter2"));
    }

    #[test]
    fn a_table_is_named_once() {
        let both = format!("append_only = ['public.t']\n{LEAST}");
        assert!(load_text(&both).unwrap_err().report().contains("public.t"));
        let (config, _) = load_text(&both.replace("tables = ['public.t']", "")).unwrap();
        assert_eq!(config.warnings().len(), 1);
        assert!(config.warnings()[0].contains("public.t"));
        assert!(load_text(&LEAST.replace("'public.t'", "")).is_err(), "no table at all");
    }

    #[test]
    fn a_layout_is_one_of_a_listed_table() {
        let layout = |name: &str| format!("{LEAST}\n[layout.'{name}']\npartition_by = 'day(at)'");
        let (config, _) = load_text(&layout("public.t")).unwrap();
        let TableSelection::Listed(tables) = config.tables else { panic!("no list") };
        assert_eq!((tables[0].layout.partition_by.as_str(), tables[0].layout.sort_by.as_str()), ("day(at)", ""));
        let error = load_text(&layout("t")).unwrap_err();
        assert!(error.report().contains("\"t\"") && error.hint().is_some(), "{}", error.report());
    }

    #[test]
    fn a_history_is_one_of_a_listed_table() {
        let (config, _) = load_text(&format!("history = ['public.t']\n{LEAST}")).unwrap();
        let TableSelection::Listed(tables) = config.tables else { panic!("no list") };
        assert!(tables[0].history);
        let error = load_text(&format!("history = ['t']\n{LEAST}")).unwrap_err();
        assert!(error.report().contains("\"t\" is in history") && error.hint().is_some());
    }

    #[test]
    fn a_catalog_elsewhere_is_read_and_its_contradictions_are_refused() {
        let read =
            |section: &str| load_text(&format!("{LEAST}[catalog]\n{section}\n")).map(|(config, _)| config.lake.catalog);
        assert!(matches!(load_text(LEAST).unwrap().0.lake.catalog, CatalogConfig::Source));
        let jdbc = "type = 'jdbc'\nhost = '/tmp'\ndatabase = 'c'\nuser = 'u'";
        let CatalogConfig::Jdbc(found) = read(jdbc).unwrap() else { panic!("not jdbc") };
        assert_eq!((&*found.schema, &*found.name, found.port), ("public", "lake", 5432));
        let rest = "type = 'rest'\nuri = 'https://c.example/api'\nwarehouse = 'w'";
        for (more, auth) in [
            ("", "None"),
            ("credential_file = '/c'", "OAuth2"),
            ("token_file = '/t'", "Bearer"),
            ("sigv4_region = 'eu-1'", "SigV4"),
            ("sigv4_region = 'eu-1'\ncredential_file = '/c'", "SigV4"),
        ] {
            let CatalogConfig::Rest(found) = read(&format!("{rest}\n{more}")).unwrap() else { panic!("not rest") };
            assert_eq!(format!("{:?}", found.auth), auth, "{more}");
            assert!(!found.vended_credentials);
        }
        let vending = read(&format!("{rest}\nvended_credentials = true"));
        assert!(matches!(vending, Ok(CatalogConfig::Rest(found)) if found.vended_credentials));
        for (section, named) in [
            (format!("{rest}\ntoken_file = '/t'\ncredential_file = '/c'"), "two ways"),
            (rest.replace("https", "http"), "encrypted"),
            (jdbc.replace("/tmp", "db.example"), "encrypted"),
            (jdbc.replace("user = 'u'", ""), "catalog.user"),
            ("type = 'rest'".to_owned(), "catalog.uri"),
            (format!("{rest}\nschema = 's'"), "catalog.schema"),
            (format!("{jdbc}\nscope = 's'"), "catalog.scope"),
            (format!("{jdbc}\nvended_credentials = true"), "catalog.vended_credentials"),
            ("type = 'hadoop'\nuri = 'https://c.example'".to_owned(), "catalog.uri"),
            ("type = 'hadoop'\ninsecure = true".to_owned(), "catalog.insecure"),
        ] {
            let error = read(&section).unwrap_err();
            assert!(error.report().contains(named) && error.hint().is_some(), "{section}: {}", error.report());
        }
        assert!(read(&format!("{}\ninsecure = true", rest.replace("https", "http"))).is_ok());
        assert!(matches!(read("type = 'hadoop'"), Ok(CatalogConfig::Files)));
        assert!(read("type = 'hive'").is_err());
    }

    #[test]
    fn sizes_and_bad_slots() {
        assert_eq!(bytes("64MiB"), Some(64 << 20));
        assert_eq!(bytes("5 KiB"), Some(5120));
        assert_eq!(bytes("x"), None);
        assert_eq!(bytes("99999999999GiB"), None);
        let bad = LEAST.replace("user = 'u'", "user = 'u'\nslot = 'A-b'");
        assert!(load_text(&bad).unwrap_err().report().contains("A-b"));
    }

    #[test]
    fn a_secret_is_never_shown() {
        let (mut config, _) = load_text(LEAST).unwrap();
        config.source.password = Some(Secret::new("hunter2"));
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
