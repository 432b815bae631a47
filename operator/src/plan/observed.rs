//! The inputs of the planner: desired state, recorded state and observed state. Plain data.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;

use crate::api::{MemberState, OperationStatus};

/// The desired state, from the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredState {
    /// Name of the cluster.
    pub name: String,
    /// Namespace of the cluster, for commands in messages.
    pub namespace: String,
    /// Number of nodes; 0: all nodes are stopped.
    pub replicas: i32,
    /// Size of each volume, in bytes.
    pub storage_bytes: u64,
    /// Hash of the pod template.
    pub revision: String,
    /// Image of the nodes.
    pub image: String,
    /// BLAKE3 digests of the up-to-date configuration files; see [`crate::build::config_files`].
    pub files: Vec<String>,
    /// Version of the image, if the spec has it.
    pub version: Option<String>,
    /// Whether the reconciliation is paused.
    pub paused: bool,
    /// Whether claims of removed nodes are deleted.
    pub delete_claims: bool,
    /// Maximum number of voters of the controller group.
    pub voters: u32,
    /// Whether lost nodes are replaced without a request.
    pub replace_lost: bool,
    /// Seconds that a pod must have been unready before its node counts as lost.
    pub replace_after_seconds: i64,
    /// Pod whose node has a requested replacement.
    pub replace: Option<String>,
}

/// The state that the operator recorded in the status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecordedState {
    /// Operation in progress.
    pub operation: Option<OperationStatus>,
    /// Number of nodes of the cluster.
    pub size: Option<i32>,
    /// UUID of the cluster.
    pub cluster_id: Option<String>,
}

/// The observed state of Kubernetes and of the cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedState {
    /// Time of the observation.
    pub now: Timestamp,
    /// The StatefulSet.
    pub set: Option<SetView>,
    /// Pods by ordinal.
    pub pods: BTreeMap<i32, PodView>,
    /// Claims by ordinal.
    pub claims: BTreeMap<i32, ClaimView>,
    /// State that a majority of the voters confirmed; `None`: no majority responded.
    pub cluster: Option<ClusterView>,
    /// Whether the nodes that the operation depends on have caught up: the restarted node, or all nodes but the one that is restarted
    /// next.
    pub catch_up: CatchUp,
    /// Why no pod can start yet; `None`: pods can start.
    pub not_ready_to_start: Option<String>,
}

impl ObservedState {
    /// Returns the member with this name. While a node replaces another one of its name, the new node is returned.
    pub(crate) fn node_named(&self, name: &str) -> Option<&NodeView> {
        let cluster = self.cluster.as_ref()?;
        cluster.nodes.iter().filter(|node| node.name == name).max_by_key(|node| (node.alive, node.raft_id))
    }
}

/// Observed state of the StatefulSet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetView {
    /// UID.
    pub uid: String,
    /// Number of replicas.
    pub replicas: i32,
    /// Size in its claim template, in bytes.
    pub template_bytes: u64,
    /// Whether it is being deleted.
    pub terminating: bool,
}

/// State of the machine (Kubernetes node) of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostState {
    /// The pod is not scheduled yet.
    Unscheduled,
    /// The machine is ready, or its state is not known.
    #[default]
    Present,
    /// The machine is not ready. The pod may still be running on it.
    Unreachable,
    /// The machine was deleted or has the taint out-of-service: nothing runs on it.
    Gone,
}

/// Observed state of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// UID.
    pub uid: String,
    /// Resource version.
    pub resource_version: String,
    /// Hash of the template that it was created from.
    pub revision: String,
    /// Image of its container.
    pub image: String,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether its container runs; true unless it is known not to run.
    pub running: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Time since when it is not ready.
    pub unready_since: Option<Timestamp>,
    /// State of its machine.
    pub host: HostState,
    /// Why it does not run, as reported by Kubernetes; empty if it runs.
    pub trouble: String,
}

/// Observed state of a PersistentVolumeClaim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimView {
    /// UID.
    pub uid: String,
    /// Requested bytes.
    pub requested: u64,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Whether its volume is lost: deleted, or on a deleted machine.
    pub lost: bool,
    /// UUID of its node, if that was removed from the cluster.
    pub removed_node: Option<String>,
}

/// Observed state of the cluster, as reported by its nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterView {
    /// UUID of the cluster.
    pub id: String,
    /// UUID of the node that leads the controller group.
    pub leader: Option<String>,
    /// Members, without removed ones.
    pub nodes: Vec<NodeView>,
    /// UUIDs of removed nodes.
    pub removed: BTreeSet<String>,
    /// Number of partitions without a live majority.
    pub offline: u32,
    /// Number of partitions with a replica on a node that is not alive.
    pub under_replicated: u32,
    /// Number of partitions whose replicas are not at their target placement yet.
    pub moving: u32,
    /// Operations in progress in the cluster.
    pub operations: Vec<RunningOperation>,
}

/// Observed state of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// UUID of the node.
    pub node_id: String,
    /// Raft id of the node, which is never reused.
    pub raft_id: u64,
    /// Name of the node and of its pod.
    pub name: String,
    /// Whether it is a voter of the controller group.
    pub voter: bool,
    /// State in the cluster.
    pub state: MemberState,
    /// Whether the leader of the controller group receives heartbeats from it.
    pub alive: bool,
    /// Version of Chronicle.
    pub version: String,
    /// Zone (failure domain).
    pub zone: String,
    /// Expiry of the certificate that it serves, in seconds since the Unix epoch.
    pub certificate_not_after: Option<i64>,
    /// Serial number of the certificate that it serves, hexadecimal.
    pub certificate_serial: Option<String>,
    /// Whether the node itself responded to this observation.
    pub answered: bool,
    /// State of its configuration file, as reported by the node; `None`: it did not respond, or its version does not report it.
    pub configuration: Option<NodeConfiguration>,
}

/// State of the configuration file of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeConfiguration {
    /// BLAKE3 digest of the last file that it loaded, lower-case hexadecimal.
    pub file_digest: String,
    /// Fields whose value in that file needs a restart.
    pub restart_fields: Vec<String>,
    /// Why it rejects the current file; empty if it does not.
    pub error: String,
}

/// An operation in progress in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningOperation {
    /// `decommission`, `drain`, `replace`, `rebalance`.
    pub kind: String,
    /// UUID of the affected node.
    pub node_id: String,
    /// What the operation waits for.
    pub reason: String,
    /// Number of partitions that remain.
    pub remaining: u32,
}

/// Whether nodes have all records that their replicas should have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CatchUp {
    /// Not compared, or the comparison failed.
    #[default]
    Unknown,
    /// Records are missing.
    Behind {
        /// What is missing, for a message.
        why: String,
    },
    /// All records are there.
    Done,
}
