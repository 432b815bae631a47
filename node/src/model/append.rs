//! Appends: what a request carries, under which condition it is accepted, and what is acknowledged.

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

/// What a produce request carries.
#[derive(Debug, Clone)]
pub enum Payload {
    /// Records that the broker encodes into one batch.
    Records {
        /// At least one.
        records: Vec<NewRecord>,
        /// How the batch is stored.
        compression: Compression,
    },
    /// One whole Kafka v2 batch, checked and then stored as it is.
    Batch(Bytes),
}

/// Identity and sequence of an idempotent producer's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerIdentity {
    /// From [`super::Broker::init_producer`].
    pub producer_id: i64,
    /// From the same answer.
    pub epoch: i16,
    /// Sequence number of the first record.
    pub sequence: i32,
}

/// A condition judged in log order.
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

/// An append to one partition: all of it or nothing.
#[derive(Debug, Clone)]
pub struct Produce {
    /// Where to.
    pub target: TopicPartition,
    /// What.
    pub payload: Payload,
    /// Who, when the producer is idempotent. For [`Payload::Batch`] the batch's own producer fields are used instead.
    pub producer: Option<ProducerIdentity>,
    /// Under which condition.
    pub expectation: Option<Expectation>,
}

/// An acknowledged append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Produced {
    /// Offset of the first record.
    pub base_offset: i64,
    /// Number of records.
    pub record_count: i32,
    /// The producer repeated an earlier request; the offsets are those of the first time.
    pub duplicate: bool,
}
