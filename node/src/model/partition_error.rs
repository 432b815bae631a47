//! What went wrong with one partition, as data.

use chronicle_log::LogError;

use super::UndecodableEntry;

/// Why a partition did not do what it was asked to do.
///
/// Everything but [`PartitionError::OutcomeUnknown`] means that an append was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartitionError {
    /// Another node leads the partition.
    #[error("node {leader} leads")]
    NotLeader {
        /// Raft id of the leader.
        leader: u64,
    },
    /// No node leads the partition, as far as this one knows.
    #[error("no leader is known: an election is under way")]
    NoLeader,
    /// The partition is starting, stopping or out of reach; the same request may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The controller group has placed no such partition.
    #[error("{partition}: no such partition")]
    NoSuchPartition {
        /// The partition, as topic id and number.
        partition: String,
    },
    /// The topic that the partition belongs to was deleted.
    #[error("the topic was deleted")]
    TopicDeleted,
    /// A read outside the log.
    #[error(
        "offset {offset} is out of range: the partition holds offsets from {earliest} up to, not including, {next}"
    )]
    OutOfRange {
        /// Offset asked for.
        offset: i64,
        /// First retained offset.
        earliest: i64,
        /// End of the log (exclusive).
        next: i64,
    },
    /// Stored data fails its checks.
    #[error("{why}")]
    Damaged {
        /// Raft index of the first entry that cannot be read, when it is known.
        index: Option<u64>,
        /// What was found, and where.
        why: String,
    },
    /// A batch that could never be queued.
    #[error("batch: {bytes} bytes are more than partitions.queue-bytes-max ({limit})")]
    LargerThanQueue {
        /// Its size.
        bytes: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The log does not end where the append expects it.
    #[error("expected next offset {expected}: the partition is at {current}")]
    OffsetConflict {
        /// Offset that the first record should have got.
        expected: i64,
        /// Offset that it would have got.
        current: u64,
    },
    /// The key is not at the version that the append expects.
    #[error("expected version {expected} of the key: it is at {current} ({records} records refused)")]
    KeyConflict {
        /// Version that the key should have.
        expected: i64,
        /// Version that it has; -1: none.
        current: i64,
        /// Records in the refused batch.
        records: i32,
    },
    /// The producer's epoch is older than the one in the log (KIP-98).
    #[error("producer {producer_id}: epoch {epoch} is older than {current}")]
    ProducerFenced {
        /// The producer.
        producer_id: i64,
        /// Its epoch.
        epoch: i16,
        /// The epoch in the log.
        current: i16,
    },
    /// A sequence number that neither follows on the producer's last one nor is remembered (KIP-98).
    #[error("producer {producer_id}: sequence {sequence} is neither the next ({expected}) nor one that is remembered")]
    OutOfOrderSequence {
        /// The producer.
        producer_id: i64,
        /// Sequence number of the first record.
        sequence: i32,
        /// Sequence number that would follow.
        expected: i32,
    },
    /// A limit of the node is reached; the message names it.
    #[error("{0}")]
    Overloaded(String),
    /// The volume is full.
    #[error("{0}")]
    DiskFull(String),
    /// The volume failed.
    #[error("{0}")]
    DiskFailed(String),
    /// The append may or may not be stored.
    #[error("it may or may not have happened: {0}")]
    OutcomeUnknown(Box<PartitionError>),
    /// A defect in the node.
    #[error("{0}")]
    Internal(String),
}

impl PartitionError {
    /// An append whose outcome is open, and why.
    pub fn unknown(cause: PartitionError) -> Self {
        Self::OutcomeUnknown(Box::new(cause))
    }

    /// Raft index at which damage was found, when the error is damage at a known place.
    pub fn damaged_index(&self) -> Option<u64> {
        match self {
            Self::Damaged { index, .. } => *index,
            _ => None,
        }
    }
}

impl From<&LogError> for PartitionError {
    fn from(error: &LogError) -> Self {
        let why = error.to_string();
        match error.root() {
            LogError::NoSpace { .. } => Self::DiskFull(why),
            LogError::Damaged { index, .. } => Self::Damaged { index: *index, why },
            LogError::OffsetOutOfRange { offset, earliest, next } => {
                Self::OutOfRange { offset: *offset as i64, earliest: *earliest as i64, next: *next as i64 }
            }
            LogError::ReadOnly { .. } | LogError::Io { .. } => Self::DiskFailed(why),
            LogError::Overloaded { .. } => Self::Overloaded(why),
            LogError::Closed | LogError::AlreadyOpen(_) | LogError::Truncated => Self::Unavailable(why),
            _ => Self::Internal(why),
        }
    }
}

impl From<LogError> for PartitionError {
    fn from(error: LogError) -> Self {
        Self::from(&error)
    }
}

impl From<UndecodableEntry> for PartitionError {
    fn from(error: UndecodableEntry) -> Self {
        Self::Damaged { index: None, why: error.to_string() }
    }
}
