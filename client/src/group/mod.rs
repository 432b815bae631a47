//! Consumer groups: the coordinator assigns each partition of the topics to one member, and stores the committed offsets.
//!
//! ```text
//! GroupConsumer (reads, delivers)  -->  owned.rs (owned partitions, progress)  <--  member.rs (heartbeats, commits)
//! ```
//!
//! Promise: each record is delivered to one member at a time, at least once. A record counts as finished when the caller asks
//! for the next one, commits, or closes; only finished records are committed. When a partition is revoked, the member stops
//! reading it, commits, and gives it back once its last record is finished.
//!
//! Stands on `consumer.rs`, which reads one partition, and on `connection.rs`. It does not name the client.

mod coordinator;
mod member;
mod owned;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::StreamMap;

pub(crate) use self::coordinator::Coordinator;
use self::member::{Command, Member};
use self::owned::OwnedPartitions;
use crate::config::{ConsumerConfig, GroupConfig, GroupStart};
use crate::connection::Connection;
use crate::consumer::Consumer;
use crate::error::{ClientError, ErrorKind};
use crate::record::{Partition, Position, StoredRecord};

/// A record with the partition that it is from.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupRecord {
    /// The partition.
    pub partition: Partition,
    /// The record.
    pub record: StoredRecord,
}

type Reader = Pin<Box<dyn Stream<Item = Result<StoredRecord, ClientError>> + Send>>;

/// Reads the partitions that a group assigns to it. Buffers at most one response of a node for each of its partitions, plus what
/// HTTP/2 flow control lets the nodes send ahead.
///
/// Dropping it leaves the group in the background, without a commit; [`GroupConsumer::close`] commits and waits.
pub struct GroupConsumer {
    connection: Connection,
    max_bytes: u32,
    start: GroupStart,
    owned: Arc<OwnedPartitions>,
    readers: StreamMap<Partition, Reader>,
    /// Assignment that each reader belongs to.
    assignments: HashMap<Partition, u64>,
    /// Version of `owned` that the readers match; `None`: to be compared again.
    seen: Option<u64>,
    commands: mpsc::Sender<Command>,
    member: JoinHandle<()>,
}

impl std::fmt::Debug for GroupConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupConsumer").field("assigned", &self.assigned()).finish_non_exhaustive()
    }
}

impl GroupConsumer {
    /// Joins a group in the background.
    pub(crate) fn join(connection: Connection, config: GroupConfig) -> Self {
        let owned = Arc::<OwnedPartitions>::default();
        let (commands, receiver) = mpsc::channel(1);
        let (max_bytes, start) = (config.max_bytes, config.start);
        let member = Member::new(Coordinator::new(connection.clone()), config, owned.clone(), receiver);
        Self {
            connection,
            max_bytes,
            start,
            owned,
            readers: StreamMap::new(),
            assignments: HashMap::new(),
            seen: None,
            commands,
            member: tokio::spawn(member.run()),
        }
    }

    /// The next record of any of the member's partitions. Marks the records before it as finished. Waits while there is no
    /// record, or no partition.
    ///
    /// Cancellation-safe: dropping the future loses no record.
    ///
    /// # Errors
    /// A refusal of the coordinator (`INVALID_REQUEST`, `UNKNOWN_TOPIC`); the last failure once the coordinator was unreachable or
    /// did not accept the member (`OVERLOADED`) for a whole session timeout; or the last failure once reading a partition has
    /// failed for the client's request timeout. The next call tries again from the same position.
    pub async fn next(&mut self) -> Result<GroupRecord, ClientError> {
        self.owned.finish();
        loop {
            if let Some(error) = self.owned.take_failure() {
                return Err(error);
            }
            self.follow_assignment();
            let (partition, item) = tokio::select! {
                biased;
                () = self.owned.changed.notified() => continue,
                Some(next) = self.readers.next() => next,
            };
            let assignment = self.assignments.get(&partition).copied().unwrap_or(0);
            match item {
                Ok(record) if self.owned.deliver(&partition, assignment, record.offset) => {
                    return Ok(GroupRecord { partition, record });
                }
                // The partition was revoked meanwhile.
                Ok(_) => self.stop_reading(&partition),
                Err(error) => {
                    self.stop_reading(&partition);
                    self.seen = None;
                    self.after_error(&partition, assignment, error)?;
                }
            }
        }
    }

