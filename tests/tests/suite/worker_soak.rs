//! The standalone worker under random work and faults: the short form of `make soak`.

use std::time::Duration;

use anyhow::{Result, ensure};
use lake_tests::bounded;
use lake_tests::soak::{Soak, directory};

use crate::TEST_LIMIT;

#[tokio::test]
async fn heap_and_lake_are_equal_after_every_round_of_random_work() -> Result<()> {
    bounded(TEST_LIMIT, async {
        let soak = Soak {
            seed: 5,
            alters: false,
            lasting: Duration::from_secs(20),
            round: Duration::from_secs(8),
            directory: directory("suite"),
        };
        let done = soak.run().await?;
        ensure!(done.rounds >= 2 && done.committed > 100, "{done:?}");
        Ok(())
    })
    .await
}
