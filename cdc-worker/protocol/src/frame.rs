//! Framing: lengths before bytes, each bounded before anything is allocated.

use std::io::{self, Read};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::message::Section;

/// Bound of a JSON header: a million files at about 100 bytes each.
pub const MAX_HEADER_BYTES: u32 = 128 << 20;

/// Bound of one binary section: far past any batch budget of the worker, well below what would hurt a backend blindly.
pub const MAX_SECTION_BYTES: u64 = 4 << 30;

/// Why a frame could not be read.
#[derive(Debug)]
pub enum FrameError {
    /// The socket failed or closed early.
    Io(io::Error),
    /// The other side announced more than a bound allows.
    TooLarge {
        /// Bytes announced.
        announced: u64,
        /// The bound.
        limit: u64,
    },
    /// The header is not the expected JSON.
    Malformed(serde_json::Error),
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(_) => f.write_str("read from the read service"),
            Self::TooLarge { announced, limit } => {
                write!(f, "the read service announced {announced} bytes, more than {limit}")
            }
            Self::Malformed(_) => f.write_str("the read service sent a malformed header"),
        }
    }
}

impl std::error::Error for FrameError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::TooLarge { .. } => None,
            Self::Malformed(error) => Some(error),
        }
    }
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A header frame as bytes.
///
/// # Errors
/// When the header cannot be serialized or is larger than [`MAX_HEADER_BYTES`].
pub fn encode_header<T: Serialize>(header: &T) -> Result<Vec<u8>, FrameError> {
    let json = serde_json::to_vec(header).map_err(FrameError::Malformed)?;
    let length = u32::try_from(json.len()).ok().filter(|length| *length <= MAX_HEADER_BYTES);
    let Some(length) = length else {
        return Err(FrameError::TooLarge { announced: json.len() as u64, limit: u64::from(MAX_HEADER_BYTES) });
    };
    let mut bytes = Vec::with_capacity(json.len() + 4);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

/// A table's section as bytes, appended to `out`.
pub fn encode_section(section: &Section, out: &mut Vec<u8>) {
    for part in [&section.deleted, &section.fresh] {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part);
    }
}

/// Reads one header frame.
///
/// # Errors
/// See [`FrameError`].
pub fn read_header<T: DeserializeOwned>(from: &mut impl Read) -> Result<T, FrameError> {
    let mut length = [0u8; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(FrameError::TooLarge { announced: u64::from(length), limit: u64::from(MAX_HEADER_BYTES) });
    }
    let mut json = vec![0u8; length as usize];
    from.read_exact(&mut json)?;
    serde_json::from_slice(&json).map_err(FrameError::Malformed)
}

/// Reads one table's section.
///
/// # Errors
/// See [`FrameError`].
pub fn read_section(from: &mut impl Read) -> Result<Section, FrameError> {
    Ok(Section { deleted: read_part(from)?, fresh: read_part(from)? })
}

fn read_part(from: &mut impl Read) -> Result<Vec<u8>, FrameError> {
    let mut length = [0u8; 8];
    from.read_exact(&mut length)?;
    let length = u64::from_be_bytes(length);
    if length > MAX_SECTION_BYTES {
        return Err(FrameError::TooLarge { announced: length, limit: MAX_SECTION_BYTES });
    }
    // Grown as bytes arrive: a broken peer that announces gigabytes must not make a backend allocate them.
    let mut part = Vec::new();
    let read = from.take(length).read_to_end(&mut part)?;
    if (read as u64) < length {
        return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Refusal, Response};

    #[test]
    fn header_and_sections_round_trip() {
        let refused = Response::Refused(Refusal {
            sqlstate: "57014".into(),
            message: "m".into(),
            detail: None,
            hint: Some("h".into()),
        });
        let section = Section { deleted: vec![1, 2, 3], fresh: vec![9; 70_000] };
        let mut bytes = encode_header(&refused).unwrap();
        encode_section(&section, &mut bytes);
        let mut from = bytes.as_slice();
        assert_eq!(read_header::<Response>(&mut from).unwrap(), refused);
        assert_eq!(read_section(&mut from).unwrap(), section);
        assert!(from.is_empty());
    }

    #[test]
    fn an_announced_giant_is_refused_before_it_is_allocated() {
        let mut header = (MAX_HEADER_BYTES + 1).to_be_bytes().to_vec();
        header.push(b'{');
        assert!(matches!(read_header::<Response>(&mut header.as_slice()), Err(FrameError::TooLarge { .. })));
        let section = (MAX_SECTION_BYTES + 1).to_be_bytes();
        assert!(matches!(read_section(&mut section.as_slice()), Err(FrameError::TooLarge { .. })));
    }

    #[test]
    fn a_section_cut_short_is_an_error() {
        let mut bytes = 10u64.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[1, 2, 3]);
        assert!(matches!(read_section(&mut bytes.as_slice()), Err(FrameError::Io(_))));
    }
}
