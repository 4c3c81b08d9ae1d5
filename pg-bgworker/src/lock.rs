//! Locks of our own in Postgres's lock table: in the space of advisory locks, but with a fourth field that no SQL
//! function can name, so that no session can take them by accident or on purpose.

use pgrx::pg_sys;

use crate::error::Error;
use crate::registry;

/// Marks our locks: "lake" in ASCII.
const SPACE: u32 = 0x6c61_6b65;
/// The SQL functions use 1 and 2.
const KIND: u16 = 3;

/// What is locked, in this database.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Lock {
    /// Held by the supervisor of this database's engine for as long as its process lives.
    Engine = 1,
    /// Held by a transaction that changes which tables are mirrored.
    Registry = 2,
}

impl Lock {
    fn tag(self) -> pg_sys::LOCKTAG {
        pg_sys::LOCKTAG {
            // SAFETY: a plain variable of the main thread, set when the process connected to its database.
            locktag_field1: u32::from(unsafe { pg_sys::MyDatabaseId }),
            locktag_field2: SPACE,
            locktag_field3: self as u32,
            locktag_field4: KIND,
            locktag_type: u8::try_from(pg_sys::LockTagType::LOCKTAG_ADVISORY).expect("a tag type is a byte"),
            locktag_lockmethodid: u8::try_from(pg_sys::USER_LOCKMETHOD).expect("a lock method is a byte"),
        }
    }

    /// Takes the lock until the process ends, if it is free. An aborted transaction does not give it back.
    pub(crate) fn try_for_session(self) -> bool {
        self.acquire(true, true)
    }

    /// Waits for the lock and keeps it until the transaction ends. Obeys `lock_timeout` and a cancel.
    pub(crate) fn for_transaction(self) {
        self.acquire(false, false);
    }

    /// Whether some process holds it.
    pub(crate) fn is_held(self) -> Result<bool, Error> {
        let tag = self.tag();
        let query = format!(
            "SELECT true FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND granted
             AND database = {} AND classid = {} AND objid = {} AND objsubid = {}",
            tag.locktag_field1, tag.locktag_field2, tag.locktag_field3, tag.locktag_field4
        );
        registry::holds(&query, &[])
    }

    fn acquire(self, session: bool, dont_wait: bool) -> bool {
        let mode = pg_sys::LOCKMODE::try_from(pg_sys::ExclusiveLock).expect("a lock mode is a small number");
        let tag = self.tag();
        // SAFETY: the tag lives during the call; callers are inside a transaction.
        let result = unsafe { pg_sys::LockAcquire(&raw const tag, mode, session, dont_wait) };
        result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    }
}
