//! What every partition of a node shares.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chronicle_log::{LogId, Store};
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::broker::{BrokerError, Reason, TopicSettings};
use crate::config::{Config, Live};
use crate::controller::{
    Controller, ControllerState, NodeInfo, NodeState, Placement, designated_leader, leader_candidates,
};
use crate::peers::Peers;
use crate::raft::Member;
use crate::telemetry::RaftMetrics;

/// What every partition of a node shares.
pub struct Environment {
    /// The data directory.
    pub store: Arc<Store>,
    /// The runtime of raft groups and sequencers, which the API cannot starve.
    pub consensus: Handle,
    /// The way to other nodes.
    pub peers: Arc<Peers>,
    /// What is configured, also while it changes.
    pub config: Live,
    /// KiB that all partitions together may have proposed and not committed.
    pub budget: Arc<Semaphore>,
    /// What the controller group has agreed on.
    pub agreed: Arc<RwLock<Arc<ControllerState>>>,
    /// Bounds how fast replicas on other nodes are filled.
    pub filling: Arc<super::fill::Throttle>,
    /// Partitions that this node leads, or is about to.
    pub led: AtomicUsize,
    /// What groups and sequencers count.
    pub metrics: RaftMetrics,
    /// The controller group on this node, once the node is part of a cluster.
    pub controller: OnceLock<Arc<Controller>>,
}

impl Environment {
    /// This node's raft id; 0 before it is part of a cluster.
    pub fn node(&self) -> u64 {
        self.peers.me().map(|me| me.node).unwrap_or(0)
    }

    /// What is configured now.
    pub fn config(&self) -> Arc<Config> {
        self.config.now()
    }

    /// What is agreed now.
    pub fn state(&self) -> Arc<ControllerState> {
        self.agreed.read().clone()
    }

    /// The node is this one, or was heard lately.
    pub fn alive(&self, node: u64) -> bool {
        node == self.node() || self.peers.liveness().alive(node)
    }

    /// Nothing but a full disk keeps the node from leading.
    fn fit(&self, node: u64) -> bool {
        let liveness = self.peers.liveness();
        if node == self.node() { !liveness.is_unfit() } else { !liveness.unfit(node) }
    }

    /// The settings of the topic that a log belongs to, as agreed now; `None` when there is no such topic.
    pub(crate) fn settings(&self, id: LogId) -> Option<TopicSettings> {
        self.state().topics.values().find(|topic| topic.id == id.topic).map(|topic| topic.settings.clone())
    }

    /// Where the replicas of a log are, as agreed now.
    pub(crate) fn placement(&self, id: LogId) -> Option<Placement> {
        self.state().placement(id.topic, id.partition)
    }

    /// Who should lead a log, as this node sees the others.
    pub(crate) fn designated(&self, id: LogId) -> Option<u64> {
        let state = self.state();
        let placement = state.placement(id.topic, id.partition)?;
        designated_leader(&placement, |node| self.alive(node) && self.fit(node), &state)
            .or_else(|| designated_leader(&placement, |node| self.alive(node), &state))
    }

    /// The node should lead nothing.
    pub(super) fn leaves_leadership(&self, node: u64) -> bool {
        !self.fit(node) || self.state().nodes.get(&node).is_some_and(|node| node.state != NodeState::Active)
    }

    /// Tells the controller who votes in a partition's group.
    pub(super) async fn settle(&self, id: LogId, voters: Vec<u64>, index: u64) -> Result<(), BrokerError> {
        let Some(controller) = self.controller.get() else { return Ok(()) };
        controller.settle(id, voters, index).await
    }

    /// How many replicas come before this node when a leader is gone: the alive ones of higher rank.
    pub(super) fn rank(&self, id: LogId) -> u32 {
        let state = self.state();
        let Some(placement) = state.placement(id.topic, id.partition) else { return 0 };
        let mut candidates = leader_candidates(&placement, |node| self.alive(node), &state);
        // Stable: among the fit, and among the others, the order stays.
        candidates.sort_by_key(|node| !self.fit(*node));
        candidates.iter().position(|node| *node == self.node()).unwrap_or(candidates.len()) as u32
    }

    /// The members of a new group: the same on every founder. Addresses are not part of it: nodes are found by their ids.
    pub(super) fn members(&self, nodes: &[u64]) -> BTreeMap<u64, Member> {
        let state = self.state();
        nodes.iter().map(|id| (*id, member(state.nodes.get(id)))).collect()
    }

    /// The answer when another node leads; `None`: nobody that is known.
    pub(crate) fn not_leader(&self, leader: Option<u64>) -> BrokerError {
        let state = self.state();
        match leader.and_then(|id| state.nodes.get(&id)) {
            Some(node) => BrokerError::new(Reason::NotLeader, format!("node {} ({}) leads", node.name, node.address))
                .with("leader", &node.address),
            None => BrokerError::new(Reason::Unavailable, "no leader is known: an election is under way"),
        }
    }

    /// A leader without an answer from a majority for this long accepts nothing more.
    pub(crate) fn election_timeout(&self) -> Duration {
        Duration::from_millis(self.config().cluster.election_timeout_ms)
    }
}

/// A node as groups know it.
pub(crate) fn member(node: Option<&NodeInfo>) -> Member {
    Member { node_id: node.map(|node| node.uuid.to_string()).unwrap_or_default(), address: String::new() }
}
