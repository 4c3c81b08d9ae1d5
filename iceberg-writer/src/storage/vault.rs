//! The keys of a store that a catalog vends, each for the files of one table, while they last.
//!
//! A table's keys are entered when the catalog is asked for the table, and asked for again when their end is near, or when
//! the store refuses one. One request for them is on its way at a time; whoever else needs them meanwhile waits for its
//! answer. No other key is ever used in their place: what no table's keys are for cannot be read or written.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use tracing::{debug, warn};

use super::failure::StoreFailure;
use crate::error::Result;

/// Keys are asked for again when this much of their time is left, at most half of it: longer than a request to the store
/// may take, all its tries and the catalog's own time included.
const RENEW_BEFORE: Duration = Duration::from_secs(120);
/// For the catalog's answer; less than the time for all tries of a request to the store, which waits for it.
const VEND: Duration = Duration::from_secs(20);
/// A key that is refused so soon after it was vended is not refused for its age, and another would not be taken either.
const FRESH: Duration = Duration::from_secs(2);

/// A key of S3.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) token: Option<String>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// Where a catalog says that its store is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) path_style: Option<bool>,
}

/// A key that a catalog vended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vended {
    /// What the locations begin with that it is for.
    pub(crate) prefix: String,
    pub(crate) key: Key,
    pub(crate) address: Address,
    /// When it expires; `None`: nobody says.
    pub(crate) until: Option<SystemTime>,
}

/// Gives the keys for a table.
#[async_trait]
pub(crate) trait Vendor: Send + Sync {
    /// What counts now: one key or several, or the error that says why there is none.
    async fn vend(&self, namespace: &str, name: &str) -> Result<Vec<Vended>>;
}

/// The keys of all tables.
#[derive(Debug, Default)]
pub(crate) struct Vault {
    loans: Mutex<HashMap<(String, String), Arc<Loan>>>,
}

/// The keys of one table.
pub(crate) struct Loan {
    namespace: String,
    name: String,
    /// The table's folder.
    place: String,
    vendor: Arc<dyn Vendor>,
    held: Mutex<Held>,
    /// Who asks for new ones.
    asking: tokio::sync::Mutex<()>,
}

struct Held {
    vended: Vec<Vended>,
    at: SystemTime,
    since: Instant,
    /// How often the catalog was asked again, and what was wrong the last time.
    asked: u64,
    failure: Option<StoreFailure>,
}

impl fmt::Debug for Loan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan").field("place", &self.place).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A location, with one of the schemes' names that mean the same.
fn plain(location: &str) -> String {
    let same = ["s3a://", "s3n://"].into_iter().find_map(|scheme| location.strip_prefix(scheme));
    same.map_or_else(|| location.to_owned(), |rest| format!("s3://{rest}"))
}

/// Whether a location is in a folder.
fn is_in(location: &str, folder: &str) -> bool {
    let folder = folder.trim_end_matches('/');
    location.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The key for a location: the one with the longest prefix that it begins with, as the protocol has it. A prefix that names
/// a folder is not one of the folders whose names begin with it.
pub(crate) fn choose<'a>(vended: &'a [Vended], location: &str) -> Option<&'a Vended> {
    let location = plain(location);
    let fits = vended.iter().filter(|vended| {
        let prefix = plain(&vended.prefix);
        let is_of_all = !prefix.contains("://") || prefix.ends_with("://");
        if is_of_all { location.starts_with(&prefix) } else { is_in(&location, &prefix) }
    });
    fits.max_by_key(|vended| plain(&vended.prefix).len())
}

impl Vault {
    /// Takes what the catalog has just vended for the table in a folder.
    pub(crate) fn enter(&self, table: (&str, &str), place: &str, vended: Vec<Vended>, vendor: &Arc<dyn Vendor>) {
        let mut loans = lock(&self.loans);
        let (namespace, name) = (table.0.to_owned(), table.1.to_owned());
        let key = (namespace.clone(), name.clone());
        match loans.get(&key).filter(|loan| loan.place == place) {
            Some(loan) => loan.take(vended),
            None => {
                let held =
                    Mutex::new(Held { vended, at: SystemTime::now(), since: Instant::now(), asked: 0, failure: None });
                let (place, vendor) = (place.to_owned(), Arc::clone(vendor));
                let loan = Loan { namespace, name, place, vendor, held, asking: tokio::sync::Mutex::default() };
                loans.insert(key, Arc::new(loan));
            }
        }
    }

