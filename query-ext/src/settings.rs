//! The settings `lake.*` of queries.

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};

/// How new an answer from the lake has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
#[allow(non_camel_case_types, reason = "these are the setting's values")]
pub(crate) enum Freshness {
    /// Every transaction that was committed before the statement began.
    strict,
    /// Everything this session committed.
    session,
    /// What the Iceberg snapshots hold.
    committed,
}

/// Whether queries on the sources' own names are answered from the lake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
#[allow(non_camel_case_types, reason = "these are the setting's values")]
pub(crate) enum Accelerate {
    /// The heap answers.
    off,
    /// From `lake.accelerate_cost` on.
    on,
    /// Whatever the cost: for tests.
    force,
}

static ACCELERATE: GucSetting<Accelerate> = GucSetting::<Accelerate>::new(Accelerate::off);
/// About a tenth of a second of the heap's work: much less, and DuckDB's start would be felt.
static ACCELERATE_COST: GucSetting<f64> = GucSetting::<f64>::new(10_000.0);
static FRESHNESS: GucSetting<Freshness> = GucSetting::<Freshness>::new(Freshness::strict);
static FRESHNESS_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static PUSHDOWN: GucSetting<bool> = GucSetting::<bool>::new(true);
static MEMORY_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(512);
static THREADS: GucSetting<i32> = GucSetting::<i32>::new(2);
static TEMP_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(10 << 10);
static TEMP_DIRECTORY: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static PRELOADED: AtomicBool = AtomicBool::new(false);

/// Defines the settings; called once, by the postmaster.
pub(crate) fn define() {
    PRELOADED.store(true, Ordering::Relaxed);
    GucRegistry::define_enum_guc(
        c"lake.freshness",
        c"How new answers from the lake have to be.",
        c"strict: all that was committed before the statement; session: all that this session committed; committed: what Iceberg has.",
        &FRESHNESS,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"lake.freshness_timeout",
        c"How long a query waits for the lake to be as new as lake.freshness asks.",
        c"Then it fails; it never answers with older rows.",
        &FRESHNESS_TIMEOUT,
        0,
        i32::MAX,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_bool_guc(
        c"lake.pushdown",
        c"Whether queries on lake.<table> are answered from the lake.",
        c"When off, the source tables answer them.",
        &PUSHDOWN,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"lake.accelerate",
        c"Whether queries on mirrored tables themselves are answered from the lake.",
        c"on: when their cost is at least lake.accelerate_cost; force: always. The heap answers whatever the lake cannot.",
        &ACCELERATE,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_float_guc(
        c"lake.accelerate_cost",
        c"The planner's cost from which on lake.accelerate lets the lake answer.",
        c"",
        &ACCELERATE_COST,
        0.0,
        f64::MAX,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"lake.memory_limit",
        c"Memory of the embedded DuckDB of a session; what does not fit is spilled to lake.temp_directory.",
        c"",
        &MEMORY_LIMIT,
        32,
        1 << 20,
        GucContext::Suset,
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_int_guc(
        c"lake.threads",
        c"Threads of the embedded DuckDB of a session.",
        c"",
        &THREADS,
        1,
        256,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"lake.temp_directory",
        c"Where the embedded DuckDB spills; empty means the system's temporary directory.",
        c"",
        &TEMP_DIRECTORY,
        GucContext::Suset,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_int_guc(
        c"lake.temp_limit",
        c"How much the embedded DuckDB of a session may spill; 0: it may not.",
        c"A query that needs more is the heap's, where the heap can answer.",
        &TEMP_LIMIT,
        0,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_MB,
    );
}

/// Whether the library was loaded by the postmaster.
pub(crate) fn preloaded() -> bool {
    PRELOADED.load(Ordering::Relaxed)
}

/// `lake.accelerate`.
pub(crate) fn accelerate() -> Accelerate {
    ACCELERATE.get()
}

/// `lake.accelerate_cost`.
pub(crate) fn accelerate_cost() -> f64 {
    ACCELERATE_COST.get()
}

impl Freshness {
    /// The setting's value.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::strict => "strict",
            Self::session => "session",
            Self::committed => "committed",
        }
    }
}

/// `lake.freshness`.
pub(crate) fn freshness() -> Freshness {
    FRESHNESS.get()
}

/// `lake.freshness_timeout`.
pub(crate) fn freshness_timeout() -> Duration {
    Duration::from_millis(u64::try_from(FRESHNESS_TIMEOUT.get()).unwrap_or(0))
}

/// `lake.pushdown`.
pub(crate) fn pushdown() -> bool {
    PUSHDOWN.get()
}

/// `lake.memory_limit`, in megabytes.
pub(crate) fn memory_limit() -> u32 {
    u32::try_from(MEMORY_LIMIT.get()).unwrap_or(512)
}

/// `lake.threads`.
pub(crate) fn threads() -> u32 {
    u32::try_from(THREADS.get()).unwrap_or(1)
}

/// `lake.temp_directory`, when it is set.
pub(crate) fn temp_directory() -> Option<String> {
    TEMP_DIRECTORY.get().and_then(|path| path.into_string().ok()).filter(|path| !path.is_empty())
}

/// `lake.temp_limit`, in megabytes.
pub(crate) fn temp_limit() -> u32 {
    u32::try_from(TEMP_LIMIT.get()).unwrap_or(0)
}
