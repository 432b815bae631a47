//! An open replica of a partition: its log, its raft group, and its sequencer while this node leads it.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use chronicle_log::{Log, LogId, StoredEntry, mutant};
use chronicle_records::{BatchHeader, ProducerLimits};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::environment::Environment;
use super::leading::{Leadership, LeadershipTask, PartitionRole};
use super::replica_lag::ReplicaLag;
use super::sequencer::{Append, AppendAnswer, Reply};
use super::state_machine::{AppliedState, PartitionMachine, Progress};
use super::storage::{on_disk, open_log};
use super::tick_state::TickState;
use super::views::View;
use crate::host::jitter;
use crate::metadata::Placement;
use crate::model::{Expectation, PartitionDescription, PartitionError, TermEnd, TopicSettings};
use crate::raft::{LeaderTerm, LeasePromise, RaftGroup, RaftGroupConfig, RaftGroupError};
use crate::telemetry::traces::Queued;

/// Minimum number of bytes that a request counts in the queue's byte limit: its own cost in memory.
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
    pub(super) group: Arc<RaftGroup<PartitionMachine>>,
    pub(super) shared: Arc<AppliedState>,
    pub(super) leadership: Arc<Leadership>,
    /// Cancelled when the partition stops, for any cause.
    stop: CancellationToken,
    leading_task: Mutex<Option<JoinHandle<()>>>,
    pub(super) tick_state: TickState,
    nudged: std::sync::atomic::AtomicBool,
    pub(super) settings: TopicSettings,
    /// Held while retention works. The last log start that this replica has proposed, by term and index.
    pub(super) retention: tokio::sync::Mutex<Option<(LeaderTerm, u64)>>,
}

impl Partition {
    /// Opens the log and starts the group, as a follower. If this is the partition's only replica, it leads when this returns.
    /// `promise`: what the replica has promised as a voter, also before it was closed.
    ///
    /// # Errors
    /// When the log cannot be opened (damage included) or the group does not start.
    pub async fn open(
        env: Arc<Environment>,
        id: LogId,
        settings: TopicSettings,
        placement: Placement,
        promise: Arc<LeasePromise>,
    ) -> Result<Arc<Self>, PartitionError> {
        let handle = env.cluster.consensus.clone();
        // openraft spawns its tasks on the current runtime.
        handle
            .spawn(Self::open_here(env, id, settings, placement, promise))
            .await
            .map_err(|e| PartitionError::Internal(format!("partition {id}: opening was interrupted: {e}")))?
    }

    async fn open_here(
        env: Arc<Environment>,
        id: LogId,
        settings: TopicSettings,
        placement: Placement,
        promise: Arc<LeasePromise>,
    ) -> Result<Arc<Self>, PartitionError> {
        let log = open_log(&env, id, &settings).await?;
        let started = Self::start(env, id, log.clone(), settings, placement, promise).await;
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
        promise: Arc<LeasePromise>,
    ) -> Result<Arc<Self>, PartitionError> {
        let partitions = &env.config().partitions;
        let limits = ProducerLimits { producers: partitions.producers_max, keep_ms: partitions.producer_keep_ms };
        let (machine, shared) = PartitionMachine::new(log.clone(), limits, env.view(id));
        let founder = placement.founders.contains(&env.cluster.node());
        let start = RaftGroupConfig {
            store: env.cluster.store.clone(),
            log: log.clone(),
            id,
            node: env.cluster.node(),
            transport: env.cluster.peers.clone(),
            founders: founder.then(|| env.cluster.members(&placement.first)),
            election_timeout: env.cluster.election_timeout(),
            reads: env.config().cluster.linearizable_reads,
            promise,
            suspension: crate::host::suspension,
            metrics: env.cluster.metrics.clone(),
        };
        let group = Arc::new(RaftGroup::start(start, machine).await.map_err(PartitionError::from)?);
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
        // A log that was closed after all its entries were applied needs no leader.
        let complete = status.applied == status.last;
        let partition = Arc::new(Self {
            id,
            log,
            shared,
            leadership,
            leading_task: Mutex::new(Some(tokio::spawn(leading_task.run()))),
            tick_state: TickState::new(complete),
            nudged: Default::default(),
            stop,
            settings,
            retention: tokio::sync::Mutex::new(None),
            env,
            group,
        });
        tracing::debug!(partition = %id, "partition opened");
        if status.voters.len() <= 1 && status.voters.contains(&partition.env.cluster.node()) {
            let led = partition.lead(LEAD_ALONE_TIMEOUT).await;
            if let Err(error) = led {
                partition.close().await;
                return Err(error);
            }
        }
        Ok(partition)
    }

