//! How the replicas on this node look from outside: to metrics, to peers, to support bundles, to people.
//!
//! Nothing here counts as a use of a partition, and what does not say that it opens one opens none.

use std::sync::Arc;
use std::time::Duration;

use chronicle_log::LogId;
use chronicle_proto::internal as proto;
use serde::Serialize;

use super::replicas::{Replicas, log_of};
use super::{ACTIVE, Partition, PartitionRole, Replica, ReplicaState};
use crate::model::{PartitionError, Topic};
use crate::raft::GroupStatus;

/// A replica as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peek {
    /// Open: what it holds as far as it is committed here.
    Open {
        /// First retained offset.
        earliest: i64,
        /// Offset after the last one.
        next: i64,
    },
    /// Not open; nothing is appended to any replica then.
    Asleep,
    /// Not here, or not in service.
    Elsewhere,
}

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
    /// The replica of a partition on this node as it is; nothing is opened.
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
            Some(ReplicaState::Dormant) | None => Peek::Asleep,
            Some(_) => Peek::Elsewhere,
        }
    }

    /// A partition that is open here. It does not count as used.
    pub(crate) fn open_partition(&self, topic: &Topic, partition: i32) -> Option<Arc<Partition>> {
        let id = log_of(topic, partition);
        match self.used(id)?.state() {
            ReplicaState::Active(partition) if partition.failure().is_none() => Some(partition),
            _ => None,
        }
    }

    /// Whether this node leads a partition or, while it sleeps, would when it is woken.
    pub(crate) fn would_lead(&self, topic: &Topic, partition: i32) -> bool {
        let id = log_of(topic, partition);
        match self.used(id).map(|replica| replica.state()) {
            Some(ReplicaState::Active(partition)) => partition.leads_in().is_some(),
            _ => self.inner.env.cluster.designated(id) == Some(self.inner.env.cluster.node()),
        }
    }

    /// Open replicas here of partitions that a node leads, as far as this node knows.
    pub(crate) fn led_by(&self, node: u64) -> u32 {
        let led = |replica: &Arc<Replica>| match replica.state() {
            ReplicaState::Active(partition) => partition.group().status().leader == Some(node),
            _ => false,
        };
        self.all().iter().filter(|replica| led(replica)).count() as u32
    }

    /// Sums over the partitions of the cluster, as this node sees it, and over the replicas here.
    pub fn totals(&self) -> PartitionTotals {
        let cluster = &self.inner.env.cluster;
        let state = cluster.state();
        let mut totals = PartitionTotals {
            topics: state.topics.len(),
            partitions: state.topics.values().map(|topic| topic.partitions as usize).sum(),
            ..PartitionTotals::default()
        };
        for placement in state.placements.values().flatten() {
            let alive = placement.voters.iter().filter(|id| cluster.alive(**id)).count();
            totals.under_replicated += usize::from(alive < placement.voters.len());
            totals.offline += usize::from(alive <= placement.voters.len() / 2);
            totals.moving += usize::from(!placement.settled());
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

    /// The raft groups that are open here, at most `max` of them, and how many there are.
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

    /// This node's replica of a group. `open`: wake it, or let it begin to fill its log.
    pub(crate) async fn group_status(&self, id: LogId, open: bool) -> Result<proto::GroupResponse, PartitionError> {
        let replica = self.placed(id)?;
        if open {
            // The state below says why it does not open.
            let _ = replica.get().await;
        }
        Ok(match replica.state() {
            ReplicaState::Active(partition) => {
                let mut answer = status_response(&partition.group().status(), ACTIVE);
                answer.first_index = partition.log().position().first_index;
                if let PartitionRole::Leading(_) = partition.role() {
                    answer.leader = self.inner.env.cluster.node();
                }
                answer
            }
            ReplicaState::Filling(filling) => proto::GroupResponse {
                state: "filling".into(),
                filling_left: filling.progress.left.load(std::sync::atomic::Ordering::Relaxed),
                ..Default::default()
            },
            ReplicaState::Failed { error, .. } => {
                proto::GroupResponse { state: format!("failed: {error}"), ..Default::default() }
            }
            ReplicaState::Dormant | ReplicaState::Closed => {
                proto::GroupResponse { state: "dormant".into(), ..Default::default() }
            }
        })
    }

    /// BLAKE3 of a range of entries of this node's replica; empty while it has not applied them all.
    pub(crate) async fn digest(&self, id: LogId, range: proto::DigestRange) -> Result<Vec<u8>, String> {
        let replica = self.placed(id).map_err(|e| e.to_string())?;
        let partition = replica.get().await.map_err(|e| e.to_string())?;
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

/// The status of an open group as peers are answered it.
pub(crate) fn status_response(status: &GroupStatus, state: &str) -> proto::GroupResponse {
    proto::GroupResponse {
        state: state.into(),
        term: status.term,
        leader: status.leader.unwrap_or(0),
        next_index: status.last.map(|index| index + 1).unwrap_or(0),
        applied: status.applied.map(|index| index + 1).unwrap_or(0),
        voters: status.voters.iter().copied().collect(),
        learners: status.learners.iter().copied().collect(),
        ..Default::default()
    }
}
