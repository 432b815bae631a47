//! What the controller group agrees on. Deterministic: no clock, no randomness, no I/O.
//!
//! [`Command`] is the format of the controller's log: a variant or field once written stays readable, new fields have a
//! serde default. Topics are decided here; nodes in `nodes`, placements in `placement`, operations in `operations`, rules and
//! quotas in `access`.
//!
//! Invariants: every partition of every topic has a placement; a raft id is never given twice; a refused command changes
//! nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::types::{Joining, NodeInfo, NodeState, Operation, OperationKind, OperationState, Placement};
use super::{AccessRules, Refusal};
use crate::model::{Addresses, Topic};
use crate::security::{AclFilter, AclRule, Quota};

/// A change to the state, as it stands in the controller's log. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// First command of a cluster. A cluster that was founded before nodes were agreed on gets its only node by it.
    InitCluster {
        /// Names the cluster for good.
        cluster_id: Uuid,
        /// The founders, with their raft ids.
        #[serde(default)]
        nodes: Vec<NodeInfo>,
    },
    /// A node asks to be taken in, or says that it is back.
    Join {
        /// Identity from its data directory.
        uuid: Uuid,
        /// Name for people.
        name: String,
        /// `HOST:PORT` of each of its listeners.
        #[serde(flatten)]
        addresses: Addresses,
        /// Failure domain; empty: none.
        zone: String,
        /// Software version.
        version: String,
        /// New with every start of the process.
        boot: u64,
        /// When.
        now_ms: i64,
        /// The cluster that it was a member of; nil: none.
        cluster_id: Uuid,
        /// Identities of the nodes that the controller leader hears from.
        #[serde(default)]
        alive_uuids: Vec<Uuid>,
    },
    /// Creates a topic and places its partitions.
    CreateTopic {
        /// With a replication factor of 0: the default.
        topic: Topic,
        /// Topics that the cluster may have.
        topics_max: usize,
        /// Replicas of a topic that does not say; as many as there are nodes while these are fewer.
        #[serde(default)]
        default_replication: u32,
    },
    /// Replaces a topic's settings and places the partitions that it did not have.
    AlterTopic {
        /// As it is to be.
        topic: Topic,
    },
    /// Takes a topic away.
    DeleteTopic {
        /// Its name.
        name: String,
    },
    /// A node has no file of a deleted topic any more.
    ForgetTopic {
        /// Id of the topic.
        id: Uuid,
        /// Raft id of the node; 0: no node has.
        #[serde(default)]
        node: u64,
    },
    /// Sets producer ids aside.
    ReserveProducerIds {
        /// How many.
        count: i64,
    },
    /// Says where the replicas of a partition should be.
    Assign {
        /// Topic id.
        topic: Uuid,
        /// 0-based.
        partition: u32,
        /// The replicas that this was planned from.
        from: Vec<u64>,
        /// The preferred leader first.
        replicas: Vec<u64>,
    },
    /// Says who votes in a partition's group, as its leader sees it.
    Settle {
        /// Topic id.
        topic: Uuid,
        /// 0-based.
        partition: u32,
        /// Raft ids.
        voters: Vec<u64>,
        /// Raft index, in the partition's log, of the committed membership entry that says so.
        index: u64,
    },
    /// Drains a node or lets it lead again.
    SetNodeState {
        /// Raft id.
        node: u64,
        /// Active or draining.
        state: NodeState,
        /// When.
        now_ms: i64,
    },
    /// Starts an operation.
    StartOperation {
        /// Which.
        kind: OperationKind,
        /// Raft id; 0 for a rebalance of all.
        node: u64,
        /// When.
        now_ms: i64,
    },
    /// Ends an operation.
    FinishOperation {
        /// Which.
        id: u64,
        /// How.
        state: OperationState,
        /// When.
        now_ms: i64,
    },
    /// Takes an operation back; what it moved stays moved.
    CancelOperation {
        /// Which.
        id: u64,
        /// When.
        now_ms: i64,
    },
    /// Removes a node that no partition needs any more, which ends its decommission or replacement.
    RemoveNode {
        /// Raft id.
        node: u64,
        /// When.
        now_ms: i64,
    },
    /// Adds rules, all or none.
    CreateAcls {
        /// Those that are there already stay.
        rules: Vec<AclRule>,
    },
    /// Takes rules away.
    DeleteAcls {
        /// Those that any of these means.
        filters: Vec<AclFilter>,
    },
    /// Sets or removes a quota.
    SetQuota {
        /// Whose; `None`: of everybody without one of their own.
        principal: Option<String>,
        /// `None`: removes it.
        quota: Option<Quota>,
    },
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done; the topic that it was about, if any.
    Done(Option<Topic>),
    /// These producer ids belong to whoever asked.
    ProducerIds {
        /// The first.
        first: i64,
        /// How many.
        count: i64,
    },
    /// The node as it is now.
    Node(NodeInfo),
    /// The operation as it is now.
    Operation(Operation),
    /// The rules that were added or taken away.
    Acls(Vec<AclRule>),
    /// Nothing was changed.
    Refused(Refusal),
}

/// A topic whose files may still be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedTopic {
    /// Its id.
    pub id: Uuid,
    /// How many partitions it had.
    pub partitions: i32,
    /// Raft ids of the nodes that have not reported yet that they have no file of it; sorted. Every node is asked: one may
    /// have slept through a move. Empty in a cluster without agreed nodes: the only node reports.
    #[serde(default)]
    pub nodes: Vec<u64>,
}

impl DeletedTopic {
    /// Notes that a node has no file of it, and answers whether that was the last one.
    pub(super) fn reported_by(&mut self, node: u64) -> bool {
        self.nodes.retain(|waiting| *waiting != node);
        self.nodes.is_empty()
    }
}

