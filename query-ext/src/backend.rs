//! This backend's DuckDB: opened at the first query that needs it, never before the fork.
//!
//! The directories it may read are fixed when it opens. A table in another one makes a new instance; the old one lives
//! on under the rows that are still read from it.

use std::cell::{Cell, OnceCell, RefCell};
use std::path::Path;
use std::rc::Rc;

use lake_engine::{Engine, Settings};
use pgrx::prelude::*;

use crate::{settings, store};

thread_local! {
    static ENGINE: RefCell<Option<Rc<Engine>>> = const { RefCell::new(None) };
    /// Whether the engine is closed at the end of this backend.
    static CLOSES: Cell<bool> = const { Cell::new(false) };
    /// This backend's own directory to spill to.
    static SPILL: OnceCell<String> = const { OnceCell::new() };
}

/// A directory in the system's temporary one that only this process's user can enter. It must be new: a name that
/// somebody could guess might have been made by somebody.
fn own_directory() -> std::io::Result<String> {
    use std::os::unix::fs::DirBuilderExt;
    SPILL.with(|spill| {
        if let Some(directory) = spill.get() {
            return Ok(directory.clone());
        }
        let mut attempt = 0;
        loop {
            let path = std::env::temp_dir().join(format!("lake_query.{}.{attempt}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && attempt < 1000 => attempt += 1,
                Err(error) => return Err(error),
                Ok(()) => return Ok(spill.get_or_init(|| path.to_string_lossy().into_owned()).clone()),
            }
        }
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
    let spill = match settings::temp_directory() {
        Some(set) => set,
        None => own_directory().map_err(|error| lake_engine::Error::spill(&error))?,
    };
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
    let _ = SPILL.try_with(|spill| {
        if let Some(directory) = spill.get() {
            // Nobody is left to tell; what stays is an empty directory.
            let _ = std::fs::remove_dir_all(directory);
        }
    });
}
