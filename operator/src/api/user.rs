//! `ChronicleUser`: a principal of a cluster as a resource: its certificate, rules and quotas.
#![allow(clippy::duplicated_attributes, reason = "print columns have the same fields")]
#![allow(unreachable_pub, reason = "the schema derive makes public types in private blocks")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ClusterRef, DeletionPolicy, ManagementPolicy};

/// A client of a ChronicleCluster in the same namespace, and what it may do.
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
    /// Cluster that it is a client of. It cannot be changed.
    pub cluster_ref: ClusterRef,
    /// Name by which the cluster knows the client. It cannot be changed. Default: the name of this resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub principal: Option<String>,
    /// How the client proves who it is.
    #[serde(default)]
    pub authentication: UserAuthentication,
    /// What it may do.
    #[serde(default)]
    pub authorization: UserAuthorization,
    /// How much it may do on each node, per second. Default: what the cluster's default quota says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quotas: Option<UserQuotas>,
    /// Who owns the principal's rules and quotas. Default: `Manage`.
    #[serde(default)]
    pub management_policy: ManagementPolicy,
    /// What becomes of rules and quotas when this resource is deleted. The certificate and its Secret always go. Default:
    /// `Delete`.
    #[serde(default = "delete")]
    pub deletion_policy: DeletionPolicy,
}

fn delete() -> DeletionPolicy {
    DeletionPolicy::Delete
}

/// Where the client's certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum UserAuthenticationType {
    /// cert-manager issues one from the cluster's issuer, with the principal as its common name.
    #[default]
    Certificate,
    /// From elsewhere, such as SPIFFE; the principal is what the cluster's rules make of it.
    External,
}

/// How the client proves who it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type == 'Certificate' || !has(self.secretName)")
        .message("authentication.secretName: needs type Certificate")
)]
pub struct UserAuthentication {
    /// Where its certificate comes from. Default: `Certificate`.
    #[serde(rename = "type", default)]
    pub kind: UserAuthenticationType,
    /// Secret that gets `tls.crt`, `tls.key` and `ca.crt`. Default: `NAME-chronicle-user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: Option<String>,
}

/// What a principal may do: the whole of its rules.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UserAuthorization {
    /// Rules. Rules of the principal that are not here are taken away.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub acls: Vec<AccessRule>,
}

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum AccessResource {
    /// Nodes, rules, quotas, and topics that are not there yet.
    Cluster,
    /// Topics.
    Topic,
    /// Consumer groups.
    Group,
}

/// How a name is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
pub enum AccessPattern {
    /// The resource of this name; `*`: every one.
    #[default]
    Literal,
    /// Every resource whose name begins with it.
    Prefix,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum AccessOperation {
    /// Topic: read records. Group: be a member.
    Read,
    /// Topic: append.
    Write,
    /// Topic: create it. Cluster: create any topic.
    Create,
    /// Topic, group.
    Delete,
    /// Topic: settings. Group: reset offsets. Cluster: rules and quotas.
    Alter,
    /// Topic: settings, partitions, offsets. Group: members, offsets. Cluster: status, rules, quotas.
    Describe,
    /// Cluster: nodes, leadership, verification.
    Admin,
    /// Everything.
    All,
}

/// What a rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
pub enum AccessEffect {
    /// It may.
    #[default]
    Allow,
    /// It may not, whatever other rules say.
    Deny,
}

/// One rule, for some operations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.resource == 'Cluster') != has(self.name)")
        .message("acls[].name: must be given for topics and groups, and not for the cluster")
)]
pub struct AccessRule {
    /// What it is about.
    pub resource: AccessResource,
    /// How the name is meant. Default: `Literal`.
    #[serde(default)]
    pub pattern: AccessPattern,
    /// Name of the topic or group, or how it begins; not for the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249))]
    pub name: Option<String>,
    /// What is done, at least one.
    #[schemars(length(min = 1, max = 8))]
    pub operations: Vec<AccessOperation>,
    /// What the rule says. Default: `Allow`.
    #[serde(default)]
    pub effect: AccessEffect,
}

/// How much a principal may do on each node, per second. Absent: no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.bytesIn) || has(self.bytesOut) || has(self.requests)")
        .message("quotas: at least one of bytesIn, bytesOut and requests must be given")
)]
pub struct UserQuotas {
    /// Bytes of records that it appends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub bytes_in: Option<i64>,
    /// Bytes of records that it reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub bytes_out: Option<i64>,
    /// Requests of any kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub requests: Option<i64>,
}

/// State of a ChronicleUser.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UserStatus {
    /// Generation of the spec that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready: certificate, rules and quotas are as the spec says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Name by which the cluster knows the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Whether the principal's rules and quotas are this resource's. Set before the first is made.
    pub owned: bool,
    /// Secret with the client's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// Rules that the principal has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<i32>,
}
