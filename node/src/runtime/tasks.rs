//! The background tasks of the node that belong to no single part of it.

use std::time::Duration;

use super::{Node, generation};
use crate::cluster::WATCH_INTERVAL;

/// Interval at which rejections that were left out of the audit trail are summarised there, and unused quotas are
/// evicted.
const TIDY_EVERY: Duration = Duration::from_secs(1);

impl Node {
    /// Starts the tasks; they end when the node stops.
    pub(super) fn start_tasks(&self) {
        let inner = &self.inner;
        if let Some(tls) = self.tls() {
            inner.tasks.spawn(tls.watch(inner.stop.clone()));
        }
        inner.tasks.spawn(tidy(self.clone()));
        inner.tasks.spawn(maintain_controller(self.clone()));
        inner.tasks.spawn(generation::run(self.clone()));
        inner.tasks.spawn_on(report_state(self.clone()), &inner.cluster.consensus);
        inner.replicas.start();
    }
}

/// Keeps up to date what this node reports to other nodes: whether its disk is full or stalled, and the leader of the controller
/// group.
async fn report_state(node: Node) {
    let mut tick = tokio::time::interval(WATCH_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let cluster = node.inner.cluster.clone();
    let mut changes = cluster.peers.liveness().changes();
    let mut logged_stalled = false;
    loop {
        tokio::select! {
            () = node.inner.stop.cancelled() => return,
            _ = tick.tick() => {}
            _ = changes.changed() => {}
        }
        let stalled = node.broker().disk_stalled_for();
        if stalled.is_some() != logged_stalled {
            logged_stalled = stalled.is_some();
            match stalled {
                Some(age) => tracing::error!(ms = age.as_millis(), "the disk does not respond, giving up leadership"),
                None => tracing::info!("the disk responds again"),
            }
        }
        cluster.peers.liveness().set_unfit(stalled.is_some() || node.broker().disk_is_full());
        if let Ok(controller) = node.broker().controller() {
            let state = cluster.state();
            let leader =
                controller.leader().0.and_then(|id| state.nodes.get(&id)).map(|node| node.addresses.data().to_owned());
            node.inner.membership.set_controller_leader(leader);
        }
    }
}

async fn tidy(node: Node) {
    let mut tick = tokio::time::interval(TIDY_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = node.inner.stop.cancelled() => return,
            _ = tick.tick() => node.broker().authorizer().tidy(),
        }
    }
}

/// Takes checkpoints of the controller's log.
async fn maintain_controller(node: Node) {
    loop {
        tokio::select! {
            () = node.inner.stop.cancelled() => return,
            () = node.broker().live().pause(|config| config.partitions.retention_check_ms.max(10)) => {}
        }
        if let Ok(controller) = node.broker().controller() {
            controller.maintain().await;
        }
    }
}
