//! Describes the nodes of the cluster and the placement of partitions, and starts operations on nodes.

use chronicle_log::LogId;
use chronicle_proto::internal::group_request::Ask;
use futures::StreamExt;
use futures::stream::BoxStream;
use uuid::Uuid;

use super::{Broker, ClusterStatus, Metadata, NodeDescription, OperationProgress, PartitionMetadata, TopicMetadata};
use crate::cluster::CONTROLLER_LOG;
use crate::controller::unexpected;
use crate::host::now_ms;
use crate::identity::PortEncryption;
use crate::metadata::{
    CommandOutcome, ControllerCommand, ControllerState, NodeInfo, NodeState, Operation, OperationKind, Placement,
    remaining, waiting_for,
};
use crate::model::{ApiError, Reason, TopicPartition, VerifiedPartition, unknown_topic};
use crate::partition::{PartitionRole, ReplicaState};

impl Broker {
    /// The nodes of the cluster, and the cluster's id.
    ///
    /// # Errors
    /// [`Reason::Unavailable`] before the node is part of a cluster.
    pub async fn servers(&self) -> Result<(Vec<NodeDescription>, Uuid), ApiError> {
        let state = self.inner.cluster.state();
        let servers = self.servers_of(&state, false)?;
        Ok((servers, state.cluster_id))
    }

    fn servers_of(&self, state: &ControllerState, removed: bool) -> Result<Vec<NodeDescription>, ApiError> {
        let controller = self.controller()?;
        let (leader, _) = controller.leader();
        let voters = controller.voters();
        let placements = || state.placements.values().flatten();
        let count = |holds: &dyn Fn(&Placement) -> bool| placements().filter(|p| holds(p)).count() as u32;
        let server = |node: &NodeInfo| NodeDescription {
            node_id: node.uuid,
            name: node.name.clone(),
            addresses: node.addresses.clone(),
            controller_leader: leader == Some(node.id),
            version: node.version.clone(),
            zone: node.zone.clone(),
            voter: voters.contains(&node.id),
            state: node.state,
            alive: node.state != NodeState::Removed && self.inner.cluster.alive(node.id),
            raft_id: node.id,
            replicas: count(&|placement| placement.holds(node.id)),
            replicas_out_of_service: self.inner.cluster.out_of_service(node.id) as u32,
            preferred_leaders: count(&|placement| placement.replicas.first() == Some(&node.id)),
            encryption: self.encryption_of(node.id),
        };
        Ok(state.nodes.values().filter(|node| removed || node.state != NodeState::Removed).map(server).collect())
    }

    fn encryption_of(&self, node: u64) -> Option<PortEncryption> {
        let cluster = &self.inner.cluster;
        let liveness = cluster.peers.liveness();
        if node == cluster.node() { Some(liveness.own_encryption()) } else { liveness.encryption(node) }
    }

    /// Returns where the partitions of some topics are; no names: of all topics that this node knows.
    ///
    /// # Errors
    /// [`Reason::Unavailable`] before the node is part of a cluster, and when it cannot find out whether a topic exists.
    pub async fn metadata(&self, topics: &[String]) -> Result<Metadata, ApiError> {
        self.know(topics.iter().map(|name| (name.as_str(), 0))).await?;
        let state = self.inner.cluster.state();
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
        let cluster = &self.inner.cluster;
        let placement = cluster.placement(id).unwrap_or_default();
        let uuid = |node: u64| state.nodes.get(&node).map(|node| node.uuid);
        let mut leader = None;
        let mut term = 0;
        let replica = self.inner.replicas.used(id);
        if let Some(ReplicaState::Active(partition)) = replica.map(|replica| replica.state()) {
            term = partition.group().status().term;
            leader = match partition.role() {
                PartitionRole::Leading(_) | PartitionRole::Settling => Some(cluster.node()),
                // A leader that is not alive cannot serve the request: do not redirect to it.
                PartitionRole::Following { leader } => {
                    leader.filter(|id| cluster.alive(*id) && !partition.group().leader_gone())
                }
            };
        }
        let (leader, term) = match leader {
            Some(leader) => (Some(leader), term),
            None => (cluster.designated(id), 0),
        };
        PartitionMetadata {
            leader: leader.and_then(uuid),
            term,
            replicas: placement.replicas.iter().filter_map(|id| uuid(*id)).collect(),
        }
    }

