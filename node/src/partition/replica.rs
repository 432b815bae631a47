//! The replica of a partition on this node: opens it on first use, fills its log when needed, closes it when it is idle,
//! and restarts it after a failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chronicle_log::{Log, LogError, LogId};
use chronicle_proto::internal::raft_frame::Message;
use parking_lot::RwLock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::environment::Environment;
use super::fill_source;
use super::leading::PartitionRole;
use super::open::Partition;
use super::storage::open_log;
use crate::cluster::{
    FILLING, FillProgress, FillReason, complete_fill, cut_damage, declare_source, fill_mark, fill_pending, set_aside,
    store_fill_pending,
};
use crate::metadata::Placement;
use crate::model::PartitionError;
use crate::raft::LeasePromise;

/// First and longest wait before a failed partition is opened again.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Wait before an interrupted fill is retried.
const FILL_RETRY: Duration = Duration::from_millis(500);
/// A fill that fails again and again is logged once in so many attempts.
const LOG_EVERY: u32 = 20;
/// Time after which a failed replica that is not used is opened again, beyond the wait of its state.
const REOPEN_AFTER: Duration = Duration::from_secs(20);
/// How long a request waits for a leader of a partition that it has opened.
const LEAD_PATIENCE: Duration = Duration::from_secs(3);

/// State of a replica.
#[derive(Clone)]
pub enum ReplicaState {
    /// Not open; the next use opens it.
    Dormant,
    /// Open.
    Active(Arc<Partition>),
    /// Its log is being filled from another replica; its group does not run.
    Filling(Arc<Filling>),
    /// It failed; uses before `until` get the error.
    Failed {
        /// The failure.
        error: PartitionError,
        /// When it may be opened again.
        until: Instant,
        /// The wait after the next failure.
        next: Duration,
    },
    /// Its topic was deleted or the node stops: it never opens again.
    Closed,
}

