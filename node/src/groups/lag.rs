//! How far behind consumer groups are, for metrics: measured from time to time, by the node that coordinates them.
//!
//! Invariants:
//! - What sleeps is not kept awake by being measured: the ends of sleeping partitions and the offsets of sleeping groups cannot
//!   have changed, and are remembered. Only what was never seen since the node started is woken, once; a partition without a
//!   replica here is asked of its leader, less and less often while nothing changes.
//! - A round makes at most [`ASKS_MAX`] calls of each kind, so that it ends; what is left has its turn in the next rounds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::Instant;

use super::backing::now_ms;
use super::offsets::valid_offsets;
use super::{GroupTable, Groups, Inner};
use crate::config::Live;
use crate::model::Topic;
use crate::partition::Peek;

/// Most partitions that are asked for their end, and most records that are read for their time, in one round.
const ASKS_MAX: usize = 1000;
/// Calls under way at the same time.
const AT_ONCE: usize = 16;
/// Longest wait before a partition elsewhere, which does not change, is asked again.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(600);

/// How far a group is behind in one topic.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupLag {
    /// The group; `other` for those beyond the bound.
    pub group: String,
    /// The topic; `other` likewise.
    pub topic: String,
    /// Records that it has not consumed, all partitions together.
    pub records: u64,
    /// Age of the oldest of them, in milliseconds.
    pub age_ms: u64,
}

type PartitionName = (String, i32);
type Place = (String, String, i32);

/// A committed offset and, while the group is behind, when the record there was written.
#[derive(Debug, Clone, Copy)]
struct Committed {
    offset: i64,
    timestamp_ms: Option<i64>,
}

/// What is known of the end of a partition.
#[derive(Debug, Clone, Copy)]
struct End {
    earliest: i64,
    next: i64,
    /// Elsewhere: when to ask again, and the wait after that.
    ask_at: Instant,
    wait: Duration,
}

/// What is remembered between rounds.
#[derive(Default)]
struct Memory {
    /// Offsets by partition of the internal topic.
    groups: HashMap<i32, Vec<(Place, i64)>>,
    ends: HashMap<PartitionName, End>,
    committed: HashMap<Place, Committed>,
}

impl Groups {
    /// The lags of the groups that this node coordinates, as last measured: at most `max` pairs of group and topic, the first
    /// by name; all others added up under `other`.
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

/// Measures every so often, until the node stops.
pub(super) async fn measure(inner: Arc<Inner>, config: Live) {
    let mut memory = Memory::default();
    loop {
        let every = Duration::from_millis(config.now().metrics.lag_interval_ms);
        // What a round has begun is of no use to anybody else: it may be dropped anywhere.
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = async {
                match every {
                    Duration::ZERO => inner.lags.lock().clear(),
                    _ => memory.round(&inner, every).await,
                }
                config.pause(|config| config.metrics.lag_interval_ms).await;
            } => {}
        }
    }
}

/// The offsets of all groups of a table whose topics are still there.
fn offsets_of(inner: &Inner, table: &GroupTable) -> Vec<(Place, i64)> {
    let mut offsets = Vec::new();
    for (name, record) in table.iter() {
        let valid = valid_offsets(&inner.backing, record).into_iter();
        offsets.extend(valid.map(|((topic, partition), one)| ((name.clone(), topic, partition), one.offset)));
    }
    offsets
}

impl Memory {
    async fn round(&mut self, inner: &Inner, every: Duration) {
        let Some(topic) = inner.backing.groups_topic() else { return };
        self.see_groups(inner, &topic).await;
        let places: Vec<(Place, i64)> = self.groups.values().flatten().cloned().collect();
        let known: HashSet<&Place> = places.iter().map(|(place, _)| place).collect();
        self.committed.retain(|place, _| known.contains(place));
        self.see_ends(inner, &places, every).await;
        self.see_times(inner, &places).await;
        *inner.lags.lock() = self.lags(&places, now_ms());
    }

    /// The offsets of the groups that this node coordinates.
    async fn see_groups(&mut self, inner: &Inner, topic: &Topic) {
        for number in 0..topic.partitions {
            if !inner.backing.coordinates(topic, number) {
                self.groups.remove(&number);
                continue;
            }
            let offsets = |table: &GroupTable| offsets_of(inner, table);
            let seen = match inner.backing.look_if_open(topic, number, offsets) {
                Some(seen) => seen,
                None if self.groups.contains_key(&number) => continue,
                None => match inner.backing.lead(topic, number).await.and_then(|lead| lead.read(offsets)) {
                    Ok(seen) => seen,
                    Err(_) => continue,
                },
            };
            self.groups.insert(number, seen);
        }
    }

