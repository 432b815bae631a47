//! Background tasks for the node's replicas: tick them, close idle ones, reopen failed ones, apply retention, scrub them, and delete
//! those that were reassigned to other nodes.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use chronicle_log::{LogError, LogId, LogSummary};
use tokio::time::Instant;

use super::replicas::{ReplicaTable, Replicas, for_each_bounded};
use super::{Maintained, PartitionRole, Replica, ReplicaState};
use crate::cluster::WATCH_INTERVAL;
use crate::host::jitter;
use crate::metadata::ControllerState;
use crate::model::{PartitionError, Topic, TopicSettings};

/// Interval at which the data directory is compared with the committed metadata.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// Interval at which failed replicas are looked for.
const REOPEN_EVERY: Duration = Duration::from_secs(5);
/// Rate at which segments are scrubbed: slow enough not to affect clients.
const SCRUB_BYTES_PER_SECOND: u64 = 32 << 20;
/// How often it is logged that retention waits for an upgrade.
const LOG_WAIT_EVERY: Duration = Duration::from_secs(3600);
/// Difference to the agreed time from which this node's clock counts as wrong.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

impl Replicas {
    /// Starts the background tasks, which run until `stop` of [`Replicas::new`].
    pub(crate) fn start(&self) {
        let ReplicaTable { tasks, env, .. } = &*self.inner;
        tasks.spawn(close_idle(self.clone()));
        tasks.spawn(reopen(self.clone()));
        tasks.spawn(maintain(self.clone()));
        tasks.spawn(reconcile(self.clone()));
        tasks.spawn(scrub(self.clone()));
        tasks.spawn_on(watch(self.clone()), &env.cluster.consensus);
    }
}

