//! Reading topics as a member of a consumer group: partitions are shared out among the members, and the group remembers how far
//! it has come.
//!
//! ```text
//! GroupConsumer::next (reads, hands out)  <-> held.rs (what is held, how far) <->  member.rs (heartbeats, commits)
//! ```
//!
//! Promise: each record goes to one member at a time, at least once. A record counts as finished when the caller asks for
//! the next one, commits, or closes; only finished records are committed. A partition that another member should have is read
//! no further, committed, and given back once its last record is finished.

mod calls;
mod held;
mod member;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::StreamMap;

use self::held::Held;
use self::member::{Command, Member};
use crate::client::Client;
use crate::consumer::{Consumer, ConsumerConfig};
use crate::error::{ClientError, ErrorKind};
use crate::record::{Partition, Position, StoredRecord};

/// Where a group starts in a partition that it has no offset of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupStart {
    /// At the first record.
    #[default]
    Earliest,
    /// At the end: only what is appended from then on.
    Latest,
}

impl GroupStart {
    fn position(self) -> Position {
        match self {
            Self::Earliest => Position::Earliest,
            Self::Latest => Position::Latest,
        }
    }
}

/// How to read as a member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupConfig {
    /// Name of the group.
    pub group: String,
    /// Topics to read. Members of a group may read different ones.
    pub topics: Vec<String>,
    /// Where a partition without a committed offset starts, and one whose offset retention has passed. Default: earliest.
    pub start: GroupStart,
    /// Name for people, in `chronicle group describe`. Default: empty.
    pub client_name: String,
    /// The member is dropped when nothing is heard of it for this long: 1 s to 10 min. Default: 30 s.
    pub session_timeout: Duration,
    /// How often finished records are committed by themselves; `None`: only by [`GroupConsumer::commit`]. Default: 5 s.
    pub auto_commit: Option<Duration>,
    /// How long another member waits for the caller to finish a record of a partition that it should have. After that the
    /// partition is given away, and the record may be read twice. Default: 30 s.
    pub revoke_timeout: Duration,
    /// Soft limit on the bytes of records in one answer of a node, for each partition; 0: the node's default. Default: 0.
    pub max_bytes: u32,
}

impl GroupConfig {
    /// The defaults, for this group and these topics.
    pub fn new<T: Into<String>>(group: impl Into<String>, topics: impl IntoIterator<Item = T>) -> Self {
        Self {
            group: group.into(),
            topics: topics.into_iter().map(Into::into).collect(),
            start: GroupStart::default(),
            client_name: String::new(),
            session_timeout: Duration::from_secs(30),
            auto_commit: Some(Duration::from_secs(5)),
            revoke_timeout: Duration::from_secs(30),
            max_bytes: 0,
        }
    }
}

/// A record with the partition that it is from.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupRecord {
    /// Where it is from.
    pub partition: Partition,
    /// The record.
    pub record: StoredRecord,
}

type Reader = Pin<Box<dyn Stream<Item = Result<StoredRecord, ClientError>> + Send>>;

/// Reads what a group assigns to it. Holds at most one answer of a node for each of its partitions, plus what HTTP/2 flow control
/// lets the nodes send ahead.
///
/// Dropping it leaves the group in the background, without a commit; [`GroupConsumer::close`] commits and waits.
pub struct GroupConsumer {
    client: Client,
    max_bytes: u32,
    start: GroupStart,
    held: Arc<Held>,
    readers: StreamMap<Partition, Reader>,
    /// Assignments that the readers belong to.
    assignments: HashMap<Partition, u64>,
    /// Version of `held` that they follow; `None`: to be looked at again.
    seen: Option<u64>,
    commands: mpsc::Sender<Command>,
    member: JoinHandle<()>,
}

impl std::fmt::Debug for GroupConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupConsumer").field("assigned", &self.assigned()).finish_non_exhaustive()
    }
}

impl Client {
    /// Joins a consumer group in the background and reads what it assigns.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn group_consumer(&self, config: GroupConfig) -> GroupConsumer {
        let held = Arc::<Held>::default();
        let (commands, receiver) = mpsc::channel(1);
        let (max_bytes, start) = (config.max_bytes, config.start);
        let member = Member {
            client: self.clone(),
            session_ends: Instant::now() + config.session_timeout,
            config,
            held: held.clone(),
            commands: receiver,
            id: String::new(),
            generation: 0,
        };
        GroupConsumer {
            client: self.clone(),
            max_bytes,
            start,
            held,
            readers: StreamMap::new(),
            assignments: HashMap::new(),
            seen: None,
            commands,
            member: tokio::spawn(member.run()),
        }
    }
}

