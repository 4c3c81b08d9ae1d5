//! Deletion vectors: which rows of a data file are gone, as a bitmap, in tables of format version 3.
//!
//! A data file has one, or none: a commit that deletes more of its rows brings a new one, with all of them, and the former
//! one goes (`commit::manifests`). A vector is a blob in a Puffin file, which may have several. Manifests say of each where
//! in the file it begins, and how long it is, so that a reader needs neither the file's footer nor the others.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use bytes::Bytes;
use futures_util::future::try_join_all;
use iceberg::puffin::{CREATED_BY_PROPERTY, DELETION_VECTOR_V1};
use iceberg::spec::{DataContentType, DataFile, DataFileFormat, ManifestEntryRef};
use roaring::RoaringTreemap;
use serde::Serialize;
use uuid::Uuid;

use crate::data_file::{WrittenFile, data_file};
use crate::deletes::DeletedRows;
use crate::error::{Error, Result};
use crate::partition::Partition;
use crate::table::LakeTable;
use crate::warehouse::Warehouse;

/// What a vector begins with, behind its length.
const VECTOR_MAGIC: [u8; 4] = [0xD1, 0xD3, 0x39, 0x64];
/// What a Puffin file, its footer, and its end begin with.
const PUFFIN_MAGIC: [u8; 4] = *b"PFA1";
/// The bytes of a length, and of a checksum.
const WORD: usize = 4;
/// The column that a vector is about, as the specification has it: a row's position.
const POSITION_FIELD: i32 = 2_147_483_645;
/// Of a snapshot, and its sequence number, which are not known yet when the file is written.
const INHERITED: i64 = -1;

/// Files that are written at a time.
const WRITES_AT_ONCE: usize = 16;

/// A Puffin file's own list of what is in it.
#[derive(Serialize)]
struct Footer<'a> {
    blobs: Vec<Blob<'a>>,
    properties: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Blob<'a> {
    r#type: &'a str,
    fields: [i32; 1],
    snapshot_id: i64,
    sequence_number: i64,
    offset: u64,
    length: u64,
    properties: BTreeMap<&'a str, String>,
}

/// A vector in a Puffin file.
struct Placed<'a> {
    data_file: &'a str,
    cardinality: u64,
    place: Range<u64>,
}

/// Writes the deleted positions of a table's data files as vectors. Each gives an entry, about one data file.
///
/// Each is in a file of its own, although one could have all: DuckDB 1.5.5 takes the first vector of a file that it has cached
/// for every other one in it, and answers wrongly without a word (duckdb/duckdb-iceberg, pull request 1182).
pub(crate) async fn write_vectors(
    warehouse: &Warehouse,
    table: &LakeTable,
    epoch: i64,
    attempt: Uuid,
    deleted: &[(&String, &DeletedRows)],
) -> Result<Vec<WrittenFile>> {
    let mut written = Vec::with_capacity(deleted.len());
    for some in deleted.chunks(WRITES_AT_ONCE) {
        let mut writes = Vec::with_capacity(some.len());
        for (data_file, DeletedRows { partition, positions }) in some {
            let path = table.puffin_path(&format!("{epoch}-{attempt}-deletes-{:05}", written.len() + writes.len()));
            writes.push(write_file(warehouse, path, partition, data_file, positions));
        }
        written.extend(try_join_all(writes).await?.into_iter().flatten());
    }
    Ok(written)
}

async fn write_file(
    warehouse: &Warehouse,
    path: String,
    partition: &Partition,
    data_file_path: &String,
    positions: &RoaringTreemap,
) -> Result<Vec<WrittenFile>> {
    let (file, placed) = puffin(&[(data_file_path, positions)])
        .map_err(|error| Error::format(format!("write deletion vectors into {path}")).with_source(error))?;
    let bytes = file.len() as u64;
    let write = async { warehouse.file_io().new_output(&path)?.write(file.into()).await };
    write.await.map_err(|error| Error::iceberg(format!("write {path}"), error))?;
    let describe = |vector: Placed<'_>| {
        let mut builder = data_file(&path, DataContentType::PositionDeletes, partition, vector.cardinality, bytes);
        builder
            .file_format(DataFileFormat::Puffin)
            .referenced_data_file(Some(vector.data_file.to_owned()))
            .content_offset(Some(vector.place.start.cast_signed()))
            .content_size_in_bytes(Some((vector.place.end - vector.place.start).cast_signed()));
        let entry = builder.build().map_err(|error| Error::format(format!("describe {path}")).with_source(error))?;
        Ok(WrittenFile::new(entry, partition.clone()))
    };
    placed.into_iter().map(describe).collect()
}

