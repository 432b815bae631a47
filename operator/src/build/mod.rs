//! From a cluster to the objects that it consists of. Pure: no client, no clock.
//!
//! [`validate`] turns the resource into a [`Cluster`], the only thing that builders see. [`build`] makes the [`Desired`] objects.
//!
//! Invariants:
//! - The same cluster gives the same bytes, whatever version of the operator asks: a pod template changes only with the spec.
//!   `tests/pod-template.json` holds it, and a test compares.
//! - Every object carries the labels of [`Cluster::labels`], by which it is found again, and all but data carry an owner
//!   reference to the cluster.
//! - What a pod template holds is hashed into its annotation [`REVISION`]: a pod is up to date when it has the same.
//!
//! Neighbours: `controller/apply.rs` brings the objects to the API server, `plan/` decides when pods follow.

mod certificates;
mod config;
mod network;
mod policy;
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
pub use validate::{Invalid, validate};

use crate::api::ChronicleClusterSpec;

/// Port of gRPC, HTTP and peers.
pub const DATA_PORT: i32 = 7400;
/// Port of health and metrics.
pub const OPS_PORT: i32 = 9644;
/// Principal of the operator; a super user of every cluster.
pub const OPERATOR_PRINCIPAL: &str = "chronicle-operator";
/// Label with the name of the cluster, on every object of it.
pub const CLUSTER_LABEL: &str = "chronicle.dev/cluster";
/// Annotation of pods: hash of the template that they were made from.
pub const REVISION: &str = "chronicle.dev/revision";
/// Annotation of pods: hash of what stood in the configuration file that they were started with, without what nodes take up while they
/// run.
pub const CONFIG_HASH: &str = "chronicle.dev/config-hash";
/// Annotation of a claim whose node was removed from its cluster: UUID of the node.
pub const REMOVED_NODE: &str = "chronicle.dev/removed-node";
/// Annotation of a cluster: name of the pod whose node is to be replaced by an empty one.
pub const REPLACE: &str = "chronicle.dev/replace";
/// Configuration of a node that belongs to an existing cluster never founds one: so many nodes are not started.
const FOUND_NEVER: i64 = 99;

/// Where a cluster's pods talk, in words of Kubernetes: what is the same for every cluster of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Domain of the Kubernetes cluster; certificates are valid for names with and without it.
    pub cluster_domain: String,
    /// Namespace that the operator's own pods are in: they reach every cluster.
    pub operator_namespace: String,
    /// So many seconds after a new CA was added to what is trusted, every pod that has that mounted knows it: nodes and clients.
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

/// Name of the ConfigMap with the configuration file of a cluster's nodes.
pub fn config_map_name(cluster: &str) -> String {
    format!("{cluster}-config")
}

/// A cluster whose spec makes sense.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Name of the resource.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its UID.
    pub uid: String,
    /// What is asked for.
    pub spec: ChronicleClusterSpec,
    /// Size of each volume, in bytes.
    pub storage_bytes: u64,
    /// Nodes that found the cluster.
    pub founders: i32,
    /// The cluster is known to exist, so that no node may found another one.
    pub founded: bool,
}