/// Ticks every open partition at a fixed interval, and immediately when a peer dies or comes back.
async fn watch(replicas: Replicas) {
    let mut tick = tokio::time::interval(WATCH_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let cluster = replicas.inner.env.cluster.clone();
    let mut changes = cluster.peers.liveness().changes();
    loop {
        tokio::select! {
            () = replicas.inner.stop.cancelled() => return,
            _ = tick.tick() => {}
            _ = changes.changed() => {}
        }
        let mut led = 0;
        for replica in replicas.all() {
            if let ReplicaState::Active(partition) = replica.state() {
                partition.tick();
                led += usize::from(!matches!(partition.role(), PartitionRole::Following { .. }));
            }
        }
        cluster.led.store(led, Ordering::Relaxed);
    }
}

/// Reconciles this node with the committed metadata: deletes the files of deleted topics and of reassigned replicas, applies
/// changed settings to open partitions, and starts to fill replicas that were assigned to this node.
async fn reconcile(replicas: Replicas) {
    let mut tick = tokio::time::interval(TIDY_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut seen: Weak<ControllerState> = Weak::new();
    let mut complete = true;
    loop {
        tokio::select! {
            () = replicas.inner.stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let env = &replicas.inner.env;
        if env.reports.get().is_none() {
            continue;
        }
        let state = env.cluster.state();
        // A changed state has another address. Only a weak reference is kept, so that the next change need not copy the state.
        let me = env.cluster.node();
        let pending = state.deleted.iter().any(|deleted| deleted.nodes.contains(&me))
            || state.placements.values().flatten().any(|placement| !placement.settled());
        if !pending && complete && std::ptr::eq(seen.as_ptr(), Arc::as_ptr(&state)) {
            continue;
        }
        seen = Arc::downgrade(&state);
        for deleted in state.deleted.iter().filter(|deleted| deleted.nodes.contains(&me)) {
            replicas.delete_topic_files(deleted.id).await;
        }
        for replica in replicas.all() {
            if let ReplicaState::Active(partition) = replica.state()
                && let Some(settings) = env.cluster.settings(replica.id())
                && settings != *partition.settings()
            {
                drop(partition);
                replica.restart().await;
            }
        }
        complete = replicas.reconcile_placements(&state).await;
    }
}

/// Reads every sealed segment of this node's replicas about once per `cluster.scrub-interval-ms`, to find and repair damage
/// before the data is needed.
async fn scrub(replicas: Replicas) {
    loop {
        // Nodes that started together do not scrub together.
        let share = jitter(Duration::from_secs(1)).as_secs_f64();
        let wait = replicas
            .inner
            .env
            .cluster
            .config
            .pause(|config| (config.cluster.scrub_interval_ms as f64 * share).ceil() as u64);
        tokio::select! {
            () = replicas.inner.stop.cancelled() => return,
            () = wait => {}
        }
        for id in replicas.existing_logs().await {
            if replicas.inner.stop.is_cancelled() {
                return;
            }
            let Ok(replica) = replicas.placed(id) else { continue };
            replicas.scrub_replica(&replica).await;
        }
    }
}

impl Replicas {
    #[expect(clippy::disallowed_methods, reason = "throttles on a thread for blocking calls")]
    async fn scrub_replica(&self, replica: &Arc<Replica>) {
        let Ok(partition) = replica.get().await else { return };
        let log = partition.log().clone();
        let stop = self.inner.stop.clone();
        let scrubbed = crate::host::blocking(move || {
            // The newest segment is checked whenever it is opened.
            let segments = log.segments();
            for segment in segments.iter().rev().skip(1) {
                if stop.is_cancelled() {
                    break;
                }
                log.scrub(segment.base_index, &mut |bytes| {
                    std::thread::sleep(Duration::from_secs_f64(bytes as f64 / SCRUB_BYTES_PER_SECOND as f64));
                })?;
            }
            Ok::<_, LogError>(())
        });
        let error = match scrubbed.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => PartitionError::from(error),
            Err(error) => return tracing::error!(%error, "scrubbing panicked"),
        };
        tracing::error!(partition = %replica.id(), %error, "scrubbing found damage");
        drop(partition);
        if let Some(index) = error.damaged_index() {
            replica.damaged(index).await;
        }
    }

    /// Deletes replicas that are not assigned to this node any more, and starts to fill those that are. Returns `false` when a
    /// replica could not be deleted yet.
    async fn reconcile_placements(&self, state: &ControllerState) -> bool {
        let me = self.inner.env.cluster.node();
        let logs = self.existing_logs().await;
        let mut complete = true;
        for log in &logs {
            let placement = state.placements.get(&log.topic).and_then(|all| all.get(log.partition as usize));
            let moved = placement.is_some_and(|placement| !placement.holds(me));
            if !moved {
                continue;
            }
            complete &= self.delete_reassigned(*log).await;
        }
        for (topic, placements) in &state.placements {
            for (partition, placement) in placements.iter().enumerate() {
                let id = LogId { topic: *topic, partition: partition as u32 };
                // While the members change, every replica must be open, above all the leader's.
                let concerned = !placement.settled() && placement.holds(me);
                if concerned && let Ok(replica) = self.placed(id) {
                    let designated = self.inner.env.cluster.designated(id) == Some(me);
                    let opened = if designated && placement.voters.contains(&me) {
                        replica.lead().await.map(drop)
                    } else {
                        replica.get().await.map(drop)
                    };
                    if let Err(error) = opened {
                        tracing::debug!(partition = %id, %error, "cannot open partition yet");
                    }
                }
            }
        }
        complete
    }
}

/// Opens failed replicas again that are not used, so that they return to service once what kept them from opening is over.
async fn reopen(replicas: Replicas) {
    let mut tick = tokio::time::interval(REOPEN_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = replicas.inner.stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        for_each_bounded(replicas.all(), |replica| async move { replica.retry().await }).await;
    }
}

/// Closes idle partitions.
async fn close_idle(replicas: Replicas) {
    loop {
        tokio::select! {
            () = replicas.inner.stop.cancelled() => return,
            () = replicas.inner.env.cluster.config.pause(|config| (config.partitions.idle_ms / 4).max(10)) => {}
        }
        let idle = Duration::from_millis(replicas.inner.env.config().partitions.idle_ms);
        for_each_bounded(replicas.all(), |replica| async move { replica.close_if_idle(idle).await }).await;
    }
}

/// Saves checkpoints, and decides on the leaders what retention does not keep.
async fn maintain(replicas: Replicas) {
    let mut clock = ClockWatch::default();
    let mut logged_wait: Option<Instant> = None;
    loop {
        tokio::select! {
            () = replicas.inner.stop.cancelled() => return,
            () = replicas.inner.env.cluster.config.pause(|config| config.partitions.retention_check_ms.max(10)) => {}
        }
        let cluster = &replicas.inner.env.cluster;
        clock.observe(cluster.clock_ahead_ms());
        open_for_retention(&replicas).await;
        for replica in replicas.all() {
            let ReplicaState::Active(partition) = replica.state() else { continue };
            match partition.maintain(cluster.agreed_ms()).await {
                Ok(Maintained::Done) => {}
                Ok(Maintained::Waits) if logged_wait.is_some_and(|at| at.elapsed() < LOG_WAIT_EVERY) => {}
                Ok(Maintained::Waits) => {
                    logged_wait = Some(Instant::now());
                    tracing::info!(
                        partition = %replica.id(),
                        "retention deletes nothing until all members of a partition are alive and run this release"
                    );
                }
                Err(error) => tracing::warn!(partition = %replica.id(), %error, "partition maintenance failed"),
            }
        }
    }
}

/// Warns of a clock that differs from those of the other nodes: once, until it is right again.
#[derive(Default)]
struct ClockWatch {
    warned: bool,
}

impl ClockWatch {
    /// `ahead_ms`: by how much this node's clock is ahead of the agreed time; `None`: that is not known.
    fn observe(&mut self, ahead_ms: Option<i64>) {
        let Some(ahead_ms) = ahead_ms else { return };
        let wrong = ahead_ms.unsigned_abs() > CLOCK_TOLERANCE.as_millis() as u64;
        if wrong && !self.warned {
            tracing::warn!(
                ahead_ms,
                "the clock of this node differs from those of the other nodes; check its time synchronisation"
            );
        }
        self.warned = wrong;
    }
}

/// Opens dormant partitions with segments that retention may delete.
async fn open_for_retention(replicas: &Replicas) {
    let cluster = &replicas.inner.env.cluster;
    let state = cluster.state();
    let limited = |topic: &&Topic| topic.settings.retention_bytes >= 0 || topic.settings.retention_ms >= 0;
    if !state.topics.values().any(|topic| limited(&topic)) {
        return;
    }
    let logs = replicas.existing_logs().await;
    let now = cluster.agreed_ms();
    for topic in state.topics.values().filter(limited) {
        for partition in 0..topic.partitions {
            let id = LogId { topic: topic.id, partition: partition as u32 };
            let dormant = || match replicas.used(id) {
                Some(replica) => matches!(replica.state(), ReplicaState::Dormant),
                None => true,
            };
            // One replica opens, as the leader, and opens the others.
            let leads = cluster.designated(id) == Some(cluster.node());
            if !logs.contains(&id) || !leads || !dormant() {
                continue;
            }
            // It would be opened in vain while another member runs an earlier release.
            let placement = cluster.placement(id).unwrap_or_default();
            if placement.voters.iter().any(|node| cluster.alive(*node) && !cluster.knows_control_entries(*node)) {
                continue;
            }
            let expires = match cluster.store.summary(id) {
                Ok(Some(summary)) => may_expire(&topic.settings, &summary, now),
                // Not closed cleanly: it has to be opened to find out.
                Ok(None) => true,
                Err(_) => false,
            };
            if expires && let Err(error) = replicas.lead(topic, partition).await {
                tracing::warn!(partition = %id, %error, "cannot open partition for retention");
            }
        }
    }
}

/// Returns whether retention would delete a segment. Never true when it would not: a partition must not be opened in vain.
fn may_expire(settings: &TopicSettings, summary: &LogSummary, now_ms: Option<i64>) -> bool {
    // The oldest segment is deleted when the rest is still at least as large as the limit; it has at most twice the segment size.
    let too_large = settings.retention_bytes >= 0
        && summary.segments > 1
        && summary.bytes >= settings.retention_bytes as u64 + 2 * settings.segment_bytes as u64;
    let min_time = now_ms.filter(|_| settings.retention_ms >= 0).map(|now| now.saturating_sub(settings.retention_ms));
    let too_old = min_time.is_some_and(|min| summary.oldest_segment_max_timestamp.is_some_and(|newest| newest < min));
    too_large || too_old
}
