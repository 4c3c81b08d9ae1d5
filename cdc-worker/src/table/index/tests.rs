use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn store() -> (tempfile::TempDir, IndexStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = IndexStore::create(&directory.path().join("index")).unwrap();
    (directory, store)
}

fn at(file: u32, row: u32) -> Position {
    Position { file, row }
}

/// Identities long and short; of the long ones only hashes are kept.
fn identity(number: u32) -> Vec<u8> {
    if number.is_multiple_of(2) {
        number.to_be_bytes().to_vec()
    } else {
        [&[7; 20][..], &number.to_be_bytes()].concat()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Batches of puts and removals, small and large, and a clearing now and then: as in a map.
    #[test]
    fn with_a_key_it_is_a_map(
        batches in proptest::collection::vec((0u32..400, 1u32..90, 0u32..3, any::<bool>()), 1..60),
    ) {
        let (_directory, store) = store();
        let index = store.table(RowIdentity::Key);
        let mut model: BTreeMap<u32, Position> = BTreeMap::new();
        for (file, (first, count, third, large)) in batches.into_iter().enumerate() {
            let file = file as u32;
            if count == 13 {
                index.clear();
                model.clear();
            }
            // Ones far above are only there to make a run of the batch.
            let ballast = if large { writer::RUN_ENTRIES as u32 } else { 0 };
            let mut writer = IndexWriter::new(index.clone());
            for number in (first..first + count).chain(1_000_000..1_000_000 + ballast) {
                if number % 3 == third {
                    writer.remove(&identity(number)).unwrap();
                    model.remove(&number);
                } else {
                    writer.put(&identity(number), at(file, number)).unwrap();
                    model.insert(number, at(file, number));
                }
            }
            writer.finish().unwrap();
        }
        for number in (0..500).chain((1_000_000..1_008_000).step_by(97)) {
            prop_assert_eq!(index.get(&identity(number)).unwrap(), model.get(&number).copied(), "{}", number);
        }
        let runs = index.content().runs.len();
        prop_assert!(runs <= 12, "{} runs", runs);
    }

    /// Rows move, all that there are when it begins, while keys come and go.
    #[test]
    fn rows_that_move_are_found_where_they_are(
        happenings in proptest::collection::vec((0u32..40, 0u32..8, any::<bool>()), 1..400),
    ) {
        let (_directory, store) = store();
        let index = store.table(RowIdentity::Key);
        let mut model: BTreeMap<u32, Position> = BTreeMap::new();
        // What moves, from where to where, and the index of that.
        let mut moving: Option<(BTreeMap<Position, Position>, PositionIndex)> = None;
        for (turn, (number, what, large)) in happenings.into_iter().enumerate() {
            let file = turn as u32 * 2;
            match what {
                0 if moving.is_none() => {
                    let begun = index.begin_move().unwrap();
                    let mut writer = IndexWriter::new(begun.clone());
                    let mut moves = BTreeMap::new();
                    for ((number, old), row) in model.iter().zip(0..) {
                        writer.put(&identity(*number), at(file + 1, row)).unwrap();
                        moves.insert(*old, at(file + 1, row));
                    }
                    writer.finish().unwrap();
                    moving = Some((moves, begun));
                }
                1 => if let Some((moves, begun)) = moving.take() {
                    if large {
                        index.give_up_move().unwrap();
                        continue;
                    }
                    index.end_move(&begun, |old| moves.get(&old).copied()).unwrap();
                    for position in model.values_mut() {
                        *position = moves.get(position).copied().unwrap_or(*position);
                    }
                },
                2 | 3 => {
                    let mut writer = IndexWriter::new(index.clone());
                    writer.remove(&identity(number)).unwrap();
                    writer.finish().unwrap();
                    model.remove(&number);
                }
                _ => {
                    let mut writer = IndexWriter::new(index.clone());
                    writer.put(&identity(number), at(file, 0)).unwrap();
                    let ballast = if large && what == 4 { writer::RUN_ENTRIES as u32 } else { 0 };
                    for number in 1_000_000..1_000_000 + ballast {
                        writer.put(&identity(number), at(file, number)).unwrap();
                    }
                    writer.finish().unwrap();
                    model.insert(number, at(file, 0));
                }
            }
        }
        for number in 0..40 {
            prop_assert_eq!(index.get(&identity(number)).unwrap(), model.get(&number).copied(), "{}", number);
        }
    }

    /// Of equal rows each is found once, in the order of their positions, until it is removed.
    #[test]
    fn without_a_key_it_is_a_bag(
        batches in proptest::collection::vec((proptest::collection::vec(0u32..6, 0..60), any::<bool>()), 1..30),
        removals in proptest::collection::vec(0u32..6, 0..300),
    ) {
        let (_directory, store) = store();
        let index = store.table(RowIdentity::FullRow);
        let mut model: BTreeMap<u32, BTreeSet<Position>> = BTreeMap::new();
        let mut removals = removals.into_iter();
        for (file, (rows, large)) in batches.into_iter().enumerate() {
            let file = file as u32;
            let ballast = if large { writer::RUN_ENTRIES as u32 } else { 0 };
            let mut writer = IndexWriter::new(index.clone());
            for (row, number) in rows.into_iter().chain((0..ballast).map(|_| 99)).enumerate() {
                writer.put(&identity(number), at(file, row as u32)).unwrap();
                model.entry(number).or_default().insert(at(file, row as u32));
            }
            writer.finish().unwrap();
            for number in removals.by_ref().take(10) {
                let found = index.next_equal(&identity(number), None).unwrap();
                let rows = model.entry(number).or_default();
                prop_assert_eq!(found, rows.first().copied());
                if let Some(position) = found {
                    index.remove_equal(&identity(number), position).unwrap();
                    rows.remove(&position);
                }
            }
        }
        for (number, rows) in model {
            let (mut after, mut found) = (None, BTreeSet::new());
            while let Some(position) = index.next_equal(&identity(number), after).unwrap() {
                found.insert(position);
                after = Some(position);
            }
            prop_assert_eq!(found, rows);
        }
    }
}

/// Each batch is a stretch of keys, in an order that is not theirs, as the connections of a copy write them.
#[test]
fn stretches_that_lie_apart_are_left_as_they_are_and_newer_ones_hide_them() {
    const STRETCH: u32 = layer::LAYERED_ENTRIES as u32;
    let (_directory, store) = store();
    let index = store.table(RowIdentity::Key);
    let mut writer = IndexWriter::new(index.clone());
    let write = |stretch: u32, shift: u32, file: u32, writer: &mut IndexWriter| {
        for number in stretch * STRETCH + shift..(stretch + 1) * STRETCH + shift {
            writer.put(&number.to_be_bytes(), at(file, number)).unwrap();
        }
        writer.end_stretch().unwrap();
    };
    let order = [3, 0, 5, 1, 7, 2, 6, 4];
    for stretch in order {
        write(stretch, 0, 0, &mut writer);
    }
    assert_eq!(index.content().runs.len(), order.len());
    let file_of = |number: u32| index.get(&number.to_be_bytes()).unwrap().map(|position| position.file);
    let edges = |stretch: u32| [0, 1, STRETCH / 2, STRETCH - 1].map(|at| stretch * STRETCH + at);
    assert!((0..8).flat_map(edges).all(|number| file_of(number) == Some(0)));
    assert_eq!(file_of(8 * STRETCH), None);

    // The same keys again, shifted: each of these layers lies over the one before, until they are merged.
    for file in 1..6 {
        for stretch in order {
            write(stretch, file, file, &mut writer);
        }
        for number in (0..8 * STRETCH + file).step_by(997).chain((0..8).flat_map(edges)) {
            assert_eq!(file_of(number), Some(number.min(file)), "{number} after {file}");
        }
    }
    writer.finish().unwrap();
    let runs = index.content().runs.clone();
    let layers = layer::layers(&runs);
    assert!(layers.len() < 4, "{layers:?}");
    for layer in layers {
        let runs = layer::ascending(&runs[layer]);
        assert!(runs.array_windows().all(|[lower, upper]| lower.lies_apart_from(upper)));
    }
}

/// Numbers all over the place, as many as several batches hold, by which runs overlap: as of a map, and few runs.
#[test]
fn a_whole_table_is_read_in_beside_its_sorting() {
    const ROWS: u32 = 4 * writer::BATCH_ENTRIES as u32 + 12_345;
    let (_directory, store) = store();
    let index = store.table(RowIdentity::Key);
    let mut writer = IndexWriter::of_whole_table(index.clone());
    let key = |row: u32| u64::from(row) * 2_654_435_761 % (1 << 40);
    for row in 0..ROWS {
        writer.put(&key(row).to_be_bytes(), at(row >> 20, row)).unwrap();
    }
    writer.finish().unwrap();
    let runs = index.content().runs.len();
    assert!(runs <= 2, "{runs} runs");
    for row in (0..ROWS).step_by(997).chain([ROWS - 1]) {
        assert_eq!(index.get(&key(row).to_be_bytes()).unwrap(), Some(at(row >> 20, row)));
    }
    assert_eq!(index.get(&key(ROWS).to_be_bytes()).unwrap(), None);
    assert_eq!(index.get(&[]).unwrap(), None);
}

#[test]
fn a_key_twice_in_a_whole_table_is_an_error() {
    for entries in [2, writer::BATCH_ENTRIES, writer::BATCH_ENTRIES * 2] {
        let (_directory, store) = store();
        let mut writer = IndexWriter::of_whole_table(store.table(RowIdentity::Key));
        let mut put = |row: u32| writer.put(&(row / 2).to_be_bytes(), at(0, row));
        let failed = (0..entries as u32).try_for_each(&mut put).and_then(|()| writer.finish());
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Table);
    }
}

