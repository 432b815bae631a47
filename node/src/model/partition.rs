//! Descriptions of a partition for people: its state on this node, and the result of comparing its replicas.

use uuid::Uuid;

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
    /// Address of the leader.
    pub leader: String,
    /// `active`, `dormant`, `filling` or `failed: <why>`; `elsewhere`: this node holds no replica.
    pub state: String,
    /// Nodes with a replica, the preferred leader first.
    pub replicas: Vec<Uuid>,
}

/// Result of comparing one partition's replicas.
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
    /// One per replica: node, and BLAKE3 in hexadecimal or the error that prevented the comparison.
    pub replicas: Vec<(Uuid, Result<String, String>)>,
    /// How the replicas differ; empty: they are equal.
    pub difference: String,
}
