//! The one task that ends sessions of members that are silent, on all groups of a node.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, sleep_until};

use super::{Coordinator, Inner, Slot};
use crate::model::{ApiError, Reason};

/// How often sessions are looked at: how late one may end.
const TICK: Duration = Duration::from_millis(200);
/// A tick that is later than this says that the node itself stood still: sessions get that time back.
const LATE: Duration = Duration::from_millis(500);
/// Groups whose sessions are ended at the same time.
const AT_ONCE: usize = 32;

/// Watches until the node stops. Sleeps while there are no groups in memory.
pub(super) async fn watch(inner: Arc<Inner>) {
    loop {
        let idle = inner.coordinators.lock().values().all(|coordinator| coordinator.slots.lock().is_empty());
        let due = Instant::now() + TICK;
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = inner.wake.notified(), if idle => continue,
            () = sleep_until(due), if !idle => {}
        }
        let late = due.elapsed();
        let coordinators: Vec<(i32, Arc<Coordinator>)> =
            inner.coordinators.lock().iter().map(|(number, one)| (*number, one.clone())).collect();
        for (number, coordinator) in coordinators {
            tend(&inner, number, &coordinator, if late > LATE { late } else { Duration::ZERO }).await;
        }
    }
}

/// Ends what has to end in one partition's groups, and lets go of groups without members.
async fn tend(inner: &Inner, number: i32, coordinator: &Arc<Coordinator>, late: Duration) {
    let slots: Vec<(String, Slot)> =
        coordinator.slots.lock().iter().map(|(name, slot)| (name.clone(), slot.clone())).collect();
    let expiring = futures::stream::iter(slots).map(|(name, slot)| async move {
        let mut slot = slot.lock_owned().await;
        if let Some(group) = slot.as_mut() {
            group.postpone(late);
        }
        let now = Instant::now();
        if slot.as_ref().and_then(|group| group.next_expiry()).is_none_or(|first| first > now) {
            return Ok(());
        }
        let Some(topic) = inner.backing.groups_topic() else { return Ok(()) };
        let lead = inner.backing.lead(&topic, number).await?;
        if lead.term != coordinator.term {
            return Err(ApiError::new(Reason::Unavailable, "the group's coordinator has changed"));
        }
        let Some(mut group) = slot.take() else { return Ok(()) };
        let changes = group.expire(now);
        tracing::info!(group = name, generation = group.generation(), members = group.len(), "sessions have ended");
        lead.append(&name, &changes).await?;
        *slot = Some(group);
        Ok(())
    });
    let mut outcomes = expiring.buffer_unordered(AT_ONCE);
    let mut lost = false;
    while let Some(outcome) = outcomes.next().await {
        if let Err(error) = outcome {
            tracing::warn!(number, %error, "sessions of groups cannot be ended here");
            lost = true;
        }
    }
    if lost {
        // Another node coordinates them, or this one begins again.
        let mut coordinators = inner.coordinators.lock();
        if coordinators.get(&number).is_some_and(|current| Arc::ptr_eq(current, coordinator)) {
            coordinators.remove(&number);
        }
        return;
    }
    // Under the map's lock nobody gets another reference: one is the map's own.
    coordinator.slots.lock().retain(|_, slot| {
        Arc::strong_count(slot) > 1
            || slot.try_lock().map_or(true, |group| group.as_ref().is_some_and(|g| !g.is_empty()))
    });
}
