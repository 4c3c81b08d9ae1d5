//! The state of a session, and the loop.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::FutureExt;
use iceberg_writer::{Lsn, SqlCatalog, Warehouse};
use pgwire_replication::{ReplicationClient, ReplicationEvent};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::Result;
use crate::config::EngineConfig;
use crate::decode::message::Relation;
use crate::error::{Error, ErrorKind};
use crate::serve::{Ask, Leases, Pulse};
use crate::source::connect;
use crate::table::{IndexStore, MirroredTable};

use super::answer::Waiter;
use super::apply::Change;
use super::copying::{CopyMessage, Copying};
use super::partitions::Trees;

/// How often the registry is looked at for tables that came or went.
const REGISTRY_POLL: Duration = Duration::from_millis(500);
/// How often time-outs and commit intervals are looked at.
const TICK: Duration = Duration::from_millis(50);
/// Messages taken from the stream before anything else gets a turn.
const STREAM_BURST: usize = 1024;
/// Changes of tables under copy that may wait in memory; past it the stream waits for the copies.
pub(super) const COPY_BACKLOG_BYTES: usize = 256 << 20;

/// A mirrored table, whatever its state.
pub(super) struct Table {
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) entry: Entry,
}

pub(super) enum Entry {
    Copying(Box<Copying>),
    Streaming(Box<Streaming>),
    Errored { reason: String, hint: Option<String> },
}

/// A table that follows the stream.
pub(super) struct Streaming {
    pub(super) table: MirroredTable,
    /// Transactions whose commit record begins before this are in the table already.
    pub(super) replay_from: Lsn,
    /// The newest description of it in the stream was compared with what the mirror knows.
    pub(super) checked: bool,
    /// By that description, updates and deletes say which row they mean.
    pub(super) identified: bool,
    /// The copy's end, until the registry knows of it.
    pub(super) unregistered_copy: Option<(Lsn, u64)>,
    pub(super) copied_rows: u64,
    pub(super) last_commit_us: Option<i64>,
}

impl Streaming {
    pub(super) fn new(table: MirroredTable, replay_from: Lsn) -> Self {
        let (checked, identified) = (false, false);
        Self { table, replay_from, checked, identified, unregistered_copy: None, copied_rows: 0, last_commit_us: None }
    }
}

impl Table {
    pub(super) fn new(schema: String, name: String, entry: Entry) -> Self {
        Self { schema, name, entry }
    }

    pub(super) fn errored(reason: String, hint: Option<String>) -> Self {
        Self { schema: String::new(), name: String::new(), entry: Entry::Errored { reason, hint } }
    }
}

/// The transaction whose changes are arriving.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpenTransaction {
    /// Where its commit record begins.
    pub(super) commit_lsn: Lsn,
    /// Microseconds since 1970, by the source's clock.
    pub(super) commit_time_us: i64,
}

pub(super) struct Session {
    pub(super) config: Arc<EngineConfig>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) control: Client,
    pub(super) catalog: Arc<SqlCatalog>,
    pub(super) warehouse: Arc<Warehouse>,
    pub(super) store: IndexStore,
    pub(super) stream: ReplicationClient,
    pub(super) epoch: i64,
    pub(super) tables: HashMap<u32, Table>,
    /// The newest description of each table in the stream.
    pub(super) relations: HashMap<u32, Relation>,
    /// What is known of the partitions of partitioned tables.
    pub(super) trees: Trees,
    pub(super) leases: Leases,
    /// End of what the source has sent.
    pub(super) received: Lsn,
    /// Every transaction before it is applied. Moves at transactions' ends only.
    pub(super) applied: Lsn,
    /// What `mirrors.lsn` says.
    pub(super) committed: Lsn,
    pub(super) open: Option<OpenTransaction>,
    /// When the oldest change that is not committed was applied, and its commit time at the source.
    pub(super) oldest_pending: Option<(Instant, i64)>,
    /// The source's clock, as of its last message: microseconds since 1970.
    pub(super) source_now_us: i64,
    pub(super) last_commit: Instant,
    pub(super) waiters: Vec<Waiter>,
    pub(super) copies_in: mpsc::Sender<CopyMessage>,
    pub(super) copies: mpsc::Receiver<CopyMessage>,
    /// Tells the indexes of a table that was mirrored, unmirrored and mirrored again apart.
    pub(super) generation: u64,
    /// The control connection's task.
    connection: Option<JoinHandle<()>>,
    pub(super) sweeping: Option<JoinHandle<()>>,
    /// Tables whose failure the registry does not know yet. No commit may pass them by.
    pub(super) failures: Vec<(u32, Error)>,
}

