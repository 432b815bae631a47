//! The cluster as this node sees it: which node this is, who is alive, and what the controller group has committed.
//!
//! [`Cluster`] is shared by every raft group of the node, the controller's and the partitions' alike, so that these two know
//! nothing of one another: what replicas have to tell the controller goes through [`Reports`].
//!
//! Never names `partition/` or `controller/`. Neighbours: `metadata/` (the pure state), `peers/` (the way to other nodes),
//! `raft/` (the groups).

mod reports;
mod watcher;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use chronicle_log::{LogId, Store};
use chronicle_proto::internal as proto;
use chronicle_proto::internal::group_request::Ask;
use parking_lot::RwLock;
use tokio::runtime::Handle;
use uuid::Uuid;

pub use reports::Reports;
pub use watcher::{WATCH_INTERVAL, Watcher};

use crate::config::{Config, Live};
use crate::metadata::{ControllerState, NodeInfo, NodeState, Placement, designated_leader, leader_candidates};
use crate::model::TopicSettings;
use crate::peers::{Peers, wire_id};
use crate::raft::Member;
use crate::telemetry::RaftMetrics;

/// The controller group's log.
pub const CONTROLLER_LOG: LogId = LogId { topic: Uuid::nil(), partition: 0 };

/// Longest wait for an answer about a group.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// What every raft group of the node shares. See the module.
pub struct Cluster {
    /// The data directory.
    pub store: Arc<Store>,
    /// The runtime of raft groups and sequencers, which the API cannot starve.
    pub consensus: Handle,
    /// The way to other nodes.
    pub peers: Arc<Peers>,
    /// The configuration, also while it changes.
    pub config: Live,
    /// What the controller group has committed, as far as this node has applied it.
    pub metadata: Arc<RwLock<Arc<ControllerState>>>,
    /// Partitions that this node leads, or is about to.
    pub led: AtomicUsize,
    /// What groups and sequencers count.
    pub metrics: RaftMetrics,
}

impl Cluster {
    /// The cluster as a node sees it that belongs to none yet.
    pub fn new(store: Arc<Store>, consensus: Handle, peers: Arc<Peers>, config: Live) -> Self {
        Self {
            store,
            consensus,
            peers,
            config,
            metadata: Arc::default(),
            led: AtomicUsize::default(),
            metrics: RaftMetrics::default(),
        }
    }

    /// This node's raft id; 0 before it is part of a cluster.
    pub fn node(&self) -> u64 {
        self.peers.me().map(|me| me.node).unwrap_or(0)
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.config.now()
    }

    /// The metadata as of now.
    pub fn state(&self) -> Arc<ControllerState> {
        self.metadata.read().clone()
    }

    /// The node is this one, or its beats arrive.
    pub fn alive(&self, node: u64) -> bool {
        node == self.node() || self.peers.liveness().alive(node)
    }

    /// Nothing but a full disk keeps the node from leading.
    fn fit(&self, node: u64) -> bool {
        let liveness = self.peers.liveness();
        if node == self.node() { !liveness.is_unfit() } else { !liveness.unfit(node) }
    }

    /// The settings of the topic that a log belongs to; `None` when there is no such topic.
    pub(crate) fn settings(&self, id: LogId) -> Option<TopicSettings> {
        self.state().topics.values().find(|topic| topic.id == id.topic).map(|topic| topic.settings.clone())
    }

    /// Where the replicas of a log are.
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
    pub(crate) fn leaves_leadership(&self, node: u64) -> bool {
        !self.fit(node) || self.state().nodes.get(&node).is_some_and(|node| node.state != NodeState::Active)
    }

    /// How many replicas come before this node when a leader is gone: the alive ones of higher rank.
    pub(crate) fn rank(&self, id: LogId) -> u32 {
        let state = self.state();
        let Some(placement) = state.placement(id.topic, id.partition) else { return 0 };
        let mut candidates = leader_candidates(&placement, |node| self.alive(node), &state);
        // Stable: among the fit, and among the others, the order stays.
        candidates.sort_by_key(|node| !self.fit(*node));
        candidates.iter().position(|node| *node == self.node()).unwrap_or(candidates.len()) as u32
    }

    /// The members of a new group: the same on every founder. Addresses are not part of it: nodes are found by their ids.
    pub(crate) fn members(&self, nodes: &[u64]) -> BTreeMap<u64, Member> {
        let state = self.state();
        nodes.iter().map(|id| (*id, member(state.nodes.get(id)))).collect()
    }

    /// A leader without an answer from a majority for this long accepts nothing more.
    pub(crate) fn election_timeout(&self) -> Duration {
        Duration::from_millis(self.config().cluster.election_timeout_ms)
    }

    /// Asks another node about its replica of a group.
    ///
    /// # Errors
    /// A text with the node's id when it cannot be reached, refuses, or does not answer within three seconds.
    pub(crate) async fn ask(&self, id: LogId, node: u64, ask: Ask) -> Result<proto::GroupResponse, String> {
        let mut client = self.peers.client(node).map_err(|e| e.to_string())?;
        let group = Some(wire_id(id));
        let request = self.peers.request(node, proto::GroupRequest { group, ask: Some(ask) });
        match tokio::time::timeout(ASK_TIMEOUT, client.group(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(format!("node {node}: {}", status.message())),
            Err(_) => Err(format!("node {node} does not answer")),
        }
    }
}

/// A node as groups know it.
pub(crate) fn member(node: Option<&NodeInfo>) -> Member {
    Member { node_id: node.map(|node| node.uuid.to_string()).unwrap_or_default(), address: String::new() }
}
