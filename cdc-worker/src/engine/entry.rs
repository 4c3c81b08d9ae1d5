//! A session's tables, each in one of the states of its life: copying → catching up → streaming, or errored.

use iceberg_writer::{LakeTable, Layout, Lsn};

use crate::Result;
use crate::decode::message::{Commit, Relation};
use crate::source::copy::KeyReader;
use crate::spool::Spool;
use crate::table::{History, MirroredTable, Pending, WrittenRows};

use super::apply::RowChange;
use super::columns::Columns;
use super::copying::Copying;
use super::maintenance::Upkeep;

/// A mirrored table, whatever its state.
pub(super) struct Table {
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) entry: Entry,
}

pub(super) enum Entry {
    Copying(Box<Copying>),
    CatchingUp(Box<CatchingUp>),
    Streaming(Box<Streaming>),
    Errored { reason: String, hint: Option<String> },
}

impl Entry {
    /// The table, if it is copied and follows the stream, be it with a delay.
    pub(super) fn following(&self) -> Option<&Streaming> {
        match self {
            Self::Streaming(streaming) => Some(streaming),
            Self::CatchingUp(catching_up) => Some(&catching_up.streaming),
            Self::Copying(_) | Self::Errored { .. } => None,
        }
    }

    /// The position that the slot may not pass for its sake.
    pub(super) fn holds(&self) -> Option<Lsn> {
        match self {
            Self::Copying(copying) => copying.holds,
            Self::CatchingUp(catching_up) => catching_up.streaming.holds,
            Self::Streaming(streaming) => streaming.holds,
            Self::Errored { .. } => None,
        }
    }

    /// Lets the slot pass.
    pub(super) fn release(&mut self) {
        match self {
            Self::Copying(copying) => copying.holds = None,
            Self::CatchingUp(catching_up) => catching_up.streaming.holds = None,
            Self::Streaming(streaming) => streaming.holds = None,
            Self::Errored { .. } => {}
        }
    }

    /// [`Self::following`], to be changed.
    pub(super) fn following_mut(&mut self) -> Option<&mut Streaming> {
        match self {
            Self::Streaming(streaming) => Some(streaming),
            Self::CatchingUp(catching_up) => Some(&mut catching_up.streaming),
            Self::Copying(_) | Self::Errored { .. } => None,
        }
    }
}

/// A table whose copy is done, and which applies what the stream brought meanwhile.
pub(super) struct CatchingUp {
    pub(super) streaming: Streaming,
    pub(super) queue: Spool,
    /// From here on changes are exactly those that the copy lacks.
    pub(super) exact_from: Lsn,
    /// Reads rows as of [`Self::exact_from`], until the table has got there.
    pub(super) reader: Option<KeyReader>,
    /// The next change, which has come out of the queue and waits for the catalog to be looked at.
    pub(super) held: Option<(Commit, RowChange)>,
}

/// A table that follows the stream.
pub(super) struct Streaming {
    pub(super) table: MirroredTable,
    /// Where its changes are kept, if they are.
    pub(super) history: Option<Box<History>>,
    /// Transactions whose commit record begins before this are in the table already.
    pub(super) replay_from: Lsn,
    /// Its description in the stream, as of the last change that was applied.
    pub(super) described: Option<Relation>,
    /// What else is known of its columns.
    pub(super) columns: Columns,
    /// Its description was compared with what the mirror knows.
    pub(super) checked: bool,
    /// By that description, updates and deletes say which row they mean.
    pub(super) identified: bool,
    /// The copy's end, until the registry knows of it.
    pub(super) unregistered_copy: Option<(Lsn, u64)>,
    /// Until then the slot may not pass this position: after a restart the copy would go on from there.
    pub(super) holds: Option<Lsn>,
    pub(super) copied_rows: u64,
    pub(super) last_commit_us: Option<i64>,
    pub(super) upkeep: Upkeep,
    /// How it is to be laid out in Iceberg.
    pub(super) layout: Layout,
}

impl Streaming {
    pub(super) fn new(table: MirroredTable, columns: Columns, replay_from: Lsn) -> Self {
        Self {
            table,
            history: None,
            replay_from,
            described: None,
            columns,
            checked: false,
            identified: false,
            unregistered_copy: None,
            holds: None,
            copied_rows: 0,
            last_commit_us: None,
            upkeep: Upkeep::default(),
            layout: Layout::default(),
        }
    }

    /// Memory of changes that Iceberg has not got.
    pub(super) fn pending_bytes(&self) -> u64 {
        let history = self.history.as_ref().map_or(0, |history| history.pending_bytes());
        (self.table.pending_bytes() + history) as u64
    }

    /// What the next commit must bring to its Iceberg tables.
    ///
    /// # Errors
    /// As [`MirroredTable::pending`].
    pub(super) fn pending(&mut self) -> Result<Vec<(LakeTable, Pending)>> {
        let mut pending = Vec::with_capacity(2);
        let expire = self.upkeep.expire;
        if self.table.has_changes() || self.unregistered_copy.is_some() || expire {
            pending.push((self.table.lake.clone(), Pending { expire, ..self.table.pending()? }));
        }
        if let Some(history) = self.history.as_mut().filter(|history| history.has_changes() || expire) {
            pending.push((history.lake.clone(), Pending { expire, ..history.pending()? }));
        }
        Ok(pending)
    }

    /// One of them is in Iceberg as `lake`, its fresh rows in `written`.
    ///
    /// # Errors
    /// As [`MirroredTable::committed`].
    pub(super) fn committed(&mut self, lake: LakeTable, written: &WrittenRows) -> Result<()> {
        match self.history.as_mut().filter(|history| history.lake.uuid() == lake.uuid()) {
            Some(history) => history.committed(lake),
            None => self.table.committed(lake, written)?,
        }
        Ok(())
    }

    /// Whether one of its Iceberg tables has this name.
    pub(super) fn is_named(&self, namespace: &str, name: &str) -> bool {
        let history = self.history.as_ref().map(|history| &history.lake);
        let mut lakes = std::iter::once(&self.table.lake).chain(history);
        lakes.any(|lake| (lake.spec().namespace.as_str(), lake.spec().name.as_str()) == (namespace, name))
    }

    /// Files that hold rows of it and that Iceberg has not got.
    pub(super) fn staged_paths(&self) -> Vec<String> {
        let mut paths = self.table.staged_paths();
        paths.extend(self.history.iter().flat_map(|history| history.staged_paths()));
        paths
    }

    /// The stream describes the table, perhaps otherwise than before.
    pub(super) fn describe(&mut self, described: Relation) {
        self.described = Some(described);
        self.checked = false;
    }

    /// Whether Iceberg has the table at all.
    pub(super) fn is_committed(&self) -> bool {
        self.unregistered_copy.is_none()
    }
}

impl Table {
    pub(super) fn new(schema: String, name: String, entry: Entry) -> Self {
        Self { schema, name, entry }
    }

    pub(super) fn errored(schema: String, name: String, reason: String, hint: Option<String>) -> Self {
        Self { schema, name, entry: Entry::Errored { reason, hint } }
    }
}
