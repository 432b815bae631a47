//! Decides on the next step for a cluster, from the desired state (spec), the recorded state (status) and the observed state. Pure.
//!
//! [`plan`] runs after every step, from the state at that time. The status is the only memory between two calls, so an operator that is
//! killed at any point resumes from the status.
//!
//! Invariants, which a property test in `tests.rs` checks from random states:
//! - At most one operation at a time. Its [`OperationStatus`] is written ([`Step::Begin`]) before its first effect, and each of its steps
//!   ([`Step::Advance`]) before the effect of that step.
//! - A pod of a live node is deleted only while every Raft group has a majority without it, every other node is alive, and its leadership
//!   was transferred (or 60 seconds have passed). A pod whose container does not run has no live node.
//! - Scaling down deletes the pod after a quorum read has confirmed the removal of the node, and the claim after the pod.
//! - Unknown is not healthy: while no majority responds, no operation starts except Create, Start and Stop.
//! - No pod of a live node is restarted while a node of the requested image rejects the configuration file.
//! - Volumes grow before any other check, so that a full disk cannot block its own repair.
//!
//! Neighbours: `controller/cluster` fills in the inputs (`observed.rs`) and executes the step. `begin.rs` starts operations,
//! `operations.rs` continues them, `gates.rs` has the preconditions, `configuration.rs` evaluates the configuration state of nodes.

mod begin;
mod configuration;
pub(crate) mod gates;
mod observed;
mod operations;
#[cfg(test)]
mod tests;

pub(crate) use configuration::pending_message;
pub use configuration::{not_loaded, outdated, rejection};
pub use observed::{
    CatchUp, ClaimView, ClusterView, DesiredState, HostState, NodeConfiguration, NodeView, ObservedState, PodView,
    RecordedState, RunningOperation, SetView,
};

use crate::api::{OperationKind, OperationStatus, OperationStep};
use crate::build::{ordinal_of, pod_name};

/// Reason of conditions while a node rejects its configuration file.
pub(crate) const CONFIGURATION_REFUSED: &str = "ConfigurationRefused";
/// Reason of conditions while nodes have not loaded their configuration file.
pub(crate) const CONFIGURATION_PENDING: &str = "ConfigurationPending";

/// The next step for a cluster.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// The cluster has converged.
    Idle,
    /// Wait for the effect of an earlier step, or for a precondition.
    Wait {
        /// Reason of the condition.
        reason: &'static str,
        /// Message of the condition.
        message: String,
    },
    /// Wait until a person acts.
    Blocked {
        /// Reason of the condition.
        reason: &'static str,
        /// Message of the condition, with the action.
        message: String,
    },
    /// Record that an operation starts, and the new size of the cluster.
    Begin {
        /// The operation.
        operation: OperationStatus,
        /// New `status.size`.
        size: i32,
    },
    /// Record the next step of the operation.
    Advance {
        /// The operation with its new step.
        operation: OperationStatus,
        /// New `status.size`.
        size: i32,
    },
    /// Record that the operation has ended.
    Finish,
    /// Apply the StatefulSet with this many pods.
    ApplySet {
        /// Number of pods.
        replicas: i32,
    },
    /// Delete the StatefulSet without its pods, to recreate it with a larger claim template.
    RecreateSet {
        /// UID of the StatefulSet.
        uid: String,
    },
    /// Raise the requested size of a claim.
    GrowClaim {
        /// Ordinal of the claim.
        ordinal: i32,
    },
    /// Delete a pod, if it still has this UID.
    DeletePod {
        /// Ordinal of the pod.
        ordinal: i32,
        /// UID of the object.
        uid: String,
        /// Resource version of the pod, if it must not have changed at all.
        resource_version: Option<String>,
        /// Delete without a grace period, because its machine is gone.
        force: bool,
    },
    /// Delete a claim, and the data of the node with it, if it still has this UID.
    DeleteClaim {
        /// Ordinal of the claim.
        ordinal: i32,
        /// UID of the object.
        uid: String,
    },
    /// Annotate a claim whose node was removed from the cluster.
    MarkClaim {
        /// Ordinal of the claim.
        ordinal: i32,
        /// UUID of the node.
        node_id: String,
    },
    /// Transfer the leadership of a node to other nodes.
    Drain {
        /// UUID of the node.
        node_id: String,
    },
    /// Allow a node to lead again.
    Undrain {
        /// UUID of the node.
        node_id: String,
    },
    /// Reassign the replicas of a node and remove the node.
    Decommission {
        /// UUID of the node.
        node_id: String,
    },
}

impl Step {
    pub(crate) fn wait(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Wait { reason, message: message.into() }
    }

    pub(crate) fn blocked(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Blocked { reason, message: message.into() }
    }

    /// Returns whether the step changes something.
    pub fn acts(&self) -> bool {
        !matches!(self, Self::Idle | Self::Wait { .. } | Self::Blocked { .. })
    }
}

/// Returns the next step.
pub fn plan(desired: &DesiredState, recorded: &RecordedState, observed: &ObservedState) -> Step {
    let planner = Planner { desired, recorded, observed };
    if desired.paused {
        return Step::wait("Paused", "spec.reconciliation is Paused: the operator makes no changes");
    }
    let Some(size) = recorded.size else { return planner.first() };
    if let Some(step) = planner.grow() {
        return step;
    }
    if let Some(step) = planner.set(size) {
        return step;
    }
    if let Some(step) = planner.replace_broken() {
        return step;
    }
    match &recorded.operation {
        Some(operation) => planner.continue_operation(operation, size),
        None => planner.begin(size),
    }
}

