//! From nothing to streaming: claim the mirror, make sure that nothing was skipped, rebuild the tables.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use iceberg_writer::{Catalog, LakeTable, LiveFile, Lsn, MirrorCatalog, TableSpec, Warehouse};
use tokio::sync::mpsc;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::Result;
use crate::config::{EngineConfig, ListedTable, TableSelection};
use crate::error::{COPY_ANEW, Error, ErrorKind};
use crate::registry::{self, RegisteredTable, TableState, WantedTable};
use crate::serve::{Leases, Pulse};
use crate::source::copy::progress::Abandoned;
use crate::source::older::{self, OlderTransactions};
use crate::source::partitions::Links;
use crate::source::relation::Wanted;
use crate::source::replication::{ReplicationSession, ValueFormat, WalStream};
use crate::source::{connect, layout, preflight, publication, relation, sending, shape, slot};
use crate::spool::SpoolDirectory;
use crate::stored_keys::each_stored_key;
use crate::table::{FileState, IndexStore, IndexWriter, MirroredTable, Position, PositionIndex, RowIdentity, remark};

use super::catalog;
use super::columns::{Columns, key_numbers};
use super::entry::{Entry, Streaming, Table};
use super::histories;
use super::partitions::Trees;
use super::session::Session;
use super::stream_format::StreamFormat;

/// How long the slot may stay in the hands of a walsender whose client is gone: it notices when it next writes.
const SLOT_PATIENCE: Duration = Duration::from_secs(10);
const SLOT_POLL: Duration = Duration::from_millis(100);
/// Messages of copies to the loop: one a table when it is done.
const COPY_QUEUE: usize = 16;

impl Session {
    /// Starts a session. The first of a process enters the configured list of tables; later ones find it in the registry,
    /// where `cdc-worker mirror` may have changed it meanwhile.
    ///
    /// # Errors
    /// Anything that keeps the mirror from streaming, with its remedy.
    pub(super) async fn start(
        config: &Arc<EngineConfig>,
        pulse: &Arc<Pulse>,
        leases: &Leases,
        first: bool,
    ) -> Result<Self> {
        let source = &config.source;
        connect::check(source)?;
        let warehouse = Arc::new(catalog::open_warehouse(config).await?);
        let (control, connection) = connect::watched(source, "lake engine").await?;
        preflight::refuse(preflight::findings(&control, config).await?)?;
        if first {
            preflight::warnings(&control).await?.iter().for_each(|warning| tracing::warn!("{warning}"));
        }
        registry::ensure_schema(&control, &config.lake.catalog_schema).await?;
        let system_id = ReplicationSession::connect(source, "lake engine").await?.system_id().await?;
        let registry = config.registry(&control);
        let epoch = registry.claim(source, &system_id).await?;
        if let Err(error) = slot::end_copies(&control, source).await {
            tracing::warn!(error = %error.report(), "could not end the copies of an earlier worker");
        }
        if let (TableSelection::Listed(tables), true) = (&config.tables, first) {
            list(config, &control, tables).await?;
        }
        let catalog = Arc::new(catalog::open(config, &warehouse).await?);
        let recovered = catalog::recover(config, &control, &catalog, epoch).await?;
        let begin = resume_at(config, &control, recovered.lsn).await?;
        if let Err(error) = slot::set_failover(&control, source).await {
            tracing::warn!(error = %error.report(), "the slot stays as it is on standbys until the next start");
        }
        tracing::info!(mirror = config.mirror, epoch, lsn = %begin, "claimed the mirror");
        let store = IndexStore::create(&config.state_dir.join("index"))?;
        let mut tables = HashMap::new();
        let mut trees = Trees::default();
        let mut interrupted = Vec::new();
        for registered in registry.tables().await? {
            let relation = registered.relation;
            let remembered = Links::from_text(registered.partitions.as_deref());
            match reload(config, &control, &catalog, &warehouse, &store, &registered, begin).await? {
                Reloaded::Table(table) => {
                    if let (Entry::Streaming(_), Some(links)) = (&table.entry, remembered) {
                        trees.know(relation, links);
                    }
                    tables.insert(relation, table);
                }
                Reloaded::Interrupted(copy) => interrupted.push((registered, copy)),
                Reloaded::Wanted => {}
            }
        }
        let spools = SpoolDirectory::create(config.state_dir.join("spool"))?;
        // Where the copies that go on need changes of before, the stream begins there. The tables that stream leave out what
        // they have.
        let followed = interrupted.iter().filter_map(|(_, copy)| copy.from()).fold(begin, Lsn::min);
        let format = StreamFormat::for_tables(tables.values(), sending::format(&control, &source.publication).await?);
        let stream = follow_from(config, followed, followed, format.values()).await?;
        let ddl_secret = shape::ddl_secret(&control, &config.lake.catalog_schema).await?;
        let held_wal = slot::held_wal(&control, config.copy.held_wal).await?;
        let (copies_in, copies) = mpsc::channel(COPY_QUEUE);
        let mut session = Self::new(
            Arc::clone(config),
            Arc::clone(pulse),
            control,
            catalog,
            warehouse,
            store,
            spools,
            (stream, format),
            leases.clone(),
            epoch,
            begin,
            followed,
            held_wal,
        )
        .with_tables(tables, trees, copies_in, copies)
        .with_connection(connection);
        session.ddl_secret = ddl_secret;
        session.look_for_strays();
        // Before the first message is taken: it may be theirs.
        for (registered, copy) in interrupted {
            session.begin_copy(registered, Some(copy)).await?;
        }
        Ok(session)
    }
}