/// A running fill of a log.
pub struct Filling {
    /// Its progress.
    pub progress: FillProgress,
    stop: CancellationToken,
    task: parking_lot::Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Filling {
    /// The state, for people: with what it waits for, when the last attempt failed.
    pub fn describe(&self) -> String {
        match &**self.progress.waits_for.lock() {
            "" => FILLING.into(),
            why => format!("{FILLING}: {why}"),
        }
    }
}

/// The replica of one partition on this node, open or not.
pub struct Replica {
    id: LogId,
    env: Arc<Environment>,
    state: RwLock<ReplicaState>,
    /// Held while the partition opens or closes.
    changing: tokio::sync::Mutex<()>,
    /// Milliseconds since `start`.
    last_used: AtomicU64,
    start: Instant,
    /// What it has promised as a voter.
    promise: Arc<LeasePromise>,
}

impl Replica {
    /// A replica that is not open.
    pub fn new(env: Arc<Environment>, id: LogId) -> Self {
        Self {
            id,
            promise: LeasePromise::new(env.cluster.started),
            env,
            state: RwLock::new(ReplicaState::Dormant),
            changing: tokio::sync::Mutex::new(()),
            last_used: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    /// Identity of the partition's log.
    pub fn id(&self) -> LogId {
        self.id
    }

    /// The current state.
    pub fn state(&self) -> ReplicaState {
        self.state.read().clone()
    }

    /// Returns whether the replica has lost entries that it may have acknowledged, and is not repaired yet.
    pub fn is_damaged(&self) -> bool {
        fill_pending(&self.env.cluster.store, self.id) == Some(FillReason::Damaged)
    }

    /// The state after any opening or closing in progress.
    pub async fn settled(&self) -> ReplicaState {
        let _changing = self.changing.lock().await;
        self.state()
    }

    /// The partition, opened if needed. Opening continues when the caller is cancelled: the next caller finds it open.
    ///
    /// # Errors
    /// [`PartitionError::NotLeader`] when this node has no replica, or one that is not in service while another one is; why it
    /// cannot be opened otherwise: after a failure, that error until the next attempt is due.
    pub async fn get(self: &Arc<Self>) -> Result<Arc<Partition>, PartitionError> {
        self.used();
        if let Some(partition) = self.active() {
            return Ok(partition);
        }
        let replica = self.clone();
        tokio::spawn(async move { replica.open().await }).await.map_err(interrupted)?
    }

    /// The partition, led by this node: opened and elected if needed.
    ///
    /// # Errors
    /// As [`Replica::get`]; [`PartitionError::NotLeader`] with the leader's id.
    pub async fn lead(self: &Arc<Self>) -> Result<Arc<Partition>, PartitionError> {
        let partition = self.get().await?;
        if !matches!(partition.role(), PartitionRole::Leading(_)) {
            partition.lead(LEAD_PATIENCE).await?;
        }
        Ok(partition)
    }

    /// Handles a raft message from another node.
    pub async fn raft(self: &Arc<Self>, from: u64, message: Message) -> Message {
        let partition = match self.active() {
            Some(partition) => partition,
            None => {
                let replica = self.clone();
                let opened = tokio::spawn(async move { replica.open().await }).await.map_err(interrupted);
                match opened.and_then(|opened| opened) {
                    Ok(partition) => partition,
                    Err(error) => return Message::Refused(error.to_string()),
                }
            }
        };
        let behind = matches!(message, Message::Snapshot(_));
        let answer = partition.group().handle(from, message).await;
        if behind && matches!(answer, Message::Refused(_)) {
            drop(partition);
            self.refill(FillReason::Behind).await;
        }
        answer
    }

    fn used(&self) {
        self.last_used.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn active(&self) -> Option<Arc<Partition>> {
        match &*self.state.read() {
            ReplicaState::Active(partition) if partition.failure().is_none() => Some(partition.clone()),
            _ => None,
        }
    }

    async fn open(self: Arc<Self>) -> Result<Arc<Partition>, PartitionError> {
        let _changing = self.changing.lock().await;
        let state = self.state();
        let wait = match state {
            ReplicaState::Closed => {
                return Err(PartitionError::Unavailable("the partition is closed".into()));
            }
            ReplicaState::Filling(_) => return Err(self.filling()),
            ReplicaState::Active(partition) => match partition.failure() {
                None => return Ok(partition),
                Some(error) => {
                    tracing::warn!(partition = %self.id, %error, "partition failed, restarting from disk");
                    self.set(ReplicaState::Failed { error: error.clone(), until: Instant::now(), next: RETRY_MIN });
                    let others = partition.group().status().voters.iter().any(|node| *node != self.env.cluster.node());
                    partition.close().await;
                    // Opening a log does not read sealed segments: damage that a read has found must be repaired here.
                    if let Some(index) = error.damaged_index().filter(|_| others) {
                        drop(partition);
                        return match self.cut(Some(index)).await {
                            Ok(()) => {
                                self.start_filling(FillReason::Damaged);
                                Err(self.filling())
                            }
                            Err(error) => Err(self.fail(error, RETRY_MIN)),
                        };
                    }
                    RETRY_MIN
                }
            },
            ReplicaState::Failed { error, until, .. } if Instant::now() < until => return Err(self.elsewhere(error)),
            ReplicaState::Failed { next, .. } => next,
            ReplicaState::Dormant => RETRY_MIN,
        };
        // Looked up here and not by the caller, so that an applied change of settings is seen.
        let (Some(settings), Some(placement)) =
            (self.env.cluster.settings(self.id), self.env.cluster.placement(self.id))
        else {
            return Err(PartitionError::TopicDeleted);
        };
        let me = self.env.cluster.node();
        if !placement.holds(me) {
            return Err(match self.env.cluster.designated(self.id) {
                Some(leader) => PartitionError::NotLeader { leader },
                None => PartitionError::NoLeader,
            });
        }
        let others = placement.replicas.iter().chain(&placement.voters).any(|node| *node != me);
        if !others && fill_mark(&self.env.cluster.store, self.id).is_some_and(|mark| mark.votes_lost) {
            // The journal was repaired: nobody else has votes or entries of this group.
            store_fill_pending(&self.env.cluster.store, self.id, None).await.map_err(PartitionError::from)?;
        }
        if let Some(reason) = self.must_fill(&placement).await {
            self.start_filling(reason);
            return Err(self.filling());
        }
        match Partition::open(self.env.clone(), self.id, settings, placement, self.promise.clone()).await {
            Ok(partition) => {
                self.used();
                self.set(ReplicaState::Active(partition.clone()));
                Ok(partition)
            }
            Err(error @ PartitionError::Damaged { .. }) if others => {
                tracing::error!(partition = %self.id, %error, "log is damaged, repairing from another replica");
                // Opening reads more than the end of the log: entries after the last checkpoint are applied again.
                match self.cut(error.damaged_index()).await {
                    Ok(()) => {
                        self.start_filling(FillReason::Damaged);
                        Err(self.filling())
                    }
                    Err(error) => Err(self.fail(error, wait)),
                }
            }
            Err(error) => Err(self.fail(if others { error } else { only_copy(error) }, wait)),
        }
    }

    /// Takes the replica out of service. Returns what a request gets now.
    fn fail(&self, error: PartitionError, wait: Duration) -> PartitionError {
        tracing::error!(partition = %self.id, %error, retry_in_ms = wait.as_millis() as u64, "cannot open partition");
        let next = (wait * 2).min(RETRY_MAX);
        self.set(ReplicaState::Failed { error: error.clone(), until: Instant::now() + wait, next });
        self.elsewhere(error)
    }

    /// What a request to a replica that is not in service gets: the node that may lead instead, or `error` when no other node does.
    /// Without this, clients that ask the first node of the placement would find no leader although the other replicas have a
    /// majority.
    fn elsewhere(&self, error: PartitionError) -> PartitionError {
        let cluster = &self.env.cluster;
        match cluster.designated(self.id).filter(|node| *node != cluster.node() && cluster.serves(*node, self.id)) {
            Some(leader) => PartitionError::NotLeader { leader },
            None => error,
        }
    }

    /// Opens a failed replica that was not used for a while: what kept it from opening may be over.
    pub(super) async fn retry(self: &Arc<Self>) {
        let due = match &*self.state.read() {
            ReplicaState::Failed { until, .. } => Instant::now() >= *until + REOPEN_AFTER,
            _ => false,
        };
        if due {
            // The state has the error.
            let _ = self.get().await;
        }
    }

    /// Returns why the log must be filled before the group may run; `None`: it need not.
    async fn must_fill(&self, placement: &Placement) -> Option<FillReason> {
        if let Some(reason) = fill_pending(&self.env.cluster.store, self.id) {
            return Some(reason);
        }
        if placement.founders.contains(&self.env.cluster.node()) {
            return None;
        }
        let (store, id) = (self.env.cluster.store.clone(), self.id);
        let exists = crate::host::blocking(move || store.list_logs().map(|logs| logs.contains(&id))).await;
        match exists {
            Ok(Ok(false)) => Some(FillReason::Behind),
            // An error shows again when the log is opened.
            Ok(_) | Err(_) => None,
        }
    }

    /// What a request gets while the log is being filled.
    fn filling(&self) -> PartitionError {
        let why = "the replica's log is being filled from another replica";
        self.elsewhere(PartitionError::Unavailable(why.into()))
    }

    /// Closes the partition and fills its log.
    async fn refill(self: &Arc<Self>, reason: FillReason) {
        let replica = self.clone();
        let done = tokio::spawn(async move {
            let _changing = replica.changing.lock().await;
            let ReplicaState::Active(partition) = replica.state() else { return };
            replica.set(ReplicaState::Dormant);
            partition.close().await;
            replica.start_filling(reason);
        });
        if let Err(error) = done.await {
            tracing::error!(partition = %self.id, %error, "closing a partition panicked");
        }
    }

    /// A read has found damage in the log of an open partition: takes it out of service and repairs it, unless this is the
    /// only replica. `index`: raft index of the damage.
    pub async fn damaged(self: &Arc<Self>, index: u64) {
        let replica = self.clone();
        let done = tokio::spawn(async move {
            let _changing = replica.changing.lock().await;
            let ReplicaState::Active(partition) = replica.state() else { return };
            let others = partition.group().status().voters.iter().any(|node| *node != replica.env.cluster.node());
            if !others {
                return;
            }
            tracing::error!(partition = %replica.id, index, "log is damaged, repairing from another replica");
            replica.set(ReplicaState::Dormant);
            partition.close().await;
            match replica.cut(Some(index)).await {
                Ok(()) => replica.start_filling(FillReason::Damaged),
                Err(error) => drop(replica.fail(error, RETRY_MIN)),
            }
        });
        if let Err(error) = done.await {
            tracing::error!(partition = %self.id, %error, "repairing a partition panicked");
        }
    }

    /// Removes the damaged end from a closed log, after storing durably that the replica has lost entries. `from`: raft index of
    /// the damage that a read has found; `None`: opening the log finds it, or the damage is not in its entries.
    async fn cut(&self, from: Option<u64>) -> Result<(), PartitionError> {
        let cut = cut_damage(&self.env.cluster.store, self.id, from).await.map_err(PartitionError::from)?;
        if let Some(quarantine) = cut.quarantine {
            tracing::warn!(
                partition = %self.id,
                kept_to = cut.next_index,
                had_to = cut.was,
                ?quarantine,
                "damaged segments moved to quarantine"
            );
        }
        Ok(())
    }

    /// Fills the log in the background. The caller holds `changing`.
    fn start_filling(self: &Arc<Self>, reason: FillReason) {
        let filling = Arc::new(Filling {
            progress: FillProgress::default(),
            stop: CancellationToken::new(),
            task: parking_lot::Mutex::new(None),
        });
        self.set(ReplicaState::Filling(filling.clone()));
        let replica = self.clone();
        let run = filling.clone();
        let task = self.env.cluster.consensus.spawn(async move {
            let full = run.stop.run_until_cancelled(replica.fill(reason, &run.progress)).await.is_some();
            let mut state = replica.state.write();
            if full && matches!(&*state, ReplicaState::Filling(_)) {
                replica.replace(&mut state, ReplicaState::Dormant);
            }
        });
        *filling.task.lock() = Some(task);
    }

    /// Fills the log; retries until it succeeds.
    async fn fill(&self, reason: FillReason, progress: &FillProgress) {
        for attempt in 0u32.. {
            // Damage that is found meanwhile makes it a repair.
            let reason = fill_pending(&self.env.cluster.store, self.id).unwrap_or(reason);
            match self.fill_once(reason, progress).await {
                Ok(()) => return,
                Err(error) => {
                    if attempt.is_multiple_of(LOG_EVERY) {
                        tracing::warn!(partition = %self.id, error, "filling the log was interrupted, retrying");
                    }
                    *progress.waits_for.lock() = error;
                    tokio::time::sleep(crate::host::jitter(FILL_RETRY)).await;
                }
            }
        }
    }

    async fn fill_once(&self, reason: FillReason, progress: &FillProgress) -> Result<(), String> {
        let text = |error: LogError| error.to_string();
        store_fill_pending(&self.env.cluster.store, self.id, Some(reason)).await.map_err(text)?;
        let settings = self.env.cluster.settings(self.id).ok_or("the topic was deleted")?;
        let log = match open_log(&self.env, self.id, &settings).await {
            Ok(log) => log,
            // A crash has interrupted the cut, or the damage is new.
            Err(error @ PartitionError::Damaged { .. }) => {
                self.cut(error.damaged_index()).await.map_err(|e| e.to_string())?;
                return Err(error.to_string());
            }
            Err(error) => return Err(error.to_string()),
        };
        progress.kept.store(log.position().next_index, Ordering::Relaxed);
        let open = ClosedOnDrop(Some(log.clone()));
        let filled = fill_source::fill(&self.env, &log, reason, progress).await;
        drop(log);
        open.close().await;
        complete_fill(&self.env.cluster, self.id, filled?).await
    }

    /// Makes the log of this replica the truth, on the word of a person. Returns the raft index after its last entry.
    ///
    /// # Errors
    /// Why it cannot be the source.
    pub(crate) async fn declare_source(self: &Arc<Self>) -> Result<u64, String> {
        let _changing = self.changing.lock().await;
        self.end(self.replace_unless_closed()?).await;
        let (store, id) = (self.env.cluster.store.clone(), self.id);
        crate::host::blocking(move || declare_source(&store, id)).await.map_err(|error| error.to_string())?
    }

    /// Sets the whole log of this replica aside, on the word of a person, and fills it from the declared source.
    ///
    /// # Errors
    /// When the files cannot be moved.
    pub(crate) async fn start_over(self: &Arc<Self>) -> Result<(), String> {
        let _changing = self.changing.lock().await;
        self.end(self.replace_unless_closed()?).await;
        let (store, id) = (self.env.cluster.store.clone(), self.id);
        let cut = crate::host::blocking(move || set_aside(&store, id)).await;
        cut.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        self.start_filling(FillReason::Damaged);
        Ok(())
    }

    /// Takes the replica out of use, unless it is closed permanently. Returns the previous state.
    fn replace_unless_closed(&self) -> Result<ReplicaState, String> {
        let mut state = self.state.write();
        match *state {
            ReplicaState::Closed => Err("the replica is closed".into()),
            _ => Ok(self.replace(&mut state, ReplicaState::Dormant)),
        }
    }

    /// Ends what a state has running.
    async fn end(&self, before: ReplicaState) {
        match before {
            ReplicaState::Active(partition) => partition.close().await,
            ReplicaState::Filling(filling) => {
                filling.stop.cancel();
                let task = filling.task.lock().take();
                if let Some(task) = task {
                    let _ = task.await;
                }
            }
            ReplicaState::Dormant | ReplicaState::Failed { .. } | ReplicaState::Closed => {}
        }
    }

    fn set(&self, state: ReplicaState) {
        self.replace(&mut self.state.write(), state);
    }

    /// Changes the state and what heartbeats report of it. Returns the previous state.
    fn replace(&self, now: &mut ReplicaState, state: ReplicaState) -> ReplicaState {
        let in_service = !matches!(state, ReplicaState::Failed { .. } | ReplicaState::Filling(_));
        self.env.cluster.peers.liveness().set_in_service(self.id, in_service);
        std::mem::replace(now, state)
    }

    /// Closes the partition if it was not used for `idle`, has no open handles, and its group does not need this replica.
    pub async fn close_if_idle(&self, idle: Duration) {
        let quiet =
            || self.start.elapsed().saturating_sub(Duration::from_millis(self.last_used.load(Ordering::Relaxed)));
        if quiet() < idle {
            return;
        }
        let Ok(_changing) = self.changing.try_lock() else { return };
        let unused = || match &*self.state.read() {
            ReplicaState::Active(partition) if Arc::strong_count(partition) == 1 => Some(partition.clone()),
            _ => None,
        };
        let Some(partition) = unused() else { return };
        if !partition.may_close().await {
            return;
        }
        drop(partition);
        self.close_unused(|| quiet() >= idle).await;
    }

    /// Closes the partition if it has no open handles. The caller holds `changing`.
    async fn close_unused(&self, still: impl Fn() -> bool) {
        let partition = {
            let mut state = self.state.write();
            // One reference is the replica's own; under the write lock no caller gets another.
            match &*state {
                ReplicaState::Active(partition) if Arc::strong_count(partition) == 1 && still() => {
                    let partition = partition.clone();
                    self.replace(&mut state, ReplicaState::Dormant);
                    partition
                }
                _ => return,
            }
        };
        partition.close().await;
    }

    /// The leader closes: this replica closes too when its log ends at the same position. Returns whether it does; a replica that
    /// is being read stays open without a leader.
    pub async fn sleep_with_leader(self: &Arc<Self>, position: chronicle_proto::internal::LogPosition) -> bool {
        let Some(partition) = self.active() else { return matches!(self.state(), ReplicaState::Dormant) };
        let rests = partition.rest_at(position).await;
        drop(partition);
        if rests {
            let replica = self.clone();
            tokio::spawn(async move {
                let _changing = replica.changing.lock().await;
                let resting = || replica.active().is_some_and(|partition| partition.tick_state.watcher.resting());
                if resting() {
                    replica.close_unused(|| true).await;
                }
            });
        }
        rests
    }

    /// Closes the partition; the next use opens it with the current settings.
    pub async fn restart(self: &Arc<Self>) {
        self.leave(ReplicaState::Dormant).await;
    }

    /// Closes the partition permanently.
    pub async fn close(self: &Arc<Self>) {
        self.leave(ReplicaState::Closed).await;
    }

    /// Closes the partition; completes even when the caller is cancelled.
    async fn leave(self: &Arc<Self>, then: ReplicaState) {
        let replica = self.clone();
        let left = tokio::spawn(async move {
            let _changing = replica.changing.lock().await;
            let before = {
                let mut state = replica.state.write();
                if matches!(*state, ReplicaState::Closed) {
                    return;
                }
                replica.replace(&mut state, then)
            };
            replica.end(before).await;
        });
        if let Err(error) = left.await {
            tracing::error!(partition = %self.id, %error, "closing a partition panicked");
        }
    }
}

/// A log that is closed also when its fill is cancelled.
struct ClosedOnDrop(Option<Arc<Log>>);

impl ClosedOnDrop {
    async fn close(mut self) {
        if let Some(log) = self.0.take() {
            let _ = crate::host::blocking(move || log.close()).await;
        }
    }
}

impl Drop for ClosedOnDrop {
    fn drop(&mut self) {
        if let Some(log) = self.0.take() {
            drop(crate::host::blocking(move || log.close()));
        }
    }
}

/// The error of damage in a replica without another one, with what can be done about it.
fn only_copy(error: PartitionError) -> PartitionError {
    match error {
        PartitionError::Damaged { index, why } => PartitionError::Damaged {
            index,
            why: format!(
                "{why}; no other replica has a copy: restore the log's folder from a backup, or read the intact records with \
                 `chronicle debug segment`, and create the topic again"
            ),
        },
        other => other,
    }
}

/// The runtime is shutting down, or the task panicked.
fn interrupted(error: tokio::task::JoinError) -> PartitionError {
    PartitionError::Unavailable(format!("opening the partition was interrupted: {error}"))
}
