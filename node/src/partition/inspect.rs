//! Read-only views of the replicas on this node, for metrics, peers, support bundles and people.
//!
//! Nothing here counts as a use of a partition, and only functions that say so open one.

use std::sync::Arc;
use std::time::Duration;

use chronicle_log::LogId;
use chronicle_proto::internal as proto;
use serde::Serialize;

use super::replicas::{Replicas, log_of};
use super::{Partition, PartitionRole, Replica, ReplicaState};
use crate::cluster::{ACTIVE, FILLING, with_marks};
use crate::model::{PartitionError, Topic};
use crate::raft::RaftGroupStatus;

/// A replica's state, read without opening it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peek {
    /// Open: its offsets, as committed on this node.
    Open {
        /// First retained offset.
        earliest: i64,
        /// Offset after the last one.
        next: i64,
    },
    /// Not open; no replica of the partition has appends then.
    Dormant,
    /// Not on this node, or not in service.
    Elsewhere,
}

/// Totals over the node's partitions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PartitionTotals {
    /// Topics of the cluster.
    pub topics: usize,
    /// Partitions of all topics.
    pub partitions: usize,
    /// Partitions with a voter that does not serve: on a node without recent heartbeats, or not in service there.
    pub under_replicated: usize,
    /// Partitions without a majority of voters that serve.
    pub offline: usize,
    /// Partitions whose replicas are not at the target placement yet.
    pub moving: usize,
    /// Open replicas on this node that lead.
    pub leading: usize,
    /// Open replicas on this node that follow a leader.
    pub following: usize,
    /// Open replicas on this node that know no leader, or have won an election and do not accept appends yet.
    pub leaderless: usize,
    /// Replicas on this node that failed and will be retried.
    pub failed: usize,
    /// Replicas on this node whose log is being filled from another replica.
    pub filling: usize,
    /// Of those, replicas that were damaged.
    pub damaged: usize,
    /// Open replicas on this node that may have lost entries from the end of their log, and do not know yet.
    pub in_doubt: usize,
    /// Partitions led by this node without responses from a majority.
    pub quorum_silent: usize,
    /// Highest raft term of an open replica.
    pub term_max: u64,
    /// Segment bytes of open replicas.
    pub log_bytes: u64,
    /// Segments of open replicas.
    pub segments: u64,
    /// Raft entries that the followers of partitions led by this node lack, the sum.
    pub replica_lag_entries: u64,
    /// Raft entries that the follower with the largest lag lacks.
    pub replica_lag_entries_max: u64,
    /// Time that the follower with the longest lag has been behind.
    pub replica_lag_max: Duration,
}

impl PartitionTotals {
    /// Number of open replicas on this node.
    pub fn open(&self) -> usize {
        self.leading + self.following + self.leaderless
    }
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

impl Replicas {
    /// The state of a partition's replica on this node; opens nothing.
    pub(crate) fn peek(&self, topic: &Topic, partition: i32) -> Peek {
        let id = log_of(topic, partition);
        if !self.inner.env.cluster.placement(id).is_some_and(|placement| placement.holds(self.inner.env.cluster.node()))
        {
            return Peek::Elsewhere;
        }
        if let Some(partition) = self.open_partition(topic, partition) {
            let next = partition.progress().borrow().next_offset as i64;
            return Peek::Open { earliest: partition.log_start() as i64, next };
        }
        match self.used(id).map(|replica| replica.state()) {
            Some(ReplicaState::Dormant) | None => Peek::Dormant,
            Some(_) => Peek::Elsewhere,
        }
    }

    /// A partition, if it is open on this node. Does not count as a use.
    pub(crate) fn open_partition(&self, topic: &Topic, partition: i32) -> Option<Arc<Partition>> {
        let id = log_of(topic, partition);
        match self.used(id)?.state() {
            ReplicaState::Active(partition) if partition.failure().is_none() => Some(partition),
            _ => None,
        }
    }

    /// Returns whether this node leads a partition or, while the partition is dormant, would lead it after it is opened.
    pub(crate) fn would_lead(&self, topic: &Topic, partition: i32) -> bool {
        let id = log_of(topic, partition);
        match self.used(id).map(|replica| replica.state()) {
            Some(ReplicaState::Active(partition)) => partition.leads_in().is_some(),
            _ => self.inner.env.cluster.designated(id) == Some(self.inner.env.cluster.node()),
        }
    }

    /// Number of open replicas on this node whose leader is the given node, as known to this node.
    pub(crate) fn led_by(&self, node: u64) -> u32 {
        let led = |replica: &Arc<Replica>| match replica.state() {
            ReplicaState::Active(partition) => partition.group().status().leader == Some(node),
            _ => false,
        };
        self.all().iter().filter(|replica| led(replica)).count() as u32
    }

