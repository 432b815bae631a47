//! The tasks that run beside requests: partitions are looked after, put to sleep, trimmed, and taken away where they do not
//! belong any more.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use chronicle_log::{LogId, LogSummary};

use super::{Broker, Topic, TopicSettings, now_ms};
use crate::controller::ControllerState;
use crate::partition::{EVERY, PartitionRole, Slot, SlotState};

/// How often the data directory is compared with what is agreed, when nothing has changed.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// How fast segments are scrubbed: slow enough not to be felt.
const SCRUB_BYTES_PER_SECOND: u64 = 32 << 20;

/// Looks at every open partition often, and at once when a peer dies or comes back.
pub(super) async fn look_after(broker: Broker) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut changes = broker.inner.env.peers.liveness().changes();
    loop {
        tokio::select! {
            () = broker.inner.stop.cancelled() => return,
            _ = tick.tick() => {}
            _ = changes.changed() => {}
        }
        let full = broker.inner.disk_space.check(&broker.inner.store).is_err();
        broker.inner.env.peers.liveness().set_unfit(full);
        let slots: Vec<Arc<Slot>> = broker.inner.slots.read().values().cloned().collect();
        let mut led = 0;
        for slot in slots {
            if let SlotState::Active(partition) = slot.state() {
                partition.look_after();
                led += usize::from(!matches!(partition.role(), PartitionRole::Following { .. }));
            }
        }
        broker.inner.env.led.store(led, Ordering::Relaxed);
        if let Some(controller) = broker.inner.env.controller.get() {
            let state = broker.inner.env.state();
            let leader = controller.leader().0.and_then(|id| state.nodes.get(&id)).map(|node| node.address.clone());
            broker.inner.membership.set_controller_leader(leader);
        }
    }
}

/// Brings this node in line with what is agreed: files of deleted topics and of replicas that have moved away go, open
/// partitions get changed settings, replicas that are expected here begin to fill.
pub(super) async fn housekeeping(broker: Broker) {
    let mut tick = tokio::time::interval(TIDY_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut seen: Weak<ControllerState> = Weak::new();
    loop {
        tokio::select! {
            () = broker.inner.stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        broker.inner.authorizer.tidy();
        let env = &broker.inner.env;
        if env.controller.get().is_none() {
            continue;
        }
        let state = env.state();
        // The state is another one when it has changed; not holding on to the old one spares its copy.
        let me = env.node();
        let pending = state.deleted.iter().any(|deleted| deleted.nodes.contains(&me))
            || state.placements.values().flatten().any(|placement| !placement.settled());
        if !pending && std::ptr::eq(seen.as_ptr(), Arc::as_ptr(&state)) {
            continue;
        }
        seen = Arc::downgrade(&state);
        for deleted in state.deleted.iter().filter(|deleted| deleted.nodes.contains(&me)) {
            broker.delete_files(deleted.id).await;
        }
        let slots: Vec<Arc<Slot>> = broker.inner.slots.read().values().cloned().collect();
        for slot in slots {
            if let SlotState::Active(partition) = slot.state()
                && let Some(settings) = env.settings(slot.id())
                && settings != *partition.settings()
            {
                drop(partition);
                slot.restart().await;
            }
        }
        broker.leave_moved(&state).await;
    }
}

/// Reads every sealed segment of this node's replicas again and again, about once per `cluster.scrub-interval-ms`: damage is
/// found, and repaired, before somebody needs the data.
pub(super) async fn scrub(broker: Broker) {
    loop {
        // Nodes that started together do not scrub together.
        let share = crate::partition::jitter(Duration::from_secs(1)).as_secs_f64();
        let wait = broker.live().pause(|config| (config.cluster.scrub_interval_ms as f64 * share).ceil() as u64);
        tokio::select! {
            () = broker.inner.stop.cancelled() => return,
            () = wait => {}
        }
        for id in broker.existing_logs().await {
            if broker.inner.stop.is_cancelled() {
                return;
            }
            let Ok(slot) = broker.existing_slot(id) else { continue };
            broker.scrub_log(&slot).await;
        }
    }
}

impl Broker {
    #[expect(clippy::disallowed_methods, reason = "throttles on a thread for blocking calls")]
    async fn scrub_log(&self, slot: &Arc<Slot>) {
        let Ok(partition) = slot.get().await else { return };
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
            Ok(())
        });
        let error = match scrubbed.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => crate::partition::log_error(&error),
            Err(error) => return tracing::error!(%error, "scrubbing panicked"),
        };
        tracing::error!(partition = %slot.id(), %error, "scrubbing found damage");
        drop(partition);
        if let Some(index) = error.value("index").and_then(|index| index.parse().ok()) {
            slot.damaged(index).await;
        }
    }

    /// Deletes replicas that this node should not hold, and starts filling those that it should.
    async fn leave_moved(&self, state: &crate::controller::ControllerState) {
        let me = self.inner.env.node();
        let logs = self.existing_logs().await;
        for log in &logs {
            let placement = state.placements.get(&log.topic).and_then(|all| all.get(log.partition as usize));
            let moved = placement.is_some_and(|placement| !placement.holds(me));
            if !moved {
                continue;
            }
            let slot = self.inner.slots.write().remove(log);
            if let Some(slot) = slot {
                slot.close().await;
            }
            let (store, id) = (self.inner.store.clone(), *log);
            match crate::host::blocking(move || store.delete_log(id)).await {
                Ok(Ok(())) => tracing::info!(partition = %log, "replica has moved away and is deleted"),
                Ok(Err(error)) => {
                    tracing::warn!(partition = %log, %error, "a replica that has moved away is not deleted")
                }
                Err(error) => tracing::error!(partition = %log, %error, "deleting a log panicked"),
            }
        }
        for (topic, placements) in &state.placements {
            for (partition, placement) in placements.iter().enumerate() {
                let id = LogId { topic: *topic, partition: partition as u32 };
                // While the members change, every replica is awake, and the leader most of all.
                let concerned = !placement.settled() && placement.holds(me);
                if concerned && let Ok(slot) = self.existing_slot(id) {
                    let designated = self.inner.env.designated(id) == Some(me);
                    let opened = if designated && placement.voters.contains(&me) {
                        slot.lead().await.map(drop)
                    } else {
                        slot.get().await.map(drop)
                    };
                    if let Err(error) = opened {
                        tracing::debug!(partition = %id, %error, "not open yet");
                    }
                }
            }
        }
    }
}

