//! Which files are worth rewriting: a function of their sizes.
//!
//! Files are in tiers by the size of what lives in them: a tier's are up to n times as large as those of the one below. A tier with
//! n files is rewritten into the next one, together with the few bytes that are in smaller tiers. So a row is written
//! again at most about once a tier on its way into a file of the wanted size, and there are fewer than n files
//! in each of a number of tiers that grows with the logarithm of that size.
//!
//! Apart from that, a file is rewritten when a share of its rows is deleted that readers would feel.

/// Smaller files are all in the lowest tier: they are footer and pages' headers more than rows.
const LOWEST_TIER_BYTES: u64 = 64 << 10;
/// A file with this share of its rows deleted is rewritten: to get rid of three of ten, seven are written again.
const DELETED_TENTHS: u64 = 3;
/// Files that are rewritten at a time, by their size in files of the wanted one: the work is done in portions that a restart
/// does not cost much of, and of which the outcome is soon seen.
const LARGEST_REWRITE: u64 = 4;
/// A file of at least this part of the wanted size is large enough.
const LARGE_ENOUGH: u64 = 2;

/// A file, as far as the choice needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
    pub(crate) deleted: u64,
    /// It was closed because it had the wanted size, whatever its bytes say now.
    pub(crate) full: bool,
}

impl Candidate {
    /// About how large the file would be without its deleted rows.
    fn live_bytes(self) -> u64 {
        let live = u128::from(self.rows.saturating_sub(self.deleted)) * u128::from(self.bytes);
        u64::try_from(live / u128::from(self.rows.max(1))).unwrap_or(self.bytes)
    }

    /// Its tier; `None` when it is large enough.
    fn tier(self, wanted: Wanted) -> Option<u32> {
        let bytes = self.live_bytes();
        if bytes >= wanted.file_bytes / LARGE_ENOUGH || self.full && self.deleted == 0 {
            return None;
        }
        let (mut tier, mut top) = (0, LOWEST_TIER_BYTES);
        while bytes >= top {
            tier += 1;
            top = top.saturating_mul(wanted.tier_files.max(2) as u64);
        }
        Some(tier)
    }

    fn is_much_deleted(self) -> bool {
        self.bytes >= LOWEST_TIER_BYTES && self.deleted.saturating_mul(10) >= self.rows.saturating_mul(DELETED_TENTHS)
    }
}

/// How files are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// They are closed at this size.
    pub(crate) file_bytes: u64,
    /// So many of a tier are rewritten into one: more would leave readers more files, fewer would write rows more often.
    pub(crate) tier_files: usize,
}

/// How much is to be rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What is worth it.
    Due,
    /// Everything that would come out better.
    All,
}

