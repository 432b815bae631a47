//! `ChronicleTopic`: a topic of a cluster as a resource.
#![allow(clippy::duplicated_attributes, reason = "print columns have the same fields")]
#![allow(unreachable_pub, reason = "the schema derive makes public types in private blocks")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ClusterRef;

/// A topic of a ChronicleCluster in the same namespace.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "chronicle.dev",
    version = "v1alpha1",
    kind = "ChronicleTopic",
    plural = "chronicletopics",
    shortname = "cht",
    category = "chronicle",
    namespaced,
    derive = "PartialEq",
    status = "TopicStatus",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name"),
    printcolumn(name = "Topic", type_ = "string", json_path = ".status.topicName"),
    printcolumn(name = "Partitions", type_ = "integer", json_path = ".status.partitions"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.clusterRef == oldSelf.clusterRef").message("clusterRef: cannot be changed"),
    validation = Rule::new("has(self.topicName) == has(oldSelf.topicName) \
        && (!has(self.topicName) || self.topicName == oldSelf.topicName)").message("topicName: cannot be changed"),
    validation = Rule::new("self.partitions >= oldSelf.partitions").message("partitions: can only grow"),
    validation = Rule::new("has(self.replicationFactor) == has(oldSelf.replicationFactor) \
        && (!has(self.replicationFactor) || self.replicationFactor == oldSelf.replicationFactor)")
        .message("replicationFactor: cannot be changed"),
    validation = Rule::new("!has(self.flushIntervalMs) || self.durability == 'Memory'")
        .message("flushIntervalMs: needs durability Memory")
)]
pub struct ChronicleTopicSpec {
    /// Cluster that the topic is in. It cannot be changed.
    pub cluster_ref: ClusterRef,
    /// Name of the topic: 1 to 249 characters of a-z A-Z 0-9 . _ -. It cannot be changed. Default: the name of this resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249), regex(pattern = r"^[a-zA-Z0-9._-]+$"))]
    pub topic_name: Option<String>,
    /// Partitions, 1 to 10000. They can only grow. Default: 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10_000))]
    pub partitions: i32,
    /// Replicas of each partition, 1 to 7. It cannot be changed. Default: what the cluster's configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 7))]
    pub replication_factor: Option<i32>,
    /// How long records are kept. Default: for ever.
    #[serde(default)]
    pub retention: TopicRetention,
    /// A segment is full at this many bytes, 65536 or more. Default: 128 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 65_536))]
    pub segment_bytes: Option<i64>,
    /// Largest stored batch of one request, in bytes. Default: what the node takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_message_bytes: Option<i32>,
    /// What an acknowledged append is good for. Default: `Fsync`.
    #[serde(default)]
    pub durability: Durability,
    /// With durability `Memory`: flush at least this often, in milliseconds. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 60_000))]
    pub flush_interval_ms: Option<i32>,
    /// Who owns the topic. Default: `Manage`.
    #[serde(default)]
    pub management_policy: ManagementPolicy,
    /// What becomes of the topic and its records when this resource is deleted. Default: `Retain`.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

fn one() -> i32 {
    1
}

/// How long records are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicRetention {
    /// Segments whose newest record is older than this many milliseconds are deleted. -1: kept. Default: -1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1))]
    pub ms: Option<i64>,
    /// The oldest segments of a partition are deleted while it is larger than this many bytes. -1: kept. Default: -1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1))]
    pub bytes: Option<i64>,
}

/// What an acknowledged append is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Durability {
    /// On disk on a majority of replicas.
    #[default]
    Fsync,
    /// In memory on a majority. A power failure may take the last ones.
    Memory,
}

/// Who owns what a resource is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ManagementPolicy {
    /// This resource: what it is about is made, and one that somebody else made is refused.
    #[default]
    Manage,
    /// This resource, also when somebody else made it.
    Adopt,
    /// Somebody else: it is only reported.
    Observe,
}

/// What becomes of what a resource is about when the resource is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// It stays.
    #[default]
    Retain,
    /// It is deleted. Nothing is deleted under the management policy `Observe`.
    Delete,
}

/// State of a ChronicleTopic.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicStatus {
    /// Generation of the spec that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready: the topic is as the spec says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Name of the topic in the cluster. Set before the topic is made: from then on it is this resource's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic_name: Option<String>,
    /// UUID of the topic. A topic that was deleted and made again has another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<String>,
    /// Whether the topic is this resource's: it made it, is about to, or took it over.
    pub owned: bool,
    /// Partitions that there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partitions: Option<i32>,
    /// Replicas of each partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_factor: Option<i32>,
}
