//! `ChronicleCluster`: what a person asks for.
#![allow(clippy::duplicated_attributes, reason = "print columns have the same fields")]
#![allow(unreachable_pub, reason = "the schema derive makes public types in private blocks")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, ResourceRequirements, Toleration};
use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::status::ClusterStatus;

/// Most members of the controller group that vote.
pub const VOTERS_MAX: u32 = 7;

/// CEL: every node runs a minor version of the same major that is not newer than the one asked for. A version that was asked for
/// and never ran can then be taken back: it was a mistake, and holds every roll until it is.
const NOTHING_NEWER_RUNS: &str = "(has(self.status) && has(self.status.versions) && size(self.status.versions.running) > 0 \
     && self.status.versions.running.all(v, v.split('.')[0] == self.spec.version.split('.')[0] \
     && int(v.split('.')[1]) <= int(self.spec.version.split('.')[1])))";

/// A Chronicle cluster: nodes in one StatefulSet that agree on one another, and everything that they need.
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
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.replicas", description = "Nodes that run"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas", description = "Nodes that serve"),
    printcolumn(
        name = "Quorate",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Quorate')].status",
        description = "Whether every group has a majority"
    ),
    printcolumn(
        name = "UpToDate",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='UpToDate')].status",
        description = "Whether every node runs what the spec says"
    ),
    printcolumn(
        name = "Operation",
        type_ = "string",
        json_path = ".status.operation.kind",
        description = "What is under way"
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
    .message("security.authorization.mode: Enabled needs security.tls.mode Enabled: without TLS nobody has a name")
)]
pub struct ChronicleClusterSpec {
    /// Image of the nodes, with its tag or digest: `REPOSITORY:TAG` or `REPOSITORY@sha256:...`. A change rolls the nodes.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// Version of Chronicle in the image, `MAJOR.MINOR.PATCH`. When it is set, a step over a minor version and a way back are
    /// refused, and a roll stops at the first node that reports another version than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^[0-9]{1,5}\.[0-9]{1,5}\.[0-9]{1,5}(-[0-9A-Za-z.-]+)?$"))]
    pub version: Option<String>,
    /// When the image is pulled: `Always`, `IfNotPresent` or `Never`. Default: what Kubernetes does for the tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["Always", "IfNotPresent", "Never"]))]
    pub image_pull_policy: Option<String>,
    /// Secrets with which the image is pulled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Nodes, 0 to 50. More: nodes join one after the other. Fewer: nodes are emptied and removed one after the other, the
    /// highest number first. 0: all nodes stop and everything is kept; a number above 0 starts them again. Default: 3.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 50))]
    pub replicas: i32,
    /// Who votes on nodes, topics and placement.
    #[serde(default)]
    pub consensus: Consensus,
    /// Volumes of the nodes.
    pub storage: Storage,
    /// Encryption and access. Default: both on, with a certificate authority of the cluster's own.
    #[serde(default)]
    pub security: Security,
    /// CPU and memory of each node. Default: requests of 250m and 512Mi, a memory limit of 2Gi.
    #[serde(default = "default_resources")]
    pub resources: ResourceRequirements,
    /// Where the pods may run.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// Who reaches the pods over the network.
    #[serde(default)]
    pub network_policy: NetworkPolicySpec,
    /// Scraping by Prometheus.
    #[serde(default)]
    pub monitoring: Monitoring,
    /// Fields of the node's configuration file, in its own spelling, such as `{"limits": {"connections-max": 10000}}`. What the
    /// operator decides (`node`, `listeners`, `security`, and of `cluster` discovery, bootstrap, zone and voters) cannot be set
    /// here. A change of fields that docs/configuration.md calls live takes effect without a restart, within a few minutes; a change of
    /// others rolls the nodes. What nodes refuse restarts nobody.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "any_object")]
    pub config: BTreeMap<String, serde_json::Value>,
    /// Whether the operator acts on this cluster. Default: `Active`.
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

/// Who votes in the controller group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.voters == 1 || self.voters == 3 || self.voters == 5 || self.voters == 7")
        .message("consensus.voters: must be 1, 3, 5 or 7"),
    validation = Rule::new("self.voters - oldSelf.voters <= 2 && oldSelf.voters - self.voters <= 2")
        .message("consensus.voters: at most two more or two fewer at a time")
)]
pub struct Consensus {
    /// Most nodes that vote: 1, 3, 5 or 7; the others follow. With fewer nodes, an odd number of them votes. A change takes effect
    /// without a restart. Default: 3.
    #[serde(default = "default_voters")]
    #[schemars(range(min = 1, max = 7))]
    pub voters: u32,
    /// What happens to a node that will not come back.
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

/// Whether a lost node is replaced without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ReplacementMode {
    /// Only a pod that the annotation `chronicle.dev/replace` of the cluster names.
    #[default]
    Manual,
    /// Every pod that meets the conditions.
    Auto,
}