/// Starts the replication stream at `begin`; what is kept elsewhere ends at `acknowledged`. The walsender of a worker that has
/// just ended holds the slot until it notices.
pub(super) async fn follow_from(
    config: &EngineConfig,
    begin: Lsn,
    acknowledged: Lsn,
    values: ValueFormat,
) -> Result<WalStream> {
    let deadline = tokio::time::Instant::now() + SLOT_PATIENCE;
    loop {
        let session = ReplicationSession::connect(&config.source, "lake engine").await?;
        match session.start(&config.source, begin, acknowledged, values).await {
            Err(error) if error.kind() == ErrorKind::AlreadyRunning && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(SLOT_POLL).await;
            }
            started => return started,
        }
    }
}

/// Enters the configured tables into the registry. A new one that cannot be mirrored stops the start, for the person who
/// wrote the list is there to read why; one that the mirror has already stops alone (I6), when its turn comes.
pub(crate) async fn list(config: &EngineConfig, control: &Client, tables: &[ListedTable]) -> Result<()> {
    let registered = config.registry(control).tables().await?;
    let mut relations = Vec::with_capacity(tables.len());
    for table in tables {
        let relation = relation::resolve(control, &table.name).await?;
        let known = registered.iter().find(|known| known.relation == relation);
        let layout = match (layout::listed(control, relation, &config.source.publication, table).await, known) {
            (Ok(layout), _) => layout,
            // A column has got another name, say: that is no reason not to go on.
            (Err(error), Some(known)) if error.kind() == ErrorKind::Config => {
                tracing::warn!(table = table.name, error = %error.report(), "the table stays laid out as it is");
                known.layout.clone()
            }
            (Err(error), _) => return Err(error),
        };
        relations.push(WantedTable { relation, append_only: table.append_only, history: table.history, layout });
        if let Some(known) = known {
            if known.history || !table.history {
                continue;
            }
            tracing::info!(table = table.name, "the table is copied anew, for its history begins with a copy");
        }
        let wanted = Wanted { history: table.history, ..Wanted::new(&config.source.publication, table.append_only) };
        relation::describe(control, relation, wanted).await.map_err(Error::of_the_source)?;
        publication::check(control, relation, config).await.map_err(Error::of_the_source)?;
    }
    config.registry(control).list(&relations).await
}

/// Where streaming goes on, and the proof that nothing before it was skipped.
///
/// `START_REPLICATION` below the slot's `confirmed_flush_lsn` silently skips what lies between (I2, I3), so a slot that
/// stands past the recorded position is refused.
async fn resume_at(config: &EngineConfig, control: &Client, recorded: Option<Lsn>) -> Result<Lsn> {
    let (source, registry) = (&config.source, config.registry(control));
    let found = slot::find(control, source).await?;
    let name = &source.slot;
    match (recorded, found) {
        (Some(recorded), Some(state)) => match state.confirmed_flush {
            Some(confirmed) if confirmed > recorded => Err(Error::new(
                ErrorKind::Slot,
                format!("slot \"{name}\" stands at {confirmed}, past {recorded} where the lake is: changes were skipped"),
            )
            .with_hint(
                "somebody advanced or read the slot; `cdc-worker teardown` (or lake.unmirror on every table), then mirror \
                 again: the tables are copied anew",
            )),
            _ => Ok(recorded),
        },
        (Some(recorded), None) => {
            let copied = registry.tables().await?.iter().any(|table| table.state == TableState::Streaming);
            if copied {
                return Err(Error::new(
                    ErrorKind::Slot,
                    format!("slot \"{name}\" is gone, and with it the changes after {recorded}"),
                )
                .with_hint(
                    "`cdc-worker teardown` (or lake.unmirror on every table), then mirror again: the tables are copied anew",
                ));
            }
            begin(config, control).await
        }
        (None, Some(_)) => {
            // Made by a worker that died before it could record it: nothing was ever built on it.
            slot::drop(control, source).await?;
            begin(config, control).await
        }
        (None, None) => begin(config, control).await,
    }
}

