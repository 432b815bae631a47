//! An open replica of a partition: its log, its raft group, and its sequencer while this node leads it.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use chronicle_log::{Log, LogId, StoredEntry};
use chronicle_records::BatchHeader;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::environment::Environment;
use super::lag::ReplicaLag;
use super::leading::{Leadership, LeadershipTask, PartitionRole};
use super::machine::{AppliedState, PartitionMachine, Progress};
use super::retention;
use super::sequencer::{Answer, Append, Reply};
use super::storage::{on_disk, open_log};
use super::upkeep::Upkeep;
use super::view::View;
use crate::host::jitter;
use crate::metadata::Placement;
use crate::model::{Expectation, PartitionDescription, PartitionError, TopicSettings};
use crate::raft::{Group, GroupError, Start};
use crate::telemetry::traces::Queued;

/// Smallest place that a request takes in the queue's byte bound: its own cost in memory.
const REQUEST_OVERHEAD_BYTES: usize = 512;
/// Longest wait for the leadership of a group of one.
const LEAD_ALONE_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two attempts to be elected.
const CAMPAIGN_PAUSE: Duration = Duration::from_millis(200);

/// An open replica of a partition.
pub struct Partition {
    pub(super) id: LogId,
    pub(super) env: Arc<Environment>,
    pub(super) log: Arc<Log>,
    pub(super) group: Arc<Group<PartitionMachine>>,
    pub(super) shared: Arc<AppliedState>,
    pub(super) leadership: Arc<Leadership>,
    /// Ends with the partition, for whatever cause.
    stop: CancellationToken,
    leading_task: Mutex<Option<JoinHandle<()>>>,
    pub(super) upkeep: Upkeep,
    nudged: std::sync::atomic::AtomicBool,
    settings: TopicSettings,
    retention: tokio::sync::Mutex<()>,
}

impl Partition {
    /// Opens the log and starts the group, as a follower; the only replica of its partition leads when this returns.
    ///
    /// # Errors
    /// When the log cannot be opened (damage included) or the group does not start.
    pub async fn open(
        env: Arc<Environment>,
        id: LogId,
        settings: TopicSettings,
        placement: Placement,
    ) -> Result<Arc<Self>, PartitionError> {
        let handle = env.cluster.consensus.clone();
        // Tasks that openraft starts go to the runtime that this runs on.
        handle
            .spawn(Self::open_here(env, id, settings, placement))
            .await
            .map_err(|e| PartitionError::Internal(format!("partition {id}: opening failed: {e}")))?
    }

    async fn open_here(
        env: Arc<Environment>,
        id: LogId,
        settings: TopicSettings,
        placement: Placement,
    ) -> Result<Arc<Self>, PartitionError> {
        let log = open_log(&env, id, &settings).await?;
        let started = Self::start(env, id, log.clone(), settings, placement).await;
        if started.is_err() {
            let _ = crate::host::blocking(move || log.close()).await;
        }
        started
    }

    async fn start(
        env: Arc<Environment>,
        id: LogId,
        log: Arc<Log>,
        settings: TopicSettings,
        placement: Placement,
    ) -> Result<Arc<Self>, PartitionError> {
        let (machine, shared) = PartitionMachine::new(log.clone(), env.config().partitions.producers_max, env.view(id));
        let founder = placement.founders.contains(&env.cluster.node());
        let start = Start {
            store: env.cluster.store.clone(),
            log: log.clone(),
            id,
            node: env.cluster.node(),
            transport: env.cluster.peers.clone(),
            founders: founder.then(|| env.cluster.members(&placement.first)),
            election_timeout: env.cluster.election_timeout(),
            metrics: env.cluster.metrics.clone(),
        };
        let group = Arc::new(Group::start(start, machine).await.map_err(PartitionError::from)?);
        let leadership = Leadership::new();
        let stop = CancellationToken::new();
        let leading_task = LeadershipTask {
            env: env.clone(),
            log: log.clone(),
            group: group.clone(),
            shared: shared.clone(),
            leadership: leadership.clone(),
            stop: stop.child_token(),
        };
        let status = group.status();
        // A log that was closed after everything in it was applied waits for nobody.
        let complete = status.applied == status.last;
        let partition = Arc::new(Self {
            id,
            log,
            shared,
            leadership,
            leading_task: Mutex::new(Some(tokio::spawn(leading_task.run()))),
            upkeep: Upkeep::new(complete),
            nudged: Default::default(),
            stop,
            settings,
            retention: tokio::sync::Mutex::new(()),
            env,
            group,
        });
        tracing::debug!(partition = %id, "partition is open");
        if status.voters.len() <= 1 && status.voters.contains(&partition.env.cluster.node()) {
            let led = partition.lead(LEAD_ALONE_TIMEOUT).await;
            if let Err(error) = led {
                partition.close().await;
                return Err(error);
            }
        }
        Ok(partition)
    }

