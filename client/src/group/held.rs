//! What a member holds, and how far it has read: shared by the consumer, which hands records out, and the member's task, which
//! commits and gives partitions back.
//!
//! Invariants of a partition: `committed <= finished <= handed`. A record is handed out only while its partition is held and
//! not revoked, so that nothing of a partition is in the caller's hands once it was given back.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chronicle_proto::v1;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::ClientError;
use crate::record::{Partition, Position};

/// One partition that the member holds.
#[derive(Debug, Clone)]
pub(super) struct Holding {
    /// Another one each time the partition is assigned.
    pub(super) id: u64,
    /// Where reading starts: the committed offset, or where a group starts without one.
    pub(super) start: Position,
    /// Offset after the last record that the caller got.
    pub(super) handed: Option<i64>,
    /// Offset after the last record that the caller is done with.
    pub(super) finished: Option<i64>,
    /// Offset that is remembered.
    pub(super) committed: Option<i64>,
    /// It must be given back: at the latest at this time.
    pub(super) revoked: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    partitions: BTreeMap<Key, Holding>,
    failure: Option<ClientError>,
    assignments: u64,
    /// Counts what changes for readers.
    version: u64,
}

/// Topic and partition.
type Key = (String, i32);

fn key(partition: &Partition) -> Key {
    (partition.topic.clone(), partition.partition)
}

/// What a member holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    state: Mutex<State>,
    /// For the consumer: there is something else to read, or a failure.
    pub(super) changed: Notify,
    /// For the member's task: the caller is done with what it had of a revoked partition.
    pub(super) released: Notify,
}

impl Held {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another one when [`Held::readable`] may be.
    pub(super) fn version(&self) -> u64 {
        self.state().version
    }

    /// Partitions to read, with where to go on.
    pub(super) fn readable(&self) -> Vec<(Partition, u64, Position)> {
        let state = self.state();
        let readable = state.partitions.iter().filter(|(_, holding)| holding.revoked.is_none());
        readable
            .map(|((topic, partition), holding)| {
                let position = holding.handed.map_or(holding.start, Position::Offset);
                (Partition::new(topic.clone(), *partition), holding.id, position)
            })
            .collect()
    }

    /// Notes that a record goes to the caller. False: it must not, the partition is no longer the member's.
    pub(super) fn hand(&self, partition: &Partition, id: u64, offset: i64) -> bool {
        let mut state = self.state();
        match state.partitions.get_mut(&key(partition)) {
            Some(holding) if holding.id == id && holding.revoked.is_none() => {
                holding.handed = Some(offset + 1);
                true
            }
            _ => false,
        }
    }

    /// The caller is done with every record that it got.
    pub(super) fn finish(&self) {
        let mut revoked = false;
        for holding in self.state().partitions.values_mut() {
            revoked |= holding.revoked.is_some() && holding.finished != holding.handed;
            holding.finished = holding.handed;
        }
        if revoked {
            self.released.notify_one();
        }
    }

    /// Reading goes on elsewhere: the offset where it was is not in the log.
    pub(super) fn restart(&self, partition: &Partition, id: u64, position: Position) {
        let mut state = self.state();
        state.version += 1;
        if let Some(holding) = state.partitions.get_mut(&key(partition))
            && holding.id == id
        {
            holding.start = position;
            holding.handed = None;
            holding.finished = None;
        }
    }

    /// All that the member holds, as a heartbeat says it.
    pub(super) fn owned(&self) -> Vec<v1::TopicPartitions> {
        let mut owned: Vec<v1::TopicPartitions> = Vec::new();
        for (topic, partition) in self.state().partitions.keys() {
            match owned.last_mut().filter(|last| last.topic == *topic) {
                Some(last) => last.partitions.push(*partition),
                None => owned.push(v1::TopicPartitions { topic: topic.clone(), partitions: vec![*partition] }),
            }
        }
        owned
    }

    /// Takes an assignment: what is not in it is revoked until `deadline`; answers what is in it and not held yet.
    pub(super) fn reconcile(&self, assigned: &[v1::TopicPartitions], deadline: Instant) -> Vec<v1::TopicPartitions> {
        let mut state = self.state();
        state.version += 1;
        for ((topic, partition), holding) in &mut state.partitions {
            let keeps = assigned.iter().any(|one| one.topic == *topic && one.partitions.contains(partition));
            holding.revoked = (!keeps).then(|| holding.revoked.unwrap_or(deadline));
        }
        let held = |topic: &str, partition: i32| state.partitions.contains_key(&(topic.to_owned(), partition));
        let new = assigned.iter().filter_map(|one| {
            let partitions: Vec<i32> =
                one.partitions.iter().copied().filter(|partition| !held(&one.topic, *partition)).collect();
            (!partitions.is_empty()).then(|| v1::TopicPartitions { topic: one.topic.clone(), partitions })
        });
        let new = new.collect();
        drop(state);
        self.changed.notify_one();
        new
    }

