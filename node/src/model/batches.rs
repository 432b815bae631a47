//! Converts stored entries back to record batches.

use bytes::Bytes;
use chronicle_log::StoredEntry;
use chronicle_records::{BatchError, Limits};

/// No limits: for stored batches, which were checked when they were accepted.
pub(crate) const STORED: Limits =
    Limits { max_batch_bytes: usize::MAX, max_decompressed_bytes: usize::MAX, max_records: usize::MAX };

/// A stored entry that does not consist of whole batches.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stored entry {index}: {source}")]
pub struct UndecodableEntry {
    /// Raft index of the entry.
    pub index: u64,
    /// The error of its first invalid batch.
    pub source: BatchError,
}

/// Returns the batches of stored entries, without those that end before `offset`. Entries and batches may have no record at or
/// after `offset` left.
///
/// # Errors
/// The first entry that does not consist of batches.
pub(crate) fn batches_from(entries: &[StoredEntry], offset: u64) -> Result<Vec<Bytes>, UndecodableEntry> {
    let mut batches = Vec::new();
    for entry in entries {
        for batch in chronicle_records::split(&entry.entry.payload) {
            let (header, bytes) = batch.map_err(|source| UndecodableEntry { index: entry.entry.index, source })?;
            if header.last_offset() >= offset as i64 {
                batches.push(bytes);
            }
        }
    }
    Ok(batches)
}
