//! What to do next with a cluster: one step, from what is asked for, what is remembered and what is observed. Pure.
//!
//! [`plan`] is called again after every step, from whatever state the world is in then; nothing is kept between two calls but
//! what the status holds. So an operator that is killed anywhere goes on where it was.
//!
//! Invariants, each held by a property test (`tests/`):
//! - At most one operation at a time. Its [`OperationStatus`] is written ([`Step::Begin`]) before its first effect, and so is
//!   each of its steps ([`Step::Advance`]).
//! - A pod that takes part is deleted only while all groups have a majority without it, every other node is alive, and what it
//!   led has been handed over (or a minute was waited for that). A pod whose container does not run takes part in nothing.
//! - A node is removed from the cluster, by a read that only agreed state can answer, before its pod goes, and the pod before its
//!   claim.
//! - What is not known is never taken for good: without an answer of the cluster nothing begins.
//! - No pod whose node takes part is replaced while a node of the version asked for refuses the configuration file.
//! - Volumes grow before anything else is judged: a full disk must not be in the way of its own cure.
//!
//! `observed.rs` says what is looked at, `begin.rs` what is begun when nothing is under way, `operations.rs` how operations go
//! on, `gates.rs` when a pod or node may go, `configuration.rs` what nodes make of their configuration file.

mod begin;
mod configuration;
pub(crate) mod gates;
mod observed;
mod operations;
#[cfg(test)]
mod tests;

pub(crate) use configuration::pending;
pub use configuration::{outdated, refusal, untaken};
pub use observed::{
    Ask, CatchUp, ClaimView, ClusterView, Machine, Memory, NodeConfiguration, NodeView, Observed, PodView,
    RunningOperation, SetView,
};

use crate::api::{OperationKind, OperationStatus, OperationStep};
use crate::build::{ordinal_of, pod_name};

/// Reason of conditions while a node refuses its configuration file.
pub(crate) const REFUSED: &str = "ConfigurationRefused";
/// Reason of conditions while nodes have not taken their configuration file.
pub(crate) const PENDING: &str = "ConfigurationPending";

/// The next thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Everything is as asked for.
    Idle,
    /// Something under way is waited for.
    Wait {
        /// Reason of the condition.
        reason: &'static str,
        /// For people.
        message: String,
    },
    /// Nothing goes on until a person does something.
    Blocked {
        /// Reason of the condition.
        reason: &'static str,
        /// What to do.
        message: String,
    },
    /// Write that an operation begins, and the size of the cluster from now on.
    Begin {
        /// What begins.
        operation: OperationStatus,
        /// New `status.size`.
        size: i32,
    },
    /// Write how far the operation is.
    Advance {
        /// The operation in its new state.
        operation: OperationStatus,
        /// New `status.size`.
        size: i32,
    },
    /// Write that the operation has ended.
    Finish,
    /// Make the StatefulSet run this many pods; create it when it is not there.
    ApplySet {
        /// Pods.
        replicas: i32,
    },
    /// Delete the StatefulSet and leave its pods, to make it again with larger claims.
    RecreateSet {
        /// UID of the StatefulSet.
        uid: String,
    },
    /// Ask for a larger volume.
    GrowClaim {
        /// Number of the claim.
        ordinal: i32,
    },
    /// Delete a pod, if it is still the one that was looked at.
    DeletePod {
        /// Number of the pod.
        ordinal: i32,
        /// Its UID.
        uid: String,
        /// Its resource version, when it must not have changed at all.
        resource_version: Option<String>,
        /// Without waiting for its machine, which is gone.
        force: bool,
    },
    /// Delete a claim and with it the data of a node, if it is still the one that was looked at.
    DeleteClaim {
        /// Number of the claim.
        ordinal: i32,
        /// Its UID.
        uid: String,
    },
    /// Note on a claim that its node was removed from the cluster.
    MarkClaim {
        /// Number of the claim.
        ordinal: i32,
        /// UUID of the node.
        node_id: String,
    },
    /// Have a node hand over what it leads.
    Drain {
        /// UUID of the node.
        node_id: String,
    },
    /// Let a node lead again.
    Undrain {
        /// UUID of the node.
        node_id: String,
    },
    /// Have a node's replicas moved away and the node removed.
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

    /// Whether it changes something.
    pub fn acts(&self) -> bool {
        !matches!(self, Self::Idle | Self::Wait { .. } | Self::Blocked { .. })
    }
}

