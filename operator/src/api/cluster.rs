//! The `ChronicleCluster` resource: the desired state of one cluster.
//!
//! Invariants: doc comments of fields are what `kubectl explain` prints. Rules that need the resource alone are CEL rules here; other
//! rules are in `build/validate.rs`.
//!
//! Neighbours: `cluster_status.rs` has the observed state, `build/` turns a spec into objects.
#![allow(clippy::duplicated_attributes, reason = "print columns have the same fields")]
#![allow(unreachable_pub, reason = "the schema derive makes public types in private blocks")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, ResourceRequirements, Toleration};
use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cluster_status::ClusterStatus;

/// Maximum number of voters in the controller group.
pub const VOTERS_MAX: u32 = 7;

/// CEL: every node runs a version of the same major and of at most the requested minor. `spec.version` may then go back: the version
/// that it had never ran on any node and blocks every roll-out.
const NOTHING_NEWER_RUNS: &str = "(has(self.status) && has(self.status.versions) && size(self.status.versions.running) > 0 \
     && self.status.versions.running.all(v, v.split('.')[0] == self.spec.version.split('.')[0] \
     && int(v.split('.')[1]) <= int(self.spec.version.split('.')[1])))";

/// A Chronicle cluster: its nodes, which run in one StatefulSet, and the objects that they need.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "chronicle.dev",
    version = "v1alpha1",
    kind = "ChronicleCluster",
    plural = "chronicleclusters",
    shortname = "chc",
    category = "chronicle",
    namespaced,
    derive = "PartialEq",
    status = "ClusterStatus",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.replicas", description = "Pods that exist"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas", description = "Pods that are ready"),
    printcolumn(
        name = "Quorate",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Quorate')].status",
        description = "Whether every Raft group has a live majority"
    ),
    printcolumn(
        name = "UpToDate",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='UpToDate')].status",
        description = "Whether every node matches the spec"
    ),
    printcolumn(
        name = "Operation",
        type_ = "string",
        json_path = ".status.operation.kind",
        description = "Operation in progress"
    ),
    printcolumn(
        name = "Leader",
        type_ = "string",
        json_path = ".status.leader",
        priority = 1,
        description = "Node that leads the controller group"
    ),
    printcolumn(
        name = "Cluster-ID",
        type_ = "string",
        json_path = ".status.clusterId",
        priority = 1,
        description = "UUID of the cluster"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 40").message("metadata.name: must have at most 40 characters"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name: must be a DNS label that begins with a letter"),
    validation = Rule::new(format!(
        "!has(oldSelf.spec.version) || !has(self.spec.version) \
         || self.spec.version.split('.')[0] != oldSelf.spec.version.split('.')[0] \
         || int(self.spec.version.split('.')[1]) >= int(oldSelf.spec.version.split('.')[1]) || {NOTHING_NEWER_RUNS}"
    ))
    .message("version: must not go back to an older minor version"),
    validation = Rule::new(format!(
        "!has(oldSelf.spec.version) || !has(self.spec.version) \
         || self.spec.version.split('.')[0] == oldSelf.spec.version.split('.')[0] || {NOTHING_NEWER_RUNS}"
    ))
    .message("version: the major version cannot be changed")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(oldSelf.version) || has(self.version)").message("version: cannot be taken back once it is set"),
    validation = Rule::new(
        "!has(oldSelf.version) || !has(self.version) || self.version.split('.')[0] != oldSelf.version.split('.')[0] \
         || int(self.version.split('.')[1]) - int(oldSelf.version.split('.')[1]) <= 1"
    )
    .message("version: at most one minor version up at a time"),
    validation = Rule::new(
        "self.security.authorization.mode == 'Disabled' || self.security.tls.mode == 'Enabled'"
    )
    .message("security.authorization.mode: Enabled needs security.tls.mode Enabled: without TLS clients are anonymous")
)]
pub struct ChronicleClusterSpec {
    /// Container image of the nodes: `REPOSITORY:TAG` or `REPOSITORY@sha256:...`. A change restarts the nodes one by one.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// Version of Chronicle in the image, `MAJOR.MINOR.PATCH`. When it is set, skipping a minor version and going back to an older one
    /// are rejected, and a roll-out stops at the first node that reports another version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^[0-9]{1,5}\.[0-9]{1,5}\.[0-9]{1,5}(-[0-9A-Za-z.-]+)?$"))]
    pub version: Option<String>,
    /// Image pull policy: `Always`, `IfNotPresent` or `Never`. Default: the default of Kubernetes for the tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["Always", "IfNotPresent", "Never"]))]
    pub image_pull_policy: Option<String>,
    /// Secrets with the credentials for pulling the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Number of nodes, 0 to 50. Scaling up adds one node at a time. Scaling down decommissions one node at a time, the highest ordinal
    /// first. 0 stops all nodes and keeps their volumes; a number above 0 starts them again. Default: 3.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 50))]
    pub replicas: i32,
    /// Voters of the controller group, which decides on nodes, topics and placement.
    #[serde(default)]
    pub consensus: Consensus,
    /// Volumes of the nodes.
    pub storage: Storage,
    /// Encryption and authorization. Default: both enabled, with a dedicated CA for the cluster.
    #[serde(default)]
    pub security: Security,
    /// CPU and memory of each node. Default: requests of 250m and 512Mi, a memory limit of 2Gi.
    #[serde(default = "default_resources")]
    pub resources: ResourceRequirements,
    /// Where the pods may run.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// Which clients can reach the pods over the network.
    #[serde(default)]
    pub network_policy: NetworkPolicySpec,
    /// Scraping by Prometheus.
    #[serde(default)]
    pub monitoring: Monitoring,
    /// Fields of the node's configuration file, spelled as in that file, such as `{"limits": {"connections-max": 10000}}`. Fields that
    /// the operator manages cannot be set here: `listeners`, `security`, the name, data directory and address in `node`, and discovery,
    /// bootstrap, zone and voters in `cluster`. A change of a live field (docs/configuration.md) takes effect without a restart, within
    /// a few minutes; a change of any other field restarts the nodes one by one. A configuration that nodes reject restarts no node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "any_object")]
    pub config: BTreeMap<String, serde_json::Value>,
    /// Whether the operator reconciles this cluster. Default: `Active`.
    #[serde(default)]
    pub reconciliation: Reconciliation,
}

fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

fn default_replicas() -> i32 {
    3
}

fn default_resources() -> ResourceRequirements {
    let quantities = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), Quantity((*value).to_owned()))).collect()
    };
    ResourceRequirements {
        requests: Some(quantities(&[("cpu", "250m"), ("memory", "512Mi")])),
        limits: Some(quantities(&[("memory", "2Gi")])),
        ..ResourceRequirements::default()
    }
}

/// Voters of the controller group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.voters == 1 || self.voters == 3 || self.voters == 5 || self.voters == 7")
        .message("consensus.voters: must be 1, 3, 5 or 7"),
    validation = Rule::new("self.voters - oldSelf.voters <= 2 && oldSelf.voters - self.voters <= 2")
        .message("consensus.voters: at most two more or two fewer at a time")
)]
pub struct Consensus {
    /// Maximum number of voters: 1, 3, 5 or 7. The other nodes are learners. A cluster with fewer nodes has the largest odd number of
    /// voters that it can have. A change takes effect without a restart. Default: 3.
    #[serde(default = "default_voters")]
    #[schemars(range(min = 1, max = 7))]
    pub voters: u32,
    /// Replacement of a node whose machine or disk is lost.
    #[serde(default)]
    pub member_replacement: MemberReplacement,
}

fn default_voters() -> u32 {
    3
}

impl Default for Consensus {
    fn default() -> Self {
        Self { voters: default_voters(), member_replacement: MemberReplacement::default() }
    }
}

/// What starts the replacement of a lost node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ReplacementMode {
    /// The annotation `chronicle.dev/replace` on the ChronicleCluster, which names the pod.
    #[default]
    Manual,
    /// The operator replaces every node whose machine or volume is known to be lost, after `afterSeconds`.
    Auto,
}

/// Replacement of a node whose machine or disk is lost: the operator deletes the PersistentVolumeClaim and the pod, and an empty node
/// replaces the lost one. Requires that the cluster reports the node as dead, that all other nodes are alive, and that every Raft group
/// has a majority without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberReplacement {
    /// What starts a replacement. Default: `Manual`.
    pub mode: ReplacementMode,
    /// With mode `Auto`: seconds that the pod must have been unready before its node counts as lost, 60 to 604800. Default: 900.
    #[schemars(range(min = 60, max = 604_800))]
    pub after_seconds: i64,
}

