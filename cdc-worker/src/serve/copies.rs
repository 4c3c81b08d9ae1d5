//! The copies under way, for whoever shows their progress without asking the loop.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// A copy at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CopyProgress {
    /// Tells it from an earlier copy of the same table.
    pub(crate) number: u64,
    /// `schema.table`.
    pub(crate) table: String,
    pub(crate) rows: u64,
    /// By the source's statistics; 0 when they do not tell.
    pub(crate) expected: u64,
}

#[derive(Debug)]
struct Watched {
    number: u64,
    table: String,
    expected: u64,
    /// Gone when the copy has ended, however it did.
    rows: Weak<AtomicU64>,
}

/// The copies that have begun and not ended.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    begun: AtomicU64,
    watched: Mutex<Vec<Watched>>,
}

impl Copies {
    /// A copy begins, and counts its rows here.
    pub(crate) fn begin(&self, table: String, expected: u64, rows: &Arc<AtomicU64>) {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut watched) = self.watched.lock() {
            watched.retain(|copy| copy.rows.strong_count() > 0);
            watched.push(Watched { number, table, expected, rows: Arc::downgrade(rows) });
        }
    }

    /// Those under way, oldest first.
    pub(crate) fn under_way(&self) -> Vec<CopyProgress> {
        let Ok(watched) = self.watched.lock() else { return Vec::new() };
        let progress = |copy: &Watched| {
            let rows = copy.rows.upgrade()?.load(Ordering::Relaxed);
            Some(CopyProgress { number: copy.number, table: copy.table.clone(), rows, expected: copy.expected })
        };
        watched.iter().filter_map(progress).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_there_while_somebody_counts_its_rows() {
        let copies = Copies::default();
        let (first, second) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        copies.begin("public.a".to_owned(), 10, &first);
        copies.begin("public.a".to_owned(), 0, &second);
        second.store(7, Ordering::Relaxed);
        drop(first);
        let expected = CopyProgress { number: 1, table: "public.a".to_owned(), rows: 7, expected: 0 };
        assert_eq!(copies.under_way(), [expected]);
        drop(second);
        assert_eq!(copies.under_way(), []);
    }
}