/// A Puffin file of vectors. Its footer is not compressed, for not all readers would take that.
fn puffin<'a>(
    deleted: &[(&'a String, &RoaringTreemap)],
) -> Result<(Vec<u8>, Vec<Placed<'a>>), Box<dyn std::error::Error + Send + Sync>> {
    let mut file = PUFFIN_MAGIC.to_vec();
    let mut placed = Vec::with_capacity(deleted.len());
    for (data_file, positions) in deleted {
        let start = file.len() as u64;
        encode(positions, &mut file)?;
        let place = start..file.len() as u64;
        placed.push(Placed { data_file: data_file.as_str(), cardinality: positions.len(), place });
    }
    let blob = |vector: &Placed<'a>| Blob {
        r#type: DELETION_VECTOR_V1,
        fields: [POSITION_FIELD],
        snapshot_id: INHERITED,
        sequence_number: INHERITED,
        offset: vector.place.start,
        length: vector.place.end - vector.place.start,
        properties: BTreeMap::from([
            ("cardinality", vector.cardinality.to_string()),
            ("referenced-data-file", vector.data_file.to_owned()),
        ]),
    };
    let created_by = concat!("lakemirror ", env!("CARGO_PKG_VERSION"));
    let footer = Footer {
        blobs: placed.iter().map(blob).collect(),
        properties: BTreeMap::from([(CREATED_BY_PROPERTY, created_by)]),
    };
    let footer = serde_json::to_vec(&footer)?;
    file.extend(PUFFIN_MAGIC);
    file.extend(&footer);
    file.extend(u32::try_from(footer.len())?.to_le_bytes());
    // No flag is set.
    file.extend([0; WORD]);
    file.extend(PUFFIN_MAGIC);
    Ok((file, placed))
}

/// Appends a vector: its length, then magic and bitmap, which it counts, then their checksum. Length and checksum are
/// big-endian, the bitmap is little-endian.
fn encode(positions: &RoaringTreemap, out: &mut Vec<u8>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let length = VECTOR_MAGIC.len() + positions.serialized_size();
    out.extend(u32::try_from(length)?.to_be_bytes());
    let start = out.len();
    out.extend(VECTOR_MAGIC);
    positions.serialize_into(&mut *out)?;
    let checksum = crc32fast::hash(&out[start..]);
    out.extend(checksum.to_be_bytes());
    Ok(())
}

/// The positions of a vector, or what is wrong with it.
fn decode(vector: &[u8]) -> Result<RoaringTreemap, String> {
    let (length, rest) = vector.split_first_chunk::<WORD>().ok_or("it is too short")?;
    let (body, checksum) = rest.split_last_chunk::<WORD>().ok_or("it is too short")?;
    if u32::from_be_bytes(*length) as usize != body.len() {
        return Err(format!("it says that it has {} bytes, and has {}", u32::from_be_bytes(*length), body.len()));
    }
    let bitmap = body.strip_prefix(&VECTOR_MAGIC).ok_or("it does not begin as vectors do")?;
    if u32::from_be_bytes(*checksum) != crc32fast::hash(body) {
        return Err("its checksum is another".to_owned());
    }
    RoaringTreemap::deserialize_from(bitmap).map_err(|error| error.to_string())
}

/// Whether an entry is a vector, and not a file of positions.
pub(crate) fn is_vector(entry: &DataFile) -> bool {
    entry.content_type() == DataContentType::PositionDeletes && entry.file_format() == DataFileFormat::Puffin
}

