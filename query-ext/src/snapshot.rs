//! What of the lake belongs to a snapshot: all that reads by one snapshot reads one state of the source.
//!
//! The scans of a statement have its snapshot. So have the queries in functions that are not volatile: they see what the
//! statement sees that calls them, however often, and however late. A pin is found by the snapshot it was taken for as long as
//! somebody reads from it; one that was taken in such a function, until the transaction ends or another snapshot comes,
//! because the next call is after the end of the one before.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use pgrx::prelude::*;

use crate::error::Error;
use crate::pin::Pinned;
use crate::settings::{self, Freshness};

/// Registrations of a snapshot that nobody else reads by: its query's description and its executor.
const OWN: u32 = 2;

/// Pins that are kept for later calls of functions, at most: each leases files, and has a connection.
const MOST_KEPT: usize = 8;

/// A snapshot, told by what it sees: of two with the same numbers no transaction has ended between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Snapshot {
    oldest: u32,
    next: u32,
    running: u32,
    command: u32,
    freshness: Freshness,
    /// Another statement, which is not at its end, reads by it.
    shared: bool,
}

impl Snapshot {
    /// The snapshot of an execution.
    ///
    /// # Safety
    /// `estate` is that of a started executor.
    pub(crate) unsafe fn of(estate: *mut pg_sys::EState) -> Self {
        // SAFETY: per the contract. What reads rows has a snapshot, which stays as long as the execution.
        unsafe {
            let Some(snapshot) = (*estate).es_snapshot.as_ref() else {
                Error::state("the lake is read without a snapshot").raise();
            };
            Self {
                oldest: snapshot.xmin.into(),
                next: snapshot.xmax.into(),
                running: snapshot.xcnt,
                command: snapshot.curcid,
                freshness: settings::freshness(),
                shared: snapshot.regd_count > OWN + u32::from(is_held((*estate).es_snapshot)),
            }
        }
    }

    /// Whether another statement reads by it.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    /// How new what is read by it has to be.
    pub(crate) fn freshness(&self) -> Freshness {
        self.freshness
    }

    fn sees_as(&self, other: &Self) -> bool {
        Self { shared: false, ..*self } == Self { shared: false, ..*other }
    }
}

/// Whether the client's portal holds a snapshot, as it does for EXECUTE, whose query is the only one that reads by it.
unsafe fn is_held(snapshot: pg_sys::Snapshot) -> bool {
    // SAFETY: the caller passes a live snapshot; a portal is found or null.
    unsafe { pg_sys::GetPortalByName(c"".as_ptr()).as_ref().is_some_and(|portal| portal.holdSnapshot == snapshot) }
}

thread_local! {
    /// Pins of running statements.
    static RUNNING: RefCell<Vec<(Snapshot, Weak<Pinned>)>> = const { RefCell::new(Vec::new()) };
    /// Pins of functions that will be called again, maybe.
    static KEPT: RefCell<Vec<(Snapshot, Rc<Pinned>)>> = const { RefCell::new(Vec::new()) };
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

/// The pin of a snapshot that has these sources.
pub(crate) fn pin_of(snapshot: &Snapshot, sources: &[u32]) -> Option<Rc<Pinned>> {
    RUNNING.with_borrow_mut(|pins| {
        pins.retain(|(_, pin)| pin.strong_count() > 0);
        pins.iter()
            .filter(|(owner, _)| owner.sees_as(snapshot))
            .filter_map(|(_, pin)| pin.upgrade())
            .find(|pin| pin.has(sources))
    })
}

/// Makes a pin that of a snapshot.
pub(crate) fn keep(snapshot: &Snapshot, pin: &Rc<Pinned>) {
    RUNNING.with_borrow_mut(|pins| pins.push((*snapshot, Rc::downgrade(pin))));
    if !snapshot.shared {
        return;
    }
    if !WATCHED.replace(true) {
        // SAFETY: the callback lives as long as the library, which is as long as the backend.
        unsafe { pg_sys::RegisterXactCallback(Some(transaction_ended), std::ptr::null_mut()) };
    }
    KEPT.with_borrow_mut(|kept| {
        kept.retain(|(owner, _)| owner.sees_as(snapshot));
        if kept.len() == MOST_KEPT {
            kept.remove(0);
        }
        kept.push((*snapshot, Rc::clone(pin)));
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn transaction_ended(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::{XACT_EVENT_ABORT, XACT_EVENT_COMMIT, XACT_EVENT_PREPARE};
    if [XACT_EVENT_ABORT, XACT_EVENT_COMMIT, XACT_EVENT_PREPARE].contains(&event) {
        drop(KEPT.take());
    }
}
