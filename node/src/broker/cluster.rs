//! Nodes of the cluster: who serves what, and operations on them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chronicle_log::LogId;
use chronicle_proto::internal::DigestRange;
use chronicle_proto::internal::group_request::Ask;
use futures::StreamExt;
use futures::stream::BoxStream;
use uuid::Uuid;

use super::{
    Broker, BrokerError, ClusterStatus, Metadata, OperationView, PartitionMetadata, Reason, Server, TopicMetadata,
    TopicPartition, VerifiedPartition, now_ms,
};
use crate::controller::{
    CONTROLLER_LOG, Command, ControllerState, NodeInfo, NodeState, Operation, OperationKind, Outcome, remaining,
    unexpected, waiting_for,
};
use crate::partition::{PartitionRole, SlotState, ask_group};
use crate::security::Encryption;

/// Partitions whose leadership is handed over at a time by a node that stops: they share the flushes of their votes.
const HAND_OVERS: usize = 64;
/// Longest wait for a replica to be as far as the leader before it is compared.
const VERIFY_PATIENCE: Duration = Duration::from_secs(30);

impl Broker {
    /// The nodes of the cluster, and the cluster's id.
    ///
    /// # Errors
    /// [`Reason::Unavailable`] before the node is part of a cluster.
    pub async fn servers(&self) -> Result<(Vec<Server>, Uuid), BrokerError> {
        let state = self.inner.env.state();
        let servers = self.servers_of(&state, false)?;
        Ok((servers, state.cluster_id))
    }

    fn servers_of(&self, state: &ControllerState, removed: bool) -> Result<Vec<Server>, BrokerError> {
        let controller = self.controller()?;
        let (leader, _) = controller.leader();
        let voters = controller.voters();
        let placements = || state.placements.values().flatten();
        let count =
            |holds: &dyn Fn(&crate::controller::Placement) -> bool| placements().filter(|p| holds(p)).count() as u32;
        let server = |node: &NodeInfo| Server {
            node_id: node.uuid,
            name: node.name.clone(),
            address: node.address.clone(),
            controller_leader: leader == Some(node.id),
            version: node.version.clone(),
            zone: node.zone.clone(),
            voter: voters.contains(&node.id),
            state: node.state,
            alive: node.state != NodeState::Removed && self.inner.env.alive(node.id),
            raft_id: node.id,
            replicas: count(&|placement| placement.holds(node.id)),
            preferred_leaders: count(&|placement| placement.replicas.first() == Some(&node.id)),
            encryption: self.encryption_of(node.id),
        };
        Ok(state.nodes.values().filter(|node| removed || node.state != NodeState::Removed).map(server).collect())
    }

    fn encryption_of(&self, node: u64) -> Option<Encryption> {
        let env = &self.inner.env;
        let liveness = env.peers.liveness();
        if node == env.node() { Some(liveness.own_encryption()) } else { liveness.encryption(node) }
    }

    /// Where the partitions of some topics are; no names: of all.
    ///
    /// # Errors
    /// [`Reason::Unavailable`] before the node is part of a cluster.
    pub async fn metadata(&self, topics: &[String]) -> Result<Metadata, BrokerError> {
        let mut state = self.inner.env.state();
        if topics.iter().any(|name| !state.topics.contains_key(name)) && !self.alone() {
            // It may have been agreed a moment ago.
            let _ = self.controller()?.sync().await;
            state = self.inner.env.state();
        }
        let names: Vec<&String> =
            if topics.is_empty() { state.topics.keys().collect() } else { topics.iter().collect() };
        let (known, unknown): (Vec<&String>, Vec<&String>) =
            names.into_iter().partition(|name| state.topics.contains_key(*name));
        let described = known.into_iter().map(|name| {
            let topic = &state.topics[name];
            let partitions = (0..topic.partitions).map(|number| {
                let id = LogId { topic: topic.id, partition: number as u32 };
                self.partition_metadata(&state, id)
            });
            TopicMetadata { name: name.clone(), id: topic.id, partitions: partitions.collect() }
        });
        Ok(Metadata {
            topics: described.collect(),
            servers: self.servers_of(&state, false)?,
            cluster_id: state.cluster_id,
            unknown: unknown.into_iter().cloned().collect(),
        })
    }

