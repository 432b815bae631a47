//! Ticks of an open partition: periodic work, in addition to what every group needs ([`Watcher`]).
//!
//! A leader detects the loss of its majority, changes the members to the target placement, and transfers leadership to the
//! preferred leader.
//!
//! [`Watcher`]: crate::cluster::Watcher

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::leading::PartitionRole;
use super::open::Partition;
use super::{fill_source, members, retention};
use crate::cluster::{end_declaration, is_declared};
use crate::model::PartitionError;
use crate::raft::{RaftGroupStatus, Role};

/// Leadership is transferred to the preferred leader after it was able to lead for this long.
const PREFERRED_AFTER: Duration = Duration::from_secs(5);

/// A checkpoint is due once the log has grown by this many bytes, but not more often than every [`CHECKPOINT_PAUSE`]. This bounds
/// how much a start after a crash has to replay.
const CHECKPOINT_BYTES: u64 = 64 << 20;
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(1);
/// Wait before a failed deletion of expired segments is retried.
const DELETE_RETRY: Duration = Duration::from_secs(1);

impl Partition {
    /// One tick. Does not block: long work runs in separate tasks.
    pub fn tick(self: &Arc<Self>) {
        self.checkpoint_if_grown();
        self.delete_if_agreed();
        self.end_declaration();
        match self.role() {
            PartitionRole::Leading(_) | PartitionRole::Settling => self.tick_as_leader(),
            PartitionRole::Following { leader } => {
                self.tick_state.lags.lock().clear();
                let rank = self.env.cluster.rank(self.id);
                self.tick_state.watcher.followed(&self.env.cluster, &self.group, leader, rank);
            }
        }
    }

    /// The group has a leader: what a person has declared when it could have none holds no longer.
    fn end_declaration(&self) {
        let led = matches!(self.role(), PartitionRole::Leading(_)) || self.group.heard_leader();
        if led && is_declared(&self.env.cluster.store, self.id) {
            end_declaration(&self.env.cluster.store, self.id);
        }
    }

    fn checkpoint_if_grown(self: &Arc<Self>) {
        let bytes = self.log.position().bytes;
        {
            let mut last = self.tick_state.checkpoint.lock();
            // Retention reduces the size of the log.
            last.0 = last.0.min(bytes);
            let soon = last.1.is_some_and(|at| at.elapsed() < CHECKPOINT_PAUSE);
            if bytes - last.0 < CHECKPOINT_BYTES || soon || self.tick_state.saving.swap(true, Ordering::AcqRel) {
                return;
            }
            *last = (bytes, Some(Instant::now()));
        }
        let partition = self.clone();
        self.env.cluster.consensus.spawn(async move {
            if let Err(error) = partition.group.checkpoint().await {
                tracing::debug!(partition = %partition.id, %error, "cannot save checkpoint");
            }
            partition.tick_state.saving.store(false, Ordering::Release);
        });
    }

    /// Deletes what is below the log start soon after the start was agreed, on every replica, so that it is done before the partition
    /// is closed again.
    fn delete_if_agreed(self: &Arc<Self>) {
        if retention::deletable(self).is_none() || self.tick_state.deleting.swap(true, Ordering::AcqRel) {
            return;
        }
        let partition = self.clone();
        self.env.cluster.consensus.spawn(async move {
            if let Err(error) = partition.delete_expired().await {
                tracing::warn!(partition = %partition.id, %error, "cannot delete expired segments yet");
                tokio::time::sleep(DELETE_RETRY).await;
            }
            partition.tick_state.deleting.store(false, Ordering::Release);
        });
    }