    /// The keys for a location: of the table in whose folder it is, else of one whose keys are for it.
    pub(super) fn find(&self, location: &str) -> Result<Arc<Loan>, StoreFailure> {
        let location = plain(location);
        let loans = lock(&self.loans);
        let of_table = loans.values().filter(|loan| is_in(&location, &plain(&loan.place)));
        let found = of_table.max_by_key(|loan| loan.place.len()).or_else(|| {
            let fits = |loan: &&Arc<Loan>| choose(&lock(&loan.held).vended, &location).is_some();
            loans.values().find(fits)
        });
        found.map(Arc::clone).ok_or_else(|| StoreFailure::not_vended("the catalog has vended no key for this place"))
    }
}

impl Loan {
    fn take(&self, vended: Vec<Vended>) {
        let mut held = lock(&self.held);
        (held.at, held.since, held.vended) = (SystemTime::now(), Instant::now(), vended);
    }

    /// What counts for locations with a prefix, as it is now.
    pub(super) fn held(&self, location: &str) -> Result<Vended, StoreFailure> {
        let held = lock(&self.held);
        choose(&held.vended, location).cloned().ok_or_else(|| {
            let prefixes: Vec<&str> = held.vended.iter().map(|vended| &*vended.prefix).collect();
            let Self { namespace, name, .. } = self;
            StoreFailure::not_vended(format!(
                "the keys that the catalog vends for {namespace}.{name} are for {} alone",
                prefixes.join(" and ")
            ))
        })
    }

    /// The same, renewed where its end is near.
    pub(super) async fn current(&self, location: &str) -> Result<Vended, StoreFailure> {
        let vended = self.held(location)?;
        let Some(until) = vended.until else { return Ok(vended) };
        let (now, at) = (SystemTime::now(), lock(&self.held).at);
        let life = until.duration_since(at).unwrap_or_default();
        let left = until.duration_since(now).unwrap_or_default();
        if left > RENEW_BEFORE.min(life / 2) {
            return Ok(vended);
        }
        match self.renew(location, &vended.key).await {
            Ok(renewed) => Ok(renewed),
            Err(failure) if !left.is_zero() => {
                warn!(table = format!("{}.{}", self.namespace, self.name), error = %failure, "could not renew the store's key; it counts for {} s", left.as_secs());
                Ok(vended)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Another key than one that the store has refused; `None`: there is none, or it would be refused as well.
    pub(super) async fn other(&self, location: &str, refused: &Key) -> Result<Option<Vended>, StoreFailure> {
        let vended = self.held(location)?;
        if vended.key != *refused {
            return Ok(Some(vended));
        }
        if lock(&self.held).since.elapsed() < FRESH {
            return Ok(None);
        }
        let renewed = self.renew(location, refused).await?;
        Ok(Some(renewed).filter(|renewed| renewed.key != *refused))
    }

    /// Asks the catalog, unless somebody has asked it meanwhile.
    async fn renew(&self, location: &str, former: &Key) -> Result<Vended, StoreFailure> {
        let before = lock(&self.held).asked;
        let _asking = self.asking.lock().await;
        let vended = self.held(location)?;
        if vended.key != *former {
            return Ok(vended);
        }
        {
            let held = lock(&self.held);
            if held.asked != before {
                // It was asked while we waited: its answer is ours too.
                return held.failure.clone().map_or(Ok(vended), Err);
            }
        }
        let (namespace, name) = (&self.namespace, &self.name);
        let answer = match tokio::time::timeout(VEND, self.vendor.vend(namespace, name)).await {
            Ok(answer) => answer.map_err(|error| StoreFailure::not_renewed(&error)),
            Err(_) => Err(StoreFailure::not_vended("the catalog did not vend another key in time")),
        };
        let failure = match answer {
            Ok(vended) => {
                debug!(table = format!("{namespace}.{name}"), "the catalog has vended another key");
                self.take(vended);
                None
            }
            Err(failure) => Some(failure),
        };
        {
            let mut held = lock(&self.held);
            held.asked += 1;
            held.failure.clone_from(&failure);
        }
        failure.map_or_else(|| self.held(location), Err)
    }
}

#[cfg(test)]
mod tests;
