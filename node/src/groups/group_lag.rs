//! Lag of consumer groups, for metrics: measured periodically, by the node that coordinates them.
//!
//! Invariants:
//! - Measuring does not keep partitions open: the ends of dormant partitions and the offsets of their groups cannot
//!   change, and are stored. Only a partition that was never read since the node started is opened, once. For a partition without a
//!   replica on this node the leader is asked, with exponential back-off while nothing changes.
//! - A round makes at most [`ASKS_MAX`] calls of each kind, so that it ends; the next rounds handle the rest.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::Instant;

use super::backend::now_ms;
use super::offsets::valid_offsets;
use super::{GroupTable, Groups, NodeGroups};
use crate::config::Live;
use crate::model::Topic;
use crate::partition::Peek;

/// Maximum number of requests for a partition's end, and of reads of a record's time, in one round.
const ASKS_MAX: usize = 1000;
/// Concurrent calls.
const AT_ONCE: usize = 16;
/// Longest wait before the end of an unchanged partition on another node is requested again.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(600);

/// Lag of a group in one topic.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupLag {
    /// The group; `other` for those beyond the limit.
    pub group: String,
    /// The topic; `other` likewise.
    pub topic: String,
    /// Records that it has not consumed, the sum over all partitions.
    pub records: u64,
    /// Age of the oldest of them, in milliseconds.
    pub age_ms: u64,
}

type PartitionName = (String, i32);
type GroupPartition = (String, String, i32);

/// A committed offset and, while the group is behind, when the record there was written.
#[derive(Debug, Clone, Copy)]
struct CommittedPosition {
    offset: i64,
    timestamp_ms: Option<i64>,
}

/// The offsets of a partition, as last read.
#[derive(Debug, Clone, Copy)]
struct PartitionEnd {
    earliest: i64,
    next: i64,
    /// On another node: when to request it again, and the wait after that.
    ask_at: Instant,
    wait: Duration,
}

/// State between rounds.
#[derive(Default)]
struct LagTracker {
    /// Offsets by partition of the internal topic.
    groups: HashMap<i32, Vec<(GroupPartition, i64)>>,
    ends: HashMap<PartitionName, PartitionEnd>,
    committed: HashMap<GroupPartition, CommittedPosition>,
}

impl Groups {
    /// The lags of the groups that this node coordinates, as last measured: at most `max` pairs of group and topic, the first
    /// by name; the sum of the others as `other`.
    pub fn lags(&self, max: usize) -> Vec<GroupLag> {
        bounded(&self.inner.lags.lock(), max)
    }
}

/// The first `max`, and the sum of the others.
fn bounded(all: &[GroupLag], max: usize) -> Vec<GroupLag> {
    let (apart, rest) = all.split_at(all.len().min(max));
    let mut lags = apart.to_vec();
    if !rest.is_empty() {
        lags.push(GroupLag {
            group: "other".into(),
            topic: "other".into(),
            records: rest.iter().map(|lag| lag.records).sum(),
            age_ms: rest.iter().map(|lag| lag.age_ms).max().unwrap_or(0),
        });
    }
    lags
}

/// Measures at the configured interval, until the node stops.
pub(super) async fn measure(inner: Arc<NodeGroups>, config: Live) {
    let mut tracker = LagTracker::default();
    loop {
        let every = Duration::from_millis(config.now().metrics.lag_interval_ms);
        // A round has no side effects: it may be cancelled at any point.
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = async {
                match every {
                    Duration::ZERO => inner.lags.lock().clear(),
                    _ => tracker.round(&inner, every).await,
                }
                config.pause(|config| config.metrics.lag_interval_ms).await;
            } => {}
        }
    }
}

/// The offsets of all groups of a table whose topics still exist.
fn offsets_of(inner: &NodeGroups, table: &GroupTable) -> Vec<(GroupPartition, i64)> {
    let mut offsets = Vec::new();
    for (name, record) in table.iter() {
        let valid = valid_offsets(&inner.backend, record).into_iter();
        offsets.extend(valid.map(|((topic, partition), one)| ((name.clone(), topic, partition), one.offset)));
    }
    offsets
}

impl LagTracker {
    async fn round(&mut self, inner: &NodeGroups, every: Duration) {
        let Some(topic) = inner.backend.groups_topic() else { return };
        self.read_groups(inner, &topic).await;
        let positions: Vec<(GroupPartition, i64)> = self.groups.values().flatten().cloned().collect();
        let known: HashSet<&GroupPartition> = positions.iter().map(|(key, _)| key).collect();
        self.committed.retain(|key, _| known.contains(key));
        self.read_ends(inner, &positions, every).await;
        self.read_times(inner, &positions).await;
        *inner.lags.lock() = self.lags(&positions, now_ms());
    }

    /// Reads the offsets of the groups that this node coordinates.
    async fn read_groups(&mut self, inner: &NodeGroups, topic: &Topic) {
        for number in 0..topic.partitions {
            if !inner.backend.coordinates(topic, number) {
                self.groups.remove(&number);
                continue;
            }
            let offsets = |table: &GroupTable| offsets_of(inner, table);
            let seen = match inner.backend.read_if_open(topic, number, offsets) {
                Some(seen) => seen,
                None if self.groups.contains_key(&number) => continue,
                None => match inner.backend.lead(topic, number).await.and_then(|lead| lead.read(offsets)) {
                    Ok(seen) => seen,
                    Err(_) => continue,
                },
            };
            self.groups.insert(number, seen);
        }
    }

