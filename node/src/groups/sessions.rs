//! Expires the sessions of members without heartbeats: one task for all groups of a node.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, sleep_until};

use super::{CachedGroup, Coordinator, NodeGroups};
use crate::model::{ApiError, Reason};

/// Interval between two checks of sessions: how late one may expire.
const TICK: Duration = Duration::from_millis(200);
/// A tick that is later than this means that the node itself was paused: sessions are extended by that time.
const LATE: Duration = Duration::from_millis(500);
/// Groups whose sessions are checked concurrently.
const AT_ONCE: usize = 32;

/// Runs until the node stops. Does not tick while there are no cached groups.
pub(super) async fn watch(inner: Arc<NodeGroups>) {
    loop {
        let idle = inner.coordinators.lock().values().all(|coordinator| coordinator.cached_groups.lock().is_empty());
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
            expire_sessions(&inner, number, &coordinator, if late > LATE { late } else { Duration::ZERO }).await;
        }
    }
}

/// Expires sessions in one partition's groups, and evicts groups without members.
async fn expire_sessions(inner: &NodeGroups, number: i32, coordinator: &Arc<Coordinator>, late: Duration) {
    let cached_groups: Vec<(String, CachedGroup)> =
        coordinator.cached_groups.lock().iter().map(|(name, cached)| (name.clone(), cached.clone())).collect();
    let expiring = futures::stream::iter(cached_groups).map(|(name, cached)| async move {
        let mut cached = cached.lock_owned().await;
        if let Some(group) = cached.as_mut() {
            group.postpone(late);
        }
        let now = Instant::now();
        if cached.as_ref().and_then(|group| group.next_expiry()).is_none_or(|first| first > now) {
            return Ok(());
        }
        let Some(topic) = inner.backend.groups_topic() else { return Ok(()) };
        let lead = inner.backend.lead(&topic, number).await?;
        if lead.term != coordinator.term {
            return Err(ApiError::new(Reason::Unavailable, "the group's coordinator has changed"));
        }
        let Some(mut group) = cached.take() else { return Ok(()) };
        let changes = group.expire(now);
        tracing::info!(group = name, generation = group.generation(), members = group.len(), "member sessions expired");
        lead.append(&name, &changes).await?;
        *cached = Some(group);
        Ok(())
    });
    let mut outcomes = expiring.buffer_unordered(AT_ONCE);
    let mut lost = false;
    while let Some(outcome) = outcomes.next().await {
        if let Err(error) = outcome {
            tracing::warn!(number, %error, "cannot expire member sessions");
            lost = true;
        }
    }
    if lost {
        // Another node coordinates the groups, or this node recovers them.
        let mut coordinators = inner.coordinators.lock();
        if coordinators.get(&number).is_some_and(|current| Arc::ptr_eq(current, coordinator)) {
            coordinators.remove(&number);
        }
        return;
    }
    // Under the map's lock no caller gets another reference: one is the map's own.
    coordinator.cached_groups.lock().retain(|_, cached| {
        Arc::strong_count(cached) > 1
            || cached.try_lock().map_or(true, |group| group.as_ref().is_some_and(|g| !g.is_empty()))
    });
}
