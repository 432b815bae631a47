//! This node's view of the cluster: its own raft id, which nodes are alive, and the metadata that the controller group has committed.
//!
//! [`Cluster`] is shared by every raft group of the node, the controller's and the partitions', so that `controller/` and
//! `partition/` do not depend on each other: replicas report to the controller through [`Reports`].
//!
//! Never names `partition/` or `controller/`. Neighbours: `metadata/` (the pure state), `peers/` (connections to other nodes),
//! `raft/` (the groups).

mod agreed_clock;
mod decree;
mod fill;
mod fill_mark;
mod reports;
mod send;
mod throttle;
mod watcher;
mod whole_copy;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use chronicle_log::{LogId, Store};
use chronicle_proto::internal as proto;
use chronicle_proto::internal::group_request::Ask;
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::time::Instant;
use uuid::Uuid;

pub(crate) use decree::{declare_source, end_declaration, is_declared, set_aside};
pub use fill::FillProgress;
pub(crate) use fill::fill;
pub(crate) use fill_mark::{FillMark, FillReason, cut_damage, fill_mark, fill_pending, store_fill_pending};
pub use reports::Reports;
pub(crate) use send::send_log;
pub use throttle::Throttle;
pub use watcher::{WATCH_INTERVAL, Watcher};
pub(crate) use whole_copy::{
    ACTIVE, FILLING, check_whole, complete_fill, damaged_response, source_without_leader, with_marks,
};

use crate::config::{Config, Live};
use crate::metadata::{ControllerState, NodeInfo, NodeState, Placement, designated_leader, leader_candidates};
use crate::model::TopicSettings;
use crate::peers::{Peers, wire_id};
use crate::raft::RaftMember;
use crate::telemetry::RaftMetrics;

/// The controller group's log.
pub const CONTROLLER_LOG: LogId = LogId { topic: Uuid::nil(), partition: 0 };

/// Timeout of a request about a group.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// State that all raft groups of the node share. See the module.
pub struct Cluster {
    /// The data directory.
    pub store: Arc<Store>,
    /// The runtime of raft groups and sequencers; separate, so that API requests cannot starve it.
    pub consensus: Handle,
    /// Connections to other nodes.
    pub peers: Arc<Peers>,
    /// The configuration; follows reloads.
    pub config: Live,
    /// The committed metadata, as applied on this node, which may lag the leader.
    pub metadata: Arc<RwLock<Arc<ControllerState>>>,
    /// Number of partitions that this node leads, or is about to lead.
    pub led: AtomicUsize,
    /// Limits the rate at which replicas on other nodes are filled.
    pub filling: Arc<Throttle>,
    /// Counters of groups and sequencers.
    pub metrics: RaftMetrics,
    /// What the repair of the controller group's log on this node waits for; empty: it does not wait.
    pub(crate) controller_repair: parking_lot::Mutex<String>,
    /// When this process had the data directory to itself: a former process has acknowledged nothing since.
    pub started: Instant,
}

impl Cluster {
    /// The view of a node that has not joined a cluster yet.
    pub fn new(store: Arc<Store>, consensus: Handle, peers: Arc<Peers>, config: Live) -> Self {
        Self {
            store,
            consensus,
            peers,
            config,
            metadata: Arc::default(),
            led: AtomicUsize::default(),
            filling: Arc::default(),
            metrics: RaftMetrics::default(),
            controller_repair: parking_lot::Mutex::default(),
            started: Instant::now(),
        }
    }

    /// This node's raft id; 0 before it is a member of a cluster.
    pub fn node(&self) -> u64 {
        self.peers.me().map(|me| me.node).unwrap_or(0)
    }

    /// The current configuration.
    pub fn config(&self) -> Arc<Config> {
        self.config.now()
    }

    /// The current metadata, as applied on this node.
    pub fn state(&self) -> Arc<ControllerState> {
        self.metadata.read().clone()
    }

    /// Returns whether the node is this one, or its heartbeats arrive.
    pub fn alive(&self, node: u64) -> bool {
        node == self.node() || self.peers.liveness().alive(node)
    }

    /// Returns whether the node is this one, or is alive and runs a release that knows control entries in the logs of partitions.
    pub(crate) fn knows_control_entries(&self, node: u64) -> bool {
        node == self.node() || self.peers.liveness().knows_control_entries(node)
    }

    /// Returns whether the node can lead: its disk is neither full nor stalled.
    fn fit(&self, node: u64) -> bool {
        let liveness = self.peers.liveness();
        if node == self.node() { !liveness.is_unfit() } else { !liveness.unfit(node) }
    }

