//! What is done of copies, so that they go on after a restart.

use iceberg_writer::Lsn;
use uuid::Uuid;

use crate::Result;
use crate::source::copy::progress::Abandoned;

use super::Registry;

impl Registry<'_> {
    /// What a process that has ended has done of a table's copy.
    ///
    /// # Errors
    /// [`crate::ErrorKind::SourceUnreachable`].
    pub(crate) async fn abandoned_copy(&self, relation: u32, table_uuid: Uuid) -> Result<Option<Abandoned>> {
        let statement = format!(
            "SELECT shape, as_of, part FROM {} WHERE mirror = $1 AND relation = $2 AND table_uuid = $3 ORDER BY as_of",
            self.table("copied_parts")
        );
        let rows = self.client.query(&statement, &[&self.mirror, &relation, &table_uuid]).await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let parts = rows.iter().map(|row| (row.get(1), row.get(2))).collect();
        Ok(Some(Abandoned { table_uuid, shape: first.get(0), parts }))
    }

    /// A part of the copy into the Iceberg table `table_uuid` is done, and its files are kept.
    ///
    /// # Errors
    /// [`crate::ErrorKind::SourceUnreachable`].
    pub(crate) async fn part_done(
        &self,
        relation: u32,
        table_uuid: Uuid,
        shape: &str,
        as_of: Lsn,
        part: &str,
    ) -> Result<()> {
        let statement = format!(
            "INSERT INTO {} (mirror, relation, table_uuid, shape, as_of, part) VALUES ($1, $2, $3, $4, $5, $6)",
            self.table("copied_parts")
        );
        self.client.execute(&statement, &[&self.mirror, &relation, &table_uuid, &shape, &as_of, &part]).await?;
        Ok(())
    }

    /// A table's copy is done, or will not go on from where it is.
    ///
    /// # Errors
    /// [`crate::ErrorKind::SourceUnreachable`].
    pub(crate) async fn forget_parts(&self, relation: u32) -> Result<()> {
        let statement = format!("DELETE FROM {} WHERE mirror = $1 AND relation = $2", self.table("copied_parts"));
        self.client.execute(&statement, &[&self.mirror, &relation]).await?;
        Ok(())
    }
}