impl GroupConsumer {
    /// The next record of any of the partitions that the member has; says that the records before it are finished. Waits
    /// while there is none, or no partition.
    ///
    /// Cancellation-safe: a record is only lost to the caller once it was returned.
    ///
    /// # Errors
    /// A refusal of the group (`INVALID_REQUEST`, `UNKNOWN_TOPIC`); the last failure once the coordinator could not be
    /// reached, or did not take the member (`OVERLOADED`), for a whole session; or the last failure once reading a partition has
    /// failed for the client's request timeout. Calling again tries again from the same place.
    pub async fn next(&mut self) -> Result<GroupRecord, ClientError> {
        self.held.finish();
        loop {
            if let Some(error) = self.held.take_failure() {
                return Err(error);
            }
            self.follow_assignment();
            let (partition, item) = tokio::select! {
                biased;
                () = self.held.changed.notified() => continue,
                Some(next) = self.readers.next() => next,
            };
            let assignment = self.assignments.get(&partition).copied().unwrap_or(0);
            match item {
                Ok(record) if self.held.hand(&partition, assignment, record.offset) => {
                    return Ok(GroupRecord { partition, record });
                }
                // It is somebody else's by now.
                Ok(_) => self.stop_reading(&partition),
                Err(error) => {
                    self.stop_reading(&partition);
                    self.seen = None;
                    self.after_error(&partition, assignment, error)?;
                }
            }
        }
    }

    /// Remembers all records that were returned so far as finished, durably.
    ///
    /// # Errors
    /// `UNKNOWN_MEMBER` and `STALE_GENERATION` when partitions were lost to another member meanwhile, which reads their records
    /// again; `OUTCOME_UNKNOWN`; no answer within half the session. The next commit includes what this one did not.
    pub async fn commit(&mut self) -> Result<(), ClientError> {
        self.held.finish();
        ask(self.commands.clone(), Command::Commit).await
    }

    /// The partitions that the member reads at the moment.
    pub fn assigned(&self) -> Vec<Partition> {
        self.held.readable().into_iter().map(|(partition, ..)| partition).collect()
    }

    /// Says that all returned records are finished, commits them unless commits are manual, and leaves the group.
    ///
    /// # Errors
    /// As [`GroupConsumer::commit`]. The group is left in any case.
    pub async fn close(self) -> Result<(), ClientError> {
        self.held.finish();
        self.leave().await
    }

    /// As [`GroupConsumer::close`], but the record that was returned last is not finished: another member gets it.
    ///
    /// # Errors
    /// As [`GroupConsumer::commit`]. The group is left in any case.
    pub async fn leave(self) -> Result<(), ClientError> {
        let left = ask(self.commands, Command::Close).await;
        if let Err(error) = self.member.await {
            tracing::error!(%error, "the member's task panicked");
        }
        left
    }

    /// Reads the partitions that the member holds, and no others.
    fn follow_assignment(&mut self) {
        let version = self.held.version();
        if self.seen.replace(version) == Some(version) {
            return;
        }
        let readable = self.held.readable();
        let is_held = |partition: &Partition, assignment: u64| {
            readable.iter().any(|(held, id, _)| held == partition && *id == assignment)
        };
        let gone: Vec<Partition> = self
            .assignments
            .iter()
            .filter(|(partition, assignment)| !is_held(partition, **assignment))
            .map(|(partition, _)| partition.clone())
            .collect();
        gone.iter().for_each(|partition| self.stop_reading(partition));
        for (partition, assignment, position) in readable {
            if self.assignments.contains_key(&partition) {
                continue;
            }
            let config = ConsumerConfig { max_bytes: self.max_bytes, ..ConsumerConfig::from(position) };
            let consumer = Consumer::new(self.client.clone(), partition.clone(), config);
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
        // Retention has passed the offset: what lies between is gone for everybody.
        tracing::warn!(%partition, %error, "the group's offset is not in the log, it goes on where groups start");
        let found = match self.start {
            GroupStart::Earliest => error.number("earliest"),
            GroupStart::Latest => error.number("next"),
        };
        let position = found.map_or(self.start.position(), Position::Offset);
        self.held.restart(partition, assignment, position);
        Ok(())
    }
}

/// Asks the member's task for something, and waits for the answer.
async fn ask(
    commands: mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<Result<(), ClientError>>) -> Command,
) -> Result<(), ClientError> {
    let stopped = || ClientError::new(ErrorKind::Fatal, "INTERNAL", "the member's task has stopped");
    let (reply, answer) = oneshot::channel();
    commands.send(command(reply)).await.map_err(|_| stopped())?;
    answer.await.unwrap_or_else(|_| Err(stopped()))
}