impl Session {
    #[expect(clippy::too_many_arguments, reason = "called once, by start.rs, with the parts it has just made")]
    pub(super) fn new(
        config: Arc<EngineConfig>,
        pulse: Arc<Pulse>,
        control: Client,
        catalog: Arc<SqlCatalog>,
        warehouse: Arc<Warehouse>,
        store: IndexStore,
        stream: ReplicationClient,
        leases: Leases,
        epoch: i64,
        begin: Lsn,
    ) -> Self {
        let (copies_in, copies) = mpsc::channel(1);
        Self {
            config,
            pulse,
            control,
            catalog,
            warehouse,
            store,
            stream,
            epoch,
            tables: HashMap::new(),
            relations: HashMap::new(),
            trees: Trees::default(),
            leases,
            received: begin,
            applied: begin,
            committed: begin,
            open: None,
            oldest_pending: None,
            source_now_us: 0,
            last_commit: Instant::now(),
            waiters: Vec::new(),
            copies_in,
            copies,
            generation: 0,
            sweeping: None,
            connection: None,
            failures: Vec::new(),
        }
    }

    pub(super) fn with_tables(
        mut self,
        tables: HashMap<u32, Table>,
        trees: Trees,
        copies_in: mpsc::Sender<CopyMessage>,
        copies: mpsc::Receiver<CopyMessage>,
    ) -> Self {
        (self.tables, self.trees, self.copies_in, self.copies) = (tables, trees, copies_in, copies);
        self
    }

    /// Names the task of the control connection, with which the session ends.
    pub(super) fn with_connection(mut self, connection: JoinHandle<()>) -> Self {
        self.connection = Some(connection);
        self
    }

