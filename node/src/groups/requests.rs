//! Requests and responses of consumer groups, independent of any protocol.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

/// The internal topic that stores groups.
pub const GROUPS_TOPIC: &str = "__groups";
/// Its number of partitions. Must never change: it determines the partition of each group.
pub(super) const GROUPS_PARTITIONS: i32 = 16;

/// Partitions by topic name.
pub type Partitions = BTreeMap<String, Vec<i32>>;

/// Joins a group, or renews the session of a member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Name of the group.
    pub group: String,
    /// Empty to join.
    pub member_id: String,
    /// From the last response; 0 to join.
    pub generation: i32,
    /// Name for people, at most 256 bytes.
    pub client_name: String,
    /// Topics to read.
    pub topics: Vec<String>,
    /// Session timeout in milliseconds, 1000 to 600000; 0: 30000.
    pub session_timeout_ms: u32,
    /// Partitions that the member consumes now.
    pub owned: Partitions,
}

/// Response to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatResponse {
    /// Id of the member.
    pub member_id: String,
    /// The group's generation, which fences commits.
    pub generation: i32,
    /// Partitions that the member should own; it must release all others.
    pub assigned: Partitions,
    /// Wait until the next heartbeat.
    pub interval: Duration,
}

/// Offsets to store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commit {
    /// Name of the group.
    pub group: String,
    /// Empty: not from a member, for a group without members.
    pub member_id: String,
    /// The member's generation.
    pub generation: i32,
    /// The offsets.
    pub offsets: Vec<CommittedOffset>,
}

/// The position of a group in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedOffset {
    /// Name of the topic.
    pub topic: String,
    /// 0-based.
    pub partition: i32,
    /// The next offset to read.
    pub offset: i64,
    /// Stored with the offset, at most 4096 bytes.
    pub metadata: String,
}

/// State of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupState {
    /// No members.
    Empty,
    /// Every partition is owned by its target member.
    Stable,
    /// Partitions are being reassigned, or the coordinator waits for heartbeats of members.
    Rebalancing,
}

impl GroupState {
    /// The text form in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Stable => "stable",
            Self::Rebalancing => "rebalancing",
        }
    }
}

/// A group in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSummary {
    /// Its name.
    pub group: String,
    /// Its state.
    pub state: GroupState,
    /// How many members it has.
    pub members: usize,
}

/// A group in detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupDescription {
    /// Its name.
    pub group: String,
    /// Its state.
    pub state: GroupState,
    /// Counts changes of members and assignment.
    pub generation: i32,
    /// The node that coordinates it.
    pub coordinator: Uuid,
    /// By id.
    pub members: Vec<MemberDescription>,
    /// Partitions that it reads or has offsets of.
    pub partitions: Vec<PartitionLag>,
}

/// A member in detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberDescription {
    /// Its id.
    pub member_id: String,
    /// Name for people.
    pub client_name: String,
    /// Topics that it reads.
    pub topics: Vec<String>,
    /// Partitions that it owns.
    pub assigned: Partitions,
}

/// Lag of a group in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionLag {
    /// Name of the topic.
    pub topic: String,
    /// 0-based.
    pub partition: i32,
    /// Next offset to read; -1: nothing committed.
    pub offset: i64,
    /// Exclusive end; -1: not known.
    pub end: i64,
    /// Retained records that were not consumed; -1: not known.
    pub lag_records: i64,
    /// Age of the oldest of them in milliseconds; 0: there is none, -1: not known.
    pub lag_ms: i64,
    /// The member that owns the partition; empty: none.
    pub member_id: String,
}

/// Target of a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetTo {
    /// This offset, clamped to the retained range.
    Offset(i64),
    /// The first record at or after this time (milliseconds since the Unix epoch), or the end.
    Timestamp(i64),
    /// The first record.
    Earliest,
    /// The end.
    Latest,
}

/// Sets offsets of a group without members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reset {
    /// Name of the group.
    pub group: String,
    /// Name of the topic.
    pub topic: String,
    /// Empty: all.
    pub partitions: Vec<i32>,
    /// The target.
    pub to: ResetTo,
    /// Only return the offsets; change nothing.
    pub dry_run: bool,
}
