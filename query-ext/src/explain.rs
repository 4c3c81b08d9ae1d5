//! What EXPLAIN shows of a LakeScan.

use std::ffi::{CStr, CString};

use lake_engine::Peak;
use pgrx::prelude::*;

use crate::answer::Report;
use crate::lake_plan::LakePlan;
use crate::{pin, settings};

/// Writes the lines of a scan, bytes where nothing else is said. Without ANALYZE the worker is asked what it would read, without waiting.
///
/// # Safety
/// `state` is the state of an EXPLAIN.
pub(crate) unsafe fn write(
    plan: &LakePlan,
    report: Option<&Report>,
    peak: Option<Peak>,
    state: *mut pg_sys::ExplainState,
) {
    // SAFETY: per the contract; the texts are copied by the callee.
    unsafe {
        let text = |label: &CStr, value: &str| {
            let value = CString::new(value.replace('\0', "")).unwrap_or_default();
            pg_sys::ExplainPropertyText(label.as_ptr(), value.as_ptr(), state);
        };
        let number = |label: &CStr, value: u64| {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            pg_sys::ExplainPropertyInteger(label.as_ptr(), std::ptr::null(), value, state);
        };
        let sql = plan.sql.render(&mut |table| plan.tables[table].name.clone(), &mut |value| format!("${}", value + 1));
        text(c"Lake SQL", &sql);
        if !plan.not_pushed.is_empty() {
            text(c"Not Pushed", &plan.not_pushed.join("; "));
        }
        if (*state).analyze {
            let Some(report) = report else { return };
            if let Some(reason) = &report.heap {
                text(c"Answered By", &format!("heap ({reason})"));
            }
            if let Some(lsn) = report.lsn {
                text(c"Lake LSN", &show_lsn(lsn));
                number(c"Files", report.files);
                number(c"Files Pruned", report.pruned);
                number(c"Bytes", report.bytes);
                number(c"Deleted Positions", report.deleted);
                number(c"Fresh Rows", report.fresh);
                text(c"Freshness", report.freshness);
                number(c"Wait ms", report.wait_ms);
            }
            if let Some(peak) = peak {
                number(c"Engine Memory", peak.memory);
                number(c"Engine Spilled", peak.spilled);
            }
            return;
        }
        text(c"Freshness", settings::freshness().word());
        // What a parameter will be is not known.
        match pin::peek(&plan.sources, plan.wanted(|_, _| None)) {
            Ok(pin) => {
                let read =
                    || pin.tables.iter().filter(|pinned| plan.tables.iter().any(|t| t.source == pinned.relation));
                text(c"Lake LSN", &show_lsn(pin.lsn));
                number(c"Files", read().map(|table| table.files.len() as u64).sum());
                number(c"Files Pruned", read().map(|table| table.pruned).sum());
                number(c"Bytes", read().flat_map(|table| &table.files).map(|file| file.bytes).sum());
                let deleted = read().flat_map(|table| &table.files).map(|file| file.deleted).sum();
                number(c"Deleted Positions", deleted);
                number(c"Fresh Rows", read().map(|table| table.fresh_rows).sum());
            }
            Err(error) => text(c"Lake", error.message()),
        }
    }
}

fn show_lsn(lsn: u64) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff)
}