    /// Returns a summary of the cluster, as this node sees it.
    ///
    /// # Errors
    /// [`Reason::Unavailable`] before the node is part of a cluster.
    pub async fn status(&self) -> Result<ClusterStatus, ApiError> {
        let controller = self.controller()?;
        let state = self.inner.cluster.state();
        let cluster = &self.inner.cluster;
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
            operations: state.operations.values().map(|operation| self.operation_progress(&state, operation)).collect(),
            configuration: self.live().report(),
        };
        for (topic, placements) in &state.placements {
            for (partition, placement) in placements.iter().enumerate() {
                let serving = cluster.serving(*topic, partition as u32, placement);
                status.partitions += 1;
                status.under_replicated += u32::from(serving < placement.voters.len());
                status.offline += u32::from(serving <= placement.voters.len() / 2);
                status.moving += u32::from(!placement.settled());
            }
        }
        Ok(status)
    }

    fn operation_progress(&self, state: &ControllerState, operation: &Operation) -> OperationProgress {
        let observed = self.inner.controller.get().map(|controller| controller.observed()).unwrap_or_default();
        let led = self.inner.replicas.led_by(operation.node);
        OperationProgress {
            node: state.nodes.get(&operation.node).map(|node| node.uuid).unwrap_or_default(),
            remaining: remaining(state, operation, led),
            waiting_for: waiting_for(state, operation, &observed),
            operation: operation.clone(),
        }
    }

    /// The node of this UUID or unique name.
    fn node(&self, state: &ControllerState, name: &str) -> Result<NodeInfo, ApiError> {
        state.find_node(name).cloned().map_err(ApiError::from)
    }

    async fn operate(&self, command: &ControllerCommand) -> Result<OperationProgress, ApiError> {
        let controller = self.controller()?;
        let outcome = match command {
            // Starting it twice results in one operation, so the command may be repeated.
            ControllerCommand::StartOperation { .. } => controller.command_again(command).await?,
            _ => controller.command(command).await?,
        };
        match outcome {
            CommandOutcome::Operation(operation) => {
                let state = self.inner.cluster.state();
                Ok(self.operation_progress(&state, &operation))
            }
            other => Err(unexpected(other).into()),
        }
    }

    /// Starts to move every replica off a node (UUID or unique name) and to remove the node.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`] when no node or several have that name, or the other nodes cannot hold the replicas.
    pub async fn decommission(&self, node: &str) -> Result<OperationProgress, ApiError> {
        let node = self.node(&self.inner.cluster.state(), node)?.id;
        self.operate(&ControllerCommand::StartOperation { kind: OperationKind::Decommission, node, now_ms: now_ms() })
            .await
    }

    /// Starts to transfer all leadership away from a node.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`] when no node or several have that name.
    pub async fn drain(&self, node: &str) -> Result<OperationProgress, ApiError> {
        let node = self.node(&self.inner.cluster.state(), node)?.id;
        self.operate(&ControllerCommand::StartOperation { kind: OperationKind::Drain, node, now_ms: now_ms() }).await
    }

    /// Lets a drained node lead again.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`] when the node is not drained.
    pub async fn undrain(&self, node: &str) -> Result<OperationProgress, ApiError> {
        let node = self.node(&self.inner.cluster.state(), node)?.id;
        let command = ControllerCommand::SetNodeState { node, state: NodeState::Active, now_ms: now_ms() };
        match self.controller()?.command(&command).await? {
            CommandOutcome::Refused(refusal) => Err(refusal.into()),
            _ => {
                let state = self.inner.cluster.state();
                let drains = |operation: &&Operation| operation.kind == OperationKind::Drain && operation.node == node;
                let drain = state.operations.values().rfind(drains);
                let drain =
                    drain.ok_or_else(|| ApiError::new(Reason::Internal, "the state has no drain of this node"))?;
                Ok(self.operation_progress(&state, drain))
            }
        }
    }

    /// Cancels an operation; completed moves are not undone.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`] when no operation of this id is under way.
    pub async fn cancel_operation(&self, id: u64) -> Result<OperationProgress, ApiError> {
        self.operate(&ControllerCommand::CancelOperation { id, now_ms: now_ms() }).await
    }

    /// Transfers leadership of a partition (`None`: of the controller group) to a replica (UUID or unique name; empty:
    /// the best one), and returns the leader after that.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`], [`Reason::UnknownTopic`], [`Reason::Unavailable`] when the transfer does not
    /// succeed.
    pub async fn transfer_leadership(&self, target: Option<TopicPartition>, to: &str) -> Result<Uuid, ApiError> {
        let state = self.inner.cluster.state();
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
                (id, leader.map(|node| node.id), self.inner.cluster.placement(id).unwrap_or_default().voters)
            }
        };
        let unavailable = |why: String| ApiError::new(Reason::Unavailable, why);
        let leader = leader.ok_or_else(|| unavailable("no leader is known".into()))?;
        if let Some(to) = &to
            && !replicas.contains(&to.id)
        {
            return Err(ApiError::invalid("to", &to.name, "must be a voter of the group"));
        }
        let asked = to.as_ref().map(|node| node.id).unwrap_or(0);
        let led_by = if leader == self.inner.cluster.node() {
            self.hand_over(id, asked).await?
        } else {
            let answer = self.inner.cluster.ask(id, leader, Ask::TransferTo(asked)).await.map_err(unavailable)?;
            answer.leader
        };
        state
            .nodes
            .get(&led_by)
            .map(|node| node.uuid)
            .ok_or_else(|| unavailable("the group has no known leader yet".into()))
    }

    /// Transfers leadership of a group that this node leads; `to` 0: to the best replica. Returns the raft id of the
    /// leader after that.
    pub(crate) async fn hand_over(&self, id: LogId, to: u64) -> Result<u64, ApiError> {
        if id == CONTROLLER_LOG {
            let controller = self.controller()?;
            let state = self.inner.cluster.state();
            let to = match to {
                0 => controller.successor(&state, &controller.alive()),
                to => Some(to),
            };
            let to = to.ok_or_else(|| ApiError::new(Reason::Unavailable, "no other voter could lead"))?;
            if to != self.inner.cluster.node() {
                controller.hand_over(to).await?;
            }
            return Ok(to);
        }
        self.inner.replicas.hand_over(id, to).await.map_err(|error| self.api_error(error))
    }

    /// Transfers leadership of everything that this node leads and another node can lead.
    pub(crate) async fn hand_over_all(&self) {
        self.inner.replicas.hand_over_all().await;
        let me = self.inner.cluster.node();
        let leads = self.inner.controller.get().is_some_and(|controller| controller.leader().0 == Some(me));
        if leads && !self.alone() {
            let _ = self.hand_over(CONTROLLER_LOG, 0).await;
        }
    }

    /// Compares the replicas of every partition of a topic (empty: of every topic).
    ///
    /// # Errors
    /// [`Reason::UnknownTopic`].
    pub async fn verify(
        &self,
        topic: &str,
    ) -> Result<BoxStream<'static, Result<VerifiedPartition, ApiError>>, ApiError> {
        self.controller()?;
        let state = self.inner.cluster.state();
        let topics: Vec<_> = match topic {
            "" => state.topics.values().cloned().collect(),
            name => vec![state.topics.get(name).cloned().ok_or_else(|| unknown_topic(name))?],
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
            async move { Ok(broker.inner.replicas.verify(name, id).await) }
        });
        Ok(verified.boxed())
    }
}
