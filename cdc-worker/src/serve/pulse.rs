//! What the outside may know without asking the loop: is it alive, is it streaming, what broke last.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::Error;

use super::copies::Copies;

/// A loop that has not turned for this long is stuck. The longest legitimate pause is the write of one batch.
const STUCK_AFTER: Duration = Duration::from_secs(300);

/// The answer to `/livez` and `/readyz`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Health {
    /// The loop turns.
    pub(crate) alive: bool,
    /// A session streams.
    pub(crate) ready: bool,
}

/// Shared between the loop, the admin endpoint and the terminal.
#[derive(Debug)]
pub(crate) struct Pulse {
    begin: Instant,
    /// Milliseconds after `begin` of the loop's last turn.
    turned_ms: AtomicU64,
    streaming: AtomicBool,
    last_error: Mutex<Option<String>>,
    pub(crate) copies: Copies,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            begin: Instant::now(),
            turned_ms: AtomicU64::new(0),
            streaming: AtomicBool::new(false),
            last_error: Mutex::new(None),
            copies: Copies::default(),
        }
    }
}

impl Pulse {
    pub(crate) fn turn(&self) {
        let now = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.turned_ms.store(now, Ordering::Relaxed);
    }

    pub(crate) fn streaming(&self, streaming: bool) {
        self.turn();
        self.streaming.store(streaming, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self, error: &Error) {
        if let Ok(mut last) = self.last_error.lock() {
            *last = Some(error.report());
        }
    }

    pub(crate) fn committed(&self) {
        if let Ok(mut last) = self.last_error.lock() {
            *last = None;
        }
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.last_error.lock().ok().and_then(|last| last.clone())
    }

    pub(crate) fn health(&self) -> Health {
        let turned = Duration::from_millis(self.turned_ms.load(Ordering::Relaxed));
        // Between sessions the loop only waits, and a dead dependency is no reason to be killed.
        let streaming = self.streaming.load(Ordering::Relaxed);
        Health { alive: !streaming || self.begin.elapsed().saturating_sub(turned) < STUCK_AFTER, ready: streaming }
    }
}
