//! Errors of one partition, as data.

use chronicle_log::LogError;

use super::UndecodableEntry;

/// Why a request to a partition failed.
///
/// All variants except [`PartitionError::OutcomeUnknown`] mean that an append was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartitionError {
    /// Another node leads the partition.
    #[error("node {leader} leads")]
    NotLeader {
        /// Raft id of the leader.
        leader: u64,
    },
    /// This node knows no leader of the partition.
    #[error("no leader is known: an election is in progress")]
    NoLeader,
    /// The partition is starting, stopping or unreachable; the same request may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The committed metadata has no such partition.
    #[error("partition {partition}: does not exist")]
    NoSuchPartition {
        /// The partition, as topic id and number.
        partition: String,
    },
    /// The topic that the partition belongs to was deleted.
    #[error("the topic was deleted")]
    TopicDeleted,
    /// A read outside the log.
    #[error("offset: {offset}: out of range: the partition has offsets from {earliest} up to, not including, {next}")]
    OutOfRange {
        /// Requested offset.
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
        /// What is damaged, and where.
        why: String,
    },
    /// The batch is larger than the whole queue.
    #[error("batch: {bytes} bytes: must be at most {limit} (partitions.queue-bytes-max)")]
    LargerThanQueue {
        /// Its size.
        bytes: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The log does not end at the offset that the append expects.
    #[error("expected next offset {expected}: the partition is at {current}")]
    OffsetConflict {
        /// Expected offset of the first record.
        expected: i64,
        /// Next offset of the log.
        current: u64,
    },
    /// The key is not at the version that the append expects.
    #[error("expected version {expected} of the key: the key is at {current} ({records} records rejected)")]
    KeyConflict {
        /// Expected version of the key.
        expected: i64,
        /// Version of the key; -1: none.
        current: i64,
        /// Records in the rejected batch.
        records: i32,
    },
    /// The producer's epoch is older than the one in the log (KIP-98).
    #[error("producer {producer_id}: epoch {epoch}: must be at least {current}")]
    ProducerFenced {
        /// The producer.
        producer_id: i64,
        /// Its epoch.
        epoch: i16,
        /// The epoch in the log.
        current: i16,
    },
    /// A sequence number that is neither the producer's next one nor one of the stored ones (KIP-98).
    #[error("producer {producer_id}: sequence {sequence}: must be {expected}, or that of a recent batch")]
    OutOfOrderSequence {
        /// The producer.
        producer_id: i64,
        /// Sequence number of the first record.
        sequence: i32,
        /// The producer's next sequence number.
        expected: i32,
    },
    /// The sequence number of a stored batch, with other records (KIP-98 assumes that this never happens).
    #[error(
        "producer {producer_id}: sequence {sequence}: was used for other records, at offset {base_offset}: \
         each producer needs an id of its own"
    )]
    SequenceReused {
        /// The producer.
        producer_id: i64,
        /// Sequence number of the first record.
        sequence: i32,
        /// Offset of the stored record with this sequence number.
        base_offset: i64,
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
    /// Outcome unknown: the append may have been stored.
    #[error("outcome unknown: the append may have been stored: {0}")]
    OutcomeUnknown(Box<PartitionError>),
    /// A bug in the node.
    #[error("{0}")]
    Internal(String),
}

impl PartitionError {
    /// An append whose outcome is unknown because of `cause`.
    pub fn unknown(cause: PartitionError) -> Self {
        Self::OutcomeUnknown(Box::new(cause))
    }

    /// Raft index of the damage, when the error is damage at a known index.
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
            LogError::ReadOnly { .. } | LogError::Io { .. } | LogError::NotADirectory { .. } => Self::DiskFailed(why),
            LogError::Overloaded { .. } => Self::Overloaded(why),
            LogError::Closed | LogError::AlreadyOpen(_) | LogError::Truncated | LogError::NewerFormat { .. } => {
                Self::Unavailable(why)
            }
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
