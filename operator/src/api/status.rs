//! What is reported about a cluster. Also the operator's memory: `operation` and `size` are written before anything is done
//! and read again after a restart.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// State of a ChronicleCluster.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterStatus {
    /// Generation of the spec that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What holds: Available, Quorate, Progressing, Degraded, UpToDate, StorageHealthy, CertificatesValid.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// UUID of the cluster, once it is founded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Pods that exist.
    pub replicas: i32,
    /// Pods that are ready.
    pub ready_replicas: i32,
    /// Label selector of the pods, text form.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// Nodes that the cluster consists of: the pods that should run while it is not stopped. Follows `spec.replicas` one by
    /// one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<i32>,
    /// Node that leads the controller group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Votes of the controller group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quorum: Option<QuorumStatus>,
    /// Nodes, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub members: Vec<MemberStatus>,
    /// What is under way. Written before it begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationStatus>,
    /// Versions of Chronicle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub versions: Option<VersionStatus>,
    /// What the nodes serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificates: Option<CertificateStatus>,
    /// `HOST:PORT` where clients in this Kubernetes cluster ask first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// Votes of the controller group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuorumStatus {
    /// Nodes that vote.
    pub voters: i32,
    /// Those that are alive.
    pub healthy: i32,
    /// Votes that make a majority.
    pub needed: i32,
    /// Voters that may still be lost.
    pub fault_tolerance: i32,
}

/// Role in the controller group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MemberRole {
    /// Votes.
    Voter,
    /// Follows without a vote.
    Learner,
}

/// State in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MemberState {
    /// Takes part.
    Active,
    /// Leads nothing.
    Draining,
    /// Its replicas are being moved away.
    Decommissioning,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Name of the node, that of its pod.
    pub name: String,
    /// UUID of its data directory.
    pub node_id: String,
    /// Role in the controller group.
    pub role: MemberRole,
    /// State in the cluster.
    pub state: MemberState,
    /// The cluster hears from it.
    pub alive: bool,
    /// Version that it runs.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub version: String,
    /// Failure domain.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub zone: String,
}

/// Kinds of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OperationKind {
    /// The first nodes are started and found the cluster.
    Create,
    /// One more node.
    ScaleUp,
    /// One node fewer.
    ScaleDown,
    /// One pod is replaced by one that runs what the spec says.
    Roll,
    /// A lost node is replaced by an empty one.
    Replace,
    /// All nodes stop.
    Stop,
    /// All nodes start again.
    Start,
}

/// How far an operation is. Steps of a kind go in the order of this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum OperationStep {
    /// Hand over what the node leads.
    Drain,
    /// Move everything off the node and remove it from the cluster.
    Decommission,
    /// The claim of the lost node is deleted.
    DeleteClaim,
    /// The pod is deleted or started.
    Pod,
    /// The node is to be a member that has everything.
    Join,
    /// The claim of the removed node is deleted or marked.
    Claim,
}

/// What is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperationStatus {
    /// What is done.
    pub kind: OperationKind,
    /// How far it is.
    pub step: OperationStep,
    /// Pod that it is about; empty: all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// UID of the pod that is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// UID of the claim that is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_uid: Option<String>,
    /// UUID of the node that leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
}

impl OperationStatus {
    /// Seconds since it began; negative when the clock went back, `None` when that was not written down.
    pub fn age_seconds(&self, now: Timestamp) -> Option<i64> {
        let started: Timestamp = self.started_at.as_deref()?.parse().ok()?;
        Some(now.as_second() - started.as_second())
    }
}

/// Versions of Chronicle.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionStatus {
    /// Versions that nodes report, each once.
    #[schemars(length(max = 64), inner(length(max = 64)))]
    pub running: Vec<String>,
}

/// What the nodes serve.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// Earliest end of life among the certificates that nodes serve, in seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after_seconds: Option<i64>,
}
