//! One partition of a topic as it is described to people, and its replicas compared.

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
    /// Address of the node that leads it.
    pub leader: String,
    /// `active`, `dormant`, `filling` or `failed: <why>`; `elsewhere`: this node holds no replica.
    pub state: String,
    /// Nodes with a replica, the preferred leader first.
    pub replicas: Vec<Uuid>,
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
