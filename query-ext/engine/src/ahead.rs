//! A thread that fetches the chunks of a long result ahead.
//!
//! Whoever fetches from a streaming result works on the query until the next chunk is there, as one of DuckDB's threads
//! does. For a result of many rows that work is better done beside the one of the caller, who turns rows into another format.
//!
//! The thread is in no list of the watchdog: it is the caller who waits for it that is. So a cancel which Postgres ignores,
//! because it comes while no statement runs, does not end the rows of a cursor.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvError, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use libduckdb_sys as ffi;

use crate::chunk::Chunk;
use crate::error::{Error, ErrorKind};
use crate::instance::SignalsBlocked;

/// Chunks that lie ready: enough that neither side waits for the other at each chunk.
const READY: usize = 4;
/// With so many bytes of text among them nothing more is fetched until some are taken: a chunk of long texts is large, and what lies
/// here is beside DuckDB's memory limit.
const READY_BYTES: usize = 1 << 20;
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

/// What both sides know of what lies ready.
#[derive(Debug, Default)]
struct Ready {
    /// Of text.
    bytes: AtomicUsize,
    /// Nobody wants more.
    given_up: AtomicBool,
}

/// The thread and what it has fetched.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// `None` only while this is dropped.
    chunks: Option<Receiver<(Fetched, usize)>>,
    ready: Arc<Ready>,
    thread: Option<JoinHandle<()>>,
    connection: ffi::duckdb_connection,
}

impl Ahead {
    /// Starts the thread. `texts` are the columns of texts or blobs.
    ///
    /// # Errors
    /// The system's, when it gives no thread.
    ///
    /// # Safety
    /// `source` is of a query on `connection`; both live until this is dropped, and nobody else fetches.
    pub(crate) unsafe fn start(
        source: Source,
        texts: Vec<usize>,
        connection: ffi::duckdb_connection,
    ) -> std::io::Result<Self> {
        let (fetched, chunks) = sync_channel(READY);
        let ready = Arc::new(Ready::default());
        let known = Arc::clone(&ready);
        let _blocked = SignalsBlocked::new();
        let thread =
            std::thread::Builder::new().name("lake fetch".into()).stack_size(STACK_BYTES).spawn(move || {
                // SAFETY: per the contract; dropping waits for this thread.
                unsafe { run(source, &texts, &known, &fetched) }
            })?;
        Ok(Self { chunks: Some(chunks), ready, thread: Some(thread), connection })
    }

    /// The next chunk; `wait` is called when it is not there yet, and its value kept until it is.
    pub(crate) fn next<W>(&self, wait: impl FnOnce() -> W) -> Fetched {
        let gone = || Error::new(ErrorKind::Query, "the thread that fetches rows has ended before them");
        let chunks = self.chunks.as_ref().ok_or_else(gone)?;
        let (fetched, bytes) = match chunks.try_recv() {
            Ok(ready) => ready,
            Err(TryRecvError::Disconnected) => return Err(gone()),
            Err(TryRecvError::Empty) => {
                let _waiting = wait();
                chunks.recv().map_err(|RecvError| gone())?
            }
        };
        if self.ready.bytes.fetch_sub(bytes, Ordering::AcqRel) >= READY_BYTES {
            self.wake();
        }
        fetched
    }

    /// Lets the thread look at what has changed.
    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

/// # Safety
/// As [`Source::fetch`], for as long as this runs; `texts` are columns of texts or blobs.
unsafe fn run(source: Source, texts: &[usize], ready: &Ready, to: &SyncSender<(Fetched, usize)>) {
    loop {
        while ready.bytes.load(Ordering::Acquire) >= READY_BYTES {
            if ready.given_up.load(Ordering::Acquire) {
                return;
            }
            std::thread::park();
        }
        // SAFETY: per the contract.
        let fetched = unsafe { source.fetch() };
        let bytes = match &fetched {
            // SAFETY: per the contract.
            Ok(Some(chunk)) => texts.iter().map(|&column| unsafe { chunk.text_bytes(column) }).sum(),
            _ => 0,
        };
        let more = matches!(fetched, Ok(Some(_)));
        ready.bytes.fetch_add(bytes, Ordering::AcqRel);
        if to.send((fetched, bytes)).is_err() || !more {
            return;
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // What it fetches from here on nobody wants; the next time that it wants to hand over a chunk it ends.
        self.chunks = None;
        self.ready.given_up.store(true, Ordering::Release);
        self.wake();
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Delivery, Engine, Settings};

    #[test]
    fn long_texts_do_not_pile_up() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            memory_mb: 256,
            threads: 2,
            temp_directory: directory.path().to_str().unwrap().into(),
            temp_mb: 16,
            allowed_directories: Vec::new(),
            store: None,
            cancelled: || false,
        };
        let engine = Engine::open(settings).unwrap();
        // Two megabytes a chunk, of which four would lie ready.
        let sql = "SELECT range, repeat('x', 1000) FROM range(100000)";
        let mut rows = engine.query(sql, Delivery::Streaming, Vec::new()).unwrap();
        let mut count = 0;
        while let Some(chunk) = rows.next_chunk().unwrap() {
            count += chunk.rows();
            if let Some(ahead) = &rows.ahead {
                std::thread::sleep(Duration::from_millis(5));
                let ready = ahead.ready.bytes.load(Ordering::Acquire);
                assert!(ready <= READY_BYTES + 2048 * 1000, "{ready} bytes lie ready");
            }
        }
        assert_eq!(count, 100_000);
        // Given up while the thread waits for room.
        let mut rows = engine.query(sql, Delivery::Streaming, Vec::new()).unwrap();
        for _ in 0..6 {
            rows.next_chunk().unwrap().unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
        drop(rows);
    }
}
