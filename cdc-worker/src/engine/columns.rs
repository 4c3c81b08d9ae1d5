//! Tables whose columns change under the stream.
//!
//! pgoutput describes a table before the first change that follows a change of its columns, and describes it for many
//! other reasons too. So at each description, before the change behind it is applied, the catalog is looked at, and
//! [`follow`] judges. What no row follows shows in the catalog only: it is compared every second, and what differs is
//! followed when the stream has passed that place. Whatever cannot be proved is copied anew, while the others stream on.
//!
//! With the extension its event trigger puts what the catalog has after each ALTER TABLE into the WAL, at that very place.
//! Then nothing has to be told from two accounts, and nothing waits for a look.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use iceberg_writer::{Catalog as _, Lsn, TableSpec};
use tokio::time::Instant;

use crate::Result;
use crate::config::Unrepresentable;
use crate::decode::message::{Commit, Relation};
use crate::decode::value::needs_text;
use crate::error::{COPY_ANEW, Error, ErrorKind};
use crate::source::relation::{self, Wanted};
use crate::source::shape::{self, Look};
use crate::table::{Described, Followed, Known, RowIdentity, Seen, Shape, follow};

use super::entry::{Entry, Streaming};
use super::session::Session;

/// How long a transaction that the stream has brought may stay invisible to others: it waits for a synchronous standby.
const VISIBLE_AFTER: Duration = Duration::from_secs(1);
const VISIBLE_POLL: Duration = Duration::from_millis(20);

/// How often the catalog is looked at for what no row follows: of a thousand tables it has ten thousand rows.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is known of a table's columns beside their description.
#[derive(Debug, Default)]
pub(super) struct Columns {
    /// The numbers of those that the publication sends; `None`: all.
    pub(super) only: Option<Vec<i16>>,
    /// `None`: copied by a version that did not remember it.
    pub(super) seen: Option<Seen>,
    /// What becomes of values that Iceberg's types have not.
    unrepresentable: Unrepresentable,
    /// `lake.<table>` has been told of them, where there is one.
    pub(super) shown: bool,
    /// The catalog's summary when there was nothing to follow.
    quiet: Option<String>,
    /// The catalog is ahead of what has been followed: to be followed when the stream has passed this.
    ahead: Option<(Lsn, Shape)>,
    /// The catalog as it was looked at for a transaction that was not visible.
    doubt: Option<(u32, Shape)>,
}

impl Columns {
    pub(super) fn new(only: Option<Vec<i16>>, seen: Option<Seen>, unrepresentable: Unrepresentable) -> Self {
        Self { only, seen, unrepresentable, ..Self::default() }
    }
}

impl Session {
    /// A change is about to be applied to a table that was described anew.
    pub(super) async fn look_at(&mut self, relation: u32, commit: Commit) -> Result<()> {
        let (look, visible) = self.look_after(relation, commit.xid).await?;
        let Some(streaming) = self.following(relation) else { return Ok(()) };
        let described = streaming
            .described
            .clone()
            .ok_or_else(|| Error::new(ErrorKind::Protocol, "a change arrived before the description of its table"))?;
        let Some(now) = look.shapes.get(&relation).cloned() else {
            let gone = Error::new(ErrorKind::Table, "the source table was dropped; the lake keeps its last state");
            self.fail_table(relation, gone.with_hint(GONE));
            return Ok(());
        };
        let now = shape::published(now, streaming.columns.only.as_deref());
        let is_proved = |(at, before): &(Lsn, Shape)| *at <= commit.lsn && before.same_columns(&now);
        let described_as = match &streaming.columns.ahead {
            // The locks of both order them: what was visible before the transaction ended had happened when it began.
            Some(ahead) if is_proved(ahead) => Described::Still(&described.columns),
            _ => Described::Then(&described.columns),
        };
        let followed = match streaming.judge(described_as, &now) {
            Followed::Changed(_, _) | Followed::Otherwise if !visible => {
                Followed::CopyAnew("its columns changed in a transaction that is not visible yet".to_owned())
            }
            followed => followed,
        };
        streaming.columns.doubt = (!visible).then_some((commit.xid, now));
        if self.took_columns(relation, followed, Some(&described)).await? {
            self.applied_to(relation, commit);
        }
        Ok(())
    }

    /// The catalog, where this transaction is visible; false: it is not, for too long.
    async fn look_after(&self, relation: u32, xid: u32) -> Result<(Look, bool)> {
        let deadline = Instant::now() + VISIBLE_AFTER;
        loop {
            let look = self.looks.read(&self.control, &[relation], &self.config.source.publication).await?;
            let visible = look.sees(xid);
            if visible || look.shapes.is_empty() || Instant::now() >= deadline {
                return Ok((look, visible));
            }
            tokio::time::sleep(VISIBLE_POLL).await;
        }
    }