    /// Returns whether the node is alive and its replica of the group is in service, as far as it reports: it can be opened, and its
    /// log is not being filled. A replica that was not used since its node started counts as in service.
    pub(crate) fn serves(&self, node: u64, group: LogId) -> bool {
        let liveness = self.peers.liveness();
        match node == self.node() {
            true => liveness.is_in_service(group),
            false => liveness.alive(node) && liveness.in_service(node, group),
        }
    }

    /// Returns how many replicas of a node are not in service, as far as it reports.
    pub(crate) fn out_of_service(&self, node: u64) -> usize {
        let liveness = self.peers.liveness();
        if node == self.node() { liveness.own_out_of_service() } else { liveness.out_of_service(node) }
    }

    /// Returns how many voters of a partition serve it.
    pub(crate) fn serving(&self, topic: Uuid, partition: u32, placement: &Placement) -> usize {
        let id = LogId { topic, partition };
        placement.voters.iter().filter(|node| self.serves(**node, id)).count()
    }

    /// The settings of the topic that a log belongs to; `None` when there is no such topic.
    pub(crate) fn settings(&self, id: LogId) -> Option<TopicSettings> {
        self.state().topics.values().find(|topic| topic.id == id.topic).map(|topic| topic.settings.clone())
    }

    /// The placement of a log's replicas.
    pub(crate) fn placement(&self, id: LogId) -> Option<Placement> {
        self.state().placement(id.topic, id.partition)
    }

    /// Returns the node that should lead a log, from this node's view of which nodes are alive.
    pub(crate) fn designated(&self, id: LogId) -> Option<u64> {
        let state = self.state();
        let placement = state.placement(id.topic, id.partition)?;
        designated_leader(&placement, |node| self.serves(node, id) && self.fit(node), &state)
            .or_else(|| designated_leader(&placement, |node| self.serves(node, id), &state))
            .or_else(|| designated_leader(&placement, |node| self.alive(node), &state))
    }

    /// Returns whether the node should not lead anything: it cannot, or is not active.
    pub(crate) fn leaves_leadership(&self, node: u64) -> bool {
        !self.fit(node) || self.state().nodes.get(&node).is_some_and(|node| node.state != NodeState::Active)
    }

    /// Returns how many replicas become a candidate before this node when the leader is dead: those of higher rank that serve.
    pub(crate) fn rank(&self, id: LogId) -> u32 {
        let state = self.state();
        let Some(placement) = state.placement(id.topic, id.partition) else { return 0 };
        let mut candidates = leader_candidates(&placement, |node| self.serves(node, id), &state);
        // A stable sort: keeps the order among nodes that can lead, and among the others.
        candidates.sort_by_key(|node| !self.fit(*node));
        candidates.iter().position(|node| *node == self.node()).unwrap_or(candidates.len()) as u32
    }

    /// The initial members of a group, identical on each of them. Without addresses: nodes are looked up by their ids.
    pub(crate) fn members(&self, nodes: &[u64]) -> BTreeMap<u64, RaftMember> {
        let state = self.state();
        nodes.iter().map(|id| (*id, member(state.nodes.get(id)))).collect()
    }

    /// A leader without responses from a majority for this long accepts no more appends.
    pub(crate) fn election_timeout(&self) -> Duration {
        Duration::from_millis(self.config().cluster.election_timeout_ms)
    }

    /// Sends a request about a group to another node.
    ///
    /// # Errors
    /// A text with the node's id when it is unreachable, rejects the request, or does not respond within three seconds.
    pub(crate) async fn ask(&self, id: LogId, node: u64, ask: Ask) -> Result<proto::GroupResponse, String> {
        let mut client = self.peers.client(node).map_err(|e| e.to_string())?;
        let group = Some(wire_id(id));
        let request = self.peers.request(node, proto::GroupRequest { group, ask: Some(ask) });
        match tokio::time::timeout(ASK_TIMEOUT, client.group(request)).await {
            Ok(Ok(answer)) => {
                self.peers.recognise(node, answer.metadata()).map_err(|e| e.to_string())?;
                Ok(answer.into_inner())
            }
            Ok(Err(status)) => Err(format!("node {node}: {}", status.message())),
            Err(_) => Err(format!("node {node}: no response within {} s", ASK_TIMEOUT.as_secs())),
        }
    }
}

/// A node as a member of a raft group.
pub(crate) fn member(node: Option<&NodeInfo>) -> RaftMember {
    RaftMember { node_id: node.map(|node| node.uuid.to_string()).unwrap_or_default(), address: String::new() }
}
