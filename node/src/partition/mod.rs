//! One partition on this node: its log, its raft group, its sequencer.
//!
//! A [`Slot`] is the place of a partition: it opens the partition on first use, puts it to sleep when nobody uses it, and
//! starts it again after a failure. While a partition sleeps it costs no memory, no timer and no open file.
//!
//! Write path: [`Partition::submit`] → `sequencer` → `raft::Group` → `chronicle-log`. Reads go from [`Partition::read`]
//! straight to the log, up to the applied index.

mod keys;
mod machine;
mod producers;
mod retention;
mod sequencer;
mod slot;
mod view;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use chronicle_log::{Durability, Log, LogConfig, LogError, LogId, Store, StoredEntry};
use chronicle_records::{BatchHeader, Limits};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

pub use machine::Progress;
use machine::{PartitionMachine, Shared};
pub use sequencer::{Answer, Reply};
use sequencer::{Append, Failure, Sequencer};
pub use slot::{Slot, SlotState};
pub use view::View;

use crate::broker::{BrokerError, Expectation, PartitionDescription, Reason, TopicDurability, TopicSettings};
use crate::config::PartitionsConfig;
use crate::controller::ControllerState;
use crate::raft::{Group, GroupError, Member};

/// Limits for batches that were checked when they were accepted.
pub(crate) const STORED: Limits =
    Limits { max_batch_bytes: usize::MAX, max_decompressed_bytes: usize::MAX, max_records: usize::MAX };

/// Smallest place that a request takes in the queue's byte bound: its own cost in memory.
const REQUEST_OVERHEAD_BYTES: usize = 512;

/// What every partition of a node shares.
pub struct Environment {
    /// The data directory.
    pub store: Arc<Store>,
    /// The runtime of raft groups and sequencers, which the API cannot starve.
    pub consensus: Handle,
    /// This node's raft id.
    pub node: u64,
    /// This node as a member.
    pub member: Member,
    /// Tuning.
    pub config: PartitionsConfig,
    /// KiB that all partitions together may have proposed and not committed.
    pub budget: Arc<Semaphore>,
    /// What the controller group has agreed on.
    pub agreed: Arc<RwLock<Arc<ControllerState>>>,
}

impl Environment {
    /// The settings of the topic that a log belongs to, as agreed now; `None` when there is no such topic.
    fn settings(&self, id: LogId) -> Option<TopicSettings> {
        let state = self.agreed.read().clone();
        state.topics.values().find(|topic| topic.id == id.topic).map(|topic| topic.settings.clone())
    }
}

/// An open partition that this node leads.
pub struct Partition {
    id: LogId,
    log: Arc<Log>,
    group: Arc<Group<PartitionMachine>>,
    shared: Arc<Shared>,
    queue: mpsc::UnboundedSender<Append>,
    queue_bytes: Arc<Semaphore>,
    queue_bytes_max: usize,
    failure: Failure,
    sequencer: Mutex<Option<JoinHandle<()>>>,
    settings: TopicSettings,
    retention: tokio::sync::Mutex<()>,
}

impl Partition {
    /// Opens the log, starts the group and waits until this node leads it.
    ///
    /// # Errors
    /// When the log cannot be opened (damage included) or the group does not start.
    pub async fn open(env: Arc<Environment>, id: LogId, settings: TopicSettings) -> Result<Arc<Self>, BrokerError> {
        let handle = env.consensus.clone();
        // Tasks that openraft starts go to the runtime that this runs on.
        handle
            .spawn(Self::open_here(env, id, settings))
            .await
            .map_err(|e| BrokerError::new(Reason::Internal, format!("partition {id}: opening failed: {e}")))?
    }

    async fn open_here(env: Arc<Environment>, id: LogId, settings: TopicSettings) -> Result<Arc<Self>, BrokerError> {
        let config = log_config(&settings);
        let store = env.store.clone();
        let log = tokio::task::spawn_blocking(move || store.open_log(id, config))
            .await
            .map_err(|e| BrokerError::new(Reason::Internal, format!("partition {id}: opening the log failed: {e}")))?
            .map_err(|e| log_error(&e))?;
        let started = Self::start(&env, id, log.clone(), settings).await;
        if started.is_err() {
            let _ = tokio::task::spawn_blocking(move || log.close()).await;
        }
        started
    }

