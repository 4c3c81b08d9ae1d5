//! Texts of the lake as datums, by the input functions of their types.
//!
//! Invariant: what a type's output function printed under the worker's settings is read back as the same value, whatever
//! the session's settings are. The text itself has no doubt in it (ISO dates, times with their offset); for what input
//! functions look at all the same, [`Pinned`] holds the settings under which it was printed.

use pgrx::pg_sys;

/// What input functions look at.
const SETTINGS: [(&std::ffi::CStr, &std::ffi::CStr); 7] = [
    (c"search_path", c"pg_catalog"),
    (c"DateStyle", c"ISO"),
    (c"IntervalStyle", c"iso_8601"),
    (c"TimeZone", c"UTC"),
    (c"lc_monetary", c"C"),
    (c"xmloption", c"content"),
    (c"array_nulls", c"on"),
];

/// Settings that hold until this is dropped, or the transaction fails.
struct Pinned(i32);

impl Pinned {
    unsafe fn begin() -> Self {
        // SAFETY: called within a transaction, on the main thread; the strings are constants.
        unsafe {
            let level = pg_sys::NewGUCNestLevel();
            for (name, value) in SETTINGS {
                pg_sys::set_config_option(
                    name.as_ptr(),
                    value.as_ptr(),
                    pg_sys::GucContext::PGC_USERSET,
                    pg_sys::GucSource::PGC_S_SESSION,
                    pg_sys::GucAction::GUC_ACTION_SAVE,
                    true,
                    0,
                    false,
                );
            }
            Self(level)
        }
    }

    unsafe fn end(self) {
        // SAFETY: the level of `begin`, which nobody has left since: an error would have ended the transaction.
        unsafe { pg_sys::AtEOXact_GUC(true, self.0) };
    }
}

/// The input function of a type.
pub(crate) struct Input {
    function: pg_sys::FmgrInfo,
    parameter: pg_sys::Oid,
    typmod: i32,
    text: Vec<u8>,
    settings: Pinned,
}

impl Input {
    /// Looks the function up.
    ///
    /// # Safety
    /// `oid` is a type; the current memory context outlives this.
    pub(crate) unsafe fn of(oid: pg_sys::Oid, typmod: i32) -> Self {
        let (mut function, mut parameter) = (pg_sys::Oid::INVALID, pg_sys::Oid::INVALID);
        let mut looked_up = pg_sys::FmgrInfo::default();
        // SAFETY: per the contract.
        let settings = unsafe {
            pg_sys::getTypeInputInfo(oid, &raw mut function, &raw mut parameter);
            pg_sys::fmgr_info(function, &raw mut looked_up);
            Pinned::begin()
        };
        Self { function: looked_up, parameter, typmod, text: Vec::new(), settings }
    }

    /// Reads a value, into the current memory context.
    ///
    /// # Safety
    /// Called on the main thread.
    pub(crate) unsafe fn read(&mut self, text: &[u8]) -> pg_sys::Datum {
        self.text.clear();
        self.text.extend_from_slice(text);
        self.text.push(0);
        // SAFETY: a string that ends in NUL; the function copies what it keeps.
        unsafe {
            pg_sys::InputFunctionCall(
                &raw mut self.function,
                self.text.as_mut_ptr().cast(),
                self.parameter,
                self.typmod,
            )
        }
    }

    /// Gives the session its settings back.
    ///
    /// # Safety
    /// As [`Self::read`].
    pub(crate) unsafe fn end(self) {
        // SAFETY: begun in `of`.
        unsafe { self.settings.end() };
    }
}