impl Default for MemberReplacement {
    fn default() -> Self {
        Self { mode: ReplacementMode::Manual, after_seconds: 900 }
    }
}

/// What happens to a volume that is no longer used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum RetentionPolicy {
    /// The PersistentVolumeClaim is kept.
    #[default]
    Retain,
    /// The PersistentVolumeClaim is deleted, and the data with it.
    Delete,
}

/// What happens to volumes that are no longer used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Retention {
    /// When the ChronicleCluster is deleted. A ChronicleCluster that is created later with the same name uses the kept volumes. Default:
    /// `Retain`.
    pub when_deleted: RetentionPolicy,
    /// When a node is removed by scaling down. Other nodes have its records by then, and the removed node cannot rejoin. A kept volume
    /// blocks scaling up to the same ordinal until its PersistentVolumeClaim is deleted. Default: `Delete`.
    pub when_scaled: RetentionPolicy,
}

impl Default for Retention {
    fn default() -> Self {
        Self { when_deleted: RetentionPolicy::Retain, when_scaled: RetentionPolicy::Delete }
    }
}

/// Volumes of the nodes, one per node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0")
        .message("storage.size: volumes cannot shrink"),
    validation = Rule::new("quantity(self.size).compareTo(quantity('64Mi')) >= 0")
        .message("storage.size: must be at least 64Mi"),
    validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) \
        && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)")
        .message("storage.storageClassName: cannot be changed")
)]
pub struct Storage {
    /// Size of each volume, such as `100Gi`. It can grow, also while nodes are down or their disks are full. It cannot shrink.
    #[schemars(schema_with = "quantity")]
    pub size: Quantity,
    /// StorageClass of the volumes. It cannot be changed. Default: the default StorageClass of the Kubernetes cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// What happens to volumes that are no longer used.
    #[serde(default)]
    pub retention: Retention,
}

fn quantity(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "string",
        "maxLength": 32,
        "pattern": r"^[0-9]+(\.[0-9]+)?(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
    })
}

/// Whether the data port is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum TlsMode {
    /// TLS for clients, mutual TLS between nodes.
    #[default]
    Enabled,
    /// Plaintext: any client that can connect can read and write everything.
    Disabled,
}

/// Whether clients must present a certificate. Nodes always must.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ClientAuth {
    /// A client without a certificate is the principal `anonymous`, to which only rules for all principals apply.
    #[default]
    Optional,
    /// A client without a certificate is rejected.
    Required,
}

/// Kind of an issuer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum IssuerKind {
    /// An issuer in the namespace of the cluster.
    #[default]
    Issuer,
    /// An issuer for all namespaces.
    ClusterIssuer,
}

/// An issuer of cert-manager. It must write its CA to `ca.crt` in the Secrets that it issues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IssuerRef {
    /// Name of the issuer.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Kind of the issuer. Default: `Issuer`.
    #[serde(default)]
    pub kind: IssuerKind,
}

/// Secrets with certificates that are issued and renewed outside the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateSecrets {
    /// Secret with `tls.crt`, `tls.key` and `ca.crt` of the nodes: a server and client certificate for `*.NAME-nodes.NAMESPACE.svc`,
    /// `NAME-nodes.NAMESPACE.svc` and `NAME.NAMESPACE.svc`.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// Secret with `tls.crt`, `tls.key` and `ca.crt` of the operator: a client certificate with the common name `chronicle-operator`.
    #[schemars(length(min = 1, max = 253))]
    pub operator: String,
}

