//! Tables that come and go: what the registry lists, compared with what the session has.

use iceberg_writer::{Catalog as _, Layout};
use tokio::time::Instant;

use crate::Result;
use crate::error::{COPY_ANEW, Error, ErrorKind};
use crate::registry::{RegisteredTable, TableState};
use crate::source::{publication, relation};

use super::columns::GONE;
use super::entry::Entry;
use super::session::Session;

impl Session {
    /// Compares what is wanted with what is there.
    pub(super) async fn poll_registry(&mut self) -> Result<()> {
        let registered = self.config.registry(&self.control).tables().await?;
        let gone: Vec<u32> = self
            .tables
            .keys()
            .copied()
            .filter(|known| !registered.iter().any(|table| table.relation == *known))
            .collect();
        for relation in gone {
            tracing::info!(table = self.shown(relation), "no longer mirrored");
            self.forget(relation);
        }
        self.wanted.clear();
        for table in registered {
            let known = self.tables.contains_key(&table.relation);
            match table.state {
                // Unmirrored and mirrored again between two looks.
                TableState::Requested if known => {
                    self.forget(table.relation);
                    self.wanted.push_back(table);
                }
                TableState::Requested | TableState::Copying if !known => self.wanted.push_back(table),
                TableState::Streaming | TableState::Copying if table.dropped => {
                    self.source_gone(
                        table.relation,
                        "the source table was dropped; the lake keeps its last state",
                        GONE,
                    );
                }
                TableState::Streaming | TableState::Copying if !table.is_published() => {
                    self.source_gone(
                        table.relation,
                        "the table left the publication: changes since then do not arrive",
                        &format!("ALTER PUBLICATION … ADD TABLE …, then {COPY_ANEW}"),
                    );
                }
                TableState::Streaming | TableState::Copying => {
                    if table.published_since.as_ref() != Some(&table.published_by) && table.is_published_since() {
                        self.config.registry(&self.control).published(&table).await?;
                    }
                    self.check_scope(&table).await?;
                    if !table.history {
                        self.end_history(table.relation);
                    }
                    self.lay_out(table.relation, &table.layout)?;
                }
                TableState::Requested | TableState::Errored => {}
            }
        }
        self.look_at_partitions().await?;
        self.look_at_columns().await?;
        self.begin_copies().await
    }

    /// Stops a table that was fit when it was copied, and of which changes since then may be missing.
    async fn check_scope(&mut self, registered: &RegisteredTable) -> Result<()> {
        let Some(table) = self.tables.get(&registered.relation) else { return Ok(()) };
        if matches!(table.entry, Entry::Errored { .. }) {
            return Ok(());
        }
        let streams = table.entry.following().is_some();
        let shown = format!("{}.{}", table.schema, table.name);
        let error = if registered.row_filtered && !publication::allows_parts(&self.config) {
            publication::row_filtered(&shown)
        } else if registered.has_heirs {
            relation::has_heirs(&shown)
        } else if registered.sent_as_root {
            publication::as_root(&shown)
        } else if registered.sent_as_partitions {
            publication::as_partitions(&shown)
        } else if !registered.sent_whole {
            publication::not_whole()
        } else if streams && registered.copied_as.is_none() {
            // Copied before this was remembered.
            let registry = self.config.registry(&self.control);
            return registry
                .copied(registered.relation, &registered.published_as, registered.partitions.as_deref())
                .await;
        } else if streams && registered.copied_as.as_ref() != Some(&registered.published_as) {
            publication::otherwise(&shown)
        } else if !registered.is_published_since() {
            publication::came_back()
        } else {
            return Ok(());
        };
        self.fail_table(registered.relation, error);
        Ok(())
    }

    /// A table is to be laid out like this from now on.
    fn lay_out(&mut self, relation: u32, layout: &Layout) -> Result<()> {
        let following = self.tables.get_mut(&relation).and_then(|table| table.entry.following_mut());
        let Some(streaming) = following else { return Ok(()) };
        // One that is not committed yet may have given files their partition's number, which this one would take.
        if streaming.layout != *layout && streaming.table.lake.has_its_layout() {
            streaming.layout = layout.clone();
            let unwanted = streaming.table.lay_out(layout)?;
            let (partition_by, sort_by) = layout.describe(&streaming.table.spec.columns);
            self.catalog.abandon(unwanted);
            tracing::info!(
                table = self.shown(relation),
                "new files are laid out otherwise: partition_by \"{partition_by}\", sort_by \"{sort_by}\""
            );
        }
        let Some(Entry::Streaming(streaming)) = self.tables.get(&relation).map(|table| &table.entry) else {
            return Ok(());
        };
        if !streaming.table.lake.has_its_layout() {
            // Iceberg is told with the next commit, which need not wait for a change.
            self.changed.insert(relation);
            self.maintenance.waiting_since.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    fn source_gone(&mut self, relation: u32, how: &str, hint: &str) {
        let known = self.tables.get(&relation).map(|table| &table.entry);
        if matches!(known, Some(Entry::Errored { .. })) {
            return;
        }
        self.fail_table(relation, Error::new(ErrorKind::Table, how).with_hint(hint));
    }
}
