//! The broker as metrics and support bundles see it. Read at scrape time: no partition is woken by being looked at.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{Broker, TopicTraffic};
use crate::partition::{PartitionRole, SlotState};
use crate::telemetry::RaftMetrics;

/// The node's partitions at a glance, sums over all of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PartitionTotals {
    /// Topics of the cluster.
    pub topics: usize,
    /// Partitions of all topics.
    pub partitions: usize,
    /// Partitions with a replica on a node that this one does not hear from.
    pub under_replicated: usize,
    /// Partitions whose live replicas are no majority.
    pub offline: usize,
    /// Partitions whose replicas are not yet where they should be.
    pub moving: usize,
    /// Open replicas here that lead.
    pub leading: usize,
    /// Open replicas here that follow a leader.
    pub following: usize,
    /// Open replicas here that know no leader, or have won and do not accept appends yet.
    pub leaderless: usize,
    /// Replicas here that failed and wait to be tried again.
    pub failed: usize,
    /// Replicas here whose log is filled from another replica.
    pub filling: usize,
    /// Of those, replicas that were damaged.
    pub damaged: usize,
    /// Led partitions that no majority answers.
    pub quorum_silent: usize,
    /// Highest raft term of an open replica.
    pub term_max: u64,
    /// Segment bytes of open replicas.
    pub log_bytes: u64,
    /// Segments of open replicas.
    pub segments: u64,
    /// Raft entries that followers of led partitions lack, all together and of the one that lacks most.
    pub replica_lag_entries: u64,
    /// See `replica_lag_entries`.
    pub replica_lag_entries_max: u64,
    /// For how long the follower that is behind longest has been.
    pub replica_lag_max: Duration,
}

impl PartitionTotals {
    /// Open replicas here.
    pub fn open(&self) -> usize {
        self.leading + self.following + self.leaderless
    }
}

/// The controller group as this node sees it.
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
    /// Members that this node hears from, itself included.
    pub nodes_alive: usize,
}

/// One open raft group, for a support bundle.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct GroupReport {
    topic: String,
    partition: u32,
    state: String,
    term: u64,
    leader: Option<u64>,
    last: Option<u64>,
    applied: Option<u64>,
    checkpoint: Option<u64>,
    voters: Vec<u64>,
    learners: Vec<u64>,
    matched: Vec<(u64, Option<u64>)>,
    first_offset: u64,
    next_offset: u64,
    log_bytes: u64,
}

impl Broker {
    /// What raft groups and sequencers count.
    pub fn raft_metrics(&self) -> &RaftMetrics {
        &self.inner.env.metrics
    }

    /// The bytes that `storage.reserve-bytes` keeps free.
    pub fn reserve_bytes(&self) -> u64 {
        self.config().storage.reserve_bytes
    }

    /// Appends are refused because the volume is full.
    pub fn disk_is_full(&self) -> bool {
        self.inner.disk_space.check(&self.inner.store).is_err()
    }

    /// Counters by topic; topics beyond `metrics.topics-max` under `other`.
    pub fn topic_traffic(&self) -> Vec<(String, Arc<TopicTraffic>)> {
        let state = self.inner.env.state();
        self.inner.traffic.all(|topic| state.topics.contains_key(topic))
    }

    /// The controller group; all zero before the node is part of a cluster.
    pub fn controller_view(&self) -> ControllerView {
        let env = &self.inner.env;
        let Some(controller) = env.controller.get() else { return ControllerView::default() };
        let (leader, term) = controller.leader();
        let state = env.state();
        let members = || state.nodes.values().filter(|node| node.state != crate::controller::NodeState::Removed);
        ControllerView {
            has_leader: leader.is_some_and(|leader| env.alive(leader)),
            leads: leader == Some(env.node()),
            term,
            failed: controller.failure().is_some(),
            nodes: members().count(),
            nodes_alive: members().filter(|node| env.alive(node.id)).count(),
        }
    }

    /// Sums over the partitions of the cluster, as this node sees it, and over the replicas here.
    pub fn partition_totals(&self) -> PartitionTotals {
        let env = &self.inner.env;
        let state = env.state();
        let mut totals = PartitionTotals {
            topics: state.topics.len(),
            partitions: state.topics.values().map(|topic| topic.partitions as usize).sum(),
            ..PartitionTotals::default()
        };
        for placement in state.placements.values().flatten() {
            let alive = placement.voters.iter().filter(|id| env.alive(**id)).count();
            totals.under_replicated += usize::from(alive < placement.voters.len());
            totals.offline += usize::from(alive <= placement.voters.len() / 2);
            totals.moving += usize::from(!placement.settled());
        }
        for slot in self.inner.slots.read().values() {
            let partition = match slot.state() {
                SlotState::Active(partition) if partition.failure().is_none() => partition,
                SlotState::Active(_) | SlotState::Failed { .. } => {
                    totals.failed += 1;
                    continue;
                }
                SlotState::Filling(_) => {
                    totals.filling += 1;
                    totals.damaged += usize::from(slot.is_damaged());
                    continue;
                }
                SlotState::Dormant | SlotState::Closed => continue,
            };
            let position = partition.log().position();
            totals.log_bytes += position.bytes;
            totals.segments += position.segments as u64;
            totals.term_max = totals.term_max.max(partition.group().term());
            match partition.role() {
                PartitionRole::Leading(_) => {
                    totals.leading += 1;
                    totals.quorum_silent += usize::from(partition.group().quorum_silent());
                    let lag = partition.replica_lag();
                    totals.replica_lag_entries += lag.entries;
                    totals.replica_lag_entries_max = totals.replica_lag_entries_max.max(lag.entries_max);
                    totals.replica_lag_max = totals.replica_lag_max.max(lag.longest);
                }
                PartitionRole::Following { leader: Some(leader) } if env.alive(leader) => totals.following += 1,
                PartitionRole::Settling | PartitionRole::Following { .. } => totals.leaderless += 1,
            }
        }
        totals
    }

    /// The raft groups that are open here, at most `max` of them, and how many there are.
    pub(crate) fn group_reports(&self, max: usize) -> (Vec<GroupReport>, usize) {
        let state = self.inner.env.state();
        let slots: Vec<_> = self.inner.slots.read().values().cloned().collect();
        let open = slots.iter().filter_map(|slot| match slot.state() {
            SlotState::Active(partition) => Some(partition),
            _ => None,
        });
        let open: Vec<_> = open.collect();
        let reports = open.iter().take(max).map(|partition| {
            let id = partition.id();
            let status = partition.group().status();
            let position = partition.log().position();
            let topic = state.topics.values().find(|topic| topic.id == id.topic);
            GroupReport {
                topic: topic.map_or_else(|| id.topic.to_string(), |topic| topic.name.clone()),
                partition: id.partition,
                state: match (partition.failure(), partition.role()) {
                    (Some(error), _) => format!("failed: {error}"),
                    (None, PartitionRole::Leading(_)) => "leading".into(),
                    (None, PartitionRole::Settling) => "settling".into(),
                    (None, PartitionRole::Following { .. }) => "following".into(),
                },
                term: status.term,
                leader: status.leader,
                last: status.last,
                applied: status.applied,
                checkpoint: status.checkpoint,
                voters: status.voters.into_iter().collect(),
                learners: status.learners.into_iter().collect(),
                matched: status.matched.into_iter().collect(),
                first_offset: position.start_offset,
                next_offset: partition.progress().borrow().next_offset,
                log_bytes: position.bytes,
            }
        });
        (reports.collect(), open.len())
    }
}