    /// Where the partitions end that groups have offsets of.
    async fn see_ends(&mut self, inner: &Inner, places: &[(Place, i64)], every: Duration) {
        let mut wanted: Vec<PartitionName> =
            places.iter().map(|((_, topic, partition), _)| (topic.clone(), *partition)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        self.ends.retain(|name, _| wanted.binary_search(name).is_ok());
        let now = Instant::now();
        let mut ask = Vec::new();
        for name in wanted {
            let Some(topic) = inner.backing.topic(&name.0) else { continue };
            match (inner.backing.peek(&topic, name.1), self.ends.get(&name)) {
                (Peek::Open { earliest, next }, _) => {
                    self.ends.insert(name, End { earliest, next, ask_at: now, wait: every });
                }
                (Peek::Dormant, Some(_)) => {}
                (Peek::Elsewhere, Some(end)) if end.ask_at > now => {}
                (Peek::Dormant | Peek::Elsewhere, _) => ask.push(name),
            }
        }
        ask.truncate(ASKS_MAX);
        let asked = futures::stream::iter(ask).map(|name| async move {
            let offsets = inner.backing.offsets(&name.0, name.1, None).await;
            (name, offsets)
        });
        let answers: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
        for (name, offsets) in answers {
            let before = self.ends.get(&name);
            let Ok(offsets) = offsets else { continue };
            let same = before.is_some_and(|end| end.next == offsets.next);
            let wait = before.filter(|_| same).map_or(every, |end| (end.wait * 2).min(ASK_AGAIN_MAX));
            let end = End { earliest: offsets.earliest, next: offsets.next, ask_at: now + wait, wait };
            self.ends.insert(name, end);
        }
    }

    /// When the records were written that groups read next.
    async fn see_times(&mut self, inner: &Inner, places: &[(Place, i64)]) {
        let mut read = Vec::new();
        for (place, offset) in places {
            let Some(end) = self.ends.get(&(place.1.clone(), place.2)) else { continue };
            let offset = (*offset).max(end.earliest);
            let known = self.committed.entry(place.clone()).or_insert(Committed { offset, timestamp_ms: None });
            if known.offset != offset {
                // A little too old rather than unknown, until it is read.
                known.offset = offset;
                read.push((place.clone(), offset, end.next));
            } else if known.timestamp_ms.is_none() {
                read.push((place.clone(), offset, end.next));
            }
        }
        read.retain(|(_, offset, next)| offset < next);
        read.truncate(ASKS_MAX);
        let times = futures::stream::iter(read).map(|(place, offset, _)| async move {
            let time = inner.backing.timestamp(&place.1, place.2, offset).await;
            (place, time)
        });
        let times: Vec<_> = times.buffer_unordered(AT_ONCE).collect().await;
        for (place, time) in times {
            if let (Ok(time), Some(known)) = (time, self.committed.get_mut(&place)) {
                known.timestamp_ms = Some(time);
            }
        }
    }

    /// By group and topic, sorted.
    fn lags(&self, places: &[(Place, i64)], now_ms: i64) -> Vec<GroupLag> {
        let mut lags: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
        for (place, offset) in places {
            let (group, topic, partition) = place;
            let Some(end) = self.ends.get(&(topic.clone(), *partition)) else { continue };
            let records = (end.next - (*offset).max(end.earliest)).max(0) as u64;
            let written = self.committed.get(place).and_then(|known| known.timestamp_ms);
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
        let place = |group: &str, partition| (group.to_owned(), "t".to_owned(), partition);
        let end = |earliest, next| End { earliest, next, ask_at: Instant::now(), wait: Duration::ZERO };
        let known = |offset, timestamp_ms| Committed { offset, timestamp_ms };
        let memory = Memory {
            groups: HashMap::new(),
            ends: [(("t".to_owned(), 0), end(5, 10)), (("t".to_owned(), 1), end(0, 7))].into(),
            committed: [
                (place("g", 0), known(5, Some(1000))),
                (place("g", 1), known(6, Some(400))),
                (place("h", 1), known(7, Some(100))),
            ]
            .into(),
        };
        // One offset lies before the log start, one behind its end.
        let places = [(place("g", 0), 2), (place("g", 1), 6), (place("h", 1), 8), (place("i", 9), 1)];
        assert_eq!(memory.lags(&places, 1500), [lag("g", 6, 1100), lag("h", 0, 0)]);
    }
}
