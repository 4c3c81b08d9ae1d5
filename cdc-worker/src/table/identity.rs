//! What tells the rows of a table apart when the stream says that one was changed.

use iceberg_writer::TableSpec;

/// How a change names its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowIdentity {
    /// By the columns of the key, which are unique and never NULL.
    Key,
    /// By all of its columns, for there is no key (`REPLICA IDENTITY FULL`). Rows may be equal; a change means any one.
    FullRow,
    /// By nothing: rows are inserted and never changed. There is no index.
    AppendOnly,
}

impl RowIdentity {
    /// The columns whose values make up the identity, as indexes into the table's columns.
    pub(crate) fn columns(self, spec: &TableSpec) -> Vec<usize> {
        match self {
            Self::Key => spec.key.clone(),
            Self::FullRow => (0..spec.columns.len()).collect(),
            Self::AppendOnly => Vec::new(),
        }
    }
}
