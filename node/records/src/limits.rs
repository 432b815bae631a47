//! What a caller lets one batch cost.
//!
//! Neighbours: `batch.rs` and `record.rs` hold batches against it. Names no codec and no record.

use crate::{BatchError, BatchHeader};

/// What one batch may cost. Decompression and walking stop as soon as a limit is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest batch as it is sent and stored, in bytes including its header. Default: 16 MiB.
    pub max_batch_bytes: usize,
    /// Largest size in bytes of the records of a compressed batch once unpacked. This is the memory that checking or
    /// reading one batch may take; zstd needs as much again for its window (it reserves up to 128 MiB of addresses, as the
    /// frame asks, but touches no more of them than it unpacks). Default: 64 MiB.
    pub max_decompressed_bytes: usize,
    /// Most records in a batch. Default: 1,000,000.
    pub max_records: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_batch_bytes: 16 << 20, max_decompressed_bytes: 64 << 20, max_records: 1_000_000 }
    }
}

impl Limits {
    /// The record count of `header`, if it keeps to the limit.
    pub(crate) fn record_count(&self, header: &BatchHeader) -> Result<usize, BatchError> {
        // Not negative by `parse_header`.
        let count = header.record_count as usize;
        if count > self.max_records {
            return Err(BatchError::TooManyRecords { count, limit: self.max_records });
        }
        Ok(count)
    }
}