/// The next step.
pub fn plan(ask: &Ask, memory: &Memory, observed: &Observed) -> Step {
    let context = Context { ask, memory, observed };
    if ask.paused {
        return Step::wait("Paused", "spec.reconciliation is Paused: the operator makes no changes");
    }
    let Some(size) = memory.size else { return context.first() };
    if let Some(step) = context.grow() {
        return step;
    }
    if let Some(step) = context.set(size) {
        return step;
    }
    if let Some(step) = context.replace_broken() {
        return step;
    }
    match &memory.operation {
        Some(operation) => context.go_on(operation, size),
        None => context.begin(size),
    }
}

/// Pods that the StatefulSet should have now.
pub fn pods_wanted(ask: &Ask, memory: &Memory, observed: &Observed) -> i32 {
    let size = memory.size.unwrap_or(0);
    match (memory.operation.as_ref().map(|operation| operation.kind), &observed.set) {
        (Some(OperationKind::Stop), _) => 0,
        (Some(_), _) => size,
        // Stopped stays stopped until an operation starts it.
        (None, Some(set)) if set.replicas == 0 => 0,
        (None, None) if ask.replicas == 0 => 0,
        (None, _) => size,
    }
}

/// Everything that a decision rests on.
pub(crate) struct Context<'a> {
    pub(crate) ask: &'a Ask,
    pub(crate) memory: &'a Memory,
    pub(crate) observed: &'a Observed,
}

impl Context<'_> {
    /// Nothing is remembered: the cluster is new, was made again on kept volumes, or its status was lost.
    fn first(&self) -> Step {
        let kept = self.observed.claims.iter().filter(|(_, claim)| claim.removed_node.is_none());
        let kept = kept.map(|(ordinal, _)| ordinal + 1).max().unwrap_or(0);
        let size = match &self.observed.set {
            Some(set) if set.replicas > 0 => set.replicas.max(kept),
            _ => self.ask.replicas.max(kept),
        };
        if self.ask.replicas == 0 {
            // With volumes that were kept: as many nodes as there are, and they stay stopped.
            return if size == 0 { Step::Idle } else { self.begin_with(OperationKind::Stop, OperationStep::Pod, size) };
        }
        self.begin_with(OperationKind::Create, OperationStep::Pod, size)
    }

    /// Claims, then the template of further claims, become as large as asked for.
    fn grow(&self) -> Option<Step> {
        let wanted = self.ask.storage_bytes;
        let small = |claim: &&ClaimView| claim.requested < wanted && !claim.terminating && claim.removed_node.is_none();
        if let Some((ordinal, _)) = self.observed.claims.iter().find(|(_, claim)| small(claim)) {
            return Some(Step::GrowClaim { ordinal: *ordinal });
        }
        let set = self.observed.set.as_ref()?;
        (set.template_bytes != wanted && !set.terminating).then(|| Step::RecreateSet { uid: set.uid.clone() })
    }

    fn set(&self, size: i32) -> Option<Step> {
        let wanted = pods_wanted(self.ask, self.memory, self.observed);
        match &self.observed.set {
            Some(set) if set.terminating => {
                Some(Step::wait("StatefulSet", "waiting for the StatefulSet to be deleted"))
            }
            Some(set) if set.replicas == wanted => None,
            // More pods than remembered: somebody scaled the StatefulSet by hand. What it started may hold data by now.
            Some(set) if self.memory.operation.is_none() && set.replicas > size => {
                let extra = (size..set.replicas).map(|ordinal| pod_name(&self.ask.name, ordinal));
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

    /// The configuration file does not make sense: it goes no further until it does.
    pub(crate) fn refused(&self) -> Option<Step> {
        let why = refusal(self.ask, self.observed)?;
        Some(Step::blocked(
            REFUSED,
            format!("{why}; correct spec.config: no node is restarted, added or replaced until nodes accept it"),
        ))
    }

    /// Pods that run nothing, and would not run what is asked for either, stop nothing when they go: no gate applies.
    fn replace_broken(&self) -> Option<Step> {
        let broken =
            |pod: &&PodView| pod.revision != self.ask.revision && !pod.running && !pod.ready && !pod.terminating;
        let (ordinal, pod) = self.observed.pods.iter().find(|(_, pod)| broken(pod))?;
        Some(Step::DeletePod {
            ordinal: *ordinal,
            uid: pod.uid.clone(),
            // Its container may have come up since.
            resource_version: Some(pod.resource_version.clone()),
            force: false,
        })
    }

    pub(crate) fn operation(&self, kind: OperationKind, step: OperationStep, ordinal: i32) -> OperationStatus {
        OperationStatus {
            kind,
            step,
            target: pod_name(&self.ask.name, ordinal),
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
        ordinal_of(&self.ask.name, &operation.target)
    }
}

pub(crate) fn unknown() -> Step {
    Step::wait(
        "ClusterUnknown",
        "no majority of the controller group's voters responds: no operation starts until one does",
    )
}
