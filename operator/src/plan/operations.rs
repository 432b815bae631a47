//! Continues the operation in progress: one function per kind of operation.
//!
//! Invariant: every function decides from the observed state alone which part of its step has happened, so that repeating it is safe.

use super::gates::{quorum_without, voters_expected};
use super::{CatchUp, ClusterView, HostState, NodeView, Planner, PodView, Step, outdated, unknown};
use crate::api::{MemberState, OperationKind, OperationStatus, OperationStep};
use crate::build::pod_name;

/// Longest wait for a leadership transfer, in seconds. After that the transfer by the stopping node itself must do.
const DRAIN_SECONDS: i64 = 60;

impl Planner<'_> {
    /// Returns the next step of an operation.
    pub(super) fn continue_operation(&self, operation: &OperationStatus, size: i32) -> Step {
        let known = self.observed.cluster.as_ref().zip(self.recorded.cluster_id.as_ref());
        if let Some((cluster, id)) = known
            && cluster.id != *id
        {
            return self.another_cluster(cluster);
        }
        match operation.kind {
            OperationKind::Create | OperationKind::Start => self.start(operation, size),
            OperationKind::Stop => self.stop(operation, size),
            OperationKind::ScaleUp => self.scaling_up(operation, size),
            OperationKind::ScaleDown => self.scaling_down(operation, size),
            OperationKind::Roll => self.rolling(operation, size),
            OperationKind::Replace => self.replacing(operation, size),
        }
    }

    fn advance(&self, operation: &OperationStatus, step: OperationStep, size: i32) -> Step {
        Step::Advance { operation: OperationStatus { step, ..operation.clone() }, size }
    }

    fn start(&self, operation: &OperationStatus, size: i32) -> Step {
        if self.desired.replicas == 0 {
            return self.begin_with(OperationKind::Stop, OperationStep::Pod, size);
        }
        let ready = (0..size).filter(|ordinal| self.observed.pods.get(ordinal).is_some_and(|pod| pod.ready)).count();
        let Some(cluster) = &self.observed.cluster else {
            let trouble = self.observed.pods.iter().find(|(_, pod)| !pod.trouble.is_empty());
            let trouble = trouble
                .map(|(ordinal, pod)| format!("; pod {}: {}", pod_name(&self.desired.name, *ordinal), pod.trouble))
                .unwrap_or_default();
            return Step::wait("Starting", format!("{ready} of {size} pods are ready{trouble}"));
        };
        let alive = cluster.nodes.iter().filter(|node| node.alive).count();
        if cluster.leader.is_none() || ready < size as usize || alive < size as usize {
            return Step::wait("Starting", format!("{ready} of {size} pods are ready, {alive} nodes are alive"));
        }
        match operation.step {
            OperationStep::Join => Step::Finish,
            _ => self.advance(operation, OperationStep::Join, size),
        }
    }

    fn stop(&self, _: &OperationStatus, size: i32) -> Step {
        if self.desired.replicas > 0 {
            return self.begin_with(OperationKind::Start, OperationStep::Pod, size);
        }
        match self.observed.pods.len() {
            0 => Step::Finish,
            left => Step::wait("Stopping", format!("{left} pods are stopping")),
        }
    }

    fn scaling_up(&self, operation: &OperationStatus, size: i32) -> Step {
        let Some(ordinal) = self.ordinal(operation) else { return Step::Finish };
        let target = &operation.target;
        let Some(cluster) = &self.observed.cluster else { return unknown() };
        let pod = self.observed.pods.get(&ordinal);
        let Some(node) = self.node_named(target) else {
            if self.desired.replicas < size && !pod.is_some_and(|pod| pod.running) {
                // The node never joined, and is no longer wanted.
                let operation = self.operation(OperationKind::ScaleDown, OperationStep::Decommission, ordinal);
                return Step::Advance { operation, size };
            }
            return Step::wait("NodeJoins", format!("waiting for {target} to join the cluster{}", trouble(pod)));
        };
        if operation.step < OperationStep::Join {
            let operation = OperationStatus { node_id: Some(node.node_id.clone()), ..operation.clone() };
            return self.advance(&operation, OperationStep::Join, size);
        }
        if let Some(step) = self.wait_for_node(pod, node, target) {
            return step;
        }
        let voters = cluster.nodes.iter().filter(|node| node.voter).count();
        let expected = voters_expected(self.desired.voters, cluster.nodes.len());
        if voters != expected {
            return Step::wait("NodeJoins", format!("the controller group has {voters} voters, expected {expected}"));
        }
        self.wait_for_moves(cluster, target).unwrap_or(Step::Finish)
    }

    fn scaling_down(&self, operation: &OperationStatus, size: i32) -> Step {
        let Some(ordinal) = self.ordinal(operation) else { return Step::Finish };
        let Some(cluster) = &self.observed.cluster else { return unknown() };
        let target = &operation.target;
        let gone = |id: &String| cluster.removed.contains(id);
        let member = self.node_named(target);
        match operation.step {
            OperationStep::Drain | OperationStep::Decommission => match (&operation.node_id, member) {
                // The UUID is recorded before the node is decommissioned. The same goes for a node that replaced it.
                (id, Some(node)) if id.as_ref() != Some(&node.node_id) => {
                    let operation = OperationStatus { node_id: Some(node.node_id.clone()), ..operation.clone() };
                    self.advance(&operation, OperationStep::Decommission, size)
                }
                (Some(id), None) if !gone(id) => Step::wait(
                    "NodeLeaves",
                    format!("cannot confirm yet that node {id} ({target}) was removed from the cluster"),
                ),
                (_, None) => self.advance(operation, OperationStep::Pod, ordinal),
                (_, Some(node)) => self.leaving(cluster, node, size),
            },
            OperationStep::Pod | OperationStep::Join | OperationStep::DeleteClaim => {
                if self.observed.pods.contains_key(&ordinal) {
                    return Step::wait("NodeLeaves", format!("waiting for pod {target} to terminate"));
                }
                if let Some(node) = member {
                    // The node joined shortly before its pod stopped.
                    let operation = OperationStatus { node_id: Some(node.node_id.clone()), ..operation.clone() };
                    return self.advance(&operation, OperationStep::Decommission, size);
                }
                let claim_uid = self.observed.claims.get(&ordinal).map(|claim| claim.uid.clone());
                let operation = OperationStatus { claim_uid, ..operation.clone() };
                self.advance(&operation, OperationStep::Claim, size)
            }
            OperationStep::Claim => {
                let claim = self.observed.claims.get(&ordinal);
                let claim = claim.filter(|claim| operation.claim_uid.as_ref() == Some(&claim.uid));
                let (Some(claim), Some(id)) = (claim, &operation.node_id) else { return Step::Finish };
                // Confirm the removal again, for the node that this claim belongs to.
                if !gone(id) || member.is_some() || self.observed.pods.contains_key(&ordinal) {
                    return Step::wait(
                        "NodeLeaves",
                        format!("cannot confirm yet that the volume of {target} is unused"),
                    );
                }
                match (self.desired.delete_claims, &claim.removed_node) {
                    (true, _) if claim.terminating => Step::wait(
                        "NodeLeaves",
                        format!("waiting for the PersistentVolumeClaim of {target} to be deleted"),
                    ),
                    // Annotated first, so that no pod uses it again if the deletion takes long.
                    (_, None) => Step::MarkClaim { ordinal, node_id: id.clone() },
                    (true, Some(_)) => Step::DeleteClaim { ordinal, uid: claim.uid.clone() },
                    (false, Some(_)) => Step::Finish,
                }
            }
        }
    }

    fn leaving(&self, cluster: &ClusterView, node: &NodeView, size: i32) -> Step {
        let running = cluster.operations.iter().find(|operation| operation.node_id == node.node_id);
        match node.state {
            MemberState::Decommissioning => {
                let reason = running.map(|operation| operation.reason.clone()).filter(|reason| !reason.is_empty());
                let reason = reason.unwrap_or_else(|| "its replicas are moving to other nodes".into());
                Step::wait("NodeLeaves", format!("node {}: {reason}", node.name))
            }
            // Not started and no longer wanted; or another node has died since, which may have to be replaced first.
            MemberState::Active | MemberState::Draining
                if self.desired.replicas >= size || quorum_without(cluster, &node.name, size).is_some() =>
            {
                Step::Finish
            }
            MemberState::Active | MemberState::Draining => Step::Decommission { node_id: node.node_id.clone() },
        }
    }

    fn rolling(&self, operation: &OperationStatus, size: i32) -> Step {
        let Some(ordinal) = self.ordinal(operation) else { return Step::Finish };
        let target = &operation.target;
        let pod = self.observed.pods.get(&ordinal);
        let same = pod.filter(|pod| operation.pod_uid.as_ref() == Some(&pod.uid));
        let Some(same) = same else { return self.rejoin(operation, pod, size) };
        if operation.step >= OperationStep::Join {
            return self.rejoin(operation, pod, size);
        }
        if same.terminating {
            return Step::wait("PodStops", format!("waiting for pod {target} to terminate"));
        }
        // A node that does not run is no loss, whatever the state of the others.
        if !same.running && !same.ready {
            return match operation.step {
                OperationStep::Pod => self.delete(ordinal, same, false),
                _ => self.advance(operation, OperationStep::Pod, size),
            };
        }
        let Some(cluster) = &self.observed.cluster else { return unknown() };
        let node = self.node_named(target).filter(|node| node.alive);
        let refused = node.is_some() && self.configuration_rejected().is_some();
        if refused || !outdated(self.desired, self.observed, ordinal, same) {
            // The pod matches the spec again, or nodes reject the configuration. Neither may leave the node drained.
            return match node {
                Some(node) if node.state == MemberState::Draining => Step::Undrain { node_id: node.node_id.clone() },
                _ => Step::Finish,
            };
        }
        let Some(node) = node else {
            return match operation.step {
                OperationStep::Pod => self.delete(ordinal, same, false),
                _ => self.advance(operation, OperationStep::Pod, size),
            };
        };
        if let Some(why) = self.may_stop(cluster, ordinal, size) {
            return Step::wait("RollWaits", format!("waiting to restart {target}: {why}"));
        }
        match (operation.step, &self.observed.catch_up) {
            (OperationStep::Pod, CatchUp::Behind { why }) if size > 1 => {
                Step::wait("RollWaits", format!("waiting to restart {target}: {why}"))
            }
            (OperationStep::Pod, CatchUp::Unknown) if size > 1 => {
                Step::wait("RollWaits", format!("cannot confirm yet that the other nodes have all records of {target}"))
            }
            (OperationStep::Pod, _) => self.delete(ordinal, same, false),
            _ => self.draining(operation, cluster, node, size),
        }
    }

    /// Transfers the leadership of a node. Partitions without another replica cannot be transferred; the wait for them is limited.
    fn draining(&self, operation: &OperationStatus, cluster: &ClusterView, node: &NodeView, size: i32) -> Step {
        let alone = size == 1;
        if alone {
            return self.advance(operation, OperationStep::Pod, size);
        }
        if node.state == MemberState::Active {
            return Step::Drain { node_id: node.node_id.clone() };
        }
        let late = operation.age_seconds(self.observed.now).is_some_and(|age| age >= DRAIN_SECONDS);
        let leads = cluster.leader.as_ref() == Some(&node.node_id);
        let running =
            cluster.operations.iter().find(|running| running.kind == "drain" && running.node_id == node.node_id);
        match (running, leads) {
            (None, false) => self.advance(operation, OperationStep::Pod, size),
            _ if late => self.advance(operation, OperationStep::Pod, size),
            (Some(running), _) if running.remaining > 0 => {
                Step::wait("NodeDrains", format!("{} still leads {} partitions", node.name, running.remaining))
            }
            _ => Step::wait("NodeDrains", format!("{} is transferring its leadership", node.name)),
        }
    }

    fn delete(&self, ordinal: i32, pod: &PodView, force: bool) -> Step {
        let resource_version = (!pod.running).then(|| pod.resource_version.clone());
        Step::DeletePod { ordinal, uid: pod.uid.clone(), resource_version, force }
    }

    /// The pod was replaced: waits until its node is a member again and has caught up.
    fn rejoin(&self, operation: &OperationStatus, pod: Option<&PodView>, size: i32) -> Step {
        let target = &operation.target;
        if operation.step < OperationStep::Join {
            return self.advance(operation, OperationStep::Join, size);
        }
        let Some(pod) = pod else {
            return Step::wait("PodStarts", format!("waiting for pod {target} to be created"));
        };
        let Some(cluster) = &self.observed.cluster else {
            return Step::wait(
                "PodStarts",
                format!(
                    "waiting for a majority of voters to respond after the restart of {target}{}",
                    trouble(Some(pod))
                ),
            );
        };
        let node = self.node_named(target);
        if pod.revision != self.desired.revision
            && !pod.ready
            && !pod.terminating
            && !node.is_some_and(|node| node.alive)
        {
            // The pod does not start, and its template is outdated by now.
            let operation = OperationStatus { pod_uid: Some(pod.uid.clone()), ..operation.clone() };
            return self.advance(&operation, OperationStep::Pod, size);
        }
        let Some(node) = node else {
            return Step::wait("NodeJoins", format!("waiting for {target} to join the cluster{}", trouble(Some(pod))));
        };
        if let Some(step) = self.wait_for_node(Some(pod), node, target) {
            return step;
        }
        if let Some(asked) = self.desired.version.as_ref().filter(|_| pod.revision == self.desired.revision)
            && node.version != *asked
        {
            return Step::blocked(
                "VersionMismatch",
                format!(
                    "{target} reports version {}, spec.version is {asked}: correct spec.image or spec.version",
                    node.version
                ),
            );
        }
        if let Some(step) = self.wait_for_moves(cluster, target) {
            return step;
        }
        if cluster.under_replicated > 0 || cluster.offline > 0 {
            let count = cluster.under_replicated.max(cluster.offline);
            return Step::wait("NodeCatchesUp", format!("{count} partitions are under-replicated"));
        }
        match &self.observed.catch_up {
            CatchUp::Done => Step::Finish,
            CatchUp::Behind { why } => Step::wait("NodeCatchesUp", format!("{target} is behind: {why}")),
            CatchUp::Unknown => {
                Step::wait("NodeCatchesUp", format!("cannot confirm yet that {target} has all records"))
            }
        }
    }

    fn replacing(&self, operation: &OperationStatus, size: i32) -> Step {
        let Some(ordinal) = self.ordinal(operation) else { return Step::Finish };
        let target = &operation.target;
        let pod = self.observed.pods.get(&ordinal);
        let same_pod = pod.filter(|pod| operation.pod_uid.as_ref() == Some(&pod.uid));
        let claim = self.observed.claims.get(&ordinal);
        let claim = claim.filter(|claim| operation.claim_uid.as_ref() == Some(&claim.uid));
        match operation.step {
            OperationStep::DeleteClaim => {
                let Some(claim) = claim.filter(|claim| !claim.terminating) else {
                    return self.advance(operation, OperationStep::Pod, size);
                };
                // Last check before data is deleted.
                let Some(cluster) = &self.observed.cluster else { return unknown() };
                let old = cluster.nodes.iter().find(|node| operation.node_id.as_ref() == Some(&node.node_id));
                match old {
                    Some(node) if node.alive => Step::Finish,
                    Some(node) => match self.may_replace(cluster, node) {
                        Some(why) => Step::wait("ReplacementWaits", format!("waiting to replace {target}: {why}")),
                        None => Step::DeleteClaim { ordinal, uid: claim.uid.clone() },
                    },
                    None => Step::Finish,
                }
            }
            OperationStep::Drain | OperationStep::Decommission | OperationStep::Pod => match same_pod {
                Some(pod) if pod.terminating && pod.host != HostState::Gone => {
                    Step::wait("PodStops", format!("waiting for pod {target} to terminate"))
                }
                Some(pod) => self.delete(ordinal, pod, pod.host == HostState::Gone),
                None => self.advance(operation, OperationStep::Join, size),
            },
            OperationStep::Join | OperationStep::Claim => {
                let Some(cluster) = &self.observed.cluster else { return unknown() };
                let old = operation.node_id.as_ref();
                let waits = old.is_some_and(|old| !cluster.removed.contains(old));
                let new_node = self.node_named(target).filter(|node| Some(&node.node_id) != old);
                match new_node {
                    None => Step::wait(
                        "NodeJoins",
                        format!("waiting for {target} to join with an empty volume{}", trouble(pod)),
                    ),
                    Some(_) if waits => {
                        Step::wait("NodeJoins", format!("waiting for {target} to replace the lost node in the cluster"))
                    }
                    Some(_) => self.rejoin(operation, pod, size),
                }
            }
        }
    }

    /// Returns what a starting node waits for before it is live; `None`: it is.
    fn wait_for_node(&self, pod: Option<&PodView>, node: &NodeView, target: &str) -> Option<Step> {
        if !pod.is_some_and(|pod| pod.ready && !pod.terminating) {
            return Some(Step::wait("PodStarts", format!("waiting for pod {target} to become ready{}", trouble(pod))));
        }
        if !node.alive {
            return Some(Step::wait("NodeJoins", format!("waiting for the first heartbeat from {target}")));
        }
        match node.state {
            MemberState::Active => None,
            MemberState::Draining => Some(Step::Undrain { node_id: node.node_id.clone() }),
            MemberState::Decommissioning => Some(Step::blocked(
                "NodeLeaves",
                format!(
                    "{target} is being decommissioned outside the operator: cancel that with chronicle cluster cancel, or scale down"
                ),
            )),
        }
    }

    fn wait_for_moves(&self, cluster: &ClusterView, target: &str) -> Option<Step> {
        let why = super::gates::busy(cluster)
            .or_else(|| (cluster.moving > 0).then(|| format!("{} partitions are being moved", cluster.moving)))?;
        Some(Step::wait("NodeCatchesUp", format!("{target} is receiving its partitions: {why}")))
    }
}

fn trouble(pod: Option<&PodView>) -> String {
    match pod {
        Some(pod) if !pod.trouble.is_empty() => format!("; pod status: {}", pod.trouble),
        _ => String::new(),
    }
}
