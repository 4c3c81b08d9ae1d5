//! Which version of Iceberg's format a table is of.
//!
//! The version decides how deleted rows are told: version 2 has files of positions, of which a commit adds one, and version 3
//! has a bitmap for each data file, which replaces the former one; see [`crate::write_deletes`].

use iceberg::spec::{FormatVersion, TableMetadata};
use serde::{Deserialize, Serialize};

/// A version of Iceberg's table format that the writer writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Format {
    /// Position delete files. Every reader has it.
    #[default]
    V2,
    /// Deletion vectors, and rows that keep a number of their own.
    V3,
}

impl Format {
    /// The version's number.
    pub fn number(self) -> u8 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }

    /// What a table is of; `None` when it is of a version that we do not write.
    pub(crate) fn of(metadata: &TableMetadata) -> Option<Self> {
        match metadata.format_version() {
            FormatVersion::V1 => None,
            FormatVersion::V2 => Some(Self::V2),
            FormatVersion::V3 => Some(Self::V3),
        }
    }

    /// As the library has it.
    pub(crate) fn version(self) -> FormatVersion {
        match self {
            Self::V2 => FormatVersion::V2,
            Self::V3 => FormatVersion::V3,
        }
    }
}

impl From<Format> for u8 {
    fn from(format: Format) -> Self {
        format.number()
    }
}

impl TryFrom<u8> for Format {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        match number {
            2 => Ok(Self::V2),
            3 => Ok(Self::V3),
            _ => Err(format!("format version {number} is neither 2 nor 3")),
        }
    }
}