/// Which of these files are to be rewritten together, ascending; none: the table is as it should be.
pub(crate) fn choose(files: &[Candidate], wanted: Wanted, extent: Extent) -> Vec<usize> {
    let tiers: Vec<Option<u32>> = files.iter().map(|file| file.tier(wanted)).collect();
    let mut chosen = match extent {
        Extent::Due => {
            let in_tier = |tier: u32| tiers.iter().filter(|of| **of == Some(tier)).count();
            let highest = tiers.iter().flatten().max().copied();
            let full = (0..=highest.unwrap_or(0)).find(|tier| in_tier(*tier) >= wanted.tier_files.max(2));
            let belongs = |at: &usize| tiers[*at].is_some_and(|tier| full.is_some_and(|full| tier <= full));
            (0..files.len()).filter(|at| belongs(at) || files[*at].is_much_deleted()).collect::<Vec<_>>()
        }
        Extent::All => {
            let small = tiers.iter().flatten().count();
            let improves = |at: &usize| files[*at].deleted > 0 || tiers[*at].is_some() && small > 1;
            (0..files.len()).filter(improves).collect()
        }
    };
    // The smallest first: of those as many as possible go together. The first goes however large it is.
    chosen.sort_by_key(|at| (files[*at].live_bytes(), *at));
    let mut together = 0u64;
    let fitting = chosen.iter().take_while(|at| {
        let before = together;
        together = together.saturating_add(files[**at].live_bytes());
        before == 0 || together <= wanted.file_bytes.saturating_mul(LARGEST_REWRITE)
    });
    let count = fitting.count();
    chosen.truncate(count);
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE_BYTES: u64 = 4 << 20;
    const WANTED: Wanted = Wanted { file_bytes: FILE_BYTES, tier_files: 8 };

    fn whole(bytes: u64) -> Candidate {
        Candidate { bytes, rows: bytes / 10 + 1, deleted: 0, full: false }
    }

    /// What a rewrite makes of files, and the bytes that it writes.
    fn rewrite(files: &mut Vec<Candidate>, chosen: &[usize]) -> u64 {
        let mut bytes: u64 = chosen.iter().map(|at| files[*at].live_bytes()).sum();
        let written = bytes;
        let mut at = 0;
        files.retain(|_| {
            at += 1;
            chosen.binary_search(&(at - 1)).is_err()
        });
        while bytes > 0 {
            let part = bytes.min(FILE_BYTES);
            files.push(Candidate { full: part == FILE_BYTES, ..whole(part) });
            bytes -= part;
        }
        written
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// However files come, there are few of them, and no byte is written again too often.
        #[test]
        fn files_stay_few_and_are_rewritten_seldom(sizes in proptest::collection::vec(1u64..200_000, 1..2000)) {
            let (mut files, mut written) = (Vec::new(), 0);
            let total: u64 = sizes.iter().sum();
            for size in sizes {
                files.push(whole(size));
                loop {
                    let chosen = choose(&files, WANTED, Extent::Due);
                    if chosen.is_empty() {
                        break;
                    }
                    written += rewrite(&mut files, &chosen);
                }
                // Those of the wanted size, and fewer than eight in each of three tiers.
                let large = files.iter().filter(|file| file.tier(WANTED).is_none()).count() as u64;
                prop_assert!(large <= total / (FILE_BYTES / LARGE_ENOUGH) + 1);
                prop_assert!(files.len() as u64 - large <= 3 * 7, "{} files", files.len());
            }
            prop_assert!(written <= total * 5, "{written} of {total}");
        }

        /// Whatever is deleted, a rewrite is worth it, and there is an end of them.
        #[test]
        fn what_is_chosen_comes_out_better(
            files in proptest::collection::vec((1u64..10 << 20, 1u64..100_000, 0u64..100_000, any::<bool>()), 0..60),
            all: bool,
        ) {
            let candidate = |(bytes, rows, deleted, full): (u64, u64, u64, bool)| {
                Candidate { bytes, rows, deleted: deleted.min(rows), full }
            };
            let mut files: Vec<Candidate> = files.into_iter().map(candidate).collect();
            let extent = if all { Extent::All } else { Extent::Due };
            for turn in 0.. {
                prop_assert!(turn < 100, "without an end: {files:?}");
                let chosen = choose(&files, WANTED, extent);
                prop_assert!(chosen.is_sorted_by(|a, b| a < b));
                let Some(first) = chosen.first() else { break };
                let live: u64 = chosen.iter().map(|at| files[*at].live_bytes()).sum();
                prop_assert!(chosen.len() == 1 || live <= FILE_BYTES * LARGEST_REWRITE);
                prop_assert!(chosen.len() > 1 || files[*first].deleted > 0);
                let deleted: u64 = files.iter().map(|file| file.deleted).sum();
                let before = (files.len(), deleted);
                rewrite(&mut files, &chosen);
                let deleted: u64 = files.iter().map(|file| file.deleted).sum();
                prop_assert!(files.len() < before.0 || deleted < before.1);
            }
            if all {
                prop_assert!(files.iter().all(|file| file.deleted == 0));
                prop_assert!(files.iter().filter(|file| file.tier(WANTED).is_some()).count() <= 1);
            } else {
                prop_assert!(!files.iter().any(|file| file.is_much_deleted()));
            }
        }
    }

    #[test]
    fn a_table_as_it_should_be_is_left_alone() {
        assert!(choose(&[], WANTED, Extent::Due).is_empty());
        assert!(choose(&[whole(FILE_BYTES); 100], WANTED, Extent::All).is_empty());
        assert!(choose(&[whole(1000); 7], WANTED, Extent::Due).is_empty());
        assert_eq!(choose(&[whole(1000); 8], WANTED, Extent::Due).len(), 8);
        assert!(choose(&[whole(1000)], WANTED, Extent::All).is_empty());
        let much = Candidate { deleted: 40_000, ..whole(1_000_000) };
        assert_eq!(choose(&[whole(FILE_BYTES), much], WANTED, Extent::Due), [1]);
    }
}
