//! What the broker returns about nodes, partitions and operations, to every listener and independent of any protocol.

use uuid::Uuid;

use crate::config::live::FileReport;
use crate::identity::PortEncryption;
use crate::metadata::{NodeState, Operation};
use crate::model::Addresses;

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDescription {
    /// Identity from the data directory.
    pub node_id: Uuid,
    /// Name for people.
    pub name: String,
    /// `HOST:PORT` of each listener.
    pub addresses: Addresses,
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
    /// This node receives heartbeats from it.
    pub alive: bool,
    /// Raft id.
    pub raft_id: u64,
    /// Partitions with a replica there.
    pub replicas: u32,
    /// Of those, replicas that are not in service, as it reports.
    pub replicas_out_of_service: u32,
    /// Partitions that prefer it as their leader.
    pub preferred_leaders: u32,
    /// How its data port is encrypted; `None`: not known to this node.
    pub encryption: Option<PortEncryption>,
}

/// A replica of a partition that cannot recover by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaRecovery {
    /// Its node.
    pub node_id: Uuid,
    /// `active`, `filling`, `dormant` or `failed: <why>`; empty: the node did not answer.
    pub state: String,
    /// It has lost entries that it may have acknowledged.
    pub damaged: bool,
    /// Raft index after its last entry.
    pub next_index: u64,
    /// Raft index (exclusive) up to which it may have held entries; 0: not known.
    pub held_end: u64,
    /// Why the node did not answer, or did not carry out its part; empty: it did.
    pub error: String,
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

/// The nodes and partitions that a client needs to route requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// The topics asked for that exist.
    pub topics: Vec<TopicMetadata>,
    /// Every node that was not removed.
    pub servers: Vec<NodeDescription>,
    /// Nil: none yet.
    pub cluster_id: Uuid,
    /// Names that no topic has.
    pub unknown: Vec<String>,
}

/// A summary of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Nil: none yet.
    pub cluster_id: Uuid,
    /// `None`: the controller group has no leader that this node knows.
    pub controller_leader: Option<Uuid>,
    /// Term of the controller group.
    pub controller_term: u64,
    /// Every node, removed ones too.
    pub servers: Vec<NodeDescription>,
    /// Partitions of all topics.
    pub partitions: u32,
    /// Partitions with a replica on a node that is not alive, or that is not in service there.
    pub under_replicated: u32,
    /// Partitions without a majority of replicas that are on live nodes and in service.
    pub offline: u32,
    /// Partitions that are not at their target placement yet.
    pub moving: u32,
    /// Operations in progress, and the last ones that ended.
    pub operations: Vec<OperationProgress>,
    /// What became of this node's configuration file.
    pub configuration: FileReport,
}

/// An operation with its progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationProgress {
    /// The operation in the committed metadata.
    pub operation: Operation,
    /// The node that the operation concerns.
    pub node: Uuid,
    /// Partitions that are still to be moved, or whose leadership is still to be transferred.
    pub remaining: u32,
    /// What it waits for; empty: nothing.
    pub waiting_for: String,
}

/// Whether the node can serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Serving.
    Ready,
    /// Not serving, and why.
    NotReady(String),
}