    async fn start(
        env: &Environment,
        id: LogId,
        log: Arc<Log>,
        settings: TopicSettings,
    ) -> Result<Arc<Self>, BrokerError> {
        let (machine, shared) = PartitionMachine::new(log.clone(), env.config.producers_max, view::of_log(env, id));
        let member = env.member.clone();
        let group = Group::start(env.store.clone(), log.clone(), id, env.node, member, machine)
            .await
            .map_err(|e| group_error(&e))?;
        let group = Arc::new(group);
        let leader = match group.lead().await {
            Ok(leader) => leader,
            Err(error) => {
                group.shutdown().await;
                return Err(group_error(&error));
            }
        };
        let (queue, receiver) = mpsc::unbounded_channel();
        let failure = Failure::new(log.clone());
        let sequencer = Sequencer {
            group: group.clone(),
            leader,
            log: log.clone(),
            shared: shared.clone(),
            queue: receiver,
            slots: Arc::new(Semaphore::new(env.config.entries_in_flight_max)),
            budget: env.budget.clone(),
            entry_bytes_max: env.config.entry_bytes_max,
            versioned_keys_max: env.config.versioned_keys_max,
            failure: failure.clone(),
        };
        let sequencer = tokio::spawn(sequencer.run());
        tracing::debug!(partition = %id, term = leader.term, "partition is open");
        Ok(Arc::new(Self {
            id,
            log,
            group,
            shared,
            queue,
            queue_bytes: Arc::new(Semaphore::new(env.config.queue_bytes_max)),
            queue_bytes_max: env.config.queue_bytes_max,
            failure,
            sequencer: Mutex::new(Some(sequencer)),
            settings,
            retention: tokio::sync::Mutex::new(()),
        }))
    }

    /// Queues a checked batch. Appends are judged in the order in which this returns. Waits while the queue is full.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] when the batch is larger than the whole queue; the failure of the partition.
    pub async fn submit(
        &self,
        batch: BytesMut,
        header: BatchHeader,
        expectation: Option<Expectation>,
    ) -> Result<oneshot::Receiver<Answer>, BrokerError> {
        let bytes = batch.len().max(REQUEST_OVERHEAD_BYTES);
        if bytes > self.queue_bytes_max {
            return Err(BrokerError::new(
                Reason::RecordTooLarge,
                format!("batch: {bytes} bytes are more than partitions.queue-bytes-max ({})", self.queue_bytes_max),
            ));
        }
        let permits = self.queue_bytes.clone().acquire_many_owned(bytes as u32);
        let permit = permits.await.map_err(|_| self.refusal())?;
        let (reply, answer) = Reply::new();
        let append = Append { batch, header, expectation, reply, permit };
        self.queue.send(append).map_err(|_| self.refusal())?;
        Ok(answer)
    }

    fn refusal(&self) -> BrokerError {
        self.failure().unwrap_or_else(|| BrokerError::new(Reason::Unavailable, "the partition is stopping"))
    }

    /// Why the partition has to start again, if it has.
    pub fn failure(&self) -> Option<BrokerError> {
        if let Some(error) = self.failure.get() {
            return Some(error);
        }
        // A group can stop while nobody appends.
        let error = group_error(&self.group.failure()?);
        self.failure.set(error.clone());
        Some(error)
    }

    /// Resolves when the partition stops, for whatever cause: whoever waits for records must look for its successor.
    pub async fn stopped(&self) {
        self.failure.stopped().await;
    }

    /// What readers may see, and a way to wait for more.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// First retained offset.
    pub fn log_start(&self) -> u64 {
        self.log.position().start_offset
    }

    /// Committed entries from the one that contains `offset` on, about `max_bytes` of them.
    ///
    /// # Errors
    /// [`Reason::OffsetOutOfRange`] below the log start, [`Reason::DataDamaged`], and failures of the disk.
    pub async fn read(
        &self,
        offset: u64,
        progress: Progress,
        max_bytes: usize,
    ) -> Result<Vec<StoredEntry>, BrokerError> {
        let Some(index) = progress.index else { return Ok(Vec::new()) };
        let log = self.log.clone();
        on_disk(move || log.read_at_offset(offset, index, max_bytes)).await
    }

    /// The first committed entry with a record at or after this time (milliseconds since the Unix epoch).
    ///
    /// # Errors
    /// As [`Partition::read`].
    pub async fn entry_at_time(&self, time_ms: i64, progress: Progress) -> Result<Option<StoredEntry>, BrokerError> {
        let Some(index) = progress.index else { return Ok(None) };
        let log = self.log.clone();
        on_disk(move || log.entry_for_time(time_ms, index)).await
    }

