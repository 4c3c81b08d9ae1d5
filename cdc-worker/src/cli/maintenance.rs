//! The sections `maintenance` and `retention` of the configuration file: how the lake's files are kept in order, and how long
//! what was superseded stays.

use std::time::Duration;

use iceberg_writer::Retention;
use serde::Deserialize;

use super::file::{bytes, config_error};
use crate::config::{MOST_GRACE, MaintenanceConfig, RETAINED_SNAPSHOTS};
use crate::error::Error;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MaintenanceSection {
    enabled: Option<bool>,
    bandwidth: Option<String>,
    tier_files: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RetentionSection {
    #[serde(default, with = "humantime_serde::option")]
    age: Option<Duration>,
    snapshots: Option<usize>,
    #[serde(default, with = "humantime_serde::option")]
    grace: Option<Duration>,
}

impl MaintenanceSection {
    /// What the engine is told.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`], naming the key.
    pub(super) fn read(&self) -> Result<MaintenanceConfig, Error> {
        let default = MaintenanceConfig::default();
        let bytes_per_second = match &self.bandwidth {
            Some(text) => {
                bytes(text).filter(|bytes| *bytes >= MaintenanceConfig::LEAST_BYTES_PER_SECOND).ok_or_else(|| {
                    config_error(format!("maintenance.bandwidth = \"{text}\" is not a size, or too small"))
                        .with_hint("bytes a second, like \"16MiB\"; at least 64KiB")
                })?
            }
            None => default.bytes_per_second,
        };
        let tier_files = self.tier_files.unwrap_or(default.tier_files);
        if !MaintenanceConfig::TIER_FILES.contains(&tier_files) {
            return Err(config_error(format!("maintenance.tier_files = {tier_files}")).with_hint("between 2 and 64"));
        }
        Ok(MaintenanceConfig { enabled: self.enabled.unwrap_or(default.enabled), bytes_per_second, tier_files })
    }
}

impl RetentionSection {
    /// What the engine is told.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`], naming the key.
    pub(super) fn read(&self) -> Result<Retention, Error> {
        let default = Retention::default();
        let snapshots = self.snapshots.unwrap_or(default.snapshots);
        if !RETAINED_SNAPSHOTS.contains(&snapshots) {
            return Err(config_error(format!("retention.snapshots = {snapshots}")).with_hint("between 1 and 10000"));
        }
        let (age, grace) = (self.age.unwrap_or(default.age), self.grace.unwrap_or(default.grace));
        if grace > MOST_GRACE {
            return Err(config_error("retention.grace is more than a year".to_owned()).with_hint("at most \"366days\""));
        }
        Ok(Retention { age, snapshots, grace })
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::tests::{LEAST, load_text};
    use super::*;

    #[test]
    fn maintenance_is_on_unless_it_is_turned_off() {
        assert_eq!(load_text(LEAST).unwrap().0.maintenance, MaintenanceConfig::default());
        let set = |keys: &str| load_text(&format!("{LEAST}[maintenance]\n{keys}\n"));
        let config = set("enabled = false\nbandwidth = '1MiB'\ntier_files = 2").unwrap().0.maintenance;
        assert_eq!(config, MaintenanceConfig { enabled: false, bytes_per_second: 1 << 20, tier_files: 2 });
        for wrong in ["bandwidth = '1KiB'", "bandwidth = 'x'", "tier_files = 1", "tier_files = 65"] {
            let error = set(wrong).unwrap_err();
            assert!(error.report().contains("maintenance.") && error.hint().is_some(), "{wrong}");
        }
    }

    #[test]
    fn snapshots_are_kept_as_long_as_is_wanted() {
        assert_eq!(load_text(LEAST).unwrap().0.retention, Retention::default());
        let set = |keys: &str| load_text(&format!("{LEAST}[retention]\n{keys}\n"));
        let set_all = set("age = '2h'\nsnapshots = 7\ngrace = '0s'").unwrap().0.retention;
        let hours = Duration::from_secs(7200);
        assert_eq!(set_all, Retention { age: hours, snapshots: 7, grace: Duration::ZERO });
        for wrong in ["snapshots = 0", "snapshots = 10001", "grace = '1000000years'"] {
            let error = set(wrong).unwrap_err();
            assert!(error.report().contains("retention.") && error.hint().is_some(), "{wrong}");
        }
    }
}
