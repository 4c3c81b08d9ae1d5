//! In which format the stream sends values: binary, until a table comes that needs text.
//!
//! pgoutput has one format for all of its tables. Text is what a column is kept as when Iceberg has no type for it
//! (`PgType::TextForm`), and only the source's output functions know it: those of extensions and composites are nowhere
//! else. But printing and parsing every timestamp and every `bytea` of tables that need it not would cost both sides, so a
//! stream is binary as long as it can be.
//!
//! When a table that needs text is mirrored into a running session, the stream begins again in text before the table's
//! copy does: so the table has no change in another format. It begins at `followed`, where every transaction is on one side
//! or the other by the beginning of its commit record: the server skips those before, and they have been applied; of those
//! behind it, what has come already is thrown away, and comes again. Nothing else of the session is touched, indexes and
//! copies under way stay, and what waits for them in spools is read by the format that each value says it has.
//! A session that finds no such table when it starts is binary again.

use crate::Result;
use crate::assemble::Assembler;
use crate::decode::value::needs_text;
use crate::source::replication::ValueFormat;

use super::entry::{Entry, Table};
use super::session::Session;
use super::start::follow_from;

/// The format of a session's stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamFormat {
    values: ValueFormat,
    /// A table waits for text.
    text_wanted: bool,
}

impl StreamFormat {
    /// What tables that stream already need, and what the publication does.
    pub(super) fn for_tables<'a>(mut tables: impl Iterator<Item = &'a Table>, published: ValueFormat) -> Self {
        let text = tables.any(|table| match &table.entry {
            Entry::Streaming(streaming) => needs_text(&streaming.table.spec),
            Entry::Copying(_) | Entry::CatchingUp(_) | Entry::Errored { .. } => false,
        });
        Self { values: if text { ValueFormat::Text } else { published }, text_wanted: false }
    }

    pub(super) fn values(self) -> ValueFormat {
        self.values
    }

    pub(super) fn is_binary(self) -> bool {
        self.values == ValueFormat::Binary
    }

    /// The stream is to begin again as soon as no transaction is open.
    pub(super) fn is_due(self) -> bool {
        self.text_wanted
    }
}

impl Session {
    /// Sees to it that the stream sends text. False: not yet, for a transaction is being applied.
    ///
    /// # Errors
    /// When the stream cannot begin again.
    pub(super) async fn ask_for_text(&mut self) -> Result<bool> {
        self.format.text_wanted = self.format.values == ValueFormat::Binary;
        self.change_format().await?;
        Ok(self.format.values == ValueFormat::Text)
    }

    /// Lets the stream begin again if that is due, and possible now.
    ///
    /// # Errors
    /// As [`Self::ask_for_text`].
    pub(super) async fn change_format(&mut self) -> Result<()> {
        if !self.format.text_wanted || !self.is_settled() {
            return Ok(());
        }
        // The server lets nobody else read the slot while it has a reader.
        self.stream.end();
        self.unread.clear();
        self.running.clear();
        self.assembler = Assembler::default();
        self.stream = follow_from(&self.config, self.followed, self.acknowledged(), ValueFormat::Text).await?;
        self.format = StreamFormat { values: ValueFormat::Text, text_wanted: false };
        tracing::info!(lsn = %self.followed, "the stream goes on in text: a table has columns whose text is kept");
        Ok(())
    }
}
