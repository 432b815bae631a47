//! Why the controller refuses a command: typed, so that every caller can tell cases apart, with a text that names the
//! field, the value and the rule.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::types::{NodeState, OperationKind};

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The bytes are no command of this version.
    #[error("command: this version does not know it: {0}")]
    UnknownCommand(String),
    /// A topic of this name is there.
    #[error("topic {0}: exists already")]
    TopicExists(String),
    /// No topic has this name (or the one that had it was deleted and created again).
    #[error("topic {0:?}: no such topic")]
    UnknownTopic(String),
    /// The cluster has as many topics as it may.
    #[error("limits.topics-max: the cluster has {0} topics already")]
    TooManyTopics(usize),
    /// The number of partitions only grows.
    #[error("partitions: {asked}: the number of partitions only grows, the topic has {current}")]
    PartitionsShrink {
        /// Partitions asked for.
        asked: i32,
        /// Partitions that the topic has.
        current: i32,
    },
    /// More replicas asked for than there are nodes that may hold one.
    #[error("replication_factor: {asked}: must be at most the number of nodes that take replicas, which is {nodes}")]
    ReplicationFactor {
        /// Replicas asked for.
        asked: i32,
        /// Nodes that are active or draining.
        nodes: usize,
    },
    /// The cluster has no founders yet; nobody can join it.
    #[error("cluster_id: none: the cluster is not founded yet")]
    NotFounded,
    /// The node was removed for good.
    #[error(
        "node {node} ({name}): removed: a removed node does not come back; wipe its data directory to join as a new one"
    )]
    Removed {
        /// Raft id that it had.
        node: u64,
        /// Name that it had.
        name: String,
    },
    /// The node belongs to another cluster.
    #[error("cluster_id: {asked}: this cluster is {ours}; a data directory belongs to one cluster for good")]
    ForeignCluster {
        /// Cluster that the node says it belongs to.
        asked: Uuid,
        /// This cluster.
        ours: Uuid,
    },
    /// The node says that it is a member, and nobody knows it.
    #[error("node_id: {0}: says that it is a member of this cluster, which does not know it; wipe its data directory")]
    UnknownMember(Uuid),
    /// Another node that is alive has this name or address. Goes away when that one stops.
    #[error("{field}: {value}: node {node} ({uuid}) has it and is alive; every node needs its own")]
    Duplicate {
        /// `name`, `address` (of the data listener), or `addresses.` and the name of another listener.
        field: String,
        /// What both say.
        value: String,
        /// Raft id of the other node.
        node: u64,
        /// Identity of the other node.
        uuid: Uuid,
    },
    /// The cluster has as many nodes as it may.
    #[error("nodes: {0}: the cluster has as many nodes as it may")]
    TooManyNodes(usize),
    /// No node has this raft id.
    #[error("node: {0}: no such node")]
    UnknownNode(u64),
    /// No node has this UUID or name.
    #[error("node: {0:?}: no node has this UUID or name")]
    NoSuchNode(String),
    /// Several nodes have this name.
    #[error("node: {name:?}: {nodes} nodes have this name; give the UUID")]
    AmbiguousName {
        /// The name.
        name: String,
        /// How many have it.
        nodes: usize,
    },
    /// The node's state does not allow it.
    #[error("node {node}: {state}: {rule}")]
    NodeState {
        /// Raft id.
        node: u64,
        /// Its state.
        state: NodeState,
        /// What would be needed.
        rule: String,
    },
    /// The partition is not there.
    #[error("partition: {topic}/{partition}: no such partition")]
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
        /// What it breaks.
        rule: String,
    },
    /// The replicas are not what the assignment was planned from.
    #[error("from: {expected:?}: the partition's replicas are {current:?} by now")]
    Moved {
        /// What the planner saw.
        expected: Vec<u64>,
        /// What is agreed.
        current: Vec<u64>,
    },
    /// Without the node there would be too few for some topic.
    #[error(
        "node {node}: topic {topic} keeps {replicas} replicas of each partition, and without this node only {remaining} \
         active nodes remain"
    )]
    TooFewNodes {
        /// Raft id of the node that would go.
        node: u64,
        /// The topic that asks for most.
        topic: String,
        /// Its replicas.
        replicas: usize,
        /// Active nodes without the one that would go.
        remaining: usize,
    },
    /// No other active node.
    #[error("node {0}: it is the only active node of the cluster")]
    LastNode(u64),
    /// Nodes go one after the other.
    #[error("operation {id}: {kind} of node {node} is under way; nodes go one after the other")]
    OperationRunning {
        /// Id of the operation that runs.
        id: u64,
        /// What it does.
        kind: OperationKind,
        /// Raft id of its node.
        node: u64,
    },
    /// No operation has this id (any more).
    #[error("operation {0}: no such operation")]
    UnknownOperation(u64),
    /// The operation has ended.
    #[error("operation {0}: has ended already")]
    OperationEnded(u64),
    /// The operation cannot be taken back.
    #[error("operation {id}: {rule}")]
    NotCancellable {
        /// Id of the operation.
        id: u64,
        /// Why.
        rule: String,
    },
    /// There would be more rules than there may be.
    #[error("rules: the cluster would have {rules}: must be at most {limit}")]
    TooManyRules {
        /// With the new ones.
        rules: usize,
        /// Most there may be.
        limit: usize,
    },
    /// The rules would take more room than they may.
    #[error("rules: principals and names would take {bytes} bytes: must be at most {limit}")]
    RulesTooLarge {
        /// With the new ones.
        bytes: usize,
        /// Most there may be.
        limit: usize,
    },
    /// The cluster has as many quotas as it may.
    #[error("quotas: the cluster has {0} already, the most there may be")]
    TooManyQuotas(usize),
    /// Partitions still name the node.
    #[error("node {node}: {partitions} partitions have a replica or a voter there; move them first")]
    NodeInUse {
        /// Raft id.
        node: u64,
        /// How many.
        partitions: u32,
    },
}
