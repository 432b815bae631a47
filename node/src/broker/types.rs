//! Requests and answers of the broker: what every listener speaks, free of any protocol.

use std::time::Duration;

use bytes::Bytes;
use chronicle_records::{Compression, Record};
use uuid::Uuid;

use crate::config::live::FileReport;
use crate::controller::{NodeState, Operation};
use crate::security::Encryption;

use super::BrokerError;

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TopicPartition {
    /// Topic name; never empty (listeners fill in `default`).
    pub topic: String,
    /// 0-based.
    pub partition: i32,
}

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

/// Where a read starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// This offset (inclusive).
    Offset(i64),
    /// First record at or after this time (milliseconds since the Unix epoch).
    Timestamp(i64),
    /// First retained record.
    Earliest,
    /// The end: only what is appended from now on.
    Latest,
}

/// A read from one partition.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// Where from.
    pub target: TopicPartition,
    /// Which offset on.
    pub from: Position,
    /// Soft limit in bytes of stored batches; at least one batch is returned when there is one.
    pub max_bytes: usize,
    /// At the end of the log: wait this long for records. Zero: answer
    /// [`super::Reason::OffsetOutOfRange`] at once. An offset beyond the end is always out of range.
    pub max_wait: Duration,
}

/// What a read found.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// Whole stored batches; the first may begin before `start_offset`. Empty when the wait ran out.
    pub batches: Vec<Bytes>,
    /// The resolved start of the read.
    pub start_offset: i64,
    /// Where to go on reading.
    pub next_offset: i64,
    /// First offset not committed yet (exclusive end of what can be read).
    pub high_watermark: i64,
    /// First retained offset.
    pub log_start_offset: i64,
}

impl Fetched {
    /// The records at or after `start_offset`, at most `limit` of them (`None`: all), and where to go on reading.
    ///
    /// # Errors
    /// [`super::Reason::DataDamaged`] when a stored batch cannot be decoded.
    pub fn records(&self, limit: Option<usize>) -> Result<(Vec<Record>, i64), BrokerError> {
        super::decode::records(self, limit)
    }
}

/// A partition's offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offsets {
    /// First retained offset (inclusive).
    pub earliest: i64,
    /// Committed end (exclusive).
    pub next: i64,
    /// Offset and timestamp of the first record at or after the time asked for.
    pub at_timestamp: Option<(i64, i64)>,
}

/// What an acknowledged append is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TopicDurability {
    /// `fdatasync` on a majority before the answer.
    #[default]
    Fsync,
    /// In memory on a majority before the answer, flushed within the topic's `flush_interval_ms`.
    Memory,
}

/// Effective settings of a topic.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopicSettings {
    /// Delete oldest segments while a partition is larger than this many bytes. -1: keep all. Default: -1.
    pub retention_bytes: i64,
    /// Delete segments whose newest record is older than this many milliseconds. -1: keep all. Default: -1.
    pub retention_ms: i64,
    /// Roll a segment past this many bytes. Default: 134217728 (128 MiB).
    pub segment_bytes: i64,
    /// Largest stored batch in bytes. Default: 1049600 (1 MiB and 1 KiB of framing).
    pub max_message_bytes: i32,
    /// Default: fsync.
    pub durability: TopicDurability,
    /// With `memory` durability, flush at least this often, in milliseconds. Default: 100.
    pub flush_interval_ms: i32,
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self {
            retention_bytes: -1,
            retention_ms: -1,
            segment_bytes: 128 << 20,
            max_message_bytes: (1 << 20) + 1024,
            durability: TopicDurability::Fsync,
            flush_interval_ms: 100,
        }
    }
}

/// Changes to settings; `None` keeps a value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettingsChange {
    /// See [`TopicSettings::retention_bytes`].
    pub retention_bytes: Option<i64>,
    /// See [`TopicSettings::retention_ms`].
    pub retention_ms: Option<i64>,
    /// See [`TopicSettings::segment_bytes`].
    pub segment_bytes: Option<i64>,
    /// See [`TopicSettings::max_message_bytes`].
    pub max_message_bytes: Option<i32>,
    /// See [`TopicSettings::durability`].
    pub durability: Option<TopicDurability>,
    /// See [`TopicSettings::flush_interval_ms`].
    pub flush_interval_ms: Option<i32>,
}

