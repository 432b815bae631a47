//! Versions of keys: the offset of each key's latest record, for expected-version appends.
//!
//! The index is in-memory state of the leader's sequencer. It is built by reading the log when the first request needs it and
//! updated from then on, so that partitions that never use it have no cost. Keys are stored as 128-bit keyed hashes under
//! random keys of this index, so that clients cannot construct collisions.

use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;
use chronicle_log::{Log, LogError};
use hashbrown::HashMap;

use crate::model::STORED;

/// Bytes read at once while building.
const READ_BYTES: usize = 4 << 20;

/// Why the index cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum KeysError {
    /// More keys than the limit.
    #[error("keys: the partition has more than {0}, the maximum (partitions.versioned-keys-max)")]
    TooMany(usize),
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A stored batch cannot be decoded.
    #[error("stored batch: {0}")]
    Batch(#[from] chronicle_records::BatchError),
}

/// Latest offset of every key of a partition.
pub(super) struct KeyVersions {
    latest: HashMap<u128, i64>,
    hashers: [RandomState; 2],
    max: usize,
}

impl KeyVersions {
    /// Reads every retained record up to `max_index` (raft index, inclusive).
    ///
    /// # Errors
    /// See [`KeysError`].
    pub(super) fn build(log: &Log, max_index: Option<u64>, max: usize) -> Result<Self, KeysError> {
        let mut keys = Self { latest: HashMap::new(), hashers: [RandomState::new(), RandomState::new()], max };
        let Some(max_index) = max_index else { return Ok(keys) };
        let mut offset = log.position().start_offset;
        loop {
            let entries = match log.read_at_offset(offset, max_index, READ_BYTES) {
                // Retention deleted records during the read: deleted records have no version.
                Err(LogError::OffsetOutOfRange { earliest, .. }) if earliest > offset => {
                    offset = earliest;
                    continue;
                }
                entries => entries?,
            };
            let Some(last) = entries.last() else { return Ok(keys) };
            offset = last.next_offset();
            for entry in &entries {
                keys.observe(&entry.entry.payload)?;
            }
        }
    }

    /// Adds batches that were appended after the index was built. Their base offsets must be set.
    ///
    /// # Errors
    /// See [`KeysError`].
    pub(super) fn observe(&mut self, batches: &Bytes) -> Result<(), KeysError> {
        for batch in chronicle_records::split(batches) {
            let (_, bytes) = batch?;
            for record in chronicle_records::records(&bytes, &STORED)? {
                let record = record?;
                let Some(key) = record.key else { continue };
                let hash = self.hash(&key);
                self.latest.insert(hash, record.offset);
                if self.latest.len() > self.max {
                    return Err(KeysError::TooMany(self.max));
                }
            }
        }
        Ok(())
    }

    /// Returns the offset of the key's latest record at or after `log_start`; -1: none.
    pub(super) fn version(&self, key: &[u8], log_start: u64) -> i64 {
        match self.latest.get(&self.hash(key)) {
            Some(offset) if *offset >= log_start as i64 => *offset,
            _ => -1,
        }
    }

    fn hash(&self, key: &[u8]) -> u128 {
        let [high, low] = &self.hashers;
        (u128::from(high.hash_one(key)) << 64) | u128::from(low.hash_one(key))
    }
}
