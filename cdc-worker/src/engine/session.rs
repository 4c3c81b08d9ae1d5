//! The state of a session, and the loop.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use iceberg_writer::{Lsn, MirrorCatalog, Warehouse};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::Result;
use crate::assemble::Assembler;
use crate::config::EngineConfig;
use crate::decode::message::{Commit, Relation};
use crate::error::{Error, ErrorKind};
use crate::registry::RegisteredTable;
use crate::serve::{Ask, Leases, Pulse};
use crate::source::replication::{WalMessage, WalStream};
use crate::source::shape::Looks;
use crate::spool::SpoolDirectory;
use crate::table::IndexStore;

use super::answer::Waiter;
use super::copying::CopyMessage;
use super::entry::{Entry, Streaming, Table};
use super::foreign_tables::ForeignTables;
use super::intake::Running;
use super::maintenance::Maintenance;
use super::partitions::Trees;
use super::replay::Replays;
use super::stream_format::StreamFormat;
use super::sweeping::Sweeper;

/// How often the registry is looked at for tables that came or went.
const REGISTRY_POLL: Duration = Duration::from_millis(500);
/// Looking takes at most one part in so many of the time.
const REGISTRY_SHARE: u32 = 20;
/// How often time-outs and commit intervals are looked at.
const TICK: Duration = Duration::from_millis(50);

pub(super) struct Session {
    pub(super) config: Arc<EngineConfig>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) control: Client,
    pub(super) catalog: Arc<MirrorCatalog>,
    pub(super) warehouse: Arc<Warehouse>,
    pub(super) store: IndexStore,
    pub(super) spools: SpoolDirectory,
    pub(super) stream: WalStream,
    pub(super) format: StreamFormat,
    /// Messages that came and have not been looked at.
    pub(super) unread: VecDeque<WalMessage>,
    pub(super) assembler: Assembler,
    /// What has come of transactions that still run, by their number.
    pub(super) running: HashMap<u32, Running>,
    /// Transactions that came while they ran, have committed, and are being applied.
    pub(super) replays: Replays,
    pub(super) epoch: i64,
    pub(super) tables: HashMap<u32, Table>,
    /// Those of them that may have changes which Iceberg has not got. In a mirror of a thousand tables few have.
    pub(super) changed: HashSet<u32>,
    /// Those that are catching up, or were a moment ago.
    pub(super) behind: Vec<u32>,
    /// The newest description of each table in the stream.
    pub(super) relations: HashMap<u32, Relation>,
    /// How the catalog is looked at for tables' columns.
    pub(super) looks: Looks,
    pub(super) looked_at_columns: Instant,
    /// What the messages of the extension's event trigger name, to be told from others'. `None`: there is none.
    pub(super) ddl_secret: Option<String>,
    /// How `lake.<table>` follows.
    pub(super) foreign_tables: ForeignTables,
    /// Tables of which the catalog is ahead of the stream.
    pub(super) ahead: Vec<u32>,
    /// What is known of the partitions of partitioned tables.
    pub(super) trees: Trees,
    pub(super) leases: Leases,
    /// End of what the source has sent.
    pub(super) received: Lsn,
    /// Every transaction before it is applied. Moves at transactions' ends only.
    pub(super) applied: Lsn,
    /// Every transaction before it has been taken from the stream. Less than `applied` only at first, where the stream
    /// begins earlier for the sake of copies that go on.
    pub(super) followed: Lsn,
    /// WAL that copies may hold back.
    pub(super) held_wal: u64,
    /// What `mirrors.lsn` says.
    pub(super) committed: Lsn,
    /// The transaction whose changes are being applied.
    pub(super) open: Option<Commit>,
    /// When the oldest change that is not committed was applied, and its commit time at the source.
    pub(super) oldest_pending: Option<(Instant, i64)>,
    /// The source's clock, as of its last message: microseconds since 1970.
    pub(super) source_now_us: i64,
    pub(super) last_commit: Instant,
    /// A commit is due at the end of the open transaction.
    pub(super) commit_due: bool,
    pub(super) waiters: Vec<Waiter>,
    pub(super) copies_in: mpsc::Sender<CopyMessage>,
    pub(super) copies: mpsc::Receiver<CopyMessage>,
    /// Tables whose copy has not begun.
    pub(super) wanted: VecDeque<RegisteredTable>,
    /// Tells the copies of a table that was mirrored, unmirrored and mirrored again apart.
    pub(super) generation: u64,
    /// The control connection's task.
    connection: Option<JoinHandle<()>>,
    pub(super) sweeper: Sweeper,
    pub(super) looked_for_strays: Instant,
    pub(super) maintenance: Maintenance,
    /// Tables whose failure the registry does not know yet. No commit may pass them by.
    pub(super) failures: Vec<(u32, Error)>,
}

