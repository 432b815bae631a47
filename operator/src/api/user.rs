//! The `ChronicleUser` resource: one principal of a cluster with its certificate, access rules and quotas.
//!
//! Doc comments of fields are what `kubectl explain` prints. `controller/user.rs` reconciles it.
#![allow(clippy::duplicated_attributes, reason = "print columns have the same fields")]
#![allow(unreachable_pub, reason = "the schema derive makes public types in private blocks")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ClusterRef, DeletionPolicy, ManagementPolicy};

/// A client of a ChronicleCluster in the same namespace: its certificate, access rules and quotas.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "chronicle.dev",
    version = "v1alpha1",
    kind = "ChronicleUser",
    plural = "chronicleusers",
    shortname = "chu",
    category = "chronicle",
    namespaced,
    derive = "PartialEq",
    status = "UserStatus",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name"),
    printcolumn(name = "Principal", type_ = "string", json_path = ".status.principal"),
    printcolumn(name = "Secret", type_ = "string", json_path = ".status.secretName"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.clusterRef == oldSelf.clusterRef").message("clusterRef: cannot be changed"),
    validation = Rule::new("has(self.principal) == has(oldSelf.principal) \
        && (!has(self.principal) || self.principal == oldSelf.principal)").message("principal: cannot be changed"),
    validation = Rule::new("self.authentication.type == 'External' || !has(self.principal) || size(self.principal) <= 64")
        .message("principal: a certificate takes at most 64 characters")
)]
pub struct ChronicleUserSpec {
    /// Cluster of the user. It cannot be changed.
    pub cluster_ref: ClusterRef,
    /// Principal of the client. It cannot be changed. Default: the name of this resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub principal: Option<String>,
    /// How the client authenticates.
    #[serde(default)]
    pub authentication: UserAuthentication,
    /// Access rules of the principal.
    #[serde(default)]
    pub authorization: UserAuthorization,
    /// Limits of the principal on each node, per second. Default: the default quota of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quotas: Option<UserQuotas>,
    /// Whether this resource manages the rules and quotas of the principal. Default: `Manage`.
    #[serde(default)]
    pub management_policy: ManagementPolicy,
    /// What happens to the rules and quotas when this resource is deleted. The Certificate and its Secret are always deleted. Default:
    /// `Delete`.
    #[serde(default = "delete")]
    pub deletion_policy: DeletionPolicy,
}

fn delete() -> DeletionPolicy {
    DeletionPolicy::Delete
}

/// Where the certificate of the client comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum UserAuthenticationType {
    /// cert-manager issues it from the issuer of the cluster, with the principal as its common name.
    #[default]
    Certificate,
    /// It is issued elsewhere, such as by SPIFFE. The principal rules of the cluster map it to the principal.
    External,
}

/// How the client authenticates.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type == 'Certificate' || !has(self.secretName)")
        .message("authentication.secretName: needs type Certificate")
)]
pub struct UserAuthentication {
    /// Where the certificate comes from. Default: `Certificate`.
    #[serde(rename = "type", default)]
    pub kind: UserAuthenticationType,
    /// Name of the Secret for `tls.crt`, `tls.key` and `ca.crt`. Default: `NAME-chronicle-user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: Option<String>,
}

/// All access rules of a principal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UserAuthorization {
    /// Access rules. Rules of the principal that are not in this list are removed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub acls: Vec<AccessRule>,
}

/// Kind of the resource that a rule applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum AccessResource {
    /// The cluster: nodes, rules, quotas, and topics that do not exist yet.
    Cluster,
    /// Topics.
    Topic,
    /// Consumer groups.
    Group,
}

/// How the name of a rule is matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
pub enum AccessPattern {
    /// The resource with exactly this name; `*` matches every resource.
    #[default]
    Literal,
    /// Every resource whose name begins with this text.
    Prefix,
}

/// Operation that a rule applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum AccessOperation {
    /// Topic: read records. Group: join as a member.
    Read,
    /// Topic: append records.
    Write,
    /// Topic: create a topic of this name. Cluster: create any topic.
    Create,
    /// Topic, group: delete it.
    Delete,
    /// Topic: change settings. Group: reset offsets. Cluster: change rules and quotas.
    Alter,
    /// Topic: list settings, partitions, offsets. Group: list members, offsets. Cluster: show status, rules, quotas.
    Describe,
    /// Cluster: manage nodes and leadership, verify data.
    Admin,
    /// All operations.
    All,
}

/// Effect of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
pub enum AccessEffect {
    /// Allow the operations.
    #[default]
    Allow,
    /// Deny the operations, also if another rule allows them.
    Deny,
}

/// One access rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.resource == 'Cluster') != has(self.name)")
        .message("acls[].name: must be given for topics and groups, and not for the cluster")
)]
pub struct AccessRule {
    /// Kind of the resource.
    pub resource: AccessResource,
    /// How the name is matched. Default: `Literal`.
    #[serde(default)]
    pub pattern: AccessPattern,
    /// Name or prefix of the topic or group. Absent for the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249))]
    pub name: Option<String>,
    /// Operations, at least one.
    #[schemars(length(min = 1, max = 8))]
    pub operations: Vec<AccessOperation>,
    /// Effect of the rule. Default: `Allow`.
    #[serde(default)]
    pub effect: AccessEffect,
}

/// Limits of a principal on each node, per second. An absent field is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.bytesIn) || has(self.bytesOut) || has(self.requests)")
        .message("quotas: at least one of bytesIn, bytesOut and requests must be given")
)]
pub struct UserQuotas {
    /// Bytes of records appended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub bytes_in: Option<i64>,
    /// Bytes of records read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub bytes_out: Option<i64>,
    /// Requests of any kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub requests: Option<i64>,
}

/// Observed state of a ChronicleUser.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UserStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Condition Ready: certificate, rules and quotas match the spec.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Principal of the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Whether this resource manages the rules and quotas of the principal. Set before the first is written.
    pub owned: bool,
    /// Name of the Secret with the certificate of the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// Number of access rules of the principal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<i32>,
}
