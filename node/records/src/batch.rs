//! Whole batches: checking one that came from outside, and walking several that lie end to end.
//!
//! Neighbours: `record.rs` parses the records, `compression.rs` unpacks them, `limits.rs` bounds both. Writes no batch.

use bytes::Bytes;

use crate::header::{ATTRIBUTES_AT, HEADER_LEN, check_dense};
use crate::{BatchError, BatchHeader, Compression, Limits, compression, parse_header, record};

/// Checks that `bytes` are exactly one sound batch that may be appended, down to every record, and returns its header.
///
/// Beyond [`check_shallow`] it unpacks the records (never past `limits`) and walks them: at least one, as many as announced, offset
/// deltas counting up from 0 to the last, timestamps that fit, varints and lengths in range, header names UTF-8, nothing left over.
///
/// # Errors
///
/// Any [`BatchError`] but [`Compress`](BatchError::Compress).
pub fn check(bytes: &[u8], limits: &Limits) -> Result<BatchHeader, BatchError> {
    if bytes.len() > limits.max_batch_bytes {
        return Err(BatchError::TooLarge { what: "batch", bytes: bytes.len(), limit: limits.max_batch_bytes });
    }
    let header = check_shallow(bytes)?;
    check_dense(&header)?;
    let count = limits.record_count(&header)?;
    let packed = &bytes[HEADER_LEN..];
    if header.compression == Compression::None {
        record::walk(packed, count, &header)?;
    } else {
        let unpacked = compression::decompress(header.compression, packed, limits.max_decompressed_bytes)?;
        record::walk(&unpacked, count, &header)?;
    }
    Ok(header)
}

/// Checks that `bytes` are exactly one batch with a sound header and the CRC that it states, and returns its header.
/// The records stay packed. A stored batch may have fewer records than it takes offsets.
///
/// # Errors
///
/// As [`parse_header`], and [`BatchError::Crc`].
pub fn check_shallow(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = parse_header(bytes)?;
    if bytes.len() != header.length {
        return Err(BatchError::Length {
            value: bytes.len() as i64,
            rule: "the bytes must hold exactly one batch, and its header announces fewer",
        });
    }
    let actual = crc32c::crc32c(&bytes[ATTRIBUTES_AT..]);
    if actual != header.crc {
        return Err(BatchError::Crc { expected: header.crc, actual });
    }
    Ok(header)
}

/// Walks batches that lie end to end, without copying: each item is a batch's header and its bytes, a slice of `bytes`.
///
/// Each header is parsed, no CRC compared: put [`check`] or [`check_shallow`] on the items when the bytes are not yet
/// trusted. After an error (bytes that are not a whole batch) the iterator ends.
pub fn split(bytes: &Bytes) -> Split {
    Split { rest: bytes.clone() }
}

/// Iterator over the batches in a buffer; see [`split`].
#[derive(Debug, Clone)]
pub struct Split {
    rest: Bytes,
}

impl Iterator for Split {
    type Item = Result<(BatchHeader, Bytes), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let parsed = parse_header(&self.rest);
        Some(match parsed {
            Ok(header) => Ok((header, self.rest.split_to(header.length))),
            Err(error) => {
                self.rest.clear();
                Err(error)
            }
        })
    }
}

impl std::iter::FusedIterator for Split {}