    /// The partition for people.
    pub fn describe(&self, leader: String) -> PartitionDescription {
        let position = self.log.position();
        PartitionDescription {
            partition: self.id.partition as i32,
            earliest: position.start_offset as i64,
            next: self.shared.progress.borrow().next_offset as i64,
            bytes: position.bytes as i64,
            segments: position.segments as i32,
            term: self.group.status().term as i64,
            leader,
            state: match self.failure() {
                Some(error) => format!("failed: {error}"),
                None => "active".into(),
            },
            replicas: Vec::new(),
        }
    }

    /// Takes a checkpoint when the log has rolled, and deletes what the topic's retention no longer keeps.
    ///
    /// # Errors
    /// When the group or the disk fails.
    pub async fn maintain(&self, now_ms: i64) -> Result<(), BrokerError> {
        let _one = self.retention.lock().await;
        retention::run(&self.log, &self.group, &self.shared, &self.settings, now_ms).await
    }

    /// Refuses new appends, waits for accepted ones, saves a checkpoint and closes the log.
    pub async fn close(&self) {
        // Maintenance that is under way deletes files and waits for checkpoints.
        let _one = self.retention.lock().await;
        self.queue_bytes.close();
        self.failure.stop();
        let sequencer = self.sequencer.lock().take();
        if let Some(sequencer) = sequencer
            && let Err(error) = sequencer.await
        {
            tracing::error!(partition = %self.id, %error, "sequencer panicked");
        }
        self.group.close(self.failure().is_some()).await;
    }
}

/// Runs a read that may wait for the disk away from the API's threads.
async fn on_disk<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, BrokerError> {
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|e| BrokerError::new(Reason::Internal, format!("read: {e}")))?
        .map_err(|e| log_error(&e))
}

fn log_config(settings: &TopicSettings) -> LogConfig {
    LogConfig {
        segment_bytes: settings.segment_bytes.max(0) as u64,
        durability: match settings.durability {
            TopicDurability::Fsync => Durability::Fsync,
            TopicDurability::Memory => Durability::Memory {
                flush_interval: std::time::Duration::from_millis(settings.flush_interval_ms.max(1) as u64),
            },
        },
    }
}

/// What a failure of the engine means to a client.
pub(crate) fn log_error(error: &LogError) -> BrokerError {
    let message = error.to_string();
    match error.root() {
        LogError::NoSpace { .. } => BrokerError::new(Reason::DiskFull, message),
        LogError::Damaged { .. } => BrokerError::new(Reason::DataDamaged, message),
        LogError::OffsetOutOfRange { offset, earliest, next } => {
            out_of_range(*offset as i64, *earliest as i64, *next as i64)
        }
        LogError::ReadOnly { .. } | LogError::Io { .. } => BrokerError::new(Reason::DiskFailed, message),
        LogError::Overloaded { .. } => BrokerError::new(Reason::Overloaded, message),
        LogError::Closed | LogError::AlreadyOpen(_) | LogError::Truncated => {
            BrokerError::new(Reason::Unavailable, message)
        }
        _ => BrokerError::new(Reason::Internal, message),
    }
}

/// The answer to a read outside the log.
pub(crate) fn out_of_range(offset: i64, earliest: i64, next: i64) -> BrokerError {
    BrokerError::new(
        Reason::OffsetOutOfRange,
        format!(
            "offset {offset} is out of range: the partition holds offsets from {earliest} up to, not including, {next}"
        ),
    )
    .with("earliest", earliest)
    .with("next", next)
}

/// What a failure of a raft group means to a client.
pub(crate) fn group_error(error: &GroupError) -> BrokerError {
    match error {
        GroupError::Log(error) => log_error(error),
        GroupError::Raft { .. } | GroupError::NoLeader { .. } => {
            BrokerError::new(Reason::Unavailable, error.to_string())
        }
    }
}

/// The batches of stored entries, without those that end before `offset`.
///
/// # Errors
/// [`Reason::DataDamaged`] when an entry is not made of batches.
pub(crate) fn batches_from(entries: &[StoredEntry], offset: u64) -> Result<Vec<Bytes>, BrokerError> {
    let mut batches = Vec::new();
    for entry in entries {
        for batch in chronicle_records::split(&entry.entry.payload) {
            let (header, bytes) = batch.map_err(|e| {
                BrokerError::new(Reason::DataDamaged, format!("stored entry {}: {e}", entry.entry.index))
            })?;
            if header.last_offset() >= offset as i64 {
                batches.push(bytes);
            }
        }
    }
    Ok(batches)
}
