//! What a node does for its open partitions from time to time, beyond what every group needs ([`Watcher`]).
//!
//! A leader finds out when it has lost its majority, brings the membership to where it should be, and hands leadership to the
//! replica that is preferred.
//!
//! [`Watcher`]: crate::cluster::Watcher

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::leading::PartitionRole;
use super::open::Partition;
use super::{fill, members};
use crate::model::PartitionError;
use crate::raft::{GroupStatus, Role};

/// Leadership goes to the preferred replica after it was fit for it this long.
const PREFERRED_AFTER: Duration = Duration::from_secs(5);

/// A checkpoint is due once the log has grown by this many bytes, but not more often than every [`CHECKPOINT_PAUSE`]: what a
/// start after a crash has to read again.
const CHECKPOINT_BYTES: u64 = 64 << 20;
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(1);

impl Partition {
    /// One look; never waits. Long work goes to tasks of its own.
    pub fn look_after(self: &Arc<Self>) {
        self.checkpoint_if_grown();
        match self.role() {
            PartitionRole::Leading(_) | PartitionRole::Settling => self.look_after_led(),
            PartitionRole::Following { leader } => {
                self.upkeep.lags.lock().clear();
                let rank = self.env.cluster.rank(self.id);
                self.upkeep.watcher.followed(&self.env.cluster, &self.group, leader, rank);
            }
        }
    }

    fn checkpoint_if_grown(self: &Arc<Self>) {
        let bytes = self.log.position().bytes;
        {
            let mut last = self.upkeep.checkpoint.lock();
            // Retention takes bytes away again.
            last.0 = last.0.min(bytes);
            let soon = last.1.is_some_and(|at| at.elapsed() < CHECKPOINT_PAUSE);
            if bytes - last.0 < CHECKPOINT_BYTES || soon || self.upkeep.saving.swap(true, Ordering::AcqRel) {
                return;
            }
            *last = (bytes, Some(Instant::now()));
        }
        let partition = self.clone();
        self.env.cluster.consensus.spawn(async move {
            if let Err(error) = partition.group.checkpoint().await {
                tracing::debug!(partition = %partition.id, %error, "no checkpoint");
            }
            partition.upkeep.saving.store(false, Ordering::Release);
        });
    }

    fn look_after_led(self: &Arc<Self>) {
        let status = self.group.status();
        let alone = status.voters.len() == 1 && status.learners.is_empty();
        self.upkeep.lags.lock().observe(&status, Instant::now());
        self.upkeep.watcher.led(&self.env.cluster, &self.group, alone);
        // A leader that no majority answers must not keep its clients waiting: another one may lead by now.
        if let Some(leading) = self.leadership.now.read().clone()
            && self.group.quorum_silent()
        {
            leading.failure.set(PartitionError::Unavailable("no majority of the replicas answers".into()));
        }
        let Some(placement) = self.env.cluster.placement(self.id) else { return };
        if matches!(self.role(), PartitionRole::Leading(_))
            && (!placement.settled() || status.voters.iter().ne(&placement.voters) || status.joint)
            && !self.upkeep.changing.swap(true, Ordering::AcqRel)
        {
            let partition = self.clone();
            self.env.cluster.consensus.spawn(async move {
                members::reconcile(&partition).await;
                partition.upkeep.changing.store(false, Ordering::Release);
            });
            return;
        }
        self.prefer(&status);
    }

    /// Hands leadership to the replica that should have it, once that has been fit for it for a while.
    fn prefer(self: &Arc<Self>, status: &GroupStatus) {
        let now = Instant::now();
        let me = self.env.cluster.node();
        let designated = self.env.cluster.designated(self.id).filter(|id| *id != me);
        let fit = designated.filter(|id| {
            let matched = status.matched.get(id).copied().flatten();
            // What is under way may be missing.
            status.voters.contains(id) && matched.is_some_and(|at| at + 64 >= status.last.unwrap_or(0))
        });
        let urgent = self.env.cluster.leaves_leadership(me);
        let due = {
            let mut preferred = self.upkeep.preferred.lock();
            *preferred = match (fit, *preferred) {
                (Some(id), Some((same, since))) if id == same => Some((same, since)),
                (Some(id), _) => Some((id, now)),
                (None, _) => None,
            };
            preferred.filter(|(_, since)| urgent || now - *since >= PREFERRED_AFTER).map(|(id, _)| id)
        };
        let Some(to) = due else { return };
        if self.upkeep.changing.swap(true, Ordering::AcqRel) {
            return;
        }
        let partition = self.clone();
        self.env.cluster.consensus.spawn(async move {
            match partition.hand_over(to).await {
                Ok(()) => tracing::info!(partition = %partition.id, to, "leadership is handed over"),
                Err(error) => tracing::warn!(partition = %partition.id, to, %error, "leadership is not handed over"),
            }
            partition.upkeep.changing.store(false, Ordering::Release);
        });
    }

    /// The replica does not need to stay in memory: alone, or told to rest, or the leader of others that all hold what it
    /// holds and go to sleep with it.
    pub(super) async fn may_sleep(&self) -> bool {
        let status = self.group.status();
        if status.voters.len() <= 1 && status.learners.is_empty() {
            return true;
        }
        if self.upkeep.changing.load(Ordering::Acquire) {
            return false;
        }
        match self.group.roles().now() {
            Role::Follower { .. } => self.upkeep.watcher.resting(),
            Role::Leader(_) => self.put_others_to_sleep().await,
        }
    }

    async fn put_others_to_sleep(&self) -> bool {
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
        let asked = others.iter().map(|id| fill::ask_sleep(&self.env, self.id, *id, position));
        futures::future::join_all(asked).await.into_iter().all(|accepted| accepted)
    }

    /// The leader goes to sleep: this replica may, if its log ends at the same place and is applied.
    pub(crate) async fn rest_at(&self, position: chronicle_proto::internal::LogPosition) -> bool {
        let status = self.group.status();
        let here = self.group.last_position().await;
        let same = here == Some(position) && status.applied == status.last;
        if same {
            self.upkeep.watcher.rest();
        }
        same
    }
}