    /// What this node is to the partition.
    pub fn role(&self) -> PartitionRole {
        *self.leadership.role.borrow()
    }

    /// True once in the life of an open replica that others share and that has heard no leader.
    pub(crate) fn wants_leader(&self) -> bool {
        let followed = matches!(self.role(), PartitionRole::Following { .. });
        followed && !self.group.heard_leader() && !self.nudged.swap(true, std::sync::atomic::Ordering::Relaxed)
    }

    /// The term in which this node leads and accepts appends, if it does.
    pub fn leads_in(&self) -> Option<u64> {
        match self.role() {
            PartitionRole::Leading(term) => Some(term.term),
            _ => None,
        }
    }

    /// Makes this node lead unless another one does: asks for an election if nobody leads, and waits.
    ///
    /// # Errors
    /// [`PartitionError::NotLeader`] with the leader's address; [`PartitionError::NoLeader`] when nobody leads within `patience`.
    pub async fn lead(&self, patience: Duration) -> Result<(), PartitionError> {
        let until = Instant::now() + patience;
        let mut roles = self.leadership.role.subscribe();
        self.upkeep.watcher.wake();
        loop {
            let role = *roles.borrow_and_update();
            match role {
                PartitionRole::Leading(_) => return Ok(()),
                PartitionRole::Following { leader: Some(leader) }
                    if leader != self.env.cluster.node()
                        && self.env.cluster.alive(leader)
                        && !self.group.leader_gone() =>
                {
                    return Err(PartitionError::NotLeader { leader });
                }
                PartitionRole::Settling => {}
                PartitionRole::Following { .. } => {
                    self.group.campaign().await.map_err(PartitionError::from)?;
                }
            }
            if let Some(error) = self.failure() {
                return Err(error);
            }
            let now = Instant::now();
            if now >= until {
                return Err(PartitionError::NoLeader);
            }
            // Votes may be split, or answers late: then it is asked again.
            let pause = jitter(CAMPAIGN_PAUSE).min(until - now);
            let _ = tokio::time::timeout(pause, roles.changed()).await;
        }
    }

    /// Queues a checked batch. Appends are judged in the order in which this returns. Waits while the queue is full.
    ///
    /// # Errors
    /// [`PartitionError::NotLeader`], [`PartitionError::NoLeader`] while nobody leads; [`PartitionError::LargerThanQueue`] when the batch is larger
    /// than the whole queue; the failure of the partition.
    pub async fn submit(
        &self,
        batch: BytesMut,
        header: BatchHeader,
        expectation: Option<Expectation>,
    ) -> Result<oneshot::Receiver<Answer>, PartitionError> {
        let leading = self.leadership.now.read().clone();
        let Some(leading) = leading else { return Err(self.refusal()) };
        let (bytes, queue_bytes_max) = (batch.len().max(REQUEST_OVERHEAD_BYTES), leading.queue_bytes_max);
        if bytes > queue_bytes_max {
            return Err(PartitionError::LargerThanQueue { bytes, limit: queue_bytes_max });
        }
        let refusal = || leading.failure.get().unwrap_or_else(|| self.refusal());
        let permits = leading.queue_bytes.clone().acquire_many_owned(bytes as u32);
        let permit = permits.await.map_err(|_| refusal())?;
        let (reply, answer) = Reply::new();
        let append = Append { batch, header, expectation, reply, permit, queued: Instant::now(), trace: Queued::now() };
        leading.queue.send(append).map_err(|_| refusal())?;
        Ok(answer)
    }

    /// Why this replica does not take an append.
    fn refusal(&self) -> PartitionError {
        if let Some(error) = self.failure() {
            return error;
        }
        match self.role() {
            _ if self.stop.is_cancelled() => PartitionError::Unavailable("the partition is stopping".into()),
            PartitionRole::Following { leader: Some(leader) } if leader != self.env.cluster.node() => {
                PartitionError::NotLeader { leader }
            }
            _ => PartitionError::NoLeader,
        }
    }

    /// Why the partition has to start again, if it has.
    pub fn failure(&self) -> Option<PartitionError> {
        let error = PartitionError::from(self.group.failure()?);
        self.stop.cancel();
        Some(error)
    }

    /// Resolves when the partition stops, for whatever cause: whoever waits for records must look for its successor.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// The partition's raft group.
    pub(crate) fn group(&self) -> &Arc<Group<PartitionMachine>> {
        &self.group
    }

