//! The settings of the lake's files: how they are made (`lake.format_version`, `lake.file_size`), kept in order
//! (`lake.maintenance…`), and how long what was superseded stays (`lake.retention_…`); and what copies may ask for
//! (`lake.copy_…`). Their bounds are those of the standalone worker's file.

use std::ffi::CStr;
use std::time::Duration;

use cdc_worker::{CopyConfig, Format, LEAST_FILE_BYTES, MOST_GRACE, MaintenanceConfig, RETAINED_SNAPSHOTS, Retention};
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};

type Number = GucSetting<i32>;

static FORMAT_VERSION: Number = Number::new(2);
static FILE_SIZE: Number = Number::new(256 << 10);
static MAINTENANCE: GucSetting<bool> = GucSetting::<bool>::new(true);
static MAINTENANCE_BANDWIDTH: Number = Number::new(16 << 10);
static MAINTENANCE_TIER_FILES: Number = Number::new(8);
static RETENTION_AGE: Number = Number::new(600);
static RETENTION_SNAPSHOTS: Number = Number::new(100);
static RETENTION_GRACE: Number = Number::new(300);
static COPY_SNAPSHOT_AGE: Number = Number::new(1800);
static COPY_HELD_WAL: Number = Number::new(16 << 10);

/// What the engine is told of files.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct FileSettings {
    /// The version of Iceberg's format that new tables are of.
    pub(crate) format: Format,
    /// A data file is closed at about this size.
    pub(crate) file_bytes: usize,
    /// How files are kept in order.
    pub(crate) maintenance: MaintenanceConfig,
    /// How long superseded snapshots and their files stay.
    pub(crate) retention: Retention,
    /// What copies may ask of the source.
    pub(crate) copy: CopyConfig,
}

/// A number that is set: its name, what it is, the least and the most that it may be, and its unit.
struct Setting {
    name: &'static CStr,
    what: &'static CStr,
    value: &'static Number,
    least: i32,
    most: i32,
    unit: GucFlags,
}

/// Defines the settings.
pub(super) fn define() {
    GucRegistry::define_bool_guc(
        c"lake.maintenance",
        c"Small files, and those with many deleted rows, are rewritten beside the stream.",
        c"",
        &MAINTENANCE,
        GucContext::Sighup,
        GucFlags::default(),
    );
    for Setting { name, what, value, least, most, unit } in numbers() {
        GucRegistry::define_int_guc(name, what, c"", value, least, most, GucContext::Sighup, unit);
    }
}

fn numbers() -> [Setting; 9] {
    let setting = |name, what, value, least, most, unit| Setting { name, what, value, least, most, unit };
    let none = GucFlags::default();
    let least_bandwidth = bound(MaintenanceConfig::LEAST_BYTES_PER_SECOND >> 10);
    let (few, many) = (bound(*MaintenanceConfig::TIER_FILES.start()), bound(*MaintenanceConfig::TIER_FILES.end()));
    let (one, thousands) = (bound(*RETAINED_SNAPSHOTS.start()), bound(*RETAINED_SNAPSHOTS.end()));
    [
        setting(
            c"lake.format_version",
            c"Version of Iceberg's format that new tables are of: 2 or 3.",
            &FORMAT_VERSION,
            Format::V2.number().into(),
            Format::V3.number().into(),
            none,
        ),
        setting(
            c"lake.file_size",
            c"Size at which a data file is closed.",
            &FILE_SIZE,
            bound(LEAST_FILE_BYTES >> 10),
            i32::MAX,
            GucFlags::UNIT_KB,
        ),
        setting(
            c"lake.maintenance_bandwidth",
            c"Files that are rewritten in a second, at most.",
            &MAINTENANCE_BANDWIDTH,
            least_bandwidth,
            i32::MAX,
            GucFlags::UNIT_KB,
        ),
        setting(
            c"lake.maintenance_tier_files",
            c"So many files of about one size are rewritten into one.",
            &MAINTENANCE_TIER_FILES,
            few,
            many,
            none,
        ),
        setting(
            c"lake.retention_age",
            c"A snapshot of an Iceberg table expires so long after it was superseded.",
            &RETENTION_AGE,
            0,
            i32::MAX,
            GucFlags::UNIT_S,
        ),
        setting(
            c"lake.retention_snapshots",
            c"Snapshots of an Iceberg table that are kept, at most.",
            &RETENTION_SNAPSHOTS,
            one,
            thousands,
            none,
        ),
        setting(
            c"lake.retention_grace",
            c"What an expired snapshot alone needed is removed so long after it.",
            &RETENTION_GRACE,
            0,
            bound(MOST_GRACE.as_secs()),
            GucFlags::UNIT_S,
        ),
        setting(
            c"lake.copy_snapshot_age",
            c"A copy takes a new snapshot when its own is this old.",
            &COPY_SNAPSHOT_AGE,
            1,
            i32::MAX,
            GucFlags::UNIT_S,
        ),
        setting(
            c"lake.copy_held_wal",
            c"WAL that the slot keeps so that an interrupted copy goes on.",
            &COPY_HELD_WAL,
            0,
            i32::MAX,
            GucFlags::UNIT_MB,
        ),
    ]
}

/// What is set.
pub(super) fn read() -> FileSettings {
    let seconds = |setting: &Number| Duration::from_secs(setting.get().unsigned_abs().into());
    let bytes = |setting: &Number, unit: u32| u64::from(setting.get().unsigned_abs()) << unit;
    let count = |setting: &Number| usize::try_from(setting.get()).unwrap_or_default();
    FileSettings {
        format: if FORMAT_VERSION.get() == i32::from(Format::V3.number()) { Format::V3 } else { Format::V2 },
        file_bytes: count(&FILE_SIZE) << 10,
        maintenance: MaintenanceConfig {
            enabled: MAINTENANCE.get(),
            bytes_per_second: bytes(&MAINTENANCE_BANDWIDTH, 10),
            tier_files: count(&MAINTENANCE_TIER_FILES),
        },
        retention: Retention {
            age: seconds(&RETENTION_AGE),
            snapshots: count(&RETENTION_SNAPSHOTS),
            grace: seconds(&RETENTION_GRACE),
        },
        copy: CopyConfig { snapshot_age: seconds(&COPY_SNAPSHOT_AGE), held_wal: bytes(&COPY_HELD_WAL, 20) },
    }
}

/// A bound of the engine's as a bound of a setting.
fn bound(value: impl TryInto<i32>) -> i32 {
    value.try_into().unwrap_or(i32::MAX)
}