    fn partition_metadata(&self, state: &ControllerState, id: LogId) -> PartitionMetadata {
        let env = &self.inner.env;
        let placement = env.placement(id).unwrap_or_default();
        let uuid = |node: u64| state.nodes.get(&node).map(|node| node.uuid);
        let mut leader = None;
        let mut term = 0;
        let slot = self.inner.slots.read().get(&id).cloned();
        if let Some(SlotState::Active(partition)) = slot.map(|slot| slot.state()) {
            term = partition.group().status().term;
            leader = match partition.role() {
                PartitionRole::Leading(_) | PartitionRole::Settling => Some(env.node()),
                // A leader that is gone is no help.
                PartitionRole::Following { leader } => {
                    leader.filter(|id| env.alive(*id) && !partition.group().leader_gone())
                }
            };
        }
        let (leader, term) = match leader {
            Some(leader) => (Some(leader), term),
            None => (env.designated(id), 0),
        };
        PartitionMetadata {
            leader: leader.and_then(uuid),
            term,
            replicas: placement.replicas.iter().filter_map(|id| uuid(*id)).collect(),
        }
    }

    /// The cluster at a glance, as this node sees it.
    ///
    /// # Errors
    /// [`Reason::Unavailable`] before the node is part of a cluster.
    pub async fn status(&self) -> Result<ClusterStatus, BrokerError> {
        let controller = self.controller()?;
        let state = self.inner.env.state();
        let env = &self.inner.env;
        let (leader, term) = controller.leader();
        let mut status = ClusterStatus {
            cluster_id: state.cluster_id,
            controller_leader: leader.and_then(|id| state.nodes.get(&id)).map(|node| node.uuid),
            controller_term: term,
            servers: self.servers_of(&state, true)?,
            partitions: 0,
            under_replicated: 0,
            offline: 0,
            moving: 0,
            operations: state.operations.values().map(|operation| self.operation_view(&state, operation)).collect(),
            configuration: self.live().report(),
        };
        for placement in state.placements.values().flatten() {
            let alive = placement.voters.iter().filter(|id| env.alive(**id)).count();
            status.partitions += 1;
            status.under_replicated += u32::from(alive < placement.voters.len());
            status.offline += u32::from(alive <= placement.voters.len() / 2);
            status.moving += u32::from(!placement.settled());
        }
        Ok(status)
    }

    fn operation_view(&self, state: &ControllerState, operation: &Operation) -> OperationView {
        let observed = self.controller().map(|controller| controller.observed()).unwrap_or_default();
        let led = self.led_by(operation.node);
        OperationView {
            node: state.nodes.get(&operation.node).map(|node| node.uuid).unwrap_or_default(),
            remaining: remaining(state, operation, led),
            waiting_for: waiting_for(state, operation, &observed),
            operation: operation.clone(),
        }
    }

    /// Open partitions with a replica here that a node leads, as far as this node knows.
    fn led_by(&self, node: u64) -> u32 {
        let led = |slot: &Arc<crate::partition::Slot>| match slot.state() {
            SlotState::Active(partition) => partition.group().status().leader == Some(node),
            _ => false,
        };
        self.inner.slots.read().values().filter(|slot| led(slot)).count() as u32
    }

    /// The node of this UUID or unique name.
    fn node(&self, state: &ControllerState, name: &str) -> Result<NodeInfo, BrokerError> {
        state.find_node(name).cloned().map_err(crate::controller::refused)
    }

    async fn operate(&self, command: &Command) -> Result<OperationView, BrokerError> {
        let controller = self.controller()?;
        let outcome = match command {
            // Begun twice, it is one operation.
            Command::StartOperation { .. } => controller.command_again(command).await?,
            _ => controller.command(command).await?,
        };
        match outcome {
            Outcome::Operation(operation) => {
                let state = self.inner.env.state();
                Ok(self.operation_view(&state, &operation))
            }
            other => Err(unexpected(other)),
        }
    }

    /// Begins to move every replica off a node (UUID or unique name) and to remove it.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`] when no node or several have that name, or the others could not hold the replicas.
    pub async fn decommission(&self, node: &str) -> Result<OperationView, BrokerError> {
        let node = self.node(&self.inner.env.state(), node)?.id;
        self.operate(&Command::StartOperation { kind: OperationKind::Decommission, node, now_ms: now_ms() }).await
    }

    /// Begins to hand over everything that a node leads.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`] when no node or several have that name.
    pub async fn drain(&self, node: &str) -> Result<OperationView, BrokerError> {
        let node = self.node(&self.inner.env.state(), node)?.id;
        self.operate(&Command::StartOperation { kind: OperationKind::Drain, node, now_ms: now_ms() }).await
    }

    /// Lets a drained node lead again.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`] when the node is not drained.
    pub async fn undrain(&self, node: &str) -> Result<OperationView, BrokerError> {
        let node = self.node(&self.inner.env.state(), node)?.id;
        let command = Command::SetNodeState { node, state: NodeState::Active, now_ms: now_ms() };
        match self.controller()?.command(&command).await? {
            Outcome::Refused(refusal) => Err(crate::controller::refused(refusal)),
            _ => {
                let state = self.inner.env.state();
                let drains = |operation: &&Operation| operation.kind == OperationKind::Drain && operation.node == node;
                let drain = state.operations.values().rfind(drains);
                let drain =
                    drain.ok_or_else(|| BrokerError::new(Reason::Internal, "no drain of this node is remembered"))?;
                Ok(self.operation_view(&state, drain))
            }
        }
    }

