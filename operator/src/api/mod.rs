//! The resources that people write, group `chronicle.dev`, version `v1alpha1`, and what is reported about them.
//!
//! Invariants:
//! - Every field has a behaviour; what one version of the operator does not do, its resources cannot ask for.
//! - What can be judged from the resource alone is judged by the API server (patterns, bounds, CEL), so that a mistake is an error
//!   message at `kubectl apply` and not a condition later. What needs more is judged in [`crate::build::validate`].
//! - A status holds nothing that changes by itself (no lags, no ages): a converged resource is not written.
//!
//! `crds()` is what `chronicle-operator crd` prints and what is kept under `deploy/crds`.

pub mod cluster;
mod conditions;
mod status;
pub mod topic;
pub mod user;

pub use cluster::{
    Authorization, AuthorizationMode, CertificateSecrets, ChronicleCluster, ChronicleClusterSpec, ClientAuth,
    Consensus, IssuerKind, IssuerRef, MemberReplacement, Monitoring, NetworkPolicyMode, NetworkPolicySpec,
    PodMonitorMode, Reconciliation, ReplacementMode, Retention, RetentionPolicy, Scheduling, Security, Storage,
    SuperUser, Tls, TlsMode, UnsatisfiableTopology, VOTERS_MAX,
};
pub use conditions::{ConditionType, Conditions, condition_of, set_condition};
pub use status::{
    CertificateStatus, ClusterStatus, MemberRole, MemberState, MemberStatus, OperationKind, OperationStatus,
    OperationStep, QuorumStatus, VersionStatus,
};
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

/// The cluster in the same namespace that a topic or a user belongs to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRef {
    /// Name of a ChronicleCluster in this namespace.
    #[schemars(length(min = 1, max = 40))]
    pub name: String,
}

/// Definitions of all resources.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![ChronicleCluster::crd(), ChronicleTopic::crd(), ChronicleUser::crd()]
}

#[cfg(test)]
mod tests;