/// Replacement of a node whose machine or disk is lost: its claim and pod are deleted, and an empty node takes its place. Done
/// only while all other nodes are alive and every group has a majority without it, and the cluster says that the node is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberReplacement {
    /// Whether it is done without being asked. Default: `Manual`.
    pub mode: ReplacementMode,
    /// Seconds that the pod must have been unready before its node counts as lost, 60 to 604800. Default: 900.
    #[schemars(range(min = 60, max = 604_800))]
    pub after_seconds: i64,
}

impl Default for MemberReplacement {
    fn default() -> Self {
        Self { mode: ReplacementMode::Manual, after_seconds: 900 }
    }
}

/// What becomes of volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum RetentionPolicy {
    /// Kept. Somebody deletes them by hand, or uses them again.
    #[default]
    Retain,
    /// Deleted.
    Delete,
}

/// What becomes of volumes that nobody uses any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Retention {
    /// When the cluster is deleted. A cluster of the same name that is created later starts with what was kept. Default:
    /// `Retain`.
    pub when_deleted: RetentionPolicy,
    /// When a node was removed. Its records are on other nodes by then, and the node cannot come back. A volume that is kept is
    /// in the way of a later node of the same number: it must be deleted by hand first. Default: `Delete`.
    pub when_scaled: RetentionPolicy,
}

impl Default for Retention {
    fn default() -> Self {
        Self { when_deleted: RetentionPolicy::Retain, when_scaled: RetentionPolicy::Delete }
    }
}

/// Volumes of the nodes, one each.
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
    /// Size of each volume, such as `100Gi`. It can grow, also while nodes are down or their disks full; it cannot shrink.
    #[schemars(schema_with = "quantity")]
    pub size: Quantity,
    /// Class of the volumes. Default: the default class of the Kubernetes cluster. It cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// What becomes of volumes that nobody uses any more.
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
    /// Plaintext: whoever reaches the port reads and writes everything.
    Disabled,
}

/// Whether clients show a certificate. Nodes always do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ClientAuth {
    /// Without one a client is `anonymous`, which may do only what rules for everybody allow.
    #[default]
    Optional,
    /// Without one a client is refused.
    Required,
}

/// What an issuer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum IssuerKind {
    /// An issuer in this namespace.
    #[default]
    Issuer,
    /// An issuer for all namespaces.
    ClusterIssuer,
}

/// An issuer of cert-manager. Its certificates must carry the CA in `ca.crt` of their Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IssuerRef {
    /// Name of the issuer.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// What it is. Default: `Issuer`.
    #[serde(default)]
    pub kind: IssuerKind,
}

/// Secrets with certificates that somebody else makes and renews.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateSecrets {
    /// Secret with `tls.crt`, `tls.key` and `ca.crt` of the nodes, for servers and clients, valid for
    /// `*.NAME-nodes.NAMESPACE.svc`, `NAME-nodes.NAMESPACE.svc` and `NAME.NAMESPACE.svc`.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// Secret with `tls.crt`, `tls.key` and `ca.crt` of the operator, for clients, whose name is `chronicle-operator`.
    #[schemars(length(min = 1, max = 253))]
    pub operator: String,
}

