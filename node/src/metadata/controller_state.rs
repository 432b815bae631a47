//! The committed metadata of the controller group, and the commands that change it. Deterministic: no clock, no
//! randomness, no I/O.
//!
//! [`ControllerCommand`] is the format of the controller's log: a variant or field that was ever written stays readable, and new
//! fields have a serde default. This file applies commands on topics; `nodes` those on nodes, `placement` on
//! placements, `operations` on operations, `access` on rules and quotas.
//!
//! Invariants: every partition of every topic has a placement; a raft id is never assigned twice; a refused command
//! changes nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::entities::{
    DiskGeneration, Joining, NodeInfo, NodeState, Operation, OperationKind, OperationState, Placement,
};
use super::{AccessRules, Refusal};
use crate::model::{Addresses, Topic};
use crate::security::{AclFilter, AclRule, Quota};

/// A change to the state, as stored in the controller's log. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum ControllerCommand {
    /// First command of a cluster. Also adds the only node of a cluster that was bootstrapped by a version without
    /// nodes in the metadata.
    InitCluster {
        /// Permanent id of the cluster.
        cluster_id: Uuid,
        /// The founders, with their raft ids.
        #[serde(default)]
        nodes: Vec<NodeInfo>,
    },
    /// A node asks to join, or reports that it has restarted.
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
        /// Identities of the nodes from which the controller leader receives heartbeats.
        #[serde(default)]
        alive_uuids: Vec<Uuid>,
    },
    /// Creates a topic and places its partitions.
    CreateTopic {
        /// With a replication factor of 0: the default.
        topic: Topic,
        /// Most topics that the cluster may have.
        topics_max: usize,
        /// Replicas of a topic that specifies none; one per node while there are fewer nodes.
        #[serde(default)]
        default_replication: u32,
    },
    /// Replaces the settings of a topic and places the partitions that are new.
    AlterTopic {
        /// The new settings.
        topic: Topic,
    },
    /// Deletes a topic.
    DeleteTopic {
        /// Its name.
        name: String,
    },
    /// Reports that a node has no file of a deleted topic any more.
    ForgetTopic {
        /// Id of the topic.
        id: Uuid,
        /// Raft id of the node; 0: no node has a file.
        #[serde(default)]
        node: u64,
    },
    /// Reserves producer ids.
    ReserveProducerIds {
        /// How many.
        count: i64,
    },
    /// Sets the target replicas of a partition.
    Assign {
        /// Topic id.
        topic: Uuid,
        /// 0-based.
        partition: u32,
        /// The replicas on which the plan is based.
        from: Vec<u64>,
        /// The preferred leader first.
        replicas: Vec<u64>,
    },
    /// Reports the voters of a partition's group, as its leader sees them.
    Settle {
        /// Topic id.
        topic: Uuid,
        /// 0-based.
        partition: u32,
        /// Raft ids.
        voters: Vec<u64>,
        /// Raft index, in the partition's log, of the committed membership entry with these voters.
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
    /// Reports the latest generation that a node's data directory has shown.
    NodeGeneration {
        /// Raft id.
        node: u64,
        /// The generation.
        generation: DiskGeneration,
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
    /// Cancels an operation; completed moves are not undone.
    CancelOperation {
        /// Which.
        id: u64,
        /// When.
        now_ms: i64,
    },
    /// Removes a node that no partition needs any more, which completes its decommission or replacement.
    RemoveNode {
        /// Raft id.
        node: u64,
        /// When.
        now_ms: i64,
    },
    /// Adds rules, all or none.
    CreateAcls {
        /// The rules; existing ones stay unchanged.
        rules: Vec<AclRule>,
    },
    /// Deletes rules.
    DeleteAcls {
        /// Filters; every rule that matches any of them is deleted.
        filters: Vec<AclFilter>,
    },
    /// Sets or removes a quota.
    SetQuota {
        /// The principal; `None`: every principal without a quota of its own.
        principal: Option<String>,
        /// `None`: removes it.
        quota: Option<Quota>,
    },
}

/// The result of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandOutcome {
    /// Done; with the topic of the command, if any.
    Done(Option<Topic>),
    /// These producer ids are reserved for the caller.
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
    /// The rules that were added or deleted.
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
    /// Raft ids of the nodes that have not yet reported that they have no file of the topic; sorted. Contains every
    /// node that was not removed: a node may have been down during a move. Empty in a cluster without nodes in the
    /// metadata: the only node reports.
    #[serde(default)]
    pub nodes: Vec<u64>,
}

impl DeletedTopic {
    /// Records that a node has no file of the topic, and returns whether it was the last one.
    pub(super) fn reported_by(&mut self, node: u64) -> bool {
        self.nodes.retain(|waiting| *waiting != node);
        self.nodes.is_empty()
    }
}

/// The committed metadata of the controller group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerState {
    /// Nil until the cluster is initialised.
    pub cluster_id: Uuid,
    /// By name.
    pub topics: BTreeMap<String, Topic>,
    /// Deleted topics whose files may still be there.
    pub deleted: Vec<DeletedTopic>,
    /// First producer id that was not reserved yet.
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
    /// By id: operations in progress, and the last ones that ended.
    #[serde(default)]
    pub operations: BTreeMap<u64, Operation>,
    /// Id of the next operation.
    #[serde(default)]
    pub next_operation: u64,
    /// By raft id: the latest generation of each node's data directory, removed nodes excluded.
    #[serde(default)]
    pub generations: BTreeMap<u64, DiskGeneration>,
    /// Access rules and quotas.
    #[serde(default)]
    pub access: AccessRules,
}