/// Adds what vectors of any writer delete to `deleted`.
pub(crate) async fn read_vectors(
    warehouse: &Warehouse,
    entries: &[ManifestEntryRef],
    deleted: &mut HashMap<String, RoaringTreemap>,
) -> Result<()> {
    let mut by_file: BTreeMap<&str, Vec<(Range<u64>, &DataFile)>> = BTreeMap::new();
    for entry in entries {
        let place = entry.data_file().content_offset().zip(entry.data_file().content_size_in_bytes());
        let place = place.and_then(|(at, size)| {
            let at = u64::try_from(at).ok()?;
            Some(at..at.checked_add(u64::try_from(size).ok()?)?)
        });
        let path = entry.file_path();
        let place =
            place.ok_or_else(|| Error::format(format!("a manifest does not say where in {path} a vector is")))?;
        by_file.entry(path).or_default().push((place, entry.data_file()));
    }
    for (path, vectors) in by_file {
        // Those that are in one file are read in one request.
        let start = vectors.iter().map(|(place, _)| place.start).min().unwrap_or(0);
        let end = vectors.iter().map(|(place, _)| place.end).max().unwrap_or(0);
        let read = async { warehouse.file_io().new_input(path)?.reader().await?.read(start..end).await };
        let bytes: Bytes = read.await.map_err(|error| Error::iceberg(format!("read {path}"), error))?;
        for (place, entry) in vectors {
            let fail = |what: String| {
                Error::format(format!("the deletion vector at {} in {path} is damaged: {what}", place.start))
            };
            let within = |at: u64| usize::try_from(at - start).ok();
            let vector = within(place.start).zip(within(place.end)).and_then(|(from, to)| bytes.get(from..to));
            let positions = decode(vector.ok_or_else(|| fail("the file is too short".to_owned()))?).map_err(fail)?;
            if positions.len() != entry.record_count() {
                let (said, found) = (entry.record_count(), positions.len());
                return Err(fail(format!("it has {found} positions instead of {said}")));
            }
            let of = entry.referenced_data_file().ok_or_else(|| fail("it is about no data file".to_owned()))?;
            if deleted.insert(of.clone(), positions).is_some() {
                return Err(Error::format(format!("{of} has two deletion vectors")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use iceberg::io::FileIO;
    use iceberg::puffin::PuffinReader;
    use proptest::prelude::*;

    /// What Iceberg's own tests call small alternating values: 1, 3, 5, 7 and 9.
    const ALTERNATING: &str = concat!(
        "0000002a",
        "d1d33964",
        "0100000000000000",
        "00000000",
        "3a3000000100000000000400",
        "10000000",
        "01000300050007000900",
        "b3fb20be"
    );

    fn bytes(hex_digits: &str) -> Vec<u8> {
        hex::decode(hex_digits).unwrap()
    }

    fn encoded(positions: &RoaringTreemap) -> Vec<u8> {
        let mut out = Vec::new();
        encode(positions, &mut out).unwrap();
        out
    }

    #[test]
    fn a_vector_is_what_the_specification_says() {
        let positions: RoaringTreemap = [1, 3, 5, 7, 9].into_iter().collect();
        assert_eq!(hex::encode(encoded(&positions)), ALTERNATING);
        assert_eq!(decode(&bytes(ALTERNATING)).unwrap(), positions);
    }

    #[test]
    fn a_damaged_vector_is_refused() {
        let whole = bytes(ALTERNATING);
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            assert!(decode(&damaged).is_err(), "byte {at}");
            assert!(decode(&whole[..at]).is_err(), "{at} bytes");
        }
        assert!(decode(&whole[4..]).unwrap_err().contains("bytes"));
    }

    #[tokio::test]
    async fn the_container_is_what_the_library_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.puffin");
        let (one, two) = ("a".to_owned(), "b".to_owned());
        let (few, many) = ([7].into_iter().collect(), (0..100_000).chain([1 << 40]).collect());
        let (file, placed) = puffin(&[(&one, &few), (&two, &many)]).unwrap();
        std::fs::write(&path, &file).unwrap();
        let reader = PuffinReader::new(FileIO::new_with_fs().new_input(path.to_str().unwrap()).unwrap());
        let blobs = reader.file_metadata().await.unwrap().blobs().to_vec();
        assert_eq!(blobs.len(), 2);
        for ((blob, placed), positions) in blobs.iter().zip(&placed).zip([&few, &many]) {
            assert_eq!(blob.blob_type(), "deletion-vector-v1");
            assert_eq!((blob.fields(), blob.snapshot_id(), blob.sequence_number()), (&[POSITION_FIELD][..], -1, -1));
            assert_eq!(blob.offset()..blob.offset() + blob.length(), placed.place);
            assert_eq!(blob.properties()["referenced-data-file"], placed.data_file);
            assert_eq!(blob.properties()["cardinality"], positions.len().to_string());
            assert_eq!(decode(reader.blob(blob).await.unwrap().data()).unwrap(), *positions);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(positions in prop::collection::btree_set(0_u64..1 << 34, 0..200), dense in 0_u64..9000) {
            let positions: RoaringTreemap = positions.into_iter().chain(0..dense).collect();
            prop_assert_eq!(decode(&encoded(&positions)).unwrap(), positions);
        }
    }
}
