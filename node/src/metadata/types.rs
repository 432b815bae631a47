//! Nodes, placement and operations as the controller group agrees on them.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::Addresses;

/// What a node may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Holds replicas and leads.
    #[default]
    Active,
    /// Holds replicas, leads nothing.
    Draining,
    /// Its replicas are being moved away.
    Decommissioning,
    /// Gone for good; kept so that it is refused by name when it comes back.
    Removed,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Decommissioning => "decommissioning",
            Self::Removed => "removed",
        })
    }
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Raft id, never used again.
    pub id: u64,
    /// Identity from the data directory: a wiped disk makes another node.
    pub uuid: Uuid,
    /// Name for people; may change.
    pub name: String,
    /// `HOST:PORT` of each listener; may change.
    #[serde(flatten)]
    pub addresses: Addresses,
    /// Failure domain; empty: none.
    pub zone: String,
    /// Software version.
    pub version: String,
    /// New with every start of the process.
    pub boot: u64,
    /// What it may do.
    pub state: NodeState,
    /// When it was taken in, in milliseconds since the Unix epoch.
    pub joined_ms: i64,
}

impl NodeInfo {
    /// It belongs here: neither gone nor on its way out.
    pub fn stays(&self) -> bool {
        matches!(self.state, NodeState::Active | NodeState::Draining)
    }
}

/// Where one partition's replicas are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Placement {
    /// Raft ids that should hold a replica, the preferred leader first.
    pub replicas: Vec<u64>,
    /// Raft ids that vote in the partition's group, as its leader last reported; sorted. Moving while these are not the
    /// `replicas`.
    pub voters: Vec<u64>,
    /// Raft ids that hold a replica since the partition was created: they may begin with an empty log. A node that is in
    /// neither list any more leaves this for good: should it come back, it fills its log before it votes.
    pub founders: Vec<u64>,
    /// Raft index of the membership entry that `voters` were reported from; 0: none was reported yet.
    #[serde(default)]
    pub settled_index: u64,
    /// The replicas when the partition was created, sorted: the voters of the first entry of its log. Never changes.
    #[serde(default)]
    pub first: Vec<u64>,
}

impl Placement {
    /// A new partition on these nodes, the preferred leader first.
    pub fn founded(replicas: Vec<u64>) -> Self {
        let mut voters = replicas.clone();
        voters.sort_unstable();
        Self { replicas, founders: voters.clone(), first: voters.clone(), voters, settled_index: 0 }
    }

    /// The replicas are where they should be.
    pub fn settled(&self) -> bool {
        // Neither list names a node twice.
        self.replicas.len() == self.voters.len() && self.replicas.iter().all(|node| self.voters.contains(node))
    }

    /// The node may hold a replica: it should, or still votes.
    pub fn holds(&self, node: u64) -> bool {
        self.replicas.contains(&node) || self.voters.contains(&node)
    }
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    /// Moves every replica off a node and removes it.
    Decommission,
    /// Hands over what a node leads.
    Drain,
    /// As decommission, for a node that is dead or was superseded by one of the same name with a new disk.
    Replace,
    /// Spreads replicas over the nodes there are.
    Rebalance,
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decommission => "decommission",
            Self::Drain => "drain",
            Self::Replace => "replace",
            Self::Rebalance => "rebalance",
        })
    }
}

/// How an operation stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    /// Under way.
    Running,
    /// Came to its end.
    Done,
    /// Cannot come to its end, and why.
    Failed(String),
    /// Taken back.
    Cancelled,
}

/// Something long that the controller leader carries out; it survives a change of that leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Counts up.
    pub id: u64,
    /// What it does.
    pub kind: OperationKind,
    /// Raft id of the node that it is about; a rebalance by hand is about none: 0.
    pub node: u64,
    /// How it stands.
    pub state: OperationState,
    /// In milliseconds since the Unix epoch.
    pub started_ms: i64,
    /// In milliseconds since the Unix epoch; 0: still running.
    pub finished_ms: i64,
    /// Partitions that it concerned when it began.
    pub total: u32,
}

impl Operation {
    /// It has not ended.
    pub fn running(&self) -> bool {
        self.state == OperationState::Running
    }
}

/// What a node says of itself when it asks to be taken in, or comes back.
#[derive(Debug, Clone)]
pub(super) struct Joining {
    pub(super) uuid: Uuid,
    pub(super) name: String,
    pub(super) addresses: Addresses,
    pub(super) zone: String,
    pub(super) version: String,
    pub(super) boot: u64,
    pub(super) cluster_id: Uuid,
}