/// Encryption of the data port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode == oldSelf.mode")
        .message("security.tls.mode: cannot be changed: nodes with TLS and nodes without TLS cannot connect to each other"),
    validation = Rule::new("has(self.issuerRef) == has(oldSelf.issuerRef) \
        && (!has(self.issuerRef) || self.issuerRef == oldSelf.issuerRef) \
        && has(self.secrets) == has(oldSelf.secrets) && (!has(self.secrets) || self.secrets == oldSelf.secrets)")
        .message("security.tls: issuerRef and secrets cannot be changed: nodes would not trust the new certificates of other nodes"),
    validation = Rule::new("!(has(self.issuerRef) && has(self.secrets))")
        .message("security.tls: issuerRef and secrets are mutually exclusive"),
    validation = Rule::new("self.mode == 'Enabled' || !(has(self.issuerRef) || has(self.secrets))")
        .message("security.tls: issuerRef and secrets need mode Enabled")
)]
pub struct Tls {
    /// Whether the data port is encrypted. It cannot be changed. Default: `Enabled`.
    #[serde(default)]
    pub mode: TlsMode,
    /// cert-manager issuer of the certificates. It cannot be changed. Default: a dedicated CA for the cluster, managed by cert-manager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer_ref: Option<IssuerRef>,
    /// Secrets with certificates that are issued outside the operator; cert-manager is not needed then. The names cannot be changed, the
    /// content of the Secrets can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<CertificateSecrets>,
    /// Whether clients must present a certificate. Default: `Optional`.
    #[serde(default)]
    pub client_auth: ClientAuth,
}

/// Whether requests need a rule that allows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum AuthorizationMode {
    /// A request that no rule allows is rejected.
    #[default]
    Enabled,
    /// Every client may do everything.
    Disabled,
}

/// Name of a principal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct SuperUser(#[schemars(length(min = 1, max = 253))] pub String);

/// Authorization. Rules come from ChronicleUsers and from `chronicle acl`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Authorization {
    /// Whether requests need a rule that allows them. A change restarts the nodes one by one. Default: `Enabled`.
    pub mode: AuthorizationMode,
    /// Principals that may do everything, regardless of rules. The principal of the operator always is one. A change takes effect without
    /// a restart.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub super_users: Vec<SuperUser>,
}

/// Encryption and authorization.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Security {
    /// Encryption of the data port.
    pub tls: Tls,
    /// Authorization of requests.
    pub authorization: Authorization,
    /// Rules that map the subject of a client certificate to a principal, each `REGEX -> REPLACEMENT`. The first rule whose regular
    /// expression matches the whole subject applies. A change takes effect without a restart.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub principal_rules: Vec<String>,
}

/// What happens to a pod when the nodes cannot be spread evenly over machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum UnsatisfiableTopology {
    /// The pod shares a machine with another node of the cluster.
    #[default]
    ScheduleAnyway,
    /// The pod stays pending.
    DoNotSchedule,
}

/// Where the pods may run. A change restarts the nodes one by one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Scheduling {
    /// Labels that a Kubernetes node must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Tolerations of the pods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,
    /// Affinity rules in addition to the spread over zones and machines, which the operator always requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// What happens when pods cannot be spread evenly over machines. An uneven spread over zones never blocks a pod. Default:
    /// `ScheduleAnyway`.
    pub when_unsatisfiable: UnsatisfiableTopology,
    /// PriorityClass of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
}

/// Whether the operator creates a NetworkPolicy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum NetworkPolicyMode {
    /// Only nodes of the cluster, the operator and the peers in `allowFrom` can reach the data port. The ops port is open to all pods.
    #[default]
    Restricted,
    /// No NetworkPolicy.
    Disabled,
}

/// Which clients can reach the pods over the network.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkPolicySpec {
    /// Whether the operator creates a NetworkPolicy. Default: `Restricted`.
    pub mode: NetworkPolicyMode,
    /// Peers that can reach the data port in addition to the nodes and the operator. Default: every pod of the namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub allow_from: Option<Vec<NetworkPolicyPeer>>,
}

/// Whether the operator creates a PodMonitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum PodMonitorMode {
    /// If the PodMonitor CRD is installed.
    #[default]
    Auto,
    /// Never.
    Disabled,
}

/// Scraping by Prometheus.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Monitoring {
    /// Whether the operator creates a PodMonitor for the Prometheus operator. Default: `Auto`.
    pub pod_monitor: PodMonitorMode,
    /// Additional labels of the PodMonitor, for the selector of a Prometheus.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Whether the operator reconciles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Reconciliation {
    /// The operator reconciles the cluster.
    #[default]
    Active,
    /// The operator only updates the status. An operation in progress stops and resumes with `Active`.
    Paused,
}