#[test]
fn a_key_twice_is_an_error() {
    let (_directory, store) = store();
    for entries in [2, writer::RUN_ENTRIES] {
        let mut writer = IndexWriter::new(store.table(RowIdentity::Key));
        for row in 0..entries as u32 {
            writer.put(&(row / 2).to_be_bytes(), at(0, row)).unwrap();
        }
        assert_eq!(writer.finish().unwrap_err().kind(), ErrorKind::Table);
    }
}

#[test]
fn memory_is_bounded_over_all_tables_and_given_back() {
    let (directory, store) = store();
    let tables: Vec<PositionIndex> = (0..40).map(|_| store.table(RowIdentity::Key)).collect();
    for table in &tables {
        let mut writer = IndexWriter::new(table.clone());
        for row in 0..writer::RUN_ENTRIES as u32 - 1 {
            writer.put(&row.to_be_bytes(), at(0, row)).unwrap();
        }
        writer.finish().unwrap();
        assert!(store.shared.recent.load(Ordering::Relaxed) < RECENT_ENTRIES);
    }
    let last = writer::RUN_ENTRIES as u32 - 2;
    assert!(tables.iter().all(|table| table.get(&last.to_be_bytes()).unwrap() == Some(at(0, last))));
    drop(tables);
    assert_eq!(store.shared.recent.load(Ordering::Relaxed), 0);
    // None of the files ever had a name.
    assert_eq!(std::fs::read_dir(directory.path().join("index")).unwrap().count(), 0);
}
