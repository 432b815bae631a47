//! Renders the Kubernetes objects of a cluster from its spec. Pure: no client, no clock.
//!
//! [`validate`] turns the resource into a [`Cluster`], the only input of the builders. [`build`] renders the [`RenderedObjects`].
//!
//! Invariants:
//! - The same cluster renders to the same bytes in every version of the operator: a pod template changes only with the spec. A test
//!   compares with `tests/pod-template.json`.
//! - Every object has the labels of [`Cluster::labels`], and all but PersistentVolumeClaims have an owner reference to the cluster.
//! - The annotation [`REVISION`] is a hash of the pod template. A pod is up to date if it has the hash of the current template.
//!
//! Neighbours: `controller/apply.rs` applies the objects, `plan/` decides when pods are restarted.

mod certificates;
mod config;
mod disruption_budget;
mod network_policy;
mod pod_monitor;
mod services;
mod stateful_set;
mod validate;

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::api::{DynamicObject, TypeMeta};
use serde::Serialize;

pub(crate) use certificates::{DURATION, RENEW_BEFORE, issuer_ref, trusts};
pub use certificates::{TrustInput, issuer_name, trust_bundle};
pub use config::{LIVE_FIELDS, config_files, config_hash};
pub use stateful_set::{claim_name, ordinal_of, pod_name};
pub use validate::{InvalidSpec, validate};

use crate::api::ChronicleClusterSpec;

/// Port of gRPC, HTTP and peers.
pub const DATA_PORT: i32 = 7400;
/// Port of health and metrics.
pub const OPS_PORT: i32 = 9644;
/// Principal of the operator, a super user of every cluster.
pub const OPERATOR_PRINCIPAL: &str = "chronicle-operator";
/// Label with the name of the cluster, on all of its objects.
pub const CLUSTER_LABEL: &str = "chronicle.dev/cluster";
/// Annotation of pods: hash of the template that the pod was created from.
pub const REVISION: &str = "chronicle.dev/revision";
/// Annotation of pods: hash of the configuration file at the creation of the pod, without its live fields.
pub const CONFIG_HASH: &str = "chronicle.dev/config-hash";
/// Annotation of the PersistentVolumeClaim of a removed node: UUID of the node.
pub const REMOVED_NODE: &str = "chronicle.dev/removed-node";
/// Annotation of a ChronicleCluster that requests a replacement: name of the pod of the lost node.
pub const REPLACE: &str = "chronicle.dev/replace";
/// Number of bootstrap members for nodes of an existing cluster, which must never bootstrap another one: more than there ever are.
const NEVER_BOOTSTRAP: i64 = 99;

/// Settings of the operator that apply to all clusters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// DNS domain of the Kubernetes cluster. Certificates are valid for names with and without it.
    pub cluster_domain: String,
    /// Namespace of the operator. NetworkPolicies admit its pods.
    pub operator_namespace: String,
    /// Seconds after the trust ConfigMap gained a CA until every pod that mounts it has the new content.
    pub trust_settles_seconds: i64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".into(),
            operator_namespace: "chronicle-system".into(),
            trust_settles_seconds: 150,
        }
    }
}

/// Returns the name of the ConfigMap with the configuration file of the nodes.
pub fn config_map_name(cluster: &str) -> String {
    format!("{cluster}-config")
}

/// A cluster with a valid spec.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Name of the resource.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its UID.
    pub uid: String,
    /// The spec.
    pub spec: ChronicleClusterSpec,
    /// Size of each volume, in bytes.
    pub storage_bytes: u64,
    /// Number of initial nodes, which bootstrap the cluster.
    pub initial_nodes: i32,
    /// Whether the cluster has bootstrapped, so that no node may bootstrap another one.
    pub bootstrapped: bool,
}