    /// Reads the ends of the partitions that groups have offsets of.
    async fn read_ends(&mut self, inner: &NodeGroups, positions: &[(GroupPartition, i64)], every: Duration) {
        let mut wanted: Vec<PartitionName> =
            positions.iter().map(|((_, topic, partition), _)| (topic.clone(), *partition)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        self.ends.retain(|name, _| wanted.binary_search(name).is_ok());
        let now = Instant::now();
        let mut ask = Vec::new();
        for name in wanted {
            let Some(topic) = inner.backend.topic(&name.0) else { continue };
            match (inner.backend.peek(&topic, name.1), self.ends.get(&name)) {
                (Peek::Open { earliest, next }, _) => {
                    self.ends.insert(name, PartitionEnd { earliest, next, ask_at: now, wait: every });
                }
                (Peek::Dormant, Some(_)) => {}
                (Peek::Elsewhere, Some(end)) if end.ask_at > now => {}
                (Peek::Dormant | Peek::Elsewhere, _) => ask.push(name),
            }
        }
        ask.truncate(ASKS_MAX);
        let asked = futures::stream::iter(ask).map(|name| async move {
            let offsets = inner.backend.offsets(&name.0, name.1, None).await;
            (name, offsets)
        });
        let answers: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
        for (name, offsets) in answers {
            let before = self.ends.get(&name);
            let Ok(offsets) = offsets else { continue };
            let same = before.is_some_and(|end| end.next == offsets.next);
            let wait = before.filter(|_| same).map_or(every, |end| (end.wait * 2).min(ASK_AGAIN_MAX));
            let end = PartitionEnd { earliest: offsets.earliest, next: offsets.next, ask_at: now + wait, wait };
            self.ends.insert(name, end);
        }
    }

    /// Reads the timestamps of the records that groups read next.
    async fn read_times(&mut self, inner: &NodeGroups, positions: &[(GroupPartition, i64)]) {
        let mut read = Vec::new();
        for (key, offset) in positions {
            let Some(end) = self.ends.get(&(key.1.clone(), key.2)) else { continue };
            let offset = (*offset).max(end.earliest);
            let known = self.committed.entry(key.clone()).or_insert(CommittedPosition { offset, timestamp_ms: None });
            if known.offset != offset {
                // Keeps the old timestamp until the new one is read: slightly too old rather than unknown.
                known.offset = offset;
                read.push((key.clone(), offset, end.next));
            } else if known.timestamp_ms.is_none() {
                read.push((key.clone(), offset, end.next));
            }
        }
        read.retain(|(_, offset, next)| offset < next);
        read.truncate(ASKS_MAX);
        let times = futures::stream::iter(read).map(|(key, offset, _)| async move {
            let time = inner.backend.timestamp(&key.1, key.2, offset).await;
            (key, time)
        });
        let times: Vec<_> = times.buffer_unordered(AT_ONCE).collect().await;
        for (key, time) in times {
            if let (Ok(time), Some(known)) = (time, self.committed.get_mut(&key)) {
                known.timestamp_ms = Some(time);
            }
        }
    }

    /// By group and topic, sorted.
    fn lags(&self, positions: &[(GroupPartition, i64)], now_ms: i64) -> Vec<GroupLag> {
        let mut lags: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
        for (key, offset) in positions {
            let (group, topic, partition) = key;
            let Some(end) = self.ends.get(&(topic.clone(), *partition)) else { continue };
            let records = (end.next - (*offset).max(end.earliest)).max(0) as u64;
            let written = self.committed.get(key).and_then(|known| known.timestamp_ms);
            let age = if records > 0 { written.map_or(0, |written| (now_ms - written).max(0) as u64) } else { 0 };
            let (all, oldest) = lags.entry((group, topic)).or_default();
            *all += records;
            *oldest = (*oldest).max(age);
        }
        let lag = |((group, topic), (records, age_ms)): ((&str, &str), (u64, u64))| GroupLag {
            group: group.to_owned(),
            topic: topic.to_owned(),
            records,
            age_ms,
        };
        lags.into_iter().map(lag).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(group: &str, records: u64, age_ms: u64) -> GroupLag {
        GroupLag { group: group.into(), topic: "t".into(), records, age_ms }
    }

    #[test]
    fn pairs_beyond_the_bound_are_added_up() {
        let all = [lag("a", 1, 10), lag("b", 2, 30), lag("c", 3, 20)];
        assert_eq!(bounded(&all, 3), all);
        let other = GroupLag { topic: "other".into(), ..lag("other", 5, 30) };
        assert_eq!(bounded(&all, 1), [lag("a", 1, 10), other]);
    }

    #[test]
    fn lags_add_up_over_partitions_and_a_group_at_the_end_has_none() {
        let key = |group: &str, partition| (group.to_owned(), "t".to_owned(), partition);
        let end = |earliest, next| PartitionEnd { earliest, next, ask_at: Instant::now(), wait: Duration::ZERO };
        let known = |offset, timestamp_ms| CommittedPosition { offset, timestamp_ms };
        let tracker = LagTracker {
            groups: HashMap::new(),
            ends: [(("t".to_owned(), 0), end(5, 10)), (("t".to_owned(), 1), end(0, 7))].into(),
            committed: [
                (key("g", 0), known(5, Some(1000))),
                (key("g", 1), known(6, Some(400))),
                (key("h", 1), known(7, Some(100))),
            ]
            .into(),
        };
        // One offset lies before the log start, one behind its end.
        let positions = [(key("g", 0), 2), (key("g", 1), 6), (key("h", 1), 8), (key("i", 9), 1)];
        assert_eq!(tracker.lags(&positions, 1500), [lag("g", 6, 1100), lag("h", 0, 0)]);
    }
}
