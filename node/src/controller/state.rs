//! What the controller group agrees on. Deterministic: no clock, no randomness, no I/O.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::types::{NodeInfo, Operation, Placement};
use crate::broker::Topic;

/// A change to the state, as it stands in the controller's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub(super) enum Command {
    /// First command of a cluster.
    InitCluster {
        cluster_id: Uuid,
    },
    CreateTopic {
        topic: Topic,
        topics_max: usize,
    },
    AlterTopic {
        topic: Topic,
    },
    DeleteTopic {
        name: String,
    },
    /// The files of a deleted topic are gone.
    ForgetTopic {
        id: Uuid,
    },
    ReserveProducerIds {
        count: i64,
    },
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Outcome {
    Done(Option<Topic>),
    ProducerIds { first: i64, count: i64 },
    Refused(Refusal),
}

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Refusal {
    TopicExists(String),
    UnknownTopic(String),
    TooManyTopics(usize),
    PartitionsShrink { asked: i32, current: i32 },
}

/// A topic whose files may still be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedTopic {
    /// Its id.
    pub id: Uuid,
    /// How many partitions it had.
    pub partitions: i32,
}

/// What the controller group agrees on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerState {
    /// Nil until the cluster is initialised.
    pub cluster_id: Uuid,
    /// By name.
    pub topics: BTreeMap<String, Topic>,
    /// Deleted topics whose files may still be there.
    pub deleted: Vec<DeletedTopic>,
    /// First producer id that was never reserved.
    pub next_producer_id: i64,
    /// By raft id; removed nodes included.
    #[serde(default)]
    pub nodes: BTreeMap<u64, NodeInfo>,
    /// By topic id; one for each partition.
    #[serde(default)]
    pub placements: BTreeMap<Uuid, Vec<Placement>>,
    /// By id: under way, and the last ones that ended.
    #[serde(default)]
    pub operations: BTreeMap<u64, Operation>,
    /// Id of the next operation.
    #[serde(default)]
    pub next_operation: u64,
}

impl ControllerState {
    /// Applies one command.
    pub(super) fn apply(&mut self, command: Command) -> Outcome {
        match command {
            Command::InitCluster { cluster_id } => {
                if self.cluster_id.is_nil() {
                    self.cluster_id = cluster_id;
                }
                Outcome::Done(None)
            }
            Command::CreateTopic { topic, topics_max } => {
                if self.topics.contains_key(&topic.name) {
                    return Outcome::Refused(Refusal::TopicExists(topic.name));
                }
                if self.topics.len() >= topics_max {
                    return Outcome::Refused(Refusal::TooManyTopics(topics_max));
                }
                self.topics.insert(topic.name.clone(), topic.clone());
                Outcome::Done(Some(topic))
            }
            Command::AlterTopic { topic } => match self.topics.get_mut(&topic.name) {
                // A topic of the same name that was created again is another one.
                Some(current) if current.id == topic.id => {
                    if topic.partitions < current.partitions {
                        let (asked, current) = (topic.partitions, current.partitions);
                        return Outcome::Refused(Refusal::PartitionsShrink { asked, current });
                    }
                    *current = topic.clone();
                    Outcome::Done(Some(topic))
                }
                _ => Outcome::Refused(Refusal::UnknownTopic(topic.name)),
            },
            Command::DeleteTopic { name } => match self.topics.remove(&name) {
                Some(topic) => {
                    self.deleted.push(DeletedTopic { id: topic.id, partitions: topic.partitions });
                    Outcome::Done(Some(topic))
                }
                None => Outcome::Refused(Refusal::UnknownTopic(name)),
            },
            Command::ForgetTopic { id } => {
                self.deleted.retain(|deleted| deleted.id != id);
                Outcome::Done(None)
            }
            Command::ReserveProducerIds { count } => {
                let first = self.next_producer_id;
                self.next_producer_id += count;
                Outcome::ProducerIds { first, count }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::TopicSettings;

    fn topic(name: &str, id: u128, partitions: i32) -> Topic {
        Topic {
            name: name.into(),
            id: Uuid::from_u128(id),
            partitions,
            replication_factor: 1,
            settings: TopicSettings::default(),
            created_ms: 1,
        }
    }

    #[test]
    fn a_topic_is_created_once_altered_and_deleted() {
        let mut state = ControllerState::default();
        let create = Command::CreateTopic { topic: topic("a", 1, 1), topics_max: 1 };
        assert_eq!(state.apply(create.clone()), Outcome::Done(Some(topic("a", 1, 1))));
        assert_eq!(state.apply(create), Outcome::Refused(Refusal::TopicExists("a".into())));
        let one_too_many = Command::CreateTopic { topic: topic("b", 2, 1), topics_max: 1 };
        assert_eq!(state.apply(one_too_many), Outcome::Refused(Refusal::TooManyTopics(1)));
        let grow = Command::AlterTopic { topic: topic("a", 1, 3) };
        assert_eq!(state.apply(grow), Outcome::Done(Some(topic("a", 1, 3))));
        let shrink = Command::AlterTopic { topic: topic("a", 1, 2) };
        assert_eq!(state.apply(shrink), Outcome::Refused(Refusal::PartitionsShrink { asked: 2, current: 3 }));
        let another = Command::AlterTopic { topic: topic("a", 9, 4) };
        assert_eq!(state.apply(another), Outcome::Refused(Refusal::UnknownTopic("a".into())));
        state.apply(Command::DeleteTopic { name: "a".into() });
        assert_eq!(state.deleted, vec![DeletedTopic { id: Uuid::from_u128(1), partitions: 3 }]);
        state.apply(Command::ForgetTopic { id: Uuid::from_u128(1) });
        assert!(state.deleted.is_empty() && state.topics.is_empty());
    }

    #[test]
    fn producer_ids_are_never_reserved_twice() {
        let mut state = ControllerState::default();
        assert_eq!(
            state.apply(Command::ReserveProducerIds { count: 10 }),
            Outcome::ProducerIds { first: 0, count: 10 }
        );
        assert_eq!(state.apply(Command::ReserveProducerIds { count: 5 }), Outcome::ProducerIds { first: 10, count: 5 });
    }
}