impl Cluster {
    /// Labels of every object.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.selector();
        labels.insert("app.kubernetes.io/managed-by".into(), "chronicle-operator".into());
        labels.insert(CLUSTER_LABEL.into(), self.name.clone());
        labels
    }

    /// Labels by which pods are selected; they never change.
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

    /// The selector as text.
    pub fn selector_text(&self) -> String {
        let parts: Vec<String> = self.selector().iter().map(|(key, value)| format!("{key}={value}")).collect();
        parts.join(",")
    }

    fn label_selector(&self) -> LabelSelector {
        LabelSelector { match_labels: Some(self.selector()), ..LabelSelector::default() }
    }

    /// Name of the Service without an address, under which every pod has a name.
    pub fn nodes_service(&self) -> String {
        format!("{}-nodes", self.name)
    }

    /// Host of a pod.
    pub fn pod_host(&self, pod: &str) -> String {
        format!("{pod}.{}.{}.svc", self.nodes_service(), self.namespace)
    }

    /// `HOST:PORT` of a pod's data port.
    pub fn pod_address(&self, pod: &str) -> String {
        format!("{}:{DATA_PORT}", self.pod_host(pod))
    }

    /// `HOST:PORT` of the Service for clients.
    pub fn endpoint(&self) -> String {
        format!("{}.{}.svc:{DATA_PORT}", self.name, self.namespace)
    }

    /// Whether the data port is encrypted.
    pub fn encrypted(&self) -> bool {
        self.spec.security.tls.mode == crate::api::TlsMode::Enabled
    }

    /// Secret with the nodes' certificate.
    pub fn node_secret(&self) -> String {
        match &self.spec.security.tls.secrets {
            Some(given) => given.node.clone(),
            None => format!("{}-node-tls", self.name),
        }
    }

    /// Secret with the operator's certificate.
    pub fn operator_secret(&self) -> String {
        match &self.spec.security.tls.secrets {
            Some(given) => given.operator.clone(),
            None => format!("{}-operator-tls", self.name),
        }
    }

    /// Secret of the cluster's own certificate authority, when it has one.
    pub fn ca_secret(&self) -> Option<String> {
        let tls = &self.spec.security.tls;
        let own = self.encrypted() && tls.secrets.is_none() && tls.issuer_ref.is_none();
        own.then(|| format!("{}-ca", self.name))
    }

    /// ConfigMap with the configuration file of the nodes.
    pub fn config_map(&self) -> String {
        config_map_name(&self.name)
    }

    /// ConfigMap with the certificates of the CAs that nodes trust.
    pub fn trust_config_map(&self) -> String {
        format!("{}-trust", self.name)
    }

    /// The resource, as the owner of its objects.
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

/// What the Kubernetes cluster knows besides its own kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Available {
    /// `cert-manager.io/v1`.
    pub cert_manager: bool,
    /// `monitoring.coreos.com/v1` PodMonitor.
    pub pod_monitor: bool,
}

/// The kinds of objects that a cluster may own, in the order in which they are applied, as (group, version, kind, plural).
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

/// What a cluster should consist of.
#[derive(Debug, Clone)]
pub struct Desired {
    /// All but the StatefulSet, in the order in which they are applied.
    pub objects: Vec<DynamicObject>,
    /// The StatefulSet, with as many pods as asked for.
    pub stateful_set: k8s_openapi::api::apps::v1::StatefulSet,
    /// Hash of its pod template.
    pub revision: String,
}

/// Makes the objects of a cluster. `pods`: how many the StatefulSet runs. `trust`: PEM text of the CAs that nodes trust; without
/// it the ConfigMap that holds it is left out.
pub fn build(cluster: &Cluster, settings: &Settings, available: Available, pods: i32, trust: Option<&str>) -> Desired {
    let mut objects = vec![dynamic(&services::service_account(cluster))];
    objects.push(dynamic(&services::nodes(cluster)));
    objects.push(dynamic(&services::clients(cluster)));
    objects.extend(network::network_policy(cluster, settings).iter().map(dynamic));
    objects.push(dynamic(&policy::disruption_budget(cluster)));
    if available.cert_manager {
        objects.extend(certificates::objects(cluster, settings));
    }
    if available.pod_monitor {
        objects.extend(policy::pod_monitor(cluster));
    }
    objects.push(dynamic(&config::config_map(cluster)));
    if cluster.encrypted() {
        objects.extend(trust.map(|trust| dynamic(&certificates::trust_map(cluster, trust))));
    }
    let (stateful_set, revision) = stateful_set::stateful_set(cluster, pods);
    Desired { objects, stateful_set, revision }
}

/// An object of a known kind as one of any kind.
pub fn dynamic<K>(object: &K) -> DynamicObject
where
    K: k8s_openapi::Resource + Serialize,
{
    let mut value = serde_json::to_value(object).unwrap_or_default();
    value["apiVersion"] = K::API_VERSION.into();
    value["kind"] = K::KIND.into();
    from_value(value)
}

/// An object from its JSON.
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

/// The first 16 hexadecimal digits of a hash.
pub(crate) fn short_hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_owned()
}
