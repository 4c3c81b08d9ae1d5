//! This backend's DuckDB: opened at the first query that needs it, never before the fork.
//!
//! The directories it may read are fixed when it opens. A table in another one makes a new instance; the old one lives
//! on under the rows that are still read from it.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use lake_engine::{Engine, Settings, SpillDirectory};
use pgrx::prelude::*;

use crate::{settings, store};

thread_local! {
    static ENGINE: RefCell<Option<Rc<Engine>>> = const { RefCell::new(None) };
    /// Whether the engine is closed at the end of this backend.
    static CLOSES: Cell<bool> = const { Cell::new(false) };
    /// This backend's own directories to spill to: one, and another where the setting has changed.
    static SPILL: RefCell<Vec<SpillDirectory>> = const { RefCell::new(Vec::new()) };
}

/// Where to spill to: outside of the data directory, in `lake.temp_directory` or in the system's.
fn spill_directory() -> Result<String, lake_engine::Error> {
    let parent = settings::temp_directory().map_or_else(std::env::temp_dir, PathBuf::from);
    let shown = |directory: &SpillDirectory| directory.path().to_string_lossy().into_owned();
    SPILL.with_borrow_mut(|known| {
        if let Some(known) = known.iter().find(|known| known.parent() == parent) {
            return Ok(shown(known));
        }
        let made = SpillDirectory::create(&parent)?;
        let path = shown(&made);
        known.push(made);
        Ok(path)
    })
}

/// Whether this backend was asked to stop what it does. Called from the engine's watchdog too: it reads three flags that
/// signal handlers set, and nothing else.
pub(crate) fn cancelled() -> bool {
    // SAFETY: volatile reads of plain integers, as Postgres's own macros do.
    unsafe {
        (&raw const pg_sys::InterruptPending).read_volatile() != 0
            && ((&raw const pg_sys::QueryCancelPending).read_volatile() != 0
                || (&raw const pg_sys::ProcDiePending).read_volatile() != 0)
    }
}

/// The engine that may read these files.
///
/// # Errors
/// When DuckDB does not open.
pub(crate) fn engine<'a>(files: impl Iterator<Item = &'a str>) -> Result<Rc<Engine>, lake_engine::Error> {
    let warehouse = store::warehouse();
    let mut directories: Vec<String> = Vec::new();
    let mut remote = None;
    for file in files {
        if file.contains("://") {
            remote = Some(file);
        }
        let within = warehouse.as_deref().filter(|warehouse| Path::new(file).starts_with(warehouse));
        let parent = || Path::new(file).parent().map(|parent| parent.to_string_lossy().into_owned());
        if let Some(directory) = within.map(str::to_owned).or_else(parent)
            && !directories.contains(&directory)
        {
            directories.push(directory);
        }
    }
    let spill = spill_directory()?;
    let mut store = remote.map(store::of).transpose()?;
    ENGINE.with_borrow_mut(|engine| {
        if let Some(open) = engine {
            let now = open.settings();
            let same = now.memory_mb == settings::memory_limit()
                && now.threads == settings::threads()
                && now.temp_directory == spill
                && now.temp_mb == settings::temp_limit()
                && (store.is_none() || now.store == store);
            if same && directories.iter().all(|directory| now.allowed_directories.contains(directory)) {
                return Ok(Rc::clone(open));
            }
            // As the directories do, the store stays for those who read from it.
            store = store.or_else(|| now.store.clone());
            for directory in &now.allowed_directories {
                if !directories.contains(directory) {
                    directories.push(directory.clone());
                }
            }
        } else if !CLOSES.replace(true) {
            // Once: there are few places for callbacks, and an engine that does not open is tried again and again.
            // SAFETY: registers a callback of this process; it runs on the main thread.
            unsafe { pg_sys::on_proc_exit(Some(close), pg_sys::Datum::from(0)) };
        }
        let opened = Rc::new(Engine::open(Settings {
            memory_mb: settings::memory_limit(),
            threads: settings::threads(),
            temp_directory: spill,
            temp_mb: settings::temp_limit(),
            allowed_directories: directories,
            store,
            cancelled,
        })?);
        *engine = Some(Rc::clone(&opened));
        Ok(opened)
    })
}

/// DuckDB's threads end before the library's destructors run.
#[pg_guard]
unsafe extern "C-unwind" fn close(_code: i32, _arg: pg_sys::Datum) {
    // The thread-local may be gone already; then so is the engine.
    let _ = ENGINE.try_with(|engine| engine.try_borrow_mut().map(|mut engine| engine.take()));
    let _ = SPILL.try_with(|spill| spill.try_borrow_mut().map(|mut spill| spill.clear()));
}