    /// Commits the offsets of all records that were returned so far, durably.
    ///
    /// # Errors
    /// `UNKNOWN_MEMBER` and `STALE_GENERATION` when another member owns partitions by now, and reads their records again;
    /// `OUTCOME_UNKNOWN`; no answer within half the session timeout. The next commit includes the offsets that this one missed.
    pub async fn commit(&mut self) -> Result<(), ClientError> {
        self.owned.finish();
        ask(self.commands.clone(), Command::Commit).await
    }

    /// The partitions that the member reads now.
    pub fn assigned(&self) -> Vec<Partition> {
        self.owned.readable().into_iter().map(|(partition, ..)| partition).collect()
    }

    /// Marks all returned records as finished, commits them unless commits are manual, and leaves the group.
    ///
    /// # Errors
    /// As [`GroupConsumer::commit`]. The member leaves the group in any case.
    pub async fn close(self) -> Result<(), ClientError> {
        self.owned.finish();
        self.leave().await
    }

    /// As [`GroupConsumer::close`], but the record that was returned last is not finished: another member reads it again.
    ///
    /// # Errors
    /// As [`GroupConsumer::commit`]. The member leaves the group in any case.
    pub async fn leave(self) -> Result<(), ClientError> {
        let left = ask(self.commands, Command::Close).await;
        if let Err(error) = self.member.await {
            tracing::error!(%error, "group member task panicked");
        }
        left
    }

    /// Makes the readers match the partitions that the member owns.
    fn follow_assignment(&mut self) {
        let version = self.owned.version();
        if self.seen.replace(version) == Some(version) {
            return;
        }
        let readable = self.owned.readable();
        let is_owned = |partition: &Partition, assignment: u64| {
            readable.iter().any(|(owned, id, _)| owned == partition && *id == assignment)
        };
        let gone: Vec<Partition> = self
            .assignments
            .iter()
            .filter(|(partition, assignment)| !is_owned(partition, **assignment))
            .map(|(partition, _)| partition.clone())
            .collect();
        gone.iter().for_each(|partition| self.stop_reading(partition));
        for (partition, assignment, position) in readable {
            if self.assignments.contains_key(&partition) {
                continue;
            }
            let config = ConsumerConfig { max_bytes: self.max_bytes, ..ConsumerConfig::from(position) };
            let consumer = Consumer::new(self.connection.clone(), partition.clone(), config);
            self.readers.insert(partition.clone(), consumer.into_stream().boxed());
            self.assignments.insert(partition, assignment);
        }
    }

    fn stop_reading(&mut self, partition: &Partition) {
        self.readers.remove(partition);
        self.assignments.remove(partition);
    }

    fn after_error(&self, partition: &Partition, assignment: u64, error: ClientError) -> Result<(), ClientError> {
        if error.reason != "OFFSET_OUT_OF_RANGE" {
            return Err(error);
        }
        // Retention has passed the offset: the records in between are gone.
        tracing::warn!(%partition, %error, "committed offset out of range; reading from configured start");
        let found = match self.start {
            GroupStart::Earliest => error.number("earliest"),
            GroupStart::Latest => error.number("next"),
        };
        let position = found.map_or(self.start.position(), Position::Offset);
        self.owned.restart(partition, assignment, position);
        Ok(())
    }
}

/// Sends the member's task a command, and waits for the answer.
async fn ask(
    commands: mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<Result<(), ClientError>>) -> Command,
) -> Result<(), ClientError> {
    let stopped = || ClientError::new(ErrorKind::Fatal, "INTERNAL", "the group member task has stopped");
    let (reply, answer) = oneshot::channel();
    commands.send(command(reply)).await.map_err(|_| stopped())?;
    answer.await.unwrap_or_else(|_| Err(stopped()))
}