    fn tick_as_leader(self: &Arc<Self>) {
        let status = self.group.status();
        let alone = status.voters.len() == 1 && status.learners.is_empty();
        self.tick_state.lags.lock().observe(&status, Instant::now());
        self.tick_state.watcher.led(&self.env.cluster, &self.group, alone);
        // A leader without responses from a majority must not keep its clients waiting: another node may be the leader by now.
        if let Some(leading) = self.leadership.now.read().clone()
            && self.group.quorum_silent()
        {
            leading.failure.set(PartitionError::Unavailable("no response from a majority of the replicas".into()));
        }
        let Some(placement) = self.env.cluster.placement(self.id) else { return };
        if matches!(self.role(), PartitionRole::Leading(_))
            && (!placement.settled() || status.voters.iter().ne(&placement.voters) || status.joint)
            && !self.tick_state.changing.swap(true, Ordering::AcqRel)
        {
            let partition = self.clone();
            self.env.cluster.consensus.spawn(async move {
                members::reconcile(&partition).await;
                partition.tick_state.changing.store(false, Ordering::Release);
            });
            return;
        }
        self.prefer(&status);
    }

    /// Transfers leadership to the replica that should lead, once it has been able to lead for a while.
    fn prefer(self: &Arc<Self>, status: &RaftGroupStatus) {
        let now = Instant::now();
        let me = self.env.cluster.node();
        let designated = self.env.cluster.designated(self.id).filter(|id| *id != me);
        let fit = designated.filter(|id| {
            let matched = status.matched.get(id).copied().flatten();
            // Entries in flight may be missing.
            status.voters.contains(id) && matched.is_some_and(|at| at + 64 >= status.last.unwrap_or(0))
        });
        let urgent = self.env.cluster.leaves_leadership(me);
        let due = {
            let mut preferred = self.tick_state.preferred.lock();
            *preferred = match (fit, *preferred) {
                (Some(id), Some((same, since))) if id == same => Some((same, since)),
                (Some(id), _) => Some((id, now)),
                (None, _) => None,
            };
            preferred.filter(|(_, since)| urgent || now - *since >= PREFERRED_AFTER).map(|(id, _)| id)
        };
        let Some(to) = due else { return };
        if self.tick_state.changing.swap(true, Ordering::AcqRel) {
            return;
        }
        let partition = self.clone();
        self.env.cluster.consensus.spawn(async move {
            match partition.hand_over(to).await {
                Ok(()) => tracing::info!(partition = %partition.id, to, "leadership transferred"),
                Err(error) => tracing::warn!(partition = %partition.id, to, %error, "cannot transfer leadership"),
            }
            partition.tick_state.changing.store(false, Ordering::Release);
        });
    }

    /// Returns whether the replica may close: it is the only member, or it rests, or it leads others that all have the same log
    /// and close with it.
    pub(super) async fn may_close(&self) -> bool {
        let status = self.group.status();
        if status.voters.len() <= 1 && status.learners.is_empty() {
            return true;
        }
        if self.tick_state.changing.load(Ordering::Acquire) {
            return false;
        }
        match self.group.roles().now() {
            Role::Follower { .. } => self.tick_state.watcher.resting(),
            Role::Leader(_) => self.close_others().await,
        }
    }

    async fn close_others(&self) -> bool {
        let status = self.group.status();
        let all_hold = status.last == status.applied
            && status
                .voters
                .iter()
                .filter(|id| **id != self.env.cluster.node())
                .all(|id| self.env.cluster.alive(*id) && status.matched.get(id).copied().flatten() == status.last);
        let settled = self.env.cluster.placement(self.id).is_some_and(|placement| placement.settled());
        if !all_hold || !settled || status.joint || !status.membership_committed {
            return false;
        }
        let Some(position) = self.group.last_position().await else { return false };
        let others: Vec<u64> = status.voters.iter().copied().filter(|id| *id != self.env.cluster.node()).collect();
        let asked = others.iter().map(|id| fill_source::ask_close(&self.env, self.id, *id, position));
        futures::future::join_all(asked).await.into_iter().all(|accepted| accepted)
    }

    /// The leader closes: marks this replica as resting if its log ends at the same position and is applied. Returns whether it
    /// does.
    pub(crate) async fn rest_at(&self, position: chronicle_proto::internal::LogPosition) -> bool {
        let status = self.group.status();
        let here = self.group.last_position().await;
        let same = here == Some(position) && status.applied == status.last;
        if same {
            self.tick_state.watcher.rest();
        }
        same
    }
}
