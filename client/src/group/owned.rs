//! The partitions that a member owns, and how far it has read each: shared by the consumer, which delivers records, and the
//! member's task, which commits offsets and gives partitions back.
//!
//! Invariants of a partition: `committed <= finished <= delivered`. A record is delivered only while its partition is owned and
//! not revoked, so the caller has no unfinished record of a partition that was given back in time.
//!
//! Plain data behind a lock, without I/O. Names neither the consumer nor the member's task.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chronicle_proto::v1;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::ClientError;
use crate::record::{Partition, Position};

/// One partition that the member owns.
#[derive(Debug, Clone)]
struct OwnedPartition {
    /// Number of the assignment; a new one each time the partition is assigned.
    assignment: u64,
    /// Where reading starts: the committed offset, or the configured start of the group.
    start: Position,
    /// Offset after the last record that was delivered to the caller.
    delivered: Option<i64>,
    /// Offset after the last record that the caller has finished.
    finished: Option<i64>,
    /// Committed offset.
    committed: Option<i64>,
    /// The partition must be given back, at this time at the latest.
    revoked: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    partitions: BTreeMap<Key, OwnedPartition>,
    failure: Option<ClientError>,
    assignments: u64,
    /// Counts the changes that concern readers.
    version: u64,
}

/// Topic and partition.
type Key = (String, i32);

fn key(partition: &Partition) -> Key {
    (partition.topic.clone(), partition.partition)
}

/// The partitions that a member owns.
#[derive(Debug, Default)]
pub(super) struct OwnedPartitions {
    state: Mutex<State>,
    /// Wakes the consumer: the partitions to read have changed, or there is a failure.
    pub(super) changed: Notify,
    /// Wakes the member's task: the caller has finished its record of a revoked partition.
    pub(super) released: Notify,
}

impl OwnedPartitions {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics in the middle of a change, so the state is consistent even if the lock is poisoned.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that changes whenever the result of [`Self::readable`] may have changed.
    pub(super) fn version(&self) -> u64 {
        self.state().version
    }

    /// Partitions to read, each with its assignment and the position to continue at.
    pub(super) fn readable(&self) -> Vec<(Partition, u64, Position)> {
        let state = self.state();
        let readable = state.partitions.iter().filter(|(_, owned)| owned.revoked.is_none());
        readable
            .map(|((topic, partition), owned)| {
                let position = owned.delivered.map_or(owned.start, Position::Offset);
                (Partition::new(topic.clone(), *partition), owned.assignment, position)
            })
            .collect()
    }

    /// Notes that a record is delivered to the caller. False: it must not be, because the partition is no longer the member's.
    pub(super) fn deliver(&self, partition: &Partition, assignment: u64, offset: i64) -> bool {
        let mut state = self.state();
        match state.partitions.get_mut(&key(partition)) {
            Some(owned) if owned.assignment == assignment && owned.revoked.is_none() => {
                owned.delivered = Some(offset + 1);
                true
            }
            _ => false,
        }
    }

    /// The caller has finished every record that was delivered.
    pub(super) fn finish(&self) {
        let mut revoked = false;
        for owned in self.state().partitions.values_mut() {
            revoked |= owned.revoked.is_some() && owned.finished != owned.delivered;
            owned.finished = owned.delivered;
        }
        if revoked {
            self.released.notify_one();
        }
    }

    /// Continues reading at another position, because the current offset is not in the log.
    pub(super) fn restart(&self, partition: &Partition, assignment: u64, position: Position) {
        let mut state = self.state();
        state.version += 1;
        if let Some(owned) = state.partitions.get_mut(&key(partition))
            && owned.assignment == assignment
        {
            owned.start = position;
            owned.delivered = None;
            owned.finished = None;
        }
    }

    /// All partitions that the member owns, in the form of a heartbeat request.
    pub(super) fn as_topics(&self) -> Vec<v1::TopicPartitions> {
        let mut owned: Vec<v1::TopicPartitions> = Vec::new();
        for (topic, partition) in self.state().partitions.keys() {
            match owned.last_mut().filter(|last| last.topic == *topic) {
                Some(last) => last.partitions.push(*partition),
                None => owned.push(v1::TopicPartitions { topic: topic.clone(), partitions: vec![*partition] }),
            }
        }
        owned
    }

    /// Applies an assignment. Partitions that are not in it must be given back by `deadline`. Returns the partitions that are new
    /// in it.
    pub(super) fn reconcile(&self, assigned: &[v1::TopicPartitions], deadline: Instant) -> Vec<v1::TopicPartitions> {
        let mut state = self.state();
        state.version += 1;
        for ((topic, partition), owned) in &mut state.partitions {
            let keeps = assigned.iter().any(|one| one.topic == *topic && one.partitions.contains(partition));
            owned.revoked = (!keeps).then(|| owned.revoked.unwrap_or(deadline));
        }
        let is_owned = |topic: &str, partition: i32| state.partitions.contains_key(&(topic.to_owned(), partition));
        let new = assigned.iter().filter_map(|one| {
            let partitions: Vec<i32> =
                one.partitions.iter().copied().filter(|partition| !is_owned(&one.topic, *partition)).collect();
            (!partitions.is_empty()).then(|| v1::TopicPartitions { topic: one.topic.clone(), partitions })
        });
        let new = new.collect();
        drop(state);
        self.changed.notify_one();
        new
    }