async fn begin(config: &EngineConfig, control: &Client) -> Result<Lsn> {
    let registry = config.registry(control);
    registry.begin_at(None).await?;
    let made = slot::create(&config.source);
    let point = older::while_made(&config.source, "the mirror's slot", &OlderTransactions::default(), made).await?;
    registry.begin_at(Some(point)).await?;
    Ok(point)
}

/// What a table of the registry is at the start of a session.
enum Reloaded {
    Table(Table),
    /// Its copy was interrupted, and can go on.
    Interrupted(Abandoned),
    /// Its copy is to begin.
    Wanted,
}

/// A table as the registry left it.
async fn reload(
    config: &EngineConfig,
    control: &Client,
    catalog: &MirrorCatalog,
    warehouse: &Warehouse,
    store: &IndexStore,
    registered: &RegisteredTable,
    begin: Lsn,
) -> Result<Reloaded> {
    let relation = registered.relation;
    if registered.state == TableState::Errored {
        let reason = registered.error.clone().unwrap_or_default();
        let (schema, name) = (registered.schema.clone(), registered.name.clone());
        return Ok(Reloaded::Table(Table::errored(schema, name, reason, registered.error_hint.clone())));
    }
    let wanted = Wanted {
        lake_name: Some(registered.lake_name()),
        publication: &config.source.publication,
        append_only: registered.append_only,
        history: registered.history,
        streams: registered.state == TableState::Streaming,
    };
    let described = match relation::describe(control, relation, wanted).await {
        Ok(described) => described,
        Err(error) if error.kind() == ErrorKind::Table => {
            return stopped(config, control, registered, error, begin).await.map(Reloaded::Table);
        }
        Err(error) => return Err(error),
    };
    let lake = match committed(catalog, &config.mirror, registered, described.spec.clone()).await {
        Ok(lake) => lake,
        Err(error) if error.kind() == ErrorKind::Table => {
            return stopped(config, control, registered, error, begin).await.map(Reloaded::Table);
        }
        Err(error) => return Err(error),
    };
    let lake = lake.map(|lake| lake.laid_out(&registered.layout));
    let Some(lake) = lake else {
        if registered.state == TableState::Streaming {
            let error = Error::new(ErrorKind::Table, "the Iceberg table is gone from the catalog, or was replaced")
                .with_hint(COPY_ANEW);
            return stopped(config, control, registered, error, begin).await.map(Reloaded::Table);
        }
        // Not begun, or not committed: the loop starts the copy (again).
        if let Some(uuid) = registered.table_uuid.filter(|_| registered.state == TableState::Copying) {
            if let Some(copy) = interrupted(config, control, registered, uuid).await? {
                return Ok(Reloaded::Interrupted(copy));
            }
            catalog.discard_prepared(&described.spec, uuid).await?;
            histories::discard_begun(catalog, &described.spec, uuid).await?;
        }
        return Ok(Reloaded::Wanted);
    };
    if described.partitions.is_some() && Links::from_text(registered.partitions.as_deref()).is_none() {
        tracing::info!(table = registered.shown(), "the table is copied anew: its partitions were not remembered");
        config.registry(control).resync(relation).await?;
        return Ok(Reloaded::Wanted);
    }
    if key_numbers(lake.spec()) != key_numbers(&described.spec) {
        tracing::info!(table = registered.shown(), "the table is copied anew: it has another key");
        config.registry(control).resync(relation).await?;
        return Ok(Reloaded::Wanted);
    }
    if registered.state == TableState::Copying {
        config.registry(control).streaming(relation, None).await?;
    }
    let history = match histories::reload(catalog, &config.mirror, registered, lake.spec()).await {
        Ok(history) => history,
        Err(error) if error.kind() == ErrorKind::Table => {
            return stopped(config, control, registered, error, begin).await.map(Reloaded::Table);
        }
        Err(error) => return Err(error),
    };
    let identity = described.identity;
    let index = store.table(identity);
    let files = match build_index(warehouse, &lake, identity, &index).await {
        Ok(files) => files,
        // Rows of a partition that was emptied beside the stream, say, and came again.
        Err(error) if error.kind() == ErrorKind::Table && described.partitions.is_some() => {
            tracing::info!(table = registered.shown(), "the table is copied anew: {}", error.report());
            config.registry(control).resync(relation).await?;
            return Ok(Reloaded::Wanted);
        }
        Err(error) if error.kind() == ErrorKind::Table => {
            return stopped(config, control, registered, error, begin).await.map(Reloaded::Table);
        }
        Err(error) => return Err(error),
    };
    let files = files.into_iter().map(FileState::new).collect();
    let (namespace, name) = registered.lake_name();
    let seen = lake.remarked().and_then(|text| remark::read(text, namespace, name)).map(|(_, seen)| seen);
    let spec = Arc::new(lake.spec().clone());
    let columns = Columns::new(described.projection.columns, seen, config.lake.unrepresentable);
    let mut streaming =
        Streaming::new(MirroredTable::new(relation, spec, identity, lake, files, index), columns, begin);
    streaming.copied_rows = registered.copied_rows;
    streaming.layout = registered.layout.clone();
    streaming.history = history;
    Ok(Reloaded::Table(Table::new(described.schema, described.name, Entry::Streaming(Box::new(streaming)))))
}