/// What the controller group agrees on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerState {
    /// Nil until the cluster is initialised.
    pub cluster_id: Uuid,
    /// By name.
    pub topics: BTreeMap<String, Topic>,
    /// Deleted topics whose files may still be there.
    pub deleted: Vec<DeletedTopic>,
    /// First producer id that was never reserved.
    pub next_producer_id: i64,
    /// By raft id; removed nodes included.
    #[serde(default)]
    pub nodes: BTreeMap<u64, NodeInfo>,
    /// Raft id of the next node; 0: one more than the largest.
    #[serde(default)]
    pub next_node: u64,
    /// By topic id; one for each partition.
    #[serde(default)]
    pub placements: BTreeMap<Uuid, Vec<Placement>>,
    /// By id: under way, and the last ones that ended.
    #[serde(default)]
    pub operations: BTreeMap<u64, Operation>,
    /// Id of the next operation.
    #[serde(default)]
    pub next_operation: u64,
    /// Who may do what, and how much.
    #[serde(default)]
    pub access: AccessRules,
}

impl ControllerState {
    /// Applies one command.
    pub(crate) fn apply(&mut self, command: Command) -> Outcome {
        if self.placements.len() < self.topics.len() {
            self.fill_placements();
        }
        self.decide(command).unwrap_or_else(Outcome::Refused)
    }

    fn decide(&mut self, command: Command) -> Result<Outcome, Refusal> {
        match command {
            Command::InitCluster { cluster_id, nodes } => Ok(self.found(cluster_id, nodes)),
            Command::Join { uuid, name, addresses, zone, version, boot, now_ms, cluster_id, alive_uuids } => {
                self.join(Joining { uuid, name, addresses, zone, version, boot, cluster_id }, &alive_uuids, now_ms)
            }
            Command::CreateTopic { topic, topics_max, default_replication } => {
                self.create_topic(topic, topics_max, default_replication)
            }
            Command::AlterTopic { topic } => self.alter_topic(topic),
            Command::DeleteTopic { name } => self.delete_topic(name),
            Command::ForgetTopic { id, node } => {
                self.deleted.retain_mut(|deleted| deleted.id != id || !(node == 0 || deleted.reported_by(node)));
                Ok(Outcome::Done(None))
            }
            Command::ReserveProducerIds { count } => {
                let first = self.next_producer_id;
                self.next_producer_id += count;
                Ok(Outcome::ProducerIds { first, count })
            }
            Command::Assign { topic, partition, from, replicas } => self.assign(topic, partition, from, replicas),
            Command::Settle { topic, partition, voters, index } => self.settle(topic, partition, voters, index),
            Command::SetNodeState { node, state, now_ms } => self.set_node_state(node, state, now_ms),
            Command::StartOperation { kind, node, now_ms } => self.start_operation(kind, node, now_ms),
            Command::FinishOperation { id, state, now_ms } => self.finish_operation(id, state, now_ms),
            Command::CancelOperation { id, now_ms } => self.cancel_operation(id, now_ms),
            Command::RemoveNode { node, now_ms } => self.remove_node(node, now_ms),
            Command::CreateAcls { rules } => self.create_acls(rules),
            Command::DeleteAcls { filters } => Ok(self.delete_acls(&filters)),
            Command::SetQuota { principal, quota } => self.set_quota(principal, quota),
        }
    }

    fn create_topic(
        &mut self,
        mut topic: Topic,
        topics_max: usize,
        default_replication: u32,
    ) -> Result<Outcome, Refusal> {
        if self.topics.contains_key(&topic.name) {
            return Err(Refusal::TopicExists(topic.name));
        }
        if self.topics.len() >= topics_max {
            return Err(Refusal::TooManyTopics(topics_max));
        }
        // A cluster of the version before has one node, which nobody has entered yet.
        let nodes = self.holders().len().max(usize::from(self.nodes.is_empty()));
        let asked = topic.replication_factor;
        if asked <= 0 {
            topic.replication_factor = i32::try_from(default_replication.max(1)).unwrap_or(i32::MAX);
        }
        // The default is what the topic gets once there are nodes enough; what was asked for is there from the start.
        if nodes == 0 || (asked > 0 && asked as usize > nodes) {
            return Err(Refusal::ReplicationFactor { asked: topic.replication_factor, nodes });
        }
        self.place_partitions(topic.id, topic.partitions, topic.replication_factor);
        self.topics.insert(topic.name.clone(), topic.clone());
        Ok(Outcome::Done(Some(topic)))
    }

    fn alter_topic(&mut self, topic: Topic) -> Result<Outcome, Refusal> {
        // A topic of the same name that was created again is another one.
        let current = self.topics.get(&topic.name).filter(|current| current.id == topic.id);
        let current = current.ok_or_else(|| Refusal::UnknownTopic(topic.name.clone()))?;
        if topic.partitions < current.partitions {
            return Err(Refusal::PartitionsShrink { asked: topic.partitions, current: current.partitions });
        }
        self.place_partitions(topic.id, topic.partitions, topic.replication_factor);
        self.topics.insert(topic.name.clone(), topic.clone());
        Ok(Outcome::Done(Some(topic)))
    }

    fn delete_topic(&mut self, name: String) -> Result<Outcome, Refusal> {
        let topic = self.topics.remove(&name).ok_or(Refusal::UnknownTopic(name))?;
        self.placements.remove(&topic.id);
        let nodes = self.nodes.values().filter(|node| node.state != NodeState::Removed).map(|node| node.id).collect();
        self.deleted.push(DeletedTopic { id: topic.id, partitions: topic.partitions, nodes });
        Ok(Outcome::Done(Some(topic)))
    }
}

#[cfg(test)]
mod tests;
