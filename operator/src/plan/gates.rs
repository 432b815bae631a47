//! Preconditions for stopping a pod or replacing a node. Each returns why not, or `None`.
//!
//! Neighbours: `begin.rs` and `operations.rs` check them before every disruptive step; `kubectl chronicle drain` reports them.

use super::{ClusterView, NodeView, Planner};
use crate::build::pod_name;

impl Planner<'_> {
    /// Returns why the pod with this ordinal, whose node is live, must not stop now. All other nodes must be live, and every Raft group
    /// must keep a majority without it. The only node of a cluster may always restart.
    pub(super) fn may_stop(&self, cluster: &ClusterView, ordinal: i32, size: i32) -> Option<String> {
        let name = pod_name(&self.desired.name, ordinal);
        for other in (0..size).filter(|other| *other != ordinal) {
            let other_name = pod_name(&self.desired.name, other);
            match self.observed.pods.get(&other) {
                Some(pod) if pod.ready && !pod.terminating => {}
                Some(pod) if pod.terminating => return Some(format!("pod {other_name} is being deleted")),
                Some(pod) if pod.trouble.is_empty() => return Some(format!("pod {other_name} is not ready")),
                Some(pod) => return Some(format!("pod {other_name} is not ready: {}", pod.trouble)),
                None => return Some(format!("pod {other_name} is missing")),
            }
            match self.node_named(&other_name) {
                Some(node) if node.alive => {}
                Some(_) => return Some(format!("no heartbeat from node {other_name}")),
                None => return Some(format!("node {other_name} is not a member yet")),
            }
        }
        cluster_is_whole(cluster).or_else(|| quorum_without(cluster, &name, size))
    }

    /// Returns why a node must not be replaced by an empty one. The cluster must report it as dead, and all other nodes as alive.
    pub(super) fn may_replace(&self, cluster: &ClusterView, node: &NodeView) -> Option<String> {
        if node.alive {
            return Some(format!("node {} is alive: it sends heartbeats", node.name));
        }
        if let Some(other) = cluster.nodes.iter().find(|other| other.node_id != node.node_id && !other.alive) {
            return Some(format!("node {} is not alive either", other.name));
        }
        if cluster.leader.is_none() {
            return Some("the controller group has no leader".into());
        }
        if cluster.offline > 0 {
            return Some(format!("{} partitions have no majority without it", cluster.offline));
        }
        // An empty node would not start with a configuration that others reject.
        busy(cluster).or_else(|| super::rejection(self.desired, self.observed))
    }
}

/// Returns why no node may stop; `None`: every Raft group has all its replicas, and none is being reassigned.
pub(crate) fn cluster_is_whole(cluster: &ClusterView) -> Option<String> {
    if cluster.leader.is_none() {
        return Some("the controller group has no leader".into());
    }
    if cluster.offline > 0 {
        return Some(format!("{} partitions have no majority of live replicas", cluster.offline));
    }
    if cluster.under_replicated > 0 {
        return Some(format!("{} partitions are under-replicated", cluster.under_replicated));
    }
    if cluster.moving > 0 {
        return Some(format!("{} partitions are being moved", cluster.moving));
    }
    busy(cluster)
}

/// Returns the operation of the cluster that reassigns replicas, if there is one.
pub(super) fn busy(cluster: &ClusterView) -> Option<String> {
    let moves = cluster.operations.iter().find(|operation| operation.kind != "drain")?;
    let reason = if moves.reason.is_empty() { String::new() } else { format!(": {}", moves.reason) };
    Some(format!("a {} of node {} is in progress{reason}", moves.kind, moves.node_id))
}

/// Returns why the controller group would have no majority without this node.
pub(crate) fn quorum_without(cluster: &ClusterView, name: &str, size: i32) -> Option<String> {
    let voters: Vec<&NodeView> = cluster.nodes.iter().filter(|node| node.voter).collect();
    // A single voter, or one of two nodes, cannot be restarted without losing the majority. The restart must happen anyway.
    if voters.len() <= 1 || size <= 2 {
        return None;
    }
    let left = voters.iter().filter(|node| node.alive && node.name != name).count();
    let needed = voters.len() / 2 + 1;
    (left < needed).then(|| format!("{left} of {} voters would be alive, {needed} are needed", voters.len()))
}

/// Returns the number of voters that the controller group should have, which is odd.
pub(super) fn voters_expected(voters_max: u32, members: usize) -> usize {
    match (voters_max as usize).min(members) {
        0 => 0,
        most => (most - 1) | 1,
    }
}
