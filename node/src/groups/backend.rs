//! Storage of the groups: the internal topic, the partitions of it that this node leads, and offsets of other topics.
//!
//! All code of the groups that depends on leadership of partitions is here.

use std::sync::Arc;
use std::time::Duration;

use chronicle_records::{BatchBuilder, Compression};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::requests::{GROUPS_PARTITIONS, GROUPS_TOPIC};
use super::table::{Change, GroupTable};
use crate::broker::{Authorizer, Broker, Route};
use crate::model::{
    ApiError, Fetch, NewTopic, Offsets, PartitionError, Position, Reason, SettingsChange, Topic, TopicPartition,
};
use crate::partition::{AppendAnswer, Partition, Peek};

/// Retention of a partition of the topic, in bytes; the checkpoint contains the effect of deleted records.
const RETENTION_BYTES: i64 = 64 << 20;
/// Segment size of the topic, in bytes: small, so that checkpoints are frequent and a start replays little.
const SEGMENT_BYTES: i64 = 8 << 20;
/// Approximate limit for the bytes of keys and values in one batch: well below the topic's `max_message_bytes`.
const BATCH_BYTES: usize = 256 << 10;

/// The part of the node that groups use.
#[derive(Clone)]
pub(super) struct Backend {
    broker: Broker,
}

impl Backend {
    pub(super) fn new(broker: Broker) -> Self {
        Self { broker }
    }

    /// Checks the access of callers on this node.
    pub(super) fn authorizer(&self) -> &Authorizer {
        self.broker.authorizer()
    }

    /// Identity of this node.
    pub(super) fn node(&self) -> Uuid {
        self.broker.store().node_id()
    }

    /// A topic in the committed metadata, as applied on this node.
    pub(super) fn topic(&self, name: &str) -> Option<Topic> {
        self.broker.cluster().state().topics.get(name).cloned()
    }

    /// Makes sure that a topic or partition that this node does not know does not exist.
    ///
    /// # Errors
    /// [`Reason::Unavailable`].
    pub(super) async fn know<'a>(&self, wanted: impl IntoIterator<Item = (&'a str, i32)>) -> Result<(), ApiError> {
        self.broker.know(wanted).await
    }

    /// Number of partitions of a topic; 0: the topic does not exist.
    pub(super) fn partitions_of(&self, name: &str) -> i32 {
        self.broker.cluster().state().topics.get(name).map_or(0, |topic| topic.partitions)
    }

    /// The internal topic; `None`: not created yet, so there are no groups, as far as this node knows.
    pub(super) fn groups_topic(&self) -> Option<Topic> {
        self.topic(GROUPS_TOPIC)
    }

    /// The internal topic; `None`: there are no groups.
    ///
    /// # Errors
    /// [`Reason::Unavailable`] when this node cannot find out.
    pub(super) async fn existing_groups_topic(&self) -> Result<Option<Topic>, ApiError> {
        self.know([(GROUPS_TOPIC, 0)]).await?;
        Ok(self.groups_topic())
    }

    /// The internal topic, created if needed.
    pub(super) async fn groups_topic_or_new(&self) -> Result<Topic, ApiError> {
        match self.groups_topic() {
            Some(topic) => Ok(topic),
            None => self.create(RETENTION_BYTES, SEGMENT_BYTES).await,
        }
    }

    /// Creates the internal topic with these settings, in bytes.
    pub(super) async fn create(&self, retention_bytes: i64, segment_bytes: i64) -> Result<Topic, ApiError> {
        let settings = SettingsChange {
            retention_bytes: Some(retention_bytes),
            segment_bytes: Some(segment_bytes),
            ..SettingsChange::default()
        };
        let name = GROUPS_TOPIC.to_owned();
        let new =
            NewTopic { name, partitions: GROUPS_PARTITIONS, replication_factor: 0, settings, if_not_exists: true };
        Ok(self.broker.create_any_topic(new).await?.0)
    }

    /// Returns whether this node leads a partition of the internal topic, or would lead it after it is opened.
    pub(super) fn coordinates(&self, topic: &Topic, number: i32) -> bool {
        self.broker.replicas().would_lead(topic, number)
    }

    /// The state of a partition, without opening it.
    pub(super) fn peek(&self, topic: &Topic, number: i32) -> Peek {
        self.broker.replicas().peek(topic, number)
    }

    /// Reads the groups of a partition if it is open on this node. Does not count as a use.
    pub(super) fn read_if_open<R>(&self, topic: &Topic, number: i32, read: impl FnOnce(&GroupTable) -> R) -> Option<R> {
        read_table(&*self.broker.replicas().open_partition(topic, number)?, read).ok()
    }

    /// A partition of the internal topic that this node leads.
    ///
    /// # Errors
    /// [`Reason::NotLeader`] with the leader's address; why the partition cannot be opened.
    pub(super) async fn lead(&self, topic: &Topic, number: i32) -> Result<LedPartition, ApiError> {
        let partition = self.broker.led_partition(topic, number).await?;
        let Some(term) = partition.leads_in() else {
            return Err(ApiError::new(Reason::Unavailable, "leadership of the group's partition is changing"));
        };
        Ok(LedPartition { broker: self.broker.clone(), partition, number, term })
    }

    /// Reads the groups of a partition, as applied on this node's replica.
    ///
    /// # Errors
    /// Why the partition cannot be opened; [`Reason::NotLeader`] when this node has no replica.
    pub(super) async fn read<R>(
        &self,
        topic: &Topic,
        number: i32,
        read: impl FnOnce(&GroupTable) -> R,
    ) -> Result<R, ApiError> {
        read_table(&*self.broker.partition(topic, number).await?, read)
    }

    /// Offsets of a partition, and of the first record at or after a time (milliseconds since the Unix epoch).
    pub(super) async fn offsets(&self, topic: &str, partition: i32, time_ms: Option<i64>) -> Result<Offsets, ApiError> {
        let target = TopicPartition { topic: topic.to_owned(), partition };
        self.broker.offsets(&target, time_ms, Route::Leader).await
    }

    /// Timestamp of the record at an offset, in milliseconds since the Unix epoch.
    pub(super) async fn timestamp(&self, topic: &str, partition: i32, offset: i64) -> Result<i64, ApiError> {
        let target = TopicPartition { topic: topic.to_owned(), partition };
        let from = Position::Offset(offset);
        let fetch = Fetch { target, from, max_bytes: 1, max_wait: Duration::ZERO };
        let fetched = self.broker.fetch(fetch, Route::Leader).await?;
        let (records, _) = fetched.records(Some(1))?;
        let missing = || ApiError::new(Reason::Internal, format!("offset {offset}: the read found no record"));
        records.first().map(|record| record.timestamp).ok_or_else(missing)
    }
}