    /// A table's columns are these from here on, as its session saw them when it had altered the table.
    pub(super) async fn told_columns(&mut self, relation: u32, commit: Commit, told: &str) -> Result<()> {
        let Some(Entry::Streaming(streaming)) = self.tables.get(&relation).map(|table| &table.entry) else {
            return Ok(());
        };
        if commit.lsn < streaming.replay_from {
            return Ok(());
        }
        let now = match shape::of_told(told) {
            Ok(now) => shape::published(now, streaming.columns.only.as_deref()),
            // The looks at the catalog find it out, a little later.
            Err(error) => {
                tracing::warn!(table = self.shown(relation), error = %error.report(), "the event trigger is not understood");
                return Ok(());
            }
        };
        let followed = streaming.judge(Described::Now, &now);
        if self.took_columns(relation, followed, None).await? {
            self.applied_to(relation, commit);
        }
        Ok(())
    }

    fn following(&mut self, relation: u32) -> Option<&mut Streaming> {
        self.tables.get_mut(&relation).and_then(|table| table.entry.following_mut())
    }

    /// Does what was found. True: the columns are others now.
    async fn took_columns(&mut self, relation: u32, followed: Followed, described: Option<&Relation>) -> Result<bool> {
        let (shown, binary) = (self.shown(relation), self.format.is_binary());
        let Some(streaming) = self.following(relation) else { return Ok(false) };
        (streaming.columns.ahead, streaming.columns.quiet) = (None, None);
        let mut unwanted = Vec::new();
        let changed = match followed {
            Followed::Same(seen) => {
                if streaming.columns.seen.as_ref() != Some(&seen) {
                    streaming.table.remember(&seen);
                    streaming.columns.seen = Some(seen);
                }
                false
            }
            Followed::Changed(spec, _) if spec.columns.is_empty() => {
                self.fail_table(relation, relation::no_columns(&shown));
                return Ok(false);
            }
            // The stream sends it in another format, and begins again for that.
            Followed::Changed(spec, _) if needs_text(&spec) && binary => {
                self.copy_anew(relation, "it has a column whose text is kept").await?;
                return Ok(false);
            }
            Followed::Changed(spec, _) if streaming.table.lake.partitions_conflict(&spec) => {
                let why = "a column that it is partitioned by is gone, or another has the name of a partition field";
                self.copy_anew(relation, why).await?;
                return Ok(false);
            }
            Followed::Changed(spec, seen) => {
                let names = spec.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ");
                tracing::info!(table = shown, columns = names, "the source table's columns changed, and are followed");
                if let Some(history) = &mut streaming.history
                    && let Err(error) = history.change_columns(&spec, &seen)
                {
                    self.fail_table(relation, error);
                    return Ok(false);
                }
                streaming.table.change_columns(spec, &seen)?;
                // A column that rows were sorted by may be gone.
                unwanted = streaming.table.lay_out(&streaming.layout)?;
                streaming.columns.seen = Some(seen);
                streaming.columns.shown = false;
                true
            }
            Followed::CopyAnew(why) => {
                self.copy_anew(relation, &why).await?;
                return Ok(false);
            }
            Followed::Otherwise => {
                let other =
                    Error::new(ErrorKind::Table, "the publication sends other columns of the table than it did");
                self.fail_table(relation, other.with_hint(format!("when they are as they should be, {COPY_ANEW}")));
                return Ok(false);
            }
        };
        if let Some(described) = described {
            let spec = &streaming.table.spec;
            streaming.identified = relation::identifies(spec, streaming.table.identity, described);
            let unique = relation::keeps_unique(spec, described);
            streaming.table.doubt_keys(!unique);
            streaming.checked = true;
        }
        self.catalog.abandon(unwanted);
        Ok(changed)
    }