/// The Iceberg table that the mirror has committed for a table, if it has.
async fn committed(
    catalog: &MirrorCatalog,
    mirror: &str,
    registered: &RegisteredTable,
    described: TableSpec,
) -> Result<Option<LakeTable>> {
    if matches!(registered.state, TableState::Requested | TableState::Errored) {
        return Ok(None);
    }
    let loaded = async {
        let lake = load(catalog, described).await?;
        let lake = lake.filter(|lake| registered.table_uuid.is_none_or(|uuid| lake.uuid() == uuid));
        if let Some(lake) = &lake {
            catalog.check(lake, mirror).await?;
        }
        Ok::<_, iceberg_writer::Error>(lake)
    };
    match loaded.await {
        Ok(lake) => Ok(lake),
        // An earlier mirror of the table left another one under its name; the copy will replace it.
        Err(error) if error.table().is_some() && registered.state == TableState::Copying => Ok(None),
        // Something is wrong with this table (its columns changed, say), not with the catalog.
        Err(error) if error.table().is_some() => Err(own_failure(&error)),
        Err(error) => Err(error.into()),
    }
}

/// What is done of a copy that was interrupted, if the stream still has all changes since it began.
async fn interrupted(
    config: &EngineConfig,
    control: &Client,
    table: &RegisteredTable,
    uuid: Uuid,
) -> Result<Option<Abandoned>> {
    let Some(copy) = config.registry(control).abandoned_copy(table.relation, uuid).await? else { return Ok(None) };
    let confirmed = slot::find(control, &config.source).await?.and_then(|slot| slot.confirmed_flush);
    let complete = copy.from().is_some_and(|from| confirmed.is_some_and(|confirmed| confirmed <= from));
    let whole = table.is_published_since() && table.sent_whole && !table.dropped;
    Ok(Some(copy).filter(|_| complete && whole))
}

/// The Iceberg table, by the columns that it was committed with, whatever the source's are now.
async fn load(catalog: &MirrorCatalog, described: TableSpec) -> Result<Option<LakeTable>, iceberg_writer::Error> {
    let (namespace, name) = (described.namespace.clone(), described.name.clone());
    catalog.load_remarked(described, &|text| remark::read(text, &namespace, &name).map(|(spec, _)| spec)).await
}

/// A table that cannot go on, and the registry knows it.
async fn stopped(
    config: &EngineConfig,
    control: &Client,
    table: &RegisteredTable,
    error: Error,
    at: Lsn,
) -> Result<Table> {
    tracing::error!(table = table.shown(), lsn = %at, error = %error.report(), "the table stops; the others stream on");
    config.registry(control).errored(table.relation, &error, at).await?;
    let (schema, name) = (table.schema.clone(), table.name.clone());
    Ok(Table::errored(schema, name, error.report(), error.hint().map(str::to_owned)))
}

/// A failure of the lake that is one table's own (I6).
pub(super) fn own_failure(error: &iceberg_writer::Error) -> Error {
    let hint = error.hint().map_or_else(|| COPY_ANEW.to_owned(), |hint| format!("{hint}; {COPY_ANEW}"));
    Error::new(ErrorKind::Table, error.to_string()).with_hint(hint)
}

/// Reads the identity's columns of all files into the index. Deleted rows are left out. Gives the files.
async fn build_index(
    warehouse: &Warehouse,
    lake: &LakeTable,
    identity: RowIdentity,
    index: &PositionIndex,
) -> Result<Vec<LiveFile>> {
    let files = lake.live_files(warehouse).await.map_err(|error| match error.table() {
        Some(_) => own_failure(&error),
        None => error.into(),
    })?;
    if identity == RowIdentity::AppendOnly {
        return Ok(files);
    }
    let mut writer = IndexWriter::of_whole_table(index.clone());
    for (file, live) in files.iter().enumerate() {
        let file =
            u32::try_from(file).map_err(|error| Error::new(ErrorKind::Index, "too many files").with_source(error))?;
        // Both ascend.
        let mut deleted = live.deleted.iter().peekable();
        each_stored_key(warehouse, lake, identity, &live.path, |row, key| {
            if deleted.next_if_eq(&u64::from(row)).is_some() {
                return Ok(());
            }
            writer.put(key, Position { file, row })
        })
        .await?;
    }
    writer.finish()?;
    Ok(files)
}