impl Cluster {
    /// Returns the labels of every object.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.selector();
        labels.insert("app.kubernetes.io/managed-by".into(), "chronicle-operator".into());
        labels.insert(CLUSTER_LABEL.into(), self.name.clone());
        labels
    }

    /// Returns the labels that select the pods. They never change.
    pub fn selector(&self) -> BTreeMap<String, String> {
        [
            ("app.kubernetes.io/name", "chronicle"),
            ("app.kubernetes.io/instance", &self.name),
            ("app.kubernetes.io/component", "node"),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
    }

    /// Returns the selector as text.
    pub fn selector_text(&self) -> String {
        let parts: Vec<String> = self.selector().iter().map(|(key, value)| format!("{key}={value}")).collect();
        parts.join(",")
    }

    fn label_selector(&self) -> LabelSelector {
        LabelSelector { match_labels: Some(self.selector()), ..LabelSelector::default() }
    }

    /// Returns the name of the headless Service, which gives every pod a DNS name.
    pub fn nodes_service(&self) -> String {
        format!("{}-nodes", self.name)
    }

    /// Returns the DNS name of a pod.
    pub fn pod_host(&self, pod: &str) -> String {
        format!("{pod}.{}.{}.svc", self.nodes_service(), self.namespace)
    }

    /// Returns `HOST:PORT` of the data port of a pod.
    pub fn pod_address(&self, pod: &str) -> String {
        format!("{}:{DATA_PORT}", self.pod_host(pod))
    }

    /// Returns the names of the first `pods` pods, each with `HOST:PORT` of its data port.
    pub fn pod_addresses(&self, pods: i32) -> Vec<(String, String)> {
        let names = (0..pods).map(|ordinal| pod_name(&self.name, ordinal));
        names.map(|pod| (pod.clone(), self.pod_address(&pod))).collect()
    }

    /// Returns `HOST:PORT` of the Service for clients.
    pub fn endpoint(&self) -> String {
        format!("{}.{}.svc:{DATA_PORT}", self.name, self.namespace)
    }

    /// Returns whether the data port uses TLS.
    pub fn encrypted(&self) -> bool {
        self.spec.security.tls.mode == crate::api::TlsMode::Enabled
    }

    /// Returns the name of the Secret with the certificate of the nodes.
    pub fn node_secret(&self) -> String {
        match &self.spec.security.tls.secrets {
            Some(given) => given.node.clone(),
            None => format!("{}-node-tls", self.name),
        }
    }

    /// Returns the name of the Secret with the certificate of the operator.
    pub fn operator_secret(&self) -> String {
        match &self.spec.security.tls.secrets {
            Some(given) => given.operator.clone(),
            None => format!("{}-operator-tls", self.name),
        }
    }

    /// Returns the name of the Secret with the dedicated CA of the cluster, if it has one.
    pub fn ca_secret(&self) -> Option<String> {
        let tls = &self.spec.security.tls;
        let own = self.encrypted() && tls.secrets.is_none() && tls.issuer_ref.is_none();
        own.then(|| format!("{}-ca", self.name))
    }

    /// Returns the name of the ConfigMap with the configuration file of the nodes.
    pub fn config_map(&self) -> String {
        config_map_name(&self.name)
    }

    /// Returns the name of the ConfigMap with the trusted CAs.
    pub fn trust_config_map(&self) -> String {
        format!("{}-trust", self.name)
    }

    /// Returns the owner reference of the objects of the cluster.
    pub fn owner(&self) -> OwnerReference {
        OwnerReference {
            api_version: "chronicle.dev/v1alpha1".into(),
            kind: "ChronicleCluster".into(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    fn metadata(&self, name: impl Into<String>) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.into()),
            namespace: Some(self.namespace.clone()),
            labels: Some(self.labels()),
            owner_references: Some(vec![self.owner()]),
            ..ObjectMeta::default()
        }
    }
}

/// Which optional APIs the API server serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OptionalApis {
    /// `cert-manager.io/v1`.
    pub cert_manager: bool,
    /// `monitoring.coreos.com/v1` PodMonitor.
    pub pod_monitor: bool,
}

/// Kinds of the objects of a cluster, in the order in which they are applied, as (group, version, kind, plural).
pub const KINDS: [(&str, &str, &str, &str); 9] = [
    ("", "v1", "ServiceAccount", "serviceaccounts"),
    ("", "v1", "Service", "services"),
    ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
    ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    ("cert-manager.io", "v1", "Issuer", "issuers"),
    ("cert-manager.io", "v1", "Certificate", "certificates"),
    ("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors"),
    ("", "v1", "ConfigMap", "configmaps"),
    ("apps", "v1", "StatefulSet", "statefulsets"),
];

/// The rendered objects of a cluster.
#[derive(Debug, Clone)]
pub struct RenderedObjects {
    /// All objects but the StatefulSet, in the order in which they are applied.
    pub objects: Vec<DynamicObject>,
    /// The StatefulSet.
    pub stateful_set: k8s_openapi::api::apps::v1::StatefulSet,
    /// Hash of the pod template.
    pub revision: String,
}

/// Renders the objects of a cluster. `pods` is the number of replicas of the StatefulSet. `trust` is the PEM text of the trusted CAs;
/// without it there is no trust ConfigMap.
pub fn build(
    cluster: &Cluster,
    settings: &Settings,
    apis: OptionalApis,
    pods: i32,
    trust: Option<&str>,
) -> RenderedObjects {
    let mut objects = vec![dynamic(&services::service_account(cluster))];
    objects.push(dynamic(&services::nodes(cluster)));
    objects.push(dynamic(&services::clients(cluster)));
    objects.extend(network_policy::network_policy(cluster, settings).iter().map(dynamic));
    objects.push(dynamic(&disruption_budget::disruption_budget(cluster)));
    if apis.cert_manager {
        objects.extend(certificates::objects(cluster, settings));
    }
    if apis.pod_monitor {
        objects.extend(pod_monitor::pod_monitor(cluster));
    }
    objects.push(dynamic(&config::config_map(cluster)));
    if cluster.encrypted() {
        objects.extend(trust.map(|trust| dynamic(&certificates::trust_map(cluster, trust))));
    }
    let (stateful_set, revision) = stateful_set::stateful_set(cluster, pods);
    RenderedObjects { objects, stateful_set, revision }
}

/// Converts an object of a known kind to a dynamic one.
pub fn dynamic<K>(object: &K) -> DynamicObject
where
    K: k8s_openapi::Resource + Serialize,
{
    let mut value = serde_json::to_value(object).unwrap_or_default();
    value["apiVersion"] = K::API_VERSION.into();
    value["kind"] = K::KIND.into();
    from_value(value)
}

/// Converts JSON to a dynamic object.
pub(crate) fn from_value(value: serde_json::Value) -> DynamicObject {
    let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let types = TypeMeta { api_version: text("apiVersion"), kind: text("kind") };
    let metadata = serde_json::from_value(value["metadata"].clone()).unwrap_or_default();
    let mut data = value;
    if let Some(fields) = data.as_object_mut() {
        for field in ["apiVersion", "kind", "metadata"] {
            fields.remove(field);
        }
    }
    DynamicObject { types: Some(types), metadata, data }
}

/// Returns the first 16 hexadecimal digits of the BLAKE3 hash.
pub(crate) fn short_hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_owned()
}