    /// Starts to own a partition.
    pub(super) fn assign(&self, topic: String, partition: i32, committed: Option<i64>, start: Position) {
        let mut state = self.state();
        state.assignments += 1;
        state.version += 1;
        let assignment = state.assignments;
        let start = committed.map_or(start, Position::Offset);
        let owned = OwnedPartition { assignment, start, delivered: None, finished: None, committed, revoked: None };
        state.partitions.insert((topic, partition), owned);
        drop(state);
        self.changed.notify_one();
    }

    /// Revoked partitions that can be given back: the caller has finished with them, or their deadline has passed.
    pub(super) fn returnable(&self, now: Instant) -> Vec<(String, i32)> {
        let state = self.state();
        let returnable = state.partitions.iter().filter(|(_, owned)| {
            owned.revoked.is_some_and(|deadline| owned.delivered == owned.finished || deadline <= now)
        });
        returnable.map(|(key, _)| key.clone()).collect()
    }

    /// When the first revoked partition is given back whether the caller has finished or not.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.state().partitions.values().filter_map(|owned| owned.revoked).min()
    }

    /// Gives these partitions up.
    pub(super) fn give_back(&self, partitions: &[(String, i32)]) {
        let mut state = self.state();
        state.version += 1;
        for key in partitions {
            state.partitions.remove(key);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Gives all partitions up.
    pub(super) fn lose_all(&self) {
        let mut state = self.state();
        state.version += 1;
        state.partitions.clear();
        drop(state);
        self.changed.notify_one();
    }

    /// Offsets to commit: those of finished records that are not committed yet.
    pub(super) fn uncommitted(&self) -> Vec<v1::GroupOffset> {
        let state = self.state();
        let offset = |((topic, partition), owned): (&Key, &OwnedPartition)| {
            let offset = owned.finished.filter(|finished| owned.committed != Some(*finished))?;
            let (topic, partition) = (topic.clone(), *partition);
            Some(v1::GroupOffset { topic, partition, offset, metadata: String::new() })
        };
        state.partitions.iter().filter_map(offset).collect()
    }

    /// Notes that offsets are committed.
    pub(super) fn note_committed(&self, offsets: &[v1::GroupOffset]) {
        let mut state = self.state();
        for offset in offsets {
            if let Some(owned) = state.partitions.get_mut(&(offset.topic.clone(), offset.partition)) {
                owned.committed = Some(offset.offset);
            }
        }
    }

    /// Stores an error for the caller's next call.
    pub(super) fn fail(&self, error: ClientError) {
        self.state().failure = Some(error);
        self.changed.notify_one();
    }

    pub(super) fn take_failure(&self) -> Option<ClientError> {
        self.state().failure.take()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn assigned(partitions: &[i32]) -> Vec<v1::TopicPartitions> {
        vec![v1::TopicPartitions { topic: "t".into(), partitions: partitions.to_vec() }]
    }

    fn owning(partitions: &[i32]) -> OwnedPartitions {
        let owned = OwnedPartitions::default();
        for partition in partitions {
            owned.assign("t".into(), *partition, Some(10), Position::Earliest);
        }
        owned
    }

    #[tokio::test]
    async fn a_revoked_partition_delivers_nothing_and_is_released_when_its_record_is_finished() {
        let owned = owning(&[0, 1]);
        let deadline = Instant::now() + Duration::from_secs(60);
        assert!(owned.deliver(&Partition::new("t", 1), 2, 10));
        assert!(owned.reconcile(&assigned(&[0]), deadline).is_empty());
        assert!(!owned.deliver(&Partition::new("t", 1), 2, 11));
        assert!(owned.returnable(Instant::now()).is_empty(), "its record is not finished");
        assert_eq!(owned.as_topics(), assigned(&[0, 1]));
        owned.finish();
        assert_eq!(owned.returnable(Instant::now()), [("t".to_owned(), 1)]);
        assert_eq!(owned.uncommitted().iter().map(|o| (o.partition, o.offset)).collect::<Vec<_>>(), [(1, 11)]);
        owned.give_back(&[("t".into(), 1)]);
        assert_eq!(owned.as_topics(), assigned(&[0]));
        assert!(owned.returnable(deadline).is_empty());
    }

    #[tokio::test]
    async fn only_finished_records_are_committed_and_each_offset_once() {
        let owned = owning(&[0]);
        assert!(owned.deliver(&Partition::new("t", 0), 1, 10));
        assert!(owned.uncommitted().is_empty());
        owned.finish();
        let offsets = owned.uncommitted();
        assert_eq!(offsets[0].offset, 11);
        owned.note_committed(&offsets);
        assert!(owned.uncommitted().is_empty());
    }

    #[tokio::test]
    async fn an_assignment_returns_what_is_new_and_ends_a_revocation() {
        let owned = owning(&[0]);
        let deadline = Instant::now();
        owned.reconcile(&[], deadline);
        assert!(owned.readable().is_empty());
        assert_eq!(owned.reconcile(&assigned(&[0, 3]), deadline), assigned(&[3]));
        assert_eq!(owned.readable(), [(Partition::new("t", 0), 1, Position::Offset(10))]);
    }

    #[tokio::test]
    async fn a_record_of_an_earlier_assignment_is_not_delivered() {
        let owned = owning(&[0]);
        owned.lose_all();
        owned.assign("t".into(), 0, None, Position::Earliest);
        assert!(!owned.deliver(&Partition::new("t", 0), 1, 5));
        assert!(owned.deliver(&Partition::new("t", 0), 2, 5));
    }
}