    /// This node's role in the partition.
    pub fn role(&self) -> PartitionRole {
        *self.leadership.role.borrow()
    }

    /// Returns true at most once per open replica: when it follows and has received nothing from a leader.
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

    /// Makes this node the leader unless another node is: starts an election if there is no leader, and waits.
    ///
    /// # Errors
    /// [`PartitionError::NotLeader`] with the leader's id; [`PartitionError::NoLeader`] when there is no leader within `patience`;
    /// [`PartitionError::Unavailable`] at once when too few voters are in service.
    pub async fn lead(&self, patience: Duration) -> Result<(), PartitionError> {
        let until = Instant::now() + patience;
        let mut roles = self.leadership.role.subscribe();
        self.tick_state.watcher.wake();
        loop {
            let role = *roles.borrow_and_update();
            match role {
                PartitionRole::Leading(_) => return Ok(()),
                PartitionRole::Following { leader: Some(leader) }
                    if leader != self.env.cluster.node()
                        && self.env.cluster.serves(leader, self.id)
                        && !self.group.leader_gone() =>
                {
                    return Err(PartitionError::NotLeader { leader });
                }
                PartitionRole::Settling => {}
                PartitionRole::Following { .. } => {
                    self.can_be_elected()?;
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
            // Votes may be split, or responses late: then the election is retried.
            let pause = jitter(CAMPAIGN_PAUSE).min(until - now);
            let _ = tokio::time::timeout(pause, roles.changed()).await;
        }
    }

    /// Fails when no election can succeed, because too few voters are in service. A request must not wait for one then: the client's
    /// deadline could pass while it waits, and the client would have to take the outcome as unknown.
    fn can_be_elected(&self) -> Result<(), PartitionError> {
        let cluster = &self.env.cluster;
        let serves = |node: u64| node == cluster.node() || cluster.serves(node, self.id);
        if self.group.has_majority(serves) {
            return Ok(());
        }
        let voters = self.group.status().voters;
        let serving = voters.iter().filter(|node| serves(**node)).count();
        let why = format!("no leader: {serving} of {} voters are in service: must be a majority", voters.len());
        Err(PartitionError::Unavailable(why))
    }

    /// Queues a validated batch. Appends are checked in the order in which this returns. Waits while the queue is full.
    ///
    /// # Errors
    /// [`PartitionError::NotLeader`], [`PartitionError::NoLeader`] while there is no leader; [`PartitionError::LargerThanQueue`] when
    /// the batch is larger than the whole queue; the failure of the partition.
    pub async fn submit(
        &self,
        batch: BytesMut,
        header: BatchHeader,
        expectation: Option<Expectation>,
    ) -> Result<oneshot::Receiver<AppendAnswer>, PartitionError> {
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

    /// Why this replica does not accept an append.
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

    /// Why the partition has to restart, if it has failed.
    pub fn failure(&self) -> Option<PartitionError> {
        let error = PartitionError::from(self.group.failure()?);
        self.stop.cancel();
        Some(error)
    }

    /// Resolves when the partition stops, for any cause: a caller that waits for records must then open the partition again.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// The partition's raft group.
    pub(crate) fn group(&self) -> &Arc<RaftGroup<PartitionMachine>> {
        &self.group
    }

    /// Lag of the other replicas; zero while this one does not lead.
    pub fn replica_lag(&self) -> ReplicaLag {
        self.tick_state.lags.lock().now()
    }

    /// The topic's settings when the partition was opened.
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

    /// Waits until all records that were acknowledged when this was called can be read here. On the leader only.
    ///
    /// # Errors
    /// [`PartitionError::NotLeader`], or [`PartitionError::NoLeader`] without a majority.
    pub async fn read_index(&self) -> Result<(), PartitionError> {
        if mutant!("latest-without-proof") {
            return Ok(());
        }
        self.group.read_index().await.map(|_| ()).map_err(RaftGroupError::refusal)
    }

    /// Proves that this node has led in `term` at some time since the call. What it knew of the partition before the call was
    /// then not outdated by another leader.
    ///
    /// # Errors
    /// As [`Partition::read_index`]; [`PartitionError::NotLeader`] when it leads in another term.
    pub async fn confirm(&self, term: u64) -> Result<(), PartitionError> {
        let term = LeaderTerm { term, leader: self.env.cluster.node() };
        self.group.confirm(term).await.map_err(RaftGroupError::refusal)
    }

    /// The progress up to which readers may read, and a way to wait for more.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// First retained offset: on every replica the one that the leader has decided, once the replica has applied it.
    pub fn log_start(&self) -> u64 {
        self.shared.log_start(&self.log)
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
        if offset < self.shared.start().offset {
            let (offset, earliest, next) = (offset as i64, self.log_start() as i64, progress.next_offset as i64);
            return Err(PartitionError::OutOfRange { offset, earliest, next });
        }
        let index = if mutant!("reads-above-commit") { u64::MAX } else { index };
        let log = self.log.clone();
        on_disk(move || log.read_at_offset(offset, index, max_bytes)).await
    }

    /// The first committed entry with a record at or after this time (milliseconds since the Unix epoch).
    ///
    /// # Errors
    /// As [`Partition::read`].
    pub async fn entry_at_time(&self, time_ms: i64, progress: Progress) -> Result<Option<StoredEntry>, PartitionError> {
        let Some(index) = progress.index else { return Ok(None) };
        let (log, first) = (self.log.clone(), self.shared.start().index);
        on_disk(move || log.entry_for_time_from(first, time_ms, index)).await
    }

    /// Where the records of a leader's term end, among the committed entries; `None`: the log begins after that term. Terms only
    /// grow along the log, so the place is found by bisection over raft indexes.
    ///
    /// # Errors
    /// As [`Partition::read`].
    pub async fn end_of_term(&self, term: u64, progress: Progress) -> Result<Option<TermEnd>, PartitionError> {
        let Some(last) = progress.index else { return Ok(None) };
        let (log, agreed) = (self.log.clone(), self.shared.start().index);
        on_disk(move || {
            let first = log.position().first_index.max(agreed);
            // The first entry of a later term lies in `from..=to`; `to` is behind the last entry.
            let (mut from, mut to) = (first, last + 1);
            let mut after = None;
            while from < to {
                let middle = from + (to - from) / 2;
                match log.read(middle, middle + 1, 1)?.into_iter().next() {
                    Some(stored) if stored.entry.term > term => {
                        to = middle;
                        after = Some(stored.base_offset);
                    }
                    _ => from = middle + 1,
                }
            }
            if from == first {
                return Ok(None);
            }
            let found = log.read(from - 1, from, 1)?.into_iter().next().map(|stored| stored.entry.term);
            let end_offset = after.unwrap_or(progress.next_offset) as i64;
            Ok(found.map(|term| TermEnd { term, end_offset }))
        })
        .await
    }

    /// Describes the partition for people.
    pub fn describe(&self) -> PartitionDescription {
        let status = self.group.status();
        let state = self.env.cluster.state();
        let leader = status.leader.and_then(|id| state.nodes.get(&id)).map(|node| node.addresses.data().to_owned());
        let position = self.log.position();
        PartitionDescription {
            partition: self.id.partition as i32,
            earliest: self.log_start() as i64,
            next: self.shared.progress.borrow().next_offset as i64,
            bytes: position.bytes as i64,
            segments: position.segments as i32,
            term: status.term as i64,
            leader: leader.unwrap_or_default(),
            state: match (self.failure(), status.doubt) {
                (Some(error), _) => format!("failed: {error}"),
                (None, Some(doubt)) => format!(
                    "in doubt from raft index {}: its end was cut; waits for a leader or for all other replicas",
                    doubt.from
                ),
                (None, None) => "active".into(),
            },
            replicas: Vec::new(),
        }
    }

    /// Transfers leadership to another replica: finishes accepted appends first, and rejects new ones.
    ///
    /// # Errors
    /// When this node does not lead, or the other node does not become the leader in time.
    pub async fn hand_over(&self, to: u64) -> Result<(), PartitionError> {
        let _one = self.leadership.handing_over.lock().await;
        let leading = self.leadership.now.read().clone();
        let Some(leading) = leading else { return Err(self.refusal()) };
        leading.stop().await;
        self.group.transfer(to).await.map_err(PartitionError::from)
    }

    /// Announces that the partition will be closed: it stops leading and does not start elections from now on.
    pub fn retire(&self) {
        self.stop.cancel();
    }

    /// Rejects new appends, waits for accepted ones, saves a checkpoint and closes the log.
    pub async fn close(&self) {
        // Running maintenance deletes files and waits for checkpoints.
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
            tracing::error!(partition = %self.id, %error, "leadership task panicked");
        }
        self.group.close(self.failure().is_some()).await;
    }

    /// Reads the partition's view as of the last applied record. `None`: it has no view, or one of another type. `read` blocks
    /// the partition: it must be quick.
    pub(crate) fn view<V: View, R>(&self, read: impl FnOnce(&V) -> R) -> Option<R> {
        let view = self.shared.view.as_ref()?.lock();
        let any: &dyn Any = &**view;
        any.downcast_ref::<V>().map(read)
    }
}