impl Session {
    #[expect(clippy::too_many_arguments, reason = "called once, by start.rs, with the parts it has just made")]
    pub(super) fn new(
        config: Arc<EngineConfig>,
        pulse: Arc<Pulse>,
        control: Client,
        catalog: Arc<MirrorCatalog>,
        warehouse: Arc<Warehouse>,
        store: IndexStore,
        spools: SpoolDirectory,
        (stream, format): (WalStream, StreamFormat),
        leases: Leases,
        epoch: i64,
        begin: Lsn,
        followed: Lsn,
        held_wal: u64,
    ) -> Self {
        let (copies_in, copies) = mpsc::channel(1);
        let sweeper = Sweeper::new(Arc::clone(&catalog), leases.clone());
        Self {
            config,
            pulse,
            control,
            catalog,
            warehouse,
            store,
            replays: Replays::new(spools.spool()),
            spools,
            stream,
            format,
            unread: VecDeque::new(),
            assembler: Assembler::default(),
            running: HashMap::new(),
            epoch,
            tables: HashMap::new(),
            changed: HashSet::new(),
            behind: Vec::new(),
            relations: HashMap::new(),
            looks: Looks::default(),
            looked_at_columns: Instant::now(),
            ddl_secret: None,
            foreign_tables: ForeignTables::default(),
            ahead: Vec::new(),
            trees: Trees::default(),
            leases,
            received: begin,
            applied: begin,
            followed,
            held_wal,
            committed: begin,
            open: None,
            oldest_pending: None,
            source_now_us: 0,
            last_commit: Instant::now(),
            commit_due: false,
            waiters: Vec::new(),
            copies_in,
            copies,
            wanted: VecDeque::new(),
            generation: 0,
            sweeper,
            looked_for_strays: Instant::now(),
            maintenance: Maintenance::default(),
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
        tables.keys().for_each(|relation| self.maintenance.look_at(*relation));
        (self.tables, self.trees, self.copies_in, self.copies) = (tables, trees, copies_in, copies);
        // Deletes that another engine's compaction has left are merged without waiting for the next change.
        let dangling = |streaming: &&Streaming| streaming.table.has_dangling_deletes();
        let dangling: Vec<u32> = self.streaming().filter(dangling).map(|streaming| streaming.table.relation).collect();
        if !dangling.is_empty() {
            self.changed.extend(dangling);
            self.maintenance.waiting_since = Some(Instant::now());
        }
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
            let busy = self.has_work();
            tokio::select! {
                biased;
                () = super::asked_to_stop(shutdown) => {
                    self.abort_copies();
                    return Ok(());
                }
                ask = inbox.recv() => match ask {
                    Some(ask) => self.asked(ask)?,
                    None => return Ok(()),
                },
                message = self.copies.recv() => if let Some(message) = message {
                    self.copy_says(message).await?;
                    self.begin_copies().await?;
                },
                done = self.maintenance.done.recv() => if let Some(done) = done {
                    self.maintained(done)?;
                },
                _ = tick.tick() => {
                    self.expire_waiters();
                    self.commit_due = self.commit_is_due();
                    if self.open.is_none() {
                        self.catch_up().await?;
                        self.follow_catalog().await?;
                        if self.commit_due && self.is_settled() {
                            self.flush().await?;
                        }
                        self.answer_waiters()?;
                        self.maintain()?;
                        self.look_for_strays_in_time();
                    }
                }
                _ = poll.tick() => {
                    let begun = Instant::now();
                    self.poll_registry().await?;
                    self.follow_foreign_tables().await?;
                    // A look at a thousand tables takes a while; it must not be what the source is busy with.
                    poll.reset_after(REGISTRY_POLL.max(begun.elapsed() * REGISTRY_SHARE));
                }
                received = self.stream.recv(), if self.unread.is_empty() => match received? {
                    Some(messages) => {
                        self.unread.extend(messages);
                        self.advance().await?;
                    }
                    None => {
                        return Err(Error::new(ErrorKind::SourceUnreachable, "the source ended the replication stream"));
                    }
                },
                () = tokio::task::yield_now(), if busy => self.advance().await?,
            }
        }
    }

    pub(super) fn streaming(&self) -> impl Iterator<Item = &Streaming> {
        self.tables.values().filter_map(|table| match &table.entry {
            Entry::Streaming(streaming) => Some(&**streaming),
            Entry::Copying(_) | Entry::CatchingUp(_) | Entry::Errored { .. } => None,
        })
    }

    /// Stops a table, and only that one (I6). The registry hears of it before the next commit.
    pub(super) fn fail_table(&mut self, relation: u32, error: Error) {
        if let Some(entry) = self.leave_table(relation, error) {
            self.discard_entry(entry);
        }
    }

    /// Stops a table, of whose files Iceberg may have some: none is touched.
    pub(super) fn leave_table(&mut self, relation: u32, error: Error) -> Option<Entry> {
        tracing::error!(
            table = self.shown(relation),
            lsn = %self.applied,
            error = %error.report(),
            hint = error.hint().unwrap_or(""),
            "the table stops; the others stream on"
        );
        let stopped = Entry::Errored { reason: error.report(), hint: error.hint().map(str::to_owned) };
        self.failures.push((relation, error));
        self.tables.get_mut(&relation).map(|table| std::mem::replace(&mut table.entry, stopped))
    }

    /// What the log calls a table.
    pub(super) fn shown(&self, relation: u32) -> String {
        match self.tables.get(&relation) {
            Some(table) => format!("{}.{}", table.schema, table.name),
            None => format!("with oid {relation}"),
        }
    }

    fn abort_copies(&self) {
        for table in self.tables.values() {
            if let Entry::Copying(copying) = &table.entry {
                copying.abort();
            }
        }
    }
}
