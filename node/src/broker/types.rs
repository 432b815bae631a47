//! Requests and answers of the broker: what every listener speaks, free of any protocol.

use uuid::Uuid;

use crate::config::live::FileReport;
use crate::identity::Encryption;
use crate::metadata::{NodeState, Operation};
use crate::model::Addresses;

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
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

/// Whether the node can serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Serving.
    Ready,
    /// Not serving, and why.
    NotReady(String),
}
