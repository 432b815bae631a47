//! Starts operations: what to do when no operation is in progress.
//!
//! Order: stop or start all nodes, replace a lost node, roll out, scale, wait until the cluster has converged.

use super::gates::{busy, quorum_without, voters_expected};
use super::{
    CONFIGURATION_PENDING, ClusterView, HostState, Planner, Step, not_loaded, outdated, pending_message, unknown,
};
use crate::api::{OperationKind, OperationStatus, OperationStep};
use crate::build::{ordinal_of, pod_name};

/// Seconds that a pod must have been unready before a requested replacement of its node.
const ASKED_SECONDS: i64 = 60;

impl Planner<'_> {
    pub(super) fn begin(&self, size: i32) -> Step {
        let stopped = self.observed.set.as_ref().is_some_and(|set| set.replicas == 0);
        match (self.desired.replicas, stopped) {
            (0, true) => return Step::Idle,
            (0, false) => return self.begin_with(OperationKind::Stop, OperationStep::Pod, size),
            (_, true) => return self.begin_with(OperationKind::Start, OperationStep::Pod, size),
            (_, false) => {}
        }
        let Some(cluster) = &self.observed.cluster else { return unknown() };
        if self.recorded.cluster_id.as_ref().is_some_and(|id| *id != cluster.id) {
            return self.another_cluster(cluster);
        }
        let replaced = self.replace_lost(cluster);
        if let Some(step @ Step::Begin { .. }) = replaced {
            return step;
        }
        if let Some(step) = self.roll(cluster, size) {
            return step;
        }
        let scaled = if size < self.desired.replicas {
            Some(self.scale_up(cluster, size))
        } else if size > self.desired.replicas {
            Some(self.scale_down(cluster, size))
        } else {
            None
        };
        scaled.or(replaced).unwrap_or_else(|| self.settled(cluster, size))
    }

    /// Blocks: the nodes belong to another cluster than before, since all volumes were lost or exchanged.
    pub(super) fn another_cluster(&self, cluster: &ClusterView) -> Step {
        let known = self.recorded.cluster_id.as_deref().unwrap_or_default();
        Step::blocked(
            "ClusterIdMismatch",
            format!(
                "the nodes belong to cluster {}, but this resource recorded cluster {known}: restore the original volumes, or \
                 delete and recreate this resource to adopt the new cluster",
                cluster.id
            ),
        )
    }

    /// Replaces a node whose machine or disk is lost.
    fn replace_lost(&self, cluster: &ClusterView) -> Option<Step> {
        let asked = self.desired.replace.as_deref().and_then(|name| ordinal_of(&self.desired.name, name));
        let mut refused = None;
        for (ordinal, pod) in &self.observed.pods {
            let wanted = asked == Some(*ordinal);
            if pod.ready || !(wanted || self.desired.replace_lost) {
                continue;
            }
            let claim = self.observed.claims.get(ordinal);
            let lost = matches!(pod.host, HostState::Gone) || claim.is_some_and(|claim| claim.lost);
            let unready = pod.unready_since.map_or(0, |since| self.observed.now.as_second() - since.as_second());
            let name = pod_name(&self.desired.name, *ordinal);
            // A request must not hit a pod that is only starting.
            let min_unready = if wanted { ASKED_SECONDS } else { self.desired.replace_after_seconds };
            let refuse = |why: String| {
                let blocked =
                    wanted.then(|| Step::blocked("ReplacementRefused", format!("cannot replace {name}: {why}")));
                blocked.or_else(|| {
                    lost.then(|| Step::wait("ReplacementWaits", format!("waiting to replace {name}: {why}")))
                })
            };
            // A request also covers a disk that is not known to be lost. An unreachable machine may come back and still run the pod.
            let why = if pod.host == HostState::Unreachable {
                Some(
                    "its Kubernetes node is not ready, so the pod may still be running there; delete the Node object, or taint it \
                     with node.kubernetes.io/out-of-service"
                        .into(),
                )
            } else if !lost && !wanted {
                continue;
            } else if unready < min_unready {
                Some(format!("its pod has been unready for less than {min_unready} seconds"))
            } else {
                match self.node_named(&name) {
                    None => Some("it is not a member of the cluster".into()),
                    Some(node) => self.may_replace(cluster, node),
                }
            };
            let Some(node) = self.node_named(&name) else {
                refused = refused.or_else(|| refuse(why.unwrap_or_default()));
                continue;
            };
            if let Some(why) = why {
                refused = refused.or_else(|| refuse(why));
                continue;
            }
            let operation = OperationStatus {
                pod_uid: Some(pod.uid.clone()),
                claim_uid: claim.map(|claim| claim.uid.clone()),
                node_id: Some(node.node_id.clone()),
                ..self.operation(OperationKind::Replace, OperationStep::DeleteClaim, *ordinal)
            };
            return Some(Step::Begin { operation, size: self.recorded.size.unwrap_or_default() });
        }
        refused
    }

    /// Restarts an outdated pod: pods without a live node first, the leader of the controller group last.
    fn roll(&self, cluster: &ClusterView, size: i32) -> Option<Step> {
        let outdated = |(ordinal, pod): &(&i32, &super::PodView)| {
            !pod.terminating && outdated(self.desired, self.observed, **ordinal, pod)
        };
        let rank = |ordinal: i32| {
            let node = self.node_named(&pod_name(&self.desired.name, ordinal));
            let leads = node.is_some_and(|node| cluster.leader.as_ref() == Some(&node.node_id));
            (node.is_some_and(|node| node.alive), leads, -ordinal)
        };
        let (ordinal, pod) = self.observed.pods.iter().filter(outdated).min_by_key(|(ordinal, _)| rank(**ordinal))?;
        if let Some(why) = self.version_gate(cluster) {
            return Some(Step::blocked("VersionGate", why));
        }
        if let Some(why) = &self.observed.not_ready_to_start {
            return Some(Step::wait("Prerequisites", why.clone()));
        }
        let name = pod_name(&self.desired.name, *ordinal);
        let takes_part = self.node_named(&name).is_some_and(|node| node.alive);
        if let Some(why) = takes_part.then(|| self.may_stop(cluster, *ordinal, size)).flatten() {
            return Some(Step::wait("RollWaits", format!("waiting to restart {name}: {why}")));
        }
        if let Some(step) = takes_part.then(|| self.configuration_rejected()).flatten() {
            return Some(step);
        }
        let operation = OperationStatus {
            pod_uid: Some(pod.uid.clone()),
            ..self.operation(OperationKind::Roll, OperationStep::Drain, *ordinal)
        };
        Some(Step::Begin { operation, size })
    }

    /// Returns why the requested version must not be rolled out over the running ones; `None`: it may.
    pub(super) fn version_gate(&self, cluster: &ClusterView) -> Option<String> {
        let asked = self.desired.version.as_deref()?;
        let (major, minor) = major_minor(asked)?;
        cluster.nodes.iter().find_map(|node| {
            let (running_major, running_minor) = major_minor(&node.version)?;
            let name = &node.name;
            let running = &node.version;
            if running_major != major {
                return Some(format!(
                    "{name} runs {running} and spec.version is {asked}: the major version cannot be changed"
                ));
            }
            if minor > running_minor + 1 {
                return Some(format!("{name} runs {running}: {asked} is more than one minor version ahead"));
            }
            (minor < running_minor).then(|| format!("{name} runs {running}: {asked} is an older minor version"))
        })
    }

    fn scale_up(&self, cluster: &ClusterView, size: i32) -> Step {
        let name = pod_name(&self.desired.name, size);
        if cluster.leader.is_none() {
            return Step::wait("ScaleWaits", format!("waiting to add {name}: the controller group has no leader"));
        }
        if let Some(why) = busy(cluster) {
            return Step::wait("ScaleWaits", format!("waiting to add {name}: {why}"));
        }
        if let Some(step) = self.configuration_rejected() {
            return step;
        }
        if let Some(why) = &self.observed.not_ready_to_start {
            return Step::wait("Prerequisites", why.clone());
        }
        if let Some(claim) = self.observed.claims.get(&size) {
            if claim.terminating {
                return Step::wait(
                    "ScaleWaits",
                    format!("waiting for PersistentVolumeClaim data-{name} to be deleted"),
                );
            }
            if let Some(node) = &claim.removed_node {
                return Step::blocked(
                    "VolumeInTheWay",
                    format!(
                        "PersistentVolumeClaim data-{name} holds the data of node {node}, which was removed from the cluster and \
                         cannot rejoin; to let {name} start with an empty volume, run: kubectl delete persistentvolumeclaim \
                         data-{name} --namespace {}",
                        self.desired.namespace
                    ),
                );
            }
        }
        let operation = self.operation(OperationKind::ScaleUp, OperationStep::Pod, size);
        Step::Begin { operation, size: size + 1 }
    }

    fn scale_down(&self, cluster: &ClusterView, size: i32) -> Step {
        let ordinal = size - 1;
        let name = pod_name(&self.desired.name, ordinal);
        let why = match (&cluster.leader, cluster.offline) {
            (None, _) => Some("the controller group has no leader".to_owned()),
            (_, 1..) => Some(format!("{} partitions have no majority of live replicas", cluster.offline)),
            _ => busy(cluster).or_else(|| quorum_without(cluster, &name, size)),
        };
        if let Some(why) = why {
            return Step::wait("ScaleWaits", format!("waiting to remove {name}: {why}"));
        }
        let operation = OperationStatus {
            node_id: self.node_named(&name).map(|node| node.node_id.clone()),
            ..self.operation(OperationKind::ScaleDown, OperationStep::Decommission, ordinal)
        };
        Step::Begin { operation, size }
    }

    /// Nothing to start: waits until all nodes are ready, and then reports that the cluster has converged.
    fn settled(&self, cluster: &ClusterView, size: i32) -> Step {
        for ordinal in 0..size {
            let name = pod_name(&self.desired.name, ordinal);
            match self.observed.pods.get(&ordinal) {
                Some(pod) if pod.ready => {}
                Some(pod) if !pod.trouble.is_empty() => {
                    return Step::wait("PodNotReady", format!("pod {name} is not ready: {}", pod.trouble));
                }
                _ => return Step::wait("PodNotReady", format!("pod {name} is not ready")),
            }
        }
        let voters = cluster.nodes.iter().filter(|node| node.voter).count();
        let expected = voters_expected(self.desired.voters, cluster.nodes.len());
        if voters != expected {
            return Step::wait(
                "VotersSettle",
                format!("the controller group has {voters} voters, expected {expected}"),
            );
        }
        if let Some(step) = self.configuration_rejected() {
            return step;
        }
        let not_loaded = not_loaded(self.desired, self.observed);
        if !not_loaded.is_empty() {
            return Step::wait(CONFIGURATION_PENDING, pending_message(&not_loaded));
        }
        Step::Idle
    }
}

/// Returns major and minor version of `MAJOR.MINOR.PATCH`.
fn major_minor(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}
