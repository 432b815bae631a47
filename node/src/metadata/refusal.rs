//! Reasons for which the controller rejects a command: typed, so that callers can distinguish them, with a text that contains
//! field, value and rule.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::entities::{NodeState, OperationKind};

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The bytes are not a command of this version.
    #[error("command: not supported by this version: {0}")]
    UnknownCommand(String),
    /// A topic with this name exists.
    #[error("topic {0:?}: already exists")]
    TopicExists(String),
    /// No topic has this name (or it was deleted and created again).
    #[error("topic {0:?}: does not exist")]
    UnknownTopic(String),
    /// The cluster has the maximum number of topics.
    #[error("topics: the cluster has {0}, the maximum (limits.topics-max)")]
    TooManyTopics(usize),
    /// The number of partitions cannot shrink.
    #[error("partitions: {asked}: must be at least {current}, the current number of partitions")]
    PartitionsShrink {
        /// Requested number of partitions.
        asked: i32,
        /// Partitions that the topic has.
        current: i32,
    },
    /// More replicas requested than there are nodes that may have one.
    #[error("replication_factor: {asked}: must be at most {nodes}, the number of active or draining nodes")]
    ReplicationFactor {
        /// Requested number of replicas.
        asked: i32,
        /// Nodes that are active or draining.
        nodes: usize,
    },
    /// The cluster is not bootstrapped yet; no node can join it.
    #[error("cluster_id: none: the cluster is not bootstrapped yet")]
    NotFounded,
    /// The node was permanently removed.
    #[error("node {node} ({name}): permanently removed: wipe its data directory to join as a new node")]
    Removed {
        /// Raft id that it had.
        node: u64,
        /// Name that it had.
        name: String,
    },
    /// The node belongs to another cluster.
    #[error("cluster_id: {asked}: must be {ours}: a data directory belongs to one cluster permanently")]
    ForeignCluster {
        /// Cluster in the node's data directory.
        asked: Uuid,
        /// This cluster.
        ours: Uuid,
    },
    /// The node's data directory says that it is a member, and the metadata does not contain it.
    #[error("node_id: {0}: joined this cluster before and is not a member of it: wipe its data directory")]
    UnknownMember(Uuid),
    /// Another node that is alive has this name or address. Resolved when that node stops.
    #[error("{field}: {value}: must be unique: node {node} ({uuid}) uses it and is alive")]
    Duplicate {
        /// `name`, `address` (of the data listener), or `addresses.` and the name of another listener.
        field: String,
        /// The value of both nodes.
        value: String,
        /// Raft id of the other node.
        node: u64,
        /// Identity of the other node.
        uuid: Uuid,
    },
    /// The cluster has the maximum number of nodes.
    #[error("nodes: the cluster has {0}, the maximum")]
    TooManyNodes(usize),
    /// No node has this raft id.
    #[error("node {0}: does not exist")]
    UnknownNode(u64),
    /// No node has this UUID or name.
    #[error("node: {0:?}: no node has this UUID or name")]
    NoSuchNode(String),
    /// Several nodes have this name.
    #[error("node: {name:?}: {nodes} nodes have this name: use the UUID")]
    AmbiguousName {
        /// The name.
        name: String,
        /// How many nodes have it.
        nodes: usize,
    },
    /// The node's state does not allow the command.
    #[error("node {node}: {state}: {rule}")]
    NodeState {
        /// Raft id.
        node: u64,
        /// Its state.
        state: NodeState,
        /// The required state.
        rule: String,
    },
    /// The partition does not exist.
    #[error("topic {topic}, partition {partition}: does not exist")]
    UnknownPartition {
        /// Topic id.
        topic: Uuid,
        /// 0-based.
        partition: u32,
    },
    /// The list of replicas or voters breaks a rule.
    #[error("{field}: {nodes:?}: {rule}")]
    InvalidReplicas {
        /// `replicas` or `voters`.
        field: String,
        /// The list.
        nodes: Vec<u64>,
        /// The rule.
        rule: String,
    },
    /// The replicas are not those that the assignment was planned from.
    #[error("from: {expected:?}: must be the current replicas, which are {current:?}")]
    Moved {
        /// The replicas that the assignment was planned from.
        expected: Vec<u64>,
        /// The replicas in the committed metadata.
        current: Vec<u64>,
    },
    /// Without the node there would be too few nodes for some topic.
    #[error(
        "node {node}: topic {topic} has {replicas} replicas of each partition: only {remaining} active nodes would remain \
         without this node"
    )]
    TooFewNodes {
        /// Raft id of the node to remove.
        node: u64,
        /// The topic with the most replicas.
        topic: String,
        /// Its replicas.
        replicas: usize,
        /// Active nodes without the node to remove.
        remaining: usize,
    },
    /// No other active node.
    #[error("node {0}: is the only active node of the cluster")]
    LastNode(u64),
    /// Nodes are removed one at a time.
    #[error("operation {id}: {kind} of node {node} is running: nodes are removed one at a time")]
    OperationRunning {
        /// Id of the running operation.
        id: u64,
        /// Its kind.
        kind: OperationKind,
        /// Raft id of its node.
        node: u64,
    },
    /// No operation has this id (any more).
    #[error("operation {0}: does not exist")]
    UnknownOperation(u64),
    /// The operation has ended.
    #[error("operation {0}: has already ended")]
    OperationEnded(u64),
    /// The operation cannot be cancelled.
    #[error("operation {id}: {rule}")]
    NotCancellable {
        /// Id of the operation.
        id: u64,
        /// Why.
        rule: String,
    },
    /// There would be too many rules.
    #[error("rules: the cluster would have {rules}: must be at most {limit}")]
    TooManyRules {
        /// Number of rules with the new ones.
        rules: usize,
        /// Maximum number.
        limit: usize,
    },
    /// The rules would be too large.
    #[error("rules: principals and names would take {bytes} bytes: must be at most {limit}")]
    RulesTooLarge {
        /// Size with the new ones, in bytes.
        bytes: usize,
        /// Maximum size, in bytes.
        limit: usize,
    },
    /// The cluster has the maximum number of quotas.
    #[error("quotas: the cluster has {0}, the maximum")]
    TooManyQuotas(usize),
    /// Partitions still have the node among their replicas or voters.
    #[error("node {node}: {partitions} partitions have a replica or a voter on it: move them first")]
    NodeInUse {
        /// Raft id.
        node: u64,
        /// Number of partitions.
        partitions: u32,
    },
}
