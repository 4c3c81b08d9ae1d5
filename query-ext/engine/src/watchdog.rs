//! The watchdog: one thread an engine, awake only while DuckDB has the main thread.
//!
//! A streaming fetch can block inside DuckDB, where the main thread cannot look at its interrupt flags. The watchdog
//! looks for it, and interrupts the connections that are in a call. Interrupting happens under the same lock that a call
//! takes to enter and to leave, so an interrupt never hits a connection that is not in a call (or is gone).

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use libduckdb_sys as ffi;

/// How often the flags are looked at.
const POLL: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
struct State {
    /// Connections that are in a call, as addresses.
    calls: Vec<usize>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Owns the thread.
#[derive(Debug)]
pub(crate) struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// A call in progress; leaving it is dropping this.
#[derive(Debug)]
pub(crate) struct Call {
    shared: Arc<Shared>,
    connection: usize,
}

impl Watchdog {
    /// Starts the thread. The caller has all signals blocked.
    pub(crate) fn start(cancelled: fn() -> bool) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("lake watchdog".into())
            .stack_size(64 << 10)
            .spawn(move || watch(&watched, cancelled))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Enters a call on a connection.
    pub(crate) fn enter(&self, connection: ffi::duckdb_connection) -> Call {
        let connection = connection as usize;
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).calls.push(connection);
        self.shared.changed.notify_one();
        Call { shared: Arc::clone(&self.shared), connection }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = state.calls.iter().position(|other| *other == self.connection) {
            state.calls.swap_remove(index);
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It ends by itself within a poll; a panic there has already been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn watch(shared: &Shared, cancelled: fn() -> bool) {
    let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    while !state.closed {
        if state.calls.is_empty() {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        (state, _) = shared.changed.wait_timeout(state, POLL).unwrap_or_else(PoisonError::into_inner);
        if cancelled() {
            for connection in &state.calls {
                // SAFETY: a connection is registered only while a call on it runs, and it cannot leave the call
                // without this lock; duckdb_interrupt may be called from any thread.
                unsafe { ffi::duckdb_interrupt(*connection as ffi::duckdb_connection) };
            }
        }
    }
}
