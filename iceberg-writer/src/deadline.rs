//! How long the crate waits for what is outside of it, and how it waits between tries.

use std::time::Duration;

use uuid::Uuid;

/// For one operation of the file system, fsync included. A disk that takes longer is gone.
pub(crate) const STORAGE: Duration = Duration::from_secs(60);
/// For a connection to the catalog's database.
pub(crate) const CONNECT: Duration = Duration::from_secs(5);
/// For one SQL statement. The server is told the same, so that it does not go on without us.
pub(crate) const STATEMENT: Duration = Duration::from_secs(15);
/// For one commit, all tries together, unless the catalog is told otherwise.
pub(crate) const COMMIT: Duration = Duration::from_secs(60);

/// The pause before the first retry; each further one doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// A pause that doubles and is never the same for two writers.
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST_PAUSE }
    }

    /// Waits between half and all of the present pause.
    pub(crate) async fn wait(&mut self) {
        let half = self.next / 2;
        tokio::time::sleep(half + half.mul_f64(random_fraction())).await;
        self.next = (self.next * 2).min(LAST_PAUSE);
    }
}

/// A number in 0..1, from the random bits of a UUID.
fn random_fraction() -> f64 {
    let bits = Uuid::now_v7().as_u64_pair().1;
    f64::from(u32::try_from(bits & 0xFFFF_FFFF).expect("32 bits fit")) / f64::from(u32::MAX)
}
