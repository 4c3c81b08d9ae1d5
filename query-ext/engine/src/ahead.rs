//! A thread that fetches the chunks of a long result ahead.
//!
//! Whoever fetches from a streaming result works on the query until the next chunk is there, as one of DuckDB's threads
//! does. For a result of many rows that work is better done beside the one of the caller, who turns rows into another format.
//!
//! The thread is in no list of the watchdog: it is the caller who waits for it that is. So a cancel which Postgres ignores,
//! because it comes while no statement runs, does not end the rows of a cursor.

use std::sync::mpsc::{Receiver, RecvError, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use libduckdb_sys as ffi;

use crate::chunk::Chunk;
use crate::error::{Error, ErrorKind};
use crate::instance::SignalsBlocked;

/// Chunks that lie ready: enough that neither side waits for the other at each chunk. They are beside DuckDB's memory limit.
const READY: usize = 4;
/// As DuckDB gives its own threads: the query runs on this one too.
const STACK_BYTES: usize = 8 << 20;

/// A chunk, or the end, or what ended it.
type Fetched = Result<Option<Chunk>, Error>;

/// The result of a query, from which chunks are fetched by one thread at a time.
#[derive(Clone, Copy)]
pub(crate) struct Source(pub(crate) ffi::duckdb_result);

// SAFETY: DuckDB locks the connection for each fetch, from whatever thread; the handle is an address.
unsafe impl Send for Source {}

impl Source {
    /// The next chunk.
    ///
    /// # Safety
    /// The result is live, and no other thread fetches from it.
    pub(crate) unsafe fn fetch(mut self) -> Fetched {
        // SAFETY: per the contract. A null chunk means end or error, which the result's error text tells apart.
        unsafe {
            let chunk = ffi::duckdb_fetch_chunk(self.0);
            if !chunk.is_null() {
                return Ok(Some(Chunk::new(chunk)));
            }
            let error = ffi::duckdb_result_error(&raw mut self.0);
            if error.is_null() || *error == 0 { Ok(None) } else { Err(Error::of_duckdb(ErrorKind::Query, error)) }
        }
    }
}

/// The thread and what it has fetched.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// `None` only while this is dropped.
    chunks: Option<Receiver<Fetched>>,
    thread: Option<JoinHandle<()>>,
    connection: ffi::duckdb_connection,
}

impl Ahead {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system's, when it gives no thread.
    ///
    /// # Safety
    /// `source` is of a query on `connection`; both live until this is dropped, and nobody else fetches.
    pub(crate) unsafe fn start(source: Source, connection: ffi::duckdb_connection) -> std::io::Result<Self> {
        let (fetched, chunks) = sync_channel(READY);
        let _blocked = SignalsBlocked::new();
        let thread =
            std::thread::Builder::new().name("lake fetch".into()).stack_size(STACK_BYTES).spawn(move || {
                // SAFETY: per the contract; dropping waits for this thread.
                unsafe { run(source, &fetched) }
            })?;
        Ok(Self { chunks: Some(chunks), thread: Some(thread), connection })
    }

    /// The next chunk; `wait` is called when it is not there yet, and its value kept until it is.
    pub(crate) fn next<W>(&self, wait: impl FnOnce() -> W) -> Fetched {
        let gone = || Error::new(ErrorKind::Query, "the thread that fetches rows has ended before them");
        let chunks = self.chunks.as_ref().ok_or_else(gone)?;
        match chunks.try_recv() {
            Ok(fetched) => fetched,
            Err(TryRecvError::Disconnected) => Err(gone()),
            Err(TryRecvError::Empty) => {
                let _waiting = wait();
                chunks.recv().unwrap_or_else(|RecvError| Err(gone()))
            }
        }
    }
}

/// # Safety
/// As [`Source::fetch`], for as long as this runs.
unsafe fn run(source: Source, to: &SyncSender<Fetched>) {
    loop {
        // SAFETY: per the contract.
        let fetched = unsafe { source.fetch() };
        let more = matches!(fetched, Ok(Some(_)));
        if to.send(fetched).is_err() || !more {
            return;
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // What it fetches from here on nobody wants; the next time that it wants to hand over a chunk it ends.
        self.chunks = None;
        if let Some(thread) = self.thread.take() {
            if !thread.is_finished() {
                // SAFETY: the connection lives; interrupting is allowed from any thread. It stays interrupted until another
                // query begins on it.
                unsafe { ffi::duckdb_interrupt(self.connection) };
            }
            // A panic there has been reported by the panic hook, and by `next`.
            let _ = thread.join();
        }
    }
}