    /// Whether a table's failure is due to another key, by which it can be mirrored; then it is copied anew.
    pub(super) async fn key_explains(&mut self, relation: u32) -> Result<bool> {
        let Some(streaming) = self.following(relation) else { return Ok(false) };
        let (spec, identity) = (Arc::clone(&streaming.table.spec), streaming.table.identity);
        let append_only = identity == RowIdentity::AppendOnly;
        let wanted = Wanted::new(&self.config.source.publication, append_only);
        let other = match relation::describe(&self.control, relation, wanted).await {
            Ok(now) => key_numbers(&now.spec) != key_numbers(&spec),
            Err(error) if error.kind() == ErrorKind::Table => false,
            Err(error) => return Err(error),
        };
        if other && !append_only {
            self.copy_anew(relation, "it has another key").await?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Compares the catalog with what is known of the tables that stream.
    pub(super) async fn look_at_columns(&mut self) -> Result<()> {
        let streaming: Vec<u32> = self.streaming().map(|streaming| streaming.table.relation).collect();
        if streaming.is_empty() || self.looked_at_columns.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        self.looked_at_columns = Instant::now();
        let summaries = self.looks.summaries(&self.control, &streaming).await?;
        let is_news = |relation: &u32| match self.tables.get(relation).map(|table| &table.entry) {
            Some(Entry::Streaming(streaming)) => {
                let columns = &streaming.columns;
                let summary = summaries.get(relation);
                summary.is_some() && (columns.quiet.as_ref() != summary || columns.doubt.is_some())
            }
            _ => false,
        };
        let news: Vec<u32> = streaming.into_iter().filter(is_news).collect();
        if news.is_empty() {
            return Ok(());
        }
        let mut look = self.looks.read(&self.control, &news, &self.config.source.publication).await?;
        for relation in news {
            let Some(now) = look.shapes.remove(&relation) else { continue };
            let Some(Entry::Streaming(streaming)) = self.tables.get_mut(&relation).map(|table| &mut table.entry) else {
                continue;
            };
            let now = shape::published(now, streaming.columns.only.as_deref());
            if let Some((xid, then)) = streaming.columns.doubt.take() {
                if !look.sees(xid) {
                    streaming.columns.doubt = Some((xid, then));
                    continue;
                }
                if then != now {
                    let why = "it changed in a transaction that was not visible when its rows came";
                    self.copy_anew(relation, why).await?;
                    continue;
                }
            }
            let is_known = matches!(streaming.judge(Described::Now, &now), Followed::Same(seen) if streaming.columns.seen.as_ref() == Some(&seen));
            if is_known {
                streaming.columns.quiet = summaries.get(&relation).cloned();
                streaming.columns.ahead = None;
            } else {
                streaming.columns.ahead = Some((look.at, now));
                if !self.ahead.contains(&relation) {
                    self.ahead.push(relation);
                }
            }
        }
        self.follow_catalog().await
    }

    /// Follows what the catalog had, and no row has followed since. Called between transactions only: it waits otherwise.
    pub(super) async fn follow_catalog(&mut self) -> Result<()> {
        if !self.is_settled() {
            return Ok(());
        }
        for relation in std::mem::take(&mut self.ahead) {
            let applied = self.applied;
            let Some(Entry::Streaming(streaming)) = self.tables.get_mut(&relation).map(|table| &mut table.entry) else {
                continue;
            };
            let Some((at, now)) = streaming.columns.ahead.take() else { continue };
            if at > applied {
                streaming.columns.ahead = Some((at, now));
                self.ahead.push(relation);
                continue;
            }
            let followed = streaming.judge(Described::Now, &now);
            if self.took_columns(relation, followed, None).await? {
                self.applied_to(relation, Commit { lsn: applied, time_us: self.source_now_us, xid: 0 });
            }
        }
        Ok(())
    }
}

/// The numbers of the key's columns, in whatever order it has them.
pub(super) fn key_numbers(spec: &TableSpec) -> BTreeSet<i32> {
    spec.key.iter().filter_map(|&index| Some(spec.columns.get(index)?.field_id)).collect()
}

/// What to do about a table that is gone.
pub(super) const GONE: &str =
    "SELECT lake.unmirror(…) (without the extension: take it out of `tables`, then cdc-worker mirror)";

impl Streaming {
    /// Gives columns companions, which a row needs that has just been applied.
    pub(super) fn add_companions(&mut self, of: Vec<i32>) -> Result<()> {
        let spec = &self.table.spec;
        self.columns.unrepresentable.allow(spec, &of)?;
        let Some(seen) = self.columns.seen.clone() else {
            return Err(Error::new(ErrorKind::Altered, "its mirror is of a version that kept no values as text"));
        };
        let named = spec.columns.iter().filter(|column| of.contains(&column.field_id));
        let names = named.map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ");
        let shown = format!("{}.{}", spec.namespace, spec.name);
        tracing::info!(
            table = shown,
            columns = names,
            "values that Iceberg's type has not are kept beside it, as text"
        );
        self.columns.shown = false;
        let spec = (**spec).clone().with_companions(of);
        if let Some(history) = &mut self.history {
            history.change_columns(&spec, &seen)?;
        }
        self.table.change_columns(spec, &seen)
    }

    fn judge(&self, described: Described<'_>, now: &Shape) -> Followed {
        let known = Known { spec: &self.table.spec, identity: self.table.identity, seen: self.columns.seen.as_ref() };
        follow(known, described, now)
    }
}
