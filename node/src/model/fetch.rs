//! Reads: start position, limits, and results.

use std::time::Duration;

use bytes::Bytes;
use chronicle_records::Record;

use super::{ApiError, PartitionError, Reason, STORED, TopicPartition};

/// Where a read starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// This offset (inclusive).
    Offset(i64),
    /// First record at or after this time (milliseconds since the Unix epoch).
    Timestamp(i64),
    /// First retained record.
    Earliest,
    /// The end: only records that are appended from now on.
    Latest,
}

/// A read from one partition.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// The partition.
    pub target: TopicPartition,
    /// Position of the first record.
    pub from: Position,
    /// Soft limit in bytes of stored batches; at least one batch is returned when there is one.
    pub max_bytes: usize,
    /// At the end of the log: wait this long for records. Zero: answer at once, with no batch. An offset beyond the end is
    /// always out of range.
    pub max_wait: Duration,
}

/// What is wanted of one partition, in a read of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Where from.
    pub target: TopicPartition,
    /// Which offset on.
    pub from: Position,
    /// Soft limit in bytes of stored batches of this partition; 0: 1 MiB.
    pub max_bytes: usize,
}

/// Where the records of a leader's term end (KIP-101).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TermEnd {
    /// The latest term up to the one asked for that has an entry in the log.
    pub term: u64,
    /// Offset after the last record of that term: the first of the next term, or the end of the log.
    pub end_offset: i64,
}

/// Result of a read.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// Whole stored batches; the first may begin before `start_offset`, and each may have fewer records than it takes offsets, even
    /// none. Empty at the end of the log.
    pub batches: Vec<Bytes>,
    /// The resolved start of the read.
    pub start_offset: i64,
    /// Offset of the next read: above `start_offset` unless nothing was read, also without batches.
    pub next_offset: i64,
    /// First offset not committed yet (exclusive end of what can be read).
    pub high_watermark: i64,
    /// First retained offset.
    pub log_start_offset: i64,
}

impl Fetched {
    /// Whether anything was read: batches, or offsets whose records were all removed.
    pub fn has_advanced(&self) -> bool {
        self.next_offset > self.start_offset
    }

    /// What an answer that has not advanced is for callers to whom reading at the end without a wait is an error.
    pub fn at_end(&self) -> PartitionError {
        PartitionError::OutOfRange {
            offset: self.start_offset,
            earliest: self.log_start_offset,
            next: self.high_watermark,
        }
    }

    /// Returns the records at or after `start_offset`, at most `limit` of them (`None`: all), and the offset of the next read.
    ///
    /// # Errors
    /// [`super::Reason::DataDamaged`] when a stored batch cannot be decoded.
    pub fn records(&self, limit: Option<usize>) -> Result<(Vec<Record>, i64), ApiError> {
        let damaged = |e: chronicle_records::BatchError| {
            ApiError::new(Reason::DataDamaged, format!("cannot decode a stored batch: {e}"))
        };
        let mut records = Vec::new();
        for batch in &self.batches {
            for record in chronicle_records::records(batch, &STORED).map_err(damaged)? {
                let record = record.map_err(damaged)?;
                if record.offset < self.start_offset {
                    continue;
                }
                if limit.is_some_and(|limit| records.len() >= limit) {
                    return Ok((records, record.offset));
                }
                records.push(record);
            }
        }
        Ok((records, self.next_offset))
    }
}

/// A partition's offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offsets {
    /// First retained offset (inclusive).
    pub earliest: i64,
    /// Committed end (exclusive).
    pub next: i64,
    /// Offset and timestamp of the first record at or after the requested time.
    pub at_timestamp: Option<(i64, i64)>,
}
