//! What the readers of all codecs share: why unpacking fails, and buffers that keep to the limit.
//!
//! Invariant: no buffer grows beyond the limit of the caller, whatever sizes the data claims.
//!
//! Neighbours: `compression.rs` and the framings beside this file. Names no codec.

use std::fmt;
use std::io::Read;

/// What the compressed records of one batch usually unpack to, relative to their size: the first guess for the buffer.
const EXPECTED_RATIO: usize = 4;

/// Why unpacking failed, before the codec's name is added.
pub(super) enum Failure {
    /// The output passed the limit.
    Limit,
    Corrupt(String),
}

impl Failure {
    pub(super) fn corrupt(reason: impl fmt::Display) -> Self {
        Self::Corrupt(reason.to_string())
    }
}

/// Reads a decoder to its end, but not past `limit` bytes.
pub(super) fn read_limited(mut decoder: impl Read, packed_len: usize, limit: usize) -> Result<Vec<u8>, Failure> {
    // One byte more than allowed: a buffer that is full then is over the limit, not at it.
    let most = limit.saturating_add(1);
    let mut out = unpack_buffer(packed_len, most);
    while out.len() <= limit {
        reserve_within(&mut out, 1, most);
        let room = out.capacity() - out.len();
        let read = decoder.by_ref().take(room as u64).read_to_end(&mut out).map_err(Failure::corrupt)?;
        if read == 0 {
            return Ok(out);
        }
    }
    Err(Failure::Limit)
}

/// A buffer for what `packed_len` bytes usually unpack to, of at most `most` bytes.
pub(super) fn unpack_buffer(packed_len: usize, most: usize) -> Vec<u8> {
    Vec::with_capacity(packed_len.saturating_mul(EXPECTED_RATIO).min(most))
}

/// Makes room for `more` bytes, doubling like `Vec` does, but not past `most` in all unless `more` itself asks for it.
pub(super) fn reserve_within(out: &mut Vec<u8>, more: usize, most: usize) {
    let needed = out.len() + more;
    if needed > out.capacity() {
        let target = out.capacity().saturating_mul(2).min(most).max(needed);
        out.reserve_exact(target - out.len());
    }
}

/// Refuses bytes behind the end of the compressed stream.
pub(super) fn expect_end(rest: &[u8]) -> Result<(), Failure> {
    if rest.is_empty() {
        return Ok(());
    }
    Err(Failure::Corrupt(format!("{} bytes follow the end of the compressed data: none are allowed", rest.len())))
}
