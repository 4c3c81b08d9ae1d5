//! Rows that move into other files while their table goes on changing.
//!
//! A rewrite of files takes rows as they are at one moment, S, and is done later. What it knows of a row, its new position,
//! is therefore to be believed rather than all that was known at S, and less than what has been learnt since. Runs are kept
//! in the order of their age, so the rewrite's entries get their place in it: at S the runs that there are become the floor, with which
//! nothing newer is merged until the rewrite ends; then its entries are put in upon the floor, under all that is newer. No
//! row has to be looked at again, however many were changed meanwhile.
//!
//! Of a table without a key an entry speaks of one position only, so for each row there are two: its old position is empty, and
//! its new one is taken. What was removed since S, by old positions, is removed by the new ones too.

use crate::Result;
use crate::error::{Error, ErrorKind};

use super::entry::{Entry, failed};
use super::merge::FAN_IN;
use super::{Position, PositionIndex, RowIdentity};

impl PositionIndex {
    /// Rows begin to move. Gives the index that is to be filled with their new positions, and then given to
    /// [`Self::end_move`]. One move at a time.
    ///
    /// # Errors
    /// [`ErrorKind::Index`].
    pub(crate) fn begin_move(&self) -> Result<Self> {
        let mut content = self.content();
        content.floor = None;
        if !content.recent.is_empty() {
            self.write_recent(&mut content)?;
        }
        content.floor = Some(content.runs.len());
        // Upon a floor of none, so that what it says of old positions is never taken for needless.
        Ok(Self::empty(self.table.identity, &self.table.shared, Some(0)))
    }

    /// Rows have moved: `moved` has their new positions, and `to` gives the new one of an old one, if the row was on the move.
    ///
    /// # Errors
    /// [`ErrorKind::Index`].
    pub(crate) fn end_move(&self, moved: &Self, to: impl Fn(Position) -> Option<Position>) -> Result<()> {
        let mut runs = {
            let mut arrived = moved.content();
            if !arrived.recent.is_empty() {
                moved.write_recent(&mut arrived)?;
            }
            std::mem::take(&mut arrived.runs)
        };
        let mut content = self.content();
        let Some(floor) = content.floor.take() else {
            return Err(Error::new(ErrorKind::Index, "rows have moved that were not to"));
        };
        let mut removed = Vec::new();
        if self.table.identity == RowIdentity::FullRow {
            let mut removal = |entry: &Entry| {
                let position = to(entry.about()).filter(|_| entry.position().is_none());
                removed.extend(position.map(|position| Entry::gone(entry.key, Some(position))));
            };
            for run in &content.runs[floor..] {
                for entry in run.iter() {
                    removal(&entry.map_err(failed)?);
                }
            }
            content.recent.values().for_each(removal);
        }
        runs.extend(content.runs.drain(floor..));
        content.runs.append(&mut runs);
        self.merge(&mut content, FAN_IN)?;
        drop(content);
        self.remember(&removed)
    }

    /// Rows stay where they were.
    ///
    /// # Errors
    /// [`ErrorKind::Index`].
    pub(crate) fn give_up_move(&self) -> Result<()> {
        let mut content = self.content();
        content.floor = None;
        self.merge(&mut content, FAN_IN)
    }
}