    /// Stops an operation; what it has done stays.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`] when no operation of this id is under way.
    pub async fn cancel_operation(&self, id: u64) -> Result<OperationView, BrokerError> {
        self.operate(&Command::CancelOperation { id, now_ms: now_ms() }).await
    }

    /// Hands leadership of a partition (`None`: of the controller group) to a replica (UUID or unique name; empty: the best
    /// one), and answers who leads then.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`], [`Reason::UnknownTopic`], [`Reason::Unavailable`] when the hand-over does not succeed.
    pub async fn transfer_leadership(&self, target: Option<TopicPartition>, to: &str) -> Result<Uuid, BrokerError> {
        let state = self.inner.env.state();
        let to = match to {
            "" => None,
            name => Some(self.node(&state, name)?),
        };
        let (id, leader, replicas) = match &target {
            None => {
                let controller = self.controller()?;
                (CONTROLLER_LOG, controller.leader().0, controller.voters().into_iter().collect::<Vec<_>>())
            }
            Some(target) => {
                let topic = self.topic(target).await?;
                let id = LogId { topic: topic.id, partition: target.partition as u32 };
                let metadata = self.partition_metadata(&state, id);
                let leader = metadata.leader.and_then(|uuid| state.nodes.values().find(|node| node.uuid == uuid));
                (id, leader.map(|node| node.id), self.inner.env.placement(id).unwrap_or_default().voters)
            }
        };
        let unavailable = |why: String| BrokerError::new(Reason::Unavailable, why);
        let leader = leader.ok_or_else(|| unavailable("no leader is known".into()))?;
        if let Some(to) = &to
            && !replicas.contains(&to.id)
        {
            return Err(BrokerError::invalid("to", &to.name, "must be a node that votes there"));
        }
        let asked = to.as_ref().map(|node| node.id).unwrap_or(0);
        let led_by = if leader == self.inner.env.node() {
            self.hand_over(id, asked).await?
        } else {
            let answer = ask_group(&self.inner.env, id, leader, Ask::TransferTo(asked)).await.map_err(unavailable)?;
            answer.leader
        };
        state.nodes.get(&led_by).map(|node| node.uuid).ok_or_else(|| unavailable("nobody leads yet".into()))
    }

    /// Hands over what this node leads; `to` 0: to the best replica. Answers the raft id of who leads then.
    pub(super) async fn hand_over(&self, id: LogId, to: u64) -> Result<u64, BrokerError> {
        let env = &self.inner.env;
        if id == CONTROLLER_LOG {
            let controller = self.controller()?;
            let state = self.inner.env.state();
            let to = match to {
                0 => controller.successor(&state, &controller.alive()),
                to => Some(to),
            };
            let to = to.ok_or_else(|| BrokerError::new(Reason::Unavailable, "no other voter could lead"))?;
            if to != env.node() {
                controller.hand_over(to).await?;
            }
            return Ok(to);
        }
        let slot = self.existing_slot(id)?;
        let partition = slot.lead().await?;
        let status = partition.group().status();
        let to = match to {
            0 => status
                .voters
                .iter()
                .copied()
                .filter(|node| *node != env.node() && env.alive(*node))
                .max_by_key(|node| status.matched.get(node).copied().flatten()),
            to => Some(to),
        };
        let to = to.ok_or_else(|| BrokerError::new(Reason::Unavailable, "no other replica could lead"))?;
        if to != env.node() {
            partition.hand_over(to).await?;
        }
        Ok(to)
    }

    /// Hands over everything that this node leads and others could lead.
    pub(super) async fn hand_over_all(&self) {
        let slots: Vec<_> = self.inner.slots.read().values().cloned().collect();
        let handed = slots.into_iter().filter_map(|slot| match slot.state() {
            SlotState::Active(partition) if matches!(partition.role(), PartitionRole::Leading(_)) => {
                Some(partition.id())
            }
            _ => None,
        });
        let others = |id: LogId| self.inner.env.placement(id).is_some_and(|placement| placement.voters.len() > 1);
        let handed: Vec<LogId> = handed.filter(|id| others(*id)).collect();
        futures::stream::iter(handed)
            .for_each_concurrent(HAND_OVERS, |id| async move {
                if let Err(error) = self.hand_over(id, 0).await {
                    tracing::debug!(partition = %id, %error, "not handed over");
                }
            })
            .await;
        let leads = self.inner.env.controller.get().is_some_and(|c| c.leader().0 == Some(self.inner.env.node()));
        if leads && !self.alone() {
            let _ = self.hand_over(CONTROLLER_LOG, 0).await;
        }
    }

