//! The status of a `ChronicleCluster`: the observed state, and the operator's own record of what it is doing.
//!
//! Invariants:
//! - `operation` and `size` are written before their first effect. An operator that restarts resumes from them.
//! - No field changes by itself with time: the status of a converged cluster is not written.
//!
//! Neighbours: `controller/cluster/report.rs` fills it in, `plan/` reads the record.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Observed state of a ChronicleCluster.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Available, Quorate, Progressing, Degraded, UpToDate, StorageHealthy, CertificatesValid.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// UUID of the cluster. Absent until the cluster has bootstrapped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Number of pods that exist.
    pub replicas: i32,
    /// Number of pods that are ready.
    pub ready_replicas: i32,
    /// Label selector of the pods, as text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// Number of nodes of the cluster, which is the number of pods while it is not stopped. Follows `spec.replicas` in steps of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<i32>,
    /// Name of the node that leads the controller group. Absent while no leader responds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Quorum of the controller group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quorum: Option<QuorumStatus>,
    /// Members of the cluster, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub members: Vec<MemberStatus>,
    /// Operation in progress. Written before the operation starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationStatus>,
    /// Versions of Chronicle on the nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub versions: Option<VersionStatus>,
    /// Certificates that the nodes serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificates: Option<CertificateStatus>,
    /// `HOST:PORT` that clients in this Kubernetes cluster connect to first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// Quorum of the controller group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuorumStatus {
    /// Number of voters.
    pub voters: i32,
    /// Number of voters that are alive.
    pub healthy: i32,
    /// Number of voters that form a majority.
    pub needed: i32,
    /// Number of further voters that may fail without loss of the majority.
    pub fault_tolerance: i32,
}

/// Role of a node in the controller group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MemberRole {
    /// Counts for the majority.
    Voter,
    /// Receives the log and does not vote.
    Learner,
}

/// State of a node in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MemberState {
    /// Serves and may lead.
    Active,
    /// Serves and must not lead: its leadership is being or has been transferred.
    Draining,
    /// Its replicas are being reassigned to other nodes, after which it is removed.
    Decommissioning,
}

/// One member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Name of the node and of its pod.
    pub name: String,
    /// UUID of its data directory.
    pub node_id: String,
    /// Role in the controller group.
    pub role: MemberRole,
    /// State in the cluster.
    pub state: MemberState,
    /// Whether the controller leader receives heartbeats from the node.
    pub alive: bool,
    /// Version of Chronicle that the node runs.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub version: String,
    /// Zone (failure domain) of the node.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub zone: String,
}

/// Kind of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OperationKind {
    /// Start the first nodes, which bootstrap the cluster.
    Create,
    /// Add one node.
    ScaleUp,
    /// Remove one node.
    ScaleDown,
    /// Restart one pod so that it matches the spec.
    Roll,
    /// Replace a lost node with an empty one.
    Replace,
    /// Stop all nodes.
    Stop,
    /// Start all stopped nodes.
    Start,
}

/// Step of an operation. The steps of an operation follow the order of this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum OperationStep {
    /// Transfer the leadership of the node to other nodes.
    Drain,
    /// Reassign the replicas of the node and remove it from the cluster.
    Decommission,
    /// Delete the PersistentVolumeClaim of the lost node.
    DeleteClaim,
    /// Delete or start the pod.
    Pod,
    /// Wait until the node is a member with all its records.
    Join,
    /// Delete the PersistentVolumeClaim of the removed node, or annotate it if it is kept.
    Claim,
}

/// Operation in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperationStatus {
    /// Kind of the operation.
    pub kind: OperationKind,
    /// Current step.
    pub step: OperationStep,
    /// Pod that the operation applies to. Empty: all pods.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// UID of the pod that is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// UID of the PersistentVolumeClaim that is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_uid: Option<String>,
    /// UUID of the node that is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// Start time, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
}

impl OperationStatus {
    /// Seconds since the start; negative after the clock went back, `None` without a start time.
    pub fn age_seconds(&self, now: Timestamp) -> Option<i64> {
        let started: Timestamp = self.started_at.as_deref()?.parse().ok()?;
        Some(now.as_second() - started.as_second())
    }
}

/// Versions of Chronicle on the nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionStatus {
    /// Versions that nodes report, without duplicates.
    #[schemars(length(max = 64), inner(length(max = 64)))]
    pub running: Vec<String>,
}

/// Certificates that the nodes serve.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// Earliest expiry of the certificates that nodes serve, in seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after_seconds: Option<i64>,
}