/// Puts partitions to sleep that nobody uses.
pub(super) async fn sleep_idle(broker: Broker) {
    loop {
        tokio::select! {
            () = broker.inner.stop.cancelled() => return,
            () = broker.live().pause(|config| (config.partitions.idle_ms / 4).max(10)) => {}
        }
        let idle = Duration::from_millis(broker.config().partitions.idle_ms);
        let slots: Vec<Arc<Slot>> = broker.inner.slots.read().values().cloned().collect();
        for_each_bounded(slots, |slot| async move { slot.sleep_if_idle(idle).await }).await;
    }
}

/// Takes checkpoints and deletes what retention no longer keeps.
pub(super) async fn maintain(broker: Broker) {
    loop {
        tokio::select! {
            () = broker.inner.stop.cancelled() => return,
            () = broker.live().pause(|config| config.partitions.retention_check_ms.max(10)) => {}
        }
        if let Some(controller) = broker.inner.env.controller.get() {
            controller.maintain().await;
        }
        wake_for_retention(&broker).await;
        let slots: Vec<Arc<Slot>> = broker.inner.slots.read().values().cloned().collect();
        for slot in slots {
            let SlotState::Active(partition) = slot.state() else { continue };
            if let Err(error) = partition.maintain(now_ms()).await {
                tracing::warn!(partition = %slot.id(), %error, "maintenance failed");
            }
        }
    }
}

/// Opens sleeping partitions that hold something which retention may delete.
async fn wake_for_retention(broker: &Broker) {
    let state = broker.inner.env.state();
    let limited = |topic: &&Topic| topic.settings.retention_bytes >= 0 || topic.settings.retention_ms >= 0;
    if !state.topics.values().any(|topic| limited(&topic)) {
        return;
    }
    let logs = broker.existing_logs().await;
    let now = now_ms();
    for topic in state.topics.values().filter(limited) {
        for partition in 0..topic.partitions {
            let id = LogId { topic: topic.id, partition: partition as u32 };
            let asleep = || match broker.inner.slots.read().get(&id) {
                Some(slot) => matches!(slot.state(), SlotState::Dormant),
                None => true,
            };
            // One replica wakes, as the leader, and the others with it.
            let leads = broker.inner.env.designated(id) == Some(broker.inner.env.node());
            if !logs.contains(&id) || !leads || !asleep() {
                continue;
            }
            let expires = match broker.inner.store.summary(id) {
                Ok(Some(summary)) => may_expire(&topic.settings, &summary, now),
                // Not closed cleanly: only opening it tells.
                Ok(None) => true,
                Err(_) => false,
            };
            if expires && let Err(error) = broker.lead(topic, partition).await {
                tracing::warn!(partition = %id, %error, "a partition does not open for retention");
            }
        }
    }
}

/// Whether retention would delete something. Never true for what it would keep: a partition must not be woken in vain.
fn may_expire(settings: &TopicSettings, summary: &LogSummary, now_ms: i64) -> bool {
    // The oldest segment goes when what remains is still as large as the limit; it has at most this many bytes.
    let too_large = settings.retention_bytes >= 0
        && summary.segments > 1
        && summary.bytes >= settings.retention_bytes as u64 + settings.segment_bytes as u64;
    let too_old = settings.retention_ms >= 0
        && summary.oldest_segment_max_timestamp.is_some_and(|newest| newest < now_ms - settings.retention_ms);
    too_large || too_old
}

/// Opening or closing a partition waits for the disk; a few at a time share its flushes.
pub(super) async fn for_each_bounded<F, Fut>(slots: Vec<Arc<Slot>>, act: F)
where
    F: Fn(Arc<Slot>) -> Fut,
    Fut: Future<Output = ()>,
{
    use futures::StreamExt;
    futures::stream::iter(slots).for_each_concurrent(32, act).await;
}