    /// Begins to hold a partition.
    pub(super) fn assign(&self, topic: String, partition: i32, committed: Option<i64>, start: Position) {
        let mut state = self.state();
        state.assignments += 1;
        state.version += 1;
        let id = state.assignments;
        let start = committed.map_or(start, Position::Offset);
        let holding = Holding { id, start, handed: None, finished: None, committed, revoked: None };
        state.partitions.insert((topic, partition), holding);
        drop(state);
        self.changed.notify_one();
    }

    /// Revoked partitions that can be given back: the caller is done with them, or has had its time.
    pub(super) fn returnable(&self, now: Instant) -> Vec<(String, i32)> {
        let state = self.state();
        let returnable = state.partitions.iter().filter(|(_, holding)| {
            holding.revoked.is_some_and(|deadline| holding.handed == holding.finished || deadline <= now)
        });
        returnable.map(|(key, _)| key.clone()).collect()
    }

    /// When the first revoked partition is given back whatever the caller does.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.state().partitions.values().filter_map(|holding| holding.revoked).min()
    }

    /// Holds these no longer.
    pub(super) fn give_back(&self, partitions: &[(String, i32)]) {
        let mut state = self.state();
        state.version += 1;
        for key in partitions {
            state.partitions.remove(key);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Holds nothing any more.
    pub(super) fn lose_all(&self) {
        let mut state = self.state();
        state.version += 1;
        state.partitions.clear();
        drop(state);
        self.changed.notify_one();
    }

    /// Offsets to remember: of what the caller is done with, as far as it is not remembered yet.
    pub(super) fn uncommitted(&self) -> Vec<v1::GroupOffset> {
        let state = self.state();
        let offset = |((topic, partition), holding): (&Key, &Holding)| {
            let offset = holding.finished.filter(|finished| holding.committed != Some(*finished))?;
            let (topic, partition) = (topic.clone(), *partition);
            Some(v1::GroupOffset { topic, partition, offset, metadata: String::new() })
        };
        state.partitions.iter().filter_map(offset).collect()
    }

    /// Notes what is remembered.
    pub(super) fn committed(&self, offsets: &[v1::GroupOffset]) {
        let mut state = self.state();
        for offset in offsets {
            if let Some(holding) = state.partitions.get_mut(&(offset.topic.clone(), offset.partition)) {
                holding.committed = Some(offset.offset);
            }
        }
    }

    /// For the caller's next call.
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

    fn holding(partitions: &[i32]) -> Held {
        let held = Held::default();
        for partition in partitions {
            held.assign("t".into(), *partition, Some(10), Position::Earliest);
        }
        held
    }

    #[tokio::test]
    async fn a_revoked_partition_hands_nothing_out_and_goes_back_when_its_record_is_finished() {
        let held = holding(&[0, 1]);
        let deadline = Instant::now() + Duration::from_secs(60);
        assert!(held.hand(&Partition::new("t", 1), 2, 10));
        assert!(held.reconcile(&assigned(&[0]), deadline).is_empty());
        assert!(!held.hand(&Partition::new("t", 1), 2, 11));
        assert!(held.returnable(Instant::now()).is_empty(), "its record is not finished");
        assert_eq!(held.owned(), assigned(&[0, 1]));
        held.finish();
        assert_eq!(held.returnable(Instant::now()), [("t".to_owned(), 1)]);
        assert_eq!(held.uncommitted().iter().map(|o| (o.partition, o.offset)).collect::<Vec<_>>(), [(1, 11)]);
        held.give_back(&[("t".into(), 1)]);
        assert_eq!(held.owned(), assigned(&[0]));
        assert!(held.returnable(deadline).is_empty());
    }

    #[tokio::test]
    async fn only_finished_records_are_committed_and_each_offset_once() {
        let held = holding(&[0]);
        assert!(held.hand(&Partition::new("t", 0), 1, 10));
        assert!(held.uncommitted().is_empty());
        held.finish();
        let offsets = held.uncommitted();
        assert_eq!(offsets[0].offset, 11);
        held.committed(&offsets);
        assert!(held.uncommitted().is_empty());
    }

    #[tokio::test]
    async fn an_assignment_names_what_is_new_and_takes_a_revocation_back() {
        let held = holding(&[0]);
        let deadline = Instant::now();
        held.reconcile(&[], deadline);
        assert!(held.readable().is_empty());
        assert_eq!(held.reconcile(&assigned(&[0, 3]), deadline), assigned(&[3]));
        assert_eq!(held.readable(), [(Partition::new("t", 0), 1, Position::Offset(10))]);
    }

    #[tokio::test]
    async fn a_record_of_an_earlier_assignment_is_not_handed_out() {
        let held = holding(&[0]);
        held.lose_all();
        held.assign("t".into(), 0, None, Position::Earliest);
        assert!(!held.hand(&Partition::new("t", 0), 1, 5));
        assert!(held.hand(&Partition::new("t", 0), 2, 5));
    }
}