impl ControllerState {
    /// Applies one command.
    pub(crate) fn apply(&mut self, command: ControllerCommand) -> CommandOutcome {
        if self.placements.len() < self.topics.len() {
            self.fill_placements();
        }
        self.decide(command).unwrap_or_else(CommandOutcome::Refused)
    }

    fn decide(&mut self, command: ControllerCommand) -> Result<CommandOutcome, Refusal> {
        match command {
            ControllerCommand::InitCluster { cluster_id, nodes } => Ok(self.found(cluster_id, nodes)),
            ControllerCommand::Join { uuid, name, addresses, zone, version, boot, now_ms, cluster_id, alive_uuids } => {
                self.join(Joining { uuid, name, addresses, zone, version, boot, cluster_id }, &alive_uuids, now_ms)
            }
            ControllerCommand::CreateTopic { topic, topics_max, default_replication } => {
                self.create_topic(topic, topics_max, default_replication)
            }
            ControllerCommand::AlterTopic { topic } => self.alter_topic(topic),
            ControllerCommand::DeleteTopic { name } => self.delete_topic(name),
            ControllerCommand::ForgetTopic { id, node } => {
                self.deleted.retain_mut(|deleted| deleted.id != id || !(node == 0 || deleted.reported_by(node)));
                Ok(CommandOutcome::Done(None))
            }
            ControllerCommand::ReserveProducerIds { count } => {
                let first = self.next_producer_id;
                self.next_producer_id += count;
                Ok(CommandOutcome::ProducerIds { first, count })
            }
            ControllerCommand::Assign { topic, partition, from, replicas } => {
                self.assign(topic, partition, from, replicas)
            }
            ControllerCommand::Settle { topic, partition, voters, index } => {
                self.settle(topic, partition, voters, index)
            }
            ControllerCommand::SetNodeState { node, state, now_ms } => self.set_node_state(node, state, now_ms),
            ControllerCommand::NodeGeneration { node, generation } => self.node_generation(node, generation),
            ControllerCommand::StartOperation { kind, node, now_ms } => self.start_operation(kind, node, now_ms),
            ControllerCommand::FinishOperation { id, state, now_ms } => self.finish_operation(id, state, now_ms),
            ControllerCommand::CancelOperation { id, now_ms } => self.cancel_operation(id, now_ms),
            ControllerCommand::RemoveNode { node, now_ms } => self.remove_node(node, now_ms),
            ControllerCommand::CreateAcls { rules } => self.create_acls(rules),
            ControllerCommand::DeleteAcls { filters } => Ok(self.delete_acls(&filters)),
            ControllerCommand::SetQuota { principal, quota } => self.set_quota(principal, quota),
        }
    }

    fn create_topic(
        &mut self,
        mut topic: Topic,
        topics_max: usize,
        default_replication: u32,
    ) -> Result<CommandOutcome, Refusal> {
        if self.topics.contains_key(&topic.name) {
            return Err(Refusal::TopicExists(topic.name));
        }
        if self.topics.len() >= topics_max {
            return Err(Refusal::TooManyTopics(topics_max));
        }
        // A cluster of the previous version has one node, which is not in the metadata yet.
        let nodes = self.holders().len().max(usize::from(self.nodes.is_empty()));
        let asked = topic.replication_factor;
        if asked <= 0 {
            topic.replication_factor = i32::try_from(default_replication.max(1)).unwrap_or(i32::MAX);
        }
        // The default factor is reached once there are enough nodes; a requested factor needs enough nodes from the
        // start.
        if nodes == 0 || (asked > 0 && asked as usize > nodes) {
            return Err(Refusal::ReplicationFactor { asked: topic.replication_factor, nodes });
        }
        self.place_partitions(topic.id, topic.partitions, topic.replication_factor);
        self.topics.insert(topic.name.clone(), topic.clone());
        Ok(CommandOutcome::Done(Some(topic)))
    }

    fn alter_topic(&mut self, topic: Topic) -> Result<CommandOutcome, Refusal> {
        // A topic that was created again under the same name has another id.
        let current = self.topics.get(&topic.name).filter(|current| current.id == topic.id);
        let current = current.ok_or_else(|| Refusal::UnknownTopic(topic.name.clone()))?;
        if topic.partitions < current.partitions {
            return Err(Refusal::PartitionsShrink { asked: topic.partitions, current: current.partitions });
        }
        self.place_partitions(topic.id, topic.partitions, topic.replication_factor);
        self.topics.insert(topic.name.clone(), topic.clone());
        Ok(CommandOutcome::Done(Some(topic)))
    }

    fn delete_topic(&mut self, name: String) -> Result<CommandOutcome, Refusal> {
        let topic = self.topics.remove(&name).ok_or(Refusal::UnknownTopic(name))?;
        self.placements.remove(&topic.id);
        let nodes = self.nodes.values().filter(|node| node.state != NodeState::Removed).map(|node| node.id).collect();
        self.deleted.push(DeletedTopic { id: topic.id, partitions: topic.partitions, nodes });
        Ok(CommandOutcome::Done(Some(topic)))
    }
}

#[cfg(test)]
mod tests;
