//! Topics: names, settings, and requests to create or change one.

use uuid::Uuid;

use super::{ApiError, Reason};

/// Longest topic name, in characters.
const TOPIC_NAME_MAX: usize = 249;

/// Returns whether this is a valid topic name: 1 to 249 characters of `a-z A-Z 0-9 . _ -`, neither `.` nor `..` (Kafka's rule).
pub fn is_topic_name(name: &str) -> bool {
    (1..=TOPIC_NAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// The error for a topic that does not exist.
pub(crate) fn unknown_topic(name: &str) -> ApiError {
    ApiError::new(Reason::UnknownTopic, format!("topic {name:?}: does not exist"))
}

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TopicPartition {
    /// Topic name; never empty (listeners fill in `default`).
    pub topic: String,
    /// 0-based.
    pub partition: i32,
}

/// A topic in the cluster's metadata.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Identity; a topic that is deleted and created again has a new one.
    pub id: Uuid,
    /// Number of partitions.
    pub partitions: i32,
    /// Replicas of each partition.
    pub replication_factor: i32,
    /// Effective settings.
    pub settings: TopicSettings,
    /// Milliseconds since the Unix epoch.
    pub created_ms: i64,
}

/// What the acknowledgement of an append guarantees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TopicDurability {
    /// `fdatasync` on a majority before the acknowledgement.
    #[default]
    Fsync,
    /// In memory on a majority before the acknowledgement, flushed within the topic's `flush_interval_ms`.
    Memory,
}

/// Effective settings of a topic.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopicSettings {
    /// Delete oldest segments while a partition is larger than this many bytes. -1: keep all. Default: -1.
    pub retention_bytes: i64,
    /// Delete segments whose newest record is older than this many milliseconds. -1: keep all. Default: -1.
    pub retention_ms: i64,
    /// Roll a segment past this many bytes. Default: 134217728 (128 MiB).
    pub segment_bytes: i64,
    /// Largest stored batch in bytes. Default: 1049600 (1 MiB and 1 KiB of framing).
    pub max_message_bytes: i32,
    /// Default: fsync.
    pub durability: TopicDurability,
    /// With `memory` durability, flush at least this often, in milliseconds. Default: 100.
    pub flush_interval_ms: i32,
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self {
            retention_bytes: -1,
            retention_ms: -1,
            segment_bytes: 128 << 20,
            max_message_bytes: (1 << 20) + 1024,
            durability: TopicDurability::Fsync,
            flush_interval_ms: 100,
        }
    }
}

/// Changes to settings; `None` keeps a value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettingsChange {
    /// See [`TopicSettings::retention_bytes`].
    pub retention_bytes: Option<i64>,
    /// See [`TopicSettings::retention_ms`].
    pub retention_ms: Option<i64>,
    /// See [`TopicSettings::segment_bytes`].
    pub segment_bytes: Option<i64>,
    /// See [`TopicSettings::max_message_bytes`].
    pub max_message_bytes: Option<i32>,
    /// See [`TopicSettings::durability`].
    pub durability: Option<TopicDurability>,
    /// See [`TopicSettings::flush_interval_ms`].
    pub flush_interval_ms: Option<i32>,
}

/// A topic to create.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewTopic {
    /// 1 to 249 characters of `a-z A-Z 0-9 . _ -`, neither `.` nor `..`.
    pub name: String,
    /// 1 to 10000; 0 means 1.
    pub partitions: i32,
    /// 0 means the cluster's default.
    pub replication_factor: i32,
    /// Settings that differ from the defaults.
    pub settings: SettingsChange,
    /// Succeed when the topic exists.
    pub if_not_exists: bool,
}
