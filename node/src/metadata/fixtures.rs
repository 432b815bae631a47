//! Small clusters for the tests of this folder.

use uuid::Uuid;

use super::balancer::ClusterObservation;
use super::controller_state::{CommandOutcome, ControllerCommand, ControllerState};
use super::entities::{NodeInfo, NodeState};
use crate::model::{Addresses, Topic, TopicSettings};

pub(super) const CLUSTER: Uuid = Uuid::from_u128(0xc1);

/// Node `n<id>` with UUID `id`.
pub(super) fn node(id: u64, zone: &str) -> NodeInfo {
    NodeInfo {
        id,
        uuid: Uuid::from_u128(id.into()),
        name: format!("n{id}"),
        addresses: Addresses::of_data(format!("n{id}:7400")),
        zone: zone.into(),
        version: "1".into(),
        boot: 1,
        state: NodeState::Active,
        joined_ms: 1,
    }
}

/// A founded cluster with one node per zone, raft ids from 1 on.
pub(super) fn cluster(zones: &[&str]) -> ControllerState {
    let mut state = ControllerState::default();
    let nodes = (1..).zip(zones).map(|(id, zone)| node(id, zone)).collect();
    state.apply(ControllerCommand::InitCluster { cluster_id: CLUSTER, nodes });
    state
}

pub(super) fn topic(name: &str, id: u128, partitions: i32, replication_factor: i32) -> Topic {
    Topic {
        name: name.into(),
        id: Uuid::from_u128(id),
        partitions,
        replication_factor,
        settings: TopicSettings::default(),
        created_ms: 1,
    }
}

/// Creates a topic, by default with three replicas.
pub(super) fn create(state: &mut ControllerState, topic: Topic) -> CommandOutcome {
    state.apply(ControllerCommand::CreateTopic { topic, topics_max: 1000, default_replication: 3 })
}

/// A join of `node`, which has no cluster yet unless it is known.
pub(super) fn join(state: &ControllerState, node: &NodeInfo, alive: &[u64]) -> ControllerCommand {
    let known = state.node_of(node.uuid).is_some();
    ControllerCommand::Join {
        uuid: node.uuid,
        name: node.name.clone(),
        addresses: node.addresses.clone(),
        zone: node.zone.clone(),
        version: node.version.clone(),
        boot: node.boot,
        now_ms: 5,
        cluster_id: if known { CLUSTER } else { Uuid::nil() },
        alive_uuids: alive.iter().map(|id| state.nodes[id].uuid).collect(),
    }
}

/// Every node that was not removed is alive, and votes in the controller group.
pub(super) fn all_alive(state: &ControllerState) -> ClusterObservation {
    let there = state.nodes.values().filter(|node| node.state != NodeState::Removed).map(|node| node.id);
    let alive: std::collections::BTreeSet<u64> = there.collect();
    ClusterObservation { controller_voters: alive.clone(), alive, ..ClusterObservation::default() }
}