/// A topic to create.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewTopic {
    /// 1 to 249 characters of `a-z A-Z 0-9 . _ -`, neither `.` nor `..`.
    pub name: String,
    /// 1 to 10000; 0 means 1.
    pub partitions: i32,
    /// 0 means the cluster's default.
    pub replication_factor: i32,
    /// Settings that differ from the defaults.
    pub settings: SettingsChange,
    /// Succeed when the topic is there already.
    pub if_not_exists: bool,
}

/// A topic as the controller knows it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Another one when deleted and created again.
    pub id: Uuid,
    /// Number of partitions.
    pub partitions: i32,
    /// Replicas of each partition.
    pub replication_factor: i32,
    /// Effective settings.
    pub settings: TopicSettings,
    /// Milliseconds since the Unix epoch.
    pub created_ms: i64,
}

/// State of one partition on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionDescription {
    /// 0-based.
    pub partition: i32,
    /// First retained offset.
    pub earliest: i64,
    /// Committed end (exclusive).
    pub next: i64,
    /// Bytes of segment files.
    pub bytes: i64,
    /// Number of segment files.
    pub segments: i32,
    /// Raft term; 0 while dormant.
    pub term: i64,
    /// Address of the node that leads it.
    pub leader: String,
    /// `active`, `dormant`, `filling` or `failed: <why>`; `elsewhere`: this node holds no replica.
    pub state: String,
    /// Nodes with a replica, the preferred leader first.
    pub replicas: Vec<Uuid>,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Identity from the data directory.
    pub node_id: Uuid,
    /// Name for people.
    pub name: String,
    /// `HOST:PORT` of the data port.
    pub address: String,
    /// It leads the controller group.
    pub controller_leader: bool,
    /// Software version.
    pub version: String,
    /// Failure domain; empty: none.
    pub zone: String,
    /// It votes in the controller group.
    pub voter: bool,
    /// What it may do.
    pub state: NodeState,
    /// This node hears from it.
    pub alive: bool,
    /// Raft id.
    pub raft_id: u64,
    /// Partitions with a replica there.
    pub replicas: u32,
    /// Partitions that prefer it as their leader.
    pub preferred_leaders: u32,
    /// How its data port is encrypted; `None`: this node has not heard.
    pub encryption: Option<Encryption>,
}

/// Where a client finds the partitions of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicMetadata {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: Uuid,
    /// By number.
    pub partitions: Vec<PartitionMetadata>,
}

/// Where a client finds a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionMetadata {
    /// Node to send appends to; `None`: no replica is alive.
    pub leader: Option<Uuid>,
    /// Term in which it leads; 0: not known.
    pub term: u64,
    /// Nodes with a replica, the preferred leader first.
    pub replicas: Vec<Uuid>,
}

/// What a client routes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// The topics asked for that exist.
    pub topics: Vec<TopicMetadata>,
    /// Every node that was not removed.
    pub servers: Vec<Server>,
    /// Nil: none yet.
    pub cluster_id: Uuid,
    /// Names that no topic has.
    pub unknown: Vec<String>,
}

/// The cluster at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Nil: none yet.
    pub cluster_id: Uuid,
    /// `None`: the controller group has no leader that this node knows.
    pub controller_leader: Option<Uuid>,
    /// Term of the controller group.
    pub controller_term: u64,
    /// Every node, removed ones too.
    pub servers: Vec<Server>,
    /// Partitions of all topics.
    pub partitions: u32,
    /// With a replica on a node that is not alive.
    pub under_replicated: u32,
    /// Whose live replicas are no majority.
    pub offline: u32,
    /// Whose replicas are not yet where they should be.
    pub moving: u32,
    /// Under way, and the last ones that ended.
    pub operations: Vec<OperationView>,
    /// What became of this node's configuration file.
    pub configuration: FileReport,
}

/// An operation with its progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationView {
    /// As agreed.
    pub operation: Operation,
    /// Node that it is about.
    pub node: Uuid,
    /// Partitions still to move or to hand over.
    pub remaining: u32,
    /// What it waits for; empty: nothing.
    pub waiting_for: String,
}

/// One partition's replicas compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPartition {
    /// Name of the topic.
    pub topic: String,
    /// 0-based.
    pub partition: i32,
    /// First raft index compared.
    pub from: u64,
    /// Exclusive end.
    pub to: u64,
    /// One per replica: node, and BLAKE3 in hexadecimal or why there is none.
    pub replicas: Vec<(Uuid, Result<String, String>)>,
    /// Empty: all hold the same.
    pub difference: String,
}

/// Whether the node can serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Serving.
    Ready,
    /// Not serving, and why.
    NotReady(String),
}
