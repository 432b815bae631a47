//! Values for metrics, read at scrape time.

use std::sync::Arc;
use std::time::Duration;

use super::{Broker, TopicTraffic};
use crate::metadata::NodeState;
use crate::partition::PartitionTotals;
use crate::telemetry::RaftMetrics;

/// The controller group, as known to this node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ControllerView {
    /// A leader is known.
    pub has_leader: bool,
    /// This node leads it.
    pub leads: bool,
    /// Its term.
    pub term: u64,
    /// It has failed on this node.
    pub failed: bool,
    /// Members of the cluster.
    pub nodes: usize,
    /// Members with recent heartbeats, this node included.
    pub nodes_alive: usize,
}

impl Broker {
    /// Counters of raft groups and sequencers.
    pub fn raft_metrics(&self) -> &RaftMetrics {
        &self.inner.cluster.metrics
    }

    /// The bytes that `storage.reserve-bytes` keeps free.
    pub fn reserve_bytes(&self) -> u64 {
        self.config().storage.reserve_bytes
    }

    /// Whether appends are rejected because the volume is full.
    pub fn disk_is_full(&self) -> bool {
        self.check_space().is_err()
    }

    /// For how long the disk has not answered; `None`: less than `storage.stall-ms`.
    pub fn disk_stalled_for(&self) -> Option<Duration> {
        let age = self.store().round_age();
        (age >= Duration::from_millis(self.config().storage.stall_ms)).then_some(age)
    }

    /// Counters by topic; topics beyond `metrics.topics-max` under `other`.
    pub fn topic_traffic(&self) -> Vec<(String, Arc<TopicTraffic>)> {
        let state = self.inner.cluster.state();
        self.inner.traffic.all(|topic| state.topics.contains_key(topic))
    }

    /// Totals over the partitions of the cluster, as known to this node, and over the replicas on this node.
    pub fn partition_totals(&self) -> PartitionTotals {
        self.inner.replicas.totals()
    }

    /// The controller group; all zero before the node is a member of a cluster.
    pub fn controller_view(&self) -> ControllerView {
        let cluster = &self.inner.cluster;
        let Some(controller) = self.inner.controller.get() else { return ControllerView::default() };
        let (leader, term) = controller.leader();
        let state = cluster.state();
        let members = || state.nodes.values().filter(|node| node.state != NodeState::Removed);
        ControllerView {
            has_leader: leader.is_some_and(|leader| cluster.alive(leader)),
            leads: leader == Some(cluster.node()),
            term,
            failed: controller.failure().is_some(),
            nodes: members().count(),
            nodes_alive: members().filter(|node| cluster.alive(node.id)).count(),
        }
    }
}