    /// Totals over the partitions of the cluster, as known to this node, and over the replicas on this node.
    pub fn totals(&self) -> PartitionTotals {
        let cluster = &self.inner.env.cluster;
        let state = cluster.state();
        let mut totals = PartitionTotals {
            topics: state.topics.len(),
            partitions: state.topics.values().map(|topic| topic.partitions as usize).sum(),
            ..PartitionTotals::default()
        };
        for (topic, placements) in &state.placements {
            for (partition, placement) in placements.iter().enumerate() {
                let serving = cluster.serving(*topic, partition as u32, placement);
                totals.under_replicated += usize::from(serving < placement.voters.len());
                totals.offline += usize::from(serving <= placement.voters.len() / 2);
                totals.moving += usize::from(!placement.settled());
            }
        }
        for replica in self.all() {
            let partition = match replica.state() {
                ReplicaState::Active(partition) if partition.failure().is_none() => partition,
                ReplicaState::Active(_) | ReplicaState::Failed { .. } => {
                    totals.failed += 1;
                    continue;
                }
                ReplicaState::Filling(_) => {
                    totals.filling += 1;
                    totals.damaged += usize::from(replica.is_damaged());
                    continue;
                }
                ReplicaState::Dormant | ReplicaState::Closed => continue,
            };
            let position = partition.log().position();
            totals.log_bytes += position.bytes;
            totals.segments += position.segments as u64;
            totals.term_max = totals.term_max.max(partition.group().term());
            totals.in_doubt += usize::from(partition.group().doubt().is_some());
            match partition.role() {
                PartitionRole::Leading(_) => {
                    totals.leading += 1;
                    totals.quorum_silent += usize::from(partition.group().quorum_silent());
                    let lag = partition.replica_lag();
                    totals.replica_lag_entries += lag.entries;
                    totals.replica_lag_entries_max = totals.replica_lag_entries_max.max(lag.entries_max);
                    totals.replica_lag_max = totals.replica_lag_max.max(lag.longest);
                }
                PartitionRole::Following { leader: Some(leader) } if cluster.alive(leader) => totals.following += 1,
                PartitionRole::Settling | PartitionRole::Following { .. } => totals.leaderless += 1,
            }
        }
        totals
    }

    /// The open raft groups on this node, at most `max` of them, and how many there are.
    pub(crate) fn group_reports(&self, max: usize) -> (Vec<GroupReport>, usize) {
        let state = self.inner.env.cluster.state();
        let open = self.all().into_iter().filter_map(|replica| match replica.state() {
            ReplicaState::Active(partition) => Some(partition),
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
                    (None, PartitionRole::Following { .. }) => match status.doubt {
                        Some(doubt) => format!("following, in doubt from raft index {}", doubt.from),
                        None => "following".into(),
                    },
                },
                term: status.term,
                leader: status.leader,
                last: status.last,
                applied: status.applied,
                checkpoint: status.checkpoint,
                voters: status.voters.into_iter().collect(),
                learners: status.learners.into_iter().collect(),
                matched: status.matched.into_iter().collect(),
                first_offset: partition.log_start(),
                next_offset: partition.progress().borrow().next_offset,
                log_bytes: position.bytes,
            }
        });
        (reports.collect(), open.len())
    }

    /// Status of this node's replica of a group. `open`: opens it, or starts to fill its log.
    pub(crate) async fn group_status(&self, id: LogId, open: bool) -> Result<proto::GroupResponse, PartitionError> {
        let replica = self.placed(id)?;
        if open {
            // The state below contains the error.
            let _ = replica.get().await;
        }
        let answer = match replica.state() {
            ReplicaState::Active(partition) => {
                let mut answer = status_response(&partition.group().status(), ACTIVE);
                answer.last = partition.group().last_position().await;
                answer.first_index = partition.log().position().first_index;
                let me = self.inner.env.cluster.node();
                if let PartitionRole::Leading(_) = partition.role() {
                    answer.leader = me;
                } else if answer.leader == me && !partition.group().status().is_leader {
                    // It led before it restarted.
                    answer.leader = 0;
                }
                answer
            }
            ReplicaState::Filling(filling) => proto::GroupResponse {
                state: FILLING.into(),
                next_index: filling.progress.kept.load(std::sync::atomic::Ordering::Relaxed),
                filling_left: filling.progress.left.load(std::sync::atomic::Ordering::Relaxed),
                ..Default::default()
            },
            ReplicaState::Failed { error, .. } => {
                proto::GroupResponse { state: format!("failed: {error}"), ..Default::default() }
            }
            ReplicaState::Dormant | ReplicaState::Closed => {
                proto::GroupResponse { state: "dormant".into(), ..Default::default() }
            }
        };
        Ok(with_marks(&self.inner.env.cluster, id, answer))
    }

    /// BLAKE3 of a range of entries of this node's replica; empty while it has not applied them all.
    pub(crate) async fn digest(&self, id: LogId, range: proto::DigestRange) -> Result<Vec<u8>, String> {
        let replica = self.placed(id).map_err(|e| e.to_string())?;
        let partition = replica.get().await.map_err(|error| match replica.state() {
            ReplicaState::Failed { error, .. } => error.to_string(),
            _ => error.to_string(),
        })?;
        let applied = partition.group().status().applied.map(|index| index + 1).unwrap_or(0);
        if applied < range.to {
            return Ok(Vec::new());
        }
        if range.from >= range.to {
            return Ok(chronicle_log::ContentHash::new().finalize().to_vec());
        }
        let log = partition.log().clone();
        let digest = crate::host::blocking(move || log.digest(range.from, range.to)).await;
        match digest.map_err(|e| e.to_string())? {
            Ok(digest) => Ok(digest.to_vec()),
            Err(error) => {
                let error = PartitionError::from(error);
                if let Some(index) = error.damaged_index() {
                    drop(partition);
                    self.inner.tasks.spawn(async move { replica.damaged(index).await });
                }
                Err(error.to_string())
            }
        }
    }
}

/// The status of an open group as a response to peers.
pub(crate) fn status_response(status: &RaftGroupStatus, state: &str) -> proto::GroupResponse {
    proto::GroupResponse {
        state: state.into(),
        term: status.term,
        leader: status.leader.unwrap_or(0),
        next_index: status.last.map(|index| index + 1).unwrap_or(0),
        applied: status.applied.map(|index| index + 1).unwrap_or(0),
        voters: status.voters.iter().copied().collect(),
        learners: status.learners.iter().copied().collect(),
        held_term: status.doubt.map_or(0, |doubt| doubt.term()),
        held_end: status.doubt.map_or(0, |doubt| doubt.to().saturating_add(1)),
        ..Default::default()
    }
}
