//! The entities of the controller's state: nodes, generations of their data directories, placements and operations.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::Addresses;

/// What a node may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Has replicas and leads partitions.
    #[default]
    Active,
    /// Has replicas, leads no partition.
    Draining,
    /// Its replicas are being moved to other nodes.
    Decommissioning,
    /// Permanently removed; the entry is kept so that the node is refused with its name when it returns.
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
    /// Raft id; never reused.
    pub id: u64,
    /// Identity from the data directory: a node with a wiped disk is another node.
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
    /// When it was admitted, in milliseconds since the Unix epoch.
    pub joined_ms: i64,
}

impl NodeInfo {
    /// Returns whether the node stays in the cluster: it is neither removed nor decommissioning.
    pub fn stays(&self) -> bool {
        matches!(self.state, NodeState::Active | NodeState::Draining)
    }
}

/// How far a node's data directory has come. A directory that was rolled back (restored from a snapshot or an older copy) shows
/// a generation that is [behind](DiskGeneration::behind) one that the node has shown before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskGeneration {
    /// Rises with every start of the node that other nodes have accepted, and while it stores entries. 0: not known, a node of an
    /// earlier version.
    pub number: u64,
    /// Random, new whenever a start raises the number: two directories that continue one older directory have different ones.
    pub lineage: u64,
    /// Number of the process that has shown it: random, new with every start.
    pub boot: u64,
}

impl DiskGeneration {
    /// Whether a directory that shows this generation may have forgotten what it stored before it showed `seen`. One process shows
    /// several numbers, and messages overtake each other. Another process must show a higher number, or the same of one lineage: a
    /// start that was repeated before other nodes had accepted it.
    pub fn behind(&self, seen: &Self) -> bool {
        let newer = self.number > seen.number || (self.number == seen.number && self.lineage == seen.lineage);
        self.number > 0 && self.boot != seen.boot && !newer
    }

    /// Keeps the later one of two generations.
    pub fn advance(&mut self, shown: Self) {
        if shown.number > self.number {
            *self = shown;
        }
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
    /// Raft ids that have had a replica since the partition was created: their logs may start empty. A node that is no
    /// longer in `replicas` or `voters` is removed from this list permanently: if it gets a replica again, it copies
    /// the entries before it votes.
    pub founders: Vec<u64>,
    /// Raft index of the membership entry that the reported `voters` come from; 0: no voters were reported yet.
    #[serde(default)]
    pub settled_index: u64,
    /// The replicas when the partition was created, sorted: the voters of the first entry of its log. Never changes.
    #[serde(default)]
    pub first: Vec<u64>,
}

impl Placement {
    /// Creates the placement of a new partition on these nodes, the preferred leader first.
    pub fn founded(replicas: Vec<u64>) -> Self {
        let mut voters = replicas.clone();
        voters.sort_unstable();
        Self { replicas, founders: voters.clone(), first: voters.clone(), voters, settled_index: 0 }
    }

    /// Returns whether the partition is at its target placement.
    pub fn settled(&self) -> bool {
        // Neither list contains a node twice.
        self.replicas.len() == self.voters.len() && self.replicas.iter().all(|node| self.voters.contains(node))
    }

    /// Returns whether the node may have a replica: it is a target, or still votes.
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
    /// Transfers all leadership away from a node.
    Drain,
    /// As decommission, for a node that is dead or was superseded by a node of the same name with a new disk.
    Replace,
    /// Spreads replicas over the current nodes.
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

/// The state of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    /// In progress.
    Running,
    /// Completed.
    Done,
    /// Cannot complete, and why.
    Failed(String),
    /// Cancelled.
    Cancelled,
}

/// A long task of the controller leader; it survives a change of that leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Increases with every operation.
    pub id: u64,
    /// What it does.
    pub kind: OperationKind,
    /// Raft id of the node that the operation concerns; 0: none, for a rebalance by hand.
    pub node: u64,
    /// Its state.
    pub state: OperationState,
    /// In milliseconds since the Unix epoch.
    pub started_ms: i64,
    /// In milliseconds since the Unix epoch; 0: still running.
    pub finished_ms: i64,
    /// Partitions that the operation concerned when it started.
    pub total: u32,
}

impl Operation {
    /// Returns whether the operation is in progress.
    pub fn running(&self) -> bool {
        self.state == OperationState::Running
    }
}

/// What a node reports about itself when it asks to join, or restarts.
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