    /// The slot of a log that is agreed on.
    pub(super) fn existing_slot(&self, id: LogId) -> Result<Arc<crate::partition::Slot>, BrokerError> {
        if let Some(slot) = self.inner.slots.read().get(&id) {
            return Ok(slot.clone());
        }
        let state = self.inner.env.state();
        let topic = state.topics.values().find(|topic| topic.id == id.topic);
        let topic = topic.ok_or_else(|| BrokerError::new(Reason::UnknownTopic, format!("{id}: no such topic")))?;
        super::validate::partition(topic, id.partition as i32)?;
        self.slot(topic, id.partition as i32)
    }

    /// Compares the replicas of every partition of a topic (empty: of every topic).
    ///
    /// # Errors
    /// [`Reason::UnknownTopic`].
    pub async fn verify(
        &self,
        topic: &str,
    ) -> Result<BoxStream<'static, Result<VerifiedPartition, BrokerError>>, BrokerError> {
        self.controller()?;
        let state = self.inner.env.state();
        let topics: Vec<_> = match topic {
            "" => state.topics.values().cloned().collect(),
            name => vec![state.topics.get(name).cloned().ok_or_else(|| crate::controller::unknown_topic(name))?],
        };
        let partitions: Vec<(String, LogId)> = topics
            .into_iter()
            .flat_map(|topic| {
                let id = topic.id;
                let name = topic.name;
                (0..topic.partitions as u32).map(move |partition| (name.clone(), LogId { topic: id, partition }))
            })
            .collect();
        let broker = self.clone();
        let verified = futures::stream::iter(partitions).then(move |(name, id)| {
            let broker = broker.clone();
            async move { Ok(broker.verify_partition(name, id).await) }
        });
        Ok(verified.boxed())
    }

    async fn verify_partition(&self, topic: String, id: LogId) -> VerifiedPartition {
        let env = &self.inner.env;
        let state = env.state();
        let placement = env.placement(id).unwrap_or_default();
        let mut verified = VerifiedPartition {
            topic,
            partition: id.partition as i32,
            from: 0,
            to: 0,
            replicas: Vec::new(),
            difference: String::new(),
        };
        let mut statuses = Vec::new();
        let mut lagging = Vec::new();
        for node in &placement.voters {
            match self.replica_status(id, *node).await {
                Ok(status) => statuses.push((*node, status)),
                Err(error) => lagging.push((*node, error)),
            }
        }
        // What every replica has applied, from where the last of them begins.
        verified.from = statuses.iter().map(|(_, status)| status.first_index).max().unwrap_or(0);
        verified.to = statuses.iter().map(|(_, status)| status.applied).max().unwrap_or(0);
        let uuid = |node: u64| state.nodes.get(&node).map(|node| node.uuid).unwrap_or_default();
        let range = DigestRange { from: verified.from, to: verified.to };
        for (node, _) in &statuses {
            let digest = self.replica_digest(id, *node, range).await;
            verified.replicas.push((uuid(*node), digest));
        }
        verified.replicas.extend(lagging.into_iter().map(|(node, error)| (uuid(node), Err(error))));
        let digests: BTreeSet<&String> =
            verified.replicas.iter().filter_map(|(_, digest)| digest.as_ref().ok()).collect();
        let failed = verified.replicas.iter().filter(|(_, digest)| digest.is_err()).count();
        verified.difference = match (digests.len(), failed) {
            (0 | 1, 0) => String::new(),
            (0 | 1, failed) => format!("{failed} of {} replicas could not be compared", verified.replicas.len()),
            (different, _) => format!("{different} different contents"),
        };
        verified
    }

    async fn replica_status(&self, id: LogId, node: u64) -> Result<chronicle_proto::internal::GroupResponse, String> {
        if node == self.inner.env.node() {
            return self.group_status(id, true).await.map_err(|e| e.message);
        }
        ask_group(&self.inner.env, id, node, Ask::Status(true)).await
    }

    /// Asks until the replica is far enough, or patience ends.
    async fn replica_digest(&self, id: LogId, node: u64, range: DigestRange) -> Result<String, String> {
        let until = tokio::time::Instant::now() + VERIFY_PATIENCE;
        loop {
            let answer = if node == self.inner.env.node() {
                self.digest(id, range).await
            } else {
                ask_group(&self.inner.env, id, node, Ask::Digest(range)).await.map(|answer| answer.digest.to_vec())
            };
            match answer {
                Ok(digest) if !digest.is_empty() => {
                    return Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect());
                }
                Ok(_) if tokio::time::Instant::now() >= until => return Err("it lags behind".into()),
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(error) => return Err(error),
            }
        }
    }
}