    /// Streams until asked to stop.
    ///
    /// A server that shuts down ends its ordinary connections first, and then waits until the replication stream has
    /// acknowledged everything: which nobody could do, for the acknowledgement has to be recorded in that very server.
    /// So the session lets go of the stream the moment its control connection ends, even in the middle of a commit,
    /// whose fate the next session's claim finds out.
    ///
    /// # Errors
    /// Whatever ends the session.
    pub(super) async fn run(
        mut self,
        inbox: &mut mpsc::Receiver<Ask>,
        shutdown: &mut watch::Receiver<bool>,
    ) -> Result<()> {
        let connection = self.connection.take();
        let lost = async {
            match connection {
                // However the task ended, the connection is gone.
                Some(connection) => drop(connection.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = self.follow(inbox, shutdown) => ended,
            () = lost => Err(Error::new(ErrorKind::SourceUnreachable, "the source ended the control connection")),
        }
    }

    async fn follow(mut self, inbox: &mut mpsc::Receiver<Ask>, shutdown: &mut watch::Receiver<bool>) -> Result<()> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut poll = tokio::time::interval(REGISTRY_POLL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.pulse.turn();
            let paused = self.copy_backlog() > COPY_BACKLOG_BYTES;
            tokio::select! {
                biased;
                () = super::asked_to_stop(shutdown) => {
                    self.abort_copies();
                    self.stream.stop();
                    return Ok(());
                }
                ask = inbox.recv() => match ask {
                    Some(ask) => self.asked(ask)?,
                    None => return Ok(()),
                },
                message = self.copies.recv() => if let Some(message) = message {
                    self.copied(message)?;
                },
                _ = tick.tick() => {
                    self.expire_waiters();
                    if self.open.is_none() {
                        self.adopt_copies().await?;
                        if self.commit_is_due() {
                            self.flush().await?;
                        }
                        self.answer_waiters()?;
                    }
                }
                _ = poll.tick() => self.poll_registry().await?,
                event = self.stream.recv(), if !paused => self.burst(event).await?,
            }
        }
    }

    /// Takes an event and those that are waiting behind it.
    async fn burst(
        &mut self,
        first: std::result::Result<Option<ReplicationEvent>, pgwire_replication::PgWireError>,
    ) -> Result<()> {
        let mut next = Some(first);
        for _ in 0..STREAM_BURST {
            let Some(event) = next.take() else { break };
            let event = event.map_err(|error| connect::transport(&error, "read the replication stream"))?;
            let Some(event) = event else {
                return Err(Error::new(ErrorKind::SourceUnreachable, "the source ended the replication stream"));
            };
            self.take_event(event).await?;
            next = self.stream.recv().now_or_never();
        }
        // An event that was fetched and does not fit the burst any more.
        if let Some(event) = next {
            let event = event.map_err(|error| connect::transport(&error, "read the replication stream"))?;
            if let Some(event) = event {
                self.take_event(event).await?;
            }
        }
        if self.open.is_none() {
            self.adopt_copies().await?;
            if self.pending_bytes() >= self.config.commit.max_bytes {
                self.flush().await?;
            }
            self.answer_waiters()?;
        } else {
            self.make_room().await?;
        }
        Ok(())
    }

    async fn take_event(&mut self, event: ReplicationEvent) -> Result<()> {
        let epoch_us = pgwire_replication_epoch();
        match event {
            ReplicationEvent::Begin { final_lsn, commit_time_micros, .. } => {
                self.open = Some(OpenTransaction {
                    commit_lsn: Lsn::from_u64(final_lsn.as_u64()),
                    commit_time_us: commit_time_micros.saturating_add(epoch_us),
                });
            }
            ReplicationEvent::XLogData { data, .. } => {
                let message = crate::decode::message::parse(&data)?;
                if let Some(change) = Change::new(message) {
                    self.apply(change).await?;
                }
            }
            ReplicationEvent::Commit { end_lsn, commit_time_micros, .. } => {
                let end = Lsn::from_u64(end_lsn.as_u64());
                self.open = None;
                self.received = self.received.max(end);
                self.applied = self.applied.max(end);
                self.source_now_us = self.source_now_us.max(commit_time_micros.saturating_add(epoch_us));
            }
            ReplicationEvent::KeepAlive { wal_end, server_time_micros, .. } => {
                let end = Lsn::from_u64(wal_end.as_u64());
                self.source_now_us = server_time_micros.saturating_add(epoch_us);
                self.received = self.received.max(end);
                // Everything that committed before it has been sent, unless a transaction is just arriving.
                if self.open.is_none() {
                    self.applied = self.applied.max(end);
                }
            }
            // Logical messages are the application's; a stop position was never set.
            ReplicationEvent::Message { .. } | ReplicationEvent::StoppedAt { .. } => {}
        }
        Ok(())
    }

    pub(super) fn pending_bytes(&self) -> u64 {
        self.streaming().map(|streaming| streaming.table.pending_bytes() as u64).sum()
    }

    pub(super) fn streaming(&self) -> impl Iterator<Item = &Streaming> {
        self.tables.values().filter_map(|table| match &table.entry {
            Entry::Streaming(streaming) => Some(&**streaming),
            Entry::Copying(_) | Entry::Errored { .. } => None,
        })
    }

    /// Stops a table, and only that one (I6). The registry hears of it before the next commit.
    pub(super) fn fail_table(&mut self, relation: u32, error: Error) {
        tracing::error!(
            table = relation,
            lsn = %self.applied,
            error = %error.report(),
            hint = error.hint().unwrap_or(""),
            "the table stops; the others stream on"
        );
        if let Some(table) = self.tables.get_mut(&relation) {
            let stopped = Entry::Errored { reason: error.report(), hint: error.hint().map(str::to_owned) };
            let entry = std::mem::replace(&mut table.entry, stopped);
            self.discard_entry(entry);
        }
        self.failures.push((relation, error));
    }

    fn abort_copies(&self) {
        for table in self.tables.values() {
            if let Entry::Copying(copying) = &table.entry {
                copying.abort();
            }
        }
    }

    fn copy_backlog(&self) -> usize {
        self.tables
            .values()
            .map(|table| match &table.entry {
                Entry::Copying(copying) => copying.backlog_bytes,
                Entry::Streaming(_) | Entry::Errored { .. } => 0,
            })
            .sum()
    }
}

/// Microseconds from 1970 to 2000, where Postgres's clock starts.
fn pgwire_replication_epoch() -> i64 {
    946_684_800_000_000
}

/// Rows copied so far, shared with the copying task.
pub(super) type CopiedRows = Arc<AtomicU64>;
