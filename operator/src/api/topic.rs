//! The `ChronicleTopic` resource: one topic of a cluster.
//!
//! Doc comments of fields are what `kubectl explain` prints. `controller/topic.rs` reconciles it.
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
    /// Cluster of the topic. It cannot be changed.
    pub cluster_ref: ClusterRef,
    /// Name of the topic: 1 to 249 characters of a-z A-Z 0-9 . _ -. It cannot be changed. Default: the name of this resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249), regex(pattern = r"^[a-zA-Z0-9._-]+$"))]
    pub topic_name: Option<String>,
    /// Number of partitions, 1 to 10000. It can only grow. Default: 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10_000))]
    pub partitions: i32,
    /// Number of replicas of each partition, 1 to 7. It cannot be changed. Default: `cluster.replication-factor` of the nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 7))]
    pub replication_factor: Option<i32>,
    /// How long records are kept. Default: forever.
    #[serde(default)]
    pub retention: TopicRetention,
    /// Size at which a segment is full, in bytes, at least 65536. Default: 128 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 65_536))]
    pub segment_bytes: Option<i64>,
    /// Maximum size of a stored batch, in bytes. Default: the default of the nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_message_bytes: Option<i32>,
    /// What an acknowledgement of an append guarantees. Default: `Fsync`.
    #[serde(default)]
    pub durability: Durability,
    /// With durability `Memory`: longest time between flushes, in milliseconds, 1 to 60000. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 60_000))]
    pub flush_interval_ms: Option<i32>,
    /// Whether this resource manages the topic. Default: `Manage`.
    #[serde(default)]
    pub management_policy: ManagementPolicy,
    /// What happens to the topic and its records when this resource is deleted. Default: `Retain`.
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
    /// Age in milliseconds of its newest record after which a segment is deleted. -1: no limit. Default: -1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1))]
    pub ms: Option<i64>,
    /// Size of a partition in bytes above which its oldest segments are deleted. -1: no limit. Default: -1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1))]
    pub bytes: Option<i64>,
}

/// What an acknowledgement of an append guarantees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Durability {
    /// The records are on disk on a majority of the replicas.
    #[default]
    Fsync,
    /// The records are in memory on a majority of the replicas. A power failure can lose the newest ones.
    Memory,
}

/// Whether a resource manages the object in the cluster that it describes (a topic, or the rules and quotas of a principal).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ManagementPolicy {
    /// The resource creates and manages the object. If the object exists already and is not its own, the resource reports an error.
    #[default]
    Manage,
    /// The resource manages the object, also if it exists already.
    Adopt,
    /// The object is managed elsewhere. The resource only reports on it.
    Observe,
}

/// What happens to the managed object when the resource is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// The object is kept.
    #[default]
    Retain,
    /// The object is deleted, except with the management policy `Observe`.
    Delete,
}

/// Observed state of a ChronicleTopic.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Condition Ready: the topic matches the spec.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Name of the topic in the cluster. Set before the topic is created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic_name: Option<String>,
    /// UUID of the topic. A topic that is deleted and recreated has another UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<String>,
    /// Whether this resource manages the topic. Set before the topic is created or adopted.
    pub owned: bool,
    /// Number of partitions of the topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partitions: Option<i32>,
    /// Number of replicas of each partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_factor: Option<i32>,
}
