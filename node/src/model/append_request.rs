//! Appends: the content of a request, the condition for accepting it, and the acknowledgement.

use bytes::Bytes;
use chronicle_records::Compression;

use super::TopicPartition;

/// A record as a client writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewRecord {
    /// `None`: no key.
    pub key: Option<Bytes>,
    /// `None`: a null value.
    pub value: Option<Bytes>,
    /// In order; names may repeat.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// Milliseconds since the Unix epoch; `None`: time of arrival.
    pub timestamp_ms: Option<i64>,
}

/// Content of a produce request.
#[derive(Debug, Clone)]
pub enum ProducePayload {
    /// Records that the broker encodes into one batch.
    Records {
        /// At least one.
        records: Vec<NewRecord>,
        /// Compression of the stored batch.
        compression: Compression,
    },
    /// One whole Kafka v2 batch, validated and then stored unchanged.
    Batch(Bytes),
}

/// Identity and sequence of an idempotent producer's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerIdentity {
    /// Assigned by `InitProducer`.
    pub producer_id: i64,
    /// From the same response, or higher: the client raises it to begin again at sequence 0.
    pub epoch: i16,
    /// Sequence number of the first record.
    pub sequence: i32,
}

/// A condition, checked in log order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expectation {
    /// The first record must get this offset.
    NextOffset(i64),
    /// The key must have this version: offset of its latest retained record, -1 for none.
    KeyVersion {
        /// The key.
        key: Bytes,
        /// The version.
        version: i64,
    },
}

/// An append to one partition; atomic.
#[derive(Debug, Clone)]
pub struct Produce {
    /// The partition.
    pub target: TopicPartition,
    /// The records.
    pub payload: ProducePayload,
    /// The producer, when it is idempotent. For [`ProducePayload::Batch`] the batch's own producer fields are used instead.
    pub producer: Option<ProducerIdentity>,
    /// Condition for accepting the append; `None`: none.
    pub expectation: Option<Expectation>,
}

/// An acknowledged append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Produced {
    /// Offset of the first record.
    pub base_offset: i64,
    /// Number of records.
    pub record_count: i32,
    /// The producer repeated an earlier request; the offsets are those of the first append.
    pub duplicate: bool,
}
