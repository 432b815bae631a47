//! The custom resources of the group `chronicle.dev`, version `v1alpha1`: specs and statuses.
//!
//! Invariants:
//! - Every field has an effect. The schema has no field that this version of the operator ignores.
//! - The API server validates what it can validate from the resource alone (patterns, bounds, CEL): a mistake is then an error at
//!   `kubectl apply`. [`crate::build::validate`] checks the rest, and the operator reports it in a condition.
//! - A status holds nothing that changes with time (no lags, no ages): a converged resource is not written.
//!
//! Neighbours: everything in this crate reads these types; they name no other module. `chronicle-operator crd` prints [`crds`], and
//! `deploy/crds` holds a copy.

pub mod cluster;
mod cluster_status;
mod conditions;
pub mod topic;
pub mod user;

pub use cluster::{
    Authorization, AuthorizationMode, CertificateSecrets, ChronicleCluster, ChronicleClusterSpec, ClientAuth,
    Consensus, IssuerKind, IssuerRef, MemberReplacement, Monitoring, NetworkPolicyMode, NetworkPolicySpec,
    PodMonitorMode, Reconciliation, ReplacementMode, Retention, RetentionPolicy, Scheduling, Security, Storage,
    SuperUser, Tls, TlsMode, UnsatisfiableTopology, VOTERS_MAX,
};
pub use cluster_status::{
    CertificateStatus, ClusterStatus, MemberRole, MemberState, MemberStatus, OperationKind, OperationStatus,
    OperationStep, QuorumStatus, VersionStatus,
};
pub use conditions::{ConditionType, Conditions, condition_of, set_condition};
pub use topic::{
    ChronicleTopic, ChronicleTopicSpec, DeletionPolicy, Durability, ManagementPolicy, TopicRetention, TopicStatus,
};
pub use user::{
    AccessEffect, AccessOperation, AccessPattern, AccessResource, AccessRule, ChronicleUser, ChronicleUserSpec,
    UserAuthentication, UserAuthenticationType, UserAuthorization, UserQuotas, UserStatus,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// API group of the resources.
pub const GROUP: &str = "chronicle.dev";

/// The ChronicleCluster of a topic or user, in the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRef {
    /// Name of the ChronicleCluster.
    #[schemars(length(min = 1, max = 40))]
    pub name: String,
}

/// Returns the CustomResourceDefinitions of all resources.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![ChronicleCluster::crd(), ChronicleTopic::crd(), ChronicleUser::crd()]
}

#[cfg(test)]
mod tests;
