//! The files of several snapshots, made one table: of each key, the row of the newest snapshot counts.
//!
//! The index does the work: entries that are put into it later hide those of before. So a row of an earlier snapshot is
//! superseded exactly when the index has its key at another position.

use iceberg_writer::Lsn;
use roaring::RoaringTreemap;

use crate::Result;
use crate::error::{Error, ErrorKind};
use crate::stored_keys::each_stored_key;
use crate::table::{CopiedFile, IndexWriter, Position};

use super::CopyJob;
use super::progress::{NumberedFile, Progress};

/// Puts the rows of files that an earlier process has copied into the index, which is empty.
pub(super) async fn index(job: &CopyJob, progress: &Progress) -> Result<()> {
    let lake = job.lake.with_companions(progress.companions());
    for parts in progress.parts.chunk_by(|a, b| a.as_of == b.as_of) {
        let mut index = IndexWriter::new(job.index.clone());
        for NumberedFile { number, file } in parts.iter().flat_map(|part| &part.files) {
            each_stored_key(&job.warehouse, &lake, job.table.identity, &file.path, |row, key| {
                index.put(key, Position { file: *number, row })
            })
            .await?;
        }
        index.finish()?;
    }
    Ok(())
}

/// The copy's files by number, and which of their rows count no more.
pub(super) async fn files(job: &CopyJob, progress: Progress, last: Lsn) -> Result<Vec<CopiedFile>> {
    let lake = job.lake.with_companions(progress.companions());
    let parts = progress.parts.into_iter();
    let mut files: Vec<(NumberedFile, Lsn)> =
        parts.flat_map(|part| part.files.into_iter().map(move |file| (file, part.as_of))).collect();
    files.sort_unstable_by_key(|(file, _)| file.number);
    if files.iter().enumerate().any(|(place, (file, _))| usize::try_from(file.number) != Ok(place)) {
        return Err(Error::new(ErrorKind::Index, "the files of a copy are not numbered one by one"));
    }
    let mut copied = Vec::with_capacity(files.len());
    for (NumberedFile { number, file }, as_of) in files {
        let mut superseded = RoaringTreemap::new();
        if as_of < last {
            each_stored_key(&job.warehouse, &lake, job.table.identity, &file.path, |row, key| {
                if job.index.get(key)? != Some(Position { file: number, row }) {
                    superseded.insert(u64::from(row));
                }
                Ok(())
            })
            .await?;
        }
        copied.push(CopiedFile { file, as_of, superseded });
    }
    Ok(copied)
}