    /// How far the other replicas are behind; nothing while this one does not lead.
    pub fn replica_lag(&self) -> ReplicaLag {
        self.upkeep.lags.lock().now()
    }

    /// The topic's settings that it was opened with.
    pub fn settings(&self) -> &TopicSettings {
        &self.settings
    }

    /// Identity of the log.
    pub fn id(&self) -> LogId {
        self.id
    }

    /// The log itself.
    pub(crate) fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// Waits until what is readable here includes everything that was acknowledged when this was called. On the leader only.
    ///
    /// # Errors
    /// [`PartitionError::NotLeader`], or [`PartitionError::NoLeader`] without a majority.
    pub async fn read_index(&self) -> Result<(), PartitionError> {
        self.group.read_index().await.map(|_| ()).map_err(|e| match e {
            GroupError::NotLeader { leader: Some(leader), .. } => PartitionError::NotLeader { leader },
            GroupError::NotLeader { leader: None, .. } => PartitionError::NoLeader,
            other => other.into(),
        })
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
    /// [`PartitionError::OutOfRange`] below the log start, [`PartitionError::Damaged`], and failures of the disk.
    pub async fn read(
        &self,
        offset: u64,
        progress: Progress,
        max_bytes: usize,
    ) -> Result<Vec<StoredEntry>, PartitionError> {
        let Some(index) = progress.index else { return Ok(Vec::new()) };
        let log = self.log.clone();
        on_disk(move || log.read_at_offset(offset, index, max_bytes)).await
    }

    /// The first committed entry with a record at or after this time (milliseconds since the Unix epoch).
    ///
    /// # Errors
    /// As [`Partition::read`].
    pub async fn entry_at_time(&self, time_ms: i64, progress: Progress) -> Result<Option<StoredEntry>, PartitionError> {
        let Some(index) = progress.index else { return Ok(None) };
        let log = self.log.clone();
        on_disk(move || log.entry_for_time(time_ms, index)).await
    }

    /// The partition for people.
    pub fn describe(&self) -> PartitionDescription {
        let status = self.group.status();
        let state = self.env.cluster.state();
        let leader = status.leader.and_then(|id| state.nodes.get(&id)).map(|node| node.addresses.data().to_owned());
        let position = self.log.position();
        PartitionDescription {
            partition: self.id.partition as i32,
            earliest: position.start_offset as i64,
            next: self.shared.progress.borrow().next_offset as i64,
            bytes: position.bytes as i64,
            segments: position.segments as i32,
            term: status.term as i64,
            leader: leader.unwrap_or_default(),
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
    pub async fn maintain(&self, now_ms: i64) -> Result<(), PartitionError> {
        let _one = self.retention.lock().await;
        retention::run(&self.log, &self.group, &self.shared, &self.settings, now_ms).await
    }

    /// Hands leadership to another replica: accepted appends are finished first, new ones refused.
    ///
    /// # Errors
    /// When this node does not lead, or the other one does not take over in time.
    pub async fn hand_over(&self, to: u64) -> Result<(), PartitionError> {
        let _one = self.leadership.handing_over.lock().await;
        let leading = self.leadership.now.read().clone();
        let Some(leading) = leading else { return Err(self.refusal()) };
        leading.stop().await;
        self.group.transfer(to).await.map_err(PartitionError::from)
    }

    /// The partition is about to close, when its turn comes: it leads no more from now on, and does not try to.
    pub fn retire(&self) {
        self.stop.cancel();
    }

    /// Refuses new appends, waits for accepted ones, saves a checkpoint and closes the log.
    pub async fn close(&self) {
        // Maintenance that is under way deletes files and waits for checkpoints.
        let _one = self.retention.lock().await;
        self.stop.cancel();
        let leading = self.leadership.now.read().clone();
        if let Some(leading) = leading {
            leading.stop().await;
        }
        let leading_task = self.leading_task.lock().take();
        if let Some(leading_task) = leading_task
            && let Err(error) = leading_task.await
        {
            tracing::error!(partition = %self.id, %error, "leadership panicked");
        }
        self.group.close(self.failure().is_some()).await;
    }

    /// Reads the partition's view as of the last applied record. `None`: it has no view, or one of another type. The
    /// reader holds up the partition: it must be quick.
    pub(crate) fn view<V: View, R>(&self, read: impl FnOnce(&V) -> R) -> Option<R> {
        let view = self.shared.view.as_ref()?.lock();
        let any: &dyn Any = &**view;
        any.downcast_ref::<V>().map(read)
    }
}