/// A led partition of the internal topic.
pub(super) struct LedPartition {
    broker: Broker,
    partition: Arc<Partition>,
    /// Its number.
    pub(super) number: i32,
    /// Term of the leadership: the cached state of members is valid for one term.
    pub(super) term: u64,
}

impl LedPartition {
    /// Reads the groups of the partition.
    pub(super) fn read<R>(&self, read: impl FnOnce(&GroupTable) -> R) -> Result<R, ApiError> {
        read_table(&self.partition, read)
    }

    /// Proves that this node still led after the call, so that no other coordinator had changed what was read before.
    ///
    /// # Errors
    /// [`Reason::NotLeader`]; [`Reason::Unavailable`] without a majority.
    pub(super) async fn confirm(&self) -> Result<(), ApiError> {
        // Boxed: keeps the caller's future small.
        Box::pin(self.partition.confirm(self.term)).await.map_err(|error| self.broker.api_error(error))
    }

    /// Queues changes after all that were submitted before. They are durable, and readable, once
    /// [`PendingChanges::wait`] returns. Without changes, returns after the proof that an append would have been:
    /// [`LedPartition::confirm`].
    ///
    /// # Errors
    /// When they are not accepted.
    pub(super) async fn submit(&self, group: &str, changes: &[Change]) -> Result<PendingChanges, ApiError> {
        let mut answers = Vec::new();
        let broker = self.broker.clone();
        if changes.is_empty() {
            self.confirm().await?;
            return Ok(PendingChanges { broker, answers });
        }
        self.broker.check_space()?;
        let now = now_ms();
        let mut builder = BatchBuilder::new(Compression::None);
        let mut bytes = 0;
        for (at, change) in changes.iter().enumerate() {
            let (key, value) = change.encode(group);
            bytes += key.len() + value.as_ref().map_or(0, |value| value.len());
            builder.push(now, Some(&key), value.as_deref(), std::iter::empty()).map_err(|e| bug(&e))?;
            if bytes >= BATCH_BYTES || at + 1 == changes.len() {
                let full = std::mem::replace(&mut builder, BatchBuilder::new(Compression::None));
                let batch = full.build().map_err(|e| bug(&e))?;
                let header = chronicle_records::parse_header(&batch).map_err(|e| bug(&e))?;
                let answer = self.partition.submit(batch, header, None).await;
                answers.push(answer.map_err(|error| self.broker.api_error(error))?);
                bytes = 0;
            }
        }
        Ok(PendingChanges { broker, answers })
    }

    /// As [`LedPartition::submit`], and waits until the changes are durable.
    ///
    /// # Errors
    /// When the changes are not, or may not be, durable.
    pub(super) async fn append(&self, group: &str, changes: &[Change]) -> Result<(), ApiError> {
        self.submit(group, changes).await?.wait().await
    }
}

/// Queued changes.
pub(super) struct PendingChanges {
    broker: Broker,
    answers: Vec<oneshot::Receiver<AppendAnswer>>,
}

impl PendingChanges {
    /// Waits until the changes are durable.
    ///
    /// # Errors
    /// When they are not, or may not be.
    pub(super) async fn wait(self) -> Result<(), ApiError> {
        for answer in self.answers {
            let answer = answer.await.unwrap_or_else(|_| {
                let stopped = PartitionError::Unavailable("the partition stopped without a response".into());
                Err(PartitionError::unknown(stopped))
            });
            answer.map_err(|error| self.broker.api_error(error))?;
        }
        Ok(())
    }
}

fn read_table<R>(partition: &Partition, read: impl FnOnce(&GroupTable) -> R) -> Result<R, ApiError> {
    let missing = || ApiError::new(Reason::Internal, format!("a partition of {GROUPS_TOPIC} has no view"));
    partition.view(read).ok_or_else(missing)
}

fn bug(error: &dyn std::error::Error) -> ApiError {
    ApiError::new(Reason::Internal, format!("a record of {GROUPS_TOPIC}: {error}"))
}

/// Wall-clock time in milliseconds since the Unix epoch.
pub(super) use crate::host::now_ms;
