//! Requests and answers of consumer groups: what every listener speaks, free of any protocol.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

/// The internal topic that remembers groups.
pub const GROUPS_TOPIC: &str = "__groups";
/// Its number of partitions, which never changes: groups find theirs by it.
pub(super) const GROUPS_PARTITIONS: i32 = 16;

/// Partitions by topic name.
pub type Partitions = BTreeMap<String, Vec<i32>>;

/// A member joins, or says that it is still there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Name of the group.
    pub group: String,
    /// Empty to join.
    pub member_id: String,
    /// From the last answer; 0 to join.
    pub generation: i32,
    /// Name for people, at most 256 bytes.
    pub client_name: String,
    /// Topics to read.
    pub topics: Vec<String>,
    /// Milliseconds; 0: 30000.
    pub session_timeout_ms: u32,
    /// What the member consumes at the moment.
    pub owned: Partitions,
}

/// What a member should know and do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Id of the member.
    pub member_id: String,
    /// What commits are fenced with.
    pub generation: i32,
    /// What the member should own; it gives up the rest.
    pub assigned: Partitions,
    /// When to come back.
    pub interval: Duration,
}

/// Offsets to remember.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commit {
    /// Name of the group.
    pub group: String,
    /// Empty: from outside, for a group without members.
    pub member_id: String,
    /// The member's generation.
    pub generation: i32,
    /// Which.
    pub offsets: Vec<CommittedOffset>,
}

/// The place that a group has reached in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedOffset {
    /// Name of the topic.
    pub topic: String,
    /// 0-based.
    pub partition: i32,
    /// The next offset to read.
    pub offset: i64,
    /// Kept with it, at most 4096 bytes.
    pub metadata: String,
}

/// Whether a group is at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupState {
    /// No members.
    Empty,
    /// Every partition is with the member that should have it.
    Stable,
    /// Partitions are on their way from member to member, or members are waited for.
    Rebalancing,
}

impl GroupState {
    /// As the API says it.
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
    /// Whether it is at rest.
    pub state: GroupState,
    /// How many members it has.
    pub members: usize,
}

/// A group in detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupDescription {
    /// Its name.
    pub group: String,
    /// Whether it is at rest.
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
    /// What it owns.
    pub assigned: Partitions,
}

/// How far a group is behind in a partition.
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
    /// Records that are still there and were not consumed; -1: not known.
    pub lag_records: i64,
    /// Age of the oldest of them in milliseconds; 0: there is none, -1: not known.
    pub lag_ms: i64,
    /// Who owns it; empty: nobody.
    pub member_id: String,
}

/// Where a reset goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetTo {
    /// This offset, moved to the nearest that is there.
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
    /// Where to.
    pub to: ResetTo,
    /// Set nothing.
    pub dry_run: bool,
}