/// Encryption of the data port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode == oldSelf.mode")
        .message("security.tls.mode: cannot be changed: nodes with TLS and nodes without do not talk to one another"),
    validation = Rule::new("has(self.issuerRef) == has(oldSelf.issuerRef) \
        && (!has(self.issuerRef) || self.issuerRef == oldSelf.issuerRef) \
        && has(self.secrets) == has(oldSelf.secrets) && (!has(self.secrets) || self.secrets == oldSelf.secrets)")
        .message("security.tls: issuerRef and secrets cannot be changed: nodes would not trust one another's new certificates"),
    validation = Rule::new("!(has(self.issuerRef) && has(self.secrets))")
        .message("security.tls: issuerRef and secrets exclude one another"),
    validation = Rule::new("self.mode == 'Enabled' || !(has(self.issuerRef) || has(self.secrets))")
        .message("security.tls: issuerRef and secrets need mode Enabled")
)]
pub struct Tls {
    /// Whether the data port is encrypted. It cannot be changed. Default: `Enabled`.
    #[serde(default)]
    pub mode: TlsMode,
    /// Issuer of cert-manager for the certificates. It cannot be changed. Default: a certificate authority of the cluster's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer_ref: Option<IssuerRef>,
    /// Certificates made by somebody else; cert-manager is not needed then. It cannot be changed; what the Secrets hold can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<CertificateSecrets>,
    /// Whether clients show a certificate. Default: `Optional`.
    #[serde(default)]
    pub client_auth: ClientAuth,
}

/// Whether what no rule allows is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum AuthorizationMode {
    /// It is.
    #[default]
    Enabled,
    /// Everybody may do everything.
    Disabled,
}

/// A principal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct SuperUser(#[schemars(length(min = 1, max = 253))] pub String);

/// Who may do what. The rules come from ChronicleUsers and from `chronicle acl`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Authorization {
    /// Whether what no rule allows is refused. A change rolls the nodes. Default: `Enabled`.
    pub mode: AuthorizationMode,
    /// Principals that may do everything, whatever the rules say. The operator is one by itself. A change takes effect without a
    /// restart.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub super_users: Vec<SuperUser>,
}

/// Encryption and access.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Security {
    /// Encryption of the data port.
    pub tls: Tls,
    /// Who may do what.
    pub authorization: Authorization,
    /// From the name in a client's certificate to its principal, each `REGEX -> REPLACEMENT`; the first that matches all of the
    /// name wins. A change takes effect without a restart.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub principal_rules: Vec<String>,
}

/// What happens to a pod for which there is no machine of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum UnsatisfiableTopology {
    /// It shares a machine or a zone with another node.
    #[default]
    ScheduleAnyway,
    /// It waits.
    DoNotSchedule,
}

/// Where the pods may run. A change rolls the nodes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Scheduling {
    /// Labels of the machines.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are put up with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,
    /// Rules beside the even spread over zones and machines, which is always asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// What happens when pods cannot be spread over machines evenly. Zones never make a pod wait. Default: `ScheduleAnyway`.
    pub when_unsatisfiable: UnsatisfiableTopology,
    /// Priority class of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
}

/// Whether a NetworkPolicy is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum NetworkPolicyMode {
    /// Only nodes of the cluster, the operator, and `allowFrom` reach the data port; the ops port is open to scrapers.
    #[default]
    Restricted,
    /// No NetworkPolicy.
    Disabled,
}

/// Who reaches the pods over the network.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkPolicySpec {
    /// Whether a NetworkPolicy is made. Default: `Restricted`.
    pub mode: NetworkPolicyMode,
    /// Who may reach the data port besides the nodes and the operator. Default: every pod of this namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub allow_from: Option<Vec<NetworkPolicyPeer>>,
}

/// Whether a PodMonitor is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum PodMonitorMode {
    /// When the Kubernetes cluster knows PodMonitors.
    #[default]
    Auto,
    /// Never.
    Disabled,
}

/// Scraping by Prometheus.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Monitoring {
    /// Whether a PodMonitor of the Prometheus operator is made. Default: `Auto`.
    pub pod_monitor: PodMonitorMode,
    /// Labels of the PodMonitor, by which a Prometheus selects it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Whether the operator acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Reconciliation {
    /// It does.
    #[default]
    Active,
    /// It only reports; an operation under way stands still and is resumed later.
    Paused,
}
