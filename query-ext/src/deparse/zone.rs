//! `timestamptz`, where what it shows depends on the session's time zone.
//!
//! DuckDB's zone is UTC. What depends on a zone is sent when the session's is UTC too: then the two calendars are one. The plan
//! notes it ([`crate::lake_plan::LakePlan::utc`]), and is not used when the session has moved.

use std::ffi::CStr;

use lake_allowlist::Type;
use pgrx::pg_sys;

use super::{Deparser, NotSent, Typed, type_name};
use crate::lake_plan::Sql;

/// Names of the zone without an offset and without a summer.
const UTC: [&str; 8] = ["UTC", "Etc/UTC", "GMT", "Etc/GMT", "UCT", "Etc/UCT", "Zulu", "Etc/Zulu"];

/// Whether the session's time zone is UTC.
pub(crate) fn session_is_utc() -> bool {
    // SAFETY: the zone of the session is always there, and its name is static.
    let name = unsafe {
        let name = pg_sys::pg_get_timezone_name(pg_sys::session_timezone);
        if name.is_null() {
            return false;
        }
        CStr::from_ptr(name)
    };
    UTC.iter().any(|utc| name.to_bytes() == utc.as_bytes())
}

impl Deparser {
    /// Notes that something depends on the zone.
    pub(super) fn in_utc(&mut self, what: &str) -> Result<(), NotSent> {
        if !session_is_utc() {
            return NotSent::because(format!("{what} in a session whose time zone is not UTC"));
        }
        self.utc = true;
        Ok(())
    }

    /// A date or a timestamp that is compared with a moment, as a moment; anything else as it is.
    pub(super) fn as_moment(&mut self, typed: Typed, other: Option<Type>) -> Result<Typed, NotSent> {
        if other != Some(Type::Timestamptz) || !matches!(typed.kind(), Some(Type::Date | Type::Timestamp)) {
            return Ok(typed);
        }
        self.in_utc(&format!("comparison of {} and timestamptz", type_name(typed.oid)))?;
        // A date may be beyond all moments.
        self.throws |= typed.kind() == Some(Type::Date);
        let sql = Sql::from("CAST(CAST(") + typed.sql + " AS TIMESTAMP) AS TIMESTAMPTZ)";
        Ok(Typed::new(sql, pg_sys::TIMESTAMPTZOID, None))
    }
}