/// Returns the number of pods that the StatefulSet should have now.
pub fn pods_wanted(desired: &DesiredState, recorded: &RecordedState, observed: &ObservedState) -> i32 {
    let size = recorded.size.unwrap_or(0);
    match (recorded.operation.as_ref().map(|operation| operation.kind), &observed.set) {
        (Some(OperationKind::Stop), _) => 0,
        (Some(_), _) => size,
        // A stopped cluster stays stopped until an operation starts it.
        (None, Some(set)) if set.replicas == 0 => 0,
        (None, None) if desired.replicas == 0 => 0,
        (None, _) => size,
    }
}

/// The inputs of a decision.
pub(crate) struct Planner<'a> {
    pub(crate) desired: &'a DesiredState,
    pub(crate) recorded: &'a RecordedState,
    pub(crate) observed: &'a ObservedState,
}

impl Planner<'_> {
    /// No recorded size: the cluster is new, was recreated on kept volumes, or its status was lost.
    fn first(&self) -> Step {
        let kept = self.observed.claims.iter().filter(|(_, claim)| claim.removed_node.is_none());
        let kept = kept.map(|(ordinal, _)| ordinal + 1).max().unwrap_or(0);
        let size = match &self.observed.set {
            Some(set) if set.replicas > 0 => set.replicas.max(kept),
            _ => self.desired.replicas.max(kept),
        };
        if self.desired.replicas == 0 {
            // With kept volumes: as many nodes as volumes, and they stay stopped.
            return if size == 0 { Step::Idle } else { self.begin_with(OperationKind::Stop, OperationStep::Pod, size) };
        }
        self.begin_with(OperationKind::Create, OperationStep::Pod, size)
    }

    /// Grows the claims, then the template for further claims.
    fn grow(&self) -> Option<Step> {
        let wanted = self.desired.storage_bytes;
        let small = |claim: &&ClaimView| claim.requested < wanted && !claim.terminating && claim.removed_node.is_none();
        if let Some((ordinal, _)) = self.observed.claims.iter().find(|(_, claim)| small(claim)) {
            return Some(Step::GrowClaim { ordinal: *ordinal });
        }
        let set = self.observed.set.as_ref()?;
        (set.template_bytes != wanted && !set.terminating).then(|| Step::RecreateSet { uid: set.uid.clone() })
    }

    fn set(&self, size: i32) -> Option<Step> {
        let wanted = pods_wanted(self.desired, self.recorded, self.observed);
        match &self.observed.set {
            Some(set) if set.terminating => {
                Some(Step::wait("StatefulSet", "waiting for the StatefulSet to be deleted"))
            }
            Some(set) if set.replicas == wanted => None,
            // More pods than recorded: the StatefulSet was scaled outside the operator. The additional nodes may have data by now.
            Some(set) if self.recorded.operation.is_none() && set.replicas > size => {
                let extra = (size..set.replicas).map(|ordinal| pod_name(&self.desired.name, ordinal));
                let joined = extra.clone().find(|name| self.node_named(name).is_some());
                match (joined, &self.observed.cluster) {
                    (Some(_), _) => Some(Step::Begin {
                        operation: self.operation(OperationKind::ScaleUp, OperationStep::Join, set.replicas - 1),
                        size: set.replicas,
                    }),
                    (None, Some(_)) => Some(Step::ApplySet { replicas: wanted }),
                    (None, None) => Some(unknown()),
                }
            }
            _ => match (&self.observed.not_ready_to_start, wanted) {
                (Some(why), 1..) => Some(Step::wait("Prerequisites", why.clone())),
                _ => Some(Step::ApplySet { replicas: wanted }),
            },
        }
    }

    /// Blocks while a node rejects the configuration file.
    pub(crate) fn configuration_rejected(&self) -> Option<Step> {
        let why = rejection(self.desired, self.observed)?;
        Some(Step::blocked(
            CONFIGURATION_REFUSED,
            format!("{why}; correct spec.config: no node is restarted, added or replaced until nodes accept it"),
        ))
    }

    /// Deletes a pod whose container does not run and whose template is outdated. Its node is not live, so no precondition applies.
    fn replace_broken(&self) -> Option<Step> {
        let broken =
            |pod: &&PodView| pod.revision != self.desired.revision && !pod.running && !pod.ready && !pod.terminating;
        let (ordinal, pod) = self.observed.pods.iter().find(|(_, pod)| broken(pod))?;
        Some(Step::DeletePod {
            ordinal: *ordinal,
            uid: pod.uid.clone(),
            // Its container may have started since.
            resource_version: Some(pod.resource_version.clone()),
            force: false,
        })
    }

    pub(crate) fn operation(&self, kind: OperationKind, step: OperationStep, ordinal: i32) -> OperationStatus {
        OperationStatus {
            kind,
            step,
            target: pod_name(&self.desired.name, ordinal),
            pod_uid: None,
            claim_uid: None,
            node_id: None,
            started_at: Some(self.observed.now.to_string()),
        }
    }

    pub(crate) fn begin_with(&self, kind: OperationKind, step: OperationStep, size: i32) -> Step {
        let operation = OperationStatus { target: String::new(), ..self.operation(kind, step, 0) };
        Step::Begin { operation, size }
    }

    pub(crate) fn node_named(&self, name: &str) -> Option<&NodeView> {
        self.observed.node_named(name)
    }

    pub(crate) fn ordinal(&self, operation: &OperationStatus) -> Option<i32> {
        ordinal_of(&self.desired.name, &operation.target)
    }
}

pub(crate) fn unknown() -> Step {
    Step::wait("ClusterUnknown", "no majority of the controller group's voters responds: waiting until one does")
}
